"""Chunked bodies: AWS's two examples byte for byte, any way of cutting them, and every way of spoiling them."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.gateway.wire import sigv4, streaming
from freehold.gateway.wire.checksums import BodyDigests, new_hasher, to_base64
from freehold.gateway.wire.errors import S3Error
from freehold.gateway.wire.sigv4 import Scope, Seal
from freehold.gateway.wire.streaming import ChunkDecoder

KEY = sigv4.signing_key("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", Scope("20130524", "us-east-1"))


def seal_of(seed: str) -> Seal:
    return Seal(KEY, Scope("20130524", "us-east-1"), "20130524T000000Z", seed)


PLAIN = b"a" * 66560
SEAL = seal_of("4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9")
SIGNED = (
    b"10000;chunk-signature=ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648\r\n"
    + b"a" * 65536
    + b"\r\n400;chunk-signature=0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497\r\n"
    + b"a" * 1024
    + b"\r\n0;chunk-signature=b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9\r\n\r\n"
)
TRAILER_SEAL = seal_of("106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e")
TRAILED = (
    b"10000;chunk-signature=b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2\r\n"
    + b"a" * 65536
    + b"\r\n400;chunk-signature=1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7\r\n"
    + b"a" * 1024
    + b"\r\n0;chunk-signature=2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992\r\n"
    + b"x-amz-checksum-crc32c:sOO8/Q==\r\n"
    + b"x-amz-trailer-signature:d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435\r\n\r\n"
)
UNSIGNED = b"2000\r\n" + b"a" * 8192 + b"\r\n5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n"

HEADERS = {"x-amz-decoded-content-length": "66560"}
TRAILER_HEADERS = HEADERS | {"x-amz-trailer": "x-amz-checksum-crc32c"}
UNSIGNED_HEADERS = {"x-amz-decoded-content-length": "8197", "x-amz-trailer": "x-amz-checksum-crc32"}


def signed() -> ChunkDecoder:
    return ChunkDecoder(sigv4.STREAMING_SIGNED, HEADERS, SEAL)


def trailed() -> ChunkDecoder:
    return ChunkDecoder(sigv4.STREAMING_SIGNED_TRAILER, TRAILER_HEADERS, TRAILER_SEAL)


def unsigned() -> ChunkDecoder:
    return ChunkDecoder(sigv4.STREAMING_UNSIGNED_TRAILER, UNSIGNED_HEADERS, None)


def read(decoder: ChunkDecoder, data: bytes) -> bytes:
    plain = decoder.feed(data)
    decoder.finish()
    return plain


def test_the_chunked_example_of_the_s3_reference() -> None:
    assert len(SIGNED) == 66824  # the Content-Length of the example
    decoder = signed()
    assert read(decoder, SIGNED) == PLAIN
    assert (decoder.length, decoder.trailers) == (66560, {})


@pytest.mark.parametrize("body", [TRAILED, TRAILED.replace(b"sOO8/Q==\r\n", b"sOO8/Q==\n\r\n")])
def test_the_trailer_example_of_the_s3_reference(body: bytes) -> None:
    decoder = trailed()
    assert read(decoder, body) == PLAIN
    assert decoder.trailers == {"x-amz-checksum-crc32c": "sOO8/Q=="}
    digests = BodyDigests(TRAILER_HEADERS)
    digests.update(PLAIN)
    digests.finish(decoder.trailers)


def test_unsigned_chunks_with_a_trailer() -> None:
    decoder = unsigned()
    assert read(decoder, UNSIGNED) == b"a" * 8192 + b"hello"
    assert decoder.trailers == {"x-amz-checksum-crc32": "NhCmhg=="}


def test_an_empty_body() -> None:
    seal = SEAL
    last = sigv4.chunk_signature(seal, seal.seed, sigv4.EMPTY_SHA256)
    decoder = ChunkDecoder(sigv4.STREAMING_SIGNED, {"x-amz-decoded-content-length": "0"}, seal)
    assert read(decoder, f"0;chunk-signature={last}\r\n\r\n".encode()) == b""


@given(cuts=st.lists(st.integers(0, len(TRAILED)), max_size=12), which=st.integers(0, 2))
def test_it_does_not_matter_how_the_bytes_arrive(cuts: list[int], which: int) -> None:
    decoder, body, plain = [
        (signed(), SIGNED, PLAIN),
        (trailed(), TRAILED, PLAIN),
        (unsigned(), UNSIGNED, b"a" * 8192 + b"hello"),
    ][which]
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    found = b"".join(decoder.feed(body[start:end]) for start, end in pairwise(edges))
    decoder.finish()
    assert found == plain


def test_byte_by_byte() -> None:
    decoder = unsigned()
    assert b"".join(decoder.feed(UNSIGNED[i : i + 1]) for i in range(len(UNSIGNED))) == b"a" * 8192 + b"hello"
    decoder.finish()


def test_no_byte_is_given_out_before_its_chunk_is_verified() -> None:
    decoder = signed()
    head = SIGNED.index(b"\n") + 1
    assert decoder.feed(SIGNED[: head + 65535]) == b""
    assert decoder.feed(SIGNED[head + 65535 : head + 65536]) == PLAIN[:65536]


@given(position=st.integers(0, len(TRAILED) - 1), bit=st.integers(0, 7))
def test_any_changed_bit_of_a_signed_body_is_noticed(position: int, bit: int) -> None:
    body = bytearray(TRAILED)
    body[position] ^= 1 << bit
    try:
        plain = read(trailed(), bytes(body))
    except S3Error:
        return
    # What may change is how a line is spelled: the case of a size or a name, spaces, and the CR at its end.
    assert plain == PLAIN
    assert TRAILED[position : position + 1] in b"\rxamzchecksrtilgnu-0123456789"


def test_a_wrong_chunk_signature_says_so() -> None:
    with pytest.raises(S3Error) as caught:
        read(signed(), SIGNED.replace(b"a" * 1024 + b"\r\n0;", b"a" * 1023 + b"b\r\n0;"))
    assert caught.value.code == "SignatureDoesNotMatch"
    assert str(caught.value.fields["PreviousSignature"]).startswith("ad80c730")


def length(value: str) -> dict[str, str]:
    return {"x-amz-decoded-content-length": value}


CONSTRUCTION = [
    (sigv4.STREAMING_SIGNED, {}, SEAL, "MissingContentLength"),
    (sigv4.STREAMING_SIGNED, length("-1"), SEAL, "InvalidArgument"),
    (sigv4.STREAMING_SIGNED, length("x"), SEAL, "InvalidArgument"),
    (sigv4.STREAMING_SIGNED, length("5"), None, "AccessDenied"),
    (sigv4.STREAMING_SIGNED_TRAILER, length("5"), SEAL, "InvalidRequest"),
    (sigv4.STREAMING_UNSIGNED_TRAILER, length("5") | {"x-amz-trailer": "x-amz-meta"}, None, "InvalidRequest"),
]


@pytest.mark.parametrize(("payload_hash", "headers", "seal", "code"), CONSTRUCTION)
def test_headers_that_announce_no_such_body(
    payload_hash: str, headers: dict[str, str], seal: Seal | None, code: str
) -> None:
    with pytest.raises(S3Error) as caught:
        ChunkDecoder(payload_hash, headers, seal)
    assert caught.value.code == code


A = b"a" * 8192
BAD_UNSIGNED = {
    "not a size": (b"zz\r\n", "InvalidRequest"),
    "a signature where there is none": (b"5;chunk-signature=" + b"0" * 64 + b"\r\n", "InvalidRequest"),
    "a negative size": (b"-5\r\n", "InvalidRequest"),
    "a size of 17 digits": (b"0" * 16 + b"5\r\n", "InvalidRequest"),
    "an endless line": (b"0" * 1024, "InvalidRequest"),
    "more than was announced": (b"ffffffff\r\n", "IncompleteBody"),
    "less than was announced": (b"5\r\nhello\r\n0\r\n", "IncompleteBody"),
    "a small chunk before another": (b"5\r\nhello\r\n1\r\n", "InvalidChunkSizeError"),
    "a chunk that is longer than it said": (b"5\r\nhellooo\r\n", "IncompleteBody"),
    "a trailer that was not announced": (
        b"2005\r\n" + A + b"hello\r\n0\r\nx-amz-meta-x:1\r\n\r\n",
        "MalformedTrailerError",
    ),
    "a trailer twice": (
        b"2005\r\n" + A + b"hello\r\n0\r\n" + b"x-amz-checksum-crc32:NhCmhg==\r\n" * 2 + b"\r\n",
        "MalformedTrailerError",
    ),
    "a signature of a trailer where none is": (
        b"2005\r\n" + A + b"hello\r\n0\r\nx-amz-trailer-signature:00\r\n\r\n",
        "MalformedTrailerError",
    ),
    "no trailer": (b"2005\r\n" + A + b"hello\r\n0\r\n\r\n", "MalformedTrailerError"),
    "a trailer without a colon": (b"2005\r\n" + A + b"hello\r\n0\r\nx\r\n\r\n", "MalformedTrailerError"),
    "bytes after the end": (UNSIGNED + b"x", "InvalidRequest"),
    "an end in a chunk": (UNSIGNED[:100], "IncompleteBody"),
    "an end in the trailer": (UNSIGNED[:-2], "IncompleteBody"),
    "nothing": (b"", "IncompleteBody"),
}


@pytest.mark.parametrize("name", sorted(BAD_UNSIGNED))
def test_a_malformed_unsigned_body(name: str) -> None:
    data, code = BAD_UNSIGNED[name]
    with pytest.raises(S3Error) as caught:
        read(unsigned(), data)
    assert caught.value.code == code


def test_a_signed_chunk_is_not_longer_than_is_held() -> None:
    headers = length(str(streaming.LARGEST_SIGNED_CHUNK + 1))
    decoder = ChunkDecoder(sigv4.STREAMING_SIGNED, headers, SEAL)
    with pytest.raises(S3Error, match="at most"):
        decoder.feed(b"1000001;chunk-signature=" + b"0" * 64 + b"\r\n")


def test_a_trailer_without_its_signature_is_incomplete() -> None:
    with pytest.raises(S3Error, match="IncompleteBody"):
        read(trailed(), TRAILED[: TRAILED.index(b"x-amz-trailer-signature")] + b"\r\n")


SIZES = st.lists(st.integers(8192, 9000), max_size=3)


@given(sizes=SIZES, last=st.integers(0, 100), data=st.data())
def test_what_is_signed_chunk_by_chunk_is_read(sizes: list[int], last: int, data: st.DataObject) -> None:
    previous, body, plain = SEAL.seed, b"", b""
    for index, size in enumerate([*sizes, last, 0] if last else [*sizes, 0]):
        chunk = bytes([index]) * size
        previous = sigv4.chunk_signature(SEAL, previous, hashlib.sha256(chunk).hexdigest())
        body += f"{size:x};chunk-signature={previous}\r\n".encode() + (chunk + b"\r\n" if chunk else b"")
        plain += chunk
    crc = new_hasher("CRC32C")
    crc.update(plain)
    text = f"x-amz-checksum-crc32c:{to_base64(crc.digest())}"
    trailer = sigv4.trailer_signature(SEAL, previous, f"{text}\n".encode())
    body += f"{text}\r\nx-amz-trailer-signature:{trailer}\r\n\r\n".encode()
    headers = length(str(len(plain))) | {"x-amz-trailer": "x-amz-checksum-crc32c"}
    decoder = ChunkDecoder(sigv4.STREAMING_SIGNED_TRAILER, headers, SEAL)
    cut = data.draw(st.integers(0, len(body)))
    assert decoder.feed(body[:cut]) + decoder.feed(body[cut:]) == plain
    decoder.finish()
