"""The n nodes that an upload goes to, and who takes over when one of them fails.

Shard i of segment s goes to slot (i + s) mod n, so that every node holds data and parity alike. A node that fails is
out for the whole upload: its slot goes to a spare of another operator. Invariant: at any time the slots' operators are
distinct, and a failed node never comes back into a slot.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from freehold.market.placement import Candidate, choose
from freehold.protocol.errors import FreeholdError, InsufficientOperators
from freehold.protocol.units import Address
from freehold.services.storage.client_node import StorageNode

Prepare = Callable[[Sequence[Candidate]], Awaitable[tuple[list[StorageNode], dict[Address, FreeholdError]]]]


class Fleet:
    """`prepare` opens and covers leases with candidates; it says who serves, and what the others answered."""

    def __init__(self, candidates: Sequence[Candidate], count: int, prepare: Prepare) -> None:
        self._candidates = {candidate.node: candidate for candidate in candidates}
        self._count = count
        self._prepare = prepare
        self._replacing = asyncio.Lock()
        self.slots: list[StorageNode] = []
        self.failed: dict[Address, FreeholdError] = {}

    async def assemble(self) -> None:
        """Fill all slots. InsufficientOperators says how many there are."""
        async with self._replacing:
            while len(self.slots) < self._count:
                ready, refused = await self._prepare(self._choose(self._count - len(self.slots)))
                self.slots += ready
                self.failed |= refused

    def slot(self, segment: int, shard: int) -> int:
        """Which slot a shard goes to."""
        return (shard + segment) % self._count

    @property
    def has_spare(self) -> bool:
        """Whether another operator could take over a slot."""
        used = {self._candidates[node.address].record.operator for node in self.slots}
        return any(c.record.operator not in used and c.node not in self.failed for c in self._candidates.values())

    async def replace(self, slot: int, node: StorageNode, error: FreeholdError) -> None:
        """Put a spare into the slot of a node that failed, unless that has been done already."""
        async with self._replacing:
            while self.slots[slot].address == node.address or self.slots[slot].address in self.failed:
                self.failed[self.slots[slot].address] = error
                ready, refused = await self._prepare(self._choose(1, but=slot))
                self.failed |= refused
                if ready:
                    self.slots[slot] = ready[0]

    def _choose(self, count: int, but: int | None = None) -> list[Candidate]:
        taken = [self._candidates[node.address] for i, node in enumerate(self.slots) if i != but]
        try:
            return choose(list(self._candidates.values()), count, taken=taken, avoid=self.failed)
        except InsufficientOperators as error:
            why = "; ".join(f"{node}: {reason.message}" for node, reason in sorted(self.failed.items()))
            if why:
                raise InsufficientOperators(f"{error.message} ({why})", **error.details) from None
            raise
