"""Columns: what a table holds of one field, as arrays.

    integers up to 64 bits        ndarray (n,), little-endian
    wider integers                ndarray (n, width) uint8, little-endian
    addresses, 32-byte hashes     ndarray (n, 20 | 32) uint8
    text, bytes, signatures       Ragged: where each value ends, and the values side by side
    text of few distinct values   Coded: a number for each row, and the values it stands for (in memory only)
    a message                     Record: the columns of its definition
    many messages or values       Lists: where each row's list ends, and the items' column

Invariant: a column is never changed once made, so tables may share it; and two columns of the same values have the
same wire form, `wire(column)`, whatever they are made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from freehold.protocol.errors import Overflow
from freehold.protocol.hashing import Bytes, Integers
from freehold.protocol.typed import Message

ENDS = np.dtype("<u4")
ENDS_LIMIT = 2**32
SHORT_BYTES = 64  # words, not texts: all as wide as the widest take less time than each by itself


@dataclass(frozen=True, eq=False, slots=True)
class Ragged:
    """Values of any length: value i is data[ends[i - 1] : ends[i]]."""

    ends: Integers
    data: Bytes

    @property
    def count(self) -> int:
        """How many values."""
        return len(self.ends)

    def edges(self) -> NDArray[np.int64]:
        """(n + 1,): 0, then the ends."""
        edges = np.zeros(len(self.ends) + 1, np.int64)
        edges[1:] = self.ends
        return edges

    def sizes(self) -> NDArray[np.int64]:
        """(n,): the bytes of each value."""
        return np.diff(self.edges())

    def cells(self, width: int) -> Bytes | None:
        """(n, width): the values, if each has `width` bytes; else None."""
        count = len(self.ends)
        if len(self.data) != width * count or (count and self.ends[0] != width) or (np.diff(self.ends) != width).any():
            return None
        return self.data.reshape(count, width)

    def padded(self, width: int) -> Bytes:
        """(n, width): the values that have `width` bytes; zeros in place of the others."""
        whole = self.cells(width)
        if whole is not None:
            return whole
        cells = np.zeros((len(self.ends), width), np.uint8)
        fitting = np.flatnonzero(self.sizes() == width)
        cells[fitting] = self.take(fitting).data.reshape(-1, width)
        return cells

    def values(self) -> list[bytes]:
        """The values."""
        data = self.data.tobytes()
        return [data[a:b] for a, b in pairwise(self.edges().tolist())]

    def take(self, indices: Integers) -> Ragged:
        """The values at these positions, in their order."""
        if not len(indices):
            return Ragged(np.empty(0, ENDS), np.empty(0, np.uint8))
        width = int(self.ends[0])
        cells = self.cells(width) if width else None
        if cells is not None:
            return ragged_of_cells(cells[indices])
        edges, data = self.edges(), np.ascontiguousarray(self.data).data
        spans = zip(edges[:-1][indices].tolist(), edges[1:][indices].tolist(), strict=True)
        return ragged_of([data[a:b] for a, b in spans])

    def coded(self) -> Coded:
        """The same text as codes and distinct values, in the order of their first appearance."""
        return Coded.of(self.values())


@dataclass(frozen=True, eq=False, slots=True)
class Coded:
    """Text of few distinct values: row i is values[codes[i]]."""

    codes: Integers
    values: Ragged

    @property
    def count(self) -> int:
        """How many rows."""
        return len(self.codes)

    @staticmethod
    def of(texts: Sequence[str | bytes]) -> Coded:
        """The column of these texts."""
        codes: dict[str | bytes, int] = {}
        rows = np.fromiter((codes.setdefault(text, len(codes)) for text in texts), np.int32, len(texts))
        return Coded(rows, ragged_of([text.encode() if isinstance(text, str) else text for text in codes]))

    @staticmethod
    def constant(text: str, count: int) -> Coded:
        """The same text in every row."""
        return Coded(np.zeros(count, np.uint8), ragged_of([text.encode()]))

    def plain(self) -> Ragged:
        """The same column, every value spelled out."""
        sizes = self.values.sizes()
        width = int(sizes.max(initial=0))
        if width > SHORT_BYTES or len(sizes) > len(self.codes):
            return self.values.take(self.codes)
        cells = np.zeros((len(sizes), width), np.uint8)
        filled = np.arange(width) < sizes[:, None]
        cells[filled] = self.values.data
        return Ragged(ends_of(sizes[self.codes]), cells[self.codes][filled[self.codes]])

    def take(self, indices: Integers) -> Coded:
        """The rows at these positions, in their order."""
        return Coded(self.codes[indices], self.values)


@dataclass(frozen=True, eq=False, slots=True)
class Record:
    """A message in each row: the columns of its fields by name."""

    kind: type[Message]
    columns: Mapping[str, Column]

    @property
    def count(self) -> int:
        """How many rows."""
        return count_of(next(iter(self.columns.values())))

    def column(self, name: str) -> Any:
        """The column of a field."""
        return self.columns[name]

    def take(self, indices: Integers) -> Record:
        """The rows at these positions, in their order."""
        return Record(self.kind, {name: take(column, indices) for name, column in self.columns.items()})


@dataclass(frozen=True, eq=False, slots=True)
class Lists:
    """Any number of items in each row: row i's are items[ends[i - 1] : ends[i]]."""

    ends: Integers
    items: Column

    @property
    def count(self) -> int:
        """How many rows."""
        return len(self.ends)

    def edges(self) -> NDArray[np.int64]:
        """(n + 1,): 0, then the ends."""
        edges = np.zeros(len(self.ends) + 1, np.int64)
        edges[1:] = self.ends
        return edges

    def take(self, indices: Integers) -> Lists:
        """The rows at these positions, in their order."""
        edges = self.edges()
        sizes = np.diff(edges)[indices]
        return Lists(ends_of(sizes), take(self.items, _spans(edges[:-1][indices], sizes)))


