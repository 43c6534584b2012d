"""Storage at a node: keeps shards, signs lists, serves, and proves.

    PUT  /v1/storage/{lease}/shards/{root}     receiving.py
    POST /v1/storage/{lease}/plan              which positions a change takes, step by step
    POST /v1/storage/{lease}/deltas            the change, signed by both
    GET  /v1/storage/{lease}/shards/{root}     serving.py
    GET  /v1/storage/{lease}/entries           listing.py
    GET  /v1/storage/{lease}/records/{hash}    a segment's public record
    .../records, .../resharings                reshared.py
    /v1/storage/registers/...                  register_routes.py

Invariant: a shard that was acknowledged, and an entry whose delta the node signed, survive a kill or a power cut at any
moment; they go only by the rules in `lists.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec
from aiohttp import web

from freehold.net.server import JSON_LIMIT, ok, read_body, read_json
from freehold.protocol.errors import BodyTooLarge, InvalidInput, MalformedMessage, NotFound
from freehold.protocol.keys import check_signed_by
from freehold.protocol.messages import Lease
from freehold.protocol.service import Context
from freehold.protocol.state import LeaseState
from freehold.protocol.tables import Table
from freehold.protocol.typed import keccak, parse_json
from freehold.protocol.units import Address, Hash
from freehold.services.seam import ProviderContext
from freehold.services.storage.list_steps import POSITION_LIMIT
from freehold.services.storage.listing import Listing
from freehold.services.storage.lists import MIGRATIONS, Change, Lists, Stripes
from freehold.services.storage.proving import prove
from freehold.services.storage.receiving import (
    Receiver,
    check_covered,
    check_stream,
    in_thread,
    key_of,
    parse_hash,
)
from freehold.services.storage.register_routes import RegisterRoutes
from freehold.services.storage.registers import MIGRATION as REGISTERS_MIGRATION
from freehold.services.storage.registers import Registers
from freehold.services.storage.reshared import MIGRATION, Reshared
from freehold.services.storage.serving import Sender
from freehold.services.storage.terms import DELTA, NAME, PROOF, Delta, ShardEntry, StorageProof

log = logging.getLogger(__name__)

ENTRIES_LIMIT = 2048  # that one change adds, and that it removes
EXPIRED_SECONDS = 86400  # after a lease's deadline: a lease that no committed state names by then never counts


class StorageProvider:
    """The working half of storage at a node (`services/seam.py`)."""

    name = NAME
    is_leased: ClassVar[bool] = True

    def __init__(self, context: ProviderContext) -> None:
        self._context = context
        self._sql = context.open_sql([*MIGRATIONS, MIGRATION, REGISTERS_MIGRATION])
        self._lists = Lists(self._sql)
        self._locks = Stripes()
        self._receiver = Receiver(context, self._lists, self._locks)
        self._sender = Sender(context, self._lists)
        self._listing = Listing(context, self._sql)
        self._reshared = Reshared(context, self._sql)
        self._registers = Registers(self._sql)
        self._register_routes = RegisterRoutes(context, self._registers)
        self._figures: dict[str, int] = {}
        self._proofs = 0

    async def start(self) -> None:
        """Bring disk and SQL together: bytes without a row go, rows without bytes are marked."""
        rows = {key_of(lease, root): (lease, root) for lease, root in await self._lists.inventory()}
        keys = set(await in_thread(lambda: list(self._context.files.list_keys())))
        for key in sorted(keys - set(rows)):
            await in_thread(self._context.files.delete, key)
        for key in sorted(set(rows) - keys):
            log.error("shard %s is missing on disk", key)
            await self._lists.mark_corrupt(*rows[key])
        self._figures = await self._lists.figures() | await self._registers.figures()

    async def stop(self) -> None:
        """Finish what is becoming durable, and close."""
        await self._receiver.stop()
        await asyncio.to_thread(self._sql.close)

    def routes(self) -> Sequence[web.RouteDef]:
        """The node's HTTP API for storage."""
        base = f"/v1/{NAME}/{{lease}}"
        return [
            web.put(f"{base}/shards/{{root}}", self._receiver.put),
            web.get(f"{base}/shards/{{root}}", self._sender.get, allow_head=False),
            web.get(f"{base}/entries", self._listing.show),
            web.get(f"{base}/records/{{hash}}", self._show_record),
            web.post(f"{base}/plan", self._plan),
            web.post(f"{base}/deltas", self._accept),
            *self._reshared.routes(),
            *self._register_routes.routes(),
        ]

    async def prove(self, context: Context) -> Mapping[str, Table[Any]]:
        """Openings for what the beacon drew over this node's own rows of the state."""
        rows = await prove(context, self._context.key.address, self._lists, self._context.files)
        self._proofs += len(rows)
        return {PROOF: Table.of(StorageProof, rows)}

    async def collect(self) -> Mapping[str, Table[Any]]:
        """The newest delta of each list that the committed state does not have yet."""
        return {DELTA: Table.of(Delta, await self._lists.uncommitted())}

    async def gather(self, already: Mapping[str, int]) -> Mapping[str, Table[Any]]:  # noqa: ARG002
        """Nothing: openings are proven when the epoch begins."""
        return {}

    async def watched(self) -> Sequence[Address]:
        """Nobody: lists name their node."""
        return ()

    def capacity(self) -> int:
        """Bytes that are free."""
        return self._context.files.free_bytes

    async def commit(self, epoch: int, rows: Table[Any], leases: Mapping[Hash, LeaseState]) -> None:
        """Let go of what only older lists had, and of leases that have ended."""
        for row in rows:
            await self._lists.commit(row.lease, row.number)
        open_ones = []
        for lease in await self._lists.leases():
            if await self._is_over(lease, epoch, leases.get(lease)):
                log.info("lease %s has ended: its shards go", lease)
                await self._lists.drop(lease)
            else:
                open_ones.append(lease)
        await self._end_registers(epoch, leases, open_ones)
        await self.tidy()

    async def _end_registers(self, epoch: int, leases: Mapping[Hash, LeaseState], lists: Sequence[Hash]) -> None:
        """Registers go with the last lease of their account."""
        over = []
        staying = {(await self._context.leases.find(lease)).lease.client for lease in lists}
        for lease, account in await self._registers.leases():
            if await self._is_over(lease, epoch, leases.get(lease)):
                over.append((lease, account))
            else:
                staying.add(account)
        for lease, account in over:
            if account in staying:
                await self._registers.forget(lease)
            else:
                log.info("account %s has no lease here any more: its registers go", account)
                await self._registers.drop(account)

    async def _is_over(self, lease: Hash, epoch: int, state: LeaseState | None) -> bool:
        if state is not None:
            return bool(state.closed) and epoch >= state.closed + self._context.parameters.lapse_grace
        try:
            standing = await self._context.leases.find(lease)
        except NotFound:
            return True
        if standing.state is not None:  # it was in the state, and has been dropped from it
            return True
        return self._context.clock() > standing.lease.deadline + EXPIRED_SECONDS

    async def tidy(self) -> None:
        """Delete shards that no list names: rows first, so that nothing can name them any more, then bytes."""
        now = self._context.clock()
        for lease, root in await self._lists.find_garbage(now):
            async with self._locks.of(root):
                if await self._lists.forget(lease, root, now):
                    await in_thread(self._context.files.delete, key_of(lease, root))
        await self._lists.forget_records(now)
        self._figures = await self._lists.figures() | await self._registers.figures()

    def agreed_price(self, lease: Lease) -> int | None:  # noqa: ARG002
        """None: the list price."""
        return None

    async def describe(self, lease: Hash) -> Mapping[str, Any]:
        """The newest delta that both have signed."""
        delta = await self._lists.newest(lease)
        return {"delta": delta.to_json() if delta else None}

    def metrics(self) -> Mapping[str, int]:
        """As of the last tidying, but for the counters."""
        return self._figures | {
            "free_bytes": self._context.files.free_bytes,
            "received_bytes_total": self._receiver.received_bytes,
            "sent_bytes_total": self._sender.sent_bytes,
            "proofs_total": self._proofs,
        }

    async def _show_record(self, request: web.Request) -> web.Response:
        lease, digest = parse_hash(request.match_info["lease"]), parse_hash(request.match_info["hash"])
        body = await self._lists.record(lease, digest)
        if body is None:
            raise NotFound(f"segment record {digest} is not here")
        return web.Response(body=body, content_type="application/octet-stream")

    async def _plan(self, request: web.Request) -> web.Response:
        lease = parse_hash(request.match_info["lease"])
        standing = await self._context.leases.find(lease)
        check_stream(standing)
        body = await read_body(request, JSON_LIMIT)
        # A plan is work, and tells what is kept.
        self._context.authenticate(
            standing.lease.client, request.headers, request.method, request.raw_path, keccak(body)
        )
        value = parse_json(body)
        if not isinstance(value, dict):
            raise MalformedMessage("the body must be a JSON object")
        add, remove = _parse_change(value)
        delta, steps = await self._lists.plan(lease, add, remove)
        return ok({"delta": delta.to_json() if delta else None, "steps": [step.to_json() for step in steps]})

    async def _accept(self, request: web.Request) -> web.Response:
        lease = parse_hash(request.match_info["lease"])
        body = await read_json(request)
        delta = Delta.from_json(body.get("delta"))
        add, remove = _parse_change(body)
        if delta.lease != lease:
            raise InvalidInput("the delta is for another lease")
        standing = await self._context.leases.find(lease)
        check_stream(standing)
        check_signed_by(delta, delta.client_signature, standing.lease.client, self._context.domain)
        if add:
            check_covered(standing, delta.size, self._context.parameters.epoch_length)
        signature = self._context.key.sign(delta, self._context.domain)
        signed = msgspec.structs.replace(delta, node_signature=signature)
        # A client that hangs up leaves the change done or not done, never the memory behind the disk.
        done, ahead = await asyncio.shield(self._lists.accept(Change(delta, add, remove), signed))
        return ok({"delta": done.to_json(), "next": ahead.to_json() if ahead else None})


def _parse_change(body: Mapping[str, Any]) -> tuple[tuple[ShardEntry, ...], tuple[int, ...]]:
    add, remove = body.get("add"), body.get("remove")
    if not isinstance(add, list) or not isinstance(remove, list):
        raise MalformedMessage("a change has lists 'add' and 'remove'")
    if max(len(add), len(remove)) > ENTRIES_LIMIT:
        raise BodyTooLarge(f"a change adds and removes at most {ENTRIES_LIMIT} entries each", limit=ENTRIES_LIMIT)
    if any(type(position) is not int or not 0 <= position < POSITION_LIMIT for position in remove):
        raise MalformedMessage("a position is a number")
    return tuple(ShardEntry.from_json(entry) for entry in add), tuple(remove)
