"""What callers of `Buckets` hand in and get back. Times are unix milliseconds, sizes bytes, keys text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from freehold.client.paths import ObjectPath
from freehold.services.storage.client_objects import Code

NULL = "null"  # the version id of what was put while the bucket was not versioned
FULL_OBJECT = "FULL_OBJECT"
COMPOSITE = "COMPOSITE"
GOVERNANCE = "GOVERNANCE"
COMPLIANCE = "COMPLIANCE"


@dataclass(frozen=True, kw_only=True)
class PutOptions:
    """How an object is put. `headers` are lower-case names of what GET gives back (content-type and its like)."""

    headers: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    storage_class: str = "STANDARD"
    lock_mode: str = ""
    retain_until: int = 0
    legal_hold: bool = False
    if_match: str | None = None
    if_none_match: str | None = None


AS_IS = PutOptions()


class Digests(NamedTuple):
    """What the receiver computed. `etag` is hex MD5, or "": one is then made from the shards' roots."""

    etag: str = ""
    checksums: Mapping[str, str] = {}
    checksum_type: str = ""


class PartInfo(NamedTuple):
    """A part of a multipart upload, or of the object it became."""

    number: int
    size: int
    etag: str = ""
    checksums: Mapping[str, str] = {}
    modified: int = 0


class CompletedPart(NamedTuple):
    """A part as the one who completes an upload names it; what is empty is not compared."""

    number: int
    etag: str
    checksums: Mapping[str, str] = {}


class ObjectInfo(NamedTuple):
    """A version of an object, or a delete marker."""

    bucket: str
    key: str
    version_id: str
    is_latest: bool
    is_delete_marker: bool
    size: int
    modified: int
    etag: str
    headers: Mapping[str, str] = {}
    metadata: Mapping[str, str] = {}
    tags: Mapping[str, str] = {}
    checksums: Mapping[str, str] = {}
    checksum_type: str = ""
    parts: tuple[PartInfo, ...] = ()
    lock_mode: str = ""
    retain_until: int = 0
    legal_hold: bool = False
    storage_class: str = "STANDARD"
    nodes: int = 0  # that hold shards of its own; 0 for what is packed with others

    @property
    def path(self) -> ObjectPath:
        """Where it is, as fh://."""
        return ObjectPath(self.bucket, self.key)


class BucketInfo(NamedTuple):
    """A bucket as a list of buckets shows it."""

    name: str
    created: int
    code: Code


class DeleteWhat(NamedTuple):
    """A key, or one version of it. Conditions hold for the current version; None: none."""

    key: str
    version_id: str | None = None
    if_match: str | None = None


class Deleted(NamedTuple):
    """What a delete did: `version_id` is what was removed for good, `marker_id` the delete marker made or removed."""

    key: str
    version_id: str | None = None
    is_delete_marker: bool = False
    marker_id: str | None = None


class Page(NamedTuple):
    """Entries and common prefixes, each in byte order. `next` is the `after` of the next page; None: no more."""

    entries: list[ObjectInfo]
    prefixes: list[str]
    next: str | None


class VersionPage(NamedTuple):
    """Versions and delete markers, newest first within a key; markers to go on from, None at the end."""

    entries: list[ObjectInfo]
    prefixes: list[str]
    next_key: str | None
    next_version: str | None


class UploadInfo(NamedTuple):
    """An unfinished multipart upload."""

    key: str
    upload_id: str
    created: int
    storage_class: str
    checksum_algorithm: str
    checksum_type: str
    options: PutOptions


class UploadPage(NamedTuple):
    """Unfinished uploads by key, then oldest first; markers to go on from, None at the end."""

    entries: list[UploadInfo]
    prefixes: list[str]
    next_key: str | None
    next_upload: str | None


class PartPage(NamedTuple):
    """An upload's parts by number; `next` is the `after` of the next page; None: no more."""

    upload: UploadInfo
    entries: list[PartInfo]
    next: int | None
