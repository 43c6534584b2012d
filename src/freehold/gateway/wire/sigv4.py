"""AWS Signature Version 4, as S3 takes it: in the Authorization header, in a URL, and over streamed chunks.

`parse_authorization` says who a request claims to be from; `verify` that it is so, given that key's secret and the
time. What does not match is answered with what was expected: the region, the server's time, or the very bytes that
should have been signed. Everything secret is compared in constant time.

Source: https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-authenticating-requests.html
"""

from __future__ import annotations

import hashlib
import hmac
import re
from calendar import timegm
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import NamedTuple

from freehold.gateway.wire.errors import S3Error, invalid_argument
from freehold.gateway.wire.request import (
    Request,
    canonical_path,
    canonical_query,
    decode_text,
    encode_uri,
    split_query,
)

ALGORITHM = "AWS4-HMAC-SHA256"
CHUNK_ALGORITHM = "AWS4-HMAC-SHA256-PAYLOAD"
TRAILER_ALGORITHM = "AWS4-HMAC-SHA256-TRAILER"
UNSIGNED = "UNSIGNED-PAYLOAD"
STREAMING_SIGNED = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
STREAMING_SIGNED_TRAILER = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
STREAMING_UNSIGNED_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
STREAMING = (STREAMING_SIGNED, STREAMING_SIGNED_TRAILER, STREAMING_UNSIGNED_TRAILER)
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
SKEW_SECONDS = 900
LONGEST_EXPIRY = 604_800  # seven days, in seconds

_STAMP = re.compile(r"[0-9]{8}T[0-9]{6}Z")
_HEX = re.compile(r"[0-9A-Fa-f]{64}")
_SPACES = re.compile(r"[ \t]+")
_QUERY_FIELDS = (
    "X-Amz-Algorithm",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-SignedHeaders",
    "X-Amz-Signature",
)


class Scope(NamedTuple):
    """What a signing key is good for. `day` is YYYYMMDD."""

    day: str
    region: str
    service: str = "s3"

    def __str__(self) -> str:
        return f"{self.day}/{self.region}/{self.service}/aws4_request"


class Authorization(NamedTuple):
    """What a request says of its signature; nothing of it is checked yet. `expires` is of URLs only (seconds)."""

    access_key: str
    scope: Scope
    signed_headers: tuple[str, ...]
    signature: str
    stamp: str  # YYYYMMDDTHHMMSSZ
    when: int  # the same in Unix seconds
    payload_hash: str  # a SHA-256 in hex, UNSIGNED-PAYLOAD, or one of STREAMING
    expires: int | None = None

    @property
    def is_streaming(self) -> bool:
        return self.payload_hash in STREAMING


class Seal(NamedTuple):
    """What the signatures of a verified request's chunks are built on (streaming.py)."""

    key: bytes
    scope: Scope
    stamp: str
    seed: str


# --- what is signed ---------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def signing_key(secret: str, scope: Scope) -> bytes:
    """The key that signs everything within one scope."""
    key = f"AWS4{secret}".encode()
    for word in (*scope, "aws4_request"):
        key = hmac.digest(key, word.encode("utf-8", "surrogateescape"), "sha256")
    return key


def sign(key: bytes, text: str) -> str:
    """A signature in hex."""
    return hmac.digest(key, text.encode("utf-8", "surrogateescape"), "sha256").hex()


