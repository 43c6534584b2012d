"""Tables: one spelling for rows, and any other bytes are refused without harm."""

from __future__ import annotations

import random
import tracemalloc
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.protocol import tables
from freehold.protocol.column_values import cells_of, integers_of, texts_of
from freehold.protocol.columns import Coded, Lists, Ragged, Record, ragged_of, wire
from freehold.protocol.errors import MalformedMessage
from freehold.protocol.messages import BatchHeader, Close, Lock, Observation, Reservation, Voucher
from freehold.protocol.tables import Table
from freehold.protocol.typed import Message, fields_of
from freehold.protocol.units import UNSIGNED, Address, Hash, Signature
from freehold.protocol.verdicts import Verdict
from freehold.services.storage.terms import StorageProof
from tests.protocol.test_typed import message_of

KINDS: list[type[Message]] = [Voucher, Reservation, StorageProof, Verdict, Observation]


@given(st.sampled_from(KINDS).flatmap(lambda k: st.tuples(st.just(k), st.lists(message_of(k), max_size=4))))
def test_rows_have_one_spelling(case: tuple[type[Message], list[Message]]) -> None:
    kind, rows = case
    data = Table.of(kind, rows).encode()
    table = Table.decode(kind, data)
    assert table.rows == tuple(rows)
    assert table.encode() == data


@given(
    st.sampled_from(KINDS).flatmap(lambda k: st.tuples(st.just(k), st.lists(message_of(k), min_size=1, max_size=3))),
    st.data(),
)
def test_changed_bytes_are_other_rows_or_malformed(
    case: tuple[type[Message], list[Message]], data: st.DataObject
) -> None:
    kind, rows = case
    good = Table.of(kind, rows).encode()
    changed = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        table = Table.decode(kind, bytes(changed))
    except MalformedMessage:
        return
    assert table.encode() == bytes(changed)


@given(st.sampled_from(KINDS), st.binary(max_size=200))
def test_arbitrary_bytes_are_a_table_or_malformed(kind: type[Message], data: bytes) -> None:
    try:
        assert Table.decode(kind, data).encode() == data
    except MalformedMessage:
        assert data != Table.of(kind).encode()


