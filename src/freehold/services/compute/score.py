"""Compute's judge: receipts wait one epoch and are paid in the next; disputed ones wait for their referees.

In epoch e, in this order:

    1  what has waited since an epoch before, and is not disputed in e, is paid: one sum for each lease
    2  good receipts come into the state, and wait
    3  good disputes open cases; their receipts are held back (one that was paid already stays paid: only its node's
       bond is left)
    4  cases of earlier epochs that have no referees get them
    5  cases whose referees answered are decided: a receipt that was found good is paid, one that was found wrong never

What was disputed in time and found wrong is never paid: that is the refund, and the bond of its node is answerable
besides (`court.py` says when, and on what assumption). Nobody's lease outlives its lock: a receipt that is upheld when
its client has long closed the lease is paid what the lock still covers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold.protocol.columns import Coded, are_texts, ragged_of
from freehold.protocol.hashing import Bytes
from freehold.protocol.lookup import distinct_cells, prefixes_of, sort_order, sum_by_address
from freehold.protocol.parameters import Parameters
from freehold.protocol.service import Context, Folded, Rows
from freehold.protocol.tables import Table
from freehold.protocol.typed import Message
from freehold.protocol.units import MEASURE_LIMIT, ZERO_ADDRESS, ZERO_HASH, Address, Hash
from freehold.protocol.verdicts import GOOD, SILENT, SLEPT, Contribution, Slash, Verdict
from freehold.services.compute.court import Ruling, hold_court, needed_thaw, open_case
from freehold.services.compute.proof import (
    CODE,
    REASONS,
    Codes,
    Work,
    judge_disputes,
    judge_receipts,
    read_receipts,
)
from freehold.services.compute.terms import (
    DISPUTE,
    HELD,
    JOB,
    NAME,
    OPINION,
    PAID,
    RECEIPT,
    UNDECIDED,
    UNITS_PER_PRICE,
    UPHELD,
    WAITING,
    WRONG,
    WRONG_RESULT,
    Dispute,
    Opinion,
    Receipt,
    Seat,
    WorkState,
)


class ComputeJudge:
    """The judging half of compute (`protocol/service.py`)."""

    name = NAME
    kinds: Mapping[str, type[Message]] = {RECEIPT: Receipt, DISPUTE: Dispute, OPINION: Opinion}
    sender_fields: Mapping[str, str] = {RECEIPT: "node", DISPUTE: "client", OPINION: "node"}
    streamed: frozenset[str] = frozenset()
    state_kind: type[Message] = WorkState
    obligation_kind: type[Message] = Seat
    units_per_price = UNITS_PER_PRICE

    def obligations(self, context: Context) -> Table[Seat]:
        """One opinion for each seat of the state."""
        seats = Work(context.state).seats
        return Table.of(Seat, (Seat(epoch=context.epoch, case=row.id, node=row.node) for row in seats))

    def judge(self, obligations: Table[Seat], rows: Rows, context: Context) -> Table[Verdict]:
        """Seats first, in their order, then what was decided of disputed receipts, opinions, receipts, disputes."""
        work = Work(context.state)
        court = hold_court(work, rows[OPINION], context)
        silence = SLEPT if 3 * (len(work.seats) - len(court.answers)) > len(work.seats) else SILENT
        seats = [court.answers.get((row.id, row.node), silence) for row in work.seats]
        receipts, disputes, opinions = rows[RECEIPT], rows[DISPUTE], rows[OPINION]
        parts = [
            _verdicts(context, OPINION, obligations.hashes, obligations.column("node"), _coded(seats)),
            _ruled(context, court.rulings, work),
            _verdicts(context, OPINION, opinions.hashes, opinions.column("node"), _coded(court.said)),
            _verdicts(
                *(context, RECEIPT, receipts.hashes, receipts.column("node")),
                judge_receipts(receipts, context, work),
                receipts.column("lease"),
                receipts.column("measure"),
            ),
            _verdicts(
                *(context, DISPUTE, disputes.hashes, disputes.column("client")),
                judge_disputes(disputes, context, work),
            ),
        ]
        return Table.concat(Verdict, parts)

    def fold(self, rows: Rows, verdicts: Table[Verdict], context: Context) -> Folded:
        """The five steps above; then rows leave: jobs after `until`, cases and seats once decided."""
        work = Work(context.state)
        court = hold_court(work, rows[OPINION], context)
        good, disputes = are_texts(verdicts.column("reason"), GOOD), rows[DISPUTE]
        receipts = rows[RECEIPT].filter(
            good[len(good) - len(disputes) - len(rows[RECEIPT]) : len(good) - len(disputes)]
        )
        opened = disputes.filter(good[len(good) - len(disputes) :]).rows
        jobs, paid = _settle(work, orders_of(opened), court.rulings)
        fresh = _take(receipts, opened, work, context)
        kept = (jobs.column("until") > context.epoch) | np.isin(jobs.column("stand"), [WAITING, HELD])
        after = Table.concat(WorkState, [jobs.filter(kept), fresh])
        order = sort_order(after.column("id")) if len(after) else None
        opening = [open_case(row, context.epoch) for row in opened]
        cases = sorted([*court.cases, *opening], key=lambda row: row.id)
        seats = sorted(court.seats, key=lambda row: (row.id, row.node))
        state = [after if order is None else after.take(order), Table.of(WorkState, [*cases, *seats])]
        slashes = [slash for ruling in court.rulings for slash in ruling.slashes()]
        return Folded(Table.concat(WorkState, state), _contribute(jobs.filter(paid)), Table.of(Slash, slashes))

    def owing(self, state: Table[Any]) -> Set[Hash]:
        """Those of receipts that wait, or are held back for their referees."""
        waits = np.isin(state.column("stand"), [WAITING, HELD]) & (state.column("role") == JOB)
        return {Hash(value) for value in distinct_cells(state.column("lease")[waits])[0]}

    def needed_thaw(self, parameters: Parameters) -> int:
        """For short work."""
        return needed_thaw(0, parameters)

    def holdings(self, state: Table[Any]) -> Mapping[Address, int]:  # noqa: ARG002
        """What a node runs it does not hold."""
        return {}


def _settle(work: Work, held: set[bytes], rulings: Sequence[Ruling]) -> tuple[Table[WorkState], NDArray[np.bool_]]:
    """The jobs of the state as they stand after this epoch, and which of them are paid in it."""
    jobs = work.jobs
    stands = jobs.column("stand").copy()
    paid = stands == WAITING
    disputed = _find(work, held)
    paid[disputed] = False
    stands[disputed] = np.where(stands[disputed] == WAITING, HELD, stands[disputed])
    stands[paid] = PAID
    for ruling in rulings:
        for order, _, good in ruling.receipts():
            for place in _find(work, [order]):
                paid[place] = good and stands[place] == HELD
                stands[place] = UPHELD if good else WRONG
    return Table.from_columns(WorkState, {**jobs.columns, "stand": stands}, len(jobs)), paid


def _find(work: Work, orders: Iterable[bytes]) -> NDArray[np.int64]:
    places = work.find(np.frombuffer(b"".join(sorted(orders)), np.uint8).reshape(-1, 32))
    return places[places >= 0]


def _take(receipts: Table[Receipt], opened: Sequence[Dispute], work: Work, context: Context) -> Table[WorkState]:
    """The jobs that are new, by their ids. What a dispute shows counts as sent; of two the smaller measure counts."""
    shown = Table.of(Receipt, (receipt for row in opened for receipt in (row.first, row.second)))
    read = read_receipts(Table.concat(Receipt, [receipts, shown]), context, work)
    new = np.flatnonzero(read.places < 0)
    ids, group = distinct_cells(read.orders.struct_hashes[new])
    taken = read.receipts.take(new)
    order = np.lexsort((prefixes_of(taken.hashes), taken.column("measure"), group))
    first = order[np.searchsorted(group[order], np.arange(len(ids)))]
    taken, held = taken.take(first), orders_of(opened)
    columns = {name: taken.column(name) for name in ("node", "lease", "task", "input", "measure", "until")}
    stands = np.array([HELD if order in held else WAITING for order in ids], np.uint8)
    columns |= {
        "id": np.frombuffer(b"".join(ids), np.uint8).reshape(-1, 32),
        "first": read.clients[new[first]],
        "first_output": taken.column("output"),
        "stand": stands,
    }
    fixed: dict[str, Any] = {"role": JOB, "epoch": context.epoch, "second": ZERO_ADDRESS}
    fixed |= dict.fromkeys(("second_output", "first_order", "second_order"), ZERO_HASH)
    fixed |= dict.fromkeys(("step", "kind", "round"), 0)
    return Table.from_columns(WorkState, columns | fixed, len(ids))


def _contribute(paid: Table[WorkState]) -> Table[Contribution]:
    """What each lease is paid for: the sum of its jobs, and no more than a measure can be."""
    leases, group = distinct_cells(paid.column("lease"))
    _, first = np.unique(group, return_index=True)
    measures = paid.column("measure")
    low, high = (
        sum_by_address(paid.column("lease"), half)[1].tolist()
        for half in (measures & np.uint64(2**32 - 1), measures >> np.uint64(32))
    )
    sums = [min((above << 32) + below, MEASURE_LIMIT - 1) for below, above in zip(low, high, strict=True)]
    columns = {
        "service": Coded.constant(NAME, len(leases)),
        "lease": np.frombuffer(b"".join(leases), np.uint8).reshape(-1, 32),
        "account": paid.column("node")[first],
        "measure": sums,
    }
    return Table.from_columns(Contribution, columns, len(leases))


def orders_of(disputes: Iterable[Dispute]) -> set[bytes]:
    """The ids of the orders that these are about."""
    return {receipt.order().struct_hash() for row in disputes for receipt in (row.first, row.second)}


def _ruled(context: Context, rulings: Iterable[Ruling], work: Work) -> Table[Verdict]:
    """Of each receipt whose case ended: good, wrong, or that its referees did not agree."""
    verdicts = []
    for ruling in rulings:
        for order, node, good in ruling.receipts():
            places = _find(work, [order])
            job = work.jobs.row(int(places[0])) if len(places) else None
            reason = UNDECIDED if ruling.found is None else GOOD if good else WRONG_RESULT
            verdicts.append(
                Verdict(
                    epoch=context.epoch,
                    service=NAME,
                    kind=DISPUTE,
                    subject=order,
                    lease=job.lease if job else ZERO_HASH,
                    node=node,
                    reason=reason,
                    measure=job.measure if job and good else 0,
                )
            )
    return Table.of(Verdict, verdicts)


def _coded(reasons: Iterable[str]) -> Codes:
    return np.array([CODE[reason] for reason in reasons], np.uint8)


def _verdicts(
    context: Context,
    kind: str,
    subjects: Bytes,
    nodes: Bytes,
    codes: Codes,
    leases: Bytes | Hash = ZERO_HASH,
    measures: NDArray[np.uint64] | int = 1,
) -> Table[Verdict]:
    return Table.from_columns(
        Verdict,
        {
            "epoch": context.epoch,
            "service": Coded.constant(NAME, len(codes)),
            "kind": Coded.constant(kind, len(codes)),
            "subject": subjects,
            "lease": leases,
            "node": nodes,
            "reason": Coded(codes, ragged_of([reason.encode() for reason in REASONS])),
            "measure": np.where(codes == CODE[GOOD], measures, 0).astype("<u8"),
        },
        len(codes),
    )
