"""How WebAssembly jobs end: metered to the unit, the same in each worker, and contained."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from freehold.services.compute.executors.wasm_engine import STEP_FUEL
from freehold.services.compute.executors.wasm_terms import ENGINE, OUTPUT_LIMIT
from freehold.services.compute.node.shown import CLAIMING
from tests.services.compute.wasm_world import DEADLINE, LOOP, PLENTY, Machine, count_to, is_alive, program

HELLO = program("(drop (call $write (i32.const 1) (i32.const 1024) (i32.const 6)))", data="hello\\n")
BUSY = count_to(400_000_000)  # long enough to be caught at it


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("wasm")
    machine = Machine(folder / "cache", folder / "runs")
    try:
        yield machine
    finally:
        machine.close()


def test_the_probe_runs_a_module(machine: Machine) -> None:
    capability = machine.do(machine.executor.probe())
    assert capability.works
    assert capability.properties == {"executor.wasm": True, "executor.wasm.engine": ENGINE}


def test_output_and_measure_are_the_same_in_each_worker(machine: Machine) -> None:
    works = [machine.prepare(HELLO) for _ in range(4)]

    async def run_all() -> list[object]:
        return list(await asyncio.gather(*(machine.executor.run(work) for work in works)))

    first, *others = machine.do(run_all())
    assert (first.ended, first.status, first.stdout) == ("exited", 0, b"hello\n")
    assert 4000 < first.measure < 5000
    assert others == [first] * 3


def test_fuel_is_capped_to_the_unit(machine: Machine) -> None:
    source = count_to(1000)
    full = machine.run(source).outcome
    assert full.ended == "exited"
    assert machine.run(source, most=full.measure).outcome == full
    for short in (1, full.measure // 2, full.measure - 20):
        outcome = machine.run(source, most=short).outcome
        assert (outcome.ended, outcome.measure) == ("fuel", short)


def test_the_last_straight_line_of_code_is_not_billed_over_the_cap(machine: Machine) -> None:
    """The engine looks at its fuel where code loops or calls; what is left after that runs on."""
    full = machine.run(count_to(1000)).outcome
    assert machine.run(count_to(1000), most=full.measure - 1).outcome.measure == full.measure - 1


@pytest.mark.parametrize("most", [1, 12_345, 1_000_001])
def test_what_loops_for_ever_is_billed_to_its_cap(machine: Machine, most: int) -> None:
    outcome = machine.run(LOOP, most=most).outcome
    assert (outcome.ended, outcome.measure, outcome.stdout) == ("fuel", most, b"")


def test_a_call_of_the_host_that_cannot_be_paid_for_is_not_made(machine: Machine) -> None:
    full = machine.run(HELLO).outcome
    outcome = machine.run(HELLO, most=full.measure - 10).outcome
    assert (outcome.ended, outcome.measure, outcome.stdout) == ("fuel", full.measure - 10, b"")


def test_time_guards_what_fuel_does_not(machine: Machine) -> None:
    outcome = machine.run(LOOP, most=10**18, seconds=1).outcome
    assert outcome.ended == "time"
    assert 0 < outcome.measure <= 10**18


def test_memory_cannot_grow_over_its_limit_and_the_program_decides(machine: Machine) -> None:
    grow = """(loop (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_if 0 (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))"""
    outcome = machine.run(program(f"{grow} (call $proc_exit (local.get $n))"), memory=64 * 65536).outcome
    assert (outcome.ended, outcome.status) == ("exited", 64 - 32 + 1)
    assert machine.run(program(f"{grow} unreachable"), memory=64 * 65536).outcome.ended == "trap"


def test_more_memory_to_start_with_than_allowed(machine: Machine) -> None:
    outcome = machine.run(program("", pages=2000), memory=2**20).outcome
    assert (outcome.ended, outcome.measure) == ("memory", 0)


def test_touching_all_of_a_large_memory_is_metered(machine: Machine) -> None:
    fill = "(memory.fill (i32.const 0) (i32.const 1) (i32.const 2097152))"
    assert machine.run(program(fill)).outcome.measure > 2_097_152


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (b"", "no WebAssembly"),
        (b"#!/bin/sh\necho hello\n", "no WebAssembly"),
        (b"\0asm\x01\0\0\0garbage", "no program for this engine"),
        ('(module (import "env" "system" (func)) (func (export "_start")))', "env.system"),
        (
            '(module (import "wasi_snapshot_preview1" "sock_open" (func)) (func (export "_start")))',
            "wasi_snapshot_preview1.sock_open",
        ),
        (
            '(module (import "wasi_snapshot_preview1" "fd_write" (func)) (func (export "_start")))',
            "incompatible import type",
        ),
        ('(module (func (export "main")))', "_start"),
        ('(module (memory 1 2 shared) (func (export "_start")))', "no program for this engine"),
    ],
)
def test_what_is_no_program_is_refused(machine: Machine, source: str | bytes, reason: str) -> None:
    outcome = machine.run(source).outcome
    assert (outcome.ended, outcome.measure) == ("refused", 0)
    assert reason in outcome.reason


def test_another_engine_is_refused(machine: Machine) -> None:
    assert machine.run(HELLO, engine="wasmtime-1").outcome.ended == "refused"


def test_calls_that_nest_too_deep_claim_nothing(machine: Machine) -> None:
    deep = """(module (func $deep (param i32) (result i32)
      (if (result i32) (local.get 0) (then (i32.add (i32.const 1) (call $deep (i32.sub (local.get 0) (i32.const 1)))))
        (else (i32.const 0))))
      (func (export "_start") (drop (call $deep (i32.const %d)))))"""
    assert machine.run(deep % 1000).outcome.ended == "exited"
    outcome = machine.run(deep % 10**9).outcome
    assert outcome.ended == "stack"  # how deep that is depends on the node's processor
    assert outcome.measure > 0
    assert "stack" not in CLAIMING


def test_a_flood_of_output_is_cut_off(machine: Machine) -> None:
    flood = "(loop (drop (call $write (i32.const 1) (i32.const 1024) (i32.const 1048576))) (br 0))"
    outcome = machine.run(program(flood)).outcome
    assert (outcome.ended, len(outcome.stdout)) == ("output", OUTPUT_LIMIT)


def test_the_log_is_what_went_to_standard_error(machine: Machine) -> None:
    ran = machine.run(program("(drop (call $write (i32.const 2) (i32.const 1024) (i32.const 3)))", data="log"))
    assert (ran.log, ran.outcome.stdout) == (b"log", b"")


def test_the_log_comes_while_the_program_runs(machine: Machine) -> None:
    heard = threading.Event()
    source = program("(drop (call $write (i32.const 2) (i32.const 1024) (i32.const 3))) (loop (br 0))", data="log")
    work = machine.prepare(source, most=10**18, log=lambda _: heard.set())
    future = asyncio.run_coroutine_threadsafe(machine.executor.run(work), machine.loop)
    assert heard.wait(DEADLINE)
    assert machine.executor.measure(work.folder) > 4000
    machine.loop.call_soon_threadsafe(machine.executor.end, work.folder)
    outcome = future.result(DEADLINE)
    assert outcome.ended == "stopped"
    assert outcome.measure > 4000


def test_clock_and_chance_are_the_same_each_time(machine: Machine) -> None:
    source = program("""(drop (call $clock_time_get (i32.const 0) (i64.const 0) (i32.const 32)))
      (drop (call $clock_time_get (i32.const 1) (i64.const 0) (i32.const 40)))
      (drop (call $random_get (i32.const 48) (i32.const 16))) (drop (call $random_get (i32.const 64) (i32.const 16)))
      (drop (call $write (i32.const 1) (i32.const 32) (i32.const 48)))""")
    first, second = machine.run(source).outcome, machine.run(source).outcome
    assert first == second
    real, monotonic, *chance = struct.unpack("<QQ16s16s", first.stdout)
    assert 0 < real < monotonic < first.measure
    assert len({*chance, bytes(16)}) == 3


def test_nan_has_one_form(machine: Machine) -> None:
    """Without canonical NaNs the division gives the processor's own NaN, which has its sign set on x86."""
    source = program("""(f64.store (i32.const 32) (f64.div (f64.load (i32.const 4096)) (f64.load (i32.const 4096))))
      (f32.store (i32.const 40) (f32.add (f32.reinterpret_i32 (i32.const 0xffc12345)) (f32.load (i32.const 4096))))
      (drop (call $write (i32.const 1) (i32.const 32) (i32.const 12)))""")
    assert machine.run(source).outcome.stdout == struct.pack("<QI", 0x7FF8000000000000, 0x7FC00000)


# Its standard input is a descriptor, as one byte, and a path: opens it, and ends with the error number.
OPEN = program("""(i32.store (i32.const 8) (i32.const 1024)) (i32.store (i32.const 12) (i32.const 100))
  (drop (call $fd_read (i32.const 0) (i32.const 8) (i32.const 1) (i32.const 16)))
  (call $proc_exit (call $path_open (i32.load8_u (i32.const 1024)) (i32.const 1)
    (i32.const 1025) (i32.sub (i32.load (i32.const 16)) (i32.const 1))
    (i32.const 0) (i64.const 2) (i64.const 2) (i32.const 0) (i32.const 32)))""")


@pytest.mark.parametrize("path", ["/etc/passwd", "../etc/passwd", "../../../etc/passwd", "link", "folder/passwd"])
@pytest.mark.parametrize("folder", [3, 4, 5])
def test_no_path_leads_out(machine: Machine, path: str, folder: int) -> None:
    """`link` and `folder` stand in the host's in/, where no node puts them."""
    work = machine.prepare(OPEN, stdin=bytes([folder]) + path.encode(), inputs={"plain": b"x"})
    (work.folder / "in" / "link").symlink_to("/etc/passwd")
    (work.folder / "in" / "folder").symlink_to("/etc")
    outcome = machine.do(machine.executor.run(work))
    assert (outcome.ended, outcome.status) == ("exited", 44 if not path.startswith((".", "/")) else 76)


def test_a_plain_input_opens(machine: Machine) -> None:
    assert machine.run(OPEN, stdin=b"\x03plain", inputs={"plain": b"x"}).outcome.status == 0


def test_each_step_gets_what_the_last_one_left(machine: Machine) -> None:
    """Reads a byte, adds one, and writes it; ends with 1 once it is "4"."""
    source = program("""(i32.store (i32.const 8) (i32.const 32)) (i32.store (i32.const 12) (i32.const 1))
      (drop (call $fd_read (i32.const 0) (i32.const 8) (i32.const 1) (i32.const 16)))
      (i32.store8 (i32.const 32) (i32.add (i32.load8_u (i32.const 32)) (i32.const 1)))
      (drop (call $write (i32.const 1) (i32.const 32) (i32.const 1)))
      (call $proc_exit (i32.eq (i32.load8_u (i32.const 32)) (i32.const 52)))""")
    whole = machine.run(source, stdin=b"0", steps=3).outcome
    assert (whole.ended, whole.status, whole.states, whole.stdout) == ("exited", 0, (b"1", b"2", b"3"), b"3")
    again = machine.run(source, stdin=b"1", steps=1).outcome  # as a referee does
    assert (again.stdout, again.measure * 3) == (b"2", whole.measure)
    assert again.measure == machine.run(source, stdin=b"1").outcome.measure + STEP_FUEL
    early = machine.run(source, stdin=b"0", steps=9).outcome
    assert (early.status, early.states, early.stdout) == (1, (b"1", b"2", b"3"), b"4")
    capped = machine.run(source, stdin=b"0", steps=9, most=again.measure * 2 + 5).outcome
    assert (capped.ended, capped.measure, capped.states) == ("fuel", again.measure * 2 + 5, (b"1", b"2"))


def test_steps_that_do_nothing_cost_what_setting_them_up_does(machine: Machine) -> None:
    empty = '(module (func (export "_start")))'
    outcome = machine.run(empty, steps=10).outcome
    assert (outcome.ended, len(outcome.states)) == ("exited", 10)
    assert 10 * STEP_FUEL < outcome.measure < 10 * STEP_FUEL + 1000
    capped = machine.run(empty, steps=2**20, most=3 * STEP_FUEL).outcome
    assert (capped.ended, capped.measure, len(capped.states)) == ("fuel", 3 * STEP_FUEL, 2)


def kill_workers(machine: Machine, folder: Path, times: int) -> None:
    """Kill the process that runs in this folder, each time it is another."""
    deadline, killed = time.monotonic() + DEADLINE, set[int]()
    while len(killed) < times and time.monotonic() < deadline:
        running = machine.executor._running.get(folder)
        worker = None if running is None else running.worker
        if worker is not None and worker.process.pid not in killed:
            killed.add(worker.process.pid)
            os.kill(worker.process.pid, signal.SIGKILL)
    assert len(killed) == times


def test_a_killed_worker_costs_one_more_try(machine: Machine) -> None:
    expected = machine.run(BUSY).outcome
    assert expected.ended == "exited"
    for times, ended in ((1, "exited"), (2, "failed")):
        work = machine.prepare(BUSY)
        future = asyncio.run_coroutine_threadsafe(machine.executor.run(work), machine.loop)
        kill_workers(machine, work.folder, times)
        outcome = future.result(DEADLINE)
        assert outcome.ended == ended
        assert outcome == expected if ended == "exited" else (outcome.measure, outcome.stdout) == (0, b"")
    assert machine.run(HELLO).outcome.ended == "exited"


def start_and_wait(machine: Machine, source: str) -> tuple[Any, int, Path]:
    """A run on its way: what it will give, its process, its folder."""
    work = machine.prepare(source, most=10**18)
    future = asyncio.run_coroutine_threadsafe(machine.executor.run(work), machine.loop)
    deadline = time.monotonic() + DEADLINE
    while (process := machine.get_process(work)) is None:
        assert time.monotonic() < deadline
    return future, process, work.folder


def test_cancelled_runs_leave_no_process(machine: Machine) -> None:
    future, process, folder = start_and_wait(machine, LOOP)
    future.cancel()
    deadline = time.monotonic() + DEADLINE
    while is_alive(process) or folder in machine.executor._running:
        assert time.monotonic() < deadline
    assert not (folder / "scratch").exists()
    assert machine.run(HELLO).outcome.ended == "exited"


def test_a_stopped_run_is_billed_for_what_it_took(machine: Machine) -> None:
    future, _, folder = start_and_wait(machine, LOOP)
    machine.loop.call_soon_threadsafe(machine.executor.end, folder)
    outcome = future.result(DEADLINE)
    assert outcome.ended == "stopped"
    assert 0 <= outcome.measure < PLENTY


def test_two_run_at_once_and_the_third_waits(machine: Machine) -> None:
    runs = [start_and_wait(machine, LOOP) for _ in range(2)]
    assert len({process for _, process, _ in runs}) == 2
    waiting = machine.prepare(HELLO)
    third = asyncio.run_coroutine_threadsafe(machine.executor.run(waiting), machine.loop)
    machine.loop.call_soon_threadsafe(machine.executor.end, runs[0][2])
    assert third.result(DEADLINE).ended == "exited"
    assert machine.get_process(waiting) is None
    machine.loop.call_soon_threadsafe(machine.executor.end, runs[1][2])
    assert [future.result(DEADLINE).ended for future, _, _ in runs] == ["stopped"] * 2


def test_stop_ends_what_runs(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "cache", tmp_path / "runs", slots=1)
    future, process, _ = start_and_wait(machine, LOOP)
    waiting = asyncio.run_coroutine_threadsafe(machine.executor.run(machine.prepare(LOOP)), machine.loop)
    machine.close()
    assert not is_alive(process)
    assert future.result(0).ended == "stopped"
    assert waiting.result(0).ended == "stopped"
