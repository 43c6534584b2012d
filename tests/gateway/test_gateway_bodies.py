"""Bodies: streamed and signed, with checksums and trailers; and every way in which one can be wrong."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from freehold.gateway.wire.request import Request
from freehold.gateway.wire.sigv4 import (
    STREAMING_SIGNED,
    STREAMING_SIGNED_TRAILER,
    STREAMING_UNSIGNED_TRAILER,
    Scope,
    Seal,
    chunk_signature,
    sign_request,
    signing_key,
    trailer_signature,
)
from tests.gateway.gateway_world import REGION, World, play

DATA = os.urandom(300_000)
CHUNK = 100_000


def crc32(data: bytes) -> str:
    return base64.b64encode(zlib.crc32(data).to_bytes(4)).decode()


def write_chunked(
    world: World, kind: str, data: bytes, trailer: str = "", spoil: str = ""
) -> tuple[dict[str, str], bytes]:
    """The signed headers and the body of a streamed PUT of /bucket-1/k; `spoil` names what is made wrong."""
    headers = {"host": world.host, "content-encoding": "aws-chunked", "x-amz-decoded-content-length": str(len(data))}
    if trailer:
        headers["x-amz-trailer"] = "x-amz-checksum-crc32"
    signed = sign_request(
        Request("PUT", "/bucket-1/k", "", headers), world.key.id, world.key.secret, REGION, world.net.now, kind
    )
    stamp = signed["x-amz-date"]
    scope = Scope(stamp[:8], REGION)
    previous = signed["authorization"].rpartition("=")[2]
    seal = Seal(signing_key(world.key.secret, scope), scope, stamp, previous)
    body = b""
    for at in [*range(0, len(data), CHUNK), None]:
        chunk = b"" if at is None else data[at : at + CHUNK]
        extension = ""
        if kind != STREAMING_UNSIGNED_TRAILER:
            previous = chunk_signature(seal, previous, hashlib.sha256(chunk).hexdigest())
            extension = f";chunk-signature={previous if spoil != 'signature' or at else '0' * 64}"
        body += f"{len(chunk):x}{extension}\r\n".encode() + chunk + (b"\r\n" if chunk or not trailer else b"")
    if trailer:
        line = f"x-amz-checksum-crc32:{trailer}\n"
        body += line.replace("\n", "\r\n").encode()
        if kind == STREAMING_SIGNED_TRAILER:
            body += f"x-amz-trailer-signature:{trailer_signature(seal, previous, line.encode())}\r\n".encode()
        body += b"\r\n"
    if spoil == "short":
        body = body[:150_000]
    return signed, body


@pytest.mark.parametrize("size", [0, 10, 300_000])
@pytest.mark.parametrize(
    ("kind", "with_trailer"),
    [(STREAMING_SIGNED, False), (STREAMING_SIGNED_TRAILER, True), (STREAMING_UNSIGNED_TRAILER, True)],
)
def test_streamed_bodies_arrive_as_they_were(tmp_path: Path, kind: str, with_trailer: bool, size: int) -> None:
    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        data = DATA[:size]
        headers, body = write_chunked(world, kind, data, crc32(data) if with_trailer else "")
        put = await world.send_as_is("PUT", "/bucket-1/k", headers=headers, data=body)
        assert (put.status, put.headers["ETag"]) == (200, f'"{hashlib.md5(data).hexdigest()}"'), put.body
        got = await world.send("GET", "/bucket-1/k", headers={"x-amz-checksum-mode": "ENABLED"})
        assert got.body == data
        assert "Content-Encoding" not in got.headers
        if with_trailer:
            assert got.headers["x-amz-checksum-crc32"] == put.headers["x-amz-checksum-crc32"] == crc32(data)

    play(tmp_path, scene)


@pytest.mark.parametrize(
    ("kind", "trailer", "spoil", "status", "codes"),
    [
        (STREAMING_SIGNED, "", "signature", 403, {"SignatureDoesNotMatch"}),
        (STREAMING_SIGNED, "", "short", 400, {"IncompleteBody"}),
        (STREAMING_SIGNED_TRAILER, "AAAAAA==", "", 400, {"BadDigest"}),
        (STREAMING_UNSIGNED_TRAILER, "AAAAAA==", "", 400, {"BadDigest"}),
        (STREAMING_UNSIGNED_TRAILER, "nonsense", "", 400, {"InvalidRequest"}),
    ],
)
def test_a_streamed_body_that_is_wrong_is_not_recorded(
    tmp_path: Path, kind: str, trailer: str, spoil: str, status: int, codes: set[str]
) -> None:
    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        headers, body = write_chunked(world, kind, DATA, trailer, spoil)
        answer = await world.send_as_is("PUT", "/bucket-1/k", headers=headers, data=body)
        assert (answer.status, answer.code in codes) == (status, True), answer.body
        assert (await world.send("GET", "/bucket-1/k")).status == 404
        assert not world.net.shelf.blobs

    play(tmp_path, scene)


@pytest.mark.parametrize("size", [5, 300_000])
@pytest.mark.parametrize(
    ("make", "status", "code"),
    [
        (lambda d: ({"content-md5": base64.b64encode(bytes(16)).decode()}, None), 400, "BadDigest"),
        (lambda d: ({}, hashlib.sha256(b"other").hexdigest()), 400, "XAmzContentSHA256Mismatch"),
        (lambda d: ({"x-amz-checksum-crc32": crc32(b"other")}, None), 400, "BadDigest"),
        (lambda d: ({"x-amz-checksum-sha256": "short"}, None), 400, "InvalidRequest"),
        (lambda d: ({"x-amz-checksum-crc32": crc32(d), "x-amz-checksum-sha1": "x"}, None), 400, "InvalidRequest"),
    ],
)  # fmt: skip
def test_a_digest_that_does_not_match_records_nothing(
    tmp_path: Path, size: int, make: Callable[[bytes], tuple[dict[str, str], str | None]], status: int, code: str
) -> None:
    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        headers, payload_hash = make(DATA[:size])
        answer = await world.send("PUT", "/bucket-1/k", "", headers, DATA[:size], payload_hash=payload_hash)
        assert (answer.status, answer.code) == (status, code)
        assert (await world.send("GET", "/bucket-1/k")).status == 404
        assert not world.net.shelf.blobs

    play(tmp_path, scene)


def signed_head(world: World, headers: dict[str, str], method: str = "PUT", path: str = "/bucket-1/k") -> bytes:
    """A request's first lines, signed for a body that is not."""
    wanted = Request(method, path, "", {"host": world.host, **headers})
    signed = sign_request(wanted, world.key.id, world.key.secret, REGION, world.net.now)
    return "".join([f"{method} {path} HTTP/1.1\r\n", *(f"{n}: {v}\r\n" for n, v in signed.items()), "\r\n"]).encode()


