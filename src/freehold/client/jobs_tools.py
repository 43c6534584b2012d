"""What this machine does itself for jobs: builds programs from sources, and runs benchmarks again that nodes ran.

Invariant: nothing of a job's own runs here; a benchmark's program is this package's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from freehold.services.compute.benchmarks import Benchmark, run_benchmark
from freehold.services.compute.executors.wasm_terms import ENGINE
from freehold.services.compute.toolchain import Tell, compile_c, python_runner


class LocalTools:
    """The compilers of this machine, and what they built. `tell` is told what takes long when it begins, and "" when
    that has ended."""

    engine = ENGINE

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._runner: Path | None = None
        self.tell: Tell = lambda _: None
        self._building = asyncio.Lock()

    async def python_runner(self) -> Path:
        """See `Tools`."""
        async with self._building:
            if self._runner is None:
                with self._telling() as tell:
                    self._runner = await asyncio.to_thread(python_runner, self._cache, tell)
            return self._runner

    async def compile_c(self, source: Path) -> Path:
        """See `Tools`."""
        with self._telling() as tell:
            return await asyncio.to_thread(compile_c, source, self._cache, tell)

    @contextmanager
    def _telling(self) -> Iterator[Tell]:
        """What is told from a thread is told in the loop, and what began has ended on the way out."""
        loop, began = asyncio.get_running_loop(), list[str]()

        def tell(text: str) -> None:
            began.append(text)
            loop.call_soon_threadsafe(self.tell, text)

        try:
            yield tell
        finally:
            if began:
                loop.call_soon(self.tell, "")

    @asynccontextmanager
    async def rerunning(self) -> AsyncGenerator[Callable[[Benchmark], Awaitable[bytes]]]:
        """See `Tools`. By this machine's engine, whichever a node has: what benchmarks give does not depend on it."""
        from freehold.services.compute.executors.wasm import WasmExecutor

        executor = WasmExecutor(self._cache / "modules", 1)

        async def rerun(benchmark: Benchmark) -> bytes:
            here = benchmark._replace(task=msgspec.structs.replace(benchmark.task, engine=ENGINE))
            with TemporaryDirectory(prefix="freehold-benchmark-") as folder:
                return await run_benchmark(executor, here, Path(folder))

        try:
            yield rerun
        finally:
            await executor.stop()
