"""Parts of jobs by themselves: the purse, the journal, seats at nodes, disputes over steps, services that move."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.client.jobs_delivery import to_folder
from freehold.client.jobs_journal import OPEN, JobJournal, OrderRow
from freehold.client.jobs_money import CapReached, Held, Purse
from freehold.client.jobs_orders import LATEST, Desk
from freehold.client.jobs_pool import NobodyLeft, Pool, Seat, Without
from freehold.client.jobs_spec import Job, Resources, Step
from freehold.protocol.errors import Conflict, Corrupt, InsufficientCredits, NotFound, Refused
from freehold.protocol.units import ONE, Address, Hash
from freehold.services.compute.terms import UNITS_PER_PRICE, WAITING, WRONG, Order
from tests.client.jobs_world import PRICE, Came, World, script_job

SECOND = 10**9


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


# The purse


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60)), max_size=80), st.integers(0, 100))
def test_a_purse_never_holds_more_than_its_cap(moves: list[tuple[int, int]], cap: int) -> None:
    purse, held = Purse(cap), list[Held]()

    async def take(amount: int) -> None:
        try:
            held.append(await asyncio.wait_for(purse.take(amount), 0.001))
        except (CapReached, TimeoutError):
            assert purse.free < amount

    async def walk() -> None:
        for kind, amount in moves:
            if kind == 0 or not held:
                if purse.free >= amount or all(one.silent for one in held):
                    await take(amount)
            elif kind == 1:
                one = held.pop(0)
                purse.settle(one, min(amount, one.amount))
            elif kind == 2:
                purse.linger(held[0])
            else:
                with pytest.raises(Corrupt):
                    purse.settle(held[0], held[0].amount + 1)
            assert 0 <= purse.spent + purse.held <= cap
            assert purse.held == sum(one.amount for one in held)

    asyncio.run(walk())


def test_who_waits_for_a_purse_gets_what_comes_back() -> None:
    async def run() -> None:
        purse = Purse(10)
        first = await purse.take(10)
        waiting = asyncio.create_task(purse.take(4))
        await asyncio.sleep(0)
        assert not waiting.done()
        purse.settle(first, 6)
        assert (await waiting).amount == 4
        last = await purse.take(0)
        purse.linger(last)
        purse.linger(next(iter(purse._held - {last})))
        with pytest.raises(CapReached):
            await purse.take(1)

    asyncio.run(run())


def test_a_cap_that_is_reached_is_said_in_figures() -> None:
    purse = Purse(ONE)
    purse.settle(purse.hold(ONE // 2), ONE // 4)
    purse.hold(ONE // 8).silent = True
    with pytest.raises(CapReached) as caught:
        asyncio.run(purse.take(ONE))
    said = caught.value
    for figure in (
        "at most 1 credits",
        "0.25 credits spent",
        "0.125 credits held",
        "come to 1 credits",
        "0.625 credits",
    ):
        assert figure in said.message
    assert "`--most 1.375`" in said.advice
    assert {name: int(value) for name, value in said.details.items()} == {
        "cap": ONE, "spent": ONE // 4, "held": ONE // 8, "free": ONE * 5 // 8, "needed": ONE,
    }  # fmt: skip
    enough = Purse(ONE + ONE * 3 // 8)
    enough.settle(enough.hold(ONE // 2), ONE // 4)
    enough.hold(ONE // 8)
    assert asyncio.run(enough.take(ONE)).amount == ONE


# The journal


def test_one_process_drives_a_job(tmp_path: Path) -> None:
    first, second = JobJournal(tmp_path), JobJournal(tmp_path)
    with first.driving("a"):
        assert second.is_driven("a")
        with pytest.raises(Conflict), second.driving("a"):
            pass
        with second.driving("b"):
            pass
    assert not second.is_driven("a")
    first.close()
    second.close()


def test_jobs_are_found_by_the_start_of_their_id_or_their_name(world: World) -> None:
    async def run() -> None:
        jobs = world.open()
        rows = [await jobs.submit(script_job(name=name), most=1) for name in ("a", "a", "b")]
        assert (await jobs.find("a")).id == rows[1].id  # the newest
        assert (await jobs.find(rows[0].id[:6])).id == rows[0].id
        assert [row.id for row in await jobs.all()] == [row.id for row in reversed(rows)]
        with pytest.raises(NotFound):
            await jobs.find("z")
        with pytest.raises(NotFound):
            await jobs.find("")

    asyncio.run(run())


# Lost orders


@pytest.mark.parametrize(("stand", "cost"), [(WAITING, 30), (WRONG, 0), (None, 0)])
def test_a_lost_order_that_ran_out_counts_what_its_node_showed_to_the_members(
    tmp_path: Path, stand: int | None, cost: int
) -> None:
    """Its node knows nothing of it when its client asks: neither is it waited for for ever, nor is it forgotten."""

    class Client:
        epoch = 5

        async def reopen(self, node: Any, lease: Any) -> Any:
            async def stop(job: Any) -> Any:
                raise NotFound("there is no such order")

            return SimpleNamespace(stop=stop)

        async def standings(self, node: Any, jobs: Any) -> Any:
            there = stand is not None and self.epoch <= 8
            return {job: SimpleNamespace(stand=stand, measure=30) for job in jobs} if there else {}

        async def until(self, seconds: float) -> int:
            return self.epoch + LATEST

    async def run() -> None:
        client, purse, journal = Client(), Purse(100), JobJournal(tmp_path)
        order = Order(lease=Hash(b"l" * 32), number=1, task=Hash(b"t" * 32), most=50, until=8)
        row = OrderRow(
            order.struct_hash(), "job", "step", 0, Address(b"n" * 20), Address(b"o" * 20), UNITS_PER_PRICE, 50, "run",
            order, OPEN, 0, 0, None, None, (), "",
        )  # fmt: skip
        await journal.add_order(row)
        await journal.mark_lost(row.id, "it is silent")
        job: Any = SimpleNamespace(id="job", deadline=0)
        nothing: Any = None
        desk = Desk(job, journal, client, purse, nothing, nothing, lambda: 0.0, nothing, 1.0)  # type: ignore[arg-type]
        desk.load(await journal.orders("job"))
        for client.epoch in (7, 8):
            assert await desk.look_after(row) is None
            assert (purse.spent, purse.held) == (0, 50)
        client.epoch = 9
        assert await desk.look_after(row) is None
        assert (purse.spent, purse.held, await journal.lost()) == (cost, 0, [])
        assert [one.cost for one in await journal.orders("job")] == [cost]
        journal.close()

    asyncio.run(run())


# Seats


class Opens:
    """Opens sessions, or does not."""

    def __init__(self, failing: dict[Any, Exception]) -> None:
        self.failing = failing
        self.asked: list[list[Any]] = []

    async def sessions(self, wants: Any) -> Any:
        self.asked.append([offered.node for offered, _ in wants])
        ready = [SimpleNamespace(node=o.node) for o, _ in wants if o.node not in self.failing]
        return ready, {node: error for node, error in self.failing.items() if node in self.asked[-1]}


def offers(*names: str, slots: int = 1) -> list[Any]:
    """A node "a1" is operator a's."""
    return [SimpleNamespace(node=name, operator=name[0], properties={"slots": slots}, price=1) for name in names]


