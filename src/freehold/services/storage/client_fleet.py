"""The n nodes that uploads of one code go to, and who takes over when one of them fails.

A fleet is shared by all uploads, and looked over again every half a minute and whenever it has failed; between, taking
it costs nothing. It keeps its nodes while they offer, so that they stay under the same leases. Shard i of a segment
goes to place (i + turn) mod n, where the turn moves on with each segment, so that every node holds data and parity
alike. Invariant: the operators of a segment's n nodes are distinct, whoever was replaced meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from freehold.market.placement import Candidate, Survey, choose
from freehold.protocol.errors import FreeholdError, InsufficientOperators, Unavailable
from freehold.protocol.units import Address
from freehold.services.storage.client_node import StorageNode

FRESH_SECONDS = 30.0


class Preparing(Protocol):
    """Who opens and covers leases (`client_sessions.py`)."""

    async def prepare(
        self, chosen: Sequence[Candidate], each: int
    ) -> tuple[list[StorageNode], dict[Address, FreeholdError]]:
        """Nodes that cover `each` more bytes, and what the others answered."""

    def expire(self, node: StorageNode) -> None:
        """What its locks cover must be worked out again."""


class Fleet:
    """`survey` says who offers so many free bytes now."""

    def __init__(self, count: int, survey: Callable[[int], Awaitable[Survey]], sessions: Preparing) -> None:
        self._count = count
        self._survey = survey
        self._sessions = sessions
        self._changing = asyncio.Lock()
        self._candidates: list[Candidate] = []
        self._known: dict[Address, Candidate] = {}  # with those that segments under way went to before
        self._surveyed = -FRESH_SECONDS
        self._turn = 0
        self.slots: list[StorageNode] = []
        self.failed: dict[Address, FreeholdError] = {}

    async def ready(self, each: int) -> None:
        """Fill all slots with nodes that cover `each` more bytes. InsufficientOperators says how many there are."""
        if self._is_ready(each):
            return
        async with self._changing:
            if self._is_ready(each):
                return
            slots = self.slots
            if len(slots) < self._count or not self._is_fresh(each) or self._has_failed():
                slots = await self._look(each)
            try:
                kept = [self._known[node.address] for node in slots]
                slots, refused = await self._sessions.prepare(kept, each) if kept else ([], {})
                self.failed |= refused
                while len(slots) < self._count:
                    found, refused = await self._sessions.prepare(self._choose(self._count - len(slots), slots), each)
                    slots = slots + found
                    self.failed |= refused
            except FreeholdError:
                self._surveyed = -FRESH_SECONDS
                raise
            self.slots = slots

    def draw(self) -> list[StorageNode]:
        """The nodes of the next segment's shards, by shard."""
        self._turn += 1
        return [self.slots[(shard + self._turn) % self._count] for shard in range(self._count)]

    def has_spare(self, nodes: Sequence[StorageNode]) -> bool:
        """Whether another operator could take over from one of these."""
        used = {self._operator(node) for node in nodes}
        return any(c.record.operator not in used and c.node not in self.failed for c in self._candidates)

    async def cover(self, nodes: Sequence[StorageNode], each: int) -> None:
        """Have each of these nodes cover `each` more bytes, as far as it serves."""
        short = [self._known[node.address] for node in nodes if not node.room.has(each)]
        if short:
            await self._sessions.prepare(short, each)

    async def renew(self, node: StorageNode, each: int) -> bool:
        """A node says that its locks do not cover what came: whether it serves once they were looked at again."""
        self._sessions.expire(node)
        return bool((await self._sessions.prepare([self._known[node.address]], each))[0])

    async def substitute(
        self, nodes: list[StorageNode], index: int, failed: dict[Address, FreeholdError], each: int
    ) -> None:
        """Put another node into a segment's `nodes` for the one at `index`, the last that `failed` it; the fleet goes
        on with it too.

        InsufficientOperators where nobody is left.
        """
        async with self._changing:
            self.failed |= failed
            node, others = nodes[index], nodes[:index] + nodes[index + 1 :]
            nodes[index] = self._find(others) or await self._prepare(node, others, each)

    def _find(self, others: Sequence[StorageNode]) -> StorageNode | None:
        """One of the fleet's nodes that may stand beside these: who took over from a failed one before."""
        used = {self._operator(other) for other in others}
        fitting = (n for n in self.slots if self._operator(n) not in used and n.address not in self.failed)
        return next(fitting, None)

    async def _prepare(self, node: StorageNode, others: Sequence[StorageNode], each: int) -> StorageNode:
        """A spare, in the slot of `node` too, if it has one and its operator none."""
        slots = [slot for slot in self.slots if slot is not node]
        while True:
            try:
                chosen = self._choose(1, [*others, *slots])
            except InsufficientOperators:
                chosen = self._choose(1, others)
            found, refused = await self._sessions.prepare(chosen, each)
            self.failed |= refused
            if found:
                used = {self._operator(slot) for slot in slots}
                if node in self.slots and self._operator(found[0]) not in used:
                    self.slots = [found[0] if slot is node else slot for slot in self.slots]
                return found[0]

    def _is_fresh(self, each: int) -> bool:
        return time.monotonic() - self._surveyed < FRESH_SECONDS and all(
            self._known[node.address].offer.capacity >= each for node in self.slots
        )

    def _is_ready(self, each: int) -> bool:
        return (
            len(self.slots) == self._count
            and self._is_fresh(each)
            and all(node.room.has(each) for node in self.slots)
            and not self._has_failed()
        )

    def _has_failed(self) -> bool:
        return any(node.address in self.failed for node in self.slots)

    async def _look(self, each: int) -> list[StorageNode]:
        """Survey anew: what has failed before may serve again. Those of the slots that go on offering."""
        found = await self._survey(each)
        self._candidates = found.candidates
        self._known |= {candidate.node: candidate for candidate in found.candidates}
        self.failed = {node: Unavailable(reason) for node, reason in found.refusals.items()}
        self._surveyed = time.monotonic()
        offering = {candidate.node for candidate in found.candidates}
        return [node for node in self.slots if node.address in offering]

    def _operator(self, node: StorageNode) -> Address:
        return self._known[node.address].record.operator

    def _choose(self, count: int, taken: Sequence[StorageNode]) -> list[Candidate]:
        used = list({node.address: self._known[node.address] for node in taken}.values())
        try:
            return choose(self._candidates, count, taken=used, avoid=self.failed)
        except InsufficientOperators as error:
            why = "; ".join(f"{node}: {reason.message}" for node, reason in sorted(self.failed.items()))
            if why:
                raise InsufficientOperators(f"{error.message} ({why})", **error.details) from None
            raise
