"""Who runs next, at one node.

    waiting -> ready -> running -> resting       add, `start` is called -> begin -> rest -> release

An order is made ready before there is a slot for it: what it needs is fetched and the box that it runs in is set up, so
that it begins in the moment in which another one's program ends. As many as `ahead` are ready, beside those that a free
slot waits for. Resting is what an order does whose program has ended: it needs its memory a little longer, no slot.

Clients take turns, whatever they have ordered; what one of them ordered first is made ready first. What is ready runs
when there are slots and memory for it, and nobody overtakes one that waits for room: so a large order is not starved by
small ones. Invariant: no program runs but of an order that `begin` has returned for and that has not ended since.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable

from freehold.protocol.errors import Overloaded
from freehold.protocol.units import Address, Hash
from freehold.services.compute.node.orders import RUNNING
from freehold.services.compute.node.orders_live import Job
from freehold.services.compute.tasks import memory_of

LATECOMERS = 4  # times the places that orders have for getting ready, where those who have them keep slots free
RETRY_SECONDS = 1  # after which a client may ask again whether there is room


class Queue:
    """What waits, and how much runs. `start` is called with each job that is to be made ready."""

    def __init__(self, slots: int, ahead: int, memory: int, limit: int, start: Callable[[Job], None]) -> None:
        self._slots, self._ahead, self._memory, self._limit = slots, ahead, memory, limit
        self._per_client = max(1, limit // 2)
        self._start = start
        self._waiting: OrderedDict[Address, deque[Job]] = OrderedDict()
        self._count = 0
        self._coming: dict[Address, int] = {}  # orders that are being written down
        self._last: Address | None = None  # whose turn was the last
        self._asking: deque[tuple[Job, asyncio.Future[None]]] = deque()  # of those that are ready: in this order
        self._resting: set[Hash] = set()
        self._is_open = False
        self.ready: dict[Hash, Job] = {}  # started, and not begun: they are being made ready, or are
        self.running: dict[Hash, Job] = {}  # begun, and not released

    def open(self) -> None:
        """From now on jobs are started."""
        self._is_open = True
        self._pump()

    def close(self) -> None:
        """No more jobs are started, and none begins."""
        self._is_open = False

    def reserve(self, client: Address) -> None:
        """A place for an order that is being written down. Overloaded where there is none."""
        ready = sum(job.entry.client == client for job in self.ready.values())
        own = len(self._waiting.get(client, ())) + self._coming.get(client, 0) + max(0, ready - self.free_slots)
        if self.waiting + sum(self._coming.values()) >= self._limit:
            raise Overloaded(f"{self._limit} orders wait here already", retry_after=RETRY_SECONDS)
        if own >= self._per_client:
            raise Overloaded(f"{own} orders of {client} wait here already", retry_after=RETRY_SECONDS)
        self._coming[client] = self._coming.get(client, 0) + 1

    def unreserve(self, client: Address) -> None:
        """The order is in the queue, or did not come."""
        self._coming[client] -= 1
        if not self._coming[client]:
            del self._coming[client]

    def add(self, job: Job) -> None:
        """Behind its client's others."""
        self._waiting.setdefault(job.entry.client, deque()).append(job)
        self._count += 1
        self._pump()

    def remove(self, job: Job) -> bool:
        """Take a job out that is to end: whether it was not started yet. One that is ready goes on, without a slot."""
        for at, (other, future) in enumerate(self._asking):
            if other is job:
                del self._asking[at]
                if not future.done():
                    future.set_result(None)
                return False
        own = self._waiting.get(job.entry.client)
        if own is None or job not in own:
            return False
        self._take(job)
        self._pump()
        return True

    async def begin(self, job: Job) -> None:
        """Wait for a slot, and for memory; again, where the job has rested. At once for one that is to end: its program
        is not started."""
        if job.id in self.running and job.id not in self._resting:
            return
        self._forget(job)
        self.ready[job.id] = job
        if job.is_stopping:
            return
        future = asyncio.get_running_loop().create_future()
        self._asking.append((job, future))
        self._pump()
        try:
            await future
        except asyncio.CancelledError:
            self._asking = deque(one for one in self._asking if one[0] is not job)
            self.release(job)
            raise

    def rest(self, job: Job) -> None:
        """Its program has ended: another may begin."""
        if job.id in self.running:
            self._resting.add(job.id)
            self._pump()

    def release(self, job: Job) -> None:
        """It needs nothing more."""
        if job.id in self.running or job.id in self.ready:
            self._forget(job)
            self._pump()

    def position(self, job: Job) -> int:
        """How many orders run before it at the earliest, if clients go on taking turns."""
        if job.id in self.ready:
            return max(0, list(self.ready).index(job.id) - self.free_slots)
        own = self._waiting.get(job.entry.client)
        if own is None or job not in own:
            return 0
        rank = own.index(job)
        return len(self.ready) + sum(min(len(others), rank + (others is not own)) for others in self._waiting.values())

    @property
    def waiting(self) -> int:
        """Orders that wait for a slot."""
        return self._count + max(0, len(self.ready) - self.free_slots)

    @property
    def free_slots(self) -> int:
        """Slots that nothing runs in."""
        taken = (self._width(job) for id, job in self.running.items() if id not in self._resting)
        return max(0, self._slots - sum(taken))

    def _width(self, job: Job) -> int:
        return min(job.processors, self._slots)

    def _forget(self, job: Job) -> None:
        self.running.pop(job.id, None)
        self.ready.pop(job.id, None)
        self._resting.discard(job.id)

    def _take(self, job: Job) -> None:
        own = self._waiting[job.entry.client]
        own.remove(job)
        self._count -= 1
        if not own:
            del self._waiting[job.entry.client]

    def _pump(self) -> None:
        while self._is_open and self._asking and self._fits(self._asking[0][0]):
            job, future = self._asking.popleft()
            del self.ready[job.id]
            self.running[job.id] = job
            job.phase = RUNNING
            job.touch()
            if not future.done():
                future.set_result(None)
        while self._is_open and (client := self._next_client()) is not None:
            job = self._waiting[client][0]
            self._take(job)
            if client in self._waiting:
                self._waiting.move_to_end(client)
            self._last = client
            self.ready[job.id] = job
            self._start(job)

    def _next_client(self) -> Address | None:
        """Whose order is made ready next; None while there is no place for any. Where slots stay free because all that
        has a place is long in getting ready, clients that have none get one each: nobody's inputs keep others out."""
        if self._waiting and len(self.ready) < self._ahead + self.free_slots:
            return next((one for one in self._waiting if one != self._last), self._last)
        if self._asking or not self.free_slots or len(self.ready) >= LATECOMERS * (self._ahead + self._slots):
            return None
        served = {job.entry.client for jobs in (self.ready, self.running) for job in jobs.values()}
        return next((one for one in self._waiting if one not in served), None)

    def _fits(self, job: Job) -> bool:
        memory = sum(memory_of(other.task) for other in self.running.values())
        return self._width(job) <= self.free_slots and (not memory or memory + memory_of(job.task) <= self._memory)


class QueueTurn:
    """A job's turn (`executors/seam.py`)."""

    def __init__(self, queue: Queue, job: Job) -> None:
        self._queue, self._job = queue, job

    async def begin(self) -> None:
        """See the seam."""
        await self._queue.begin(self._job)

    def end(self) -> None:
        """See the seam."""
        self._queue.rest(self._job)
