"""EIP-712 hashes of many rows at once, from the same definition of a message as `typed.py`'s.

Invariant: row i of each result is the `struct_hash`, `digest` or `row_hash` of the message that stands in row i.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from freehold.protocol.column_values import SIGNATURE_BYTES
from freehold.protocol.columns import Coded, Column, Lists, Ragged, Record, count_of, spelled
from freehold.protocol.hashing import Bytes, Gathered, Part, join_parts, keccak_ragged, keccak_rows
from freehold.protocol.merkle import row_root
from freehold.protocol.typed import Domain, Field, Message, fields_of, is_signed, type_hash


def struct_hashes_of(kind: type[Message], columns: Mapping[str, Column], count: int) -> Bytes:
    """(count, 32): keccak(type hash ‖ a word for each field that is no signature)."""
    parts: list[Part] = [type_hash(kind)]
    for field in fields_of(kind):
        if field.solidity != "signature":
            parts.extend(_words(field, columns[field.name]))
    return keccak_rows(parts, count)


def digests_of(struct_hashes: Bytes, domain: Domain) -> Bytes:
    """(n, 32): what keys sign, under this domain."""
    return keccak_rows([b"\x19\x01" + domain.separator(), struct_hashes], len(struct_hashes))


def row_hashes_of(kind: type[Message], columns: Mapping[str, Column], struct_hashes: Bytes) -> Bytes:
    """(n, 32): keccak(struct hash ‖ signatures ‖ what commits to the signed messages within). An empty signature adds
    no bytes."""
    count = len(struct_hashes)
    within = [_within(f, columns[f.name]) for f in fields_of(kind) if f.item is not None and is_signed(f.item)]
    signatures = [spelled(columns[field.name]) for field in fields_of(kind) if field.solidity == "signature"]
    cells = [column.cells(SIGNATURE_BYTES) for column in signatures]
    if all(column is not None for column in cells):
        return keccak_rows([struct_hashes, *(column for column in cells if column is not None), *within], count)
    present = np.zeros(count, np.int64)  # bit i: signature i is there
    for i, column in enumerate(signatures):
        present |= (column.sizes() != 0).astype(np.int64) << i
    hashes = np.empty((count, 32), np.uint8)
    for pattern in np.unique(present).tolist():
        rows = np.flatnonzero(present == pattern)
        taken = [column.take(rows) for i, column in enumerate(signatures) if pattern >> i & 1]
        parts = [column.data.reshape(-1, SIGNATURE_BYTES) for column in taken]
        hashes[rows] = keccak_rows([struct_hashes[rows], *parts, *(part[rows] for part in within)], len(rows))
    return hashes


def _within(field: Field, column: Column) -> Bytes:
    """(n, 32): each row's hash of the signed message in this field, or of all their row hashes."""
    if isinstance(column, Lists):
        hashes = _within(field._replace(many=False), column.items)
        return keccak_ragged(hashes.reshape(-1), column.ends.astype(np.int64) * 32)
    if not isinstance(column, Record):
        raise TypeError(f"{field.name} is no column of messages")
    return row_hashes_of(column.kind, column.columns, struct_hashes_of(column.kind, column.columns, column.count))


def _words(field: Field, column: Column) -> list[Part]:
    """The parts that make up a field's 32-byte word in each row."""
    if isinstance(column, Lists):
        words = join_parts(_words(field._replace(many=False), column.items), count_of(column.items))
        if field.rooted:
            roots = [row_root(words[start:end]) for start, end in pairwise(column.edges().tolist())]
            return [np.frombuffer(b"".join(roots), np.uint8).reshape(-1, 32)]
        return [keccak_ragged(words.reshape(-1), column.ends.astype(np.int64) * 32)]
    if isinstance(column, Record):
        return [struct_hashes_of(column.kind, column.columns, column.count)]
    if isinstance(column, np.ndarray):
        if column.ndim == 1:
            return [bytes(24), column]
        cells = column[:, ::-1] if field.bits else column
        return [bytes(32 - cells.shape[1]), cells]
    if isinstance(column, Coded):
        return [Gathered(keccak_ragged(column.values.data, column.values.ends), column.codes)]
    return [_text_hashes(column)]


def _text_hashes(column: Ragged) -> Part:
    """The hash of each text; of one that stands in every row, only once."""
    if column.count and len(column.data) == int(column.ends[0]) * column.count:
        cells = column.cells(int(column.ends[0]))
        if cells is not None and (cells == cells[0]).all():
            return bytes(keccak_rows([cells[:1]], 1)[0])
    return keccak_ragged(column.data, column.ends)
