"""Orders that have not ended, in memory: their log, who waits for them, and who runs next.

Clients take turns, whatever they have ordered; what one of them ordered first runs first. An order runs when there are
slots and memory for it, and nobody overtakes one that waits for room: so a large order is not starved by small ones.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict, deque
from collections.abc import Callable

from freehold.protocol.errors import Overloaded
from freehold.protocol.units import Address, Hash
from freehold.services.compute.node.orders import QUEUED, RUNNING, Entry
from freehold.services.compute.tasks import Task, memory_of

LOG_LIMIT = 2**20  # bytes of a log's end that are kept while its job runs
RETRY_SECONDS = 1  # after which a client may ask again whether there is room


class LogTail:
    """The end of what a job has logged; offsets count from the log's beginning. Loop thread only."""

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._kept = 0
        self.end = 0

    @property
    def start(self) -> int:
        """The offset of the first byte that is kept."""
        return self.end - self._kept

    def add(self, data: bytes) -> None:
        """Append; the oldest goes where it becomes too long."""
        data = bytes(data)
        self.end += len(data)
        self._pieces.append(data[-LOG_LIMIT:])
        self._kept += len(self._pieces[-1])
        while self._kept > LOG_LIMIT:
            first = self._pieces.popleft()
            over = self._kept - LOG_LIMIT
            if len(first) > over:
                self._pieces.appendleft(first[over:])
                first = first[:over]
            self._kept -= len(first)

    def read(self, after: int) -> bytes:
        """What is kept of the log from `after` on."""
        return b"".join(self._pieces)[max(0, after - self.start) :]

    def tail(self, size: int) -> bytes:
        """Its last `size` bytes."""
        return self.read(max(self.start, self.end - size))


class Job:
    """An order that has not ended, or just has: then `ended` is set. `watch()` gives an event that is set when its
    phase or its log next changes."""

    def __init__(self, entry: Entry, task: Task) -> None:
        self.entry, self.task = entry, task
        self.phase = QUEUED
        self.log = LogTail()
        self.written: asyncio.Task[None] | None = None  # while it is written down, and once it is
        self.is_stopping = False
        self.ended = asyncio.Event()
        self.stop: Callable[[], None] = lambda: None  # asks what runs to end
        self.measure: Callable[[], int] = lambda: 0
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    @property
    def id(self) -> Hash:
        """Its order's."""
        return self.entry.id

    @property
    def processors(self) -> int:
        """How many it asks for."""
        return self.task.resources.processors

    def watch(self) -> asyncio.Event:
        """Set on the next change; ask before looking."""
        return self._changed

    def touch(self) -> None:
        """Something has changed: wake whoever waits."""
        event, self._changed = self._changed, asyncio.Event()
        event.set()

    def add_log(self, data: bytes) -> None:
        """Take what the program logs, from any thread."""
        if threading.get_ident() != self._thread:
            self._loop.call_soon_threadsafe(self._add_log, data)
        else:
            self._add_log(data)

    def _add_log(self, data: bytes) -> None:
        if data:
            self.log.add(data)
            self.touch()


class Queue:
    """What waits, and how much runs. `start` is called with each job whose turn has come."""

    def __init__(self, slots: int, memory: int, limit: int, start: Callable[[Job], None]) -> None:
        self._slots, self._memory, self._limit = slots, memory, limit
        self._per_client = max(1, limit // 2)
        self._start = start
        self._waiting: OrderedDict[Address, deque[Job]] = OrderedDict()
        self._count = 0
        self._coming: dict[Address, int] = {}  # orders that are being written down
        self._is_open = False
        self.running: dict[Hash, Job] = {}

    def open(self) -> None:
        """From now on jobs are started."""
        self._is_open = True
        self._pump()

    def close(self) -> None:
        """No more jobs are started."""
        self._is_open = False

    def reserve(self, client: Address) -> None:
        """A place for an order that is being written down. Overloaded where there is none."""
        own = len(self._waiting.get(client, ())) + self._coming.get(client, 0)
        if self._count + sum(self._coming.values()) >= self._limit:
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
        """Take a job out that waits; whether it did."""
        own = self._waiting.get(job.entry.client)
        if own is None or job not in own:
            return False
        own.remove(job)
        self._count -= 1
        if not own:
            del self._waiting[job.entry.client]
        self._pump()
        return True

    def release(self, job: Job) -> None:
        """It runs no more."""
        if self.running.pop(job.id, None) is not None:
            self._pump()

    def position(self, job: Job) -> int:
        """How many orders run before it at the earliest, if clients go on taking turns."""
        own = self._waiting.get(job.entry.client)
        if own is None or job not in own:
            return 0
        rank = own.index(job)
        return sum(min(len(others), rank + (others is not own)) for others in self._waiting.values())

    @property
    def waiting(self) -> int:
        """Orders that wait."""
        return self._count

    @property
    def free_slots(self) -> int:
        """Slots that nothing runs in."""
        return max(0, self._slots - sum(self._width(job) for job in self.running.values()))

    def _width(self, job: Job) -> int:
        return min(job.processors, self._slots)

    def _pump(self) -> None:
        while self._is_open and self._waiting:
            client, own = next(iter(self._waiting.items()))
            job = own[0]
            memory = sum(memory_of(other.task) for other in self.running.values())
            if self._width(job) > self.free_slots or (memory and memory + memory_of(job.task) > self._memory):
                return
            own.popleft()
            self._count -= 1
            self._waiting.move_to_end(client)
            if not own:
                del self._waiting[client]
            job.phase = RUNNING
            self.running[job.id] = job
            job.touch()
            self._start(job)
