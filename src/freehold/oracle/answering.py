"""A member answers what anybody demands on chain of a report that it has committed.

A demand that nobody answers revokes its report, so an honest report must not depend on somebody else's watcher. The
answer is worked out from the member's own bundle; members take turns, and whoever is first gets the demand's bond.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from freehold.chain.contracts import disputes as disputes_abi
from freehold.chain.follower import Follower
from freehold.chain.rpc import Rpc
from freehold.market.network import Network
from freehold.oracle.court import Court
from freehold.oracle.store import Store
from freehold.oracle.watching import Demand, make_answer
from freehold.protocol.bundle import decode_bundle, replay_bundle
from freehold.protocol.disputes import Answer
from freehold.protocol.errors import FreeholdError, ReplayMismatch
from freehold.protocol.messages import Report
from freehold.protocol.units import Address, Hash
from freehold.services.judging import JUDGES

log = logging.getLogger(__name__)

TURN = 4  # looks at the chain that a member leaves to each of those before it


class Answerer:
    """One member's answers. `position` is its place among the members: its turn."""

    def __init__(self, rpc: Rpc, network: Network, store: Store, court: Court, position: int, poll: float) -> None:
        self._rpc, self._network, self._store, self._court = rpc, network, store, court
        self._wait, self._poll = position * TURN * poll, poll
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, first: int) -> None:
        """From block `first` on until cancelled; demands made while the member was away are found again."""
        follower = Follower(
            self._rpc,
            [self._court.disputes],
            finality_depth=self._network.parameters.finality_depth,
            interval=self._poll,
        )
        try:
            async for batch in follower.run(first):
                for event in batch.events:
                    if isinstance(event.value, disputes_abi.Demanded):
                        self._spawn(self._answer(event.value))
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, demanded: disputes_abi.Demanded) -> None:
        report, challenger = Hash(demanded.report_hash), Address(demanded.challenger)
        found: tuple[Report, Answer] | None = None
        await asyncio.sleep(self._wait)
        while True:
            try:
                if not await self._court.is_demanded(demanded.epoch, report, challenger):
                    return
                found = found or await self._find(demanded.epoch, report, Demand(demanded.kind, demanded.position))
                if found is not None:
                    await self._court.answer(found[0], challenger, found[1])
                    return
            except ReplayMismatch as error:
                log.warning("epoch %d: a demand is left to those who signed its report: %s", demanded.epoch, error)
                return
            except (FreeholdError, OSError) as error:
                log.info("epoch %d: the demand of %s is not answered yet: %s", demanded.epoch, challenger, error)
            await asyncio.sleep(self._poll)

    async def _find(self, epoch: int, report: Hash, demand: Demand) -> tuple[Report, Answer] | None:
        """The report and what was demanded of it; None while the bundle here is another attempt's."""
        stored = await self._store.open_bundle(epoch)
        data = b"".join([piece async for piece in stored.pieces()])
        return await asyncio.to_thread(find_answer, data, report, demand)


def find_answer(data: bytes, report: Hash, demand: Demand) -> tuple[Report, Answer] | None:
    """What is demanded of the report of this hash, from its bundle; None if the bundle is another report's.

    Raises NotFound, ReplayMismatch.
    """
    bundle = decode_bundle(data, JUDGES)
    if bundle.report.struct_hash() != report:
        return None
    return bundle.report, make_answer(replay_bundle(bundle, JUDGES), bundle, JUDGES, demand)
