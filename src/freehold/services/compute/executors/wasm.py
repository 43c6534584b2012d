"""The WebAssembly executor: Python scripts and modules for WASI preview 1, metered to the unit, the same everywhere.

A program sees its arguments, its environment, its standard input, /in (read only), /out and /tmp, and nothing else: no
clock, no chance, no network, no files of the host (`wasm_wasi.py`, `wasm_script.py`, `wasm_files.py`). Its measure is
the fuel that it took, never more than `most`: the engine looks where code loops or calls, so a straight line that goes
over `most` is run to its end and not billed. It runs in a worker process (`wasm_worker.py`) that the node can lose:
a run whose worker died is run once more on another, since it was not the program's limits that ended it.

Of a task's resources `memory`, `disk` and `seconds` count here; a program has one processor and is one process. A task
of steps runs its program once for each, with /out and /tmp empty and the standard output of the step before as its
standard input; it goes on while they exit with 0. Each costs STEP_FUEL before it begins, on any machine, so that nobody
has a node set up a million steps for nothing. Files below /out come from the last step that ran.

Invariant: equal tasks end equally, with equal output and measure, unless the node ends them ("time", "stopped",
"failed") or refuses them, or their calls nest too deep for its stack ("stack").
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from freehold.protocol.errors import FreeholdError
from freehold.services.compute.executors.modules import Compiled, ModuleCache
from freehold.services.compute.executors.seam import Capability, Outcome, Work
from freehold.services.compute.executors.wasm_pool import Pool, Worker, WorkerDied
from freehold.services.compute.executors.wasm_terms import (
    ENGINE,
    MOST_FUEL,
    Ended,
    Log,
    Run,
    State,
    Stop,
    Unusable,
)
from freehold.services.compute.tasks import RUNNER, Blob, Task, pinned_engine, runner_of

TRIES = 2  # of a run whose worker dies
GRACE = 5.0  # seconds that a worker has to answer, once its run's time is over or it was told to stop
MAGIC = b"\0asm"
# (module (func (export "_start"))): what the probe runs.
EMPTY = bytes.fromhex("0061736d0100000001040160000003020100070a01065f737461727400000a040102000b")
EMPTY_SHA256 = "5647c39a1d25d8728350f9619025292a62e78a602068a2ad9b6f075751c93d99"

Value = TypeVar("Value")


class Running:
    """One run in progress."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.stopped, self.finished = asyncio.Event(), asyncio.Event()
        self.worker: Worker | None = None
        self.measure = 0
        self.states: list[bytes] = []

    def note(self, message: Log | State) -> None:
        """What a worker says before the end."""
        self.measure = message.measure
        if isinstance(message, Log):
            self.work.log(message.data)
        else:
            self.states.append(message.data)


