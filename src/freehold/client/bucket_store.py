"""What all of `Buckets` stands on: the account's root, a table for each bucket, blobs in the vault, and how they meet.

    stow the large bytes -> commit the record that names them -> keep them; they are garbage if it fails

Which buckets there are may be known `MAX_AGE` seconds late; a bucket that is not known, or whose table is closed, is
looked up again before that is said. Invariants: a record is committed only after n nodes have what it names on disk and
in lists that they signed; what was stowed is kept if a commit names it, garbage if surely none does, and left to a
sweep where nobody knows.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from freehold.client.bucket_types import NULL, ObjectInfo, PutOptions
from freehold.client.errors import BucketNotFound, InvalidBucketState
from freehold.client.heads import Heads
from freehold.client.lifecycle import DAY
from freehold.client.object_records import FAR, Extra, Ids, Version, encode
from freehold.client.object_uploads import MIN_PART, unpack_parts
from freehold.client.object_versions import Outcome
from freehold.client.root import AccountRoot, BucketRecord
from freehold.client.secrets import derive_secret, head_name
from freehold.client.table import Memory, Table, View
from freehold.client.table_records import INLINE_LIMIT, Changes, Key
from freehold.client.vault import Stowed, Vault
from freehold.protocol.errors import FreeholdError, InvalidInput, NotFound, Unavailable
from freehold.services.storage.client_objects import Code, StoredObject, decode_object
from freehold.services.storage.client_sources import BytesSource, Source

MAX_AGE = 2.0  # seconds
OPEN_LIMIT = 64  # tables that stay open though nobody uses them
FAR_LIMIT = 64 << 10  # bytes of a packed StoredObject that a record takes

Progress = Callable[[int], None]
T = TypeVar("T")


class _Closed(Exception):
    """The table is not there, or no longer."""


class Bucket(NamedTuple):
    """A bucket as of one moment, open."""

    name: str
    record: BucketRecord
    table: Table
    ids: Ids
    heads: Heads

    async def view(self) -> View:
        """Its table as of now."""
        try:
            return await self.table.view()
        except NotFound:
            await self._raise_closed()
            raise

    async def fence(self) -> View:
        """Its table as of now, for good as far as commits go that began before."""
        try:
            return await self.table.fence()
        except NotFound:
            await self._raise_closed()
            raise

    async def commit(self, change: Callable[[View], Awaitable[Changes]]) -> None:
        """Commit a change to its table; it may run several times."""
        try:
            await self.table.commit(change)
        except NotFound:
            await self._raise_closed()
            raise

    async def _raise_closed(self) -> None:
        """_Closed if that is why something was not found."""
        if await self.heads.read(self.table.name) is None:
            raise _Closed from None

    def info(self, place: Key, version: Version, *, is_latest: bool, with_parts: bool = True) -> ObjectInfo:
        """A version as callers see it."""
        extra = version.extra
        return ObjectInfo(
            bucket=self.name,
            key=place[1].decode(),
            version_id=NULL if version.is_null else self.ids.seal(place),
            is_latest=is_latest,
            is_delete_marker=version.is_marker,
            size=version.size,
            modified=version.modified,
            etag=version.etag,
            headers=extra.headers,
            metadata=extra.metadata,
            tags=extra.tags,
            checksums=extra.checksums,
            checksum_type=extra.checksum_type,
            parts=unpack_parts(extra.parts) if with_parts else (),
            lock_mode=extra.lock_mode,
            retain_until=extra.retain_until,
            legal_hold=extra.legal_hold,
            storage_class=extra.storage_class,
            nodes=version.nodes,
        )


class BucketStore:
    """The base of `Buckets`; `clock` gives unix seconds, `least_part` is the least size of a part but the last."""

    def __init__(
        self,
        heads: Heads,
        vault: Vault,
        seed: bytes,
        cache: Path,
        *,
        root: AccountRoot | None = None,
        clock: Callable[[], float] = time.time,
        least_part: int = MIN_PART,
    ) -> None:
        self.root = root or AccountRoot(heads, seed)
        self._heads = heads
        self.vault = vault
        self._seed = seed
        self._cache = cache
        self._clock = clock
        self._least_part = least_part
        self._open: dict[bytes, tuple[Table, Ids]] = {}  # the one used last is the last
        self._users: Counter[bytes] = Counter()
        self._memory = Memory()

    async def aclose(self) -> None:
        """Wait for what is under way."""
        while self._open:
            await self._open.popitem()[1][0].aclose()

    async def quiet(self) -> None:
        """Wait until what was dropped so far is garbage in the book, so that `Vault.collect` takes it off."""
        for table, _ in list(self._open.values()):
            await table.quiet()

    def _now(self) -> int:
        return int(self._clock() * 1000)

    def _table_name(self, id: bytes) -> str:
        return head_name(self._seed, b"bucket/" + id)

    def _table(self, id: bytes, code: Code) -> Table:
        name, secret = self._table_name(id), derive_secret(self._seed, "bucket/table", id)
        return Table(self._heads, self.vault, name, secret, self._cache, code, memory=self._memory)

    def _opened(self, name: str, record: BucketRecord) -> Bucket:
        opened = self._open.pop(record.id, None)
        if opened is None:
            ids = Ids(derive_secret(self._seed, "bucket/ids", record.id))
            opened = self._table(record.id, record.code), ids
        self._open[record.id] = opened
        return Bucket(name, record, *opened, self._heads)

    def _close_unused(self) -> None:
        """Let go of tables that nobody uses, where there are too many: each keeps what its head says in memory."""
        for id in list(self._open)[: max(0, len(self._open) - OPEN_LIMIT)]:
            if id not in self._users and self._open[id][0].is_idle:
                del self._open[id]

    async def _in(self, name: str, work: Callable[[Bucket], Awaitable[T]]) -> T:
        """Do something in a bucket; once more, with the newest root, where it was not there. BucketNotFound."""
        for max_age in (MAX_AGE, 0):
            record = (await self.root.read(max_age)).buckets.get(name)
            if record is not None:
                self._users[record.id] += 1
                try:
                    return await work(self._opened(name, record))
                except _Closed:
                    continue
                finally:
                    self._users[record.id] -= 1
                    if not self._users[record.id]:
                        del self._users[record.id]
                    self._close_unused()
        raise BucketNotFound(f"there is no bucket {name!r}", bucket=name)

    @asynccontextmanager
    async def _stow(
        self, at: Bucket, sources: Sequence[Source], progress: Progress | None = None
    ) -> AsyncGenerator[Stowed, None]:
        """Bytes stored; a commit inside names them. Settled by how the inside ends."""
        async with self.vault.stow(at.table.name, at.record.code, sources, progress) as stowed:
            try:
                yield stowed
            except _Closed:
                raise BucketNotFound(f"there is no bucket {at.name!r}", bucket=at.name) from None
            except FreeholdError as error:
                if isinstance(error, Unavailable):
                    await stowed.unsure()
                raise
            except BaseException:
                await stowed.unsure()
                raise
            try:
                await stowed.keep()
            except FreeholdError as error:  # a record names it: nobody around this may take it for garbage
                await stowed.unsure()
                raise Unavailable(f"it is stored, but that could not be written down: {error.message}") from error

    @asynccontextmanager
    async def _packed(self, at: Bucket, stored: StoredObject) -> AsyncGenerator[tuple[int, bytes], None]:
        """Flags and bytes by which a record names an object; what is too long for a record is stored itself."""
        data = encode(stored)
        if len(data) <= FAR_LIMIT:
            yield 0, data
        else:
            async with self._stow(at, [BytesSource(data)]) as stowed:
                yield FAR, encode(stowed.objects[0])

    async def unpack(self, version: Version) -> StoredObject:
        """The object of a version that is not inlined."""
        stored = decode_object(version.stored)
        return decode_object(await self.vault.fetch(stored)) if version.flags & FAR else stored

    async def _objects(self, version: Version) -> list[StoredObject]:
        """All that the vault keeps for a version."""
        if not version.stored:
            return []
        own = [decode_object(version.stored)]
        return [*own, await self.unpack(version)] if version.flags & FAR else own

    async def _changes(self, outcome: Outcome) -> Changes:
        discard = [stored for version in outcome.dropped.values() for stored in await self._objects(version)]
        return Changes(outcome.put, set(outcome.dropped), discard)


def make_extra(record: BucketRecord, options: PutOptions, now: int) -> Extra:
    """What a new version of an object has beside its bytes: as asked, and by the bucket's default retention."""
    mode, until = options.lock_mode, options.retain_until
    if (mode or until or options.legal_hold) and not record.object_lock:
        raise InvalidInput("the bucket has no object lock")
    if bool(mode) != bool(until):
        raise InvalidInput("a retention has a mode and a date")
    if mode and until <= now:
        raise InvalidInput("the date until which an object is retained must be in the future")
    if not mode and record.object_lock and record.default_retention is not None:
        mode, until = record.default_retention[0], now + record.default_retention[1] * DAY
    return Extra(
        headers=dict(options.headers),
        metadata=dict(options.metadata),
        tags=dict(options.tags),
        storage_class=options.storage_class,
        lock_mode=mode,
        retain_until=until,
        legal_hold=options.legal_hold,
    )


