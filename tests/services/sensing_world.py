"""Fleets, devices and their reports, for tests of sensing."""

from __future__ import annotations

from typing import Any

from freehold.protocol.errors import NotFound
from freehold.protocol.fleets import FleetDevice
from freehold.protocol.keys import Key
from freehold.protocol.merkle import row_root
from freehold.protocol.service import Context
from freehold.protocol.state import DeviceChange, FleetRecord
from freehold.protocol.tables import Table
from freehold.protocol.typed import keccak
from freehold.protocol.units import Address, Hash
from freehold.services.seam import LiveFleet
from freehold.services.sensing.terms import ENROLMENT, REPORT, DeviceReport, DeviceState, Enrolment
from tests.protocol.world import DOMAIN, PARAMETERS, key, signed

OPERATOR = Address(bytes(19) + b"\x01")
NODE = Address(bytes(19) + b"\x21")
DEVICES = [key(3000 + i) for i in range(12)]


async def no_fleets(fleet: Hash) -> LiveFleet:
    """A chain without fleets, as a provider asks it."""
    raise NotFound(f"the chain has no fleet {fleet}")


def listed(devices: list[Key], owners: list[Address] | None = None) -> list[FleetDevice]:
    """Devices with their owners: the operator where none are named."""
    owners = owners or [OPERATOR] * len(devices)
    return [
        signed(FleetDevice(device=device.address, owner=owner, place=i), device_signature=device)
        for i, (device, owner) in enumerate(zip(devices, owners, strict=True))
    ]


def fleet_of(number: int, rows: list[FleetDevice], bond: int = 10**18) -> FleetRecord:
    root = row_root([row.row_hash() for row in rows])
    return FleetRecord(fleet=keccak(bytes([number])), operator=OPERATOR, root=root, count=len(rows), bond=bond)


def enrolments(fleet: FleetRecord, rows: list[FleetDevice], node: Address = NODE) -> list[Enrolment]:
    return [
        Enrolment(node=node, fleet=fleet.fleet, index=i, **{name: getattr(row, name) for name in row.__struct_fields__})
        for i, row in enumerate(rows)
    ]


def report(device: Key, context: Context, **changes: Any) -> DeviceReport:
    fields: dict[str, Any] = {"device": device.address, "epoch": context.epoch, "beacon": context.beacon}
    row = DeviceReport(**(fields | {"reading": keccak(b"21.5 C")} | changes))
    return signed(row, device_signature=device)


def context_of(
    fleets: list[FleetRecord], state: list[DeviceState], changes: list[DeviceChange] | None = None, epoch: int = 7
) -> Context:
    return Context(
        epoch=epoch,
        seconds=20,
        beacon=keccak(b"beacon"),
        parameters=PARAMETERS,
        domain=DOMAIN,
        leases={},
        state=Table.of(DeviceState, state),
        fleets=tuple(fleets),
        changes=tuple(changes or ()),
    )


def state_of(rows: list[Enrolment], since: int = 1) -> list[DeviceState]:
    names = ("device", "fleet", "index", "owner", "place")
    states = [DeviceState(**{name: getattr(row, name) for name in names}, since=since) for row in rows]
    return sorted(states, key=lambda row: row.device)


def rows_of(reports: list[DeviceReport], enrolled: list[Enrolment]) -> dict[str, Table[Any]]:
    return {REPORT: Table.of(DeviceReport, reports), ENROLMENT: Table.of(Enrolment, enrolled)}
