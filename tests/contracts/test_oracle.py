"""Oracle: exactly a quorum's signatures over the one next report, and equivocation kept for all to see."""

from __future__ import annotations

from typing import Any

import boa
import pytest
from eth_utils import keccak

from freehold.protocol.messages import Report
from freehold.protocol.typed import Domain
from freehold.protocol.units import Address, Hash
from tests.contracts.disputing import bond_members
from tests.contracts.typed_data import REPORT, digest_of
from tests.contracts.world import (
    TOKEN,
    Settings,
    World,
    deployer_of,
    flip_s,
    forked,
    hexed,
    key_of,
    logs_of,
    tuple_of,
)

QUORUMS = {1: 1, 2: 2, 3: 2, 4: 3, 5: 4, 6: 4, 7: 5, 10: 7, 13: 9, 30: 20, 31: 21}


def submit(world: World, report: Report, bitmap: int, signatures: bytes) -> None:
    world.oracle.submit(tuple_of(report), bitmap, signatures)


def deploy(parameters: bytes = b"{}", price: int = 1, notice: int = 1) -> Any:
    others = [boa.env.generate_address() for _ in range(4)]
    return deployer_of("Oracle").deploy(*others, parameters, price, notice)


@pytest.mark.parametrize(("count", "quorum"), QUORUMS.items())
def test_any_two_quorums_share_an_honest_member(world: World, count: int, quorum: int) -> None:
    faulty = (count - 1) // 3
    assert World(Settings(members=count)).oracle.quorum(1) == quorum
    assert 2 * quorum - count > faulty
    assert count - faulty >= quorum


def test_construction_refuses_what_cannot_work(world: World) -> None:
    with boa.reverts("oracle: no parameters"):
        deploy(b"")
    with boa.reverts("oracle: no price"):
        deploy(price=0)
    with boa.reverts("oracle: no notice"):
        deploy(notice=0)
    assert deploy(b"x" * 4096).parameters_at(1) == keccak(b"x" * 4096)


def test_deployment_publishes_the_parameters(world: World) -> None:
    (event,) = logs_of(deploy(b'{"a":1}'), "Deployed")
    assert event.parameters == b'{"a":1}'
    assert world.oracle.last_report_hash() == world.oracle.parameters_at(1) == keccak(world.settings.parameters)


def test_report_digest_equals_eth_accounts_and_ours(world: World) -> None:
    report = world.report(subsidy=7, epoch=2**64 - 1, view=3, attempt=2**32 - 1, price=2**96 - 1)
    fields = dict(zip((field.split()[1] for field in REPORT.split(",")), tuple_of(report), strict=True))
    digest = digest_of("Report", REPORT, fields, "Freehold", boa.env.evm.patch.chain_id, world.oracle.address)
    assert world.oracle.report_digest(tuple_of(report)) == digest == report.digest(world.domain)


@pytest.mark.parametrize("who", [(0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3)])
def test_any_quorum_submits_and_the_event_says_all(world: World, who: tuple[int, ...]) -> None:
    report = world.report(subsidy=5)
    world.submit(report, who)
    (event,) = logs_of(world.oracle, "ReportAccepted")
    assert event.report_hash == report.struct_hash() == world.oracle.last_report_hash()
    assert (event.epoch, event.bitmap) == (1, sum(1 << i for i in who))
    assert tuple(event.report) == tuple_of(report)


@pytest.mark.parametrize(
    ("who", "reason"),
    [
        ((), "oracle: signatures length"),
        ((0, 1), "oracle: signatures length"),
        ((0, 1, 2, 3), "oracle: signatures length"),
        ((0, 0, 1), "oracle: wrong signature"),
        ((0, 0, 0), "oracle: too few signers"),
        ((1, 0, 2), "oracle: wrong signature"),
        ((2, 1, 0), "oracle: wrong signature"),
    ],
)
def test_signers_are_a_quorum_each_once_in_order(world: World, who: tuple[int, ...], reason: str) -> None:
    report = world.report()
    with boa.reverts(reason):
        submit(world, report, *world.sign(report, who))


@pytest.mark.parametrize(
    ("bitmap", "reason"),
    [
        (0b0000, "oracle: too few signers"),
        (0b0011, "oracle: too few signers"),
        (0b1111, "oracle: too many signers"),
        (0b1011, "oracle: wrong signature"),
        (0b1110, "oracle: wrong signature"),
        (0b10111, "oracle: unknown member"),
        (0b111 | 1 << 255, "oracle: unknown member"),
    ],
)
def test_the_bitmap_names_exactly_the_signers(world: World, bitmap: int, reason: str) -> None:
    report = world.report()
    with boa.reverts(reason):
        submit(world, report, bitmap, world.sign(report)[1])