def check_record(old: BucketRecord, new: BucketRecord) -> BucketRecord:
    """A bucket's new set-up; InvalidBucketState for a step that S3 does not have."""
    if (old.id, old.created, old.code) != (new.id, new.created, new.code):
        raise InvalidInput("a bucket's id, age and code stay")
    if old.versioning and not new.versioning:
        raise InvalidBucketState("versioning can be suspended, not undone")
    if old.object_lock and not new.object_lock:
        raise InvalidBucketState("object lock stays once it is on")
    if new.object_lock and new.versioning != "Enabled":
        raise InvalidBucketState("object lock needs versioning, which cannot be suspended then")
    if new.default_retention is not None and not new.object_lock:
        raise InvalidBucketState("a default retention needs object lock")
    return new


class Rest:
    """A source whose first bytes were read already."""

    def __init__(self, start: bytes, source: Source) -> None:
        self._start = memoryview(start)
        self._source = source

    @property
    def size(self) -> int | None:
        """Bytes in all, with those that were read already."""
        return self._source.size

    async def read(self, buffer: memoryview) -> int:
        """See `Source`."""
        first = self._start[: len(buffer)]
        buffer[: len(first)] = first
        self._start = self._start[len(first) :]
        if len(first) == len(buffer):
            return len(first)
        return len(first) + await self._source.read(buffer[len(first) :])

    async def finish(self) -> None:
        """See `Source`."""
        await self._source.finish()


async def read_start(source: Source) -> tuple[bytes, bool]:
    """A source's first bytes, and whether these are all: then it fits into a commit."""
    if source.size is not None and source.size > INLINE_LIMIT:
        return b"", False
    buffer = bytearray(INLINE_LIMIT + 1)
    count = await source.read(memoryview(buffer))
    return bytes(buffer[:count]), count <= INLINE_LIMIT