def test_a_body_without_a_length_or_with_too_much_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freehold.gateway.process.LINGER_SECONDS", 0.05)

    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        without = await world.raw(signed_head(world, {"connection": "close"}), close=False)
        assert without.startswith(b"HTTP/1.1 411 ")
        assert b"<Code>MissingContentLength</Code>" in without
        large = await world.raw(signed_head(world, {"content-length": str(5 * 2**30 + 1)}), close=False)
        assert large.startswith(b"HTTP/1.1 400 ")
        assert b"<Code>EntityTooLarge</Code>" in large
        document = await world.raw(signed_head(world, {"content-length": str(2**30)}, "POST"), close=False)
        assert b"<Code>MethodNotAllowed</Code>" in document

    play(tmp_path, scene)


@pytest.mark.parametrize("size", [10, 300_000])
def test_a_client_that_stops_mid_body_leaves_nothing(tmp_path: Path, size: int) -> None:
    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        await world.raw(signed_head(world, {"content-length": str(size)}) + DATA[: size // 2])
        await world.wait_until(lambda: not world.gateway.running)
        assert (await world.send("GET", "/bucket-1/k")).status == 404
        assert not world.net.shelf.blobs

    play(tmp_path, scene)


def test_who_may_not_write_is_told_before_sending(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        host, _, port = world.host.partition(":")
        for key, expected in (("k", b"HTTP/1.1 100 "), ("none/../k", b"HTTP/1.1 404 ")):
            reader, writer = await asyncio.open_connection(host, int(port))
            path = f"/bucket-1/{key}" if key == "k" else "/no-such-bucket/k"
            writer.write(signed_head(world, {"content-length": "5", "expect": "100-continue"}, path=path))
            async with asyncio.timeout(10):
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(expected)
                if key == "k":
                    writer.write(b"hello")
                    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
                else:
                    assert b"connection: close" in head.lower()
            writer.close()
        assert (await world.send("GET", "/bucket-1/k")).body == b"hello"

    play(tmp_path, scene)


def test_an_answer_that_breaks_off_is_seen_to(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        await world.send("PUT", "/bucket-1/k", data=DATA)

        def lose_what_is_left() -> None:
            if world.net.shelf.reads == 3:
                world.net.shelf.blobs.clear()

        world.net.shelf.on_read = lose_what_is_left
        whole = await world.raw(signed_head(world, {"connection": "close"}, "GET"), close=False)
        head, _, body = whole.partition(b"\r\n\r\n")
        assert f"Content-Length: {len(DATA)}".encode() in head
        assert len(body) < len(DATA)
        gone = await world.send("GET", "/bucket-1/k")
        assert gone.status >= 400

    play(tmp_path, scene)
