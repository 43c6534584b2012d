"""Sending objects: sources to segments, segments to shards, shards to nodes, nodes' lists to a quorum.

    read -> encode (threads) -> PUT n shards at once -> stored -> listed at each node -> certified

Segments go in windows of a few: while one is listed, the next is read and stored. A segment's plaintext is kept until
all its shards are listed, and coding is deterministic: so the shards of a node that fails meanwhile are made again, for
another node, though the source is read only once. What is listed is durable and signed by both sides: a node that fails
after that is not needed for the certificate, which the client's own batch of deltas gets (`client_certifying.py`).

Invariant: after `send` and `certify` every one of the n shards of every segment is durable, and listed at a node of its
own operator; memory does not grow with the objects.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from freehold.protocol.certificates import faults
from freehold.protocol.errors import Conflict, FreeholdError, InsufficientCredits, InvalidInput, Unavailable
from freehold.protocol.typed import keccak
from freehold.protocol.units import Address, Hash
from freehold.services.storage.client_fleet import Fleet
from freehold.services.storage.client_lists import Lists
from freehold.services.storage.client_memory import Budget, Pool
from freehold.services.storage.client_node import StorageNode
from freehold.services.storage.client_objects import Code, StoredObject, StoredSegment
from freehold.services.storage.client_sources import Source
from freehold.services.storage.codec import EncodedSegment, SegmentKeys, Workspace, encode_segment, shard_size
from freehold.services.storage.repair_key import seal_repair_key
from freehold.services.storage.terms import ShardEntry

WINDOW_SEGMENTS = 4  # of the network's largest size, in bytes: listed by one delta a node
WINDOW_COUNT = 256  # segments, where they are small
PATIENCE_SECONDS = 10.0  # at the least, before a node counts as slow
PATIENCE_FACTOR = 5.0  # times what a shard usually takes
LONGEST_SECONDS = 120.0  # for one shard, where nobody could take over
RETRIES = 1  # at the same node, where trying again can help
RETRY_SECONDS = 0.5
FIRST_BYTES = 256 << 10  # of a buffer for a source of unknown size; it doubles

Progress = Callable[[int], None]
T = TypeVar("T")


class MemberKeys:
    """The members' public keys, to which repair keys are sealed."""

    def __init__(self, public: Sequence[bytes]) -> None:
        self._public = tuple(public)

    def seal(self, repair: bytes, roots: Sequence[bytes]) -> tuple[bytes, ...]:
        """Shares of a repair key, any f+1 of which open it."""
        if not self._public:
            return ()
        return seal_repair_key(repair, self._public, faults(len(self._public)) + 1, roots)


class Memory(NamedTuple):
    """What the uploads of one client share: bytes of plaintext beyond one segment each, bytes of segments that are
    being coded and sent, and the buffers for both."""

    ahead: Budget
    coding: Budget
    plain: Pool
    coded: Pool


@dataclass(eq=False)
class _Draft:
    """A segment on its way. `nodes[i]` is to hold shard i; `stored[i]`: it does; `positions[i]`: it is listed there."""

    size: int
    plaintext: memoryview
    keys: SegmentKeys
    nodes: list[StorageNode]
    stored: list[bool]
    counted: list[bool]  # among what is arriving at its node
    positions: list[int | None]
    release: Callable[[], None]
    failed: dict[Address, FreeholdError] = field(default_factory=dict)
    record: bytes = b""  # packed: what the nodes keep beside each shard
    roots: tuple[bytes, ...] = ()
    shard_size: int = 0

    def count(self, index: int, is_arriving: bool) -> None:
        """Have a shard counted among what is arriving at its node, or not any more."""
        room, was = self.nodes[index].room, self.counted[index]
        room.arriving += self.shard_size * (is_arriving - was)
        self.counted[index] = is_arriving

    def end(self) -> None:
        """Nothing of the segment is on its way any more; may be called twice."""
        for index in range(len(self.nodes)):
            self.count(index, False)
        self.release()
        self.plaintext, self.release = memoryview(b""), lambda: None


