"""Listings: what their queries ask for, and pages of `Buckets` as the XML that answers.

Keys go out percent-encoded where `encoding-type=url` asks for it: only so can a listing hold keys with characters that
XML 1.0 has no place for. A continuation token is the place to go on from, in base64; one that is none is refused.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from freehold.client.bucket_types import (
    ObjectInfo,
    Page,
    PartPage,
    UploadInfo,
    UploadPage,
    VersionPage,
)
from freehold.gateway.wire.documents import iso_milliseconds
from freehold.gateway.wire.errors import invalid_argument
from freehold.gateway.wire.request import encode_uri
from freehold.gateway.wire.xml_writer import Writer

LIMIT = 1000
LARGEST = 2**31 - 1
_TOKEN_MARK = b"\x01"


class ListQuery(NamedTuple):
    """What a listing asks for. `after` is where it begins: greater keys only; `limit` may be 0 (an empty page).

    `marker`, `token` and `start_after` are as they were given, for the answer; `second_marker` goes with `after`: a
    version id or an upload id.
    """

    prefix: str
    delimiter: str
    limit: int
    url_encoded: bool
    after: str = ""
    marker: str = ""
    second_marker: str = ""
    token: str | None = None
    start_after: str = ""
    fetch_owner: bool = False


class PartsQuery(NamedTuple):
    """What a listing of parts asks for: numbers greater than `after`."""

    after: int
    limit: int


# --- queries ----------------------------------------------------------------------------------------------------------


def parse_number(query: Mapping[str, str], name: str, default: int, most: int = LARGEST) -> int:
    """A whole number of the query, `most` at most. S3Error InvalidArgument for what is none."""
    text = query.get(name)
    if not text:
        return default
    if not re.fullmatch(r"-?[0-9]{1,20}", text, re.ASCII):
        raise invalid_argument(name, text, f"Provided {name} not an integer or within integer range")
    if not 0 <= int(text) <= LARGEST:
        raise invalid_argument(name, text, f"Argument {name} must be an integer between 0 and {LARGEST}")
    return min(int(text), most)


def _parse_common(query: Mapping[str, str], limit_name: str) -> ListQuery:
    encoding = query.get("encoding-type")
    if encoding is not None and encoding.lower() != "url":
        raise invalid_argument("encoding-type", encoding, "Invalid Encoding Method specified in Request")
    return ListQuery(
        prefix=query.get("prefix", ""),
        delimiter=query.get("delimiter", ""),
        limit=parse_number(query, limit_name, LIMIT, LIMIT),
        url_encoded=encoding is not None,
    )


def parse_list_v1(query: Mapping[str, str]) -> ListQuery:
    marker = query.get("marker", "")
    return _parse_common(query, "max-keys")._replace(after=marker, marker=marker)


def parse_list_v2(query: Mapping[str, str]) -> ListQuery:
    token = query.get("continuation-token")
    start_after = query.get("start-after", "")
    fetch_owner = query.get("fetch-owner", "").lower() == "true"
    after = start_after if token is None else parse_token(token)
    return _parse_common(query, "max-keys")._replace(
        after=after, token=token, start_after=start_after, fetch_owner=fetch_owner
    )


def parse_list_versions(query: Mapping[str, str]) -> ListQuery:
    marker, version = query.get("key-marker", ""), query.get("version-id-marker", "")
    if version and not marker:
        message = "A version-id marker cannot be specified without a key marker."
        raise invalid_argument("version-id-marker", version, message)
    return _parse_common(query, "max-keys")._replace(after=marker, marker=marker, second_marker=version)


def parse_list_uploads(query: Mapping[str, str]) -> ListQuery:
    marker = query.get("key-marker", "")
    upload = query.get("upload-id-marker", "") if marker else ""  # as AWS: ignored without a key
    return _parse_common(query, "max-uploads")._replace(after=marker, marker=marker, second_marker=upload)


def parse_list_parts(query: Mapping[str, str]) -> PartsQuery:
    return PartsQuery(parse_number(query, "part-number-marker", 0), parse_number(query, "max-parts", LIMIT, LIMIT))


def parse_token(token: str) -> str:
    """The key that a continuation token goes on from. S3Error InvalidArgument for what is no token."""
    try:
        data = base64.b64decode(token, altchars=b"-_", validate=True)
        text = data.removeprefix(_TOKEN_MARK).decode()
    except (binascii.Error, ValueError):
        data, text = b"", ""
    if not data.startswith(_TOKEN_MARK) or write_token(text) != token:
        message = "The continuation token provided is incorrect"
        raise invalid_argument("continuation-token", token, message)
    return text


def write_token(after: str) -> str:
    return base64.urlsafe_b64encode(_TOKEN_MARK + after.encode()).decode()


# --- answers ----------------------------------------------------------------------------------------------------------


class _Names:
    """Writes keys and prefixes, encoded where the query asks for it."""

    def __init__(self, writer: Writer, url_encoded: bool) -> None:
        self._writer, self._url_encoded = writer, url_encoded

    def text(self, name: str, value: str) -> None:
        self._writer.leaf(name, encode_uri(value.encode(), slash=False) if self._url_encoded else value)

    def optional(self, name: str, value: str | None) -> None:
        if value:
            self.text(name, value)


def _begin(root: str, bucket: str, query: ListQuery, limit_name: str) -> tuple[Writer, _Names]:
    writer = Writer(root)
    names = _Names(writer, query.url_encoded)
    writer.leaf("Bucket" if limit_name == "MaxUploads" else "Name", bucket)
    names.text("Prefix", query.prefix)
    names.optional("Delimiter", query.delimiter)
    writer.leaf(limit_name, query.limit)
    if query.url_encoded:
        writer.leaf("EncodingType", "url")
    return writer, names


def _prefixes(writer: Writer, names: _Names, prefixes: Sequence[str]) -> None:
    for prefix in prefixes:
        with writer.inside("CommonPrefixes"):
            names.text("Prefix", prefix)


def write_owner(writer: Writer, owner: str, name: str = "Owner") -> None:
    """`<Owner>`: the account's id, which is its display name as well."""
    with writer.inside(name):
        writer.leaf("ID", owner)
        writer.leaf("DisplayName", owner)


