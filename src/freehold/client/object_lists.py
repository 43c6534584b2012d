"""Lists of a bucket: objects, versions and uploads, in byte order, by prefix and delimiter, a page at a time.

A common prefix is shown once and skipped by seeking to its end, as are the older versions of a key: what a page costs
follows what it shows, not what lies below it. Invariants: pages put together are the whole list, each thing once; a
common prefix is shown only where something below it would be.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Generic, NamedTuple, TypeVar

from freehold.client.bucket_types import NULL
from freehold.client.object_records import (
    LAST_SUB,
    OBJECTS,
    UPLOADS,
    Ids,
    Upload,
    Version,
    decode,
    decode_version,
    encode_text,
)
from freehold.client.object_versions import find_newest, find_null
from freehold.client.table import View
from freehold.client.table_records import Key
from freehold.protocol.errors import InvalidInput

PATIENCE = 32  # rows read past before seeking is cheaper

R = TypeVar("R")
Rows = Callable[[Key, Key], AsyncGenerator[tuple[Key, R], None]]  # what stands from one place up to another


class Below(NamedTuple):
    """What is listed: everything that starts with `prefix`, summed up at the first `delimiter` after it."""

    prefix: bytes
    delimiter: bytes

    @staticmethod
    def of(prefix: str, delimiter: str) -> Below:
        """From text; InvalidInput if it has no UTF-8."""
        return Below(encode_text(prefix), encode_text(delimiter))

    def group(self, key: bytes) -> bytes | None:
        """The common prefix that a key is summed up in."""
        if not self.delimiter:
            return None
        at = key.find(self.delimiter, len(self.prefix))
        return key[: at + len(self.delimiter)] if at >= 0 else None

    def start_after(self, space: int, after: bytes) -> Key:
        """Where a list goes on behind a key, or behind a common prefix that was shown."""
        if after < self.prefix:
            return space, self.prefix, b""
        if after.startswith(self.prefix) and self.group(after) == after:
            return space, _past(after), b""
        return space, after, LAST_SUB

    def end(self, space: int) -> Key:
        """Where everything below the prefix ends."""
        return (space, _past(self.prefix), b"") if self.prefix else (space + 1, b"", b"")


class Shown(NamedTuple, Generic[R]):
    """A page's rows and common prefixes, and whether there is more; `last` is the row or prefix it ends with."""

    rows: list[tuple[Key, R]]
    prefixes: list[bytes]
    last: Key | bytes | None
    more: bool


async def read_page(rows: Rows[R], below: Below, space: int, start: Key, limit: int) -> Shown[R]:
    """Up to `limit` rows and common prefixes from a place on."""
    page: Shown[R] = Shown([], [], None, False)
    if limit <= 0:
        return page
    count, end = 0, below.end(space)
    last: Key | bytes | None = None
    walk = _walk(rows, below, start, end)
    async with aclosing(walk):
        async for place, record in walk:
            if count == limit:
                return page._replace(last=last, more=True)
            count += 1
            if record is None:
                page.prefixes.append(place[1])
                last = place[1]
            else:
                page.rows.append((place, record))
                last = place
    return page._replace(last=last)


async def _walk(rows: Rows[R], below: Below, start: Key, end: Key) -> AsyncGenerator[tuple[Key, R | None], None]:
    """Rows, and each common prefix once as a row without a record."""
    at: Key | None = start
    while at is not None and at < end:
        found = rows(at, end)
        at = None
        shown, passed = None, 0
        async with aclosing(found):
            async for place, record in found:
                group = below.group(place[1])
                if group is None:
                    yield place, record
                elif group != shown:
                    shown, passed = group, 0
                    yield (place[0], group, b""), None
                else:
                    passed += 1
                    if passed == PATIENCE:
                        at = (place[0], _past(group), b"")
                        break


def current_rows(view: View) -> Rows[Version]:
    """The current version of each key, where that is no delete marker."""

    async def rows(start: Key, end: Key) -> AsyncGenerator[tuple[Key, Version], None]:
        at: Key | None = start
        key, passed = b"", 0
        while at is not None:
            scan = view.scan(at, end)
            at = None
            async with aclosing(scan):
                async for place, value in scan:
                    if place[1] != key:
                        key, passed = place[1], 0
                        version = decode_version(value.meta)
                        if not version.is_marker:
                            yield place, version
                    else:
                        passed += 1
                        if passed == PATIENCE:
                            at = (place[0], key, LAST_SUB)
                            break

    return rows


def version_rows(view: View) -> Rows[Version]:
    """Every version and delete marker."""

    async def rows(start: Key, end: Key) -> AsyncGenerator[tuple[Key, Version], None]:
        async with aclosing(view.scan(start, end)) as scan:
            async for place, value in scan:
                yield place, decode_version(value.meta)

    return rows


def upload_rows(view: View) -> Rows[Upload]:
    """Every unfinished upload."""

    async def rows(start: Key, end: Key) -> AsyncGenerator[tuple[Key, Upload], None]:
        async with aclosing(view.scan(start, end)) as scan:
            async for place, value in scan:
                yield place, decode(value.meta, Upload)

    return rows


async def find_version_start(view: View, ids: Ids, below: Below, key_marker: str, version_marker: str) -> Key:
    """Where a list of versions goes on: behind a version of a key, or behind all of them."""
    key = encode_text(key_marker)
    if not version_marker or not key:
        return below.start_after(OBJECTS, key)
    if version_marker == NULL:
        found = await find_null(view, key)
        place = found.place if found else (OBJECTS, key, LAST_SUB)
    else:
        opened = ids.open(OBJECTS, key, version_marker)
        if opened is None:
            raise InvalidInput("Invalid version id specified", version_id=version_marker)
        place = opened
    return max((place[0], place[1], place[2] + b"\x00"), (OBJECTS, below.prefix, b""))


def find_upload_start(ids: Ids, below: Below, key_marker: str, upload_marker: str) -> Key:
    """Where a list of uploads goes on."""
    key = encode_text(key_marker)
    place = ids.open(UPLOADS, key, upload_marker) if upload_marker and key else None
    if place is None:
        return below.start_after(UPLOADS, key)
    return max((place[0], place[1], place[2] + b"\x00"), (UPLOADS, below.prefix, b""))


async def is_newest(view: View, place: Key) -> bool:
    """Whether no other version of its key came later."""
    newest = await find_newest(view, place[1])
    return newest is not None and newest.place == place


def _past(prefix: bytes) -> bytes:
    """The first bytes after everything that starts with this; UTF-8 has no byte 0xff."""
    return prefix[:-1] + bytes([prefix[-1] + 1])
