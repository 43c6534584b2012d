"""A vault in memory that others can see through: it delays, fails and loses, and knows what it was asked to do.

`files` are the objects that exist, `garbage` those whose stow was left without `keep` or that were discarded: with
`sweep` they vanish, as shards do once their lists are committed. `unsure` and `intents` are what a sweep would settle.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from freehold.protocol.errors import Unavailable
from freehold.services.storage.client_objects import Code, StoredObject, StoredSegment
from freehold.services.storage.client_sources import BytesSource


class MemoryStowed:
    def __init__(self, vault: MemoryVault, objects: tuple[StoredObject, ...]) -> None:
        self.vault = vault
        self.objects = objects
        self.decided = False

    async def keep(self) -> None:
        await self.vault.step("keep")
        self.decided = True

    async def unsure(self) -> None:
        self.decided = True
        if not self.vault.dead:
            self.vault.unsure.extend(self.objects)


class MemoryIntent:
    def __init__(self, vault: MemoryVault, objects: Sequence[StoredObject]) -> None:
        self.vault = vault
        self.objects = list(objects)

    async def done(self) -> None:
        await self.vault.step("done")
        self.vault.intents.remove(self)
        await self.vault.discard(self.objects)

    async def withdraw(self) -> None:
        await self.vault.step("withdraw")
        self.vault.intents.remove(self)

    async def unsure(self) -> None:
        """It stays among the vault's intents."""


class MemoryVault:
    """`before(what)` is called at each step and may raise; `pause` yields to others so many times at most."""

    def __init__(self, seed: int = 0) -> None:
        self.files: dict[bytes, bytes] = {}
        self.garbage: list[StoredObject] = []
        self.unsure: list[StoredObject] = []
        self.intents: list[MemoryIntent] = []
        self.before: Callable[[str], None] = lambda what: None
        self.pause = 0
        self.fetched = 0
        self.stowed = 0
        self.eager = True  # what is discarded vanishes at once
        self.dead = False  # the process has ended: nothing is cleaned up any more
        self._draw = random.Random(seed)
        self._count = 0

    async def step(self, what: str) -> None:
        for _ in range(self._draw.randint(0, self.pause)):
            await asyncio.sleep(0)
        self.before(what)

    @asynccontextmanager
    async def stow(
        self, label: str, code: Code, sources: Sequence[BytesSource], progress: object = None
    ) -> AsyncIterator[MemoryStowed]:
        await self.step("stow")
        objects = tuple([self._store(await _drain(source)) for source in sources])
        stowed = MemoryStowed(self, objects)
        try:
            await self.step("stowed")
            yield stowed
        finally:
            if self.dead:
                self.unsure.extend(objects)
            elif not stowed.decided:
                await self.discard(objects)

    async def discard(self, objects: Sequence[StoredObject]) -> None:
        for stored in objects:
            assert _name(stored) in self.files, "discarded twice"
            assert stored not in self.garbage, "discarded twice"
            self.garbage.append(stored)
        if self.eager:
            self.sweep()

    async def intend(self, label: str, objects: Sequence[StoredObject]) -> MemoryIntent:
        await self.step("intend")
        intent = MemoryIntent(self, objects)
        self.intents.append(intent)
        return intent

    async def read(
        self, stored: StoredObject, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[memoryview, None]:
        data = await self.fetch(stored)
        yield memoryview(data)[offset : None if length is None else offset + length]

    async def fetch(self, stored: StoredObject) -> bytes:
        await self.step("fetch")
        data = self.files.get(_name(stored))
        if data is None:
            raise Unavailable("too few shards are left")
        self.fetched += len(data)
        return data

    def sweep(self) -> None:
        for stored in self.garbage:
            del self.files[_name(stored)]
        self.garbage.clear()

    def settle(self, named: Sequence[StoredObject]) -> None:
        """What a sweep does with what nobody was sure of: what no head names goes."""
        for stored in {*self.unsure, *(each for intent in self.intents for each in intent.objects)}:
            if stored not in named:
                self.files.pop(_name(stored), None)
        self.unsure.clear()
        self.intents.clear()

    def missing(self, named: Sequence[StoredObject]) -> list[StoredObject]:
        return [stored for stored in named if _name(stored) not in self.files]

    def _store(self, data: bytes) -> StoredObject:
        self._count += 1
        self.stowed += len(data)
        name = self._count.to_bytes(32)
        self.files[name] = data
        roots, nodes = (name, bytes(32), bytes(32)), (bytes(20),) * 3
        return StoredObject(
            len(data), (StoredSegment(len(data), 2, len(data), b"", bytes(48), roots, nodes, (0, 1, 2)),)
        )


def _name(stored: StoredObject) -> bytes:
    return stored.segments[0].roots[0]


async def _drain(source: BytesSource) -> bytes:
    parts = []
    buffer = bytearray(1 << 16)
    while count := await source.read(memoryview(buffer)):
        parts.append(bytes(buffer[:count]))
    await source.finish()
    return b"".join(parts)
