"""Storage's terms: its prices' unit, what parties sign, what is evidence, and what its state is.

A storage lease names a list: the Merkle-sum tree, by bytes, over the shards that one client keeps at one node. The
state holds the list's root, count and bytes, so it grows with pairs of client and node, not with shards. The list
changes by numbered deltas that both sign.
"""

from __future__ import annotations

from freehold.protocol.merkle import LISTS, SumNode
from freehold.protocol.typed import Message
from freehold.protocol.units import UNSIGNED, Address, Hash, Signature, Uint32, Uint64

NAME = "storage"
TIB = 2**40
UNITS_PER_STREAM_PRICE = TIB * 3600  # a stream's price is for a tebibyte kept for an hour, in byte-seconds
UNITS_PER_VOUCHER_PRICE = TIB  # a voucher's price is for a tebibyte sent

LIST_BYTES_LIMIT = 2**50  # what one client may keep at one node: bytes x seconds of an epoch stay a measure
LIST_COUNT_LIMIT = 2**40

DELTA, PROOF = "storage.delta", "storage.proof"

WRONG_LEASE = "wrong_lease"  # an opening from another lease than the one drawn
WRONG_LIST_PATH = "wrong_list_path"  # the entry is not in the list that the state names
WRONG_POSITION = "wrong_position"  # the entry does not cover the byte that was drawn
WRONG_LEAF = "wrong_leaf"  # another leaf than the one that holds the byte drawn
WRONG_SHARD_PATH = "wrong_shard_path"  # the leaf is not in the shard: the bytes are gone or changed


class ShardEntry(Message, frozen=True):
    """One shard in a list: `record` is the hash of its segment's record, `root` its SHA-256 tree's."""

    record: Hash
    index: Uint32
    root: Hash
    size: Uint64

    def leaf(self) -> SumNode:
        """Its leaf in the list's tree."""
        return LISTS.leaf(self.struct_hash(), (self.size,))


class Delta(Message, frozen=True):
    """Change `number` of a lease's list: what the list is after it. Both sign."""

    lease: Hash
    number: Uint64
    root: Hash  # 31 bytes of the sum tree's root, then a zero byte
    count: Uint64
    size: Uint64
    client_signature: Signature = UNSIGNED
    node_signature: Signature = UNSIGNED


class StorageProof(Message, frozen=True):
    """An opening: the entry that covers the byte drawn, its path in the list, the leaf, its path in the shard.

    `list_path`: 39 bytes a level (31 hash, 8 bytes sum); `shard_path`: 32 bytes a level, both bottom up.
    """

    epoch: Uint64
    node: Address
    draw: Uint32
    lease: Hash
    position: Uint64
    entry: ShardEntry
    list_path: bytes
    leaf: bytes
    shard_path: bytes


class Opening(Message, frozen=True):
    """An obligation: open byte `offset` of this list as it stood after the epoch before."""

    epoch: Uint64
    node: Address
    draw: Uint32
    lease: Hash
    root: Hash
    count: Uint64
    size: Uint64
    offset: Uint64


class ListState(Message, frozen=True):
    """A lease's list in the state; `number` is that of the last delta that counted."""

    lease: Hash
    node: Address
    number: Uint64
    root: Hash
    count: Uint64
    size: Uint64


class Served(Message, frozen=True):
    """What a node signs of each response: the bytes of this shard that it sends have this root.

    It binds the node to what it says, not the bytes to the header: a node that signs the right root and sends garbage
    leaves no proof. Its client drops what does not match, and does not count it as received.
    """

    lease: Hash
    shard: Hash
    offset: Uint64
    size: Uint64
    content: Hash  # SHA-256 tree root of exactly the bytes sent
    deadline: Uint64
    node_signature: Signature = UNSIGNED


class RegisterValue(Message, frozen=True):
    """What the client of a register proposes under one ballot; never two values under one (`register_values.py`)."""

    group: Hash
    name: bytes
    counter: Uint64
    proposer: Uint64
    version: Uint64
    content: Hash  # the value's digest


class RegisterPrepare(Message, frozen=True):
    """A register's client asks for a promise to take nothing under lower ballots."""

    group: Hash
    name: bytes
    counter: Uint64
    proposer: Uint64
