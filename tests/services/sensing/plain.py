"""Sensing's rules in plain loops over messages: what `services/sensing/score.py` is compared with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from freehold.protocol.fleets import FleetDevice
from freehold.protocol.keys import is_signed_by
from freehold.protocol.merkle import row_root
from freehold.protocol.service import Context, Rows
from freehold.protocol.state import FleetRecord
from freehold.protocol.typed import Message
from freehold.protocol.units import ZERO_HASH, Address, Hash
from freehold.protocol.verdicts import (
    GOOD,
    KNOWN,
    SILENT,
    SLEPT,
    SUPERSEDED,
    WRONG_EPOCH,
    WRONG_SIGNATURE,
    Contribution,
    Verdict,
)
from freehold.services.sensing.terms import (
    ENROLMENT,
    NAME,
    REPORT,
    REVOKED_DEVICE,
    UNCOUNTED,
    UNKNOWN_DEVICE,
    UNKNOWN_FLEET,
    WRONG_FLEET_ROOT,
    DeviceReport,
    DeviceState,
    Duty,
    Enrolment,
)


def device_of(row: Enrolment) -> FleetDevice:
    return FleetDevice(device=row.device, owner=row.owner, place=row.place, device_signature=row.device_signature)


def changed(devices: Iterable[DeviceState], context: Context) -> list[DeviceState]:
    kept = {row.device: row for row in devices}
    for change in context.changes:
        row = kept.get(change.device)
        if row is None or (row.fleet, row.index) != (change.fleet, change.index):
            continue
        del kept[change.device]
        if any(change.owner):
            values = {name: getattr(row, name) for name in row.__struct_fields__}
            kept[change.device] = DeviceState(**(values | {"owner": change.owner}))
    return sorted(kept.values(), key=lambda row: row.device)


def live(context: Context) -> list[DeviceState]:
    fleets = {fleet.fleet for fleet in context.fleets}
    return changed([row for row in context.state if row.fleet in fleets], context)


def obligations(context: Context) -> list[Duty]:
    return [Duty(epoch=context.epoch, device=row.device) for row in live(context)]


def judge_report(row: DeviceReport, devices: set[Address], context: Context) -> str:
    if row.device not in devices:
        return UNKNOWN_DEVICE
    if row.epoch != context.epoch or row.beacon != context.beacon:
        return WRONG_EPOCH
    return GOOD if is_signed_by(row, row.device_signature, row.device, context.domain) else WRONG_SIGNATURE


def covered(context: Context) -> set[Address]:
    price, fleets = context.parameters.device_bond, {fleet.fleet: fleet for fleet in context.fleets}
    left: dict[Address, int] = {}
    paid = set()
    for row in sorted(live(context), key=lambda row: (row.fleet, row.index)):
        fleet = fleets[row.fleet]
        left.setdefault(fleet.operator, fleet.bond // price if price else 2**64)
        if left[fleet.operator]:
            left[fleet.operator] -= 1
            paid.add(row.device)
    return paid


def judge_fleet(rows: list[Enrolment], fleet: FleetRecord | None, context: Context) -> list[str]:
    if fleet is None:
        return [UNKNOWN_FLEET] * len(rows)
    ordered = sorted(rows, key=lambda row: row.index)
    whole = [row.index for row in ordered] == list(range(fleet.count))
    if not whole or row_root([device_of(row).row_hash() for row in ordered]) != fleet.root:
        return [WRONG_FLEET_ROOT] * len(rows)
    revoked = {change.index for change in context.changes if change.fleet == fleet.fleet and not any(change.owner)}
    reasons = []
    for row in rows:
        signed = is_signed_by(device_of(row), row.device_signature, row.device, context.domain)
        reasons.append(REVOKED_DEVICE if row.index in revoked else GOOD if signed else WRONG_SIGNATURE)
    return reasons


def judge_enrolments(rows: Iterable[Enrolment], context: Context) -> list[str]:
    rows, fleets = list(rows), {fleet.fleet: fleet for fleet in context.fleets}
    groups: defaultdict[tuple[Hash, Address], list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        groups[row.fleet, row.node].append(i)
    reasons = [""] * len(rows)
    for (fleet, _), own in groups.items():
        for i, reason in zip(own, judge_fleet([rows[i] for i in own], fleets.get(fleet), context), strict=True):
            reasons[i] = reason
    known = {row.device for row in context.state}
    order = [fleet.fleet for fleet in context.fleets]
    for i, row in sorted(enumerate(rows), key=lambda pair: order.index(pair[1].fleet) if pair[1].fleet in order else 0):
        if reasons[i] == GOOD:
            reasons[i] = KNOWN if row.device in known else GOOD
            known.add(row.device)
    return reasons


def verdict(context: Context, kind: str, row: Message, device: Address, reason: str) -> Verdict:
    return Verdict(
        epoch=context.epoch,
        service=NAME,
        kind=kind,
        subject=row.row_hash(),
        lease=ZERO_HASH,
        node=device,
        reason=reason,
        measure=int(reason == GOOD),
    )


def judge(duties: list[Duty], rows: Rows, context: Context) -> list[Verdict]:
    devices, paid = {duty.device for duty in duties}, covered(context)
    said: dict[Address, tuple[int, str]] = {}
    reports = list(rows[REPORT])
    reasons = [judge_report(row, devices, context) for row in reports]
    for i, (row, reason) in enumerate(zip(reports, reasons, strict=True)):
        if reason in (GOOD, WRONG_SIGNATURE):
            before = said.get(row.device)
            if before is None or (reason == GOOD and before[1] != GOOD):
                said[row.device] = (i, reason)
    silence = SLEPT if 3 * (len(duties) - len(said)) > len(duties) else SILENT
    verdicts = []
    for duty in duties:
        reason = said[duty.device][1] if duty.device in said else silence
        if reason == GOOD and duty.device not in paid:
            reason = UNCOUNTED
        verdicts.append(verdict(context, REPORT, duty, duty.device, reason))
    counting = {i for i, _ in said.values()}
    for i, row in enumerate(reports):
        if i not in counting:
            reason = SUPERSEDED if reasons[i] == GOOD else reasons[i]
            verdicts.append(verdict(context, REPORT, row, row.device, reason))
    told = judge_enrolments(rows[ENROLMENT], context)
    pairs = zip(rows[ENROLMENT], told, strict=True)
    return verdicts + [verdict(context, ENROLMENT, row, row.device, reason) for row, reason in pairs]


def fold(rows: Rows, verdicts: list[Verdict], context: Context) -> tuple[list[DeviceState], list[Contribution]]:
    good = {v.subject for v in verdicts if v.reason == GOOD}
    contributions = [
        Contribution(service=NAME, lease=ZERO_HASH, account=row.owner, measure=1)
        for row in live(context)
        if Duty(epoch=context.epoch, device=row.device).row_hash() in good
    ]
    fresh = [
        DeviceState(
            device=row.device, fleet=row.fleet, index=row.index, owner=row.owner, place=row.place, since=context.epoch
        )
        for row in rows[ENROLMENT]
        if row.row_hash() in good
    ]
    return sorted([*live(context), *changed(fresh, context)], key=lambda row: row.device), contributions