def test_strangers_and_broken_signatures_count_for_nothing(world: World) -> None:
    report = world.report()
    bitmap, good = world.sign(report)
    stranger = bytes(key_of("stranger").sign_digest(report.digest(world.domain)))
    with boa.reverts("oracle: wrong signature"):
        submit(world, report, bitmap, stranger + good[65:])
    with boa.reverts("ecdsa: invalid signature `s` value"):
        submit(world, report, bitmap, flip_s(good[:65]) + good[65:])
    for v in (0, 1, 26, 29, 255):
        with boa.reverts("ecdsa: invalid signature"):
            submit(world, report, bitmap, good[:64] + bytes([v]) + good[65:])
    with boa.reverts("ecdsa: invalid signature"):
        submit(world, report, bitmap, bytes(65) + good[65:])
    submit(world, report, bitmap, good)


@pytest.mark.parametrize("extra", [b"\x00", bytes(32), b"x" * 1_000])
def test_calldata_cannot_be_padded(world: World, extra: bytes) -> None:
    report = world.report()
    data = world.oracle.submit.prepare_calldata(tuple_of(report), *world.sign(report))
    with boa.reverts("oracle: calldata length"):
        raw_call(world, data + extra)
    raw_call(world, data)
    assert world.ledger.posted_epoch() == 1


def raw_call(world: World, data: bytes) -> None:
    computation = boa.env.execute_code(to_address=world.oracle.address, data=data)
    if computation.is_error:
        world.oracle.handle_error(computation)


@pytest.mark.parametrize("length", [0, 64, 194, 196, 260])
def test_signatures_have_one_length(world: World, length: int) -> None:
    report = world.report()
    bitmap, good = world.sign(report)
    with boa.reverts("oracle: signatures length"):
        submit(world, report, bitmap, (good + bytes(65))[:length])


def test_a_quorum_for_another_chain_or_contract_is_none_here(world: World) -> None:
    report = world.report()
    chain_id, contract = world.domain
    for domain in (Domain(chain_id + 1, contract), Domain(chain_id, Address(world.ledger.address))):
        with boa.reverts("oracle: wrong signature"):
            submit(world, report, *world.sign(report, domain=domain))
    with forked() as fork:
        with boa.reverts("oracle: wrong signature"):
            submit(world, report, *world.sign(report))
        submit(world, report, *world.sign(report, domain=Domain(fork, contract)))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"epoch": 1}, "oracle: previous"),
        ({"epoch": 3}, "oracle: previous"),
        ({"epoch": 0}, "oracle: previous"),
        ({"epoch": 66}, "ledger: epoch"),
        ({"attempt": 1}, "oracle: attempt"),
        ({"previous": Hash(bytes(32))}, "oracle: previous"),
        ({"parameters": Hash(bytes(32))}, "oracle: parameters"),
        ({"price": 0}, "oracle: no price"),
    ],
)
def test_only_the_next_report_is_accepted(world: World, changes: dict[str, Any], reason: str) -> None:
    world.post()
    report = world.report(subsidy=0, **changes)
    with boa.reverts(reason):
        world.submit(report)
    world.submit(world.report(view=7))


def test_an_accepted_report_is_not_accepted_again(world: World) -> None:
    report = world.post()
    for again in (report, world.report(epoch=1), world.report(previous=report.previous)):
        with boa.reverts():
            world.submit(again)


def test_the_first_report_follows_the_parameters(world: World) -> None:
    assert world.report().previous == keccak(world.settings.parameters)


def test_prices_are_of_the_last_two_reports(world: World) -> None:
    start = world.settings.initial_price
    assert world.oracle.prices() == (start, start, boa.env.timestamp)
    boa.env.time_travel(seconds=50)
    world.post(price=2**96 - 1)
    assert world.oracle.prices() == (2**96 - 1, start, boa.env.timestamp)
    world.post(price=3 * TOKEN)
    assert world.oracle.prices()[:2] == (3 * TOKEN, 2**96 - 1)


def test_the_largest_committee_submits(world: World) -> None:
    large = World(Settings(members=31))
    large.submit(large.report(subsidy=1), range(10, 31))
    assert large.ledger.posted_epoch() == 1


