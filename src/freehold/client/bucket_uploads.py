"""Multipart uploads of a bucket: begun, given parts in any order, listed, completed or aborted.

Invariants: a part is stored before it is acknowledged, and again only in place of the one of its number, whose shards
then go; what is completed twice, as by a client that did not hear the answer, is one object and one answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing

from msgspec.structs import replace

from freehold.client.bucket_store import Bucket, BucketStore, Progress, make_extra
from freehold.client.bucket_types import (
    AS_IS,
    COMPOSITE,
    FULL_OBJECT,
    CompletedPart,
    Digests,
    ObjectInfo,
    PartInfo,
    PartPage,
    PutOptions,
    UploadInfo,
    UploadPage,
)
from freehold.client.errors import InvalidPart, UploadNotFound
from freehold.client.object_lists import Below, find_upload_start, read_page, upload_rows
from freehold.client.object_records import (
    UPLOADS,
    Part,
    Upload,
    Version,
    decode,
    encode,
    encode_key,
    part_place,
    sequence_of,
    upload_place,
)
from freehold.client.object_uploads import Joined, check_number, put_together, read_parts
from freehold.client.object_versions import check_conditions, find_newest, place_version, scan_versions
from freehold.client.table import View
from freehold.client.table_records import Changes, Key, Value
from freehold.protocol.errors import Conflict, InvalidInput
from freehold.services.storage.client_objects import StoredObject, decode_object
from freehold.services.storage.client_sources import Source

ATTEMPTS = 10  # at completing an upload whose parts are sent again meanwhile
_FULL_ONLY = ("CRC64NVME",)


class BucketUploads(BucketStore):
    """The half of `Buckets` that is about multipart uploads."""

    async def create_upload(
        self,
        bucket: str,
        key: str,
        options: PutOptions = AS_IS,
        checksum_algorithm: str = "",
        checksum_type: str = "",
    ) -> str:
        """Begin an upload; its id. `checksum_type` defaults as in S3: FULL_OBJECT for CRC64NVME, else COMPOSITE."""
        data = encode_key(key)
        kind = checksum_type or (FULL_OBJECT if checksum_algorithm in _FULL_ONLY else COMPOSITE)

        async def create(at: Bucket) -> str:
            now, places = self._now(), list[Key]()
            extra = make_extra(at.record, options, now)
            extra = replace(extra, checksum_type=kind if checksum_algorithm else "")

            async def change(view: View) -> Changes:
                places[:] = [upload_place(data, view.number + 1)]
                return Changes({places[0]: Value(encode(Upload(now, checksum_algorithm, extra)))})

            await at.commit(change)
            return at.ids.seal(places[0])

        return await self._in(bucket, create)

    async def put_part(
        self,
        bucket: str,
        key: str,
        upload_id: str,
        number: int,
        source: Source,
        digests: Callable[[], Digests] | None = None,
        progress: Progress | None = None,
    ) -> PartInfo:
        """Store a part, in place of an earlier one of its number. UploadNotFound, and nothing is kept."""
        check_number(number)

        async def put(at: Bucket) -> PartInfo:
            place = _locate(at, key, upload_id)
            await _read_upload(await at.view(), place, upload_id)
            async with self._stow(at, [source], progress) as stowed:
                stored = stowed.objects[0]
                given = digests() if digests is not None else Digests()
                etag = given.etag or make_etag(stored)
                part = Part(stored.size, self._now(), etag, dict(given.checksums), encode(stored))

                async def change(view: View) -> Changes:
                    await _read_upload(view, place, upload_id)
                    at_part = part_place(sequence_of(place), number)
                    old = await view.get(at_part)
                    discard = [decode_object(decode(old.meta, Part).stored)] if old is not None else []
                    return Changes({at_part: Value(encode(part))}, set(), discard)

                await at.commit(change)
            return _part_info(number, part)

        return await self._in(bucket, put)

    async def upload(self, bucket: str, key: str, upload_id: str) -> UploadInfo:
        """An unfinished upload. UploadNotFound."""

        async def get(at: Bucket) -> UploadInfo:
            place = _locate(at, key, upload_id)
            return _info(at, place, await _read_upload(await at.view(), place, upload_id))

        return await self._in(bucket, get)

    async def list_parts(self, bucket: str, key: str, upload_id: str, after: int = 0, limit: int = 1000) -> PartPage:
        """Parts with numbers above `after`."""

        async def read(at: Bucket) -> PartPage:
            place, view = _locate(at, key, upload_id), await at.view()
            upload = await _read_upload(view, place, upload_id)
            parts = sorted((n, part) for n, part in (await read_parts(view, place)).items() if n > after)
            shown = [_part_info(number, part) for number, part in parts[:limit]]
            more = shown[-1].number if shown and len(parts) > limit else None
            return PartPage(_info(at, place, upload), shown, more)

        return await self._in(bucket, read)

    async def list_uploads(
        self,
        bucket: str,
        prefix: str = "",
        delimiter: str = "",
        key_marker: str = "",
        upload_marker: str = "",
        limit: int = 1000,
    ) -> UploadPage:
        """Unfinished uploads, by key and age."""
        below = Below.of(prefix, delimiter)

        async def read(at: Bucket) -> UploadPage:
            view = await at.view()
            start = find_upload_start(at.ids, below, key_marker, upload_marker)
            shown = await read_page(upload_rows(view), below, UPLOADS, start, limit)
            entries = [_info(at, place, upload) for place, upload in shown.rows]
            prefixes = [group.decode() for group in shown.prefixes]
            if not shown.more or shown.last is None:
                return UploadPage(entries, prefixes, None, None)
            if isinstance(shown.last, bytes):
                return UploadPage(entries, prefixes, shown.last.decode(), "")
            return UploadPage(entries, prefixes, shown.last[1].decode(), at.ids.seal(shown.last))

        return await self._in(bucket, read)

    async def complete_upload(
        self,
        bucket: str,
        key: str,
        upload_id: str,
        parts: Sequence[CompletedPart],
        *,
        if_match: str | None = None,
        if_none_match: str | None = None,
        checksums: Mapping[str, str] | None = None,
        size: int | None = None,
    ) -> ObjectInfo:
        """Make the named parts an object. `checksums` and `size`, if given, must be those of the whole.

        InvalidPart, InvalidPartOrder, PartTooSmall, PreconditionFailed, UploadNotFound; the upload then stays.
        """

        async def complete(at: Bucket) -> ObjectInfo:
            place = _locate(at, key, upload_id)
            for _ in range(ATTEMPTS):
                view = await at.view()
                value = await view.get(place)
                if value is None:
                    return await _completed(at, view, place, upload_id, parts)
                upload = decode(value.meta, Upload)
                joined = put_together(place, upload, await read_parts(view, place), parts, self._least_part)
                _check_whole(joined, checksums or {}, size)
                try:
                    return await self._complete(at, place, upload, joined, parts, if_match, if_none_match)
                except _PartsChanged:
                    continue
            raise Conflict("parts of this upload are being sent again all the time")

        return await self._in(bucket, complete)

    async def abort_upload(self, bucket: str, key: str, upload_id: str) -> None:
        """Drop an upload and all its parts. UploadNotFound."""

        async def abort(at: Bucket) -> None:
            place = _locate(at, key, upload_id)

            async def change(view: View) -> Changes:
                await _read_upload(view, place, upload_id)
                return await drop_upload(view, place)

            await at.commit(change)

        await self._in(bucket, abort)

    async def _complete(
        self,
        at: Bucket,
        place: Key,
        upload: Upload,
        joined: Joined,
        parts: Sequence[CompletedPart],
        if_match: str | None,
        if_none_match: str | None,
    ) -> ObjectInfo:
        extra = replace(
            upload.extra, checksums=joined.checksums, checksum_type=joined.checksum_type, parts=joined.parts,
            upload=place[2],
        )  # fmt: skip
        nodes, done = len(joined.stored.nodes()), list[tuple[Key, Version]]()
        async with self._packed(at, joined.stored) as (flags, packed):
            version = Version(flags, joined.stored.size, self._now(), joined.etag, packed, nodes, extra)

            async def change(view: View) -> Changes:
                value = await view.get(place)
                there = await read_parts(view, place)
                if value is None or put_together(place, upload, there, parts, self._least_part) != joined:
                    raise _PartsChanged("the upload's parts are others by now")
                newest = await find_newest(view, place[1])
                check_conditions(newest.version if newest else None, if_match, if_none_match, place[1].decode())
                outcome = await place_version(view, at.record, place[1], version, None)
                done[:] = [(at_version, decode(v.meta, Version)) for at_version, v in outcome.put.items()]
                changes = await self._changes(outcome)
                return Changes(
                    changes.put, changes.remove | joined.remove, [*changes.discard, *joined.unused]
                )  # fmt: skip

            await at.commit(change)
        return at.info(*done[0], is_latest=True)


class _PartsChanged(Conflict):
    """Between the look and the commit."""


async def drop_upload(view: View, place: Key) -> Changes:
    """What dropping an upload and its parts changes."""
    parts = await read_parts(view, place)
    remove = {place, *(part_place(sequence_of(place), number) for number in parts)}
    return Changes({}, remove, [decode_object(part.stored) for part in parts.values()])


def make_etag(stored: StoredObject) -> str:
    """An ETag of what nobody took the MD5 of: made from the shards' roots, and marked as none by its "-"."""
    hasher = hashlib.sha256()
    for segment in stored.segments:
        hasher.update(b"".join(segment.roots))
    return f"{hasher.hexdigest()[:32]}-{max(1, len(stored.segments))}"


