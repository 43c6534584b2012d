"""The versions of a key: which is current, which a condition means, and what a put or a delete changes.

Everything here looks at one view and says the changes; `Buckets` commits them, and the table runs them again on a
newer view where another writer came first. So a condition that held when the commit was made, held. Invariants: what a
change no longer names is in its `discard`, exactly once; a locked version is never among what is removed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import NamedTuple

from msgspec.structs import replace

from freehold.client.bucket_types import COMPLIANCE, GOVERNANCE, NULL, Deleted, DeleteWhat
from freehold.client.errors import KeyNotFound, ObjectLocked, PreconditionFailed, VersionNotFound
from freehold.client.object_records import (
    LAST_SUB,
    MARKER,
    NULL_VERSION,
    OBJECTS,
    Ids,
    Version,
    decode_version,
    encode,
    encode_key,
    version_place,
)
from freehold.client.root import ENABLED, BucketRecord
from freehold.client.table import View
from freehold.client.table_records import Key, Value
from freehold.protocol.errors import InvalidInput


class Found(NamedTuple):
    """A version where it stands."""

    place: Key
    value: Value
    version: Version


class Outcome(NamedTuple):
    """What a change puts and removes; `dropped` are the versions that nothing names afterwards."""

    put: dict[Key, Value]
    dropped: dict[Key, Version]


async def scan_versions(view: View, key: bytes) -> AsyncGenerator[Found, None]:
    """A key's versions, newest first."""
    async with aclosing(view.scan((OBJECTS, key, b""), (OBJECTS, key, LAST_SUB))) as rows:
        async for place, value in rows:
            yield Found(place, value, decode_version(value.meta))


async def find_newest(view: View, key: bytes) -> Found | None:
    """The version that was committed last, be it a delete marker."""
    async with aclosing(scan_versions(view, key)) as versions:
        return await anext(versions, None)


async def find_null(view: View, key: bytes) -> Found | None:
    """The version that goes by "null"; at most one."""
    async with aclosing(scan_versions(view, key)) as versions:
        async for found in versions:
            if found.version.is_null:
                return found
    return None


async def find_version(view: View, ids: Ids, key: bytes, version_id: str) -> Found | None:
    """The version of this id. InvalidInput for what never was an id of this key."""
    if version_id == NULL:
        return await find_null(view, key)
    place = ids.open(OBJECTS, key, version_id)
    if place is None:
        raise InvalidInput("Invalid version id specified", version_id=version_id)
    value = await view.get(place)
    if value is None:
        return None
    version = decode_version(value.meta)
    return None if version.is_null else Found(place, value, version)


async def find_current(view: View, ids: Ids, key: bytes, version_id: str | None) -> Found:
    """What a read means: the version of this id, else the newest. KeyNotFound, VersionNotFound; may be a marker."""
    if version_id is None:
        found = await find_newest(view, key)
        if found is None:
            raise KeyNotFound(f"there is no object {key.decode()!r}")
        return found
    found = await find_version(view, ids, key, version_id)
    if found is None:
        raise VersionNotFound(f"there is no version {version_id} of {key.decode()!r}", version_id=version_id)
    return found


def check_conditions(newest: Version | None, if_match: str | None, if_none_match: str | None, key: str) -> None:
    """PreconditionFailed, or KeyNotFound for If-Match of nothing, unless a write's conditions hold."""
    there = newest is not None and not newest.is_marker
    if if_match is not None:
        if newest is None:
            raise KeyNotFound(f"there is no object {key!r}, as If-Match asks for")
        if not there or (if_match != "*" and if_match.strip('"') != newest.etag):
            raise PreconditionFailed(f"{key!r} is not the object that If-Match names", condition="If-Match")
    if if_none_match is not None and newest is not None and there and if_none_match.strip('"') in ("*", newest.etag):
        raise PreconditionFailed(f"{key!r} is there already", condition="If-None-Match")


async def place_version(view: View, record: BucketRecord, key: bytes, version: Version, data: bytes | None) -> Outcome:
    """A put: a new version, or version "null" anew where the bucket is not versioned, or no longer."""
    place = version_place(key, view.number + 1)
    if record.versioning == ENABLED:
        return Outcome({place: Value(encode(version), data)}, {})
    version = replace(version, flags=version.flags | NULL_VERSION)
    outcome = Outcome({place: Value(encode(version), data)}, {})
    old = await find_newest(view, key)
    if old is not None and not old.version.is_null:  # not where it never was versioned, but the record may be old
        old = await find_null(view, key)
    if old is not None:
        outcome.dropped[old.place] = old.version
    return outcome


async def delete_one(
    view: View, record: BucketRecord, ids: Ids, what: DeleteWhat, now: int, *, bypass: bool
) -> tuple[Outcome, Deleted]:
    """What deleting a key or a version changes. ObjectLocked, PreconditionFailed, KeyNotFound for If-Match only."""
    key = encode_key(what.key)
    if what.if_match is not None:
        newest = await find_newest(view, key)
        check_conditions(newest.version if newest else None, what.if_match, None, what.key)
    if what.version_id is not None:
        found = await find_version(view, ids, key, what.version_id)
        if found is None:
            return Outcome({}, {}), Deleted(what.key, what.version_id)
        check_lock(found.version, now, bypass=bypass)
        marker = found.version.is_marker
        done = Deleted(what.key, what.version_id, marker, what.version_id if marker else None)
        return Outcome({}, {found.place: found.version}), done
    if not record.versioning:
        newest = await find_newest(view, key)
        if newest is None or newest.version.is_null:
            return Outcome({}, {newest.place: newest.version} if newest else {}), Deleted(what.key)
    outcome = await place_version(view, record, key, Version(MARKER, 0, now, ""), None)
    place = next(iter(outcome.put))
    marker_id = ids.seal(place) if record.versioning == ENABLED else NULL
    return outcome, Deleted(what.key, None, True, marker_id)


def check_lock(version: Version, now: int, *, bypass: bool) -> None:
    """ObjectLocked while a hold or a retention forbids removing the version."""
    extra = version.extra
    if extra.legal_hold:
        raise ObjectLocked("the version is under a legal hold")
    if extra.retain_until > now and not (bypass and extra.lock_mode == GOVERNANCE):
        raise ObjectLocked(
            f"the version is retained ({extra.lock_mode}) and cannot be removed", retain_until=extra.retain_until
        )


def change_retention(version: Version, mode: str, until: int, now: int, *, bypass: bool) -> Version:
    """The version under another retention. ObjectLocked where that would weaken one that still binds."""
    extra = version.extra
    if extra.retain_until > now:
        weaker = until < extra.retain_until or (extra.lock_mode == COMPLIANCE and mode != COMPLIANCE) or not mode
        if weaker and not (bypass and extra.lock_mode == GOVERNANCE):
            raise ObjectLocked(f"a {extra.lock_mode} retention cannot be weakened", retain_until=extra.retain_until)
    return with_extra(version, lock_mode=mode, retain_until=until)


def with_extra(version: Version, **changes: object) -> Version:
    """The version with other values in `extra`."""
    return replace(version, extra=replace(version.extra, **changes))
