"""Tasks that go on: one instance, paid for by one order after another, in slices.

The first order for a task starts it; each further one of the same lease and task waits behind it and extends it. A
slice ends when its measure is used up, when its client stops it, or when its receipt would come too late; then the next
one begins, or, where there is none, the instance ends. Invariant: a moment of the instance is billed to one slice, and
none that it spent waiting to be started again is billed at all.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgspec

from freehold.protocol.errors import FreeholdError, NotFound, Refused
from freehold.protocol.units import Hash
from freehold.services.compute.executors.seam import Executor, Outcome, Work
from freehold.services.compute.node.executors import Executors
from freehold.services.compute.node.gateway import Gateway, read_access
from freehold.services.compute.node.orders import RUNNING, Ending, Entry
from freehold.services.compute.node.orders_ending import Closer
from freehold.services.compute.node.orders_live import Job
from freehold.services.compute.node.orders_running import Run
from freehold.services.compute.node.orders_work import (
    EMPTY,
    Bounds,
    Worker,
    check_in_time,
    empty_result,
    lend_programs,
)
from freehold.services.compute.node.programs import Programs

log = logging.getLogger(__name__)

LONGEST_LOOK = 15.0  # seconds between looks at an instance that nothing else wakes
FOR_GOOD = 2**31 - 1  # seconds: the orders say when it ends
MOST = 2**62


class ServiceExecutor(Executor, Protocol):
    """The executor of services: as any other, and it tells of what runs."""

    def status(self, folder: Path) -> Any:
        """How the run in `folder` is: `healthy`, `restarts`, `state`, `reason`. NotFound."""

    def socket(self, folder: Path) -> Path:
        """A UNIX socket that reaches it. NotFound, Unavailable."""


class Instance:
    """One running service. `slices` are the orders that wait for their turn to pay for it."""

    def __init__(self) -> None:
        self.slices: deque[Job] = deque()
        self.inputs: tuple[tuple[str, str], ...] = ()
        self.token = secrets.token_urlsafe(24)
        self.executor: ServiceExecutor | None = None
        self.folder = Path()
        self.base = 0  # the measure at which the slice that is paid now began
        self._news = asyncio.Event()

    @property
    def used(self) -> int:
        """What the slice that is paid now has taken."""
        return max(0, self.measure - self.base)

    def used_by(self, job: Job) -> int:
        """What an order is billed so far."""
        return min(self.used, job.entry.order.most) if self.slices and self.slices[0] is job else 0

    @property
    def measure(self) -> int:
        """What the instance has taken."""
        return 0 if self.executor is None else self.executor.measure(self.folder)

    def wake(self) -> None:
        """Something about its slices has changed."""
        self._news.set()

    async def wait(self, running: asyncio.Task[Outcome], seconds: float) -> None:
        """Until there is news, it has ended, or so many seconds have passed."""
        self._news.clear()
        news = asyncio.ensure_future(self._news.wait())
        try:
            await asyncio.wait([news, running], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            news.cancel()

    def socket(self) -> Path:
        """Where it is reached. NotFound, Unavailable."""
        if self.executor is None:
            raise NotFound("the service has not been started yet")
        return self.executor.socket(self.folder)


class Services:
    """The services of one node."""

    def __init__(
        self, bounds: Bounds, executors: Executors, programs: Programs, worker: Worker, closer: Closer
    ) -> None:
        self._bounds, self._executors, self._programs = bounds, executors, programs
        self._worker, self._closer = worker, closer
        self._instances: dict[tuple[Hash, Hash], Instance] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def attach(self, job: Job) -> bool:
        """Let a job pay for the instance that runs for its task, or waits to, after those before it. The first one
        takes its turn in the queue, and starts it."""
        instance = self._instances.get(_key(job))
        is_first = instance is None
        if instance is None:
            instance = self._instances[_key(job)] = Instance()
        instance.slices.append(job)
        job.stop = partial(self._stop, instance, job)
        job.measure = partial(instance.used_by, job)
        if instance.executor is not None:
            job.phase = RUNNING
            job.touch()
        instance.wake()
        return not is_first

    def _stop(self, instance: Instance, job: Job) -> None:
        """One that pays ends in its turn; one that waits to pay ends at once, for nothing."""
        if job in instance.slices and instance.slices[0] is not job:
            instance.slices.remove(job)
            ending = asyncio.create_task(self._end_unpaid(job))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)
        instance.wake()

    async def _end_unpaid(self, job: Job) -> None:
        await self._closer.close(job, empty_result("stopped"), Ending(reason="it was stopped"), EMPTY)

    def find(self, entry: Entry) -> Instance | None:
        """The instance that an order pays for, or has paid for: it stays the same from slice to slice."""
        return self._instances.get((entry.lease, entry.order.task))

    def describe(self, job: Job) -> dict[str, Any] | None:
        """How the instance is, and how its client reaches it."""
        instance = self.find(job.entry)
        if instance is None or instance.executor is None:
            return None
        try:
            status = instance.executor.status(instance.folder)
        except NotFound:
            return None
        return {
            "url": f"/v1/compute/{job.entry.lease}/services/{job.id}/",
            "token": instance.token,
            "healthy": status.healthy,
            "restarts": status.restarts,
            "state": status.state,
            "reason": status.reason,
        }

    async def perform(self, job: Job) -> None:
        """Start a service and see it through, for this order and those that come to it. Cancelled, all stay."""
        instance = self._instances[_key(job)]
        try:
            if job.is_stopping:
                await self._end_slice(instance, "stopped", "it was stopped")
                rest = list(instance.slices)
                self._leave(instance)
                for one in rest:
                    self._bounds.again(one)
            else:
                await self._perform(job, instance)
        except FreeholdError as error:
            await self._give_up(instance, error.message)
        except Exception:
            log.exception("the service of order %s failed", job.id)
            await self._give_up(instance, "an internal error of the node")
        finally:
            self._leave(instance)
            self._bounds.release(job)

    def _leave(self, instance: Instance) -> None:
        """No further order extends it."""
        for key, one in list(self._instances.items()):
            if one is instance:
                del self._instances[key]

    async def _drop_late(self, instance: Instance) -> None:
        """Orders that ran out while they waited for their turn."""
        for job in list(instance.slices):
            try:
                check_in_time(job, self._bounds.committed())
            except Refused as error:
                instance.slices.remove(job)
                await self._closer.give_up(job, error.message)

    async def _give_up(self, instance: Instance, reason: str) -> None:
        self._leave(instance)
        while instance.slices:
            await self._closer.give_up(instance.slices.popleft(), reason)

    async def _perform(self, job: Job, instance: Instance) -> None:
        await self._drop_late(instance)
        if not instance.slices:
            return
        executor: Any = await self._executors.find(job.task)
        async with AsyncExitStack() as stack:
            access = read_access(job.entry.access)
            gateway = None if access is None else await stack.enter_async_context(Gateway(access))
            program, engine, stdin = await stack.enter_async_context(lend_programs(self._programs, job.task))
            run = await stack.enter_async_context(
                Run(self._bounds.folder / job.id.hex(), job.task, executor, job.add_log)
            )
            instance.inputs = tuple(await self._worker.fetch(job, gateway, run.folder / "in"))
            resources = msgspec.structs.replace(job.task.resources, seconds=FOR_GOOD)
            task = msgspec.structs.replace(job.task, resources=resources)
            instance.folder, instance.executor = run.folder, executor
            for one in instance.slices:
                one.phase = RUNNING
                one.touch()

            def add_log(data: bytes) -> None:
                (instance.slices[0] if instance.slices else job).add_log(data)

            work = Work(task, program, stdin, run.folder, MOST, add_log, engine)
            running = asyncio.create_task(executor.run(work))
            try:
                await self._pay(instance, running)
            finally:
                if not running.done():
                    running.cancel()
                await asyncio.gather(running, return_exceptions=True)

    async def _pay(self, instance: Instance, running: asyncio.Task[Outcome]) -> None:
        """Let one slice after the other pay, until there is none or the service has ended by itself."""
        while instance.slices:
            job = instance.slices[0]
            left = job.entry.order.most - instance.used
            if running.done():
                await self._end_all(instance, running)
            elif job.is_stopping:
                await self._end_slice(instance, "stopped", "it was stopped")
            elif left <= 0:
                await self._end_slice(instance, "time", "what was ordered is used up")
            elif self._bounds.committed() + 2 > job.entry.order.until:
                await self._end_slice(instance, "time", "the order is about to run out")
            else:
                seconds = left / job.task.resources.processors / 10**9
                await instance.wait(running, min(max(seconds, 0.001), LONGEST_LOOK))
        assert instance.executor is not None
        instance.executor.end(instance.folder)
        await asyncio.wait([running])

    async def _end_slice(self, instance: Instance, ended: str, reason: str) -> None:
        job = instance.slices[0]
        measure = min(instance.used, job.entry.order.most)
        ending = Ending(reason=reason, measure=measure, inputs=instance.inputs)
        await self._closer.close(job, empty_result(ended), ending, EMPTY)
        instance.base += measure
        instance.slices.popleft()
        if not instance.slices:
            self._leave(instance)  # a further order starts another

    async def _end_all(self, instance: Instance, running: asyncio.Task[Outcome]) -> None:
        """It has ended by itself: who paid last pays for what it took, the others for nothing."""
        self._leave(instance)
        try:
            outcome = running.result()
        except FreeholdError as error:
            self._executors.failed("service", error.message)
            raise
        job = instance.slices[0]
        measure = min(max(0, outcome.measure - instance.base), job.entry.order.most)
        ending = Ending(reason=outcome.reason, measure=measure, inputs=instance.inputs)
        await self._closer.close(job, empty_result(outcome.ended), ending, EMPTY)
        instance.slices.popleft()
        await self._give_up(instance, f"the service has ended: {outcome.reason or outcome.ended}")


def _key(job: Job) -> tuple[Hash, Hash]:
    return job.entry.lease, job.entry.order.task


class OrdersCrew:
    """Who does the work of orders: services for tasks that go on, the worker for all others."""

    def __init__(self, worker: Worker, services: Services) -> None:
        self._worker, self._services = worker, services

    async def perform(self, job: Job) -> None:
        """Run a job to its end."""
        await (self._worker if job.task.service is None else self._services).perform(job)

    def attach(self, job: Job) -> bool:
        """Give a job to the service that runs already for it, if there is one."""
        return job.task.service is not None and self._services.attach(job)

    def describe(self, job: Job) -> dict[str, Any] | None:
        """The service that the job is a part of, for its standing."""
        return None if job.task.service is None else self._services.describe(job)
