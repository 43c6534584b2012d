"""The vault over real nodes: what goes in comes out, what is shared costs nothing, what nobody names goes."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from freehold.protocol.batches import RESERVATION
from freehold.protocol.errors import InsufficientCredits, InvalidInput, Unavailable
from freehold.services.storage import client_memory, client_sessions
from freehold.services.storage.client_objects import Code, join
from freehold.services.storage.client_sources import BytesSource, FileSource, IterSource
from freehold.services.storage.codec import Workspace
from freehold.services.storage.terms import DELTA
from tests.client.vault_world import CODE, LABEL, Faults, listed, make, pieces, put, remembered, shards
from tests.client.world import SEGMENT, world


@pytest.mark.parametrize("size", [0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 11 * SEGMENT + 7])
def test_what_goes_in_comes_out_from_sources_of_known_and_unknown_size(tmp_path: Path, size: int) -> None:
    async def scenario() -> None:
        data = make(size)
        (tmp_path / "file").write_bytes(data)
        async with world(tmp_path / "net") as net, net.vault() as vault:
            with FileSource(tmp_path / "file") as file:
                sources = [file, IterSource(pieces(data)), IterSource(pieces(data), size), BytesSource(data)]
                stored = await put(vault, *sources)
            for each in stored:
                assert each.check().size == size
                assert await vault.fetch(each) == data
            assert await listed(net) == shards(stored)
            assert await remembered(vault) == set()
            assert await vault.abandoned() == {}

    asyncio.run(scenario())


def test_many_sources_of_one_shipment_and_their_join(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=6) as net, net.vault() as vault:
            parts = [make(size, i) for i, size in enumerate((5, 2 * SEGMENT, 0, SEGMENT + 3, 100))]
            whole = join(await put(vault, *parts)).check()
            data = b"".join(parts)
            assert await vault.fetch(whole) == data
            assert (
                b"".join([bytes(v) async for v in vault.read(whole, SEGMENT, SEGMENT + 20)])
                == (data[SEGMENT:][: SEGMENT + 20])
            )

    asyncio.run(scenario())


def test_what_is_not_kept_is_garbage_and_goes(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net") as net, net.vault() as vault:
            kept = await put(vault, make(1000))
            async with vault.stow(LABEL, CODE, [BytesSource(make(3 * SEGMENT))]) as stowed:
                assert await listed(net) == shards(kept) | shards(stowed.objects)
            assert await remembered(vault) == shards(stowed.objects)
            assert await vault.collect() == {}
            assert await listed(net) == shards(kept)
            await vault.discard(kept)
            await put(vault, make(5))  # a later delta takes it along where it goes
            await vault.collect()
            assert len(await listed(net)) == CODE.n

    asyncio.run(scenario())


def test_a_source_that_is_not_what_was_meant_leaves_nothing(tmp_path: Path) -> None:
    class Bad(BytesSource):
        async def finish(self) -> None:
            raise InvalidInput("the digest is another")

    async def broken() -> AsyncIterator[bytes]:
        yield make(9 * SEGMENT)
        raise ConnectionResetError("gone")

    async def scenario() -> None:
        async with world(tmp_path / "net") as net, net.vault() as vault:
            for source, error in (
                (Bad(make(9 * SEGMENT)), InvalidInput),
                (Bad(make(10)), InvalidInput),
                (IterSource(broken()), ConnectionResetError),
                (IterSource(pieces(make(100)), 101), InvalidInput),
                (IterSource(pieces(make(101)), 100), InvalidInput),
            ):
                with pytest.raises(error):
                    await put(vault, make(SEGMENT), source)
            await vault.collect()
            assert await listed(net) == set()
            assert await remembered(vault) == set()

    asyncio.run(scenario())


def test_intents_are_done_withdrawn_or_left(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=6) as net, net.vault() as vault:
            gone, stays, unsure, named = [(await put(vault, make(100, i)))[0] for i in range(4)]
            done = await vault.intend(LABEL, [gone])
            assert await vault.abandoned() == {}  # it is under way
            await done.done()
            await (await vault.intend(LABEL, [stays])).withdraw()
            async with await vault.intend(LABEL, [unsure, named]):
                pass
            assert await remembered(vault) == shards([gone, unsure, named])
            left = await vault.abandoned()
            assert {LABEL: shards([unsure, named])} == {label: set(found) for label, found in left.items()}
            await vault.settle(LABEL, left[LABEL], shards([named]))
            assert await vault.abandoned() == {}
            await vault.collect()
            assert await listed(net) == shards([stays, named])

    asyncio.run(scenario())


def test_a_stow_whose_head_nobody_knows_is_left_for_whoever_reads_the_head(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=6) as net, net.vault() as vault:
            async with vault.stow(LABEL, CODE, [BytesSource(make(9))]) as stowed:
                assert await vault.abandoned() == {}
                await stowed.unsure()
            assert {k: set(v) for k, v in (await vault.abandoned()).items()} == {LABEL: shards(stowed.objects)}
            await vault.collect()
            assert await listed(net) == shards(stowed.objects)

    asyncio.run(scenario())


@pytest.mark.parametrize("label", ["", "a/b", "a~b"])
def test_labels_are_file_names(tmp_path: Path, label: str) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=1) as net, net.vault() as vault:
            with pytest.raises(InvalidInput):
                await put(vault, b"x", label=label)

    asyncio.run(scenario())


# What is shared


def test_a_stow_after_another_asks_for_no_offers_no_leases_and_no_reservation(tmp_path: Path) -> None:
    async def scenario() -> None:
        faults = Faults()
        async with world(tmp_path / "net", wrap=faults.wrap) as net, net.vault() as vault:
            await put(vault, make(1000))
            reservations = [id for id in net.memory.held if net.memory.batches[id].header.kind == RESERVATION]
            faults.counts.clear()
            stored = await put(vault, make(1000, 1))
            assert faults.counts == {"put": 6, "delta": 6}
            assert await vault.fetch(stored[0]) == make(1000, 1)
            assert await vault.fetch(stored[0]) == make(1000, 1)
            assert faults.counts == {"put": 6, "delta": 6, "get": 6}
            held = [id for id in net.memory.held if net.memory.batches[id].header.kind == RESERVATION]
            assert held == reservations

    asyncio.run(scenario())


def test_stows_at_once_share_deltas_and_certificates(tmp_path: Path) -> None:
    async def scenario() -> None:
        faults = Faults()
        async with world(tmp_path / "net", wrap=faults.wrap) as net, net.vault() as vault:
            await put(vault, b"first")
            faults.counts.clear()
            before = sum(net.memory.batches[id].header.kind == DELTA for id in net.memory.held)
            stored = await asyncio.gather(*(put(vault, make(2000 + i, i)) for i in range(40)))
            assert faults.counts["put"] == 240
            assert faults.counts["delta"] < 120  # at the least it would be 6, one by one 240
            assert sum(net.memory.batches[id].header.kind == DELTA for id in net.memory.held) - before < 40
            for i, (each,) in enumerate(stored):
                assert await vault.fetch(each) == make(2000 + i, i)
            certified = {delta.lease: delta for delta in net.memory.deltas()}
            for node in net.node:
                for lease, delta in certified.items():
                    newest = await node.provider._lists.newest(lease)
                    assert newest is None or newest.number == delta.number

    asyncio.run(scenario())


def test_locks_grow_with_what_is_stored_of_unknown_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_sessions, "AHEAD", 0)
    monkeypatch.setattr(client_sessions, "COMFORT", 1)

    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=6) as net, net.vault(credits=10**17) as vault:
            data = make(12 * SEGMENT)
            (stored,) = await put(vault, IterSource(pieces(data)))
            assert await vault.fetch(stored) == data
            room = [node.room for node in vault._storage._sessions._nodes.values()]
            assert [r.arriving for r in room] == [0] * 6
            assert all(r.listed <= r.limit < 2 * r.listed for r in room)

    asyncio.run(scenario())


def test_credits_that_run_out_halfway_end_the_stow_and_leave_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=6) as net, net.vault(credits=2 * 10**15) as vault:
            with pytest.raises(InsufficientCredits):
                await put(vault, IterSource(pieces(make(200 * SEGMENT))))
            await vault.collect()
            assert await listed(net) == set()
            assert [node.room.arriving for node in vault._storage._sessions._nodes.values()] == [0] * 6
            assert await vault.fetch((await put(vault, make(1000)))[0]) == make(1000)

    asyncio.run(scenario())


class Counted(Workspace):
    """Knows what all workspaces hold together."""

    alive: ClassVar[weakref.WeakSet[Counted]] = weakref.WeakSet()
    peak = 0

    def __init__(self) -> None:
        super().__init__()
        Counted.alive.add(self)

    def take(self, name: str, size: int) -> memoryview:
        taken = super().take(name, size)
        total = sum(len(buffer) for space in Counted.alive for buffer in space._buffers.values())
        Counted.peak = max(Counted.peak, total)
        return taken


def test_memory_does_not_grow_with_an_object_nor_with_how_many_go_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Counted.alive.clear()
    monkeypatch.setattr(client_memory, "Workspace", Counted)
    monkeypatch.setattr(client_memory, "LARGE", SEGMENT)

    async def zeros(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield bytes(SEGMENT)

    async def peak(vault: Any, segments: int) -> int:
        Counted.peak = 0
        (stored,) = await put(vault, IterSource(zeros(segments)))
        async for view in vault.read(stored):
            assert len(view) == SEGMENT
        return Counted.peak

    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=6) as net, net.vault() as vault:
            await peak(vault, 12)
            short, long = await peak(vault, 12), await peak(vault, 90)
            assert long <= short + 3 * SEGMENT < 60 * SEGMENT
            Counted.peak = 0
            await asyncio.gather(*(put(vault, IterSource(zeros(8))) for _ in range(12)))
            assert Counted.peak < (12 + 60) * SEGMENT

    asyncio.run(scenario())


def test_a_small_object_takes_small_buffers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Counted.alive.clear()
    monkeypatch.setattr(client_memory, "Workspace", Counted)

    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=6) as net, net.vault() as vault:
            Counted.peak = 0
            for source in (BytesSource(bytes(1000)), IterSource(pieces(bytes(1000)), 1000)):
                await put(vault, source)
            assert Counted.peak < 10_000

    asyncio.run(scenario())


# Reading


def test_ranges_fetch_only_their_segments(tmp_path: Path) -> None:
    async def scenario() -> None:
        faults = Faults()
        async with world(tmp_path / "net", wrap=faults.wrap) as net, net.vault() as vault:
            data = make(9 * SEGMENT)
            (stored,) = await put(vault, data)
            faults.counts.clear()
            got = b"".join([bytes(view) async for view in vault.read(stored, 5 * SEGMENT - 10, 20)])
            assert got == data[5 * SEGMENT - 10 :][:20]
            assert faults.counts == {"get": 6}

    asyncio.run(scenario())


def test_many_reads_at_once_pay_every_node_what_it_is_owed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=6) as net, net.vault() as vault:
            (stored,) = await put(vault, make(3 * SEGMENT))
            assert set(await asyncio.gather(*(vault.fetch(stored) for _ in range(12)))) == {make(3 * SEGMENT)}
            net.memory.advance()
            async with net.vault(home="other") as other:
                assert set(await asyncio.gather(*(other.fetch(stored) for _ in range(12)))) == {make(3 * SEGMENT)}
                for node in other._storage._sessions._nodes.values():
                    own = next(n for n in net.node if n.key.address == node.address)
                    entry = await own.book.entry(node.leases.voucher_id)
                    assert entry.voucher is not None
                    assert entry.owed <= entry.voucher.amount <= entry.lock

    asyncio.run(scenario())


def test_a_node_that_comes_back_is_read_from_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=6) as net, net.vault() as vault:
            (stored,) = await put(vault, make(3 * SEGMENT))
            for node in net.node[:3]:
                await node.stop()
            assert await vault.fetch(stored) == make(3 * SEGMENT)
            await net.node[3].stop()
            with pytest.raises(Unavailable, match="needs 3 good shards and has 2"):
                await vault.fetch(stored)
            await net.node[0].start()
            assert await vault.fetch(stored) == make(3 * SEGMENT)
            for node in net.node[1:4]:
                await node.start()

    asyncio.run(scenario())


# Devices


def test_two_devices_stow_at_once_and_a_third_finds_what_a_lost_one_left(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net") as net, net.vault(home="one") as one, net.vault(home="two") as two:
            found = await asyncio.gather(*(put(v, make(100 + i, i)) for i in range(10) for v in (one, two)))
            kept = shards(each for stored in found for each in stored)
            (lost,) = await put(two, make(3 * SEGMENT))  # and no head names it
            assert await listed(net) == kept | shards([lost])
            net.memory.advance()
            async with net.vault(home="three") as three:
                assert await three.audit(lambda shard: shard in kept, older_than=3600) == 0
                assert await three.audit(lambda shard: shard in kept, older_than=-10) == 18
                assert await three.audit(lambda shard: shard in kept, older_than=-10) == 0  # it knows them by now
                assert await three.collect() == {}
            assert await listed(net) == kept

    asyncio.run(scenario())


def test_an_audit_leaves_what_is_under_way_here(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=6) as net, net.vault() as vault:
            async with vault.stow(LABEL, CODE, [BytesSource(make(9))]) as stowed:
                assert await vault.audit(lambda _: False, older_than=-10) == 0
                await stowed.keep()
            assert await vault.audit(lambda _: False, older_than=-10) == 6

    asyncio.run(scenario())


def test_codes_have_fleets_of_their_own(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=6) as net, net.vault() as vault:
            for code in (Code(1, 2), Code(2, 3), Code(5, 6)):
                (stored,) = await put(vault, make(2 * SEGMENT + 1), code=code)
                assert [len(set(s.nodes)) for s in stored.segments] == [code.n] * 3
                assert await vault.fetch(stored) == make(2 * SEGMENT + 1)
            with pytest.raises(InvalidInput):
                await put(vault, b"x", code=Code(3, 3))

    asyncio.run(scenario())
