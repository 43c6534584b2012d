"""The client before the real provider, over HTTP: the two halves agree on every shape. What runs is an echo."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from freehold.market.membership import Membership
from freehold.net.auth import Guard
from freehold.net.server import make_app, serve
from freehold.node.api import Api
from freehold.node.book import MIGRATIONS, Book
from freehold.node.offers import Offers
from freehold.protocol.errors import NotFound
from freehold.protocol.state import NodeRecord
from freehold.protocol.units import ONE, Address
from freehold.services.compute.client import ComputeClient, ComputeNode
from freehold.services.compute.executors.seam import Capability, Outcome, Work
from freehold.services.compute.provider import ComputeProvider
from freehold.services.compute.tasks import Input, Task
from freehold.services.seam import Prices, ProviderContext
from freehold.store.blobs import Blobs
from freehold.store.sql import Database
from tests.client.world import DOMAIN, World, key, parameters, world
from tests.services.compute.client_world import PRICE, SECOND, blob, compute_client, make_task
from tests.services.compute.test_client import bids
from tests.services.sensing_world import no_fleets

PROGRAM = b"program"


class Echo:
    """Writes its program to its standard output and log, and a copy of each input; "wait" goes on until it is ended."""

    name = "wasm"

    def __init__(self) -> None:
        self._ends: dict[Path, asyncio.Event] = {}

    async def probe(self) -> Capability:
        return Capability(True, "", {"executor.wasm.engine": "wasmtime-test"})

    async def run(self, work: Work) -> Outcome:
        assert work.program is not None
        program = work.program.read_bytes()
        work.log(b"log of " + program)
        for path in (work.folder / "in").iterdir():
            (work.folder / "out" / path.name).write_bytes(path.read_bytes())
        if work.task.arguments == ("wait",):
            ended = self._ends[work.folder] = asyncio.Event()
            await ended.wait()
            return Outcome("stopped", 0, b"", 7, "it was asked to end")
        states = tuple(program + b"%d" % step for step in range(work.task.steps))
        return Outcome("exited", 0, states[-1] if states else program, SECOND // 100, states=states)

    def measure(self, folder: Path) -> int:
        return 1

    def end(self, folder: Path) -> None:
        if folder in self._ends:
            self._ends[folder].set()

    async def stop(self) -> None:
        pass


class RealNode:
    """A node with the real provider, and no epochs."""

    def __init__(self, net: World) -> None:
        self.key = key("real")
        self._folder = net.folder / "real"
        self._members = [member.address for member in net.network.members]

    async def start(self) -> None:
        folder, clock = self._folder, lambda: int(time.time())
        folder.mkdir(parents=True, exist_ok=True)
        self._database = Database(folder / "node.sqlite", MIGRATIONS)
        book, guard = Book(self._database, DOMAIN), Guard(self.key.address, DOMAIN, time.time)
        (folder / "scratch").mkdir(exist_ok=True)
        prices = Prices(PRICE, PRICE)
        self.provider = ComputeProvider(
            ProviderContext(
                key=self.key, domain=DOMAIN, parameters=parameters(), leases=book,
                files=Blobs(folder / "blobs", 1 << 30),
                open_sql=lambda migrations: Database(folder / "compute.sqlite", migrations),
                authenticate=guard.check_from, find_fleet=no_fleets, members_of=lambda _: self._members, clock=clock,
                settings={"executors": ["wasm"], "benchmark": False}, prices=prices, place="",
                folder=str(folder / "scratch"), find_peer=self._find_peer,
            ),
            lambda settings, _: [Echo()],
        )  # fmt: skip
        await self.provider.start()
        providers: Any = {"compute": self.provider}
        offers = Offers(self.key, DOMAIN, "", {"compute": prices}, providers, clock)
        api = Api(self.key, DOMAIN, Membership(self._members).of, book, offers, providers, clock)
        app = make_app(api.routes(), ready=lambda: (True, ""), metrics=lambda: "")
        self.server = await serve(app, "127.0.0.1", 0)
        offers.endpoint = self.server.url

    async def _find_peer(self, node: Address) -> Any:
        raise NotFound("there is no other node")

    async def stop(self) -> None:
        await self.server.stop()
        await self.provider.stop()
        self._database.close()

    def record(self) -> NodeRecord:
        own = self.key.address
        return NodeRecord(node=own, operator=own, payout=own, endpoint=self.server.url, bond=ONE)


@asynccontextmanager
async def real_node(net: World) -> AsyncIterator[RealNode]:
    node = RealNode(net)
    await node.start()
    try:
        yield node
    finally:
        await node.stop()


async def use(client: ComputeClient, node: ComputeNode, folder: Path) -> None:
    """Everything that a client asks of one node."""
    until = await client.until(60)
    free = node.free

    # One request; the same order again is the same job.
    task, blobs = make_task(PROGRAM), {blob(PROGRAM).sha256: PROGRAM}
    order = node.order(task, SECOND, until)
    first = await node.submit(order, task, blobs, wait=10)
    assert (first.is_over, first.task) == (True, task.hash())
    assert first.outcome is not None
    assert first.inline[first.outcome.stdout.sha256] == PROGRAM
    assert await node.submit(order, task, blobs, wait=10) == first
    assert await node.wait(first.job, 0) == first
    assert node.free == free - ONE // 100

    # A large input is pushed, comes out, and is fetched; steps have their states.
    large = bytes(range(256)) * 2000
    (folder / "large").write_bytes(large)
    task = make_task(PROGRAM, inputs=(Input("large", blob(large)),), steps=3)
    sources = blobs | {blob(large).sha256: folder / "large"}
    second = await node.submit(node.order(task, SECOND, until), task, sources, wait=10)
    assert second.outcome is not None
    assert [file.sha256 for file in second.outcome.files] == [blob(large).sha256]
    assert [step.hex() for step in second.steps] == [blob(PROGRAM + b"%d" % i).sha256 for i in range(3)]
    assert await node.fetch(second.job, second.steps[0].hex()) == PROGRAM + b"0"
    await node.fetch_to(second.job, blob(large).sha256, folder / "back")
    assert (folder / "back").read_bytes() == large

    # One that goes on is seen, followed and stopped.
    task = make_task(PROGRAM, arguments=("wait",))
    running = await node.submit(node.order(task, SECOND, until), task, blobs)
    assert not running.is_over
    got = bytearray()
    stopping: asyncio.Task[Any] | None = None
    async for piece in node.follow(running.job):
        got += piece
        stopping = stopping or asyncio.create_task(node.stop(running.job))
    assert got == b"log of " + PROGRAM
    assert stopping is not None
    stopped = await stopping
    assert stopped.is_over
    assert stopped.outcome is not None
    assert (stopped.outcome.ended, stopped.measure) == ("stopped", 7)
    assert await node.log(running.job, 4) == (got[4:], True)

    assert [standing.job for standing in await node.jobs()] == [first.job, second.job, running.job]
    assert {kept.receipt.order().struct_hash() for kept in await client.receipts()} == {
        first.job, second.job, running.job,
    }  # fmt: skip


def test_the_client_works_with_the_provider(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path / "net", nodes=0) as net, real_node(net) as real:
            async with compute_client(net, [real]) as client:
                node = await client.session((await bids(client))[0], 5 * ONE)
                await use(client, node, tmp_path)
            async with compute_client(net, [real], home="another device") as client:
                again = await client.session((await bids(client))[0], 2 * ONE)
                assert again.lease == node.lease
                assert again.funds.used == 2 * ONE // 100 + 7 * PRICE // (3600 * 10**9)
                task = Task(**{f: getattr(make_task(PROGRAM), f) for f in Task.__struct_fields__})
                missing = node.free // ONE * SECOND  # more than its lock covers: more is locked, and it is taken
                order = again.order(task, max(missing, 20 * SECOND), await client.until(60))
                assert (await again.submit(order, task, {blob(PROGRAM).sha256: PROGRAM}, wait=10)).is_over

    asyncio.run(body())
