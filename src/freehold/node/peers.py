"""Other nodes, as a node finds them: where the registry says that they listen, known by the certificate they offer."""

from __future__ import annotations

from collections.abc import Callable

from freehold.market.meeting import node_peer
from freehold.market.placement import Directory
from freehold.net.client import Dial, Peer
from freehold.protocol.errors import NotFound
from freehold.protocol.typed import Domain
from freehold.protocol.units import Address


class Peers:
    """`find` gives a registered node."""

    def __init__(self, dial: Dial, directory: Directory, domain: Domain, clock: Callable[[], float]) -> None:
        self._dial = dial
        self._directory = directory
        self._domain = domain
        self._clock = clock

    async def find(self, node: Address) -> Peer:
        """NotFound where it is not registered; ChainError."""
        for record in await self._directory.nodes():
            if record.node == node:
                return node_peer(self._dial, node, record.endpoint, self._domain, self._clock)
        raise NotFound(f"node {node} is not registered")
