"""Ledger, reports: totals that only grow within their budget, a ring of pending ones, activation in order, once."""

from __future__ import annotations

from typing import Any

import boa
import pytest
from eth_abi import encode
from eth_utils import keccak

from freehold.protocol.messages import Report
from freehold.protocol.units import Hash
from tests.contracts.world import NEVER, TOKEN, World, logs_of, tuple_of


def seal_of(report: Report) -> bytes:
    values = (report.accounts_root, report.tokens_earned, report.credits_earned, report.credits_spent)
    return bytes(keccak(encode(["bytes32", "uint256", "uint256", "uint256"], values)))


def expect(world: World, report: Report, reason: str) -> None:
    if reason:
        with boa.reverts(reason):
            world.submit(report)
    else:
        world.submit(report)


@pytest.mark.parametrize("sender", ["treasury", "slasher"])
def test_only_the_oracle_posts(world: World, sender: str) -> None:
    with boa.reverts("ledger: only oracle"):
        world.ledger.post(tuple_of(world.report()), sender=getattr(world, sender))


@pytest.mark.parametrize(("off_by", "reason"), [(-1, "ledger: tokens earned"), (0, ""), (1, "ledger: tokens earned")])
def test_tokens_earned_grow_by_exactly_the_budget(world: World, off_by: int, reason: str) -> None:
    world.buy(boa.env.generate_address(), TOKEN)
    world.post(subsidy=100)
    expect(world, world.report(subsidy=7, revenue=5, tokens_earned=112 + off_by), reason)


@pytest.mark.parametrize(("over", "reason"), [(0, ""), (1, "ledger: over schedule")])
@pytest.mark.parametrize("before", [0, 3, 4])
def test_subsidy_is_within_the_schedule_of_its_epoch(world: World, before: int, over: int, reason: str) -> None:
    for _ in range(before):
        world.post()
    expect(world, world.report(subsidy=world.emission.schedule(before + 1) + over), reason)


@pytest.mark.parametrize(("over", "reason"), [(0, ""), (1, "ledger: revenue over burned")])
def test_revenue_of_all_reports_pending_too_is_within_what_was_burned(world: World, over: int, reason: str) -> None:
    world.buy(boa.env.generate_address(), 10 * TOKEN)
    world.post(revenue=3 * TOKEN)
    world.activate()
    world.post(revenue=3 * TOKEN)
    expect(world, world.report(revenue=4 * TOKEN + over), reason)


@pytest.mark.parametrize(("over", "reason"), [(0, ""), (1, "ledger: spent over paid in")])
def test_credits_spent_are_within_what_was_paid_in(world: World, over: int, reason: str) -> None:
    credits = world.buy(boa.env.generate_address(), 10 * TOKEN)
    expect(world, world.report(credits_spent=credits + over), reason)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("credits_earned", 49, "ledger: credits earned shrank"),
        ("credits_earned", 50, ""),
        ("credits_spent", 59, "ledger: credits spent shrank"),
        ("credits_spent", 60, ""),
        ("tokens_earned", 69, "ledger: tokens earned"),
        ("tokens_earned", 70, ""),
    ],
)
def test_no_total_shrinks(world: World, field: str, value: int, reason: str) -> None:
    world.buy(boa.env.generate_address(), TOKEN)
    world.post(subsidy=70, credits_earned=50, credits_spent=60)
    expect(world, world.report(**{"subsidy": 0, field: value}), reason)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"accounts_root": Hash(bytes(32)), "accounts": 0}, ""),
        ({"accounts_root": Hash(bytes(32)), "accounts": 1}, "ledger: zero root"),
        ({"accounts_root": Hash(bytes(32)), "accounts": 0, "subsidy": 1}, "ledger: zero root"),
        ({"accounts_root": Hash(bytes(32)), "accounts": 0, "credits_earned": 1}, "ledger: zero root"),
        ({"accounts_root": Hash(b"\x01" * 31 + b"\x00"), "accounts": 0}, "ledger: root of nothing"),
        ({"accounts_root": Hash(b"\x01" * 31 + b"\x01")}, "ledger: root"),
    ],
)
def test_the_zero_root_is_the_empty_trees_alone(world: World, changes: dict[str, Any], reason: str) -> None:
    expect(world, world.report(**changes), reason)


@pytest.mark.parametrize(("early", "active"), [(1, 0), (0, 1)])
def test_a_report_activates_when_its_window_has_passed(world: World, early: int, active: int) -> None:
    world.post(subsidy=5)
    boa.env.time_travel(seconds=world.settings.dispute_window - early)
    assert world.ledger.due_epoch() == active
    assert world.ledger.activate() == active == world.ledger.active_epoch()
    assert world.token.balanceOf(world.ledger) == 5 * active


