"""Ledger, silence and pauses: who may stop what, for how long, and how the network comes back."""

from __future__ import annotations

import boa
import pytest

from freehold.protocol.units import Hash
from tests.contracts.test_collector import Freezing, freezing
from tests.contracts.world import TOKEN, Account, World, deployer_of, key_of, logs_of

__all__ = ["freezing"]


def silence(world: World) -> int:
    return world.settings.freeze_lengths * world.settings.epoch_length


@pytest.mark.parametrize(("early", "reverts"), [(0, True), (-1, False)])
@pytest.mark.parametrize("posted", [0, 2])
def test_anyone_freezes_after_silence_and_no_sooner(world: World, posted: int, early: int, reverts: bool) -> None:
    boa.env.time_travel(seconds=17)
    for _ in range(posted):
        world.post()
    began = boa.env.timestamp - (0 if posted else 17)
    boa.env.time_travel(seconds=silence(world) - early - (0 if posted else 17))
    assert world.ledger.freezes_at() == began + silence(world)
    if reverts:
        with boa.reverts("ledger: not silent"):
            world.ledger.freeze()
        assert (world.ledger.frozen(), world.ledger.frozen_at()) == (False, 0)
    else:
        world.ledger.freeze(sender=boa.env.generate_address())
        (event,) = logs_of(world.ledger, "Frozen")
        assert (event.active_epoch, event.posted_epoch) == (0, posted)
        assert (world.ledger.frozen(), world.ledger.frozen_at()) == (True, boa.env.timestamp)
        with boa.reverts("ledger: frozen"):
            world.ledger.freeze()


def test_a_report_ends_a_freeze_and_silence_counts_from_it(world: World) -> None:
    world.freeze()
    boa.env.time_travel(seconds=3 * world.settings.epoch_length)
    world.post(subsidy=5)
    assert not world.ledger.frozen()
    (event,) = logs_of(world.oracle, "Thawed")
    assert event.lengths == 3
    boa.env.time_travel(seconds=silence(world))
    with boa.reverts("ledger: not silent"):
        world.ledger.freeze()
    assert world.ledger.activate() == 1


def test_nominal_epochs_count_frozen_lengths_and_never_fall(world: World) -> None:
    length = world.settings.epoch_length
    world.post()
    world.activate()
    assert world.ledger.nominal_epoch() == 1
    world.freeze()
    seen = []
    for _ in range(3):
        boa.env.time_travel(seconds=length - 1)
        seen.append(world.ledger.nominal_epoch())
        boa.env.time_travel(seconds=1)
        seen.append(world.ledger.nominal_epoch())
    assert seen == [1, 2, 2, 3, 3, 4]
    world.post()
    assert world.ledger.nominal_epoch() == 4
    world.activate()
    assert (world.ledger.nominal_epoch(), world.ledger.active_epoch()) == (5, 2)
    world.freeze()
    boa.env.time_travel(seconds=length)
    assert world.ledger.nominal_epoch() == 6


def test_construction_refuses_what_cannot_work(world: World) -> None:
    others = [boa.env.generate_address() for _ in range(8)]
    for numbers, reason in (
        ((1, 1, 0, 1, 1, 1), "ledger: no silence"),
        ((1, 0, 1, 1, 1, 1), "bucket: no length"),
        ((1, 1, 1, 0, 1, 1), "bucket: no epochs"),
    ):
        with boa.reverts(reason):
            deployer_of("Ledger").deploy(*others, *numbers)


# The quorum comes back without having counted what was collected


def test_a_report_must_count_what_was_collected(world: World) -> None:
    other = Hash(b"\x01" * 32)
    with boa.reverts("ledger: collected"):
        world.post(collected=other)
    world.freeze()
    world.post(collected=other)
    assert (world.ledger.posted_epoch(), world.ledger.frozen()) == (0, False)
    (event,) = logs_of(world.oracle, "Resumed")
    assert (event.epoch, event.attempt) == (1, 1) == (1, world.oracle.attempt_of(1))
    with boa.reverts("ledger: collected"):
        world.post(collected=other)
    assert world.post().attempt == 1
    assert world.activate() == 1


def test_what_does_not_count_as_a_report_ends_no_freeze(world: World) -> None:
    world.freeze()
    other = Hash(b"\x01" * 32)
    for changes, reason in (
        ({"attempt": 1}, "oracle: attempt"),
        ({"previous": other}, "oracle: previous"),
        ({"parameters": other}, "oracle: parameters"),
        ({"subsidy": world.settings.initial_subsidy + 1, "collected": Hash(bytes(32))}, "ledger: over schedule"),
    ):
        with boa.reverts(reason):
            world.post(**({"collected": other} | changes))
    assert world.ledger.frozen()


def test_it_freezes_again_where_no_report_follows(world: World) -> None:
    world.freeze()
    world.post(collected=Hash(b"\x01" * 32))
    boa.env.time_travel(seconds=silence(world))
    with boa.reverts("ledger: not silent"):
        world.ledger.freeze()
    boa.env.time_travel(seconds=1)
    world.ledger.freeze()
    assert world.post().attempt == 1


