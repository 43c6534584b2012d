"""Nodes that speak compute's HTTP as it is agreed, run nothing, and lie as they are told; and a client before them.

A task's "program" is its bytes: what comes out is these bytes on standard output, and a file of each input. Leases,
reservations and locks are the real ones (`node/api.py` over `node/book.py`), and so are the members' certificates.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from freehold.client.account import get_account_dir
from freehold.client.book import Book as ClientBook
from freehold.market.leases import Leases
from freehold.market.membership import Membership
from freehold.market.quorum import Quorum
from freehold.market.vouchers import Vouchers
from freehold.net.auth import Guard
from freehold.net.client import Dial
from freehold.net.server import make_app, ok, read_body, serve
from freehold.net.tls import ensure_certificate
from freehold.node.api import Api
from freehold.node.book import MIGRATIONS, Book
from freehold.node.offers import Offers
from freehold.protocol.errors import Conflict, InsufficientCredits, NotFound, Refused
from freehold.protocol.keys import is_signed_by
from freehold.protocol.merkle import row_root
from freehold.protocol.messages import Lease
from freehold.protocol.state import NodeRecord
from freehold.protocol.typed import keccak, parse_json
from freehold.protocol.units import ONE, UNSIGNED, ZERO_HASH, Address, Hash
from freehold.services.compute.bidding import (
    Load,
    NodeTerms,
    Pricing,
    judge_request,
    make_bid,
    parse,
    parse_request,
)
from freehold.services.compute.client import ComputeClient, Context
from freehold.services.compute.ordering.checks import most_cost
from freehold.services.compute.tasks import Blob, OutputFile, Result, Task, decode_task, input_root, state_leaf
from freehold.services.compute.terms import NO_STEPS, Order, Receipt
from freehold.services.seam import Prices
from freehold.store.sql import Database
from tests.client.world import DOMAIN, World, key

PRICE = 3600 * ONE  # a credit a second
SECOND = 10**9
MEASURE = SECOND // 10
PROPERTIES = {
    "executor.wasm": True,
    "executor.wasm.engine": "wasmtime-test",
    "cpu.cores": 4,
    "memory.bytes": 2**34,
    "disk.bytes": 2**36,
    "network": False,
    "place": "",
}


def blob(data: bytes) -> Blob:
    return Blob(sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def make_task(program: bytes = b"program", **changes: Any) -> Task:
    return Task(
        **({"executor": "wasm", "kind": "module", "engine": "wasmtime-test", "program": blob(program)} | changes)
    )


class FakeNode:
    """`lie` changes a standing before it is sent; `seen` are requests, by method and path after the lease."""

    is_leased = True

    def __init__(self, number: int, folder: Path, members: Sequence[Any]) -> None:
        self.key = key("compute", number)
        self.operator = key("operator", 50 + number).address
        self.price = PRICE
        self.agreed: dict[int, None] = {}
        self.seen: list[str] = []
        self.blobs: dict[str, bytes] = {}
        self.orders: dict[Hash, tuple[Order, Task]] = {}
        self.standings: dict[Hash, dict[str, Any]] = {}
        self.receipts: dict[Hash, Receipt] = {}
        self.lie: Callable[[dict[str, Any], Receipt], None] | None = None
        self.resign = True  # what a lie left of the receipt is signed
        self.drop = 0  # connections to drop once an order was taken
        self.drop_before = 0  # and before it was
        self.fail_with: Exception | None = None
        self.hold: asyncio.Event | None = None  # jobs run until it is set
        self.log = b""
        self.logs: asyncio.Condition = asyncio.Condition()
        self.log_start = 0
        self.log_over = True
        self.silent = False
        self.forget_outstanding = False
        self.tls = False
        self.signing: asyncio.Event | None = None  # leases are signed once it is set
        self._members = [m.address for m in members]
        self._folder = folder

    async def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._database = Database(self._folder / "node.sqlite", MIGRATIONS)
        self.book = Book(self._database, DOMAIN)
        self.guard = Guard(self.key.address, DOMAIN, time.time)
        clock = lambda: int(time.time())  # noqa: E731
        providers: Any = {"compute": self}
        self.offers = Offers(self.key, DOMAIN, "", {"compute": Prices(PRICE, PRICE)}, providers, clock)
        api = Api(self.key, DOMAIN, Membership(self._members).of, self.book, self.offers, providers, clock)
        app = make_app(api.routes(), ready=lambda: (True, ""), metrics=lambda: "", limit=300 << 20)
        app.middlewares.append(self._slow)
        certificate = ensure_certificate(self._folder / "tls") if self.tls else None
        self.server = await serve(app, "127.0.0.1", 0, tls=certificate)
        self.offers.endpoint, self.offers.fingerprint = self.server.url, self.server.fingerprint

    async def stop(self) -> None:
        await self.server.stop()
        self._database.close()

    def record(self) -> NodeRecord:
        return NodeRecord(
            node=self.key.address, operator=self.operator, payout=self.operator, endpoint=self.server.url, bond=ONE
        )

    @web.middleware
    async def _slow(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.signing is not None and request.path == "/v1/leases":
            await self.signing.wait()
        response: web.StreamResponse = await handler(request)
        return response

    # What the node's API asks of a provider

    def capacity(self) -> int:
        return 1

    def agreed_price(self, lease: Lease) -> int | None:
        return lease.price if lease.price in self.agreed else None

    async def describe(self, lease: Hash) -> Mapping[str, Any]:
        if self.forget_outstanding:
            return {}
        return {"outstanding": str(await self.outstanding(lease))}

    async def outstanding(self, lease: Hash) -> int:
        price = (await self.book.find(lease)).lease.price
        bound = 0
        for job, (order, _) in self.orders.items():
            if order.lease == lease:
                receipt = self.receipts.get(job)
                bound += receipt.measure if receipt else order.most
        return most_cost(bound, price)

    def routes(self) -> list[web.RouteDef]:
        base = "/v1/compute"
        return [
            web.put(base + "/{lease}/blobs/{sha256}", self._signed(self._put_blob)),
            web.head(base + "/{lease}/blobs/{sha256}", self._signed(self._get_blob)),
            web.get(base + "/{lease}/blobs/{sha256}", self._signed(self._get_blob), allow_head=False),
            web.post(base + "/{lease}/orders", self._post_order),
            web.get(base + "/{lease}/orders", self._signed(self._list)),
            web.get(base + "/{lease}/orders/{job}", self._signed(self._show)),
            web.delete(base + "/{lease}/orders/{job}", self._signed(self._stop)),
            web.get(base + "/{lease}/orders/{job}/log", self._signed(self._log)),
            web.post(base + "/bids", self._bid),
        ]

    def _signed(self, handler: Callable[[web.Request], Any]) -> Callable[[web.Request], Any]:
        async def check(request: web.Request) -> Any:
            await self._authenticate(request, ZERO_HASH)
            return await handler(request)

        return check

    async def _authenticate(self, request: web.Request, body: Hash) -> Lease:
        self.seen.append(f"{request.method} {request.path.split('/', 4)[-1]}")
        lease = (await self.book.find(Hash(request.match_info["lease"]))).lease
        self.guard.check_from(lease.client, request.headers, request.method, request.raw_path, body)
        if self.silent:
            await asyncio.Event().wait()
        if self.fail_with is not None:
            raise self.fail_with
        return lease

    async def _put_blob(self, request: web.Request) -> web.Response:
        data = await read_body(request, 256 << 20)
        if hashlib.sha256(data).hexdigest() != request.match_info["sha256"]:
            raise Refused("another blob")
        self.blobs[request.match_info["sha256"]] = data
        return ok({}, 201)

    async def _get_blob(self, request: web.Request) -> web.Response:
        data = self.blobs.get(request.match_info["sha256"])
        if data is None:
            raise NotFound("no such blob")
        return web.Response(body=data)

    async def _bid(self, request: web.Request) -> web.Response:
        raw = await read_body(request, 1 << 20)
        value = parse_json(raw)
        asked = parse_request(value["request"])
        self.guard.check_from(Address(value["client"]), request.headers, "POST", request.raw_path, keccak(raw))
        if self.silent:
            await asyncio.Event().wait()
        terms = NodeTerms("node", PROPERTIES, parse(""), self.price, Pricing(), Load(1, 0, 0))
        answer = judge_request(asked, terms)
        if answer.price is None:
            raise Refused("; ".join(answer.reasons), reasons=list(answer.reasons))
        self.agreed[answer.price] = None
        return ok({"bid": make_bid(asked, answer.price, terms, int(time.time()), self.key, DOMAIN).to_json()})

    async def _post_order(self, request: web.Request) -> web.StreamResponse:
        raw = await read_body(request, 8 << 20)
        lease = await self._authenticate(request, keccak(raw))
        if self.drop_before:
            self.drop_before -= 1
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        body = parse_json(raw)
        order, task = Order.from_json(body["order"]), decode_task(body["task"].encode())
        job = order.struct_hash()
        assert is_signed_by(order, order.client_signature, lease.client, DOMAIN)
        assert order.task == task.hash()
        for name, text in body.get("blobs", {}).items():
            data = b64decode(text)
            assert hashlib.sha256(data).hexdigest() == name
            self.blobs[name] = data
        named = [task.program, task.stdin, *(one.blob for one in task.inputs)]
        missing = sorted({one.sha256 for one in named if one is not None and one.sha256 not in self.blobs})
        if missing:
            raise Conflict("blobs are missing", missing=missing)
        if job not in self.orders:
            await self._check_credits(order)
            self.orders[job] = order, task
        if self.drop:
            self.drop -= 1
            assert request.transport is not None
            request.transport.abort()
        return await self._answer(job, body["wait"])

    async def _check_credits(self, order: Order) -> None:
        standing = await self.book.find(order.lease)
        bound = standing.settled + await self.outstanding(order.lease) + most_cost(order.most, standing.lease.price)
        if bound > standing.lock:
            raise InsufficientCredits(
                "the lock does not cover it", missing=str(bound - standing.lock), lock=str(standing.lock)
            )

    async def _answer(self, job: Hash, wait: float) -> web.Response:
        if job not in self.orders:
            raise NotFound("no such job here")
        if self.hold is not None and not self.hold.is_set() and wait:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.hold.wait(), wait)
        if job not in self.receipts and (self.hold is None or self.hold.is_set()):
            self._finish(job)
        return ok(self.standings.get(job) or {"job": str(job), "phase": "running", "measure": 7})

    def _finish(self, job: Hash, ended: str = "exited") -> None:
        order, task = self.orders[job]
        stdout = self.blobs[task.program.sha256] if task.program else b""
        files = []
        for one in task.inputs:
            if one.blob is not None:
                files.append(OutputFile(one.path, one.blob.sha256, one.blob.size))
        self.blobs[hashlib.sha256(stdout).hexdigest()] = stdout
        result = Result(
            ended=ended, status=0, stdout=OutputFile("", hashlib.sha256(stdout).hexdigest(), len(stdout)),
            files=tuple(files),
        )  # fmt: skip
        states = [hashlib.sha256(b"%d" % i).hexdigest() for i in range(task.steps)]
        receipt = Receipt(
            node=self.key.address, lease=order.lease, number=order.number, task=order.task, most=order.most,
            until=order.until, input=input_root([(one.path, one.blob.sha256) for one in task.inputs if one.blob]),
            output=result.hash(), steps=row_root([state_leaf(s) for s in states]) if states else NO_STEPS,
            measure=min(MEASURE, order.most), client_signature=order.client_signature,
        )  # fmt: skip
        small = {hashlib.sha256(stdout).hexdigest(): b64encode(stdout).decode()} if len(stdout) < 65536 else {}
        standing: dict[str, Any] = {
            "job": str(job), "phase": "finished", "result": result.encode().decode(), "steps": states,
            "inline": small, "measure": receipt.measure, "task": str(order.task),
        }  # fmt: skip
        standing["receipt"] = receipt
        if self.lie is not None:
            self.lie(standing, receipt)
        shown = standing["receipt"]
        if isinstance(shown, Receipt):
            signature = self.key.sign(shown, DOMAIN) if self.resign else UNSIGNED
            shown = msgspec.structs.replace(shown, node_signature=signature)
            standing["receipt"] = shown.to_json()
            self.receipts[job] = shown
        self.standings[job] = standing

    async def _show(self, request: web.Request) -> web.Response:
        return await self._answer(Hash(request.match_info["job"]), int(request.query.get("wait", "0")))

    async def _stop(self, request: web.Request) -> web.Response:
        job = Hash(request.match_info["job"])
        if job not in self.receipts:
            self._finish(job, "stopped")
        return ok(self.standings[job])

    async def _list(self, request: web.Request) -> web.Response:
        jobs = list(self.orders)
        after = request.query.get("after")
        start = jobs.index(Hash(after)) + 1 if after else 0
        page = [{"job": str(job), "phase": "running"} for job in jobs[start : start + 2]]
        return ok({"jobs": page})

    async def _log(self, request: web.Request) -> web.Response:
        after = max(int(request.query["after"]), self.log_start)
        async with self.logs:
            while not self.log_over and self.log_start + len(self.log) <= after and int(request.query["wait"]):
                await self.logs.wait()
        headers = {"Freehold-Log-Start": str(after)} | ({"Freehold-Log-End": "true"} if self.log_over else {})
        return web.Response(body=self.log[after - self.log_start :], headers=headers)

    async def write_log(self, data: bytes, *, over: bool = False) -> None:
        async with self.logs:
            self.log += data
            self.log_over = over
            self.logs.notify_all()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it, under one deadline."""
    async with asyncio.timeout(10 * float(os.environ.get("FREEHOLD_TEST_SLOW", "1"))):
        while not condition():  # noqa: ASYNC110 - the node's loop is this one
            await asyncio.sleep(0.005)