def sha256_hex(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def canonical_request(
    method: str,
    path: str,
    query: Sequence[tuple[str, str]],
    headers: Mapping[str, str],
    signed_headers: Sequence[str],
    payload_hash: str,
) -> str:
    """The request in the one spelling that both sides sign; `query` is of raw pairs."""
    lines = [method, canonical_path(path), canonical_query(query)]
    lines += [f"{name}:{_trim(headers.get(name, ''))}" for name in signed_headers]
    lines += ["", ";".join(signed_headers), payload_hash]
    return "\n".join(lines)


def _trim(value: str) -> str:
    if "  " in value or "\t" in value:
        value = _SPACES.sub(" ", value)
    return value.strip(" ")


def string_to_sign(canonical: str, stamp: str, scope: Scope) -> str:
    return f"{ALGORITHM}\n{stamp}\n{scope}\n{sha256_hex(canonical)}"


def chunk_signature(seal: Seal, previous: str, chunk_sha256: str) -> str:
    """The signature of one chunk of a streamed body; `previous` is that of the chunk before, or the seed."""
    lines = (CHUNK_ALGORITHM, seal.stamp, str(seal.scope), previous, EMPTY_SHA256, chunk_sha256)
    return sign(seal.key, "\n".join(lines))


def trailer_signature(seal: Seal, previous: str, trailer: bytes) -> str:
    """The signature of the trailing headers (`name:value\\n` each); `previous` is that of the last, empty chunk."""
    lines = (TRAILER_ALGORITHM, seal.stamp, str(seal.scope), previous, hashlib.sha256(trailer).hexdigest())
    return sign(seal.key, "\n".join(lines))


# --- a server's side --------------------------------------------------------------------------------------------------


def parse_authorization(request: Request) -> Authorization | None:
    """Whom a request says it is from; None where it says nothing (anonymous). S3Error where that cannot be right."""
    header = request.headers.get("authorization")
    pairs = split_query(request.query) if request.query else []
    names = {name for name, _ in pairs}
    in_query = "X-Amz-Algorithm" in names or "X-Amz-Signature" in names or "X-Amz-Credential" in names
    old_in_query = "AWSAccessKeyId" in names and "Signature" in names
    if header is None and not in_query and not old_in_query:
        return None
    if header is not None and (in_query or old_in_query):
        message = (
            "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query string "
            "parameter or the Authorization header should be specified"
        )
        raise invalid_argument("Authorization", header, message)
    if old_in_query:
        raise _unsupported()
    return _parse_query(request, pairs) if header is None else _parse_header(request, header)


def _unsupported() -> S3Error:
    message = f"The authorization mechanism you have provided is not supported. Please use {ALGORITHM}."
    return S3Error("InvalidRequest", message)


def _parse_header(request: Request, header: str) -> Authorization:
    algorithm, _, rest = header.strip().partition(" ")
    if algorithm == "AWS" or algorithm.startswith("AWS4-ECDSA"):
        raise _unsupported()
    if algorithm != ALGORITHM:
        raise invalid_argument("Authorization", header, "Unsupported Authorization Type")
    fields: dict[str, str] = {}
    for item in rest.split(","):
        name, _, value = item.strip().partition("=")
        fields[name] = value
    code = "AuthorizationHeaderMalformed"
    for name in ("Credential", "SignedHeaders", "Signature"):
        if not fields.get(name):
            raise S3Error(code, f"The authorization header is malformed; missing {name}.")
    access_key, scope = parse_credential(fields["Credential"], code, "The authorization header is malformed")
    payload_hash = request.headers.get("x-amz-content-sha256")
    if payload_hash is None:
        raise S3Error("InvalidRequest", "Missing required header for this request: x-amz-content-sha256")
    stamp, when = _parse_date(request.headers)
    return Authorization(
        access_key,
        scope,
        tuple(fields["SignedHeaders"].split(";")),
        fields["Signature"],
        stamp,
        when,
        parse_payload_hash(payload_hash),
    )


def _parse_query(request: Request, pairs: Sequence[tuple[str, str]]) -> Authorization:
    raw = dict(reversed(pairs))  # the first of each counts
    code = "AuthorizationQueryParametersError"
    fields = {name: decode_text(raw.get(name, "")) for name in _QUERY_FIELDS}
    if fields["X-Amz-Algorithm"].startswith("AWS4-ECDSA"):
        raise _unsupported()
    if fields["X-Amz-Algorithm"] != ALGORITHM:
        raise S3Error(code, f'X-Amz-Algorithm only supports "{ALGORITHM}"')
    if not all(fields.values()):
        raise S3Error(
            code,
            "Query-string authentication version 4 requires the X-Amz-Algorithm, X-Amz-Credential, X-Amz-Signature, "
            "X-Amz-Date, X-Amz-SignedHeaders, and X-Amz-Expires parameters.",
        )
    access_key, scope = parse_credential(
        fields["X-Amz-Credential"], code, "Error parsing the X-Amz-Credential parameter"
    )
    stamp = fields["X-Amz-Date"]
    when = parse_stamp(stamp)
    if when is None:
        raise S3Error(code, "X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\"")
    text = fields["X-Amz-Expires"]
    if not re.fullmatch(r"-?[0-9]{1,18}", text, re.ASCII):
        raise S3Error(code, "X-Amz-Expires should be a number")
    expires = int(text)
    if expires < 0:
        raise S3Error(code, "X-Amz-Expires must be non-negative")
    if not 1 <= expires <= LONGEST_EXPIRY:
        raise S3Error(code, "X-Amz-Expires must be between 1 second and a week (in seconds); it is within 1 to 604800")
    payload_hash = request.headers.get("x-amz-content-sha256") or decode_text(raw.get("X-Amz-Content-Sha256", ""))
    return Authorization(
        access_key,
        scope,
        tuple(fields["X-Amz-SignedHeaders"].split(";")),
        fields["X-Amz-Signature"],
        stamp,
        when,
        parse_payload_hash(payload_hash or UNSIGNED),
        expires,
    )


def parse_credential(text: str, code: str, opening: str) -> tuple[str, Scope]:
    """(access key id, scope) of a Credential; `code` and `opening` are of the error where it is none."""
    # The access key id of other systems may hold a slash: the last four parts are the scope.
    parts = text.rsplit("/", 4)
    if len(parts) != 5 or not parts[0]:
        raise S3Error(
            code,
            f'{opening}; the Credential is mal-formed; expecting "<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request".',
        )
    access_key, day, region, service, terminator = parts
    if not re.fullmatch(r"[0-9]{8}", day, re.ASCII):
        raise S3Error(
            code, f'{opening}; incorrect date format "{day}". This date in the credential must be "yyyyMMdd".'
        )
    if terminator != "aws4_request":
        raise S3Error(code, f'{opening}; incorrect terminal "{terminator}". This endpoint uses "aws4_request".')
    return access_key, Scope(day, region, service)


def _parse_date(headers: Mapping[str, str]) -> tuple[str, int]:
    """The stamp that is signed and its Unix seconds, of x-amz-date or Date."""
    text = headers.get("x-amz-date")
    if text is None:
        text = headers.get("date")
    when = None if text is None else parse_stamp(text)
    if text is not None and when is not None:
        return text, when
    try:
        parsed = parsedate_to_datetime(text or "")
        utc = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, TypeError, OverflowError, IndexError):
        message = "AWS authentication requires a valid Date or x-amz-date header"
        raise S3Error("AccessDenied", message) from None
    return f"{utc:%Y%m%dT%H%M%SZ}".zfill(16), int(utc.timestamp())


