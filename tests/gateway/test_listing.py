"""Listings: their queries, and pages as XML."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.client.bucket_types import (
    ObjectInfo,
    Page,
    PartInfo,
    PartPage,
    PutOptions,
    UploadInfo,
    UploadPage,
    VersionPage,
)
from freehold.gateway.wire import listing
from freehold.gateway.wire.errors import S3Error
from freehold.gateway.wire.request import decode_text

SPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"


def tree(data: bytes) -> Any:
    """Elements as (name, text) or (name, [children])."""

    def convert(element: ElementTree.Element) -> tuple[str, Any]:
        assert element.tag.startswith(SPACE)
        name = element.tag.removeprefix(SPACE)
        return (name, [convert(child) for child in element]) if len(element) else (name, element.text or "")

    return convert(ElementTree.fromstring(data))[1]


def info(key: str, **more: Any) -> ObjectInfo:
    facts: dict[str, Any] = {
        "bucket": "b",
        "key": key,
        "version_id": "null",
        "is_latest": True,
        "is_delete_marker": False,
        "size": 5,
        "modified": 1_700_000_000_123,
        "etag": "ab",
    }
    return ObjectInfo(**(facts | more))


FACTS = [
    ("LastModified", "2023-11-14T22:13:20.123Z"),
    ("ETag", '"ab"'),
    ("Size", "5"),
    ("StorageClass", "STANDARD"),
]
OWNER = ("Owner", [("ID", "o"), ("DisplayName", "o")])


def test_version_1() -> None:
    query = listing.parse_list_v1({"prefix": "a", "delimiter": "/", "marker": "a0", "max-keys": "2"})
    assert (query.prefix, query.delimiter, query.after, query.limit) == ("a", "/", "a0", 2)
    assert tree(listing.write_list_v1("b", query, Page([info("a1")], ["a2/"], "a2/"), "o")) == [
        ("Name", "b"),
        ("Prefix", "a"),
        ("Delimiter", "/"),
        ("MaxKeys", "2"),
        ("Marker", "a0"),
        ("NextMarker", "a2/"),
        ("IsTruncated", "true"),
        ("Contents", [("Key", "a1"), *FACTS, OWNER]),
        ("CommonPrefixes", [("Prefix", "a2/")]),
    ]
    plain = listing.write_list_v1("b", listing.parse_list_v1({}), Page([info("a")], [], "a"), "o")
    assert b"NextMarker" not in plain


def test_version_2() -> None:
    token = listing.write_token("a1")
    query = listing.parse_list_v2({"continuation-token": token, "start-after": "a", "fetch-owner": "true"})
    assert (query.after, query.limit) == ("a1", 1000)
    checked = info("é", checksums={"CRC32": "x"}, checksum_type="FULL_OBJECT")
    assert tree(listing.write_list_v2("b", query, Page([checked], ["p/"], "é"), "o")) == [
        ("Name", "b"),
        ("Prefix", ""),
        ("MaxKeys", "1000"),
        ("KeyCount", "2"),
        ("StartAfter", "a"),
        ("ContinuationToken", token),
        ("IsTruncated", "true"),
        ("NextContinuationToken", listing.write_token("é")),
        (
            "Contents",
            [
                ("Key", "é"),
                *FACTS[:2],
                ("ChecksumAlgorithm", "CRC32"),
                ("ChecksumType", "FULL_OBJECT"),
                *FACTS[2:],
                OWNER,
            ],
        ),
        ("CommonPrefixes", [("Prefix", "p/")]),
    ]
    bare = listing.parse_list_v2({"start-after": "a"})
    assert bare.after == "a"
    assert b"Owner" not in listing.write_list_v2("b", bare, Page([info("k")], [], None), "o")


def test_names_are_encoded_where_that_is_asked_for() -> None:
    query = listing.parse_list_v2({"encoding-type": "url", "prefix": "a b", "delimiter": "/", "start-after": "+"})
    found = dict(tree(listing.write_list_v2("b", query, Page([info("a b/\x01é+")], ["a b/"], None), "o")))
    assert found["Prefix"] == "a%20b"
    assert found["StartAfter"] == "%2B"
    assert found["EncodingType"] == "url"
    assert dict(found["Contents"])["Key"] == "a%20b/%01%C3%A9%2B"
    assert found["CommonPrefixes"] == [("Prefix", "a%20b/")]


def test_versions() -> None:
    query = listing.parse_list_versions({"key-marker": "k", "version-id-marker": "7"})
    assert (query.after, query.second_marker) == ("k", "7")
    marker = info("k", version_id="9", is_delete_marker=True)
    page = VersionPage([marker, info("k", version_id="8", is_latest=False)], [], "k", "8")
    assert tree(listing.write_list_versions("b", query, page, "o")) == [
        ("Name", "b"),
        ("Prefix", ""),
        ("MaxKeys", "1000"),
        ("KeyMarker", "k"),
        ("VersionIdMarker", "7"),
        ("IsTruncated", "true"),
        ("NextKeyMarker", "k"),
        ("NextVersionIdMarker", "8"),
        ("DeleteMarker", [("Key", "k"), ("VersionId", "9"), ("IsLatest", "true"), FACTS[0], OWNER]),
        ("Version", [("Key", "k"), ("VersionId", "8"), ("IsLatest", "false"), *FACTS, OWNER]),
    ]


UPLOAD = UploadInfo("k", "u", 1_700_000_000_123, "STANDARD", "CRC32", "COMPOSITE", PutOptions())
UPLOAD_FACTS = [
    ("UploadId", "u"),
    ("Initiator", OWNER[1]),
    OWNER,
    ("StorageClass", "STANDARD"),
    ("ChecksumAlgorithm", "CRC32"),
    ("ChecksumType", "COMPOSITE"),
]


def test_uploads_and_parts() -> None:
    query = listing.parse_list_uploads({"key-marker": "a", "upload-id-marker": "v", "max-uploads": "1"})
    assert (query.after, query.second_marker, query.limit) == ("a", "v", 1)
    assert listing.parse_list_uploads({"upload-id-marker": "v"}).second_marker == ""
    assert tree(listing.write_list_uploads("b", query, UploadPage([UPLOAD], ["p"], "k", "u"), "o")) == [
        ("Bucket", "b"),
        ("Prefix", ""),
        ("MaxUploads", "1"),
        ("KeyMarker", "a"),
        ("UploadIdMarker", "v"),
        ("IsTruncated", "true"),
        ("NextKeyMarker", "k"),
        ("NextUploadIdMarker", "u"),
        ("Upload", [("Key", "k"), ("Initiated", FACTS[0][1]), *UPLOAD_FACTS]),
        ("CommonPrefixes", [("Prefix", "p")]),
    ]
    parts = listing.parse_list_parts({"part-number-marker": "2", "max-parts": "1"})
    assert parts == (2, 1)
    page = PartPage(UPLOAD, [PartInfo(3, 5, "ab", {"CRC32": "y"}, 1_700_000_000_123)], 3)
    assert tree(listing.write_list_parts("b", parts, page, "o")) == [
        ("Bucket", "b"),
        ("Key", "k"),
        *UPLOAD_FACTS,
        ("PartNumberMarker", "2"),
        ("NextPartNumberMarker", "3"),
        ("MaxParts", "1"),
        ("IsTruncated", "true"),
        ("Part", [("PartNumber", "3"), FACTS[0], FACTS[1], FACTS[2], ("ChecksumCRC32", "y")]),
    ]


@pytest.mark.parametrize(
    ("text", "expected"), [("", 1000), ("0", 0), ("1", 1), ("1000", 1000), ("1001", 1000), (str(2**31 - 1), 1000)]
)
def test_how_many_keys_may_be_asked_for(text: str, expected: int) -> None:
    assert listing.parse_list_v1({"max-keys": text}).limit == expected


BAD = [
    (listing.parse_list_v1, {"max-keys": "-1"}, "max-keys"),
    (listing.parse_list_v1, {"max-keys": str(2**31)}, "max-keys"),
    (listing.parse_list_v1, {"max-keys": "ten"}, "max-keys"),
    (listing.parse_list_v1, {"max-keys": "²"}, "max-keys"),
    (listing.parse_list_v1, {"max-keys": "9" * 5000}, "max-keys"),
    (listing.parse_list_v1, {"encoding-type": "base64"}, "encoding-type"),
    (listing.parse_list_v2, {"continuation-token": ""}, "continuation-token"),
    (listing.parse_list_v2, {"continuation-token": "garbage"}, "continuation-token"),
    (listing.parse_list_v2, {"continuation-token": "AAAA"}, "continuation-token"),
    (listing.parse_list_v2, {"continuation-token": "Af8="}, "continuation-token"),
    (listing.parse_list_v2, {"continuation-token": "é"}, "continuation-token"),
    (listing.parse_list_versions, {"version-id-marker": "1"}, "version-id-marker"),
    (listing.parse_list_parts, {"max-parts": "x"}, "max-parts"),
]


@pytest.mark.parametrize(("parse", "query", "name"), BAD)
def test_what_cannot_be_asked_for(parse: Any, query: dict[str, str], name: str) -> None:
    with pytest.raises(S3Error) as caught:
        parse(query)
    assert caught.value.code == "InvalidArgument"
    assert caught.value.fields["ArgumentName"] == name


KEYS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20)


@given(KEYS)
def test_a_token_leads_to_its_key(key: str) -> None:
    assert listing.parse_token(listing.write_token(key)) == key


@given(KEYS)
def test_every_key_can_be_listed_encoded(key: str) -> None:
    query = listing.parse_list_v2({"encoding-type": "url"})
    found = dict(tree(listing.write_list_v2("b", query, Page([info(key)], [], None), "o")))
    assert decode_text(dict(found["Contents"])["Key"]) == key
