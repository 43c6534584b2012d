"""The SDK against real nodes: what goes in comes out, whatever n - k nodes do."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from freehold.client.errors import BucketExists, BucketNotEmpty
from freehold.client.heads import Head, LocalHeads
from freehold.client.sdk import Freehold
from freehold.client.table_records import INLINE_LIMIT
from freehold.market.reservations import Want
from freehold.protocol.errors import (
    Corrupt,
    DiskFull,
    InsufficientCredits,
    InsufficientOperators,
    InvalidInput,
    NotFound,
    Unavailable,
)
from freehold.services.storage import upload
from freehold.services.storage.client_sources import SourceChanged
from tests.client.world import SEGMENT, Node, World, world

SIZE = 5 * SEGMENT + 7
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def write(path: Path, size: int = SIZE, seed: int = 1) -> Path:
    path.write_bytes(random.Random(seed).randbytes(size))
    return path


def listed_bytes(net: World) -> int:
    """Bytes in all lists, by the newest delta of each that the quorum holds."""
    newest = {delta.lease: delta for delta in sorted(net.memory.deltas(), key=lambda d: d.number)}
    return sum(delta.size for delta in newest.values())


async def objects_of(client: Freehold) -> list[str]:
    return [str(entry.path) for info in await client.buckets() for entry in await client.ls(f"fh://{info.name}")]


async def put_and_get(client: Freehold, folder: Path, size: int = SIZE) -> None:
    source, back = write(folder / "source", size), folder / "back"
    await client.put(source, "fh://demo/file")
    await client.get("fh://demo/file", back)
    assert back.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("size", [0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, SIZE])
def test_a_file_comes_back_byte_for_byte(tmp_path: Path, size: int) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net") as net, net.client() as client:
            source, seen = write(tmp_path / "source", size), []
            info = await client.put(source, "fh://demo/dir/file", lambda *step: seen.append(step))
            assert (info.size, info.nodes) == (size, 6 if size > INLINE_LIMIT else 0)
            assert not size or seen[-1] == (size, size)
            back = tmp_path / "back"
            assert await client.get("fh://demo/dir/file", back) == size
            assert back.read_bytes() == source.read_bytes()
            assert [str(entry.path) for entry in await client.ls("fh://demo")] == ["fh://demo/dir/file"]

    asyncio.run(scenario())


@pytest.mark.parametrize("harm", ["gone", "spoiled"])
def test_any_n_minus_k_nodes_may_fail_and_not_one_more(tmp_path: Path, harm: str) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=6) as net, net.client() as client:
            source, back = write(tmp_path / "source"), tmp_path / "back"
            await client.put(source, "fh://demo/file")
            for node in net.node[:3]:
                if harm == "gone":
                    await node.stop()
                else:
                    assert node.spoil()
            await client.get("fh://demo/file", back)
            assert back.read_bytes() == source.read_bytes()
            if harm == "gone":
                await net.node[3].stop()
            else:
                net.node[3].spoil()
            with pytest.raises(Unavailable if harm == "gone" else Corrupt, match=r"needs 3 good shards and has 2"):
                await client.get("fh://demo/file", tmp_path / "never")

    asyncio.run(scenario())
    assert [path.name for path in tmp_path.glob("*never*")] == []


def liar(first: list[Node]) -> Callable[[Node], Any]:
    """Nodes that sign for the right shard and send another."""

    def wrap(node: Node) -> Any:
        @web.middleware
        async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.method == "GET" and "/shards/" in request.path and node in first:
                node.provider._sender._send = _send_garbage.__get__(node.provider._sender)  # type: ignore[method-assign]
            return await handler(request)

        return middleware

    return wrap


async def _send_garbage(self: Any, request: web.Request, paid: Any, served: Any, data: bytes) -> web.StreamResponse:
    headers = {"Freehold-Served": served.to_bytes().decode()}
    return web.Response(body=bytes(len(data)), headers=headers)


def test_garbage_is_never_used_and_its_signed_header_is_kept(tmp_path: Path) -> None:
    async def scenario() -> None:
        lying: list[Node] = []
        async with world(tmp_path / "net", nodes=6, wrap=liar(lying)) as net, net.client() as client:
            source, back = write(tmp_path / "source"), tmp_path / "back"
            await client.put(source, "fh://demo/file")
            lying += net.node[:3]
            await client.get("fh://demo/file", back)
            assert back.read_bytes() == source.read_bytes()
            assert client.evidence.count() >= 1
            kept = json.loads(next(client.evidence.folder.glob("*.json")).read_text())
            assert kept["node"] in {str(node.key.address) for node in lying}
            assert kept["served"]["shard"] != f"0x{kept['received_root']}"

    asyncio.run(scenario())


def failing(bad: dict[Node, int], what: str) -> Callable[[Node], Any]:
    """Nodes that take so many shards and then fail: at shards, or at their lists."""

    def wrap(node: Node) -> Any:
        @web.middleware
        async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
            if node in bad and (request.method == "PUT" if what == "shards" else request.path.endswith("/deltas")):
                bad[node] -= 1
                if bad[node] < 0:
                    raise DiskFull("the disk is full")
            return await handler(request)

        return middleware

    return wrap


@pytest.mark.parametrize("what", ["shards", "lists"])
def test_nodes_that_fail_in_an_upload_are_replaced(tmp_path: Path, what: str) -> None:
    async def scenario() -> None:
        bad: dict[Node, int] = {}
        async with world(tmp_path / "net", nodes=8, wrap=failing(bad, what)) as net, net.client() as client:
            bad |= {net.node[0]: 2 if what == "shards" else 0, net.node[1]: 0}
            source, back = write(tmp_path / "source"), tmp_path / "back"
            info = await client.put(source, "fh://demo/file")
            assert info.nodes >= 6
            for node in net.node[:4]:  # what the first listed before it failed went with it: three of any segment's six
                await node.stop()
            await client.get("fh://demo/file", back)
            assert back.read_bytes() == source.read_bytes()

    asyncio.run(scenario())


def test_too_few_operators_says_how_many_there_are(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=6) as net, net.client() as client:
            await net.node[0].stop()
            with pytest.raises(InsufficientOperators, match="5 operators") as caught:
                await client.put(write(tmp_path / "source"), "fh://demo/file")
            assert (caught.value.details["have"], caught.value.details["need"]) == (5, 6)
            assert await objects_of(client) == []
        async with world(tmp_path / "one", nodes=7, operator=3) as net, net.client(home="other") as client:
            with pytest.raises(InsufficientOperators, match="1 operators"):
                await client.estimate(SIZE, "fh://demo/file")

    asyncio.run(scenario())


def test_too_few_credits_says_how_many_are_missing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net") as net, net.client(credits=10**10) as client:
            with pytest.raises(InsufficientCredits, match="credits are missing") as caught:
                await client.put(write(tmp_path / "source"), "fh://demo/file")
            missing = int(caught.value.details["missing"])
            assert await objects_of(client) == []
            net.memory.credits[client.account.address] += missing + missing // 50  # prices go by the second
            await put_and_get(client, tmp_path)

    asyncio.run(scenario())


@pytest.mark.parametrize("change", ["append", "touch", "replace", "shrink"])
def test_a_file_that_changes_meanwhile_is_not_recorded(tmp_path: Path, change: str) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net") as net, net.client() as client:
            source = write(tmp_path / "source", 40 * SEGMENT)  # more than is read ahead of what is stored

            def harm(done: int, total: int) -> None:
                if done >= SEGMENT and change == "append":
                    with source.open("ab") as file:
                        file.write(b"x")
                elif change == "touch":
                    source.write_bytes(source.read_bytes())
                elif change == "replace":
                    (tmp_path / "other").write_bytes(source.read_bytes())
                    (tmp_path / "other").replace(source)
                elif change == "shrink":
                    with source.open("r+b") as file:
                        file.truncate(100)

            with pytest.raises(SourceChanged):
                await client.put(source, "fh://demo/file", harm)
            assert await objects_of(client) == []
            assert listed_bytes(net) == 0

    asyncio.run(scenario())


def test_replaced_and_removed_objects_leave_the_lists(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net") as net, net.client() as client:
            await put_and_get(client, tmp_path)
            await put_and_get(client, tmp_path, 3 * SEGMENT)
            assert (await client.stat("fh://demo/file")).size == 3 * SEGMENT
            with pytest.raises(BucketNotEmpty):
                await client.rb("demo")
            assert await client.rm("fh://demo/file") == {}
            assert listed_bytes(net) == 0
            assert await client.ls("fh://demo") == []
            with pytest.raises(NotFound):
                await client.rm("fh://demo/file")
            await client.rb("demo")
            with pytest.raises(NotFound):
                await client.ls("fh://demo")

    asyncio.run(scenario())


def test_writers_at_once_all_succeed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net") as net, net.client() as first, net.client() as second:
            files = [write(tmp_path / f"file{i}", SEGMENT + i, i) for i in range(6)]
            await asyncio.gather(
                *((first, second)[i % 2].put(file, f"fh://demo/dir/{file.name}") for i, file in enumerate(files))
            )
            assert [entry.path.name for entry in await second.ls("fh://demo/dir")] == [f.name for f in files]
            for file in files:
                await first.get(f"fh://demo/dir/{file.name}", tmp_path / "back")
                assert (tmp_path / "back").read_bytes() == file.read_bytes()
            await first.rm(*(f"fh://demo/dir/{file.name}" for file in files))
            await put_and_get(first, tmp_path, 10)
            await first.rm("fh://demo/file")
            assert listed_bytes(net) == 0

    asyncio.run(scenario())


def test_ranges_fetch_only_the_segments_that_hold_them(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net") as net, net.client() as client:
            source = write(tmp_path / "source")
            await client.put(source, "fh://demo/file")
            data = source.read_bytes()
            before = sum(node.provider.metrics()["sent_bytes_total"] for node in net.node)
            for offset, length in [(0, 0), (0, 1), (SEGMENT - 1, 2), (3 * SEGMENT + 5, SEGMENT), (SIZE, 0), (10, None)]:
                got = b"".join([chunk async for chunk in client.read("fh://demo/file", offset, length)])
                assert got == (data[offset:] if length is None else data[offset : offset + length])
                if length == 1:
                    sent = sum(node.provider.metrics()["sent_bytes_total"] for node in net.node) - before
                    assert sent < 2 * SEGMENT
            with pytest.raises(InvalidInput):
                await anext(client.read("fh://demo/file", SIZE, 1))

    asyncio.run(scenario())


def test_a_lost_book_is_read_back_from_nodes_and_members(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net") as net:
            async with net.client() as client:
                await put_and_get(client, tmp_path)
            net.memory.advance()
            for name in ("client.sqlite", "client.sqlite-wal", "client.sqlite-shm"):
                (client.folder / name).unlink(missing_ok=True)
            leases = len(net.memory.leases)
            async with net.client() as again:
                await again.get("fh://demo/file", tmp_path / "second")
                assert (tmp_path / "second").read_bytes() == (tmp_path / "source").read_bytes()
                await put_and_get(again, tmp_path, 2 * SEGMENT)
            net.memory.advance()
            assert len(net.memory.leases) <= max(leases, 16)

    asyncio.run(scenario())


def test_epochs_go_by_and_locks_grow(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net") as net, net.client() as client:
            for number in range(4):
                await client.put(write(tmp_path / "source", (number + 1) * 4 * SEGMENT), f"fh://demo/{number}")
                net.memory.advance()
            state = await client.credits()
            assert state.epoch == 4
            assert 0 < state.reserved < state.paid_in
            assert state.free == state.paid_in - state.reserved

    asyncio.run(scenario())


def test_an_interrupted_upload_leaves_garbage_that_the_next_one_takes_off(tmp_path: Path) -> None:
    async def scenario() -> None:
        heads = _Fragile(tmp_path / "heads")
        async with world(tmp_path / "net") as net, net.client(heads=heads) as client:
            await put_and_get(client, tmp_path, 10)
            kept = listed_bytes(net)
            heads.is_broken = True
            with pytest.raises(OSError, match="the disk is gone"):
                await client.put(write(tmp_path / "other"), "fh://demo/other")
            heads.is_broken = False
            assert listed_bytes(net) > kept + SIZE
            await client.put(write(tmp_path / "small", 10), "fh://demo/small")
            await client.rm("fh://demo/file", "fh://demo/small")
            assert listed_bytes(net) == 0

    asyncio.run(scenario())


class _Fragile(LocalHeads):
    is_broken = False

    async def compare_and_set(self, name: str, expected: Head | None, new: Head | None) -> None:
        if self.is_broken:
            raise OSError("the disk is gone")
        await super().compare_and_set(name, expected, new)


def test_buckets_have_codes_of_their_own(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net") as net, net.client() as client:
            await client.mb("two-of-eight", 2, 8)
            with pytest.raises(BucketExists):
                await client.mb("two-of-eight")
            with pytest.raises(InvalidInput):
                await client.mb("none", 3, 3)
            info = await client.put(write(tmp_path / "source"), "fh://two-of-eight/file")
            assert info.nodes == 8
            assert [(b.name, tuple(b.code)) for b in await client.buckets()] == [("two-of-eight", (2, 8))]
            for node in net.node[2:]:
                await node.stop()
            await client.get("fh://two-of-eight/file", tmp_path)
            assert (tmp_path / "file").read_bytes() == (tmp_path / "source").read_bytes()

    asyncio.run(scenario())


def test_costs_are_known_before(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net") as net, net.client() as client:
            cost = await client.estimate(3 * 2**20, "fh://demo/file")
            assert cost.operators == 8
            assert 6 * 2**20 <= cost.stored_bytes < 6.1 * 2**20
            assert cost.per_day <= 24 * cost.per_hour <= cost.per_day + 24 * 6
            assert 0 < cost.read_once < cost.per_30_days

    asyncio.run(scenario())


def hanging(bad: list[Node]) -> Callable[[Node], Any]:
    """Nodes that take a shard's request and never answer."""

    def wrap(node: Node) -> Any:
        @web.middleware
        async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
            if node in bad and "/shards/" in request.path:
                await asyncio.Event().wait()
            return await handler(request)

        return middleware

    return wrap