def parse_stamp(text: str) -> int | None:
    """The Unix seconds of YYYYMMDDTHHMMSSZ; None for what is none."""
    if not _STAMP.fullmatch(text):
        return None
    fields = (int(text[:4]), int(text[4:6]), int(text[6:8]), int(text[9:11]), int(text[11:13]), int(text[13:15]))
    _, month, day, hour, minute, second = fields
    if not (fields[0] and 1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second < 62):
        return None
    return timegm(fields)


def parse_payload_hash(text: str) -> str:
    """`x-amz-content-sha256` as it was given. S3Error InvalidArgument for what S3 does not know."""
    if _HEX.fullmatch(text) or text == UNSIGNED or text in STREAMING:
        return text  # as it was spelled: so it was signed
    message = (
        f"x-amz-content-sha256 must be {UNSIGNED}, {STREAMING_UNSIGNED_TRAILER}, {STREAMING_SIGNED}, "
        f"{STREAMING_SIGNED_TRAILER} or a valid sha256 value."
    )
    raise invalid_argument("x-amz-content-sha256", text, message)


def verify(
    request: Request,
    authorization: Authorization,
    secret: str,
    region: str,
    now: float,
) -> Seal:
    """Checks scope, time, what is signed and the signature; `now` is in Unix seconds.

    Gives what the chunks of a streamed body are checked with; raises S3Error naming what was expected.
    """
    check_scope(authorization, region)
    _check_time(authorization, now)
    _check_signed(request, authorization.signed_headers)
    pairs = split_query(request.query) if request.query else []
    if authorization.expires is not None:
        pairs = [pair for pair in pairs if pair[0] != "X-Amz-Signature"]
    canonical = canonical_request(
        request.method,
        request.path,
        pairs,
        request.headers,
        authorization.signed_headers,
        authorization.payload_hash,
    )
    text = string_to_sign(canonical, authorization.stamp, authorization.scope)
    key = signing_key(secret, authorization.scope)
    if not is_same(sign(key, text), authorization.signature):
        raise mismatch(authorization.access_key, text, authorization.signature, canonical)
    return Seal(key, authorization.scope, authorization.stamp, authorization.signature)


def is_same(expected: str, given: str) -> bool:
    """Compares in constant time; anything may have been given."""
    return hmac.compare_digest(expected.encode(), given.encode("utf-8", "surrogateescape"))


def mismatch(access_key: str, text: str, given: str, canonical: str | None = None) -> S3Error:
    """SignatureDoesNotMatch with all that is needed to see where the two sides differ."""
    error = S3Error(
        "SignatureDoesNotMatch",
        AWSAccessKeyId=access_key,
        StringToSign=text,
        SignatureProvided=given,
        StringToSignBytes=_spell(text),
    )
    if canonical is not None:
        error.fields |= {"CanonicalRequest": canonical, "CanonicalRequestBytes": _spell(canonical)}
    return error


