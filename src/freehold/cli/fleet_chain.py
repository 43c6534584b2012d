"""Fleets as the chain's events tell them, and where their lists are: at a node of their operator.

Invariant: a list from a node is used only if it is the one behind the root on chain.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from freehold.chain.contracts import Fleets
from freehold.chain.contracts import fleets as events
from freehold.chain.contracts.fleets import Device
from freehold.cli.connection import Connection
from freehold.cli.operators import read_registrations
from freehold.net.client import Peer
from freehold.protocol.errors import Corrupt, FreeholdError, InvalidInput, NotFound, Unavailable
from freehold.protocol.fleets import FleetDevice
from freehold.protocol.tables import Table
from freehold.protocol.units import Address, Hash

LIST_LIMIT = 64 * 2**20  # bytes of a list that is fetched


@dataclass
class FleetRecord:
    """A fleet and what has changed since it was registered, by index."""

    fleet: Hash
    operator: Address
    root: Hash
    count: int
    uri: str
    retired: bool = False
    moved: dict[int, Address] = field(default_factory=dict)
    revoked: set[int] = field(default_factory=set)


def fleets_of(connection: Connection) -> Fleets:
    """The contract."""
    return Fleets(connection.rpc, connection.network.contracts["fleets"])


async def read_fleets(connection: Connection) -> dict[Hash, FleetRecord]:
    """All fleets by id, folded from the contract's events, in the order of their registration."""
    contract = fleets_of(connection)
    head = await connection.rpc.block_number()
    known: dict[Hash, FleetRecord] = {}
    for log in await connection.rpc.get_logs(connection.network.deployment_block, head, [contract.address]):
        event = contract.decode(log)
        if isinstance(event, events.FleetRegistered):
            known[event.fleet] = FleetRecord(event.fleet, event.operator, event.root, event.count_, event.uri)
        elif isinstance(event, events.FleetRetired):
            known[event.fleet].retired = True
        elif isinstance(event, events.DeviceMoved):
            known[event.fleet].moved[event.index_] = event.owner
        elif isinstance(event, events.DeviceRevoked):
            known[event.fleet].moved.pop(event.index_, None)
            known[event.fleet].revoked.add(event.index_)
    return known


async def find_fleet(connection: Connection, text: str) -> FleetRecord:
    """The fleet whose id is, or begins with, `text`. NotFound, InvalidInput where several do."""
    known = await read_fleets(connection)
    found = [record for fleet, record in known.items() if str(fleet).startswith(text.lower())]
    if not found or len(text) < 3:
        raise NotFound(f"the chain has no fleet {text}", hint="`freehold fleet list` shows them.")
    if len(found) > 1:
        raise InvalidInput(f"{len(found)} fleets begin with {text}", hint="Give more digits.")
    return found[0]


async def nodes_of(connection: Connection, operator: Address) -> list[Peer]:
    """The operator's registered nodes, where they serve."""
    registered = await read_registrations(connection)
    return [
        connection.node(Address(node), record["endpoint"])
        for node, record in registered.items()
        if record["operator"] == str(operator)
    ]


async def fetch_devices(connection: Connection, record: FleetRecord) -> Table[FleetDevice]:
    """A fleet's list from a node of its operator, checked against its root. The last node's error."""
    failure: FreeholdError = NotFound(
        f"operator {record.operator} has no registered node that could have the list",
        hint="Give the file with the list: --list FILE.",
    )
    for peer in await nodes_of(connection, record.operator):
        try:
            data = await peer.get_bytes(f"/v1/sensing/fleets/{record.fleet}/devices", LIST_LIMIT)
            return check_list(Table.decode(FleetDevice, data), record)
        except FreeholdError as error:
            failure = error
    raise failure


def check_list(devices: Table[FleetDevice], record: FleetRecord) -> Table[FleetDevice]:
    """The list, if it is the fleet's; Corrupt where it is not."""
    if len(devices) != record.count or devices.root != record.root:
        raise Corrupt(f"these are not the devices of fleet {record.fleet}")
    return devices


async def send_list(nodes: Iterable[Peer], fleet: Hash, devices: Table[FleetDevice]) -> tuple[list[str], list[str]]:
    """Hand a list to its operator's nodes: the URLs that have it now, and why others do not."""
    took, failed = [], []
    for peer in nodes:
        try:
            async with peer.request("PUT", f"/v1/sensing/fleets/{fleet}", data=devices.encode()):
                took.append(peer.url)
        except FreeholdError as error:
            failed.append(f"{peer.url}: {error.message}")
    return took, failed


async def find_reporting_node(nodes: Iterable[Peer], fleet: Hash) -> Peer:
    """The first node that has the fleet's list. Unavailable, saying why none."""
    why = []
    for peer in nodes:
        try:
            await peer.get_json(f"/v1/sensing/fleets/{fleet}")
        except FreeholdError as error:
            why.append(f"{peer.url}: {error.message}")
        else:
            return peer
    raise Unavailable(
        f"no node of its operator takes reports for fleet {fleet}: {'; '.join(why) or 'none is registered'}",
        hint="Send the list again with `freehold fleet register`.",
    )


def struct_of(device: FleetDevice) -> Device:
    """A row as the contract takes it."""
    return Device(device.device, device.owner, device.place, bytes(device.device_signature))
