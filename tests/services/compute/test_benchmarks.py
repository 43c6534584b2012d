"""Benchmarks: their programs against plain Python, what is checked of a result, and what a shortfall costs."""

from __future__ import annotations

import asyncio
import math
import os
import struct
import tempfile
from pathlib import Path

import pytest
import wasmtime
from hypothesis import given
from hypothesis import strategies as st

from freehold.protocol.errors import FreeholdError
from freehold.protocol.typed import keccak
from freehold.protocol.units import Address, Hash
from freehold.services.compute.benchmark_programs import BLOCK, MEMORY_WORDS, get_program, get_text
from freehold.services.compute.benchmarks import (
    PLANS,
    SEGMENTS,
    STATE,
    Benchmark,
    Measured,
    NoGpu,
    add_measurement,
    benchmark_tasks,
    draw_seed,
    get_check,
    get_deviation,
    get_selection_speed,
    judge_benchmark,
    measure,
    run_own,
)
from freehold.services.compute.executors.seam import Capability, Outcome, Work
from freehold.services.compute.tasks import check_task, decode_task
from freehold.services.compute.terms import Bid

ENGINE = "wasmtime-50"
SEED = keccak(b"seed")
BITS = 2**64 - 1
ODD = 0x9E3779B97F4A7C15


def run_module(program: bytes, stdin: bytes, fuel: int = 10**12) -> tuple[bytes, int]:
    """The engine's own WASI, with a folder to write into: standard output, and fuel taken."""
    config = wasmtime.Config()
    config.consume_fuel = True
    engine = wasmtime.Engine(config)
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        (where / "stdin").write_bytes(stdin)
        (where / "files").mkdir()
        wasi = wasmtime.WasiConfig()
        wasi.stdin_file, wasi.stdout_file = str(where / "stdin"), str(where / "stdout")
        wasi.preopen_dir(str(where / "files"), "/tmp")
        store = wasmtime.Store(engine)
        store.set_wasi(wasi)
        store.set_fuel(fuel)
        start = linker.instantiate(store, wasmtime.Module(engine, program)).exports(store)["_start"]
        assert isinstance(start, wasmtime.Func)
        start(store)
        assert not os.listdir(where / "files")  # nothing is left behind
        return (where / "stdout").read_bytes(), fuel - store.get_fuel()


# The programs once more, in plain Python: a segment of (rounds, x, y, z).


def xorshift(x: int) -> int:
    x ^= x << 13 & BITS
    x ^= x >> 7
    return x ^ x << 17 & BITS


def rotate(z: int) -> int:
    return (z << 5 | z >> 59) & BITS


def bits_of(number: float) -> int:
    return int.from_bytes(struct.pack("<d", number), "little")


def cpu_segment(rounds: int, x: int, y: int, z: int) -> tuple[int, int, int]:
    number = struct.unpack("<d", y.to_bytes(8, "little"))[0]
    for _ in range(rounds):
        x = xorshift(x)
        number = math.sqrt(number + (x >> 11) * 2.0**-53)
        z = (rotate(z) + x) * ODD & BITS ^ bits_of(number)
    return x, bits_of(number), z


def fill(seed: int, words: int) -> list[int]:
    found = []
    for _ in range(words):
        seed = (ODD + (seed ^ seed >> 29) * 0xBF58476D1CE4E5B9) & BITS
        found.append(seed)
    return found


def memory_segment(memory: list[int], rounds: int, x: int, y: int, z: int) -> tuple[int, int, int]:
    for _ in range(rounds):
        word = memory[y % len(memory)]
        x = (x ^ word) * ODD & BITS
        x = y = x ^ x >> 32
        z = rotate(z) + word & BITS
    return x, y, z