def make_pool(
    names: tuple[str, ...], failing: dict[Any, Exception] | None = None, slots: int = 1
) -> tuple[Pool, Opens]:
    client = Opens(failing or {})
    return Pool(client, offers(*names, slots=slots), lambda seat: 1, lambda offered: None), client  # type: ignore[arg-type]


def test_a_free_slot_is_preferred_then_the_better_rank() -> None:
    async def run() -> list[Any]:
        pool, _ = make_pool(("a1", "b1"))
        await pool.open(2)
        return [(await pool.acquire(Without())).offered.node for _ in range(4)]

    assert asyncio.run(run()) == ["a1", "b1", "a1", "b1"]


def test_who_waits_for_a_seat_gets_the_one_that_suits() -> None:
    async def run() -> None:
        pool, _ = make_pool(("a1", "b1"))
        await pool.open(2)
        seats = [await pool.acquire(Without()) for _ in range(4)]
        not_a = asyncio.create_task(pool.acquire(Without(operators={"a"})))  # type: ignore[arg-type]
        anyone = asyncio.create_task(pool.acquire(Without()))
        await asyncio.sleep(0)
        pool.release(seats[0])
        assert (await anyone).offered.node == "a1"
        assert not not_a.done()
        pool.release(seats[1])
        assert (await not_a).offered.node == "b1"

    asyncio.run(run())


def test_nodes_that_do_not_open_are_left_for_the_next(tmp_path: Path) -> None:
    async def run() -> None:
        pool, client = make_pool(("a1", "b1", "c1"), {"a1": NotFound("gone")})
        seat = await pool.acquire(Without())
        assert seat.offered.node == "b1"
        assert client.asked[0] == ["a1"]
        pool.release(seat, failed=True)
        assert (await pool.acquire(Without())).offered.node == "c1"
        with pytest.raises(NobodyLeft):
            await pool.acquire(Without(operators={"c"}))  # type: ignore[arg-type]

    asyncio.run(run())


def test_a_lack_of_credits_is_told_as_such() -> None:
    async def run() -> None:
        pool, _ = make_pool(("a1",), {"a1": InsufficientCredits("5 are missing")})
        with pytest.raises(InsufficientCredits, match="5 are missing"):
            await pool.acquire(Without())

    asyncio.run(run())


