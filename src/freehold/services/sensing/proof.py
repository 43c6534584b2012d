"""What is wrong with a report, or with a fleet that is shown; on columns, table by table.

Reports are tallied as they stream by: what is kept is one code, one hash and one position a duty, and the rows that
answer none. So evidence of any number of rows, of which most are copies that other gateways heard, needs the memory of
the devices alone.

Invariant: the outcome depends on the distinct rows in the order of their first appearance, however they are cut into
tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from freehold.protocol.fleets import FleetDevice
from freehold.protocol.hashing import Bytes, first_of_equal
from freehold.protocol.keys import are_signed_by
from freehold.protocol.lookup import Lookup, distinct_cells, sort_order
from freehold.protocol.merkle import row_root
from freehold.protocol.service import Context
from freehold.protocol.state import FleetRecord
from freehold.protocol.tables import Table
from freehold.protocol.verdicts import GOOD, KNOWN, SILENT, SLEPT, SUPERSEDED, WRONG_EPOCH, WRONG_SIGNATURE
from freehold.services.sensing.terms import (
    REVOKED_DEVICE,
    UNCOUNTED,
    UNKNOWN_DEVICE,
    UNKNOWN_FLEET,
    WRONG_FLEET_ROOT,
    DeviceReport,
    DeviceState,
    Enrolment,
)

# What a verdict may say, by its code in the columns.
REASONS = (
    *(GOOD, UNCOUNTED, SILENT, SLEPT, WRONG_EPOCH, WRONG_SIGNATURE, SUPERSEDED, UNKNOWN_DEVICE, REVOKED_DEVICE),
    *(KNOWN, UNKNOWN_FLEET, WRONG_FLEET_ROOT),
)
CODE = {reason: np.uint8(code) for code, reason in enumerate(REASONS)}
NONE = np.uint8(255)

Codes = NDArray[np.uint8]
Positions = NDArray[np.int64]


class Strays(NamedTuple):
    """Reports that speak for no duty: row hashes, the devices they name, and why; in the order of their appearance."""

    hashes: Bytes
    devices: Bytes
    codes: Codes


class Tally:
    """Which report speaks for each duty: its first good one, or its first where none is good."""

    def __init__(self, devices: Bytes, context: Context) -> None:
        """`devices`: (n, 20), sorted; duty i is device i's."""
        self._devices, self._context = devices, context
        self._lookup = Lookup(devices)
        self.codes: Codes = np.full(len(devices), NONE, np.uint8)
        self._hashes = np.zeros((len(devices), 32), np.uint8)
        self._positions = np.zeros(len(devices), np.int64)
        self._strays: list[tuple[Bytes, Bytes, Codes, Positions]] = []
        self._seen = 0

    def add(self, reports: Table[DeviceReport]) -> None:
        """Take the next rows."""
        positions = self._seen + np.arange(len(reports))
        self._seen += len(reports)
        hashes, devices = reports.hashes, reports.column("device")
        duty = self._lookup.find(devices)
        codes = self._judge_alone(reports, duty)
        aside = codes != CODE[GOOD]
        self._put_aside(hashes[aside], devices[aside], codes[aside], positions[aside])
        answers = np.flatnonzero(~aside)
        fresh = answers[(self._hashes[duty[answers]] != hashes[answers]).any(axis=1)]
        if not len(fresh):
            return
        fresh = fresh[first_of_equal(hashes[fresh])]
        signed = self._are_signed(reports, fresh)
        codes[fresh[~signed]] = CODE[WRONG_SIGNATURE]
        counts = self._counting(codes[fresh], duty[fresh])
        rest = np.setdiff1d(fresh, fresh[counts], assume_unique=True)
        said = np.where(codes[rest] == CODE[GOOD], CODE[SUPERSEDED], codes[rest])
        self._put_aside(hashes[rest], devices[rest], said, positions[rest])
        self._speak(duty[fresh[counts]], hashes, codes, positions, fresh[counts])

    def _judge_alone(self, reports: Table[DeviceReport], duty: Positions) -> Codes:
        codes = np.full(len(reports), CODE[GOOD], np.uint8)
        beacon = np.frombuffer(self._context.beacon, np.uint8)
        now = (reports.column("epoch") == self._context.epoch) & (reports.column("beacon") == beacon).all(axis=1)
        codes[~now] = CODE[WRONG_EPOCH]
        codes[duty < 0] = CODE[UNKNOWN_DEVICE]
        return codes

    def _are_signed(self, reports: Table[DeviceReport], rows: Positions) -> NDArray[np.bool_]:
        own = reports if len(rows) == len(reports) else reports.take(rows)
        signatures = own.column("device_signature").padded(65)
        return are_signed_by(own.digests(self._context.domain), signatures, own.column("device"))

    def _counting(self, codes: Codes, duty: Positions) -> Positions:
        """Which of these rows, by their index, speak for their duty from now on."""
        bad = codes != CODE[GOOD]
        order = np.lexsort((np.arange(len(codes)), bad, duty))
        first = np.ones(len(order), bool)
        first[1:] = duty[order[1:]] != duty[order[:-1]]
        best = order[first]
        before = self.codes[duty[best]]
        return np.asarray(best[(before == NONE) | ((before != CODE[GOOD]) & ~bad[best])])

    def _speak(self, duty: Positions, hashes: Bytes, codes: Codes, positions: Positions, rows: Positions) -> None:
        displaced = duty[self.codes[duty] != NONE]
        self._put_aside(
            self._hashes[displaced], self._devices[displaced], self.codes[displaced], self._positions[displaced]
        )
        self.codes[duty], self._hashes[duty], self._positions[duty] = codes[rows], hashes[rows], positions[rows]

    def _put_aside(self, hashes: Bytes, devices: Bytes, codes: Codes, positions: Positions) -> None:
        if len(codes):
            self._strays.append((hashes.copy(), devices.copy(), codes.copy(), positions.copy()))

    def strays(self) -> Strays:
        """The rest, each row once."""
        if not self._strays:
            return Strays(np.empty((0, 32), np.uint8), np.empty((0, 20), np.uint8), np.empty(0, np.uint8))
        hashes, devices, codes, positions = (np.concatenate(part) for part in zip(*self._strays, strict=True))
        order = np.argsort(positions, kind="stable")
        once = order[first_of_equal(hashes[order])]
        return Strays(hashes[once], devices[once], codes[once])


