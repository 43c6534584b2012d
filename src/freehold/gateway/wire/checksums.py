"""The digests of bodies: which a request asks for, and computing them as bytes come in.

S3 knows five checksums beside MD5 and the signature's SHA-256. CRCs come from AWS's own C library (zlib has only the
first). Those of multipart objects are made from their parts' in client/checksums_combine.py.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from awscrt import checksums as crt

from freehold.gateway.wire.errors import S3Error

ALGORITHMS = ("CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256")
SIZES = {"CRC32": 4, "CRC32C": 4, "CRC64NVME": 8, "SHA1": 20, "SHA256": 32, "MD5": 16}  # bytes of a digest
HEADERS = {f"x-amz-checksum-{name.lower()}": name for name in ALGORITHMS}
FULL_OBJECT, COMPOSITE = "FULL_OBJECT", "COMPOSITE"


class Hasher(Protocol):
    """Takes bytes in order; `digest` is big-endian, as S3 writes it."""

    def update(self, data: bytes | memoryview, /) -> None: ...

    def digest(self) -> bytes: ...


_CRCS: dict[str, Callable[[bytes | memoryview, int], int]] = {
    "CRC32": zlib.crc32,
    "CRC32C": crt.crc32c,
    "CRC64NVME": crt.crc64nvme,
}


class CrcHasher:
    """A CRC by its name, byte by byte as it comes."""

    def __init__(self, name: str) -> None:
        self._compute, self._size, self._value = _CRCS[name], SIZES[name], 0

    def update(self, data: bytes | memoryview, /) -> None:
        self._value = self._compute(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._size, "big")


def new_hasher(name: str) -> Hasher:
    """A hasher of one of ALGORITHMS, or of "MD5"."""
    if name in _CRCS:
        return CrcHasher(name)
    return hashlib.new(name.lower(), usedforsecurity=False)


def header_name(algorithm: str) -> str:
    return f"x-amz-checksum-{algorithm.lower()}"


def to_base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def decode_digest(name: str, text: str) -> bytes | None:
    """The digest that base64 text holds; None where that is none of `name`'s length."""
    try:
        digest = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return digest if len(digest) == SIZES[name] else None


# --- what a request asks for ------------------------------------------------------------------------------------------


class Wanted(NamedTuple):
    """A checksum that a request names. `expected` is base64; "" where it comes in a trailer."""

    algorithm: str
    expected: str


def parse_algorithm(text: str) -> str:
    """The name of an algorithm as S3 writes it. S3Error for one that it does not have."""
    if text.upper() not in ALGORITHMS:
        valid = ", ".join(ALGORITHMS)
        message = "Checksum algorithm provided is unsupported. Please try again with any of the valid types: "
        raise S3Error("InvalidRequest", f"{message}[{valid}]")
    return text.upper()


def parse_trailer_name(headers: Mapping[str, str]) -> str | None:
    """The algorithm that `x-amz-trailer` announces; None without the header. S3Error for what S3 does not take."""
    text = headers.get("x-amz-trailer")
    if text is None:
        return None
    found = HEADERS.get(text.strip().lower())
    if found is None:
        raise S3Error("InvalidRequest", "The value specified in the x-amz-trailer header is not supported")
    return found


def parse_wanted(headers: Mapping[str, str], *, composite: bool = False) -> Wanted | None:
    """The checksum that a request's headers ask for, None for none.

    `composite` takes a value with "-N" too, as CompleteMultipartUpload may have.
    """
    given = [name for name in HEADERS if name in headers]
    trailer = parse_trailer_name(headers)
    if len(given) + (trailer is not None) > 1:
        message = "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed."
        raise S3Error("InvalidRequest", message)
    wanted = None
    if trailer is not None:
        wanted = Wanted(trailer, "")
    elif given:
        name, value = HEADERS[given[0]], headers[given[0]].strip()
        digest, _, count = value.partition("-")
        is_count = not count or (composite and count.isascii() and count.isdigit())
        if decode_digest(name, digest) is None or not is_count or value.endswith("-"):
            raise S3Error("InvalidRequest", f"Value for {given[0]} header is invalid.")
        wanted = Wanted(name, value)
    named = headers.get("x-amz-sdk-checksum-algorithm")
    if named is not None:
        algorithm = parse_algorithm(named)
        if wanted is None and not composite:
            message = (
                "x-amz-sdk-checksum-algorithm specified, but no corresponding x-amz-checksum-* or x-amz-trailer "
                "headers were found."
            )
            raise S3Error("InvalidRequest", message)
        if wanted is not None and algorithm != wanted.algorithm:
            raise S3Error("InvalidRequest", "Value for x-amz-sdk-checksum-algorithm header is invalid.")
    return wanted


