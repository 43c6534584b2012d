"""Finding and grouping rows by address or hash: 64-bit prefixes first, the whole of it where prefixes collide.

Anybody can grind for two addresses with one prefix; so a collision is slower, never wrong.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from freehold.protocol.hashing import Bytes


def prefixes_of(addresses: Bytes) -> NDArray[np.uint64]:
    """(n,): the first eight bytes, ordered as the addresses are."""
    return np.ascontiguousarray(addresses[:, :8]).view(">u8").reshape(-1).astype(np.uint64)


def sort_order(addresses: Bytes) -> NDArray[np.int64] | None:
    """The rows in the order of their addresses, rows of one address as they stand; None if they are in it already."""
    prefixes = prefixes_of(addresses)
    if len(prefixes) < 2 or (prefixes[1:] > prefixes[:-1]).all():
        return None
    order = np.argsort(prefixes, kind="stable")
    ordered = prefixes[order]
    equal = ordered[1:] == ordered[:-1]
    if equal.any():
        # Runs of one prefix are sorted by the whole address.
        edges = np.flatnonzero(np.concatenate([[True], ~equal, [True]]))
        for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            if stop - start > 1:
                run = order[start:stop].tolist()
                order[start:stop] = sorted(run, key=lambda row: addresses[row].tobytes())
    return None if (order == np.arange(len(order))).all() else order


class Lookup:
    """Positions of addresses in a table that is sorted by them, each address once."""

    def __init__(self, addresses: Bytes) -> None:
        self._addresses = addresses
        self._prefixes = prefixes_of(addresses)
        self._collide = bool((self._prefixes[1:] == self._prefixes[:-1]).any())

    def find(self, queries: Bytes) -> NDArray[np.int64]:
        """(m,): where each query stands, -1 where it does not."""
        if not len(self._addresses) or not len(queries):
            return np.full(len(queries), -1, np.int64)
        wanted = prefixes_of(queries)
        at = np.searchsorted(self._prefixes, wanted)
        inside = np.minimum(at, len(self._addresses) - 1)
        same = (self._addresses[inside] == queries).all(axis=1)
        found = np.where(same, inside, -1)
        if self._collide:
            self._search(queries, wanted, found)
        return found

    def _search(self, queries: Bytes, wanted: NDArray[np.uint64], found: NDArray[np.int64]) -> None:
        """What the first row of a prefix was not: the others of that prefix."""
        repeated = self._prefixes[1:][self._prefixes[1:] == self._prefixes[:-1]]
        for row in np.flatnonzero((found < 0) & np.isin(wanted, repeated)).tolist():
            first = int(np.searchsorted(self._prefixes, wanted[row], "left"))
            last = int(np.searchsorted(self._prefixes, wanted[row], "right"))
            whole = queries[row].tobytes()
            for at in range(first, last):
                if self._addresses[at].tobytes() == whole:
                    found[row] = at


class Finder:
    """Positions in a column of (n, w) cells in any order, each any number of times."""

    def __init__(self, cells: Bytes) -> None:
        self._cells = cells
        prefixes = prefixes_of(cells)
        self._order = np.argsort(prefixes, kind="stable")
        self._prefixes = prefixes[self._order]

    def find(self, value: bytes) -> list[int]:
        """Where `value` stands, ascending."""
        wanted = np.frombuffer(value, np.uint8)
        prefix = prefixes_of(wanted.reshape(1, -1))[0]
        first, last = (int(np.searchsorted(self._prefixes, prefix, side)) for side in ("left", "right"))
        rows = self._order[first:last]
        same = (self._cells[rows] == wanted).all(axis=1)
        return [int(row) for row in rows[same]]


def distinct_cells(cells: Bytes) -> tuple[list[bytes], NDArray[np.int64]]:
    """The distinct rows of (n, w) cells in ascending order, and for each row which of them it is."""
    if not len(cells):
        return [], np.zeros(0, np.int64)
    _, first, codes = np.unique(prefixes_of(cells), return_index=True, return_inverse=True)
    codes = codes.astype(np.int64).reshape(-1)
    if (cells == cells[first][codes]).all():
        return [cells[row].tobytes() for row in first.tolist()], codes
    width, data = cells.shape[1], np.ascontiguousarray(cells).tobytes()
    rows = [data[i : i + width] for i in range(0, len(data), width)]
    values = {value: code for code, value in enumerate(sorted(set(rows)))}
    return list(values), np.fromiter((values[row] for row in rows), np.int64, len(rows))


def sum_by_address(addresses: Bytes, measures: NDArray[np.uint64]) -> tuple[Bytes, NDArray[np.uint64]]:
    """The distinct addresses in ascending order, and the sum of each one's measures."""
    order = sort_order(addresses)
    if order is not None:
        addresses, measures = addresses[order], measures[order]
    first = np.ones(len(addresses), bool)
    first[1:] = (addresses[1:] != addresses[:-1]).any(axis=1)
    starts = np.flatnonzero(first)
    return addresses[starts], np.add.reduceat(measures, starts) if len(starts) else measures
