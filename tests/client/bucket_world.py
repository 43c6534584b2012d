"""Buckets without a network: heads in files, blobs in memory. What several devices share is one `Shelf`."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from freehold.client.buckets import Buckets
from freehold.client.heads import Head, Heads, LocalHeads
from freehold.protocol.errors import NotFound, Unavailable
from freehold.services.storage.client_objects import Code, StoredObject, StoredSegment
from freehold.services.storage.client_sources import Source

SEGMENT = 64 << 10
SEED = b"s" * 32
START = 1_700_000_000.0  # the clock, until it is moved


class Shelf:
    """Blobs by their roots: what is stowed and not dropped can be read by every device."""

    def __init__(self) -> None:
        self.blobs: dict[bytes, bytes] = {}
        self.unsure: set[bytes] = set()
        self.reads = 0
        self.on_read: Callable[[], None] | None = None

    def drop(self, objects: Sequence[StoredObject]) -> None:
        for stored in objects:
            for segment in stored.segments:
                del self.blobs[segment.roots[0]]  # KeyError: what was dropped before is dropped again

    def device(self) -> MemoryVault:
        return MemoryVault(self)


class Stowed:
    def __init__(self, shelf: Shelf, objects: tuple[StoredObject, ...]) -> None:
        self.objects = objects
        self.settled = False
        self._shelf = shelf

    async def keep(self) -> None:
        self.settled = True

    async def unsure(self) -> None:
        self.settled = True
        self._shelf.unsure |= {segment.roots[0] for stored in self.objects for segment in stored.segments}


class Intent:
    def __init__(self, shelf: Shelf, objects: Sequence[StoredObject]) -> None:
        self._shelf, self._objects = shelf, objects

    async def done(self) -> None:
        self._shelf.drop(self._objects)

    async def withdraw(self) -> None:
        """Nothing was changed yet."""


class MemoryVault:
    """As much of `Vault` as buckets and tables use."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf

    @asynccontextmanager
    async def stow(
        self, label: str, code: Code, sources: Sequence[Source], progress: Callable[[int], None] | None = None
    ) -> AsyncGenerator[Stowed, None]:
        objects = tuple([await self._store(source, code, progress) for source in sources])
        stowed = Stowed(self.shelf, objects)
        try:
            yield stowed
        finally:
            if not stowed.settled:
                self.shelf.drop(objects)

    async def _store(self, source: Source, code: Code, progress: Callable[[int], None] | None) -> StoredObject:
        segments, buffer = [], bytearray(SEGMENT)
        try:
            while count := await source.read(memoryview(buffer)):
                root = os.urandom(32)
                self.shelf.blobs[root] = bytes(buffer[:count])
                roots = (root, *(os.urandom(32) for _ in range(code.n - 1)))
                nodes = tuple(bytes([number]) * 20 for number in range(code.n))
                segments.append(
                    StoredSegment(
                        size=count, k=code.k, shard_size=count // code.k + 1, record=bytes(32), keys=bytes(48),
                        roots=roots, nodes=nodes, positions=tuple(range(code.n)),
                    )
                )  # fmt: skip
                if progress is not None:
                    progress(count)
            await source.finish()
        except BaseException:
            self.shelf.drop([StoredObject(0, tuple(segments))])
            raise
        return StoredObject(sum(segment.size for segment in segments), tuple(segments))

    async def discard(self, objects: Sequence[StoredObject]) -> None:
        self.shelf.drop(objects)

    async def intend(self, label: str, objects: Sequence[StoredObject]) -> Intent:
        return Intent(self.shelf, objects)

    async def read(
        self, stored: StoredObject, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[memoryview, None]:
        at, end = 0, stored.size if length is None else offset + length
        for segment in stored.segments:
            low, high = max(offset - at, 0), min(end - at, segment.size)
            at += segment.size
            if low < high:
                self.shelf.reads += 1
                if self.shelf.on_read is not None:
                    self.shelf.on_read()
                if segment.roots[0] not in self.shelf.blobs:
                    raise NotFound("no such shard here")
                yield memoryview(self.shelf.blobs[segment.roots[0]])[low:high]

    async def fetch(self, stored: StoredObject) -> bytes:
        return b"".join([bytes(view) async for view in self.read(stored)])


class LossyHeads:
    """Heads whose next answers get lost, after the change or before it."""

    def __init__(self, heads: Heads) -> None:
        self._heads = heads
        self.lose = ""  # "before" or "after"

    async def read(self, name: str) -> Head | None:
        return await self._heads.read(name)

    async def compare_and_set(self, name: str, expected: Head | None, new: Head | None) -> None:
        if self.lose == "before":
            raise Unavailable("lost before the change")
        await self._heads.compare_and_set(name, expected, new)
        if self.lose == "after":
            raise Unavailable("lost after the change")

    async def maintain(self) -> None:
        await self._heads.maintain()


class Net:
    """What devices of one account share: heads, blobs and a clock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.heads = LossyHeads(LocalHeads(folder / "heads"))
        self.shelf = Shelf()
        self.now = START

    def device(self, name: str = "one", seed: bytes = SEED) -> Buckets:
        return Buckets(
            self.heads, self.shelf.device(), seed, self.folder / name, clock=lambda: self.now, least_part=SEGMENT
        )  # type: ignore[arg-type]
