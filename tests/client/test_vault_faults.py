"""The vault while nodes are slow, corrupt or gone in any window, and while a device is killed at any step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from freehold.protocol.errors import FreeholdError, InsufficientOperators, Overloaded, Refused, Unavailable
from freehold.services.storage import upload
from freehold.services.storage.client_sources import IterSource
from tests.client.vault_world import CODE, LABEL, Faults, kind_of, listed, make, pieces, put, remembered, shards, until
from tests.client.world import SEGMENT, Node, World, world

WINDOW = upload.WINDOW_SEGMENTS * SEGMENT
SIZE = 3 * WINDOW + 5  # four windows


def check_operators(net: World, stored: Any) -> None:
    for segment in stored.segments:
        assert len({node.operator for node in net.node if bytes(node.key.address) in segment.nodes}) == CODE.n


@pytest.mark.parametrize(("what", "after"), [("put", 0), ("put", 15), ("plan", 0), ("delta", 0), ("delta", 15)])
def test_a_node_that_fails_in_any_window_is_replaced(tmp_path: Path, what: str, after: int) -> None:
    async def scenario() -> None:
        bad: list[Node] = []
        seen = 0

        async def judge(node: Node, request: web.Request) -> web.StreamResponse | None:
            nonlocal seen
            if kind_of(request) == what:
                seen += 1
                if seen > after and len(bad) < 2 and node not in bad:
                    bad.append(node)
                if node in bad:
                    raise Refused("no more")
            return None

        faults = Faults()
        async with world(tmp_path / "net", wrap=faults.wrap) as net, net.vault() as vault:
            if what != "plan":  # which is asked of a node once
                await put(vault, b"first")
            faults.judge = judge
            data = make(SIZE)
            (stored,) = await put(vault, IterSource(pieces(data)))
            assert bad
            check_operators(net, stored)
            faults.judge = None
            assert await vault.fetch(stored) == data
            assert await vault.collect() == {}
            assert shards([stored]) <= await listed(net)
            assert await remembered(vault) == set()
            assert [n.room.arriving for n in vault._storage._sessions._nodes.values() if n.room.arriving] == []

    asyncio.run(scenario())


def test_a_node_that_stops_after_it_listed_earlier_windows_is_not_needed_for_the_certificate(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=7) as net, net.vault() as vault:
            stopped: list[Node] = []

            async def is_listed() -> bool:
                return len(await listed(net)) >= upload.WINDOW_SEGMENTS * CODE.n

            async def source() -> AsyncIterator[bytes]:
                for i in range(12):
                    if i == 11:
                        await until(is_listed)
                        holder = next(iter(await listed(net))).node
                        stopped.extend(node for node in net.node if node.key.address == holder)
                        await stopped[0].stop()
                    yield make(SEGMENT, i)

            (stored,) = await put(vault, IterSource(source()))
            gone = stopped[0].key.address
            assert bytes(gone) in stored.segments[0].nodes
            assert bytes(gone) not in stored.segments[-1].nodes
            check_operators(net, stored)
            assert await vault.fetch(stored) == b"".join(make(SEGMENT, i) for i in range(12))
            await stopped[0].start()
            newest = {delta.lease: delta for delta in sorted(net.memory.deltas(), key=lambda d: d.number)}
            assert sum(delta.size for delta in newest.values()) == sum(
                segment.shard_size * segment.n for segment in stored.segments
            )

    asyncio.run(scenario())


def test_a_node_that_hangs_is_replaced_where_another_could_take_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "PATIENCE_SECONDS", 1.0)

    async def scenario() -> None:
        hanging: list[Node] = []

        async def judge(node: Node, request: web.Request) -> web.StreamResponse | None:
            if kind_of(request) == "put":
                if not hanging:
                    hanging.append(node)
                if node in hanging:
                    await asyncio.Event().wait()
            return None

        faults = Faults(judge)
        async with world(tmp_path / "net", wrap=faults.wrap) as net, net.vault() as vault:
            (stored,) = await put(vault, make(SIZE))
            assert hanging[0].key.address not in stored.nodes()
            assert await vault.fetch(stored) == make(SIZE)

    asyncio.run(scenario())


def test_too_few_nodes_are_told_and_nothing_is_left(tmp_path: Path) -> None:
    async def scenario() -> None:
        async def judge(node: Node, request: web.Request) -> web.StreamResponse | None:
            if kind_of(request) == "put" and node in net.node[:3]:
                raise Refused("no room")
            return None

        faults = Faults()
        async with world(tmp_path / "net", wrap=faults.wrap) as net, net.vault() as vault:
            await put(vault, b"first")
            faults.judge = judge
            with pytest.raises(InsufficientOperators, match="no room"):
                await put(vault, IterSource(pieces(make(SIZE))))
            faults.judge = None
            (stored,) = await put(vault, make(SIZE))  # they are asked again
            assert await vault.fetch(stored) == make(SIZE)

    asyncio.run(scenario())


def test_one_shard_that_a_node_does_not_list_fails_nobody_else(tmp_path: Path) -> None:
    async def scenario() -> None:
        gate = asyncio.Event()

        async def are_stored() -> bool:
            return faults.counts["put"] >= 54 and faults.counts["delta"] >= 12

        async def judge(_: Node, request: web.Request) -> web.StreamResponse | None:
            if kind_of(request) == "delta":
                await gate.wait()
            return None

        faults = Faults()
        async with world(tmp_path / "net", nodes=7, wrap=faults.wrap) as net, net.vault() as vault:
            await put(vault, b"first")
            faults.judge = judge
            stows = [asyncio.create_task(put(vault, make(1000, i))) for i in range(8)]
            await until(are_stored)
            lost = net.node[0]  # forgets a shard that waits to be listed
            query = "DELETE FROM shards WHERE rowid IN (SELECT max(rowid) FROM shards WHERE named = 0)"
            await lost.provider._sql.write(lambda c: c.execute(query).rowcount)
            gate.set()
            stored = [each for (each,) in await asyncio.gather(*stows)]
            for i, each in enumerate(stored):
                assert await vault.fetch(each) == make(1000, i)
                check_operators(net, each)

    asyncio.run(scenario())


def test_nodes_that_serve_garbage_are_left_and_shown(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=6) as net, net.vault() as vault:
            data = make(SIZE)
            (stored,) = await put(vault, data)
            for node in net.node[:3]:
                assert node.spoil()
            assert set(await asyncio.gather(*(vault.fetch(stored) for _ in range(3)))) == {data}

    asyncio.run(scenario())


class Killer:
    """Kills a stow at its request number `at`, of whatever kind, and counts them."""

    def __init__(self, at: int, *, before: bool) -> None:
        self.at, self.before = at, before
        self.seen = 0
        self.task: asyncio.Task[Any] | None = None

    def wrap(self, node: Node) -> Any:
        @web.middleware
        async def middleware(request: web.Request, handler: Any) -> web.StreamResponse:
            if self.task is None or kind_of(request) not in ("put", "plan", "delta"):
                return await handler(request)
            self.seen += 1
            is_it = self.seen == self.at
            if is_it and self.before:
                self.task.cancel()
            response = await handler(request)
            if is_it and not self.before:
                self.task.cancel()
            return response

        return middleware


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("at", [1, 7, 27, 40, 50, 55, 60, 999])
def test_a_stow_that_is_killed_at_any_step_leaves_only_what_is_swept(tmp_path: Path, at: int, before: bool) -> None:
    async def scenario() -> None:
        killer = Killer(at, before=before)
        async with world(tmp_path / "net", wrap=killer.wrap) as net:
            async with net.vault() as vault:
                (kept,) = await put(vault, make(100))
                killer.task = asyncio.create_task(put(vault, IterSource(pieces(make(2 * WINDOW)))))
                await asyncio.wait([killer.task])
                stored = [] if killer.task.cancelled() else killer.task.result()
                killer.task = None
                assert stored or at < 999
            async with net.vault() as vault:  # as after a restart
                left = await listed(net) - shards([kept, *stored])
                assert left <= await remembered(vault)
                for label, found in (await vault.abandoned()).items():
                    assert label == LABEL
                    await vault.settle(label, found, shards([kept, *stored]))
                assert await vault.collect() == {}
                assert await listed(net) == shards([kept, *stored])
                assert await remembered(vault) == set()
                assert await vault.audit(lambda shard: shard in shards([kept, *stored]), older_than=-10) == 0
                assert await vault.fetch(kept) == make(100)

    asyncio.run(scenario())


def test_one_of_many_stows_that_is_cancelled_takes_nobody_along(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net") as net, net.vault() as vault:
            await put(vault, b"first")
            stows = [asyncio.create_task(put(vault, make(2000 + i, i))) for i in range(12)]
            for i, task in enumerate(stows[::3]):
                await asyncio.sleep(0.02 * i)
                task.cancel()
            results = await asyncio.gather(*stows, return_exceptions=True)
            good = [found[0] for found in results if isinstance(found, list)]
            assert len(good) >= 8
            for i, found in enumerate(results):
                if isinstance(found, list):
                    assert await vault.fetch(found[0]) == make(2000 + i, i)
                else:
                    assert isinstance(found, asyncio.CancelledError)
            async with net.vault() as again:
                for label, found in (await again.abandoned()).items():
                    await again.settle(label, found, ())
                await again.collect()
                assert len(await listed(net)) == 6 * (len(good) + 1)

    asyncio.run(scenario())


def test_collecting_leaves_a_node_alone_that_failed_a_moment_ago(tmp_path: Path) -> None:
    async def scenario() -> None:
        faults = Faults()
        async with world(tmp_path / "net", nodes=6, wrap=faults.wrap) as net, net.vault() as vault:
            stored = await put(vault, make(100))
            assert await vault.collect() == {}
            await net.node[0].stop()
            await vault.discard(stored)
            gone = net.node[0].key.address
            failures = await vault.collect()
            assert set(failures) == {gone}
            assert isinstance(failures[gone], FreeholdError)
            faults.counts.clear()
            assert set(await vault.collect()) == {gone}
            assert not faults.counts
            await net.node[0].start()
            vault._storage._uncollected.clear()
            assert await vault.collect() == {}
            assert await listed(net) == set()

    asyncio.run(scenario())


def test_members_that_are_away_fail_the_stow_and_it_is_garbage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freehold.market.quorum.PATIENCE_SECONDS", 1.0)

    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=6) as net, net.vault() as vault:
            (kept,) = await put(vault, make(100))
            for member in net.members[:2]:
                member.is_away = True
            with pytest.raises((Unavailable, Overloaded)):
                await put(vault, make(200))
            assert await vault.fetch(kept) == make(100)  # sessions are there
            for member in net.members[:2]:
                member.is_away = False
            await vault.collect()
            assert await listed(net) == shards([kept])

    asyncio.run(scenario())
