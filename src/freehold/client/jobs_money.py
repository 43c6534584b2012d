"""A job's purse: what it may cost, held to the unit, whatever nodes do.

Every order takes the most that it may come to before it is sent. When its receipt is here, what the receipt bills
stands in for it (never more: a receipt beyond its order does not count); when it is known that no receipt can come any
more, the order counts nothing. An order whose node fell silent goes on counting in full, and is not waited for.

Invariant: spent + held <= cap at any time; both add up amounts that were rounded up, so settlement never bills more.
"""

from __future__ import annotations

import asyncio

from freehold.client.jobs_units import format_credits
from freehold.protocol.errors import Corrupt, InsufficientCredits


class CapReached(InsufficientCredits):
    """The next order could bring the job above the most that it may cost. Details: cap, spent, held, free, needed."""

    code = "cap_reached"

    def __init__(self, purse: Purse, needed: int) -> None:
        wanted = purse.cap + needed - purse.free
        held = f", {format_credits(purse.held)} held by orders that nodes may still bill" if purse.held else ""
        super().__init__(
            f"this job may cost at most {format_credits(purse.cap)} ({format_credits(purse.spent)} spent{held}): "
            f"its next run may come to {format_credits(needed)}, and {format_credits(purse.free)} are left",
            hint=f"Order it again with `--most {format_credits(wanted, up=True).partition(' ')[0]}` or more (`most` in "
            "its spec); a smaller `work` in its `resources` makes each run cost less at most.",
            cap=str(purse.cap), spent=str(purse.spent), held=str(purse.held), free=str(purse.free), needed=str(needed),
        )  # fmt: skip


class Held:
    """What one order holds of a purse; `silent`: nobody knows when it will be known."""

    __slots__ = ("amount", "silent")

    def __init__(self, amount: int) -> None:
        self.amount = amount
        self.silent = False


class Purse:
    """Credits (base units) of one job."""

    def __init__(self, cap: int) -> None:
        self.cap = cap
        self.spent = 0
        self._held: set[Held] = set()
        self._changed = asyncio.Event()

    @property
    def held(self) -> int:
        """By orders that may still bring a receipt."""
        return sum(one.amount for one in self._held)

    @property
    def free(self) -> int:
        """What new orders may take."""
        return self.cap - self.spent - self.held

    async def take(self, amount: int) -> Held:
        """Set an amount aside, waiting for orders under way to give some back. CapReached where none will."""
        while self.free < amount:
            if all(one.silent for one in self._held):
                raise CapReached(self, amount)
            self._changed.clear()
            await self._changed.wait()
        return self.hold(amount)

    def hold(self, amount: int) -> Held:
        """Set aside what an order holds that was placed before a restart."""
        held = Held(amount)
        self._held.add(held)
        return held

    def settle(self, held: Held, cost: int) -> None:
        """Its receipt bills `cost` (0: there will be none). Corrupt if that is more than it holds."""
        if cost > held.amount:
            raise Corrupt(f"a receipt bills {cost} for an order of at most {held.amount}")
        if held in self._held:
            self._held.remove(held)
            self.spent += cost
            self._changed.set()

    def linger(self, held: Held) -> None:
        """Its node fell silent: it counts on, and nobody waits for it."""
        held.silent = True
        self._changed.set()
