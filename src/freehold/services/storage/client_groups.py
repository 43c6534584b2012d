"""Group commit: one round at a time, and whoever came meanwhile goes with the next.

Used for what costs a round whatever its size: a delta of a node's list, a certified batch of deltas. The round is a
task of its own, so that a caller who is cancelled takes nobody with it: what it had waiting is dropped, and what was
under way for it is handed to `orphaned` once it is done. Invariant: each item is in one round at the most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")
Orphaned = Callable[[T, R], Awaitable[None]]


class Group(Generic[T, R]):
    """`work` does a round: one result for each item. `weigh` says what an item takes of a round's `limit`."""

    def __init__(
        self,
        work: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        *,
        weigh: Callable[[T], int] = lambda _: 1,
        limit: int = 1 << 20,
        orphaned: Orphaned[T, R] | None = None,
    ) -> None:
        self._work = work
        self._weigh = weigh
        self._limit = limit
        self._orphaned = orphaned
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._task: asyncio.Task[None] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and no round is under way."""
        return not self._waiting and (self._task is None or self._task.done())

    async def do(self, item: T) -> R:
        """The item's result; raises what its round raised."""
        entry: tuple[T, asyncio.Future[R]] = (item, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        try:
            return await entry[1]
        finally:
            if entry in self._waiting:  # cancelled before its round began
                self._waiting.remove(entry)

    async def close(self) -> None:
        """End the round under way, wherever it stands, as a kill would."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while self._waiting:
            taken = self._take()
            try:
                results = await self._work([item for item, _ in taken])
            except BaseException as error:
                for _, future in taken:
                    if not future.done():
                        future.set_exception(error if isinstance(error, Exception) else asyncio.CancelledError())
                if not isinstance(error, Exception):
                    self._drop()
                    raise
                continue
            for (item, future), result in zip(taken, results, strict=True):
                if not future.done():
                    future.set_result(result)
                elif self._orphaned is not None:
                    await self._orphaned(item, result)

    def _take(self) -> list[tuple[T, asyncio.Future[R]]]:
        """The next round: at least one item, then as many as there is room for, in the order they came."""
        weight = count = 0
        for item, _ in self._waiting:
            weight += self._weigh(item)
            if count and weight > self._limit:
                break
            count += 1
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return taken

    def _drop(self) -> None:
        for _, future in self._waiting:
            future.cancel()
        self._waiting.clear()
