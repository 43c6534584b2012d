"""A step on its way: its pieces over the nodes' slots, tried again elsewhere, checked, and accepted one by one.

    survey -> plan -> open sessions -> for each piece: order `replicas` runs at distinct operators
                                       -> decide: accept | order more | dispute -> accept

Pieces are taken by as many workers as there are seats, so that every slot has its next order waiting. Which node runs
a piece is decided when a seat is free, never before. Orders that a killed process left are taken up again first.

Invariant: a piece is accepted by a receipt that `decide` chose, or, where nothing checks it, by the first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, NamedTuple

from freehold.client.jobs_attested import Quotes, describe
from freehold.client.jobs_checks import (
    Checker,
    Piece,
    first_step,
    is_claim,
    may_try_elsewhere,
    ran_out,
    receipt_of,
    result_of,
)
from freehold.client.jobs_contents import Contents
from freehold.client.jobs_endings import explain_end
from freehold.client.jobs_journal import DONE, OPEN, WAITING, JobJournal, JobRow, OrderRow
from freehold.client.jobs_market import Market
from freehold.client.jobs_orders import Compute, Desk, NodeFailed, Wanted
from freehold.client.jobs_pool import Pool, Seat, Without
from freehold.client.jobs_quote import bound_of
from freehold.client.jobs_spec import Step
from freehold.protocol.errors import FreeholdError, Refused
from freehold.services.compute.ordering.checks import most_cost
from freehold.services.compute.ordering.survey import Offered
from freehold.services.compute.terms import HELD, PAID, UPHELD, WRONG, Receipt
from freehold.services.compute.terms import Step as WorkStep
from freehold.services.compute.verification.classes import dispute_kind
from freehold.services.compute.verification.decision import Accept, Dispute, NeedMore, confirms
from freehold.services.compute.verification.plan import Plan
from freehold.services.compute.verification.reliability import Evidence
from freehold.services.compute.verification.sampling import draw_items, receipts_hash

WORKERS_LIMIT = 512

Note = Callable[[str, str, dict[str, Any]], Awaitable[None]]  # step, kind, data


class PieceFailed(Refused):
    """A task came to nothing; `status` in the details is what its program exited with, where it did."""

    code = "task_failed"
    hint = "`freehold job logs JOB` has what it said; `freehold job why JOB` what each node answered."


class Means(NamedTuple):
    """What all steps of a job share."""

    job: JobRow
    retries: int
    journal: JobJournal
    client: Compute
    desk: Desk
    contents: Contents
    evidence: Evidence
    clock: Callable[[], float]
    note: Note
    progress: Callable[[str, int, int], None]  # step, pieces accepted, pieces


class StepRun:
    """One step of one job. `plan` is what a checked piece is held to; `sample`: how many are, drawn once all have been
    run (None: all of them; 0: none)."""

    def __init__(
        self, step: Step, pieces: Sequence[Piece], market: Market, plan: Plan, sample: int | None, means: Means,
        quotes: Quotes | None = None,
    ) -> None:  # fmt: skip
        self.step = step
        self.pieces = pieces
        self.means = means
        self.plan = plan
        self._sample = sample
        self._read_kept: dict[str, bytes] = {}
        self.checker = Checker(plan, means.evidence, means.job.secret, self._read_kept.__getitem__, quotes)
        self.pool = Pool(means.client, market.offers, self._reserve, self._not_opened)
        self._done = sum(piece.row.phase != WAITING for piece in pieces)
        self._wanted_nodes = 1

    def _reserve(self, seat: Seat) -> int:
        """Credits that a session is opened for: its seats' orders, if the job's purse has so much for each."""
        cost = max(most_cost(piece.most, seat.offered.price) for piece in self.pieces)
        return max(cost, min(cost * seat.depth, self.means.desk.free // self._wanted_nodes))

    def _not_opened(self, offered: Offered) -> None:
        self.means.evidence.failed(offered.node, offered.operator, int(self.means.clock()))

    async def run(self) -> None:
        """Until every piece is accepted. PieceFailed, NobodyLeft, CapReached; what runs then is left as it is."""
        waiting = [piece for piece in self.pieces if piece.row.phase == WAITING]
        self.means.progress(self.step.name, self._done, len(self.pieces))
        for piece in self.pieces:
            piece.checked = self._sample is None
        await self._settle_all(waiting)
        if self._sample:
            await self._check_sample(self._sample)

    def offer(self, row: OrderRow) -> None:
        """A receipt that nobody waited for any more: one more run of its piece, if that is not decided yet."""
        piece = self.pieces[row.number]
        if piece.row.phase == WAITING and row.purpose != "delivery" and is_claim(piece.task, result_of(row)):
            piece.add(row)

    async def _settle_all(self, pieces: Sequence[Piece]) -> None:
        if not pieces:
            return
        runs = len(pieces) * self.plan.replicas
        slots = 0
        for count, seat in enumerate(self.pool.seats, 1):
            slots += seat.slots
            self._wanted_nodes = count
            if slots >= runs and count >= self.plan.replicas:
                break
        await self.pool.open(self._wanted_nodes)
        depth = sum(seat.depth for seat in self.pool.seats[: self._wanted_nodes])
        left = iter(pieces)
        async with asyncio.TaskGroup() as group:
            for _ in range(min(len(pieces), max(depth, 1), WORKERS_LIMIT)):
                group.create_task(self._work(left))

    async def _work(self, left: Iterator[Piece]) -> None:
        for piece in left:
            await self._settle(piece)

    async def _settle(self, piece: Piece) -> None:
        """Order and check one piece until its result is accepted."""
        await self._resume(piece)
        while True:
            while (short := self._short(piece)) > 0:
                await self._order(piece, short)
            if not piece.checked:
                if await self._accept(piece, self.checker.voters(piece), Accept((0,), (), (), ())):
                    return
                continue
            await self._keep_for_metric(piece)
            decision = self.checker.decide(piece)
            rows = self.checker.voters(piece)
            if isinstance(decision, Accept):
                await self._dispute(piece, rows, decision.disputes)
                if await self._accept(piece, rows, decision):
                    return
            elif isinstance(decision, NeedMore):
                await self._dispute(piece, rows, decision.disputes)
                await self._order(piece, decision.more)
            else:
                await self._refer(piece, rows, decision)

    async def _resume(self, piece: Piece) -> None:
        """Orders that were sent, or about to be, when the last process ended."""
        rows, piece.open = piece.open, []
        piece.operators |= {row.operator for row in rows}
        for row in rows:
            try:
                done = await self.means.desk.resume(row, piece.task)
            except NodeFailed as error:
                piece.operators.discard(row.operator)
                piece.bad_nodes.add(row.node)
                self.means.evidence.failed(row.node, row.operator, int(self.means.clock()))
                await self._note_failure(piece, str(row.node), str(row.operator), error.reason)
                continue
            await self._consider(piece, done)

    def _short(self, piece: Piece) -> int:
        wanted = self.plan.replicas if piece.checked else 1
        return wanted - len(self.checker.voters(piece))

    async def _order(self, piece: Piece, count: int) -> None:
        """So many more runs, each at another operator, at once."""
        if count == 1:
            await self._run_once(piece)
            return
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(self._run_once(piece))

    async def _run_once(self, piece: Piece) -> None:
        """One more run with a receipt that claims something, wherever it may be had."""
        purpose = "run" if not piece.operators else "check"
        while True:
            seat = await self.pool.acquire(Without(piece.operators, piece.bad_nodes))
            operator, node = seat.offered.operator, seat.offered.node
            piece.operators.add(operator)
            failed = True
            try:
                wanted = Wanted(self.step.name, piece.row.number, piece.task, piece.most, purpose)
                row = await self.means.desk.run(seat.node, wanted)
                failed = False
            except NodeFailed as error:
                await self._node_failed(piece, seat, error)
                continue
            finally:
                self.pool.release(seat, failed=failed and seat.failed)
            self.means.evidence.answered(node, operator, int(self.means.clock()))
            if await self._consider(piece, row):
                return

    async def _node_failed(self, piece: Piece, seat: Seat, error: NodeFailed) -> None:
        operator, node = seat.offered.operator, seat.offered.node
        piece.operators.discard(operator)
        seat.failed = True
        if error.receipt is not None:
            piece.forged.append(error.receipt)
        now = int(self.means.clock())
        if error.wrong:
            self.means.evidence.invalid(node, operator, now)
        else:
            self.means.evidence.failed(node, operator, now)
        await self._note_failure(piece, str(node), str(operator), error.reason)

    async def _note_failure(self, piece: Piece, node: str, operator: str, reason: str) -> None:
        data = {"number": piece.row.number, "node": node, "operator": operator, "reason": reason}
        await self.means.note(self.step.name, "failure", data)
        piece.failures += 1
        if piece.failures > self.means.retries:
            raise PieceFailed(f"{self._name(piece)} failed {piece.failures} times, at last at {node}: {reason}")

    async def _consider(self, piece: Piece, row: OrderRow) -> bool:
        """Whether a run that is done counts. PieceFailed where no other would fare better."""
        result = result_of(row)
        is_result = is_claim(piece.task, result)
        may_grow = is_result or piece.task.executor != "wasm"  # WebAssembly's time is not what its order allows
        if may_grow and ran_out(result, row) and piece.grow():
            piece.fruitless.append(receipt_of(row))
            return False
        if is_result:
            piece.add(row)
            return await self._is_attested(piece, row)
        piece.operators.discard(row.operator)
        if not may_try_elsewhere(piece.task, result):
            raise self._failed(piece, row)
        piece.bad_nodes.add(row.node)
        piece.fruitless.append(receipt_of(row))
        self.means.evidence.failed(row.node, row.operator, int(self.means.clock()))
        await self._note_failure(piece, str(row.node), str(row.operator), f"the run ended: {result.ended}")
        return False

    async def _is_attested(self, piece: Piece, row: OrderRow) -> bool:
        """Whether a run's quote counts, where the step asks for one; its node is left alone where it does not."""
        if self.checker.quotes is None:
            return True
        found = self.checker.quotes.judge(row)
        if isinstance(found, str):
            piece.operators.discard(row.operator)
            piece.bad_nodes.add(row.node)
            self.means.evidence.failed(row.node, row.operator, int(self.means.clock()))
            await self._note_failure(piece, str(row.node), str(row.operator), found)
            return False
        who = {"number": piece.row.number, "node": str(row.node), "operator": str(row.operator)}
        await self.means.note(self.step.name, "attested", who | describe(found))
        return True

    def _failed(self, piece: Piece, row: OrderRow) -> PieceFailed:
        result = result_of(row)
        reason, hint = explain_end(row, piece.task, bound_of(self.step))
        facts: dict[str, Any] = {"ended": result.ended, "status": result.status, "order": str(row.id)}
        return PieceFailed(f"{self._name(piece)} {reason}", hint=hint, **facts)

    def _name(self, piece: Piece) -> str:
        return f"step {self.step.name!r}, task {piece.row.number} ({piece.row.item})"

    # Checks

    async def _keep_for_metric(self, piece: Piece) -> None:
        """Metrics compare contents: those that differ are fetched first."""
        rows = self.checker.voters(piece)
        if not piece.task.metric or len({receipt_of(row).output for row in rows}) < 2:
            return
        for row in rows:
            result = result_of(row)
            for file in (result.stdout, *result.files):
                if file.sha256 not in self._read_kept:
                    await self.means.desk.fetch(row, file.sha256, file.size)
                    self._read_kept[file.sha256] = await self.means.contents.read(file.sha256)

    async def _dispute(self, piece: Piece, rows: Sequence[OrderRow], pairs: Sequence[tuple[int, int]]) -> None:
        for one, other in pairs:
            first, second = rows[one], rows[other]
            if not {first.id, second.id} & piece.disputed:
                await self._open_case(piece, receipt_of(first), receipt_of(second), first_step(first, second))

    async def _dispute_fruitless(self, piece: Piece, rows: Sequence[OrderRow]) -> None:
        """What was billed for runs that came to nothing, where the work could be done within what they were for: each
        result that counts shows it of one. Of those that were cut short, silent nodes' are left alone: a machine that
        breaks down says so of its run, too, and its silence would be held against it."""
        if piece.task.executor != "wasm" or piece.task.metric:
            return  # nobody can say of it that a run came to nothing by its node's doing
        took = receipt_of(rows[0]).measure
        cut_short = [receipt for receipt in piece.fruitless if await self.means.desk.answers(receipt, piece.task)]
        billed = [one for one in [*piece.forged, *cut_short] if one.measure and took <= one.most]
        free = [receipt_of(row) for row in rows if row.id not in piece.disputed]
        for receipt in billed:
            result = next((one for one in free if one.node != receipt.node), None)
            if result is not None:
                free.remove(result)
                await self._open_case(piece, result, receipt)
        piece.fruitless.clear()
        piece.forged.clear()

    async def _open_case(self, piece: Piece, first: Receipt, second: Receipt, steps: Sequence[WorkStep] = ()) -> None:
        orders = [one.order().struct_hash() for one in (first, second)]
        piece.disputed |= set(orders)
        data = {"number": piece.row.number, "first": str(first.node), "second": str(second.node),
                "orders": [str(one) for one in orders]}  # fmt: skip
        try:
            data["case"] = str(await self.means.client.dispute(first, second, dispute_kind(piece.task), steps))
        except FreeholdError as error:
            data["error"] = error.message
        await self.means.note(self.step.name, "dispute", data)

    async def _refer(self, piece: Piece, rows: Sequence[OrderRow], decision: Dispute) -> None:
        """More runs would not settle it: wait for what referees say."""
        await self._dispute(piece, rows, decision.pairs)
        disputed = [row for row in rows if row.id in piece.disputed]
        undecided = {row.id for row in disputed}
        held: set[bytes] = set()
        while True:
            for row in disputed:
                stand = (await self.means.client.standings(row.node, [row.id])).get(row.id)
                if stand is not None and stand.stand == WRONG:
                    piece.wrong.add(row.id)
                    self.means.evidence.invalid(row.node, row.operator, int(self.means.clock()))
                    return
                if stand is not None and stand.stand == HELD:
                    held.add(row.id)
                elif stand is not None and (stand.stand == UPHELD or (stand.stand == PAID and row.id in held)):
                    undecided.discard(row.id)
            if not undecided:
                raise PieceFailed(
                    f"{self._name(piece)}: its results contradict each other, and no referee could say which is wrong",
                    hint="Is the program the same at every run? `freehold job why JOB` shows each result.",
                )
            await asyncio.sleep(self.means.desk.epoch_seconds)

    async def _accept(self, piece: Piece, rows: Sequence[OrderRow], decision: Accept) -> bool:
        """Write down what counts, and what is known of its nodes now. False where it must be ordered anew."""
        chosen, now = rows[decision.votes[0]], int(self.means.clock())
        result = result_of(chosen)
        if ran_out(result, chosen) and piece.grow():
            return False
        evidence = self.means.evidence
        if confirms(self.plan, (rows[at].operator for at in decision.votes)):
            for at in decision.votes:
                evidence.valid(rows[at].node, rows[at].operator, now)
        for at in decision.against:
            evidence.invalid(rows[at].node, rows[at].operator, now)
            data = {"number": piece.row.number, "node": str(rows[at].node), "operator": str(rows[at].operator)}
            await self.means.note(self.step.name, "wrong", data)
        await self._dispute_fruitless(piece, [rows[at] for at in decision.votes])
        if (result.ended, result.status) != ("exited", 0):
            reason, _ = explain_end(chosen, piece.task, bound_of(self.step))
            await self.means.journal.end_piece(self.means.job.id, self.step.name, piece.row.number, None, reason)
            raise self._failed(piece, chosen)
        await self.means.journal.end_piece(self.means.job.id, self.step.name, piece.row.number, chosen.id)
        if piece.row.phase == WAITING:
            self._done += 1
        piece.row = piece.row._replace(phase="accepted", accepted=chosen.id)
        self.means.progress(self.step.name, self._done, len(self.pieces))
        return True

    async def _check_sample(self, count: int) -> None:
        """Check `count` pieces, drawn from all receipts; where an operator is caught, all that it has run."""
        accepted = {piece.row.number: self._accepted(piece) for piece in self.pieces}
        hashes = receipts_hash([receipt_of(row).struct_hash() for row in accepted.values()])
        drawn = draw_items(self.means.job.secret, hashes, len(self.pieces), min(count, len(self.pieces)))
        to_check = {at: self.pieces[at] for at in drawn}
        checked = set[int]()
        while fresh := [piece for at, piece in sorted(to_check.items()) if at not in checked]:
            for piece in fresh:
                piece.checked = True
            await self._settle_all(fresh)
            checked |= {piece.row.number for piece in fresh}
            caught = {
                row.operator for piece in fresh for row in piece.runs
                if receipt_of(row).output != receipt_of(self._accepted(piece)).output
            }  # fmt: skip
            to_check |= {number: self.pieces[number] for number, row in accepted.items() if row.operator in caught}

    def _accepted(self, piece: Piece) -> OrderRow:
        return next(row for row in piece.runs if row.id == piece.row.accepted)


def load_piece(piece: Piece, rows: Sequence[OrderRow]) -> None:
    """Give a piece what the journal has of its orders."""
    mine = [row for row in rows if row.purpose != "delivery"]
    # What was learned since does not count: runs of one piece are for one measure, or they could not be compared.
    piece.most = max((row.order.most for row in mine if row.phase in (DONE, OPEN)), default=piece.most)
    for row in sorted((row for row in mine if row.phase == DONE), key=lambda row: row.finished):
        if is_claim(piece.task, result_of(row)):
            piece.add(row)
    piece.failures = sum(row.phase not in (DONE, OPEN) for row in mine)
    piece.open = [row for row in mine if row.phase == OPEN]
