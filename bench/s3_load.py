"""A light S3 client that puts and gets many objects at once: what it measures should be the server.

Addresses are presigned before the clock starts, and HTTP/1.1 is spoken over plain asyncio streams, so that a request
costs this process a few tens of microseconds. Jobs come as JSON on stdin, results go as JSON to stdout.

    {"endpoint", "certificate", "access_key", "secret_key", "region", "bucket",
     "jobs": [{"do": "put" | "get" | "list", "size", "count", "parallel", "prefix"}]}
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import resource
import ssl
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from xml.etree import ElementTree

from bench.s3_signing import Credentials, presign

PIECE = 1 << 20
READ_LIMIT = 1 << 20
NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"


class Target(NamedTuple):
    """Where requests go."""

    host: str
    port: int
    tls: ssl.SSLContext | None
    credentials: Credentials
    endpoint: str
    bucket: str

    def sign(self, method: str, key: str, query: dict[str, str] | None = None) -> str:
        """Path and query of a presigned request."""
        path = f"/{self.bucket}/{key}" if key else f"/{self.bucket}"
        return presign(self.credentials, method, f"{self.host}:{self.port}", path, query or {})


class Connection:
    """One kept-alive connection; requests on it follow each other."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(self, method: str, address: str, body: Iterator[memoryview] | None, length: int) -> Answer:
        """Send a request with a body of `length` bytes; the whole answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(
                self._target.host, self._target.port, ssl=self._target.tls, limit=READ_LIMIT
            )
        reader, writer = self._streams
        writer.write(
            f"{method} {address} HTTP/1.1\r\nHost: {self._target.host}:{self._target.port}\r\n"
            f"Content-Length: {length}\r\n\r\n".encode()
        )
        for piece in body or ():
            writer.write(piece)
            await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(head[0].split(" ", 2)[1])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        left = int(headers.get("content-length", "0"))
        size, digest, kept = left, hashlib.sha256(), bytearray()
        while left:
            chunk = await reader.read(min(left, PIECE))
            if not chunk:
                raise RuntimeError(f"{method} {address}: the answer ended {left} bytes early")
            left -= len(chunk)
            if size <= PIECE or status >= 300:
                kept += chunk
            if method == "GET" and size > PIECE:
                continue
            digest.update(chunk)
        if status >= 300:
            raise RuntimeError(f"{method} {address}: {status} {bytes(kept[:500])!r}")
        return Answer(size, digest.hexdigest(), bytes(kept))

    async def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            with suppress(OSError, ssl.SSLError):
                await self._streams[1].wait_closed()


class Answer(NamedTuple):
    """`body` only where it is at most PIECE bytes."""

    size: int
    digest: str
    body: bytes


def pieces(block: memoryview, size: int) -> Iterator[memoryview]:
    """`size` bytes out of one random block, over and over."""
    for at in range(0, size, len(block)):
        yield block[: min(len(block), size - at)]


async def run_job(target: Target, job: dict[str, Any]) -> dict[str, float]:
    """Do `count` puts or gets of `size` bytes, `parallel` at once; or list everything under a prefix."""
    if job["do"] == "list":
        return await list_all(target, job["prefix"])
    size, count, put = job["size"], job["count"], job["do"] == "put"
    method = "PUT" if put else "GET"
    keys = [f"{job['prefix']}{number:06}" for number in range(count)]
    if not put:
        random.Random(count).shuffle(keys)
    addresses = [target.sign(method, key) for key in keys]
    block = memoryview(random.Random(size).randbytes(min(size, 8 << 20)))
    expected = hashlib.sha256(block).hexdigest() if size <= PIECE else None
    waiting, took = iter(addresses), []

    async def work() -> None:
        connection = Connection(target)
        try:
            for address in waiting:
                started = time.perf_counter()
                answer = await connection.request(
                    method, address, pieces(block, size) if put else None, size if put else 0
                )
                took.append(time.perf_counter() - started)
                if not put and (answer.size != size or (expected and answer.digest != expected)):
                    raise RuntimeError(f"{address} gave {answer.size} other bytes than were put")
        finally:
            await connection.close()

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(min(job["parallel"], count)):
            group.create_task(work())
    seconds = time.perf_counter() - started
    took.sort()
    return {
        "per_second": count / seconds,
        "bytes_per_second": count * size / seconds,
        "median_ms": 1000 * took[len(took) // 2],
        "p99_ms": 1000 * took[min(len(took) - 1, len(took) * 99 // 100)],
    }


async def list_all(target: Target, prefix: str) -> dict[str, float]:
    """Every key under a prefix, 1,000 a page."""
    connection, found, token, started = Connection(target), 0, "", time.perf_counter()
    while True:
        query = {"list-type": "2", "prefix": prefix} | ({"continuation-token": token} if token else {})
        answer = await connection.request("GET", target.sign("GET", "", query), None, 0)
        page = ElementTree.fromstring(answer.body)
        found += len(page.findall(f"{NAMESPACE}Contents"))
        token = page.findtext(f"{NAMESPACE}NextContinuationToken") or ""
        if not token:
            break
    await connection.close()
    seconds = time.perf_counter() - started
    return {"keys": found, "seconds": seconds, "keys_per_second": found / seconds}


async def main(order: dict[str, Any]) -> list[dict[str, float]]:
    parts = urlsplit(order["endpoint"])
    tls = ssl.create_default_context(cafile=order["certificate"]) if parts.scheme == "https" else None
    credentials = Credentials(order["access_key"], order["secret_key"], order["region"])
    target = Target(
        parts.hostname or "127.0.0.1", parts.port or 80, tls, credentials, order["endpoint"], order["bucket"]
    )
    found = []
    for job in order["jobs"]:
        result = await run_job(target, job)
        result["client_peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        found.append(result)
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(json.load(sys.stdin)))), flush=True)
