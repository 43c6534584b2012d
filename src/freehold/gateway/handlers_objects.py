"""Objects: get, head, put, delete, attributes.

What is small is read or stored as a whole and answered in one write; what is large goes through in flat memory. An
answer whose bytes turn out to be unreadable once it has begun is cut off: its length is then not what was said, so that
nobody takes it for whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

from aiohttp import web

from freehold.client.bucket_types import Deleted, DeleteWhat, ObjectInfo
from freehold.gateway.access import Ask, check
from freehold.gateway.bodies import GRACE_SECONDS, LEAST_RATE, SMALL, open_body, read_document
from freehold.gateway.call import Call
from freehold.gateway.conditions import Span, check_read, holds_range, parse_range, unquote_tag
from freehold.gateway.descriptions import (
    checksum_headers,
    describe,
    http_date,
    parse_options,
    stored_headers,
)
from freehold.gateway.faults import to_s3
from freehold.gateway.wire.documents import parse_delete
from freehold.gateway.wire.errors import S3Error
from freehold.gateway.wire.headers import response_overrides
from freehold.gateway.wire.xml_writer import Writer
from freehold.protocol.errors import FreeholdError
from freehold.services.storage.client_sources import BytesSource

WHOLE = 256 * 2**10  # bytes of an answer that is put together before it is sent
DELETE_LIMIT = 1000  # keys of one DeleteObjects
MAX_PARTS = 10_000
BYPASS = "x-amz-bypass-governance-retention"


async def get_object(call: Call) -> web.StreamResponse:
    """The object, a range or a part of it."""
    reading = await call.objects.open(call.bucket, call.key, call.version)
    info = reading.info
    headers, status, span = _prepare(call, info)
    if not span.length:
        return call.answer(status, headers)
    is_whole = span.length == info.size
    read = reading.read(span.start, None if is_whole else span.length)
    async with call.gateway.turns.take(span.length), aclosing(read) as views:
        first = await anext(views)
        if reading.info is not info:  # replaced meanwhile: these are the bytes of what stands there now
            headers, status, now = _prepare(call, reading.info)
            if now != span and not (is_whole and now == Span(0, reading.size)):
                raise S3Error("ServiceUnavailable", "The object was replaced. Please try again.")
            span = now
        if len(first) == span.length <= WHOLE:
            return call.answer(status, headers, first)
        if span.length <= WHOLE:
            return call.answer(status, headers, b"".join([bytes(first), *[bytes(view) async for view in views]]))
        return await _send(call, status, headers, first, views, span.length)


async def head_object(call: Call) -> web.StreamResponse:
    """What GET would say, without the bytes."""
    info = await call.objects.head(call.bucket, call.key, call.version)
    headers, status, span = _prepare(call, info)
    return call.answer(status, {**headers, "Content-Length": str(span.length)})


def _prepare(call: Call, info: ObjectInfo) -> tuple[dict[str, str], int, Span]:
    """Headers, status and bytes of the answer. S3Error 304, 412, 416."""
    headers = describe(info, call.record)
    if call.query:
        overrides = response_overrides(call.query)
        if overrides and call.caller is None:
            raise S3Error(
                "InvalidRequest", "Request specific response headers cannot be used for anonymous GET requests."
            )
        headers |= overrides
    try:
        check_read(call.headers, info.etag, info.modified)
    except S3Error as error:
        if error.status == 304:
            kept = ("ETag", "Last-Modified", "x-amz-version-id", "Cache-Control", "Expires")
            error.headers |= {name: headers[name] for name in kept if name in headers}
        raise
    part, range_ = call.query.get("partNumber"), call.headers.get("range")
    if part is not None:
        if range_ is not None:
            raise S3Error("InvalidRequest", "Cannot specify both Range header and partNumber query parameter")
        return _prepare_part(call, info, headers, part)
    span = None
    if range_ is not None and holds_range(call.headers.get("if-range"), info.etag, info.modified):
        span = parse_range(range_, info.size)
    if span is None:
        if call.headers.get("x-amz-checksum-mode", "").upper() == "ENABLED":
            headers |= checksum_headers(info.checksums, info.checksum_type)
        return headers, 200, Span(0, info.size)
    headers["Content-Range"] = f"bytes {span.start}-{span.start + span.length - 1}/{info.size}"
    return headers, 206, span


def _prepare_part(call: Call, info: ObjectInfo, headers: dict[str, str], text: str) -> tuple[dict[str, str], int, Span]:
    number = parse_part_number(text)
    sizes = [part.size for part in info.parts] or [info.size]
    if number > len(sizes):
        raise S3Error("InvalidPartNumber", ActualPartCount=len(sizes), PartNumberRequested=number)
    start, length = sum(sizes[: number - 1]), sizes[number - 1]
    if info.parts:
        headers["x-amz-mp-parts-count"] = str(len(sizes))
    if call.headers.get("x-amz-checksum-mode", "").upper() == "ENABLED":
        sums = info.parts[number - 1].checksums if info.parts else info.checksums
        headers |= checksum_headers(sums, info.checksum_type)
    if length == 0:
        return headers, 200, Span(0, 0)
    headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{info.size}"
    return headers, 206, Span(start, length)


def parse_part_number(text: str) -> int:
    """A part number. S3Error InvalidArgument unless it is 1 to 10,000."""
    if text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= MAX_PARTS:
        return int(text)
    raise S3Error(
        "InvalidArgument", "Part number must be an integer between 1 and 10000, inclusive",
        ArgumentName="partNumber", ArgumentValue=text,
    )  # fmt: skip


async def _send(
    call: Call,
    status: int,
    headers: Mapping[str, str],
    first: memoryview,
    views: AsyncGenerator[memoryview, None],
    length: int,
) -> web.StreamResponse:
    """Send the views as they come, of which the first is there: what failed before it was still an error of its own."""
    response = web.StreamResponse(status=status, headers={**call.common, **headers})
    response.content_length = length
    await response.prepare(call.request)
    call.has_begun = True
    view: memoryview | None = first
    while view is not None:
        try:
            async with asyncio.timeout(GRACE_SECONDS + len(view) / LEAST_RATE):
                for start in range(0, len(view), WHOLE):
                    await response.write(bytes(view[start : start + WHOLE]))  # what waits to be sent outlives the view
        except TimeoutError:
            raise ConnectionError("the client does not read") from None
        view = await anext(views, None)
    await response.write_eof()
    return response


async def put_object(call: Call) -> web.StreamResponse:
    """Store an object."""
    if "uploadId" in call.query or "partNumber" in call.query:
        raise S3Error("InvalidArgument", "This operation needs both partNumber and uploadId.")
    options = parse_options(call.headers, call.record, call.gateway.clock())
    body = open_body(call)
    if body.size <= SMALL:
        data = await body.read_all()
        info = await call.objects.put(call.bucket, call.key, BytesSource(data), options, body.digests)
    else:
        async with call.gateway.turns.take(body.size):
            info = await call.objects.put(call.bucket, call.key, body, options, body.digests)
    return call.answer(200, stored_headers(info, call.record))


async def delete_object(call: Call) -> web.StreamResponse:
    """Remove an object or a version, or hide it behind a delete marker."""
    what = DeleteWhat(call.key, call.version, _tag(call.headers.get("if-match")))
    bypass = may_bypass(call)
    await check_bypass(call, call.key)
    (outcome,) = await call.objects.delete(call.bucket, [what], bypass_governance=bypass)
    if isinstance(outcome, FreeholdError):
        raise outcome
    return call.answer(204, _deleted_headers(outcome))


def _deleted_headers(outcome: Deleted) -> dict[str, str]:
    headers = {}
    if outcome.is_delete_marker:
        headers["x-amz-delete-marker"] = "true"
    version = outcome.marker_id or outcome.version_id
    if version is not None:
        headers["x-amz-version-id"] = version
    return headers


def _tag(header: str | None) -> str | None:
    return None if header is None else unquote_tag(header)


def may_bypass(call: Call) -> bool:
    """Whether the request asks to pass over a governance retention, and its caller may: the account's own keys."""
    if call.headers.get(BYPASS, "").lower() != "true":
        return False
    caller = call.caller
    if caller is None or caller.tenant is not call.tenant or caller.key.grant:
        raise S3Error("AccessDenied")
    return True


