"""Tables: rows of one message type, columnar at rest and on the wire, iterated as messages by the plain loops.

    wire     Arrow IPC            at rest  Parquet
    commits  the Merkle root over the rows' hashes, in their order

Columns: integers up to 64 bits as UInt64, wider ones as Int128, text as String, everything else as Binary; tuples
and nested messages as canonical JSON in Binary. Invariant: bytes that do not decode to exactly this schema are
MalformedMessage; `decode(encode(t)) == t`.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, Generic, TypeVar

import polars as pl

from freehold.protocol.errors import MalformedMessage
from freehold.protocol.merkle import row_root
from freehold.protocol.typed import Field, Message, canonical_json, fields_of, parse_json
from freehold.protocol.units import Address, Hash, Signature

M = TypeVar("M", bound=Message)

_READ_ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError, OverflowError)


class Table(Generic[M]):
    """An immutable table of messages of type `kind`."""

    def __init__(self, kind: type[M], frame: pl.DataFrame) -> None:
        self.kind = kind
        self.frame = frame

    @classmethod
    def of(cls, kind: type[M], rows: Iterable[M] = ()) -> Table[M]:
        """The table of these rows in their order."""
        listed = tuple(rows)
        columns = {
            f.name: pl.Series(f.name, [_to_cell(f, getattr(row, f.name)) for row in listed], dtype=_dtype(f))
            for f in fields_of(kind)
        }
        table = cls(kind, pl.DataFrame(columns))
        table.__dict__["rows"] = listed
        return table

    @cached_property
    def rows(self) -> tuple[M, ...]:
        """The rows as messages; MalformedMessage if a cell is not of its type."""
        fields = fields_of(self.kind)
        return tuple(
            self.kind(**{f.name: _from_cell(f, cell) for f, cell in zip(fields, cells, strict=True)})
            for cells in self.frame.iter_rows()
        )

    def __iter__(self) -> Iterator[M]:
        return iter(self.rows)

    def __len__(self) -> int:
        return self.frame.height

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self.kind is other.kind and self.rows == other.rows

    __hash__ = None  # type: ignore[assignment]

    def row_hashes(self) -> list[Hash]:
        """The leaves' contents, in order."""
        return [row.row_hash() for row in self.rows]

    def root(self) -> Hash:
        """What a batch or a report commits to."""
        return row_root(self.row_hashes())

    def to_arrow(self) -> bytes:
        """Arrow IPC bytes."""
        sink = io.BytesIO()
        self.frame.write_ipc(sink, compression="uncompressed")
        return sink.getvalue()

    def to_parquet(self) -> bytes:
        """Parquet bytes."""
        sink = io.BytesIO()
        self.frame.write_parquet(sink, compression="zstd", statistics=False)
        return sink.getvalue()

    @classmethod
    def from_arrow(cls, kind: type[M], data: bytes) -> Table[M]:
        """The table behind Arrow IPC bytes; MalformedMessage if they are anything else."""
        try:
            return _checked(kind, pl.read_ipc(io.BytesIO(data)))
        except _READ_ERRORS as error:
            raise MalformedMessage(f"not a table of {kind.__name__} in Arrow IPC: {str(error)[:200]}") from None

    @classmethod
    def from_parquet(cls, kind: type[M], data: bytes) -> Table[M]:
        """The table behind Parquet bytes; MalformedMessage if they are anything else."""
        try:
            return _checked(kind, pl.read_parquet(io.BytesIO(data)))
        except _READ_ERRORS as error:
            raise MalformedMessage(f"not a table of {kind.__name__} in Parquet: {str(error)[:200]}") from None


def _checked(kind: type[M], frame: pl.DataFrame) -> Table[M]:
    wanted = {f.name: _dtype(f) for f in fields_of(kind)}
    if dict(frame.schema) != wanted or list(frame.columns) != list(wanted):
        raise MalformedMessage(f"columns are not those of {kind.__name__}")
    if any(frame.null_count().row(0)) if frame.height else False:
        raise MalformedMessage(f"a {kind.__name__} has an empty cell")
    table = Table(kind, frame)
    _ = table.rows
    return table


def _dtype(field: Field) -> Any:
    if field.many or field.item is not None:
        return pl.Binary()
    if field.bits:
        return pl.UInt64() if field.bits <= 64 else pl.Int128()
    return pl.String() if field.solidity == "string" else pl.Binary()


def _to_cell(field: Field, value: Any) -> Any:
    if field.many:
        return canonical_json([item.to_json() if field.item else f"0x{item.hex()}" for item in value])
    if field.item is not None:
        return value.to_bytes()
    return value if field.bits or field.solidity == "string" else bytes(value)


def _from_cell(field: Field, cell: Any) -> Any:
    if field.many:
        values = parse_json(cell)
        if not isinstance(values, list):
            raise MalformedMessage(f"{field.name} must be a list")
        return tuple(field.item.from_json(v) if field.item else Hash(v) for v in values)
    if field.item is not None:
        return field.item.from_bytes(cell)
    if field.solidity in _CELLS:
        return _CELLS[field.solidity](cell)
    return cell


_CELLS: dict[str, type[bytes]] = {"address": Address, "bytes32": Hash, "signature": Signature}
