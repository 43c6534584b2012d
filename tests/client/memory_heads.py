"""Heads in memory whose outcomes can be unknown: done and not told, not done, or done some time later.

`doubt` is the chance of that for a compare-and-set. A change that is on its way comes about at some later call if the
head is then still what it expected. `pause` yields to others so many times at most, before and after.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from freehold.client.heads import Head, check_change
from freehold.protocol.errors import Conflict, Unavailable


class MemoryHeads:
    def __init__(self, seed: int = 0, *, doubt: float = 0.0, pause: int = 0) -> None:
        self.heads: dict[str, Head] = {}
        self.ended: set[str] = set()
        self.reads = 0
        self.sets = 0
        self.doubt = doubt
        self.pause = pause
        self.before: Callable[[str], None] = lambda what: None
        self._late: list[tuple[str, Head | None, Head | None]] = []
        self._draw = random.Random(seed)

    async def read(self, name: str) -> Head | None:
        self.reads += 1
        self.before("read")
        await self._yield()
        self._arrive()
        head = self.heads.get(name)
        await self._yield()
        return head

    async def compare_and_set(self, name: str, expected: Head | None, new: Head | None) -> None:
        check_change(name, expected, new)
        self.sets += 1
        self.before("set")
        await self._yield()
        self._arrive()
        fate = self._draw.choice(["done", "lost", "late"]) if self._draw.random() < self.doubt else "told"
        if fate == "late":
            self._late.append((name, expected, new))
        elif fate != "lost" and not self._apply(name, expected, new) and fate == "told":
            raise Conflict("another head")
        await self._yield()
        self.before("set done")
        if fate != "told":
            raise Unavailable("no majority answered")

    async def maintain(self) -> None:
        pass

    def _apply(self, name: str, expected: Head | None, new: Head | None) -> bool:
        if name in self.ended or self.heads.get(name) != expected:
            return False
        if new is None:
            del self.heads[name]
            self.ended.add(name)
        else:
            self.heads[name] = new
        return True

    def _arrive(self) -> None:
        waiting, self._late = self._late, []
        for change in waiting:
            if self._draw.random() < 0.5:
                self._apply(*change)
            else:
                self._late.append(change)

    async def _yield(self) -> None:
        for _ in range(self._draw.randint(0, self.pause)):
            await asyncio.sleep(0)
