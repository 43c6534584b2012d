"""Browser forms: POST to a bucket with `multipart/form-data`, whose policy says what may be uploaded.

The form names its caller; so who asks, and what they may, is found out here once its fields are read, and before its
file is. Invariant: a file that is not what its policy allows is not recorded, however much of it has arrived.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from typing import NamedTuple

import aiohttp
from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from freehold.client.bucket_types import PutOptions
from freehold.gateway.access import Ask, check, check_besides, locate
from freehold.gateway.bodies import GRACE_SECONDS, LEAST_RATE, OBJECT_LIMIT, Hashing, digests_of, send_continue
from freehold.gateway.call import Call
from freehold.gateway.cross_origin import get_cors_headers
from freehold.gateway.descriptions import KEPT, parse_options
from freehold.gateway.wire import sigv2
from freehold.gateway.wire.checksums import BodyDigests
from freehold.gateway.wire.documents import parse_tagging
from freehold.gateway.wire.errors import S3Error
from freehold.gateway.wire.headers import check_field
from freehold.gateway.wire.names import check_key
from freehold.gateway.wire.post_form import (
    LARGEST_FIELDS,
    FormPolicy,
    check_form,
    check_length,
    check_size,
    get_key,
    parse_form,
    parse_form_policy,
    verify_form,
    write_form_answer,
)
from freehold.gateway.wire.request import encode_uri
from freehold.services.storage.client_sources import IterSource

PIECE = 256 * 2**10
MOST_FIELDS = 200
MALFORMED = (ValueError, AssertionError, RuntimeError, HttpProcessingError)  # what aiohttp makes of a form that is none
ENCLOSURE = "Bucket POST must be of the enclosure-type multipart/form-data"


class Form(NamedTuple):
    """The fields before the file, by lower-case names, and the file."""

    fields: dict[str, str]
    file: BodyPartReader


async def post_object(call: Call) -> web.StreamResponse:
    """Store a form's file."""
    form = await _read_fields(call)
    fields = form.fields
    call.key = get_key(fields, form.file.filename or "")
    check_key(call.key)
    policy = await _find_caller(call, fields)
    await locate(call)
    if "origin" in call.headers:
        call.common |= get_cors_headers(call)
    if policy is not None:
        check_form(policy, fields, call.bucket, call.key, int(call.gateway.clock() * 1000))
    headers = call.form = _as_headers(fields)
    await check(call, call.bucket, call.record, Ask("s3:PutObject", "write", call.key))
    await check_besides(call, headers)
    digests = BodyDigests(headers)
    source = IterSource(_read_file(call, form.file, policy, digests))
    options = await _options(call, headers, fields)
    async with call.gateway.turns.take(call.request.content_length):
        info = await call.objects.put(call.bucket, call.key, source, options, lambda: digests_of(digests))
    path = f"/{call.bucket}/{encode_uri(call.key.encode(), slash=False)}"
    location = f"{call.request.scheme}://{call.headers.get('host', '')}{path}"
    answer = write_form_answer(fields, location, call.bucket, call.key, info.etag)
    if call.record.versioning:
        answer.headers["x-amz-version-id"] = info.version_id
    return call.answer(answer.status, answer.headers, answer.body)


async def _read_fields(call: Call) -> Form:
    if not call.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise S3Error("PreconditionFailed", ENCLOSURE, Condition=ENCLOSURE)
    if "expect" in call.headers:
        await send_continue(call.request)
    fields: dict[str, str] = {}
    try:
        async with asyncio.timeout(GRACE_SECONDS):
            reader = await call.request.multipart()
            while isinstance(part := await reader.next(), BodyPartReader) and len(fields) < MOST_FIELDS:
                name = (part.name or "").lower()
                if name == "file":
                    return Form(fields, part)
                data = await part.read_chunk(LARGEST_FIELDS + 1)
                while len(data) <= LARGEST_FIELDS and (more := await part.read_chunk(LARGEST_FIELDS + 1)):
                    data += more
                fields[name] = data.decode("utf-8")
                check_size(fields)
    except TimeoutError:
        raise S3Error("RequestTimeout") from None
    except (*MALFORMED, aiohttp.ClientError, web.RequestPayloadError):
        raise S3Error("MalformedPOSTRequest") from None
    message = "POST requires exactly one file upload per request."
    raise S3Error("InvalidArgument", message, ArgumentName="file", ArgumentValue="0")


async def _find_caller(call: Call, fields: Mapping[str, str]) -> FormPolicy | None:
    """Who signed the form's policy; None for a form of nobody's, which only the bucket's policy can allow."""
    if "x-amz-security-token" in fields:
        raise S3Error("InvalidToken")
    if fields.keys() >= {"awsaccesskeyid", "signature", "policy"}:
        call.caller = await call.gateway.tenants.find(fields["awsaccesskeyid"])
        sigv2.verify_form(fields, call.caller.key.secret)
        return parse_form_policy(fields["policy"])
    authorization = parse_form(fields)
    if authorization is None:
        call.caller = None
        return None
    call.caller = await call.gateway.tenants.find(authorization.access_key)
    verify_form(authorization, fields, call.caller.key.secret, call.gateway.region)
    return parse_form_policy(fields["policy"])


def _as_headers(fields: Mapping[str, str]) -> dict[str, str]:
    """What of the fields would be headers of a PUT."""
    headers = {name: value for name, value in fields.items() if name in KEPT or name.startswith("x-amz-")}
    if "acl" in fields:
        headers["x-amz-acl"] = fields["acl"]
    for name, value in headers.items():
        check_field(name, value)
    return {name: value for name, value in headers.items() if value}


async def _options(call: Call, headers: Mapping[str, str], fields: Mapping[str, str]) -> PutOptions:
    options = parse_options(headers, call.record, call.gateway.clock())
    if not fields.get("tagging"):
        return options
    await check(call, call.bucket, call.record, Ask("s3:PutObjectTagging", "write", call.key))
    return replace(options, tags=parse_tagging(fields["tagging"].encode()))


async def _read_file(
    call: Call, file: BodyPartReader, policy: FormPolicy | None, digests: BodyDigests
) -> AsyncGenerator[bytes, None]:
    hashing, size, waited = Hashing(call.gateway.pool, digests), 0, 0.0
    loop = asyncio.get_running_loop()
    while True:
        began = loop.time()
        try:
            async with asyncio.timeout(max(0.0, GRACE_SECONDS + size / LEAST_RATE - waited)):
                data = bytes(await file.read_chunk(PIECE))
        except TimeoutError:
            raise S3Error("RequestTimeout") from None
        except MALFORMED:
            raise S3Error("MalformedPOSTRequest") from None
        except (aiohttp.ClientError, web.RequestPayloadError):
            raise S3Error("IncompleteBody") from None
        if not data:
            break
        waited += loop.time() - began
        size += len(data)
        if size > OBJECT_LIMIT:
            raise S3Error("EntityTooLarge", ProposedSize=size, MaxSizeAllowed=OBJECT_LIMIT)
        if policy is not None:
            check_length(policy, size, ended=False)
        await hashing.add(data)
        yield data
    if policy is not None:
        check_length(policy, size, ended=True)
    await hashing.done()
    digests.finish()


HANDLERS = {"PostObject": post_object}
