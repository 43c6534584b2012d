"""Buckets: S3's objects over tables, for gateway, command line and notebooks.

    put     bytes into the commit, or stowed first -> one commit with the conditions inside
    read    a view -> the version's record -> its bytes, pinned to that record
    delete  any number of keys in one commit; what they named comes off the lists after it

What a record is made of stands in `object_records.py`, which version a name means in `object_versions.py`, pages in
`object_lists.py`, uploads in `bucket_uploads.py`. Invariants: what was acknowledged before a call, by whichever device,
the call sees; of writers with one condition that only one can meet, one wins; nothing that a record names is dropped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing

from msgspec.structs import replace

from freehold.client.bucket_store import Bucket, Progress, Rest, check_record, make_extra, read_start
from freehold.client.bucket_types import (
    AS_IS,
    COMPOSITE,
    BucketInfo,
    Deleted,
    DeleteWhat,
    Digests,
    ObjectInfo,
    Page,
    PutOptions,
    VersionPage,
)
from freehold.client.bucket_upkeep import BucketUpkeep
from freehold.client.bucket_uploads import make_etag
from freehold.client.errors import (
    BucketExists,
    BucketNotEmpty,
    BucketNotFound,
    InvalidBucketState,
    KeyNotFound,
    MethodNotAllowed,
    ObjectLocked,
    ObjectReplaced,
    PreconditionFailed,
)
from freehold.client.object_lists import (
    Below,
    current_rows,
    find_version_start,
    is_newest,
    read_page,
    version_rows,
)
from freehold.client.object_reading import Reading
from freehold.client.object_records import OBJECTS, Version, decode_version, encode, encode_key, encode_text
from freehold.client.object_versions import (
    Found,
    Outcome,
    change_retention,
    check_conditions,
    delete_one,
    find_current,
    find_newest,
    place_version,
    with_extra,
)
from freehold.client.paths import check_bucket
from freehold.client.root import ENABLED, BucketRecord, Root
from freehold.client.table import View
from freehold.client.table_records import FIRST, Changes, Key, Value
from freehold.protocol.errors import FreeholdError, InvalidInput, NotFound
from freehold.services.storage.client_objects import Code
from freehold.services.storage.client_sources import IterSource, Source

DEFAULT_CODE = Code(3, 6)

_ANSWERS = (ObjectLocked, PreconditionFailed, KeyNotFound, InvalidInput)  # to one key of many

Digesting = Callable[[Source], tuple[Source, Callable[[], Digests]]]


class Buckets(BucketUpkeep):
    """One account's buckets. Every method raises BucketNotFound for a bucket that is not there."""

    # Buckets

    async def create_bucket(
        self, name: str, code: Code = DEFAULT_CODE, *, object_lock: bool = False, versioning: str = ""
    ) -> BucketInfo:
        """An empty bucket. BucketExists; InvalidInput for a name or a code that cannot be."""
        check_bucket(name)
        code.check()
        state = ENABLED if object_lock else versioning
        record = BucketRecord(
            id=secrets.token_bytes(16), created=self._now(), code=code, versioning=state, object_lock=object_lock
        )
        existing = (await self.root.read()).buckets.get(name)
        if existing is not None and await self._is_there(existing):
            raise BucketExists(f"there is a bucket {name!r} already", bucket=name)
        table = self._table(record.id, code)
        await table.create()

        def add(root: Root) -> Root:
            if root.buckets.get(name) != existing:
                raise BucketExists(f"there is a bucket {name!r} already", bucket=name)
            return root.with_bucket(name, record)

        try:
            await self.root.change(add)
        except BucketExists:
            await table.close_for_good(_whatever)
            await table.aclose()
            raise
        return BucketInfo(name, record.created, code)

    async def delete_bucket(self, name: str) -> None:
        """Remove a bucket. BucketNotEmpty while it holds versions or unfinished uploads, or is given one just now."""
        record = (await self.root.read()).buckets.get(name)
        if record is None:
            raise BucketNotFound(f"there is no bucket {name!r}", bucket=name)
        closed = False
        try:
            await self._opened(name, record).table.close_for_good(_check_empty)
        except NotFound:
            if await self._heads.read(self._table_name(record.id)) is not None:
                raise
            closed = True  # another delete of it, that may have ended halfway
        opened = self._open.pop(record.id, None)
        if opened is not None:
            await opened[0].aclose()

        def remove(root: Root) -> Root:
            kept = root.buckets.get(name)
            return root.with_bucket(name, None) if kept is not None and kept.id == record.id else root

        before = await self.root.read()
        await self.root.change(remove)
        if closed and name not in before.buckets:
            raise BucketNotFound(f"there is no bucket {name!r}", bucket=name)

    async def buckets(self) -> list[BucketInfo]:
        """All buckets, by name."""
        root = await self.root.read()
        return [BucketInfo(name, record.created, record.code) for name, record in sorted(root.buckets.items())]

    async def bucket(self, name: str) -> BucketRecord:
        """How a bucket is set up."""

        async def get(at: Bucket) -> BucketRecord:
            return at.record

        return await self._in(name, get)

    async def configure(self, name: str, change: Callable[[BucketRecord], BucketRecord]) -> BucketRecord:
        """Change how a bucket is set up. InvalidBucketState for a step that S3 does not have."""

        def apply(root: Root) -> Root:
            record = root.buckets.get(name)
            if record is None:
                raise BucketNotFound(f"there is no bucket {name!r}", bucket=name)
            return root.with_bucket(name, check_record(record, change(record)))

        return (await self.root.change(apply)).buckets[name]

    async def _is_there(self, record: BucketRecord) -> bool:
        """Whether a bucket of the root was not deleted by somebody who ended halfway."""
        return await self._heads.read(self._table_name(record.id)) is not None

    # Writing

    async def put(
        self,
        bucket: str,
        key: str,
        source: Source,
        options: PutOptions = AS_IS,
        digests: Callable[[], Digests] | None = None,
        progress: Progress | None = None,
    ) -> ObjectInfo:
        """Store an object. `digests` is called after `source.finish()`, which raises what does not match.

        PreconditionFailed, or KeyNotFound for If-Match of nothing; InvalidInput for a lock where the bucket has none.
        """
        data = encode_key(key)
        start, is_all = await read_start(source)

        async def small(at: Bucket) -> ObjectInfo:
            etag = given.etag or hashlib.md5(start, usedforsecurity=False).hexdigest()
            version = Version(0, len(start), self._now(), etag)
            return await self._commit(at, data, version, start, options, given)

        async def large(at: Bucket) -> ObjectInfo:
            view = await at.view()  # a bucket that is gone is noticed before the source is used up
            make_extra(at.record, options, self._now())
            await _check(view, data, options)
            async with self._stow(at, [Rest(start, source)], progress) as stowed:
                given = digests() if digests is not None else Digests()
                stored = stowed.objects[0]
                async with self._packed(at, stored) as (flags, packed):
                    etag = given.etag or make_etag(stored)
                    version = Version(flags, stored.size, self._now(), etag, packed, len(stored.nodes()))
                    return await self._commit(at, data, version, None, options, given)

        if not is_all:
            return await self._in(bucket, large)
        await source.finish()
        given = digests() if digests is not None else Digests()
        info = await self._in(bucket, small)
        if progress is not None:
            progress(len(start))
        return info

    async def copy(
        self,
        source_bucket: str,
        source_key: str,
        bucket: str,
        key: str,
        *,
        version_id: str | None = None,
        options: PutOptions | None = None,
        tags: Mapping[str, str] | None = None,
        check: Callable[[ObjectInfo], None] | None = None,
        digests_of: Digesting | None = None,
    ) -> ObjectInfo:
        """Put an object that is there already. Without `options` or `tags`, those of the source are taken.

        `check` raises where the source is not what was expected. `digests_of` wraps what is read, so that digests can
        be taken; without it the source's ETag and checksums are kept where they do not depend on how it was put.
        Onto itself, where that makes no version, nothing is read: its metadata change.
        """
        reading = await self.open(source_bucket, source_key, version_id)
        if (source_bucket, source_key, version_id) == (bucket, key, None) and reading.info.version_id == "null":
            amended = await self._copy_onto_itself(bucket, key, options, tags, check)
            if amended is not None:
                return amended
        if check is not None:
            check(reading.info)
        found = reading.info
        source: Source = IterSource(_views_of_one(reading), found.size)
        if digests_of is not None:
            source, digests = digests_of(source)
        else:
            digests = lambda: _copied_digests(found)  # noqa: E731
        return await self.put(bucket, key, source, _copied_options(found, options, tags), digests)

    async def delete(
        self, bucket: str, what: Sequence[DeleteWhat], *, bypass_governance: bool = False
    ) -> list[Deleted | FreeholdError]:
        """Delete keys or versions in one commit; for each what was done, or why not. What is not there is no error."""

        async def delete(at: Bucket) -> list[Deleted | FreeholdError]:
            results: list[Deleted | FreeholdError] = []

            async def change(view: View) -> Changes:
                results.clear()
                whole = Outcome({}, {})
                for one in what:
                    try:
                        outcome, done = await delete_one(
                            view, at.record, at.ids, one, self._now(), bypass=bypass_governance
                        )
                    except _ANSWERS as error:
                        results.append(error)
                        continue
                    whole.put.update(outcome.put)
                    whole.dropped.update(outcome.dropped)
                    results.append(done)
                return await self._changes(whole)

            await at.commit(change)
            return results

        return await self._in(bucket, delete) if what else []

    async def set_tags(
        self, bucket: str, key: str, tags: Mapping[str, str], version_id: str | None = None
    ) -> ObjectInfo:
        """Replace a version's tags."""
        return await self._amend(bucket, key, version_id, lambda _, version: with_extra(version, tags=dict(tags)))

    async def set_retention(
        self,
        bucket: str,
        key: str,
        mode: str,
        until: int,
        version_id: str | None = None,
        *,
        bypass_governance: bool = False,
    ) -> ObjectInfo:
        """Retain a version until a time (unix ms); no mode: no longer. ObjectLocked where that would weaken one."""

        def amend(record: BucketRecord, version: Version) -> Version:
            _check_lockable(record)
            if bool(mode) != bool(until) or (mode and until <= self._now()):
                raise InvalidInput("a retention has a mode and a date in the future")
            return change_retention(version, mode, until, self._now(), bypass=bypass_governance)

        return await self._amend(bucket, key, version_id, amend)

    async def set_legal_hold(self, bucket: str, key: str, on: bool, version_id: str | None = None) -> ObjectInfo:
        """Put a version under a legal hold, or take it off."""

        def amend(record: BucketRecord, version: Version) -> Version:
            _check_lockable(record)
            return with_extra(version, legal_hold=on)

        return await self._amend(bucket, key, version_id, amend)

    # Reading

    async def head(self, bucket: str, key: str, version_id: str | None = None) -> ObjectInfo:
        """An object, or one version of it. KeyNotFound, VersionNotFound, MethodNotAllowed for a delete marker."""
        return (await self._in(bucket, lambda at: self._find(at, encode_key(key), version_id)))[1]

    async def open(self, bucket: str, key: str, version_id: str | None = None) -> Reading:
        """An object, ready to be read: as it stands now, whatever is put later."""

        async def find() -> tuple[Bucket, Found, ObjectInfo]:
            async def look(at: Bucket) -> tuple[Bucket, Found, ObjectInfo]:
                return at, *await self._find(at, encode_key(key), version_id)

            return await self._in(bucket, look)

        return Reading(self, find, *await find())

    async def list(
        self, bucket: str, prefix: str = "", delimiter: str = "", after: str = "", limit: int = 1000
    ) -> Page:
        """Current objects below a prefix, behind the key or common prefix `after`."""
        below = Below.of(prefix, delimiter)

        async def read(at: Bucket) -> Page:
            view = await at.view()
            start = below.start_after(OBJECTS, encode_text(after))
            shown = await read_page(current_rows(view), below, OBJECTS, start, limit)
            entries = [at.info(place, version, is_latest=True, with_parts=False) for place, version in shown.rows]
            last = shown.last if isinstance(shown.last, bytes) or shown.last is None else shown.last[1]
            more = last.decode() if shown.more and last is not None else None
            return Page(entries, [group.decode() for group in shown.prefixes], more)

        return await self._in(bucket, read)

    async def list_versions(
        self,
        bucket: str,
        prefix: str = "",
        delimiter: str = "",
        key_marker: str = "",
        version_marker: str = "",
        limit: int = 1000,
    ) -> VersionPage:
        """Versions and delete markers, newest first within a key."""
        below = Below.of(prefix, delimiter)

        async def read(at: Bucket) -> VersionPage:
            view = await at.view()
            start = await find_version_start(view, at.ids, below, key_marker, version_marker)
            shown = await read_page(version_rows(view), below, OBJECTS, start, limit)
            entries: list[ObjectInfo] = []
            for place, version in shown.rows:
                name = place[1].decode()
                latest = await is_newest(view, place) if not entries else entries[-1].key != name
                entries.append(at.info(place, version, is_latest=latest, with_parts=False))
            prefixes = [group.decode() for group in shown.prefixes]
            if not shown.more or shown.last is None:
                return VersionPage(entries, prefixes, None, None)
            if isinstance(shown.last, bytes):
                return VersionPage(entries, prefixes, shown.last.decode(), "")
            return VersionPage(entries, prefixes, entries[-1].key, entries[-1].version_id)

        return await self._in(bucket, read)

    # How it is done

    async def _find(self, at: Bucket, key: bytes, version_id: str | None) -> tuple[Found, ObjectInfo]:
        view = await at.view()
        found = await find_current(view, at.ids, key, version_id)
        latest = version_id is None or await is_newest(view, found.place)
        info = at.info(found.place, found.version, is_latest=latest)
        if not info.is_delete_marker:
            return found, info
        kind = KeyNotFound if version_id is None else MethodNotAllowed
        raise kind(
            f"{info.key!r} is a delete marker", delete_marker=True, version_id=info.version_id, modified=info.modified
        )

    async def _commit(
        self, at: Bucket, key: bytes, version: Version, data: bytes | None, options: PutOptions, given: Digests
    ) -> ObjectInfo:
        extra = replace(
            make_extra(at.record, options, version.modified),
            checksums=dict(given.checksums),
            checksum_type=given.checksum_type,
        )
        version, done = replace(version, extra=extra), list[tuple[Key, Value]]()

        async def change(view: View) -> Changes:
            await _check(view, key, options)
            outcome = await place_version(view, at.record, key, version, data)
            done[:] = outcome.put.items()
            return await self._changes(outcome)

        await at.commit(change)
        place, value = done[0]
        return at.info(place, decode_version(value.meta), is_latest=True)

    async def _amend(
        self, bucket: str, key: str, version_id: str | None, amend: Callable[[BucketRecord, Version], Version]
    ) -> ObjectInfo:
        """Change a version's record where it stands."""

        async def commit(at: Bucket) -> ObjectInfo:
            infos: list[ObjectInfo] = []

            async def change(view: View) -> Changes:
                found = await find_current(view, at.ids, encode_key(key), version_id)
                if found.version.is_marker:
                    kind = KeyNotFound if version_id is None else MethodNotAllowed
                    raise kind(f"{key!r} is a delete marker", delete_marker=True)
                version = amend(at.record, found.version)
                latest = version_id is None or await is_newest(view, found.place)
                infos[:] = [at.info(found.place, version, is_latest=latest)]
                return Changes({found.place: Value(encode(version), found.value.data)})

            await at.commit(change)
            return infos[0]

        return await self._in(bucket, commit)

    async def _copy_onto_itself(
        self,
        bucket: str,
        key: str,
        options: PutOptions | None,
        tags: Mapping[str, str] | None,
        check: Callable[[ObjectInfo], None] | None,
    ) -> ObjectInfo | None:
        """New metadata for version "null" while it is what a put would replace; None where it is not."""

        async def commit(at: Bucket) -> ObjectInfo | None:
            infos: list[ObjectInfo] = []

            async def change(view: View) -> Changes:
                infos.clear()
                found = await find_newest(view, encode_key(key))
                if at.record.versioning == ENABLED or found is None or found.version.is_marker:
                    return Changes()
                if not found.version.is_null:
                    return Changes()
                old = at.info(found.place, found.version, is_latest=True)
                if check is not None:
                    check(old)
                chosen, now = _copied_options(old, options, tags), self._now()
                check_conditions(found.version, chosen.if_match, chosen.if_none_match, key)
                fresh = make_extra(at.record, chosen, now)
                kept = found.version.extra
                extra = replace(fresh, checksums=kept.checksums, checksum_type=kept.checksum_type, parts=kept.parts)
                version = replace(found.version, modified=now, extra=extra)
                infos.append(at.info(found.place, version, is_latest=True))
                return Changes({found.place: Value(encode(version), found.value.data)})

            await at.commit(change)
            return infos[0] if infos else None

        return await self._in(bucket, commit)


