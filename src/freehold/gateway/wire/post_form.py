"""Browser forms (POST Object): the fields, their policy, its signature, and what is answered.

The signature is over the policy as it was sent; the policy must cover every field but those that AWS excepts, and each
of its conditions must hold. Names of fields are compared without case (`fields` has them in lower case).

Source: https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-HTTPPOSTConstructPolicy.html
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from freehold.gateway.wire.documents import parse_iso
from freehold.gateway.wire.errors import S3Error
from freehold.gateway.wire.request import encode_uri
from freehold.gateway.wire.sigv4 import (
    ALGORITHM,
    Authorization,
    Scope,
    check_scope,
    is_same,
    mismatch,
    parse_credential,
    parse_stamp,
    sign,
    signing_key,
)
from freehold.gateway.wire.xml_writer import Writer

LARGEST_FIELDS = 20 << 10  # bytes of all fields before the file
FILENAME = "${filename}"
_EXCEPTED = ("x-amz-signature", "signature", "awsaccesskeyid", "file", "policy", "bucket")
_NEEDED = ("x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-signature")


class FormPolicy(NamedTuple):
    """A policy: when it ends (Unix ms), its conditions as (operator, field, value), the file's size in bytes."""

    expiration: int
    conditions: tuple[tuple[str, str, str], ...]
    smallest: int
    largest: int | None


class FormAnswer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def check_size(fields: Mapping[str, str]) -> None:
    """S3Error where the fields before the file are too large."""
    if sum(len(name) + len(value.encode("utf-8", "replace")) for name, value in fields.items()) > LARGEST_FIELDS:
        raise S3Error("MaxPostPreDataLengthExceeded", MaxPostPreDataLengthBytes=LARGEST_FIELDS)


def get_key(fields: Mapping[str, str], filename: str) -> str:
    """The key that the form names, with ${filename} replaced by the file's name without its folders."""
    key = fields.get("key")
    if not key:
        raise S3Error("UserKeyMustBeSpecified")
    return key.replace(FILENAME, filename.replace("\\", "/").rpartition("/")[2])


def parse_form(fields: Mapping[str, str]) -> Authorization | None:
    """Whom a form says it is from; None: nobody. S3Error for half of it, or for signatures other than version 4."""
    if not any(name in fields for name in ("policy", "signature", "awsaccesskeyid", *_NEEDED)):
        return None
    if "signature" in fields or "awsaccesskeyid" in fields or fields.get("x-amz-algorithm", ALGORITHM) != ALGORITHM:
        message = f"The authorization mechanism you have provided is not supported. Please use {ALGORITHM}."
        raise S3Error("InvalidRequest", message)
    for name in ("policy", *_NEEDED):
        if not fields.get(name):
            raise S3Error("AccessDenied", f"Bucket POST must contain a field named '{name}'")
    opening = "Error parsing the X-Amz-Credential parameter"
    access_key, scope = parse_credential(fields["x-amz-credential"], "AuthorizationQueryParametersError", opening)
    when = parse_stamp(fields["x-amz-date"])
    if when is None:
        raise S3Error("AccessDenied", "The form's x-amz-date must be in the format \"yyyyMMdd'T'HHmmss'Z'\"")
    return Authorization(access_key, scope, (), fields["x-amz-signature"], fields["x-amz-date"], when, "", 0)


def verify_form(authorization: Authorization, fields: Mapping[str, str], secret: str, region: str) -> None:
    """Checks scope and signature. How long a form holds is for its policy to say."""
    check_scope(authorization, region)
    policy = fields["policy"]
    if not is_same(sign(signing_key(secret, authorization.scope), policy), authorization.signature):
        raise mismatch(authorization.access_key, policy, authorization.signature)