def test_reports_activate_oldest_first_each_in_its_time(world: World) -> None:
    reports = []
    for _ in range(3):
        reports.append(world.post(subsidy=5))
        boa.env.time_travel(seconds=40)
    assert world.ledger.activate() == 1
    assert world.ledger.active_seal() == seal_of(reports[0])
    boa.env.time_travel(seconds=60)
    assert world.ledger.activate() == 3
    events = logs_of(world.ledger, "Activated")
    assert [(e.epoch, e.seal, e.subsidy, e.revenue) for e in events] == [
        (2, seal_of(reports[1]), 5, 0),
        (3, seal_of(reports[2]), 5, 0),
    ]
    assert world.ledger.activate() == 3
    assert world.emission.last_epoch() == 3
    assert world.emission.total_subsidy() == 15 == world.token.balanceOf(world.ledger)


def test_pending_shows_what_waits(world: World) -> None:
    world.buy(boa.env.generate_address(), TOKEN)
    posted_at = boa.env.timestamp
    report = world.post(subsidy=5, revenue=3)
    pending = world.ledger.pending(1)
    assert (pending.seal, pending.subsidy, pending.revenue) == (seal_of(report), 5, 3)
    assert pending.activates_at == posted_at + world.settings.dispute_window
    (event,) = logs_of(world.oracle, "Posted")
    assert (event.epoch, event.seal, event.activates_at) == (1, pending.seal, pending.activates_at)
    nothing = (bytes(32), 0, 0, 0, 0)
    assert tuple(world.ledger.pending(0)) == tuple(world.ledger.pending(2)) == nothing
    world.activate()
    assert tuple(world.ledger.pending(1)) == nothing


def test_before_the_first_activation_there_is_no_seal(world: World) -> None:
    assert world.ledger.active_seal() == bytes(32)
    world.post()
    assert world.ledger.active_seal() == bytes(32)


@pytest.mark.parametrize("active", [0, 1, 64, 65])
def test_the_ring_holds_63_pending_reports_beside_the_active_one(world: World, active: int) -> None:
    for _ in range(active):
        world.post(subsidy=1)
        world.activate()
    seal = world.ledger.active_seal()
    waiting = [world.post(subsidy=1) for _ in range(63)]
    with boa.reverts("ledger: ring full"):
        world.post(subsidy=1)
    assert world.ledger.active_seal() == seal
    for report in waiting:
        assert world.ledger.pending(report.epoch).seal == seal_of(report)
    assert world.activate() == active + 63
    assert world.token.balanceOf(world.ledger) == active + 63
    world.post(subsidy=1)


def test_totals_are_of_the_last_report_posted(world: World) -> None:
    world.buy(boa.env.generate_address(), TOKEN)
    world.post(subsidy=1, revenue=2, credits_earned=3, credits_spent=4)
    world.post(subsidy=5, revenue=6, credits_earned=7, credits_spent=8)
    totals = world.ledger.totals()
    assert (totals.tokens_earned, totals.credits_earned, totals.credits_spent, totals.revenue) == (14, 7, 8, 8)
    assert (totals.posted_epoch, totals.active_epoch) == (2, 0)


def test_totals_of_full_width_lose_no_bit(world: World) -> None:
    widest = 2**96 - 1
    world.post(price=widest)
    world.post(price=widest)
    world.fund(client := boa.env.generate_address(), TOKEN)
    world.token.approve(world.credits, TOKEN, sender=client)
    world.credits.buy(TOKEN, 0, NEVER, sender=client)
    world.post(credits_earned=widest, credits_spent=widest, subsidy=world.emission.schedule(3))
    totals = world.ledger.totals()
    assert (totals.credits_earned, totals.credits_spent) == (widest, widest)
    assert (totals.tokens_earned, totals.posted_epoch) == (world.emission.schedule(3), 3)


def test_every_accepted_report_activates_even_after_strangers_burn_and_donate(world: World) -> None:
    world.buy(boa.env.generate_address(), 10 * TOKEN)
    world.post(subsidy=world.emission.schedule(1), revenue=10 * TOKEN)
    world.token.burn(world.token.balanceOf(world.treasury) // 2, sender=world.treasury)
    world.fund(world.ledger.address, 5)
    world.fund(world.emission.address, 5)
    assert world.activate() == 1
    assert world.token.balanceOf(world.ledger) == world.settings.initial_subsidy + 10 * TOKEN + 5
