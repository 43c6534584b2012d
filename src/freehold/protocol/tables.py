"""Tables: rows of one message type, in columns on the wire, at rest and in memory; messages only where asked for.

    table   = row count (4 bytes) ‖ columns, in the order of the definition
    column  = fixed width      values side by side; integers little-endian in their type's width
              text and bytes   the end of each value (4 bytes each), then the values side by side
              a message        the columns of its own definition
              many messages    the end of each row's list (4 bytes each), then all items' columns

The layout is Arrow's without Arrow's metadata: a decoded table's columns are views of the bytes that came
(`columns.py`), and its hashes are computed column by column (`table_hashes.py`). Arrow IPC and Parquet themselves are
not read from the network: one flipped bit makes their readers abort or crash the process (docs/decisions.md). What a
table commits to is the Merkle root over its rows' hashes.

Invariant: rows have one spelling. `decode(encode(t)) == t`, and every byte string either is the spelling of a table
or is MalformedMessage; nothing is allocated that the bytes at hand do not pay for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from struct import Struct
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from freehold.protocol.column_values import cell_width, check_columns, check_ragged, columns_of, do_ascend, rows_of
from freehold.protocol.columns import (
    ENDS,
    Coded,
    Column,
    Lists,
    Ragged,
    Record,
    concat,
    count_of,
    differing,
    take,
    wire,
)
from freehold.protocol.errors import MalformedMessage
from freehold.protocol.hashing import LOADING_PAYS, Bytes, Integers, first_of_equal
from freehold.protocol.merkle import RowTree, row_root
from freehold.protocol.table_hashes import digests_of, row_hashes_of, struct_hashes_of
from freehold.protocol.typed import Domain, Field, Message, fields_of
from freehold.protocol.units import Hash

M = TypeVar("M", bound=Message)

_COUNT = Struct("<I")
ROWS_LIMIT = 2**31


class Table(Generic[M]):
    """An immutable table of messages of type `kind`. Made of rows or of columns, it makes the others when asked."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(
        self, kind: type[M], count: int, rows: tuple[M, ...] | None, columns: Mapping[str, Column] | None
    ) -> None:
        """For the constructors below: at least one of `rows` and `columns`, which agree, each checked."""
        self.kind = kind
        self._count = count
        self._rows = rows
        self._columns = columns
        # No cached_property: until Python 3.12 its lock is one for all tables, and threads would wait for each other.
        self._struct_hashes: Bytes | None = None
        self._hashes: Bytes | None = None
        self._row_hashes: tuple[Hash, ...] | None = None
        self._tree: RowTree | None = None
        self._root: Hash | None = None

    @classmethod
    def of(cls, kind: type[M], rows: Iterable[M] = ()) -> Table[M]:
        """The table of these rows in their order."""
        given = tuple(rows)
        return cls(kind, len(given), given, None)

    @classmethod
    def from_columns(cls, kind: type[M], columns: Mapping[str, Any], count: int | None = None) -> Table[M]:
        """The table of these columns: for each field a column, a list, or one value that stands in every row.

        MalformedMessage if a field is missing, a column has another number of rows, or a value is not of its type.
        `count` must be given only where no column says how many rows there are.
        """
        if count is None:
            count = next((_rows_of(value) for value in columns.values() if isinstance(value, _COLUMNS)), None)
        if count is None:
            raise MalformedMessage("no column says how many rows there are")
        return cls(kind, count, None, check_columns(kind, columns, count))

    @classmethod
    def concat(cls, kind: type[M], tables: Iterable[Table[M]]) -> Table[M]:
        """The table of all rows of these tables, in their order."""
        parts = [table for table in tables if len(table)]
        if len(parts) == 1:
            return parts[0]
        if all(table._columns is None for table in parts):
            return cls.of(kind, (row for table in parts for row in table.rows))
        joined = {field.name: concat([table.column(field.name) for table in parts]) for field in fields_of(kind)}
        return cls(kind, sum(map(len, parts)), None, joined)

    @property
    def rows(self) -> tuple[M, ...]:
        """The rows as messages: made once, and slowly for many."""
        if self._rows is None:
            self._rows = tuple(rows_of(self.kind, self.columns))
        return self._rows

    @property
    def columns(self) -> Mapping[str, Column]:
        """The column of each field by its name; read-only."""
        if self._columns is None:
            self._columns = columns_of(self.kind, self.rows)
        return self._columns

    def column(self, name: str) -> Any:
        """A field's column (`columns.py` says which form it has)."""
        return self.columns[name]

    def row(self, index: int) -> M:
        """One row as a message."""
        return self.rows[index] if self._rows is not None else self.take(np.array([index])).rows[0]

    def take(self, indices: Sequence[int] | Integers) -> Table[M]:
        """The rows at these positions, in their order."""
        if self._columns is None:
            return Table.of(self.kind, [self.rows[i] for i in np.asarray(indices, np.int64).tolist()])
        at = np.asarray(indices, np.int64)
        taken = Table(self.kind, len(at), None, {name: take(column, at) for name, column in self._columns.items()})
        taken._struct_hashes = None if self._struct_hashes is None else self._struct_hashes[at]
        taken._hashes = None if self._hashes is None else self._hashes[at]
        return taken

    def filter(self, mask: NDArray[np.bool_]) -> Table[M]:
        """The rows for which the mask is true."""
        return self.take(np.flatnonzero(mask))

    def count_by(self, name: str) -> dict[str, int]:
        """How many rows have each value of a text column, in the order of their first appearance."""
        column = self.column(name)
        coded = column if isinstance(column, Coded) else column.coded()
        counts: list[int] = np.bincount(coded.codes, minlength=coded.values.count).tolist() if len(self) else []
        values = (value.decode() for value in coded.values.values())
        return {value: count for value, count in zip(values, counts, strict=False) if count}

    def distinct(self) -> Table[M]:
        """Each row once, where it stands first."""
        first = first_of_equal(self.hashes)
        return self if len(first) == len(self) else self.take(first)

    def tables(self) -> Iterator[Table[M]]:
        """This table alone: what `Parts` gives piece by piece."""
        yield self

    def changed_since(self, before: Table[M]) -> NDArray[np.int64]:
        """Where the rows stand that are not as in `before`, and those behind its end; ascending.

        Which rows hold lists of other lengths is not found out: then all are named.
        """
        shared = min(len(self), len(before))
        changed = np.zeros(len(self), bool)
        changed[shared:] = True
        head = np.arange(shared)
        for name, column in self.columns.items():
            changed[:shared] |= differing(take(column, head), take(before.column(name), head))
        return np.flatnonzero(changed)

    def take_over(self, before: Table[M]) -> Table[M]:
        """This table, with the hashes and the tree that `before` has computed, where rows are the same.

        A state's table after an epoch is mostly the one before it: only what changed is hashed again.
        """
        if before._hashes is None or len(self) < len(before):
            return self
        changed = self.changed_since(before)
        hashes = np.empty((len(self), 32), np.uint8)
        hashes[: len(before)] = before._hashes
        hashes[changed] = fresh = self.take(changed).hashes
        self._hashes = hashes
        if before._tree is not None:
            self._tree = before._tree.update(changed, fresh)
        return self

    def __iter__(self) -> Iterator[M]:
        return iter(self.rows)

    def __len__(self) -> int:
        return self._count

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Table) or self.kind is not other.kind or len(self) != len(other):
            return False
        if self._rows is not None and other._rows is not None:
            return self._rows == other._rows
        return self.encode() == other.encode()

    def __repr__(self) -> str:
        return f"<Table of {len(self)} {self.kind.__name__}>"

    @property
    def struct_hashes(self) -> Bytes:
        """(n, 32): each row's EIP-712 hashStruct."""
        if self._struct_hashes is None:
            self._struct_hashes = struct_hashes_of(self.kind, self.columns, len(self))
        return self._struct_hashes

    def digests(self, domain: Domain) -> Bytes:
        """(n, 32): what each row's signers sign."""
        return digests_of(self.struct_hashes, domain)

    @property
    def hashes(self) -> Bytes:
        """(n, 32): each row's hash, signatures included."""
        if self._hashes is None:
            if self._columns is None and len(self) < LOADING_PAYS:
                joined = b"".join(row.row_hash() for row in self.rows)
                self._hashes = np.frombuffer(joined, np.uint8).reshape(-1, 32)
            else:
                self._hashes = row_hashes_of(self.kind, self.columns, self.struct_hashes)
        return self._hashes

    @property
    def row_hashes(self) -> tuple[Hash, ...]:
        """What the root is over, in order."""
        if self._row_hashes is None:
            data = self.hashes.tobytes()
            self._row_hashes = tuple(Hash(data[i : i + 32]) for i in range(0, len(data), 32))
        return self._row_hashes

    @property
    def tree(self) -> RowTree:
        """The tree under the root, for proofs and updates."""
        if self._tree is None:
            self._tree = RowTree(self.hashes)
        return self._tree

    @property
    def root(self) -> Hash:
        """What a batch or a report commits to."""
        if self._root is None:
            self._root = row_root(self.hashes) if self._tree is None else self._tree.root
        return self._root

    def encode(self) -> bytes:
        """The one spelling of these rows."""
        columns = self.columns
        pieces = [piece for field in fields_of(self.kind) for piece in wire(columns[field.name])]
        return b"".join([_COUNT.pack(len(self)), *(piece.data for piece in pieces)])

    @classmethod
    def decode(cls, kind: type[M], data: bytes) -> Table[M]:
        """The table behind `encode`'s form; MalformedMessage if the bytes are anything else."""
        reader = _Reader(data)
        count = reader.count()
        columns = _read_columns(kind, reader, count)
        reader.finish()
        return cls(kind, count, None, columns)


