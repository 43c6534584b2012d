"""What is set up for a bucket as a whole: versioning, object lock, CORS, lifecycle, policy, tags, ownership.

A configuration is checked when it is put, kept in the bucket's record, and read from there by every request that it
concerns: the account's root is one head, so a change holds for all gateways within the age that a root may have.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from aiohttp import web

from freehold.client.root import ENABLED, BucketRecord
from freehold.gateway.bodies import read_document
from freehold.gateway.call import Call
from freehold.gateway.wire.cors import parse_cors
from freehold.gateway.wire.documents import (
    parse_object_lock,
    parse_ownership,
    parse_tagging,
    parse_versioning,
    write_object_lock,
    write_tagging,
    write_versioning,
)
from freehold.gateway.wire.errors import S3Error
from freehold.gateway.wire.lifecycle import parse_lifecycle, write_lifecycle
from freehold.gateway.wire.policy import parse_policy
from freehold.gateway.wire.xml_writer import Writer

BUCKET_TAGS = 50
OWNERSHIP = "BucketOwnerEnforced"
POLICY_LIMIT = 20_480  # bytes


async def _keep(call: Call, change: Callable[[BucketRecord], BucketRecord]) -> None:
    await call.objects.configure(call.bucket, change)


async def _keep_document(call: Call, name: str, data: bytes | None) -> None:
    def change(record: BucketRecord) -> BucketRecord:
        documents = {other: kept for other, kept in record.documents.items() if other != name}
        if data is not None:
            documents[name] = data
        return msgspec.structs.replace(record, documents=documents)

    await _keep(call, change)


async def _read_needed(call: Call, limit: int = 2**20) -> bytes:
    data = await read_document(call, limit)
    if not data:
        raise S3Error("MissingRequestBodyError")
    return data


# Versioning and object lock


async def get_versioning(call: Call) -> web.StreamResponse:
    return call.xml(write_versioning(call.record.versioning))


async def put_versioning(call: Call) -> web.StreamResponse:
    if "x-amz-mfa" in call.headers:
        raise S3Error("NotImplemented", "MFA delete is not offered by this gateway.", Header="x-amz-mfa")
    wanted = parse_versioning(await _read_needed(call))

    def change(record: BucketRecord) -> BucketRecord:
        if record.object_lock and wanted != ENABLED:
            raise S3Error(
                "InvalidBucketState",
                "An Object Lock configuration is present on this bucket, so the versioning state cannot be changed.",
            )
        return msgspec.structs.replace(record, versioning=wanted)

    await _keep(call, change)
    return call.answer(200)


async def get_object_lock(call: Call) -> web.StreamResponse:
    if not call.record.object_lock:
        raise S3Error("ObjectLockConfigurationNotFoundError", BucketName=call.bucket)
    return call.xml(write_object_lock(call.record.default_retention))


async def put_object_lock(call: Call) -> web.StreamResponse:
    wanted = parse_object_lock(await _read_needed(call))

    def change(record: BucketRecord) -> BucketRecord:
        if record.versioning != ENABLED:
            raise S3Error(
                "InvalidBucketState", "Versioning must be 'Enabled' on the bucket to apply a Object Lock configuration"
            )
        return msgspec.structs.replace(record, object_lock=True, default_retention=wanted)

    await _keep(call, change)
    return call.answer(200)


# CORS, lifecycle, policy, tags


async def get_cors(call: Call) -> web.StreamResponse:
    return call.xml(_document(call, "cors", "NoSuchCORSConfiguration"))


async def put_cors(call: Call) -> web.StreamResponse:
    data = await _read_needed(call)
    parse_cors(data)
    await _keep_document(call, "cors", data)
    return call.answer(200)


async def delete_cors(call: Call) -> web.StreamResponse:
    await _keep_document(call, "cors", None)
    return call.answer(204)


async def get_lifecycle(call: Call) -> web.StreamResponse:
    if not call.record.lifecycle:
        raise S3Error("NoSuchLifecycleConfiguration", BucketName=call.bucket)
    return call.xml(write_lifecycle(call.record.lifecycle))


async def put_lifecycle(call: Call) -> web.StreamResponse:
    rules = parse_lifecycle(await _read_needed(call))
    await _keep(call, lambda record: msgspec.structs.replace(record, lifecycle=tuple(rules)))
    return call.answer(200)


async def delete_lifecycle(call: Call) -> web.StreamResponse:
    await _keep(call, lambda record: msgspec.structs.replace(record, lifecycle=()))
    return call.answer(204)


async def get_policy(call: Call) -> web.StreamResponse:
    return call.answer(200, {"Content-Type": "application/json"}, _document(call, "policy", "NoSuchBucketPolicy"))


async def put_policy(call: Call) -> web.StreamResponse:
    data = await _read_needed(call)
    if len(data) > POLICY_LIMIT:
        raise S3Error("PolicyTooLarge")
    parse_policy(data, call.bucket)
    await _keep_document(call, "policy", data)
    return call.answer(204)


async def delete_policy(call: Call) -> web.StreamResponse:
    await _keep_document(call, "policy", None)
    return call.answer(204)


async def get_policy_status(call: Call) -> web.StreamResponse:
    policy = parse_policy(_document(call, "policy", "NoSuchBucketPolicy"), call.bucket)
    writer = Writer("PolicyStatus")
    writer.leaf("IsPublic", policy.is_public)
    return call.xml(writer.done())


async def get_tagging(call: Call) -> web.StreamResponse:
    return call.xml(write_tagging(parse_tagging(_document(call, "tagging", "NoSuchTagSet"), BUCKET_TAGS)))


async def put_tagging(call: Call) -> web.StreamResponse:
    data = await _read_needed(call)
    parse_tagging(data, BUCKET_TAGS)
    await _keep_document(call, "tagging", data)
    return call.answer(204)


async def delete_tagging(call: Call) -> web.StreamResponse:
    await _keep_document(call, "tagging", None)
    return call.answer(204)


def _document(call: Call, name: str, missing: str) -> bytes:
    data = call.record.documents.get(name)
    if data is None:
        raise S3Error(missing, BucketName=call.bucket)
    return data


# Ownership: what there are no ACLs for


async def get_ownership(call: Call) -> web.StreamResponse:
    writer = Writer("OwnershipControls")
    with writer.inside("Rule"):
        writer.leaf("ObjectOwnership", OWNERSHIP)
    return call.xml(writer.done())


async def put_ownership(call: Call) -> web.StreamResponse:
    if parse_ownership(await _read_needed(call)) != OWNERSHIP:
        raise S3Error("NotImplemented", "Buckets are BucketOwnerEnforced here: there are no ACLs.")
    return call.answer(200)


HANDLERS = {
    "GetBucketVersioning": get_versioning,
    "PutBucketVersioning": put_versioning,
    "GetObjectLockConfiguration": get_object_lock,
    "PutObjectLockConfiguration": put_object_lock,
    "GetBucketCors": get_cors,
    "PutBucketCors": put_cors,
    "DeleteBucketCors": delete_cors,
    "GetBucketLifecycleConfiguration": get_lifecycle,
    "PutBucketLifecycleConfiguration": put_lifecycle,
    "DeleteBucketLifecycle": delete_lifecycle,
    "GetBucketPolicy": get_policy,
    "PutBucketPolicy": put_policy,
    "DeleteBucketPolicy": delete_policy,
    "GetBucketPolicyStatus": get_policy_status,
    "GetBucketTagging": get_tagging,
    "PutBucketTagging": put_tagging,
    "DeleteBucketTagging": delete_tagging,
    "GetBucketOwnershipControls": get_ownership,
    "PutBucketOwnershipControls": put_ownership,
}
