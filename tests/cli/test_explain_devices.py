"""`why` for owners and operators of devices, for a device, and for members: counted by reason, with the arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from freehold.cli.bundles import check_bundle
from freehold.cli.explain import Explanation, explain
from freehold.protocol.batches import Batch, make_batch
from freehold.protocol.bundle import encode_bundle
from freehold.protocol.epoch import make_context
from freehold.protocol.errors import NotFound
from freehold.protocol.fleets import FleetDevice
from freehold.protocol.keys import Key
from freehold.protocol.state import DeviceChange, FleetRecord
from freehold.protocol.tables import Table
from freehold.protocol.typed import keccak
from freehold.protocol.units import ZERO_ADDRESS, Address
from freehold.services.judging import JUDGES
from freehold.services.sensing.device import OpenEpoch, derive_keys, sign_devices, sign_reports
from freehold.services.sensing.roster import enrolments_of
from freehold.services.sensing.terms import ENROLMENT, REPORT
from tests.cli.runner import invoke
from tests.protocol.world import DOMAIN, MEMBERS, PARAMETERS, World, key

NODE, OPERATOR = key(11), key(5000).address  # the world's first node is this operator's
ANN, BOB = Address(bytes(19) + b"\x0a"), Address(bytes(19) + b"\x0b")
KEYS = list(derive_keys(b"explained", 6))
PRICE = PARAMETERS.device_bond
SCHEDULE, COVERAGE, MEMBERS_POOL = 10**21, 10**20, 5 * 10**19


def fleet_world(devices: Table[FleetDevice], covered: int) -> World:
    fleet = FleetRecord(
        fleet=keccak(b"fleet"), operator=OPERATOR, root=devices.root, count=len(devices), bond=covered * PRICE
    )
    parameters = msgspec.structs.replace(PARAMETERS, coverage_share=100_000, member_share=50_000)
    world = World((), (NODE,), parameters=parameters, fleets=(fleet,))
    world.settle([make_batch(ENROLMENT, enrolments_of(fleet.fleet, devices, NODE.address), NODE, DOMAIN)])
    return world


def reports(world: World, keys: list[Key]) -> Batch:
    epoch = world.state.epoch.epoch + 1
    context = make_context(world.state, world.anchor(epoch), JUDGES["sensing"], DOMAIN, {})
    opened = OpenEpoch(epoch, context.beacon)
    return make_batch(REPORT, sign_reports(keys, opened, np.zeros((len(keys), 32), np.uint8), DOMAIN), NODE, DOMAIN)


@pytest.fixture(scope="module")
def world() -> World:
    """1: six devices are enrolled, four of Ann's, two of Bob's; 2: all report, the bond covers five; 3: the first is
    revoked and reports all the same, the second is Bob's now, the third is silent; 4: nobody reports."""
    parts = [sign_devices(KEYS[:4], ANN, 5, DOMAIN), sign_devices(KEYS[4:], BOB, 6, DOMAIN)]
    world = fleet_world(Table.concat(FleetDevice, parts), covered=5)
    world.settle([reports(world, KEYS)])
    (fleet,) = world.fleets
    world.changes = tuple(
        DeviceChange(fleet=fleet.fleet, index=i, device=KEYS[i].address, owner=owner)
        for i, owner in ((0, ZERO_ADDRESS), (1, BOB))
    )
    world.settle([reports(world, [KEYS[i] for i in (0, 1, 3, 4, 5)])])
    world.settle([])
    return world


def why(world: World, epoch: int, subject: Address) -> dict[str, Any]:
    return explain(check_bundle(encode_bundle(world.bundles[epoch - 1]), epoch, None, None), subject)


def counts(rows: list[dict[str, Any]]) -> dict[str, int]:
    return {row["reason"]: row["count"] for row in rows}


def test_an_owner_sees_its_share_of_the_pool(world: World) -> None:
    ann, bob = why(world, 2, ANN), why(world, 2, BOB)
    (reward,) = ann["rewards"]
    assert (reward["schedule"], reward["pool"], reward["service_share"]) == (str(SCHEDULE), *[str(COVERAGE)] * 2)
    assert (reward["measure"], reward["total"], reward["services"]) == (4, 5, 1)
    assert int(reward["subsidy"]) == int(ann["totals"]["tokens"]) == COVERAGE * 4 // 5
    assert counts(ann["services"]["sensing"]["reports"]) == {"good": 4}
    assert counts(bob["services"]["sensing"]["reports"]) == {"good": 1, "uncounted": 1}
    assert int(bob["totals"]["rewards"]) == COVERAGE // 5
    assert bob["zero"] == []
    assert int(ann["settled"]["after"]["tokens_earned"]) == COVERAGE * 4 // 5


def test_an_operator_sees_its_fleets_and_what_its_bond_covers(world: World) -> None:
    told = why(world, 2, OPERATOR)
    assert counts(told["services"]["sensing"]["operated"]) == {"good": 5, "uncounted": 1}
    (fleet,) = told["services"]["sensing"]["fleets"]
    assert (fleet["devices"], fleet["live"], fleet["covered"]) == (6, 6, 5)
    assert (told["rewards"], told["services"]["sensing"]["live"]) == ([], 0)
    assert why(world, 2, NODE.address)["services"]["sensing"] == told["services"]["sensing"]


