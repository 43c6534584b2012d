"""The Slasher: a row of an active report's slashes takes from a bond what it says, once; nothing else does."""

from __future__ import annotations

from typing import Any

import boa
import pytest
from boa.util.abi import Address as Checksummed

from freehold.protocol.messages import Report
from freehold.protocol.tables import Table
from freehold.protocol.verdicts import Slash
from tests.contracts.slashes import HARMED, shown, slashes_of
from tests.contracts.world import TOKEN, World, hexed, key_of, logs_of, tuple_of

NODE = key_of("node")
AT = str(Checksummed(hexed(NODE.address)))
OPERATOR = str(Checksummed(hexed(key_of("operator").address)))


@pytest.fixture
def staked(world: World) -> World:
    """An operator with 100 tokens bonded on one node."""
    world.register(OPERATOR, NODE)
    world.fund(OPERATOR, 100 * TOKEN)
    world.token.approve(world.staking, 2**256 - 1, sender=OPERATOR)
    world.staking.stake(AT, 100 * TOKEN, sender=OPERATOR)
    return world


def posted(world: World, slashes: Table[Slash]) -> Report:
    return world.post(slashes_root=slashes.root)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_row_of_an_active_report_counts_once(staked: World, count: int) -> None:
    lost = slashes_of(count, OPERATOR, AT)
    report = posted(staked, lost)
    staked.activate()
    for index in range(count):
        assert staked.slashing.slash(*shown(report, lost, index)) == 10 * TOKEN
        (event,) = logs_of(staked.slashing, "NodeSlashed")
        assert (event.epoch, event.amount) == (report.epoch, 10 * TOKEN)
        assert bytes(event.subject) == lost.rows[index].subject
        with boa.reverts("slasher: slashed"):
            staked.slashing.slash(*shown(report, lost, index))
    assert staked.staking.position(OPERATOR, AT).bond == (100 - 10 * count) * TOKEN
    assert staked.token.balanceOf(hexed(HARMED)) == 2 * count * TOKEN


def test_nothing_counts_before_the_report_is_active(staked: World) -> None:
    lost = slashes_of(2, OPERATOR, AT)
    report = posted(staked, lost)
    with boa.reverts("slasher: not active"):
        staked.slashing.slash(*shown(report, lost, 0))


def test_a_report_that_was_revoked_takes_nothing(staked: World) -> None:
    lost = slashes_of(2, OPERATOR, AT)
    report = posted(staked, lost)
    staked.revoke(report.epoch, None)
    posted(staked, slashes_of(1, OPERATOR, AT))
    staked.activate()
    with boa.reverts("slasher: not the report"):
        staked.slashing.slash(*shown(report, lost, 0))


def test_only_rows_of_the_report_count(staked: World) -> None:
    lost, other = slashes_of(3, OPERATOR, AT), slashes_of(3, OPERATOR, AT, amount=99 * TOKEN)
    report = posted(staked, lost)
    staked.activate()
    good = list(shown(report, lost, 1))
    wrong: list[tuple[int, Any]] = [
        (1, 8),
        (2, 0),
        (3, shown(report, other, 1)[3]),
        (3, (*good[3][:4], OPERATOR, good[3][5])),
        (4, good[4][:-1]),
        (4, [*good[4], bytes(32)]),
    ]
    for place, value in wrong:
        with boa.reverts():
            staked.slashing.slash(*good[:place], value, *good[place + 1 :])
    forged = tuple_of(report)
    forged = tuple(other.root if value == lost.root else value for value in forged)
    with boa.reverts("slasher: not the report"):
        staked.slashing.slash(forged, *shown(report, other, 1)[1:])
    assert staked.staking.position(OPERATOR, AT).bond == 100 * TOKEN


def test_a_row_at_another_index_of_another_count_is_the_same_row(staked: World) -> None:
    """The last of three rows has the path of the second of two."""
    lost = slashes_of(3, OPERATOR, AT)
    report = posted(staked, lost)
    staked.activate()
    last = list(shown(report, lost, 2))
    staked.slashing.slash(*last)
    with boa.reverts("slasher: slashed"):
        staked.slashing.slash(last[0], 2, 1, *last[3:])


def test_a_report_without_slashes_takes_nothing(staked: World) -> None:
    report = staked.post(slashes_root=Table.of(Slash).root)
    staked.activate()
    with boa.reverts():
        staked.slashing.slash(*shown(report, slashes_of(1, OPERATOR, AT), 0))


def test_more_than_is_there_is_all_that_is_there(staked: World) -> None:
    lost = slashes_of(2, OPERATOR, AT, amount=70 * TOKEN)
    report = posted(staked, lost)
    staked.activate()
    taken = [staked.slashing.slash(*shown(report, lost, index)) for index in range(2)]
    assert taken == [70 * TOKEN, 30 * TOKEN]
