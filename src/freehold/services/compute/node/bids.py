"""What a node says of itself, and what it bids.

Properties are what the operator's machine has and the executors' probes have found; speeds are the node's own
benchmarks, made in the background and kept for a day. A bid's price binds the node until it expires: a lease at that
price is signed. One that a client has worked under stands for that client as long as its orders are remembered, so that
it can open such a lease again.
"""

from __future__ import annotations

import asyncio
import logging
import platform
import secrets
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from shutil import rmtree
from typing import Any, Protocol

import msgspec
from aiohttp import web

from freehold.market.constraints import parse
from freehold.net.server import ok, read_body
from freehold.protocol.errors import FreeholdError, MalformedMessage, Refused
from freehold.protocol.messages import STREAM, Lease
from freehold.protocol.typed import keccak, parse_json
from freehold.protocol.units import Address, Hash
from freehold.services.compute.benchmarks import run_own
from freehold.services.compute.bidding import (
    REQUEST_LIMIT,
    Load,
    NodeTerms,
    judge_request,
    make_bid,
    parse_request,
    read_pricing,
)
from freehold.services.compute.node.blobs import Blobs, in_thread
from freehold.services.compute.node.executors import Executors
from freehold.services.compute.node.orders import Orders
from freehold.services.compute.node.prices import Prices
from freehold.services.compute.node.quoter import Quoter
from freehold.services.compute.node.settings import DAY, Settings
from freehold.services.compute.tasks import Blob, Task
from freehold.services.seam import ProviderContext

log = logging.getLogger(__name__)

SPEEDS = "speeds"  # the fact that they are kept under


class Busy(Protocol):
    """How much runs and waits (`orders_queue.Queue`)."""

    running: dict[Hash, Any]

    @property
    def waiting(self) -> int: ...


class Bids:
    """One node's properties, bids and prices."""

    def __init__(
        self, context: ProviderContext, settings: Settings, executors: Executors, orders: Orders, blobs: Blobs,
        quoter: Quoter,
    ) -> None:  # fmt: skip
        self._context, self._settings, self._executors = context, settings, executors
        self._orders, self._blobs, self._quoter = orders, blobs, quoter
        self._rules, self._pricing = parse(settings.rules), read_pricing(settings.pricing)
        self._machine = read_machine()
        self._speeds: dict[str, Any] = {}
        self._prices = Prices()
        self._measuring: asyncio.Task[None] | None = None
        self.queue: Busy
        self.bids = 0

    async def start(self) -> None:
        """Take up prices and speeds; measure in the background where they are too old."""
        for lease in await self._orders.leases():
            try:
                standing = await self._context.leases.find(lease)
            except FreeholdError:
                continue
            self.worked(standing.lease)
        known = await self._orders.fact(SPEEDS)
        if known is not None:
            self._speeds = msgspec.json.decode(known[0], type=dict[str, Any])
        if self._settings.benchmark and (known is None or known[1] + DAY < self._context.clock()):
            self._measuring = asyncio.create_task(self._measure(), name="benchmarks")

    async def stop(self) -> None:
        """Measure no more."""
        if self._measuring is not None:
            self._measuring.cancel()
            await asyncio.gather(self._measuring, return_exceptions=True)

    async def _measure(self) -> None:
        folder = Path(self._context.folder) / "benchmarks"
        try:
            probe = Task(executor="wasm", kind="python", engine="python:", program=Blob("0" * 64, 0))
            executor = await self._executors.find(probe)
            engine = str(self._executors.properties()["executor.wasm.engine"])
            await in_thread(rmtree, folder, True)
            own = await run_own(executor, folder, engine, Hash(secrets.token_bytes(32)), time.monotonic_ns)
        except FreeholdError as error:
            log.info("this node has not measured itself: %s", error.message)
            return
        finally:
            await in_thread(rmtree, folder, True)
        for name, reason in own.reasons.items():
            log.warning("benchmark %s: %s", name, reason)
        self._speeds = dict(own.properties)
        await self._orders.keep_fact(SPEEDS, msgspec.json.encode(self._speeds), self._context.clock())

    def worked(self, lease: Lease) -> None:
        """A client has ordered under this lease."""
        self._prices.work(lease.client, lease.price)

    def agreed_price(self, lease: Lease) -> int | None:
        """The price of the lease, if it was bid to its client and still stands, or its client has worked at it."""
        if lease.mode != STREAM:
            raise Refused("work is paid as a stream: a compute lease by voucher is not signed")
        stands = self._prices.stands(lease.client, lease.price, self._context.clock())
        return lease.price if stands else None

    def properties(self) -> dict[str, object]:
        """What is advertised."""
        settings = self._settings
        return {
            **self._machine,
            "cpu.cores": settings.processors,
            "memory.bytes": settings.memory,
            "disk.bytes": min(settings.disk, self._blobs.free_bytes),
            "gpu.count": 0,
            "slots": settings.slots,
            "slots.ahead": settings.ahead,
            "queue": self.queue.waiting,
            "network": settings.network,
            "place": self._context.place,
            **self._speeds,
            **self._executors.properties(),
            **self._quoter.properties(),
        }

    def routes(self, base: str) -> list[web.RouteDef]:
        """Below `base`."""
        return [web.get(f"{base}/properties", self._show), web.post(f"{base}/bids", self._bid)]

    async def _show(self, _: web.Request) -> web.Response:
        return ok({"properties": self.properties(), "reasons": dict(self._executors.reasons())})

    async def _bid(self, request: web.Request) -> web.Response:
        body = await read_body(request, 2 * REQUEST_LIMIT)
        value = parse_json(body)
        if not isinstance(value, dict) or not isinstance(value.get("client"), str):
            raise MalformedMessage("a request for a bid has 'request' and 'client'")
        client = Address(value["client"])
        self._context.authenticate(client, request.headers, request.method, request.raw_path, keccak(body))
        wanted = parse_request(value.get("request"))
        if wanted.client != str(client):
            raise MalformedMessage("the request names another client")
        load = Load(self._settings.slots, len(self.queue.running), self.queue.waiting)
        terms = NodeTerms(
            str(self._context.key.address),
            self.properties(),
            self._rules,
            self._context.prices.stream,
            self._pricing,
            load,
        )
        answer = judge_request(wanted, terms)
        if answer.price is None:
            raise Refused("; ".join(answer.reasons), reasons=list(answer.reasons))
        now = self._context.clock()
        bid = make_bid(wanted, answer.price, terms, now, self._context.key, self._context.domain)
        self._prices.bid(client, answer.price, bid.expiry, now)
        self.bids += 1
        return ok({"bid": bid.to_json()})


def read_machine() -> Mapping[str, object]:
    """What the system says of itself."""
    return {"cpu.model": _processor_model(_read("/proc/cpuinfo").splitlines()), "cpu.architecture": platform.machine()}


def _processor_model(lines: Iterable[str]) -> str:
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "model name" and value.strip():
            return value.strip()
    return platform.processor() or "unknown"


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(2**16)
    except OSError:
        return ""
