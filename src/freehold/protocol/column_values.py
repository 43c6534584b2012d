"""Between columns and Python values: messages become columns, columns become messages, and columns are checked.

Invariant: a column that `check_column` or `check_ragged` lets pass holds only values that a message of that field may
hold, so messages made of it need no other check than their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold.protocol.columns import (
    ENDS,
    Coded,
    Column,
    Lists,
    Ragged,
    Record,
    count_of,
    ends_of,
    ragged_of,
    ragged_of_cells,
    spelled,
)
from freehold.protocol.errors import MalformedMessage, Overflow
from freehold.protocol.hashing import Bytes, Integers
from freehold.protocol.typed import Field, Message, fields_of
from freehold.protocol.units import Address, Hash, Signature

SIGNATURE_BYTES = 65
_CELLS: dict[str, tuple[int, type[bytes]]] = {"address": (20, Address), "bytes32": (32, Hash)}
_VALUES: dict[str, Callable[[bytes], Any]] = {"string": bytes.decode, "signature": Signature, "bytes": bytes}


def integers_of(cells: Bytes) -> list[int]:
    """(n, width) little-endian cells as Python integers."""
    width, data = cells.shape[1], np.ascontiguousarray(cells).tobytes()
    return [int.from_bytes(data[i : i + width], "little") for i in range(0, len(data), width)]


def cells_of(integers: Sequence[int], width: int) -> Bytes:
    """(n, width) little-endian cells; Overflow if one does not fit."""
    try:
        data = b"".join(value.to_bytes(width, "little") for value in integers)
    except OverflowError:
        raise Overflow(f"an integer does not fit into {width} bytes") from None
    return np.frombuffer(data, np.uint8).reshape(-1, width)


def texts_of(column: Column) -> list[str]:
    """A text column's values."""
    if isinstance(column, Coded):
        texts = [value.decode() for value in column.values.values()]
        return [texts[code] for code in column.codes.tolist()]
    return [value.decode() for value in spelled(column).values()]


def cell_width(field: Field) -> int:
    """The bytes of a value, for a field whose column is cells; 0 for other fields."""
    if field.bits:
        return field.bits // 8 if field.bits > 64 else 0
    return _CELLS[field.solidity][0] if field.solidity in _CELLS else 0


def columns_of(kind: type[Message], rows: Sequence[Any]) -> dict[str, Column]:
    """The columns of these messages, which have been checked when they were made."""
    return {field.name: column_of(field, [getattr(row, field.name) for row in rows]) for field in fields_of(kind)}


def column_of(field: Field, values: Sequence[Any]) -> Column:
    """The column of these values of a field, each of which is of its type."""
    if field.many:
        ends = ends_of(np.fromiter((len(value) for value in values), np.int64, len(values)))
        return Lists(ends, column_of(field._replace(many=False), [item for value in values for item in value]))
    if field.item is not None:
        return Record(field.item, columns_of(field.item, values))
    if field.bits:
        width = cell_width(field)
        return cells_of(values, width) if width else np.array(values, dtype=f"<u{field.bits // 8}")
    if field.solidity in _CELLS:
        return np.frombuffer(b"".join(values), np.uint8).reshape(-1, _CELLS[field.solidity][0])
    return ragged_of([value.encode() if field.solidity == "string" else value for value in values])


def rows_of(kind: type[Message], columns: Mapping[str, Column]) -> list[Any]:
    """The messages that stand in these columns."""
    names = [field.name for field in fields_of(kind)]
    values = [values_of(field, columns[field.name]) for field in fields_of(kind)]
    return [kind(**dict(zip(names, row, strict=True))) for row in zip(*values, strict=True)]


def values_of(field: Field, column: Column) -> list[Any]:
    """A column's values as messages hold them."""
    if isinstance(column, Lists):
        items = values_of(field._replace(many=False), column.items)
        return [tuple(items[a:b]) for a, b in pairwise(column.edges().tolist())]
    if isinstance(column, Record):
        return rows_of(column.kind, column.columns)
    if isinstance(column, np.ndarray):
        if field.bits:
            integers: list[int] = integers_of(column) if column.ndim == 2 else column.tolist()
            return integers
        width, kind = _CELLS[field.solidity]
        data = np.ascontiguousarray(column).tobytes()
        return [kind(data[i : i + width]) for i in range(0, len(data), width)]
    if field.solidity == "string":
        return texts_of(column)
    return [_VALUES[field.solidity](value) for value in spelled(column).values()]


def check_columns(kind: type[Message], values: Mapping[str, Any], count: int) -> dict[str, Column]:
    """A column for each field, from columns, lists, or one value for every row.

    MalformedMessage unless there is one for each field, each has `count` rows, and every value is of its field's type.
    """
    names = [field.name for field in fields_of(kind)]
    if set(names) != set(values):
        odd = sorted(set(names) ^ set(values))[0]
        raise MalformedMessage(f"{kind.__name__}.{odd} is {'missing' if odd in names else 'unknown'}")
    return {field.name: check_column(field, values[field.name], count) for field in fields_of(kind)}


