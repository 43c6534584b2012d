"""WebAssembly jobs beside the bare engine: what the executor adds to a run, and what a run costs that does nothing.

Three rows for each kind of work, integers and doubles: through the executor (a worker process, metered host calls, a
guard on the clock, canonical NaNs); in this process with the engine as it comes and fuel on; and the same with
canonical NaNs, which are what makes equal programs give equal bytes on all machines. Rows are in processor seconds, the
node's and the worker's together, so that a busy machine changes little; rounds take turns, and the best of each counts.
Compiling is in none: it happens once for a program.

    wasm_vs_wasmtime            executor / bare, both kinds of work together
    wasm_vs_wasmtime_KIND       executor / bare, of one kind
    wasm_vs_canonical_KIND      executor / bare with canonical NaNs: what is the executor's own
    canonical_vs_wasmtime_KIND  bare with canonical NaNs / bare: what they cost
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import wasmtime

from bench.rates import Figures
from freehold.services.compute.executors.seam import Outcome, Work
from freehold.services.compute.executors.wasm import WasmExecutor
from freehold.services.compute.executors.wasm_terms import ENGINE
from freehold.services.compute.tasks import Blob, Task

MOST = 10**14
ROUNDS = 5
SMALL_RUNS = 300
# Primes below 2^23 by a sieve, so often that it takes about a second: integers, branches and memory.
SIEVE = """(module (memory (export "memory") 129)
  (func (export "_start") (local $round i32) (local $n i32) (local $at i32) (loop $rounds
    (memory.fill (i32.const 0) (i32.const 1) (i32.const 8388608))
    (local.set $n (i32.const 2))
    (loop $numbers
      (if (i32.load8_u (local.get $n)) (then
        (local.set $at (i32.mul (local.get $n) (local.get $n)))
        (block $done (loop $multiples
          (br_if $done (i32.ge_u (local.get $at) (i32.const 8388608)))
          (i32.store8 (local.get $at) (i32.const 0))
          (local.set $at (i32.add (local.get $at) (local.get $n)))
          (br $multiples)))))
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_if $numbers (i32.lt_u (local.get $n) (i32.const 2896))))
    (local.set $round (i32.add (local.get $round) (i32.const 1)))
    (br_if $rounds (i32.lt_u (local.get $round) (i32.const 36))))))"""
# Points of the Mandelbrot set: doubles, each of which could be a NaN.
FLOATS = """(module (memory (export "memory") 1)
  (func (export "_start") (local $p i32) (local $n i32) (local $r f64) (local $i f64) (local $s f64) (local $c f64)
    (loop $points
      (local.set $n (i32.const 0)) (local.set $r (f64.const 0)) (local.set $i (f64.const 0))
      (local.set $c (f64.div (f64.convert_i32_u (local.get $p)) (f64.const 4000000)))
      (loop $iterations
        (local.set $s (f64.sub (f64.mul (local.get $r) (local.get $r)) (f64.mul (local.get $i) (local.get $i))))
        (local.set $i (f64.add (f64.mul (f64.mul (local.get $r) (local.get $i)) (f64.const 2)) (local.get $c)))
        (local.set $r (f64.sub (local.get $s) (f64.const 0.1)))
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (br_if $iterations (i32.lt_u (local.get $n) (i32.const 100))))
      (local.set $p (i32.add (local.get $p) (i32.const 1)))
      (br_if $points (i32.lt_u (local.get $p) (i32.const 1000000))))))"""
KINDS = {"integers": SIEVE, "doubles": FLOATS}
NOTHING = '(module (memory (export "memory") 1) (func (export "_start")))'


class Bare:
    """A module in this process: the engine as it comes, with fuel on, and canonical NaNs where that is said."""

    def __init__(self, data: bytes, canonical: bool = False) -> None:
        config = wasmtime.Config()
        config.consume_fuel = True
        config.cranelift_nan_canonicalization = canonical
        self._engine = wasmtime.Engine(config)
        self._module = wasmtime.Module(self._engine, data)

    def run(self) -> float:
        """Processor seconds."""
        began = time.thread_time()
        store = wasmtime.Store(self._engine)
        store.set_fuel(MOST)
        start = wasmtime.Instance(store, self._module, []).exports(store)["_start"]
        assert isinstance(start, wasmtime.Func)
        start(store)
        return time.thread_time() - began


class Bench:
    """An executor, and folders for its runs."""

    def __init__(self, work: Path) -> None:
        self._folder = work / "wasm"
        self.executor = WasmExecutor(self._folder / "cache", 1)
        self._number = 0

    async def run(self, data: bytes) -> tuple[float, Outcome]:
        """Seconds of one run, its folder made beforehand as a node does; and what came of it."""
        self._number += 1
        folder = self._folder / "runs" / str(self._number)
        for name in ("in", "out"):
            (folder / name).mkdir(parents=True)
        program = folder / "program"
        program.write_bytes(data)
        blob = Blob(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
        task = Task(executor="wasm", kind="module", engine=ENGINE, program=blob)
        job = Work(task, program, None, folder, MOST, lambda _: None)
        began = time.perf_counter()
        outcome = await self.executor.run(job)
        took = time.perf_counter() - began
        if outcome.ended != "exited":
            raise RuntimeError(f"{outcome.ended}: {outcome.reason}")
        return took, outcome

    async def close(self) -> None:
        await self.executor.stop()
        shutil.rmtree(self._folder)


class Rows(NamedTuple):
    """Processor seconds of a module: by the executor, bare, and bare with canonical NaNs; and the fuel it takes."""

    ours: float
    bare: float
    canonical: float
    fuel: int


def get_spent() -> float:
    """Processor seconds of this process and of its workers so far."""
    children = [pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()]
    files = [file for pid in children for file in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return time.process_time() + sum(int(file.read_text().split()[0]) for file in files) / 1e9


async def compare(bench: Bench, source: str) -> Rows:
    """The best of each."""
    data = bytes(wasmtime.wat2wasm(source))
    bare, canonical = Bare(data), Bare(data, canonical=True)
    await bench.run(data)  # compiles and loads it
    bare.run()
    canonical.run()
    ours, theirs, fuel = [], [], 0
    for _ in range(ROUNDS):
        began = get_spent()
        _, outcome = await bench.run(data)
        ours.append(get_spent() - began)
        theirs.append((bare.run(), canonical.run()))
        fuel = outcome.measure
    return Rows(min(ours), min(one for one, _ in theirs), min(two for _, two in theirs), fuel)


async def _measure(work: Path) -> tuple[Figures, Figures]:
    bench = Bench(work)
    try:
        rows = {kind: await compare(bench, source) for kind, source in KINDS.items()}
        nothing = bytes(wasmtime.wat2wasm(NOTHING))
        small = [(await bench.run(nothing))[0] * 1000 for _ in range(SMALL_RUNS)]
    finally:
        await bench.close()
    figures: Figures = {
        "fuel_per_second": rows["integers"].fuel / rows["integers"].ours,
        "warm_run_p50_ms": statistics.median(small),
        "warm_run_p99_ms": statistics.quantiles(small, n=100)[98],
    }
    every = rows.values()
    ratios: Figures = {"wasm_vs_wasmtime": sum(row.ours for row in every) / sum(row.bare for row in every)}
    for kind, row in rows.items():
        figures |= {
            f"wasm_{kind}_seconds": row.ours,
            f"wasmtime_{kind}_seconds": row.bare,
            f"wasmtime_canonical_{kind}_seconds": row.canonical,
        }
        ratios |= {
            f"wasm_vs_wasmtime_{kind}": row.ours / row.bare,
            f"wasm_vs_canonical_{kind}": row.ours / row.canonical,
            f"canonical_vs_wasmtime_{kind}": row.canonical / row.bare,
        }
    return {name: round(value, 3) for name, value in figures.items()}, {
        name: round(value, 3) for name, value in ratios.items()
    }


def show(figures: Figures, ratios: Figures) -> str:
    """The three rows of each kind of work."""
    lines = [f"{'processor seconds, by bare':32}" + "".join(f"{kind:>20}" for kind in KINDS)]
    for label, name in (
        ("through the executor", "wasm"),
        ("bare, fuel", "wasmtime"),
        ("bare, fuel, canonical NaNs", "wasmtime_canonical"),
    ):
        pairs = [(figures[f"{name}_{kind}_seconds"], figures[f"wasmtime_{kind}_seconds"]) for kind in KINDS]
        lines.append(f"{label:32}" + "".join(f"{seconds:12.3f} {seconds / bare:7.2f}" for seconds, bare in pairs))
    return "\n".join([*lines, f"wasm_vs_wasmtime {ratios['wasm_vs_wasmtime']}"])


def measure_wasm(work: Path) -> tuple[Figures, Figures]:
    """Figures and ratios, as a bench's `measure` gives them; `work` is a folder for its files."""
    return asyncio.run(_measure(work))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        print(show(*measure_wasm(Path(directory))))
