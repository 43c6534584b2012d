"""Who may do what: signatures to callers, then keys, grants and bucket policies to yes or no.

    the account's own key                 everything that its buckets' policies do not deny
    a key with a grant                    what the grant covers, and no policy denies
    another account's key, or nobody's    what the bucket's policy allows

A bucket is looked for in the caller's own account, then, as for callers without a key, in the others in the order of
the configuration; there only a policy opens it. Accounts choose the labels of their keys: so another account's policies
know a key by its id alone. Invariant: nothing is read or written before `authorize` has returned.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple

from freehold.client.errors import KeyNotFound, MethodNotAllowed, VersionNotFound
from freehold.client.root import BucketRecord
from freehold.gateway.call import Call
from freehold.gateway.operations import Level, Operation
from freehold.gateway.wire import sigv2
from freehold.gateway.wire.errors import S3Error
from freehold.gateway.wire.policy import Policy, PolicyRequest, arn_of, parse_policy
from freehold.gateway.wire.policy_conditions import EXISTING_TAG
from freehold.gateway.wire.request import Request
from freehold.gateway.wire.sigv4 import ALGORITHM, iso_time, parse_authorization, verify

# What the owner of a bucket can always do, or a policy could lock everybody out for good; and nobody else ever.
_OWNERS = {"s3:GetBucketPolicy", "s3:PutBucketPolicy", "s3:DeleteBucketPolicy"}
_OF_VERSIONS = {
    "s3:GetObject": "s3:GetObjectVersion",
    "s3:GetObjectAttributes": "s3:GetObjectVersionAttributes",
    "s3:DeleteObject": "s3:DeleteObjectVersion",
    "s3:GetObjectTagging": "s3:GetObjectVersionTagging",
    "s3:PutObjectTagging": "s3:PutObjectVersionTagging",
    "s3:DeleteObjectTagging": "s3:DeleteObjectVersionTagging",
    "s3:GetObjectAcl": "s3:GetObjectVersionAcl",
    "s3:PutObjectAcl": "s3:PutObjectVersionAcl",
}
# What a header of a write asks for besides: the header, the action of policies, the operation of grants.
_BESIDES = (
    ("x-amz-object-lock-mode", "s3:PutObjectRetention", ""),
    ("x-amz-object-lock-legal-hold", "s3:PutObjectLegalHold", ""),
    ("x-amz-tagging", "s3:PutObjectTagging", "write"),
)
# What conditions on an object's tags are about, as AWS has it.
_BY_TAGS = re.compile(r"s3:GetObject(Version)?(Attributes|Acl)?|s3:PutObject(Version)?Acl|.*Object(Version)?Tagging")


async def authenticate(call: Call) -> None:
    """Find out who asks; nobody is fine. S3Error where the request says who, and that does not hold."""
    request = Request(call.method, call.path, call.raw_query, call.headers)
    if call.query and (url := sigv2.parse_url(call.query, call.headers)) is not None:
        caller = await call.gateway.tenants.find(url.access_key)
        sigv2.verify_url(request, call.query, call.hosted, url, caller.key.secret, call.gateway.clock())
        call.caller = caller
        return
    authorization = parse_authorization(request)
    if authorization is None:
        return
    if "x-amz-security-token" in call.headers or "X-Amz-Security-Token" in call.query:
        raise S3Error(
            "InvalidToken", "This gateway has no session tokens: sign with an access key and its secret only."
        )
    caller = await call.gateway.tenants.find(authorization.access_key)
    call.seal = verify(request, authorization, caller.key.secret, call.gateway.region, call.gateway.clock())
    call.authorization, call.caller = authorization, caller


async def locate(call: Call) -> None:
    """Find the account and the bucket that the request is about. S3Error NoSuchBucket, AccessDenied."""
    await _find_bucket(call)
    if call.headers.get("x-amz-expected-bucket-owner", call.tenant.owner) != call.tenant.owner:
        raise S3Error("AccessDenied", "The bucket is not owned by the account that x-amz-expected-bucket-owner names.")


async def _find_bucket(call: Call) -> None:
    caller = call.caller
    if caller is not None:
        record = await caller.tenant.bucket(call.bucket)
        if record is not None:
            call.place(caller.tenant, record)
            return
    found = await call.gateway.tenants.of_bucket(call.bucket)
    # To another account's caller a bucket exists only as far as its policy goes.
    if found is None or (caller is not None and not found[1].documents.get("policy")):
        raise S3Error("NoSuchBucket", BucketName=call.bucket)
    call.place(*found)


class Ask(NamedTuple):
    """What somebody wants to do: the action of policies, the operation of grants ("": none goes so far), and with what.

    `key` is an object's, "" for a bucket as such; `prefix` is what is listed of it; `version` as it is named.
    """

    action: str
    grant: str
    key: str = ""
    prefix: str = ""
    version: str | None = None


async def authorize(call: Call, operation: Operation) -> None:
    """S3Error AccessDenied unless the caller may do the operation on what its request names."""
    action = operation.action
    if call.query and "versionId" in call.query:
        action = _OF_VERSIONS.get(action, action)
    prefix = call.query.get("prefix", "") if operation.level is Level.BUCKET else ""
    ask = Ask(action, operation.grant, call.key, prefix, call.query.get("versionId"))
    await check(call, call.bucket, call.record, ask)
    if operation.action == "s3:PutObject":
        await check_besides(call, call.headers)


async def check_besides(call: Call, headers: Mapping[str, str]) -> None:
    """S3Error or AccessDenied unless the caller may have all that the headers of a write ask for besides."""
    for header, action, grant in _BESIDES:
        if header in headers:
            await check(call, call.bucket, call.record, Ask(action, grant, call.key))


async def check(call: Call, bucket: str, record: BucketRecord, ask: Ask) -> None:
    """S3Error or AccessDenied unless the caller may do what is asked in this bucket of the account of `call`."""
    if call.is_owners:
        await check_grant(call, bucket, ask)
    document = record.documents.get("policy")
    if document is None or ask.action in _OWNERS:
        if not call.is_owners:
            raise S3Error("AccessDenied")
        return
    allowed = await _decide(call, document, bucket, ask)
    if allowed is False or (allowed is None and not call.is_owners):
        raise S3Error("AccessDenied")


async def check_grant(call: Call, bucket: str, ask: Ask) -> None:
    """S3Error or AccessDenied where the caller has a grant that does not cover this; bucket "": the list of buckets."""
    token = call.caller.key.grant if call.caller is not None else ""
    if not token:
        return
    if not ask.grant:
        raise S3Error("AccessDenied", f"{ask.action} needs the account's own key: this one has a grant.")
    where = ask.prefix if ask.grant == "list" else ask.key
    revoked = await call.tenant.revoked()
    call.tenant.grants.check(token, ask.grant, bucket, where, int(call.gateway.clock()), revoked)


async def _decide(call: Call, document: bytes, bucket: str, ask: Ask) -> bool | None:
    """What a bucket's policy says: allowed, denied, or (None) nothing."""
    policy = _parsed(document, bucket)
    facts = _gather_facts(call)
    if ask.key and policy.asks_for_tags and _BY_TAGS.fullmatch(ask.action):
        with suppress(KeyNotFound, VersionNotFound, MethodNotAllowed):
            tags = (await call.objects.head(bucket, ask.key, ask.version)).tags
            facts |= {f"{EXISTING_TAG}{name}": (value,) for name, value in tags.items()}
    return policy.evaluate(PolicyRequest(ask.action, arn_of(bucket, ask.key), _names_of(call), facts))


