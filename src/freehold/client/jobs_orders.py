"""One order from its signature to its receipt, whatever happens to this process or to its node in between.

    hold credits -> sign -> write down -> send -> wait -> write down the receipt and what came with it -> settle

A node that does not answer is asked again with the same order for a while, then given up: the order is `lost`, and goes
on counting in full (who has it signed can show a receipt for it until its last epoch is over). It is asked for again in
the background: a receipt that is there by then is taken, work that still runs is stopped.

Invariants: nothing is sent that is not in the journal; the purse holds what an order may cost from before it is signed
until its receipt is written down.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from freehold.client.jobs_contents import Contents
from freehold.client.jobs_journal import DONE, EXPIRED, OPEN, JobJournal, JobRow, OrderRow
from freehold.client.jobs_money import Held, Purse
from freehold.client.jobs_pieces import blobs_of
from freehold.client.jobs_pool import Opens
from freehold.protocol.errors import FreeholdError, InsufficientCredits, NotFound, Overloaded, Refused, Unavailable
from freehold.protocol.units import Address, Hash
from freehold.services.compute.ordering.checks import Standing, WrongReceipt, most_cost
from freehold.services.compute.ordering.node import ComputeNode
from freehold.services.compute.ordering.survey import Found
from freehold.services.compute.tasks import Task
from freehold.services.compute.terms import WRONG, Receipt, Step

WAIT = 30.0  # seconds of one long poll
SERVICE_WAIT = 1.0  # of a service, whose health changes while it runs
START_PAUSE = 0.1  # between looks at one that is not healthy yet
LEAST_PAUSE = 0.25  # between looks at any, however soon its node answers
SERVICE_PATIENCE = 4.0  # without an answer of its node, after which a service is started elsewhere
PATIENCE = 20.0  # seconds without an answer, after which a node is given up
PAUSES = (0.2, 0.5, 1.0, 2.0, 4.0)  # seconds between two tries
LOST_PAUSES = (5.0, 10.0, 20.0, 40.0, 60.0)  # before a lost order is asked for again
LATEST = 4  # epochs beyond its deadline: what `ComputeClient.until` adds and takes off for late reports


class Compute(Opens, Protocol):
    """A compute client (`services/compute/client.py`), as jobs use it."""

    async def survey(self, request: Any) -> Found: ...

    async def reopen(self, node: Address, lease: Hash) -> ComputeNode: ...

    async def until(self, seconds: float) -> int: ...

    async def dispute(self, first: Receipt, second: Receipt, kind: int, steps: Sequence[Step] = ()) -> Hash: ...

    async def standings(self, node: Address, jobs: Any) -> Mapping[Hash, Any]: ...


class NodeFailed(Exception):
    """An order came to nothing at its node; `reason` says why. `wrong`: it showed what no honest node shows; `receipt`:
    what it has signed all the same, and will be paid for unless it is disputed."""

    def __init__(self, reason: str, *, wrong: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wrong = wrong
        self.receipt: Receipt | None = None


class Wanted(NamedTuple):
    """What is to be ordered: a piece's task, its largest measure, and what for (run, audit, delivery)."""

    step: str
    number: int
    task: Task
    most: int
    purpose: str


