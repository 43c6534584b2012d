"""Amounts in columns: 96-bit integers as three 32-bit limbs in 64-bit lanes, so that sums carry late and never wrap.

Invariant: what `Amounts` comes to is what Python's integers would; a total that leaves 96 bits is Overflow.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from freehold.protocol.errors import Overflow
from freehold.protocol.hashing import Bytes

AMOUNT_BYTES = 12
LIMBS = 3
_LOW = np.uint64(2**32 - 1)
_SHIFT = np.uint64(32)


class Amounts:
    """Totals that amounts are added to, row by row."""

    def __init__(self, cells: Bytes) -> None:
        """`cells`: (n, 12) uint8, little-endian."""
        self._limbs = np.ascontiguousarray(cells).view("<u4").astype(np.uint64).reshape(-1, LIMBS)

    def grow(self, count: int) -> None:
        """Append zeros until there are `count` rows."""
        missing = count - len(self._limbs)
        if missing > 0:
            self._limbs = np.concatenate([self._limbs, np.zeros((missing, LIMBS), np.uint64)])

    def add(self, rows: NDArray[np.int64], cells: Bytes) -> None:
        """Add cells[i] to row rows[i]; a row may be named any number of times (fewer than 2**31 in all)."""
        limbs = np.ascontiguousarray(cells).view("<u4").reshape(-1, LIMBS)
        for limb in range(LIMBS):
            np.add.at(self._limbs[:, limb], rows, limbs[:, limb].astype(np.uint64))
        for limb in range(LIMBS - 1):
            self._limbs[:, limb + 1] += self._limbs[:, limb] >> _SHIFT
            self._limbs[:, limb] &= _LOW
        if (self._limbs[:, -1] > _LOW).any():
            raise Overflow("a total exceeds 96 bits")

    def cells(self) -> Bytes:
        """(n, 12) uint8, little-endian."""
        return np.ascontiguousarray(self._limbs.astype("<u4")).view(np.uint8).reshape(-1, AMOUNT_BYTES)


def total_of(cells: Bytes) -> int:
    """The sum of all rows, as one integer."""
    limbs = np.ascontiguousarray(cells).view("<u4").reshape(-1, LIMBS).astype(np.uint64).sum(axis=0)
    return sum(int(limb) << (32 * i) for i, limb in enumerate(limbs))
