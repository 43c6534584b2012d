"""Oracle and Ledger, revocation and holds: nothing is left of what was taken back, and nothing activates while held."""

from __future__ import annotations

import boa
import pytest

from freehold.protocol.messages import Report
from freehold.protocol.units import Hash
from tests.contracts.test_ledger import seal_of
from tests.contracts.world import EMPTY_REPORT, TOKEN, Account, World, hexed, key_of, logs_of

PRICES = (2 * TOKEN, 3 * TOKEN, 5 * TOKEN)


@pytest.fixture
def three(world: World) -> tuple[World, list[Report]]:
    """Three pending reports, ten seconds apart, each with totals of its own."""
    world.buy(boa.env.generate_address(), 100 * TOKEN)
    reports = []
    for index, price in enumerate(PRICES):
        report = world.post(
            subsidy=10, revenue=5, credits_earned=7 * index, credits_spent=9 * index, price=price, view=index
        )
        reports.append(report)
        boa.env.time_travel(seconds=10)
    return world, reports


@pytest.mark.parametrize("sender", ["treasury", "governor", "guardian", "slasher"])
def test_only_disputes_revokes_holds_and_releases(world: World, sender: str) -> None:
    who = getattr(world, sender)
    world.post()
    with boa.reverts("oracle: only disputes"):
        world.oracle.revoke(1, EMPTY_REPORT, sender=who)
    with boa.reverts("ledger: only oracle"):
        world.ledger.revoke(1, 0, 0, 0, bytes(32), sender=who)
    for call in (world.ledger.hold, world.ledger.release):
        with boa.reverts("ledger: only disputes"):
            call(1, sender=who)


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_totals_go_back_to_those_of_the_report_before(three: tuple[World, list[Report]], epoch: int) -> None:
    world, reports = three
    before = reports[epoch - 2] if epoch > 1 else None
    world.revoke(epoch, before)
    (event,) = logs_of(world.oracle, "Revoked")
    assert (event.epoch, event.last, event.attempt) == (epoch, 3, 1)
    totals, kept = world.ledger.totals(), epoch - 1
    assert (totals.posted_epoch, totals.active_epoch) == (kept, 0)
    assert (totals.tokens_earned, totals.revenue) == (15 * kept, 5 * kept)
    expected = (before.credits_earned, before.credits_spent) if before else (0, 0)
    assert (totals.credits_earned, totals.credits_spent) == expected
    assert [world.oracle.attempt_of(e) for e in range(5)] == [0, *[int(e >= epoch) for e in (1, 2, 3)], 0]
    hashes = [world.oracle.report_hash(e) for e in range(5)]
    assert hashes == [
        bytes(32),
        *[bytes(r.struct_hash()) if r.epoch < epoch else bytes(32) for r in reports],
        bytes(32),
    ]
    assert world.oracle.last_report_hash() == (before.struct_hash() if before else world.oracle.parameters_at(1))


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_revoked_epoch_settles_again_as_the_next_attempt_alone(three: tuple[World, list[Report]], epoch: int) -> None:
    world, reports = three
    world.revoke(epoch, reports[epoch - 2] if epoch > 1 else None)
    with boa.reverts("oracle: attempt"):
        world.submit(reports[epoch - 1])
    with boa.reverts("oracle: attempt"):
        world.post(attempt=2)
    again = [world.post(subsidy=1) for _ in range(epoch, 5)]
    assert [report.attempt for report in again] == [1] * (4 - epoch) + [0]
    assert world.activate() == 4
    assert world.emission.last_epoch() == 4
    assert world.token.balanceOf(world.ledger) == 15 * (epoch - 1) + (5 - epoch)


def test_only_activated_epochs_were_minted(three: tuple[World, list[Report]]) -> None:
    world, reports = three
    boa.env.time_travel(seconds=world.settings.dispute_window - 21)
    assert world.ledger.activate() == 1
    minted = world.token.totalSupply()
    with boa.reverts("ledger: not pending"):
        world.revoke(1)
    world.revoke(2, reports[0])
    assert world.token.totalSupply() == minted
    assert world.ledger.activate() == 1
    world.post(subsidy=3)
    assert world.activate() == 2
    assert world.token.totalSupply() == minted + 3


