"""What Freehold cannot do, as S3 says it: each typed error has a code of S3's that makes its clients act rightly.

What trying again can mend is 503 with Retry-After, which every S3 client does by itself; what it cannot is a 4xx, which
they report. The hint goes with the message. Lack of credits is QuotaExceeded (403): nothing is retried, and the
sentence says what to buy.
"""

from __future__ import annotations

from freehold.client import errors as client_errors
from freehold.gateway.descriptions import http_date
from freehold.gateway.wire.errors import S3Error
from freehold.protocol import errors

RETRY_SECONDS = 1

# The first that fits counts; exact sentences of AWS where nothing more is known.
_CODES: tuple[tuple[type[errors.FreeholdError], str], ...] = (
    (client_errors.BucketNotFound, "NoSuchBucket"),
    (client_errors.KeyNotFound, "NoSuchKey"),
    (client_errors.VersionNotFound, "NoSuchVersion"),
    (client_errors.UploadNotFound, "NoSuchUpload"),
    (client_errors.BucketExists, "BucketAlreadyOwnedByYou"),
    (client_errors.BucketNotEmpty, "BucketNotEmpty"),
    (client_errors.PreconditionFailed, "PreconditionFailed"),
    (client_errors.ObjectLocked, "AccessDenied"),
    (client_errors.AccessDenied, "AccessDenied"),
    (client_errors.MethodNotAllowed, "MethodNotAllowed"),
    (client_errors.InvalidBucketState, "InvalidBucketState"),
    (client_errors.InvalidPart, "InvalidPart"),
    (client_errors.InvalidPartOrder, "InvalidPartOrder"),
    (client_errors.PartTooSmall, "EntityTooSmall"),
    (client_errors.ObjectReplaced, "ServiceUnavailable"),
    (errors.Overloaded, "SlowDown"),
    (errors.InsufficientCredits, "QuotaExceeded"),
    (errors.InsufficientOperators, "ServiceUnavailable"),
    (errors.DiskFull, "ServiceUnavailable"),
    (errors.Conflict, "OperationAborted"),
    (errors.Unavailable, "ServiceUnavailable"),
    (errors.BodyTooLarge, "EntityTooLarge"),
    (errors.Corrupt, "InternalError"),
    (errors.NotFound, "NoSuchKey"),
    (errors.Refused, "InvalidRequest"),
    (errors.InvalidInput, "InvalidArgument"),
)
_USUAL = {  # what has a sentence of AWS's own that says it all
    "NoSuchBucket", "NoSuchKey", "NoSuchVersion", "NoSuchUpload", "BucketAlreadyOwnedByYou", "BucketNotEmpty",
    "PreconditionFailed", "MethodNotAllowed", "InvalidPart", "InvalidPartOrder", "EntityTooSmall",
}  # fmt: skip


def to_s3(error: errors.FreeholdError) -> S3Error:
    """The answer of S3 to a typed error."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), "InternalError")
    message = "" if code in _USUAL else " ".join(filter(None, (f"{error.message}.", error.advice)))
    found = S3Error(code, _sentence(message))
    details = error.details
    if details.get("delete_marker"):
        found.headers["x-amz-delete-marker"] = "true"
        if "version_id" in details:
            found.headers["x-amz-version-id"] = str(details["version_id"])
        if found.code == "MethodNotAllowed":
            found.headers |= {"Allow": "DELETE", "Last-Modified": http_date(int(details.get("modified", 0)) // 1000)}
    if found.status == 503:
        found.headers["Retry-After"] = str(details.get("retry_after", RETRY_SECONDS))
    return found


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] if text else ""
