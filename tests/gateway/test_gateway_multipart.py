"""Multipart uploads through the gateway: out of order, sent again, copied, listed, aborted, completed wrongly."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from freehold.gateway import slow
from tests.client.bucket_world import SEGMENT
from tests.gateway.gateway_world import Answer, World, play

PARTS = [os.urandom(SEGMENT + number) for number in (5, 0, 9)]  # as large as parts must be in this world


async def begin(world: World, headers: dict[str, str] | None = None) -> str:
    await world.send("PUT", "/bucket-1")
    return (await world.send("POST", "/bucket-1/k", "uploads=", headers)).find("UploadId")


async def put(world: World, upload: str, number: int, data: bytes) -> str:
    answer = await world.send("PUT", "/bucket-1/k", f"partNumber={number}&uploadId={upload}", data=data)
    assert answer.status == 200
    return answer.headers["ETag"]


async def complete(world: World, upload: str, parts: list[tuple[int, str]], **headers: str) -> Answer:
    body = "".join(f"<Part><PartNumber>{n}</PartNumber><ETag>{etag}</ETag></Part>" for n, etag in parts)
    document = f"<CompleteMultipartUpload>{body}</CompleteMultipartUpload>".encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await world.send("POST", "/bucket-1/k", f"uploadId={upload}", named, document)


def test_parts_come_in_any_order_and_again(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        upload = await begin(world, {"content-type": "text/plain", "x-amz-meta-a": "1"})
        etags = {}
        for number in (3, 1, 2):
            etags[number] = await put(world, upload, number, b"other" if number == 2 else PARTS[number - 1])
        etags[2] = await put(world, upload, 2, PARTS[1])
        listed = await world.send("GET", "/bucket-1/k", f"uploadId={upload}&max-parts=2")
        assert listed.all("Part/PartNumber") == ["1", "2"]
        assert (listed.find("IsTruncated"), listed.find("NextPartNumberMarker")) == ("true", "2")
        rest = await world.send("GET", "/bucket-1/k", f"uploadId={upload}&part-number-marker=2")
        assert rest.all("Part/ETag") == [etags[3]]
        assert (await world.send("GET", "/bucket-1", "uploads")).all("Upload/UploadId") == [upload]
        assert (await world.send("GET", "/bucket-1/k")).status == 404
        done = await complete(world, upload, sorted(etags.items()))
        digest = hashlib.md5(b"".join(hashlib.md5(part).digest() for part in PARTS)).hexdigest()
        assert (done.status, done.find("ETag")) == (200, f'"{digest}-3"')
        assert done.find("Location") == f"{world.url}/bucket-1/k"
        got = await world.send("GET", "/bucket-1/k")
        assert (got.body, got.headers["Content-Type"], got.headers["x-amz-meta-a"]) == (
            b"".join(PARTS),
            "text/plain",
            "1",
        )
        part = await world.send("GET", "/bucket-1/k", "partNumber=2")
        assert (part.status, part.body, part.headers["x-amz-mp-parts-count"]) == (206, PARTS[1], "3")
        beyond = await world.send("GET", "/bucket-1/k", "partNumber=4")
        assert (beyond.status, beyond.code) == (416, "InvalidPartNumber")
        again = await complete(world, upload, sorted(etags.items()))
        assert (again.status, again.find("ETag")) == (200, f'"{digest}-3"')

    play(tmp_path, scene)


def test_what_cannot_be_completed_says_why_and_stays(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        upload = await begin(world)
        first, second = await put(world, upload, 1, b"too small"), await put(world, upload, 2, PARTS[0])
        for parts, status, code in (
            ([(1, first), (2, second)], 400, "EntityTooSmall"),
            ([(2, second), (1, first)], 400, "InvalidPartOrder"),
            ([(2, first)], 400, "InvalidPart"),
            ([(3, second)], 400, "InvalidPart"),
            ([], 400, "MalformedXML"),
            ([(number, second) for number in range(1, 10_002)], 400, "MalformedXML"),
            ([(10_001, second)], 400, "InvalidArgument"),
        ):
            answer = await complete(world, upload, parts)
            assert (answer.status, answer.code) == (status, code), parts[:2]
        wrong = await complete(world, upload, [(2, second)], if_match="no")
        assert wrong.status in (404, 412)
        sized = await complete(world, upload, [(2, second)], x_amz_mp_object_size="1")
        assert sized.status == 400
        assert (await complete(world, upload, [(2, second)], if_none_match="*")).status == 200

    play(tmp_path, scene)


@pytest.mark.parametrize("number", ["0", "10001", "-1", "x", "", "1e3", "99999999999"])
def test_part_numbers_are_one_to_ten_thousand(tmp_path: Path, number: str) -> None:
    async def scene(world: World) -> None:
        upload = await begin(world)
        answer = await world.send("PUT", "/bucket-1/k", f"partNumber={number}&uploadId={upload}", data=b"x")
        assert (answer.status, answer.code) == (400, "InvalidArgument")

    play(tmp_path, scene)


def test_an_upload_that_is_gone_takes_nothing_more(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        upload = await begin(world)
        etag = await put(world, upload, 1, PARTS[0])
        assert (await world.send("DELETE", "/bucket-1/k", f"uploadId={upload}")).status == 204
        assert not world.net.shelf.blobs
        for method, query, data in (
            ("PUT", f"partNumber=1&uploadId={upload}", PARTS[0]),
            ("PUT", f"partNumber=1&uploadId={upload}", b"x"),
            ("DELETE", f"uploadId={upload}", b""),
            ("GET", f"uploadId={upload}", b""),
            ("GET", "uploadId=nonsense", b""),
        ):
            answer = await world.send(method, "/bucket-1/k", query, data=data)
            assert (answer.status, answer.code) == (404, "NoSuchUpload"), (method, query)
        assert (await complete(world, upload, [(1, etag)])).code == "NoSuchUpload"
        assert not world.net.shelf.blobs
        half = await world.send("PUT", "/bucket-1/k", f"uploadId={upload}", data=b"x")
        assert (half.status, half.code) == (400, "InvalidArgument")

    play(tmp_path, scene)


def test_parts_are_copied_with_ranges(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        upload = await begin(world)
        await world.send("PUT", "/bucket-1/from", data=PARTS[2])
        query, source = f"partNumber=1&uploadId={upload}", {"x-amz-copy-source": "bucket-1/from"}
        some = await world.send("PUT", "/bucket-1/k", query, {**source, "x-amz-copy-source-range": "bytes=5-99"})
        assert (some.status, some.find("ETag")) == (200, f'"{hashlib.md5(PARTS[2][5:100]).hexdigest()}"')
        await complete(world, upload, [(1, some.find("ETag"))])
        assert (await world.send("GET", "/bucket-1/k")).body == PARTS[2][5:100]
        wrong = await world.send("PUT", "/bucket-1/k", query, {**source, "x-amz-copy-source-range": "bytes=5-"})
        assert wrong.status in (400, 404)

    play(tmp_path, scene)


def test_checksums_of_parts_make_that_of_the_whole(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        upload = await begin(world, {"x-amz-checksum-algorithm": "SHA256"})
        headers = {
            "x-amz-sdk-checksum-algorithm": "SHA256",
            "x-amz-checksum-sha256": "LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=",
        }
        part = await world.send("PUT", "/bucket-1/k", f"partNumber=1&uploadId={upload}", headers, b"hello")
        assert part.headers["x-amz-checksum-sha256"] == headers["x-amz-checksum-sha256"]
        done = await complete(world, upload, [(1, part.headers["ETag"])])
        assert done.find("ChecksumSHA256").endswith("-1")
        assert done.find("ChecksumType") == "COMPOSITE"
        head = await world.send("HEAD", "/bucket-1/k", headers={"x-amz-checksum-mode": "ENABLED"})
        assert head.headers["x-amz-checksum-sha256"] == done.find("ChecksumSHA256")
        asked = {"x-amz-object-attributes": "ObjectParts,Checksum"}
        attributes = await world.send("GET", "/bucket-1/k", "attributes", asked)
        assert attributes.find("ObjectParts/PartsCount") == "1"
        assert attributes.find("ObjectParts/Part/ChecksumSHA256") == headers["x-amz-checksum-sha256"]

    play(tmp_path, scene)


@pytest.mark.parametrize(("exists", "code"), [(True, ""), (False, "NoSuchUpload")])
def test_what_takes_long_begins_to_answer_and_ends_as_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool, code: str
) -> None:
    async def scene(world: World) -> None:
        upload = await begin(world)
        etag = await put(world, upload, 1, PARTS[0])
        gate = asyncio.Event()
        done = world.devices[0].complete_upload

        async def wait(*arguments: object, **named: object) -> object:
            await gate.wait()
            return await done(*arguments, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(world.devices[0], "complete_upload", wait)
        asyncio.get_running_loop().call_later(0.2, gate.set)
        answer = await complete(world, upload if exists else "nonsense", [(1, etag)])
        assert (answer.status, answer.code) == (200, code)
        assert b"?>\n  " in answer.body
        assert (await world.send("GET", "/bucket-1/k")).status == (200 if exists else 404)

    monkeypatch.setattr(slow.answer_slowly, "__defaults__", (0.0, 0.01))
    play(tmp_path, scene)