def test_what_is_due_and_not_activated_can_still_be_revoked(three: tuple[World, list[Report]]) -> None:
    world, reports = three
    boa.env.time_travel(seconds=10 * world.settings.dispute_window)
    world.revoke(2, reports[0])
    assert world.ledger.activate() == 1


def test_the_report_before_is_shown_exactly(three: tuple[World, list[Report]]) -> None:
    world, reports = three
    for epoch, before in ((2, None), (2, reports[1]), (3, reports[0]), (1, reports[0])):
        with boa.reverts("oracle: before"):
            world.revoke(epoch, before)
    with boa.reverts("oracle: epoch"):
        world.revoke(0)
    with boa.reverts("ledger: not pending"):
        world.revoke(4, reports[2])


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_prices_of_revoked_reports_count_for_nothing(three: tuple[World, list[Report]], epoch: int) -> None:
    world, reports = three
    posted_at = boa.env.timestamp - 30
    world.revoke(epoch, reports[epoch - 2] if epoch > 1 else None)
    price = PRICES[epoch - 2] if epoch > 1 else world.settings.initial_price
    assert world.oracle.prices()[:2] == (price, price)
    if epoch > 1:
        assert world.oracle.prices()[2] == posted_at + 10 * (epoch - 2)
    world.post(price=11)
    assert world.oracle.prices()[:2] == (11, price)


def test_a_price_that_was_old_is_old_after_a_revocation(world: World) -> None:
    first = world.post()
    boa.env.time_travel(seconds=world.settings.max_price_age + 1)
    world.post()
    assert world.credits.price() > 0
    world.revoke(2, first)
    assert world.credits.price() == 0


def test_what_was_burned_can_be_revenue_again(world: World) -> None:
    world.buy(boa.env.generate_address(), 10 * TOKEN)
    first = world.post(revenue=4 * TOKEN)
    world.post(revenue=6 * TOKEN)
    with boa.reverts("ledger: revenue over burned"):
        world.post(revenue=1)
    world.revoke(2, first)
    with boa.reverts("ledger: revenue over burned"):
        world.post(revenue=6 * TOKEN + 1)
    world.post(revenue=6 * TOKEN)
    assert world.activate() == 2
    assert world.emission.total_revenue() == 10 * TOKEN


def test_claims_are_against_what_is_active_before_and_after(world: World) -> None:
    account = Account(key_of("revoked owner").address, 100)
    first = world.post([account])
    world.activate()
    assert world.claim([account], 0) == 100
    grown = [account._replace(tokens_earned=300)]
    world.post(grown)
    world.revoke(2, first)
    boa.env.time_travel(seconds=world.settings.dispute_window)
    with boa.reverts("ledger: wrong proof"):
        world.claim(grown, 0)
    less = [account._replace(tokens_earned=150)]
    world.post(less)
    world.activate()
    assert world.claim(less, 0) == 50
    assert world.ledger.paid(hexed(account.address)) == 150


def test_the_whole_ring_is_revoked_at_once(world: World) -> None:
    """63 pending reports, after the 64th epoch's place in the ring was used before."""
    last = None
    for _ in range(5):
        last = world.post(subsidy=1)
    world.activate()
    for _ in range(63):
        world.post(subsidy=1)
    world.revoke(6, last)
    assert world.ledger.posted_epoch() == world.ledger.active_epoch() == 5
    assert world.oracle.attempt_of(68) == 1
    assert world.oracle.attempt_of(69) == world.oracle.attempt_of(5) == 0
    for _ in range(63):
        world.post(subsidy=1)
    assert world.activate() == 68
    assert world.token.balanceOf(world.ledger) == 68


def test_an_epoch_is_revoked_again(world: World) -> None:
    for attempt in range(3):
        assert world.post(subsidy=attempt).attempt == attempt
        world.revoke(1)
    assert world.oracle.attempt_of(1) == 3
    world.post()
    assert world.activate() == 1


def test_a_revocation_starts_the_silence_anew(world: World) -> None:
    """Otherwise whoever revokes an old report could freeze at once."""
    s = world.settings
    world.post()
    world.ledger.hold(1, sender=world.disputes.address)
    boa.env.time_travel(seconds=s.freeze_lengths * s.epoch_length)
    world.revoke(1)
    boa.env.time_travel(seconds=s.freeze_lengths * s.epoch_length)
    with boa.reverts("ledger: not silent"):
        world.ledger.freeze()
    boa.env.time_travel(seconds=1)
    world.ledger.freeze()