def _write_object(writer: Writer, names: _Names, info: ObjectInfo, owner: str) -> None:
    with writer.inside("Contents"):
        names.text("Key", info.key)
        _write_facts(writer, info)
        if owner:
            write_owner(writer, owner)


def _write_facts(writer: Writer, info: ObjectInfo) -> None:
    writer.leaf("LastModified", iso_milliseconds(info.modified))
    writer.leaf("ETag", f'"{info.etag}"')
    for algorithm in info.checksums:
        writer.leaf("ChecksumAlgorithm", algorithm)
    writer.optional("ChecksumType", info.checksum_type if info.checksums else "")
    writer.leaf("Size", info.size)
    writer.leaf("StorageClass", info.storage_class)


def write_list_v1(bucket: str, query: ListQuery, page: Page, owner: str) -> bytes:
    """ListObjects. The next marker is written only where there is a delimiter, as AWS does: else it is the last key."""
    writer, names = _begin("ListBucketResult", bucket, query, "MaxKeys")
    names.text("Marker", query.marker)
    if query.delimiter:
        names.optional("NextMarker", page.next)
    writer.leaf("IsTruncated", page.next is not None)
    for info in page.entries:
        _write_object(writer, names, info, owner)
    _prefixes(writer, names, page.prefixes)
    return writer.done()


def write_list_v2(bucket: str, query: ListQuery, page: Page, owner: str) -> bytes:
    """ListObjectsV2; the owner is written where it was asked for."""
    writer, names = _begin("ListBucketResult", bucket, query, "MaxKeys")
    writer.leaf("KeyCount", len(page.entries) + len(page.prefixes))
    names.optional("StartAfter", query.start_after)
    writer.optional("ContinuationToken", query.token)
    writer.leaf("IsTruncated", page.next is not None)
    if page.next is not None:
        writer.leaf("NextContinuationToken", write_token(page.next))
    for info in page.entries:
        _write_object(writer, names, info, owner if query.fetch_owner else "")
    _prefixes(writer, names, page.prefixes)
    return writer.done()


def write_list_versions(bucket: str, query: ListQuery, page: VersionPage, owner: str) -> bytes:
    writer, names = _begin("ListVersionsResult", bucket, query, "MaxKeys")
    names.text("KeyMarker", query.marker)
    writer.leaf("VersionIdMarker", query.second_marker)
    writer.leaf("IsTruncated", page.next_key is not None)
    names.optional("NextKeyMarker", page.next_key)
    writer.optional("NextVersionIdMarker", page.next_version)
    for info in page.entries:
        with writer.inside("DeleteMarker" if info.is_delete_marker else "Version"):
            names.text("Key", info.key)
            writer.leaf("VersionId", info.version_id)
            writer.leaf("IsLatest", info.is_latest)
            if info.is_delete_marker:
                writer.leaf("LastModified", iso_milliseconds(info.modified))
            else:
                _write_facts(writer, info)
            write_owner(writer, owner)
    _prefixes(writer, names, page.prefixes)
    return writer.done()


def write_list_uploads(bucket: str, query: ListQuery, page: UploadPage, owner: str) -> bytes:
    writer, names = _begin("ListMultipartUploadsResult", bucket, query, "MaxUploads")
    names.text("KeyMarker", query.marker)
    writer.leaf("UploadIdMarker", query.second_marker)
    writer.leaf("IsTruncated", page.next_key is not None)
    names.optional("NextKeyMarker", page.next_key)
    writer.optional("NextUploadIdMarker", page.next_upload)
    for upload in page.entries:
        with writer.inside("Upload"):
            names.text("Key", upload.key)
            writer.leaf("Initiated", iso_milliseconds(upload.created))
            _write_upload(writer, upload, owner)
    _prefixes(writer, names, page.prefixes)
    return writer.done()


def _write_upload(writer: Writer, upload: UploadInfo, owner: str) -> None:
    writer.leaf("UploadId", upload.upload_id)
    write_owner(writer, owner, "Initiator")
    write_owner(writer, owner)
    writer.leaf("StorageClass", upload.storage_class)
    writer.optional("ChecksumAlgorithm", upload.checksum_algorithm)
    writer.optional("ChecksumType", upload.checksum_type if upload.checksum_algorithm else "")


def write_list_parts(bucket: str, query: PartsQuery, page: PartPage, owner: str) -> bytes:
    writer = Writer("ListPartsResult")
    writer.leaf("Bucket", bucket)
    writer.leaf("Key", page.upload.key)
    _write_upload(writer, page.upload, owner)
    writer.leaf("PartNumberMarker", query.after)
    writer.optional("NextPartNumberMarker", page.next)
    writer.leaf("MaxParts", query.limit)
    writer.leaf("IsTruncated", page.next is not None)
    for part in page.entries:
        with writer.inside("Part"):
            writer.leaf("PartNumber", part.number)
            writer.leaf("LastModified", iso_milliseconds(part.modified))
            writer.leaf("ETag", f'"{part.etag}"')
            writer.leaf("Size", part.size)
            for name, value in part.checksums.items():
                writer.leaf(f"Checksum{name}", value)
    return writer.done()
