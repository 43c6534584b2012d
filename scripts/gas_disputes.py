"""Rows of the gas table for disputes and fleets (`gas_table.py`)."""

from __future__ import annotations

import boa
from eth_utils import keccak

from freehold.protocol.disputes import (
    DEMAND_LEAF,
    DEMAND_VERDICT,
    answer_leaf,
    answer_verdict,
    commitment_of,
    find_shrunk,
)
from freehold.protocol.fleets import sign_device
from freehold.protocol.messages import Report
from freehold.protocol.units import Address
from freehold.protocol.verdicts import SILENT
from freehold.services.judging import JUDGES
from scripts.gas import Row, measure
from tests.contracts.disputing import SALT, Challenger, accounts_of, bond_members, mine, states_of
from tests.contracts.test_fleets import struct_of
from tests.contracts.test_opening import claim, find, settled
from tests.contracts.world import TOKEN, World, key_of, tuple_of


def dispute_rows() -> list[Row]:
    """A challenge and the slash of a quorum, a demand and its answer; then the same of a storage opening."""
    rows = []
    world = World()
    bond_members(world)
    before = world.post(accounts_of(*[TOKEN] * 1000))
    after = accounts_of(TOKEN - 1, *[TOKEN + 1] * 999)
    found = find_shrunk(states_of(accounts_of(*[TOKEN] * 1000)), states_of(after))
    assert found is not None
    report = world.post(after)
    who, idle, asker = (Challenger(world) for _ in range(3))
    for sender in (who, idle):
        commitment = commitment_of(Address(sender.address), found, SALT)
        case = "first" if sender is who else "later"
        gas = measure(world.disputes, "commit", 2, report.struct_hash(), commitment, sender=sender.address)
        rows.append(Row("Disputes.commit", case, gas))
    gas = measure(world.disputes, "demand", tuple_of(report), DEMAND_LEAF, 700, sender=asker.address)
    rows.append(Row("Disputes.demand", "a leaf", gas))
    shown = answer_leaf(states_of(after), 700)
    gas = measure(world.disputes, "answer", tuple_of(report), asker.address, *shown)
    rows.append(Row("Disputes.answer", "a leaf of 1,000", gas))
    boa.env.time_travel(seconds=world.settings.reveal_seconds)
    gas = measure(world.disputes, "reveal", tuple_of(before), tuple_of(report), *found, SALT, sender=who.address)
    rows.append(Row("Disputes.reveal", "an account of 1,000 that shrank", gas))
    gas = measure(world.disputes, "slash", tuple_of(report), *world.sign(report))
    rows.append(Row("Disputes.slash", "3 members", gas))
    return [*rows, *opening_rows()]


def opening_rows() -> list[Row]:
    """A storage opening against its verdict, and one that is shown on demand."""
    settlement, bundle = settled().settlements[-1], settled().bundles[-1]
    world = World()
    _, report = post_third(world, settlement.report)
    asker = Challenger(world)
    asker.demand(report, DEMAND_VERDICT, 0)
    shown = answer_verdict(settlement, bundle, 0, JUDGES)
    gas = measure(world.disputes, "answer", tuple_of(report), asker.address, *shown)
    rows = [Row("Disputes.answer", "a good opening, with its proof", gas)]
    world, (wrong, verdicts) = World(), claim()
    node = next(v for v in verdicts if v.reason == SILENT).node
    world.register(boa.env.generate_address(), next(k for k in settled().nodes if k.address == node))
    before, report = post_third(world, wrong)
    found, who = find(verdicts), Challenger(world)
    who.commit(report, found)
    mine()
    gas = measure(world.disputes, "reveal", tuple_of(before), tuple_of(report), *found, SALT, sender=who.address)
    return [*rows, Row("Disputes.reveal", "an opening against its verdict", gas)]


def post_third(world: World, settled: Report) -> tuple[Report, Report]:
    """Three reports, of which the last has the evidence and the verdicts of `settled`; the last two."""
    world.post()
    before = world.post()
    fields = {name: getattr(settled, name) for name in ("manifest", "verdicts_root", "view")}
    return before, world.post(epoch=3, **fields)


def fleet_rows(world: World) -> list[Row]:
    """A registration costs the same for any number of devices; single ones by their proofs."""
    rows, operator, owner = [], boa.env.generate_address(), boa.env.generate_address()
    uri = "https://fleet.operator.example.org/devices"
    for count, size in ((1, "1 device"), (1_000, "1,000 devices"), (1_000_000, "1,000,000 devices")):
        gas = measure(world.fleets, "register", b"\x07" * 32, count, uri, sender=operator)
        each = f"{gas / count:,.3f}".rstrip("0").rstrip(".")
        rows.append(Row("Fleets.register", f"{size}: {each} a device", gas))
    device = sign_device(key_of("device"), Address(owner), 0x8928308280FFFFF, world.domain)
    for depth, size in ((0, "1 device"), (10, "1,000 devices"), (20, "1,000,000 devices")):
        count = max(1, 10 ** (depth * 3 // 10))
        fleet, proof = lone_fleet(device.row_hash(), count)
        identity = world.fleets.register(fleet, count, uri, sender=operator)
        call = (identity, 0, struct_of(device), proof)
        gas = measure(world.fleets, "move", *call, operator, sender=owner)
        rows.append(Row("Fleets.move", f"of {size}", gas))
        gas = measure(world.fleets, "revoke", *call, sender=operator)
        rows.append(Row("Fleets.revoke", f"of {size}, moved before", gas))
    return [*rows, Row("Fleets.retire", "", measure(world.fleets, "retire", identity, sender=operator))]


def lone_fleet(row_hash: bytes, count: int) -> tuple[bytes, list[bytes]]:
    """The root of a fleet of which only the first device's path exists, and its proof."""
    node, proof = keccak(b"\x00" + row_hash), []
    while count > 1:
        proof.append(keccak(len(proof).to_bytes(32)))
        node, count = keccak(b"\x01" + node + proof[-1]), (count + 1) // 2
    return node, proof