def disk_segment(rounds: int, x: int, y: int, z: int) -> tuple[int, int, int]:
    for _ in range(rounds * BLOCK // 8):
        x = xorshift(x)
        z = (rotate(z) + x) * ODD & BITS
    return x, y + rounds, z


def states(name: str, seed: int, segments: int, rounds: int, state: tuple[int, int, int], words: int = 0) -> bytes:
    memory = fill(seed, words)
    found = b""
    for _ in range(segments):
        if name == "memory":
            state = memory_segment(memory, rounds, *state)
        else:
            state = {"cpu": cpu_segment, "disk": disk_segment}[name](rounds, *state)
        found += struct.pack("<3Q", *state)
    return found


STATES = [(0x9E3779B97F4A7C15, 0, 0), (1, bits_of(0.5), BITS), (0xDEADBEEF12345678, 3 << 60, 42)]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(("name", "rounds", "words"), [("cpu", 500, 0), ("memory", 500, 2**16), ("disk", 1, 0)])
def test_programs_do_what_plain_python_does(name: str, rounds: int, words: int, state: tuple[int, int, int]) -> None:
    program = bytes(wasmtime.wat2wasm(get_text(name, words or MEMORY_WORDS)))
    for segments in (1, 3):
        found, _ = run_module(program, struct.pack("<6Q", 77, segments, rounds, *state))
        assert found == states(name, 77, segments, rounds, state, words)


# What `states` above gives for the whole benchmarks of SEED, computed once: keccak of the standard output.
GOLDEN = {
    "cpu": "0xf4997620e3922f7cf228de7f70445b49164e3b7864bd07a204becfdc5ba56a2a",
    "memory": "0xb95fa16af66ad6da4289537d999dd391bd59f78a814dba752383588a6c14480c",
    "disk": "0x5ea749e726cf27bde709e122402fa62a80a4f577e5126a857e1a2241e4cd9aa4",
}


def run_here(benchmark: Benchmark, fuel: int = 10**12) -> tuple[bytes, int]:
    assert benchmark.task.program is not None
    assert benchmark.task.stdin is not None
    blobs = benchmark.blobs
    return run_module(blobs[benchmark.task.program.sha256], blobs[benchmark.task.stdin.sha256], fuel)


@pytest.mark.parametrize("benchmark", benchmark_tasks(SEED, ENGINE), ids=lambda one: one.name)
def test_a_whole_run_is_as_pinned_and_each_segment_can_be_run_again(benchmark: Benchmark) -> None:
    stdout, fuel = run_here(benchmark)
    assert len(stdout) == SEGMENTS * STATE
    assert str(keccak(stdout)) == GOLDEN[benchmark.name]
    assert fuel <= benchmark.most
    if benchmark.name == "cpu":
        assert abs(fuel - PLANS["cpu"].work) * 1000 < fuel  # what a round counts as is what it takes
    seen = set()
    for number in range(4):
        check = get_check(benchmark.name, SEED, ENGINE, stdout, bytes([number]))
        seen.add(check.segment)
        assert run_here(check.benchmark)[0] == check.expected
    assert len(seen) > 1


def test_a_segment_that_was_made_up_is_found_when_it_is_drawn() -> None:
    (benchmark,) = benchmark_tasks(SEED, ENGINE, ["cpu"])
    stdout, _ = run_here(benchmark)
    forged = stdout[: 5 * STATE] + bytes(STATE) + stdout[6 * STATE :]
    outcomes = {}
    for number in range(256):
        check = get_check("cpu", SEED, ENGINE, forged, bytes([number]))
        if check.segment in {5, 6, 7} - set(outcomes):
            outcomes[check.segment] = run_here(check.benchmark)[0] == check.expected
    assert outcomes == {5: False, 6: False, 7: True}


def test_tasks_are_ordinary_and_follow_from_the_seed() -> None:
    first, again, other = (benchmark_tasks(seed, ENGINE) for seed in (SEED, SEED, keccak(b"other")))
    for one, two, three in zip(first, again, other, strict=True):
        check_task(one.task)
        assert decode_task(one.task.encode()) == one.task
        assert one.task.hash() == two.task.hash() != three.task.hash()
        assert one.task.program == three.task.program
        assert one.task.stdin is not None
        assert one.blobs[one.task.stdin.sha256][24] & 1  # xorshift stands still at zero


def test_the_seed_follows_the_bid_and_the_clients_chance() -> None:
    bid = Bid(
        node=Address(b"n" * 20), client=Address(b"c" * 20), request=Hash(bytes(32)), price=5, properties=b"{}", expiry=9
    )
    other = Bid(
        node=bid.node, client=bid.client, request=bid.request, price=5, properties=b'{"speed.fuel":1}', expiry=9
    )
    seeds = {draw_seed(bid, b"a" * 32), draw_seed(bid, b"b" * 32), draw_seed(other, b"a" * 32)}
    assert len(seeds) == 3


def test_rates_are_of_the_clients_clock_less_a_round_trip() -> None:
    work = PLANS["cpu"].work
    assert measure("cpu", 10**9, 0) == work
    assert measure("cpu", 10**9 + 5_000_000, 5_000_000) == work
    assert judge_benchmark("cpu", bytes(SEGMENTS * STATE), 2 * 10**9, 0) == ("", work // 2)
    assert "383 bytes" in judge_benchmark("cpu", bytes(SEGMENTS * STATE - 1), 10**9, 0).reason
    assert "round trip" in judge_benchmark("cpu", bytes(SEGMENTS * STATE), 5, 5).reason


@pytest.mark.parametrize(
    ("advertised", "measured", "deviation", "speed"),
    [
        (1000, 1000, 0, 1000),
        (1000, 2000, 0, 2000),
        (1000, 850, 1500, 850),  # exactly 15 %
        (1000, 849, 1510, 339),
        (100_000, 84_999, 1500, 84_999),  # rounded down
        (100_000, 84_990, 1501, 33_996),
        (0, 500, 0, 500),
        (1000, 0, 10_000, 0),
    ],
)
def test_a_shortfall_of_more_than_fifteen_percent_counts_for_less(
    advertised: int, measured: int, deviation: int, speed: int
) -> None:
    assert get_deviation(advertised, measured) == deviation
    assert get_selection_speed(advertised, Measured(measured, 1, 0)) == speed


def test_a_claim_counts_for_less_than_a_proof() -> None:
    assert get_selection_speed(1000, None) == 500
    assert get_selection_speed(10**12, None, fastest=1000) == 500
    assert get_selection_speed(600, None, fastest=1000) == 300


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=20))
def test_the_average_stays_between_what_was_measured(rates: list[int]) -> None:
    found: Measured | None = None
    for at, rate in enumerate(rates):
        found = add_measurement(found, rate, at)
    assert found is not None
    assert min(rates) - 1 <= found.rate <= max(rates)
    assert found[1:] == (len(rates), len(rates) - 1)


