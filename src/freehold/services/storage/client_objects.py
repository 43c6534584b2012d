"""What a client knows of what it stored: an object is segments, a segment is n shards at n nodes.

Kept in sealed records (a table's pages, its log) and nowhere else: a segment's keys stand here in the clear, and
nothing else binds a segment to its object. So segments of several objects, one after the other, are an object too, and
an object is copied by copying this. `positions[i]` is where shard i stands in its node's list, so that it can be taken
off again. Invariant: `decode_object(encode(o)) == o`, and bytes that are not exactly that are Corrupt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from freehold.protocol.errors import Corrupt, InvalidInput
from freehold.protocol.units import Address, Hash
from freehold.services.storage.codec import KEY_BYTES, REPAIR_KEY_BYTES
from freehold.services.storage.segment_record import MAX_SHARDS, VERSION, SegmentRecord


class Code(NamedTuple):
    """How objects are coded: n shards, any k of which are enough."""

    k: int
    n: int

    def check(self) -> Code:
        """The code; InvalidInput unless 1 <= k < n <= MAX_SHARDS."""
        if not 1 <= self.k < self.n <= MAX_SHARDS:
            raise InvalidInput(f"{self.k} of {self.n} is not a code: 1 <= k < n <= {MAX_SHARDS}")
        return self


class StoredSegment(msgspec.Struct, frozen=True, array_like=True):
    """`size` bytes, coded k of n; shard i has root `roots[i]` and is at `nodes[i]`, list position `positions[i]`.

    `keys` (48 bytes) are the segment's key and its repair key; `record` is the hash of its public record.
    """

    size: int
    k: int
    shard_size: int
    record: bytes
    keys: bytes
    roots: tuple[bytes, ...]
    nodes: tuple[bytes, ...]
    positions: tuple[int, ...]

    @property
    def n(self) -> int:
        """How many shards there are."""
        return len(self.roots)

    def to_record(self) -> SegmentRecord:
        """As much of the public record as reading needs: all but the sealed shares."""
        return SegmentRecord(VERSION, self.k, self.n, self.shard_size, self.roots)

    def check(self) -> None:
        """Corrupt unless the fields fit each other."""
        lengths = {len(self.roots), len(self.nodes), len(self.positions)}
        if (
            len(lengths) != 1
            or not 1 <= self.k < self.n
            or self.size < 0
            or len(self.keys) != KEY_BYTES + REPAIR_KEY_BYTES
            or any(len(node) != 20 for node in self.nodes)
            or any(len(root) != 32 for root in self.roots)
        ):
            raise Corrupt("a record names a segment that cannot be")


class StoredObject(msgspec.Struct, frozen=True, array_like=True):
    """`size` bytes in segments, in their order; none for an empty object."""

    size: int
    segments: tuple[StoredSegment, ...] = ()

    def shards(self) -> Iterator[ListedShard]:
        """Every shard, with where it is listed."""
        for segment in self.segments:
            for root, node, position in zip(segment.roots, segment.nodes, segment.positions, strict=True):
                yield ListedShard(Address(node), position, Hash(root))

    def nodes(self) -> set[Address]:
        """Every node that holds a shard."""
        return {Address(node) for segment in self.segments for node in segment.nodes}

    def check(self) -> StoredObject:
        """The object; Corrupt unless its fields fit each other."""
        for segment in self.segments:
            segment.check()
        if sum(segment.size for segment in self.segments) != self.size:
            raise Corrupt("a record names an object whose segments do not add up")
        return self


class ListedShard(NamedTuple):
    """A shard in a node's list."""

    node: Address
    position: int
    root: Hash


def join(objects: Iterable[StoredObject]) -> StoredObject:
    """One object of the bytes of all, in their order. It shares their shards: discard it or them, not both."""
    listed = list(objects)
    segments = tuple(segment for stored in listed for segment in stored.segments)
    return StoredObject(sum(stored.size for stored in listed), segments)


def decode_object(data: bytes) -> StoredObject:
    """The object behind msgpack bytes; Corrupt for anything else."""
    try:
        return msgspec.msgpack.decode(data, type=StoredObject).check()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"not a stored object: {error}") from None
