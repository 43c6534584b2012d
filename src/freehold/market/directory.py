"""Live registrations and their bonds, folded from the Registry's and Staking's events up to the newest block.

Clients, and nodes that look for each other, may look at blocks that are not yet final: what they deal with are nodes
whose offers and leases they sign themselves, and settlement reads the registry on its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from freehold.chain.contracts.registry import EndpointUpdated, NodeRegistered, NodeRetired, Registry
from freehold.chain.contracts.staking import Slashed, Staked, Staking, ThawStarted, Withdrawn
from freehold.chain.rpc import Rpc
from freehold.market.network import Network
from freehold.protocol.state import NodeRecord
from freehold.protocol.units import Address

FRESH_SECONDS = 5.0  # within which the chain is not asked again


class ChainDirectory:
    """A `Directory` (`market/placement.py`) over one RPC end."""

    def __init__(self, network: Network, rpc: Rpc) -> None:
        self._network = network
        self._rpc = rpc
        self._registry = Registry(rpc, network.contracts["registry"])
        self._staking = Staking(rpc, network.contracts["staking"])
        self._next = network.deployment_block
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()
        self._live: dict[Address, NodeRegistered | EndpointUpdated] = {}
        self._bonds: dict[tuple[Address, Address], int] = {}

    async def nodes(self) -> Sequence[NodeRecord]:
        """Every live node, by address."""
        async with self._reading:
            if time.monotonic() - self._read_at > FRESH_SECONDS:
                await self._read()
                self._read_at = time.monotonic()
        return [
            NodeRecord(
                node=node,
                operator=event.operator,
                payout=event.payout,
                endpoint=event.endpoint,
                bond=self._bonds.get((event.operator, node), 0),
            )
            for node, event in sorted(self._live.items())
        ]

    async def _read(self) -> None:
        last = await self._rpc.block_number()
        for log in await self._rpc.get_logs(self._next, last, [self._registry.address, self._staking.address]):
            contract = Registry if log.address == self._registry.address else Staking
            event = contract.decode(log)
            if isinstance(event, NodeRegistered | EndpointUpdated):
                self._live[event.node] = event
            elif isinstance(event, NodeRetired):
                self._live.pop(event.node, None)
            elif isinstance(event, Staked | ThawStarted | Withdrawn | Slashed):
                self._bonds[event.operator, event.node] = event.bond
        self._next = last + 1
