"""Reading objects back: the fastest k of n shards a segment, checked before use, decoded, decrypted, in order.

    sessions (shared, `client_sessions.py`) -> start k GETs (quick nodes first, data before parity)
    -> one more whenever one fails or takes too long -> each shard's tree against its root (threads)
    -> decode and decrypt (threads) -> the caller, in order

Any n - k shards of each segment may be missing or wrong. A shard with the wrong root is never used, nor
counted as received; the header that its node signed is handed to `evidence` (it proves something only where the node
signed the root of what it sent). All reads of a client share one downloader, and what it learned of who is quick.
Invariant: what is yielded is the object's bytes, in order, or an error ends it; memory does not grow with the object.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from freehold.market.vouchers import Vouchers
from freehold.protocol.errors import (
    Conflict,
    Corrupt,
    FreeholdError,
    InsufficientCredits,
    InvalidInput,
    Refused,
    Unavailable,
)
from freehold.protocol.units import Address, Hash
from freehold.services.storage.client_memory import Budget, Pool
from freehold.services.storage.client_node import StorageNode
from freehold.services.storage.client_objects import StoredObject, StoredSegment
from freehold.services.storage.client_sessions import compute_cost
from freehold.services.storage.codec import SegmentKeys, VerifiedShard, Workspace, decode_verified, verify_shard
from freehold.services.storage.terms import Served

DEPTH = 3  # segments in flight
FIRST_HEDGE_SECONDS = 1.0  # before anything is known of how long a shard takes
LEAST_HEDGE_SECONDS = 0.4
HEDGE_FACTOR = 3.0
FORGIVEN_SECONDS = 30.0  # after which a node that failed is asked as any other; as often again for each failure
LONGEST_FORGIVEN = 600.0
AGREEMENTS = 5  # times a node may correct what this client thinks it owes, a shard: for requests cut short of late
RIVALS = 20  # times more, where it shows that another device of this account has paid it meanwhile

Evidence = Callable[[Address, Served, str], None]
Check = Callable[[Served, float], Awaitable[VerifiedShard]]  # and the seconds that it took to arrive


class Reading(Protocol):
    """Who has sessions with nodes (`client_sessions.py`)."""

    async def reading(
        self, addresses: Collection[Address], each: int, enough: int
    ) -> tuple[dict[Address, StorageNode], dict[Address, FreeholdError]]:
        """Sessions under which each node may send `each` bytes, and what the others answered."""

    def distrust(self, node: StorageNode, error: FreeholdError) -> None:
        """A node failed in a way that a new session may mend."""


class Memory(NamedTuple):
    """What the reads of one client share: bytes that are fetched beyond one segment each, and the buffers."""

    ahead: Budget
    buffers: Pool


class _Record:
    """How a node has done so far: `seconds` a shard, moving average; failures since it last did well."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._failures = 0
        self._until = 0.0

    @property
    def failures(self) -> int:
        """0 once it has had time to recover."""
        return self._failures if time.monotonic() < self._until else 0

    def succeed(self) -> None:
        self._failures = 0

    def fail(self) -> None:
        self._failures += 1
        self._until = time.monotonic() + min(FORGIVEN_SECONDS * self._failures, LONGEST_FORGIVEN)


@dataclass
class _Part:
    """One segment of a read: its bytes `first` to `last` are wanted; `each` is what any node may have to send yet."""

    segment: StoredSegment
    index: int
    first: int
    last: int
    each: int


