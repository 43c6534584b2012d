"""Pages, runs and packs of a table, fetched when they are needed and kept for a while: in memory and on disk.

`Blobs` is as much of the vault as a table uses. Invariant: whatever is asked for by several at once is fetched once,
and what is kept in memory stays below its limit.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

from freehold.client.sealing import Sealer
from freehold.client.table_cache import DiskCache
from freehold.client.table_layers import Layer
from freehold.client.table_memory import Memory
from freehold.client.table_records import Entries, Pack, Packed, Page, Run, decode_entries
from freehold.protocol.errors import Corrupt, FreeholdError, NotFound, Unavailable
from freehold.services.storage.client_objects import Code, StoredObject
from freehold.services.storage.client_sources import BytesSource

GONE = (NotFound, Unavailable, Corrupt)  # what reading an object raises that was taken away meanwhile
_ENTRY_BYTES = 300  # about what an entry takes in memory besides its own bytes
_REMEMBERED = 1 << 12  # packs of which we know that something was read


class Limits(NamedTuple):
    """Where a table begins to do things; bytes unless said otherwise."""

    group: int = 256  # changes in one frame
    group_bytes: int = 1 << 20
    change_bytes: int = 3 << 20  # the most that one change may have: 1,000 of the longest keys removed and put
    flush: int = 2048  # changes in the head before they are flushed
    flush_bytes: int = 1 << 20
    runs: int = 16
    page: int = 4096  # entries
    page_bytes: int = 1 << 20
    step: int = 32  # pages that a merge rewrites at a time
    inline_directory: int = 64 << 10  # above, the directory is an object
    disk: int = 1 << 30
    patience: float = 20.0  # seconds until an unknown outcome stays unknown


LIMITS = Limits()


class Stowed(Protocol):
    """Objects that are stored and that no head names yet."""

    @property
    def objects(self) -> tuple[StoredObject, ...]:
        """One for each source."""

    async def keep(self) -> None:
        """A head names them now."""

    async def unsure(self) -> None:
        """Whether a head names them is not known."""


class Intent(Protocol):
    """Objects that a head may soon not name any more."""

    async def done(self) -> None:
        """It does not: they are garbage."""

    async def withdraw(self) -> None:
        """It still does."""

    async def unsure(self) -> None:
        """Nobody knows."""


class Blobs(Protocol):
    """See `Vault`."""

    def stow(self, label: str, code: Code, sources: Sequence[BytesSource]) -> AbstractAsyncContextManager[Stowed]:
        """Store; garbage unless kept."""

    async def intend(self, label: str, objects: Sequence[StoredObject]) -> Intent:
        """Write down what the head of this name is about to name no more."""

    def read(
        self, stored: StoredObject, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[memoryview, None]:
        """A range of an object."""

    async def fetch(self, stored: StoredObject) -> bytes:
        """A whole object."""


async def let_go(intent: Intent | None) -> None:
    """The head that does not name them is set: what fails now, a sweep does."""
    if intent is not None:
        try:
            await intent.done()
        except FreeholdError:
            await intent.unsure()


class Objects:
    """What a table's directory names."""

    def __init__(self, vault: Blobs, sealer: Sealer, folder: Path, limits: Limits, memory: Memory) -> None:
        self._vault = vault
        self._memory = memory
        self._disk = DiskCache(folder, sealer, limits.disk)
        self._under_way: dict[bytes, asyncio.Task[Layer | bytes]] = {}
        self._read_once: OrderedDict[bytes, None] = OrderedDict()

    async def entries(self, named: Page | Run) -> Layer:
        """A page's entries or a run's changes; Corrupt if they are not those that the directory names."""
        found = self._memory.get(named.identity)
        if not isinstance(found, Layer):
            found = await self._once(named.identity, lambda: self._load_entries(named))
        assert isinstance(found, Layer)
        return found

    def prefetch(self, page: Page) -> None:
        """Begin to fetch what will be needed soon."""
        if page.identity not in self._memory and page.identity not in self._under_way:
            self._begin(page.identity, lambda: self._load_entries(page))

    async def payload(self, pack: Pack, packed: Packed) -> bytes:
        """A payload: by itself the first time that something of its pack is read, then with the whole pack."""
        place = pack.place(packed)
        whole = self._memory.get(pack.identity)
        if whole is None and not self._was_read(pack):
            found = b"".join([bytes(piece) async for piece in self._vault.read(pack.stored, place, packed.size)])
        else:
            if whole is None:
                whole = await self._once(pack.identity, lambda: self._load_pack(pack))
            assert isinstance(whole, bytes)
            found = whole[place : place + packed.size]
        if len(found) != packed.size:
            raise Corrupt("a pack is shorter than the directory says")
        return found

    async def fetch(self, identity: bytes, stored: StoredObject) -> bytes:
        """An object's bytes, from this machine if they are here."""
        data = await asyncio.to_thread(self._disk.read, identity)
        if data is None:
            data = await self._vault.fetch(stored)
            await self.save(identity, data)
        if len(data) != stored.size:
            raise Corrupt("an object does not have the size that the directory says")
        return data

    async def admit(self, named: Page | Run | Pack, data: bytes) -> None:
        """Keep what was just written, which others have not seen yet."""
        if isinstance(named, Pack):
            self._memory.keep(named.identity, len(data), data)
        else:
            self._memory.keep(named.identity, *_weighed(decode_entries(data)))
        await self.save(named.identity, data)

    async def save(self, identity: bytes, data: bytes) -> None:
        """Keep an object's bytes on disk."""
        await asyncio.to_thread(self._disk.write, identity, data)

    async def forget(self, identities: Sequence[bytes]) -> None:
        """Drop what nothing names any more."""
        for identity in identities:
            self._memory.drop(identity)
            await asyncio.to_thread(self._disk.remove, identity)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being fetched."""
        return not self._under_way

    async def close(self) -> None:
        """Wait for what is being fetched."""
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)

    def _was_read(self, pack: Pack) -> bool:
        seen = pack.identity in self._read_once
        self._read_once[pack.identity] = None
        if len(self._read_once) > _REMEMBERED:
            self._read_once.popitem(last=False)
        return seen

    async def _load_entries(self, named: Page | Run) -> Layer:
        entries = decode_entries(await self.fetch(named.identity, named.stored))
        if len(entries.keys) != named.count:
            raise Corrupt("a page or run does not have as many entries as the directory says")
        if isinstance(named, Page) and (entries.keys[:1] < [named.first] or None in entries.values):
            raise Corrupt("a page has entries that belong to another")
        cost, layer = _weighed(entries)
        self._memory.keep(named.identity, cost, layer)
        return layer

    async def _load_pack(self, pack: Pack) -> bytes:
        data = await self.fetch(pack.identity, pack.stored)
        self._memory.keep(pack.identity, len(data), data)
        return data

    async def _once(self, identity: bytes, load: Callable[[], Awaitable[Layer | bytes]]) -> Layer | bytes:
        task = self._under_way.get(identity) or self._begin(identity, load)
        return await asyncio.shield(task)

    def _begin(self, identity: bytes, load: Callable[[], Awaitable[Layer | bytes]]) -> asyncio.Task[Layer | bytes]:
        async def run() -> Layer | bytes:
            return await load()

        task = self._under_way[identity] = asyncio.create_task(run())
        task.add_done_callback(lambda done: self._ended(identity, done))
        return task

    def _ended(self, identity: bytes, task: asyncio.Task[Layer | bytes]) -> None:
        del self._under_way[identity]
        if not task.cancelled():
            task.exception()  # whoever waits has it; where nobody does, nobody needs it


def _weighed(entries: Entries) -> tuple[int, Layer]:
    own = sum(len(key[1]) + len(key[2]) for key in entries.keys)
    own += sum(len(value.meta) for value in entries.values if value is not None)
    layer = Layer(entries.keys, dict(zip(entries.keys, entries.values, strict=True)))
    return own + _ENTRY_BYTES * len(entries.keys), layer
