"""The fleets that report to a node: every device's row, and which fleets the committed state has taken in.

A fleet comes in whole or not at all, and each table is checked against the root on chain before it comes here. Until a
committed state has devices of it, the whole list is sent again as evidence, once an epoch.

Invariant: what `add` returned for is durable, and `find` knows each device once, whatever the number of fleets.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from freehold.protocol.fleets import FleetDevice
from freehold.protocol.hashing import Bytes
from freehold.protocol.lookup import Lookup, sort_order
from freehold.protocol.tables import Table
from freehold.protocol.units import Address, Hash
from freehold.services.seam import Sql
from freehold.services.sensing.terms import Enrolment

FLEETS = """
CREATE TABLE fleets (fleet BLOB PRIMARY KEY, enrolled INTEGER NOT NULL, devices BLOB NOT NULL);
"""
ENROLLED_AT_ONCE = 20_000  # devices of several fleets, 3 MB: their reports need room in a node's quota too
WATCHED = 4  # devices of a fleet, of which one in the committed state shows that the fleet is


class Listed(NamedTuple):
    """A fleet's devices in the order of their index; `enrolled` is the epoch whose state had them, 0 for none yet."""

    devices: Table[FleetDevice]
    enrolled: int


class Roster:
    """All fleets of one node."""

    def __init__(self, sql: Sql) -> None:
        self._sql = sql
        self.fleets: dict[Hash, Listed] = {}
        self.devices: Bytes = np.empty((0, 20), np.uint8)
        self._lookup = Lookup(self.devices)

    async def load(self) -> None:
        """Take up what is on disk."""
        rows = await self._sql.read(
            lambda db: db.execute("SELECT fleet, enrolled, devices FROM fleets ORDER BY fleet").fetchall()
        )
        for fleet, enrolled, data in rows:
            self.fleets[Hash(fleet)] = Listed(Table.decode(FleetDevice, bytes(data)), enrolled)
        self._index()

    async def add(self, fleet: Hash, devices: Table[FleetDevice]) -> None:
        """Keep a fleet, durably."""
        data = devices.encode()
        sql = "INSERT INTO fleets VALUES (?, 0, ?) ON CONFLICT (fleet) DO NOTHING"
        await self._sql.write(lambda db: db.execute(sql, (fleet, data)))
        self.fleets.setdefault(fleet, Listed(devices, 0))
        self._index()

    async def enrol(self, fleet: Hash, epoch: int) -> None:
        """The state after `epoch` has it."""
        await self._sql.write(lambda db: db.execute("UPDATE fleets SET enrolled = ? WHERE fleet = ?", (epoch, fleet)))
        self.fleets[fleet] = self.fleets[fleet]._replace(enrolled=epoch)

    async def drop(self, fleet: Hash) -> None:
        """It is retired."""
        await self._sql.write(lambda db: db.execute("DELETE FROM fleets WHERE fleet = ?", (fleet,)))
        del self.fleets[fleet]
        self._index()

    def find(self, devices: Bytes) -> NDArray[np.int64]:
        """(n,): each device's position in `devices`, -1 for one of no fleet."""
        return self._lookup.find(devices)

    def enrolments(self, turn: int, node: Address) -> Table[Enrolment]:
        """The rows that `node` shows of fleets that no committed state has yet: of one at least, of others while they
        are few. Every `turn` begins with another, so that one that cannot come in does not stand before the rest."""
        waiting = list(self._waiting())
        start = turn % len(waiting) if waiting else 0
        chosen: list[Table[Enrolment]] = []
        for fleet, entry in waiting[start:] + waiting[:start]:
            if chosen and sum(map(len, chosen)) + len(entry.devices) > ENROLLED_AT_ONCE:
                break
            chosen.append(enrolments_of(fleet, entry.devices, node))
        return Table.concat(Enrolment, chosen)

    def watched(self, turn: int) -> list[Address]:
        """Devices that show whether those fleets have come in: other ones every `turn`, since one may be revoked."""
        chosen = []
        for _, entry in self._waiting():
            count = len(entry.devices)
            places = {(turn + i * count // WATCHED) % count for i in range(WATCHED)}
            chosen += [Address(entry.devices.column("device")[place].tobytes()) for place in sorted(places)]
        return chosen

    def _waiting(self) -> Iterator[tuple[Hash, Listed]]:
        return ((fleet, entry) for fleet, entry in self.fleets.items() if not entry.enrolled)

    def _index(self) -> None:
        columns = [entry.devices.column("device") for entry in self.fleets.values()]
        devices = np.concatenate([np.empty((0, 20), np.uint8), *columns])
        order = sort_order(devices)
        ordered = devices if order is None else devices[order]
        first = np.ones(len(ordered), bool)
        first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
        self.devices = ordered[first]
        self._lookup = Lookup(self.devices)


def enrolments_of(fleet: Hash, devices: Table[FleetDevice], node: Address) -> Table[Enrolment]:
    """A fleet's list as evidence that `node` sends."""
    index = np.arange(len(devices), dtype="<u4")
    columns: dict[str, Any] = {"node": node, "fleet": fleet, "index": index, **devices.columns}
    return Table.from_columns(Enrolment, columns, len(devices))
