"""Benchmarks that cannot be claimed: seeded tasks whose results can be checked, timed by whoever ordered them.

    node      advertises its figures in a signed bid (`run_own` measured them)
    client    draws a seed from that bid and chance of its own: the node cannot know it while it signs its figures
              -> benchmark_tasks: ordinary tasks, one for each thing that is measured
    client    `measure`: what was done / (time it waited - one round trip); `Judgement` says whether it can be at all
    anybody   `get_check`: one of the sixteen segments, drawn after the result is in, run again elsewhere

A node that leaves out a part p of the segments is found out with probability p by each check, for a sixteenth of the
work (and for memory its filling, which no segment can do without). The time is that of the client's clock, never the
node's. What this cannot show: the programs are known, so a node can give them more of its machine than it gives to
jobs. A node that comes to the same results in another way than by running the module is as fast as it looks, at that.
The disk's figure is what a job sees, the system's caches included.

Advertised and measured stand side by side: where what is measured falls short by more than DEVIATION, the node counts
for SHORTFALL of what it measures, as at Golem's reputation auditor (more than 15 %: x 0.4). All integers; who measures
hands in the clock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from freehold.protocol.errors import FreeholdError
from freehold.protocol.typed import keccak
from freehold.protocol.units import Hash
from freehold.services.compute.benchmark_programs import BLOCK, MEMORY_WORDS, get_program
from freehold.services.compute.executors.seam import Executor, Work
from freehold.services.compute.tasks import Blob, Resources, Task
from freehold.services.compute.terms import Bid

SEGMENTS = 16
STATE = 24  # bytes of the state after a segment
SECOND = 10**9

WHOLE = 10_000  # basis points
DEVIATION = 1500  # basis points that a node may fall short of what it advertises
SHORTFALL = 4000  # what it then counts for
UNPROVEN = 5000  # what a node that nobody has measured yet counts for
SMOOTHING = 4  # a new measurement is a quarter of the average


class Plan(NamedTuple):
    """What one benchmark does: rounds of a segment, what a whole run counts as in the property's unit, and the fuel
    that it takes at most."""

    rounds: int
    work: int
    most: int
    property: str


PLANS: Mapping[str, Plan] = {
    # 46 instructions a round, hence fuel of one processor a second
    "cpu": Plan(1_000_000, SEGMENTS * 1_000_000 * 46, 750 * 10**6, "speed.fuel"),
    # bytes a second: those filled, and a line of 64 bytes for each step
    "memory": Plan(100_000, 8 * MEMORY_WORDS + 64 * SEGMENTS * 100_000, 250 * 10**6, "speed.memory"),
    # bytes a second: written, and read again
    "disk": Plan(64, 2 * SEGMENTS * 64 * BLOCK, 600 * 10**6, "speed.disk"),
}


class Benchmark(NamedTuple):
    """A task to order, the blobs that it names (by SHA-256), and the largest measure that it may be billed."""

    name: str
    task: Task
    blobs: Mapping[str, bytes]
    most: int


def draw_seed(bid: Bid, chance: bytes) -> Hash:
    """What a benchmark starts from: known to nobody before the node has signed its figures. `chance`: the client's."""
    return keccak(b"freehold benchmark" + bid.struct_hash() + chance)


def benchmark_tasks(seed: Hash, engine: str, names: Sequence[str] = tuple(PLANS)) -> list[Benchmark]:
    """The tasks that measure a node; `engine` is its "executor.wasm.engine"."""
    return [_build(name, engine, _begin(name, seed), SEGMENTS) for name in names]


def get_warmup(name: str, seed: Hash, engine: str) -> Benchmark:
    """The same program for one segment, from another seed: to be run first, so that what is timed is no compiler."""
    return _build(name, engine, _begin(name, keccak(b"freehold warm-up" + seed)), 1)


def _begin(name: str, seed: Hash) -> bytes:
    """The program's own seed, and the state that it starts from: not zero, where xorshift would stay for ever."""
    drawn = keccak(name.encode() + seed)
    return drawn[:8] + bytes([drawn[8] | 1]) + drawn[9:16] + bytes(8) + drawn[16:24]


def _build(name: str, engine: str, begin: bytes, segments: int) -> Benchmark:
    plan, program = PLANS[name], get_program(name)
    words = [begin[:8], segments.to_bytes(8, "little"), plan.rounds.to_bytes(8, "little"), begin[8:]]
    stdin = b"".join(words)
    task = Task(
        executor="wasm",
        kind="module",
        engine=engine,
        program=_blob(program),
        stdin=_blob(stdin),
        resources=Resources(seconds=120),
    )
    return Benchmark(name, task, {_blob(data).sha256: data for data in (program, stdin)}, plan.most)


def _blob(data: bytes) -> Blob:
    return Blob(hashlib.sha256(data).hexdigest(), len(data))


def measure(name: str, elapsed: int, round_trip: int) -> int:
    """The rate in the property's unit, of a run that took `elapsed` nanoseconds of the client's clock, of which a
    `round_trip` of the same connection is no work."""
    return PLANS[name].work * SECOND // max(1, elapsed - round_trip)


class Judgement(NamedTuple):
    """What came of a benchmark: `reason` why it does not count (empty if it does), and the rate (0 if it does not)."""

    reason: str
    rate: int