def parse_content_md5(headers: Mapping[str, str]) -> bytes | None:
    """The digest of Content-MD5; None without the header. S3Error InvalidDigest for what is none."""
    text = headers.get("content-md5")
    if text is None:
        return None
    digest = decode_digest("MD5", text.strip())
    if digest is None:
        raise S3Error("InvalidDigest", Content_MD5=text)
    return digest


def parse_checksum_type(headers: Mapping[str, str]) -> tuple[str, str]:
    """(algorithm, type) of CreateMultipartUpload's headers; ("", "") where it asks for none."""
    text, kind = headers.get("x-amz-checksum-algorithm"), headers.get("x-amz-checksum-type", "").upper()
    if text is None:
        if kind:
            message = "The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header."
            raise S3Error("InvalidRequest", message)
        return "", ""
    algorithm = parse_algorithm(text)
    if kind not in ("", FULL_OBJECT, COMPOSITE):
        raise S3Error("InvalidRequest", "Value for x-amz-checksum-type header is invalid.")
    only = {"CRC64NVME": FULL_OBJECT, "SHA1": COMPOSITE, "SHA256": COMPOSITE}.get(algorithm)
    if kind and only and kind != only:
        message = f"The {kind} checksum type cannot be used with the {algorithm.lower()} checksum algorithm."
        raise S3Error("InvalidRequest", message)
    return algorithm, kind or only or COMPOSITE


# --- a body as it comes in --------------------------------------------------------------------------------------------


class BodyDigests:
    """Every digest that one body needs, each computed once; `finish` compares those that were named.

    `payload_hash` is what the signature says (sigv4). `default` is the checksum to compute where none is asked for;
    `md5` says whether an ETag is needed (it costs the most). A mismatch names both digests.
    """

    def __init__(
        self, headers: Mapping[str, str], payload_hash: str = "", *, default: str = "", md5: bool = True
    ) -> None:
        self._wanted = parse_wanted(headers)
        self._content_md5 = parse_content_md5(headers)
        self._payload_sha256 = payload_hash.lower() if len(payload_hash) == 64 else ""
        self.algorithm = self._wanted.algorithm if self._wanted else default
        names = {self.algorithm} - {""}
        names |= {"MD5"} if md5 or self._content_md5 is not None else set()
        names |= {"SHA256"} if self._payload_sha256 else set()
        self._hashers = {name: new_hasher(name) for name in names}

    def update(self, data: bytes | memoryview) -> None:
        for hasher in self._hashers.values():
            hasher.update(data)

    def finish(self, trailers: Mapping[str, str] | None = None) -> None:
        """Call once, after the last byte; `trailers` as the decoder of the body found them. S3Error."""
        if self._payload_sha256 and self._hex("SHA256") != self._payload_sha256:
            raise S3Error(
                "XAmzContentSHA256Mismatch",
                ClientComputedContentSHA256=self._payload_sha256,
                S3ComputedContentSHA256=self._hex("SHA256"),
            )
        if self._content_md5 is not None and self._hashers["MD5"].digest() != self._content_md5:
            expected = to_base64(self._content_md5)
            raise S3Error("BadDigest", ExpectedDigest=expected, CalculatedDigest=self._base64("MD5"))
        if self._wanted is None:
            return
        name = self._wanted.algorithm
        expected = self._wanted.expected or (trailers or {}).get(header_name(name), "").strip()
        if decode_digest(name, expected) is None:
            raise S3Error("InvalidRequest", f"Value for {header_name(name)} trailing header is invalid.")
        if expected != self._base64(name):
            message = f"The {name} you specified did not match the calculated checksum."
            raise S3Error("BadDigest", message, ExpectedDigest=expected, CalculatedDigest=self._base64(name))

    @property
    def etag(self) -> str:
        """MD5 in hex; "" where it was not computed."""
        return self._hex("MD5") if "MD5" in self._hashers else ""

    @property
    def checksums(self) -> dict[str, str]:
        """The one checksum by its name, in base64; none where none was asked for."""
        return {self.algorithm: self._base64(self.algorithm)} if self.algorithm else {}

    def _hex(self, name: str) -> str:
        return self._hashers[name].digest().hex()

    def _base64(self, name: str) -> str:
        return to_base64(self._hashers[name].digest())
