"""Conditional requests as S3 orders them (RFC 9110, section 13.2.2), and the one range of bytes that S3 gives.

    If-Match, else If-Unmodified-Since      412 where it does not hold
    If-None-Match, else If-Modified-Since   304 where it does not hold; 412 for the source of a copy

Pure. Times are unix milliseconds; what HTTP says has whole seconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import NamedTuple

from freehold.gateway.wire.errors import S3Error

_RANGE = re.compile(r"bytes=\s*(\d{0,19})\s*-\s*(\d{0,19})\s*")
COPY_PREFIX = "x-amz-copy-source-"


class Span(NamedTuple):
    """Bytes of an object: where they begin, and how many they are."""

    start: int
    length: int


def check_read(headers: Mapping[str, str], etag: str, modified: int) -> None:
    """S3Error (412 PreconditionFailed, 304 NotModified) unless what a GET or HEAD asks for holds."""
    failed = _find_failure(headers, "", etag, modified)
    if failed is None:
        return
    if failed.lower() in ("if-none-match", "if-modified-since"):
        raise S3Error("NotModified")
    raise S3Error("PreconditionFailed", Condition=failed)


def check_copy(headers: Mapping[str, str], etag: str, modified: int) -> None:
    """S3Error (412) unless the conditions on a copy's source hold."""
    failed = _find_failure(headers, COPY_PREFIX, etag, modified)
    if failed is not None:
        raise S3Error("PreconditionFailed", Condition=failed)


def _find_failure(headers: Mapping[str, str], prefix: str, etag: str, modified: int) -> str | None:
    match, none_match = headers.get(f"{prefix}if-match"), headers.get(f"{prefix}if-none-match")
    if match is not None:
        if not matches(match, etag):
            return "If-Match"
    elif (since := parse_date(headers.get(f"{prefix}if-unmodified-since"))) is not None and modified // 1000 > since:
        return "If-Unmodified-Since"
    if none_match is not None:
        if matches(none_match, etag):
            return "If-None-Match"
    elif (since := parse_date(headers.get(f"{prefix}if-modified-since"))) is not None and modified // 1000 <= since:
        return "If-Modified-Since"
    return None


def matches(header: str, etag: str) -> bool:
    """Whether a list of entity tags names this one; "*" names all."""
    if header.strip() == "*":
        return True
    return any(unquote_tag(item) == etag for item in header.split(","))


def unquote_tag(text: str) -> str:
    """An entity tag without quotes; S3 has no weak ones, and some clients leave the quotes out."""
    return text.strip().removeprefix("W/").strip('"')


@lru_cache(maxsize=256)
def parse_date(text: str | None) -> int | None:
    """The unix seconds of an HTTP date; None where there is none, or what is there is no date (RFC: ignored)."""
    if not text:
        return None
    try:
        return int(parsedate_to_datetime(text).timestamp())
    except (ValueError, TypeError, OverflowError):
        return None


def parse_range(header: str | None, size: int) -> Span | None:
    """What of an object of `size` bytes is asked for; None for all of it, also where S3 ignores the header.

    S3Error InvalidRange (416) where none of the bytes exist.
    """
    if header is None:
        return None
    found = _RANGE.fullmatch(header)
    if found is None or found.groups() == ("", ""):
        return None  # several ranges, another unit, no digits: S3 answers with everything
    first, last = found.groups()
    if not first:
        length = min(int(last), size)
        start = size - length
    else:
        start = int(first)
        if last and int(last) < start:
            return None
        length = min(int(last) + 1 if last else size, size) - start
    if length <= 0:
        raise S3Error(
            "InvalidRange",
            headers={"Content-Range": f"bytes */{size}"},
            RangeRequested=header,
            ActualObjectSize=size,
        )
    return Span(start, length)


def holds_range(header: str | None, etag: str, modified: int) -> bool:
    """Whether an If-Range lets a range count; without the header it does."""
    if header is None:
        return True
    since = parse_date(header)
    return modified // 1000 <= since if since is not None else unquote_tag(header) == etag


def parse_copy_range(header: str | None, size: int) -> Span | None:
    """`x-amz-copy-source-range`: stricter than Range, both ends needed and within the source. S3Error."""
    if header is None:
        return None
    found = re.fullmatch(r"bytes=(\d{1,19})-(\d{1,19})", header)
    if found is None or int(found[2]) < int(found[1]):
        raise S3Error(
            "InvalidArgument",
            "The x-amz-copy-source-range value must be of the form bytes=first-last where first and last are the "
            "zero-based offsets of the first and last bytes to copy",
            ArgumentName="x-amz-copy-source-range",
            ArgumentValue=header,
        )
    first, last = int(found[1]), int(found[2])
    if last >= size:
        raise S3Error(
            "InvalidArgument",
            f"Range specified is not valid for source object of size: {size}",
            ArgumentName="x-amz-copy-source-range",
            ArgumentValue=header,
        )
    return Span(first, last - first + 1)