# Holds


def hold(world: World, epoch: int) -> None:
    world.ledger.hold(epoch, sender=world.disputes.address)


def release(world: World, epoch: int) -> None:
    world.ledger.release(epoch, sender=world.disputes.address)


def test_held_reports_and_those_after_them_wait(three: tuple[World, list[Report]]) -> None:
    world, reports = three
    hold(world, 2)
    (event,) = logs_of(world.ledger, "Held")
    assert (event.epoch, event.holds) == (2, 1)
    assert world.ledger.pending(2).holds == 1
    assert world.ledger.pending(2).seal == seal_of(reports[1])
    boa.env.time_travel(seconds=10 * world.settings.dispute_window)
    assert world.ledger.due_epoch() == world.ledger.activate() == 1
    release(world, 2)
    assert world.ledger.due_epoch() == world.ledger.activate() == 3


def test_a_report_waits_for_its_last_release(world: World) -> None:
    world.post()
    for _ in range(3):
        hold(world, 1)
    boa.env.time_travel(seconds=world.settings.dispute_window)
    for _ in range(3):
        assert world.ledger.activate() == 0
        release(world, 1)
    assert world.ledger.activate() == 1


@pytest.mark.parametrize(("early", "reverts"), [(1, False), (0, True)])
def test_a_report_is_held_within_its_window(world: World, early: int, reverts: bool) -> None:
    world.post()
    boa.env.time_travel(seconds=world.settings.dispute_window - early)
    if reverts:
        with boa.reverts("ledger: window over"):
            hold(world, 1)
        assert world.ledger.activate() == 1
    else:
        hold(world, 1)


def test_the_window_stays_open_while_held_and_while_paused(world: World) -> None:
    s = world.settings
    world.post()
    hold(world, 1)
    boa.env.time_travel(seconds=s.dispute_window + 1)
    hold(world, 1)
    release(world, 1)
    world.ledger.pause(10, sender=world.guardian)
    release(world, 1)
    hold(world, 1)
    release(world, 1)
    boa.env.time_travel(seconds=10)
    with boa.reverts("ledger: window over"):
        hold(world, 1)


def test_only_what_is_pending_is_held(world: World) -> None:
    world.post()
    world.activate()
    world.post()
    for epoch in (0, 1, 3):
        with boa.reverts("ledger: not pending"):
            hold(world, epoch)
    hold(world, 2)


def test_a_release_of_nothing_does_nothing(three: tuple[World, list[Report]]) -> None:
    world, reports = three
    hold(world, 3)
    for epoch in (0, 1, 2, 4, 3 + 64):
        release(world, epoch)
        assert logs_of(world.ledger, "Released") == []
    assert world.ledger.pending(3).holds == 1
    world.revoke(3, reports[1])
    release(world, 3)
    world.post()
    assert world.ledger.pending(3).holds == 0
    release(world, 3)
    assert world.activate() == 3


def test_holds_outlast_the_begin_of_a_freeze_for_a_bounded_time(world: World) -> None:
    """Else a quorum that falls silent would free its report of every demand at once."""
    world.post()
    hold(world, 1)
    world.freeze()
    with boa.reverts("ledger: frozen"):
        hold(world, 1)
    boa.env.time_travel(seconds=world.settings.hold_seconds - 1)
    assert world.ledger.due_epoch() == world.ledger.activate() == 0
    boa.env.time_travel(seconds=1)
    assert world.ledger.due_epoch() == world.ledger.activate() == 1


def test_a_freeze_waits_for_no_hold_that_was_released(world: World) -> None:
    world.post()
    hold(world, 1)
    world.freeze()
    release(world, 1)
    assert world.ledger.due_epoch() == world.ledger.activate() == 1


def test_a_report_of_another_chain_of_reports_is_not_taken_after_a_revocation(world: World) -> None:
    world.post()
    second = world.post()
    world.revoke(1)
    world.post(manifest=Hash(b"\x05" * 32))
    with boa.reverts("oracle: attempt"):
        world.submit(second)
    with boa.reverts("oracle: previous"):
        world.post(previous=second.previous)