async def _views_of_one(reading: Reading) -> AsyncGenerator[memoryview, None]:
    """An object's bytes as long as they are of the version that was found: ObjectReplaced for another's."""
    found = reading.info
    async with aclosing(reading.read()) as views:
        async for view in views:
            if reading.info is not found:
                raise ObjectReplaced(f"{found.key!r} was replaced while it was copied", bucket=found.bucket)
            yield view


async def _check_empty(view: View) -> None:
    async with aclosing(view.scan(FIRST)) as rows:
        if await anext(rows, None) is not None:
            raise BucketNotEmpty("the bucket holds objects, versions, delete markers or unfinished uploads")


async def _whatever(_: View) -> None:
    """Nobody has used it."""


async def _check(view: View, key: bytes, options: PutOptions) -> None:
    if options.if_match is not None or options.if_none_match is not None:
        newest = await find_newest(view, key)
        check_conditions(newest.version if newest else None, options.if_match, options.if_none_match, key.decode())


def _check_lockable(record: BucketRecord) -> None:
    if not record.object_lock:
        raise InvalidBucketState("the bucket has no object lock")


def _copied_options(found: ObjectInfo, options: PutOptions | None, tags: Mapping[str, str] | None) -> PutOptions:
    chosen = options or PutOptions(headers=found.headers, metadata=found.metadata, storage_class=found.storage_class)
    return dataclasses.replace(chosen, tags=found.tags if tags is None else tags)


def _copied_digests(found: ObjectInfo) -> Digests:
    """An ETag or checksum of parts is not that of a copy, which has none."""
    etag = found.etag if "-" not in found.etag else ""
    return Digests(etag) if found.checksum_type == COMPOSITE else Digests(etag, found.checksums, found.checksum_type)
