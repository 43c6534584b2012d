"""Ledger, the rate of claims: a bucket of budgets, a ceiling for each account; what cannot leave now leaves later."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import boa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.contracts.budgets import budget
from tests.contracts.world import TOKEN, Account, Settings, World, hexed, key_of, logs_of

LENGTH = 50
# Without a schedule a budget is what an epoch mints as revenue.
UNSCHEDULED = Settings(initial_subsidy=0, claim_epochs=4, epoch_length=LENGTH)
OWNERS = [key_of(f"rated owner {i}").address for i in range(6)]


@pytest.fixture(scope="module")
def limited() -> World:
    return World(UNSCHEDULED)


@pytest.fixture
def world(limited: World) -> Iterator[World]:
    """A network whose bucket holds four budgets, at the beginning of a window."""
    with boa.env.anchor():
        limited.buy(boa.env.generate_address(), 1_000_000)
        boa.env.time_travel(seconds=LENGTH - boa.env.timestamp % LENGTH)
        yield limited


def earn(world: World, totals: Sequence[int]) -> list[Account]:
    """These accounts' totals, active, at the beginning of a window; the growth is all revenue."""
    accounts = [Account(owner, total) for owner, total in zip(OWNERS, totals, strict=False)]
    grown = sum(totals) - world.ledger.totals().tokens_earned
    world.post(accounts, revenue=grown)
    world.activate()
    boa.env.time_travel(seconds=-boa.env.timestamp % LENGTH)
    return accounts


def pass_windows(count: int) -> None:
    boa.env.time_travel(seconds=LENGTH * count)


def test_the_first_activation_fills_the_bucket_and_an_account_takes_a_quarter(world: World) -> None:
    """Each epoch mints 100: after it 400 may leave, and 100 to one account in a window."""
    accounts = earn(world, [40, 60])
    assert world.claim(accounts, 0) == 40
    assert world.claim(accounts, 1) == 60


def test_what_is_over_the_ceiling_is_paid_in_the_next_windows(world: World) -> None:
    for total in (60, 120, 150):
        accounts = earn(world, [total])
    owner = hexed(OWNERS[0])
    assert world.ledger.claimable(owner) == 60
    paid = []
    for _ in range(3):
        paid.append(world.claim(accounts, 0))
        (event,) = logs_of(world.ledger, "Claimed")
        assert (event.amount, event.paid, event.left) == (paid[-1], sum(paid), 150 - sum(paid))
        assert world.claim(accounts, 0) == 0
        assert logs_of(world.ledger, "Claimed") == []
        assert world.ledger.claimable(owner) == (0 if paid[-1] == 60 else 30)
        pass_windows(1)
    assert paid == [60, 60, 30]


@pytest.mark.parametrize(("seconds", "more"), [(LENGTH - 1, 0), (LENGTH, 100)])
def test_a_window_is_one_nominal_length(world: World, seconds: int, more: int) -> None:
    for total in (100, 200):
        accounts = earn(world, [total])
    assert world.claim(accounts, 0) == 100
    boa.env.time_travel(seconds=seconds)
    assert world.claim(accounts, 0) == more