class Desk:
    """The orders of one job. `access` makes what a task reads and writes objects by; `on_standing` hears of
    progress."""

    def __init__(
        self,
        job: JobRow,
        journal: JobJournal,
        client: Compute,
        purse: Purse,
        contents: Contents,
        access: Callable[[Task], Mapping[str, Any] | None],
        clock: Callable[[], float],
        on_standing: Callable[[str, OrderRow, Standing], Awaitable[None]],
        epoch_seconds: float,
        patience: float = PATIENCE,
    ) -> None:
        self._job = job
        self._journal = journal
        self._client = client
        self._purse = purse
        self._contents = contents
        self._access = access
        self._clock = clock
        self._on_standing = on_standing
        self.epoch_seconds = epoch_seconds
        self._patience = patience
        self._held: dict[Hash, Held] = {}
        self._nodes: dict[Hash, ComputeNode] = {}  # by lease
        self._billed: dict[Hash, int] = {}  # of lost orders: what the state has receipts for, by their ids

    @property
    def free(self) -> int:
        """Credits that new orders of the job may come to."""
        return self._purse.free

    def load(self, rows: Sequence[OrderRow]) -> None:
        """What the journal has of this job: the purse is as it was."""
        for row in rows:
            held = self._purse.hold(row.cost)
            if row.phase in (DONE, EXPIRED):
                self._purse.settle(held, row.cost)
            else:
                self._held[row.id] = held
                held.silent = row.phase != OPEN

    async def run(self, node: ComputeNode, wanted: Wanted) -> OrderRow:
        """Order, and wait for the receipt. NodeFailed; CapReached and Refused before anything is sent."""
        if wanted.task.service is None and self._clock() >= self._job.deadline:
            raise Refused("its deadline passed before it was done")
        cost = most_cost(wanted.most, node.price)
        until = await self._client.until(max(0.0, self._job.deadline - self._clock()))
        held = await self._purse.take(cost)
        order = node.order(wanted.task, wanted.most, until)
        row = OrderRow(
            order.struct_hash(), self._job.id, wanted.step, wanted.number, node.node, node.operator, node.price, cost,
            wanted.purpose, order, OPEN, int(self._clock()), 0, None, None, (), "",
        )  # fmt: skip
        try:
            await self._journal.add_order(row)
        except BaseException:
            self._purse.settle(held, 0)  # it was not sent, and never will be
            raise
        self._held[row.id] = held
        return await self._carry(node, row, wanted.task, is_known=False)

    async def resume(self, row: OrderRow, task: Task) -> OrderRow:
        """Take an open order up again at its node, which may or may not have seen it. NodeFailed."""
        try:
            node = await self._client.reopen(row.node, row.order.lease)
        except FreeholdError as error:
            raise await self._lose(row, error.message) from None
        return await self._carry(node, row, task, is_known=False)

    async def _carry(self, node: ComputeNode, row: OrderRow, task: Task, *, is_known: bool) -> OrderRow:
        """Send the order until its node knows it, then wait until it is over."""
        self._nodes[row.order.lease] = node
        loop = asyncio.get_running_loop()
        tries, silent_since, is_up = 0, 0.0, False
        try:
            while True:
                asked = loop.time()
                try:
                    standing = await self._ask(node, row, task, is_known=is_known, is_up=is_up)
                except (Unavailable, Overloaded) as error:
                    silent_since = silent_since or (loop.time() if task.service is None else asked)
                    if _is_gone(error, task, tries) or loop.time() - silent_since > self._patience_with(task):
                        raise await self._lose(row, error.message) from None
                    await asyncio.sleep(PAUSES[min(tries, len(PAUSES) - 1)])
                    tries += 1
                    continue
                is_known, tries, silent_since = True, 0, 0.0
                if standing.is_over:
                    return await self._take(row, standing, task)
                await self._on_standing(node.leases.endpoint, row, standing)
                if task.service is not None:
                    is_up = standing.service is not None and bool(standing.service.get("healthy"))
                # A node that answers before there is anything to say does not set the pace.
                pause = START_PAUSE if task.service is not None and not is_up else LEAST_PAUSE
                await asyncio.sleep(max(0.0, pause if not is_up else asked + pause - loop.time()))
        except InsufficientCredits as error:
            await self._lose(row, error.message)
            raise
        except WrongReceipt as error:
            failed = await self._lose(row, error.message, wrong=True)
            shown = error.details.get("receipt")
            failed.receipt = Receipt.from_json(shown) if shown is not None else None
            raise failed from None
        except FreeholdError as error:
            raise await self._lose(row, error.message) from None

    def _patience_with(self, task: Task) -> float:
        return self._patience if task.service is None else min(self._patience, SERVICE_PATIENCE)

    async def _ask(self, node: ComputeNode, row: OrderRow, task: Task, *, is_known: bool, is_up: bool) -> Standing:
        if is_known and task.service is None:
            return await node.wait(row.id, WAIT, task)
        if is_known:
            wait = SERVICE_WAIT if is_up else 0.0
            try:
                async with asyncio.timeout(wait + self._patience_with(task)):
                    return await node.wait(row.id, wait, task)
            except TimeoutError:
                raise Unavailable(f"{row.node} did not answer in time") from None
        wait = WAIT if task.service is None else 0.0
        blobs = {sha256: found for sha256 in blobs_of(task) if (found := await self._contents.find(sha256)) is not None}
        return await node.submit(row.order, task, blobs, self._access(task), wait)

    async def _take(self, row: OrderRow, standing: Standing, task: Task) -> OrderRow:
        """Its receipt is here: written down with what came along, and then settled."""
        receipt = standing.receipt
        if receipt is None or standing.result is None:
            raise await self._lose(row, standing.reason or "it gave up without a receipt")
        if receipt.order().struct_hash() != row.id or receipt.measure > row.order.most:
            raise await self._lose(
                row, "it shows a receipt for another order, or for more than was ordered", wrong=True
            )
        cost, now = most_cost(receipt.measure, row.price), int(self._clock())
        states = tuple(state.hex() for state in standing.steps)
        await self._journal.end_order(
            row.id, DONE, now, cost=cost, receipt=receipt, result=standing.result, states=states, blobs=standing.inline,
            program=program_of(task), reason=standing.reason, quote=standing.quote,
        )  # fmt: skip
        if (held := self._held.pop(row.id, None)) is not None:
            self._purse.settle(held, cost)
        return row._replace(
            phase=DONE, finished=now, cost=cost, receipt=receipt, result=standing.result, states=states,
            reason=standing.reason, quote=standing.quote,
        )  # fmt: skip

    async def _lose(self, row: OrderRow, reason: str, *, wrong: bool = False) -> NodeFailed:
        await self._journal.mark_lost(row.id, reason)
        if (held := self._held.get(row.id)) is not None:
            self._purse.linger(held)
        return NodeFailed(reason, wrong=wrong)

    async def stop_all(self) -> None:
        """End what runs; what it took is billed. Who does not answer is asked again later."""
        await self.stop(await self._journal.orders(self._job.id))

    async def stop(self, rows: Sequence[OrderRow]) -> None:
        """The same of these orders, where they are open."""
        await asyncio.gather(*(self._stop(row) for row in rows if row.phase == OPEN))

    async def _stop(self, row: OrderRow) -> None:
        try:
            node = self._nodes.get(row.order.lease) or await self._client.reopen(row.node, row.order.lease)
            standing = await node.stop(row.id)
            if standing.is_over and standing.receipt is not None and await self._settle(row, standing):
                return
        except FreeholdError as error:
            await self._lose(row, error.message)
            return
        await self._lose(row, "it was told to stop, and has not shown a receipt yet")

    async def _settle(self, row: OrderRow, standing: Standing) -> OrderRow | None:
        assert standing.receipt is not None
        cost = most_cost(standing.receipt.measure, row.price)
        if standing.receipt.measure > row.order.most:
            return None
        now = int(self._clock())
        await self._journal.end_order(
            row.id, DONE, now, cost=cost, receipt=standing.receipt, result=standing.result, blobs=standing.inline,
            states=[state.hex() for state in standing.steps], quote=standing.quote,
        )  # fmt: skip
        if (held := self._held.pop(row.id, None)) is not None:
            self._purse.settle(held, cost)
        return row._replace(
            phase=DONE, finished=now, cost=cost, receipt=standing.receipt, result=standing.result, quote=standing.quote
        )

    async def look_after(self, row: OrderRow) -> OrderRow | None:
        """One look at a lost order: its receipt, if there is one by now; work that still runs is stopped.

        None while nothing is known, and for good once its last epoch is over. A node may have shown its receipt to the
        members and not here: then it counts what it was paid for.
        """
        with suppress(FreeholdError):
            node = await self._client.reopen(row.node, row.order.lease)
            with suppress(NotFound):
                standing = await node.stop(row.id)
                if standing.is_over and standing.receipt is not None:
                    return await self._settle(row, standing)
        with suppress(FreeholdError):
            stand = (await self._client.standings(row.node, [row.id])).get(row.id)
            if stand is not None:
                measure = 0 if stand.stand == WRONG else min(stand.measure, row.order.most)
                self._billed[row.id] = most_cost(measure, row.price)
            if await self._client.until(0) - LATEST > row.order.until:
                cost = self._billed.pop(row.id, 0)
                await self._journal.end_order(row.id, EXPIRED, int(self._clock()), cost=cost, reason=row.reason)
                if (held := self._held.pop(row.id, None)) is not None:
                    self._purse.settle(held, cost)
        return None

    async def answers(self, receipt: Receipt, task: Task) -> bool:
        """Whether the node of a receipt is there, whatever it says."""
        try:
            node = self._nodes.get(receipt.lease) or await self._client.reopen(receipt.node, receipt.lease)
            await node.wait(receipt.order().struct_hash(), 0.0, task)
        except FreeholdError as error:
            return not isinstance(error, Unavailable | Overloaded)
        return True

    async def fetch(self, row: OrderRow, sha256: str, size: int) -> bytes | Path:
        """What came out of a job, on this machine. NotFound, Unavailable, Corrupt."""
        found = await self._contents.find(sha256)
        if found is not None:
            return found
        node = await self._client.reopen(row.node, row.order.lease)
        if size <= 64 * 2**10:
            data = await node.fetch(row.id, sha256)
            await self._contents.add(data)
            return data
        path = self._contents.place(sha256)
        await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True, mode=0o700)
        await node.fetch_to(row.id, sha256, path, size)
        await self._contents.kept(sha256)
        return path


def _is_gone(error: FreeholdError, task: Task, tries: int) -> bool:
    """Whether a service's node is no more: nothing listens where it answered, asked twice."""
    return task.service is not None and tries > 0 and bool(error.details.get("refused"))


def program_of(task: Task) -> str:
    """What receipts are remembered by: the program, and nothing of its inputs."""
    if task.program is not None:
        return task.program.sha256
    return task.image or (task.arguments[0] if task.arguments else "")
