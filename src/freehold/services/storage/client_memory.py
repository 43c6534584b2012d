"""The memory of all transfers of one client: bounded in all, and used again.

Every transfer may hold one segment without asking, so that none waits for another that is slow; whatever goes beyond
(segments in flight, read ahead, coded) comes out of a budget. Large buffers are kept for the next segment: to find and
clear fresh pages costs more than to fill them. Invariant: a workspace comes back only from a transfer that ended well:
what was cancelled may have a thread that still writes to it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

from freehold.services.storage.codec import Workspace

LARGE = 1 << 20  # bytes of a segment from which its buffers are kept


class Budget:
    """So many bytes at once. Who waits is served in order; one that asks for more than all there is gets all."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._free = limit
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def try_take(self, size: int) -> bool:
        """Take bytes if they are there now."""
        size = min(size, self._limit)
        if self._waiting or size > self._free:
            return False
        self._free -= size
        return True

    async def take(self, size: int) -> None:
        """Take bytes, as soon as they are there."""
        if self.try_take(size):
            return
        future = asyncio.get_running_loop().create_future()
        entry = (min(size, self._limit), future)
        self._waiting.append(entry)
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.give(size)
            else:
                with suppress(ValueError):
                    self._waiting.remove(entry)
                self._serve()
            raise

    def give(self, size: int) -> None:
        """Bring back what was taken."""
        self._free += min(size, self._limit)
        self._serve()

    def _serve(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free:
            size, future = self._waiting.popleft()
            if not future.done():
                self._free -= size
                future.set_result(None)


class Pool:
    """Workspaces for one use. `spare` of them are kept."""

    def __init__(self, spare: int) -> None:
        self._spare = spare
        self._kept: list[Workspace] = []

    def lend(self, size: int) -> Workspace:
        """A workspace for a segment of `size` bytes: one that was used for large ones already, if it is large."""
        return self._kept.pop() if size >= LARGE and self._kept else Workspace()

    def take_back(self, space: Workspace, size: int) -> None:
        """A workspace that nothing uses any more."""
        if size >= LARGE and len(self._kept) < self._spare:
            self._kept.append(space)