def check_column(field: Field, value: Any, count: int) -> Column:
    """One field's column: see `check_columns`."""
    column = _checked(field, value, count)
    if count_of(column) != count:
        raise MalformedMessage(f"{field.name} has {count_of(column)} rows where {count} belong")
    return column


def _checked(field: Field, value: Any, count: int) -> Column:
    if isinstance(value, list):
        for item in value:
            _check_value(field, item)
        return column_of(field, value)
    if isinstance(value, Lists) and field.many:
        _check_ends(field, value.ends, count_of(value.items))
        return Lists(value.ends, check_column(field._replace(many=False), value.items, count_of(value.items)))
    if field.many:
        raise MalformedMessage(f"{field.name} is not a column of lists")
    if isinstance(value, Record) and value.kind is field.item:
        return Record(value.kind, check_columns(value.kind, value.columns, count))
    if isinstance(value, np.ndarray):
        return _checked_array(field, value)
    if isinstance(value, Ragged | Coded):
        return _checked_text(field, value)
    _check_value(field, value)
    one = column_of(field, [value])
    if isinstance(one, Ragged):
        return Coded(np.zeros(count, np.uint8), one)
    return np.repeat(one, count, axis=0) if isinstance(one, np.ndarray) else one.take(np.zeros(count, np.int64))


def _check_value(field: Field, value: Any) -> None:
    if field.many:
        if not isinstance(value, tuple):
            raise MalformedMessage(f"{field.name} is not a tuple")
        for item in value:
            _check_value(field._replace(many=False), item)
    elif field.bits:
        if type(value) is not int or not 0 <= value < 1 << field.bits:
            raise MalformedMessage(f"{field.name} is not a {field.solidity}: {value!r}")
    elif field.item is not None or field.solidity == "string":
        if not isinstance(value, field.item or str):
            raise MalformedMessage(f"{field.name} is not a {field.solidity}: {value!r}")
    else:
        sizes = {"signature": (0, SIGNATURE_BYTES), "bytes": ()}.get(field.solidity, (cell_width(field),))
        if not isinstance(value, bytes) or (sizes and len(value) not in sizes):
            raise MalformedMessage(f"{field.name} is not a {field.solidity}")


def _checked_array(field: Field, array: NDArray[Any]) -> Column:
    width = SIGNATURE_BYTES if field.solidity == "signature" else cell_width(field)
    if width and array.dtype == np.uint8 and array.ndim == 2 and array.shape[1] == width:
        return ragged_of_cells(array) if field.solidity == "signature" else array
    if not field.bits or array.ndim != 1 or array.dtype.kind not in "ui":
        raise MalformedMessage(f"{field.name} is not a column of {field.solidity}: {array.shape}, {array.dtype}")
    if len(array) and (int(array.min()) < 0 or int(array.max()) >> field.bits):
        raise MalformedMessage(f"{field.name} has a value that is not a {field.solidity}")
    if not width:
        return array.astype(f"<u{field.bits // 8}", copy=False)
    cells = np.zeros((len(array), width), np.uint8)
    cells[:, :8] = array.astype("<u8").view(np.uint8).reshape(-1, 8)
    return cells


def _checked_text(field: Field, column: Ragged | Coded) -> Column:
    values = column.values if isinstance(column, Coded) else column
    if field.solidity not in _VALUES:
        raise MalformedMessage(f"{field.name} is not a column of {field.solidity}")
    _check_ends(field, values.ends, len(values.data))
    check_ragged(field, values)
    if isinstance(column, Coded) and len(column.codes):
        codes = column.codes
        if codes.dtype.kind not in "ui" or int(codes.min()) < 0 or int(codes.max()) >= values.count:
            raise MalformedMessage(f"{field.name} has a code that stands for no value")
    return column


def _check_ends(field: Field, ends: Integers, size: int) -> None:
    if ends.dtype != ENDS or not do_ascend(ends) or (int(ends[-1]) if len(ends) else 0) != size:
        raise MalformedMessage(f"the ends of {field.name} do not fit what they end")


def do_ascend(ends: Integers) -> bool:
    """Whether no end lies before the one in front of it."""
    return not (ends[1:] < ends[:-1]).any()


def check_ragged(field: Field, column: Ragged) -> None:
    """MalformedMessage unless every value is UTF-8 (text), or empty or 65 bytes (signatures). The ends do ascend."""
    if field.solidity == "string":
        _check_text(column)
    elif field.solidity == "signature" and column.cells(SIGNATURE_BYTES) is None:
        sizes = column.sizes()
        wrong = sizes[(sizes != 0) & (sizes != SIGNATURE_BYTES)]
        if len(wrong):
            raise MalformedMessage(f"a signature has {SIGNATURE_BYTES} bytes, not {wrong[0]}")


def _check_text(column: Ragged) -> None:
    # All values together are UTF-8, and none starts within a character: so each is UTF-8.
    try:
        str(np.ascontiguousarray(column.data).data, "utf-8")
    except UnicodeDecodeError:
        raise MalformedMessage("a text is not UTF-8") from None
    starts = column.edges()[:-1]
    starts = starts[starts < len(column.data)]
    if (column.data[starts] & 0xC0 == 0x80).any():
        raise MalformedMessage("a text is not UTF-8")
