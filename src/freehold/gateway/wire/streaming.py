"""Decodes aws-chunked bodies: signed chunks, signed chunks with a trailer, unsigned chunks with a trailer.

    size[;chunk-signature=...] CRLF data CRLF     for each chunk, the last one of size 0
    name:value CRLF [x-amz-trailer-signature:... CRLF] CRLF

Invariant: no byte of a signed chunk is given out before its signature was verified, so at most one chunk is held.
Source: https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming.html and sigv4-streaming-trailers.html
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from freehold.gateway.wire.checksums import header_name, parse_trailer_name
from freehold.gateway.wire.errors import S3Error, invalid_argument
from freehold.gateway.wire.sigv4 import (
    CHUNK_ALGORITHM,
    STREAMING,
    STREAMING_SIGNED,
    STREAMING_UNSIGNED_TRAILER,
    TRAILER_ALGORITHM,
    Seal,
    chunk_signature,
    is_same,
    trailer_signature,
)

LARGEST_SIGNED_CHUNK = 16 << 20
SMALLEST_CHUNK = 8192  # but for the last, as AWS has it
LONGEST_LINE = 1024
LONGEST_TRAILER = 8192
TRAILER_SIGNATURE = "x-amz-trailer-signature"

_HEADER = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;chunk-signature=([0-9a-f]{64}))?")
_TRAILER = re.compile(r"([a-zA-Z0-9\-]+):[ \t]*([\x21-\x7e]*)[ \t]*")


class ChunkDecoder:
    """One body. Feed it what arrives, then `finish`; what is malformed raises S3Error, and it is not to be used again.

    `payload_hash` is one of sigv4.STREAMING, `seal` what `verify` gave (None: anonymous, unsigned chunks only).
    """

    def __init__(self, payload_hash: str, headers: Mapping[str, str], seal: Seal | None) -> None:
        if payload_hash not in STREAMING:
            raise ValueError(payload_hash)
        self.length = parse_decoded_length(headers)
        self.trailers: dict[str, str] = {}
        self._is_signed = payload_hash != STREAMING_UNSIGNED_TRAILER
        if self._is_signed and seal is None:
            raise S3Error("AccessDenied", f"{payload_hash} needs a signed request")
        self._seal = seal
        self._previous = seal.seed if seal else ""
        self._trailer = ""  # the header that was announced
        if payload_hash != STREAMING_SIGNED:
            algorithm = parse_trailer_name(headers)
            if algorithm is None:
                raise S3Error("InvalidRequest", f"{payload_hash} needs the x-amz-trailer header")
            self._trailer = header_name(algorithm)
        self._step = self._read_header
        self._buffer = b""  # what a step could not use yet: less than a line
        self._out: list[bytes] = []
        self._held: list[bytes] = []  # the signed chunk under way
        self._sha256 = hashlib.sha256()
        self._signature = ""
        self._size = 0  # of the chunk under way
        self._left = 0  # bytes of it still to come
        self._total = 0
        self._trailer_bytes = 0
        self._is_done = False

    def feed(self, data: bytes) -> bytes:
        """The plain bytes that can be given out now."""
        self._buffer = self._buffer + data if self._buffer else data
        position = 0
        while (after := self._step(position)) is not None:
            position = after
        self._buffer = self._buffer[position:]
        out, self._out = self._out, []
        return out[0] if len(out) == 1 else b"".join(out)

    def finish(self) -> None:
        """S3Error IncompleteBody unless the whole body came."""
        if not self._is_done:
            raise S3Error("IncompleteBody")

    # Each step takes the buffer from `position` on and gives the position after what it used; None: it needs more.

    def _read_line(self, position: int, limit: int = LONGEST_LINE) -> tuple[bytes, int] | None:
        end = self._buffer.find(b"\n", position, position + limit)
        if end < 0:
            if len(self._buffer) - position >= limit:
                raise S3Error("InvalidRequest", f"A line of the chunked body is longer than {limit} bytes")
            return None
        return self._buffer[position:end].removesuffix(b"\r"), end + 1

    def _read_header(self, position: int) -> int | None:
        found = self._read_line(position)
        if found is None:
            return None
        line, after = found
        match = _HEADER.fullmatch(line)
        if match is None or bool(match[2]) != self._is_signed:
            expected = "size;chunk-signature=signature" if self._is_signed else "size"
            raise S3Error("InvalidRequest", f'A chunk of the body must begin with "{expected}"')
        size = int(match[1], 16)
        if size and self._total and self._size < SMALLEST_CHUNK:
            raise S3Error("InvalidChunkSizeError", BadChunkSize=self._size)
        if self._total + size > self.length or (not size and self._total < self.length):
            raise _incomplete(self.length)
        if self._is_signed and size > LARGEST_SIGNED_CHUNK:
            raise S3Error("InvalidRequest", f"A signed chunk may have {LARGEST_SIGNED_CHUNK} bytes at most")
        self._size = self._left = size
        self._total += size
        self._signature = (match[2] or b"").decode()
        self._sha256 = hashlib.sha256()
        self._step = self._read_data
        return after

    def _read_data(self, position: int) -> int | None:
        piece = self._buffer[position : position + self._left]
        self._left -= len(piece)
        if piece:
            if self._is_signed:
                self._sha256.update(piece)
                self._held.append(piece)
            else:
                self._out.append(piece)
        position += len(piece)
        if self._left:
            self._buffer = b""
            return None
        self._check_chunk()
        self._step = self._read_data_end if self._size else self._read_trailer
        return position

    def _read_data_end(self, position: int) -> int | None:
        found = self._buffer[position : position + 2]
        if len(found) < 2:
            return None
        if found != b"\r\n":
            raise S3Error("IncompleteBody", "A chunk of the body is longer than it said")
        self._step = self._read_header
        return position + 2

    def _check_chunk(self) -> None:
        if self._seal is None or not self._is_signed:
            return
        digest = self._sha256.hexdigest()
        expected = chunk_signature(self._seal, self._previous, digest)
        if not is_same(expected, self._signature):
            raise self._mismatch(CHUNK_ALGORITHM, digest, self._signature)
        self._previous = expected
        self._out += self._held
        self._held = []

    def _mismatch(self, algorithm: str, digest: str, given: str) -> S3Error:
        message = f"The {algorithm} signature of the body does not match; check your key and signing method."
        return S3Error(
            "SignatureDoesNotMatch", message, SignatureProvided=given, PreviousSignature=self._previous, SHA256=digest
        )

    def _read_trailer(self, position: int) -> int | None:
        found = self._read_line(position)
        if found is None:
            return None
        line, after = found
        self._trailer_bytes += len(line) + 1
        if self._trailer_bytes > LONGEST_TRAILER:
            raise S3Error("MalformedTrailerError")
        if not line and self._is_signed and self._trailer in self.trailers and TRAILER_SIGNATURE not in self.trailers:
            return after  # AWS's own example has an empty line before the signature
        if not line:
            self._check_trailer()
            self._is_done = True
            self._step = self._read_nothing
            return after
        match = _TRAILER.fullmatch(line.decode("latin-1"))
        name = match[1].lower() if match else ""
        allowed = (self._trailer, TRAILER_SIGNATURE) if self._is_signed else (self._trailer,)
        if match is None or not self._trailer or name not in allowed or name in self.trailers:
            raise S3Error("MalformedTrailerError")
        self.trailers[name] = match[2]
        return after

    def _check_trailer(self) -> None:
        if not self._trailer:
            return
        given = self.trailers.pop(TRAILER_SIGNATURE, "")
        if self._trailer not in self.trailers:
            raise S3Error(
                "MalformedTrailerError", f"The trailing header {self._trailer} was announced and did not come"
            )
        if self._seal is None or not self._is_signed:
            return
        canonical = f"{self._trailer}:{self.trailers[self._trailer]}\n".encode()
        if not is_same(trailer_signature(self._seal, self._previous, canonical), given):
            raise self._mismatch(TRAILER_ALGORITHM, hashlib.sha256(canonical).hexdigest(), given)

    def _read_nothing(self, position: int) -> int | None:
        if len(self._buffer) > position:
            raise S3Error("InvalidRequest", "There are bytes after the end of the chunked body")
        return None


def parse_decoded_length(headers: Mapping[str, str]) -> int:
    """`x-amz-decoded-content-length` in bytes."""
    text = headers.get("x-amz-decoded-content-length")
    if text is None:
        raise S3Error("MissingContentLength", "You must provide the x-amz-decoded-content-length HTTP header.")
    if not re.fullmatch(r"[0-9]{1,16}", text.strip(), re.ASCII):
        raise invalid_argument("x-amz-decoded-content-length", text, "The length must be a number of bytes.")
    return int(text)


def _incomplete(length: int) -> S3Error:
    message = f"The body does not have the {length} bytes that x-amz-decoded-content-length says"
    return S3Error("IncompleteBody", message)
