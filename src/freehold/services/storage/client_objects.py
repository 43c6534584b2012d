"""What a client knows of what it stored: an object is segments, a segment is n shards at n nodes.

Kept in a bucket's encrypted index; none of it is public. A segment's keys are wrapped by the key of its object's path
(`names.py`); `positions[i]` is where the shard stands in its node's list, so that it can be taken off again.
Invariant: `decode_object(encode(o)) == o`, and bytes that are not exactly that are Corrupt.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from freehold.protocol.errors import Corrupt
from freehold.protocol.units import Address, Hash
from freehold.services.storage.segment_record import VERSION, SegmentRecord


class Code(NamedTuple):
    """k of n: any k of a segment's n shards give it back."""

    k: int
    n: int


class StoredSegment(msgspec.Struct, frozen=True, array_like=True):
    """`size` bytes, coded k of n; shard i has root `roots[i]` and is at `nodes[i]`, list position `positions[i]`."""

    size: int
    k: int
    shard_size: int
    record: bytes
    wrapped: bytes
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
        if len(lengths) != 1 or not 1 <= self.k < self.n or any(len(node) != 20 for node in self.nodes):
            raise Corrupt("an index names a segment that cannot be")


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
            raise Corrupt("an index names an object whose segments do not add up")
        return self


class ListedShard(NamedTuple):
    """A shard in a node's list."""

    node: Address
    position: int
    root: Hash


def decode_object(data: bytes) -> StoredObject:
    """The object behind msgpack bytes; Corrupt for anything else."""
    try:
        return msgspec.msgpack.decode(data, type=StoredObject).check()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"not a stored object: {error}") from None