def _locate(at: Bucket, key: str, upload_id: str) -> Key:
    place = at.ids.open(UPLOADS, encode_key(key), upload_id)
    if place is None:
        raise UploadNotFound(f"there is no upload {upload_id!r} of {key!r}", upload_id=upload_id)
    return place


async def _read_upload(view: View, place: Key, upload_id: str) -> Upload:
    value = await view.get(place)
    if value is None:
        raise UploadNotFound(f"there is no upload {upload_id!r} of {place[1].decode()!r}", upload_id=upload_id)
    return decode(value.meta, Upload)


async def _completed(at: Bucket, view: View, place: Key, upload_id: str, parts: Sequence[CompletedPart]) -> ObjectInfo:
    """The object that the upload became, for one who asks again."""
    latest = True
    async with aclosing(scan_versions(view, place[1])) as versions:
        async for found in versions:
            info = at.info(found.place, found.version, is_latest=latest)
            if found.version.extra.upload == place[2] and [p.number for p in info.parts] == [p.number for p in parts]:
                return info
            latest = False
    raise UploadNotFound(f"there is no upload {upload_id!r} of {place[1].decode()!r}", upload_id=upload_id)


def _check_whole(joined: Joined, checksums: Mapping[str, str], size: int | None) -> None:
    if size is not None and size != joined.stored.size:
        raise InvalidInput(f"the parts have {joined.stored.size} bytes, not {size}", size=joined.stored.size)
    for name, value in checksums.items():
        if name in joined.checksums and joined.checksums[name] != value:
            raise InvalidPart(f"the parts' {name} checksum is {joined.checksums[name]}, not {value}", algorithm=name)


def _info(at: Bucket, place: Key, upload: Upload) -> UploadInfo:
    extra = upload.extra
    options = PutOptions(
        headers=extra.headers, metadata=extra.metadata, tags=extra.tags, storage_class=extra.storage_class,
        lock_mode=extra.lock_mode, retain_until=extra.retain_until, legal_hold=extra.legal_hold,
    )  # fmt: skip
    return UploadInfo(
        key=place[1].decode(),
        upload_id=at.ids.seal(place),
        created=upload.created,
        storage_class=extra.storage_class,
        checksum_algorithm=upload.algorithm,
        checksum_type=extra.checksum_type,
        options=options,
    )


def _part_info(number: int, part: Part) -> PartInfo:
    return PartInfo(number, part.size, part.etag, part.checksums, part.modified)
