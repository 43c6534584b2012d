"""The node's side of its worker processes: started when needed, one for each run at once, kept warm.

Invariant: a worker in the pool is idle and answers; one that was interrupted in the middle of a run is ended.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import suppress

import msgspec

from freehold.services.compute.executors.modules import get_environment
from freehold.services.compute.executors.wasm_terms import (
    FRAME_LIMIT,
    FROM_WORKER,
    LENGTH,
    Ended,
    Halt,
    Log,
    Run,
    State,
    Unusable,
    frame,
)


class WorkerDied(Exception):
    """The process ended in the middle of a run."""


class Worker:
    """One process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @staticmethod
    async def start() -> Worker:
        """A new process."""
        return Worker(
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "freehold.services.compute.executors.wasm_worker"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=get_environment(),
                limit=2**20,
                start_new_session=True,  # a Ctrl-C is for the node, which ends its workers itself
            )
        )

    async def run(self, run: Run, note: Callable[[Log | State], None]) -> Ended | Unusable:
        """Run to the end; `note` takes what comes before it. WorkerDied."""
        try:
            self._write(run)
            while True:
                message = await self._read()
                if not isinstance(message, Log | State):
                    return message
                note(message)
        except (OSError, EOFError, msgspec.DecodeError) as error:
            raise WorkerDied(f"a worker ended with {await self.kill()}") from error

    def halt(self) -> None:
        """End what runs, as "stopped"."""
        with suppress(OSError):
            self._write(Halt())

    async def kill(self) -> int:
        """End the process at once; its exit code."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.kill()
        code = await self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()
        return code

    def _write(self, message: Run | Halt) -> None:
        assert self.process.stdin is not None
        if self.process.returncode is not None or self.process.stdin.is_closing():
            raise BrokenPipeError
        self.process.stdin.write(frame(message))

    async def _read(self) -> Log | State | Ended | Unusable:
        assert self.process.stdout is not None
        (size,) = LENGTH.unpack(await self.process.stdout.readexactly(LENGTH.size))
        if size > FRAME_LIMIT:
            raise EOFError
        message: Log | State | Ended | Unusable = FROM_WORKER.decode(await self.process.stdout.readexactly(size))
        return message


class Pool:
    """At most `slots` workers at once; those that have nothing to do are taken before new ones are started."""

    def __init__(self, slots: int) -> None:
        self._free = asyncio.Semaphore(slots)
        self._idle: list[Worker] = []

    async def take(self) -> Worker:
        """A worker for one run, once there is a free slot. Give it back, whatever becomes of it."""
        await self._free.acquire()
        try:
            while self._idle:
                worker = self._idle.pop()
                if worker.process.returncode is None:
                    return worker
                await worker.kill()
            return await Worker.start()
        except BaseException:
            self._free.release()
            raise

    async def give_back(self, worker: Worker, *, clean: bool) -> None:
        """Its run is over; `clean`: it ended by itself, and the worker may run another."""
        try:
            if clean:
                self._idle.append(worker)
            else:
                await asyncio.shield(worker.kill())
        finally:
            self._free.release()

    async def close(self) -> None:
        """End the idle ones."""
        while self._idle:
            await self._idle.pop().kill()
