"""Reading an object back: the fastest k of n shards a segment, checked before use, decoded, decrypted, in order.

    start k GETs (quick nodes first, data before parity) -> one more whenever one fails or takes too long
    -> each shard's tree against the index's root (threads) -> decode and decrypt (threads) -> the caller, in order

Any n - k shards of each segment may be missing or wrong. A shard with the wrong root is never used, nor
counted as received; the header that its node signed is handed to `evidence` (it proves something only where the node
signed the root of what it sent). Invariant: what is yielded is the object's bytes, in order, or an error ends
it; memory does not grow with the object.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from freehold.market.vouchers import Vouchers
from freehold.protocol.errors import Conflict, Corrupt, FreeholdError, InvalidInput, Unavailable
from freehold.protocol.units import Address, Hash
from freehold.services.storage.client_node import StorageNode
from freehold.services.storage.client_objects import StoredObject, StoredSegment
from freehold.services.storage.codec import SegmentKeys, VerifiedShard, Workspace, decode_verified, verify_shard
from freehold.services.storage.names import PathSecret, segment_context
from freehold.services.storage.terms import UNITS_PER_VOUCHER_PRICE, Served

DEPTH = 3  # segments in flight
FIRST_HEDGE_SECONDS = 1.0  # before anything is known of how long a shard takes
LEAST_HEDGE_SECONDS = 0.4
HEDGE_FACTOR = 3.0
AGREEMENTS = 2  # times a node may correct what this client thinks it owes, a shard
RIVALS = 20  # times more, where it shows that another device of this account has paid it meanwhile

Evidence = Callable[[Address, Served, str], None]
Progress = Callable[[int], None]
Check = Callable[[Served, float], Awaitable[VerifiedShard]]  # and the seconds that it took to arrive


class Place(NamedTuple):
    """Where an object is stored: what its segments' keys and contexts come from."""

    secret: PathSecret
    bucket: str
    path: str


@dataclass
class _Record:
    """How a node has done so far: `seconds` a shard, moving average."""

    seconds: float = 0.0
    failures: int = 0


def compute_cost(size: int, price: int) -> int:
    """Credits for `size` bytes sent at `price` a tebibyte, rounded up."""
    return -(-size * price // UNITS_PER_VOUCHER_PRICE)


class Downloader:
    """Reads objects from these nodes; one may be used for any number of them at once."""

    def __init__(self, nodes: Mapping[Address, StorageNode], vouchers: Vouchers, evidence: Evidence) -> None:
        self._nodes = nodes
        self._vouchers = vouchers
        self._evidence = evidence
        self._records = {address: _Record() for address in nodes}
        self._took: deque[float] = deque(maxlen=32)
        self.failures: dict[Address, FreeholdError] = {}

    async def read(
        self, stored: StoredObject, place: Place, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[memoryview, None]:
        """The bytes from `offset`, in order; each view stands until the next is asked for.

        Unavailable or Corrupt where fewer than k shards of a segment are left; WrongPassphrase for another secret.
        """
        end = stored.size if length is None else offset + length
        if not 0 <= offset <= end <= stored.size:
            raise InvalidInput(f"bytes {offset} to {end} of an object of {stored.size}")
        spaces = [Workspace() for _ in range(DEPTH)]
        waiting = _cut(stored, offset, end)
        running: deque[tuple[asyncio.Task[memoryview], int, int, Workspace]] = deque()
        try:
            while True:
                while spaces and (part := next(waiting, None)) is not None:
                    index, first, last = part
                    space = spaces.pop()
                    task = asyncio.create_task(self._fetch(stored.segments[index], index, place, space))
                    running.append((task, first, last, space))
                if not running:
                    return
                task, first, last, space = running.popleft()
                try:
                    plain = await task
                except BaseException:
                    running.append((task, first, last, space))
                    raise
                yield plain[first:last]
                spaces.append(space)
        finally:
            for task, *_ in running:
                task.cancel()
            await asyncio.gather(*(task for task, *_ in running), return_exceptions=True)

    async def _fetch(self, segment: StoredSegment, index: int, place: Place, space: Workspace) -> memoryview:
        keys = SegmentKeys.from_bytes(place.secret.unwrap(segment.wrapped))
        aad = segment_context(place.bucket, place.path, index)
        shards = await self._gather(segment, index, space)
        record = segment.to_record()
        return await asyncio.to_thread(decode_verified, record, shards, segment.size, keys, aad, space)

    async def _gather(self, segment: StoredSegment, index: int, space: Workspace) -> list[VerifiedShard]:
        """k verified shards; their buffers are the workspace's."""
        waiting = deque(self._order(segment))
        running: dict[asyncio.Task[VerifiedShard], Address] = {}
        good: list[VerifiedShard] = []
        errors: dict[Address, FreeholdError] = {}

        def start() -> None:
            shard = waiting.popleft()
            node = self._nodes[Address(segment.nodes[shard])]
            buffer = space.take(f"shard {shard}", segment.shard_size)
            running[asyncio.create_task(self._get(node, segment, shard, buffer))] = node.address

        try:
            while len(good) < segment.k:
                while waiting and len(running) + len(good) < segment.k:
                    start()
                if not running:
                    raise self._too_few(segment, index, len(good), errors)
                done, _ = await asyncio.wait(
                    running, timeout=self._hedge() if waiting else None, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    start()
                for task in done:
                    address = running.pop(task)
                    try:
                        good.append(task.result())
                    except FreeholdError as error:
                        errors[address] = self.failures[address] = error
                        self._records[address].failures += 1
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        return good[: segment.k]

    def _too_few(
        self, segment: StoredSegment, index: int, have: int, errors: Mapping[Address, FreeholdError]
    ) -> FreeholdError:
        silent = [Address(node) for node in segment.nodes if node not in self._nodes]
        reasons = [f"{node}: {error.message}" for node, error in errors.items()]
        reasons += [f"{node} does not serve" for node in silent]
        corrupt = bool(errors) and all(isinstance(error, Corrupt) for error in errors.values()) and not silent
        kind = Corrupt if corrupt else Unavailable
        message = f"segment {index} needs {segment.k} good shards and has {have} ({'; '.join(reasons)})"
        return kind(message, segment=index, have=have, need=segment.k)

    def _order(self, segment: StoredSegment) -> list[int]:
        """Shards by how their nodes do: failures, then speed in powers of two, then data before parity."""
        there = [i for i, node in enumerate(segment.nodes) if node in self._nodes]
        best = min((r.seconds for r in self._records.values() if r.seconds), default=0.0)

        def rank(shard: int) -> tuple[int, int, int]:
            record = self._records[Address(segment.nodes[shard])]
            slower = int(record.seconds / best).bit_length() if best else 0
            return record.failures, max(0, slower - 1), shard

        return sorted(there, key=rank)

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

        return await self._pay(node, root, buffer, check)

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


def _cut(stored: StoredObject, offset: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(segment, first byte, last byte + 1 within it) for what lies between two offsets."""
    at = 0
    for index, segment in enumerate(stored.segments):
        first, last = max(offset - at, 0), min(end - at, segment.size)
        if first < last:
            yield index, first, last
        at += segment.size