Column: TypeAlias = NDArray[Any] | Ragged | Coded | Record | Lists


def _edges_of(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    edges = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=edges[1:])
    return edges


def ends_of(sizes: NDArray[np.int64]) -> Integers:
    """Where values of these sizes end; Overflow if an end does not fit its four bytes."""
    return _ends(_edges_of(sizes))


def _ends(edges: NDArray[np.int64]) -> Integers:
    if edges[-1] >= ENDS_LIMIT:
        raise Overflow(f"a column of {edges[-1]} bytes or items")
    return edges[1:].astype(ENDS)


def _spans(starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """start, start + 1, .. start + size - 1 of each span, one after another."""
    edges = _edges_of(sizes)
    return np.arange(edges[-1]) + np.repeat(starts - edges[:-1], sizes)


def count_of(column: Column) -> int:
    """How many rows a column has."""
    return len(column) if isinstance(column, np.ndarray) else column.count


def take(column: Column, indices: Integers) -> Column:
    """The rows at these positions, in their order."""
    return column[indices] if isinstance(column, np.ndarray) else column.take(indices)


def concat(columns: Sequence[Column]) -> Column:
    """One column of all rows, in the order given; all are of one field, and there is at least one."""
    first = columns[0]
    if len(columns) == 1:
        return first
    if isinstance(first, np.ndarray):
        return np.concatenate(columns)  # type: ignore[arg-type]
    if isinstance(first, Record):
        parts: list[Any] = list(columns)
        return Record(first.kind, {name: concat([p.columns[name] for p in parts]) for name in first.columns})
    if isinstance(first, Lists):
        lists: list[Any] = list(columns)
        return Lists(_joined_ends(lists), concat([column.items for column in lists]))
    coded = sum(column.count for column in columns if isinstance(column, Coded))
    if coded * 2 >= sum(map(count_of, columns)):
        return _concat_coded([c if isinstance(c, Coded) else spelled(c).coded() for c in columns])
    ragged = [spelled(column) for column in columns]
    return Ragged(_joined_ends(ragged), np.concatenate([column.data for column in ragged]))


def _joined_ends(columns: Sequence[Ragged | Lists]) -> Integers:
    return ends_of(np.concatenate([np.diff(column.edges()) for column in columns]))


def _concat_coded(columns: Sequence[Coded]) -> Coded:
    values = Coded.of([value for column in columns for value in column.values.values()])
    codes, at = [], 0
    for column in columns:
        codes.append(values.codes[at : at + column.values.count][column.codes])
        at += column.values.count
    return Coded(np.concatenate(codes), values.values)


def differing(column: Column, other: Column) -> NDArray[np.bool_]:
    """For each row whether two columns of one field and as many rows differ there.

    Where lists have other lengths than before, every row counts as differing.
    """
    if isinstance(column, np.ndarray) and isinstance(other, np.ndarray):
        unequal: NDArray[np.bool_] = column != other
        return np.logical_or.reduce(unequal, axis=1) if unequal.ndim == 2 else unequal
    if isinstance(column, Record) and isinstance(other, Record):
        differs = np.zeros(column.count, bool)
        for name, part in column.columns.items():
            differs |= differing(part, other.columns[name])
        return differs
    if isinstance(column, Lists) and isinstance(other, Lists):
        if not np.array_equal(column.ends, other.ends):
            return np.ones(column.count, bool)
        before = _edges_of(differing(column.items, other.items).astype(np.int64))[column.edges()]
        changed: NDArray[np.bool_] = before[1:] != before[:-1]
        return changed
    return _differing_texts(spelled(column), spelled(other))


def _differing_texts(column: Ragged, other: Ragged) -> NDArray[np.bool_]:
    if not column.count or (np.array_equal(column.ends, other.ends) and np.array_equal(column.data, other.data)):
        return np.zeros(column.count, bool)
    width = int(column.ends[0])
    cells, others = column.cells(width), other.cells(width)
    if cells is not None and others is not None:
        return differing(cells, others)
    pairs = zip(column.values(), other.values(), strict=True)
    return np.fromiter((a != b for a, b in pairs), bool, column.count)


def spelled(column: Column) -> Ragged:
    """A text column with every value spelled out."""
    if isinstance(column, Coded):
        return column.plain()
    if isinstance(column, Ragged):
        return column
    raise TypeError("not a column of text or bytes")


def are_texts(column: Column, wanted: str) -> NDArray[np.bool_]:
    """(n,): whether each value of a text column is this text."""
    coded = column if isinstance(column, Coded) else spelled(column).coded()
    same = np.array([value == wanted.encode() for value in coded.values.values()], bool)
    return np.asarray(same[coded.codes])


def wire(column: Column) -> list[Bytes]:
    """The column's bytes on the wire, as arrays to write one after another."""
    if isinstance(column, np.ndarray):
        return [_raw(column)]
    if isinstance(column, Record):
        return [piece for part in column.columns.values() for piece in wire(part)]
    if isinstance(column, Lists):
        return [_raw(column.ends), *wire(column.items)]
    ragged = spelled(column)
    return [_raw(ragged.ends), ragged.data]


def _raw(array: NDArray[Any]) -> Bytes:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def ragged_of(values: Sequence[bytes | memoryview]) -> Ragged:
    """The column of these values."""
    ends = ends_of(np.fromiter((len(value) for value in values), np.int64, len(values)))
    return Ragged(ends, np.frombuffer(b"".join(values), np.uint8))


def ragged_of_cells(cells: Bytes) -> Ragged:
    """The column of values that all have the same length."""
    count, width = cells.shape
    return Ragged(_ends(np.arange(count + 1) * width), np.ascontiguousarray(cells).reshape(-1))
