"""Right documents, forms and streams of S3, for tests and as seeds of the fuzzer."""

from __future__ import annotations

import base64
import hashlib
import json

from freehold.client.lifecycle import DAY, Rule
from freehold.gateway.wire import documents, sigv4
from freehold.gateway.wire.checksums import new_hasher, to_base64
from freehold.gateway.wire.sigv4 import Scope, Seal
from freehold.gateway.wire.xml_writer import Writer

RULES = (
    Rule(id="all", days=30),
    Rule(id="old", enabled=False, prefix="logs/", date=20_000 * DAY),
    Rule(id="small", prefix="tmp/", tags={"a": "1", "b": "2"}, min_size=5, max_size=500, days=1),
    Rule(id="versions", tags={"x": ""}, noncurrent_days=3, newer_noncurrent=2),
    Rule(id="uploads", prefix="a&b", abort_days=7, expired_delete_marker=True),
)
TAGGING = documents.write_tagging({"a": "1", "é b": "x/y"})
VERSIONING = documents.write_versioning("Enabled")
OBJECT_LOCK = documents.write_object_lock(("GOVERNANCE", 30))
RETENTION = documents.write_retention("COMPLIANCE", 4_000_000_000_123)
LEGAL_HOLD = documents.write_legal_hold(True)
OWNERSHIP = (
    b"<OwnershipControls><Rule><ObjectOwnership>BucketOwnerEnforced</ObjectOwnership></Rule></OwnershipControls>"
)
ACL = b"<AccessControlPolicy><Owner><ID>x</ID></Owner></AccessControlPolicy>"
CREATE = (
    b'<CreateBucketConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><LocationConstraint>us-east-1'
    b"</LocationConstraint><Tags><Tag><Key>a</Key><Value>1</Value></Tag></Tags></CreateBucketConfiguration>"
)
DELETE = (
    b'<?xml version="1.0"?><Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Quiet>true</Quiet><Object>'
    b'<Key> a&amp;b</Key></Object><Object><Key>c</Key><VersionId>7</VersionId><ETag>"00"</ETag></Object></Delete>'
)
COMPLETE = (
    b'<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>"a"</ETag></Part><Part><ChecksumCRC32>y/Q5Jg=='
    b"</ChecksumCRC32><ETag>b</ETag><PartNumber>3</PartNumber></Part></CompleteMultipartUpload>"
)
CORS = (
    b"<CORSConfiguration><CORSRule><AllowedOrigin>https://*.example.com</AllowedOrigin><AllowedMethod>PUT</AllowedMethod>"
    b"<AllowedMethod>GET</AllowedMethod><AllowedHeader>x-amz-*</AllowedHeader><AllowedHeader>Content-Type</AllowedHeader>"
    b"<ExposeHeader>ETag</ExposeHeader><MaxAgeSeconds>3000</MaxAgeSeconds></CORSRule><CORSRule><ID>all</ID>"
    b"<AllowedOrigin>*</AllowedOrigin><AllowedMethod>GET</AllowedMethod></CORSRule></CORSConfiguration>"
)
POLICY = json.dumps(
    {
        "Version": "2012-10-17",
        "Id": "p",
        "Statement": [
            {
                "Sid": "read",
                "Effect": "Allow",
                "Principal": "*",
                "Action": ["s3:GetObject", "s3:List*"],
                "Resource": ["arn:aws:s3:::b", "arn:aws:s3:::b/public/*"],
            },
            {
                "Effect": "Allow",
                "Principal": {"AWS": ["arn:aws:iam::123456789012:user/AKID"]},
                "NotAction": "s3:Delete*",
                "Resource": "arn:aws:s3:::b/*a*",
                "Condition": {
                    "IpAddress": {"aws:SourceIp": ["10.0.0.0/8", "::1"]},
                    "StringLikeIfExists": {"s3:prefix": "a*b"},
                    "DateLessThan": {"aws:CurrentTime": "2030-01-01T00:00:00Z"},
                    "NumericLessThanEquals": {"s3:max-keys": 10},
                },
            },
            {
                "Effect": "Deny",
                "Principal": "*",
                "Action": "s3:*",
                "NotResource": "arn:aws:s3:::b/public/*",
                "Condition": {"Bool": {"aws:SecureTransport": False}, "Null": {"aws:Referer": "true"}},
            },
        ],
    }
).encode()
FORM_POLICY = json.dumps(
    {
        "expiration": "2030-01-01T00:00:00Z",
        "conditions": [
            {"bucket": "b"},
            ["starts-with", "$key", "user/"],
            ["eq", "$acl", "private"],
            {"x-amz-credential": "AKID/19700112/us-east-1/s3/aws4_request"},
            {"x-amz-algorithm": "AWS4-HMAC-SHA256"},
            {"x-amz-date": "19700112T134640Z"},
            ["content-length-range", 1, "1000"],
        ],
    }
).encode()


def signed_form(secret: str, region: str, now: int) -> dict[str, str]:
    """The fields of a form under FORM_POLICY; `now` must be 1,000,000 (Unix seconds) for them to be right."""
    stamp = sigv4.iso_time(now).replace("-", "").replace(":", "")
    scope = Scope(stamp[:8], region)
    policy = base64.b64encode(FORM_POLICY).decode()
    return {
        "key": "user/${filename}",
        "acl": "private",
        "x-amz-credential": f"AKID/{scope}",
        "x-amz-algorithm": sigv4.ALGORITHM,
        "x-amz-date": stamp,
        "policy": policy,
        "x-amz-signature": sigv4.sign(sigv4.signing_key(secret, scope), policy),
        "x-ignore-me": "1",
    }


SEAL = Seal(sigv4.signing_key("secret", Scope("19700112", "us-east-1")), Scope("19700112", "us-east-1"), "x", "seed")


def streams() -> list[bytes]:
    """The body "hello" in the three forms of sigv4.STREAMING; the first byte says which."""
    crc = new_hasher("CRC32C")
    crc.update(b"hello")
    trailer = f"x-amz-checksum-crc32c:{to_base64(crc.digest())}"
    first = sigv4.chunk_signature(SEAL, SEAL.seed, hashlib.sha256(b"hello").hexdigest())
    last = sigv4.chunk_signature(SEAL, first, sigv4.EMPTY_SHA256)
    signature = sigv4.trailer_signature(SEAL, last, f"{trailer}\n".encode())
    signed = f"5;chunk-signature={first}\r\nhello\r\n0;chunk-signature={last}\r\n"
    return [
        f"\x00{signed}\r\n".encode(),
        f"\x01{signed}{trailer}\r\nx-amz-trailer-signature:{signature}\r\n\r\n".encode(),
        f"\x025\r\nhello\r\n0\r\n{trailer}\r\n\r\n".encode(),
    ]


def element(name: str, *children: str | bytes) -> bytes:
    """An element with children, each as it is."""
    inner = b"".join(child if isinstance(child, bytes) else child.encode() for child in children)
    return f"<{name}>".encode() + inner + f"</{name}>".encode()


def empty(name: str) -> bytes:
    """A document with nothing in it."""
    return Writer(name).done()
