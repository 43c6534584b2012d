"""Having a quorum hold a client's deltas: at once while few do, now and then once there were many.

Members take a limited number of batches of one client in an epoch, and reservations need some of them. So the first
PROMPT batches of deltas in an epoch go as soon as somebody waits for one, and all that wait share it; from then on, or
once the members say that they take no more, nobody waits: one batch in each LATER-th part of an epoch takes along
whatever has come since. What waits is in the book, and its node signed it too: the node hands its newest delta in with
the evidence of the next epoch by itself, and whoever opens the book next certifies what it finds there.

Invariant: of one client's batches in one epoch, at most PROMPT + LATER are deltas of this process; what is not
certified yet is durable at both sides.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Protocol

from freehold.market.quorum import Quorum, is_quota
from freehold.protocol.batches import make_batch
from freehold.protocol.errors import FreeholdError, Overloaded
from freehold.protocol.keys import Key
from freehold.protocol.tables import Table
from freehold.services.storage.client_groups import Group
from freehold.services.storage.terms import DELTA, Delta

log = logging.getLogger(__name__)

PROMPT = 80  # batches in an epoch; with LATER less than half of what members take of a client (`oracle/quotas.py`)
LATER = 40
CLOSE_SECONDS = 5.0  # for what waits to be certified at the end


class DeltaBook(Protocol):
    """Where a client keeps its deltas. Writes are durable when they return."""

    async def uncertified_deltas(self) -> Sequence[Delta]:
        """The newest delta of each lease of which no quorum holds the newest."""

    def mark_deltas(self, deltas: Sequence[Delta]) -> Coroutine[Any, Any, None]:
        """A quorum holds these."""


class Pace:
    """When the next batch is due; `seconds` is an epoch's length. Times are of any clock that only goes on."""

    def __init__(self, seconds: float) -> None:
        self._between = seconds / LATER
        self.epoch = 0  # of the last batch that was held
        self._count = 0
        self._last = 0.0
        self.is_spent = False  # nobody waits for a batch any more

    def wait(self, now: float) -> float:
        """Seconds until the next batch may go."""
        return max(0.0, self._last + self._between - now) if self.is_spent else 0.0

    def begin(self, now: float) -> None:
        """A batch goes."""
        self._last = now

    def held(self, epoch: int) -> None:
        """Members hold it, for this epoch."""
        if epoch > self.epoch:
            self.epoch, self._count = epoch, 0
        self._count += 1
        self.is_spent = self._count >= PROMPT

    def refuse(self) -> None:
        """Members take no more in this epoch."""
        self.is_spent = True


class Certifier:
    """One client's deltas."""

    def __init__(
        self, key: Key, quorum: Quorum, book: DeltaBook, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._key = key
        self._quorum = quorum
        self._book = book
        self._clock = clock
        self._pace = Pace(seconds)
        self._rounds: Group[None, None] = Group(self._round)
        self._later: asyncio.Task[None] | None = None
        self._marking: asyncio.Task[None] | None = None
        self._told = -1  # the epoch of which the log says that certificates are put off

    async def certify(self) -> None:
        """Have a quorum hold all deltas in the book, or leave that to a batch that is due later."""
        await self._rounds.do(None)

    async def close(self) -> None:
        """End what is under way; what was put off goes now, as far as that takes no time."""
        if self._later is not None:
            self._later.cancel()
            await asyncio.gather(self._later, return_exceptions=True)
        await self._rounds.close()
        if self._later is not None:
            with suppress(FreeholdError, TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._send()
        with suppress(FreeholdError):
            await self._marked()

    async def _round(self, waiting: Sequence[None]) -> Sequence[None]:
        if self._pace.wait(self._clock()):
            self._put_off()
        else:
            try:
                await self._send()
            except Overloaded as error:
                if not is_quota(error):
                    raise
                self._pace.refuse()
                self._put_off()
        return waiting

    async def _send(self) -> None:
        await self._marked()
        deltas = list(await self._book.uncertified_deltas())
        if not deltas:
            return
        self._pace.begin(self._clock())
        batch = make_batch(DELTA, Table.of(Delta, deltas), self._key, self._quorum.domain)
        held = await self._quorum.certify(batch, await_quota=False)
        self._pace.held(held.epoch)
        # Nobody waits for this: what is not written down when the process ends is certified twice.
        self._marking = asyncio.create_task(self._book.mark_deltas(deltas))

    async def _marked(self) -> None:
        marking, self._marking = self._marking, None
        if marking is not None:
            await marking

    def _put_off(self) -> None:
        if self._told < self._pace.epoch:
            self._told = self._pace.epoch
            log.info("epoch %d has had its share of this account's batches: lists are certified later", self._told)
        if self._later is None or self._later.done():
            self._later = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        """Until all is certified, or an epoch has begun in which batches go at once again."""
        while self._pace.is_spent and await self._book.uncertified_deltas():
            await asyncio.sleep(self._pace.wait(self._clock()))
            try:
                await self._rounds.do(None)
            except FreeholdError as error:
                log.warning("lists are not certified yet: %s", error.message)
