"""The public entry of one segment: how it was coded, a root per shard, and the repair key's sealed shares.

A node stores it with each shard and the shard's list entry hashes it, so whoever reads a shard or rebuilds one checks
it against `roots[index]`. Nothing in it opens the segment: key, name and length stand in the client's encrypted index.

Invariant: one record has one spelling. `from_bytes(b).to_bytes() == b` for every `b` that is taken.
"""

from __future__ import annotations

from typing import Self

import msgspec

from freehold.protocol.errors import MalformedMessage
from freehold.protocol.typed import keccak
from freehold.protocol.units import Hash

VERSION = 1
MAX_SHARDS = 80
MAX_SHARD_BYTES = 1 << 30
MAX_SEALED_SHARES = 255  # Shamir positions are one byte
MAX_SEALED_BYTES = 512
MAX_RECORD_BYTES = 64 << 10


class SegmentRecord(msgspec.Struct, frozen=True, array_like=True):
    """`roots[i]` is the SHA-256 tree root of the masked shard `i`, `shard_size` its bytes.

    `sealed[j]` is the share of member position `j`, sealed to that member (`repair_key.py`); `()` where a network has
    no members to seal to.
    """

    version: int
    k: int
    n: int
    shard_size: int
    roots: tuple[bytes, ...]
    sealed: tuple[bytes, ...] = ()

    def to_bytes(self) -> bytes:
        """Canonical bytes: a msgpack array of the fields in their order."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> Self:
        """The record behind canonical bytes; MalformedMessage for anything else."""
        if len(data) > MAX_RECORD_BYTES:
            raise MalformedMessage(f"a segment record has at most {MAX_RECORD_BYTES} bytes, not {len(data)}")
        try:
            record = msgspec.msgpack.decode(data, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise MalformedMessage(f"not a segment record: {error}") from None
        record.check()
        if record.to_bytes() != data:
            raise MalformedMessage("a segment record that is not in its canonical form")
        return record

    def check(self) -> None:
        """MalformedMessage unless every field is in range and they fit each other."""
        if self.version != VERSION:
            raise MalformedMessage(f"segment record version {self.version} is not {VERSION}")
        if not 1 <= self.k < self.n <= MAX_SHARDS:
            raise MalformedMessage(f"{self.k} of {self.n} is not a code: 1 <= k < n <= {MAX_SHARDS}")
        if not 1 <= self.shard_size <= MAX_SHARD_BYTES:
            raise MalformedMessage(f"a shard of {self.shard_size} bytes")
        if len(self.roots) != self.n or any(len(root) != 32 for root in self.roots):
            raise MalformedMessage(f"{self.n} shards need {self.n} roots of 32 bytes")
        if len(self.sealed) > MAX_SEALED_SHARES or any(len(share) > MAX_SEALED_BYTES for share in self.sealed):
            raise MalformedMessage("too many or too long sealed shares")

    def hash(self) -> Hash:
        """keccak-256 of the canonical bytes: the record's id in list entries."""
        return keccak(self.to_bytes())
