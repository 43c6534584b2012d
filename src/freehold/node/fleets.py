"""Fleets as the chain has them, for a node that is shown a list of devices: are they its own operator's, and live?"""

from __future__ import annotations

from freehold.chain.contracts import Fleets, Registry
from freehold.chain.rpc import Rpc
from freehold.market.network import Network
from freehold.protocol.errors import NotFound, Refused
from freehold.protocol.units import ZERO_ADDRESS, Address, Hash
from freehold.services.seam import LiveFleet


class ChainFleets:
    """`find` for one node. The operator is asked for each time: a node may be registered after it has started."""

    def __init__(self, network: Network, node: Address) -> None:
        self._network = network
        self._node = node

    async def find(self, fleet: Hash) -> LiveFleet:
        """NotFound; Refused where it is retired, or another operator's; ChainError."""
        at = self._network.contracts
        async with Rpc(self._network.rpc_url, chain_id=self._network.chain_id, attempts=2) as rpc:
            record = await Fleets(rpc, at["fleets"]).fleets(fleet)
            if record.operator == ZERO_ADDRESS:
                raise NotFound(f"the chain has no fleet {fleet}", hint="Register it first: `freehold fleet register`.")
            operator = await Registry(rpc, at["registry"]).operator_of(self._node)
        if record.operator != operator:
            raise Refused(
                f"fleet {fleet} is {record.operator}'s, and this node is {operator}'s",
                hint="Send its devices to a node of its own operator.",
            )
        if record.retired:
            raise Refused(f"fleet {fleet} is retired", hint="Register its devices in a new fleet.")
        return LiveFleet(record.root, record.count_)
