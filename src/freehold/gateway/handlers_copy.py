"""Copies: of whole objects, and of ranges as parts of an upload. The bytes go through the gateway, in flat memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from aiohttp import web

from freehold.client.bucket_types import Digests, ObjectInfo, PutOptions
from freehold.client.root import BucketRecord
from freehold.gateway.access import Ask, check
from freehold.gateway.bodies import OBJECT_LIMIT, Hashed, Hashing, digests_of
from freehold.gateway.call import Call
from freehold.gateway.conditions import Span, check_copy, parse_copy_range
from freehold.gateway.descriptions import ENCRYPTION, parse_options, quote_tag
from freehold.gateway.handlers_objects import parse_part_number
from freehold.gateway.slow import answer_slowly
from freehold.gateway.wire.checksums import BodyDigests, parse_algorithm
from freehold.gateway.wire.documents import iso_milliseconds
from freehold.gateway.wire.errors import S3Error
from freehold.gateway.wire.headers import parse_copy_source
from freehold.gateway.wire.xml_writer import Writer
from freehold.services.storage.client_sources import IterSource, Source

TOO_LARGE = f"The specified copy source is larger than the maximum allowable size for a copy source: {OBJECT_LIMIT}"
ALGORITHM = "x-amz-checksum-algorithm"


class Origin(NamedTuple):
    """What is copied, which may be read."""

    record: BucketRecord
    bucket: str
    key: str
    version: str | None


async def _find_origin(call: Call) -> Origin:
    """The source that the request names. S3Error NoSuchBucket, AccessDenied."""
    named = parse_copy_source(call.headers["x-amz-copy-source"])
    record = await call.tenant.bucket(named.bucket)
    if record is None:
        raise S3Error("NoSuchBucket", BucketName=named.bucket)
    if call.headers.get("x-amz-source-expected-bucket-owner", call.tenant.owner) != call.tenant.owner:
        raise S3Error("AccessDenied", "The source is not owned by the account that the request expects.")
    action = "s3:GetObject" if named.version_id is None else "s3:GetObjectVersion"
    await check(call, named.bucket, record, Ask(action, "read", named.key, version=named.version_id))
    return Origin(record, named.bucket, named.key, named.version_id)


class _Digesting:
    """Takes the digests of what is copied, on its way."""

    def __init__(self, call: Call, algorithm: str) -> None:
        self._digests = BodyDigests({}, default=algorithm)
        self._hashing = Hashing(call.gateway.pool, self._digests)

    def wrap(self, source: Source) -> Source:
        return Hashed(source, self._hashing)

    def digests(self) -> Digests:
        return digests_of(self._digests)


async def copy_object(call: Call) -> web.StreamResponse:
    """Store a copy of an object, with its metadata or new ones."""
    options = parse_options(call.headers, call.record, call.gateway.clock())
    replaces = _directive(call, "x-amz-metadata-directive")
    replaces_tags = _directive(call, "x-amz-tagging-directive")
    origin = await _find_origin(call)
    is_itself = (origin.bucket, origin.key, origin.version) == (call.bucket, call.key, None)
    changes = replaces or replaces_tags or bool({"x-amz-storage-class", ALGORITHM} & call.headers.keys())
    if is_itself and not changes:
        raise S3Error(
            "InvalidRequest",
            "This copy request is illegal because it is trying to copy an object to itself without changing the "
            "object's metadata, storage class, website redirect location or encryption attributes.",
        )
    return await answer_slowly(call, _copy(call, origin, options, replaces, replaces_tags))


def _directive(call: Call, name: str) -> bool:
    """Whether a directive says REPLACE rather than COPY."""
    found = call.headers.get(name, "COPY")
    if found not in ("COPY", "REPLACE"):
        raise S3Error("InvalidArgument", f"Unknown {name}.", ArgumentName=name, ArgumentValue=found)
    return found == "REPLACE"


async def _copy(call: Call, origin: Origin, options: PutOptions, replaces: bool, replaces_tags: bool) -> web.Response:
    found: list[ObjectInfo] = []
    algorithm = parse_algorithm(call.headers[ALGORITHM]) if ALGORITHM in call.headers else ""

    def check_origin(info: ObjectInfo) -> None:
        check_copy(call.headers, info.etag, info.modified)
        if info.size > OBJECT_LIMIT:
            raise S3Error("InvalidRequest", TOO_LARGE)
        found[:] = [info]

    def digest(source: Source) -> tuple[Source, Callable[[], Digests]]:
        digesting = _Digesting(call, algorithm or next(iter(found[0].checksums), ""))
        return digesting.wrap(source), digesting.digests

    async with call.gateway.turns.take(None):
        made = await call.objects.copy(
            origin.bucket, origin.key, call.bucket, call.key, version_id=origin.version,
            options=options if replaces else None, tags=options.tags if replaces_tags else None,
            check=check_origin, digests_of=digest,
        )  # fmt: skip
    writer = Writer("CopyObjectResult")
    writer.leaf("LastModified", iso_milliseconds(made.modified))
    writer.leaf("ETag", quote_tag(made.etag))
    writer.optional("ChecksumType", made.checksum_type)
    for name, value in made.checksums.items():
        writer.leaf(f"Checksum{name}", value)
    headers = _origin_headers(origin, found)
    if call.record.versioning:
        headers["x-amz-version-id"] = made.version_id
    return call.xml(writer.done(), headers=headers)


async def upload_part_copy(call: Call) -> web.StreamResponse:
    """Store a range of an object as a part of an upload."""
    number = parse_part_number(call.query["partNumber"])
    origin = await _find_origin(call)
    return await answer_slowly(call, _copy_part(call, origin, number))


async def _copy_part(call: Call, origin: Origin, number: int) -> web.Response:
    upload = await call.objects.upload(call.bucket, call.key, call.query["uploadId"])
    reading = await call.objects.open(origin.bucket, origin.key, origin.version)
    info = reading.info
    check_copy(call.headers, info.etag, info.modified)
    span = parse_copy_range(call.headers.get("x-amz-copy-source-range"), info.size) or Span(0, info.size)
    if span.length > OBJECT_LIMIT:
        raise S3Error("InvalidRequest", TOO_LARGE)
    digesting = _Digesting(call, upload.checksum_algorithm)
    source = digesting.wrap(IterSource(reading.read(span.start, span.length), span.length))
    async with call.gateway.turns.take(span.length):
        part = await call.objects.put_part(call.bucket, call.key, upload.upload_id, number, source, digesting.digests)
    writer = Writer("CopyPartResult")
    writer.leaf("LastModified", iso_milliseconds(part.modified))
    writer.leaf("ETag", quote_tag(part.etag))
    for name, value in part.checksums.items():
        writer.leaf(f"Checksum{name}", value)
    return call.xml(writer.done(), headers=_origin_headers(origin, [info]))


def _origin_headers(origin: Origin, found: Sequence[ObjectInfo]) -> dict[str, str]:
    headers = {ENCRYPTION: "AES256"}
    if origin.record.versioning and found:
        headers["x-amz-copy-source-version-id"] = found[0].version_id
    return headers


HANDLERS = {"CopyObject": copy_object, "UploadPartCopy": upload_part_copy}