def _spell(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").hex(" ")


def check_scope(authorization: Authorization, region: str) -> None:
    """S3Error, naming what is expected, unless the signature is for this region, for S3 and for its own day."""
    scope = authorization.scope
    code, opening = "AuthorizationHeaderMalformed", "The authorization header is malformed"
    if authorization.expires is not None:
        code, opening = "AuthorizationQueryParametersError", "Error parsing the X-Amz-Credential parameter"
    if scope.region != region:
        message = f"{opening}; the region '{scope.region}' is wrong; expecting '{region}'"
        raise S3Error(code, message, Region=region)
    if scope.service != "s3":
        raise S3Error(code, f'{opening}; incorrect service "{scope.service}". This endpoint belongs to "s3".')
    if scope.day != authorization.stamp[:8]:
        message = f'{opening}; Invalid credential date "{scope.day}". This date is not the same as X-Amz-Date: '
        raise S3Error(code, f'{message}"{authorization.stamp[:8]}".')


def _check_time(authorization: Authorization, now: float) -> None:
    age = now - authorization.when
    if authorization.expires is None:
        if abs(age) > SKEW_SECONDS:
            raise S3Error(
                "RequestTimeTooSkewed",
                RequestTime=authorization.stamp,
                ServerTime=iso_time(now),
                MaxAllowedSkewMilliseconds=SKEW_SECONDS * 1000,
            )
        return
    if age < -SKEW_SECONDS:
        raise S3Error(
            "AccessDenied",
            "Request is not valid yet",
            X_Amz_Date=authorization.stamp,
            ServerTime=iso_time(now),
        )
    if age > authorization.expires:
        raise S3Error(
            "AccessDenied",
            "Request has expired",
            X_Amz_Expires=authorization.expires,
            Expires=iso_time(authorization.when + authorization.expires),
            ServerTime=iso_time(now),
        )


def iso_time(seconds: float) -> str:
    """Unix seconds as 2026-01-02T03:04:05Z, and the last second of year 9999 for what lies beyond."""
    at = datetime.fromtimestamp(max(0, min(int(seconds), 253_402_300_799)), UTC)
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"


def _check_signed(request: Request, signed: Sequence[str]) -> None:
    given = set(signed)
    unsigned = [name for name in request.headers if name.startswith("x-amz-") and name not in given]
    if "host" not in given:
        unsigned.append("host")
    if unsigned:
        message = "There were headers present in the request which were not signed"
        raise S3Error("AccessDenied", message, HeadersNotSigned=", ".join(sorted(unsigned)))


# --- a client's side: `freehold share`, tests and benches -------------------------------------------------------------


def sign_request(
    request: Request, access_key: str, secret: str, region: str, now: float, payload_hash: str = UNSIGNED
) -> dict[str, str]:
    """The headers to send: those of `request` (which must name the host), signed."""
    stamp = _stamp(now)
    headers = dict(request.headers) | {"x-amz-date": stamp, "x-amz-content-sha256": payload_hash}
    scope = Scope(stamp[:8], region)
    signed = sorted(name for name in headers if name != "authorization")
    pairs = split_query(request.query)
    canonical = canonical_request(request.method, request.path, pairs, headers, signed, payload_hash)
    signature = sign(signing_key(secret, scope), string_to_sign(canonical, stamp, scope))
    headers["authorization"] = (
        f"{ALGORITHM} Credential={access_key}/{scope},SignedHeaders={';'.join(signed)},Signature={signature}"
    )
    return headers


def presign(
    method: str,
    host: str,
    path: str,
    access_key: str,
    secret: str,
    region: str,
    now: float,
    expires: int,
    query: Sequence[tuple[str, str]] = (),
) -> str:
    """The path and query that do `method` at `host` until `expires` seconds from now.

    `path` is encoded already (`encode_uri`); `query` is of plain pairs (response-content-type, versionId, ...).
    """
    stamp = _stamp(now)
    scope = Scope(stamp[:8], region)
    values = (ALGORITHM, f"{access_key}/{scope}", stamp, str(expires), "host")
    plain = [*query, *zip(_QUERY_FIELDS, values, strict=False)]
    pairs = [(_encode(name), _encode(value)) for name, value in plain]
    canonical = canonical_request(method, path, pairs, {"host": host}, ("host",), UNSIGNED)
    signature = sign(signing_key(secret, scope), string_to_sign(canonical, stamp, scope))
    return f"{path}?{canonical_query(pairs)}&X-Amz-Signature={signature}"


def _encode(text: str) -> str:
    return encode_uri(text.encode())


def _stamp(now: float) -> str:
    return f"{datetime.fromtimestamp(int(now), UTC):%Y%m%dT%H%M%SZ}"
