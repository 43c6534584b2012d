"""Versions, delete markers, object lock: as S3 has them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from freehold.client.bucket_types import Deleted, DeleteWhat, PutOptions
from freehold.client.buckets import Buckets
from freehold.client.errors import (
    InvalidBucketState,
    KeyNotFound,
    MethodNotAllowed,
    ObjectLocked,
    VersionNotFound,
)
from freehold.client.lifecycle import DAY
from freehold.client.root import ENABLED, SUSPENDED
from freehold.protocol.errors import InvalidInput
from freehold.services.storage.client_sources import BytesSource
from tests.client.bucket_world import SEGMENT, START, Net
from tests.client.test_buckets import data_of, get, put, run

NOW = int(START * 1000)


async def versioned(buckets: Buckets, state: str) -> None:
    await buckets.configure("demo", lambda record: replace(record, versioning=state))


async def stack(buckets: Buckets, key: str) -> list[tuple[str, bool, bool]]:
    found = (await buckets.list_versions("demo", prefix=key)).entries
    return [(entry.version_id, entry.is_latest, entry.is_delete_marker) for entry in found]


def test_every_put_is_a_version_and_the_last_commit_is_current(tmp_path: Path) -> None:
    async def scenario() -> None:
        net = Net(tmp_path)
        one = net.device()
        await one.create_bucket("demo", versioning=ENABLED)
        ids = [await put(one, "k", data_of(size)) for size in (10, 2 * SEGMENT, 0)]
        assert len({*ids}) == 3
        assert all(len(id) == 32 for id in ids)
        net.now -= 1000  # clocks say nothing
        ids.append(await put(one, "k", b"last"))
        assert await get(one, "k") == b"last"
        assert [await get(one, "k", id) for id in ids] == [data_of(10), data_of(2 * SEGMENT), b"", b"last"]
        assert await stack(one, "k") == [(id, id == ids[3], False) for id in reversed(ids)]
        assert (await one.head("demo", "k", ids[0])).is_latest is False
        assert (await one.head("demo", "k", ids[3])).is_latest is True
        with pytest.raises(InvalidInput):
            await one.head("demo", "k", "not-an-id")
        with pytest.raises(InvalidInput):
            await one.head("demo", "other", ids[0])  # an id is of one key
        with pytest.raises(VersionNotFound):
            await one.head("demo", "k", "null")
        await one.aclose()

    run(scenario)


def test_delete_markers_hide_and_deleting_them_brings_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        net = Net(tmp_path)
        one = net.device()
        await one.create_bucket("demo", versioning=ENABLED)
        id = await put(one, "k", data_of(SEGMENT))
        [marked] = await one.delete("demo", [DeleteWhat("k")])
        assert isinstance(marked, Deleted)
        assert marked.marker_id is not None
        assert marked == Deleted("k", None, True, marked.marker_id)
        assert (await one.list("demo")).entries == []
        with pytest.raises(KeyNotFound) as caught:
            await one.head("demo", "k")
        assert caught.value.details["delete_marker"] is True
        assert caught.value.details["version_id"] == marked.marker_id
        with pytest.raises(MethodNotAllowed):
            await one.open("demo", "k", marked.marker_id)
        assert await get(one, "k", id) == data_of(SEGMENT)
        assert await stack(one, "k") == [(marked.marker_id, True, True), (id, False, False)]
        [gone] = await one.delete("demo", [DeleteWhat("k", marked.marker_id)])
        assert gone == Deleted("k", marked.marker_id, True, marked.marker_id)
        assert await get(one, "k") == data_of(SEGMENT)
        assert await one.delete("demo", [DeleteWhat("k", id)]) == [Deleted("k", id)]
        assert await one.delete("demo", [DeleteWhat("k", id)]) == [Deleted("k", id)]  # once more is no error
        assert not net.shelf.blobs
        [marked] = await one.delete("demo", [DeleteWhat("never")])  # S3 makes a marker all the same
        assert isinstance(marked, Deleted)
        assert await stack(one, "never") == [(marked.marker_id, True, True)]
        await one.aclose()

    run(scenario)


def test_null_is_what_was_put_before_versioning_and_while_it_is_suspended(tmp_path: Path) -> None:
    async def scenario() -> None:
        net = Net(tmp_path)
        one = net.device()
        await one.create_bucket("demo")
        assert await put(one, "k", data_of(SEGMENT, 0)) == "null"
        await versioned(one, ENABLED)
        first = await put(one, "k", b"1")
        assert await get(one, "k", "null") == data_of(SEGMENT, 0)
        await versioned(one, SUSPENDED)
        assert await put(one, "k", data_of(SEGMENT, 2)) == "null"
        assert len(net.shelf.blobs) == 1
        assert await stack(one, "k") == [("null", True, False), (first, False, False)]
        await versioned(one, ENABLED)
        last = await put(one, "k", b"3")
        await versioned(one, SUSPENDED)
        assert await one.delete("demo", [DeleteWhat("k")]) == [Deleted("k", None, True, "null")]
        assert await stack(one, "k") == [("null", True, True), (last, False, False), (first, False, False)]
        assert not net.shelf.blobs
        await one.delete("demo", [DeleteWhat("k", "null")])
        assert await get(one, "k") == b"3"
        with pytest.raises(InvalidBucketState):
            await versioned(one, "")
        await one.aclose()

    run(scenario)


def test_a_copy_onto_itself_is_a_version_of_its_own(tmp_path: Path) -> None:
    async def scenario() -> None:
        net = Net(tmp_path)
        one = net.device()
        await one.create_bucket("demo", versioning=ENABLED)
        for size in (10, SEGMENT):
            first = await put(one, "k", data_of(size))
            again = await one.copy("demo", "k", "demo", "k", options=PutOptions(metadata={"m": "1"}))
            assert again.version_id != first
            await one.delete("demo", [DeleteWhat("k", first)])
            assert await get(one, "k") == data_of(size)
            restored = await one.copy("demo", "k", "demo", "k", version_id=again.version_id)
            assert restored.metadata == {"m": "1"}
        await one.aclose()

    run(scenario)


def test_a_retention_holds_until_its_time_and_cannot_be_weakened(tmp_path: Path) -> None:
    async def scenario() -> None:
        net = Net(tmp_path)
        one = net.device()
        await one.create_bucket("demo", object_lock=True)
        assert (await one.bucket("demo")).versioning == ENABLED
        for mode in ("GOVERNANCE", "COMPLIANCE"):
            net.now = START
            id = await put(one, mode, lock_mode=mode, retain_until=NOW + DAY)
            assert (await one.head("demo", mode, id)).retain_until == NOW + DAY
            what = [DeleteWhat(mode, id)]
            [refused] = await one.delete("demo", what)
            assert isinstance(refused, ObjectLocked)
            for weaker in ((mode, NOW + DAY - 1), ("", 0)):
                with pytest.raises(ObjectLocked):
                    await one.set_retention("demo", mode, *weaker, id)
            await one.set_retention("demo", mode, mode, NOW + 2 * DAY, id)
            if mode == "COMPLIANCE":
                with pytest.raises(ObjectLocked):
                    await one.set_retention("demo", mode, "GOVERNANCE", NOW + 3 * DAY, id, bypass_governance=True)
                [refused] = await one.delete("demo", what, bypass_governance=True)
                assert isinstance(refused, ObjectLocked)
                net.now = START + 2 * DAY / 1000
                [done] = await one.delete("demo", what)
            else:
                await one.set_retention("demo", mode, mode, NOW + DAY, id, bypass_governance=True)
                [done] = await one.delete("demo", what, bypass_governance=True)
            assert done == Deleted(mode, id)
        net.now = START
        id = await put(one, "k", legal_hold=True)
        assert isinstance((await one.delete("demo", [DeleteWhat("k", id)], bypass_governance=True))[0], ObjectLocked)
        [marked] = await one.delete("demo", [DeleteWhat("k")])  # a marker removes nothing
        assert isinstance(marked, Deleted)
        assert not (await one.set_legal_hold("demo", "k", False, id)).legal_hold
        assert await one.delete("demo", [DeleteWhat("k", id)]) == [Deleted("k", id)]
        await one.aclose()

    run(scenario)


def test_default_retention_and_what_a_lock_asks_of_a_bucket(tmp_path: Path) -> None:
    async def scenario() -> None:
        net = Net(tmp_path)
        one = net.device()
        await one.create_bucket("demo", object_lock=True)
        await one.configure("demo", lambda record: replace(record, default_retention=("GOVERNANCE", 3)))
        await put(one, "k", b"x")
        info = await one.head("demo", "k")
        assert (info.lock_mode, info.retain_until) == ("GOVERNANCE", NOW + 3 * DAY)
        with pytest.raises(InvalidBucketState):
            await versioned(one, SUSPENDED)
        for bad in ({"lock_mode": "GOVERNANCE"}, {"lock_mode": "COMPLIANCE", "retain_until": NOW}):
            with pytest.raises(InvalidInput):
                await put(one, "k", b"x", **bad)
        await one.create_bucket("plain")
        with pytest.raises(InvalidInput, match="no object lock"):
            await one.put("plain", "k", BytesSource(b""), PutOptions(legal_hold=True))
        await one.put("plain", "k", BytesSource(b""))
        with pytest.raises(InvalidBucketState):
            await one.set_legal_hold("plain", "k", True)
        with pytest.raises(InvalidBucketState):
            await one.configure("plain", lambda record: replace(record, object_lock=True))
        await one.aclose()

    run(scenario)


def test_writers_of_one_key_at_once_make_one_order(tmp_path: Path) -> None:
    async def scenario() -> None:
        net = Net(tmp_path)
        one, two = net.device(), net.device("two")
        await one.create_bucket("demo", versioning=ENABLED)
        ids = await asyncio.gather(*(put((one, two)[i % 2], "k", str(i).encode()) for i in range(20)))
        found = (await two.list_versions("demo")).entries
        assert sorted(ids) == sorted(entry.version_id for entry in found)
        assert [entry.is_latest for entry in found] == [True] + 19 * [False]
        assert await get(one, "k") == str(ids.index(found[0].version_id)).encode()
        await asyncio.gather(one.aclose(), two.aclose())

    run(scenario)