def _names_of(call: Call) -> tuple[str, ...]:
    """By what the policies of the account that the request is about know the caller."""
    if call.caller is None:
        return ()
    key = call.caller.key
    if call.is_owners:
        return (key.id, key.label) if key.label else (key.id,)
    return () if key.id in call.gateway.tenants.contested else (key.id,)


@lru_cache(maxsize=256)
def _parsed(document: bytes, bucket: str) -> Policy:
    return parse_policy(document, bucket)


def _gather_facts(call: Call) -> dict[str, tuple[str, ...]]:
    """What conditions may ask about, by lower-case name."""
    now, authorization = call.gateway.clock(), call.authorization
    names = _names_of(call)
    facts = {
        "aws:userid": names[0] if names else None,
        "aws:username": names[-1] if names else None,
        "aws:sourceip": call.request.remote,
        "aws:securetransport": "true" if call.request.secure else "false",
        "aws:currenttime": iso_time(now),
        "aws:epochtime": str(int(now)),
        "aws:useragent": call.headers.get("user-agent"),
        "aws:referer": call.headers.get("referer"),
        "aws:principaltype": "Anonymous" if call.caller is None else "User",
        "s3:prefix": call.query.get("prefix"),
        "s3:delimiter": call.query.get("delimiter"),
        "s3:max-keys": call.query.get("max-keys"),
        "s3:versionid": call.query.get("versionId"),
        "s3:if-match": call.headers.get("if-match"),
        "s3:if-none-match": call.headers.get("if-none-match"),
    }
    if authorization is not None:
        facts["s3:signatureversion"] = ALGORITHM
        facts["s3:authtype"] = "REST-HEADER" if authorization.expires is None else "REST-QUERY-STRING"
        facts["s3:signatureage"] = str(int((now - authorization.when) * 1000))
        facts["s3:x-amz-content-sha256"] = authorization.payload_hash
    elif call.caller is not None:
        facts["s3:signatureversion"] = "AWS"
        facts["s3:authtype"] = "REST-QUERY-STRING"
    if call.form is not None:
        facts["s3:authtype"] = None if call.caller is None else "POST"
    said = call.headers if call.form is None else call.form
    facts |= {f"s3:{name}": value for name, value in said.items() if name.startswith("x-amz-")}
    return {name: (value,) for name, value in facts.items() if value is not None}
