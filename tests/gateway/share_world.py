"""One account with objects in memory, and the gateway's shared pages in front of it, on a port of this machine."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from freehold.client.bucket_types import Deleted, DeleteWhat, Digests, ObjectInfo, Page, PutOptions
from freehold.client.errors import BucketNotFound, KeyNotFound, PreconditionFailed
from freehold.client.grants import GrantKey, Grants
from freehold.gateway import share
from freehold.protocol.errors import FreeholdError, Unavailable
from freehold.protocol.units import Address

ACCOUNT = Address("0x" + "a1" * 20)
MODIFIED = 1_700_000_000_000
PIECE = 1_000


class Reading:
    """As `Buckets` reads: what was replaced before its first byte came is read as it stands then."""

    def __init__(self, objects: Objects, bucket: str, key: str) -> None:
        self._objects, self._place = objects, (bucket, key)
        self.info, self._data = objects.kept[bucket, key]

    async def read(self, offset: int = 0, length: int | None = None) -> AsyncGenerator[memoryview, None]:
        bucket, key = self._place
        if key in self._objects.replaced:
            self._objects.add(bucket, key, self._objects.replaced.pop(key))
            self.info, self._data = self._objects.kept[bucket, key]
        end = len(self._data) if length is None else offset + length
        for at in range(offset, end, PIECE):
            if at and key in self._objects.broken:
                raise Unavailable("the nodes are gone")
            yield memoryview(self._data)[at : min(end, at + PIECE)]


class Objects:
    """As much of `Buckets` as shared pages use."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], tuple[ObjectInfo, bytes]] = {}
        self.broken: set[str] = set()
        self.replaced: dict[str, bytes] = {}  # by key, with what, once somebody reads it
        self.asked: list[str] = []

    def add(self, bucket: str, key: str, data: bytes, kind: str = "") -> ObjectInfo:
        etag = hashlib.md5(data).hexdigest()
        headers = {"content-type": kind} if kind else {}
        info = ObjectInfo(bucket, key, "null", True, False, len(data), MODIFIED, etag, headers)
        self.kept[bucket, key] = info, data
        return info

    async def bucket(self, name: str) -> None:
        if name not in {bucket for bucket, _ in self.kept}:
            raise BucketNotFound(f"there is no bucket {name}")

    async def head(self, bucket: str, key: str) -> ObjectInfo:
        return (await self.open(bucket, key)).info

    async def open(self, bucket: str, key: str, version_id: str | None = None) -> Reading:
        self.asked.append(f"open {key}")
        if (bucket, key) not in self.kept:
            raise KeyNotFound(f"there is no object {key}")
        return Reading(self, bucket, key)

    async def put(
        self, bucket: str, key: str, source: Any, options: PutOptions, digests: Callable[[], Digests] | None = None
    ) -> ObjectInfo:
        self.asked.append(f"put {key}")
        if options.if_none_match == "*" and (bucket, key) in self.kept:
            raise PreconditionFailed("there is such an object")
        data, buffer = b"", bytearray(PIECE)
        while count := await source.read(memoryview(buffer)):
            data += buffer[:count]
        await source.finish()
        self.digests = digests() if digests is not None else Digests()
        return self.add(bucket, key, data, options.headers.get("content-type", ""))

    async def delete(self, bucket: str, keys: Sequence[DeleteWhat]) -> list[Deleted | FreeholdError]:
        for what in keys:
            self.kept.pop((bucket, what.key), None)
        return [Deleted(what.key) for what in keys]

    async def list(
        self, bucket: str, prefix: str = "", delimiter: str = "", after: str = "", limit: int = 1000
    ) -> Page:
        self.asked.append(f"list {prefix}")
        names: dict[str, ObjectInfo | None] = {}
        for (where, key), (info, _) in sorted(self.kept.items(), key=lambda item: item[0][1].encode()):
            if where == bucket and key.startswith(prefix):
                head, cut, _ = key[len(prefix) :].partition(delimiter or "\0")
                name = prefix + head + cut
                if name.encode() > after.encode():
                    names.setdefault(name, None if cut else info)
        chosen = list(names)[:limit]
        entries = [info for name in chosen if (info := names[name]) is not None]
        prefixes = [name for name in chosen if names[name] is None]
        return Page(entries, prefixes, chosen[-1] if len(names) > limit else None)


class World:
    """A tenant, and the tenants that there are."""

    def __init__(self) -> None:
        self.key = GrantKey(b"seed".ljust(32))
        self.grants = Grants(self.key.public_key)
        self.objects: Any = Objects()
        self.dead: set[str] = set()
        self.now = 1_000_000.0
        self.url = ""

    async def revoked(self) -> set[str]:
        return self.dead

    def by_grant_key(self, public_key: bytes) -> World | None:
        return self if public_key == self.key.public_key else None

    def issue(self, *operations: str, **what: Any) -> str:
        return self.key.issue(ACCOUNT, operations or ("read", "list"), **{"bucket": "b-1", **what})

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[World]:
        """The pages on a port of this machine; `url` is their beginning."""
        async with serve(self, lambda: self.now) as self.url:
            yield self


@asynccontextmanager
async def serve(tenants: share.ShareTenants, clock: Callable[[], float]) -> AsyncIterator[str]:
    """Shared pages on a port of this machine: what their URLs begin with."""
    app = web.Application()
    app.add_routes(share.routes(tenants, clock))
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}{share.PREFIX}"
    finally:
        await runner.cleanup()
