"""Checksums: known values, what requests ask for, and parts put together."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.client.checksums_combine import combine_full
from freehold.gateway.wire import checksums
from freehold.gateway.wire.checksums import BodyDigests, Wanted, new_hasher
from freehold.gateway.wire.errors import S3Error

# The check values of the CRC catalogue, and the hashes of the same nine bytes.
CHECK = b"123456789"
KNOWN = {
    "CRC32": "cbf43926",
    "CRC32C": "e3069283",
    "CRC64NVME": "ae8b14860a799888",
    "SHA1": "f7c3bc1d808e04732adf679965ccc34ca7ae3441",
    "SHA256": "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225",
    "MD5": "25f9e794323b453885f5181f1b624d0b",
}


def digest_of(name: str, data: bytes) -> str:
    hasher = new_hasher(name)
    hasher.update(data)
    return base64.b64encode(hasher.digest()).decode()


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_known_values(name: str) -> None:
    hasher = new_hasher(name)
    hasher.update(CHECK[:4])
    hasher.update(memoryview(CHECK)[4:])
    assert hasher.digest().hex() == KNOWN[name]
    assert len(hasher.digest()) == checksums.SIZES[name]


CRCS = ("CRC32", "CRC32C", "CRC64NVME")


@given(name=st.sampled_from(CRCS), parts=st.lists(st.binary(max_size=300), max_size=6))
def test_crcs_of_parts_give_that_of_the_whole(name: str, parts: list[bytes]) -> None:
    combined = combine_full(name, [(digest_of(name, part), len(part)) for part in parts])
    assert combined == digest_of(name, b"".join(parts))


CRC, SHA = digest_of("CRC32", b"abc"), digest_of("SHA256", b"abc")
GOOD = [
    ({}, None),
    ({"x-amz-checksum-mode": "ENABLED", "x-amz-checksum-type": "FULL_OBJECT"}, None),
    ({"x-amz-checksum-crc32": CRC}, Wanted("CRC32", CRC)),
    ({"x-amz-checksum-crc32": f" {CRC} ", "x-amz-sdk-checksum-algorithm": "crc32"}, Wanted("CRC32", CRC)),
    ({"x-amz-trailer": "x-amz-checksum-sha256"}, Wanted("SHA256", "")),
    ({"x-amz-trailer": "X-Amz-Checksum-SHA256", "x-amz-sdk-checksum-algorithm": "SHA256"}, Wanted("SHA256", "")),
]
BAD = [
    {"x-amz-checksum-crc32": "AAAA"},
    {"x-amz-checksum-crc32": f"{CRC}-2"},
    {"x-amz-checksum-crc32": "é"},
    {"x-amz-checksum-crc32": ""},
    {"x-amz-checksum-crc32": CRC, "x-amz-checksum-sha256": SHA},
    {"x-amz-checksum-crc32": CRC, "x-amz-trailer": "x-amz-checksum-crc32"},
    {"x-amz-trailer": "x-amz-meta-x"},
    {"x-amz-sdk-checksum-algorithm": "CRC32"},
    {"x-amz-sdk-checksum-algorithm": "CRC16"},
    {"x-amz-sdk-checksum-algorithm": "SHA256", "x-amz-checksum-crc32": CRC},
]


@pytest.mark.parametrize(("headers", "wanted"), GOOD)
def test_what_is_asked_for(headers: dict[str, str], wanted: Wanted | None) -> None:
    assert checksums.parse_wanted(headers) == wanted


@pytest.mark.parametrize("headers", BAD)
def test_what_cannot_be_asked_for(headers: dict[str, str]) -> None:
    with pytest.raises(S3Error) as caught:
        checksums.parse_wanted(headers)
    assert caught.value.code == "InvalidRequest"


def test_the_end_of_an_upload_may_name_a_composite() -> None:
    headers = {"x-amz-checksum-crc32": f"{CRC}-12"}
    assert checksums.parse_wanted(headers, composite=True) == Wanted("CRC32", f"{CRC}-12")
    for value in (f"{CRC}-", f"{CRC}-x", f"{CRC}-²"):
        with pytest.raises(S3Error, match="invalid"):
            checksums.parse_wanted({"x-amz-checksum-crc32": value}, composite=True)


TYPES = [
    ({}, ("", "")),
    ({"x-amz-checksum-algorithm": "crc32c"}, ("CRC32C", "COMPOSITE")),
    ({"x-amz-checksum-algorithm": "CRC64NVME"}, ("CRC64NVME", "FULL_OBJECT")),
    ({"x-amz-checksum-algorithm": "SHA1"}, ("SHA1", "COMPOSITE")),
    ({"x-amz-checksum-algorithm": "CRC32", "x-amz-checksum-type": "full_object"}, ("CRC32", "FULL_OBJECT")),
]
BAD_TYPES = [
    {"x-amz-checksum-type": "FULL_OBJECT"},
    {"x-amz-checksum-algorithm": "CRC32", "x-amz-checksum-type": "HALF"},
    {"x-amz-checksum-algorithm": "CRC64NVME", "x-amz-checksum-type": "COMPOSITE"},
    {"x-amz-checksum-algorithm": "SHA256", "x-amz-checksum-type": "FULL_OBJECT"},
    {"x-amz-checksum-algorithm": "MD5"},
]


@pytest.mark.parametrize(("headers", "expected"), TYPES)
def test_the_checksum_of_an_upload(headers: dict[str, str], expected: tuple[str, str]) -> None:
    assert checksums.parse_checksum_type(headers) == expected


@pytest.mark.parametrize("headers", BAD_TYPES)
def test_an_upload_with_a_checksum_that_s3_does_not_have(headers: dict[str, str]) -> None:
    with pytest.raises(S3Error, match="InvalidRequest"):
        checksums.parse_checksum_type(headers)


BODY = b"some bytes"
MD5 = base64.b64encode(hashlib.md5(BODY).digest()).decode()


def read_body(
    headers: dict[str, str], payload_hash: str = "UNSIGNED-PAYLOAD", trailers: dict[str, str] | None = None
) -> BodyDigests:
    body = BodyDigests(headers, payload_hash, default="CRC64NVME")
    body.update(BODY[:3])
    body.update(BODY[3:])
    body.finish(trailers)
    return body


def test_a_body_that_is_what_it_should_be() -> None:
    headers = {"content-md5": MD5, "x-amz-trailer": "x-amz-checksum-crc32c"}
    crc = digest_of("CRC32C", BODY)
    body = read_body(headers, hashlib.sha256(BODY).hexdigest().upper(), {"x-amz-checksum-crc32c": crc})
    assert body.etag == hashlib.md5(BODY).hexdigest()
    assert body.checksums == {"CRC32C": crc}


def test_a_checksum_is_computed_where_none_is_asked_for() -> None:
    assert read_body({}).checksums == {"CRC64NVME": digest_of("CRC64NVME", BODY)}
    bare = BodyDigests({}, md5=False)
    bare.finish()
    assert (bare.etag, bare.checksums) == ("", {})


MISMATCHES = [
    ({"content-md5": digest_of("MD5", b"x")}, "UNSIGNED-PAYLOAD", {}, "BadDigest"),
    ({"x-amz-checksum-sha1": digest_of("SHA1", b"x")}, "UNSIGNED-PAYLOAD", {}, "BadDigest"),
    ({}, hashlib.sha256(b"x").hexdigest(), {}, "XAmzContentSHA256Mismatch"),
    (
        {"x-amz-trailer": "x-amz-checksum-crc32"},
        "UNSIGNED-PAYLOAD",
        {"x-amz-checksum-crc32": digest_of("CRC32", b"x")},
        "BadDigest",
    ),
]


@pytest.mark.parametrize(("headers", "payload_hash", "trailers", "code"), MISMATCHES)
def test_a_mismatch_names_both_digests(
    headers: dict[str, str], payload_hash: str, trailers: dict[str, str], code: str
) -> None:
    with pytest.raises(S3Error) as caught:
        read_body(headers, payload_hash, trailers)
    assert caught.value.code == code
    assert len(set(caught.value.fields.values())) == 2


def test_a_trailer_that_is_no_digest_or_missing() -> None:
    for trailers in ({}, {"x-amz-checksum-crc32": "xx"}):
        with pytest.raises(S3Error, match="trailing header is invalid"):
            read_body({"x-amz-trailer": "x-amz-checksum-crc32"}, "UNSIGNED-PAYLOAD", trailers)


@pytest.mark.parametrize("text", ["", "x", MD5[:-4], CRC])
def test_content_md5_that_is_none(text: str) -> None:
    with pytest.raises(S3Error, match="InvalidDigest"):
        BodyDigests({"content-md5": text})
