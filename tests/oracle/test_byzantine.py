"""The quorum against an adversary that holds up to f of its members: a thousand epochs in `make test`.

FREEHOLD_SEED=17 pytest tests/oracle/test_byzantine.py                 only that seed's schedule
FREEHOLD_SOAK=1  pytest tests/oracle/test_byzantine.py -m soak         100,000 epochs of new seeds (`make soak`)

The last test is about the checks themselves: members that are wrong in one place each are caught.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from freehold.oracle.chain_records import FinalBlock
from freehold.oracle.records import VOTE
from tests.oracle.adversary import ByzantineWorld, HonestHost, run_seed
from tests.oracle.invariants import check
from tests.oracle.memo import remember
from tests.oracle.mistakes import MISTAKES
from tests.oracle.simulation import QUIET, Host, World, forget_settled

EPOCHS, PARTS = 1_000, 10
SOAK_EPOCHS = 100_000
MOST_VIEWS = 10  # in which an epoch is settled that began after the faults had stopped, liars or not
SEEDS_TO_CATCH = 20


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        remember(patch)
        yield
    forget_settled()


def run(seed: int) -> ByzantineWorld:
    world = run_seed(seed)
    assert world.witness.messages > 100
    assert len(world.witness.calm_views) > 0
    assert max(world.witness.calm_views) <= MOST_VIEWS, f"FREEHOLD_SEED={seed}: {world.witness.calm_views}"
    return world


@pytest.mark.timeout(120)
@pytest.mark.parametrize("part", range(PARTS))
def test_a_thousand_epochs_against_an_adversary(part: int) -> None:
    if "FREEHOLD_SEED" in os.environ:
        run(int(os.environ["FREEHOLD_SEED"]))
        return
    settled, seed, revoked, views = 0, part, 0, 0
    while settled < EPOCHS // PARTS:
        world = run(seed)
        settled += world.witness.settled
        revoked += len(world.chain.revoked)
        views += sum(accepted.accepted.report.view for accepted in world.chain.accepted)
        seed += PARTS
    assert views > 5, "the adversary hardly does anything"


class Behind(Host):
    """Sees no block from this one on, while it is told so."""

    behind: int | None = None

    def visible_blocks(self) -> list[FinalBlock]:
        return [final for final in super().visible_blocks() if self.behind is None or final.block.number < self.behind]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_vote_outlives_old_blocks_that_are_read_again(seed: int) -> None:
    """A leader signs a revoked epoch anew, dies, and reads the blocks before the revocation again: there the chain has
    taken that epoch and later ones. What it signed since is not to be forgotten over them."""
    world = World(seed, QUIET, Behind, target=6)
    world.honest = world.hosts
    next(time for time in range(0, 60_000, 20) if accepted_at(world, time) >= 4)
    taken, epoch = len(world.chain.blocks), world.chain.view.active + 1
    host = world.hosts[(epoch + 1) % 4]  # who leads the next attempt's first view
    assert host.member.committed.epoch >= epoch
    world.chain.revoke(epoch)
    for other in world.hosts:
        other.behind = taken if other is host else taken + 1
    world.run_until(world.now + 3_000)
    host.behind = None
    signed = next(
        votes for time in range(world.now, world.now + 9_000, 20) if (votes := votes_at(world, host, epoch, time))
    )
    host.crash()
    host.behind = taken + 1
    host.start()
    world.run_until(world.now + 5_000)
    assert host.member.committed.epoch >= 4, "it has not read the old blocks"
    assert votes_at(world, host, epoch, world.now) == signed
    for other in world.hosts:
        other.behind = None
    world.run()
    check(world)


def accepted_at(world: World, time: int) -> int:
    world.run_until(time)
    return len(world.chain.accepted)


def votes_at(world: World, host: Host, epoch: int, time: int) -> dict[str, bytes | None]:
    """What is on the member's disk then of its votes in later attempts at this epoch."""
    world.run_until(time)
    votes = [record for record in host.disk.values() if record.kind == VOTE and record.epoch == epoch]
    return {record.key: record.data for record in votes if record.key.split(" ")[1] != "0"}


@pytest.mark.soak
@pytest.mark.timeout(12 * 3600)
def test_a_hundred_thousand_epochs() -> None:
    draw, settled, count = random.SystemRandom(), 0, 0
    while settled < SOAK_EPOCHS:
        settled += run(draw.randrange(10**9)).witness.settled
        count += 1
        if count % 100 == 0:
            forget_settled()
    print(f"{settled} epochs in {count} schedules")


def run_all(seeds: range, host: type[HonestHost]) -> None:
    for seed in seeds:
        run_seed(seed, make_honest=host)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_member_that_is_wrong_is_caught(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    host, patches, first = MISTAKES[mistake]
    for patch in patches:
        monkeypatch.setattr(*patch)
    with pytest.raises(AssertionError):
        run_all(range(first, first + SEEDS_TO_CATCH), host)
