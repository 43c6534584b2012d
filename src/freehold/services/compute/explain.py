"""What an epoch did to compute's orders, receipts, cases and leases, and what of it was paid.

Everything is read from the bundle's state, evidence and verdicts, and from the state that settling it leads to;
`explain_text.py` makes the sentences.
Invariant: the orders that are said to be paid in an epoch add up to what each lease's contribution is, or it is an
error.
"""

# ruff: noqa: ARG002, ARG004  # what one service needs another does not

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Set
from typing import Any

from freehold.protocol.batches import collect_rows, kinds_of
from freehold.protocol.bundle import Bundle
from freehold.protocol.columns import are_texts
from freehold.protocol.epoch import Settlement, certified_subjects
from freehold.protocol.errors import ReplayMismatch
from freehold.protocol.service import Judge
from freehold.protocol.tables import Table
from freehold.protocol.units import MEASURE_LIMIT, Address, Hash
from freehold.protocol.verdicts import (
    GOOD,
    KNOWN,
    SILENT,
    SLEPT,
    SUPERSEDED,
    UNKNOWN_LEASE,
    UNOBLIGED,
    Verdict,
)
from freehold.services.compute import explain_text
from freehold.services.compute.terms import (
    BOTH,
    CASE,
    CROWDED,
    DISPUTE,
    DISPUTED,
    EARLY,
    EXACT,
    HELD,
    JOB,
    LATE,
    NAME,
    NO_CONTRADICTION,
    OPINION,
    OVER_ORDER,
    PAID,
    RECEIPT,
    SEAT,
    UNDECIDED,
    UNFOUNDED,
    UNORDERED,
    UPHELD,
    WAITING,
    WRONG,
    WRONG_RESULT,
    Dispute,
    Receipt,
    WorkState,
)
from freehold.services.explaining import Explainer, Facts, Words

MEANS = {
    OVER_ORDER: "it bills more than its order allows",
    UNORDERED: "the lease's client did not sign this order for this node",
    LATE: "its order had run out",
    EARLY: "its order names an epoch that is too far ahead",
    NO_CONTRADICTION: "both receipts may be right, or they are not about the same work",
    DISPUTED: "one of the receipts is, or was, in a case already",
    CROWDED: "its client had as many cases open as it may have at once",
    WRONG_RESULT: "a majority of referees found otherwise",
    UNDECIDED: "the referees did not agree in any round: both receipts are paid",
    UNFOUNDED: "the opinion's output does not say what its bits say",
}
SAID_OF = {  # where the same word means something else than for storage
    (RECEIPT, GOOD): "it waits this epoch, and is paid in the next unless it is disputed",
    (RECEIPT, KNOWN): "its order's receipt is in the state already: it is paid once",
    (RECEIPT, SUPERSEDED): "another receipt for the same order says less",
    (RECEIPT, UNKNOWN_LEASE): "no lease of this name is open",
    (DISPUTE, GOOD): "it holds, and opened or decided a case",
    (OPINION, GOOD): "it was asked for, and counts",
    (OPINION, SILENT): "the referee said nothing in this epoch",
    (OPINION, SLEPT): "more than a third of the referees said nothing in this epoch",
    (OPINION, UNOBLIGED): "nobody asked it",
    (OPINION, SUPERSEDED): "another opinion of the same referee counts",
}
STANDS = {
    WAITING: "waits: paid in the next epoch unless it is disputed",
    PAID: "paid",
    HELD: "held back until referees have decided its case",
    WRONG: "found wrong: not paid from then on",
    UPHELD: "paid after a dispute",
}


