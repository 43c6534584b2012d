"""A client measures a node: seeded benchmarks as ordinary orders, timed by its own clock, and one segment checked.

What came of it is a Figure for each: advertised and measured, side by side. `Speeds` keeps what was measured and gives
the speed that a node is ranked by. The seed is drawn from the node's signed bid (`benchmarks.draw_seed`), the segment
that is checked when the result is in; the check runs elsewhere: at another node (`run_at`), or in an executor of the
client's own (`benchmarks.run_benchmark`).

Invariant: a figure counts only if the checked segment came out the same elsewhere; what failed that is a speed of zero.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from freehold.protocol.errors import Corrupt, FreeholdError, Unavailable
from freehold.protocol.units import Address, Hash
from freehold.services.compute.benchmarks import (
    PLANS,
    Benchmark,
    Measured,
    add_measurement,
    benchmark_tasks,
    draw_seed,
    get_check,
    get_deviation,
    get_selection_speed,
    get_warmup,
    judge_benchmark,
)
from freehold.services.compute.bidding import MEASURED
from freehold.services.compute.ordering.checks import Standing, most_cost
from freehold.services.compute.ordering.survey import Offered
from freehold.services.compute.tasks import Task
from freehold.services.compute.terms import Order, Receipt

PATIENCE = 60  # seconds that one run is waited for
PINGS = 3  # of which the quickest is the round trip


class Node(Protocol):
    """What is needed of a session with a node (`client_node.ComputeNode`)."""

    def order(self, task: Task, most: int, until: int) -> Order: ...

    async def submit(
        self, order: Order, task: Task, blobs: Mapping[str, bytes], access: Mapping[str, Any] | None, wait: float
    ) -> Standing: ...

    async def wait(self, job: Hash, seconds: float, task: Task | None = None) -> Standing: ...


class Means(NamedTuple):
    """`until` is the orders' last epoch, `clock` gives nanoseconds, `chance` random bytes, and `rerun` the standard
    output of a benchmark that is run somewhere else."""

    until: int
    clock: Callable[[], int]
    chance: Callable[[], bytes]
    rerun: Callable[[Benchmark], Awaitable[bytes]]


class Figure(NamedTuple):
    """One thing about a node, by its property's name and in that unit: what the node advertises (0: nothing), and what
    was measured (0 where `reason` says why it does not count). `receipt` is the node's own, to be disputed where the
    check failed."""

    name: str
    advertised: int
    measured: int
    reason: str
    receipt: Receipt | None

    @property
    def deviation(self) -> int:
        """Basis points by which it falls short."""
        return get_deviation(self.advertised, self.measured)


async def measure_node(
    node: Node, properties: Mapping[str, Any], seed: Hash, means: Means, names: Sequence[str] = tuple(PLANS)
) -> list[Figure]:
    """Measure it, one benchmark after another. FreeholdError where it cannot be asked; what it does wrong is in the
    figures."""
    engine = str(properties.get("executor.wasm.engine", ""))
    figures = []
    for benchmark in benchmark_tasks(seed, engine, names):
        await run_at(node, get_warmup(benchmark.name, seed, engine), means)  # it compiles the program, and wakes up
        began = means.clock()
        standing = await run_at(node, benchmark, means)
        elapsed = means.clock() - began
        round_trip = await _ping(node, standing, means)
        stdout = get_stdout(standing)
        reason, rate = judge_benchmark(benchmark.name, stdout, elapsed, round_trip)
        if not reason:
            check = get_check(benchmark.name, seed, engine, stdout, means.chance())
            if await means.rerun(check.benchmark) != check.expected:
                reason, rate = f"segment {check.segment} of {benchmark.name!r} came out otherwise elsewhere", 0
        name = PLANS[benchmark.name].property
        figures.append(Figure(name, get_advertised(properties, name), rate, reason, standing.receipt))
    return figures


def get_advertised(properties: Mapping[str, Any], name: str) -> int:
    """A figure that a node states of itself; 0 where it states none that can be."""
    value = properties.get(name)
    return value if type(value) is int and value > 0 else 0


async def run_at(node: Node, benchmark: Benchmark, means: Means) -> Standing:
    """Order it, and wait for its end. Unavailable where that does not come."""
    order = node.order(benchmark.task, benchmark.most, means.until)
    standing = await node.submit(order, benchmark.task, benchmark.blobs, None, PATIENCE)
    began = means.clock()
    while not standing.is_over and means.clock() - began < PATIENCE * 10**9:
        standing = await node.wait(order.struct_hash(), PATIENCE, benchmark.task)
    if not standing.is_over:
        raise Unavailable(f"the benchmark {benchmark.name!r} did not end within {PATIENCE} s")
    return standing


def get_stdout(standing: Standing) -> bytes:
    """What a short run wrote; empty where it did not exit well. Corrupt where the bytes did not come along."""
    result = standing.outcome
    if result is None or (result.ended, result.status) != ("exited", 0):
        return b""
    stdout = standing.inline.get(result.stdout.sha256, b"")
    if hashlib.sha256(stdout).hexdigest() != result.stdout.sha256:
        raise Corrupt("the standard output of a benchmark is not what its result names")
    return stdout


async def _ping(node: Node, standing: Standing, means: Means) -> int:
    """Nanoseconds of the quickest of a few requests that ask for nothing new."""
    found = []
    for _ in range(PINGS):
        began = means.clock()
        await node.wait(standing.job, 0)
        found.append(means.clock() - began)
    return min(found)


class Speeds(msgspec.Struct):
    """What this client has measured, by node and property; kept as JSON."""

    rates: dict[str, dict[str, Measured]] = {}

    def add(self, node: Address, figure: Figure, now: int) -> None:
        """Take one more figure; one that does not count makes the node start again from zero."""
        known = self.rates.setdefault(str(node), {})
        before = known.get(figure.name) if not figure.reason else None
        known[figure.name] = add_measurement(before, figure.measured, now)

    def speed(self, node: Address, name: str, advertised: int) -> int:
        """What the node is ranked by, for this property: `market/matching.py`'s Rated.speed."""
        fastest = max((one[name].rate for one in self.rates.values() if name in one), default=0)
        return get_selection_speed(advertised, self.rates.get(str(node), {}).get(name), fastest)

    def properties(self, node: Address) -> dict[str, int]:
        """What the client adds to the node's own properties."""
        return {MEASURED + name: one.rate for name, one in self.rates.get(str(node), {}).items()}


def most_to_measure(price: int) -> int:
    """Credits (base units) that measuring a node at this price costs at most: each benchmark runs twice."""
    return sum(most_cost(2 * plan.most, price) for plan in PLANS.values())


class Client(Protocol):
    """What is needed of a client of compute (`client.ComputeClient`)."""

    async def session(self, offered: Offered, amount: int) -> Node: ...

    async def until(self, seconds: float) -> int: ...


async def measure_offers(
    client: Client, offers: Iterable[Offered], rerun: Callable[[Benchmark], Awaitable[bytes]]
) -> dict[Address, list[Figure] | str]:
    """Measure every node that bids, one after another: figures, or why there are none. It is paid for as jobs are."""
    found: dict[Address, list[Figure] | str] = {}
    for offered in offers:
        try:
            node = await client.session(offered, most_to_measure(offered.price))
            means = Means(await client.until(PATIENCE), time.monotonic_ns, lambda: secrets.token_bytes(32), rerun)
            seed = draw_seed(offered.bid, means.chance())
            found[offered.node] = await measure_node(node, offered.properties, seed, means)
        except FreeholdError as error:
            found[offered.node] = error.message
    return found