@pytest.mark.parametrize("data", [b"", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x01\x00\x00\x00", bytes(5)])
def test_counts_that_the_bytes_do_not_pay_for_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        Table.decode(Voucher, data)


def test_nothing_is_allocated_that_the_bytes_do_not_pay_for() -> None:
    counts = (2**31 - 1).to_bytes(4, "little")
    ends = (2**32 - 1).to_bytes(4, "little")
    hostile = [(Voucher, counts + bytes(2**10)), (Close, (1).to_bytes(4, "little") + bytes(32) + ends + bytes(65))]
    hostile.append((Reservation, (1).to_bytes(4, "little") + bytes(28) + ends + bytes(2**10)))
    tracemalloc.start()
    try:
        for kind, data in hostile:
            with pytest.raises(MalformedMessage, match="truncated"):
                Table.decode(kind, data)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_character_that_two_texts_share_is_malformed() -> None:
    good = Table.of(Verdict, [verdict("\u00e9", 1), verdict("x", 2)]).encode()
    assert texts_of(Table.decode(Verdict, good).column("service")) == ["\u00e9", "x"]
    at = good.index("\u00e9x".encode()) - 8
    assert good[at : at + 8] == (2).to_bytes(4, "little") + (3).to_bytes(4, "little")
    with pytest.raises(MalformedMessage, match="UTF-8"):
        Table.decode(Verdict, good[:at] + (1).to_bytes(4, "little") + good[at + 4 :])


def test_columns_of_a_decoded_table_are_its_bytes() -> None:
    data = Table.of(Close, [Close(lease=Hash(bytes([i]) * 32)) for i in range(5)]).encode()
    column = Table.decode(Close, data).column("lease")
    assert np.shares_memory(column, np.frombuffer(data, np.uint8))
    assert not column.flags.writeable


@given(
    st.sampled_from(KINDS).flatmap(lambda k: st.tuples(st.just(k), st.lists(message_of(k), max_size=6))),
    st.randoms(use_true_random=False),
    st.booleans(),
)
def test_rows_are_taken_joined_and_told_apart_alike_in_columns_and_messages(
    case: tuple[type[Message], list[Any]], draw: random.Random, in_columns: bool
) -> None:
    kind, rows = case
    table = Table.of(kind, rows)
    if in_columns:
        table = Table.decode(kind, table.encode())
    indices = [draw.randrange(len(rows)) for _ in range(8)] if rows else []
    taken = table.take(indices)
    assert taken.rows == tuple(rows[i] for i in indices)
    assert [table.row(i) for i in indices] == [rows[i] for i in indices]
    assert taken.root == Table.of(kind, taken.rows).root
    mask = np.array([draw.random() < 0.5 for _ in rows], bool)
    assert table.filter(mask).rows == tuple(row for row, keep in zip(rows, mask, strict=True) if keep)
    both = Table.concat(kind, [table, taken, Table.of(kind), Table.decode(kind, taken.encode())])
    assert both == Table.of(kind, [*rows, *taken.rows, *taken.rows])
    assert both.rows == (*rows, *taken.rows, *taken.rows)
    assert both.distinct().rows == tuple(dict.fromkeys([*rows, *taken.rows]))


CHANGED = st.sampled_from(KINDS).flatmap(
    lambda k: st.tuples(st.just(k), st.lists(message_of(k), max_size=8), st.lists(message_of(k), max_size=3))
)


@given(CHANGED, st.randoms(use_true_random=False), st.booleans())
def test_a_table_takes_over_the_hashes_of_rows_that_stay(
    case: tuple[type[Message], list[Any], list[Any]], draw: random.Random, with_tree: bool
) -> None:
    kind, rows, fresh = case
    before = Table.decode(kind, Table.of(kind, rows).encode())
    later = [draw.choice([row, row, draw.choice([*fresh, row])]) for row in rows] + fresh
    truth = Table.of(kind, later)
    table = Table.decode(kind, truth.encode())
    assert len(before.hashes) == len(rows)
    if with_tree:
        assert before.tree.root == before.root
    changed = set(table.changed_since(before).tolist())
    certain = {i for i in range(len(later)) if i >= len(rows) or later[i] != rows[i]}
    assert changed >= certain
    if not any(field.many for field in fields_of(kind)):
        assert changed == certain
    table.take_over(before)
    assert table.row_hashes == truth.row_hashes
    assert table.root == truth.root
    shorter = Table.of(kind, later[: len(rows) - 1])
    assert shorter.take_over(before).root == Table.of(kind, later[: len(rows) - 1]).root


def test_rows_that_stay_are_not_hashed_again() -> None:
    rows = [verdict("a", i) for i in range(50)]
    before = Table.of(Verdict, rows)
    assert before.tree.root == before.root
    table = Table.of(Verdict, [*rows[:30], verdict("b", 30), *rows[31:]])
    with patch.object(tables, "row_hashes_of", wraps=tables.row_hashes_of) as hashed:
        assert table.take_over(before).root != before.root
    assert [len(call.args[2]) for call in hashed.call_args_list] == [1]
    assert table.root == Table.of(Verdict, table.rows).root


def verdict(service: str, measure: int) -> Verdict:
    fields = {"epoch": 5, "kind": "k", "subject": Hash(bytes(32)), "lease": Hash(bytes(32)), "reason": "good"}
    return Verdict(service=service, node=Address(bytes(20)), measure=measure, **fields)


def test_a_table_is_made_of_columns_lists_and_single_values() -> None:
    columns = {
        "epoch": 5,
        "service": Coded.of(["a", "b", "a"]),
        "kind": "k",
        "subject": bytes(32),
        "lease": np.zeros((3, 32), np.uint8),
        "node": [Address(bytes(20))] * 3,
        "reason": ragged_of([b"good"] * 3),
        "measure": np.array([1, 2, 3], np.int16),
    }
    table = Table.from_columns(Verdict, columns)
    rows = [verdict("a", 1), verdict("b", 2), verdict("a", 3)]
    assert table == Table.of(Verdict, rows)
    assert table.rows == tuple(rows)
    assert table.root == Table.of(Verdict, rows).root
    assert table.column("service").values.count == 2
    few = Table.of(Verdict, [verdict("c", 4), verdict("a", 5)])
    joined = Table.concat(Verdict, [few, table, table])
    assert joined.column("service").values.count == 3
    assert joined.rows == (*few.rows, *rows, *rows)
    many = Table.of(Verdict, [verdict(str(i), i) for i in range(4)])
    assert Table.concat(Verdict, [table, many]).rows == (*rows, *many.rows)
    assert Table.from_columns(Verdict, dict(columns, measure=7), count=3).rows[2].measure == 7


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=30), min_size=1, max_size=5), st.data())
def test_coded_text_is_spelled_out_in_its_one_form(words: list[str], data: st.DataObject) -> None:
    texts = data.draw(st.lists(st.sampled_from(words), max_size=20))
    column = Coded.of(texts)
    assert texts_of(column) == texts_of(column.plain()) == texts_of(column.plain().coded()) == texts
    assert [piece.tobytes() for piece in wire(column)] == [
        piece.tobytes() for piece in wire(ragged_of([text.encode() for text in texts]))
    ]


