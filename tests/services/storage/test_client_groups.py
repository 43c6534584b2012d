"""Group commit and the shared budget of memory, under every kind of end that a caller can come to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from freehold.protocol.errors import Unavailable
from freehold.services.storage.client_groups import Group
from freehold.services.storage.client_memory import LARGE, Budget, Pool


class Rounds:
    """Rounds that go on when `gate` opens."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.rounds: list[list[int]] = []
        self.orphans: list[tuple[int, int]] = []

    async def work(self, items: Sequence[int]) -> list[int]:
        self.rounds.append(list(items))
        await self.gate.wait()
        if 13 in items:
            raise Unavailable("thirteen")
        return [10 * item for item in items]

    async def orphaned(self, item: int, result: int) -> None:
        self.orphans.append((item, result))


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_whoever_comes_meanwhile_goes_with_the_next_round() -> None:
    async def scenario() -> None:
        rounds = Rounds()
        group = Group(rounds.work)
        tasks = [asyncio.create_task(group.do(1))]
        await turn()
        tasks += [asyncio.create_task(group.do(i)) for i in (2, 3, 4)]
        await turn()
        assert rounds.rounds == [[1]]
        rounds.gate.set()
        assert await asyncio.gather(*tasks) == [10, 20, 30, 40]
        assert rounds.rounds == [[1], [2, 3, 4]]

    asyncio.run(scenario())


def test_a_round_has_a_limit_and_one_item_at_least() -> None:
    async def scenario() -> None:
        rounds = Rounds()
        rounds.gate.set()
        group = Group(rounds.work, weigh=lambda item: item, limit=5)
        assert await asyncio.gather(*(group.do(i) for i in (9, 2, 3, 1))) == [90, 20, 30, 10]
        assert rounds.rounds == [[9], [2, 3], [1]]

    asyncio.run(scenario())


def test_a_round_that_fails_fails_its_own_and_the_next_goes_on() -> None:
    async def scenario() -> None:
        rounds = Rounds()
        group = Group(rounds.work)
        bad = asyncio.create_task(group.do(13))
        await turn()
        good = asyncio.create_task(group.do(2))
        await turn()
        rounds.gate.set()
        with pytest.raises(Unavailable, match="thirteen"):
            await bad
        assert await good == 20

    asyncio.run(scenario())


def test_who_is_cancelled_takes_nobody_along_and_what_was_done_for_it_is_handed_over() -> None:
    async def scenario() -> None:
        rounds = Rounds()
        group = Group(rounds.work, orphaned=rounds.orphaned)
        first, beside = asyncio.create_task(group.do(1)), asyncio.create_task(group.do(7))
        await turn()
        later, other = asyncio.create_task(group.do(2)), asyncio.create_task(group.do(3))
        await turn()
        first.cancel()
        later.cancel()
        await turn()
        rounds.gate.set()
        assert await asyncio.gather(beside, other) == [70, 30]
        assert rounds.rounds == [[1, 7], [3]]
        assert rounds.orphans == [(1, 10)]

    asyncio.run(scenario())


def test_closing_ends_the_round_and_all_who_wait() -> None:
    async def scenario() -> None:
        rounds = Rounds()
        group = Group(rounds.work)
        first = asyncio.create_task(group.do(1))
        await turn()
        later = asyncio.create_task(group.do(2))
        await turn()
        await group.close()
        for task in (first, later):
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(scenario())


def test_the_budget_serves_in_order_and_loses_nothing() -> None:
    async def scenario() -> None:
        budget = Budget(10)
        assert budget.try_take(7)
        large, small = asyncio.create_task(budget.take(8)), asyncio.create_task(budget.take(1))
        await turn()
        assert not budget.try_take(1)  # others wait
        assert not small.done()
        large.cancel()
        await turn()
        assert small.done()
        budget.give(7)
        budget.give(1)
        await budget.take(25)  # more than there is: all of it
        waiting = asyncio.create_task(budget.take(10))
        await turn()
        budget.give(25)
        waiting.cancel()  # it has been served, and does not know yet
        await turn()
        assert budget.try_take(10)

    asyncio.run(scenario())


def test_only_large_buffers_are_kept() -> None:
    pool = Pool(1)
    small, large, more = pool.lend(10), pool.lend(LARGE), pool.lend(LARGE)
    pool.take_back(small, 10)
    pool.take_back(large, LARGE)
    pool.take_back(more, LARGE)
    assert pool.lend(10) is not large
    assert pool.lend(LARGE) is large
    assert pool.lend(LARGE) not in (small, large, more)
