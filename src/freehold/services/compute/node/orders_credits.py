"""What each lease owes for orders here: the node takes no order whose price its lock may not cover.

    promised   the most that orders which have not ended may be billed
    owed       the measures of receipts that the committed state has not decided on

Invariant: whatever the node takes, settled + ceil((promised + owed) x price) of a lease is at most its lock; so no
receipt that it gives can go unpaid for want of credits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from freehold.protocol.errors import InsufficientCredits, Refused
from freehold.protocol.messages import STREAM
from freehold.protocol.state import LeaseState
from freehold.protocol.units import Hash
from freehold.services.compute.terms import NAME, UNITS_PER_PRICE
from freehold.services.seam import Standing


def cost_of(measure: int, price: int) -> int:
    """Credits that a measure costs at the most: rounded up."""
    return -(-measure * price // UNITS_PER_PRICE)


def check_lease(standing: Standing) -> None:
    """Refused unless this is an open compute lease paid as a stream."""
    lease = standing.lease
    if lease.service != NAME or lease.mode != STREAM:
        raise Refused("this lease is not for computing as a stream")
    if standing.state is not None and standing.state.closed:
        raise Refused(f"this lease was closed in epoch {standing.state.closed}")


class Credits:
    """The measures that each lease is bound for."""

    def __init__(self) -> None:
        self._promised: defaultdict[Hash, dict[Hash, int]] = defaultdict(dict)  # by lease, by order
        self._owed: defaultdict[Hash, dict[Hash, int]] = defaultdict(dict)
        self._settled: dict[Hash, int] = {}  # of states that the book may not have taken over yet

    def promise(self, lease: Hash, order: Hash, most: int) -> None:
        """An order was taken."""
        self._promised[lease][order] = most

    def release(self, lease: Hash, order: Hash) -> None:
        """An order has ended, and is owed for no more than its receipt says."""
        _drop(self._promised, lease, order)

    def owe(self, lease: Hash, order: Hash, measure: int) -> None:
        """A receipt was given."""
        self._owed[lease][order] = measure

    def settle(self, unsettled: Iterable[tuple[Hash, Hash, int]], leases: Mapping[Hash, LeaseState]) -> None:
        """Take over a committed state: (lease, order, measure) of the receipts that it has not decided on."""
        self._owed.clear()
        for lease, order, measure in unsettled:
            self._owed[lease][order] = measure
        self._settled = {key: state.settled for key, state in leases.items()}

    def outstanding(self, lease: Hash) -> int:
        """The measure that the lease may still be billed for what was taken."""
        return sum(self._promised.get(lease, {}).values()) + sum(self._owed.get(lease, {}).values())

    def check(self, standing: Standing, most: int) -> None:
        """InsufficientCredits, saying how many, unless the lock covers `most` of the measure beside what is bound."""
        lease, key = standing.lease, standing.lease.struct_hash()
        settled = max(standing.settled, self._settled.get(key, 0))
        bound = settled + cost_of(self.outstanding(key) + most, lease.price)
        lapsed = standing.state is not None and standing.state.lapsed
        missing = bound - standing.lock
        if missing > 0 or lapsed or not standing.lock:
            raise InsufficientCredits(
                "this lease has lapsed: its lock is used up"
                if lapsed
                else f"the lock of {standing.lock} does not cover this order beside what is owed already"
                if standing.lock
                else "no certified reservation covers this lease",
                hint="Reserve more credits for this lease, and show the node the certificate.",
                missing=str(max(missing, 1)), lock=str(standing.lock), settled=str(settled),
            )  # fmt: skip


def _drop(table: defaultdict[Hash, dict[Hash, int]], lease: Hash, order: Hash) -> None:
    own = table.get(lease)
    if own is not None:
        own.pop(order, None)
        if not own:
            del table[lease]
