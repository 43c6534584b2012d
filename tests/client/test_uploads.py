"""Multipart uploads: parts in any order, sent again, listed, aborted, completed once and twice."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import zlib
from pathlib import Path

import pytest

from freehold.client.bucket_types import CompletedPart, DeleteWhat, Digests, PartInfo, PutOptions
from freehold.client.buckets import Buckets
from freehold.client.errors import (
    InvalidPart,
    InvalidPartOrder,
    PartTooSmall,
    PreconditionFailed,
    UploadNotFound,
)
from freehold.client.root import ENABLED
from freehold.protocol.errors import InvalidInput
from freehold.services.storage.client_sources import BytesSource
from tests.client.bucket_world import SEGMENT, Net
from tests.client.test_buckets import data_of, get, put, run


def crc(data: bytes) -> str:
    return base64.b64encode(zlib.crc32(data).to_bytes(4)).decode()


async def send(buckets: Buckets, upload: str, number: int, data: bytes) -> PartInfo:
    digests = Digests(hashlib.md5(data).hexdigest(), {"CRC32": crc(data)}, "")
    return await buckets.put_part("demo", "k", upload, number, BytesSource(data), lambda: digests)


def said(*parts: PartInfo) -> list[CompletedPart]:
    return [CompletedPart(part.number, f'"{part.etag}"') for part in sorted(parts)]


def test_parts_of_any_order_and_sent_again_make_one_object(tmp_path: Path) -> None:
    async def scenario() -> None:
        net = Net(tmp_path)
        one, two = net.device(), net.device("two")
        await one.create_bucket("demo")
        options = PutOptions(metadata={"m": "1"}, tags={"t": "2"}, headers={"content-type": "x/y"})
        upload = await one.create_upload("demo", "k", options, "CRC32")
        pieces = {7: data_of(SEGMENT, 1), 2: data_of(3 * SEGMENT + 5, 2), 9: data_of(10, 3)}
        await send(two, upload, 2, data_of(2 * SEGMENT, 9))
        parts = await asyncio.gather(*(send((one, two)[n % 2], upload, n, data) for n, data in pieces.items()))
        unused = await send(one, upload, 5, data_of(SEGMENT, 8))
        listed = await two.list_parts("demo", "k", upload)
        assert [part.number for part in listed.entries] == [2, 5, 7, 9]
        assert listed.upload.options == options
        assert (await two.list_parts("demo", "k", upload, 2, 2)).next == 7
        assert len(net.shelf.blobs) == 4 + 1 + 1 + 1
        with pytest.raises(UploadNotFound):
            await one.upload("demo", "other", upload)
        info = await one.complete_upload("demo", "k", upload, said(*parts))
        whole = b"".join(pieces[n] for n in sorted(pieces))
        assert await get(two, "k") == whole
        digests = b"".join(hashlib.md5(pieces[n]).digest() for n in sorted(pieces))
        assert info.etag == f"{hashlib.md5(digests).hexdigest()}-3"
        assert info.checksums["CRC32"].endswith("-3")
        assert info.checksum_type == "COMPOSITE"
        assert [(part.number, part.size) for part in info.parts] == [(n, len(pieces[n])) for n in sorted(pieces)]
        assert (info.metadata, info.tags, info.size) == ({"m": "1"}, {"t": "2"}, len(whole))
        assert len(net.shelf.blobs) == 6
        assert await two.complete_upload("demo", "k", upload, said(*parts)) == info  # the answer was lost
        with pytest.raises(UploadNotFound):
            await two.complete_upload("demo", "k", upload, said(*parts, unused))
        for gone in (
            one.abort_upload("demo", "k", upload),
            one.list_parts("demo", "k", upload),
            send(one, upload, 1, b""),
        ):
            with pytest.raises(UploadNotFound):
                await gone
        assert len(net.shelf.blobs) == 6
        await one.delete("demo", [DeleteWhat("k")])
        assert not net.shelf.blobs
        assert (await one.list_uploads("demo")).entries == []
        await one.delete_bucket("demo")
        await asyncio.gather(one.aclose(), two.aclose())

    run(scenario)


def test_full_object_checksums_come_from_those_of_the_parts(tmp_path: Path) -> None:
    async def scenario() -> None:
        one = Net(tmp_path).device()
        await one.create_bucket("demo")
        upload = await one.create_upload("demo", "k", checksum_algorithm="CRC32", checksum_type="FULL_OBJECT")
        pieces = [data_of(SEGMENT, 1), data_of(77, 2)]
        parts = [await send(one, upload, n + 1, piece) for n, piece in enumerate(pieces)]
        whole = b"".join(pieces)
        with pytest.raises(InvalidPart):
            await one.complete_upload("demo", "k", upload, said(*parts), checksums={"CRC32": crc(b"other")})
        with pytest.raises(InvalidInput):
            await one.complete_upload("demo", "k", upload, said(*parts), size=1)
        info = await one.complete_upload(
            "demo", "k", upload, said(*parts), checksums={"CRC32": crc(whole)}, size=len(whole)
        )
        assert (info.checksums, info.checksum_type) == ({"CRC32": crc(whole)}, "FULL_OBJECT")
        await one.aclose()

    run(scenario)


def test_what_does_not_fit_is_refused_and_the_upload_stays(tmp_path: Path) -> None:
    async def scenario() -> None:
        net = Net(tmp_path)
        one = net.device()
        await one.create_bucket("demo")
        await put(one, "k", b"there")
        upload = await one.create_upload("demo", "k")
        small, big, last = [await send(one, upload, n, data_of(size)) for n, size in ((1, 5), (2, SEGMENT), (3, 5))]
        for parts, kind in (
            ([], InvalidInput),
            (said(small, big), PartTooSmall),
            ([*said(last), *said(big)], InvalidPartOrder),
            ([*said(big), *said(big)], InvalidPartOrder),
            ([CompletedPart(4, big.etag)], InvalidPart),
            ([CompletedPart(2, small.etag)], InvalidPart),
            ([CompletedPart(2, big.etag, {"CRC32": crc(b"")})], InvalidPart),
        ):
            with pytest.raises(kind):
                await one.complete_upload("demo", "k", upload, parts)
        with pytest.raises(PreconditionFailed):
            await one.complete_upload("demo", "k", upload, said(big, last), if_none_match="*")
        for number in (0, 10_001):
            with pytest.raises(InvalidInput):
                await send(one, upload, number, b"")
        assert await get(one, "k") == b"there"
        assert (await one.complete_upload("demo", "k", upload, said(big, last))).size == SEGMENT + 5
        assert len(net.shelf.blobs) == 2
        await one.aclose()

    run(scenario)


def test_aborting_drops_every_part_and_one_that_comes_too_late(tmp_path: Path) -> None:
    async def scenario() -> None:
        net = Net(tmp_path)
        one, two = net.device(), net.device("two")
        await one.create_bucket("demo", versioning=ENABLED)
        upload = await one.create_upload("demo", "k")
        await send(one, upload, 1, data_of(2 * SEGMENT))
        results = await asyncio.gather(
            send(two, upload, 2, data_of(2 * SEGMENT)), one.abort_upload("demo", "k", upload), return_exceptions=True
        )
        assert results[1] is None
        assert not net.shelf.blobs
        with pytest.raises(UploadNotFound):
            await one.abort_upload("demo", "k", "0" * 32)
        await asyncio.gather(one.aclose(), two.aclose())

    run(scenario)


def test_of_two_who_complete_at_once_both_hear_of_one_object(tmp_path: Path) -> None:
    async def scenario() -> None:
        net = Net(tmp_path)
        one, two = net.device(), net.device("two")
        await one.create_bucket("demo", versioning=ENABLED)
        upload = await one.create_upload("demo", "k")
        part = await send(one, upload, 1, data_of(SEGMENT))
        infos = await asyncio.gather(
            *(device.complete_upload("demo", "k", upload, said(part)) for device in (one, two, one, two))
        )
        assert {info.version_id for info in infos} == {(await one.head("demo", "k")).version_id}
        assert len((await one.list_versions("demo")).entries) == 1
        await asyncio.gather(one.aclose(), two.aclose())

    run(scenario)


def test_uploads_are_listed_by_key_and_age(tmp_path: Path) -> None:
    async def scenario() -> None:
        one = Net(tmp_path).device()
        await one.create_bucket("demo")
        keys = ["a", "a", "b/1", "b/2", "c"]
        ids = [await one.create_upload("demo", key) for key in keys]
        page = await one.list_uploads("demo")
        assert [(upload.key, upload.upload_id) for upload in page.entries] == list(zip(keys, ids, strict=True))
        seen: list[str] = []
        marker: tuple[str | None, str | None] = ("", "")
        while marker[0] is not None:
            page = await one.list_uploads("demo", "", "/", marker[0], marker[1] or "", 1)
            seen += [upload.upload_id for upload in page.entries] + page.prefixes
            marker = page.next_key, page.next_upload
        assert seen == [ids[0], ids[1], "b/", ids[4]]
        assert [upload.key for upload in (await one.list_uploads("demo", "b/")).entries] == ["b/1", "b/2"]
        await one.aclose()

    run(scenario)
