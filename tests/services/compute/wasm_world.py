"""A WebAssembly executor in an event loop of its own, and small programs for it."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import wasmtime

from freehold.services.compute.executors.seam import Outcome, Work
from freehold.services.compute.executors.wasm import WasmExecutor
from freehold.services.compute.executors.wasm_terms import ENGINE
from freehold.services.compute.tasks import Blob, Resources, Task, name_runner
from tests.conftest import SLOW

DEADLINE = 30 * SLOW
PLENTY = 10**12  # fuel
_numbers = itertools.count()

HOST = {
    "fd_write": "(param i32 i32 i32 i32) (result i32)",
    "fd_read": "(param i32 i32 i32 i32) (result i32)",
    "path_open": "(param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)",
    "clock_time_get": "(param i32 i64 i32) (result i32)",
    "random_get": "(param i32 i32) (result i32)",
    "proc_exit": "(param i32)",
}
# Writes (size, address) to a descriptor; ends with a status.
WRITE = """(func $write (param $to i32) (param $address i32) (param $size i32) (result i32)
  (i32.store (i32.const 8) (local.get $address)) (i32.store (i32.const 12) (local.get $size))
  (call $fd_write (local.get $to) (i32.const 8) (i32.const 1) (i32.const 16)))"""
LOOP = '(module (func (export "_start") (loop (br 0))))'


def count_to(number: int) -> str:
    """A program that counts, and exits with 0."""
    return f"""(module (func (export "_start") (local $n i32) (loop
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_if 0 (i32.lt_u (local.get $n) (i32.const {number}))))))"""


def program(body: str, *, pages: int = 32, data: str = "") -> str:
    """A module whose `_start` is `body`, with HOST and $write at hand; its data begin at 1024."""
    imports = "".join(
        f'(import "wasi_snapshot_preview1" "{name}" (func ${name} {kind}))' for name, kind in HOST.items()
    )
    return f"""(module {imports} (memory (export "memory") {pages}) (data (i32.const 1024) "{data}")
      {WRITE} (func (export "_start") (local $n i32) {body}))"""


class Ran(NamedTuple):
    """What came of a run."""

    outcome: Outcome
    log: bytes
    out: Path


class Machine:
    """An executor whose loop runs in a thread, so that tests may watch a run from outside."""

    def __init__(self, cache: Path, folder: Path, slots: int = 2) -> None:
        self.folder = folder
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.executor = self.do(self._build(cache, slots))

    @staticmethod
    async def _build(cache: Path, slots: int) -> WasmExecutor:
        return WasmExecutor(cache, slots)

    def do(self, what: Coroutine[Any, Any, Any], within: float = DEADLINE) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self.loop).result(within)

    def prepare(
        self,
        source: str | bytes,
        *,
        stdin: bytes | None = None,
        inputs: Mapping[str, bytes] = {},
        most: int = PLENTY,
        engine: str = ENGINE,
        runner: Path | None = None,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] = {},
        steps: int = 0,
        log: Callable[[bytes], None] = lambda _: None,
        **resources: int,
    ) -> Work:
        """A run's folder and task."""
        folder = self.folder / str(next(_numbers))
        for name in ("in", "out"):
            (folder / name).mkdir(parents=True)
        for path, content in inputs.items():
            (folder / "in" / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / "in" / path).write_bytes(content)
        if runner is None and isinstance(source, str):
            source = bytes(wasmtime.wat2wasm(source))
        data = source.encode() if isinstance(source, str) else source
        (folder / "program").write_bytes(data)
        if stdin is not None:
            (folder / "stdin").write_bytes(stdin)
        if runner is not None:
            engine = name_runner(hashlib.sha256(runner.read_bytes()).hexdigest(), ENGINE)
        task = Task(
            executor="wasm",
            kind="module" if runner is None else "python",
            engine=engine,
            program=Blob(sha256=hashlib.sha256(data).hexdigest(), size=len(data)),
            arguments=tuple(arguments),
            environment=tuple(environment.items()),
            steps=steps,
            resources=Resources(**resources),
        )
        return Work(
            task, folder / "program", folder / "stdin" if stdin is not None else None, folder, most, log, runner
        )

    def run(self, source: str | bytes, *, within: float = DEADLINE, **options: Any) -> Ran:
        """Run it to its end."""
        log: list[bytes] = []
        work = self.prepare(source, log=log.append, **options)
        outcome = self.do(self.executor.run(work), within)
        return Ran(outcome, b"".join(log), work.folder / "out")

    def get_process(self, work: Work) -> int | None:
        """The process that runs this now."""
        running = self.executor._running.get(work.folder)
        return None if running is None or running.worker is None else running.worker.process.pid

    def close(self) -> None:
        self.do(self.executor.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
