"""Three trees: rows (plain), accounts and lists (positional, with sums).

`row_root` commits to rows in their order: leaf = keccak(0x00 ‖ row hash), node = keccak(0x01 ‖ left ‖ right), an
odd node is carried up. The prefixes keep a leaf from posing as a node.

`SumTree` keeps a position for each entry and carries sums, so that a total, an absence and a shrunken entry can
be shown. A node is (31-byte hash, sums); 31 bytes because two children with three 96-bit sums and a prefix then
fill 135 bytes, which is one keccak block:

    leaf  = keccak(0x00 ‖ content ‖ sums)[:31]
    node  = keccak(0x01 ‖ left hash ‖ left sums ‖ right hash ‖ right sums)[:31]
    empty = 31 zero bytes and zero sums; node(empty, empty) = empty

Both trees keep their levels as nodes side by side (`levels.py`). A changed copy computes only the paths that change.

Invariant: a proof that verifies against (root, sums) shows content and sums of exactly that position, and no
sums below add up to anything but the root's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from sha3 import keccak_256

from freehold.protocol.errors import Overflow
from freehold.protocol.hashing import Bytes, Integers, Part, keccak_rows
from freehold.protocol.levels import Levels
from freehold.protocol.units import Hash

HASH_BYTES = 31
LIMB_BYTES = 4  # of sums added column by column


def _pair(left: bytes, right: bytes) -> bytes:
    return bytes(keccak_256(b"\x01" + left + right).digest())


Hashes = Iterable[bytes] | Bytes


def _row_leaves(hashes: Hashes) -> Bytes:
    rows = hashes if isinstance(hashes, np.ndarray) else np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 32)
    return keccak_rows([b"\x00", rows], len(rows))


def _row_parents(pairs: Bytes) -> Bytes:
    return keccak_rows([b"\x01", pairs], len(pairs))


def row_root(hashes: Hashes) -> Hash:
    """The root over row hashes (32 bytes each, or (n, 32)) in their order; 32 zero bytes for none."""
    level = _row_leaves(hashes)
    if not len(level):
        return Hash(bytes(32))
    while len(level) > 1:
        even = len(level) & ~1
        level = np.concatenate([_row_parents(level[:even].reshape(-1, 64)), level[even:]])
    return Hash(level.tobytes())


def row_proof(hashes: Sequence[bytes], index: int) -> list[Hash]:
    """The siblings of row `index`, bottom up; levels where it is carried up have none."""
    return RowTree(hashes).proof(index)


class RowTree:
    """The tree over row hashes, its levels computed once: for many proofs, and for trees that differ in few rows."""

    def __init__(self, hashes: Hashes) -> None:
        self._levels = Levels(_row_leaves(hashes), _row_parents, None)

    def __len__(self) -> int:
        return len(self._levels)

    @property
    def root(self) -> Hash:
        """As `row_root`."""
        return Hash(self._levels.top or bytes(32))

    def proof(self, index: int) -> list[Hash]:
        """The siblings of row `index`, bottom up; levels where it is carried up have none."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of a tree with {len(self)}")
        return [Hash(sibling) for sibling in self._levels.siblings(index) if sibling is not None]

    def update(self, indices: Sequence[int] | Integers, hashes: Hashes) -> RowTree:
        """The tree in which the rows at `indices` have these hashes; it costs one path a row.

        Rows may be added behind the last, if none is left out. This tree stays as it is.
        """
        twin = RowTree(())
        twin._levels = self._levels.changed(np.asarray(indices, np.int64), _row_leaves(hashes))
        return twin


def verify_row(root: Hash, count: int, index: int, row_hash: bytes, proof: Sequence[bytes]) -> bool:
    """Whether the row with this hash is the one at `index` of `count` rows under `root`."""
    if not 0 <= index < count:
        return False
    node, rest, width = keccak_256(b"\x00" + row_hash).digest(), list(proof), count
    while width > 1:
        if index ^ 1 < width:
            if not rest:
                return False
            sibling = rest.pop(0)
            node = _pair(sibling, node) if index % 2 else _pair(node, sibling)
        index, width = index // 2, (width + 1) // 2
    return not rest and node == root


class SumNode(NamedTuple):
    """A node of a sum tree: its hash (31 bytes) and the sums of everything below it."""

    hash: bytes
    sums: tuple[int, ...]


