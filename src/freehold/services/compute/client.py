"""Compute's working half at a client: who would run something, and everything up to one node (`ordering/node.py`).

    survey       ask every registered node for a sealed bid
    session(s)   nodes under covered leases at their bids' prices, to order from
    reopen       a session on a lease that is there: how a job is found again
    release      close the leases that nothing hangs on, so that what is locked for them comes back
    dispute      show a quorum two receipts that contradict each other
    receipts     what was bought, until it has run out
    cases        what the committed state says of disputes, and `standings` of orders

One of these an account. What a job is, which nodes to choose, how often to run it and what to believe is decided above
(`client/jobs.py`). Invariant: what is paid was ordered here, by signature, for no more than the order says.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from freehold.market.leases import Leases, NodeLeases
from freehold.market.network import Network
from freehold.market.placement import Directory
from freehold.market.quorum import Quorum
from freehold.market.view import read_epoch, read_rows
from freehold.net.client import Dial
from freehold.protocol.batches import make_batch
from freehold.protocol.errors import FreeholdError, InvalidInput, MalformedMessage, NotFound
from freehold.protocol.keys import Key
from freehold.protocol.messages import STREAM
from freehold.protocol.tables import Table
from freehold.protocol.units import Address, Hash
from freehold.services.compute.bidding import BidRequest
from freehold.services.compute.ordering.checks import KeptReceipt, Standing, WrongReceipt
from freehold.services.compute.ordering.node import ComputeNode
from freehold.services.compute.ordering.receipts import ReceiptBook, Receipts
from freehold.services.compute.ordering.sessions import Failures, Sessions
from freehold.services.compute.ordering.survey import Asking, Found, Offered, survey
from freehold.services.compute.proof import is_step
from freehold.services.compute.terms import (
    CASE,
    DISPUTE,
    EXACT,
    JOB,
    KEPT_EPOCHS,
    NAME,
    NEAR,
    Dispute,
    Receipt,
    Step,
    WorkState,
)

__all__ = [
    "ComputeClient",
    "ComputeNode",
    "Context",
    "Found",
    "KeptReceipt",
    "Offered",
    "Standing",
    "WrongReceipt",
]

SPARE_EPOCHS = 3  # an order's `until` lies so many further: for its receipt to be certified, and for a late epoch
ROWS = f"service.{NAME}"  # the table of compute's state


class Context(NamedTuple):
    """What the wiring hands in. `leases` are compute's, over the same book as every other service's."""

    network: Network
    key: Key
    dial: Dial
    quorum: Quorum
    directory: Directory
    leases: Leases
    book: ReceiptBook
    clock: Callable[[], float]


class ComputeClient:
    """One account's compute on one network. `close` it before the book and the connections."""

    def __init__(self, context: Context) -> None:
        self._context = context
        network = context.network
        self._asking = Asking(context.key, network.domain, context.dial, context.clock, network.parameters.minimum_bond)
        self._receipts = Receipts(context.book)
        self._sessions = Sessions(context.leases, self._asking, self._receipts)
        self._epoch = 0
        self._epoch_at = float("-inf")  # monotonic seconds

    async def close(self) -> None:
        """End what goes on in the background, and write what is to be kept; jobs go on at their nodes."""
        await self._sessions.close()
        await self._receipts.close()

    # Nodes

    async def survey(self, request: BidRequest) -> Found:
        """Who would run this and for how much, within `request.seconds`; and why the others would not."""
        return await survey(await self._context.directory.nodes(), request, self._asking)

    async def session(self, offered: Offered, amount: int) -> ComputeNode:
        """A node under a lease at its bid's price or less, whose lock covers `amount` more credits than are spoken for.

        InsufficientCredits says how many are missing; otherwise what the node answered.
        """
        ready, failures = await self._sessions.open([(offered, amount)])
        if not ready:
            raise failures[offered.node]
        return ready[0]

    async def sessions(self, wants: Sequence[tuple[Offered, int]]) -> tuple[list[ComputeNode], Failures]:
        """The same for many nodes under one reservation; of those that do not serve, why."""
        return await self._sessions.open(wants)

    async def reopen(self, node: Address, lease: Hash) -> ComputeNode:
        """A session on a lease of this account that is there, whichever device made it. Nothing is locked for it.

        NotFound where there is no such lease, or its node is not registered any more.
        """
        leases = self._context.leases
        record = next((r for r in await self._context.directory.nodes() if r.node == node), None)
        if record is None:
            raise NotFound(f"node {node} is not registered any more")
        kept = next((k.lease for k in await leases.kept() if k.lease.struct_hash() == lease), None)
        if kept is None:
            row = (await leases.view()).leases.get(lease)
            if row is None:
                raise NotFound(f"this account has no lease {lease}", lease=str(lease))
            kept = await leases.read_back(record, lease)
        if (kept.node, kept.service, kept.mode) != (node, NAME, STREAM):
            raise NotFound(f"lease {lease} is not one for compute with node {node}", lease=str(lease))
        return self._sessions.restore(record, NodeLeases(node, record.endpoint, {STREAM: kept}))

    async def release(self) -> list[Hash]:
        """Close the leases under which nothing runs and nothing is owed; which ones. What is locked for them comes back
        `lock_release` reports later. Leases with nodes that do not answer stay."""
        leases = self._context.leases
        view, records = await leases.view(), {r.node: r for r in await self._context.directory.nodes()}
        there = {lease.struct_hash(): lease for lease in await leases.open_leases(view)}
        for key, row in view.leases.items():  # of other devices
            if row.service == NAME and not row.closed and key not in there and row.node in records:
                with suppress(FreeholdError, TimeoutError):
                    there[key] = await leases.read_back(records[row.node], key)
        sessions = [
            self._sessions.restore(records[o.node], NodeLeases(o.node, records[o.node].endpoint, {STREAM: o}))
            for o in there.values()
            if o.node in records
        ]
        return await self._sessions.release(view, sessions)

    # Evidence

    async def until(self, seconds: float) -> int:
        """The last epoch for an order that may take so long: with some to spare, and none further than nodes take."""
        committed = await self._committed()
        ahead = math.ceil(max(0.0, seconds) / self._context.network.parameters.epoch_length) + 1 + SPARE_EPOCHS
        return committed + min(ahead, KEPT_EPOCHS - 2)  # a node may be an epoch behind

    async def _committed(self) -> int:
        """The last committed epoch, or the one before; asked for once an epoch. Receipts that ran out are dropped."""
        now = time.monotonic()
        if now - self._epoch_at > self._context.network.parameters.epoch_length:
            self._epoch = max(self._epoch, await read_epoch(self._context.quorum))
            self._epoch_at = now
            await self._receipts.forget(self._epoch)
        return self._epoch

    async def dispute(self, first: Receipt, second: Receipt, kind: int, steps: Sequence[Step] = ()) -> Hash:
        """Show a quorum two receipts of this client that contradict each other; the id of the case that it opens.

        `kind` is EXACT or NEAR; `steps` may hold the first step that differs, where both commit to as many: only that
        is run again. InvalidInput for what judges would not take (`proof.judge_disputes`).
        """
        context = self._context
        if first.task != second.task or first.node == second.node:
            raise InvalidInput("a dispute is about receipts of two nodes for one task")
        if first.input != second.input and (kind != EXACT or steps):
            raise InvalidInput("a dispute by a metric or a step is about receipts for one input")
        if kind not in (EXACT, NEAR):
            raise InvalidInput(f"a dispute goes by {EXACT} or {NEAR}, not {kind}")
        if steps and (kind != EXACT or len(steps) > 1 or not is_step(steps[0], first, second)):
            raise InvalidInput("that is not the first step in which these receipts differ")
        said = [one.claim() if kind == EXACT else one.output for one in (first, second)]
        if not steps and said[0] == said[1]:
            raise InvalidInput("these receipts do not contradict each other")
        row = Dispute(client=context.key.address, first=first, second=second, kind=kind, steps=tuple(steps))
        batch = make_batch(DISPUTE, Table.of(Dispute, [row]), context.key, context.network.domain)
        await context.quorum.certify(batch)
        return row.case()

    async def receipts(self, jobs: Collection[Hash] | None = None) -> list[KeptReceipt]:
        """The receipts of these jobs that this device has, or all; until their orders run out."""
        return await self._receipts.find(jobs)

    async def cases(self) -> list[WorkState]:
        """The disputes of this client that are being decided, as f+1 members have them in the newest state."""
        own = self._context.key.address
        return [row for row in await self._rows(own) if row.role == CASE and row.node == own]

    async def standings(self, node: Address, jobs: Collection[Hash]) -> dict[Hash, WorkState]:
        """How the receipts of these jobs at one node stand in the newest state; of those that it has."""
        return {row.id: row for row in await self._rows(node) if row.role == JOB and row.id in jobs}

    async def _rows(self, who: Address) -> list[WorkState]:
        _, value = await read_rows(self._context.quorum, f"nodes/{who}")
        if value is None:
            return []
        try:
            rows: list[Any] = [entry["row"] for entry in value["rows"].get(ROWS, [])]
        except (KeyError, TypeError, AttributeError):
            raise MalformedMessage("an answer that holds no rows") from None
        return [WorkState.from_json(row) for row in rows]
