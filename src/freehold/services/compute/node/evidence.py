"""Receipts and opinions on their way to the members, and what committed states say of receipts.

    collect   once an epoch: every receipt that the committed state does not have and that still counts
    gather    what has come since, in the order in which it came; opinions too
    commit    which receipts the state has: waiting, paid, held, wrong

Invariant: a receipt goes out in each epoch from the one in which it was given until the state has it or it counts no
more, through restarts at any moment: what `collect` gives is read from SQL, and what `gather` gives begins no later
than where the last `collect` ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from freehold.protocol.state import LeaseState
from freehold.protocol.tables import Table
from freehold.protocol.units import Address, Hash
from freehold.services.compute.node.orders import Orders
from freehold.services.compute.node.orders_credits import Credits
from freehold.services.compute.terms import JOB, OPINION, RECEIPT, Opinion, Receipt, WorkState

REMEMBERED_SECONDS = 7 * 86400  # for which a client can look up an order that has run out


class Evidence:
    """What one node has to show."""

    def __init__(self, address: Address, orders: Orders, credits: Credits, clock: Callable[[], int]) -> None:
        self._address, self._orders, self._credits, self._clock = address, orders, credits, clock
        self._receipts: list[Receipt] = []  # in the order in which they came; the first ones of past epochs go
        self._collected: int | None = None  # where the last `collect` since the last `commit` stood
        self._given: dict[Hash, Receipt] = {}  # while SQL is read, so that none is missed
        self._opinions: list[Opinion] = []
        self._epoch = 0
        self.committed = 0

    async def start(self, committed: int) -> None:
        """Take up what is owed."""
        self.committed = committed
        await self._read_owed({})

    def given(self, receipt: Receipt, key: Hash) -> None:
        """A receipt has become durable."""
        self._receipts.append(receipt)
        self._given[key] = receipt
        self._credits.owe(receipt.lease, key, receipt.measure)

    def say(self, opinion: Opinion) -> None:
        """An opinion on a case; one on another epoch's seats comes too late."""
        if opinion.epoch == self._epoch:
            self._opinions.append(opinion)

    def begin(self, epoch: int) -> None:
        """The epoch's beacon is known: from now on `gather` is asked. Again, with another beacon: from the start.

        If `collect` was asked before in this epoch, what came since is still to go out; else `collect` is to come.
        """
        if epoch == self._epoch:
            return
        if self._collected is None:
            self._receipts.clear()
        else:
            del self._receipts[: self._collected]
            self._collected = 0  # an epoch that is revoked comes again without being committed, nor collected for
        self._opinions = []
        self._epoch = epoch

    async def collect(self) -> Mapping[str, Table[Any]]:
        """Receipts that the committed state lacks."""
        at = len(self._receipts)
        rows = await self._orders.unsent(self.committed)
        self._collected = at
        return {RECEIPT: Table.of(Receipt, rows)}

    def gather(self, already: Mapping[str, int]) -> Mapping[str, Table[Any]]:
        """What follows the first `already` rows of this epoch."""
        return {
            RECEIPT: Table.of(Receipt, self._receipts[already.get(RECEIPT, 0) :]),
            OPINION: Table.of(Opinion, self._opinions[already.get(OPINION, 0) :]),
        }

    async def commit(self, epoch: int, rows: Iterable[WorkState], leases: Mapping[Hash, LeaseState]) -> None:
        """Take over a committed state."""
        stands = {row.id: row.stand for row in rows if row.role == JOB and row.node == self._address}
        await self._orders.settle(epoch, stands)
        self.committed = max(self.committed, epoch)
        self._collected = None
        await self._read_owed(leases)
        await self._orders.forget(epoch, self._clock() - REMEMBERED_SECONDS)

    async def _read_owed(self, leases: Mapping[Hash, LeaseState]) -> None:
        self._given.clear()
        owed = {key: (lease, measure) for lease, key, measure in await self._orders.owed(self.committed)}
        owed |= {key: (receipt.lease, receipt.measure) for key, receipt in self._given.items()}
        self._credits.settle([(lease, key, measure) for key, (lease, measure) in owed.items()], leases)
