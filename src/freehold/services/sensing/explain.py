"""What an epoch said of devices: on columns, counted by reason.

A million devices are a few arrays here, as in settlement; what comes out is as long as there are fleets and reasons.
Invariant: duties and enrolments are recomputed and compared with what settlement says, or it is an error.
"""

# ruff: noqa: ARG002  # what one service needs another does not

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold.protocol.batches import collect_rows, kinds_of
from freehold.protocol.bundle import Bundle
from freehold.protocol.columns import Coded, are_texts
from freehold.protocol.epoch import Settlement, certified_subjects, make_context
from freehold.protocol.errors import ReplayMismatch
from freehold.protocol.lookup import Lookup
from freehold.protocol.service import Judge
from freehold.protocol.tables import Table
from freehold.protocol.units import Address
from freehold.protocol.verdicts import GOOD, KNOWN, SILENT, SLEPT, SUPERSEDED, WRONG_EPOCH, WRONG_SIGNATURE
from freehold.services.explaining import Explainer, Facts, Words, are_cells
from freehold.services.sensing.terms import (
    ENROLMENT,
    NAME,
    REPORT,
    REVOKED_DEVICE,
    UNCOUNTED,
    UNKNOWN_DEVICE,
    UNKNOWN_FLEET,
    WRONG_FLEET_ROOT,
)

Mask = NDArray[np.bool_]

MEANS = {
    GOOD: "a report of this epoch, signed by the device: one point of coverage",
    UNCOUNTED: "a good report beyond what its operator's bond covers: kept, not paid",
    SILENT: "no report came within the epoch: unpaid, never slashed",
    SLEPT: "no report, when more than a third of all devices sent none: unpaid, and harmless",
    WRONG_EPOCH: "it names another epoch or beacon",
    WRONG_SIGNATURE: "not signed by the device",
    SUPERSEDED: "another report of the device counts",
    UNKNOWN_DEVICE: "the device stands in no live fleet: revoked, retired, or not enrolled yet",
    KNOWN: "the device is enrolled already",
    UNKNOWN_FLEET: "the chain had no such live fleet at the anchor",
    WRONG_FLEET_ROOT: "the rows shown are not exactly those that the fleet's root commits to",
    REVOKED_DEVICE: "it was revoked before it was enrolled",
}
TITLES = (
    ("", "reports"),
    ("in its fleets: ", "operated"),
    ("further reports: ", "strays"),
    ("enrolment: ", "enrolments"),
)
CHANGES = (
    ("moved_in", "came from another owner"),
    ("moved_away", "moved to another owner"),
    ("gone", "were revoked, or their fleet retired"),
)
ENROLLED_MEANS = "it came into the state: its reports count from the next epoch on"


