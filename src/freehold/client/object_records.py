"""What a bucket's table holds: versions of objects, unfinished uploads, their parts; and the ids that name them.

    (OBJECTS, key in UTF-8, 2^64 - 1 - sequence)   Version     newest first within a key
    (UPLOADS, key in UTF-8, sequence)              Upload      oldest first within a key
    (PARTS,   upload's sequence, number)           Part

`sequence` is the number of the commit that made it, so the order is the order of commits, whatever clocks say. Ids
handed out are the sequence under a cipher of the bucket (SIV: a keyed hash of sequence and key, then the sequence
masked by it), so that they tell nothing and lead straight to the place. Invariants: `open_id(seal_id(s)) == s`, and an
id that was not made for this bucket and key opens nothing; bytes that are not exactly a record are Corrupt.
"""

from __future__ import annotations

import hashlib
from typing import TypeVar

import msgspec

from freehold.client import paths
from freehold.client.table_records import Key
from freehold.protocol.errors import Corrupt, InvalidInput

OBJECTS, UPLOADS, PARTS = 1, 2, 3
LAST_SUB = b"\xff" * 9  # after every sub that a key has

MARKER, NULL_VERSION, FAR = 1, 2, 4

_LAST = 2**64 - 1


class Extra(msgspec.Struct, frozen=True, array_like=True):
    """What few versions have. `parts`: rows of (number, size, checksums), packed; `upload`: what it was made by."""

    headers: dict[str, str] = {}
    metadata: dict[str, str] = {}
    tags: dict[str, str] = {}
    checksums: dict[str, str] = {}
    checksum_type: str = ""
    parts: bytes = b""
    storage_class: str = "STANDARD"
    lock_mode: str = ""
    retain_until: int = 0
    legal_hold: bool = False
    upload: bytes = b""


class Version(msgspec.Struct, frozen=True, array_like=True):
    """A version or delete marker. `stored` is a packed StoredObject, empty where the bytes are inlined.

    With FAR in `flags`, `stored` is where the real one is stored: that of many segments is too long for a record.
    """

    flags: int
    size: int
    modified: int
    etag: str
    stored: bytes = b""
    nodes: int = 0
    extra: Extra = Extra()

    @property
    def is_marker(self) -> bool:
        """Whether this is a delete marker."""
        return bool(self.flags & MARKER)

    @property
    def is_null(self) -> bool:
        """Whether it goes by the id "null"."""
        return bool(self.flags & NULL_VERSION)


class Upload(msgspec.Struct, frozen=True, array_like=True):
    """An unfinished multipart upload, with what its object will have."""

    created: int
    algorithm: str
    extra: Extra


class Part(msgspec.Struct, frozen=True, array_like=True):
    """A part that was stored."""

    size: int
    modified: int
    etag: str
    checksums: dict[str, str]
    stored: bytes


PartRow = tuple[int, int, dict[str, str]]  # number, size, checksums

T = TypeVar("T")

_VERSIONS = msgspec.msgpack.Decoder(Version)


def encode(record: msgspec.Struct) -> bytes:
    """A record as a table keeps it."""
    return msgspec.msgpack.encode(record)


def decode(data: bytes, kind: type[T]) -> T:
    """The record behind `encode`'s form; Corrupt for anything else."""
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"not a bucket's record: {error}") from None


def decode_version(data: bytes) -> Version:
    """`decode` for the kind that lists go through by the thousand."""
    try:
        return _VERSIONS.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"not a bucket's record: {error}") from None


def encode_key(key: str) -> bytes:
    """An object's key in UTF-8; InvalidInput unless S3 takes it."""
    if not key:
        raise InvalidInput("a key has at least one character")
    return paths.encode_key(key)


def encode_text(text: str) -> bytes:
    """A prefix, delimiter or marker in UTF-8; InvalidInput for text that has none."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{text!r} is not valid Unicode") from None


def version_place(key: bytes, sequence: int) -> Key:
    """Where a version stands."""
    return OBJECTS, key, (_LAST - sequence).to_bytes(8)


def upload_place(key: bytes, sequence: int) -> Key:
    """Where an upload stands."""
    return UPLOADS, key, sequence.to_bytes(8)


def part_place(upload: int, number: int) -> Key:
    """Where a part of the upload with this sequence stands."""
    return PARTS, upload.to_bytes(8), number.to_bytes(4)


def sequence_of(place: Key) -> int:
    """The sequence behind `version_place` or `upload_place`."""
    number = int.from_bytes(place[2])
    return _LAST - number if place[0] == OBJECTS else number


class Ids:
    """Version and upload ids of one bucket: 32 lower-case hexadecimal digits."""

    def __init__(self, secret: bytes) -> None:
        self._tag_key = hashlib.blake2b(b"tag", key=secret, digest_size=32).digest()
        self._mask_key = hashlib.blake2b(b"mask", key=secret, digest_size=32).digest()

    def seal(self, place: Key) -> str:
        """The id of what stands at a place."""
        sequence = sequence_of(place).to_bytes(8)
        tag = self._tag(place[0], place[1], sequence)
        return (tag + self._mask(tag, sequence)).hex()

    def open(self, space: int, key: bytes, id: str) -> Key | None:
        """The place behind an id; None for one that was never given for this key."""
        try:
            raw = bytes.fromhex(id)
        except ValueError:
            return None
        sequence = self._mask(raw[:8], raw[8:])
        if len(raw) != 16 or raw.hex() != id or self._tag(space, key, sequence) != raw[:8]:
            return None
        number = int.from_bytes(sequence)
        return version_place(key, number) if space == OBJECTS else upload_place(key, number)

    def _tag(self, space: int, key: bytes, sequence: bytes) -> bytes:
        return hashlib.blake2b(bytes([space]) + sequence + key, key=self._tag_key, digest_size=8).digest()

    def _mask(self, tag: bytes, data: bytes) -> bytes:
        mask = hashlib.blake2b(tag, key=self._mask_key, digest_size=8).digest()
        return bytes(a ^ b for a, b in zip(data, mask, strict=False))
