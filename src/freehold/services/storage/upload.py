"""Sending one change of a bucket: objects to shards, shards to nodes, nodes' lists to a quorum.

    read -> encode (threads) -> PUT n shards at once          up to DEPTH segments in flight, a workspace each
    -> the source is still the same -> plan and delta at each node -> one certified batch of deltas

Nothing is said to be stored before all of that. A node that fails, or takes far longer than the others while a spare
is there, is replaced: coding is deterministic, so its shards of earlier segments are made again from the source and
the segment's keys. Invariant: when `send` returns, every one of the n shards of every segment is durable and listed at
a node of its own operator; memory does not grow with the object.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from freehold.market.quorum import Quorum
from freehold.protocol.certificates import faults
from freehold.protocol.errors import Conflict, FreeholdError, InvalidInput, Unavailable
from freehold.protocol.keys import Key
from freehold.protocol.typed import keccak
from freehold.protocol.units import Address, Hash
from freehold.services.storage.client_fleet import Fleet
from freehold.services.storage.client_lists import ListBook, certify_deltas, change_list
from freehold.services.storage.client_node import StorageNode
from freehold.services.storage.client_objects import StoredObject, StoredSegment
from freehold.services.storage.client_sources import Source
from freehold.services.storage.codec import EncodedSegment, SegmentKeys, Workspace, encode_segment
from freehold.services.storage.names import PathSecret, segment_context
from freehold.services.storage.repair_key import seal_repair_key
from freehold.services.storage.terms import ShardEntry

DEPTH = 3  # segments in flight
PATIENCE_SECONDS = 10.0  # at the least, before a node counts as slow
PATIENCE_FACTOR = 5.0  # times what a shard usually takes
LONGEST_SECONDS = 120.0  # for one shard, where nobody could take over
LIST_SECONDS = 60.0
ENTRIES_AT_ONCE = 2048  # a plan stays below the limit of a request's JSON
RETRIES = 1  # at the same node, where trying again can help
RETRY_SECONDS = 0.5

Progress = Callable[[int], None]
T = TypeVar("T")


@dataclass
class _Draft:
    """A segment on its way. `holders[i]` has stored shard i; `positions[i]` is where it is listed there."""

    index: int
    offset: int
    size: int
    aad: bytes
    keys: SegmentKeys
    holders: list[Address | None]
    positions: list[int | None]
    record: bytes = b""  # packed: what the nodes keep beside each shard
    roots: tuple[bytes, ...] = ()
    shard_size: int = 0


class MemberKeys:
    """The members' public keys, to which repair keys are sealed."""

    def __init__(self, public: Sequence[bytes]) -> None:
        self._public = tuple(public)

    def seal(self, repair: bytes, roots: Sequence[bytes]) -> tuple[bytes, ...]:
        """Shares of a repair key, any f+1 of which open it."""
        if not self._public:
            return ()
        return seal_repair_key(repair, self._public, faults(len(self._public)) + 1, roots)


