"""A service on its way: slices of it ordered one after another at one node, and at another when that one fails.

The first order starts it, each further one extends it (`node/orders_services.py`): it is paid for as it runs, a slice
at a time, and what is not used of a slice when it is stopped is not billed. One slice is always ordered ahead. While it
is healthy the account's root says where it is, under an id that stays: its URL does not change when it moves.

    up      at a node; beside it, where credits allow, a session with the next best is kept open
    down    its node refuses connections, is silent for SERVICE_PATIENCE (`jobs_orders.py`), or ended it: the next one
            is asked at once, and the old one told to stop meanwhile
    nobody  bids are asked for anew, with pauses, as often in a row as the job tries again

A process that takes the job over from another goes on with the slices that run. Invariant: at most two slices are
ordered at one time at the node where it runs, all of them within the job's purse.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from freehold.client.jobs_checks import Piece, result_of
from freehold.client.jobs_journal import OrderRow
from freehold.client.jobs_market import Market, NobodyMatches
from freehold.client.jobs_money import CapReached
from freehold.client.jobs_orders import NodeFailed, Wanted
from freehold.client.jobs_pool import NobodyLeft
from freehold.client.jobs_steps import Means, PieceFailed
from freehold.protocol.errors import FreeholdError, InsufficientCredits
from freehold.protocol.units import Address
from freehold.services.compute.ordering.checks import most_cost
from freehold.services.compute.ordering.node import ComputeNode
from freehold.services.compute.ordering.survey import Offered

AHEAD = 2  # slices: one runs, one waits
AT_HAND_SECONDS = 60  # of its work, whose credits are locked before they are needed
STEADY_SECONDS = 60.0  # at one node, after which failures before it count no more
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # before bids are asked for anew where nobody is left
_GOES_ON = ("time", "fuel", "stopped", "exited")  # ends of a slice


class ServiceRun:
    """The one piece of a step that is a service. It ends by the job's deadline, its cap, or when it is stopped.

    `survey` asks for bids; NobodyMatches where there are none.
    """

    def __init__(self, name: str, piece: Piece, means: Means, survey: Callable[[], Awaitable[Market]]) -> None:
        self.name = name
        self.piece = piece
        self.means = means
        self._survey = survey
        self._offers: list[Offered] = []
        self._failed: set[Address] = set()  # nodes, since bids were asked for
        self._failures = 0  # in a row
        self._next: asyncio.Task[ComputeNode | None] | None = None
        self._stopping: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until no further slice may be ordered. NobodyMatches; PieceFailed where it runs nowhere any more."""
        loop = asyncio.get_running_loop()
        try:
            node, rows = await self._take_up()
            if node is None:
                self._offers = list((await self._survey()).offers)
            while True:
                node = node or await self._find()
                began = loop.time()
                try:
                    self._next = asyncio.ensure_future(self._open_next(node.node))
                    await self._run_at(node, rows)
                    return
                except NodeFailed as error:
                    if not isinstance(error, _Ended) and loop.time() - began > STEADY_SECONDS:
                        self._failures = 0
                    await self._leave(node, error)
                node, rows = None, []
        finally:
            tasks = [*self._stopping, *([self._next] if self._next is not None else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _take_up(self) -> tuple[ComputeNode | None, list[OrderRow]]:
        """Where it runs already, by what the journal has of it, and the slices there; what is elsewhere is stopped."""
        rows, self.piece.open = self.piece.open, []
        if not rows:
            return None, []
        last = rows[-1]
        here = [row for row in rows if row.order.lease == last.order.lease]
        self._stop([row for row in rows if row not in here])
        try:
            node = await self.means.client.reopen(last.node, last.order.lease)
            node.amount = max(node.amount, self._reserve(node.price))
            return node, here
        except FreeholdError:
            self._stop(here)
            return None, []

    async def _run_at(self, node: ComputeNode, rows: Sequence[OrderRow]) -> None:
        """Slices at one node, the next one ordered while one runs. NodeFailed; CapReached where no more is left."""
        desk = self.means.desk
        wanted = Wanted(self.name, self.piece.row.number, self.piece.task, self.piece.most, "service")
        ahead = [asyncio.ensure_future(desk.resume(row, self.piece.task)) for row in rows]
        try:
            while True:
                while len(ahead) < AHEAD:
                    ahead.append(asyncio.ensure_future(desk.run(node, wanted)))
                try:
                    row = await ahead[0]
                    ahead.pop(0)
                except CapReached:  # what is paid for goes on to its end
                    ahead.pop(0)
                    if not ahead:
                        raise
                    row = await ahead.pop(0)
                if (ended := result_of(row).ended) not in _GOES_ON:
                    raise _Ended(f"the service ended: {ended}")
        finally:
            for one in ahead:
                one.cancel()
            await asyncio.gather(*ahead, return_exceptions=True)

    async def _leave(self, node: ComputeNode, error: NodeFailed) -> None:
        means = self.means
        orders = await means.journal.orders(means.job.id, self.name)
        self._stop([row for row in orders if row.order.lease == node.lease])  # else it would be paid for twice
        self._failed.add(node.node)
        means.evidence.failed(node.node, node.operator, int(means.clock()))
        data = {"number": 0, "node": str(node.node), "operator": str(node.operator)}
        await means.note(self.name, "failure", data | {"reason": error.reason})
        self._count_failure(error.reason)

    def _count_failure(self, reason: str) -> None:
        self._failures += 1
        if self._failures > self.means.retries:
            raise PieceFailed(f"service {self.name!r} failed {self._failures} times, at last: {reason}")

    def _stop(self, rows: Sequence[OrderRow]) -> None:
        """Tell nodes to end these, meanwhile; whoever does not answer is asked again later."""
        if rows:
            task = asyncio.create_task(self.means.desk.stop(rows))
            self._stopping.add(task)
            task.add_done_callback(self._stopping.discard)

    # The next node

    async def _find(self) -> ComputeNode:
        """A session with the best node that is left: the one that is open already, else by the bids there are, else by
        new ones. PieceFailed, InsufficientCredits."""
        pause = FIRST_PAUSE
        found = await self._next if self._next is not None else None
        if found is not None and found.node not in self._failed:
            return found
        while True:
            try:
                return await self._open(self._offers)
            except (NobodyLeft, NobodyMatches) as error:
                if self._failed:
                    self._failed.clear()
                else:  # they were asked just now
                    self._count_failure(error.message)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
                self._offers = await self._ask()

    async def _ask(self) -> list[Offered]:
        try:
            return list((await self._survey()).offers)
        except NobodyMatches:
            return []

    async def _open(self, offers: Sequence[Offered]) -> ComputeNode:
        """NobodyLeft where none of those that did not fail opens; InsufficientCredits."""
        for offered in offers:
            if offered.node in self._failed:
                continue
            ready, failures = await self.means.client.sessions([(offered, self._reserve(offered.price))])
            if ready:
                return ready[0]
            error = failures.get(offered.node)
            if isinstance(error, InsufficientCredits):
                raise error  # this client's lack, not the node's fault
            self._failed.add(offered.node)
            self.means.evidence.failed(offered.node, offered.operator, int(self.means.clock()))
        raise NobodyLeft("no node is left that could run this", have=len(offers))

    async def _open_next(self, node: Address) -> ComputeNode | None:
        """The one to go to from `node`, or none where that takes more credits than there are."""
        await asyncio.sleep(0)  # what runs comes first
        others = [offered for offered in self._offers if offered.node != node and offered.node not in self._failed]
        cost = most_cost(self.piece.most, max((offered.price for offered in others), default=0))
        if self.means.desk.free < (AHEAD + 1) * cost:
            return None
        try:
            return await self._open(others or [one for one in await self._ask() if one.node != node])
        except FreeholdError:
            return None

    def _reserve(self, price: int) -> int:
        """Credits to have at hand at a node: locking more takes a while, and what has run stays locked until it is
        settled."""
        cost = most_cost(self.piece.most, price)
        at_hand = most_cost(AT_HAND_SECONDS * 10**9 * self.piece.task.resources.processors, price)
        return max(cost, min(max(AHEAD * cost, at_hand), self.means.desk.free))


class _Ended(NodeFailed):
    """Its program ended: that it ran for long speaks for nothing."""
