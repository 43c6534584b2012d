"""Fleets: one root for any number of devices; single ones move, are revoked and shown by their proofs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import boa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.protocol.fleets import Fleet, FleetDevice, fleet_id, sign_device
from freehold.protocol.typed import Domain, type_hash
from freehold.protocol.units import Address, Hash
from tests.contracts.budgets import budget
from tests.contracts.world import deployer_of, hexed, key_of, logs_of

DOMAIN = Domain(31337, Address(bytes(19) + b"\x01"))
NOBODY = "0x" + "00" * 20


@pytest.fixture
def fleets() -> Iterator[Any]:
    with boa.env.anchor():
        yield deployer_of("Fleets").deploy()


def device_of(number: int, owner: str) -> FleetDevice:
    return sign_device(key_of(f"device {number}"), Address(owner), 0x8928308280FFFFF + number, DOMAIN)


def fleet_of(count: int, owner: str) -> Fleet:
    """Only the first ten devices have signatures of their own: a thousand of them would only cost time."""
    signed = [device_of(i, owner) for i in range(min(count, 10))]
    filler = signed[0]
    return Fleet(
        [
            *signed,
            *(
                FleetDevice(
                    device=Address((i + 1).to_bytes(20)),
                    owner=filler.owner,
                    place=i,
                    device_signature=filler.device_signature,
                )
                for i in range(len(signed), count)
            ),
        ]
    )


def struct_of(device: FleetDevice) -> tuple[Any, ...]:
    return hexed(device.device), hexed(device.owner), device.place, bytes(device.device_signature)


def arguments(fleet: Hash, devices: Fleet, index: int) -> tuple[Any, ...]:
    """What every call about a device takes."""
    return fleet, index, struct_of(devices.devices.rows[index]), devices.proof(index)


def register(fleets: Any, devices: Fleet, operator: str) -> Hash:
    return Hash(fleets.register(devices.root, devices.count, "https://fleet.example.org", sender=operator))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 7, 1000])
def test_every_device_of_a_fleet_is_live_and_has_its_owner(fleets: Any, count: int) -> None:
    operator, owner = boa.env.generate_address(), boa.env.generate_address()
    devices = fleet_of(count, owner)
    fleet = register(fleets, devices, operator)
    for index in {0, 1, 2, count // 2, count - 2, count - 1} & set(range(count)):
        assert fleets.is_live(*arguments(fleet, devices, index)) == (True, owner)


def test_registration_is_one_event_and_ids_are_known_beforehand(fleets: Any) -> None:
    operator, devices = boa.env.generate_address(), fleet_of(3, boa.env.generate_address())
    for number in range(2):
        expected = fleet_id(Address(operator), number)
        assert fleets.fleet_of(operator, number) == expected
        assert register(fleets, devices, operator) == expected
        (event,) = logs_of(fleets, "FleetRegistered")
        assert (event.operator, event.fleet, event.root, event.count) == (operator, expected, devices.root, 3)
        assert event.uri == "https://fleet.example.org"
        assert tuple(fleets.fleets(expected)) == (operator, 3, False, devices.root)
    assert fleets.fleet_count(operator) == 2
    other = boa.env.generate_address()
    assert register(fleets, devices, other) == fleet_id(Address(other), 0) != fleet_id(Address(operator), 0)


def test_a_fleet_of_nothing_is_refused(fleets: Any) -> None:
    with boa.reverts("fleets: no devices"):
        fleets.register(b"\x01" * 32, 0, "")
    with boa.reverts("fleets: no root"):
        fleets.register(bytes(32), 1, "")


def test_a_device_moves_only_by_its_present_owner_and_on_from_there(fleets: Any) -> None:
    operator, first, second, third = (boa.env.generate_address() for _ in range(4))
    devices = fleet_of(5, first)
    fleet = register(fleets, devices, operator)
    call = arguments(fleet, devices, 4)
    for stranger in (operator, second):
        with boa.reverts("fleets: not the owner"):
            fleets.move(*call, second, sender=stranger)
    fleets.move(*call, second, sender=first)
    (event,) = logs_of(fleets, "DeviceMoved")
    assert (event.fleet, event.index, event.owner) == (fleet, 4, second)
    assert event.device.lower() == hexed(devices.devices.rows[4].device)
    assert fleets.is_live(*call) == (True, second)
    with boa.reverts("fleets: not the owner"):
        fleets.move(*call, third, sender=first)
    with boa.reverts("fleets: no owner"):
        fleets.move(*call, NOBODY, sender=second)
    fleets.move(*call, third, sender=second)
    assert fleets.is_live(*call) == (True, third)
    assert fleets.is_live(*arguments(fleet, devices, 3)) == (True, first)


@pytest.mark.parametrize("who", ["operator", "owner"])
def test_a_revoked_device_is_dead_for_good(fleets: Any, who: str) -> None:
    parties = {"operator": boa.env.generate_address(), "owner": boa.env.generate_address()}
    devices = fleet_of(3, boa.env.generate_address())
    fleet = register(fleets, devices, parties["operator"])
    call = arguments(fleet, devices, 2)
    fleets.move(*call, parties["owner"], sender=hexed(devices.devices.rows[2].owner))
    with boa.reverts("fleets: not the owner or operator"):
        fleets.revoke(*call, sender=hexed(devices.devices.rows[2].owner))
    fleets.revoke(*call, sender=parties[who])
    (event,) = logs_of(fleets, "DeviceRevoked")
    assert (event.fleet, event.index) == (fleet, 2)
    assert fleets.is_live(*call) == (False, NOBODY)
    with boa.reverts("fleets: revoked"):
        fleets.move(*call, parties["operator"], sender=parties["owner"])
    with boa.reverts("fleets: revoked"):
        fleets.revoke(*call, sender=parties["operator"])


def test_a_retired_fleet_is_dead_with_all_its_devices(fleets: Any) -> None:
    operator, owner = boa.env.generate_address(), boa.env.generate_address()
    devices = fleet_of(2, owner)
    fleet = register(fleets, devices, operator)
    with boa.reverts("fleets: not the operator"):
        fleets.retire(fleet, sender=owner)
    with boa.reverts("fleets: not the operator"):
        fleets.retire(b"\x07" * 32, sender=operator)
    fleets.retire(fleet, sender=operator)
    assert logs_of(fleets, "FleetRetired")[0].fleet == fleet
    assert fleets.fleets(fleet).retired
    assert fleets.is_live(*arguments(fleet, devices, 0)) == (False, NOBODY)
    for method, extra in ((fleets.move, [operator]), (fleets.revoke, [])):
        with boa.reverts("fleets: retired"):
            method(*arguments(fleet, devices, 1), *extra, sender=owner)
    with boa.reverts("fleets: retired"):
        fleets.retire(fleet, sender=operator)


def test_proofs_of_another_row_index_fleet_or_length_show_nothing(fleets: Any) -> None:
    owner = boa.env.generate_address()
    devices, others = fleet_of(5, owner), fleet_of(4, owner)
    fleet, other = register(fleets, devices, owner), register(fleets, others, owner)
    row, proof = struct_of(devices.devices.rows[4]), devices.proof(4)  # carried up twice: one sibling only
    assert len(proof) == 1
    assert fleets.is_live(fleet, 4, row, proof)[0]
    stolen = (row[0], boa.env.generate_address(), *row[2:])
    moved = (*row[:2], row[2] + 1, row[3])
    unsigned = (*row[:3], b"")
    for changed in (stolen, moved, unsigned):
        with boa.reverts("fleets: wrong proof"):
            fleets.is_live(fleet, 4, changed, proof)
    with boa.reverts("fleets: wrong proof"):
        fleets.is_live(fleet, 1, row, devices.proof(1))
    with boa.reverts("fleets: wrong proof"):
        fleets.is_live(other, 3, row, others.proof(3))
    with boa.reverts("fleets: unknown"):
        fleets.is_live(b"\x01" * 32, 4, row, proof)
    for wrong in ([], [*proof, proof[0]], devices.proof(0)):
        with boa.reverts("rows: proof length"):
            fleets.is_live(fleet, 4, row, wrong)
    with boa.reverts("rows: index"):
        fleets.is_live(fleet, 5, row, proof)


def test_the_type_is_the_messages(fleets: Any) -> None:
    assert type_hash(FleetDevice).hex() in fleets.bytecode.hex()


steps = st.lists(
    st.tuples(st.sampled_from(["move", "move", "revoke", "retire"]), st.integers(0, 3), st.integers(0, 4)), max_size=12
)


@budget(examples=12)
@given(steps)
def test_events_alone_give_the_state(actions: list[tuple[str, int, int]]) -> None:
    with boa.env.anchor():
        fleets = deployer_of("Fleets").deploy()
        people = [boa.env.generate_address() for _ in range(5)]
        devices = fleet_of(4, people[0])
        fleet = register(fleets, devices, people[4])
        owners: dict[int, str] = dict.fromkeys(range(4), people[0])  # folded from events
        retired = False
        for action, index, person in actions:
            call = arguments(fleet, devices, index)
            sender = owners.get(index, people[person])
            try:
                if action == "move":
                    fleets.move(*call, people[person], sender=sender)
                elif action == "revoke":
                    fleets.revoke(*call, sender=people[4])
                else:
                    fleets.retire(fleet, sender=people[person])
            except boa.BoaError:
                continue
            for event in logs_of(fleets, "DeviceMoved"):
                owners[event.index] = event.owner
            for event in logs_of(fleets, "DeviceRevoked"):
                del owners[event.index]
            retired |= bool(logs_of(fleets, "FleetRetired"))
        for index in range(4):
            live = not retired and index in owners
            assert fleets.is_live(*arguments(fleet, devices, index)) == (live, owners[index] if live else NOBODY)