def test_a_node_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "PATIENCE_SECONDS", 1.0)

    async def scenario() -> None:
        bad: list[Node] = []
        # More spares than one: where the machine is slow for a moment, others seem to hang too.
        async with world(tmp_path / "net", nodes=9, wrap=hanging(bad)) as net, net.client() as client:
            bad.append(net.node[0])
            await put_and_get(client, tmp_path)

    asyncio.run(scenario())


def test_a_failure_without_a_spare_records_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        bad: dict[Node, int] = {}
        async with world(tmp_path / "net", nodes=6, wrap=failing(bad, "shards")) as net, net.client() as client:
            bad[net.node[0]] = 3
            with pytest.raises(InsufficientOperators, match=r"5 operators.*the disk is full"):
                await client.put(write(tmp_path / "source"), "fh://demo/file")
            assert await objects_of(client) == []
            bad.clear()
            await put_and_get(client, tmp_path)
            await client.rm("fh://demo/file")
            assert listed_bytes(net) == 0

    asyncio.run(scenario())


def test_removal_while_a_node_is_away_is_made_up_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=6) as net, net.client() as client:
            await put_and_get(client, tmp_path)
            first = listed_bytes(net)
            await net.node[0].stop()
            assert set(await client.rm("fh://demo/file")) == {net.node[0].key.address}
            assert listed_bytes(net) > 0
            await net.node[0].start()
            await put_and_get(client, tmp_path)
            assert listed_bytes(net) == first

    asyncio.run(scenario())