async def check_bypass(call: Call, key: str) -> None:
    """S3Error AccessDenied where a policy denies what `may_bypass` allows."""
    if BYPASS in call.headers:
        await check(call, call.bucket, call.record, Ask("s3:BypassGovernanceRetention", "", key))


async def delete_objects(call: Call) -> web.StreamResponse:
    """Up to a thousand keys in one commit; each has its own outcome."""
    wanted = parse_delete(await read_document(call))
    if len(wanted.items) > DELETE_LIMIT:
        raise S3Error("MalformedXML")
    items = wanted.items
    outcomes: list[Deleted | Exception | None] = [None] * len(items)
    allowed = []
    for index, item in enumerate(items):
        action = "s3:DeleteObject" if item.version_id is None else "s3:DeleteObjectVersion"
        try:
            await check(call, call.bucket, call.record, Ask(action, "delete", item.key, version=item.version_id))
            await check_bypass(call, item.key)
        except (S3Error, FreeholdError) as error:
            outcomes[index] = error
        else:
            allowed.append(index)
    found = await call.objects.delete(
        call.bucket, [items[index] for index in allowed], bypass_governance=may_bypass(call)
    )
    for index, outcome in zip(allowed, found, strict=True):
        outcomes[index] = outcome
    return call.xml(_write_deleted(items, outcomes, quiet=wanted.quiet))


