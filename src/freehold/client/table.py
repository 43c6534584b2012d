"""A table: an ordered map from (space, key, sub) to a value, on the network, written by several devices at once.

    tail       frames in the head: one compare-and-set makes any number of concurrent changes durable   table_log.py
    runs       sorted changes, one object a flush; payloads of the flush in a pack                      table_flush.py
    pages      sorted entries, an object for each range of keys                                         table_merge.py
    directory  names all objects; sealed in the head's base, or an object that the base names           table_publish.py

Runs and tail are in memory; pages come as they are needed. Invariants: what `commit` acknowledged is seen by every view
asked for after it, on any device; commits are numbered without a gap; nothing that a head names is ever discarded.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

from freehold.client.heads import HEAD_LIMIT, Head, Heads
from freehold.client.sealing import Sealer
from freehold.client.table_flush import Flusher
from freehold.client.table_layers import Pending
from freehold.client.table_log import Change, Log
from freehold.client.table_memory import Memory
from freehold.client.table_merge import Merger
from freehold.client.table_objects import GONE, LIMITS, Blobs, Limits, Objects, let_go
from freehold.client.table_publish import Publisher
from freehold.client.table_records import INLINE_LIMIT, VERSION, Changes, Directory, Key, Packed, Value, encode
from freehold.client.table_state import Register, State, seal_base
from freehold.client.table_view import Stale, View
from freehold.protocol.errors import Conflict, FreeholdError, NotFound, Unavailable
from freehold.services.storage.client_objects import Code, StoredObject

_LOG = logging.getLogger(__name__)


class Table:
    """One table. Belongs to one event loop; `aclose` when it is not used any more."""

    def __init__(
        self,
        heads: Heads,
        vault: Blobs,
        name: str,
        secret: bytes,
        cache: Path,
        code: Code,
        *,
        memory: Memory | None = None,
        limits: Limits = LIMITS,
    ) -> None:
        """`name` is the head's, `secret` has 32 bytes, `cache` is a folder for what was downloaded.

        Tables that are given the same `memory` keep pages and packs in it together.
        """
        sealer = Sealer(secret, name)
        self.name = name
        self._vault = vault
        self._limits = limits
        self._objects = Objects(vault, sealer, cache, limits, memory or Memory())
        self._register = Register(heads, name, sealer, self._objects, limits.patience)
        publisher = Publisher(self._register, vault, code, limits)
        self._flusher = Flusher(self._register, publisher)
        self._merger = Merger(self._register, self._objects, vault, publisher, limits)
        self._log = Log(self._register, vault, limits, self._grown, self._make_room)
        self._flush: asyncio.Task[None] | None = None
        self._merge: asyncio.Task[None] | None = None

    async def create(self) -> None:
        """Make the table, empty; Conflict where there is one, or was."""
        base = seal_base(self._register.sealer, encode(Directory(VERSION)))
        head = Head(1, base)
        doubtful = False
        for attempt in range(5):
            try:
                await self._register.heads.compare_and_set(self.name, None, head)
                break
            except Conflict:
                found = await self._register.heads.read(self.name) if doubtful else None
                if found is None or found.base != base:
                    raise
                break
            except Unavailable:
                doubtful = True
                if attempt == 4:
                    raise
        await self._register.adopt(head)

    async def view(self) -> View:
        """The table as it stands: with everything acknowledged before the call, by whatever device."""
        return View(self._register, await self._register.fresh())

    async def commit(self, change: Change) -> int:
        """Make a change durable; its number. `change` is run on the newest view, again if others wrote meanwhile.

        What `change` raises is raised here, and nothing is changed. Unavailable: it may or may not come about.
        """
        return await self._log.commit(change)

    async def fence(self) -> View:
        """A view that has every change begun before the call, or that one never comes about.

        A change whose outcome is unknown may otherwise come about after a view that does not have it.
        """

        async def nothing(_: View) -> Changes:
            return Changes()

        await self._log.commit(nothing)  # takes the version that such a change would have
        return await self.view()

    async def payload(self, value: Value, key: Key | None = None) -> bytes:
        """The small payload of a value, b"" where it has none.

        Its pack may have gone since, because the value was replaced: with a `key` it is looked up there once more.
        NotFound if it is not there any more.
        """
        if not isinstance(value.data, Packed):
            return value.data or b""
        state = await self._register.known()
        try:
            return await self._packed(state, value.data)
        except GONE:
            newest = await self._register.fresh()
            if key is not None:
                now = await View(self._register, newest).get(key)
                if now is None or now.meta != value.meta:
                    raise NotFound("the value was replaced") from None
                if isinstance(now.data, bytes):
                    return now.data
            return await self._packed(newest, value.data)

    async def maintain(self, at_least: int = 1, more_than: int = 0) -> None:
        """Flush, merge, rewrite packs that are mostly dead. Nothing has to be done: it saves room and time.

        It flushes frames of `at_least` so many bytes, and merges where there are `more_than` so many runs.
        """
        await self._register.fresh()
        await self._flusher.flush(at_least)
        await self._merger.merge(more_than)

    async def quiet(self) -> None:
        """Wait until no commit is under way, and what those that were made have dropped is written down as garbage."""
        await self._log.close()

    async def own_objects(self) -> list[StoredObject]:
        """All objects that the table itself is made of, as the newest head names them."""
        return _own(await self._register.fresh())

    async def close_for_good(self, check: Callable[[View], Awaitable[None]]) -> None:
        """End the table if `check` raises nothing on the very version that is ended; what it was made of goes."""
        while True:
            async with self._register.writing:
                state = await self._register.fresh()
                try:
                    await check(View(self._register, state, Pending(), state.number))
                except Stale:
                    continue
                intent = await self._vault.intend(self.name, _own(state))
                try:
                    if await self._register.set(state, None, secrets.token_bytes(16)):
                        break
                    await intent.withdraw()
                except BaseException:
                    await intent.unsure()
                    raise
        await let_go(intent)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way: then there is nothing to close."""
        tasks = (self._flush, self._merge)
        return self._log.is_idle and self._objects.is_idle and all(task is None or task.done() for task in tasks)

    async def aclose(self) -> None:
        """Wait for what is under way."""
        await self._log.close()
        if self._flush is not None:
            await self._flush
        if self._merge is not None:  # a flush may begin it
            await self._merge
        await self._objects.close()

    async def _packed(self, state: State, packed: Packed) -> bytes:
        pack = state.directory.packs.get(packed.pack)
        if pack is None:
            raise NotFound("the pack of this payload is gone: the value was replaced")
        return await self._objects.payload(pack, packed)

    def _grown(self) -> None:
        """Begin to flush where the head has become long; called after each commit."""
        if self._is_long() and (self._flush is None or self._flush.done()):
            self._flush = asyncio.create_task(self._flush_in_background())

    def _is_long(self) -> bool:
        state = self._register.newest
        if state is None:
            return False
        return state.tail_bytes > self._limits.flush_bytes or len(state.tail.keys) > self._limits.flush

    async def _make_room(self) -> None:
        await self._flusher.flush(at_least=HEAD_LIMIT // 8)  # so many frames have more, however small

    async def _flush_in_background(self) -> None:
        try:
            while self._is_long():
                await self._flusher.flush()
        except Exception as error:  # nobody waits for it
            _LOG.warning("a table could not be flushed: %s", error, exc_info=not isinstance(error, FreeholdError))
            return
        state = self._register.newest
        many = state is not None and len(state.directory.runs) > self._limits.runs
        if many and (self._merge is None or self._merge.done()):
            self._merge = asyncio.create_task(self._merge_in_background())

    async def _merge_in_background(self) -> None:
        try:
            await self._merger.merge(self._limits.runs)
        except Exception as error:  # nobody waits for it
            _LOG.warning("a table could not be merged: %s", error, exc_info=not isinstance(error, FreeholdError))


def _own(state: State) -> list[StoredObject]:
    directory = state.directory
    found = [each.stored for each in directory.objects()]
    return found if state.container is None else [*found, state.container]


__all__ = ["INLINE_LIMIT", "Change", "Changes", "Key", "Limits", "Memory", "Table", "Value", "View"]