@pytest.mark.parametrize("known", [True, False])
def test_leases_are_closed_by_the_client_and_their_locks_come_free(tmp_path: Path, known: bool) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=7) as net, net.client() as client:
            await client.put(write(tmp_path / "source", SEGMENT), "fh://demo/one")
            if known:
                net.memory.advance()
            listed = await client.leases()
            operator = next(info.operator for info in listed if info.lock)
            assert operator is not None
            mine = {info.lease for info in listed if info.operator == operator}
            assert set(await client.close_leases(operator)) == mine
            assert len(mine) == 2
            net.memory.advance()
            assert all(net.memory.leases[key].closed for key in mine)
            await client.put(write(tmp_path / "source", SEGMENT), "fh://demo/two")  # the others suffice
            assert mine <= net.memory.locks[client.account.address].keys()
            locked = (await client.credits()).reserved
            for _ in range(3):
                net.memory.advance()
            assert (await client.credits()).reserved < locked
            other, cap = next((k, v) for k, v in (await client._leases.caps()).items() if k not in mine)
            await client._leases.reserve({other: Want(cap + 1, cap + 1)})
            net.memory.advance()
            assert not mine & net.memory.locks[client.account.address].keys()
            with pytest.raises(NotFound, match="no open lease"):
                await client.close_leases(client.account.address)

    asyncio.run(scenario())