def test_a_report_signed_before_a_collection_is_settled_again(freezing: Freezing) -> None:
    world = freezing.world
    stale = world.report()
    tokens = freezing.collect(40)
    world.submit(stale)
    assert (world.ledger.posted_epoch(), world.ledger.frozen()) == (1, False)
    with boa.reverts("ledger: not frozen"):
        freezing.collect(50)
    with boa.reverts("oracle: attempt"):
        world.submit(stale)
    with boa.reverts("ledger: tokens earned"):
        world.post(tokens_earned=world.ledger.totals().tokens_earned, subsidy=0)
    report = world.post(subsidy=3)
    assert (report.attempt, report.tokens_earned) == (1, stale.tokens_earned + tokens + 3)


# Pauses


def test_only_the_guardian_pauses_and_unpauses(world: World) -> None:
    for sender in (world.governor, world.treasury, world.slasher):
        with boa.reverts("ledger: only guardian"):
            world.ledger.pause(1, sender=sender)
        with boa.reverts("ledger: only guardian"):
            world.ledger.unpause(sender=sender)
    with boa.reverts("ledger: not paused"):
        world.ledger.unpause(sender=world.guardian)


@pytest.mark.parametrize(("seconds", "reverts"), [(0, True), (1, False), (500, False), (501, True)])
def test_a_pause_is_bounded(world: World, seconds: int, reverts: bool) -> None:
    if reverts:
        with boa.reverts("ledger: pause too long"):
            world.ledger.pause(seconds, sender=world.guardian)
    else:
        world.ledger.pause(seconds, sender=world.guardian)
        (event,) = logs_of(world.ledger, "Paused")
        assert event.until == boa.env.timestamp + seconds == world.ledger.paused_until()


def test_a_pause_stops_claims_and_activation_and_nothing_else(world: World) -> None:
    owner = [Account(key_of("paused owner").address, 100)]
    world.post(owner)
    world.activate()
    world.post([owner[0]._replace(tokens_earned=150)])
    world.ledger.pause(200, sender=world.guardian)
    boa.env.time_travel(seconds=199)
    with boa.reverts("ledger: paused"):
        world.claim(owner, 0)
    assert world.ledger.claimable("0x" + "11" * 20) == 0
    assert world.ledger.due_epoch() == world.ledger.activate() == 1
    world.post(subsidy=1)
    boa.env.time_travel(seconds=1)
    assert world.ledger.activate() == 2
    assert world.claim([owner[0]._replace(tokens_earned=150)], 0) == 150


@pytest.mark.parametrize(("after", "reverts"), [(99, True), (100, False)])
def test_no_pause_begins_before_as_much_time_has_passed_unpaused(world: World, after: int, reverts: bool) -> None:
    world.ledger.pause(100, sender=world.guardian)
    with boa.reverts("ledger: paused too soon"):
        world.ledger.pause(1, sender=world.guardian)
    boa.env.time_travel(seconds=100 + after)
    if reverts:
        with boa.reverts("ledger: paused too soon"):
            world.ledger.pause(1, sender=world.guardian)
    else:
        world.ledger.pause(1, sender=world.guardian)


@pytest.mark.parametrize(("after", "reverts"), [(29, True), (30, False)])
def test_a_pause_that_ended_early_counts_as_long_as_it_lasted(world: World, after: int, reverts: bool) -> None:
    world.ledger.pause(100, sender=world.guardian)
    boa.env.time_travel(seconds=30)
    world.ledger.unpause(sender=world.guardian)
    assert world.ledger.paused_until() == boa.env.timestamp
    boa.env.time_travel(seconds=after)
    if reverts:
        with boa.reverts("ledger: paused too soon"):
            world.ledger.pause(1, sender=world.guardian)
    else:
        world.ledger.pause(1, sender=world.guardian)


def test_a_pause_stops_collecting_and_no_freeze(freezing: Freezing) -> None:
    world = freezing.world
    world.ledger.pause(200, sender=world.guardian)
    with boa.reverts("ledger: paused"):
        freezing.collect(40)
    boa.env.time_travel(seconds=200)
    assert freezing.collect(40) > 0
    with boa.env.anchor():
        world.post()
        boa.env.time_travel(seconds=silence(world))
        world.ledger.pause(200, sender=world.guardian)
        boa.env.time_travel(seconds=1)
        world.ledger.freeze()
        assert world.ledger.activate() == 1
        boa.env.time_travel(seconds=199)
        assert world.ledger.activate() == 2


def test_full_amounts_lose_no_bit_in_a_freeze(world: World) -> None:
    widest = 2**96 - 1
    world.post(credits_earned=widest, price=widest)
    world.freeze()
    boa.env.time_travel(seconds=7 * world.settings.epoch_length)
    world.post(credits_earned=widest, subsidy=TOKEN)
    totals = world.ledger.totals()
    assert (totals.credits_earned, totals.tokens_earned) == (widest, TOKEN)
    assert world.ledger.nominal_epoch() - world.ledger.active_epoch() == 7
