"""Compute's rules in plain loops over messages: what `score.py`, `court.py` and `proof.py` are compared with."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec

from freehold.protocol.keys import is_signed_by
from freehold.protocol.merkle import verify_row
from freehold.protocol.messages import STREAM
from freehold.protocol.service import Context, Rows
from freehold.protocol.typed import keccak
from freehold.protocol.units import ZERO_ADDRESS, ZERO_HASH, Address, Hash
from freehold.protocol.verdicts import (
    GOOD,
    KNOWN,
    SILENT,
    SLEPT,
    SUPERSEDED,
    UNKNOWN_LEASE,
    UNOBLIGED,
    WRONG_EPOCH,
    WRONG_MODE,
    WRONG_SIGNATURE,
    Contribution,
    Slash,
    Verdict,
)
from freehold.services.compute import terms
from freehold.services.compute.terms import (
    CASE,
    CROWDED,
    DISPUTE,
    DISPUTED,
    EARLY,
    EXACT,
    HELD,
    JOB,
    KEPT_EPOCHS,
    LATE,
    NAME,
    NEAR,
    NO_CONTRADICTION,
    OPINION,
    OVER_ORDER,
    PAID,
    RECEIPT,
    REFEREES,
    ROUNDS,
    SEAT,
    SEATS_AT_ONCE,
    UNDECIDED,
    UNFOUNDED,
    UNORDERED,
    UPHELD,
    WAITING,
    WRONG,
    WRONG_RESULT,
    Dispute,
    Opinion,
    Receipt,
    Step,
    WorkState,
    claim_of,
)
from tests.services.compute_world import job_of, ordered


def by_role(context: Context, role: int) -> list[WorkState]:
    return [row for row in ordered(list(context.state)) if row.role == role]


def lease_of_receipt(row: Receipt, context: Context) -> Any:
    """Open or ended: what was ordered before its end is paid."""
    return context.leases.get(row.lease) or context.ended.get(row.lease)


def judge_terms(row: Receipt, job: WorkState | None, context: Context) -> str:
    """A receipt for an order that the state has was good once: only its node may have changed."""
    if job is not None:
        return GOOD if job.node == row.node else UNORDERED
    lease = lease_of_receipt(row, context)
    if lease is None:
        return UNKNOWN_LEASE
    if lease.mode != STREAM:
        return WRONG_MODE
    if row.node != lease.node:
        return UNORDERED
    if row.measure > row.most or row.measure >= 2**63:
        return OVER_ORDER
    if row.until < context.epoch:
        return LATE
    return EARLY if row.until > context.epoch + KEPT_EPOCHS else GOOD


def client_of(row: Receipt, job: WorkState | None, context: Context) -> Address:
    return job.first if job is not None else lease_of_receipt(row, context).client


def judge_signatures(row: Receipt, client: Address, context: Context) -> str:
    if not is_signed_by(row.order(), row.client_signature, client, context.domain):
        return UNORDERED
    return GOOD if is_signed_by(row, row.node_signature, row.node, context.domain) else WRONG_SIGNATURE


def judge_receipts(rows: Sequence[Receipt], context: Context) -> list[str]:
    jobs = {row.id for row in by_role(context, JOB)}
    reasons = []
    for row in rows:
        reason = KNOWN if row.order().struct_hash() in jobs else judge_terms(row, None, context)
        if reason == GOOD:
            reason = judge_signatures(row, client_of(row, None, context), context)
        reasons.append(reason)
    good = [row for row, reason in zip(rows, reasons, strict=True) if reason == GOOD]
    for i, row in enumerate(rows):
        rivals = [(r.measure, r.row_hash()) for r in good if r.order().struct_hash() == row.order().struct_hash()]
        if reasons[i] == GOOD and (row.measure, row.row_hash()) != min(rivals):
            reasons[i] = SUPERSEDED
    return reasons


def holds(root: Hash, step: Step, index: int, leaf: Hash, path: bytes) -> bool:
    siblings = [path[i : i + 32] for i in range(0, len(path), 32)]
    return len(path) <= 32 * 32 and verify_row(root, step.count, index, leaf, siblings)


def contradicts(row: Dispute) -> bool:
    first, second = row.first, row.second
    if first.node == second.node or first.task != second.task:
        return False
    if row.kind not in (EXACT, NEAR) or len(row.steps) > 1:
        return False
    if not row.steps and row.kind == EXACT:
        if min(first.most, second.most) < max(min(one.measure, one.most) for one in (first, second)):
            return False
        return (first.input, first.output, first.measure) != (second.input, second.output, second.measure)
    if first.input != second.input:
        return False
    if not row.steps:
        return first.output != second.output
    (step,) = row.steps
    if row.kind != EXACT or step.first == step.second:
        return False
    sides = [(first, step.first, step.first_path, step.first_before)]
    sides.append((second, step.second, step.second_path, step.second_before))
    for receipt, leaf, path, before in sides:
        if not holds(receipt.steps, step, step.index, leaf, path):
            return False
        if step.index == 0 and (before or step.before != receipt.input):
            return False
        if step.index > 0 and not holds(receipt.steps, step, step.index - 1, step.before, before):
            return False
    return True


def judge_disputes(rows: Sequence[Dispute], context: Context) -> list[str]:
    jobs = {row.id: row for row in by_role(context, JOB)}
    taken = {row.id for row in jobs.values() if row.stand in (HELD, WRONG, UPHELD)}
    taken |= {order for row in by_role(context, CASE) for order in (row.first_order, row.second_order)}
    reasons = [judge_dispute(row, jobs, context) for row in rows]
    counted: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: (rows[i].case(), rows[i].row_hash())):
        orders = {r.order().struct_hash() for r in (rows[i].first, rows[i].second)}
        if reasons[i] == GOOD and orders & taken:
            reasons[i] = DISPUTED
        open_cases = sum(row.node == rows[i].client for row in by_role(context, CASE))
        opened = sum(rows[j].client == rows[i].client for j in counted)
        if reasons[i] == GOOD and open_cases + opened >= terms.CASES_AT_ONCE:
            reasons[i] = CROWDED
        if reasons[i] == GOOD:
            counted.append(i)
            taken |= orders
    return reasons


def judge_dispute(row: Dispute, jobs: dict[Hash, WorkState], context: Context) -> str:
    pairs = [(receipt, jobs.get(receipt.order().struct_hash())) for receipt in (row.first, row.second)]
    if not contradicts(msgspec.structs.replace(row, steps=())) and not row.steps:
        return NO_CONTRADICTION
    if row.steps and not contradicts_but_for_paths(row):
        return NO_CONTRADICTION
    for receipt, job in pairs:
        reason = judge_terms(receipt, job, context)
        if reason != GOOD:
            return reason
    if any(client_of(receipt, job, context) != row.client for receipt, job in pairs):
        return UNORDERED
    for receipt, _ in pairs:
        reason = judge_signatures(receipt, row.client, context)
        if reason != GOOD:
            return reason
    return GOOD if contradicts(row) else NO_CONTRADICTION


def contradicts_but_for_paths(row: Dispute) -> bool:
    first, second = row.first, row.second
    same = first.node != second.node and first.task == second.task and first.input == second.input
    return same and row.kind == EXACT and len(row.steps) == 1


def judge_opinion(row: Opinion, seats: dict[tuple[Hash, Address], WorkState], context: Context) -> str:
    if row.epoch != context.epoch:
        return WRONG_EPOCH
    if (row.case, row.node) not in seats:
        return UNOBLIGED
    seat = seats[row.case, row.node]
    if row.good > 15 or (row.good & 1 and row.good & 4) or (row.good & 2 and row.good & 8):
        return UNFOUNDED
    if seat.kind == EXACT and row.good != 3:
        says_first, says_second = bool(row.good & 1), bool(row.good & 2)
        if says_first != (row.output == seat.first_output) or says_second != (row.output == seat.second_output):
            return UNFOUNDED
    return GOOD


class Court:
    """What an epoch does to cases."""

    def __init__(self, opinions: Sequence[Opinion], context: Context) -> None:
        self.context = context
        self.cases: list[WorkState] = []
        self.seats: list[WorkState] = []
        self.rulings: list[tuple[WorkState, dict[int, bool], set[Address], Any]] = []
        seats = {(row.id, row.node): row for row in by_role(context, SEAT)}
        self.said = [judge_opinion(row, seats, context) for row in opinions]
        self.answers: dict[tuple[Hash, Address], str] = {}
        votes: dict[tuple[Hash, Address], Opinion] = {}
        for row in sorted(opinions, key=lambda row: row.row_hash()):
            if judge_opinion(row, seats, context) == GOOD:
                votes.setdefault((row.case, row.node), row)
        for i, row in enumerate(opinions):
            if self.said[i] == GOOD and votes[row.case, row.node] is not row:
                self.said[i] = SUPERSEDED
        waiting = []
        for case in by_role(context, CASE):
            own = [seat for seat in seats.values() if seat.id == case.id]
            if own:
                self.hear(case, own, [votes[s.id, s.node] for s in own if (s.id, s.node) in votes])
            else:
                waiting.append(case)
        self.answers = dict.fromkeys(votes, GOOD)
        found = {case.id: what for case, _, _, what in self.rulings}
        for i, row in enumerate(opinions):
            what = found.get(row.case)
            if self.said[i] == GOOD and what is not None and row.good != 3 and what[0] != 3:
                other = row.good % 4 != what[0] or (seats[row.case, row.node].kind == EXACT and row.output != what[1])
                if other:
                    self.said[i] = self.answers[row.case, row.node] = WRONG_RESULT
        seated = [case.node for case in self.cases if case.id in {seat.id for seat in self.seats}]
        waiting.sort(key=lambda row: (row.epoch, row.id))
        turns = [
            (seated.count(case.node) + [one.node for one in waiting[:i]].count(case.node), case.epoch, case.id)
            for i, case in enumerate(waiting)
        ]
        for _, case in sorted(zip(turns, waiting, strict=True), key=lambda one: one[0]):
            self.seat(case)

    def hear(self, case: WorkState, seats: list[WorkState], votes: list[Opinion]) -> None:
        over = len(votes) == len(seats) or self.context.epoch >= seats[0].until
        for good in range(4):
            alike = [vote for vote in votes if vote.good % 4 == good]
            outputs = Counter(vote.output for vote in alike) if case.kind == EXACT and good != 3 else {None: len(alike)}
            for output, count in outputs.items():
                if 2 * count <= REFEREES:
                    continue
                paid = {1: bool(good & 1), 2: bool(good & 2)}
                nodes, slashed, is_open = {1: case.first, 2: case.second}, set(), False
                for bit, node in nodes.items():
                    agreed = [vote for vote in alike if output in (None, vote.output) and not paid[bit]]
                    against = [vote for vote in agreed if not vote.good & 4 * bit]
                    needed = 2 if case.kind == EXACT else 3
                    if len(against) >= needed:
                        slashed.add(node)
                    elif len(against) + len(seats) - len(votes) >= needed:
                        is_open = True
                if over or not is_open:
                    self.rulings.append((case, paid, slashed, (good, output)))
                    return
        if over:
            self.next_round(case)
        else:
            self.cases.append(case)
            self.seats += seats

    def next_round(self, case: WorkState) -> None:
        if case.round >= ROUNDS:
            self.rulings.append((case, {1: True, 2: True}, set(), None))
        else:
            self.cases.append(case)

    def seat(self, case: WorkState) -> None:
        context = self.context
        operators = {row.node: row.operator for row in context.nodes}
        accused = {case.first, case.second}
        theirs = {operators[node] for node in accused if node in operators} | accused
        working = {lease.node for lease in context.leases.values()}
        bonded = [row for row in context.nodes if row.bond >= context.parameters.minimum_bond and row.node in working]
        drawn: list[Address] = []
        used: set[Address] = set()
        for row in sorted(bonded, key=lambda r: keccak(context.beacon + case.id + case.round.to_bytes(4) + r.node)):
            if row.node in theirs or row.operator in theirs or case.node in (row.node, row.operator):
                continue
            if row.operator not in used and len(drawn) < 3:
                used.add(row.operator)
                drawn.append(row.node)
        tried = msgspec.structs.replace(case, round=case.round + 1)
        bearable = max(1, SEATS_AT_ONCE * len({row.operator for row in bonded}) // 3)
        sitting = {seat.id for seat in self.seats}
        own = [one for one in self.cases if one.id in sitting and one.node == case.node]
        if bearable - len(sitting) <= len(own):
            self.cases.append(case)
            return
        if len(drawn) < 2:
            self.next_round(tried)
            return
        self.cases.append(tried)
        seconds = context.parameters.epoch_length
        until = context.epoch + min(KEPT_EPOCHS, 2 + 2 * case.measure // (seconds * 10**9))
        for node in drawn:
            seat = msgspec.structs.replace(tried, role=SEAT, node=node, epoch=context.epoch, until=until)
            self.seats.append(seat)


def verdict(
    context: Context, kind: str, subject: Hash, lease: Hash, node: Address, reason: str, measure: int
) -> Verdict:
    return Verdict(
        epoch=context.epoch,
        service=NAME,
        kind=kind,
        subject=subject,
        lease=lease,
        node=node,
        reason=reason,
        measure=measure if reason == GOOD else 0,
    )


def judge(obligations: Sequence[Any], rows: Rows, context: Context) -> list[Verdict]:
    seats, opinions = by_role(context, SEAT), list(rows[OPINION])
    court = Court(opinions, context)
    silent = [seat for seat in seats if (seat.id, seat.node) not in court.answers]
    silence = SLEPT if 3 * len(silent) > len(seats) else SILENT
    said = []
    for owed, seat in zip(obligations, seats, strict=True):
        reason = court.answers.get((seat.id, seat.node), silence)
        said.append(verdict(context, OPINION, owed.row_hash(), ZERO_HASH, seat.node, reason, 1))
    jobs = {row.id: row for row in by_role(context, JOB)}
    for case, paid, _, found in court.rulings:
        for bit, order, node in ((1, case.first_order, case.first), (2, case.second_order, case.second)):
            job = jobs.get(order)
            reason = UNDECIDED if found is None else GOOD if paid[bit] else WRONG_RESULT
            lease, measure = (job.lease, job.measure) if job else (ZERO_HASH, 0)
            one = verdict(context, DISPUTE, order, lease, node, GOOD, measure if paid[bit] else 0)
            said.append(msgspec.structs.replace(one, reason=reason))
    for opinion, reason in zip(opinions, court.said, strict=True):
        said.append(verdict(context, OPINION, opinion.row_hash(), ZERO_HASH, opinion.node, reason, 1))
    for receipt, reason in zip(rows[RECEIPT], judge_receipts(list(rows[RECEIPT]), context), strict=True):
        one = (receipt.row_hash(), receipt.lease, receipt.node, reason, receipt.measure)
        said.append(verdict(context, RECEIPT, *one))
    for dispute, reason in zip(rows[DISPUTE], judge_disputes(list(rows[DISPUTE]), context), strict=True):
        said.append(verdict(context, DISPUTE, dispute.row_hash(), ZERO_HASH, dispute.client, reason, 1))
    return said


def fold(
    rows: Rows, verdicts: Sequence[Verdict], context: Context
) -> tuple[list[WorkState], list[Contribution], list[Slash]]:
    court = Court(list(rows[OPINION]), context)
    good = {v.subject for v in verdicts if v.reason == GOOD}
    opened = [row for row in rows[DISPUTE] if row.row_hash() in good]
    receipts = [row for row in rows[RECEIPT] if row.row_hash() in good]
    held = {receipt.order().struct_hash() for row in opened for receipt in (row.first, row.second)}
    jobs = {row.id: row for row in by_role(context, JOB)}
    sums: defaultdict[tuple[Hash, Address], int] = defaultdict(int)

    def stand(order: Hash, value: int) -> None:
        jobs[order] = msgspec.structs.replace(jobs[order], stand=value)

    def pay(job: WorkState) -> None:
        sums[job.lease, job.node] += job.measure

    for job in list(jobs.values()):
        if job.stand == WAITING and job.id in held:
            stand(job.id, HELD)
        elif job.stand == WAITING:
            pay(job)
            stand(job.id, PAID)
    slashes = []
    for case, paid, slashed, _ in court.rulings:
        for bit, order in ((1, case.first_order), (2, case.second_order)):
            if order in jobs:
                if paid[bit] and jobs[order].stand == HELD:
                    pay(jobs[order])
                stand(order, UPHELD if paid[bit] else WRONG)
        slashes += [
            Slash(service=NAME, node=n, operator=ZERO_ADDRESS, subject=case.id, harmed=case.node, amount=0)
            for n in (case.first, case.second)
            if n in slashed
        ]
    kept = [row for row in jobs.values() if row.until > context.epoch or row.stand in (WAITING, HELD)]
    fresh: dict[Hash, Receipt] = {}
    for receipt in [*receipts, *(receipt for row in opened for receipt in (row.first, row.second))]:
        order = receipt.order().struct_hash()
        if order not in jobs:
            best = fresh.get(order, receipt)
            fresh[order] = min(best, receipt, key=lambda r: (r.measure, r.row_hash()))
    for order, receipt in fresh.items():
        job = job_of(receipt, HELD if order in held else WAITING, epoch=context.epoch)
        kept.append(msgspec.structs.replace(job, first=lease_of_receipt(receipt, context).client))
    cases = [*court.cases, *(opened_case(row, context.epoch) for row in opened)]
    contributions = [
        Contribution(service=NAME, lease=lease, account=node, measure=min(measure, 2**63 - 1))
        for (lease, node), measure in sorted(sums.items())
    ]
    return ordered([*kept, *cases, *court.seats]), contributions, slashes


def opened_case(row: Dispute, epoch: int) -> WorkState:
    outputs, start = (row.first.output, row.second.output), row.first.input
    if row.first.input != row.second.input:
        start = ZERO_HASH
    if row.kind == EXACT:
        first, second = [claim_of(one.input, one.output, one.measure) for one in (row.first, row.second)]
        outputs = first, second
    if row.steps:
        outputs, start = (row.steps[0].first, row.steps[0].second), row.steps[0].before
    return WorkState(
        role=CASE,
        id=row.case(),
        node=row.client,
        lease=ZERO_HASH,
        task=row.first.task,
        input=start,
        first=row.first.node,
        second=row.second.node,
        first_output=outputs[0],
        second_output=outputs[1],
        first_order=row.first.order().struct_hash(),
        second_order=row.second.order().struct_hash(),
        step=row.steps[0].index + 1 if row.steps else 0,
        kind=row.kind,
        measure=max(row.first.measure, row.second.measure),
        epoch=epoch,
        until=max(row.first.until, row.second.until),
        round=0,
        stand=HELD,
    )
