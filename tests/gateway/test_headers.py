"""User metadata, sources of copies, and headers that a query replaces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.gateway.wire.errors import S3Error
from freehold.gateway.wire.headers import (
    CopySource,
    parse_copy_source,
    parse_metadata,
    response_overrides,
    write_metadata,
)
from freehold.gateway.wire.request import encode_uri

VALUES = [
    ("plain", "plain"),
    ("  trimmed ", "trimmed"),
    ("é raw", "é raw"),
    ("=?utf-8?b?w6k=?=", "é"),
    ("=?UTF-8?Q?caf=C3=A9?= au lait", "café au lait"),
    ("=?nothing?b?w6k=?=", "=?nothing?b?w6k=?="),
    ("=?utf-8?b?DQo=?=", "=?utf-8?b?DQo=?="),  # a line break, hidden
    ("a=?b", "a=?b"),
    ("\udcff", "\ufffd"),
]


@pytest.mark.parametrize(("raw", "value"), VALUES)
def test_values_of_metadata(raw: str, value: str) -> None:
    assert parse_metadata({"x-amz-meta-name": raw, "content-type": "x"}) == {"name": value}


def test_the_limit_of_metadata() -> None:
    assert parse_metadata({"x-amz-meta-a": "b" * 2047})
    assert parse_metadata({"x-amz-meta-a": "é" * 1023 + "b"})
    for value in ("b" * 2048, "é" * 1024):
        with pytest.raises(S3Error) as caught:
            parse_metadata({"x-amz-meta-a": value})
        assert caught.value.code == "MetadataTooLarge"
        assert caught.value.fields["MaxSizeAllowed"] == 2048


PRINTED = st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp"))


@given(st.text(PRINTED, max_size=300).map(str.strip).filter(lambda text: "=?" not in text))
def test_metadata_comes_back_in_one_line_of_ascii(value: str) -> None:
    headers = write_metadata({"a": value})
    (written,) = headers.values()
    assert written.isascii()
    assert written.isprintable()
    assert parse_metadata(headers) == {"a": value}


SOURCES = [
    ("b/k", CopySource("b", "k", None)),
    ("/b/k", CopySource("b", "k", None)),
    ("/b/a%20b%2Fc/%C3%A9", CopySource("b", "a b/c/é", None)),
    ("b%2Fk", CopySource("b", "k", None)),
    ("%2Fb%2Fk%2Fl", CopySource("b", "k/l", None)),
    ("b/k?versionId=a%2Fb", CopySource("b", "k", "a/b")),
    ("b/k?versionId=", CopySource("b", "k", None)),
    ("b/a?b", CopySource("b", "a?b", None)),
    ("b/a+b", CopySource("b", "a+b", None)),
    ("/b//k", CopySource("b", "/k", None)),
]


@pytest.mark.parametrize(("text", "expected"), SOURCES)
def test_sources_of_copies(text: str, expected: CopySource) -> None:
    assert parse_copy_source(text) == expected


@pytest.mark.parametrize("text", ["", "/", "b", "/b/", "//k", "b/%ff", "b/k?versionId=%ff"])
def test_what_is_no_source(text: str) -> None:
    with pytest.raises(S3Error) as caught:
        parse_copy_source(text)
    assert caught.value.code == "InvalidArgument"


@given(
    st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20),
    st.none() | st.text("ab/?&", min_size=1),
)
def test_every_source_comes_back(key: str, version: str | None) -> None:
    text = f"/b/{encode_uri(key.encode(), slash=False)}"
    if version is not None:
        text += f"?versionId={encode_uri(version.encode())}"
    assert parse_copy_source(text) == CopySource("b", key, version)


def test_a_query_replaces_headers_of_the_answer() -> None:
    query = {"response-content-type": "text/plain", "response-expires": "0", "prefix": "x"}
    assert response_overrides(query) == {"Content-Type": "text/plain", "Expires": "0"}
    for value in ("a\r\nSet-Cookie: x", "\x00", "\x7f"):
        with pytest.raises(S3Error, match="InvalidArgument"):
            response_overrides({"response-content-type": value})
