"""What a node does with an order whose turn has come: fetch, run, keep, deliver, give a receipt.

A run that is cut short by the end of this process leaves no trace but the order itself, which then runs again; a
delivery goes on where it was. An executor that fails is probed again, and the order runs once more; what the program
does is its own affair.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from freehold.protocol.errors import FreeholdError, Refused
from freehold.services.compute.executors.runs import NOT_BEGUN
from freehold.services.compute.executors.seam import Executor, Turn
from freehold.services.compute.node.blobs import SMALL, Blobs, in_thread
from freehold.services.compute.node.delivery import Deliveries, Kept
from freehold.services.compute.node.executors import Executors
from freehold.services.compute.node.gateway import Gateway, read_access
from freehold.services.compute.node.orders import Ending
from freehold.services.compute.node.orders_ending import Closer
from freehold.services.compute.node.orders_live import Job
from freehold.services.compute.node.orders_running import ExecutorFailed, Given, Produced, Run
from freehold.services.compute.node.programs import Programs
from freehold.services.compute.tasks import OutputFile, Result, Task, decode_result, runner_of

log = logging.getLogger(__name__)

ATTEMPTS = 2  # at a task whose executor fails
EMPTY = {hashlib.sha256(b"").hexdigest(): b""}  # what an order has to show that did not run


class Bounds(NamedTuple):
    """What orders' work is done in."""

    folder: Path
    committed: Callable[[], int]  # the last committed epoch
    release: Callable[[Job], None]  # it computes no more: others may
    again: Callable[[Job], None]  # it has to wait for its turn once more
    turn: Callable[[Job], Turn]  # when its program may compute
    disk: int  # bytes of one task's inputs


