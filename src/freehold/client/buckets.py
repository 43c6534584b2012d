"""Buckets: objects by path, an encrypted index on the network, a head that names it.

    put     shards and lists of the object -> of the new index -> certified -> head set -> done
    remove  the new index without them -> certified -> head set -> their shards come off the lists

Writers race on the head: the loser builds its index again on the newer one, its object's shards stay. What an old
index or a removed object leaves is written down before the head changes and comes off the lists with later deltas.
Invariant: a head names only what a quorum holds; nothing that a head names is ever taken off a list.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import NamedTuple

from freehold.client.book import Book
from freehold.client.bucket_heads import Head, Heads
from freehold.client.cache import IndexCache
from freehold.client.index import (
    INDEX_PATH,
    IndexEntry,
    decode_head,
    decode_index,
    encode_head,
    encode_index,
)
from freehold.client.paths import ObjectPath, check_bucket
from freehold.protocol.errors import Conflict, FreeholdError, InvalidInput, NotFound, Refused
from freehold.protocol.units import Address
from freehold.services.storage.client import StorageClient, compute_shard_bytes
from freehold.services.storage.client_objects import Code, ListedShard, StoredObject
from freehold.services.storage.client_sources import BytesSource, Source
from freehold.services.storage.download import Downloader, Place
from freehold.services.storage.names import PathSecret
from freehold.services.storage.segment_record import MAX_SHARDS
from freehold.services.storage.upload import Progress, Shipment

DEFAULT_CODE = Code(3, 6)
ATTEMPTS = 30  # at setting a head, each time on a fresh index

Entries = dict[str, IndexEntry]


class ObjectInfo(NamedTuple):
    """An object as `ls` shows it; `modified` is unix time in seconds."""

    path: ObjectPath
    size: int
    modified: int
    nodes: int


class BucketInfo(NamedTuple):
    """A bucket as `ls` shows it."""

    name: str
    code: Code
    version: int


class _Opened(NamedTuple):
    head: Head | None
    code: Code
    listed: StoredObject | None
    entries: Entries


class Buckets:
    """One account's buckets. Every method raises NotFound for a bucket or object that is not there."""

    def __init__(
        self, heads: Heads, seed: bytes, storage: StorageClient, book: Book, cache: IndexCache, segment_size: int
    ) -> None:
        self._heads = heads
        self._seed = seed
        self._storage = storage
        self._book = book
        self._cache = cache
        self._segment_size = segment_size

    def names(self) -> list[BucketInfo]:
        """All buckets. WrongPassphrase for another account's."""
        found = []
        for name in self._heads.names():
            if head := self._heads.read(name):
                found.append(BucketInfo(name, decode_head(head.data).code, head.version))
        return found

    def create(self, bucket: str, code: Code = DEFAULT_CODE) -> None:
        """An empty bucket. Conflict if there is one of this name."""
        check_bucket(bucket)
        if not 1 <= code.k < code.n <= MAX_SHARDS:
            raise InvalidInput(f"{code.k} of {code.n} is not a code: 1 <= k < n <= {MAX_SHARDS}")
        try:
            self._heads.compare_and_set(bucket, None, Head(1, encode_head(code, None)))
        except Conflict:
            raise Conflict(f"there is a bucket {bucket!r} already") from None

    async def delete(self, bucket: str) -> None:
        """Remove an empty bucket. Refused while it holds objects."""
        opened = await self._load(bucket)
        if opened.head is None:
            raise NotFound(f"there is no bucket {bucket!r}")
        if opened.entries:
            raise Refused(
                f"bucket {bucket!r} holds {len(opened.entries)} objects", hint="Remove them first.",
                objects=len(opened.entries),
            )  # fmt: skip
        self._heads.compare_and_set(bucket, opened.head, None)

    def code_of(self, bucket: str) -> Code:
        """The bucket's code; the default one where there is no such bucket yet."""
        head = self._heads.read(check_bucket(bucket))
        return decode_head(head.data).code if head else DEFAULT_CODE

    async def put(self, path: ObjectPath, source: Source, progress: Progress | None = None) -> ObjectInfo:
        """Store an object, replacing one of the same path; the bucket is made if it is not there."""
        secret, name = self._locate(path)
        opened = await self._load(path.bucket)
        id = f"{path.bucket}~{secrets.token_hex(8)}"
        async with self._book.shipping(id):
            shipment = await self._storage.ship(id, opened.code, source.size)
            stored = await shipment.send(source, secret, path.bucket, name, progress)
            entry = IndexEntry(stored, int(time.time()))

            def change(entries: Entries) -> list[StoredObject]:
                replaced = entries.get(name)
                entries[name] = entry
                return [replaced.stored] if replaced else []

            await self._change(shipment, path.bucket, change)
            await self._book.withdraw(id, list(stored.shards()))
        await self.sweep(path.bucket)
        return _info(path, entry)

    async def remove(self, paths: Sequence[ObjectPath]) -> dict[Address, FreeholdError]:
        """Remove objects of one bucket; what the nodes answered that could not yet take the shards off."""
        if not paths:
            return {}
        bucket = paths[0].bucket
        if any(path.bucket != bucket for path in paths):
            raise InvalidInput("objects of one bucket are removed at once")
        located = {self._locate(path)[1]: path for path in paths}

        def change(entries: Entries) -> list[StoredObject]:
            missing = [str(path) for name, path in located.items() if name not in entries]
            if missing:
                raise NotFound(f"there is no object {missing[0]}")
            return [entries.pop(name).stored for name in located]

        opened = await self._load(bucket)
        change(dict(opened.entries))
        id = f"{bucket}~{secrets.token_hex(8)}"
        async with self._book.shipping(id):
            needs_index = len(opened.entries) > len(located)
            shipment = await self._storage.ship(id, opened.code, 0) if needs_index else None
            await self._change(shipment, bucket, change, id)
        await self.sweep(bucket)
        return await self._storage.collect()

    async def list(self, prefix: ObjectPath) -> list[ObjectInfo]:
        """The objects at and below a prefix, by path. WrongPassphrase, never an empty list, for a wrong secret."""
        opened = await self._load(prefix.bucket)
        if opened.head is None:
            raise NotFound(f"there is no bucket {prefix.bucket!r}")
        root = PathSecret.of_bucket(self._seed, prefix.bucket)
        at = root.encrypt_path(prefix.components)
        found = [
            _info(ObjectPath(prefix.bucket, tuple(root.decrypt_path(name))), entry)
            for name, entry in opened.entries.items()
            if not at or name == at or name.startswith(f"{at}/")
        ]
        return sorted(found)

    async def stat(self, path: ObjectPath) -> ObjectInfo:
        """One object."""
        return _info(path, (await self._find(path))[0])

    async def open(self, path: ObjectPath) -> Reading:
        """An object, ready to be read."""
        entry, place = await self._find(path)
        stored = entry.stored
        each = self._read_bytes(stored)
        downloader = await self._storage.open(stored.nodes(), each)
        return Reading(stored, place, downloader)

    async def sweep(self, bucket: str) -> None:
        """What shipments left that ended halfway: forget what the index names, the rest is garbage."""
        for id, shards in (await self._book.abandoned()).items():
            if id.partition("~")[0] != bucket:
                continue
            opened = await self._load(bucket)
            named = {shard for entry in opened.entries.values() for shard in entry.stored.shards()}
            named |= set(opened.listed.shards()) if opened.listed else set()
            await self._book.withdraw(id, [shard for shard in shards if shard in named])
            await self._book.discard(id, [shard for shard in shards if shard not in named])

    async def _change(
        self,
        shipment: Shipment | None,
        bucket: str,
        change: Callable[[Entries], Sequence[StoredObject]],
        id: str = "",
    ) -> None:
        """Set the head to an index that `change` was applied to; without a shipment it must come out empty."""
        secret, id = PathSecret.of_bucket(self._seed, bucket), shipment.id if shipment else id
        for _ in range(ATTEMPTS):
            opened = await self._load(bucket)
            entries = dict(opened.entries)
            dropped = change(entries)
            index, data = None, b""
            if entries:
                if shipment is None:
                    raise Conflict(f"bucket {bucket!r} was changed by another writer")
                data = encode_index(entries)
                index = await shipment.send(BytesSource(data), secret, bucket, INDEX_PATH)
                await shipment.certify()
            gone = [shard for stored in dropped for shard in stored.shards()]
            gone += opened.listed.shards() if opened.listed else []
            await self._book.intend(id, gone)
            new = Head((opened.head.version if opened.head else 0) + 1, encode_head(opened.code, index))
            try:
                await asyncio.to_thread(self._heads.compare_and_set, bucket, opened.head, new)
            except Conflict:
                await self._book.withdraw(id, gone)
                await self._book.discard(id, _shards(index))
                continue
            await self._book.withdraw(id, _shards(index))
            await self._book.discard(id, gone)
            self._cache.write(bucket, new, data)
            return
        raise Conflict(f"bucket {bucket!r} is being changed by other writers all the time")

    async def _load(self, bucket: str) -> _Opened:
        head = await asyncio.to_thread(self._heads.read, bucket)
        while True:
            try:
                return await self._load_at(bucket, head)
            except FreeholdError:
                # Another device may have set a newer head, and taken this one's index off the lists.
                newer = await asyncio.to_thread(self._heads.read, bucket)
                if newer == head:
                    raise
                head = newer

    async def _load_at(self, bucket: str, head: Head | None) -> _Opened:
        if head is None:
            return _Opened(None, DEFAULT_CODE, None, {})
        info = decode_head(head.data)
        if info.index is None:
            return _Opened(head, info.code, None, {})
        data = self._cache.read(bucket, head)
        if data is None:
            data = await self._fetch(bucket, info.index)
            self._cache.write(bucket, head, data)
        return _Opened(head, info.code, info.index, decode_index(data))

    async def _fetch(self, bucket: str, index: StoredObject) -> bytes:
        place = Place(PathSecret.of_bucket(self._seed, bucket), bucket, INDEX_PATH)
        downloader = await self._storage.open(index.nodes(), self._read_bytes(index))
        data = bytearray()
        async with aclosing(downloader.read(index, place)) as views:
            async for view in views:
                data += view
        return bytes(data)

    async def _find(self, path: ObjectPath) -> tuple[IndexEntry, Place]:
        secret, name = self._locate(path)
        opened = await self._load(path.bucket)
        if opened.head is None:
            raise NotFound(f"there is no bucket {path.bucket!r}")
        if name not in opened.entries:
            raise NotFound(f"there is no object {path}")
        return opened.entries[name], Place(secret, path.bucket, name)

    def _locate(self, path: ObjectPath) -> tuple[PathSecret, str]:
        if not path.components:
            raise InvalidInput(f"{path} names a bucket, not an object")
        root = PathSecret.of_bucket(self._seed, path.bucket)
        return root.at(path.components), root.encrypt_path(path.components)

    def _read_bytes(self, stored: StoredObject) -> int:
        k = stored.segments[0].k if stored.segments else 1
        return compute_shard_bytes(stored.size, k, self._segment_size)


class Reading(NamedTuple):
    """An object under covered leases."""

    stored: StoredObject
    place: Place
    downloader: Downloader

    @property
    def size(self) -> int:
        """Bytes of the object."""
        return self.stored.size

    async def read(self, offset: int = 0, length: int | None = None) -> AsyncGenerator[memoryview, None]:
        """The object's bytes in order; each view stands until the next is asked for."""
        async with aclosing(self.downloader.read(self.stored, self.place, offset, length)) as views:
            async for view in views:
                yield view


def _info(path: ObjectPath, entry: IndexEntry) -> ObjectInfo:
    return ObjectInfo(path, entry.stored.size, entry.modified, len(entry.stored.nodes()))


def _shards(stored: StoredObject | None) -> list[ListedShard]:
    return list(stored.shards()) if stored else []
