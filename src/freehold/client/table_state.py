"""What one head says, and the register that keeps the newest head known.

A `State` never changes. `Register.set` finds out what became of a change whose outcome was unknown: each change of the
head leaves an identity in its frames or its directory, and a change that expects a version which has passed without
leaving it can no longer come about. Invariants: `newest` never goes back; `fresh` is at least as new as any change that
was acknowledged before it was called.
"""

from __future__ import annotations

import asyncio
import random
import time
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import msgspec

from freehold.client.heads import Head, Heads
from freehold.client.sealing import Sealer
from freehold.client.table_layers import Layer, join
from freehold.client.table_objects import GONE, Objects
from freehold.client.table_records import (
    LAST,
    VERSION,
    Base,
    Directory,
    Frame,
    Key,
    Page,
    Value,
    decode_base,
    decode_directory,
    decode_frame,
    encode,
)
from freehold.protocol.errors import (
    Conflict,
    Corrupt,
    FreeholdError,
    InvalidInput,
    NotFound,
    Unavailable,
    WrongPassphrase,
)
from freehold.services.storage.client_objects import StoredObject

BASE, FRAME = b"base", b"frame"
RECENT = 512  # identities of changes that a directory keeps


@dataclass(frozen=True, slots=True)
class State:
    """`container` is the object that holds the directory, if one does; `merged` is all runs, `tail` all frames.

    `number` counts the commits so far, `tail_bytes` what the frames take in the head.
    """

    head: Head
    directory: Directory
    container: StoredObject | None
    firsts: Sequence[Key]
    runs: tuple[Layer, ...]
    merged: Layer
    frames: tuple[Frame, ...]
    tail: Layer
    tail_bytes: int
    number: int

    def has(self, identity: bytes) -> bool:
        """Whether this change of the head came about, not long ago."""
        return identity in self.directory.recent or any(frame.identity == identity for frame in self.frames)

    def page_of(self, key: Key) -> int | None:
        """Which page has the key if any has; None where there are no pages."""
        return max(0, bisect_right(self.firsts, key) - 1) if self.firsts else None

    def page_before(self, end: Key) -> int | None:
        """Which page has the last key before `end` if any has; None where there are no pages."""
        return max(0, bisect_left(self.firsts, end) - 1) if self.firsts else None

    def page_end(self, index: int) -> Key:
        """Where the next page begins."""
        return self.firsts[index + 1] if index + 1 < len(self.firsts) else LAST

    def names(self, page: Page) -> bool:
        """Whether the directory still names this page."""
        at = bisect_left(self.firsts, page.first)
        return at < len(self.firsts) and self.directory.pages[at].identity == page.identity

    def with_frames(self, head: Head, frames: Sequence[Frame]) -> State:
        """The state after more frames; Corrupt if one does not follow the one before."""
        changes: dict[Key, Value | None] = {}
        number = self.number
        for frame in frames:
            if frame.first != number + 1:
                raise Corrupt(f"a frame begins at {frame.first}, after {number}")
            number += frame.count
            changes.update(frame.changes)
        tail = self.tail.with_changes(changes) if changes else self.tail
        size = self.tail_bytes + sum(map(len, head.frames[len(self.frames) :]))
        return replace(self, head=head, frames=(*self.frames, *frames), tail=tail, tail_bytes=size, number=number)