def _write_deleted(items: Sequence[DeleteWhat], outcomes: list[Deleted | Exception | None], *, quiet: bool) -> bytes:
    writer = Writer("DeleteResult")
    for item, outcome in zip(items, outcomes, strict=True):
        if isinstance(outcome, Exception):
            error = to_s3(outcome) if isinstance(outcome, FreeholdError) else outcome
            assert isinstance(error, S3Error)
            with writer.inside("Error"):
                writer.leaf("Key", item.key)
                writer.optional("VersionId", item.version_id)
                writer.leaf("Code", error.code)
                writer.leaf("Message", error.message)
        elif outcome is not None and not quiet:
            with writer.inside("Deleted"):
                writer.leaf("Key", item.key)
                writer.optional("VersionId", item.version_id)
                if outcome.is_delete_marker:
                    writer.leaf("DeleteMarker", True)
                    writer.optional("DeleteMarkerVersionId", outcome.marker_id or outcome.version_id)
    return writer.done()


async def get_object_attributes(call: Call) -> web.StreamResponse:
    """Those attributes of an object that the request names."""
    asked = {item.strip() for item in call.headers.get("x-amz-object-attributes", "").split(",") if item.strip()}
    known = {"ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"}
    if not asked or asked - known:
        raise S3Error(
            "InvalidArgument", "Invalid attribute name specified.",
            ArgumentName="x-amz-object-attributes", ArgumentValue=",".join(sorted(asked - known)),
        )  # fmt: skip
    info = await call.objects.head(call.bucket, call.key, call.version)
    check_read(call.headers, info.etag, info.modified)
    writer = Writer("GetObjectAttributesResponse")
    if "ETag" in asked:
        writer.leaf("ETag", info.etag)
    if "Checksum" in asked and info.checksums:
        with writer.inside("Checksum"):
            _write_checksums(writer, info.checksums)
            writer.optional("ChecksumType", info.checksum_type)
    if "ObjectParts" in asked and info.parts:
        _write_parts(call, writer, info)
    if "StorageClass" in asked:
        writer.leaf("StorageClass", info.storage_class)
    if "ObjectSize" in asked:
        writer.leaf("ObjectSize", info.size)
    headers = {"Last-Modified": http_date(info.modified // 1000)}
    if call.record.versioning:
        headers["x-amz-version-id"] = info.version_id
    return call.xml(writer.done(), headers=headers)


def _write_checksums(writer: Writer, checksums: Mapping[str, str]) -> None:
    for name, value in checksums.items():
        writer.leaf(f"Checksum{name}", value)


def _write_parts(call: Call, writer: Writer, info: ObjectInfo) -> None:
    most = _whole_number(call.headers.get("x-amz-max-parts"), 1000)
    after = _whole_number(call.headers.get("x-amz-part-number-marker"), 0)
    rest = [part for part in info.parts if part.number > after]
    shown = rest[: min(most, 1000)]
    with writer.inside("ObjectParts"):
        writer.leaf("PartsCount", len(info.parts))
        writer.leaf("PartNumberMarker", after)
        writer.leaf("NextPartNumberMarker", shown[-1].number if shown else 0)
        writer.leaf("MaxParts", most)
        writer.leaf("IsTruncated", len(rest) > len(shown))
        for part in shown:
            if part.checksums:  # as AWS: parts are listed where they have checksums
                with writer.inside("Part"):
                    writer.leaf("PartNumber", part.number)
                    writer.leaf("Size", part.size)
                    _write_checksums(writer, part.checksums)


def _whole_number(text: str | None, default: int) -> int:
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise S3Error("InvalidArgument", "This header takes a whole number.", ArgumentValue=text)
    return int(text)


HANDLERS = {
    "GetObject": get_object,
    "HeadObject": head_object,
    "PutObject": put_object,
    "DeleteObject": delete_object,
    "DeleteObjects": delete_objects,
    "GetObjectAttributes": get_object_attributes,
}
