"""A bucket's index: every object's encrypted path and what it is made of; and what a head says of the index.

The index is itself an object of the bucket, stored under the path `.index`, which no encrypted name can be. Names are
encrypted within it once more (`names.py`), so that a prefix can be handed on without the rest. Invariant: bytes that
are not exactly an index, or a head, are Corrupt.
"""

from __future__ import annotations

import msgspec

from freehold.protocol.errors import Corrupt
from freehold.services.storage.client_objects import Code, StoredObject

INDEX_PATH = ".index"
VERSION = 1


class IndexEntry(msgspec.Struct, frozen=True, array_like=True):
    """An object and when it was put (unix time in seconds)."""

    stored: StoredObject
    modified: int


class _Index(msgspec.Struct, frozen=True, array_like=True):
    version: int
    entries: dict[str, IndexEntry]


class BucketHead(msgspec.Struct, frozen=True, array_like=True):
    """The bucket's code, and its index; None while it is empty."""

    version: int
    k: int
    n: int
    index: StoredObject | None

    @property
    def code(self) -> Code:
        """k and n of every object of the bucket."""
        return Code(self.k, self.n)


def encode_index(entries: dict[str, IndexEntry]) -> bytes:
    """The index by encrypted path, as it is stored."""
    return msgspec.msgpack.encode(_Index(VERSION, entries))


def decode_index(data: bytes) -> dict[str, IndexEntry]:
    """The entries behind `encode_index`'s form; Corrupt."""
    try:
        index = msgspec.msgpack.decode(data, type=_Index)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"not a bucket's index: {error}") from None
    if index.version != VERSION:
        raise Corrupt(f"index version {index.version} is not {VERSION}")
    for entry in index.entries.values():
        entry.stored.check()
    return index.entries


def encode_head(code: Code, index: StoredObject | None) -> bytes:
    """What a head says of a bucket."""
    return msgspec.msgpack.encode(BucketHead(VERSION, code.k, code.n, index))


def decode_head(data: bytes) -> BucketHead:
    """The head behind `encode_head`'s form; Corrupt."""
    try:
        head = msgspec.msgpack.decode(data, type=BucketHead)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"not a bucket's head: {error}") from None
    if head.version != VERSION:
        raise Corrupt(f"head version {head.version} is not {VERSION}")
    if head.index is not None:
        head.index.check()
    return head