def judge_benchmark(name: str, stdout: bytes, elapsed: int, round_trip: int) -> Judgement:
    """Whether this can be the output, and the rate that it shows. Whether it is, `get_check` finds out."""
    if len(stdout) != SEGMENTS * STATE:
        return Judgement(f"the benchmark {name!r} gave {len(stdout)} bytes, not {SEGMENTS * STATE}", 0)
    if elapsed <= round_trip:
        return Judgement(f"the benchmark {name!r} came back in no more than the time of a round trip", 0)
    return Judgement("", measure(name, elapsed, round_trip))


class Check(NamedTuple):
    """One segment to be run again, anywhere: its standard output must be `expected`."""

    segment: int
    benchmark: Benchmark
    expected: bytes


def get_check(name: str, seed: Hash, engine: str, stdout: bytes, chance: bytes) -> Check:
    """The segment that `chance` (drawn after `stdout` was in) picks, from the state that is said to come before it."""
    segment = int.from_bytes(keccak(b"freehold check" + keccak(stdout) + chance)) % SEGMENTS
    begin = _begin(name, seed)
    if segment:
        begin = begin[:8] + stdout[(segment - 1) * STATE : segment * STATE]
    expected = stdout[segment * STATE : (segment + 1) * STATE]
    return Check(segment, _build(name, engine, begin, 1), expected)


async def run_benchmark(executor: Executor, benchmark: Benchmark, folder: Path) -> bytes:
    """Run it here, in an empty folder, and give its standard output. FreeholdError where it did not end well."""
    program, stdin = _prepare(benchmark, folder)
    work = Work(benchmark.task, program, stdin, folder, benchmark.most, lambda _: None)
    outcome = await executor.run(work)
    if (outcome.ended, outcome.status) != ("exited", 0):
        raise FreeholdError(f"the benchmark {benchmark.name!r} ended with {outcome.ended!r}: {outcome.reason}")
    return outcome.stdout


def _prepare(benchmark: Benchmark, folder: Path) -> tuple[Path, Path]:
    for name in ("in", "out"):
        (folder / name).mkdir(parents=True)
    paths = []
    for name, blob in (("program", benchmark.task.program), ("stdin", benchmark.task.stdin)):
        assert blob is not None
        paths.append(folder / name)
        paths[-1].write_bytes(benchmark.blobs[blob.sha256])
    return paths[0], paths[1]


class Own(NamedTuple):
    """A node's own figures, to be advertised; and why others are missing."""

    properties: dict[str, int]
    reasons: dict[str, str]


async def run_own(executor: Executor, folder: Path, engine: str, seed: Hash, clock: Callable[[], int]) -> Own:
    """Measure this node as its clients will. `folder` is empty; `clock` gives nanoseconds. Each is run twice, and the
    second counts: the first compiles the module and wakes the machine up."""
    properties, reasons = {}, {}
    for benchmark in benchmark_tasks(seed, engine):
        try:
            await run_benchmark(executor, benchmark, folder / benchmark.name / "first")
            began = clock()
            stdout = await run_benchmark(executor, benchmark, folder / benchmark.name / "second")
            found = judge_benchmark(benchmark.name, stdout, clock() - began, 0)
        except FreeholdError as error:
            found = Judgement(error.message, 0)
        if found.reason:
            reasons[benchmark.name] = found.reason
        else:
            properties[PLANS[benchmark.name].property] = found.rate
    return Own(properties, reasons)


class GpuProbe(Protocol):
    """Finds the machine's GPUs: "gpu.count", and where there are any "gpu.model", "gpu.memory" and "speed.gpu"."""

    async def probe(self) -> Mapping[str, int | str]:
        """What is to be advertised of them."""


class NoGpu:
    """A machine without: that there is none is said rather than left out."""

    async def probe(self) -> Mapping[str, int | str]:
        """None."""
        return {"gpu.count": 0}


class Measured(NamedTuple):
    """What a client has measured of a node so far: an exponential average of `samples` rates, the last at `at` (unix
    seconds)."""

    rate: int
    samples: int
    at: int


def add_measurement(before: Measured | None, rate: int, now: int) -> Measured:
    """The average with one more. average = average + floor((rate - average) / SMOOTHING); the first stands as it is."""
    if before is None:
        return Measured(rate, 1, now)
    return Measured(before.rate + (rate - before.rate) // SMOOTHING, before.samples + 1, now)


def get_deviation(advertised: int, measured: int) -> int:
    """By how many basis points of what it advertises a node falls short; 0 where it is as quick or quicker."""
    return max(0, advertised - measured) * WHOLE // advertised if advertised > 0 else 0


def get_selection_speed(advertised: int, measured: Measured | None, fastest: int = 0) -> int:
    """The speed that a node is ranked by (`matching.Rated`).

    Measured: the average, times SHORTFALL where it deviates by more than DEVIATION. Not yet: what it advertises, at
    most the `fastest` that the client has measured anywhere (0: none yet), times UNPROVEN: so a claim is worth a try,
    and never more than a proof.
    """
    if measured is not None:
        weight = SHORTFALL if get_deviation(advertised, measured.rate) > DEVIATION else WHOLE
        return measured.rate * weight // WHOLE
    return (min(advertised, fastest) if fastest else advertised) * UNPROVEN // WHOLE