class Worker:
    """Runs orders, for one node."""

    def __init__(
        self,
        bounds: Bounds,
        executors: Executors,
        blobs: Blobs,
        programs: Programs,
        deliveries: Deliveries,
        closer: Closer,
    ) -> None:
        self._bounds, self._executors, self._blobs = bounds, executors, blobs
        self._programs, self._deliveries, self._closer = programs, deliveries, closer
        self.read_bytes, self.written_bytes = 0, 0

    async def perform(self, job: Job) -> None:
        """Run the order and end it. Cancelled, it stays as it was."""
        try:
            await self._perform(job)
        except FreeholdError as error:
            await self._closer.give_up(job, error.message)
        except Exception:
            log.exception("order %s failed", job.id)
            await self._closer.give_up(job, "an internal error of the node")
        finally:
            self._bounds.release(job)

    async def _perform(self, job: Job) -> None:
        if job.task.delivery is not None and (kept := await self._deliveries.find(job)) is not None:
            return await self._resume(job, kept)
        if job.is_stopping:
            return await self._closer.close(job, empty_result("stopped"), Ending(reason=NOT_BEGUN.reason), EMPTY)
        check_in_time(job, self._bounds.committed())
        for attempt in range(1, ATTEMPTS + 1):
            executor = await self._executors.find(job.task)
            try:
                return await self._run(job, executor)
            except ExecutorFailed as error:
                self._executors.failed(executor.name, error.message)
                if attempt == ATTEMPTS:
                    raise
        return None

    async def _run(self, job: Job, executor: Executor) -> None:
        inputs: list[tuple[str, str]] = []
        async with AsyncExitStack() as stack:
            access = read_access(job.entry.access)
            gateway = None if access is None else await stack.enter_async_context(Gateway(access))
            program, engine, stdin = await stack.enter_async_context(lend_programs(self._programs, job.task))
            run = await stack.enter_async_context(
                Run(self._bounds.folder / job.id.hex(), job.task, executor, job.add_log)
            )

            async def write_inputs(folder: Path) -> None:
                inputs.extend(await self.fetch(job, gateway, folder))

            job.stop, job.measure = run.stop, lambda: run.measure
            if job.is_stopping:
                run.stop()
            given = Given(program, engine, stdin, write_inputs)
            turn = _TurnInTime(self._bounds.turn(job), run, lambda: is_late(job, self._bounds.committed()))
            produced = await run.run(given, job.entry.order.most, turn)
            if produced.outcome.ended == "stopped" and not job.is_stopping:
                check_in_time(job, self._bounds.committed())
            self._bounds.release(job)
            kept = await self._finish(job, produced, gateway, inputs)
        if kept is not None:  # durable: however long its delivery takes, nothing else is held of the run
            del produced
            job.measure = lambda: kept.ending.measure
            await self._hand_over(job, kept)

    async def fetch(self, job: Job, gateway: Gateway | None, folder: Path) -> list[tuple[str, str]]:
        """Write the task's inputs; (path, SHA-256) of each as it was read. Those from storage stay as blobs, so that
        they can be shown to a referee."""
        found = [(one.path, one.blob.sha256) for one in job.task.inputs if one.blob is not None]
        await self._blobs.write_out([(sha256, folder / path) for path, sha256 in found], self._bounds.disk)
        left = job.task.resources.disk
        for one in job.task.inputs:
            if one.blob is not None or gateway is None:
                continue
            target = folder / one.path
            await in_thread(lambda path: path.parent.mkdir(parents=True, exist_ok=True), target)
            sha256, size = await gateway.read(one, target, left)
            left -= size
            with target.open("rb") as file:
                await self._blobs.keep_file(file, job.entry.client, sha256, size, job.id)
            found.append((one.path, sha256))
        return found

    async def _finish(
        self,
        job: Job,
        produced: Produced,
        gateway: Gateway | None,
        inputs: list[tuple[str, str]],
    ) -> Kept | None:
        """End the order; or, where files are to be delivered first, keep what it came to."""
        for one in produced.files:
            if one.body is None:
                with one.open() as file:
                    await self._blobs.keep_file(file, job.entry.client, one.listed.sha256, one.listed.size, job.id)
        small = await self._keep_large(job, produced.bodies())
        result = produced.result()
        ending = Ending(
            result=result.encode().decode(),
            reason=produced.outcome.reason,
            measure=produced.outcome.measure,
            inputs=tuple(inputs),
            steps=produced.states(),
            read_bytes=gateway.read_bytes if gateway else 0,
        )
        self.read_bytes += ending.read_bytes
        if job.task.delivery is not None and gateway is not None and produced.outcome.ended == "exited":
            return await self._deliveries.keep(job, ending, small)
        await self._closer.close(job, result, ending, small)
        return None

    async def _resume(self, job: Job, kept: Kept) -> None:
        """Go on with what was being delivered when the node was ended."""
        check_in_time(job, self._bounds.committed())
        self._bounds.release(job)
        await self._hand_over(job, kept)

    async def _hand_over(self, job: Job, kept: Kept) -> None:
        """Deliver what a run came to, and end its order."""
        access = read_access(job.entry.access)
        assert access is not None
        async with Gateway(access) as gateway:
            ending = await self._deliver(job, kept, gateway)
        await self._closer.close(job, decode_result(ending.result.encode()), ending, {})

    async def _deliver(self, job: Job, kept: Kept, gateway: Gateway) -> Ending:
        def may_go_on() -> bool:
            return not job.is_stopping and self._bounds.committed() + 2 <= job.entry.order.until

        ending = await self._deliveries.deliver(job, kept, gateway, may_go_on)
        self.written_bytes += ending.written_bytes
        return ending

    async def _keep_large(self, job: Job, bodies: dict[str, bytes]) -> dict[str, bytes]:
        """Keep what is too large for the receipt's own transaction; the rest."""
        large = {sha256: body for sha256, body in bodies.items() if len(body) > SMALL}
        if large:
            await self._blobs.keep(job.entry.client, large, job.id)
        small = {sha256: body for sha256, body in bodies.items() if sha256 not in large}
        await self._blobs.make_room(sum(map(len, small.values())))
        return small


def is_late(job: Job, committed: int) -> bool:
    """Whether a receipt for the order would come too late."""
    return job.entry.order.until <= committed


class _TurnInTime:
    """A turn that comes to nothing where it comes too late: what is ready may have waited for long."""

    def __init__(self, turn: Turn, run: Run, is_late: Callable[[], bool]) -> None:
        self._turn, self._run, self._is_late = turn, run, is_late

    async def begin(self) -> None:
        await self._turn.begin()
        if self._is_late():
            self._run.stop()

    def end(self) -> None:
        self._turn.end()


def check_in_time(job: Job, committed: int) -> None:
    """Refused where a receipt for the order would come too late."""
    if is_late(job, committed):
        raise Refused(f"the order ran out with epoch {job.entry.order.until}, before its turn came")


def empty_result(ended: str) -> Result:
    """Of an order that has nothing to show."""
    return Result(ended=ended, status=0, stdout=OutputFile("stdout", hashlib.sha256(b"").hexdigest(), 0), files=())


@asynccontextmanager
async def lend_programs(programs: Programs, task: Task) -> AsyncIterator[tuple[Path | None, Path | None, Path | None]]:
    """The files of a task's program, of the engine that it names, and of its standard input."""
    named = [
        task.program.sha256 if task.program else "",
        runner_of(task) or "",
        task.stdin.sha256 if task.stdin else "",
    ]
    if not any(named):
        yield None, None, None
        return
    async with programs.lend([sha256 for sha256 in named if sha256]) as files:
        program, engine, stdin = (files.get(sha256) for sha256 in named)
        yield program, engine, stdin
