"""Emission: the schedule, once an epoch, and revenue only out of what was burned for credits."""

from __future__ import annotations

import boa
import pytest

from tests.contracts.world import TOKEN, World, deployer_of, logs_of


def mint(world: World, epoch: int, subsidy: int, revenue: int = 0) -> None:
    world.emission.mint_epoch(epoch, subsidy, revenue, sender=world.ledger.address)


@pytest.mark.parametrize(
    ("epoch", "halvings"),
    [(1, 0), (4, 0), (5, 1), (8, 1), (9, 2), (4 * 255, 254), (4 * 256 + 1, 256), (2**64 - 1, 999)],
)
def test_schedule_halves(world: World, epoch: int, halvings: int) -> None:
    assert world.emission.schedule(epoch) == world.settings.initial_subsidy >> halvings


def test_epoch_zero_has_no_budget(world: World) -> None:
    assert world.emission.schedule(0) == 0


@pytest.mark.parametrize("sender", ["treasury", "slasher"])
def test_only_the_ledger_mints(world: World, sender: str) -> None:
    with boa.reverts("emission: only ledger"):
        world.emission.mint_epoch(1, 0, 0, sender=getattr(world, sender))


@pytest.mark.parametrize("epoch", [1, 4, 5])
def test_subsidy_reaches_the_schedule_and_no_more(world: World, epoch: int) -> None:
    budget = world.emission.schedule(epoch)
    with boa.reverts("emission: over schedule"):
        mint(world, epoch, budget + 1)
    mint(world, epoch, budget)
    assert world.token.balanceOf(world.ledger) == world.emission.total_subsidy() == budget


def test_catching_up_mints_no_epoch_twice(world: World) -> None:
    mint(world, 2, 5)
    for epoch in (0, 1, 2):
        with boa.reverts("emission: epoch minted"):
            mint(world, epoch, 0)
    mint(world, 4, 5)
    with boa.reverts("emission: epoch minted"):
        mint(world, 3, 5)
    assert (world.emission.last_epoch(), world.emission.total_subsidy()) == (4, 10)


def test_revenue_reaches_what_was_burned_over_all_epochs(world: World) -> None:
    world.buy(boa.env.generate_address(), 10 * TOKEN)
    mint(world, 1, 0, 4 * TOKEN)
    with boa.reverts("emission: revenue over burned"):
        mint(world, 2, 0, 6 * TOKEN + 1)
    mint(world, 2, 0, 6 * TOKEN)
    assert world.emission.total_revenue() == world.credits.total_burned()
    assert world.token.totalSupply() == world.settings.initial_supply


def test_a_burn_that_bought_nothing_is_no_revenue(world: World) -> None:
    world.token.burn(10 * TOKEN, sender=world.treasury)
    with boa.reverts("emission: revenue over burned"):
        mint(world, 1, 0, 1)


def test_every_mint_is_an_event_with_totals(world: World) -> None:
    world.buy(boa.env.generate_address(), TOKEN)
    mint(world, 1, 5, 3)
    mint(world, 2, 7, 4)
    (event,) = logs_of(world.emission, "EpochMinted")
    assert (event.epoch, event.subsidy, event.revenue, event.total_subsidy, event.total_revenue) == (2, 7, 4, 12, 7)


@pytest.mark.parametrize(
    ("subsidy", "halving", "reverts"), [(50, 1, False), (51, 1, True), (5, 10, False), (1, 0, True)]
)
def test_a_schedule_that_could_pass_the_cap_is_refused(world: World, subsidy: int, halving: int, reverts: bool) -> None:
    token = deployer_of("Token").deploy("Freehold", "FHD", world.slasher, 1_000, world.treasury, 900)
    arguments = (token, world.ledger, world.credits, world.collector, subsidy, halving)
    if reverts:
        with boa.reverts("emission: schedule over cap" if halving else "emission: no halving"):
            deployer_of("Emission").deploy(*arguments)
    else:
        deployer_of("Emission").deploy(*arguments)
