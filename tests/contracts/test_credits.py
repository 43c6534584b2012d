"""Credits: rounded down, at the lower of two fresh prices, with the cost basis kept, and no way out."""

from __future__ import annotations

import boa
import pytest
from boa.util.abi import Address

from tests.contracts.world import NEVER, TOKEN, World, hexed, key_of, logs_of


@pytest.fixture
def client(world: World) -> str:
    address = str(Address(hexed(key_of("client").address)))
    world.fund(address, 1_000 * TOKEN)
    world.token.approve(world.credits, 1_000 * TOKEN, sender=address)
    return address


@pytest.mark.parametrize(
    ("tokens", "price", "credits"),
    [
        (1, TOKEN, 1),
        (3, TOKEN // 2, 1),
        (1, TOKEN * 2 - 1, 1),
        (10**18, 1, 1),
        (10 * TOKEN, 3 * TOKEN + 1, 30 * TOKEN + 10),
    ],
)
def test_buying_rounds_down(world: World, client: str, tokens: int, price: int, credits: int) -> None:
    world.post(price=price)
    world.post(price=price)
    assert world.credits.buy(tokens, credits, NEVER, sender=client) == credits
    assert (world.credits.paid_in(client), world.credits.burned(client)) == (credits, tokens)


def test_dust_that_buys_nothing_burns_nothing(world: World, client: str) -> None:
    world.post(price=TOKEN // 2)
    with boa.reverts("credits: nothing bought"):
        world.credits.buy(1, 0, NEVER, sender=client)
    assert world.token.balanceOf(client) == 1_000 * TOKEN


@pytest.mark.parametrize(("older", "newer"), [(3, 5), (5, 3), (4, 4)])
def test_a_price_jump_either_way_sells_at_the_lower_of_two(world: World, client: str, older: int, newer: int) -> None:
    world.post(price=older * TOKEN)
    world.post(price=newer * TOKEN)
    assert world.credits.price() == min(older, newer) * TOKEN
    assert world.credits.buy(TOKEN, 0, NEVER, sender=client) == min(older, newer) * TOKEN


@pytest.mark.parametrize(("late", "reverts"), [(0, False), (1, True)])
def test_a_price_sells_until_it_is_stale(world: World, client: str, late: int, reverts: bool) -> None:
    world.post()
    boa.env.time_travel(seconds=world.settings.max_price_age + late)
    assert world.credits.price() == (0 if reverts else world.settings.initial_price)
    if reverts:
        with boa.reverts("credits: stale price"):
            world.credits.buy(TOKEN, 0, NEVER, sender=client)
        world.post()
    world.credits.buy(TOKEN, 0, NEVER, sender=client)


def test_a_sandwiched_buyer_gets_its_minimum_or_nothing_happens(world: World, client: str) -> None:
    expected = TOKEN * world.settings.initial_price // TOKEN
    world.post(price=world.settings.initial_price - 1)
    with boa.reverts("credits: below minimum"):
        world.credits.buy(TOKEN, expected, NEVER, sender=client)
    assert world.credits.buy(TOKEN, expected - 1, NEVER, sender=client) == expected - 1


@pytest.mark.parametrize(("late", "reverts"), [(0, False), (1, True)])
def test_an_order_ends_at_its_deadline(world: World, client: str, late: int, reverts: bool) -> None:
    if reverts:
        with boa.reverts("credits: expired"):
            world.credits.buy(TOKEN, 0, boa.env.timestamp - late, sender=client)
    else:
        world.credits.buy(TOKEN, 0, boa.env.timestamp - late, sender=client)


def test_each_purchase_adds_to_the_cost_basis_and_says_so(world: World, client: str) -> None:
    world.credits.buy(2 * TOKEN, 0, NEVER, sender=client)
    world.post(price=3 * TOKEN)
    world.post(price=3 * TOKEN)
    world.credits.buy(TOKEN, 0, NEVER, sender=client)
    (event,) = logs_of(world.credits, "Bought")
    assert (event.client, event.tokens, event.credits, event.price) == (client, TOKEN, 3 * TOKEN, 3 * TOKEN)
    assert (event.paid_in, event.burned) == (7 * TOKEN, 3 * TOKEN)
    assert world.credits.totals() == (7 * TOKEN, 3 * TOKEN)
    assert world.token.totalSupply() == world.settings.initial_supply - 3 * TOKEN


def test_no_allowance_no_credits(world: World, client: str) -> None:
    world.token.approve(world.credits, TOKEN - 1, sender=client)
    with boa.reverts("erc20: insufficient allowance"):
        world.credits.buy(TOKEN, 0, NEVER, sender=client)
    assert world.credits.totals() == (0, 0)


def test_a_permit_sent_first_by_someone_else_changes_nothing(world: World) -> None:
    key = key_of("permit client")
    address = hexed(key.address)
    world.fund(address, TOKEN)
    permit = world.sign_permit(key, world.credits, TOKEN)
    world.token.permit(address, world.credits, TOKEN, NEVER, *permit, sender=boa.env.generate_address())
    assert world.credits.buy_with_permit(TOKEN, 0, NEVER, *permit, sender=address) == world.settings.initial_price


def test_a_permit_buys_in_one_transaction_and_a_false_one_buys_nothing(world: World) -> None:
    key = key_of("permit client")
    address = hexed(key.address)
    world.fund(address, 2 * TOKEN)
    permit = world.sign_permit(key, world.credits, TOKEN)
    with boa.reverts("erc20: insufficient allowance"):
        world.credits.buy_with_permit(2 * TOKEN, 0, NEVER, *permit, sender=address)
    world.credits.buy_with_permit(TOKEN, 0, NEVER, *permit, sender=address)
    assert world.token.balanceOf(address) == TOKEN


def test_credits_cannot_move_or_be_given_back(world: World) -> None:
    changing = {
        entry["name"]
        for entry in world.credits.abi
        if entry["type"] == "function" and entry["stateMutability"] not in ("view", "pure")
    }
    assert changing == {"buy", "buy_with_permit"}


def test_what_does_not_fit_an_amount_reverts(world: World, client: str) -> None:
    world.post(price=2**96 - 1)
    world.post(price=2**96 - 1)
    with boa.reverts():
        world.credits.buy(TOKEN + 1, 0, NEVER, sender=client)
    world.credits.buy(TOKEN, 0, NEVER, sender=client)
    assert world.credits.total_paid_in() == 2**96 - 1
    with boa.reverts():
        world.credits.buy(1, 0, NEVER, sender=client)
