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

from tests.oracle.adversary import ByzantineWorld, HonestHost, run_seed
from tests.oracle.memo import remember
from tests.oracle.mistakes import MISTAKES
from tests.oracle.simulation import forget_settled

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


@pytest.mark.parametrize("seed", [47])  # what was found once: a vote forgotten when old blocks were read again
def test_what_was_found(seed: int) -> None:
    run(seed)


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
