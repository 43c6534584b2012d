"""Names of buckets, keys, and the paths that name them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.gateway.wire.errors import S3Error
from freehold.gateway.wire.names import check_bucket_name, check_key, split_target
from freehold.gateway.wire.request import encode_uri

GOOD = ["abc", "a" * 63, "a.b-c", "1.2.3", "1.2.3.4.5", "0ab", "my-bucket.example.com"]
BAD = [
    "",
    "ab",
    "a" * 64,
    "Abc",
    "a_b",
    "-abc",
    "abc-",
    ".abc",
    "abc.",
    "a..b",
    "1.2.3.4",
    "999.1.1.1",
    "xn--abc",
    "sthree-abc",
    "sthree-configurator",
    "amzn-s3-demo-abc",
    "abc-s3alias",
    "abc--ol-s3",
    "abc.mrap",
    "abc--x-s3",
    "abc--table-s3",
    "abc-an",
    "äbc",
    "abc\n",
    "a/b",
    "²ab",
]


@pytest.mark.parametrize("name", GOOD)
def test_what_a_bucket_may_be_called(name: str) -> None:
    check_bucket_name(name)


@pytest.mark.parametrize("name", BAD)
def test_what_no_bucket_may_be_called(name: str) -> None:
    with pytest.raises(S3Error) as caught:
        check_bucket_name(name)
    assert caught.value.code == "InvalidBucketName"


@pytest.mark.parametrize(
    ("key", "code"),
    [
        ("a" * 1024, ""),
        ("é" * 512, ""),
        ("\x00\x01 ../..//", ""),
        ("a" * 1025, "KeyTooLongError"),
        ("é" * 512 + "a", "KeyTooLongError"),
        ("", "InvalidRequest"),
        ("\ud800", "InvalidURI"),
    ],
)
def test_what_a_key_may_be(key: str, code: str) -> None:
    if not code:
        check_key(key)
        return
    with pytest.raises(S3Error) as caught:
        check_key(key)
    assert caught.value.code == code


PATHS = [
    ("/", ("", "")),
    ("/b", ("b", "")),
    ("/b/", ("b", "")),
    ("/b//", ("b", "/")),
    ("/b/a/../b/./c//", ("b", "a/../b/./c//")),
    ("/b/%2F%2E%2e", ("b", "/..")),
    ("/b/a+b%2B", ("b", "a+b+")),
    ("/b/%", ("b", "%")),
    ("/b/%zz", ("b", "%zz")),
    ("/b/%C3%A9é", ("b", "éé")),
]


@pytest.mark.parametrize(("path", "expected"), PATHS)
def test_paths_are_split_before_they_are_decoded(path: str, expected: tuple[str, str]) -> None:
    assert split_target(path) == expected


@pytest.mark.parametrize("path", ["/b/%ff", "/%ff/k", "/b/\udcff", "/b/%ED%A0%80"])
def test_paths_that_are_not_utf_8(path: str) -> None:
    with pytest.raises(S3Error, match="InvalidURI"):
        split_target(path)


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=40), st.booleans())
def test_every_key_comes_back(key: str, slash: bool) -> None:
    assert split_target(f"/b/{encode_uri(key.encode(), slash=slash)}") == ("b", key)
