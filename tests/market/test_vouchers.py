"""Vouchers: never lower than what was signed, kept before they leave, corrected by what nodes can show."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.market.vouchers import Vouchers
from freehold.protocol.errors import InsufficientCredits
from freehold.protocol.keys import Key, is_signed_by
from freehold.protocol.messages import Voucher
from freehold.protocol.typed import Domain
from freehold.protocol.units import Address, Hash

DOMAIN = Domain(1, Address(b"o" * 20))
KEY = Key(b"k" * 32)
LEASE = Hash(b"l" * 32)


class MemoryBook:
    def __init__(self) -> None:
        self.amounts: dict[Hash, int] = {}

    async def voucher(self, lease: Hash) -> int:
        return self.amounts.get(lease, 0)

    async def raise_voucher(self, lease: Hash, amount: int) -> int:
        self.amounts[lease] = max(amount, self.amounts.get(lease, 0))
        return self.amounts[lease]


def make(book: MemoryBook) -> Vouchers:
    return Vouchers(KEY, DOMAIN, book)


def shown(amount: int, key: Key = KEY, lease: Hash = LEASE) -> dict[str, Any]:
    voucher = Voucher(lease=lease, amount=amount)
    return msgspec.structs.replace(voucher, client_signature=key.sign(voucher, DOMAIN)).to_json()


async def pay(vouchers: Vouchers, cost: int, received: int) -> int:
    async with vouchers.ask(LEASE, cost) as ask:
        assert is_signed_by(ask.voucher, ask.voucher.client_signature, KEY.address, DOMAIN)
        ask.received = received
        return ask.voucher.amount


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=20))
def test_amounts_never_fall_and_what_never_came_is_not_paid_twice(steps: list[tuple[int, int]]) -> None:
    async def scenario() -> None:
        book = MemoryBook()
        vouchers, last, received = make(book), 0, 0
        for cost, part in steps:
            amount = await pay(vouchers, cost, min(cost, part))
            assert amount == max(last, received + cost) == book.amounts.get(LEASE, 0)
            last, received = amount, received + min(cost, part)

    asyncio.run(scenario())


def test_requests_in_flight_are_covered_together() -> None:
    async def scenario() -> None:
        book = MemoryBook()
        vouchers = make(book)
        async with vouchers.ask(LEASE, 5) as first, vouchers.ask(LEASE, 7) as second:
            assert (first.voucher.amount, second.voucher.amount) == (5, 12)
        assert await pay(vouchers, 12, 12) == 12
        assert await pay(make(book), 1, 1) == 13

    asyncio.run(scenario())


def test_the_lock_is_the_limit() -> None:
    async def scenario() -> None:
        vouchers = make(MemoryBook())
        vouchers.caps[LEASE] = 10
        assert await pay(vouchers, 10, 10) == 10
        with pytest.raises(InsufficientCredits) as caught:
            await pay(vouchers, 3, 3)
        assert caught.value.details["missing"] == "3"
        assert await vouchers.signed(LEASE) == 10

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("details", "helps", "amount"),
    [
        ({"owed": "40", "voucher": shown(40)}, True, 45),  # another process of this account has paid
        ({"owed": "12", "voucher": shown(10)}, True, 17),  # an answer was lost
        ({"owed": "900", "voucher": shown(10)}, True, 20),  # more than one answer ahead is not believed
        ({"owed": "10", "voucher": shown(99, Key(b"x" * 32))}, False, 15),
        ({"owed": "10", "voucher": shown(99, lease=Hash(b"m" * 32))}, False, 15),
        ({"owed": "ten", "voucher": 3}, False, 15),
        ({}, False, 15),
    ],
)
def test_what_a_node_says_counts_as_far_as_it_can_be_true(details: dict[str, Any], helps: bool, amount: int) -> None:
    async def scenario() -> None:
        vouchers = make(MemoryBook())
        await pay(vouchers, 10, 10)
        agreement = await vouchers.agree(LEASE, details, 5, sent=15)
        assert agreement == (helps, details.get("voucher") == shown(40))
        assert await pay(vouchers, 5, 5) == amount

    asyncio.run(scenario())


def test_what_was_in_flight_when_a_debt_was_taken_over_is_not_paid_twice() -> None:
    async def scenario() -> None:
        vouchers = make(MemoryBook())
        async with vouchers.ask(LEASE, 5) as counted:
            agreement = await vouchers.agree(LEASE, {"owed": "25", "voucher": shown(25)}, 5, sent=5)
            assert agreement == (True, True)
            counted.received = 5
        assert await pay(vouchers, 5, 5) == 30

    asyncio.run(scenario())


def test_a_session_starts_from_what_is_owed() -> None:
    async def scenario() -> None:
        book = MemoryBook()
        await pay(make(book), 10, 10)
        again = make(book)
        await again.start(LEASE, {"owed": "4", "voucher": shown(10)})
        assert await pay(again, 5, 5) == 10
        assert await pay(again, 5, 5) == 14

    asyncio.run(scenario())


def test_a_debt_above_what_was_signed_is_taken_over_once_a_session() -> None:
    async def scenario() -> None:
        vouchers = Vouchers(KEY, DOMAIN, MemoryBook())
        assert (await vouchers.agree(LEASE, {"owed": "5"}, 5, sent=5)).helps
        assert not (await vouchers.agree(LEASE, {"owed": "10"}, 5, sent=10)).helps
        async with vouchers.ask(LEASE, 5) as ask:
            assert ask.voucher.amount == 10

    asyncio.run(scenario())
