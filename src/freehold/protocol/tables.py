"""Tables: rows of one message type, in columns on the wire and at rest, iterated as messages by the plain loops.

    table   = row count (4 bytes) ‖ columns, in the order of the definition
    column  = fixed width      values side by side; integers little-endian in their type's width
              text and bytes   the end of each value (4 bytes each), then the values side by side
              a message        the columns of its own definition
              many messages    the end of each row's list (4 bytes each), then all items' columns

The layout is Arrow's without Arrow's metadata: fixed columns can be handed to NumPy or Polars without a copy. Arrow
IPC and Parquet themselves are not read from the network: one flipped bit makes their readers abort or crash the
process (docs/decisions.md). What a table commits to is the Merkle root over its rows' hashes.

Invariant: rows have one spelling. `decode(encode(t)) == t`, and every byte string either is the spelling of a table
or is MalformedMessage; nothing is allocated that the bytes at hand do not pay for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import pairwise
from struct import Struct
from typing import Any, Generic, TypeVar

from freehold.protocol.errors import MalformedMessage
from freehold.protocol.merkle import row_root
from freehold.protocol.typed import Field, Message, fields_of
from freehold.protocol.units import Address, Hash, Signature

M = TypeVar("M", bound=Message)

_COUNT = Struct("<I")
_FIXED: dict[str, tuple[int, type[bytes]]] = {"address": (20, Address), "bytes32": (32, Hash)}
ROWS_LIMIT = 2**31


class Table(Generic[M]):
    """An immutable table of messages of type `kind`."""

    def __init__(self, kind: type[M], rows: tuple[M, ...]) -> None:
        self.kind = kind
        self.rows = rows

    @classmethod
    def of(cls, kind: type[M], rows: Iterable[M] = ()) -> Table[M]:
        """The table of these rows in their order."""
        return cls(kind, tuple(rows))

    def __iter__(self) -> Iterator[M]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self.kind is other.kind and self.rows == other.rows

    __hash__ = None  # type: ignore[assignment]

    @cached_property
    def row_hashes(self) -> tuple[Hash, ...]:
        """What the root is over, in order."""
        return tuple(row.row_hash() for row in self.rows)

    @cached_property
    def root(self) -> Hash:
        """What a batch or a report commits to."""
        return row_root(self.row_hashes)

    def encode(self) -> bytes:
        """The one spelling of these rows."""
        parts = [_COUNT.pack(len(self.rows))]
        _write_columns(self.kind, self.rows, parts)
        return b"".join(parts)

    @classmethod
    def decode(cls, kind: type[M], data: bytes) -> Table[M]:
        """The table behind `encode`'s form; MalformedMessage if the bytes are anything else."""
        reader = _Reader(data)
        rows = _read_columns(kind, reader, reader.count())
        reader.finish()
        return cls(kind, tuple(rows))


def _write_columns(kind: type[Message], rows: Iterable[Any], parts: list[bytes]) -> None:
    for field in fields_of(kind):
        values = [getattr(row, field.name) for row in rows]
        if field.many:
            _write_ends(values, parts)
            values = [item for value in values for item in value]
        _write_column(field, values, parts)


def _write_column(field: Field, values: list[Any], parts: list[bytes]) -> None:
    if field.item is not None:
        _write_columns(field.item, values, parts)
    elif field.bits:
        parts.extend(value.to_bytes(field.bits // 8, "little") for value in values)
    elif field.solidity in _FIXED:
        parts.extend(values)
    else:
        encoded = [value.encode() if field.solidity == "string" else value for value in values]
        _write_ends(encoded, parts)
        parts.extend(encoded)


def _write_ends(values: Iterable[Any], parts: list[bytes]) -> None:
    end = 0
    for value in values:
        end += len(value)
        parts.append(_COUNT.pack(end))


class _Reader:
    """Walks over bytes; whatever is taken is there."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        chunk = self._data[self._at : self._at + size]
        if len(chunk) != size:
            raise MalformedMessage("the table is truncated")
        self._at += size
        return chunk

    def count(self) -> int:
        count: int = _COUNT.unpack(self.take(4))[0]
        if count >= ROWS_LIMIT:
            raise MalformedMessage(f"{count} rows are too many")
        return count

    def ends(self, count: int) -> list[int]:
        ends = [end for (end,) in _COUNT.iter_unpack(self.take(4 * count))]
        if any(a > b for a, b in pairwise(ends)):
            raise MalformedMessage("the ends of a column do not ascend")
        return ends

    def slices(self, size: int, count: int) -> list[bytes]:
        data = self.take(size * count)
        return [data[i : i + size] for i in range(0, len(data), size)]

    def finish(self) -> None:
        if self._at != len(self._data):
            raise MalformedMessage("there are bytes behind the table")


def _read_columns(kind: type[M], reader: _Reader, count: int) -> list[M]:
    fields = fields_of(kind)
    columns = [_read_field(field, reader, count) for field in fields]
    names = [field.name for field in fields]
    return [kind(**dict(zip(names, values, strict=True))) for values in zip(*columns, strict=True)]


def _read_field(field: Field, reader: _Reader, count: int) -> list[Any]:
    if not field.many:
        return _read_column(field, reader, count)
    ends = reader.ends(count)
    items = _read_column(field, reader, ends[-1] if ends else 0)
    return [tuple(items[start:end]) for start, end in pairwise([0, *ends])]


def _read_column(field: Field, reader: _Reader, count: int) -> list[Any]:
    if field.item is not None:
        return _read_columns(field.item, reader, count)
    if field.bits:
        return [int.from_bytes(cell, "little") for cell in reader.slices(field.bits // 8, count)]
    if field.solidity in _FIXED:
        size, kind = _FIXED[field.solidity]
        return [kind(cell) for cell in reader.slices(size, count)]
    ends = reader.ends(count)
    data = reader.take(ends[-1] if ends else 0)
    read = _VARIABLE[field.solidity]
    return [read(data[start:end]) for start, end in pairwise([0, *ends])]


def _text(cell: bytes) -> str:
    try:
        return cell.decode()
    except UnicodeDecodeError:
        raise MalformedMessage("a text is not UTF-8") from None


def _signature(cell: bytes) -> Signature:
    if len(cell) not in (0, 65):
        raise MalformedMessage(f"a signature has 65 bytes, not {len(cell)}")
    return Signature(cell)


_VARIABLE: dict[str, Callable[[bytes], Any]] = {"string": _text, "signature": _signature, "bytes": bytes}
