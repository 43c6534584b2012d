"""What an executor is: how a node runs a task, whatever runs it.

The node prepares a folder (`in/` with the inputs, `out/` empty), the executor runs the program in its bounds and
leaves `out/` as the program left it. Invariant: whatever the program does, nothing outside its folder is changed or
read but what the executor's docs name, nothing of it runs on once `run` has returned or was cancelled, and the measure
is at most `most`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from freehold.services.compute.tasks import Task


class Work(NamedTuple):
    """One run: `program` and `stdin` are files, `folder` has `in/` and `out/`; `most` caps the measure (nanoseconds of
    a processor, or fuel). `log` takes what the program writes to its standard error, as it comes, from any thread.
    `engine` is the file whose hash a task's engine names, where it names one ("python:<sha256>")."""

    task: Task
    program: Path | None
    stdin: Path | None
    folder: Path
    most: int
    log: Callable[[bytes], None]
    engine: Path | None = None


class Outcome(NamedTuple):
    """How it ended (`tasks.Result.ended`), its exit status, what it wrote to its standard output, and the measure.
    `reason` is a sentence for people where it did not exit by itself. `states`: of a task of steps, what each step that
    exited with status 0 left as its standard output."""

    ended: str
    status: int
    stdout: bytes
    measure: int
    reason: str = ""
    states: tuple[bytes, ...] = ()


class Capability(NamedTuple):
    """What a probe found: `properties` (names to text, numbers, booleans or lists of text) are advertised; where
    `works` is false, `reason` says why in a sentence."""

    works: bool
    reason: str
    properties: Mapping[str, object]


class Executor(Protocol):
    """Runs tasks of one kind."""

    name: str  # a Task's `executor`

    async def probe(self) -> Capability:
        """Run something small for real. Never raises for what the machine lacks."""

    async def run(self, work: Work) -> Outcome:
        """Run to the end, or to a limit. Cancelled: everything of it is ended first. Raises FreeholdError only where
        the executor itself failed (its node then probes it again), never for what the program did."""

    def measure(self, folder: Path) -> int:
        """What the run in `folder` has taken so far; 0 where it is not known."""

    def end(self, folder: Path) -> None:
        """Ask the run in `folder` to end: `run` then returns soon, ended "stopped"."""

    async def stop(self) -> None:
        """End whatever runs."""


class Turn(Protocol):
    """When a run's program may compute."""

    async def begin(self) -> None:
        """Wait until the program may start, or its run has been asked to end. Again, while it runs: at once."""

    def end(self) -> None:
        """The program computes no more: another one may start."""


class AtOnce:
    """A turn that has come already."""

    async def begin(self) -> None:
        """At once."""

    def end(self) -> None:
        """Nobody waits for it."""


@runtime_checkable
class GetsReady(Protocol):
    """An executor that sets up what a program runs in before the program's turn has come."""

    async def run_in_turn(self, work: Work, turn: Turn) -> Outcome:
        """`Executor.run`, whose program starts when its turn begins; it says when that ends."""
