"""Which bucket names and keys there may be, and how a raw path names them. The rules are AWS's."""

from __future__ import annotations

import re

from freehold.gateway.wire.errors import S3Error
from freehold.gateway.wire.request import decode_text

LONGEST_KEY = 1024  # bytes of UTF-8
_NAME = re.compile(r"[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]")
_ADDRESS = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+")
_PREFIXES = ("xn--", "sthree-", "amzn-s3-demo-")
_SUFFIXES = ("-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3", "-an")


def check_bucket_name(name: str) -> None:
    """S3Error InvalidBucketName for a name that no bucket may have."""
    good = _NAME.fullmatch(name) and ".." not in name and not _ADDRESS.fullmatch(name)
    if not good or name.startswith(_PREFIXES) or name.endswith(_SUFFIXES):
        raise S3Error("InvalidBucketName", BucketName=name[:255])


def check_key(key: str) -> None:
    """S3Error KeyTooLongError, or InvalidURI for a key that is no Unicode text."""
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise S3Error("InvalidURI") from None
    if size > LONGEST_KEY:
        raise S3Error("KeyTooLongError", Size=size, MaxSizeAllowed=LONGEST_KEY)
    if not key:
        raise S3Error("InvalidRequest", "A key must not be empty")


def split_target(path: str) -> tuple[str, str]:
    """(bucket, key) of a raw path in path style, each "" where there is none. The key keeps every slash and dot."""
    bucket, _, key = path.removeprefix("/").partition("/")
    return decode_text(bucket), decode_text(key)
