"""Anchors and draws: the same for everybody, and late once after a night asleep."""

from __future__ import annotations

import pytest

from freehold.protocol.beacon import Block, compute_anchor_time, draw, find_anchor
from freehold.protocol.errors import InvalidInput
from freehold.protocol.parameters import MILLION, Parameters
from freehold.protocol.units import Hash
from tests.protocol.world import PARAMETERS, block_hash

BLOCKS = [Block(number, block_hash(number), 100 + 4 * number) for number in range(1, 20)]


@pytest.mark.parametrize(
    ("previous", "accepted", "time"), [(100, 100, 120), (100, 115, 120), (100, 116, 121), (100, 50_000, 50_005)]
)
def test_the_anchor_waits_for_the_length_and_for_the_answers(previous: int, accepted: int, time: int) -> None:
    assert compute_anchor_time(PARAMETERS, previous, accepted) == time


@pytest.mark.parametrize(("earliest", "after", "number"), [(104, 0, 1), (105, 0, 2), (108, 2, 3), (176, 0, 19)])
def test_the_anchor_is_the_first_final_block_in_time(earliest: int, after: int, number: int) -> None:
    block = find_anchor(BLOCKS, earliest, after)
    assert block is not None
    assert block.number == number


def test_no_block_yet_is_no_anchor() -> None:
    assert find_anchor(BLOCKS, 177, 0) is None


def test_draws_depend_on_everything_and_stay_in_range() -> None:
    beacon = Hash(b"\x01" * 32)
    draws = {draw(beacon, b"a", i, 10**12) for i in range(50)} | {draw(beacon, b"b", i, 10**12) for i in range(50)}
    assert len(draws) == 100
    assert all(0 <= draw(beacon, b"a", i, 3) < 3 for i in range(50))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"beta": MILLION}, "beta"),
        ({"beta": 0}, "beta"),
        ({"tau": MILLION}, "tau"),
        ({"epoch_length": 0}, "epoch_length"),
        ({"challenges": 0}, "challenges"),
    ],
)
def test_parameters_that_make_no_network_are_named(change: dict[str, int], names: str) -> None:
    PARAMETERS.check()
    values = {name: getattr(PARAMETERS, name) for name in PARAMETERS.__struct_fields__}
    with pytest.raises(InvalidInput, match=names):
        Parameters(**values | change).check()
