"""A service on its way: slices of it ordered one after another at one node, and at another when that one fails.

The first order starts it, each further one extends it (`node/orders_services.py`): it is paid for as it runs, a slice
at a time, and what is not used of a slice when it is stopped is not billed. One slice is always ordered ahead. While it
is healthy the account's root says where it is, under an id that stays: its URL does not change when it moves.

Invariant: at most two slices are ordered at one time, within the job's purse.
"""

from __future__ import annotations

import asyncio

from freehold.client.jobs_checks import Piece, result_of
from freehold.client.jobs_market import Market
from freehold.client.jobs_money import CapReached
from freehold.client.jobs_orders import NodeFailed, Wanted
from freehold.client.jobs_pool import Pool, Seat, Without
from freehold.client.jobs_steps import Means, PieceFailed
from freehold.services.compute.ordering.checks import most_cost
from freehold.services.compute.ordering.survey import Offered


class ServiceRun:
    """The one piece of a step that is a service. It ends by the job's deadline, its cap, or when it is stopped."""

    def __init__(self, name: str, piece: Piece, market: Market, means: Means) -> None:
        self.name = name
        self.piece = piece
        self.means = means
        self.pool = Pool(means.client, market.offers, self._reserve, self._not_opened)

    def _reserve(self, seat: Seat) -> int:
        cost = most_cost(self.piece.most, seat.offered.price)
        return max(cost, min(2 * cost, self.means.desk.free))

    def _not_opened(self, offered: Offered) -> None:
        self.means.evidence.failed(offered.node, offered.operator, int(self.means.clock()))

    async def run(self) -> None:
        """Until no further slice may be ordered. PieceFailed where it runs nowhere."""
        for row in self.piece.open:
            try:
                await self.means.desk.resume(row, self.piece.task)
            except NodeFailed:
                self.piece.bad_nodes.add(row.node)
        self.piece.open = []
        while True:
            seat = await self.pool.acquire(Without((), self.piece.bad_nodes))
            try:
                await self._run_at(seat)
                return
            except NodeFailed as error:
                await self._move(seat, error)
            finally:
                self.pool.release(seat)

    async def _run_at(self, seat: Seat) -> None:
        """Slices at one node, the next one ordered while one runs."""
        wanted = Wanted(self.name, self.piece.row.number, self.piece.task, self.piece.most, "service")
        ahead = [asyncio.ensure_future(self.means.desk.run(seat.node, wanted)) for _ in range(2)]
        try:
            while True:
                try:
                    row = await ahead.pop(0)
                except CapReached:
                    if ahead:
                        continue
                    raise
                if result_of(row).ended not in ("time", "fuel", "stopped", "exited"):
                    raise NodeFailed(f"the service ended: {result_of(row).ended}")
                ahead.append(asyncio.ensure_future(self.means.desk.run(seat.node, wanted)))
        finally:
            for one in ahead:
                one.cancel()
            await asyncio.gather(*ahead, return_exceptions=True)

    async def _move(self, seat: Seat, error: NodeFailed) -> None:
        await self.means.desk.stop_all(self.name)  # the slice ahead: else it would be paid for beside the next node's
        seat.failed = True
        self.piece.bad_nodes.add(seat.offered.node)
        self.means.evidence.failed(seat.offered.node, seat.offered.operator, int(self.means.clock()))
        data = {"number": 0, "node": str(seat.offered.node), "operator": str(seat.offered.operator)}
        await self.means.note(self.name, "failure", data | {"reason": error.reason})
        self.piece.failures += 1
        if self.piece.failures > self.means.retries:
            raise PieceFailed(f"service {self.name!r} failed {self.piece.failures} times, at last: {error.reason}")
