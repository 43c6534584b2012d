"""Members against faults and lies, one kind at a time, by the hundred. A failing schedule names what replays it.

FREEHOLD_SEED=17 pytest tests/oracle/test_simulation.py      only that seed, in each test
FREEHOLD_SOAK=1  pytest tests/oracle/test_simulation.py      10,000 of random seeds
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator

import pytest

from freehold.oracle.effects import Effect
from tests.oracle.byzantine import KINDS, With
from tests.oracle.invariants import check
from tests.oracle.memo import remember
from tests.oracle.simulation import CRASHING, HOSTILE, QUIET, REVOKING, Faults, Host, World, forget_settled

SCHEDULES = 40
SCHEDULES_EACH = 8  # for each kind of liar: what they do together, and more, is test_byzantine.py's
SOAK_SCHEDULES = 10_000


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        remember(patch)
        yield
    forget_settled()


def seeds(count: int) -> list[int]:
    if "FREEHOLD_SEED" in os.environ:
        return [int(os.environ["FREEHOLD_SEED"])]
    return list(range(count))


def run(seed: int, faults: Faults, kind: type[Host] = Host, load: int = 6) -> World:
    try:
        world = World(seed, faults, Host if kind is Host else With(kind), load=load).run()
        check(world)
    except Exception as error:
        error.add_note(f"FREEHOLD_SEED={seed} replays it: {kind.__name__}, {faults}")
        raise
    return world


@pytest.mark.timeout(120)
def test_honest_members_on_a_bad_net() -> None:
    worlds = [run(seed, HOSTILE) for seed in seeds(2 * SCHEDULES)]
    if len(worlds) > 1:
        assert any(accepted.accepted.report.view for world in worlds for accepted in world.chain.accepted)
        held = sum(bool(request.held) for world in worlds for request in world.requests)
        assert held > len(worlds), "the schedules hardly do anything"


@pytest.mark.timeout(120)
def test_honest_members_that_crash() -> None:
    for seed in seeds(SCHEDULES):
        run(seed, CRASHING, load=14)


@pytest.mark.timeout(120)
def test_wrong_reports_are_revoked_and_good_ones_too() -> None:
    worlds = [run(seed, REVOKING, load=10) for seed in seeds(SCHEDULES)]
    if len(worlds) > 20:
        revoked = [one for world in worlds for one in world.chain.revoked]
        assert len(revoked) > len(worlds)
        assert any(one.last > one.epoch for one in revoked)
        assert any(accepted.accepted.report.attempt > 1 for world in worlds for accepted in world.chain.accepted)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_one_member_lies(kind: type[Host]) -> None:
    for seed in seeds(SCHEDULES_EACH):
        run(seed, HOSTILE, kind)
    for seed in seeds(SCHEDULES_EACH // 2):
        run(seed, CRASHING, kind, load=10)


@pytest.mark.soak
@pytest.mark.timeout(12 * 3600)
def test_random_schedules_at_length() -> None:
    draw = random.SystemRandom()
    for _ in range(SOAK_SCHEDULES):
        run(
            draw.randrange(10**9),
            draw.choice([HOSTILE, CRASHING]),
            draw.choice([Host, *KINDS]),
            load=draw.randint(2, 16),
        )
        if draw.random() < 0.01:
            forget_settled()


class CutOnce(Host):
    """Dies after a given number of effects, once, and comes back a second later."""

    effects_left = 0

    def do(self, effect: Effect) -> None:
        super().do(effect)
        self.effects_left -= 1
        if self.effects_left == 0:
            self.crash()
            self.world.after(1_000, self.start)


def with_a_cut(position: int, after: int) -> Callable[[World, int], Host]:
    def make(world: World, index: int) -> Host:
        host = (CutOnce if index == position else Host)(world, index)
        if isinstance(host, CutOnce):
            host.effects_left = after
        return host

    return make


@pytest.mark.timeout(120)
@pytest.mark.parametrize("position", [1, 3])  # the leader of epoch 1, and another member
def test_a_cut_after_every_effect(position: int) -> None:
    after, cut = 1, True
    while cut:
        world = World(7, QUIET, with_a_cut(position, after))
        world.honest = world.hosts
        world.run()
        cut = world.hosts[position].life > 0
        try:
            check(world)
        except AssertionError as error:
            error.add_note(f"cut member {position} after its effect {after}")
            raise
        after += 1
    assert after > 60


def test_with_two_of_four_gone_epochs_stop_and_nothing_is_lost() -> None:
    for seed in seeds(20):
        world = World(seed, QUIET, load=12)
        world.run_until(7_000)
        before = len(world.chain.accepted)
        assert before > 0
        for host in world.hosts[:2]:
            host.crash()
        world.run_until(30_000)
        stopped = len(world.chain.accepted)
        assert stopped <= before + 1
        acknowledged = [request for request in world.requests if request.held]
        for host in world.hosts[:2]:
            host.start()
        world.target = stopped + 2
        world.run()
        check(world)
        assert acknowledged


def test_a_member_that_was_away_replays_and_takes_part() -> None:
    for seed in seeds(20):
        world = World(seed, QUIET)
        world.run_until(500)
        world.hosts[2].crash()
        world.run_until(30_000)
        away = len(world.chain.accepted)
        assert away >= 4
        world.hosts[2].start()
        world.target = away + 3
        world.run()
        check(world)
        assert sorted(world.hosts[2].bundles) == sorted(world.hosts[0].bundles)


def test_a_schedule_repeats_exactly() -> None:
    first, second = (run(3, HOSTILE) for _ in range(2))
    assert [a.accepted for a in first.chain.accepted] == [a.accepted for a in second.chain.accepted]
    assert first.now == second.now