class Nodes:
    """A directory of these nodes."""

    def __init__(self, nodes: Sequence[FakeNode]) -> None:
        self.listed = list(nodes)

    async def nodes(self) -> list[NodeRecord]:
        return [node.record() for node in self.listed]


@asynccontextmanager
async def fake_nodes(net: World, count: int, *, tls: bool = False) -> AsyncIterator[list[FakeNode]]:
    """So many nodes, running."""
    async with AsyncExitStack() as stack:
        nodes = [FakeNode(i, net.folder / f"compute{i}", net.network.members) for i in range(count)]
        for node in nodes:
            node.tls = tls
            await node.start()
            stack.push_async_callback(node.stop)
        yield nodes


@asynccontextmanager
async def compute_client(
    net: World, nodes: Sequence[Any], number: int = 0, *, credits: int = 1000 * ONE, home: str = "home"
) -> AsyncIterator[ComputeClient]:
    """An account's compute on one device."""
    own, network = net.account(number, credits).key, net.network
    folder = get_account_dir(net.folder / home, network.domain, own.address)
    async with AsyncExitStack() as stack:
        book = ClientBook(folder)
        stack.callback(book.close)
        dial = await stack.enter_async_context(Dial(connections_per_peer=32))
        quorum = Quorum(dial, network.members, network.domain)
        vouchers = Vouchers(own, network.domain, book)
        leases = Leases(own, network.domain, network.parameters, quorum, dial, book, vouchers, time.time, "compute")
        client = ComputeClient(
            Context(
                network=network, key=own, dial=dial, quorum=quorum, directory=Nodes(nodes), leases=leases, book=book,
                clock=time.time,
            )
        )  # fmt: skip
        stack.push_async_callback(client.close)
        yield client