class SumScheme(NamedTuple):
    """Which sums a tree carries: their widths in bytes."""

    widths: tuple[int, ...]

    @property
    def node_bytes(self) -> int:
        """The packed size of a node."""
        return HASH_BYTES + sum(self.widths)

    @property
    def empty(self) -> SumNode:
        """The node of a position that was never set."""
        return SumNode(bytes(HASH_BYTES), (0,) * len(self.widths))

    def pack(self, node: SumNode) -> bytes:
        """hash ‖ sums, big-endian."""
        return node.hash + self.pack_sums(node.sums)

    def pack_sums(self, sums: tuple[int, ...]) -> bytes:
        """The sums, big-endian, each in its width. Overflow if one does not fit."""
        try:
            return b"".join(value.to_bytes(width) for value, width in zip(sums, self.widths, strict=True))
        except OverflowError:
            raise Overflow(f"sums {sums} do not fit into {self.widths} bytes") from None

    def unpack(self, data: bytes) -> SumNode:
        """The node behind `pack`'s form."""
        sums, at = [], HASH_BYTES
        for width in self.widths:
            sums.append(int.from_bytes(data[at : at + width]))
            at += width
        return SumNode(data[:HASH_BYTES], tuple(sums))

    def leaf(self, content: bytes, sums: tuple[int, ...]) -> SumNode:
        """The node of an entry."""
        return SumNode(keccak_256(b"\x00" + content + self.pack_sums(sums)).digest()[:HASH_BYTES], sums)

    def join(self, left: SumNode, right: SumNode) -> SumNode:
        """The parent of two nodes."""
        return self.unpack(self.join_packed(self.pack(left) + self.pack(right)))

    def join_packed(self, pair: bytes) -> bytes:
        """The parent of two nodes, packed side by side; packed."""
        size = self.node_bytes
        if not any(pair):
            return pair[:size]
        parts, at = [keccak_256(b"\x01" + pair).digest()[:HASH_BYTES]], HASH_BYTES
        try:
            for width in self.widths:
                left, right = pair[at : at + width], pair[size + at : size + at + width]
                parts.append((int.from_bytes(left) + int.from_bytes(right)).to_bytes(width))
                at += width
        except OverflowError:
            raise Overflow(f"sums do not fit into {self.widths} bytes") from None
        return b"".join(parts)

    def leaves(self, content: Sequence[Part], sums: Sequence[Bytes | Integers]) -> Bytes:
        """(n, node_bytes): packed nodes of entries. `content`: its parts (`keccak_rows`); `sums`: little-endian cells.

        A sum may also be an integer column, where its width takes 64 bits.
        """
        count = len(sums[0])
        wide = [_big_endian(column, width) for column, width in zip(sums, self.widths, strict=True)]
        hashes = keccak_rows([b"\x00", *content, *wide], count)
        return np.concatenate([hashes[:, :HASH_BYTES], *wide], axis=1)

    def parents(self, pairs: Bytes) -> Bytes:
        """(n, node_bytes): the parents of n pairs of packed nodes, (n, 2 * node_bytes). As `join`."""
        count = len(pairs)
        parents = np.empty((count, self.node_bytes), np.uint8)
        parents[:, HASH_BYTES:] = self._sums_of(pairs)
        parents[:, :HASH_BYTES] = keccak_rows([b"\x01", pairs], count)[:, :HASH_BYTES]
        suspects = np.flatnonzero(pairs[:, 0] == 0)
        parents[suspects[~pairs[suspects].any(axis=1)]] = 0
        return parents

    def _sums_of(self, pairs: Bytes) -> Bytes:
        nodes = pairs.reshape(-1, self.node_bytes)
        limbs = np.ascontiguousarray(nodes[:, HASH_BYTES:]).view(">u4").astype(np.uint64)
        total = limbs[0::2] + limbs[1::2]
        end = total.shape[1]
        for width in reversed(self.widths):
            start = end - width // LIMB_BYTES
            for i in range(end - 1, start, -1):
                total[:, i - 1] += total[:, i] >> np.uint64(32)
            if (total[:, start] >> np.uint64(32)).any():
                raise Overflow(f"sums do not fit into {self.widths} bytes")
            end = start
        return total.astype(">u4").view(np.uint8)

    def climb(self, node: SumNode, index: int, siblings: Sequence[SumNode]) -> SumNode:
        """The root that `node` at `index` and its siblings, bottom up, lead to."""
        for sibling in siblings:
            node = self.join(sibling, node) if index & 1 else self.join(node, sibling)
            index >>= 1
        return node


