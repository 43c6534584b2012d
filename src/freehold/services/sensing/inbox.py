"""The reports of the open epoch, as devices hand them in: sifted, checked, kept, and given out in their order.

    sift     known devices, this epoch and beacon, each device once: comparisons of columns, before any signature
    check    signatures, in a thread
    keep     on disk; only then is a report counted and answered for

Invariant: a report that was taken, or said to be known, survives a kill; a device has one report an epoch here.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from freehold.protocol.errors import EpochClosed, FreeholdError, NotFound, Unavailable, WrongSignature
from freehold.protocol.fleets import FleetDevice
from freehold.protocol.hashing import Bytes
from freehold.protocol.keys import are_signed_by
from freehold.protocol.tables import Table
from freehold.protocol.typed import Domain
from freehold.protocol.units import Hash
from freehold.protocol.verdicts import KNOWN, WRONG_EPOCH, WRONG_SIGNATURE
from freehold.services.seam import Sql
from freehold.services.sensing.roster import Roster
from freehold.services.sensing.terms import UNKNOWN_DEVICE, DeviceReport

REPORTS = """
CREATE TABLE reports (number INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, beacon BLOB NOT NULL, rows BLOB NOT NULL);
"""
NOBODY, COMING, KEPT = 0, 1, 2  # whether a device has reported: its report may be on its way to the disk


class Open(NamedTuple):
    """The epoch that reports are taken for, and what they must name."""

    epoch: int
    beacon: Hash


class Taken(NamedTuple):
    """What became of some reports: how many were taken, and the others by reason."""

    new: int
    others: Counter[str]


class Inbox:
    """One node's reports."""

    def __init__(self, sql: Sql, roster: Roster, domain: Domain) -> None:
        self._sql = sql
        self._roster = roster
        self._domain = domain
        self._open: Open | None = None
        self._kept: Open | None = None  # which epoch's reports are here: after a start, one that may not be open
        self._parts: list[Table[DeviceReport]] = []
        self._marks: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._writes: dict[asyncio.Future[Any], Table[DeviceReport]] = {}
        self._next = 0
        self.count = 0  # reports of the open epoch

    async def load(self) -> None:
        """Take up what is on disk; it counts once its epoch is open again."""
        sql = "SELECT number, epoch, beacon, rows FROM reports ORDER BY number"
        rows = await self._sql.read(lambda db: db.execute(sql).fetchall())
        for number, epoch, beacon, data in rows:
            if Open(epoch, Hash(beacon)) != self._kept:
                self._kept, self._parts = Open(epoch, Hash(beacon)), []
            self._parts.append(Table.decode(DeviceReport, bytes(data)))
            self._next = number + 1
        self.count = sum(map(len, self._parts))

    async def open(self, epoch: int, beacon: Hash) -> None:
        """From now on reports are taken for this epoch; what is here for another goes."""
        self._open = Open(epoch, beacon)
        if self._kept != self._open:
            self._kept, self._parts, self.count = self._open, [], 0
        self.mark()
        await self._sql.write(
            lambda db: db.execute("DELETE FROM reports WHERE epoch <> ? OR beacon <> ?", (epoch, beacon))
        )

    @property
    def current(self) -> Open:
        """What a report must name. Unavailable while the epoch's beacon is not known here."""
        if self._open is None:
            raise Unavailable("the epoch's beacon is not known yet", retry_after=1)
        return self._open

    def mark(self) -> None:
        """Find out anew who has reported: the epoch, or the list of devices, is another."""
        self._marks = np.zeros(len(self._roster.devices), np.uint8)
        for part in self._parts:
            places = self._roster.find(part.column("device"))
            self._marks[places[places >= 0]] = KEPT
        for coming in self._writes.values():
            places = self._roster.find(coming.column("device"))
            self._marks[places[places >= 0]] = COMING

    def count_of(self, devices: Table[FleetDevice]) -> int:
        """How many of these devices have reported in the open epoch."""
        places = self._roster.find(devices.column("device"))
        return int((self._marks[places[places >= 0]] == KEPT).sum())

    def gather(self, already: int) -> Table[DeviceReport]:
        """The reports of the open epoch after the first `already`."""
        if self.count <= already:
            return Table.of(DeviceReport)
        self._parts = [Table.concat(DeviceReport, self._parts)]
        return self._parts[0].take(np.arange(already, self.count))

    async def take(self, reports: Table[DeviceReport]) -> Taken:
        """Take what is right of these. Unavailable while no epoch is open; EpochClosed where it closes meanwhile."""
        opened = self.current
        places = self._roster.find(reports.column("device"))
        others: Counter[str] = Counter()
        now = reports.column("epoch") == opened.epoch
        now &= (reports.column("beacon") == np.frombuffer(opened.beacon, np.uint8)).all(axis=1)
        others[UNKNOWN_DEVICE] = int((places < 0).sum())
        others[WRONG_EPOCH] = int(((places >= 0) & ~now).sum())
        right = np.flatnonzero((places >= 0) & now)
        fresh = await self._find_fresh(reports, right)
        others[KNOWN] = len(right) - len(fresh)
        chosen = reports.take(fresh)
        if len(fresh):
            signed = await asyncio.to_thread(self._are_signed, chosen)
            others[WRONG_SIGNATURE] = int((~signed).sum())
            chosen = chosen.filter(signed)
        count = await self._keep(opened, chosen)
        others[KNOWN] += len(chosen) - count
        return Taken(count, +others)

    def _are_signed(self, reports: Table[DeviceReport]) -> NDArray[np.bool_]:
        signatures = reports.column("device_signature").padded(65)
        return are_signed_by(reports.digests(self._domain), signatures, reports.column("device"))

    async def _find_fresh(self, reports: Table[DeviceReport], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of these rows are of devices that have not reported, the first of each. What is on its way to the disk
        is waited for: only then it is known."""
        devices = reports.column("device")[rows]
        if (self._marks_of(devices) == COMING).any() and self._writes:
            await asyncio.wait(list(self._writes))
        first = np.zeros(len(rows), bool)
        first[np.unique(self._roster.find(devices), return_index=True)[1]] = True
        fresh: NDArray[np.int64] = rows[first & (self._marks_of(devices) == NOBODY)]
        return fresh

    def _marks_of(self, devices: Bytes) -> NDArray[np.uint8]:
        """(n,): each device's mark; one whose fleet has gone meanwhile has nothing to report."""
        places = self._roster.find(devices)
        marks = np.full(len(places), KEPT, np.uint8)
        marks[places >= 0] = self._marks[places[places >= 0]]
        return marks

    async def _keep(self, opened: Open, reports: Table[DeviceReport]) -> int:
        """Keep those that nobody was quicker to hand in; how many."""
        fresh = await self._find_fresh(reports, np.arange(len(reports)))
        if self._open != opened:
            raise EpochClosed(f"epoch {opened.epoch} takes no more reports", hint="Ask for the open epoch again.")
        if not len(fresh):
            return 0
        kept = reports.take(fresh)
        devices = kept.column("device")
        self._marks[self._roster.find(devices)] = COMING
        number, self._next = self._next, self._next + 1
        row = (number, opened.epoch, opened.beacon, kept.encode())
        write = asyncio.ensure_future(
            self._sql.write(lambda db: db.execute("INSERT INTO reports VALUES (?, ?, ?, ?)", row))
        )
        self._writes[write] = kept
        write.add_done_callback(lambda done: self._count(done, opened))
        await asyncio.shield(write)  # a device that hangs up leaves memory as the disk is
        return len(kept)

    def _count(self, write: asyncio.Future[Any], opened: Open) -> None:
        kept = self._writes.pop(write)
        if self._open != opened:
            return
        is_kept = not write.cancelled() and write.exception() is None
        if is_kept:
            self._parts.append(kept)
            self.count += len(kept)
        places = self._roster.find(kept.column("device"))
        self._marks[places[places >= 0]] = KEPT if is_kept else NOBODY


def refusal(others: Counter[str]) -> FreeholdError:
    """Why nothing was taken, as the error of the most frequent reason."""
    reason, count = others.most_common(1)[0]
    details: Any = {"refused": dict(others)}
    if reason == WRONG_EPOCH:
        return EpochClosed(
            f"{count} reports name another epoch or beacon than the open one", hint="Ask for it again.", **details
        )
    if reason == WRONG_SIGNATURE:
        return WrongSignature(f"{count} reports are not signed by their devices", **details)
    return NotFound(
        f"{count} reports are of devices that no fleet here has",
        hint="Register their fleet with `freehold fleet register`, or ask its operator's node.",
        **details,
    )
