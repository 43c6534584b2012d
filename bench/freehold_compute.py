"""Freehold's side of `make bench NAME=compute`: a client of a local network (chain, 4 members, 8 nodes) beside it.

warm      one small job after the other on a standing lease, from the order to the checked receipt and its output
sleeping  COUNT jobs that sleep for SLEEP seconds, two at once at each of eight nodes, which have their next orders
          beforehand: what is left is overhead. And what a job costs in processor time, by process
map       COUNT small Python functions, a task each, as a user writes it (`freehold.job`): without assurance, and with

python -m bench.freehold_compute HOME      prints a JSON object a part, as it ends: its "part", and "found" or "failed"
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from wasmtime import wat2wasm

from bench.pool_map import count_primes
from bench.wasm import NOTHING
from freehold import job
from freehold.client.account import Wallets
from freehold.client.sdk import Freehold
from freehold.local.accounts import PASSPHRASE
from freehold.market.network import Network
from freehold.protocol.units import ONE
from freehold.services.compute.bidding import BidRequest
from freehold.services.compute.client import ComputeNode
from freehold.services.compute.executors.wasm_terms import ENGINE
from freehold.services.compute.tasks import Blob, Task, name_runner
from freehold.services.compute.toolchain import python_runner

CREDITS_SECONDS = 60.0
PART_SECONDS = 120.0  # after which a part has failed, and the next one begins
REASON = 500  # letters of why a part failed
WARM_RUNS = 300
SLEEPS, SLEEP, AT_ONCE, NODES = 1000, 0.2, 2, 8
ORDERED = 2 * AT_ONCE  # orders that a node has at a time: it runs two, and two are ready
MAPPED, LIMIT = 1000, 2000  # as bench/pool_map.py
MOST = 10**11  # a hundred seconds of a processor
SCRIPT = b"import sys\nprint(sum(range(int(sys.argv[1]))))\n"


def blob(data: bytes) -> Blob:
    return Blob(hashlib.sha256(data).hexdigest(), len(data))


@asynccontextmanager
async def connected(home: Path) -> AsyncIterator[Freehold]:
    """The client of the network at `home`, once it has credits."""
    local = home / "local"
    account = Wallets(local).open("client", PASSPHRASE)
    async with Freehold(Network.load(local / "network.json"), account, home=local) as client:
        async with asyncio.timeout(CREDITS_SECONDS):
            while (await client.credits()).free <= 0:  # noqa: ASYNC110 - other processes cause it
                await asyncio.sleep(0.2)
        yield client


async def find(client: Freehold, task: Task, count: int, most: int) -> list[ComputeNode]:
    """Sessions with `count` nodes for such tasks."""
    request = BidRequest(
        client=str(client.account.address), executor=task.executor, kind=task.kind, engine=task.engine,
        resources=task.resources, most=most,
    )  # fmt: skip
    async with asyncio.timeout(CREDITS_SECONDS):
        while True:
            found = await client.compute.survey(request)
            if len(found.bids) >= count:
                nodes, failures = await client.compute.sessions([(bid, 50 * ONE) for bid in found.bids[:count]])
                if not failures:
                    return nodes
            await asyncio.sleep(0.5)


async def run(client: Freehold, node: ComputeNode, task: Task, blobs: dict[str, bytes], most: int = MOST) -> bytes:
    """One task, from the order to its output."""
    order = node.order(task, most, await client.compute.until(60))
    standing = await node.submit(order, task, blobs, wait=60)
    while standing.phase != "finished":
        standing = await node.wait(order.struct_hash(), 60)
    outcome = standing.outcome
    if outcome is None or outcome.ended != "exited" or outcome.status:
        raise RuntimeError(f"the job ended as {outcome}")
    return standing.inline.get(outcome.stdout.sha256, b"")


async def measure_script(client: Freehold, home: Path) -> dict[str, float]:
    """Milliseconds of a Python script on a standing lease."""
    runner = await asyncio.to_thread(python_runner, home / "tools")
    interpreter = await asyncio.to_thread(runner.read_bytes)
    script = Task(
        executor="wasm",
        kind="python",
        engine=name_runner(blob(interpreter).sha256, ENGINE),
        program=blob(SCRIPT),
        arguments=("1000",),
    )
    data = {blob(SCRIPT).sha256: SCRIPT, blob(interpreter).sha256: interpreter}
    return await measure_warm(client, "script", script, data)


async def measure_module(client: Freehold, _: Path) -> dict[str, float]:
    """The same of a module that does nothing."""
    nothing = bytes(wat2wasm(NOTHING))
    module = Task(executor="wasm", kind="module", engine=ENGINE, program=blob(nothing))
    return await measure_warm(client, "module", module, {blob(nothing).sha256: nothing})


async def measure_warm(client: Freehold, name: str, task: Task, data: dict[str, bytes]) -> dict[str, float]:
    (node,) = await find(client, task, 1, MOST)
    for _ in range(5):
        await run(client, node, task, data)
    times = []
    for _ in range(WARM_RUNS):
        began = time.perf_counter()
        await run(client, node, task, data)
        times.append(1000 * (time.perf_counter() - began))
    cuts = statistics.quantiles(times, n=100)
    return {f"warm_{name}_p50_ms": cuts[49], f"warm_{name}_p99_ms": cuts[98]}


class Spent(NamedTuple):
    """Processor seconds so far: of this client, of the nodes' processes, and of what these have run and waited for."""

    client: float
    node: float
    sandbox: float

    @staticmethod
    def now(home: Path) -> Spent:
        own = resource.getrusage(resource.RUSAGE_SELF)
        tick, node, children = os.sysconf("SC_CLK_TCK"), 0, 0
        for file in sorted((home / "local" / "logs").glob("operator-*.pid")):
            pid = json.loads(file.read_text())["pid"]
            words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            node += int(words[11]) + int(words[12])
            children += int(words[13]) + int(words[14])
        return Spent(own.ru_utime + own.ru_stime, node / tick, children / tick)


