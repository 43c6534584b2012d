"""A client measures nodes: honest ones, slow ones, and one that makes its results up."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from freehold.protocol.errors import Corrupt, Refused, Unavailable
from freehold.protocol.state import NodeRecord
from freehold.protocol.typed import keccak
from freehold.protocol.units import Address, Hash
from freehold.services.compute.benchmark_programs import get_program
from freehold.services.compute.benchmarks import PLANS, STATE, Benchmark, Measured, run_benchmark
from freehold.services.compute.executors.wasm import WasmExecutor
from freehold.services.compute.executors.wasm_terms import ENGINE
from freehold.services.compute.ordering.checks import Standing
from freehold.services.compute.ordering.measuring import Figure, Means, Speeds, get_stdout, measure_node, measure_offers
from freehold.services.compute.ordering.survey import Offered
from freehold.services.compute.tasks import OutputFile, Result, Task
from freehold.services.compute.terms import Bid, Order
from tests.client.world import world
from tests.services.compute import test_client_provider as provided
from tests.services.compute.client_world import compute_client, until
from tests.services.compute.test_client_node import request_of

SECOND, MILLISECOND = 10**9, 10**6
SEED = keccak(b"seed")
ROUND_TRIP = 5 * MILLISECOND
FUEL = "speed.fuel"


def compute(stdin: bytes) -> bytes:
    """What stands for the program: each segment's state follows from the one before."""
    state, found = stdin[24:], b""
    for _ in range(int.from_bytes(stdin[8:16], "little")):
        state = hashlib.sha256(stdin[:8] + state).digest()[:STATE]
        found += state
    return found


class FakeNode:
    """Takes `work` nanoseconds of its clock for a whole run; `lies` puts something else into the output."""

    def __init__(self, work: int, lies: bool = False, ended: str = "exited", polls: int = 0) -> None:
        self.now, self.work, self.lies, self.ended, self.polls = 0, work, lies, ended, polls
        self.tasks: list[Task] = []
        self.standing: Standing | None = None

    def order(self, task: Task, most: int, until: int) -> Order:
        return Order(lease=Hash(bytes(32)), number=len(self.tasks), task=task.hash(), most=most, until=until)

    async def submit(
        self, order: Order, task: Task, blobs: Mapping[str, bytes], access: Mapping[str, Any] | None, wait: float
    ) -> Standing:
        assert order.task == task.hash()
        assert order.until == 9
        assert wait > 0
        self.tasks.append(task)
        assert task.stdin is not None
        stdout = compute(blobs[task.stdin.sha256])
        if self.lies and len(stdout) > STATE:
            stdout = bytes(len(stdout))
        self.now += self.work + ROUND_TRIP
        digest = hashlib.sha256(stdout).hexdigest()
        result = Result(ended=self.ended, status=0, stdout=OutputFile("stdout", digest, len(stdout)), files=())
        job = order.struct_hash()
        self.standing = Standing(job=job, phase="finished", result=result.encode().decode(), inline={digest: stdout})
        return Standing(job=job, phase="running") if self.polls else self.standing

    async def wait(self, job: Hash, seconds: float, task: Task | None = None) -> Standing:
        assert self.standing is not None
        assert job == self.standing.job
        self.now += ROUND_TRIP
        if self.polls > 0:
            self.polls -= 1
            self.now += 40 * SECOND
            return Standing(job=job, phase="running")
        return self.standing


async def rerun(benchmark: Benchmark) -> bytes:
    assert benchmark.task.stdin is not None
    return compute(benchmark.blobs[benchmark.task.stdin.sha256])


def measure(node: FakeNode, properties: Mapping[str, Any], *names: str) -> list[Figure]:
    means = Means(9, lambda: node.now, lambda: b"c" * 32, rerun)
    return asyncio.run(measure_node(node, properties, SEED, means, names or tuple(PLANS)))


