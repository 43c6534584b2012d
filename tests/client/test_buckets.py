"""Objects of a bucket, without a network: what goes in comes out, and what S3 says of everything else."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from freehold.client import bucket_store
from freehold.client.bucket_types import Deleted, DeleteWhat, Digests, PutOptions
from freehold.client.buckets import Buckets
from freehold.client.errors import (
    BucketExists,
    BucketNotEmpty,
    BucketNotFound,
    KeyNotFound,
    ObjectReplaced,
    PreconditionFailed,
)
from freehold.client.root import ENABLED, SUSPENDED
from freehold.protocol.errors import DiskFull, InvalidInput, Unavailable, WrongPassphrase
from freehold.services.storage.client_objects import Code
from freehold.services.storage.client_sources import BytesSource, IterSource
from tests.client.bucket_world import SEGMENT, Net, Stowed

LIMIT = 16 << 10
SIZES = [0, 1, LIMIT - 1, LIMIT, LIMIT + 1, SEGMENT, 3 * SEGMENT + 7]


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scenario())  # type: ignore[arg-type]


def data_of(size: int, seed: int = 1) -> bytes:
    return hashlib.shake_128(str(seed).encode()).digest(size)


async def put(buckets: Buckets, key: str, data: bytes = b"x", bucket: str = "demo", **options: object) -> str:
    info = await buckets.put(bucket, key, BytesSource(data), PutOptions(**options))  # type: ignore[arg-type]
    return info.version_id


async def get(buckets: Buckets, key: str, version: str | None = None, bucket: str = "demo") -> bytes:
    reading = await buckets.open(bucket, key, version)
    return b"".join([bytes(view) async for view in reading.read()])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("known", [True, False])
def test_bytes_come_back_of_any_size(tmp_path: Path, size: int, known: bool) -> None:
    async def scenario() -> None:
        net = Net(tmp_path)
        buckets, data = net.device(), data_of(size)

        async def chunks():  # type: ignore[no-untyped-def]
            for at in range(0, size, 5000):
                yield data[at : at + 5000]

        await buckets.create_bucket("demo")
        seen: list[int] = []
        info = await buckets.put(
            "demo", "k", IterSource(chunks(), size if known else None), progress=lambda count: seen.append(count)
        )
        assert (info.size, info.version_id, info.modified) == (size, "null", 1_700_000_000_000)
        assert sum(seen) == size
        assert await get(buckets, "k") == data
        assert (await buckets.head("demo", "k")) == info
        if size <= LIMIT:
            assert info.etag == hashlib.md5(data).hexdigest()
            assert not net.shelf.blobs
        else:
            assert "-" in info.etag
        assert (await buckets.open("demo", "k")).size == size
        for offset, length in ((0, size), (size // 2, size - size // 2), (size, 0)):
            reading = await buckets.open("demo", "k")
            got = b"".join([bytes(view) async for view in reading.read(offset, length)])
            assert got == data[offset : offset + length]
        with pytest.raises(InvalidInput):
            await anext((await buckets.open("demo", "k")).read(size, 1))
        await buckets.delete("demo", [DeleteWhat("k")])
        assert not net.shelf.blobs
        await buckets.aclose()

    run(scenario)


def test_everything_that_was_said_of_an_object_is_kept(tmp_path: Path) -> None:
    async def scenario() -> None:
        buckets = Net(tmp_path).device()
        await buckets.create_bucket("demo")
        options = PutOptions(
            headers={"content-type": "text/plain"}, metadata={"a": "ü"}, tags={"t": "1"}, storage_class="STANDARD_IA"
        )
        digests = Digests("0" * 32, {"CRC32C": "AAAAAA=="}, "FULL_OBJECT")
        for size in (10, LIMIT + 1):
            await buckets.put("demo", "k", BytesSource(bytes(size)), options, lambda: digests)
            info = await buckets.head("demo", "k")
            assert (info.headers, info.metadata, info.tags) == (options.headers, options.metadata, options.tags)
            assert (info.etag, info.checksums, info.checksum_type) == digests
            assert info.storage_class == "STANDARD_IA"
        tagged = await buckets.set_tags("demo", "k", {"u": "2"})
        assert tagged.tags == {"u": "2"}
        assert (await buckets.head("demo", "k")) == tagged
        assert await get(buckets, "k") == bytes(LIMIT + 1)
        await buckets.aclose()

    run(scenario)


def test_a_source_that_refuses_leaves_nothing(tmp_path: Path) -> None:
    class Wrong(BytesSource):
        async def finish(self) -> None:
            raise InvalidInput("wrong digest")

    async def scenario() -> None:
        net = Net(tmp_path)
        buckets = net.device()
        await buckets.create_bucket("demo")
        await put(buckets, "k", b"old")
        for size in (10, 3 * SEGMENT):
            with pytest.raises(InvalidInput, match="wrong digest"):
                await buckets.put("demo", "k", Wrong(bytes(size)))
        assert await get(buckets, "k") == b"old"
        assert not net.shelf.blobs
        await buckets.aclose()

    run(scenario)


@pytest.mark.parametrize(
    "key", ["a//b", "/", "a/", "..", ".", "ü\N{COMBINING DIAERESIS}", "\x00\x1f", "\U0001f600", "a" * 1024]
)
def test_any_key_that_s3_takes_is_taken_as_it_is(tmp_path: Path, key: str) -> None:
    async def scenario() -> None:
        buckets = Net(tmp_path).device()
        await buckets.create_bucket("demo")
        await put(buckets, key, key.encode())
        assert await get(buckets, key) == key.encode()
        assert [entry.key for entry in (await buckets.list("demo")).entries] == [key]
        for bad in ("", key + "a" * 1024, "\ud800"):
            with pytest.raises(InvalidInput):
                await put(buckets, bad)
        await buckets.aclose()

    run(scenario)


def test_conditions_hold_when_the_commit_is_made(tmp_path: Path) -> None:
    async def scenario() -> None:
        net = Net(tmp_path)
        buckets, other = net.device(), net.device("two")
        await buckets.create_bucket("demo")
        with pytest.raises(KeyNotFound):
            await put(buckets, "k", if_match="abc")
        for size in (10, 2 * SEGMENT):
            key = f"k{size}"
            tries = [put((buckets, other)[i % 2], key, data_of(size, i), if_none_match="*") for i in range(6)]
            results = await asyncio.gather(*tries, return_exceptions=True)
            assert sum(isinstance(result, PreconditionFailed) for result in results) == 5
            etag = (await buckets.head("demo", key)).etag
            tries = [put((buckets, other)[i % 2], key, data_of(size, i + 9), if_match=f'"{etag}"') for i in range(6)]
            results = await asyncio.gather(*tries, return_exceptions=True)
            assert sum(isinstance(result, PreconditionFailed) for result in results) == 5
        assert len(net.shelf.blobs) == 2
        answers = await buckets.delete("demo", [DeleteWhat("k10", None, "abc"), DeleteWhat("none", None, "*")])
        assert [type(answer) for answer in answers] == [PreconditionFailed, KeyNotFound]
        assert len(await buckets.delete("demo", [DeleteWhat("k10", None, "*"), DeleteWhat("none")])) == 2
        with pytest.raises(KeyNotFound):
            await buckets.head("demo", "k10")
        await asyncio.gather(buckets.aclose(), other.aclose())

    run(scenario)


def test_a_replaced_object_is_dropped_and_one_in_use_is_found_anew(tmp_path: Path) -> None:
    async def scenario() -> None:
        net = Net(tmp_path)
        buckets, other = net.device(), net.device("two")
        await buckets.create_bucket("demo")
        old, new = data_of(3 * SEGMENT), data_of(2 * SEGMENT, 2)
        await put(buckets, "k", old)
        whole, part, late = [await buckets.open("demo", "k") for _ in range(3)]
        views = late.read()
        assert bytes(await anext(views)) == old[:SEGMENT]
        await put(other, "k", new)
        assert len(net.shelf.blobs) == 2
        assert b"".join([bytes(view) async for view in whole.read()]) == new
        assert whole.info == await buckets.head("demo", "k")
        with pytest.raises(ObjectReplaced):
            await anext(part.read(0, 3 * SEGMENT))
        with pytest.raises(Exception, match="no such shard"):
            await anext(views)
        await asyncio.gather(buckets.aclose(), other.aclose())

    run(scenario)


def test_two_devices_see_each_others_changes_at_once_and_twelve_words_are_enough(tmp_path: Path) -> None:
    async def scenario() -> None:
        net = Net(tmp_path)
        one, two = net.device(), net.device("two")
        await one.create_bucket("demo")
        await put(two, "k", b"1")
        assert await get(one, "k") == b"1"
        await put(one, "k", b"2")
        assert await get(two, "k") == b"2"
        await two.delete("demo", [DeleteWhat("k")])
        assert (await one.list("demo")).entries == []
        await put(one, "again", data_of(SEGMENT))
        fresh = net.device("a new machine")
        assert [info.name for info in await fresh.buckets()] == ["demo"]
        assert await get(fresh, "again") == data_of(SEGMENT)
        stranger = net.device("stranger", b"t" * 32)
        assert await stranger.buckets() == []
        stranger.root._name = one.root._name
        with pytest.raises(WrongPassphrase):
            await stranger.buckets()
        await asyncio.gather(*(each.aclose() for each in (one, two, fresh, stranger)))

    run(scenario)


def test_buckets_are_made_once_and_removed_when_empty(tmp_path: Path) -> None:
    async def scenario() -> None:
        net = Net(tmp_path)
        one, two = net.device(), net.device("two")
        results = await asyncio.gather(
            *(device.create_bucket("demo", Code(2, 4)) for device in (one, two, one)), return_exceptions=True
        )
        assert sum(isinstance(result, BucketExists) for result in results) == 2
        assert [(info.name, info.code) for info in await two.buckets()] == [("demo", (2, 4))]
        await put(one, "k")
        with pytest.raises(BucketNotEmpty):
            await two.delete_bucket("demo")
        await two.delete("demo", [DeleteWhat("k")])
        upload = await one.create_upload("demo", "k")
        with pytest.raises(BucketNotEmpty):
            await two.delete_bucket("demo")
        await one.abort_upload("demo", "k", upload)
        await two.delete_bucket("demo")
        for work in (one.list("demo"), two.delete_bucket("demo"), put(one, "k"), put(one, "k", bytes(SEGMENT))):
            with pytest.raises(BucketNotFound):
                await work
        assert not net.shelf.blobs
        await two.create_bucket("demo")
        assert (await one.list("demo")).entries == []
        await put(one, "k")
        for name in ("x", "Demo", "a..b", "", "1.2.3.4"):
            with pytest.raises(InvalidInput):
                await one.create_bucket(name)
        await asyncio.gather(one.aclose(), two.aclose())

    run(scenario)


def test_a_bucket_that_is_deleted_while_objects_are_put_loses_none(tmp_path: Path) -> None:
    async def scenario() -> None:
        net = Net(tmp_path)
        one, two = net.device(), net.device("two")
        for _ in range(5):
            await one.create_bucket("demo")
            results = await asyncio.gather(
                put(one, "k"), two.delete_bucket("demo"), put(two, "big", bytes(SEGMENT)), return_exceptions=True
            )
            if results[1] is None:
                assert isinstance(results[0], BucketNotFound)
                assert isinstance(results[2], BucketNotFound)
                continue
            assert isinstance(results[1], BucketNotEmpty)
            there = {entry.key for entry in (await one.list("demo")).entries}
            assert there == {k for k, result in (("k", results[0]), ("big", results[2])) if result == "null"}
            await one.delete("demo", [DeleteWhat(key) for key in there])
            await one.delete_bucket("demo")
        assert not net.shelf.blobs
        await asyncio.gather(one.aclose(), two.aclose())

    run(scenario)


def test_a_deletion_that_ended_halfway_is_no_bucket_and_can_be_made_anew(tmp_path: Path) -> None:
    async def scenario() -> None:
        net = Net(tmp_path)
        one = net.device()
        for finish in (one.create_bucket, one.delete_bucket):
            await one.create_bucket("demo")
            record = await one.bucket("demo")

            async def nothing(_: object) -> None:
                pass

            await one._opened("demo", record).table.close_for_good(nothing)
            with pytest.raises(BucketNotFound):
                await put(one, "k")
            await finish("demo")
            if finish == one.create_bucket:
                await put(one, "k")
                await one.delete("demo", [DeleteWhat("k")])
                await one.delete_bucket("demo")
        assert await one.buckets() == []
        await one.aclose()

    run(scenario)


@pytest.mark.parametrize("lose", ["before", "after"])
def test_where_nobody_knows_what_came_of_a_commit_the_shards_are_left_to_a_sweep(tmp_path: Path, lose: str) -> None:
    async def scenario() -> None:
        net = Net(tmp_path)
        one = net.device()
        await one.create_bucket("demo")
        one._opened("demo", await one.bucket("demo")).table._register._patience = 0.2
        net.heads.lose = lose
        if lose == "after":  # the table finds out that it came about
            await put(one, "k", data_of(2 * SEGMENT))
            assert not net.shelf.unsure
        else:
            with pytest.raises(Unavailable):
                await put(one, "k", data_of(2 * SEGMENT))
            assert net.shelf.unsure == set(net.shelf.blobs)
        net.heads.lose = ""
        assert len((await one.list("demo")).entries) == (lose == "after")
        await one.aclose()

    run(scenario)


def test_copies_are_copies_and_one_onto_itself_moves_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        net = Net(tmp_path)
        one = net.device()
        await one.create_bucket("demo")
        await one.create_bucket("other")
        for size in (100, 3 * SEGMENT):
            await put(one, "k", data_of(size), metadata={"m": "1"}, tags={"t": "1"})
            copied = await one.copy("demo", "k", "other", "c")
            assert (copied.metadata, copied.tags) == ({"m": "1"}, {"t": "1"})
            assert await get(one, "c", bucket="other") == data_of(size)
            before = await one.head("demo", "k")
            net.now += 5
            reads, blobs = net.shelf.reads, set(net.shelf.blobs)
            again = await one.copy("demo", "k", "demo", "k", options=PutOptions(metadata={"m": "2"}), tags={})
            assert (net.shelf.reads, set(net.shelf.blobs)) == (reads, blobs)
            assert again == await one.head("demo", "k")
            assert again == before._replace(metadata={"m": "2"}, tags={}, modified=before.modified + 5000)
            assert await get(one, "k") == data_of(size)
        with pytest.raises(KeyNotFound):
            await one.copy("demo", "none", "demo", "k")

        def refuse(info: object) -> None:
            raise PreconditionFailed("not this one")

        for target in ("k", "other"):
            with pytest.raises(PreconditionFailed):
                await one.copy("demo", "k", "demo", target, check=refuse)
        await one.delete("demo", [DeleteWhat("k")])
        await one.delete("other", [DeleteWhat("c")])
        assert not net.shelf.blobs
        await one.aclose()

    run(scenario)


def test_what_is_too_long_for_a_record_is_stored_itself(tmp_path: Path) -> None:
    async def scenario() -> None:
        net = Net(tmp_path)
        one = net.device()
        await one.create_bucket("demo", Code(10, 20))
        data = data_of(100 * SEGMENT)
        await put(one, "k", data)
        assert len(net.shelf.blobs) == 102  # a list of 100 segments, of two segments
        assert await get(one, "k") == data
        assert (await one.head("demo", "k")).size == len(data)
        await put(one, "k", b"")
        assert not net.shelf.blobs
        await one.aclose()

    run(scenario)


def test_what_a_record_names_is_no_garbage_though_it_could_not_be_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        net = Net(tmp_path)
        one = net.device()
        await one.create_bucket("demo", Code(10, 20))
        data = data_of(100 * SEGMENT)  # so long that its list is stored by itself: one shipment within another

        async def fail(_: Stowed) -> None:
            raise DiskFull("the disk is full")

        with monkeypatch.context() as patched:
            patched.setattr(Stowed, "keep", fail)
            with pytest.raises(Unavailable, match="disk is full"):
                await put(one, "k", data)
        assert await get(one, "k") == data
        await one.aclose()

    run(scenario)


def test_a_copy_is_of_the_version_that_was_checked(tmp_path: Path) -> None:
    async def scenario() -> None:
        net = Net(tmp_path)
        one, two = net.device(), net.device("two")
        await one.create_bucket("demo")
        await put(one, "k", data_of(2 * SEGMENT))
        second = data_of(2 * SEGMENT, 2)

        async def replaced() -> None:
            await put(two, "k", second, metadata={"m": "2"})

        original = one._find

        async def find(*arguments: object) -> object:
            found = await original(*arguments)  # type: ignore[arg-type]
            one._find = original  # type: ignore[method-assign]
            await replaced()  # before the first byte is read
            return found

        one._find = find  # type: ignore[assignment, method-assign]
        with pytest.raises(ObjectReplaced):
            await one.copy("demo", "k", "demo", "copy")
        assert await get(one, "k") == second
        assert [entry.key for entry in (await one.list("demo")).entries] == ["k"]
        await asyncio.gather(one.aclose(), two.aclose())

    run(scenario)


def test_a_put_that_has_not_heard_of_versioning_yet_takes_no_version_away(tmp_path: Path) -> None:
    async def scenario() -> None:
        net = Net(tmp_path)
        one, two = net.device(), net.device("two")
        await one.create_bucket("demo")
        await put(one, "k", b"null")
        await two.configure("demo", lambda record: replace(record, versioning=ENABLED))
        kept = await put(two, "k", b"first")
        await put(one, "k", b"second")  # it knows the bucket as it was two seconds ago
        await one.delete("demo", [DeleteWhat("other")])
        assert await get(two, "k", kept) == b"first"
        assert await get(two, "k") == b"second"
        third = await put(two, "k", b"third")
        await one.delete("demo", [DeleteWhat("k")])
        assert await get(two, "k", third) == b"third"
        with pytest.raises(KeyNotFound):
            await get(two, "k")
        await asyncio.gather(one.aclose(), two.aclose())

    run(scenario)


def test_tables_that_nobody_uses_are_not_kept_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_store, "OPEN_LIMIT", 3)

    async def scenario() -> None:
        net = Net(tmp_path)
        one = net.device()
        names = [f"bucket-{number}" for number in range(8)]
        for name in names:
            await one.create_bucket(name)
            await put(one, "k", name.encode(), bucket=name)
        assert len(one._open) == 3
        views = (await one.open(names[0], "k")).read()
        assert [bytes(await anext(views))] == [names[0].encode()]

        async def held() -> None:
            gate.set()
            await asyncio.Event().wait()

        gate = asyncio.Event()
        holding = asyncio.create_task(one._in(names[1], lambda at: held()))  # type: ignore[arg-type]
        await gate.wait()
        for name in names[2:]:
            assert await get(one, "k", bucket=name) == name.encode()
        assert (await one.bucket(names[1])).id in one._open
        assert len(one._open) <= 4
        holding.cancel()
        await asyncio.gather(holding, return_exceptions=True)
        await one.aclose()

    run(scenario)


def test_a_bucket_that_is_deleted_twice_at_once_is_deleted(tmp_path: Path) -> None:
    async def scenario() -> None:
        net = Net(tmp_path)
        one = net.device()
        for _ in range(20):
            await one.create_bucket("demo")
            results = await asyncio.gather(*(one.delete_bucket("demo") for _ in range(4)), return_exceptions=True)
            assert all(result is None or isinstance(result, BucketNotFound) for result in results), results
            assert None in results
        await one.aclose()

    run(scenario)


def test_a_thousand_of_the_longest_keys_are_deleted_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        net = Net(tmp_path)
        one = net.device()
        await one.create_bucket("demo")
        keys = [f"{number:01024d}" for number in range(1000)]
        await asyncio.gather(*(put(one, key) for key in keys))
        await one.configure("demo", lambda record: replace(record, versioning=SUSPENDED))
        one = net.device("two")
        done = await one.delete("demo", [DeleteWhat(key) for key in keys])
        assert all(isinstance(outcome, Deleted) and outcome.is_delete_marker for outcome in done)
        assert (await one.list("demo")).entries == []
        await one.aclose()

    run(scenario)
