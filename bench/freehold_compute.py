"""Freehold's side of `make bench NAME=compute`: a client of a local network (chain, 4 members, 8 nodes) beside it.

warm      one small job after the other on a standing lease, from the order to the checked receipt and its output
sleeping  COUNT jobs that sleep for SLEEP seconds, two at once at each of eight nodes: what is left is overhead
map       COUNT small Python functions, a task each, as a user writes it (`freehold.job`): without assurance, and with

python -m bench.freehold_compute HOME      prints one JSON object
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from wasmtime import wat2wasm

from bench.pool_map import count_primes
from bench.wasm import NOTHING
from freehold import job
from freehold.client.account import Wallets
from freehold.client.sdk import Freehold
from freehold.local.accounts import PASSPHRASE
from freehold.market.network import Network
from freehold.protocol.errors import FreeholdError
from freehold.protocol.units import ONE
from freehold.services.compute.bidding import BidRequest
from freehold.services.compute.client import ComputeNode
from freehold.services.compute.executors.wasm_terms import ENGINE
from freehold.services.compute.tasks import Blob, Task
from freehold.services.compute.toolchain import python_runner

CREDITS_SECONDS = 120.0
WARM_RUNS = 300
SLEEPS, SLEEP, AT_ONCE, NODES = 1000, 0.2, 2, 8
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
                break
            await asyncio.sleep(0.5)
    nodes, failures = await client.compute.sessions([(bid, 50 * ONE) for bid in found.bids[:count]])
    if failures:
        raise next(iter(failures.values()))
    return nodes


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


async def measure_warm(client: Freehold, runner: Path) -> dict[str, float]:
    """Milliseconds of a job of each kind on a standing lease."""
    engine, nothing = await asyncio.to_thread(runner.read_bytes), bytes(wat2wasm(NOTHING))
    script = Task(
        executor="wasm",
        kind="python",
        engine=f"python:{blob(engine).sha256}",
        program=blob(SCRIPT),
        arguments=("1000",),
    )
    module = Task(executor="wasm", kind="module", engine=ENGINE, program=blob(nothing))
    found: dict[str, float] = {}
    for name, task, data in (
        ("script", script, {blob(SCRIPT).sha256: SCRIPT, blob(engine).sha256: engine}),
        ("module", module, {blob(nothing).sha256: nothing}),
    ):
        (node,) = await find(client, task, 1, MOST)
        for _ in range(5):
            await run(client, node, task, data)
        times = []
        for _ in range(WARM_RUNS):
            began = time.perf_counter()
            await run(client, node, task, data)
            times.append(1000 * (time.perf_counter() - began))
        cuts = statistics.quantiles(times, n=100)
        found |= {f"warm_{name}_p50_ms": cuts[49], f"warm_{name}_p99_ms": cuts[98]}
    return found


async def measure_sleeping(client: Freehold) -> dict[str, float]:
    """How long SLEEPS jobs take that do nothing; none where no node has a sandbox."""
    task = Task(executor="sandbox", kind="native", arguments=("sleep", str(SLEEP)))
    most = 10 * 10**9
    try:
        nodes = await find(client, task, NODES, most)
    except (TimeoutError, FreeholdError) as error:
        print(f"no sandbox at {NODES} nodes: {error!r}", file=sys.stderr)
        return {}
    left = iter(range(SLEEPS))

    async def work(node: ComputeNode) -> None:
        for _ in left:
            await run(client, node, task, {}, most)

    await asyncio.gather(*(run(client, node, task, {}, most) for node in nodes))
    began = time.perf_counter()
    await asyncio.gather(*(work(node) for node in nodes for _ in range(AT_ONCE)))
    return {"sleeping_seconds": time.perf_counter() - began}


async def measure_map(client: Freehold) -> dict[str, float]:
    """Seconds for MAPPED small functions: a task each, in `job.map`'s own batches, and these with assurance."""
    items = [LIMIT + i % 7 for i in range(MAPPED)]
    await job.map(client, count_primes, items[:32], each=1, most=50 * ONE)  # leases, and the interpreter at the nodes
    found, sums = {}, set()
    for name, each, assurance in (("each", 1, None), ("batched", 0, None), ("batched_assured", 0, "0.99")):
        began = time.perf_counter()
        results = await job.map(client, count_primes, items, each=each, most=500 * ONE, assurance=assurance)
        found[f"map_{name}_seconds"] = time.perf_counter() - began
        sums.add(sum(results))
    if len(sums) != 1:
        raise RuntimeError(f"the same map came to different sums: {sums}")
    return found | {"map_sum": float(sums.pop())}


async def measure(home: Path) -> dict[str, float]:
    runner = await asyncio.to_thread(python_runner, home / "tools")
    async with connected(home) as client:
        found = await measure_warm(client, runner)
        found |= await measure_sleeping(client)
        found |= await measure_map(client)
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(Path(sys.argv[1])))), flush=True)
