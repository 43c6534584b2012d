"""What is set for one version of an object after it was stored: tags, retention, legal hold."""

from __future__ import annotations

from aiohttp import web

from freehold.client.bucket_types import ObjectInfo
from freehold.gateway.bodies import read_document
from freehold.gateway.call import Call
from freehold.gateway.handlers_objects import check_bypass, may_bypass
from freehold.gateway.wire.documents import (
    parse_legal_hold,
    parse_retention,
    parse_tagging,
    write_legal_hold,
    write_retention,
    write_tagging,
)
from freehold.gateway.wire.errors import S3Error

NO_LOCK = "Bucket is missing Object Lock Configuration"


def _version_headers(call: Call, info: ObjectInfo) -> dict[str, str]:
    return {"x-amz-version-id": info.version_id} if call.record.versioning else {}


async def _head(call: Call) -> ObjectInfo:
    return await call.objects.head(call.bucket, call.key, call.version)


async def _read_needed(call: Call) -> bytes:
    data = await read_document(call, 2**20)
    if not data:
        raise S3Error("MissingRequestBodyError")
    return data


async def get_tags(call: Call) -> web.StreamResponse:
    info = await _head(call)
    return call.xml(write_tagging(info.tags), headers=_version_headers(call, info))


async def put_tags(call: Call) -> web.StreamResponse:
    tags = parse_tagging(await _read_needed(call))
    info = await call.objects.set_tags(call.bucket, call.key, tags, call.version)
    return call.answer(200, _version_headers(call, info))


async def delete_tags(call: Call) -> web.StreamResponse:
    info = await call.objects.set_tags(call.bucket, call.key, {}, call.version)
    return call.answer(204, _version_headers(call, info))


async def get_retention(call: Call) -> web.StreamResponse:
    _check_lock(call)
    info = await _head(call)
    if not info.lock_mode:
        raise S3Error("NoSuchObjectLockConfiguration")
    return call.xml(write_retention(info.lock_mode, info.retain_until))


async def put_retention(call: Call) -> web.StreamResponse:
    _check_lock(call)
    mode, until = parse_retention(await _read_needed(call), int(call.gateway.clock() * 1000))
    bypass = may_bypass(call)
    await check_bypass(call, call.key)
    await call.objects.set_retention(call.bucket, call.key, mode, until, call.version, bypass_governance=bypass)
    return call.answer(200)


async def get_legal_hold(call: Call) -> web.StreamResponse:
    _check_lock(call)
    return call.xml(write_legal_hold((await _head(call)).legal_hold))


async def put_legal_hold(call: Call) -> web.StreamResponse:
    _check_lock(call)
    hold = parse_legal_hold(await _read_needed(call))
    await call.objects.set_legal_hold(call.bucket, call.key, hold, call.version)
    return call.answer(200)


def _check_lock(call: Call) -> None:
    if not call.record.object_lock:
        raise S3Error("InvalidRequest", NO_LOCK)


HANDLERS = {
    "GetObjectTagging": get_tags,
    "PutObjectTagging": put_tags,
    "DeleteObjectTagging": delete_tags,
    "GetObjectRetention": get_retention,
    "PutObjectRetention": put_retention,
    "GetObjectLegalHold": get_legal_hold,
    "PutObjectLegalHold": put_legal_hold,
}
