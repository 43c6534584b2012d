"""Tables: one spelling for rows, and any other bytes are refused without harm."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.protocol.errors import MalformedMessage
from freehold.protocol.messages import Reservation, Voucher
from freehold.protocol.tables import Table
from freehold.protocol.typed import Message
from freehold.services.storage.terms import StorageProof
from tests.protocol.test_typed import message_of

KINDS: list[type[Message]] = [Voucher, Reservation, StorageProof]


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
