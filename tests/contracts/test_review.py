"""A dishonest quorum does not get away by silence, nor by taking its own report back before it is proven wrong."""

from __future__ import annotations

from collections.abc import Iterator

import boa
import pytest

from freehold.protocol.disputes import DEMAND_LEAF, find_shrunk
from tests.contracts.disputing import Challenger, accounts_of, bond_members, mine, states_of
from tests.contracts.world import TOKEN, World, hexed, tuple_of

BEFORE = accounts_of(100 * TOKEN, 200 * TOKEN, credits=5)
ROBBED = [BEFORE[0]._replace(tokens_earned=0), BEFORE[1]._replace(tokens_earned=301 * TOKEN)]


@pytest.fixture
def world() -> Iterator[World]:
    with boa.env.anchor():
        world = World()
        world.buy(boa.env.generate_address(), 1_000 * TOKEN)
        bond_members(world)
        yield world


def test_silence_does_not_activate_what_a_demand_holds(world: World) -> None:
    """The quorum robs an account, hides the tree, and falls silent until it can freeze: no report is counted."""
    before = world.post(BEFORE)
    world.activate()
    report = world.post(ROBBED)
    asker = Challenger(world)
    asker.demand(report, DEMAND_LEAF, 0)
    world.freeze()
    world.ledger.activate()
    assert world.ledger.active_epoch() == before.epoch
    boa.env.time_travel(seconds=world.settings.answer_reports * world.settings.epoch_length)
    world.disputes.expire(tuple_of(before), tuple_of(report), asker.address)
    assert world.ledger.posted_epoch() == before.epoch


def test_a_later_report_that_is_revoked_puts_off_no_demand(world: World) -> None:
    """The quorum posts more reports, sacrifices a later one, and falls silent: the count goes on from where it was."""
    before = world.post(BEFORE)
    world.activate()
    report = world.post(ROBBED)
    for _ in range(10):
        world.post(ROBBED)
    asker = Challenger(world)
    asker.demand(report, DEMAND_LEAF, 0)
    count = world.disputes.report_count()
    world.revoke(3, report)
    assert (world.ledger.posted_epoch(), world.disputes.report_count()) == (2, count)
    world.freeze()
    boa.env.time_travel(seconds=world.settings.answer_reports * world.settings.epoch_length)
    world.ledger.activate()
    world.disputes.expire(tuple_of(before), tuple_of(report), asker.address)
    assert world.ledger.posted_epoch() == before.epoch


def test_signers_cannot_take_their_report_back_before_it_is_proven(world: World) -> None:
    """They leave a demand of their own unanswered; when a challenge is committed, they let it expire."""
    before = world.post(BEFORE)
    world.activate()
    report = world.post(ROBBED)
    signer, challenger = Challenger(world), Challenger(world)
    signer.demand(report, DEMAND_LEAF, 0)
    for _ in range(world.settings.answer_reports):
        world.post(ROBBED)
    found = find_shrunk(states_of(BEFORE), states_of(ROBBED))
    challenger.commit(report, found)
    world.disputes.expire(tuple_of(before), tuple_of(report), signer.address)
    mine()
    challenger.reveal(before, report, found)
    world.disputes.slash(tuple_of(report), *world.sign(report))
    assert all(world.disputes.slashed(report.struct_hash(), hexed(member.address)) for member in world.members[:3])