def test_an_honest_nodes_figures_stand_beside_what_it_advertises() -> None:
    node = FakeNode(2 * SECOND)
    figures = measure(node, {"executor.wasm.engine": "wasmtime-50", FUEL: PLANS["cpu"].work, "speed.disk": "fast"})
    assert [figure.name for figure in figures] == [FUEL, "speed.memory", "speed.disk"]
    assert [figure.measured for figure in figures] == [PLANS[name].work // 2 for name in PLANS]  # no round trip in it
    assert [figure.advertised for figure in figures] == [PLANS["cpu"].work, 0, 0]
    assert [figure.deviation for figure in figures] == [5000, 0, 0]
    assert not any(figure.reason for figure in figures)
    # each program ran once before it was timed, from another seed
    assert len(node.tasks) == 6
    assert node.tasks[0].program == node.tasks[1].program
    assert node.tasks[0].program is not None
    assert node.tasks[0].program.sha256 == hashlib.sha256(get_program("cpu")).hexdigest()
    assert node.tasks[0].stdin != node.tasks[1].stdin
    assert {task.engine for task in node.tasks} == {"wasmtime-50"}


def test_a_made_up_result_counts_for_nothing_and_its_segment_is_named() -> None:
    (figure,) = measure(FakeNode(1, lies=True), {FUEL: 10**12}, "cpu")
    assert (figure.advertised, figure.measured) == (10**12, 0)
    assert figure.reason.startswith("segment ")
    assert figure.reason.endswith("of 'cpu' came out otherwise elsewhere")


def test_a_run_that_does_not_end_well_gives_no_figure() -> None:
    (figure,) = measure(FakeNode(SECOND, ended="fuel"), {}, "memory")
    assert (figure.measured, figure.reason) == (0, "the benchmark 'memory' gave 0 bytes, not 384")


def test_waiting_goes_on_for_a_while_and_no_longer() -> None:
    assert measure(FakeNode(SECOND, polls=1), {}, "cpu")[0].reason == ""
    with pytest.raises(Unavailable, match="did not end within 60 s"):
        measure(FakeNode(SECOND, polls=9), {}, "cpu")


def test_output_that_is_not_what_the_result_names_is_corrupt() -> None:
    node = FakeNode(SECOND)
    measure(node, {}, "cpu")
    assert node.standing is not None
    with pytest.raises(Corrupt):
        get_stdout(msgspec.structs.replace(node.standing, inline={}))


def test_speeds_rank_by_what_was_measured_and_are_kept() -> None:
    speeds, honest, liar, new = Speeds(), *(Address(bytes([n]) * 20) for n in range(3))
    speeds.add(honest, Figure(FUEL, 1000, 900, "", None), 5)
    speeds.add(liar, Figure(FUEL, 10**6, 800, "", None), 5)
    assert speeds.speed(honest, FUEL, 1000) == 900
    assert speeds.speed(liar, FUEL, 10**6) == 320  # far below what it claims
    assert speeds.speed(new, FUEL, 10**6) == 450  # at most half of the fastest that is known
    assert speeds.speed(new, "speed.disk", 100) == 50
    assert speeds.properties(honest) == {"measured.speed.fuel": 900}
    speeds.add(honest, Figure(FUEL, 1000, 100, "", None), 6)
    assert speeds.rates[str(honest)][FUEL] == Measured(700, 2, 6)
    speeds.add(honest, Figure(FUEL, 1000, 0, "made up", None), 7)
    assert speeds.speed(honest, FUEL, 1000) == 0
    assert msgspec.json.decode(msgspec.json.encode(speeds), type=Speeds) == speeds


class FakeClient:
    """Opens sessions with these nodes, by address; refuses others."""

    def __init__(self, nodes: Mapping[Address, FakeNode]) -> None:
        self.nodes, self.amounts = nodes, list[int]()

    async def session(self, offered: Offered, amount: int) -> FakeNode:
        self.amounts.append(amount)
        if offered.node not in self.nodes:
            raise Refused("no lease")
        return self.nodes[offered.node]

    async def until(self, seconds: float) -> int:
        return 9


def offer(node: Address, price: int) -> Offered:
    record = NodeRecord(node=node, operator=node, payout=node, endpoint="", bond=1)
    bid = Bid(node=node, client=node, request=SEED, price=price, properties=b"{}", expiry=1)
    return Offered(record, bid, {FUEL: 5})


def test_one_node_that_refuses_does_not_keep_others_from_being_measured() -> None:
    good, bad = Address(b"g" * 20), Address(b"b" * 20)
    client = FakeClient({good: FakeNode(SECOND)})
    found = asyncio.run(measure_offers(client, [offer(bad, 3600), offer(good, 3600)], rerun))
    assert found[bad] == "no lease"
    assert [figure.name for figure in found[good]] == [plan.property for plan in PLANS.values()]
    assert client.amounts == [sum(-(-2 * plan.most // 10**9) for plan in PLANS.values())] * 2


def test_a_real_node_is_measured_by_orders_and_checked_at_home(tmp_path: Path, monkeypatch: Any) -> None:
    """Over HTTP, with the executor that nodes have; the check is run by another of the client's own."""
    monkeypatch.setattr(provided, "Echo", lambda: WasmExecutor(tmp_path / "node", 1))

    async def body() -> None:
        own = WasmExecutor(tmp_path / "own", 1)
        folders = (tmp_path / f"check-{number}" for number in range(9))
        async with (
            world(tmp_path / "net", nodes=0) as net,
            provided.real_node(net) as real,
            compute_client(net, [real]) as client,
        ):
            await until(lambda: real.provider._executors.properties().get("executor.wasm") is True)  # it has probed
            (offered,) = (await client.survey(request_of(client, engine=ENGINE))).bids
            found = await measure_offers(client, [offered], lambda one: run_benchmark(own, one, next(folders)))
        await own.stop()
        figures = found[real.key.address]
        assert not isinstance(figures, str), figures
        assert [(figure.name, figure.reason) for figure in figures] == [(plan.property, "") for plan in PLANS.values()]
        assert all(figure.measured > 0 and figure.receipt is not None for figure in figures)

    asyncio.run(body())
