"""Downloading against nodes in memory: slow ones are hedged, bad ones are left, and what is owed is agreed on."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from freehold.market.vouchers import Vouchers
from freehold.protocol.errors import (
    Conflict,
    Corrupt,
    FreeholdError,
    InvalidInput,
    NotFound,
    Unavailable,
    WrongPassphrase,
)
from freehold.protocol.keys import Key
from freehold.protocol.messages import VOUCHER, Lease, Voucher
from freehold.protocol.typed import Domain, keccak
from freehold.protocol.units import Address, Hash
from freehold.services.storage.client_memory import Budget, Pool
from freehold.services.storage.client_objects import StoredObject, StoredSegment, join
from freehold.services.storage.client_sessions import compute_cost
from freehold.services.storage.codec import SegmentKeys, encode_segment
from freehold.services.storage.download import Downloader, Memory
from freehold.services.storage.terms import TIB, Served
from tests.market.test_vouchers import MemoryBook

DOMAIN = Domain(1, Address(b"o" * 20))
KEY = Key(b"k" * 32)
K, N, SEGMENT = 3, 6, 10_000
PRICE = TIB  # one base unit a byte

Behave = Callable[[], Any]


class MemoryNode:
    """A node that holds shards; `behave` is awaited before each answer, and may raise."""

    def __init__(self, number: int, behave: Behave | None = None) -> None:
        self.address = Address(bytes([number + 1]) * 20)
        lease = Lease(
            client=KEY.address, node=self.address, service="storage", mode=VOUCHER, price=PRICE, number=1, deadline=1
        )
        self.leases = SimpleNamespace(voucher=lease, voucher_id=lease.struct_hash(), endpoint=f"node{number}")
        self.behave = behave
        self.shards: dict[Hash, bytes] = {}
        self.asked = 0
        self.spoiled = False
        self.owed = self.sent = 0

    async def get_shard(self, root: Hash, buffer: memoryview, voucher: Voucher, got: Callable[[int], None]) -> Served:
        self.asked += 1
        if self.behave is not None:
            await self.behave()
        if root not in self.shards:
            raise NotFound("no such shard")
        if voucher.amount < self.owed:
            raise Conflict("not covered", owed=str(self.owed), voucher=None)
        data = bytes(len(buffer)) if self.spoiled else self.shards[root]
        buffer[:] = data
        got(len(data))
        self.owed += len(data)
        return Served(
            lease=self.leases.voucher_id, shard=root, offset=0, size=len(data), content=Hash(bytes(32)), deadline=1
        )


class World:
    def __init__(self, size: int, nodes: int = N) -> None:
        self.data = random.Random(size).randbytes(size)
        self.nodes = [MemoryNode(number) for number in range(nodes)]
        self.evidence: list[tuple[Address, Served, str]] = []
        self.vouchers = Vouchers(KEY, DOMAIN, MemoryBook())
        self.away: dict[Address, FreeholdError] = {}
        self.asked: list[tuple[int, int]] = []
        self.stored = StoredObject(size, tuple(self._segment(i) for i in range(-(-size // SEGMENT))))

    def _segment(self, index: int) -> StoredSegment:
        plain, keys = self.data[index * SEGMENT : (index + 1) * SEGMENT], SegmentKeys.random()
        coded = encode_segment(plain, keys, K, N)
        holders = [self.nodes[(i + index) % len(self.nodes)] for i in range(N)]
        for node, root, shard in zip(holders, coded.roots, coded.shards, strict=True):
            node.shards[Hash(root)] = bytes(shard)
        return StoredSegment(
            size=len(plain), k=K, shard_size=coded.shard_size, record=bytes(keccak(coded.record().to_bytes())),
            keys=keys.to_bytes(), roots=coded.roots,
            nodes=tuple(bytes(node.address) for node in holders), positions=tuple(range(N)),
        )  # fmt: skip

    def downloader(self) -> Downloader:
        memory = Memory(Budget(10 * SEGMENT), Pool(2))
        return Downloader(self, self.vouchers, lambda *kept: self.evidence.append(kept), memory)

    async def reading(self, addresses: Collection[Address], each: int, enough: int) -> tuple[Any, Any]:
        """All nodes but those that were left: as `Sessions` does."""
        self.asked.append((each, enough))
        away = {address: error for address, error in self.away.items() if address in addresses}
        return {n.address: n for n in self.nodes if n.address in addresses and n.address not in away}, away

    def distrust(self, node: Any, error: FreeholdError) -> None:
        self.away[node.address] = error

    async def read(self, offset: int = 0, length: int | None = None) -> bytes:
        return b"".join([bytes(v) async for v in self.downloader().read(self.stored, offset, length)])


async def hang() -> None:
    await asyncio.Event().wait()


def fail(error: Exception) -> Behave:
    async def behave() -> None:
        raise error

    return behave


@pytest.mark.parametrize("size", [0, 1, SEGMENT, 7 * SEGMENT + 1])
def test_an_object_is_read_from_any_k_nodes(size: int) -> None:
    world = World(size)
    assert asyncio.run(world.read()) == world.data
    for node in world.nodes[1:4]:
        node.behave = fail(Unavailable("gone"))
    assert asyncio.run(world.read()) == world.data


@pytest.mark.timeout(30)
def test_nodes_that_hang_are_hedged() -> None:
    world = World(3 * SEGMENT)
    for node in world.nodes[:3]:
        node.behave = hang
    assert asyncio.run(world.read()) == world.data


def test_spoiled_shards_are_never_used_and_are_evidence() -> None:
    world = World(4 * SEGMENT)
    for node in world.nodes[:3]:
        node.spoiled = True
    assert asyncio.run(world.read()) == world.data
    assert {address for address, _, _ in world.evidence} <= {node.address for node in world.nodes[:3]}
    assert world.evidence
    world.nodes[3].spoiled = True
    with pytest.raises(Corrupt, match="has 2"):
        asyncio.run(world.read())


def test_a_node_that_failed_is_asked_last() -> None:
    world = World(20 * SEGMENT)
    world.nodes[0].behave = fail(Unavailable("gone"))
    assert asyncio.run(world.read()) == world.data
    assert world.nodes[0].asked <= 3  # the segments that were in flight when it failed first


def test_too_few_nodes_say_why() -> None:
    world = World(SEGMENT)
    for node in world.nodes[:4]:
        node.behave = fail(Unavailable(f"{node.leases.endpoint} is gone"))
    with pytest.raises(Unavailable, match=r"needs 3 good shards and has 2.*node3 is gone") as caught:
        asyncio.run(world.read())
    assert caught.value.details == {"segment": 0, "have": 2, "need": 3}


def test_other_keys_are_a_wrong_passphrase() -> None:
    world = World(SEGMENT)
    segment = msgspec.structs.replace(world.stored.segments[0], keys=bytes(32) + world.stored.segments[0].keys[32:])
    world.stored = StoredObject(SEGMENT, (segment,))
    with pytest.raises(WrongPassphrase):
        asyncio.run(world.read())


def test_segments_of_several_objects_are_an_object() -> None:
    world = World(3 * SEGMENT + 5)
    first, last = world.stored.segments[0], world.stored.segments[3]
    world.stored = join([StoredObject(5, (last,)), StoredObject(0), StoredObject(SEGMENT, (first,))]).check()
    assert asyncio.run(world.read()) == world.data[3 * SEGMENT :] + world.data[:SEGMENT]
    assert asyncio.run(world.read(3, 4)) == world.data[-2:] + world.data[:2]


def test_only_the_segments_of_a_range_are_fetched() -> None:
    world = World(20 * SEGMENT)
    assert asyncio.run(world.read(7 * SEGMENT + 10, 20)) == world.data[7 * SEGMENT + 10 :][:20]
    assert sum(node.asked for node in world.nodes) == K
    assert world.asked == [(world.stored.segments[7].shard_size, K)]


def test_reads_share_what_is_learned_of_nodes_and_memory_comes_back() -> None:
    async def scenario() -> None:
        world = World(6 * SEGMENT)
        world.nodes[0].behave = fail(Corrupt("bad disk"))
        downloader = world.downloader()

        async def one() -> bytes:
            return b"".join([bytes(view) async for view in downloader.read(world.stored)])

        assert await asyncio.gather(*(one() for _ in range(8))) == [world.data] * 8
        asked = world.nodes[0].asked
        assert await one() == world.data
        assert world.nodes[0].asked == asked  # others are quick and good
        assert downloader._memory.ahead.try_take(10 * SEGMENT)

    asyncio.run(scenario())


def test_ranges_and_their_bounds() -> None:
    world = World(3 * SEGMENT + 5)
    for offset, length in [(0, 1), (SEGMENT - 1, 2), (SEGMENT, SEGMENT), (3 * SEGMENT + 4, 1), (3 * SEGMENT + 5, 0)]:
        assert asyncio.run(world.read(offset, length)) == world.data[offset : offset + length]
    for offset, length in [(-1, 1), (3 * SEGMENT + 5, 1), (0, -1)]:
        with pytest.raises(InvalidInput):
            asyncio.run(world.read(offset, length))


def test_what_is_owed_is_paid_to_the_byte() -> None:
    async def scenario() -> None:
        world = World(5 * SEGMENT)
        await world.read()
        await world.read()
        for node in world.nodes:
            assert await world.vouchers.signed(node.leases.voucher_id) == node.owed

    asyncio.run(scenario())


def test_a_debt_that_this_client_forgot_is_agreed_on_once() -> None:
    world = World(SEGMENT)
    for node in world.nodes:
        node.owed = world.stored.segments[0].shard_size  # an answer was sent, and never arrived
    assert asyncio.run(world.read()) == world.data
    for node in world.nodes:
        node.owed += 10**9
    with pytest.raises(Unavailable, match="not covered"):
        asyncio.run(world.read())


def test_a_reader_that_stops_leaves_nothing_running() -> None:
    async def scenario() -> None:
        world = World(6 * SEGMENT)
        views = world.downloader().read(world.stored)
        await anext(views)
        await views.aclose()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(("size", "price", "cost"), [(0, 5, 0), (1, 1, 1), (TIB, 7, 7), (TIB + 1, 7, 8)])
def test_costs_are_rounded_up(size: int, price: int, cost: int) -> None:
    assert compute_cost(size, price) == cost


def test_a_spoiled_shard_does_not_count_as_received() -> None:
    async def scenario() -> None:
        world = World(SEGMENT)
        for node in world.nodes[:2]:
            node.spoiled = True
        assert await world.read() == world.data
        size = world.stored.segments[0].shard_size
        for node in world.nodes[:2]:
            assert await world.vouchers.signed(node.leases.voucher_id) == size
            async with world.vouchers.ask(node.leases.voucher_id, size) as ask:
                assert ask.voucher.amount == size  # what is prepaid already suffices

    asyncio.run(scenario())
