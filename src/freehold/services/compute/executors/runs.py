"""What executors of native programs share: a run is a program in a box, whatever makes the box.

    open_box()  a box in which the program waits, with its files, bounds and namespaces (`sandbox.py`, `container.py`)
    run()       starts it, waits for its end or a limit, takes what came out, and gives everything back; once a step

Invariant: a run is in `_runs` from its call to its end, and its box is closed however it ends.
"""

from __future__ import annotations

import asyncio
import errno
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Protocol

from freehold.protocol.errors import DiskFull, InvalidInput, Unavailable
from freehold.services.compute.executors.bounds import Over
from freehold.services.compute.executors.outputs import is_empty
from freehold.services.compute.executors.process import GRACE, Box
from freehold.services.compute.executors.seam import AtOnce, Capability, Outcome, Turn, Work

STATES_LIMIT = 64 * 2**20  # bytes of the states after a task's steps, as for WebAssembly
NOT_BEGUN = Outcome("stopped", 0, b"", 0, "it was stopped before it began")
AT_ONCE = AtOnce()
_LOOK = 0.02  # seconds between looks at whether runs have ended


class Run:
    """A run that goes on: its box once there is one, and whether it was asked to end."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.box: Box | None = None
        self.measured = 0  # by boxes before this one
        self.stopping = asyncio.Event()

    def measure(self) -> int:
        """What it took so far."""
        elapsed = self.box.elapsed if self.box is not None else 0
        return min(self.measured + elapsed * self.work.task.resources.processors, self.work.most)

    def end(self, grace: float) -> None:
        """Ask its program to end, and see to it that it does after `grace` seconds."""
        if self.stopping.is_set():
            return
        self.stopping.set()
        box = self.box
        if box is not None:
            after = grace if grace and box.ask() else 0
            asyncio.get_running_loop().call_later(after, box.end, "stopped", "it was stopped")

    def deadline(self) -> tuple[int, str]:
        """Nanoseconds that its program may still run, and what to say when they are over."""
        resources = self.work.task.resources
        allowed = resources.seconds * 10**9 - self.measured // resources.processors
        bought = (self.work.most - self.measured) // resources.processors
        if allowed <= bought:
            return allowed, f"it took longer than {resources.seconds} s"
        return bought, "it used up what was ordered"


def refusal(error: OSError) -> InvalidInput | Unavailable:
    """What it means that a box could not be set up: the task's fault, or the executor's."""
    if error.errno == errno.E2BIG:
        return InvalidInput("its arguments and its environment are longer than a process may have")
    return Unavailable(f"the box could not be set up: {error}")


class BoxOpener(Protocol):
    """What makes boxes of one kind."""

    async def open_box(self, work: Work) -> Box:
        """A box in which the work's program waits for `go`. InvalidInput for a task that cannot be run here,
        Unavailable where the executor failed."""


class Runs(ABC):
    """The runs of an executor, by their folders, and what its last probe found."""

    def __init__(self) -> None:
        self._runs: dict[Path, Run] = {}
        self._probing = asyncio.Lock()
        self._found: Capability | None = None

    async def probe(self) -> Capability:
        """See the seam."""
        async with self._probing:
            self._found = await self.find_out()
            return self._found

    async def known(self) -> Capability:
        """What the last probe found; the first asker probes."""
        async with self._probing:
            self._found = self._found or await self.find_out()
            return self._found

    @abstractmethod
    async def find_out(self) -> Capability:
        """Run something small for real."""

    def measure(self, folder: Path) -> int:
        """What the run in this folder took so far."""
        run = self._runs.get(folder)
        return run.measure() if run is not None else 0

    def end(self, folder: Path) -> None:
        """Ask the run in this folder to end, and kill it a little later: it then ends "stopped"."""
        run = self._runs.get(folder)
        if run is not None:
            run.end(GRACE)

    async def stop(self) -> None:
        """End whatever runs, and wait until it has."""
        while self._runs:
            for run in self._runs.values():
                run.end(0)
            await asyncio.sleep(_LOOK)

    async def run_in_box(self, work: Work, opener: BoxOpener, turn: Turn = AT_ONCE) -> Outcome:
        """Run a task to its end once its turn has come, step by step where it has steps: each in a box of its own, with
        what the one before wrote to its standard output as its standard input. What comes out is the last one's. What
        the opener raises, but InvalidInput: that task is refused."""
        run = self._runs[work.folder] = Run(work)
        states: list[bytes] = []
        outcome, stdin = NOT_BEGUN, work.stdin
        try:
            for step in range(work.task.steps or 1):
                is_last = step + 1 >= work.task.steps
                outcome = await _run_step(run, work._replace(stdin=stdin), opener, turn, is_last)
                if outcome.ended != "exited" or outcome.status or not work.task.steps:
                    break
                states.append(outcome.stdout)
                if sum(map(len, states)) > STATES_LIMIT:
                    outcome = outcome._replace(ended="output", reason=f"more than {STATES_LIMIT} bytes of states")
                    break
                stdin = work.folder / "state"
                stdin.write_bytes(outcome.stdout)
        except InvalidInput as error:
            outcome = Outcome("refused", 0, b"", 0, error.message)
        finally:
            del self._runs[work.folder]
        return outcome._replace(measure=run.measured, states=tuple(states))


async def _run_step(run: Run, work: Work, opener: BoxOpener, turn: Turn, is_last: bool) -> Outcome:
    if run.stopping.is_set():
        return NOT_BEGUN
    box = run.box = await opener.open_box(work)
    try:
        await turn.begin()
        if run.stopping.is_set():
            return NOT_BEGUN
        await box.go()
        status, over = await box.wait(*run.deadline())
        if is_last or over is not None or status:
            turn.end()
            try:
                await _take(box, work.folder / "out")
            except DiskFull as error:
                over = over or Over("disk", error.message)
        stdout = bytes(box.stdout)
    finally:
        run.measured, run.box = run.measure(), None
        # Shielded: cancelled a second time, it still gives everything back.
        await asyncio.shield(asyncio.ensure_future(box.close()))
    if run.stopping.is_set():
        return Outcome("stopped", 0, stdout, 0, "it was stopped")
    if over is not None:
        return Outcome(over.ended, 0, stdout, 0, over.reason)
    return Outcome("exited", status, stdout, 0)


async def _take(box: Box, target: Path) -> None:
    """Copy what came out, in a thread; cancelled, it is waited for, since the box is closed after this. DiskFull."""
    if is_empty(*box.out()):
        return
    copying = asyncio.ensure_future(asyncio.to_thread(box.take, target))
    try:
        await asyncio.shield(copying)
    except asyncio.CancelledError:
        await asyncio.wait([copying])
        raise
