"""Services on their way: which node is next, who goes on with them, and when they are given up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from freehold.client import jobs_services, jobs_supervisor
from freehold.client.jobs import Jobs
from freehold.client.jobs_journal import JobRow
from freehold.client.jobs_spec import Job, Resources, Step
from freehold.client.jobs_supervisor import Supervisor
from freehold.protocol.errors import Unavailable
from tests.client.jobs_world import PRICE, Came, FakeNode, World
from tests.conftest import SLOW

STEP = Step(name="web", command=["serve"], service={}, resources=Resources(work=1))  # type: ignore[arg-type]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Nodes that run services until they are told otherwise; the cheapest is the first."""
    monkeypatch.setattr(jobs_services, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(jobs_services, "LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(jobs_supervisor, "LOOK_SECONDS", 0.01)
    made = World(tmp_path)
    for at, node in enumerate(made.add(3, **{"executor.service": True})):
        node.price = PRICE // (3 - at)
        node.gate = asyncio.Event()
    yield made
    made.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20 * SLOW):
        while not condition():  # noqa: ASYNC110  # what is waited for is state of other tasks
            await asyncio.sleep(0.001)


async def submit(jobs: Jobs, retries: int = 3) -> JobRow:
    return await jobs.submit(Job(steps=[STEP], retries=retries), most=10**18)  # type: ignore[arg-type]


def run(scenario: Awaitable[None]) -> None:
    async def main() -> None:
        await scenario

    asyncio.run(main())


def is_up(node: FakeNode) -> bool:
    return len(node.jobs) >= jobs_services.AHEAD


def test_a_process_that_takes_over_goes_on_where_the_service_runs(world: World) -> None:
    async def scenario() -> None:
        first, *others = world.nodes
        one = world.open()
        row = await submit(one)
        waiting = asyncio.create_task(one.wait(row.id))
        await until(lambda: is_up(first))
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

        other = world.open()
        waiting = asyncio.create_task(other.wait(row.id))
        running, ahead = first.jobs
        order = next(one for one in first.orders if one.struct_hash() == running)
        first.lies = lambda came: Came(ended="time")
        first.finish(running, order, first.tasks[running])
        await until(lambda: len(first.jobs) == 3)  # extended, before the slice ahead is over
        assert not first.jobs[ahead].is_over
        assert not any(node.orders for node in others)
        assert not first.stopped
        await world.open().stop(row.id)
        assert (await waiting).phase == "stopped"
        assert int((await other.cost(row.id))["spent"]) <= world.billed

    run(scenario())


def test_whoever_supervises_takes_over_from_a_client_that_ended(world: World) -> None:
    async def scenario() -> None:
        first = world.nodes[0]
        client, gateway = world.open(), world.open()
        supervising = asyncio.create_task(Supervisor(gateway).run())
        row = await submit(client)
        waiting = asyncio.create_task(client.wait(row.id))
        await until(lambda: is_up(first))
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        first.silent = True
        await until(lambda: is_up(world.nodes[1]))
        assert (await gateway.describe(row.id))["driven"]
        await client.stop(row.id)
        assert (await client.find(row.id)).phase == "stopped"
        supervising.cancel()
        await asyncio.gather(supervising, return_exceptions=True)

    run(scenario())


def test_other_jobs_are_not_the_supervisors(world: World) -> None:
    async def scenario() -> None:
        jobs = world.open()
        row = await jobs.submit(Job(steps=[Step(script="print(1)")]), most=10**18)  # type: ignore[arg-type]
        supervising = asyncio.create_task(Supervisor(world.open()).run())
        service = await submit(jobs)
        await until(lambda: is_up(world.nodes[0]))
        assert not (await jobs.describe(row.id))["driven"]
        await jobs.stop(service.id)
        supervising.cancel()
        await asyncio.gather(supervising, return_exceptions=True)

    run(scenario())


def test_a_node_on_which_nothing_listens_is_left_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long before a silent one would be."""

    async def refuse(node: FakeNode) -> None:
        await asyncio.sleep(0)
        if node.silent:
            error = Unavailable("nothing listens there")
            error.details["refused"] = True
            raise error

    monkeypatch.setattr(FakeNode, "_alive", refuse)

    async def scenario() -> None:
        jobs = world.open()
        jobs._patience = 1e9
        monkeypatch.setattr("freehold.client.jobs_orders.SERVICE_PATIENCE", 1e9)
        row = await submit(jobs)
        waiting = asyncio.create_task(jobs.wait(row.id))
        await until(lambda: is_up(world.nodes[0]))
        world.nodes[0].silent = True
        await until(lambda: is_up(world.nodes[1]))
        world.nodes[0].silent = False
        await world.open().stop(row.id)
        await waiting

    run(scenario())


def test_bids_are_asked_for_anew_where_nobody_is_left(world: World) -> None:
    async def scenario() -> None:
        jobs = world.open()
        row = await submit(jobs)
        waiting = asyncio.create_task(jobs.wait(row.id))
        await until(lambda: is_up(world.nodes[0]))
        asked = len(world.surveys)
        (late,) = world.add(1, PRICE, **{"executor.service": True})
        late.gate = asyncio.Event()
        for node in world.nodes[:3]:
            node.silent = True
        await until(lambda: is_up(late))
        assert len(world.surveys) > asked
        await world.open().stop(row.id)
        assert (await waiting).phase == "stopped"

    run(scenario())


def test_a_program_that_ends_everywhere_is_given_up(world: World) -> None:
    async def scenario() -> None:
        for node in world.nodes:
            assert node.gate is not None
            node.gate.set()
            node.lies = lambda came: Came(ended="failed")
        jobs = world.open()
        row = await submit(jobs, retries=2)
        done: Any = await jobs.wait(row.id)
        assert done.phase == "failed"
        assert "failed 3 times" in done.reason
        assert [event["kind"] for event in (await jobs.why(row.id))["events"]].count("failure") == 3

    run(scenario())