def tally_reports(devices: Bytes, tables: Iterable[Table[DeviceReport]], context: Context) -> Tally:
    """All reports, table by table."""
    tally = Tally(devices, context)
    for table in tables:
        tally.add(table)
    return tally


def judge_enrolments(rows: Table[Enrolment], context: Context, known: Lookup) -> Codes:
    """Each row's code: a fleet counts when a node shows exactly the rows that its root on chain commits to.

    Each node's rows are judged by themselves: a row more, from whomever, would keep a fleet out otherwise.
    """
    codes = np.full(len(rows), CODE[UNKNOWN_FLEET], np.uint8)
    if not len(rows):
        return codes
    fleets = {bytes(fleet.fleet): fleet for fleet in context.fleets}
    values, group = distinct_cells(rows.column("fleet"))
    nodes, sender = distinct_cells(rows.column("node"))
    lists = group * len(nodes) + sender
    by_list = np.argsort(lists, kind="stable")
    shown, starts = np.unique(lists[by_list], return_index=True)
    for one, own in zip(shown.tolist(), np.split(by_list, starts[1:]), strict=True):
        fleet = fleets.get(values[one // len(nodes)])
        if fleet is not None:
            codes[own] = _judge_fleet(rows.take(own), fleet, context)
    good = np.flatnonzero(codes == CODE[GOOD])
    again = known.find(rows.column("device")[good]) >= 0
    codes[good[again]] = CODE[KNOWN]
    # A list can be copied once it is shown: of one key in two fleets, the one that was registered first counts.
    good = good[~again]
    ranks = {bytes(fleet.fleet): rank for rank, fleet in enumerate(context.fleets)}
    registered = np.array([ranks.get(value, 0) for value in values], np.int64)
    good = good[np.argsort(registered[group[good]], kind="stable")]
    order = sort_order(rows.column("device")[good])
    ordered = good if order is None else good[order]
    devices = rows.column("device")[ordered]
    codes[ordered[1:][(devices[1:] == devices[:-1]).all(axis=1)]] = CODE[KNOWN]
    return codes


def _judge_fleet(rows: Table[Enrolment], fleet: FleetRecord, context: Context) -> Codes:
    order = np.argsort(rows.column("index"), kind="stable")
    indices = rows.column("index")[order]
    devices = devices_of(rows)
    whole = len(rows) == fleet.count and bool((indices == np.arange(fleet.count)).all())
    if not whole or row_root(devices.hashes[order]) != fleet.root:
        return np.full(len(rows), CODE[WRONG_FLEET_ROOT], np.uint8)
    signatures = rows.column("device_signature").padded(65)
    signed = are_signed_by(devices.digests(context.domain), signatures, rows.column("device"))
    codes = np.where(signed, CODE[GOOD], CODE[WRONG_SIGNATURE]).astype(np.uint8)
    revoked = {change.index for change in context.changes if change.fleet == fleet.fleet and not any(change.owner)}
    if revoked:
        codes[np.isin(rows.column("index"), list(revoked))] = CODE[REVOKED_DEVICE]
    return codes


def devices_of(rows: Table[Enrolment]) -> Table[FleetDevice]:
    """What the fleet's root is over: the rows without fleet and index."""
    names = ("device", "owner", "place", "device_signature")
    return Table.from_columns(FleetDevice, {name: rows.column(name) for name in names}, len(rows))


def find_covered(live: Table[DeviceState], context: Context) -> NDArray[np.bool_]:
    """Which live devices their operators' bonds cover: of each operator's, by fleet and index, as many as it allows."""
    price = context.parameters.device_bond
    if not price or not len(live):
        return np.ones(len(live), bool)
    fleets = {bytes(fleet.fleet): fleet for fleet in context.fleets}
    values, codes = distinct_cells(live.column("fleet"))
    sizes = np.bincount(codes, minlength=len(values))
    left: dict[bytes, int] = {}
    limits = np.zeros(len(values), np.int64)
    for i, value in enumerate(values):
        fleet = fleets[value]
        allowed = left.get(fleet.operator, fleet.bond // price)
        limits[i] = min(allowed, int(sizes[i]))
        left[fleet.operator] = allowed - int(limits[i])
    if (limits == sizes).all():
        return np.ones(len(live), bool)
    order = np.lexsort((live.column("index"), codes))
    rank = np.empty(len(live), np.int64)
    rank[order] = np.arange(len(live)) - (np.cumsum(sizes) - sizes)[codes[order]]
    return np.asarray(rank < limits[codes])