class Shipment:
    """Objects on their way to one fleet; `id` names what is listed for them in the book."""

    def __init__(
        self,
        id: str,
        fleet: Fleet,
        code: Code,
        segment_size: int,
        members: MemberKeys,
        lists: Lists,
        memory: Memory,
    ) -> None:
        self.id = id
        self._fleet = fleet
        self._k, self._n = code
        self._segment_size = segment_size
        self._members = members
        self._lists = lists
        self._memory = memory
        self._own = asyncio.Semaphore(1)  # the one segment's plaintext that needs no budget
        self._took: deque[float] = deque(maxlen=32)
        self._tasks: list[asyncio.Task[None]] = []

    async def send(self, sources: Sequence[Source], progress: Progress | None = None) -> list[StoredObject]:
        """Read the sources one after the other, store and list them; an object each, in their order.

        `progress` hears of plaintext bytes as they are stored. Raises what a source raises, InsufficientOperators,
        InsufficientCredits; what was listed until then is garbage.
        """
        objects: list[list[_Draft]] = []
        window = _Window(self._segment_size * WINDOW_SEGMENTS)
        try:
            for source in sources:
                objects.append([])
                await self._read(source, objects[-1], window, progress)
                await self._while_running(source.finish())
            self._close(window)
            await _all(self._tasks)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._tasks.clear()
            for drafts in objects:
                for draft in drafts:
                    draft.end()
        return [StoredObject(sum(d.size for d in drafts), tuple(map(self._stored, drafts))) for drafts in objects]

    async def certify(self) -> None:
        """Have a quorum hold what the nodes signed, now or soon. Only after this may a head name it."""
        await self._lists.certify()

    async def _read(self, source: Source, drafts: list[_Draft], window: _Window, progress: Progress | None) -> None:
        done = 0
        while source.size is None or done < source.size:
            wanted = self._segment_size if source.size is None else min(self._segment_size, source.size - done)
            release = await self._take(wanted, window)
            space = self._memory.plain.lend(wanted)
            try:
                plaintext = await self._while_running(_fill(source, space, wanted, known=source.size is not None))
                done += len(plaintext)
                if len(plaintext) < wanted and source.size is not None:
                    await source.finish()  # which may know better why
                    raise InvalidInput(f"the source ended after {done} of {source.size} bytes")
            except BaseException:
                release()
                raise
            draft = self._draft(plaintext, release)
            drafts.append(draft)
            if plaintext:
                window.add(draft, self._start(self._store(draft, progress)), space)
            else:
                drafts.pop().end()
            if window.is_full:
                self._close(window)
            if len(plaintext) < wanted:
                return

    async def _take(self, size: int, window: _Window) -> Callable[[], None]:
        """Room for a segment's plaintext; what gives it back. Before it waits, what is stored is sent to be listed."""
        budget = self._memory.ahead
        if not self._own.locked():
            await self._own.acquire()
            return self._own.release
        if budget.try_take(size):
            return lambda: budget.give(size)
        self._close(window)
        own, ahead = asyncio.ensure_future(self._own.acquire()), asyncio.ensure_future(budget.take(size))
        goes_on = False
        try:
            await self._while_running(asyncio.wait({own, ahead}, return_when=asyncio.FIRST_COMPLETED))
            goes_on = True
        finally:
            for task in (own, ahead):
                task.cancel()
            await asyncio.gather(own, ahead, return_exceptions=True)
            has_own, has_ahead = (not task.cancelled() for task in (own, ahead))
            if has_ahead and (has_own or not goes_on):
                budget.give(size)
        return self._own.release if has_own else lambda: budget.give(size)

    def _draft(self, plaintext: memoryview, release: Callable[[], None]) -> _Draft:
        return _Draft(
            size=len(plaintext),
            plaintext=plaintext,
            keys=SegmentKeys.random(),
            nodes=self._fleet.draw(),
            stored=[False] * self._n,
            counted=[False] * self._n,
            positions=[None] * self._n,
            release=release,
            shard_size=shard_size(len(plaintext), self._k),
        )

    # A window: what is listed together

    def _close(self, window: _Window) -> None:
        """Have a window listed as soon as it is stored, and go on with an empty one."""
        if window.drafts:
            self._tasks = [task for task in self._tasks if not task.done() or task.exception() is not None]
            self._start(self._list_window(window.drafts, window.stores, window.spaces))
            window.clear()

    async def _list_window(
        self, drafts: Sequence[_Draft], stores: Sequence[asyncio.Task[None]], spaces: Sequence[Workspace]
    ) -> None:
        await asyncio.gather(*stores)
        while todo := [draft for draft in drafts if None in draft.positions]:
            await self._list(todo)
            await _all(self._store(draft, None) for draft in todo if not all(draft.stored))
        for draft, space in zip(drafts, spaces, strict=True):
            self._memory.plain.take_back(space, draft.size)
            draft.end()

    def _start(self, work: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.append(task)
        return task

    async def _while_running(self, work: Awaitable[T]) -> T:
        """Wait for something, unless one of this shipment's tasks fails first: then for nothing more."""
        waiting = asyncio.ensure_future(work)
        try:
            while not waiting.done():
                running = {task for task in self._tasks if not task.done()}
                await asyncio.wait({waiting, *running}, return_when=asyncio.FIRST_COMPLETED)
                for task in running:
                    if task.done():
                        task.result()
            return waiting.result()
        finally:
            if not waiting.done():
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)

    # Storing

    async def _store(self, draft: _Draft, progress: Progress | None) -> None:
        """Bring every missing shard of a segment to its node, or to who takes over from it."""
        coding, size = self._memory.coding, (self._k + self._n) * draft.shard_size
        missing = [i for i in range(self._n) if not draft.stored[i]]
        for i in missing:
            draft.count(i, True)
        await self._fleet.cover([draft.nodes[i] for i in missing], 0)
        await coding.take(size)
        try:
            space = self._memory.coded.lend(draft.size)
            segment = await asyncio.to_thread(self._encode, draft, space)
            await _all(self._put(draft, i, segment.shards[i]) for i in missing)
            self._memory.coded.take_back(space, draft.size)
        finally:
            coding.give(size)
        if progress is not None:
            progress(draft.size)

    def _encode(self, draft: _Draft, space: Workspace) -> EncodedSegment:
        """The shards; blocks. They are the same each time."""
        segment = encode_segment(draft.plaintext, draft.keys, self._k, self._n, space)
        if not draft.record:
            draft.roots = segment.roots
            draft.record = segment.record(self._members.seal(draft.keys.repair, segment.roots)).to_bytes()
        return segment

    async def _put(self, draft: _Draft, index: int, shard: memoryview) -> None:
        root, again = Hash(draft.roots[index]), RETRIES
        while True:
            node, started = draft.nodes[index], time.monotonic()
            try:
                async with asyncio.timeout(self._patience(draft)):
                    await node.put_shard(index, root, draft.record, shard)
            except TimeoutError:
                slow = Unavailable(f"{node.leases.endpoint} is far slower than the others")
                await self._replace(draft, index, slow)
            except FreeholdError as error:
                if isinstance(error, InsufficientCredits) and again:
                    again -= 1
                    with suppress(InsufficientCredits):
                        if await self._fleet.renew(node, 0):
                            continue
                elif error.retryable and again:
                    again -= 1
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
                await self._replace(draft, index, error)
            else:
                self._took.append(time.monotonic() - started)
                draft.stored[index] = True
                return

    def _patience(self, draft: _Draft) -> float:
        if not self._fleet.has_spare(draft.nodes):
            return LONGEST_SECONDS
        usual = statistics.median(self._took) if self._took else 0.0
        return max(PATIENCE_SECONDS, PATIENCE_FACTOR * usual)

    async def _replace(self, draft: _Draft, index: int, error: FreeholdError) -> None:
        """Another node for a shard; what the one before stored of it does not count."""
        draft.failed[draft.nodes[index].address] = error
        is_arriving = draft.counted[index]
        draft.count(index, False)
        draft.stored[index] = False
        await self._fleet.substitute(draft.nodes, index, draft.failed, draft.shard_size)
        draft.count(index, is_arriving)

    # Listing

    async def _list(self, drafts: Sequence[_Draft]) -> None:
        """Put what each node holds into its list; where one fails, what it holds goes to another."""
        by_node: defaultdict[StorageNode, list[tuple[_Draft, int]]] = defaultdict(list)
        for draft in drafts:
            for i, node in enumerate(draft.nodes):
                if draft.stored[i] and draft.positions[i] is None:
                    by_node[node].append((draft, i))
        await _all(self._list_at(node, shards) for node, shards in by_node.items())

    async def _list_at(self, node: StorageNode, shards: Sequence[tuple[_Draft, int]]) -> None:
        try:
            positions = await self._lists.add(node, self.id, [_entry(*shard) for shard in shards])
        except Conflict:
            raise
        except FreeholdError as error:
            for draft, i in shards:
                await self._replace(draft, i, error)
            return
        for (draft, i), position in zip(shards, positions, strict=True):
            draft.positions[i] = position
            draft.count(i, False)

    def _stored(self, draft: _Draft) -> StoredSegment:
        return StoredSegment(
            size=draft.size,
            k=self._k,
            shard_size=draft.shard_size,
            record=bytes(keccak(draft.record)),
            keys=draft.keys.to_bytes(),
            roots=draft.roots,
            nodes=tuple(bytes(node.address) for node in draft.nodes),
            positions=tuple(position for position in draft.positions if position is not None),
        )