class Downloader:
    """Reads objects; one for any number of reads at once."""

    def __init__(self, sessions: Reading, vouchers: Vouchers, evidence: Evidence, memory: Memory) -> None:
        self._sessions = sessions
        self._vouchers = vouchers
        self._evidence = evidence
        self._memory = memory
        self._records: defaultdict[Address, _Record] = defaultdict(_Record)
        self._took: deque[float] = deque(maxlen=32)

    async def read(
        self, stored: StoredObject, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[memoryview, None]:
        """The bytes from `offset`, in order; each view stands until the next is asked for.

        Unavailable or Corrupt where fewer than k shards of a segment are left; WrongPassphrase for other keys.
        """
        end = stored.size if length is None else offset + length
        if not 0 <= offset <= end <= stored.size:
            raise InvalidInput(f"bytes {offset} to {end} of an object of {stored.size}")
        parts = deque(_cut(stored, offset, end))
        running: deque[tuple[asyncio.Task[memoryview], _Part, Workspace]] = deque()
        taken = 0  # bytes of the budget that this read holds
        try:
            while parts or running:
                while parts and len(running) < DEPTH:
                    size = 0 if not running else _footprint(parts[0].segment)
                    if not self._memory.ahead.try_take(size):
                        break
                    taken += size
                    part = parts.popleft()
                    space = self._memory.buffers.lend(part.segment.size)
                    running.append((asyncio.create_task(self._fetch(part, space)), part, space))
                plain = await running[0][0]
                _, part, space = running.popleft()
                yield plain[part.first : part.last]
                self._memory.buffers.take_back(space, part.segment.size)
                if running:  # the next one is the one that needs no budget
                    size = min(taken, _footprint(running[0][1].segment))
                    self._memory.ahead.give(size)
                    taken -= size
        finally:
            self._memory.ahead.give(taken)
            for task, *_ in running:
                task.cancel()
            await asyncio.gather(*(task for task, *_ in running), return_exceptions=True)

    async def _fetch(self, part: _Part, space: Workspace) -> memoryview:
        segment = part.segment
        keys = SegmentKeys.from_bytes(segment.keys)
        shards = await self._gather(part, space)
        return await asyncio.to_thread(decode_verified, segment.to_record(), shards, segment.size, keys, space)

    async def _gather(self, part: _Part, space: Workspace) -> list[VerifiedShard]:
        """k verified shards; their buffers are the workspace's."""
        segment = part.segment
        addresses = [Address(node) for node in segment.nodes]
        nodes, errors = await self._sessions.reading(addresses, part.each, segment.k)
        waiting = deque(self._order(segment, nodes))
        running: dict[asyncio.Task[VerifiedShard], StorageNode] = {}
        good: list[VerifiedShard] = []

        def start() -> None:
            shard = waiting.popleft()
            node = nodes[addresses[shard]]
            buffer = space.take(f"shard {shard}", segment.shard_size)
            running[asyncio.create_task(self._get(node, segment, shard, buffer))] = node

        try:
            while len(good) < segment.k:
                while waiting and len(running) + len(good) < segment.k:
                    start()
                if not running:
                    raise _too_few(part, len(good), errors)
                done, _ = await asyncio.wait(
                    running, timeout=self._hedge() if waiting else None, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    start()
                for task in done:
                    node = running.pop(task)
                    try:
                        good.append(task.result())
                        self._records[node.address].succeed()
                    except FreeholdError as error:
                        errors[node.address] = error
                        self._records[node.address].fail()
                        if isinstance(error, Unavailable | Refused | InsufficientCredits):
                            self._sessions.distrust(node, error)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        return good[: segment.k]

    def _order(self, segment: StoredSegment, nodes: Mapping[Address, StorageNode]) -> list[int]:
        """Shards by how their nodes do: failures, then speed in powers of two, then data before parity."""
        records = {i: self._records[Address(node)] for i, node in enumerate(segment.nodes) if node in nodes}
        best = min((record.seconds for record in records.values() if record.seconds), default=0.0)

        def rank(shard: int) -> tuple[int, int, int]:
            record = records[shard]
            slower = int(record.seconds / best).bit_length() if best else 0
            return record.failures, max(0, slower - 1), shard

        return sorted(records, key=rank)

    def _hedge(self) -> float:
        if not self._took:
            return FIRST_HEDGE_SECONDS
        return max(LEAST_HEDGE_SECONDS, HEDGE_FACTOR * statistics.median(self._took))

    async def _get(self, node: StorageNode, segment: StoredSegment, shard: int, buffer: memoryview) -> VerifiedShard:
        root = Hash(segment.roots[shard])

        async def check(served: Served, took: float) -> VerifiedShard:
            record = self._records[node.address]
            record.seconds = took if not record.seconds else 0.7 * record.seconds + 0.3 * took
            self._took.append(took)
            try:
                return await asyncio.to_thread(verify_shard, segment.to_record(), shard, buffer)
            except Corrupt as error:
                self._evidence(node.address, served, str(error.details.get("root", "")))
                raise

        try:
            return await self._pay(node, root, buffer, check)
        except InsufficientCredits:  # other reads have used up the lock meanwhile
            again, _ = await self._sessions.reading([node.address], len(buffer), 1)
            if node.address not in again:
                raise
            return await self._pay(again[node.address], root, buffer, check)

    async def _pay(self, node: StorageNode, root: Hash, buffer: memoryview, check: Check) -> VerifiedShard:
        """What `check` makes of a shard. What arrived counts as received, unless it is not the shard that was asked."""
        price = node.leases.voucher.price
        cost = compute_cost(len(buffer), price)
        lease = node.leases.voucher_id
        corrections = rivals = 0
        while True:
            size = 0

            def got(count: int) -> None:
                nonlocal size
                size += count

            try:
                async with self._vouchers.ask(lease, cost) as ask:
                    started = time.monotonic()
                    try:
                        served = await node.get_shard(root, buffer, ask.voucher, got)
                        shard = await check(served, time.monotonic() - started)
                    except Corrupt:
                        size = 0
                        raise
                    finally:
                        ask.received = compute_cost(size, price)
                    return shard
            except Conflict as error:
                agreement = await self._vouchers.agree(lease, error.details, cost, ask.voucher.amount)
                rivals, corrections = rivals + agreement.is_rival, corrections + (not agreement.is_rival)
                if not agreement.helps or corrections > AGREEMENTS or rivals > RIVALS:
                    raise


def _too_few(part: _Part, have: int, errors: Mapping[Address, FreeholdError]) -> FreeholdError:
    reasons = "; ".join(f"{node}: {error.message}" for node, error in errors.items())
    is_corrupt = bool(errors) and all(isinstance(error, Corrupt) for error in errors.values())
    kind = Corrupt if is_corrupt else Unavailable
    message = f"segment {part.index} needs {part.segment.k} good shards and has {have} ({reasons})"
    return kind(message, segment=part.index, have=have, need=part.segment.k)


def _footprint(segment: StoredSegment) -> int:
    """Bytes of the buffers that a segment takes while it is read."""
    return 3 * segment.size + segment.shard_size


def _cut(stored: StoredObject, offset: int, end: int) -> Iterator[_Part]:
    """The segments that hold what lies between two offsets."""
    at, parts, each = 0, [], 0
    for index, segment in enumerate(stored.segments):
        first, last = max(offset - at, 0), min(end - at, segment.size)
        if first < last:
            parts.append(_Part(segment, index, first, last, 0))
        at += segment.size
    for part in reversed(parts):
        each += part.segment.shard_size
        part.each = each
    return iter(parts)
