"""One run of a task: its folder, its inputs, and what came out.

    folder/in     its inputs
    folder/out    empty before it runs

Used for orders and, by referees, for tasks of others. Invariant: when the context of a run ends, its folder is gone;
whatever is left of it after a kill goes at the next start.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from typing import BinaryIO, NamedTuple

from freehold.protocol.errors import DiskFull, FreeholdError, Unavailable
from freehold.services.compute.executors.outputs import Found, collect, is_empty
from freehold.services.compute.executors.runs import AT_ONCE, NOT_BEGUN
from freehold.services.compute.executors.seam import Executor, GetsReady, Outcome, Turn, Work
from freehold.services.compute.node.blobs import PIECE, SMALL, in_thread
from freehold.services.compute.tasks import OutputFile, Result, Task

STDOUT = "stdout"  # the path that a result gives to what was written to the standard output


class File(NamedTuple):
    """A file that came out: in memory where it is small, else below `folder` as long as the run's folder is there."""

    listed: OutputFile
    body: bytes | None
    folder: Path

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """One that is not in memory, for reading. Blocks."""
        found = Found(self.folder, self.listed.path, self.listed.size)
        try:
            yield found.file
        finally:
            found.close()


class ExecutorFailed(Unavailable):
    """An executor, and not the program, failed."""


class Produced(NamedTuple):
    """What a run has left: how it ended, and its files."""

    outcome: Outcome
    files: Sequence[File] = ()

    def result(self) -> Result:
        """What is hashed into a receipt."""
        stdout = self.outcome.stdout
        return Result(
            ended=self.outcome.ended,
            status=self.outcome.status if self.outcome.ended == "exited" else 0,
            stdout=OutputFile(STDOUT, sha256_of(stdout), len(stdout)),
            files=tuple(one.listed for one in self.files),
        )

    def states(self) -> tuple[str, ...]:
        """The SHA-256 of the state after each step that went well."""
        return tuple(map(sha256_of, self.outcome.states))

    def bodies(self) -> dict[str, bytes]:
        """What is in memory, by SHA-256: standard output, states, small files."""
        found = {sha256_of(body): body for body in (self.outcome.stdout, *self.outcome.states)}
        return found | {one.listed.sha256: one.body for one in self.files if one.body is not None}


class Given(NamedTuple):
    """What a run starts from: files of program, engine and standard input, and who writes `in/`."""

    program: Path | None
    engine: Path | None
    stdin: Path | None
    write_inputs: Callable[[Path], Awaitable[None]]


class Run:
    """A task's folder, as a context."""

    def __init__(self, folder: Path, task: Task, executor: Executor, log: Callable[[bytes], None]) -> None:
        self._task, self._executor, self._log = task, executor, log
        self.folder = folder
        self._stopping = asyncio.Event()

    async def __aenter__(self) -> Run:
        if not _make(self.folder):
            await in_thread(rmtree, self.folder, True)
            _make(self.folder)
        return self

    async def __aexit__(self, *_: object) -> None:
        if not _remove(self.folder):
            await in_thread(rmtree, self.folder, True)

    @property
    def measure(self) -> int:
        """What it has taken so far, as far as its executor tells."""
        return self._executor.measure(self.folder)

    def stop(self) -> None:
        """Ask it to end: it returns what it has, ended "stopped"."""
        self._stopping.set()
        self._executor.end(self.folder)

    async def run(self, given: Given, most: int, turn: Turn = AT_ONCE) -> Produced:
        """Run the task within `most`, once its turn has come. ExecutorFailed where it was not the program that
        failed."""
        if not await self._write_inputs(given):
            return Produced(NOT_BEGUN)
        work = Work(self._task, given.program, given.stdin, self.folder, most, self._log, given.engine)
        try:
            outcome = await self._execute(work, turn)
        except FreeholdError as error:
            raise ExecutorFailed(error.message) from error
        outcome = outcome._replace(measure=max(0, min(outcome.measure, most)))
        if is_empty(None, os.fspath(self.folder / "out")):
            return Produced(outcome)
        try:
            files = await in_thread(_take_files, self.folder / "out", self._task.outputs, self._task.resources.disk)
        except DiskFull as error:
            return Produced(outcome._replace(ended="output", status=0, reason=error.message))
        return Produced(outcome, files)

    async def _execute(self, work: Work, turn: Turn) -> Outcome:
        if isinstance(self._executor, GetsReady):
            return await self._executor.run_in_turn(work, turn)
        await turn.begin()
        return NOT_BEGUN if self._stopping.is_set() else await self._executor.run(work)

    async def _write_inputs(self, given: Given) -> bool:
        """Whether they are there: False where it was stopped meanwhile, which whoever sends them need not notice."""
        if not self._task.inputs:
            return not self._stopping.is_set()
        writing = asyncio.ensure_future(given.write_inputs(self.folder / "in"))
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait((writing, stopping), return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                await writing
            return not self._stopping.is_set()
        finally:
            writing.cancel()
            stopping.cancel()
            await asyncio.wait((writing, stopping))


def _make(folder: Path) -> bool:
    """Make a run's folders; False where something of that name is left from before."""
    path = os.fspath(folder)
    try:
        for name in ("", "/in", "/out"):
            os.mkdir(path + name)
    except FileExistsError:
        return False
    return True


def _remove(folder: Path) -> bool:
    """Remove a run's folders; False where anything is in them."""
    path = os.fspath(folder)
    try:
        for name in ("/in", "/out", ""):
            os.rmdir(path + name)
    except OSError:
        return False
    return True


def sha256_of(body: bytes) -> str:
    """What a blob is named by."""
    return hashlib.sha256(body).hexdigest()


def _take_files(folder: Path, patterns: Sequence[str], limit: int) -> list[File]:
    """What came out, hashed; small files in memory. DiskFull where it is too much."""
    taken = []
    for one in collect(folder, patterns, size=limit):
        try:
            taken.append(_take_file(folder, one, limit))
        finally:
            one.close()
    return taken


def _take_file(folder: Path, found: Found, limit: int) -> File:
    head = found.file.read(SMALL + 1)
    if len(head) <= SMALL:
        return File(OutputFile(found.path, sha256_of(head), len(head)), head, folder)
    digest, size = hashlib.sha256(head), len(head)
    while piece := found.file.read(PIECE):
        digest.update(piece)
        size += len(piece)
        if size > limit:
            raise DiskFull(f"{found.path} has more than {limit} bytes")
    return File(OutputFile(found.path, digest.hexdigest(), size), None, folder)


def inline_of(bodies: Mapping[str, bytes], result: Result, limit: int) -> dict[str, bytes]:
    """Outputs that are small enough to be answered at once, the standard output first."""
    chosen: dict[str, bytes] = {}
    for one in (result.stdout, *result.files):
        body = bodies.get(one.sha256)
        if body is not None and one.sha256 not in chosen and sum(map(len, chosen.values())) + len(body) <= limit:
            chosen[one.sha256] = body
    return chosen
