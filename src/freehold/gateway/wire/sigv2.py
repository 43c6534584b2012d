"""AWS Signature Version 2, for what unmodified programs still make with it: presigned URLs and browser forms.

botocore (boto3, aws) signs URLs and forms so in every region that it knows, unless it is told otherwise; requests with
an Authorization header it signs by version 4, and only so they are taken here.

    URL     ?AWSAccessKeyId=..&Expires=(Unix seconds)&Signature=base64(HMAC-SHA1(secret, what is signed))
    form    AWSAccessKeyId, policy, signature = base64(HMAC-SHA1(secret, policy as it is sent))

What is signed of a URL does not name the host: a URL holds for every gateway of the account, until it expires.

Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/RESTAuthentication.html
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Mapping
from typing import NamedTuple

from freehold.gateway.wire.errors import S3Error
from freehold.gateway.wire.request import Request
from freehold.gateway.wire.sigv4 import is_same, iso_time, mismatch

# Query parameters that are signed: what chooses a resource, and what changes the answer.
SIGNED = frozenset(
    (
        "accelerate",
        "acl",
        "analytics",
        "cors",
        "defaultObjectAcl",
        "delete",
        "inventory",
        "legal-hold",
        "lifecycle",
        "location",
        "logging",
        "metrics",
        "notification",
        "object-lock",
        "partNumber",
        "policy",
        "publicAccessBlock",
        "replication",
        "requestPayment",
        "restore",
        "retention",
        "select",
        "select-type",
        "storageClass",
        "tagging",
        "torrent",
        "uploadId",
        "uploads",
        "versionId",
        "versioning",
        "versions",
        "website",
        "response-cache-control",
        "response-content-disposition",
        "response-content-encoding",
        "response-content-language",
        "response-content-type",
        "response-expires",
    )
)
LATEST = 253_402_300_799  # the last second of year 9999


class UrlSignature(NamedTuple):
    """What a URL says of its signature; nothing of it is checked yet. `expires` in Unix seconds."""

    access_key: str
    expires: int
    signature: str


def parse_url(query: Mapping[str, str], headers: Mapping[str, str]) -> UrlSignature | None:
    """Whom a presigned URL says it is from; None where it is none of version 2. S3Error where that cannot be right."""
    if "authorization" in headers or not {"AWSAccessKeyId", "Signature"} <= query.keys():
        return None
    text = query.get("Expires", "")
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise S3Error("AccessDenied", "Invalid date (should be seconds since epoch): " + text[:50])
    return UrlSignature(query["AWSAccessKeyId"], int(text), query["Signature"])


def verify_url(
    request: Request, query: Mapping[str, str], bucket: str, url: UrlSignature, secret: str, now: float
) -> None:
    """S3Error unless the URL was signed with this secret and holds. `bucket`: the one that the host names, or ""."""
    if now > url.expires:
        raise S3Error(
            "AccessDenied",
            "Request has expired",
            Expires=iso_time(min(url.expires, LATEST)),
            ServerTime=iso_time(now),
        )
    text = string_to_sign(request, query, bucket, str(url.expires))
    if not is_same(sign(secret, text), url.signature):
        raise mismatch(url.access_key, text, url.signature)


def string_to_sign(request: Request, query: Mapping[str, str], bucket: str, expires: str) -> str:
    """What is signed; headers that were put into the query count where the request has none."""
    found = {name.lower(): value for name, value in query.items()} | dict(request.headers)
    lines = [request.method, found.get("content-md5", ""), found.get("content-type", ""), expires]
    lines += [f"{name}:{found[name].strip()}" for name in sorted(found) if name.startswith("x-amz-")]
    pairs = [f"{name}={query[name]}" if query[name] else name for name in sorted(query) if name in SIGNED]
    path = f"/{bucket}{request.path}" if bucket else request.path
    return "\n".join([*lines, f"{path}?{'&'.join(pairs)}" if pairs else path])


def sign(secret: str, text: str) -> str:
    """A signature in base64."""
    return base64.b64encode(hmac.digest(secret.encode(), text.encode("utf-8", "surrogateescape"), "sha1")).decode()


def verify_form(fields: Mapping[str, str], secret: str) -> None:
    """S3Error unless a form's policy was signed with this secret."""
    if not is_same(sign(secret, fields["policy"]), fields["signature"]):
        raise mismatch(fields["awsaccesskeyid"], fields["policy"], fields["signature"])