class _Window:
    """Segments that are to be listed together, the tasks that store them, and the buffers of their plaintext."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.clear()

    def clear(self) -> None:
        self.drafts: list[_Draft] = []
        self.stores: list[asyncio.Task[None]] = []
        self.spaces: list[Workspace] = []

    @property
    def is_full(self) -> bool:
        return len(self.drafts) >= WINDOW_COUNT or sum(draft.size for draft in self.drafts) >= self._limit

    def add(self, draft: _Draft, store: asyncio.Task[None], space: Workspace) -> None:
        self.drafts.append(draft)
        self.stores.append(store)
        self.spaces.append(space)


def _entry(draft: _Draft, index: int) -> ShardEntry:
    return ShardEntry(record=keccak(draft.record), index=index, root=Hash(draft.roots[index]), size=draft.shard_size)


async def _fill(source: Source, space: Workspace, wanted: int, *, known: bool) -> memoryview:
    """The next `wanted` bytes of a source in the workspace, or what there is; a buffer as large as that needs."""
    room, done = wanted if known else min(FIRST_BYTES, wanted), 0
    buffer = space.take("plaintext", room)
    while True:
        done += await source.read(buffer[done:])
        if done < room or room == wanted:
            return buffer[:done]
        room = min(2 * room, wanted)
        larger = space.take("plaintext", room)
        larger[:done] = buffer[:done]
        buffer = larger


async def _all(work: Iterable[Awaitable[T]]) -> list[T]:
    """Every result; the first failure ends the others, and is raised by itself."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