class WasmExecutor:
    """Runs tasks of the kinds "python" and "module": at most `slots` at once, compiled code kept in `cache`."""

    name = "wasm"

    def __init__(self, cache: Path, slots: int) -> None:
        self._modules = ModuleCache(cache)
        self._pool = Pool(slots)
        self._running: dict[Path, Running] = {}

    async def probe(self) -> Capability:
        """Compile and run an empty module."""
        with tempfile.TemporaryDirectory(prefix="freehold-probe-") as name:
            folder = Path(name)
            (folder / "empty.wasm").write_bytes(EMPTY)
            for below in ("in", "out"):
                (folder / below).mkdir()
            blob = Blob(sha256=EMPTY_SHA256, size=len(EMPTY))
            task = Task(executor="wasm", kind="module", engine=ENGINE, program=blob)
            work = Work(task, folder / "empty.wasm", None, folder, 10**6, lambda _: None)
            try:
                outcome = await self.run(work)
            except (FreeholdError, OSError) as error:
                return Capability(False, f"WebAssembly does not run here: {error}", {"executor.wasm": False})
        if outcome.ended != "exited":
            return Capability(False, f"WebAssembly does not run here: {outcome.reason}", {"executor.wasm": False})
        return Capability(True, "", {"executor.wasm": True, "executor.wasm.engine": ENGINE})

    async def run(self, work: Work) -> Outcome:
        """Run to the end or to a limit: see the module's docstring."""
        running = Running(work)
        self._running[work.folder] = running
        try:
            return await self._run(running)
        finally:
            shutil.rmtree(work.folder / "scratch", ignore_errors=True)
            del self._running[work.folder]
            running.finished.set()

    def measure(self, folder: Path) -> int:
        """Fuel that the run in this folder has taken, as far as it is known: a program that only computes says
        nothing before it ends."""
        running = self._running.get(folder)
        return 0 if running is None else running.measure

    def end(self, folder: Path) -> None:
        """Stop the run in this folder: it returns what it took so far, ended "stopped"."""
        running = self._running.get(folder)
        if running is not None:
            running.stopped.set()

    async def stop(self) -> None:
        """End whatever runs, and the workers."""
        running = list(self._running.values())
        for one in running:
            one.stopped.set()
        await asyncio.gather(*(one.finished.wait() for one in running))
        await self._pool.close()

    async def _run(self, running: Running) -> Outcome:
        reason = ""
        for _ in range(TRIES):
            running.states.clear()
            running.measure, running.worker = 0, None
            try:
                ended = await self._try(running)
            except WorkerDied as died:
                reason = f"{died}, and so did another"
                _clear(running.work.folder)
                continue
            except Stop as stop:
                return Outcome(stop.ended, 0, b"", 0, stop.reason)
            return Outcome(
                ended.ended, ended.status, ended.stdout, ended.measure, ended.reason, states=tuple(running.states)
            )
        return Outcome("failed", 0, b"", 0, reason)

    async def _try(self, running: Running) -> Ended:
        """One try of a run. WorkerDied, Stop."""
        stopping = asyncio.create_task(running.stopped.wait())
        try:
            for _ in range(TRIES):
                code = await _unless(stopping, self._prepare(running.work))
                worker = await _unless(stopping, self._pool.take())
                answer = await self._run_on(worker, running, code, stopping)
                if isinstance(answer, Ended):
                    return answer
                self._modules.forget(code)
            raise Stop("failed", f"its compiled form cannot be loaded: {answer.reason}")
        finally:
            stopping.cancel()

    async def _prepare(self, work: Work) -> Compiled:
        """The task's program, or its runner, compiled. Stop ("refused")."""
        task = work.task
        assert work.program is not None
        assert task.program is not None
        if task.kind == "python":
            sha256, pinned = runner_of(task), pinned_engine(task)
            if not sha256 or work.engine is None:
                raise Stop("refused", f'the engine of a Python task is "{RUNNER}<SHA-256 of the runner>@{ENGINE}"')
            if pinned not in ("", ENGINE):
                raise Stop("refused", f"it is pinned to {pinned!r}, and this node's engine is {ENGINE!r}")
            program = work.engine
        else:
            if task.engine != ENGINE:
                raise Stop("refused", f"its engine is {task.engine!r}, and this node's is {ENGINE!r}")
            program, sha256 = work.program, task.program.sha256
        if not _is_wasm(program):
            raise Stop("refused", "it is no WebAssembly")
        return await self._modules.get(program, sha256, runner=task.kind == "python")

    async def _run_on(
        self, worker: Worker, running: Running, code: Compiled, stopping: asyncio.Task[bool]
    ) -> Ended | Unusable:
        work, task = running.work, running.work.task
        run = Run(
            code=str(code.path),
            digest=code.digest,
            script=str(work.program) if task.kind == "python" else "",
            arguments=task.arguments,
            environment=task.environment,
            stdin="" if work.stdin is None else str(work.stdin),
            folder=str(work.folder),
            steps=task.steps,
            memory=task.resources.memory,
            disk=task.resources.disk,
            seconds=task.resources.seconds,
            most=min(work.most, MOST_FUEL),
        )
        clean = False
        running.worker = worker
        answering = asyncio.create_task(worker.run(run, running.note))
        try:
            await asyncio.wait(
                (answering, stopping), timeout=task.resources.seconds + GRACE, return_when=asyncio.FIRST_COMPLETED
            )
            if not answering.done():
                if stopping.done():
                    worker.halt()
                    await asyncio.wait((answering,), timeout=GRACE)
                if not answering.done():
                    why = "stopped" if stopping.done() else "time"
                    return Ended(
                        why, 0, b"", min(running.measure, work.most), "its worker did not answer and was ended"
                    )
            answer = answering.result()
            clean = True
            return answer
        finally:
            answering.cancel()
            await self._pool.give_back(worker, clean=clean)


async def _unless(stopping: asyncio.Task[bool], wanted: Coroutine[Any, Any, Value]) -> Value:
    """What `wanted` gives. Stop ("stopped") where the run is to stop before."""
    task = asyncio.create_task(wanted)
    try:
        await asyncio.wait((task, stopping), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Stop("stopped", "it was stopped before it ran")
    finally:
        task.cancel()


def _is_wasm(program: Path) -> bool:
    with open(program, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _clear(folder: Path) -> None:
    """Take away what a worker left behind that died."""
    shutil.rmtree(folder / "scratch", ignore_errors=True)
    shutil.rmtree(folder / "out")
    (folder / "out").mkdir()
