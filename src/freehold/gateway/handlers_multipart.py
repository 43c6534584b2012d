"""Multipart uploads: begin, parts in any order and again, complete, abort, list."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from freehold.client.bucket_types import CompletedPart
from freehold.gateway.bodies import SMALL, open_body, read_document
from freehold.gateway.call import Call
from freehold.gateway.descriptions import (
    ENCRYPTION,
    checksum_headers,
    parse_condition,
    parse_options,
    quote_tag,
    stored_headers,
)
from freehold.gateway.handlers_objects import parse_part_number
from freehold.gateway.slow import answer_slowly
from freehold.gateway.wire.checksums import HEADERS, parse_checksum_type
from freehold.gateway.wire.documents import parse_complete
from freehold.gateway.wire.errors import S3Error
from freehold.gateway.wire.request import encode_uri
from freehold.gateway.wire.xml_writer import Writer
from freehold.services.storage.client_sources import BytesSource


async def create_upload(call: Call) -> web.StreamResponse:
    """Begin an upload; what it will be is said now."""
    options = parse_options(call.headers, call.record, call.gateway.clock(), conditions=False)
    algorithm, kind = parse_checksum_type(call.headers)
    upload = await call.objects.create_upload(call.bucket, call.key, options, algorithm, kind)
    writer = Writer("InitiateMultipartUploadResult")
    writer.leaf("Bucket", call.bucket)
    writer.leaf("Key", call.key)
    writer.leaf("UploadId", upload)
    headers = {ENCRYPTION: "AES256"}
    if algorithm:
        headers["x-amz-checksum-algorithm"] = algorithm
    if kind:
        headers["x-amz-checksum-type"] = kind
    return call.xml(writer.done(), headers=headers)


async def upload_part(call: Call) -> web.StreamResponse:
    """Store a part, in place of an earlier one of its number."""
    number = parse_part_number(call.query["partNumber"])
    upload = call.query["uploadId"]
    body = open_body(call)
    if body.size > SMALL:
        await call.objects.upload(call.bucket, call.key, upload)  # before the body is sent: NoSuchUpload
        async with call.gateway.turns.take(body.size):
            part = await call.objects.put_part(call.bucket, call.key, upload, number, body, body.digests)
    else:
        source = BytesSource(await body.read_all())
        part = await call.objects.put_part(call.bucket, call.key, upload, number, source, body.digests)
    headers = {"ETag": quote_tag(part.etag), ENCRYPTION: "AES256", **checksum_headers(part.checksums)}
    return call.answer(200, headers)


async def complete_upload(call: Call) -> web.StreamResponse:
    """Make the named parts one object."""
    parts = parse_complete(await read_document(call))
    if_match = parse_condition(call.headers.get("if-match"))
    if_none_match = parse_condition(call.headers.get("if-none-match"), only_any=True)
    checksums = {name: call.headers[header] for header, name in HEADERS.items() if header in call.headers}
    size = _size(call.headers.get("x-amz-mp-object-size"))
    return await answer_slowly(call, _complete(call, parts, if_match, if_none_match, checksums, size))


def _size(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise S3Error("InvalidRequest", "Value for x-amz-mp-object-size header is invalid.")
    return int(text)


async def _complete(
    call: Call,
    parts: Sequence[CompletedPart],
    if_match: str | None,
    if_none_match: str | None,
    checksums: dict[str, str],
    size: int | None,
) -> web.Response:
    info = await call.objects.complete_upload(
        call.bucket, call.key, call.query["uploadId"], parts,
        if_match=if_match, if_none_match=if_none_match, checksums=checksums, size=size,
    )  # fmt: skip
    writer = Writer("CompleteMultipartUploadResult")
    writer.leaf("Location", f"{call.request.scheme}://{call.headers.get('host', '')}{_address(call)}")
    writer.leaf("Bucket", call.bucket)
    writer.leaf("Key", call.key)
    writer.leaf("ETag", quote_tag(info.etag))
    for name, value in info.checksums.items():
        writer.leaf(f"Checksum{name}", value)
    writer.optional("ChecksumType", info.checksum_type)
    headers = stored_headers(info, call.record)
    return call.xml(writer.done(), headers={name: value for name, value in headers.items() if name != "ETag"})


def _address(call: Call) -> str:
    return f"/{call.bucket}/{encode_uri(call.key.encode(), slash=False)}"


async def abort_upload(call: Call) -> web.StreamResponse:
    """Drop an upload with all its parts."""
    await call.objects.abort_upload(call.bucket, call.key, call.query["uploadId"])
    return call.answer(204)


HANDLERS = {
    "CreateMultipartUpload": create_upload,
    "UploadPart": upload_part,
    "CompleteMultipartUpload": complete_upload,
    "AbortMultipartUpload": abort_upload,
}