class ComputeExplainer(Explainer):
    """Compute's part of an epoch."""

    def __init__(self, name: str, bundle: Bundle, settlement: Settlement, judges: Mapping[str, Judge]) -> None:
        super().__init__(name, bundle, settlement, judges)
        empty: Table[Any] = Table.of(WorkState)
        before: list[Any] = list(bundle.state.services.get(NAME, empty))
        after: list[Any] = list(settlement.state.services[NAME])
        self._before = {row.id: row for row in before if row.role == JOB}
        self._after = {row.id: row for row in after if row.role == JOB}
        self._cases = {row.id: row for row in [*before, *after] if row.role == CASE}
        self._open = {row.id for row in after if row.role == CASE}
        self._seats = {(row.id, row.node): row for row in [*before, *after] if row.role == SEAT}
        batches = [bundle.batches[subject] for subject in certified_subjects(bundle.manifest)]
        own_kinds = judges[NAME].kinds
        self._rows = collect_rows([batch for batch in batches if batch.header.kind in own_kinds], kinds_of(judges))
        own = settlement.verdicts.filter(are_texts(settlement.verdicts.column("service"), NAME))
        self._said: dict[Hash, Verdict] = {verdict.subject: verdict for verdict in own}
        self._ruled = {v.subject: v for v in own if v.kind == DISPUTE and v.subject in self._before}
        self._paid = {row.id: row for row in self._before.values() if self._is_paid(row)}
        self._receipts: defaultdict[Hash, list[Receipt]] = defaultdict(list)
        for receipt in self._rows[RECEIPT]:
            self._receipts[receipt.order().struct_hash()].append(receipt)
        self._check_sums()

    def _is_paid(self, row: WorkState) -> bool:
        after, ruled = self._after.get(row.id), self._ruled.get(row.id)
        if row.stand == WAITING:
            return after is None or after.stand == PAID
        return row.stand == HELD and ruled is not None and ruled.reason != WRONG_RESULT

    def _check_sums(self) -> None:
        sums: Counter[Hash] = Counter()
        for row in self._paid.values():
            sums[row.lease] = min(sums[row.lease] + row.measure, MEASURE_LIMIT - 1)
        own = self.settlement.contributions
        settled = {row.lease: row.measure for row in own.filter(are_texts(own.column("service"), NAME))}
        if dict(sums) != settled:
            raise ReplayMismatch("work: the orders that are paid do not add up to what was settled", first="work")

    def describe(self, subject: Address, account: Address, nodes: Set[Address]) -> Facts | None:
        """What became of the orders that an account's nodes ran, or that it gave; None where there are none."""

        def is_mine(row: WorkState) -> bool:
            return row.node in nodes or row.first == subject

        orders = [self._order(id_) for id_, row in sorted((self._before | self._after).items()) if is_mine(row)]
        slashes = [row for row in self.settlement.slashes if row.service == NAME]
        lost = [row.to_json() for row in slashes if row.node in nodes or subject in (row.operator, row.harmed)]
        cases = [
            case for case, row in sorted(self._cases.items()) if subject == row.node or {row.first, row.second} & nodes
        ]
        if not orders and not lost and not cases:
            return None
        return {
            "orders": orders,
            "stands": dict(sorted(Counter(order["stand"] for order in orders).items())),
            "paid": [order for order in orders if order["paid"]],
            "cases": [self._case(case) for case in cases],
            "slashes": lost,
        }

    def find(self, subject: Hash) -> Facts | None:
        """An order, a receipt, a case, a dispute or a lease by its id: an order is known from the epoch that took its
        receipt until it runs out."""
        sent = (order for order, rows in self._receipts.items() if subject in [row.row_hash() for row in rows])
        order = next(sent, subject)
        if order in self._receipts or order in self._before or order in self._after:
            return {"what": "order", **self._order(order)}
        for dispute in self._rows[DISPUTE]:
            if subject in (dispute.row_hash(), dispute.case()):
                return {"what": "case", **self._case(dispute.case())}
        if subject in self._cases:
            return {"what": "case", **self._case(subject)}
        rows = [id_ for id_, row in (self._before | self._after).items() if row.lease == subject]
        rows += [order for order, found in self._receipts.items() if found[0].lease == subject]
        lease = self.settlement.state.leases.get(subject)
        if not rows and (lease is None or lease.service != self.name):
            return None
        orders = [self._order(id_) for id_ in sorted(set(rows))]
        return {
            "what": "lease",
            "lease": str(subject),
            "orders": orders,
            "measure": sum(order["measure"] or 0 for order in orders if order["paid"]),
        }

    def means(self, kind: str, reason: str) -> str | None:
        return SAID_OF.get((kind, reason)) or MEANS.get(reason)

    def zero(self, facts: Facts, nodes: Set[Address]) -> list[str]:
        stands = facts["stands"] if nodes else {}
        return [f"{count} of its orders: {stand}." for stand, count in stands.items()]

    @staticmethod
    def tell(facts: Facts, words: Words) -> Iterator[str]:
        return explain_text.tell_orders(facts, words)

    @staticmethod
    def tell_found(facts: Facts, words: Words) -> Iterator[str]:
        return explain_text.tell_found(facts, words)

    @staticmethod
    def tell_contribution(facts: Facts, words: Words) -> str:
        return f"{facts['measure']} ns of a processor"

    def _order(self, order: Hash) -> dict[str, Any]:
        row = self._after.get(order) or self._before.get(order)
        before, after = self._before.get(order), self._after.get(order)
        sent = self._receipts.get(order, [])
        shown: Receipt | None = sent[0] if sent else None
        about = row or shown
        stand = "left the state: its order has run out" if before and not after else "it did not come into the state"
        return {
            "order": str(order),
            "node": str(about.node) if about else None,
            "lease": str(about.lease) if about else None,
            "client": str(row.first) if row else None,
            "task": str(about.task) if about else None,
            "measure": row.measure if row else None,
            "until": about.until if about else None,
            "since": row.epoch if row else None,
            "before": STANDS[before.stand] if before else None,
            "stand": STANDS[after.stand] if after else stand,
            "paid": order in self._paid,
            "receipts": [self._verdict(one.row_hash(), RECEIPT) | {"measure": one.measure} for one in sent],
            "ruled": self._verdict(order, DISPUTE) if order in self._ruled else None,
            "cases": [str(case) for case, one in self._cases.items() if order in (one.first_order, one.second_order)],
        }

    def _verdict(self, subject: Hash, kind: str) -> dict[str, Any]:
        reason = self._said[subject].reason
        return {
            "subject": str(subject),
            "reason": reason,
            "means": self.means(kind, reason) or reason.replace("_", " "),
        }

    def _case(self, case: Hash) -> dict[str, Any]:
        row = self._cases.get(case)
        disputes = [one for one in self._rows[DISPUTE] if one.case() == case]
        shown: Dispute | None = disputes[0] if disputes else None
        opinions = [one for one in self._rows[OPINION] if one.case == case]
        told: dict[str, Any] = {
            "case": str(case),
            "open": case in self._open,
            "disputes": [self._verdict(one.row_hash(), DISPUTE) for one in disputes],
            "seats": [
                {"node": str(node), "drawn": seat.epoch, "until": seat.until}
                for (of, node), seat in sorted(self._seats.items())
                if of == case
            ],
            "opinions": [
                self._verdict(one.row_hash(), OPINION)
                | {"node": str(one.node), "first": bool(one.good & 1), "second": bool(one.good & 2)}
                | {"output": str(one.output), "cannot_tell": one.good == BOTH}
                for one in opinions
            ],
            "ruled": [],
            "slashes": [one.to_json() for one in self.settlement.slashes if one.subject == case],
        }
        if row is not None:
            orders = (row.first_order, row.second_order)
            told |= {
                "client": str(row.node),
                "nodes": [str(row.first), str(row.second)],
                "orders": [str(order) for order in orders],
                "outputs": [str(row.first_output), str(row.second_output)],
                "kind": "exact" if row.kind == EXACT else "near",
                "step": row.step - 1 if row.step else None,
                "opened": row.epoch,
                "round": row.round,
                "ruled": [self._verdict(order, DISPUTE) for order in orders if order in self._ruled],
            }
        elif shown is not None:
            told |= {"client": str(shown.client), "nodes": [str(shown.first.node), str(shown.second.node)]}
        return told
