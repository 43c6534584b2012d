"""Merges runs into pages, step by step, and rewrites packs of which less than half is alive.

A step takes the next few pages that the runs change, and raises the runs' floor to where it came; after the last, the
runs go. So a merge has bounded memory, may stop anywhere, and is taken up by whoever comes next. What no entry names
any more is marked dead in its pack: a key's payload is dead once an entry without it is merged over the one with it.

Invariants: pages have no two entries of one key and no removed ones; a payload that any entry, run or frame names is
never marked dead: entries of a key that name one payload follow each other without a gap (`table_log.py` refuses more).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from freehold.client.table_layers import Entry, Layer, join, merge
from freehold.client.table_objects import GONE, Blobs, Limits, Objects
from freehold.client.table_publish import Edit, Publisher
from freehold.client.table_records import (
    FIRST,
    LAST,
    VERSION,
    Directory,
    Entries,
    Key,
    Pack,
    Packed,
    Page,
    Run,
    Value,
    encode,
)
from freehold.client.table_state import Register, State
from freehold.protocol.errors import Corrupt
from freehold.services.storage.client_objects import StoredObject

_ENTRY_BYTES = 24  # about what an entry takes besides its own bytes
_BATCH = 16 << 20  # bytes of packs that are rewritten at a time


class _Fresh(NamedTuple):
    """A page that is not stored yet."""

    first: Key
    entries: int
    data: bytes


class _Step(NamedTuple):
    """What a step makes of the pages from `start` to `end`: some stay, some are fresh."""

    start: int
    end: int
    runs: int
    pages: list[Page | _Fresh]
    replaced: list[Page]
    dead: set[Packed]


class Merger:
    """Merges one table, one step at a time."""

    def __init__(
        self, register: Register, objects: Objects, vault: Blobs, publisher: Publisher, limits: Limits
    ) -> None:
        self._register = register
        self._objects = objects
        self._vault = vault
        self._publisher = publisher
        self._limits = limits
        self._merging = asyncio.Lock()

    async def merge(self, more_than: int = 0) -> None:
        """Merge all runs there are now, if there are more than so many, or a merge was begun; then rewrite packs."""
        async with self._merging:
            state = await self._register.known()
            runs = state.directory.runs
            if len(runs) <= more_than and not any(run.floor != FIRST for run in runs):
                return
            wanted = {run.identity for run in runs}
            while any(run.identity in wanted for run in state.directory.runs):
                state = await self._advance(state, self._step)
            while batch := self._mostly_dead(state):
                state = await self._advance(state, partial(self._rewrite, batch))

    async def _advance(self, state: State, work: Callable[[State], Awaitable[None]]) -> State:
        """The newest state after some work, which another device may have done meanwhile."""
        try:
            await work(state)
        except GONE:
            if (await self._register.fresh()).head.base == state.head.base:
                raise
        return await self._register.known()

    async def _step(self, state: State) -> None:
        step = await self._plan(state)
        fresh = [page for page in step.pages if isinstance(page, _Fresh)]

        async def name(stored: Sequence[StoredObject]) -> Callable[[State], Edit | None]:
            made = [
                Page(secrets.token_bytes(16), page.first, page.entries, len(page.data), where)
                for page, where in zip(fresh, stored, strict=True)
            ]
            for page, source in zip(made, fresh, strict=True):
                await self._objects.admit(page, source.data)
            waiting = iter(made)
            pages = tuple(page if isinstance(page, Page) else next(waiting) for page in step.pages)
            return lambda now: _edit(now, state, step, pages)

        await self._publisher.stow_and_publish([page.data for page in fresh], name)

    async def _plan(self, state: State) -> _Step:
        runs, pages = state.directory.runs, state.directory.pages
        count = sum(run.floor != FIRST for run in runs) or len(runs)
        layers = state.runs[:count]
        over = state.merged if count == len(runs) else join(layers)
        start = 0 if runs[0].floor == FIRST else state.page_of(runs[0].floor) or 0
        step = _Step(start, start, count, [], [], set())
        builder = _Builder(self._limits, step.pages)
        end = start
        while end < len(pages) and len(step.replaced) < self._limits.step:
            page = pages[end]
            low, high = page.first if end else FIRST, state.page_end(end)
            if over.slice(low, high) or builder.wants(page):
                old = await self._objects.entries(page)
                step.replaced.append(page)
                step.dead.update(_dead(over, [old, *layers], low, high))
                builder.add([entry for piece in merge([old, over], low, high) for entry in piece])
            else:
                builder.cut()
                step.pages.append(page)
            end += 1
        if not pages:
            step.dead.update(_dead(over, layers, FIRST, LAST))
            for piece in merge([over], FIRST, LAST):
                builder.add(piece)
        builder.cut()
        return step._replace(end=end)

    def _mostly_dead(self, state: State) -> dict[int, Pack]:
        """The next packs to rewrite."""
        batch: dict[int, Pack] = {}
        size = 0
        for number, pack in state.directory.packs.items():
            if pack.live * 2 < pack.stored.size and size < _BATCH:
                batch[number] = pack
                size += pack.live
        return batch

    async def _rewrite(self, batch: dict[int, Pack], _: State) -> None:
        copies = [await self._copy(pack) for pack in batch.values()]

        async def name(stored: Sequence[StoredObject]) -> Callable[[State], Edit | None]:
            moved = {}
            for (number, old), where, data in zip(batch.items(), stored, copies, strict=True):
                moved[number] = Pack(secrets.token_bytes(16), old.size, where, old.dead, old.dead)
                await self._objects.admit(moved[number], data)
            return lambda now: _move(now.directory, batch, moved)

        await self._publisher.stow_and_publish(copies, name)

    async def _copy(self, pack: Pack) -> bytes:
        data = await self._vault.fetch(pack.stored)
        if len(data) != pack.size - sum(size for _, size in pack.cut):
            raise Corrupt("a pack does not have the size that the directory says")
        parts = []
        at = 0
        for offset, size in (*pack.dead, (pack.size, 0)):
            if offset > at:
                place = pack.place(Packed(0, at, offset - at))
                parts.append(data[place : place + offset - at])
            at = offset + size
        return b"".join(parts)


class _Builder:
    """Gathers entries and cuts them into pages of about one size."""

    def __init__(self, limits: Limits, pages: list[Page | _Fresh]) -> None:
        self._limits = limits
        self._pages = pages
        self._entries: list[Entry] = []
        self._size = 0

    def wants(self, page: Page) -> bool:
        """Whether a page that nothing changes is small enough to be joined with what was gathered."""
        return len(self._entries) > 0 and self._parts() == 1 and page.count * 4 < self._limits.page

    def add(self, entries: Sequence[Entry]) -> None:
        """Entries that follow those that are there."""
        self._entries += entries
        self._size += sum(map(_size, entries))
        if self._parts() > 8:
            self.cut()

    def cut(self) -> None:
        """Make pages of what is there."""
        if not self._entries:
            return
        share = self._size / self._parts()
        first, total, made = 0, 0, 1
        for index, entry in enumerate(self._entries):
            if index > first and (total >= share * made or index - first >= self._limits.page):
                self._make(self._entries[first:index])
                first, made = index, made + 1
            total += _size(entry)
        self._make(self._entries[first:])
        self._entries, self._size = [], 0

    def _parts(self) -> int:
        return 1 + max(self._size // self._limits.page_bytes, (len(self._entries) - 1) // self._limits.page)

    def _make(self, entries: Sequence[Entry]) -> None:
        values: list[Value | None] = [value for _, value in entries]
        data = encode(Entries(VERSION, [key for key, _ in entries], values))
        self._pages.append(_Fresh(entries[0][0], len(entries), data))


def _size(entry: Entry) -> int:
    key, value = entry
    inline = len(value.data) if isinstance(value.data, bytes) else 0
    return len(key[1]) + len(key[2]) + len(value.meta) + inline + _ENTRY_BYTES


def _dead(over: Layer, layers: Sequence[Layer], low: Key, high: Key) -> set[Packed]:
    """Payloads of these layers that no entry names once `over` is merged."""
    dead: set[Packed] = set()
    for layer in layers:
        for key in layer.slice(low, high):
            value = layer.values[key]
            if value is not None and isinstance(value.data, Packed) and key in over.values:
                above = over.values[key]
                if above is None or above.data != value.data:
                    dead.add(value.data)
    return dead


def _edit(now: State, planned: State, step: _Step, pages: tuple[Page, ...]) -> Edit | None:
    """The directory with a step made; None where another device has merged."""
    old, new = planned.directory, now.directory
    merged = new.runs[: step.runs]  # no step leaves them as they are
    if [(run.identity, run.floor) for run in merged] != [(run.identity, run.floor) for run in old.runs[: step.runs]]:
        return None
    discard = [page.stored for page in step.replaced]
    forget = [page.identity for page in step.replaced]
    rest: tuple[Run, ...] = new.runs[step.runs :]
    if step.end < len(old.pages):
        floor = old.pages[step.end].first
        rest = (*(msgspec.structs.replace(run, floor=floor) for run in merged), *rest)
    else:
        discard += [run.stored for run in merged]
        forget += [run.identity for run in merged]
    packs = dict(new.packs)
    ranges: dict[int, list[tuple[int, int]]] = {}
    for packed in step.dead:
        ranges.setdefault(packed.pack, []).append((packed.offset, packed.size))
    for number, dead in ranges.items():
        if number not in packs:
            raise Corrupt("an entry names a pack that the directory does not")
        packs[number] = packs[number].bury(dead)
        if packs[number].live == 0:
            gone = packs.pop(number)
            discard.append(gone.stored)
            forget.append(gone.identity)
    replaced = (*new.pages[: step.start], *pages, *new.pages[step.end :])
    return Edit(msgspec.structs.replace(new, pages=replaced, runs=rest, packs=packs), 0, discard, forget)


def _move(now: Directory, batch: dict[int, Pack], moved: dict[int, Pack]) -> Edit | None:
    """The directory with packs rewritten; None where one of them is another by now."""
    packs = dict(now.packs)
    for number, old in batch.items():
        if number not in packs or packs[number].identity != old.identity:
            return None
        packs[number] = msgspec.structs.replace(moved[number], dead=packs[number].dead)
    discard = [pack.stored for pack in batch.values()]
    return Edit(msgspec.structs.replace(now, packs=packs), 0, discard, [pack.identity for pack in batch.values()])