def test_what_a_node_says_of_its_slots_is_bounded() -> None:
    for said, slots in ((0, 1), (-3, 1), ("many", 1), (None, 1), (3, 3), (10**9, 256)):
        (offered,) = offers("a1")
        offered.properties["slots"] = said
        assert Seat(offered, 0).slots == slots
        assert Seat(offered, 0).depth == 2 * slots
    offered.properties["slots"] = 3
    for ahead, depth in ((1, 4), (3, 6), (10**9, 6), (0, 6), ("many", 6)):
        offered.properties["slots.ahead"] = ahead
        assert Seat(offered, 0).depth == depth


# Disputes that more runs would not settle


def test_a_refereed_contradiction_waits_for_the_referees(world: World) -> None:
    liar, *_ = world.add(5)
    liar.price = PRICE // 2
    liar.lies = lambda came: Came(b"forged")

    async def run() -> Any:
        jobs = world.open()
        job = script_job(verify={"kind": "refereed", "steps": 1}, assurance=0.99, arguments=["x"])
        row = await jobs.submit(job, most=10**18)
        waiting = asyncio.create_task(jobs.wait(row.id))
        async with asyncio.timeout(30):
            while not world.disputes:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        first, second = world.disputes[0]
        wrong = first if first.node == liar.address else second
        world.verdicts[wrong.order().struct_hash()] = SimpleNamespace(stand=WRONG)
        return await waiting, await jobs.results(row.id)

    done, results = asyncio.run(run())
    assert done.phase == "done", done.reason
    assert results["main"][0].stdout == b"x"


# Lost orders


def test_a_receipt_that_comes_after_all_is_billed_once(world: World) -> None:
    first, second = world.add(2)
    first.price = PRICE // 10
    first.gate = asyncio.Event()
    second.gate = asyncio.Event()

    async def run() -> Any:
        jobs = world.open()
        row = await jobs.submit(script_job(arguments=["x"], resources=Resources(work=1)), most=10**18)
        waiting = asyncio.create_task(jobs.wait(row.id))
        async with asyncio.timeout(30):
            while not first.orders:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            first.silent = True
            while not second.orders:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            first.silent, first.gate = False, None
            (job,) = first.jobs
            first.finish(job, first.orders[0], first.tasks[job])  # it went on while nobody could reach it
            while int((await jobs.cost(row.id))["silent"]):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert second.gate is not None
            second.gate.set()
            return await waiting, await jobs.cost(row.id)

    done, cost = asyncio.run(run())
    assert done.phase == "done", done.reason
    assert int(cost["spent"]) == world.billed
    assert first.stopped


# Services


def test_a_service_moves_when_its_node_dies_and_ends_when_stopped(world: World) -> None:
    first, second = world.add(2, **{"executor.service": True})
    first.price = PRICE // 2
    for node in world.nodes:
        node.gate = asyncio.Event()
    step = Step(name="web", command=["serve"], service={}, resources=Resources(work=1))  # type: ignore[arg-type]

    async def run() -> Any:
        jobs = world.open()
        row = await jobs.submit(Job(steps=[step]), most=10**18)  # type: ignore[arg-type]
        waiting = asyncio.create_task(jobs.wait(row.id))
        async with asyncio.timeout(30):
            while len(first.orders) < 2:  # noqa: ASYNC110  # one slice runs, one is ordered ahead
                await asyncio.sleep(0.001)
            first.silent = True
            while not second.orders:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            await world.open().stop(row.id)
            return await waiting, await jobs.why(row.id)

    done, why = asyncio.run(run())
    assert done.phase == "stopped"
    assert [event["node"] for event in why["events"] if event["kind"] == "failure"] == [str(first.address)]
    assert second.stopped


def test_a_service_that_moves_leaves_no_slice_behind(world: World) -> None:
    """Its instance failed at one node, where a further slice is ordered: nobody waits for that one any more."""
    first, second = world.add(2, **{"executor.service": True})
    first.price = PRICE // 2
    for node in world.nodes:
        node.gate = asyncio.Event()
    first.lies = lambda came: Came(ended="failed")
    step = Step(name="web", command=["serve"], service={}, resources=Resources(work=1))  # type: ignore[arg-type]

    async def run() -> None:
        jobs = world.open()
        row = await jobs.submit(Job(steps=[step]), most=10**18)  # type: ignore[arg-type]
        waiting = asyncio.create_task(jobs.wait(row.id))
        async with asyncio.timeout(30):
            while len(first.jobs) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            failing, ahead = first.jobs
            order = next(one for one in first.orders if one.struct_hash() == failing)
            first.finish(failing, order, first.tasks[failing])
            while not second.orders:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            assert ahead in first.stopped
            await world.open().stop(row.id)
            await waiting

    asyncio.run(run())


def test_a_hidden_file_is_not_written_to_a_folder(tmp_path: Path) -> None:
    """A node that nobody checks could otherwise leave .git/config where the user works."""
    nobody: Any = None
    named: Any = {".git/config": None}
    with pytest.raises(Refused, match="hidden"):
        asyncio.run(to_folder(nobody, {}, named, tmp_path))
    assert not list(tmp_path.iterdir())