def parse_form_policy(text: str) -> FormPolicy:
    """The policy that base64 holds. S3Error InvalidPolicyDocument that says why."""
    try:
        document = msgspec.json.decode(base64.b64decode("".join(text.split()), validate=True))
    except (binascii.Error, ValueError, msgspec.DecodeError, RecursionError):
        raise _invalid("Invalid JSON.") from None
    if not isinstance(document, dict):
        raise _invalid("Invalid JSON.")
    expiration = document.get("expiration")
    until = parse_iso(expiration) if isinstance(expiration, str) else None
    if until is None:
        raise _invalid("Policy missing expiration." if expiration is None else "Invalid 'expiration' value.")
    listed = document.get("conditions")
    if not isinstance(listed, list):
        raise _invalid("Policy missing conditions.")
    conditions: list[tuple[str, str, str]] = []
    smallest, largest = 0, None
    for item in listed:
        if isinstance(item, dict):
            conditions += (("eq", _name(name), _value(value)) for name, value in item.items())
        elif not isinstance(item, list) or len(item) != 3 or not isinstance(item[0], str):
            raise _invalid("Invalid condition.")
        elif item[0].lower() in ("eq", "starts-with") and isinstance(item[1], str) and item[1].startswith("$"):
            conditions.append((item[0].lower(), _name(item[1][1:]), _value(item[2])))
        elif item[0].lower() == "content-length-range":
            smallest, largest = _length(item[1]), _length(item[2])
        else:
            raise _invalid(f"Invalid condition: {str(item[0])[:50]}.")
    return FormPolicy(until, tuple(conditions), smallest, largest)


def _invalid(why: str) -> S3Error:
    return S3Error("InvalidPolicyDocument", f"Invalid Policy: {why}")


def _name(name: str) -> str:
    return name.lower()


def _value(value: Any) -> str:
    if not isinstance(value, str):
        raise _invalid("The value of a condition must be text.")
    return value


def _length(value: Any) -> int:
    text = str(value)
    if isinstance(value, bool) or not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise _invalid("The bounds of content-length-range must be numbers.")
    return int(text)


def check_form(policy: FormPolicy, fields: Mapping[str, str], bucket: str, key: str, now: int) -> None:
    """Whether the fields are what the policy allows; `key` is with the file's name in it, `now` in Unix ms."""
    if now >= policy.expiration:
        raise _against("Policy expired.")
    actual = {**fields, "bucket": bucket, "key": key}
    for operator, name, value in policy.conditions:
        found = actual.get(name, "")
        if operator == "eq":
            holds = found == value
        elif name == "content-type":
            holds = all(kind.strip().startswith(value) for kind in found.split(","))
        else:
            holds = found.startswith(value)
        if not holds:
            sent = msgspec.json.encode([operator, f"${name}", value]).decode()
            raise _against(f"Policy Condition failed: {sent}")
    covered = {name for _, name, _ in policy.conditions}
    if "bucket" not in covered:  # or whoever has the form could choose the bucket
        raise _against("Extra input fields: bucket")
    for name in fields:
        if name not in covered and name not in _EXCEPTED and not name.startswith("x-ignore-"):
            raise _against(f"Extra input fields: {name}")


def _against(why: str) -> S3Error:
    return S3Error("AccessDenied", f"Invalid according to Policy: {why}")


def check_length(policy: FormPolicy, size: int, *, ended: bool) -> None:
    """S3Error once a file has too many bytes, or when it `ended` with too few."""
    if policy.largest is not None and size > policy.largest:
        raise S3Error("EntityTooLarge", ProposedSize=size, MaxSizeAllowed=policy.largest)
    if ended and size < policy.smallest:
        raise S3Error("EntityTooSmall", ProposedSize=size, MinSizeAllowed=policy.smallest)


def write_form_answer(fields: Mapping[str, str], location: str, bucket: str, key: str, etag: str) -> FormAnswer:
    """What success is answered with: a redirect, a document (201), or nothing (200, 204). `etag` has no quotes."""
    headers = {"ETag": f'"{etag}"', "Location": location}
    redirect = fields.get("success_action_redirect") or fields.get("redirect") or ""
    if _is_url(redirect):
        query = f"bucket={encode_uri(bucket.encode())}&key={encode_uri(key.encode())}&etag=%22{etag}%22"
        joined = "&" if urlsplit(redirect).query else "?"
        return FormAnswer(303, headers | {"Location": f"{redirect}{joined}{query}"}, b"")
    status = fields.get("success_action_status")
    if status != "201":
        return FormAnswer(200 if status == "200" else 204, headers, b"")
    writer = Writer("PostResponse", namespace="")
    writer.leaf("Location", location)
    writer.leaf("Bucket", bucket)
    writer.leaf("Key", key)
    writer.leaf("ETag", headers["ETag"])
    return FormAnswer(201, headers | {"Content-Type": "application/xml"}, writer.done())


def _is_url(text: str) -> bool:
    if not text.isascii() or not text.isprintable() or " " in text:
        return False
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc) and not parts.fragment


def sign_form(policy: bytes, secret: str, scope: Scope) -> tuple[str, str]:
    """(policy in base64, its signature) to put into a form."""
    text = base64.b64encode(policy).decode()
    return text, sign(signing_key(secret, scope), text)