class Parts(Generic[M]):
    """The rows of several tables, each read when its turn comes and dropped after it: evidence beyond memory.

    A row may stand in several of them; whoever reads them counts it once.
    """

    def __init__(self, kind: type[M], sources: Sequence[HasTable]) -> None:
        self.kind = kind
        self._sources = sources

    def tables(self) -> Iterator[Table[M]]:
        """One after another."""
        for source in self._sources:
            yield source.table


class HasTable(Protocol):
    """A batch, in memory or on a disk."""

    @property
    def table(self) -> Table[Any]: ...


_COLUMNS = (list, np.ndarray, Ragged, Coded, Record, Lists)


def _rows_of(value: list[Any] | Column) -> int:
    return len(value) if isinstance(value, list) else count_of(value)


class _Reader:
    """Walks over bytes; whatever is taken is there."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int, kind: np.dtype[Any]) -> NDArray[Any]:
        if count * kind.itemsize > len(self._data) - self._at:
            raise MalformedMessage("the table is truncated")
        array = np.frombuffer(self._data, kind, count, self._at)
        self._at += array.nbytes
        return array if array.flags.aligned else array.copy()

    def count(self) -> int:
        count = int(self.take(1, ENDS)[0])
        if count >= ROWS_LIMIT:
            raise MalformedMessage(f"{count} rows are too many")
        return count

    def ends(self, count: int) -> tuple[Integers, int]:
        ends = self.take(count, ENDS)
        if not do_ascend(ends):
            raise MalformedMessage("the ends of a column do not ascend")
        return ends, int(ends[-1]) if count else 0

    def cells(self, count: int, width: int) -> Bytes:
        return self.take(count * width, _BYTE).reshape(count, width)

    def finish(self) -> None:
        if self._at != len(self._data):
            raise MalformedMessage("there are bytes behind the table")


_BYTE = np.dtype(np.uint8)


def _read_columns(kind: type[Message], reader: _Reader, count: int) -> dict[str, Column]:
    return {field.name: _read_column(field, reader, count) for field in fields_of(kind)}


def _read_column(field: Field, reader: _Reader, count: int) -> Column:
    if field.many:
        ends, items = reader.ends(count)
        return Lists(ends, _read_column(field._replace(many=False), reader, items))
    if field.item is not None:
        return Record(field.item, _read_columns(field.item, reader, count))
    width = cell_width(field)
    if width:
        return reader.cells(count, width)
    if field.bits:
        return reader.take(count, np.dtype(f"<u{field.bits // 8}"))
    ends, size = reader.ends(count)
    column = Ragged(ends, reader.take(size, _BYTE))
    check_ragged(field, column)
    return column
