"""Buckets as such: list, create, delete, head, where they are; and what is the same of every bucket here.

A bucket's names are its account's own: two accounts of one gateway may each have a bucket of the same name.
"""

from __future__ import annotations

from aiohttp import web

from freehold.gateway.bodies import read_document
from freehold.gateway.call import Call
from freehold.gateway.descriptions import check_not_offered
from freehold.gateway.wire.documents import iso_milliseconds, parse_acl, parse_create_bucket
from freehold.gateway.wire.errors import S3Error
from freehold.gateway.wire.listing import write_owner
from freehold.gateway.wire.names import check_bucket_name
from freehold.gateway.wire.xml_writer import DECLARATION, NAMESPACE, Writer

LIST_LIMIT = 10_000
XSI = 'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:type="CanonicalUser"'
DEFAULT_REGION = "us-east-1"  # whose name S3 leaves out


async def list_buckets(call: Call) -> web.StreamResponse:
    """The caller's buckets, in order of their names."""
    prefix = call.query.get("prefix", "")
    after = call.query.get("continuation-token", "")
    limit = _limit(call.query.get("max-buckets"))
    found = sorted(await call.objects.buckets())
    rest = [bucket for bucket in found if bucket.name.startswith(prefix) and bucket.name > after]
    shown = rest[:limit]
    writer = Writer("ListAllMyBucketsResult")
    write_owner(writer, call.tenant.owner)
    with writer.inside("Buckets"):
        for bucket in shown:
            with writer.inside("Bucket"):
                writer.leaf("Name", bucket.name)
                writer.leaf("CreationDate", iso_milliseconds(bucket.created))
                if "max-buckets" in call.query or "prefix" in call.query:
                    writer.leaf("BucketRegion", call.gateway.region)
    if len(rest) > len(shown):
        writer.leaf("ContinuationToken", shown[-1].name)
    writer.optional("Prefix", prefix)
    return call.xml(writer.done())


def _limit(text: str | None) -> int:
    if text is None:
        return LIST_LIMIT
    if text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= LIST_LIMIT:
        return int(text)
    raise S3Error("InvalidArgument", "max-buckets must be between 1 and 10000", ArgumentName="max-buckets",
                  ArgumentValue=text)  # fmt: skip


async def create_bucket(call: Call) -> web.StreamResponse:
    """A new bucket of the caller's."""
    check_bucket_name(call.bucket)
    check_not_offered(call.headers)
    if call.headers.get("x-amz-object-ownership", "BucketOwnerEnforced") != "BucketOwnerEnforced":
        raise S3Error("NotImplemented", "Buckets are BucketOwnerEnforced here.", Header="x-amz-object-ownership")
    document = await read_document(call)
    if document:
        parse_create_bucket(document, call.gateway.region)
    lock = call.headers.get("x-amz-bucket-object-lock-enabled", "").lower() == "true"
    await call.objects.create_bucket(call.bucket, object_lock=lock)
    return call.answer(200, {"Location": f"/{call.bucket}"})


async def delete_bucket(call: Call) -> web.StreamResponse:
    """Remove an empty bucket."""
    await call.objects.delete_bucket(call.bucket)
    return call.answer(204)


async def head_bucket(call: Call) -> web.StreamResponse:
    """That it is there, and in which region."""
    return call.answer(200, {"x-amz-bucket-region": call.gateway.region, "x-amz-access-point-alias": "false"})


async def get_bucket_location(call: Call) -> web.StreamResponse:
    """The gateway's region."""
    region = call.gateway.region
    body = Writer("LocationConstraint").done() if region == DEFAULT_REGION else _location(region)
    return call.xml(body)


def _location(region: str) -> bytes:
    return f'{DECLARATION}<LocationConstraint xmlns="{NAMESPACE}">{region}</LocationConstraint>'.encode()


async def get_acl(call: Call) -> web.StreamResponse:
    """The owner, who has full control; there are no other entries."""
    if call.key:
        await call.objects.head(call.bucket, call.key, call.version)
    writer = Writer("AccessControlPolicy")
    write_owner(writer, call.tenant.owner)
    with writer.inside("AccessControlList"), writer.inside("Grant"):
        with writer.inside("Grantee", XSI):
            writer.leaf("ID", call.tenant.owner)
            writer.leaf("DisplayName", call.tenant.owner)
        writer.leaf("Permission", "FULL_CONTROL")
    return call.xml(writer.done())


async def put_acl(call: Call) -> web.StreamResponse:
    """What says that only the owner has access is true already; anything else there is not."""
    document = await read_document(call)
    check_not_offered(call.headers)
    if call.key:
        await call.objects.head(call.bucket, call.key, call.version)
    acl = call.headers.get("x-amz-acl")
    if document and acl is not None:
        raise S3Error("InvalidRequest", "Specifying both Canned ACLs and Header Grants is not allowed")
    if acl is None:
        parse_acl(document, call.tenant.owner)
    return call.answer(200)


async def get_encryption(call: Call) -> web.StreamResponse:
    """AES-256, always: by the client's side of the network, which the gateway is."""
    writer = Writer("ServerSideEncryptionConfiguration")
    with writer.inside("Rule"):
        with writer.inside("ApplyServerSideEncryptionByDefault"):
            writer.leaf("SSEAlgorithm", "AES256")
        writer.leaf("BucketKeyEnabled", False)
    return call.xml(writer.done())


async def get_request_payment(call: Call) -> web.StreamResponse:
    """The owner pays."""
    writer = Writer("RequestPaymentConfiguration")
    writer.leaf("Payer", "BucketOwner")
    return call.xml(writer.done())


HANDLERS = {
    "ListBuckets": list_buckets,
    "CreateBucket": create_bucket,
    "DeleteBucket": delete_bucket,
    "HeadBucket": head_bucket,
    "GetBucketLocation": get_bucket_location,
    "GetBucketAcl": get_acl,
    "PutBucketAcl": put_acl,
    "GetObjectAcl": get_acl,
    "PutObjectAcl": put_acl,
    "GetBucketEncryption": get_encryption,
    "GetBucketRequestPayment": get_request_payment,
}
