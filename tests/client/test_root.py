"""The account's root: changed by several at once, found and opened with the seed alone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from freehold.client.heads import Head, LocalHeads
from freehold.client.root import AccessKey, AccountRoot, BucketRecord, Root, decode_root, encode_root
from freehold.protocol.errors import Corrupt, WrongPassphrase
from freehold.services.storage.client_objects import Code
from tests.client.bucket_world import SEED


class CountingHeads(LocalHeads):
    reads = 0

    async def read(self, name: str) -> Head | None:
        self.reads += 1
        return await super().read(name)


def with_revoked(root: Root, name: str) -> Root:
    return replace(root, revoked={**root.revoked, name: 5})


def test_changes_of_several_devices_are_all_kept(tmp_path: Path) -> None:
    async def scenario() -> None:
        heads = LocalHeads(tmp_path)
        devices = [AccountRoot(heads, SEED) for _ in range(3)]
        await asyncio.gather(*(devices[n % 3].change(lambda root, n=n: with_revoked(root, str(n))) for n in range(15)))
        for device in (*devices, AccountRoot(heads, SEED)):
            assert set((await device.read()).revoked) == {str(n) for n in range(15)}

    asyncio.run(scenario())


def test_reads_are_fresh_unless_an_age_is_allowed_and_those_at_once_share_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        heads, now = CountingHeads(tmp_path), [0.0]
        one, two = AccountRoot(heads, SEED, lambda: now[0]), AccountRoot(heads, SEED)
        await one.read()
        await two.change(lambda root: with_revoked(root, "x"))
        now[0] = 1.5
        assert (await one.read(2)).revoked == {}
        now[0] = 2.5
        assert (await one.read(2)).revoked == {"x": 5}
        await two.change(lambda root: with_revoked(root, "y"))
        assert set((await one.read()).revoked) == {"x", "y"}

        heads.reads = 0
        real = AccountRoot(heads, SEED)
        await asyncio.gather(*(real.read() for _ in range(20)))
        assert heads.reads <= 2

    asyncio.run(scenario())


def test_a_change_that_changes_nothing_or_raises_writes_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        root = AccountRoot(LocalHeads(tmp_path), SEED)
        await root.change(lambda old: old)
        assert await LocalHeads(tmp_path).read(root._name) is None

        def fail(_: Root) -> Root:
            raise Corrupt("no")

        with pytest.raises(Corrupt, match="no"):
            await root.change(fail)
        assert await LocalHeads(tmp_path).read(root._name) is None

    asyncio.run(scenario())


def test_another_seed_or_other_bytes_never_look_like_an_empty_account(tmp_path: Path) -> None:
    async def scenario() -> None:
        heads = LocalHeads(tmp_path)
        mine, other = AccountRoot(heads, SEED), AccountRoot(heads, b"t" * 32)
        await mine.change(lambda root: with_revoked(root, "x"))
        assert await other.read() == Root()  # other heads
        other._name = mine._name
        with pytest.raises(WrongPassphrase):
            await other.read()
        head = await heads.read(mine._name)
        assert head is not None
        assert b"revoked" not in head.base
        await heads.compare_and_set(mine._name, head, Head(2, head.base[:-1] + bytes([head.base[-1] ^ 1])))
        with pytest.raises(Corrupt):
            await mine.read()

    asyncio.run(scenario())


def test_a_root_comes_back_and_nothing_else_does() -> None:
    record = BucketRecord(id=bytes(16), created=1, code=Code(3, 6), documents={"policy": b"{}"})
    key = AccessKey(id="FH" + "A" * 18, secret="s" * 40, label="l", created=5)
    root = Root(buckets={"demo": record}, access_keys={key.id: key}, revoked={"00": 5})
    assert decode_root(encode_root(root)) == root
    for bad in (b"", b"\xc0", encode_root(root)[:-1], encode_root(root) + b"x", b"\x92\x02\x80"):
        with pytest.raises(Corrupt):
            decode_root(bad)
