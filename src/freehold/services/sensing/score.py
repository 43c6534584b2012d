"""Sensing's judge, on columns: a million devices are a few arrays, never a million objects.

    obligations   one report from each live device of the state
    judge         for each duty its first good report, else the first report's fault, else silence; strays are kept
    fold          whole fleets come into the state, moves change owners, revoked devices leave; each good report that
                  its operator's bond covers is one point of coverage

`tests/services/sensing/plain.py` says the same in plain loops, and a test compares the two on random rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold.protocol.columns import Coded, are_texts, ragged_of
from freehold.protocol.hashing import Bytes
from freehold.protocol.lookup import Lookup, distinct_cells, sort_order
from freehold.protocol.parameters import Parameters
from freehold.protocol.service import Context, Folded, Rows
from freehold.protocol.tables import Table
from freehold.protocol.typed import Message
from freehold.protocol.units import ZERO_HASH, Address, Hash
from freehold.protocol.verdicts import GOOD, SILENT, SLEPT, Contribution, Verdict
from freehold.services.sensing.proof import CODE, NONE, REASONS, find_covered, judge_enrolments, tally_reports
from freehold.services.sensing.terms import (
    ENROLMENT,
    NAME,
    REPORT,
    UNCOUNTED,
    UNITS_PER_PRICE,
    DeviceReport,
    DeviceState,
    Duty,
    Enrolment,
)


class SensingJudge:
    """The judging half of sensing (`protocol/service.py`)."""

    name = NAME
    kinds: Mapping[str, type[Message]] = {ENROLMENT: Enrolment, REPORT: DeviceReport}
    sender_fields: Mapping[str, str] = {ENROLMENT: "node"}
    streamed: frozenset[str] = frozenset({REPORT})
    state_kind: type[Message] = DeviceState
    obligation_kind: type[Message] = Duty
    units_per_price = UNITS_PER_PRICE

    def obligations(self, context: Context) -> Table[Duty]:
        """One duty for each live device of the state, in the order of their addresses."""
        devices = _live(context).column("device")
        return Table.from_columns(Duty, {"epoch": context.epoch, "device": devices}, len(devices))

    def judge(self, obligations: Table[Duty], rows: Rows, context: Context) -> Table[Verdict]:
        """Duties first, in their order, then the reports that speak for none, then enrolments."""
        devices = obligations.column("device")
        tally = tally_reports(devices, rows[REPORT].tables(), context)
        silent = tally.codes == NONE
        said = tally.codes.copy()
        said[silent] = CODE[SLEPT if 3 * int(silent.sum()) > len(devices) else SILENT]
        said[(said == CODE[GOOD]) & ~find_covered(_live(context), context)] = CODE[UNCOUNTED]
        strays, enrolments = tally.strays(), rows[ENROLMENT]
        known = Lookup(_sorted(context.state).column("device"))
        told = judge_enrolments(enrolments, context, known)
        parts = [
            _verdicts(context, REPORT, obligations.hashes, devices, said),
            _verdicts(context, REPORT, strays.hashes, strays.devices, strays.codes),
            _verdicts(context, ENROLMENT, enrolments.hashes, enrolments.column("device"), told),
        ]
        return Table.concat(Verdict, parts)

    def fold(self, rows: Rows, verdicts: Table[Verdict], context: Context) -> Folded:
        """The devices after this epoch, and one contribution for each that was good."""
        live, enrolments = _live(context), rows[ENROLMENT]
        good = are_texts(verdicts.column("reason"), GOOD)
        taken = enrolments.filter(good[len(verdicts) - len(enrolments) :])
        owners = live.column("owner")[good[: len(live)]]
        columns = {"service": Coded.constant(NAME, len(owners)), "lease": ZERO_HASH, "account": owners, "measure": 1}
        contributions = Table.from_columns(Contribution, columns, len(owners))
        return Folded(_enrol(live, taken, context), contributions)

    def owing(self, state: Table[Any]) -> Set[Hash]:  # noqa: ARG002
        """None: what is proven in an epoch is paid in it."""
        return frozenset()

    def needed_thaw(self, parameters: Parameters) -> int:  # noqa: ARG002
        """No work of this service takes a bond after its epoch."""
        return 1

    def holdings(self, state: Table[Any]) -> Mapping[Address, int]:  # noqa: ARG002
        """Devices hold nothing."""
        return {}


def _sorted(devices: Table[DeviceState]) -> Table[DeviceState]:
    order = sort_order(devices.column("device"))
    return devices if order is None else devices.take(order)


def _live(context: Context) -> Table[DeviceState]:
    """The devices of live fleets as the chain has them now: moved ones with their owner, without the revoked."""
    state = _sorted(context.state)
    fleets = {bytes(fleet.fleet) for fleet in context.fleets}
    values, codes = distinct_cells(state.column("fleet"))
    kept = np.array([value in fleets for value in values], bool)
    return _changed(state if kept.all() else state.filter(kept[codes]), context)


def _changed(devices: Table[DeviceState], context: Context) -> Table[DeviceState]:
    if not context.changes or not len(devices):
        return devices
    named = np.frombuffer(b"".join(change.device for change in context.changes), np.uint8).reshape(-1, 20)
    keep, owners = np.ones(len(devices), bool), devices.column("owner").copy()
    fleets, indices = devices.column("fleet"), devices.column("index")
    for change, row in zip(context.changes, Lookup(devices.column("device")).find(named).tolist(), strict=True):
        if row < 0 or fleets[row].tobytes() != change.fleet or indices[row] != change.index:
            continue
        if any(change.owner):
            owners[row] = np.frombuffer(change.owner, np.uint8)
        else:
            keep[row] = False
    return Table.from_columns(DeviceState, {**devices.columns, "owner": owners}, len(devices)).filter(keep)


def _enrol(live: Table[DeviceState], taken: Table[Enrolment], context: Context) -> Table[DeviceState]:
    if not len(taken):
        return live
    columns = {name: taken.column(name) for name in ("device", "fleet", "index", "owner", "place")}
    fresh = Table.from_columns(DeviceState, columns | {"since": context.epoch}, len(taken))
    return _sorted(Table.concat(DeviceState, [live, _changed(_sorted(fresh), context)]))


def _verdicts(context: Context, kind: str, subjects: Bytes, devices: Bytes, codes: NDArray[np.uint8]) -> Table[Verdict]:
    return Table.from_columns(
        Verdict,
        {
            "epoch": context.epoch,
            "service": Coded.constant(NAME, len(codes)),
            "kind": Coded.constant(kind, len(codes)),
            "subject": subjects,
            "lease": ZERO_HASH,
            "node": devices,
            "reason": Coded(codes, ragged_of([reason.encode() for reason in REASONS])),
            "measure": (codes == CODE[GOOD]).astype("<u8"),
        },
        len(codes),
    )
