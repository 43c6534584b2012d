"""Conditions and ranges, against the tables of RFC 9110 and what S3 does."""

from __future__ import annotations

import pytest

from freehold.gateway.conditions import Span, check_copy, check_read, holds_range, parse_copy_range, parse_range
from freehold.gateway.wire.errors import S3Error

ETAG = "5d41402abc4b2a76b9719d911017c592"
MODIFIED = 1_700_000_000_500  # Tue, 14 Nov 2023 22:13:20 GMT, and half a second
THEN, BEFORE, AFTER = (
    "Tue, 14 Nov 2023 22:13:20 GMT",
    "Tue, 14 Nov 2023 22:13:19 GMT",
    "Tue, 14 Nov 2023 22:13:21 GMT",
)

READS = [
    ({}, None),
    ({"if-match": f'"{ETAG}"'}, None),
    ({"if-match": ETAG}, None),
    ({"if-match": "*"}, None),
    ({"if-match": f'"other", "{ETAG}"'}, None),
    ({"if-match": '"other"'}, "PreconditionFailed"),
    ({"if-none-match": f'"{ETAG}"'}, "NotModified"),
    ({"if-none-match": f'W/"{ETAG}"'}, "NotModified"),
    ({"if-none-match": "*"}, "NotModified"),
    ({"if-none-match": '"other"'}, None),
    ({"if-modified-since": THEN}, "NotModified"),
    ({"if-modified-since": BEFORE}, None),
    ({"if-modified-since": "never"}, None),
    ({"if-unmodified-since": THEN}, None),
    ({"if-unmodified-since": BEFORE}, "PreconditionFailed"),
    ({"if-unmodified-since": AFTER}, None),
    ({"if-match": f'"{ETAG}"', "if-unmodified-since": BEFORE}, None),  # the tag decides
    ({"if-none-match": f'"{ETAG}"', "if-modified-since": BEFORE}, "NotModified"),
    ({"if-none-match": '"other"', "if-modified-since": AFTER}, None),
    ({"if-match": '"other"', "if-none-match": f'"{ETAG}"'}, "PreconditionFailed"),
]


def outcome(action: object, *arguments: object) -> str | None:
    try:
        action(*arguments)  # type: ignore[operator]
    except S3Error as error:
        return error.code
    return None


@pytest.mark.parametrize(("headers", "code"), READS)
def test_conditions_of_reads(headers: dict[str, str], code: str | None) -> None:
    assert outcome(check_read, headers, ETAG, MODIFIED) == code


@pytest.mark.parametrize(("headers", "code"), READS)
def test_conditions_of_a_copys_source_are_412_only(headers: dict[str, str], code: str | None) -> None:
    prefixed = {f"x-amz-copy-source-{name}": value for name, value in headers.items()}
    assert outcome(check_copy, prefixed, ETAG, MODIFIED) == ("PreconditionFailed" if code else None)


@pytest.mark.parametrize(
    ("header", "size", "span"),
    [
        (None, 10, None),
        ("bytes=0-9", 10, Span(0, 10)),
        ("bytes=0-0", 10, Span(0, 1)),
        ("bytes=9-", 10, Span(9, 1)),
        ("bytes=3-99", 10, Span(3, 7)),
        ("bytes=-3", 10, Span(7, 3)),
        ("bytes=-30", 10, Span(0, 10)),
        ("bytes=5-4", 10, None),
        ("bytes=0-1,3-4", 10, None),
        ("bytes=-", 10, None),
        ("lines=0-1", 10, None),
        (f"bytes=0-{'9' * 5000}", 10, None),
        ("bytes=10-", 10, "InvalidRange"),
        ("bytes=10-12", 10, "InvalidRange"),
        ("bytes=-0", 10, "InvalidRange"),
        ("bytes=0-", 0, "InvalidRange"),
        ("bytes=-5", 0, "InvalidRange"),
    ],
)
def test_ranges(header: str | None, size: int, span: Span | str | None) -> None:
    if isinstance(span, str):
        assert outcome(parse_range, header, size) == span
    else:
        assert parse_range(header, size) == span


@pytest.mark.parametrize(
    ("header", "span"),
    [
        (None, None),
        ("bytes=0-4", Span(0, 5)),
        ("bytes=4-4", Span(4, 1)),
        ("bytes=0-", "InvalidArgument"),
        ("bytes=-5", "InvalidArgument"),
        ("bytes=3-2", "InvalidArgument"),
        ("bytes=0-5", "InvalidArgument"),
    ],
)
def test_ranges_of_a_copy_are_within_its_source(header: str | None, span: Span | str | None) -> None:
    if isinstance(span, str):
        assert outcome(parse_copy_range, header, 5) == span
    else:
        assert parse_copy_range(header, 5) == span


@pytest.mark.parametrize(
    ("header", "holds"), [(None, True), (f'"{ETAG}"', True), ('"other"', False), (THEN, True), (BEFORE, False)]
)
def test_if_range(header: str | None, holds: bool) -> None:
    assert holds_range(header, ETAG, MODIFIED) is holds