class Shipment:
    """One change of a bucket on its way to one fleet; `id` names it in the book."""

    def __init__(
        self,
        id: str,
        fleet: Fleet,
        code: tuple[int, int],
        segment_size: int,
        key: Key,
        quorum: Quorum,
        members: MemberKeys,
        book: ListBook,
    ) -> None:
        self.id = id
        self._fleet = fleet
        self._k, self._n = code
        self._segment_size = segment_size
        self._key = key
        self._quorum = quorum
        self._members = members
        self._book = book
        self._spaces = [Workspace() for _ in range(DEPTH)]
        self._took: deque[float] = deque(maxlen=32)

    async def send(
        self, source: Source, secret: PathSecret, bucket: str, path: str, progress: Progress | None = None
    ) -> StoredObject:
        """Store and list an object under the encrypted `path`; `progress` hears of plaintext bytes as they are stored.

        Raises SourceChanged, InsufficientOperators, InsufficientCredits; what was listed until then is garbage.
        """
        drafts = [
            _Draft(
                index=i,
                offset=offset,
                size=min(self._segment_size, source.size - offset),
                aad=segment_context(bucket, path, i),
                keys=SegmentKeys.random(),
                holders=[None] * self._n,
                positions=[None] * self._n,
            )
            for i, offset in enumerate(range(0, source.size, self._segment_size))
        ]
        await self._store(drafts, source, progress)
        await asyncio.to_thread(source.check)
        while todo := [draft for draft in drafts if None in draft.positions]:
            await self._list(todo)
            await self._store([draft for draft in todo if None in draft.holders], source, None)
            await asyncio.to_thread(source.check)
        return StoredObject(source.size, tuple(self._stored(draft, secret) for draft in drafts))

    async def certify(self) -> None:
        """Have a quorum hold what the nodes signed. Only after this may a head name it."""
        await certify_deltas(self._key, self._quorum, self._book)

    def _stored(self, draft: _Draft, secret: PathSecret) -> StoredSegment:
        return StoredSegment(
            size=draft.size,
            k=self._k,
            shard_size=draft.shard_size,
            record=bytes(keccak(draft.record)),
            wrapped=secret.wrap(draft.keys.to_bytes()),
            roots=draft.roots,
            nodes=tuple(bytes(holder) for holder in draft.holders if holder is not None),
            positions=tuple(position for position in draft.positions if position is not None),
        )

    async def _store(self, drafts: Sequence[_Draft], source: Source, progress: Progress | None) -> None:
        """Bring every missing shard of the drafts to the node of its slot."""
        spaces: asyncio.Queue[Workspace] = asyncio.Queue()
        for space in self._spaces:
            spaces.put_nowait(space)
        waiting = iter(drafts)

        async def work() -> None:
            space = spaces.get_nowait()
            for draft in waiting:
                await self._store_segment(draft, source, space)
                if progress is not None:
                    progress(draft.size)

        await _all(work() for _ in range(min(DEPTH, len(drafts))))
        again = [draft for draft in drafts if None in draft.holders]
        if again:
            await self._store(again, source, None)

    async def _store_segment(self, draft: _Draft, source: Source, space: Workspace) -> None:
        segment = await asyncio.to_thread(self._encode, draft, source, space)
        missing = [i for i in range(self._n) if draft.holders[i] is None]
        await _all(self._put(draft, i, segment.shards[i]) for i in missing)
        self._forget_failed([draft])

    def _encode(self, draft: _Draft, source: Source, space: Workspace) -> EncodedSegment:
        """Read and encode a segment; blocks. The second time it comes out the same, or the source has changed."""
        plaintext = space.take("plaintext", draft.size)
        source.read(draft.offset, plaintext)
        segment = encode_segment(plaintext, draft.keys, self._k, self._n, draft.aad, space)
        if not draft.record:
            draft.roots, draft.shard_size = segment.roots, segment.shard_size
            draft.record = segment.record(self._members.seal(draft.keys.repair, segment.roots)).to_bytes()
        elif segment.roots != draft.roots:
            source.check()
            raise InvalidInput("the source gave other bytes when it was read again")
        return segment

    async def _put(self, draft: _Draft, index: int, shard: memoryview) -> None:
        slot, root = self._fleet.slot(draft.index, index), Hash(draft.roots[index])
        again = RETRIES
        while True:
            node = self._fleet.slots[slot]
            started = time.monotonic()
            try:
                async with asyncio.timeout(self._patience()):
                    await node.put_shard(index, root, draft.record, shard)
            except TimeoutError:
                slow = Unavailable(f"{node.leases.endpoint} is far slower than the others")
                await self._fleet.replace(slot, node, slow)
            except FreeholdError as error:
                if error.retryable and again:
                    again -= 1
                    await asyncio.sleep(RETRY_SECONDS)
                else:
                    await self._fleet.replace(slot, node, error)
            else:
                self._took.append(time.monotonic() - started)
                draft.holders[index] = node.address
                return

    def _patience(self) -> float:
        if not self._fleet.has_spare:
            return LONGEST_SECONDS
        usual = statistics.median(self._took) if self._took else 0.0
        return max(PATIENCE_SECONDS, PATIENCE_FACTOR * usual)

    def _forget_failed(self, drafts: Iterable[_Draft]) -> None:
        """What a failed node stored, but never listed, does not count."""
        for draft in drafts:
            for i, holder in enumerate(draft.holders):
                if holder in self._fleet.failed and draft.positions[i] is None:
                    draft.holders[i] = None

    async def _list(self, drafts: Sequence[_Draft]) -> None:
        """Put what each node holds into its list; nodes that fail lose their slots and what they hold."""
        by_node: defaultdict[Address, list[tuple[_Draft, int]]] = defaultdict(list)
        self._forget_failed(drafts)
        for draft in drafts:
            for i, holder in enumerate(draft.holders):
                if holder is not None and draft.positions[i] is None:
                    by_node[holder].append((draft, i))
        slots = {node.address: (slot, node) for slot, node in enumerate(self._fleet.slots)}
        await _all(self._list_at(*slots[address], shards) for address, shards in by_node.items())
        self._forget_failed(drafts)

    async def _list_at(self, slot: int, node: StorageNode, shards: Sequence[tuple[_Draft, int]]) -> None:
        try:
            for at in range(0, len(shards), ENTRIES_AT_ONCE):
                some = shards[at : at + ENTRIES_AT_ONCE]
                async with asyncio.timeout(LIST_SECONDS):
                    positions = await change_list(node, [_entry(*shard) for shard in some], self._book, self.id)
                for (draft, i), position in zip(some, positions, strict=True):
                    draft.positions[i] = position
        except TimeoutError:
            error = Unavailable(f"{node.leases.endpoint} did not sign its list within {LIST_SECONDS:.0f} s")
            await self._fleet.replace(slot, node, error)
        except Conflict:
            raise
        except FreeholdError as refusal:
            await self._fleet.replace(slot, node, refusal)


def _entry(draft: _Draft, index: int) -> ShardEntry:
    return ShardEntry(record=keccak(draft.record), index=index, root=Hash(draft.roots[index]), size=draft.shard_size)


async def _all(work: Iterable[Awaitable[T]]) -> list[T]:
    """Every result; the first failure ends the others, and is raised by itself."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
