"""The prices that a node holds to: bounded, however many ask, and in the same time for each."""

from __future__ import annotations

from freehold.protocol.units import Address
from freehold.services.compute.node.prices import Prices

MANY = 10_000


def client(number: int) -> Address:
    return Address(f"0x{number:040x}")


def test_a_bid_stands_until_it_runs_out() -> None:
    prices = Prices()
    prices.bid(client(1), 5, until=100, now=40)
    assert prices.stands(client(1), 5, 100)
    assert not prices.stands(client(1), 5, 101)
    assert not prices.stands(client(1), 6, 50)
    assert not prices.stands(client(2), 5, 50)
    prices.bid(client(1), 5, until=90, now=41)  # a shorter one takes nothing back
    assert prices.stands(client(1), 5, 100)
    prices.work(client(1), 5)
    assert prices.stands(client(1), 5, 10**9)


def test_ten_thousand_bids_stand_and_go_when_they_run_out() -> None:
    prices = Prices()
    for number in range(MANY):
        prices.bid(client(number), number, until=60 + number, now=number)
        prices.work(client(number), number)
        assert len(prices) <= 62 + number + 1  # those of a minute, and who has worked
    assert all(prices.stands(client(number), number, MANY + 60) for number in range(MANY))
    standing = Prices()
    for number in range(MANY):
        standing.bid(client(number), 7, until=60, now=0)
    assert len(standing) == MANY
    assert all(standing.stands(client(number), 7, 60) for number in range(MANY))
    standing.bid(client(MANY), 7, until=121, now=61)
    assert len(standing) == 1


def test_a_flood_pushes_out_what_is_oldest() -> None:
    prices = Prices(limit=MANY)
    for number in range(MANY):
        prices.bid(client(number), 1, until=60, now=0)
        prices.work(client(number), 2)
    prices.bid(client(0), 1, until=60, now=1)  # asked again: the newest now
    prices.work(client(0), 2)
    prices.bid(client(MANY), 1, until=60, now=1)
    prices.work(client(MANY), 2)
    assert len(prices) == 2 * MANY
    for price in (1, 2):
        stands = [prices.stands(client(number), price, 30) for number in range(MANY + 1)]
        assert stands == [True, False] + [True] * (MANY - 1)
