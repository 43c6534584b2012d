"""Which order is made ready next, and which begins: with jobs that exist in memory alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from freehold.protocol.units import ZERO_HASH, Address, Hash
from freehold.services.compute.node.orders import Entry
from freehold.services.compute.node.orders_live import Job
from freehold.services.compute.node.orders_queue import Queue, QueueTurn
from freehold.services.compute.tasks import Resources, Task
from freehold.services.compute.terms import Order

MEMORY = 1000
FIRST, SECOND = Address(b"\x01" * 20), Address(b"\x02" * 20)


class World:
    """A queue whose jobs ask for their turn as soon as they are started."""

    def __init__(self, slots: int = 1, ahead: int = 1) -> None:
        self.started: list[Job] = []
        self.begun: list[Job] = []
        self.queue = Queue(slots, ahead, MEMORY, 100, self._start)
        self._tasks: list[asyncio.Task[None]] = []
        self.slow: set[Address] = set()  # clients whose inputs never come
        self.queue.open()

    def add(self, client: Address = FIRST, memory: int = 1, processors: int = 1) -> Job:
        task = Task(
            executor="wasm", kind="module", engine="e", arguments=("a",),
            resources=Resources(memory=memory, disk=1, processors=processors),
        )  # fmt: skip
        number = len(self.started) + self.queue.waiting + 1000 * len(self._tasks)
        order = Order(lease=ZERO_HASH, number=number, task=task.hash(), most=1, until=1)
        key = Hash(number.to_bytes(32))
        job = Job(Entry(1, key, client, ZERO_HASH, order, None, None, None, 0, b"", 0), task)
        self.queue.add(job)
        return job

    def _start(self, job: Job) -> None:
        self.started.append(job)
        self._tasks.append(asyncio.create_task(self._begin(job)))

    async def _begin(self, job: Job) -> None:
        if job.entry.client in self.slow:
            await asyncio.Event().wait()
        await QueueTurn(self.queue, job).begin()
        self.begun.append(job)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def in_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(test())

    run.__name__ = test.__name__
    return run


@in_loop
async def test_what_is_next_is_ready_before_there_is_a_slot() -> None:
    world = World(slots=2, ahead=1)
    jobs = [world.add() for _ in range(5)]
    await settled()
    assert (world.started, world.begun) == (jobs[:3], jobs[:2])
    assert [job.phase for job in jobs] == ["running", "running", "queued", "queued", "queued"]
    assert [world.queue.position(job) for job in jobs] == [0, 0, 0, 1, 2]
    assert world.queue.waiting == 3
    QueueTurn(world.queue, jobs[0]).end()
    await settled()
    assert (world.started, world.begun) == (jobs[:4], jobs[:3])
    world.queue.release(jobs[0])
    await settled()
    assert world.begun == jobs[:3], "its slot is taken already"


@in_loop
async def test_who_rests_keeps_its_memory_until_it_is_released() -> None:
    world = World()
    first, second = world.add(memory=MEMORY), world.add(memory=MEMORY)
    await settled()
    QueueTurn(world.queue, first).end()
    await settled()
    assert world.begun == [first]
    world.queue.release(first)
    await settled()
    assert world.begun == [first, second]


@in_loop
async def test_nobody_overtakes_one_that_waits_for_room() -> None:
    world = World(slots=2, ahead=2)
    small, wide, other = world.add(), world.add(processors=2), world.add()
    await settled()
    assert world.begun == [small]
    world.queue.release(small)
    await settled()
    assert world.begun == [small, wide]
    world.queue.release(wide)
    await settled()
    assert world.begun == [small, wide, other]


@in_loop
async def test_one_that_is_to_end_waits_for_no_slot() -> None:
    world = World()
    _, ready, waiting = (world.add() for _ in range(3))
    await settled()
    for job in (ready, waiting):
        job.is_stopping = True
    assert not world.queue.remove(ready), "it goes on by itself"
    assert world.queue.remove(waiting), "it was not started"
    await settled()
    assert world.begun[-1] is ready
    assert len(world.queue.running) == 1
    world.queue.release(ready)
    assert world.queue.waiting == 0


@in_loop
async def test_one_that_has_rested_asks_again() -> None:
    """Its executor failed, and it is tried once more: its slot may be another's by now."""
    world = World()
    first, second = world.add(), world.add()
    await settled()
    turn = QueueTurn(world.queue, first)
    await turn.begin()  # it runs: at once
    turn.end()
    again = asyncio.create_task(turn.begin())
    await settled()
    assert world.begun == [first, second]
    assert not again.done()
    world.queue.release(second)
    await again


@in_loop
async def test_whose_turn_was_the_last_lets_others_go_first() -> None:
    world = World(ahead=1)
    mine = [world.add() for _ in range(4)]
    theirs = [world.add(SECOND) for _ in range(2)]
    await settled()
    for _ in range(5):
        world.queue.release(next(iter(world.queue.running.values())))
        await settled()
    assert world.started == [mine[0], mine[1], theirs[0], mine[2], theirs[1], mine[3]]


@in_loop
async def test_who_gives_up_waiting_is_in_nobodys_way() -> None:
    world = World()
    running, ready = world.add(), world.add()
    await settled()
    world._tasks[1].cancel()
    later = world.add()
    await settled()
    assert world.queue.waiting == 1
    world.queue.release(running)
    await settled()
    assert world.begun == [running, later]
    assert ready not in world.queue.running.values()


@in_loop
async def test_inputs_that_never_come_keep_no_other_client_out() -> None:
    world = World(slots=2, ahead=2)
    world.slow = {FIRST}
    stuck = [world.add(FIRST) for _ in range(6)]
    others = [world.add(SECOND) for _ in range(3)]
    await settled()
    assert world.started == [*stuck[:4], others[0]]
    assert world.begun == others[:1]
    QueueTurn(world.queue, others[0]).end()
    world.queue.release(others[0])
    await settled()
    assert world.begun == others[:2]


@in_loop
async def test_clients_that_come_late_get_so_many_places_and_no_more() -> None:
    world = World(slots=1, ahead=1)
    clients = [Address(bytes([number]) * 20) for number in range(1, 13)]
    world.slow = set(clients)
    for client in clients:
        world.add(client)
        world.add(client)
    await settled()
    assert len(world.started) == len(world.queue.ready) == 8