def _big_endian(column: Bytes | Integers, width: int) -> Bytes:
    if column.ndim == 1:
        column = column.astype("<u8").view(np.uint8).reshape(-1, 8)
    cells = np.zeros((len(column), width), np.uint8)
    cells[:, width - column.shape[1] :] = column[:, ::-1]
    return cells


ACCOUNTS = SumScheme((12, 12, 12))
LISTS = SumScheme((8,))


def depth_of(count: int) -> int:
    """Levels above the leaves of a tree with `count` positions: ceil(log2(max(count, 1)))."""
    return max(count - 1, 0).bit_length()


class SumTree:
    """A positional sum tree in memory: set leaves, read the root, prove positions, find by offset.

    Levels hold only what was set; what lies beyond is empty. Setting one leaf costs O(depth).
    """

    def __init__(self, scheme: SumScheme, leaves: Iterable[SumNode] | Bytes = ()) -> None:
        """Of nodes, or of packed nodes (n, node_bytes)."""
        self.scheme = scheme
        packed = leaves if isinstance(leaves, np.ndarray) else _packed(scheme, leaves)
        self._levels = Levels(packed, scheme.parents, scheme.pack(scheme.empty))

    def copy(self) -> SumTree:
        """A tree that changes without this one."""
        twin = SumTree(self.scheme)
        twin._levels = self._levels.copy()
        return twin

    def __len__(self) -> int:
        return len(self._levels)

    @property
    def root(self) -> SumNode:
        """The root's hash and the sums of all leaves."""
        return self.scheme.unpack(self._levels.top) if self._levels.top else self.scheme.empty

    def set(self, index: int, leaf: SumNode) -> None:
        """Put `leaf` at `index`, which is an existing position or the next new one."""
        if not 0 <= index <= len(self):
            raise IndexError(f"position {index} of a tree with {len(self)}")
        self._levels.set(index, self.scheme.pack(leaf), self.scheme.join_packed)

    def update(self, indices: Sequence[int] | Integers, leaves: Iterable[SumNode] | Bytes) -> SumTree:
        """The tree in which these leaves (nodes, or packed) stand at `indices`; it costs one path a leaf.

        Positions may be added behind the last, if none is left out. This tree stays as it is.
        """
        packed = leaves if isinstance(leaves, np.ndarray) else _packed(self.scheme, leaves)
        twin = SumTree(self.scheme)
        twin._levels = self._levels.changed(np.asarray(indices, np.int64), packed)
        return twin

    def proof(self, index: int) -> list[SumNode]:
        """The siblings of position `index`, bottom up: depth_of(len(self)) of them."""
        if not 0 <= index < len(self):
            raise IndexError(f"position {index} of a tree with {len(self)}")
        empty = self.scheme.empty
        return [empty if packed is None else self.scheme.unpack(packed) for packed in self._levels.siblings(index)]

    def find(self, offset: int, which: int = 0) -> tuple[int, int]:
        """The position whose share of sum `which` covers `offset`, and the offset within it."""
        if not 0 <= offset < self.root.sums[which]:
            raise IndexError(f"offset {offset} of {self.root.sums[which]}")
        index = 0
        for depth in range(self._levels.depth - 1, -1, -1):
            index <<= 1
            left = self.scheme.unpack(self._levels.node(depth, index)).sums[which]
            if offset >= left:
                offset -= left
                index += 1
        return index, offset


def _packed(scheme: SumScheme, nodes: Iterable[SumNode]) -> Bytes:
    joined = b"".join(scheme.pack(node) for node in nodes)
    return np.frombuffer(joined, np.uint8).reshape(-1, scheme.node_bytes)


def is_sum_proof(
    scheme: SumScheme, root: SumNode, count: int, index: int, leaf: SumNode, siblings: Sequence[SumNode]
) -> bool:
    """Whether `leaf` stands at `index` of the tree with `count` positions under `root` (hash and sums)."""
    if not 0 <= index < count or len(siblings) != depth_of(count):
        return False
    try:
        return scheme.climb(leaf, index, siblings) == root
    except Overflow:
        return False


def offset_of(index: int, siblings: Sequence[SumNode], which: int = 0) -> int:
    """The sum of everything to the left of a position, by its proof."""
    total = 0
    for sibling in siblings:
        if index & 1:
            total += sibling.sums[which]
        index >>= 1
    return total
