"""A node's part in each epoch: take over what is committed, answer the beacon, send what is not committed yet.

    look      which epoch is open, what the last report committed to (f+1 members, Q signatures, proven rows)
    take over providers let go of what only older states had; locks and settled amounts into the book
    answer    each provider proves; the batches are certified and held, or sent again until the epoch is over
    gather    what comes to a provider while the epoch is open follows in batches, PIECES at the most but for full ones
    send      leases, vouchers and deltas that the committed state lacks, once an epoch: stragglers, since clients send
              theirs at once; and again, before the epoch ends, vouchers that have come since

Invariant: what a node answers for comes from the committed state, never from its own memory; everything sent may be
sent twice, and counts once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from freehold.market.quorum import Quorum
from freehold.net.client import retry_after
from freehold.node.book import Book
from freehold.node.committed import NodeView, OpenEpoch, empty_view, read_open, read_rows
from freehold.protocol.batches import LEASE, VOUCHER, make_batch
from freehold.protocol.errors import FreeholdError, Unavailable
from freehold.protocol.keys import Key
from freehold.protocol.messages import Lease, Report, Voucher
from freehold.protocol.parameters import Parameters
from freehold.protocol.service import Context
from freehold.protocol.tables import Table
from freehold.protocol.units import Address, Hash
from freehold.services.judging import JUDGES
from freehold.services.seam import HostedProvider

log = logging.getLogger(__name__)

ROWS_AT_ONCE = 5_000  # in one batch: well below what a batch may hold in bytes
LONGEST_PAUSE = 5.0
PIECES = 100  # an epoch, into which what trickles in is gathered: a member takes 500 batches of one node
PROVEN_KEPT = 64  # epochs of which it is remembered which beacon was answered: one that is revoked may keep its own
LAST_SECONDS = 60  # before the anchor, or a quarter of an epoch if that is less: vouchers are sent for the last time


class EpochLoop:
    """One node's epochs. `refresh` gives the quorum anew where members do not answer: they may have moved."""

    def __init__(
        self,
        key: Key,
        parameters: Parameters,
        book: Book,
        providers: Mapping[str, HostedProvider],
        refresh: Callable[[], Quorum],
        clock: Callable[[], int],
        poll: float,
    ) -> None:
        self._key = key
        self._parameters = parameters
        self._book = book
        self._providers = providers
        self._refresh = refresh
        self._quorum = refresh()
        self._clock = clock
        self._poll = poll
        self._view: NodeView | None = None
        self._report: Report | None = None
        self._proven: dict[int, Hash] = {}
        self._sent = 0
        self._closing = 0
        self._vouchers: dict[Hash, int] = {}
        self._gathering: tuple[int, Hash] | None = None  # what the providers have answered last
        self._gathered: dict[str, int] = {}
        self._gathered_at = 0.0
        self.epoch = 0
        self.failure: FreeholdError | None = Unavailable("the members have not been asked yet")
        self.batches_sent = 0

    async def run(self) -> None:
        """Until cancelled. What fails is tried again: the providers go on serving meanwhile."""
        pause = self._poll
        while True:
            try:
                await self.step()
                if self.failure is not None:
                    log.info("epoch %d is open", self.epoch)
                self.failure, pause = None, self._poll
            except (FreeholdError, OSError) as error:
                failure = error if isinstance(error, FreeholdError) else Unavailable(f"the disk failed: {error}")
                if self.failure is None or self.failure.message != failure.message:
                    log.warning("epoch %d: %s", self.epoch, failure.message)
                pause = max(retry_after(failure), min(2 * pause, max(LONGEST_PAUSE, self._poll)))
                self.failure = failure
                self._quorum = self._refresh()
            await asyncio.sleep(pause)

    async def step(self) -> None:
        """Look once, and do what the open epoch asks for. Raises what it could not do."""
        open_epoch = await read_open(self._quorum)
        self.epoch = open_epoch.epoch
        view = await self._take_over(open_epoch)
        failures = []
        for work in (
            self._answer(open_epoch, view),
            self._send(open_epoch),
            self._gather(open_epoch),
            self._send_last(open_epoch),
        ):
            try:
                await work
            except FreeholdError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    async def _take_over(self, open_epoch: OpenEpoch) -> NodeView:
        if self._view is not None and self._view.epoch == open_epoch.epoch - 1 and self._report == open_epoch.report:
            return self._view
        if open_epoch.report is None:
            view = empty_view()
        else:
            view = await read_rows(self._quorum, open_epoch.report, self._key.address)
            if view.epoch > await self._book.committed_epoch():
                for name, provider in self._providers.items():
                    leases = {key: row for key, row in view.leases.items() if row.service == name}
                    rows = await self._read_watched(open_epoch.report, name, await provider.watched())
                    await provider.commit(view.epoch, Table.concat(rows.kind, [view.services[name], rows]), leases)
                await self._book.commit(view.epoch, view.leases, view.locks)
                await self._book.forget(view.leases)
        self._view, self._report = view, open_epoch.report
        return view

    async def _read_watched(self, report: Report, name: str, watched: Sequence[Address]) -> Table[Any]:
        tables = [(await read_rows(self._quorum, report, who)).services[name] for who in watched]
        return Table.concat(JUDGES[name].state_kind, tables)

    async def _answer(self, open_epoch: OpenEpoch, view: NodeView) -> None:
        if open_epoch.beacon is None or self._proven.get(open_epoch.epoch) == open_epoch.beacon:
            return
        for name, provider in self._providers.items():
            context = Context(
                epoch=open_epoch.epoch,
                seconds=open_epoch.parameters.epoch_length,
                beacon=open_epoch.beacon,
                parameters=open_epoch.parameters,
                domain=self._quorum.domain,
                leases={key: row for key, row in view.leases.items() if row.service == name and not row.closed},
                state=view.services[name],
            )
            for kind, table in (await provider.prove(context)).items():
                await self._certify(kind, table)
        self._proven[open_epoch.epoch] = open_epoch.beacon
        self._gathering, self._gathered = (open_epoch.epoch, open_epoch.beacon), {}
        if len(self._proven) > PROVEN_KEPT:
            del self._proven[min(self._proven)]

    async def _gather(self, open_epoch: OpenEpoch) -> None:
        """What has come to the providers since they answered: whole batches at once, less than that now and then."""
        if self._gathering != (open_epoch.epoch, open_epoch.beacon):
            return
        now = asyncio.get_running_loop().time()
        is_due = now >= self._gathered_at + open_epoch.parameters.epoch_length / PIECES
        for provider in self._providers.values():
            for kind, table in (await provider.gather(self._gathered)).items():
                count = len(table) if is_due else len(table) - len(table) % ROWS_AT_ONCE
                for at in range(0, count, ROWS_AT_ONCE):
                    piece = np.arange(at, min(at + ROWS_AT_ONCE, count))
                    await self._certify(kind, table.take(piece))
                    self._gathered[kind] = self._gathered.get(kind, 0) + len(piece)
                    self._gathered_at = now

    async def _send(self, open_epoch: OpenEpoch) -> None:
        if self._sent >= open_epoch.epoch:
            return
        await self._certify(LEASE, Table.of(Lease, await self._book.unknown_leases(self._clock())))
        self._vouchers = {}
        await self._send_vouchers()
        for provider in self._providers.values():
            for kind, table in (await provider.collect()).items():
                await self._certify(kind, table)
        self._sent = open_epoch.epoch

    async def _send_last(self, open_epoch: OpenEpoch) -> None:
        """Vouchers that came since the epoch began: what was served is paid before its lease can end."""
        anchor_time = open_epoch.anchor_time
        last = min(LAST_SECONDS, self._parameters.epoch_length // 4)
        if self._closing >= open_epoch.epoch or anchor_time is None or self._clock() < anchor_time - last:
            return
        await self._send_vouchers()
        self._closing = open_epoch.epoch

    async def _send_vouchers(self) -> None:
        vouchers = await self._book.unsettled_vouchers()
        fresh = [voucher for voucher in vouchers if voucher.amount > self._vouchers.get(voucher.lease, 0)]
        await self._certify(VOUCHER, Table.of(Voucher, fresh))
        self._vouchers = {voucher.lease: voucher.amount for voucher in vouchers}

    async def _certify(self, kind: str, table: Table[Any]) -> None:
        for at in range(0, len(table), ROWS_AT_ONCE):
            piece = table.take(np.arange(at, min(at + ROWS_AT_ONCE, len(table))))
            held = await self._quorum.certify(make_batch(kind, piece, self._key, self._quorum.domain))
            self.batches_sent += 1
            log.info("%d rows of %s are held for epoch %d", len(piece), kind, held.epoch)