async def measure_sleeping(client: Freehold, home: Path) -> dict[str, float]:
    """How long SLEEPS jobs take that do nothing, and what they cost."""
    task = Task(executor="sandbox", kind="native", arguments=("sleep", str(SLEEP)))
    most = 10 * 10**9
    nodes = await find(client, task, NODES, most)
    left = iter(range(SLEEPS))

    async def work(node: ComputeNode) -> None:
        for _ in left:
            await run(client, node, task, {}, most)

    await asyncio.gather(*(run(client, node, task, {}, most) for node in nodes))
    spent, began = Spent.now(home), time.perf_counter()
    await asyncio.gather(*(work(node) for node in nodes for _ in range(ORDERED)))
    seconds, after = time.perf_counter() - began, Spent.now(home)
    costs = {
        f"sleeping_{name}_cpu_ms": 1000 * (two - one) / SLEEPS
        for name, one, two in zip(Spent._fields, spent, after, strict=True)
    }
    slot = 1000 * (seconds * NODES * AT_ONCE / SLEEPS - SLEEP)
    return {"sleeping_seconds": seconds, "sleeping_slot_gap_ms": slot} | costs


async def prepare_map(client: Freehold, _: Path) -> dict[str, float]:
    """Leases, and the interpreter at the nodes."""
    await job.map(client, count_primes, get_items()[:32], each=1, most=50 * ONE)
    return {}


def measure_map(name: str, each: int, assurance: str = "0") -> Callable[[Freehold, Path], Awaitable[dict[str, float]]]:
    """Seconds for MAPPED small functions, `each` a task (0: `job.map`'s own batches)."""

    async def measure(client: Freehold, _: Path) -> dict[str, float]:
        began = time.perf_counter()
        results = await job.map(client, count_primes, get_items(), each=each, most=500 * ONE, assurance=assurance)
        return {f"map_{name}_seconds": time.perf_counter() - began, f"map_{name}_sum": float(sum(results))}

    return measure


def get_items() -> list[int]:
    return [LIMIT + i % 7 for i in range(MAPPED)]


PARTS: dict[str, Callable[[Freehold, Path], Awaitable[dict[str, float]]]] = {
    "warm_module": measure_module,
    "sleeping": measure_sleeping,
    "warm_script": measure_script,
    "map": prepare_map,
    "map_batched": measure_map("batched", 0),
    "map_batched_assured": measure_map("batched_assured", 0, "0.99"),
    "map_each": measure_map("each", 1),
}


async def measure(home: Path) -> None:
    async with connected(home) as client:
        for name, part in PARTS.items():
            try:
                async with asyncio.timeout(PART_SECONDS):
                    said = {"part": name, "found": await part(client, home)}
            except Exception as error:  # whatever it is, the other parts are still to be had
                said = {"part": name, "failed": repr(error)[:REASON]}
            print(json.dumps(said), flush=True)


if __name__ == "__main__":
    asyncio.run(measure(Path(sys.argv[1])))
