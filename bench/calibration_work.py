"""What is computed in the calibration: one workload a class, run honestly under different settings, and in part.

    wasm      bit_exact   a WebAssembly module with floats, by the engine of nodes, with and without optimisation
    steps     refereed    the same in steps, with the state between them hashed
    numbers   tolerance   sums of 32-bit floats, split over 1 to 8 threads: rounded differently, for real
    pixels    tolerance   a picture, its last digit rounded as each renderer likes, some moved by a pixel
    items     sampled     a map over 400 items (hashes that stand for results)

`setting` is what honest nodes may differ in. Everything follows from the job's number.
"""

from __future__ import annotations

import hashlib
import random
from functools import cache, lru_cache
from typing import NamedTuple, Protocol

import numpy as np
import wasmtime

from freehold.protocol.typed import keccak
from freehold.protocol.units import Hash
from freehold.services.compute.executors.wasm_engine import build_engine, build_store
from freehold.services.compute.tasks import state_leaf
from freehold.services.compute.verification.classes import ClassName
from freehold.services.compute.verification.metrics import distance

PROGRAM = """(module
  (func (export "run") (param $x i64) (param $n i32) (result i64)
    (local $f f64)
    (loop $again
      (local.set $x
        (i64.add (i64.mul (local.get $x) (i64.const 6364136223846793005)) (i64.const 1442695040888963407)))
      (local.set $f (f64.div (f64.add (local.get $f) (f64.convert_i64_u (local.get $x))) (f64.const 3.7)))
      (local.set $x (i64.xor (local.get $x) (i64.reinterpret_f64 (f64.sqrt (local.get $f)))))
      (local.set $n (i32.sub (local.get $n) (i32.const 1)))
      (br_if $again (local.get $n)))
    (local.get $x)))"""
LOOPS, STEPS, ITEMS = 64, 4, 400
FUEL, MEMORY = 10**6, 2**16


class Output(NamedTuple):
    """What came out, and the leaves of the states on the way."""

    data: bytes
    leaves: tuple[Hash, ...] = ()


class Work(Protocol):
    """A workload: its class, the metric and threshold it declares, and its results."""

    name: str
    kind: ClassName
    metric: str
    threshold: int

    def right(self, job: int, setting: int) -> Output:
        """What an honest node gives."""

    def partial(self, job: int) -> Output:
        """What comes of doing part of the work."""

    def made_up(self, seed: str) -> Output:
        """Something of the right shape."""

    def nothing(self) -> Output:
        """What costs nothing at all."""


def are_near(work: Work, first: Output, second: Output) -> bool:
    """Whether two results count as the same under the workload's class."""
    if first.data == second.data or not work.metric:
        return first == second
    return _distance(work.metric, *sorted((first.data, second.data))) <= work.threshold


_distance = lru_cache(1000)(distance)  # each pair is asked for at every decision


@cache
def _compiled(optimised: bool) -> tuple[wasmtime.Engine, wasmtime.Module]:
    """As nodes run it, and as one would whose compiler optimises nothing."""
    if optimised:
        engine = build_engine()
    else:
        config = wasmtime.Config()
        config.consume_fuel = True
        config.epoch_interruption = True
        config.cranelift_nan_canonicalization = True
        config.cranelift_opt_level = "none"
        engine = wasmtime.Engine(config)
    return engine, wasmtime.Module(engine, PROGRAM)


def _run_module(state: int, loops: int, setting: int) -> int:
    engine, module = _compiled(setting % 2 == 0)
    store = build_store(engine, MEMORY, FUEL)
    run = wasmtime.Instance(store, module, []).exports(store)["run"]
    found: int = run(store, state - 2**63, loops)  # type: ignore[operator]
    return found + 2**63


def _state(seed: str) -> int:
    return int.from_bytes(keccak(seed.encode())[:8])