def test_what_was_revoked_moved_or_silent_is_told_apart(world: World) -> None:
    ann, bob = why(world, 3, ANN)["services"]["sensing"], why(world, 3, BOB)["services"]["sensing"]
    assert counts(ann["reports"]) == {"good": 1, "silent": 1}
    assert (ann["live"], ann["gone"], ann["moved_away"], ann["moved_in"]) == (2, 1, 1, 0)
    assert counts(ann["strays"]) == {"unknown_device": 1}
    assert counts(bob["reports"]) == {"good": 3}
    assert (bob["moved_in"], bob["gone"], bob["strays"]) == (1, 0, [])
    assert [int(why(world, 3, who)["totals"]["tokens"]) for who in (ANN, BOB)] == [COVERAGE // 4, COVERAGE * 3 // 4]


def test_one_device_is_told_to_whom_it_pays_and_why_not(world: World) -> None:
    told = why(world, 2, KEYS[5].address)
    assert told["account"] == str(BOB)
    assert (told["services"]["sensing"]["live"], counts(told["services"]["sensing"]["reports"])) == (
        1,
        {"uncounted": 1},
    )
    gone = why(world, 3, KEYS[0].address)
    assert gone["account"] == str(ANN)
    assert (gone["services"]["sensing"]["live"], gone["services"]["sensing"]["gone"]) == (0, 1)
    moved = why(world, 3, KEYS[1].address)
    assert (moved["account"], moved["services"]["sensing"]["moved_in"]) == (str(BOB), 1)


@pytest.mark.parametrize(
    ("epoch", "subject", "says"),
    [
        (1, ANN, "owned no device that owed a report"),
        (4, ANN, "2 x slept"),
        (4, KEYS[5].address, "1 x slept"),
        (1, MEMBERS[3].address, "has Q members' observations, and not this one's"),
    ],
)
def test_nothing_is_explained_too(world: World, epoch: int, subject: Address, says: str) -> None:
    told = why(world, epoch, subject)
    assert told["totals"]["tokens"] == "0"
    assert any(says in reason for reason in told["zero"]), told["zero"]


def test_enrolment_is_told(world: World) -> None:
    assert counts(why(world, 1, ANN)["services"]["sensing"]["enrolments"]) == {"good": 4}
    assert counts(why(world, 1, OPERATOR)["services"]["sensing"]["enrolments"]) == {"good": 6}


def test_members_are_paid_for_their_observation(world: World) -> None:
    told = why(world, 2, MEMBERS[0].address)
    (reward,) = told["rewards"]
    assert told["member"] == {"observed": True, "members": 4}
    assert (reward["service"], reward["pool"]) == ("oracle", str(MEMBERS_POOL))
    assert int(reward["subsidy"]) == int(told["totals"]["tokens"]) == MEMBERS_POOL // 4


def test_who_is_unknown_is_said(world: World) -> None:
    with pytest.raises(NotFound, match="member or device"):
        why(world, 2, key(77).address)


def test_the_arithmetic_is_printed(world: World, tmp_path: Path) -> None:
    path = tmp_path / "2.bundle"
    path.write_bytes(encode_bundle(world.bundles[1]))
    bob = invoke(tmp_path, "why", str(BOB), "--bundle", str(path)).stdout
    assert "1 x uncounted (a good report beyond what its operator's bond covers" in bob
    assert f"floor({SCHEDULE} x 100000 / 1000000) = {COVERAGE}" in bob
    assert f"floor({COVERAGE} x 1 / 5) = {COVERAGE // 5}" in bob
    operator = invoke(tmp_path, "why", str(OPERATOR), "--bundle", str(path)).stdout
    assert "6 of 6 enrolled" in operator
    assert "covers 5 in all its fleets" in operator
    member = invoke(tmp_path, "why", str(MEMBERS[0].address), "--bundle", str(path)).stdout
    assert f"floor({MEMBERS_POOL} / 4 members) = {MEMBERS_POOL // 4}" in member


def test_many_devices_are_never_made_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = list(derive_keys(b"many", 1500))
    world = fleet_world(sign_devices(keys, ANN, 5, DOMAIN), covered=1400)
    world.settle([reports(world, keys[:1450])])
    made = Table.rows.fget  # type: ignore[attr-defined]

    def rows(table: Table[Any]) -> Any:
        assert len(table) < 100, f"{len(table)} rows of {table.kind.__name__} are made messages"
        return made(table)

    monkeypatch.setattr(Table, "rows", property(rows))
    expected = {"good": 1400, "silent": 50, "uncounted": 50}
    for subject, name, of in ((ANN, "reports", 1500), (OPERATOR, "operated", 1500), (keys[0].address, "reports", 1)):
        told = Explanation(world.bundles[1], world.settlements[1], JUDGES, subject).to_json()
        assert sum(counts(told["services"]["sensing"][name]).values()) == of
        assert of == 1 or counts(told["services"]["sensing"][name]) == expected
