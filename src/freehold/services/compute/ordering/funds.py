"""What the lock of a lease still covers, as its client counts it.

    free = lock - used - most of what runs        used: settled, or owed for receipts

Orders count as they are sent, receipts as they come in, and what other devices and former processes of the account have
ordered as the node says. Invariant: an order is counted before it is sent, and once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from freehold.protocol.units import Hash

OVER_LIMIT = 65536  # jobs that are known to be over


@dataclass
class Funds:
    """Of one lease; credits (base units) for its whole life."""

    lock: int = 0
    used: int = 0
    running: dict[Hash, int] = field(default_factory=dict)  # by job: the most that it may cost
    shown: set[Hash] = field(default_factory=set)  # of them: those that the node has answered for
    over: dict[Hash, None] = field(default_factory=dict)  # jobs whose cost is in `used`: the newest of them

    @property
    def taken(self) -> int:
        """What is settled, owed, or may come to be owed."""
        return self.used + sum(self.running.values())

    @property
    def free(self) -> int:
        """What one more order may cost."""
        return max(0, self.lock - self.taken)

    def begin(self, job: Hash, cost: int) -> bool:
        """Count an order that may cost so much; False if it is counted."""
        if job in self.running or job in self.over:
            return False
        self.running[job] = cost
        return True

    def show(self, job: Hash) -> None:
        """The node counts it too."""
        if job in self.running:
            self.shown.add(job)

    def drop(self, job: Hash) -> None:
        """It was not taken."""
        self.running.pop(job, None)
        self.shown.discard(job)

    def settle(self, job: Hash, cost: int) -> None:
        """It is over, and has come to so much."""
        if job in self.running:
            self.drop(job)
            self.used += cost
            self.over[job] = None
            if len(self.over) > OVER_LIMIT:
                del self.over[next(iter(self.over))]

    def learn(self, bound: int) -> None:
        """The node counts `bound` in all: settled, owed, and the most of what runs.

        While orders of this process run, some of its receipts may be on their way: then it is only ever more than what
        is counted here.
        """
        counted = bound - self._cost_of(self.shown)
        self.used = max(self.used, counted) if self.running else bound

    def lack(self, missing: int) -> None:
        """The node says that the lock covers so much less than what is bound with the last order."""
        self.used = max(self.used, self.lock + missing - self._cost_of(self.running))

    def _cost_of(self, jobs: Iterable[Hash]) -> int:
        return sum(self.running[job] for job in jobs)