class Register:
    """The head of one table. Whoever changes the head holds `writing`, so that this process is never its own rival."""

    def __init__(self, heads: Heads, name: str, sealer: Sealer, objects: Objects, patience: float) -> None:
        self.heads = heads
        self.name = name
        self.sealer = sealer
        self.objects = objects
        self.newest: State | None = None
        self.writing = asyncio.Lock()
        self._patience = patience
        self._adopting = asyncio.Lock()
        self._reading: asyncio.Task[State] | None = None
        self._next: asyncio.Task[State] | None = None

    async def known(self) -> State:
        """The newest state that this process knows; NotFound where there is no table."""
        return self.newest or await self.read()

    async def fresh(self) -> State:
        """A state read after this was called; callers that overlap share one read."""
        if self._next is None:
            self._next = asyncio.create_task(self._read_after(self._reading))
            self._next.add_done_callback(_retrieve)
        return await asyncio.shield(self._next)

    async def read(self) -> State:
        """Read the head and what it needs; NotFound where there is no table."""
        failed: int | None = None
        while True:
            head = await self.heads.read(self.name)
            if head is None:
                raise NotFound("there is no such table: it was never made, or is gone")
            try:
                return await self.adopt(head)
            except GONE:
                if failed == head.version:
                    raise  # nobody replaced what we miss
                failed = head.version

    async def adopt(self, head: Head) -> State:
        """The state of this head, or a newer one that is known."""
        async with self._adopting:
            known = self.newest
            if known is None or head.version > known.head.version:
                self.advance(await self._build(head, known))
            assert self.newest is not None
            return self.newest

    def advance(self, state: State) -> None:
        """Take a state if it is newer than the newest."""
        if self.newest is None or state.head.version > self.newest.head.version:
            self.newest = state

    async def set(self, state: State, new: Head | None, identity: bytes) -> bool:
        """Whether the head of `state` was replaced; False: surely not. Unavailable: that remains unknown.

        `identity` must be in `new`: the same bytes are sent until the outcome is known, so they count once.
        """
        deadline = time.monotonic() + self._patience
        doubt, pause = "", 0.02
        while True:
            try:
                await self.heads.compare_and_set(self.name, state.head, new)
                return True
            except Conflict:
                if not doubt:
                    return False
            except InvalidInput:
                raise
            except FreeholdError as error:
                doubt = error.message
            outcome = await self._outcome(state, new, identity)
            if outcome is not None:
                return outcome
            if time.monotonic() >= deadline:
                raise Unavailable(f"it is not known whether the change came about: {doubt}", outcome="unknown")
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(1.0, pause * 2)

    async def _outcome(self, state: State, new: Head | None, identity: bytes) -> bool | None:
        """What became of a change; None while that cannot be told."""
        try:
            head = await self.heads.read(self.name)
            newest = await self.adopt(head) if head is not None and head.version > state.head.version else None
        except FreeholdError:
            return None
        if head is None:
            if new is None:
                return True
            raise NotFound("the table is gone")
        if newest is None:
            return None  # it may still be under way
        if new is None or newest.has(identity):
            return new is not None
        # A directory has the last changes only; a new base stands in it before the frames that it left.
        passed = newest.head.version - state.head.version + (len(new.frames) if new.base != state.head.base else 0)
        if passed > RECENT and len(newest.directory.recent) >= RECENT:
            raise Unavailable("too much has changed since to tell whether the change came about", outcome="unknown")
        return False

    async def _read_after(self, previous: asyncio.Task[State] | None) -> State:
        if previous is not None:
            await asyncio.wait([previous])
        self._reading, self._next = self._next, None  # who calls from now on waits for the next
        return await self.read()

    async def _build(self, head: Head, known: State | None) -> State:
        if known is not None and _follows(head, known.head):
            state = known
        else:
            state = await self._load(head, known)
        decoded = dict(zip(known.head.frames, known.frames, strict=True)) if known is not None else {}
        frames = [decoded.get(raw) or self._open_frame(raw) for raw in head.frames[len(state.frames) :]]
        return state.with_frames(head, frames)

    async def _load(self, head: Head, known: State | None) -> State:
        container: StoredObject | None = None
        found = decode_base(self.sealer.open(BASE, head.base)).directory
        if isinstance(found, StoredObject):
            container = found
            found = await self.objects.fetch(identity_of(container), container)
        directory = decode_directory(found)
        runs: list[Layer] = []
        had = dict(zip((run.identity for run in known.directory.runs), known.runs, strict=True)) if known else {}
        for run in directory.runs:
            layer = had.get(run.identity) or await self.objects.entries(run)
            runs.append(layer.between(run.floor, LAST))
        merged = _merge_runs(directory, runs, known)
        firsts = [page.first for page in directory.pages]
        bare = Head(head.version, head.base)
        return State(bare, directory, container, firsts, tuple(runs), merged, (), Layer(), 0, directory.number)

    def _open_frame(self, raw: bytes) -> Frame:
        try:
            return decode_frame(self.sealer.open(FRAME, raw))
        except WrongPassphrase:  # the base opened
            raise Corrupt("a frame of the head was changed") from None


def identity_of(stored: StoredObject) -> bytes:
    """A name for an object that has no other."""
    return sha256(msgspec.msgpack.encode(stored)).digest()[:16]


def seal_base(sealer: Sealer, directory: bytes | StoredObject) -> bytes:
    """A head's base."""
    return sealer.seal(BASE, encode(Base(VERSION, directory)))


def seal_frame(sealer: Sealer, frame: Frame) -> bytes:
    """A frame as it stands in a head."""
    return sealer.seal(FRAME, encode(frame))


def _follows(head: Head, known: Head) -> bool:
    """Whether only frames were appended."""
    count = len(known.frames)
    return (
        head.base == known.base
        and len(head.frames) >= count
        and (count == 0 or head.frames[count - 1] == known.frames[count - 1])
    )


def _merge_runs(directory: Directory, runs: Sequence[Layer], known: State | None) -> Layer:
    if known is not None and directory.runs[: len(known.runs)] == known.directory.runs:
        merged = known.merged
        for layer in runs[len(known.runs) :]:
            merged = merged.with_changes(layer.values)
        return merged
    return join(runs)


def _retrieve(task: asyncio.Task[State]) -> None:
    if not task.cancelled():
        task.exception()  # each who waits has it
