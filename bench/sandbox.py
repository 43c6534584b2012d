"""What a native job costs beside its program: the sandbox's own time and processor time.

`true` jobs one after the other, beside bare processes; then jobs that sleep for 200 ms, two at a time. `overhead` is
how much longer those take than the sleep alone. Processor time counts this process and all that it started.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from pathlib import Path

from bench.rates import Figures, Options
from freehold.services.compute.executors.sandbox import SandboxExecutor
from freehold.services.compute.executors.seam import Work
from freehold.services.compute.tasks import Resources, Task

JOBS = 100
SLEEP = 0.2
MOST = 60 * 10**9


def measure(options: Options) -> tuple[Figures, Figures]:
    """Milliseconds a job, and jobs a second; ratios to bare processes."""
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        return asyncio.run(_measure(Path(name), options.rounds))


async def _measure(folder: Path, rounds: int) -> tuple[Figures, Figures]:
    executor = SandboxExecutor()
    found = await executor.probe()
    if not found.works:
        raise RuntimeError(found.reason)
    best = [min(times) for times in zip(*[await _round(executor, folder) for _ in range(rounds)], strict=True)]
    bare, median, processor, sleeping = best
    figures = {
        "bare_true_ms": bare,
        "true_job_p50_ms": median,
        "true_job_processor_ms": processor,
        "sleeping_jobs_per_s": 1 / sleeping,
    }
    return figures, {"overhead_of_sleeping_jobs": sleeping / (SLEEP / 2) - 1}


async def _round(executor: SandboxExecutor, folder: Path) -> tuple[float, float, float, float]:
    bare = []
    for _ in range(JOBS):
        began = time.perf_counter()
        child = await asyncio.create_subprocess_exec("/bin/true")
        await child.wait()
        bare.append(time.perf_counter() - began)
    times, before = [], _processor()
    for _ in range(JOBS):
        began = time.perf_counter()
        await _job(executor, folder, "true")
        times.append(time.perf_counter() - began)
    processor = (_processor() - before) / JOBS

    async def sleep() -> None:
        for _ in range(JOBS // 10):
            await _job(executor, folder, "sleep", str(SLEEP))

    began = time.perf_counter()
    await asyncio.gather(sleep(), sleep())
    sleeping = (time.perf_counter() - began) / (2 * (JOBS // 10))
    return 1e3 * sorted(bare)[JOBS // 2], 1e3 * sorted(times)[JOBS // 2], 1e3 * processor, sleeping


async def _job(executor: SandboxExecutor, folder: Path, *arguments: str) -> None:
    work = Path(tempfile.mkdtemp(dir=folder))
    for part in ("in", "out"):
        os.mkdir(work / part)
    task = Task(executor="sandbox", kind="native", arguments=arguments, resources=Resources(memory=2**26))
    outcome = await executor.run(Work(task, None, None, work, MOST, lambda _: None))
    if (outcome.ended, outcome.status) != ("exited", 0):
        raise RuntimeError(f"{arguments}: {outcome}")
    shutil.rmtree(work)


def _processor() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system
