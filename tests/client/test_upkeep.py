"""Upkeep of buckets against what is still under way: nothing that comes about later may have lost its shards."""

from __future__ import annotations

from collections.abc import Container, Iterable
from pathlib import Path

import pytest

from freehold.client.bucket_types import CompletedPart
from freehold.client.buckets import Buckets
from freehold.client.errors import KeyNotFound
from freehold.client.heads import Head
from freehold.client.table_view import View
from freehold.protocol.errors import Conflict, Corrupt, Unavailable
from freehold.protocol.units import Address, Hash
from freehold.services.storage.client_objects import ListedShard
from freehold.services.storage.client_sources import BytesSource
from tests.client.bucket_world import SEED, SEGMENT, START, LossyHeads, MemoryVault, Net
from tests.client.test_buckets import data_of, get, put, run


class LateHeads(LossyHeads):
    """With `lose` "late" a change is on its way: it comes about by `arrive`, if it still can."""

    late: tuple[str, Head | None, Head | None] | None = None

    async def compare_and_set(self, name: str, expected: Head | None, new: Head | None) -> None:
        if self.lose == "late":
            self.late = name, expected, new
            raise Unavailable("one node has it, a majority has not")
        await super().compare_and_set(name, expected, new)

    async def arrive(self) -> None:
        assert self.late is not None
        try:
            await self.compare_and_set(*self.late)
        except Conflict:
            return


class SweptVault(MemoryVault):
    """With as much of a sweep as buckets ask for."""

    label = ""

    async def abandoned(self) -> dict[str, list[ListedShard]]:
        return {self.label: self._shards()} if self.shelf.unsure else {}

    async def settle(self, label: str, shards: Iterable[ListedShard], named: Container[ListedShard]) -> None:
        for shard in set(shards):
            self.shelf.unsure.discard(bytes(shard.root))
            if shard not in named:
                self.shelf.blobs.pop(bytes(shard.root), None)

    def _shards(self) -> list[ListedShard]:
        return [ListedShard(Address(bytes(20)), 0, Hash(root)) for root in self.shelf.unsure]


def device_of(net: Net) -> tuple[Buckets, SweptVault]:
    vault = SweptVault(net.shelf)
    buckets = Buckets(net.heads, vault, SEED, net.folder / "one", clock=lambda: START, least_part=SEGMENT)  # type: ignore[arg-type]
    return buckets, vault


def test_a_commit_that_comes_about_after_a_sweep_has_its_shards_or_never_does(tmp_path: Path) -> None:
    async def scenario() -> None:
        net = Net(tmp_path)
        net.heads = heads = LateHeads(net.heads._heads)
        one, vault = device_of(net)
        await one.create_bucket("demo")
        table = one._opened("demo", await one.bucket("demo")).table
        table._register._patience, vault.label = 0.0, table.name
        heads.lose = "late"
        with pytest.raises(Unavailable):
            await put(one, "k", data_of(2 * SEGMENT))
        assert net.shelf.unsure
        heads.lose = ""
        await one.sweep()
        await heads.arrive()
        with pytest.raises(KeyNotFound):
            await get(net.device("two"), "k")
        assert not net.shelf.blobs
        await one.aclose()

    run(scenario)


def test_what_moves_while_a_sweep_looks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that become an object behind the place that a scan has come to, which then goes on with a newer head."""

    async def scenario() -> None:
        net = Net(tmp_path)
        one, vault = device_of(net)
        await one.create_bucket("demo")
        await put(one, "a")
        upload = await one.create_upload("demo", "k")
        part = await one.put_part("demo", "k", upload, 1, BytesSource(data_of(SEGMENT)))
        table = one._opened("demo", await one.bucket("demo")).table
        net.shelf.unsure, vault.label = set(net.shelf.blobs), table.name
        original, moved = View.scan, False

        async def scan(self: View, *arguments: object):  # type: ignore[no-untyped-def]
            nonlocal moved
            rows = [row async for row in original(self, *arguments)]  # type: ignore[arg-type]
            if moved or rows[0][0][0] != 1:
                for row in rows:
                    yield row
                return
            moved = True
            yield rows[0]
            await one.complete_upload("demo", "k", upload, [CompletedPart(1, part.etag)])
            self._state = await self._register.fresh()  # as where the next page is gone
            self.number = self._state.number
            async for row in original(self, (2, b"", b"")):
                yield row

        monkeypatch.setattr(View, "scan", scan)
        await one.sweep()
        monkeypatch.undo()
        assert moved
        assert await get(one, "k") == data_of(SEGMENT)
        await one.aclose()

    run(scenario)


def test_a_bucket_that_fails_keeps_no_other_from_its_upkeep(tmp_path: Path) -> None:
    async def scenario() -> None:
        one, _ = device_of(Net(tmp_path))
        for name in ("first", "second"):
            await one.create_bucket(name)
            await put(one, "k", b"x" * 5000, bucket=name)

        async def broken(*_: int) -> None:
            raise Corrupt("this one is damaged")

        tables = [one._opened(name, await one.bucket(name)).table for name in ("first", "second")]
        tables[0].maintain = broken  # type: ignore[method-assign]
        with pytest.raises(Corrupt):
            await one.maintain(1, 0)
        assert (await tables[1].own_objects()) != []
        await one.aclose()

    run(scenario)
