"""Where orders come in: taken durably, run in turn, asked about, stopped.

    POST /orders      checked, credits bound, written down -> queue -> (Worker, Services) -> Closer
    an order that is here already is answered with how it stands: sending it again orders nothing anew

Whoever waits, waits for the job's own event. Invariant: credits are bound before an order is written down, and set free
when it was not; so two that come at once cannot both take what is left.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, Protocol

from freehold.market.constraints import Constraint
from freehold.protocol.errors import FreeholdError, InvalidInput
from freehold.protocol.units import Address, Hash
from freehold.services.compute.node.blobs import SMALL, Blobs
from freehold.services.compute.node.executors import Executors
from freehold.services.compute.node.gateway import parse_access
from freehold.services.compute.node.orders import FINISHED, Entry, Orders
from freehold.services.compute.node.orders_checks import (
    Asked,
    check_most,
    check_resources,
    check_rules,
    check_when,
    needed_of,
)
from freehold.services.compute.node.orders_credits import Credits
from freehold.services.compute.node.orders_ending import Closer
from freehold.services.compute.node.orders_live import Job
from freehold.services.compute.node.orders_queue import Queue
from freehold.services.compute.node.settings import Settings
from freehold.services.compute.tasks import decode_task
from freehold.services.seam import ProviderContext, Standing

log = logging.getLogger(__name__)

PROBE_PATIENCE = 8.0  # seconds that an order waits for the probe of its executor before its client is told
GRACE_SECONDS = 5.0  # for what runs to end by itself when the node stops


class Crew(Protocol):
    """Who does the work of orders (`node/orders_services.py`)."""

    async def perform(self, job: Job) -> None:
        """Run a job to its end."""

    def attach(self, job: Job) -> bool:
        """Give a job to what runs, or will, for another one, where it is for that; else it takes its own turn."""

    def describe(self, job: Job) -> dict[str, Any] | None:
        """The service that the job is a part of, for its standing."""


class Shop(NamedTuple):
    """What orders are checked against and kept in."""

    settings: Settings
    rules: Constraint
    properties: Callable[[], Mapping[str, object]]
    executors: Executors
    orders: Orders
    blobs: Blobs
    credits: Credits
    closer: Closer


class Desk:
    """Every order of one node."""

    def __init__(self, context: ProviderContext, shop: Shop, crew: Crew) -> None:
        self._context, self._shop, self._crew = context, shop, crew
        self._orders, self._blobs = shop.orders, shop.blobs
        self._credits, self._closer = shop.credits, shop.closer
        self._tasks: dict[Hash, asyncio.Task[None]] = {}
        self._endless: set[asyncio.Task[None]] = set()  # those that go on until they are ended
        settings = shop.settings
        self.queue = Queue(settings.slots, settings.ahead, settings.memory, settings.queue, self._start)

    async def start(self) -> None:
        """Take up what had not ended: it runs again, from the start."""
        for entry in await self._orders.open_ones():
            task = decode_task(await self._orders.task(entry.order.task))
            self._credits.promise(entry.lease, entry.id, entry.order.most)
            self.begin(Job(entry, task))
        self.queue.open()

    async def stop(self) -> None:
        """Start nothing more, give what runs a moment, then end it: it is run again after the next start. What goes on
        anyway gets none."""
        self.queue.close()
        ready = {task for id in self.queue.ready if (task := self._tasks.get(id)) is not None}
        for task in ready:
            task.cancel()
        ending = set(self._tasks.values()) - self._endless - ready
        if ending:
            await asyncio.wait(ending, timeout=GRACE_SECONDS)
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def begin(self, job: Job) -> None:
        """Let a job that is written down wait for its turn."""
        self._closer.live[job.id] = job
        if not self._crew.attach(job):
            self.queue.add(job)

    def _start(self, job: Job) -> None:
        task = asyncio.create_task(self._perform(job), name=f"order {job.id}")
        self._tasks[job.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(job.id, None))
        if job.task.service is not None:
            self._endless.add(task)
            task.add_done_callback(self._endless.discard)

    async def _perform(self, job: Job) -> None:
        if job.task.service is not None:  # what goes on is not made ready while it waits
            await self.queue.begin(job)
        await self._crew.perform(job)

    async def take(self, asked: Asked, standing: Standing) -> Job | Entry:
        """The job of an order, which is written down now, or was before. Refused and InvalidInput say why not;
        InsufficientCredits, Overloaded; Conflict with `missing` where blobs are not here."""
        key = asked.order.struct_hash()
        if key not in self._closer.live:
            try:
                await self._begin(key, asked, standing)
            except FreeholdError:
                # One that is here from before is answered, whatever would be said of it now.
                if (known := await self.find(key)) is not None:
                    return known
                raise
        found = await self.find(key)
        assert found is not None
        return found

    async def _begin(self, key: Hash, asked: Asked, standing: Standing) -> None:
        """Check an order, bind credits for it, and begin to write it down."""
        shop, client = self._shop, standing.lease.client
        check_most(asked.order)
        check_when(asked.order, standing, self._context.clock())
        check_resources(asked.task, shop.settings, shop.properties())
        check_rules(asked, client, shop.rules)
        await shop.executors.find(asked.task, PROBE_PATIENCE)
        access = parse_access(asked.access, asked.task, shop.settings.access_hosts)
        needed = needed_of(asked.task)
        small = await self._keep_inline(asked, client, needed)
        if key in self._closer.live:  # it came twice, and the other one was quicker
            return
        self._credits.check(standing, asked.order.most)
        self.queue.reserve(client)
        self._credits.promise(asked.order.lease, key, asked.order.most)
        entry = Entry(0, key, client, asked.order.lease, asked.order, access, None, None, 0, b"", 0)
        job = self._closer.live[key] = Job(entry, asked.task)
        # A client that hangs up now leaves the order taken or not taken, never half.
        job.written = asyncio.create_task(self._write(job, asked.text, needed, small))
        job.written.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def find(self, key: Hash) -> Job | Entry | None:
        """An order that was taken, once it is written down; None where it is not here."""
        job = self._closer.live.get(key)
        if job is None:
            return await self._orders.find(key)
        if job.written is not None:
            await asyncio.shield(job.written)
        return job if job.entry.sequence else await self._orders.find(key)

    async def _keep_inline(
        self, asked: Asked, client: Address, needed: Mapping[str, int | None]
    ) -> Mapping[str, bytes]:
        """Blobs that came along: large ones are kept now; the small ones, to be kept with the order."""
        for sha256, body in asked.inline.items():
            if sha256 not in needed:
                raise InvalidInput(f"the task does not need the blob {sha256}")
            if needed[sha256] not in (None, len(body)):
                raise InvalidInput(f"the blob {sha256} has {len(body)} bytes, the task says {needed[sha256]}")
        large = {sha256: body for sha256, body in asked.inline.items() if len(body) > SMALL}
        if large:
            await self._blobs.keep(client, large)
        small = {sha256: body for sha256, body in asked.inline.items() if sha256 not in large}
        await self._blobs.make_room(sum(map(len, small.values())))
        return small

    async def _write(self, job: Job, text: bytes, needed: Mapping[str, int | None], small: Mapping[str, bytes]) -> None:
        entry = job.entry
        try:
            taken = await self._orders.take(
                entry.order, entry.client, text, entry.access, needed, small, self._context.clock()
            )
        except BaseException:
            self._forget(job)
            raise
        finally:
            self.queue.unreserve(entry.client)
        if taken is None:  # it came, and ended, before
            self._forget(job)
            return
        job.entry = entry._replace(sequence=taken[0])
        self._blobs.grew(taken[1])
        self.begin(job)

    def _forget(self, job: Job) -> None:
        del self._closer.live[job.id]
        self._credits.release(job.entry.lease, job.id)

    async def stop_job(self, job: Job) -> None:
        """Ask a job to end, and wait until it has."""
        self._ask_to_end(job)
        await job.ended.wait()

    def end_leases(self, closed: Collection[Hash]) -> None:
        """Leases were closed: nothing more is done under them than was done."""
        for job in [job for job in self._closer.live.values() if job.entry.lease in closed and job.entry.sequence]:
            self._ask_to_end(job)

    def _ask_to_end(self, job: Job) -> None:
        job.is_stopping = True
        if self.queue.remove(job):
            self._start(job)
        else:
            job.stop()

    async def standing(self, found: Job | Entry, *, is_short: bool = False) -> dict[str, Any]:
        """How an order stands, as JSON; `is_short`: without what came of it."""
        job = found if isinstance(found, Job) else self._closer.live.get(found.id)
        entry = job.entry if job is not None else found
        assert isinstance(entry, Entry)
        order, ending = entry.order, entry.ending
        value: dict[str, Any] = {
            "job": str(entry.id),
            "phase": FINISHED if ending is not None else job.phase if job is not None else FINISHED,
            "lease": str(entry.lease),
            "number": str(order.number),
            "task": str(order.task),
            "most": str(order.most),
            "until": order.until,
            "receipt": entry.receipt.to_json() if entry.receipt is not None else None,
            "stand": entry.stand,
            "measure": ending.measure if ending is not None else job.measure() if job is not None else 0,
            "reason": ending.reason if ending is not None else "",
            "position": self.queue.position(job) if job is not None and ending is None else 0,
            "log": entry.log_end if ending is not None else job.log.end if job is not None else 0,
        }
        if ending is not None:
            value |= {
                "delivered": ending.delivered,
                "read_bytes": ending.read_bytes,
                "written_bytes": ending.written_bytes,
            }
        elif job is not None and (service := self._crew.describe(job)) is not None:
            value["service"] = service
        if ending is not None and not is_short:
            value["result"] = ending.result or None
            value["steps"] = list(ending.steps)
            if ending.quote:
                value["quote"] = base64.b64encode(ending.quote).decode()
            inline = await self._closer.inline(entry)
            value["inline"] = {sha256: base64.b64encode(body).decode() for sha256, body in inline.items()}
        return value
