"""Orders that have not ended, in memory: how far they are, their log, and who waits for them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from freehold.protocol.units import Hash
from freehold.services.compute.node.orders import QUEUED, Entry
from freehold.services.compute.tasks import Task

LOG_LIMIT = 2**20  # bytes of a log's end that are kept while its job runs


class LogTail:
    """The end of what a job has logged; offsets count from the log's beginning. Loop thread only."""

    def __init__(self) -> None:
        self._kept = bytearray()  # what goes from its front costs nothing, however small the pieces were that came
        self.end = 0

    @property
    def start(self) -> int:
        """The offset of the first byte that is kept."""
        return self.end - len(self._kept)

    def add(self, data: bytes) -> None:
        """Append; the oldest goes where it becomes too long."""
        self.end += len(data)
        self._kept += data[-LOG_LIMIT:]
        del self._kept[: max(0, len(self._kept) - LOG_LIMIT)]

    def read(self, after: int) -> bytes:
        """What is kept of the log from `after` on."""
        with memoryview(self._kept) as kept:
            return bytes(kept[max(0, after - self.start) :])

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
        self.stop_request: tuple[str, str, str] | None = None  # its client's, as it is kept (`orders.Ending`)
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