FORWARDER = """
@external
def forward(to: address, data: Bytes[8192]):
    raw_call(to, data)
"""


def test_signatures_stand_in_the_transaction_itself(world: World) -> None:
    """What a contract passes on is in no transaction's calldata: nobody could show who signed."""
    report = world.report(subsidy=1)
    arguments = (tuple_of(report), *world.sign(report))
    with boa.reverts("oracle: not direct"):
        boa.loads(FORWARDER).forward(world.oracle, world.oracle.submit.prepare_calldata(*arguments))
    delegating = boa.env.generate_address()
    boa.env.set_code(delegating, bytes.fromhex("ef0100") + bytes(20))
    with boa.reverts("oracle: not direct"):
        world.oracle.submit(*arguments, sender=delegating)
    world.submit(report)
    assert world.ledger.posted_epoch() == 1


def record(world: World, one: Report, other: Report, signers: tuple[int, int] = (0, 0)) -> None:
    signatures = [world.sign(report, [who])[1] for report, who in zip((one, other), signers, strict=True)]
    world.oracle.record_equivocation(tuple_of(one), signatures[0], tuple_of(other), signatures[1])


def test_equivocation_is_recorded_once(world: World) -> None:
    one, other, third = (world.report(manifest=Hash(bytes([i]) * 32)) for i in range(3))
    record(world, one, other)
    (event,) = logs_of(world.oracle, "EquivocationRecorded")
    assert (event.member, event.epoch, event.attempt, event.view_) == (member(world, 0), 1, 0, 0)
    assert (event.report_a, event.report_b) == (one.struct_hash(), other.struct_hash())
    assert world.oracle.equivocated(member(world, 0), 1, 0, 0)
    for pair in ((one, other), (other, one), (other, third)):
        with boa.reverts("oracle: recorded"):
            record(world, *pair)
    record(world, one, other, (1, 1))
    world.submit(one)


def member(world: World, index: int) -> str:
    return str(boa.util.abi.Address(hexed(world.members[index].address)))


@pytest.mark.parametrize(
    ("changes", "signers", "reason"),
    [
        ({}, (0, 0), "oracle: same report"),
        ({"epoch": 2}, (0, 0), "oracle: epochs differ"),
        ({"attempt": 1}, (0, 0), "oracle: attempts differ"),
        ({"view": 1}, (0, 0), "oracle: views differ"),
        ({"price": 1}, (0, 1), "oracle: two signers"),
    ],
)
def test_what_is_no_equivocation_is_not_recorded(
    world: World, changes: dict[str, Any], signers: tuple[int, int], reason: str
) -> None:
    with boa.reverts(reason):
        record(world, world.report(), world.report(**changes), signers)


def test_only_members_equivocate_and_only_under_this_domain(world: World) -> None:
    one, other = world.report(), world.report(price=1)
    stranger = key_of("stranger")
    signatures = [bytes(stranger.sign_digest(report.digest(world.domain))) for report in (one, other)]
    with boa.reverts("oracle: not a member"):
        world.oracle.record_equivocation(tuple_of(one), signatures[0], tuple_of(other), signatures[1])
    elsewhere = Domain(5, world.domain.contract)
    foreign = [world.sign(report, [0], elsewhere)[1] for report in (one, other)]
    with boa.reverts():
        world.oracle.record_equivocation(tuple_of(one), foreign[0], tuple_of(other), foreign[1])
    good = [world.sign(report, [0])[1] for report in (one, other)]
    with boa.reverts("ecdsa: invalid signature `s` value"):
        world.oracle.record_equivocation(tuple_of(one), good[0], tuple_of(other), flip_s(good[1]))
    with boa.reverts("oracle: signature length"):
        world.oracle.record_equivocation(tuple_of(one), good[0][:64], tuple_of(other), good[1])


def test_equivocation_pays_nobody(world: World) -> None:
    """Else a member that is about to be slashed would accuse itself, and keep what the challenger gets."""
    bond_members(world)
    equivocator, supply = member(world, 0), world.token.totalSupply()
    one, other = world.report(), world.report(price=1)
    signatures = [world.sign(report, [0])[1] for report in (one, other)]
    world.oracle.record_equivocation(tuple_of(one), signatures[0], tuple_of(other), signatures[1], sender=equivocator)
    assert world.membership.position(equivocator).bond == world.token.balanceOf(equivocator) == 0
    assert world.token.totalSupply() == supply - world.settings.member_bond