class WasmWork:
    """One run of the module."""

    name, kind, metric, threshold = "wasm", "bit_exact", "", 0

    def right(self, job: int, setting: int) -> Output:
        return Output(_run_module(_state(f"job {job}"), LOOPS, setting).to_bytes(8))

    def partial(self, job: int) -> Output:
        return Output(_run_module(_state(f"job {job}"), LOOPS // 2, 0).to_bytes(8))

    def made_up(self, seed: str) -> Output:
        return Output(_state(seed).to_bytes(8))

    def nothing(self) -> Output:
        return Output(bytes(8))


class StepWork:
    """The module in steps, each from the state that the one before it left. `states` are what clients fetched."""

    name, kind, metric, threshold = "steps", "refereed", "", 0

    def __init__(self) -> None:
        self.states: dict[Hash, int] = {}

    def right(self, job: int, setting: int) -> Output:
        return self._output([*self._walk(_state(f"job {job}"), STEPS, setting)])

    def partial(self, job: int) -> Output:
        half = self._walk(_state(f"job {job}"), STEPS // 2, 0)
        return self._output([*half, *(_state(f"skipped {job} {i}") for i in range(STEPS - STEPS // 2))])

    def made_up(self, seed: str) -> Output:
        return self._output([_state(f"{seed} {i}") for i in range(STEPS)])

    def nothing(self) -> Output:
        return self._output([0] * STEPS)

    def step(self, job: int, index: int, before: Hash, setting: int) -> Hash:
        """The leaf of the state after step `index`, run again from `before`."""
        state = self.states[before] if index else _state(f"job {job}")
        return self._leaf(_run_module(state, LOOPS, setting))

    def _walk(self, state: int, steps: int, setting: int) -> list[int]:
        found = []
        for _ in range(steps):
            state = _run_module(state, LOOPS, setting)
            found.append(state)
        return found

    def _output(self, states: list[int]) -> Output:
        return Output(states[-1].to_bytes(8), tuple(self._leaf(state) for state in states))

    def _leaf(self, state: int) -> Hash:
        leaf = state_leaf(hashlib.sha256(state.to_bytes(8)).hexdigest())
        self.states[leaf] = state
        return leaf


class NumbersWork:
    """Twelve sums of 32-bit floats, each split over as many threads as a node has."""

    name, kind, metric, threshold = "numbers", "tolerance", "numbers", 20_000

    def right(self, job: int, setting: int) -> Output:
        return self._spelled(self._sums(job, 1 << setting % 4))

    def partial(self, job: int) -> Output:
        sums = self._sums(job, 1)
        return self._spelled([*sums[:9], *sums[:3]])

    def made_up(self, seed: str) -> Output:
        draw = random.Random(seed)
        return self._spelled([draw.uniform(900, 1100) for _ in range(12)])

    def nothing(self) -> Output:
        return self._spelled([0.0] * 12)

    def _sums(self, job: int, threads: int) -> list[float]:
        values = np.random.default_rng(job).random((12, 2048), np.float32)
        parts = values.reshape(12, threads, -1).cumsum(axis=2, dtype=np.float32)[:, :, -1]
        return [float(total) for total in parts.cumsum(axis=1, dtype=np.float32)[:, -1]]

    def _spelled(self, values: list[float]) -> Output:
        return Output(("\n".join(f"{value:.9g}" for value in values) + "\n").encode())


class PixelsWork:
    """A grey picture of 64 by 64."""

    name, kind, metric, threshold = "pixels", "tolerance", "pixels", 20_000

    def right(self, job: int, setting: int) -> Output:
        rounding = np.random.default_rng([job, setting]).random((64, 64))
        return self._spelled(np.floor(self._shades(job, setting % 4 == 3) + rounding))

    def partial(self, job: int) -> Output:
        shades = self._shades(job, False)
        shades[48:] = 0
        return self._spelled(shades)

    def made_up(self, seed: str) -> Output:
        return self._spelled(np.frombuffer(random.Random(seed).randbytes(64 * 64), np.uint8).reshape(64, 64))

    def nothing(self) -> Output:
        return self._spelled(np.zeros((64, 64)))

    def _shades(self, job: int, moved: bool) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        down, right = np.mgrid[0:64, 0:64] + float(moved)
        shades: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = (
            127 + 60 * np.sin(down / 9 + job) + 60 * np.cos(right / 7 - job)
        )
        return shades

    def _spelled(self, shades: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Output:
        return Output(b"P5 64 64 255\n" + np.clip(shades, 0, 255).astype(np.uint8).tobytes())


class ItemsWork:
    """A map over ITEMS items; results are of one item, by the number job x ITEMS + item."""

    name, kind, metric, threshold = "items", "sampled", "", 0

    def right(self, job: int, setting: int) -> Output:  # noqa: ARG002
        return Output(keccak(b"item" + job.to_bytes(8)))

    def partial(self, job: int) -> Output:
        return self.made_up(f"skipped {job}")

    def made_up(self, seed: str) -> Output:
        return Output(keccak(seed.encode()))

    def nothing(self) -> Output:
        return Output(bytes(32))


def all_work() -> list[Work]:
    """One of each."""
    return [WasmWork(), StepWork(), NumbersWork(), PixelsWork(), ItemsWork()]  # type: ignore[list-item]
