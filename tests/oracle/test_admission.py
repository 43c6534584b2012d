"""What a member lets in: bounded by work, less for those with less at stake, and an honest figure of when to return."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from freehold.oracle import admission
from freehold.oracle.admission import Admission, units_of
from freehold.oracle.quotas import Standing
from freehold.protocol.errors import Overloaded

BONDED, KNOWN, STRANGE = Standing


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "LIMITS", {BONDED: 1000, KNOWN: 500, STRANGE: 100})
    monkeypatch.setattr(admission, "FIRST_RATE", 100.0)


def test_whoever_has_less_at_stake_takes_less_and_leaves_room_for_the_rest() -> None:
    gate = Admission()
    with ExitStack() as taken:
        for i in range(2):
            taken.enter_context(gate.admit(f"s{i}", STRANGE, 50))
        with pytest.raises(Overloaded):
            gate.check("s2", STRANGE, 1)
        for i in range(2):
            taken.enter_context(gate.admit(f"k{i}", KNOWN, 200))
        with pytest.raises(Overloaded):
            gate.check("k2", KNOWN, 1)
        taken.enter_context(gate.admit("b", BONDED, 500))
        with pytest.raises(Overloaded):
            gate.check("b2", BONDED, 1)
        assert gate.taken == 1000
    assert gate.taken == 0
    assert not gate._by_address
    assert gate.refused == 3


def test_one_address_takes_half_and_one_large_batch_passes_alone() -> None:
    gate = Admission()
    with gate.admit("a", KNOWN, 250):
        with pytest.raises(Overloaded, match="from a"):
            gate.check("a", KNOWN, 1)
        gate.check("b", KNOWN, 250)
    with gate.admit("a", KNOWN, 800), pytest.raises(Overloaded):
        gate.check("b", KNOWN, 1)


def test_whoever_is_refused_is_told_when_what_stands_before_is_done() -> None:
    now = [0.0]
    gate = Admission(lambda: now[0])
    with gate.admit("a", BONDED, 1000):
        assert wait_of(gate) == 10  # at the first rate
        now[0] += 9.0
    with gate.admit("a", BONDED, 1000):  # 1,100 units in 10 seconds by now
        assert wait_of(gate) == 10
        now[0] += 1.0
    with gate.admit("a", BONDED, 1000):  # half of that is forgotten, and 1,000 more are done: 1,550 in 5.5 seconds
        assert wait_of(gate) == 4
    now[0] += 1000.0  # with nothing to do: says nothing of the rate
    with gate.admit("a", BONDED, 1000):
        assert wait_of(gate) == 3  # 2,550 in 5.5 seconds


def wait_of(gate: Admission) -> int:
    with pytest.raises(Overloaded) as refused:
        gate.check("b", BONDED, 1)
    return int(refused.value.details["retry_after"])


def test_waits_have_bounds() -> None:
    gate = Admission(lambda: 0.0)
    assert gate.wait(0) == 1
    assert gate.wait(10**12) == admission.LONGEST_WAIT


def test_rows_bytes_and_the_batch_itself_are_work() -> None:
    assert units_of(0, 0) < units_of(1, 0) < units_of(1, 512)
    assert units_of(100_000, 16 * 2**20) < 200_000


def test_turns_go_to_those_with_more_at_stake_and_are_not_lost_with_the_cancelled() -> None:
    asyncio.run(turns())


async def turns() -> None:
    gate = Admission()
    order: list[str] = []
    release = asyncio.Event()

    async def work(name: str, standing: Standing) -> None:
        async with gate.turn(standing):
            order.append(name)
            await release.wait()

    tasks = [asyncio.create_task(work(f"first {i}", STRANGE)) for i in range(admission.DECODING)]
    await asyncio.sleep(0)
    waiting = [("s", STRANGE), ("gone", BONDED), ("k", KNOWN), ("b", BONDED)]
    named = {name: asyncio.create_task(work(name, standing)) for name, standing in waiting}
    await asyncio.sleep(0)
    named.pop("gone").cancel()
    release.set()
    await asyncio.gather(*tasks, *named.values())
    assert order[admission.DECODING :] == ["b", "k", "s"]
    assert gate._decoding == 0