def test_amounts_and_signatures_have_more_than_one_form() -> None:
    amounts = [0, 2**64 - 1, 5]
    signatures = np.frombuffer(bytes(range(195)), np.uint8).reshape(3, 65)
    forms: list[tuple[Any, Any]] = [
        (amounts, signatures),
        (np.array(amounts, np.uint64), [Signature(row.tobytes()) for row in signatures]),
        (cells_of(amounts, 12), ragged_of([row.tobytes() for row in signatures])),
    ]
    made = [
        Table.from_columns(Voucher, {"lease": bytes(32), "amount": amount, "client_signature": signature})
        for amount, signature in forms
    ]
    assert made[0] == made[1] == made[2]
    assert integers_of(made[1].column("amount")) == amounts
    unsigned = Table.from_columns(Voucher, {"lease": bytes(32), "amount": amounts, "client_signature": b""})
    assert unsigned.rows[1] == Voucher(lease=Hash(bytes(32)), amount=2**64 - 1, client_signature=UNSIGNED)


def test_lists_of_messages_are_columns_within_columns() -> None:
    locks = Table.of(Lock, [Lock(lease=Hash(bytes([i]) * 32), amount=i) for i in range(3)])
    lists = Lists(np.array([2, 2, 3], "<u4"), Record(Lock, locks.columns))
    fields = {"client": bytes(20), "number": [1, 2, 3], "deadline": 9, "client_signature": b""}
    table = Table.from_columns(Reservation, {"locks": lists, **fields})
    assert [row.locks for row in table] == [locks.rows[:2], (), locks.rows[2:]]
    assert table.root == Table.of(Reservation, table.rows).root
    rows = [row.locks for row in table]
    assert Table.from_columns(Reservation, {"locks": rows, **fields}) == table


ENDS = np.dtype("<u4")


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"amount": [1]}, "amount has 1 rows"),
        ({"amount": [1, 2**96]}, "amount"),
        ({"amount": -1}, "amount"),
        ({"amount": True}, "amount"),
        ({"amount": np.array([1, -1])}, "amount"),
        ({"amount": np.array([True, False])}, "amount"),
        ({"amount": np.array([1.0, 2.0])}, "amount"),
        ({"amount": np.zeros((2, 16), np.uint8)}, "amount"),
        ({"amount": None}, "amount"),
        ({"lease": np.zeros((2, 20), np.uint8)}, "lease"),
        ({"lease": np.zeros((2, 32), np.uint16)}, "lease"),
        ({"lease": bytes(31)}, "lease"),
        ({"lease": ragged_of([bytes(32)] * 2)}, "lease"),
        ({"client_signature": np.zeros((2, 64), np.uint8)}, "client_signature"),
        ({"client_signature": ragged_of([b"", bytes(64)])}, "a signature has 65 bytes"),
        ({"client_signature": Ragged(np.array([65, 0], ENDS), np.zeros(65, np.uint8))}, "ends of client_signature"),
        ({"client_signature": Ragged(np.array([0, 65], ENDS), np.zeros(66, np.uint8))}, "ends of client_signature"),
        ({"client_signature": Coded(np.array([0, 1]), ragged_of([b""]))}, "code"),
        ({"other": 1}, "other is unknown"),
    ],
)
def test_columns_of_the_wrong_form_name_the_field(change: dict[str, Any], names: str) -> None:
    good = {"lease": np.zeros((2, 32), np.uint8), "amount": [1, 2], "client_signature": b""}
    assert len(Table.from_columns(Voucher, good)) == 2
    with pytest.raises(MalformedMessage, match=names):
        Table.from_columns(Voucher, good | change, count=2)
    with pytest.raises(MalformedMessage, match="lease is missing"):
        Table.from_columns(Voucher, {k: v for k, v in good.items() if k != "lease"})


def test_a_text_column_that_is_not_text_is_refused() -> None:
    columns = {name: getattr(verdict("s", 1), name) for name in Verdict.__struct_fields__}
    with pytest.raises(MalformedMessage, match="UTF-8"):
        Table.from_columns(Verdict, columns | {"service": ragged_of([b"\xff"])})
    with pytest.raises(MalformedMessage, match="no column says"):
        Table.from_columns(Verdict, columns)


def test_rows_are_counted_by_a_text() -> None:
    rows = [BatchHeader(sender=Address(bytes(20)), kind=k, count=1, root=Hash(bytes(32))) for k in "abcab"]
    table = Table.of(BatchHeader, rows)
    assert table.count_by("kind") == {"a": 2, "b": 2, "c": 1}
    assert Table.decode(BatchHeader, table.encode()).count_by("kind") == {"a": 2, "b": 2, "c": 1}
    assert Table.of(BatchHeader).count_by("kind") == {}
