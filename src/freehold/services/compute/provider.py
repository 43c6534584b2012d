"""Compute at a node: takes orders, runs them in bounds, gives receipts, and judges others' where it is drawn.

    /v1/compute/{lease}/blobs, orders       node/api.py: blobs in and out; orders, how they stand, logs
    /v1/compute/bids, properties            node/bids.py
    /v1/compute/cases/...                   node/cases.py: what a referee is shown
    /v1/compute/{lease}/services/...        node/proxy.py

    order -> Desk (checked, credits bound, durable) -> Queue -> Worker, Services (executors) -> Closer (receipt,
    durable) -> Evidence -> the members;  seat -> Referee (run again) -> Evidence

Invariant: what was answered survives a kill; an order is billed once, never above its most, and never above what its
lease's lock covers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from shutil import rmtree
from typing import Any, ClassVar

from aiohttp import web

from freehold.market.constraints import parse
from freehold.protocol.messages import Lease
from freehold.protocol.service import Context
from freehold.protocol.state import LeaseState
from freehold.protocol.tables import Table
from freehold.protocol.units import Address, Hash
from freehold.services.compute.executors.container import ContainerExecutor
from freehold.services.compute.executors.sandbox import SandboxExecutor
from freehold.services.compute.executors.seam import Executor
from freehold.services.compute.executors.service import ServiceExecutor
from freehold.services.compute.executors.wasm import WasmExecutor
from freehold.services.compute.node.api import ComputeApi
from freehold.services.compute.node.bids import Bids
from freehold.services.compute.node.blobs import Blobs, in_thread
from freehold.services.compute.node.cases import Cases
from freehold.services.compute.node.delivery import Deliveries
from freehold.services.compute.node.evidence import Evidence
from freehold.services.compute.node.executors import Executors
from freehold.services.compute.node.orders import MIGRATIONS, Orders
from freehold.services.compute.node.orders_credits import Credits, cost_of
from freehold.services.compute.node.orders_desk import Desk, Shop
from freehold.services.compute.node.orders_ending import Closer
from freehold.services.compute.node.orders_live import Job
from freehold.services.compute.node.orders_queue import QueueTurn
from freehold.services.compute.node.orders_services import OrdersCrew, Services
from freehold.services.compute.node.orders_work import Bounds, Worker
from freehold.services.compute.node.programs import Programs
from freehold.services.compute.node.proxy import Proxy
from freehold.services.compute.node.quoter import Quoter
from freehold.services.compute.node.referee import Referee
from freehold.services.compute.node.settings import Settings, read_settings
from freehold.services.compute.terms import NAME, WorkState
from freehold.services.seam import ProviderContext

log = logging.getLogger(__name__)

MakeExecutors = Callable[[Settings, Path], Sequence[Executor]]


def make_executors(settings: Settings, folder: Path) -> Sequence[Executor]:
    """Those that the operator enabled."""
    bounds = {"network": settings.network, "container_pull": settings.container_pull}
    cache = Path(settings.module_cache) if settings.module_cache else folder / "modules"
    sandbox, container = SandboxExecutor(bounds), ContainerExecutor(bounds)
    made: dict[str, Executor] = {
        "wasm": WasmExecutor(cache, settings.slots),
        "sandbox": sandbox,
        "container": container,
        "service": ServiceExecutor(bounds, sandbox, container if "container" in settings.executors else None),
    }
    return [made[name] for name in settings.executors]


class ComputeProvider:
    """The working half of compute (`services/seam.py`)."""

    name = NAME
    is_leased: ClassVar[bool] = True

    def __init__(self, context: ProviderContext, make: MakeExecutors = make_executors) -> None:
        self._context = context
        folder = Path(context.folder)
        self._runs = folder / "runs"
        self._settings = read_settings(context.settings, context.files.free_bytes + context.files.used_bytes)
        self._sql = context.open_sql(MIGRATIONS)
        self._orders = Orders(self._sql)
        self._blobs = Blobs(self._sql, context.files, context.clock)
        self._executors = Executors(make(self._settings, folder))
        self._credits = Credits()
        self._evidence = Evidence(context.key.address, self._orders, self._credits, context.clock)
        self._quoter = Quoter(self._settings.quoter)
        self._closer = Closer(context, self._orders, self._blobs, self._credits, self._evidence, self._quoter)
        programs = self._programs = Programs(folder / "programs", self._blobs)
        bounds = Bounds(
            self._runs, lambda: self._evidence.committed, self._release, self._again,
            lambda job: QueueTurn(self._desk.queue, job), self._settings.disk,
        )  # fmt: skip
        deliveries = Deliveries(self._sql, self._blobs, context.clock)
        worker = self._worker = Worker(bounds, self._executors, self._blobs, programs, deliveries, self._closer)
        services = Services(bounds, self._executors, programs, worker, self._closer)
        self._bids = Bids(context, self._settings, self._executors, self._orders, self._blobs, self._quoter)
        shop = Shop(
            self._settings, parse(self._settings.rules), self._bids.properties,
            self._executors, self._orders, self._blobs, self._credits, self._closer,
        )  # fmt: skip
        self._desk = Desk(context, shop, OrdersCrew(worker, services))
        self._bids.queue = self._desk.queue
        self._api = ComputeApi(context, self._desk, self._orders, self._blobs, self._bids.worked)
        self._proxy = Proxy(context, self._desk, services)
        self._cases = Cases(context, self._orders, self._blobs, self._api)
        self._referee = Referee(context, self._runs, self._settings, self._executors, self._evidence)
        self._figures: dict[str, int] = {}

    def _release(self, job: Job) -> None:
        self._desk.queue.release(job)

    def _again(self, job: Job) -> None:
        self._desk.begin(job)

    async def start(self) -> None:
        """Begin with empty folders, and what had not ended."""
        await in_thread(rmtree, self._runs, True)
        await in_thread(lambda: self._runs.mkdir(parents=True, exist_ok=True))
        await self._programs.start()
        await self._blobs.start()
        await self._evidence.start(await self._committed())
        self._executors.start()
        await self._quoter.start()
        await self._bids.start()
        await self._desk.start()
        self._figures = await self._blobs.figures()

    async def _committed(self) -> int:
        """The last epoch that the orders here know of."""
        known = await self._orders.fact("committed")
        return known[1] if known is not None else 0

    async def stop(self) -> None:
        """Give what runs a moment; the rest is run again after the next start."""
        await self._bids.stop()
        await self._referee.stop()
        await self._desk.stop()
        await self._proxy.stop()
        await self._executors.stop()
        await asyncio.to_thread(self._sql.close)

    def routes(self) -> Sequence[web.RouteDef]:
        """The node's HTTP API for compute."""
        base = f"/v1/{NAME}"
        return [
            *self._bids.routes(base),
            *self._cases.routes(base),
            *self._api.routes(base),
            *self._proxy.routes(base),
        ]

    async def prove(self, context: Context) -> Mapping[str, Table[Any]]:
        """Opinions take as long as the work itself: they are begun here, and come with `gather`."""
        self._evidence.begin(context.epoch)
        self._cases.learn(context.state)
        await self._referee.begin(context)
        return {}

    async def collect(self) -> Mapping[str, Table[Any]]:
        """Receipts that the committed state lacks."""
        return await self._evidence.collect()

    async def gather(self, already: Mapping[str, int]) -> Mapping[str, Table[Any]]:
        """Receipts and opinions that came since."""
        return self._evidence.gather(already)

    async def watched(self) -> Sequence[Address]:
        """Nobody: receipts, cases and seats name their nodes."""
        return ()

    def capacity(self) -> int:
        """Nanoseconds of a processor that are free in each second."""
        return self._desk.queue.free_slots * 10**9

    def agreed_price(self, lease: Lease) -> int | None:
        """What was bid."""
        return self._bids.agreed_price(lease)

    async def commit(self, epoch: int, rows: Table[WorkState], leases: Mapping[Hash, LeaseState]) -> None:
        """What the state says of receipts; who sits over them."""
        self._cases.learn(rows)
        await self._evidence.commit(epoch, rows, leases)
        self._desk.end_leases({key for key, state in leases.items() if state.closed})
        await self._orders.keep_fact("committed", b"", epoch)
        await self.tidy()

    async def describe(self, lease: Hash) -> Mapping[str, Any]:
        """What the lease is bound for, in credits."""
        standing = await self._context.leases.find(lease)
        return {"outstanding": str(cost_of(self._credits.outstanding(lease), standing.lease.price))}

    async def tidy(self) -> None:
        """Blobs go when room is needed; only figures are taken here."""
        self._figures = await self._blobs.figures()

    def metrics(self) -> Mapping[str, int]:
        """As of the last tidying, but for counters and what runs."""
        queue = self._desk.queue
        return self._figures | {
            "free_bytes": self._blobs.free_bytes,
            "running": len(queue.running),
            "waiting": queue.waiting,
            "free_slots": queue.free_slots,
            "receipts_total": self._closer.receipts,
            "measure_total": self._closer.measure,
            "bids_total": self._bids.bids,
            "opinions_total": self._referee.opinions,
            "received_bytes_total": self._api.received_bytes,
            "sent_bytes_total": self._api.sent_bytes,
            "storage_read_bytes_total": self._worker.read_bytes,
            "storage_written_bytes_total": self._worker.written_bytes,
        }