def test_the_bucket_holds_four_budgets_and_refills_by_one_a_length(world: World) -> None:
    """Six accounts with 100 each, over six epochs of 100: four are paid at once, the rest as time passes."""
    for epoch in range(1, 7):
        accounts = earn(world, [100] * epoch)
    pass_windows(10)
    assert [world.claim(accounts, i) for i in range(6)] == [100, 100, 100, 100, 0, 0]
    boa.env.time_travel(seconds=LENGTH // 2)
    assert [world.claim(accounts, i) for i in range(6)] == [0, 0, 0, 0, 50, 0]
    boa.env.time_travel(seconds=1)
    assert world.ledger.claimable(hexed(OWNERS[5])) == 2
    pass_windows(3)
    assert [world.claim(accounts, i) for i in range(6)] == [0, 0, 0, 0, 50, 100]


def test_who_earns_everything_and_claims_each_epoch_meets_no_limit(world: World) -> None:
    paid = 0
    for total in (100, 150, 1_000, 1_001, 9_000, 9_000, 12_000):
        accounts = earn(world, [total])
        paid += world.claim(accounts, 0)
        assert paid == total


def test_a_budget_that_rises_fills_its_part_of_the_bucket_at_once(world: World) -> None:
    accounts = earn(world, [10])
    world.claim(accounts, 0)
    accounts = earn(world, [10, 800, 800, 800, 800])
    assert [world.claim(accounts, i) for i in range(5)] == [0, 800, 800, 800, 800]


def test_a_budget_falls_by_a_64th_an_epoch(world: World) -> None:
    earn(world, [6_400])
    owner = hexed(OWNERS[1])
    assert world.ledger.claimable(owner) == 6_400
    for expected in (6_300, 6_202, 6_106):
        earn(world, [6_400])
        assert world.ledger.claimable(owner) == expected


def test_a_schedule_is_the_least_budget(world: World) -> None:
    other = World(UNSCHEDULED._replace(initial_subsidy=1_000, halving_epochs=2))
    seen = []
    for _ in range(4):
        other.post(subsidy=0)
        other.activate()
        seen.append(other.ledger.claimable(hexed(OWNERS[0])))
    assert seen == [1_000, 1_000, 985, 970]


def test_whatever_is_owed_leaves_even_after_budgets_have_become_nothing(world: World) -> None:
    accounts = earn(world, [50_000])
    for _ in range(12):
        world.post(accounts)
    world.activate()
    left = 50_000
    for _ in range(3):
        left -= world.claim(accounts, 0)
        pass_windows(1)
    assert left == 0


def test_nothing_minted_is_nothing_owed_and_claims_of_it_do_not_revert(world: World) -> None:
    accounts = earn(world, [0, 0])
    assert world.ledger.claimable(hexed(OWNERS[0])) == 0
    assert world.claim(accounts, 0) == 0
    accounts = earn(world, [5])
    assert world.claim(accounts, 0) == 5


def test_claims_by_anyone_for_anyone_cost_the_account_nothing(world: World) -> None:
    """Who claims in an account's name uses up its ceiling only by paying it."""
    for total in (60, 90):
        accounts = earn(world, [total])
    for _ in range(20):
        boa.env.time_travel(seconds=1)
        world.claim(accounts, 0)
    assert world.ledger.paid(hexed(OWNERS[0])) == 60
    pass_windows(1)
    assert world.claim(accounts, 0) == 30


def test_asking_often_does_not_stop_the_refill(world: World) -> None:
    """A budget of 3 in 50 seconds: less than a unit a second, and asked every second."""
    for count in range(1, 7):
        accounts = earn(world, [3] * count)
    assert sum(world.claim(accounts, index) for index in range(6)) == 12
    paid = 0
    for _ in range(LENGTH + 2):
        boa.env.time_travel(seconds=1)
        paid += world.claim(accounts, 4)
    assert paid == 3


def test_a_partial_claim_meets_the_next_report(world: World) -> None:
    accounts = earn(world, [100])
    accounts = earn(world, [200])
    assert world.claim(accounts, 0) == 100
    accounts = earn(world, [300])
    assert world.claim(accounts, 0) == 100
    pass_windows(1)
    assert world.claim(accounts, 0) == 100
    assert world.ledger.paid(hexed(OWNERS[0])) == 300


def test_a_bucket_of_full_width_loses_no_bit(world: World) -> None:
    other = World(Settings(claim_epochs=2**64 - 1, cap=2**96 - 1, initial_subsidy=2**93, halving_epochs=1))
    accounts = [Account(OWNERS[0], 2**93)]
    other.post(accounts)
    other.activate()
    assert other.ledger.claimable(hexed(OWNERS[0])) == (2**96 - 1) // 4
    assert other.claim(accounts, 0) == 2**93


@budget(8)
@given(
    epochs=st.lists(
        st.tuples(st.integers(0, 500), st.lists(st.tuples(st.integers(0, 3), st.integers(1, 120)), max_size=4)),
        min_size=1,
        max_size=4,
    )
)
def test_what_leaves_is_bounded_and_all_of_it_leaves_in_time(
    limited: World, epochs: list[tuple[int, list[tuple[int, int]]]]
) -> None:
    world, totals = limited, [0, 0, 0, 0]
    with boa.env.anchor():
        world.buy(boa.env.generate_address(), 1_000_000)
        largest, began, paid, accounts = 0, 0, 0, [Account(owner) for owner in OWNERS[:4]]
        for grown, claims in epochs:
            totals = [total + grown * part // 10 for total, part in zip(totals, (1, 2, 3, 4), strict=True)]
            minted = sum(totals) - sum(account.tokens_earned for account in accounts)
            accounts = [Account(owner, total) for owner, total in zip(OWNERS, totals, strict=False)]
            world.post(accounts, revenue=minted)
            world.activate()
            began = began or boa.env.timestamp
            largest = max(largest, minted)
            for index, seconds in claims:
                paid += world.claim(accounts, index)
                lengths = -(-(boa.env.timestamp - began) // LENGTH)
                assert paid <= (4 + lengths) * largest
                boa.env.time_travel(seconds=seconds)
        for _ in range(8 * len(epochs)):
            pass_windows(1)
            paid += sum(world.claim(accounts, index) for index in range(4))
        assert paid == sum(totals) <= TOKEN
