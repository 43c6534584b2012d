"""Batches on the wire: what was sent is what is decoded, and nothing else decodes."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from freehold.protocol import batches
from freehold.protocol.batches import Batch, collect_rows, decode_batch, encode_batch, kinds_of
from freehold.protocol.errors import BodyTooLarge, FreeholdError, InvalidInput, MalformedMessage, WrongSignature
from freehold.protocol.messages import Voucher
from freehold.protocol.tables import Table
from freehold.protocol.typed import Domain
from freehold.protocol.units import Hash
from freehold.services.judging import JUDGES
from tests.protocol.world import DOMAIN, World, busy_world, key, signed

KINDS = kinds_of(JUDGES)
SENDER = key(7)


def voucher_batch(count: int = 3) -> Batch:
    rows = [
        signed(Voucher(lease=Hash(bytes(31) + bytes([i])), amount=i), client_signature=key(1)) for i in range(count)
    ]
    return World((), ()).batch("voucher", rows, SENDER)


GOOD = encode_batch(voucher_batch())


def test_what_was_sent_is_what_is_decoded() -> None:
    batch = decode_batch(GOOD, KINDS, DOMAIN)
    assert batch == voucher_batch()
    assert batch.subject == voucher_batch().subject


def test_every_cut_of_a_batch_is_refused_by_type() -> None:
    for size in range(len(GOOD)):
        with pytest.raises(InvalidInput):
            decode_batch(GOOD[:size], KINDS, DOMAIN)


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_changed_byte_never_gives_other_rows(place: int, flip: int) -> None:
    changed = bytearray(GOOD)
    changed[place] ^= flip
    try:
        batch = decode_batch(bytes(changed), KINDS, DOMAIN)
    except InvalidInput:
        return
    assert batch == voucher_batch()


@given(st.binary(max_size=300))
@example(b"\x00\x00\x00\x02{}")
@example(b"\xff\xff\xff\xff")
def test_arbitrary_bytes_are_refused_by_type(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        decode_batch(data, KINDS, DOMAIN)


def test_limits_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BATCH_LIMIT", len(GOOD))
    decode_batch(GOOD, KINDS, DOMAIN)
    with pytest.raises(BodyTooLarge):
        decode_batch(GOOD + b"x", KINDS, DOMAIN)
    monkeypatch.setattr(batches, "ROWS_LIMIT", 3)
    decode_batch(GOOD, KINDS, DOMAIN)
    monkeypatch.setattr(batches, "ROWS_LIMIT", 2)
    with pytest.raises(MalformedMessage, match="1 to 2 rows"):
        decode_batch(GOOD, KINDS, DOMAIN)


def resigned(batch: Batch, **change: object) -> bytes:
    header = signed(msgspec.structs.replace(batch.header, **change), sender_signature=SENDER)
    return encode_batch(Batch(header, batch.table))


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (resigned(voucher_batch(), kind="nonsense"), MalformedMessage),
        (resigned(voucher_batch(), kind="close"), MalformedMessage),
        (resigned(voucher_batch(), count=2), MalformedMessage),
        (resigned(voucher_batch(), root=Hash(bytes(32))), MalformedMessage),
        (resigned(voucher_batch(), sender=key(8).address), WrongSignature),
        (encode_batch(Batch(voucher_batch().header, Table.of(Voucher))), MalformedMessage),
    ],
)
def test_a_header_that_does_not_fit_its_rows_is_refused(data: bytes, error: type[FreeholdError]) -> None:
    with pytest.raises(error):
        decode_batch(data, KINDS, DOMAIN)


def test_a_batch_signed_for_another_chain_is_refused() -> None:
    with pytest.raises(WrongSignature):
        decode_batch(GOOD, KINDS, Domain(1, DOMAIN.contract))


def test_nobody_answers_for_another_node() -> None:
    world = busy_world()
    rows = list(world.proofs()[0].table)
    stranger = world.batch("storage.proof", rows, key(99))
    with pytest.raises(MalformedMessage, match="must be sent by its node"):
        decode_batch(encode_batch(stranger), KINDS, DOMAIN)


def test_rows_count_once_over_all_batches() -> None:
    batch = voucher_batch()
    again = World((), ()).batch("voucher", [*batch.table.rows[1:], *batch.table.rows[:1]], key(8))
    rows = collect_rows([batch, again], KINDS)["voucher"]
    assert rows == batch.table
