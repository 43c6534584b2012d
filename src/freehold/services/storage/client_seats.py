"""Where an account's registers can stand: nodes that serve storage under its leases, of distinct operators.

Reading takes no lease. The leases of nodes that hold a group are looked for when the first of them is to change
something, for all of them at once. Invariant: a node is chosen only once it counts this account's leases as covered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from freehold.market.meeting import node_peer
from freehold.market.placement import choose
from freehold.protocol.errors import InsufficientOperators, Unavailable
from freehold.protocol.state import NodeRecord
from freehold.protocol.units import Address, Hash
from freehold.services.storage.client import StorageClient
from freehold.services.storage.client_node import StorageNode
from freehold.services.storage.client_registers import RegisterNode
from freehold.services.storage.client_sessions import Context, Sessions
from freehold.services.storage.terms import NAME

LEASES_SECONDS = 60.0  # for which a lease's id is taken to be the one that counts
ALLOWANCE = 8 << 20  # bytes a node: what an account may keep in registers there, before comfort


class SeatOffered(NamedTuple):
    """A registered node and its operator."""

    node: Address
    operator: Address
    acceptor: RegisterNode


class StorageSeats:
    """`Seats` (`client/node_heads.py`) over one account's storage."""

    def __init__(self, context: Context, storage: StorageClient, sessions: Sessions) -> None:
        self._context = context
        self._storage = storage
        self._sessions = sessions

    async def choose(self, count: int, avoid: Collection[Address]) -> Sequence[RegisterNode]:
        """`count` nodes under covered leases. InsufficientOperators, InsufficientCredits."""
        records = await self._context.directory.nodes()
        operators = {record.operator for record in records if record.node in avoid}
        found = (await self._storage.survey(ALLOWANCE)).candidates
        pool = [candidate for candidate in found if candidate.record.operator not in operators]
        while True:
            chosen = choose(pool, count)
            ready, refused = await self._sessions.prepare(chosen, ALLOWANCE)
            if not refused:
                return [self._at(node) for node in ready]
            pool = [candidate for candidate in pool if candidate.node not in refused]
            have = len({candidate.record.operator for candidate in pool})
            if have < count:
                reasons = "; ".join(sorted({error.message for error in refused.values()}))
                raise InsufficientOperators(f"{have} operators serve, {count} are needed: {reasons}", have=have)

    async def find(self, nodes: Collection[Address]) -> Mapping[Address, RegisterNode]:
        """Those of the nodes that are registered; their leases are looked for when they are needed."""
        records = [record for record in await self._context.directory.nodes() if record.node in nodes]
        leases = _Leases(self._sessions, [record.node for record in records])
        return {record.node: self._plain(record, leases) for record in records}

    async def everyone(self) -> Sequence[SeatOffered]:
        """Every registered node, to read from."""
        records = await self._context.directory.nodes()
        return [SeatOffered(r.node, r.operator, self._plain(r, _Leases(self._sessions, [r.node]))) for r in records]

    async def leased(self) -> Collection[Address]:
        """Nodes that this account has open leases with, as of the last report."""
        rows = (await self._context.leases.view()).leases.values()
        return {row.node for row in rows if row.service == NAME and not row.closed}

    def _at(self, node: StorageNode) -> RegisterNode:
        context, pair = self._context, node.leases
        leases = _Leases(self._sessions, [pair.node])
        peer = pair.peer(context.dial, context.network.domain, context.clock)
        return RegisterNode(pair.node, peer, lambda: leases.of(pair.node))

    def _plain(self, record: NodeRecord, leases: _Leases) -> RegisterNode:
        context = self._context
        peer = node_peer(context.dial, record.node, record.endpoint, context.network.domain, context.clock)
        return RegisterNode(record.node, peer, lambda: leases.of(record.node))


class _Leases:
    """The leases with the nodes of one group; looked at again now and then, since a lease may end and another begin."""

    def __init__(self, sessions: Sessions, nodes: Sequence[Address]) -> None:
        self._sessions = sessions
        self._nodes = nodes
        self._known: dict[Address, Hash] = {}
        self._looked = float("-inf")
        self._looking: asyncio.Task[None] | None = None

    async def of(self, node: Address) -> Hash:
        """The lease with a node; Unavailable where it does not serve now."""
        is_old = time.monotonic() - self._looked > LEASES_SECONDS
        if (node not in self._known or is_old) and (self._looking is None or self._looking.done()):
            self._looking = asyncio.create_task(self._look(self._nodes if is_old else self._missing()))
            self._looking.add_done_callback(lambda task: task.cancelled() or task.exception())  # whoever waits hears it
        if node not in self._known and self._looking is not None:  # nobody waits for what is only to be looked at again
            await asyncio.shield(self._looking)
        if node not in self._known:
            raise Unavailable(f"node {node} does not serve this account now")
        return self._known[node]

    def _missing(self) -> list[Address]:
        return [node for node in self._nodes if node not in self._known]

    async def _look(self, nodes: Sequence[Address]) -> None:
        self._looked = time.monotonic()
        ready, _ = await self._sessions.reading(nodes, 0, 0)
        self._known |= {node: found.leases.stream_id for node, found in ready.items()}