def test_a_steady_rate_is_approached() -> None:
    found = Measured(0, 1, 0)
    for at in range(60):
        found = add_measurement(found, 10**6, at)
    assert 10**6 - 4 <= found.rate <= 10**6


class PlainExecutor:
    """Notes what it is asked to run and says that it did; `broken` is a program that it traps on."""

    name = "wasm"

    def __init__(self, broken: bytes = b"") -> None:
        self.broken, self.runs = broken, 0

    async def probe(self) -> Capability:
        return Capability(True, "", {})

    async def run(self, work: Work) -> Outcome:
        assert work.program is not None
        assert work.stdin is not None
        assert sorted(path.name for path in work.folder.iterdir()) == ["in", "out", "program", "stdin"]
        assert len(work.stdin.read_bytes()) == 48
        self.runs += 1
        if work.program.read_bytes() == self.broken:
            return Outcome("trap", 0, b"", 1, "unreachable")
        return Outcome("exited", 0, bytes(SEGMENTS * STATE), 1)

    async def stop(self) -> None: ...


def test_a_node_measures_itself_as_its_clients_will(tmp_path: Path) -> None:
    ticks = iter(range(0, 10**12, 10**9))
    executor = PlainExecutor(broken=get_program("disk"))
    found = asyncio.run(run_own(executor, tmp_path / "own", ENGINE, SEED, lambda: next(ticks)))
    assert found.properties == {PLANS[name].property: PLANS[name].work for name in ("cpu", "memory")}
    assert found.reasons == {"disk": "the benchmark 'disk' ended with 'trap': unreachable"}
    assert executor.runs == 5  # twice each, but for the one that failed


def test_an_executor_that_fails_leaves_a_reason(tmp_path: Path) -> None:
    class Failing(PlainExecutor):
        async def run(self, work: Work) -> Outcome:
            raise FreeholdError("no more memory")

    found = asyncio.run(run_own(Failing(), tmp_path, ENGINE, SEED, lambda: 0))
    assert (found.properties, found.reasons["cpu"]) == ({}, "no more memory")


def test_that_there_is_no_gpu_is_said() -> None:
    assert asyncio.run(NoGpu().probe()) == {"gpu.count": 0}