class SensingExplainer(Explainer):
    """The devices of an epoch: before it, after it, and what was said of each."""

    def __init__(self, name: str, bundle: Bundle, settlement: Settlement, judges: Mapping[str, Judge]) -> None:
        super().__init__(name, bundle, settlement, judges)
        judge = judges[NAME]
        context = make_context(bundle.state, bundle.anchor, judge, bundle.domain, settlement.state.leases)
        self.before: Table[Any] = context.state
        self.after: Table[Any] = settlement.state.services[NAME]
        self._duties = judge.obligations(context)
        own = settlement.verdicts.filter(are_texts(settlement.verdicts.column("service"), NAME))
        about_reports = are_texts(own.column("kind"), REPORT)
        reports = own.filter(about_reports)
        self._said = reports.take(np.arange(len(self._duties)))
        self._strays = reports.take(np.arange(len(self._duties), len(reports)))
        self._listed = own.filter(~about_reports)
        batches = [bundle.batches[subject] for subject in certified_subjects(bundle.manifest)]
        self._enrolments: Table[Any] = collect_rows(batches, kinds_of(judges))[ENROLMENT]
        for what, table, hashes in (
            ("duties", self._said, self._duties.hashes),
            ("enrolments", self._listed, self._enrolments.hashes),
        ):
            if not np.array_equal(table.column("subject"), hashes):
                raise ReplayMismatch(f"{what}: the verdicts are not about these", first=what)

    def owner_of(self, device: Address) -> Address | None:
        """Who is, or was until this epoch, paid for a device; None for what is no device."""
        for table in (self.after, self.before):
            for row in table.filter(are_cells(table.column("device"), device)):
                return Address(row.owner)
        return None

    def describe(self, subject: Address, account: Address, nodes: Set[Address]) -> Facts | None:
        """The devices that an account owns or operates, or one device alone; None where there are none."""
        device = None if subject == account or subject in nodes else subject
        fleets = [fleet for fleet in self.bundle.anchor.fleets if fleet.operator == account]
        ids = [bytes(fleet.fleet) for fleet in fleets]

        def are_mine(table: Table[Any]) -> Mask:
            if device is not None:
                return are_cells(table.column("device"), device)
            return are_cells(table.column("owner"), account) | are_cells(table.column("fleet"), *ids)

        before, after = are_mine(self.before), are_mine(self.after)
        shown = are_mine(self._enrolments)
        addresses = [table.column("device")[mask] for table, mask in ((self.before, before), (self.after, after))]
        if not fleets and not before.any() and not after.any() and not shown.any():
            return None
        known = np.concatenate(addresses)
        known = known[np.lexsort(known.T[::-1])]
        again = (known[1:] == known[:-1]).all(axis=1)
        strays = Lookup(np.concatenate([known[:1], known[1:][~again]])).find(self._strays.column("node")) >= 0
        live = self.after.filter(self.after.column("since") < self.bundle.anchor.epoch)
        told = self._said.take(Lookup(self._said.column("node")).find(live.column("device")))
        owned = are_cells(live.column("owner"), account) if device is None else are_mine(live)
        price = self.bundle.anchor.parameters.device_bond
        return {
            "live": int(owned.sum()),
            "reports": count_reasons(told.filter(owned)),
            "operated": count_reasons(told.filter(are_cells(live.column("fleet"), *ids))) if device is None else [],
            "strays": count_reasons(self._strays.filter(strays)),
            "enrolments": count_reasons(self._listed.filter(shown), {GOOD: ENROLLED_MEANS}),
            **self._changes(account, device),
            "fleets": [
                {
                    "fleet": str(fleet.fleet),
                    "devices": fleet.count,
                    "live": int(are_cells(live.column("fleet"), fleet.fleet).sum()),
                    "bond": str(fleet.bond),
                    "device_bond": str(price),
                    "covered": fleet.bond // price if price else None,
                }
                for fleet in (fleets if device is None else [])
            ],
        }

    def zero(self, facts: Facts, nodes: Set[Address]) -> list[str]:
        reasons = []
        if facts["gone"]:
            reasons.append(f"{facts['gone']} of its devices were revoked, or their fleet retired.")
        if facts["moved_away"]:
            reasons.append(f"{facts['moved_away']} of its devices moved to another owner, who is paid from now on.")
        if not facts["live"]:
            if facts["fleets"] and not any(fleet["live"] for fleet in facts["fleets"]):
                reasons.append("None of its fleets' devices is enrolled: its node sends the list until they are.")
            reasons.append("It owned no device that owed a report in this epoch.")
        elif not self.bundle.anchor.parameters.coverage_share:
            reasons.append("Devices get no share of the schedule in this network.")
        bad = [row for row in facts["reports"] if row["reason"] != GOOD]
        return reasons + [f"{row['count']} x {row['reason']}: {row['means']}." for row in bad]

    @staticmethod
    def tell(facts: Facts, words: Words) -> Iterator[str]:
        yield f"   devices that owed a report, and are paid to this account: {facts['live']}"
        for title, name in TITLES:
            for row in facts[name]:
                yield f"     {title}{row['count']} x {row['reason']} ({row['means']})"
        for name, text in CHANGES:
            if facts[name]:
                yield f"     {facts[name]} {text} since the epoch before"
        for fleet in facts["fleets"]:
            covers = "any number" if fleet["covered"] is None else f"{fleet['covered']} in all its fleets"
            yield (
                f"     fleet {words.short(fleet['fleet'])}: {fleet['live']} of {fleet['devices']} enrolled; "
                f"bond {words.amount(int(fleet['bond']))} at {words.amount(int(fleet['device_bond']))} a device "
                f"covers {covers}"
            )

    def _changes(self, account: Address, device: Address | None) -> dict[str, int]:
        """What has become of devices since the epoch before: of one, or of those that the account owned or owns."""
        places = Lookup(self.after.column("device")).find(self.before.column("device"))
        chosen = np.ones(len(places), bool) if device is None else are_cells(self.before.column("device"), device)
        owned = are_cells(self.before.column("owner"), account)
        stays = places >= 0
        owns = np.zeros(len(places), bool)
        owns[stays] = are_cells(self.after.column("owner")[places[stays]], account)
        return {
            "moved_in": int((chosen & stays & owns & ~owned).sum()),
            "moved_away": int((chosen & stays & owned & ~owns).sum()),
            "gone": int((chosen & owned & ~stays).sum()),
        }


def count_reasons(verdicts: Table[Any], means: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """How many verdicts there are of each reason, in the reasons' order."""
    counts: dict[str, int] = {}
    column: Any = verdicts.column("reason")
    coded = column if isinstance(column, Coded) else column.coded()
    for value, count in zip(coded.values.values(), np.bincount(coded.codes, minlength=coded.values.count), strict=True):
        if count:
            counts[value.decode()] = counts.get(value.decode(), 0) + int(count)
    explained = MEANS | dict(means or {})
    return [
        {"reason": reason, "count": count, "means": explained.get(reason, reason.replace("_", " "))}
        for reason, count in sorted(counts.items())
    ]
