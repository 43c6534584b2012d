"""WebAssembly jobs beside the bare engine: what the executor adds to a run, and what a run costs that does nothing.

`wasm_vs_wasmtime` is the time of one module through the executor (a worker process, metered host calls, canonical NaNs,
a guard on the clock) by its time in this process with the engine as it comes and fuel on; rounds take turns, and the
best of each counts. Compiling is in neither: it happens once for a program.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import statistics
import time
from pathlib import Path

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
NOTHING = '(module (memory (export "memory") 1) (func (export "_start")))'


class Bare:
    """A module in this process: the engine as it comes, with fuel on."""

    def __init__(self, data: bytes) -> None:
        config = wasmtime.Config()
        config.consume_fuel = True
        self._engine = wasmtime.Engine(config)
        self._module = wasmtime.Module(self._engine, data)

    def run(self) -> float:
        """Seconds."""
        began = time.perf_counter()
        store = wasmtime.Store(self._engine)
        store.set_fuel(MOST)
        start = wasmtime.Instance(store, self._module, []).exports(store)["_start"]
        assert isinstance(start, wasmtime.Func)
        start(store)
        return time.perf_counter() - began


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


async def compare(bench: Bench, source: str) -> tuple[float, float, int]:
    """The best seconds through the executor, and bare; and the fuel."""
    data = bytes(wasmtime.wat2wasm(source))
    bare = Bare(data)
    await bench.run(data)  # compiles and loads it
    bare.run()
    ours, theirs, fuel = [], [], 0
    for _ in range(ROUNDS):
        took, outcome = await bench.run(data)
        ours.append(took)
        theirs.append(bare.run())
        fuel = outcome.measure
    return min(ours), min(theirs), fuel


async def _measure(work: Path) -> tuple[Figures, Figures]:
    bench = Bench(work)
    try:
        sieve, bare_sieve, fuel = await compare(bench, SIEVE)
        floats, bare_floats, _ = await compare(bench, FLOATS)
        nothing = bytes(wasmtime.wat2wasm(NOTHING))
        small = [(await bench.run(nothing))[0] * 1000 for _ in range(SMALL_RUNS)]
    finally:
        await bench.close()
    figures = {
        "wasm_seconds": sieve,
        "wasmtime_seconds": bare_sieve,
        "wasm_floats_seconds": floats,
        "wasmtime_floats_seconds": bare_floats,
        "fuel_per_second": fuel / sieve,
        "warm_run_p50_ms": statistics.median(small),
        "warm_run_p99_ms": statistics.quantiles(small, n=100)[98],
    }
    ratios = {"wasm_vs_wasmtime": sieve / bare_sieve, "wasm_vs_wasmtime_floats": floats / bare_floats}
    return {name: round(value, 3) for name, value in figures.items()}, {
        name: round(value, 3) for name, value in ratios.items()
    }


def measure_wasm(work: Path) -> tuple[Figures, Figures]:
    """Figures and ratios, as a bench's `measure` gives them; `work` is a folder for its files."""
    return asyncio.run(_measure(work))
