"""Nodes as a client sees them: what they say beside what was measured, and what that does to whom jobs go to."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from freehold.client.jobs_nodes import DAY
from freehold.client.jobs_tools import LocalTools
from freehold.protocol.errors import FreeholdError
from freehold.protocol.typed import keccak
from freehold.services.compute.benchmarks import PLANS, SEGMENTS, STATE, benchmark_tasks, get_check
from freehold.services.compute.ordering import measuring as client_measuring
from freehold.services.compute.ordering.checks import most_cost
from freehold.services.compute.ordering.measuring import most_to_measure
from tests.client.jobs_world import PRICE, Came, FakeNode, World, script_job

FUEL = "speed.fuel"
TAKES = 10**9  # nanoseconds of a whole run
SPEED = PLANS["cpu"].work  # what that comes to
HONEST = {plan.property: plan.work for plan in PLANS.values()}


def follow(stdin: bytes) -> bytes:
    """What stands for a benchmark's program: each segment's state follows from the one before."""
    state, found = stdin[24:], b""
    for _ in range(int.from_bytes(stdin[8:16], "little")):
        state = hashlib.sha256(stdin[:8] + state).digest()[:STATE]
        found += state
    return found


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path)
    made.module = follow
    monkeypatch.setattr(client_measuring, "time", SimpleNamespace(monotonic_ns=lambda: made.nanoseconds))
    yield made
    made.close()


def nodes(world: World, **how: Any) -> list[dict[str, Any]]:
    """As a fresh process sees them."""
    return asyncio.run(world.open().nodes(**how))


def names(rows: list[dict[str, Any]]) -> list[str]:
    return [row["node"] for row in rows]


def figure(row: dict[str, Any], name: str = FUEL) -> dict[str, Any]:
    (found,) = (one for one in row["figures"] if one["name"] == name)
    return dict(found)


def run_script(world: World) -> FakeNode:
    """Which node a script went to."""

    async def run() -> None:
        jobs = world.open()
        row = await jobs.submit(script_job(), most=10**18)
        assert (await jobs.wait(row.id)).phase == "done"

    before = {node.address: len(node.ran) for node in world.nodes}
    asyncio.run(run())
    (chosen,) = (node for node in world.nodes if len(node.ran) > before[node.address])
    return chosen


def forge(came: Came) -> Came:
    """Makes a whole run's result up; a warm-up of one segment is left as it is."""
    return Came(bytes(len(came.stdout))) if len(came.stdout) == SEGMENTS * STATE else came


def test_nobody_is_measured_unasked(world: World) -> None:
    (node,) = world.add(1, **HONEST)
    (row,) = nodes(world)
    assert (row["price"], row["executors"], row["place"], row["reason"]) == (str(PRICE), ["wasm"], 1, "")
    assert row["measuring"] == str(most_to_measure(PRICE))
    found = figure(row)
    assert (found["advertised"], found["measured"], found["deviation"]) == (SPEED, None, None)
    assert found["counts"] == row["speed"] == SPEED // 2  # a claim alone is worth half
    assert not node.ran


def test_who_claims_twice_its_speed_ranks_behind_the_honest_once_measured(world: World) -> None:
    (honest,) = world.add(1, **HONEST)
    (boaster,) = world.add(1, **HONEST | {FUEL: 2 * SPEED})
    honest.takes = boaster.takes = TAKES
    assert names(nodes(world)) == [str(boaster.address), str(honest.address)]
    assert run_script(world) is boaster

    first, second = nodes(world, measure=True)
    assert names([first, second]) == [str(honest.address), str(boaster.address)]
    assert (figure(first)["measured"], figure(first)["deviation"], figure(first)["counts"]) == (SPEED, 0, SPEED)
    assert (figure(second)["measured"], figure(second)["deviation"]) == (SPEED, 5000)
    assert figure(second)["counts"] == second["speed"] == SPEED * 4 // 10
    assert run_script(world) is honest  # another process, by what this one kept


def test_a_forged_segment_is_found_and_its_node_comes_last(world: World) -> None:
    world.add(1, PRICE * 100, **HONEST)
    (forger,) = world.add(1, **HONEST)
    forger.lies = forge
    forger.takes = 1000  # no work takes no time
    rows = nodes(world, measure=True)
    assert rows[-1]["node"] == str(forger.address)
    assert [figure(rows[-1], name)["measured"] for name in HONEST] == [0, 0, 0]
    assert len(rows[-1]["problems"]) == len(PLANS)
    assert all("came out otherwise elsewhere" in problem for problem in rows[-1]["problems"])
    assert (rows[-1]["speed"], rows[0]["problems"]) == (0, [])
    assert run_script(world) is not forger


