"""Three trees: rows (plain), accounts and lists (positional, with sums).

`row_root` commits to rows in their order: leaf = keccak(0x00 ‖ row hash), node = keccak(0x01 ‖ left ‖ right), an
odd node is carried up. The prefixes keep a leaf from posing as a node.

`SumTree` keeps a position for each entry and carries sums, so that a total, an absence and a shrunken entry can
be shown. A node is (31-byte hash, sums); 31 bytes because two children with three 96-bit sums and a prefix then
fill 135 bytes, which is one keccak block:

    leaf  = keccak(0x00 ‖ content ‖ sums)[:31]
    node  = keccak(0x01 ‖ left hash ‖ left sums ‖ right hash ‖ right sums)[:31]
    empty = 31 zero bytes and zero sums; node(empty, empty) = empty

Invariant: a proof that verifies against (root, sums) shows content and sums of exactly that position, and no
sums below add up to anything but the root's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sha3 import keccak_256

from freehold.protocol.errors import Overflow
from freehold.protocol.units import Hash

HASH_BYTES = 31


def _pair(left: bytes, right: bytes) -> bytes:
    return bytes(keccak_256(b"\x01" + left + right).digest())


def row_leaves(hashes: Iterable[bytes]) -> list[bytes]:
    """The leaves that stand for row hashes."""
    return [keccak_256(b"\x00" + h).digest() for h in hashes]


def row_root(hashes: Iterable[bytes]) -> Hash:
    """The root over row hashes in their order; 32 zero bytes for none."""
    level = row_leaves(hashes)
    if not level:
        return Hash(bytes(32))
    while len(level) > 1:
        level = _parents(level)
    return Hash(level[0])


def _parents(level: list[bytes]) -> list[bytes]:
    parents = [_pair(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
    return [*parents, level[-1]] if len(level) % 2 else parents


def row_proof(hashes: Sequence[bytes], index: int) -> list[Hash]:
    """The siblings of row `index`, bottom up; levels where it is carried up have none."""
    return RowTree(hashes).proof(index)


class RowTree:
    """The tree over row hashes, its levels computed once: for many proofs."""

    def __init__(self, hashes: Iterable[bytes]) -> None:
        self._levels = [row_leaves(hashes)]
        while len(self._levels[-1]) > 1:
            self._levels.append(_parents(self._levels[-1]))

    def proof(self, index: int) -> list[Hash]:
        """The siblings of row `index`, bottom up; levels where it is carried up have none."""
        proof = []
        for level in self._levels[:-1]:
            if index ^ 1 < len(level):
                proof.append(Hash(level[index ^ 1]))
            index //= 2
        return proof


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
        if left.hash == right.hash == bytes(HASH_BYTES) and not any(left.sums) and not any(right.sums):
            return left
        total = tuple(a + b for a, b in zip(left.sums, right.sums, strict=True))
        self.pack_sums(total)
        return SumNode(keccak_256(b"\x01" + self.pack(left) + self.pack(right)).digest()[:HASH_BYTES], total)

    def climb(self, node: SumNode, index: int, siblings: Sequence[SumNode]) -> SumNode:
        """The root that `node` at `index` and its siblings, bottom up, lead to."""
        for sibling in siblings:
            node = self.join(sibling, node) if index & 1 else self.join(node, sibling)
            index >>= 1
        return node


ACCOUNTS = SumScheme((12, 12, 12))
LISTS = SumScheme((8,))


def depth_of(count: int) -> int:
    """Levels above the leaves of a tree with `count` positions: ceil(log2(max(count, 1)))."""
    return max(count - 1, 0).bit_length()


class SumTree:
    """A positional sum tree in memory: set leaves, read the root, prove positions, find by offset.

    Levels hold only what was set; what lies beyond is empty. Setting one leaf costs O(depth).
    """

    def __init__(self, scheme: SumScheme, leaves: Iterable[SumNode] = ()) -> None:
        self.scheme = scheme
        self._levels: list[list[SumNode]] = [list(leaves)]
        while len(self._levels[-1]) > 1:
            below = self._levels[-1]
            padded = [*below, scheme.empty] if len(below) % 2 else below
            self._levels.append([scheme.join(padded[i], padded[i + 1]) for i in range(0, len(padded), 2)])

    def copy(self) -> SumTree:
        """A tree that changes without this one."""
        twin = SumTree(self.scheme)
        twin._levels = [list(row) for row in self._levels]
        return twin

    def __len__(self) -> int:
        return len(self._levels[0])

    @property
    def root(self) -> SumNode:
        """The root's hash and the sums of all leaves."""
        return self._levels[-1][0] if self._levels[-1] else self.scheme.empty

    def set(self, index: int, leaf: SumNode) -> None:
        """Put `leaf` at `index`, which is an existing position or the next new one."""
        if index > len(self):
            raise IndexError(f"position {index} of a tree with {len(self)}")
        node, level = leaf, 0
        while True:
            row = self._levels[level]
            row[index : index + 1] = [node]
            if len(row) == 1:
                break
            left = row[index & ~1]
            right = row[index | 1] if index | 1 < len(row) else self.scheme.empty
            node, index, level = self.scheme.join(left, right), index >> 1, level + 1
            if level == len(self._levels):
                self._levels.append([])

    def proof(self, index: int) -> list[SumNode]:
        """The siblings of position `index`, bottom up: depth_of(len(self)) of them."""
        if not 0 <= index < len(self):
            raise IndexError(f"position {index} of a tree with {len(self)}")
        siblings = []
        for row in self._levels[:-1]:
            sibling = index ^ 1
            siblings.append(row[sibling] if sibling < len(row) else self.scheme.empty)
            index >>= 1
        return siblings

    def find(self, offset: int, which: int = 0) -> tuple[int, int]:
        """The position whose share of sum `which` covers `offset`, and the offset within it."""
        if not 0 <= offset < self.root.sums[which]:
            raise IndexError(f"offset {offset} of {self.root.sums[which]}")
        index = 0
        for row in reversed(self._levels[:-1]):
            index <<= 1
            if offset >= row[index].sums[which]:
                offset -= row[index].sums[which]
                index += 1
        return index, offset


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
