"""The levels of a binary tree, bottom up, each as its nodes side by side in one buffer.

What a node is, and what becomes of an odd one at the end of a level, is the tree's affair (`merkle.py`): with a
`filler` the odd node is joined to that, without one it is carried up as it is.

Invariant: level k + 1 is exactly what `parents` makes of level k, and the last level has at most one node.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from freehold.protocol.hashing import Bytes, Integers


class Levels:
    """See above. `parents` maps (n, 2 * width) pairs of nodes to (n, width) nodes."""

    def __init__(self, leaves: Bytes, parents: Callable[[Bytes], Bytes], filler: bytes | None) -> None:
        self._width = leaves.shape[1]
        self._parents = parents
        self._filler = filler
        self._levels = [bytearray(np.ascontiguousarray(leaves).data)]
        while self._count(-1) > 1:
            below = self._view(-1)
            self._levels.append(bytearray(self._joined(below, np.arange((len(below) + 1) // 2)).data))

    def __len__(self) -> int:
        return self._count(0)

    @property
    def depth(self) -> int:
        """How many levels there are above the leaves."""
        return len(self._levels) - 1

    @property
    def top(self) -> bytes:
        """The root; no bytes for an empty tree."""
        return bytes(self._levels[-1])

    def node(self, level: int, index: int) -> bytes:
        """One node."""
        return bytes(self._levels[level][index * self._width : (index + 1) * self._width])

    def siblings(self, index: int) -> list[bytes | None]:
        """The sibling at each level below the root, bottom up; None where there is none."""
        found = []
        for level in range(self.depth):
            found.append(self.node(level, index ^ 1) or None)
            index >>= 1
        return found

    def copy(self) -> Levels:
        """Levels that change without these."""
        twin = object.__new__(Levels)
        twin._width, twin._parents, twin._filler = self._width, self._parents, self._filler
        twin._levels = [bytearray(level) for level in self._levels]
        return twin

    def set(self, index: int, node: bytes, join: Callable[[bytes], bytes]) -> None:
        """Put a leaf at an existing position or the next; `join` makes a node of two, one at a time."""
        width = self._width
        for level in range(len(self._levels) + 1):
            if level == len(self._levels):
                self._levels.append(bytearray())
            nodes = self._levels[level]
            nodes[index * width : (index + 1) * width] = node
            if len(nodes) == width:
                return
            at = (index & ~1) * width
            pair = bytes(nodes[at : at + 2 * width])
            if len(pair) == width:
                node = pair if self._filler is None else join(pair + self._filler)
            else:
                node = join(pair)
            index >>= 1

    def changed(self, indices: Integers, nodes: Bytes) -> Levels:
        """Levels with these leaves at these positions; new ones behind the last, with none left out.

        IndexError for any other position. Of a position named twice, the last leaf stands.
        """
        count = len(self)
        fresh = np.unique(indices[indices >= count])
        if (
            len(indices) != len(nodes)
            or (indices < 0).any()
            or not np.array_equal(fresh, np.arange(len(fresh)) + count)
        ):
            raise IndexError(f"positions that do not fit a tree with {count}")
        twin = self.copy()
        level = 0
        while len(indices):
            if level == len(twin._levels):
                twin._levels.append(bytearray())
            missing = int(indices.max()) + 1 - twin._count(level)
            twin._levels[level].extend(bytes(max(0, missing) * self._width))
            view = twin._view(level)
            view[indices] = nodes
            if len(view) == 1:
                break
            indices = np.unique(indices >> 1)
            nodes = twin._joined(view, indices)
            del view  # a buffer that is looked at cannot grow
            level += 1
        return twin

    def _joined(self, below: Bytes, indices: Integers) -> Bytes:
        """The nodes at ascending `indices` of the level above `below`."""
        whole = int(np.searchsorted(indices, len(below) // 2))
        pairs = below[: len(below) & ~1].reshape(-1, 2 * self._width)
        joined = self._parents(pairs if whole == len(pairs) else pairs[indices[:whole]])
        if whole == len(indices):
            return joined
        odd = below[-1:]
        if self._filler is not None:
            odd = self._parents(np.concatenate([odd, np.frombuffer(self._filler, np.uint8)[None, :]], axis=1))
        return np.concatenate([joined, odd])

    def _count(self, level: int) -> int:
        count: int = len(self._levels[level]) // self._width
        return count

    def _view(self, level: int) -> Bytes:
        return np.frombuffer(self._levels[level], np.uint8).reshape(-1, self._width)