def test_measured_again_after_a_day_or_when_asked(world: World) -> None:
    (node,) = world.add(1, **HONEST)
    nodes(world, measure=True)
    runs = len(node.ran)
    assert runs == 2 * len(PLANS)  # each once to warm up
    (row,) = nodes(world, measure=True)
    assert (len(node.ran), row["measuring"], row["cost"]) == (runs, "0", "0")
    node.takes = 2 * TAKES
    (row,) = nodes(world, measure=True, again=True)
    assert (len(node.ran), figure(row)["samples"]) == (2 * runs, 2)
    assert figure(row)["measured"] == SPEED - SPEED // 8  # a quarter of the way to half
    world.now += DAY - 1
    assert nodes(world)[0]["measuring"] == "0"
    world.now += 1
    assert nodes(world)[0]["measuring"] == str(most_to_measure(PRICE))
    nodes(world, measure=True)
    assert len(node.ran) == 3 * runs


def test_what_it_cost_is_what_the_receipts_come_to(world: World) -> None:
    world.add(2, **HONEST)
    rows = nodes(world, measure=True)
    assert sum(int(row["cost"]) for row in rows) == world.billed > 0
    assert all(0 < int(row["cost"]) <= most_to_measure(PRICE) for row in rows)


def test_no_more_is_spent_than_allowed(world: World) -> None:
    world.add(2, **HONEST)
    each = most_cost(1_000_000, PRICE) * 2 * len(PLANS)  # what a node of this world bills
    rows = nodes(world, measure=True, most=each + most_to_measure(PRICE) - 1)
    assert sorted(int(row["cost"]) for row in rows) == [0, each]
    (left_out,) = (row for row in rows if row["problems"])
    assert "could cost more" in left_out["problems"][0]
    assert left_out["measuring"] != "0"


def test_who_does_not_offer_says_why_and_who_fails_is_no_obstacle(world: World) -> None:
    _, silent, refusing, native = world.add(4, **HONEST)
    silent.silent = True
    refusing.refuses = "it is being repaired"
    native.properties |= {"executor.wasm": False, "executor.sandbox": True}
    rows = {row["node"]: row for row in nodes(world, measure=True)}
    assert rows[str(silent.address)] == {"node": str(silent.address), "reason": "it did not answer", "place": 0}
    refused = rows[str(refusing.address)]
    assert refused["problems"] == ["it is being repaired"]
    assert figure(refused)["measured"] is None
    assert refused["measuring"] != "0"
    assert (rows[str(native.address)]["executors"], rows[str(native.address)]["measuring"]) == (["sandbox"], "0")
    assert not native.orders
    assert figure(rows[str(world.nodes[0].address)])["measured"] == SPEED


def test_who_failed_lately_is_not_paid_to_be_measured(world: World) -> None:
    failing, other = world.add(2, **HONEST)
    failing.refuses = "it is being repaired"
    failing.price //= 2  # so that the job goes there first
    assert run_script(world) is other
    orders = len(failing.orders)
    failing.refuses = ""
    rows = {row["node"]: row for row in nodes(world, measure=True)}
    row = rows[str(failing.address)]
    assert "it failed this client lately" in row["reason"]
    assert (row["place"], row["measuring"], len(failing.orders)) == (0, "0", orders)
    assert figure(rows[str(other.address)])["measured"] == SPEED
    world.now += 3600
    nodes(world, measure=True)
    assert len(failing.ran) == 2 * len(PLANS)


def test_a_node_that_dies_while_it_is_measured_costs_what_it_may_still_bill(world: World) -> None:
    (node,) = world.add(1, **HONEST)

    def die(came: Came) -> Came:
        node.silent = True  # from the next order on: the warm-up has its receipt
        return came

    node.lies = die
    (row,) = nodes(world, measure=True)
    assert int(row["cost"]) == world.billed + most_cost(PLANS["cpu"].most, PRICE)
    assert "did not answer" in row["problems"][0]


def test_this_machine_runs_a_segment_again_whatever_engine_the_node_has(tmp_path: Path) -> None:
    seed = keccak(b"seed")

    async def both() -> tuple[bytes, bytes, bytes]:
        async with LocalTools(tmp_path).rerunning() as rerun:
            (other,) = benchmark_tasks(seed, "wasmtime-1", ["cpu"])
            whole = await rerun(other)
            check = get_check("cpu", seed, "wasmtime-1", whole, b"chance")
            return whole, await rerun(check.benchmark), check.expected

    whole, again, expected = asyncio.run(both())
    assert len(whole) == SEGMENTS * STATE
    assert again == expected


def test_a_rerun_that_fails_here_is_no_nodes_fault(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (node,) = world.add(1, **HONEST)
    rerun_failed = FreeholdError("WebAssembly does not run here")

    def fail(stdin: bytes) -> bytes:
        if stdin[8:16] == (1).to_bytes(8, "little") and node.orders and len(node.ran) == 2:  # the segment, afterwards
            raise rerun_failed
        return follow(stdin)

    world.module = fail
    (row,) = nodes(world, measure=True)
    assert row["problems"] == ["WebAssembly does not run here"]
    assert (figure(row)["measured"], row["measuring"]) == (None, str(most_to_measure(PRICE)))
