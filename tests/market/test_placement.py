"""Who is dealt with: signed, fresh offers, and one node an operator."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.market.placement import Candidate, Terms, choose, judge_offer
from freehold.protocol.errors import InsufficientOperators
from freehold.protocol.keys import Key
from freehold.protocol.messages import Offer
from freehold.protocol.state import NodeRecord
from freehold.protocol.typed import Domain
from freehold.protocol.units import ZERO_HASH, Address, Hash

DOMAIN = Domain(1, Address(b"o" * 20))
SHOWN = Hash(b"f" * 32)
TERMS = Terms("storage", DOMAIN, now=1000, capacity=50)


def candidate(number: int, operator: int | None = None, place: str = "", price: int = 5, **changes: Any) -> Candidate:
    key = Key(number.to_bytes(32, "big", signed=False) if number else b"\x01" * 32)
    record = NodeRecord(
        node=key.address, operator=Address(bytes([operator or number]) * 20), payout=key.address, endpoint="", bond=1
    )
    values = {
        "node": key.address, "service": "storage", "endpoint": "", "fingerprint": SHOWN, "place": place,
        "stream_price": price, "voucher_price": price, "capacity": 100, "expiry": 2000,
    }  # fmt: skip
    offer = Offer(**(values | changes))
    return Candidate(record, msgspec.structs.replace(offer, node_signature=key.sign(offer, DOMAIN)))


def test_a_good_offer_passes_and_its_exact_bounds_too() -> None:
    for changes in ({}, {"expiry": 1000}, {"capacity": 50}):
        good = candidate(1, **changes)
        assert judge_offer(good.offer, good.record, TERMS, SHOWN) == ""


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"expiry": 999}, "expired"),
        ({"capacity": 49}, "are free"),
        ({"node": Address(b"x" * 20)}, "another node's"),
        ({"fingerprint": Hash(b"g" * 32)}, "names the certificate"),
        ({"fingerprint": ZERO_HASH}, "names the certificate"),
    ],
)
def test_a_bad_offer_has_a_reason(changes: dict[str, Any], reason: str) -> None:
    bad = candidate(1, **changes)
    assert reason in judge_offer(bad.offer, bad.record, TERMS, SHOWN)


def test_an_offer_that_was_changed_is_not_signed() -> None:
    good = candidate(1)
    cheaper = msgspec.structs.replace(good.offer, stream_price=1)
    assert "not signed" in judge_offer(cheaper, good.record, TERMS, SHOWN)
    elsewhere = TERMS._replace(domain=Domain(2, DOMAIN.contract))
    assert "not signed" in judge_offer(good.offer, good.record, elsewhere, SHOWN)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=12), st.integers(1, 8), st.integers(0, 9))
def test_operators_are_distinct_or_counted(operators: list[int], count: int, seed: int) -> None:
    pool = [candidate(number + 1, operator) for number, operator in enumerate(operators)]
    there = len(set(operators))
    if there < count:
        with pytest.raises(InsufficientOperators) as caught:
            choose(pool, count)
        assert caught.value.details == {"have": there, "need": count}
    else:
        chosen = choose(pool, count, chance=random.Random(seed))
        assert len({c.record.operator for c in chosen}) == len(chosen) == count


def test_unused_places_come_first_then_the_cheaper() -> None:
    pool = [
        candidate(1, place="a", price=1), candidate(2, place="a", price=2), candidate(3, place="b", price=9),
        candidate(4, place="b", price=8), candidate(5, place="c", price=7),
    ]  # fmt: skip
    assert [c.offer.stream_price for c in choose(pool, 3)] == [1, 7, 8]
    assert [c.offer.stream_price for c in choose(pool, 1, taken=pool[:1])] == [7]


def test_what_is_taken_or_avoided_is_left_out_and_counted() -> None:
    pool = [candidate(number) for number in (1, 2, 3)]
    with pytest.raises(InsufficientOperators, match="2 operators can take this, 3 are needed"):
        choose(pool, 2, taken=pool[:1], avoid={pool[1].node})
