"""Storage's working half at a client: who to deal with, at what cost, and the way up and down.

    estimate   what keeping and reading back so many bytes would cost, by the offers of now
    ship       a fleet of n nodes of distinct operators under covered leases, to send objects to
    read       an object's bytes, from the nodes that hold it
    renew      lock more credits for what is stored, before a list lapses
    collect    take what nothing names off the nodes' lists
    listed     what the nodes have in their lists for this account

One of these an account: all its transfers share sessions, fleets, list changes, certificates and memory. Invariant: no
node is dealt with before it counts both of its leases as covered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import NamedTuple

from freehold.market.placement import Survey, Terms, choose, survey
from freehold.protocol.errors import FreeholdError
from freehold.protocol.units import Address
from freehold.services.storage.client_fleet import Fleet
from freehold.services.storage.client_lists import Lists
from freehold.services.storage.client_memory import Budget, Pool
from freehold.services.storage.client_node import StorageNode
from freehold.services.storage.client_objects import Code, ListedShard, StoredObject
from freehold.services.storage.client_sessions import (
    DAY,
    DAYS,
    Context,
    Failures,
    Sessions,
    compute_cost,
    compute_stream,
)
from freehold.services.storage.codec import shard_size
from freehold.services.storage.download import Downloader
from freehold.services.storage.download import Memory as ReadMemory
from freehold.services.storage.terms import NAME
from freehold.services.storage.upload import MemberKeys, Memory, Shipment

__all__ = ["DAYS", "Context", "Estimate", "StorageClient", "compute_shard_bytes"]

# In segments of the network's largest size; small ones take what they are. Beyond one segment for each transfer.
PLAINTEXT_SEGMENTS = 8  # read ahead of what is listed
CODING_SEGMENTS = 3  # coded and sent at once
READ_SEGMENTS = 6  # fetched ahead of who reads
SPARE_BUFFERS = 3  # of each kind, for the next transfer
COLLECT_AGAIN_SECONDS = 30.0  # after a node failed to take garbage off; doubles
LONGEST_AGAIN = 1800.0


class Estimate(NamedTuple):
    """Credits (base units): keeping `stored_bytes` in all (coding included) a while, and reading the data back once."""

    stored_bytes: int
    operators: int
    per_hour: int
    per_day: int
    per_30_days: int
    read_once: int


def compute_shard_bytes(size: int, k: int, segment_size: int) -> int:
    """Bytes that each of the n nodes stores of an object of `size` bytes."""
    whole, rest = divmod(size, segment_size)
    return whole * shard_size(segment_size, k) + (shard_size(rest, k) if rest else 0)


class _Waiting(NamedTuple):
    """A node that could not take its garbage off, and until when (monotonic seconds) it is not asked again."""

    until: float
    seconds: float
    error: FreeholdError


class StorageClient:
    """One account's storage on one network. `close` it before the book and the connections."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._segment_size = size = context.network.parameters.segment_size
        self._members = MemberKeys([member.public_key for member in context.network.members])
        self._sessions = Sessions(context, self.survey)
        self._fleets: dict[int, Fleet] = {}
        self._lists = Lists(context.key, context.quorum, context.book, context.network.parameters.epoch_length)
        self._memory = Memory(
            Budget(PLAINTEXT_SEGMENTS * size), Budget(3 * CODING_SEGMENTS * size), Pool(2 * SPARE_BUFFERS),
            Pool(SPARE_BUFFERS),
        )  # fmt: skip
        reading = ReadMemory(Budget(3 * READ_SEGMENTS * size), Pool(SPARE_BUFFERS))
        self._downloader = Downloader(self._sessions, context.vouchers, context.evidence, reading)
        self._uncollected: dict[Address, _Waiting] = {}

    async def close(self) -> None:
        """End what is under way."""
        await self._lists.close()

    @property
    def sessions(self) -> Sessions:
        """The sessions with nodes, for whoever deals with the same nodes for this account."""
        return self._sessions

    async def survey(self, capacity: int = 0) -> Survey:
        """Who offers storage now, and why the others do not."""
        context = self._context
        terms = Terms(
            NAME,
            context.network.domain,
            int(context.clock()),
            context.network.parameters.minimum_bond,
            capacity,
        )
        return await survey(await context.directory.nodes(), context.dial, terms)

    async def estimate(self, size: int, k: int, n: int) -> Estimate:
        """What an object of `size` bytes would cost; InsufficientOperators where it cannot be placed."""
        each = compute_shard_bytes(size, k, self._segment_size)
        candidates = (await self.survey(each)).candidates
        chosen = choose(candidates, n)
        streams = [candidate.offer.stream_price for candidate in chosen]
        reads = sorted((candidate.offer.voucher_price for candidate in chosen), reverse=True)[:k]
        return Estimate(
            stored_bytes=n * each,
            operators=len({candidate.record.operator for candidate in candidates}),
            per_hour=sum(compute_stream(each, 3600, price) for price in streams),
            per_day=sum(compute_stream(each, DAY, price) for price in streams),
            per_30_days=sum(compute_stream(each, 30 * DAY, price) for price in streams),
            read_once=sum(compute_cost(each, price) for price in reads),
        )

    async def ship(self, id: str, code: Code, size: int) -> Shipment:
        """A shipment for `size` bytes, as far as that is known, to n nodes that serve; `id` names it in the book.

        Raises InsufficientOperators (who is missing, and why), InsufficientCredits (how many are missing).
        """
        k, n = Code(*code).check()
        if n not in self._fleets:
            self._fleets[n] = Fleet(n, self.survey, self._sessions)
        fleet = self._fleets[n]
        await fleet.ready(compute_shard_bytes(size, k, self._segment_size))
        return Shipment(id, fleet, Code(k, n), self._segment_size, self._members, self._lists, self._memory)

    async def read(
        self, stored: StoredObject, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[memoryview, None]:
        """An object's bytes from `offset`, in order; each view stands until the next is asked for."""
        async with aclosing(self._downloader.read(stored, offset, length)) as views:
            async for view in views:
                yield view

    async def renew(self) -> None:
        """Lock enough for what is stored, everywhere; InsufficientCredits."""
        await self._sessions.renew()

    async def collect(self) -> Failures:
        """Take garbage off every list that has some; what the nodes that could not answered.

        A node that failed is not asked again for a while, which doubles.
        """
        book, now = self._context.book, time.monotonic()
        garbage = await book.garbage_nodes()
        failures = {node: w.error for node in garbage if (w := self._uncollected.get(node)) and w.until > now}
        ready, away = await self._sessions.reading([node for node in garbage if node not in failures], 0, len(garbage))

        async def clean(node: StorageNode) -> None:
            try:
                await self._lists.clean(node)
                self._uncollected.pop(node.address, None)
            except FreeholdError as error:
                away[node.address] = error

        await asyncio.gather(*(clean(node) for node in ready.values()))
        for address, error in away.items():
            before = self._uncollected.get(address)
            seconds = min(2 * before.seconds, LONGEST_AGAIN) if before else COLLECT_AGAIN_SECONDS
            self._uncollected[address] = _Waiting(time.monotonic() + seconds, seconds, error)
        if ready:
            await self._lists.certify()
        return failures | away

    async def listed(self, older_than: float) -> AsyncGenerator[list[ListedShard], None]:
        """What the nodes that answer have listed for this account for longer than so many seconds, page by page.

        The account's leases are found in the state, whatever this device remembers. A node's word is taken for what it
        has and since when: it cannot harm more by lying than by losing its own shards.
        """
        nodes, _ = await self._sessions.known()
        until = int(self._context.clock() - older_than)
        for node in nodes.values():
            start: int | None = 0
            while start is not None:
                try:
                    entries, start = await node.list_entries(start)
                except FreeholdError:
                    break
                yield [ListedShard(node.address, e.position, e.root) for e in entries if e.arrived <= until]
