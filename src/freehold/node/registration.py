"""The node on chain: registered by its operator, at its endpoint, with its bond.

A start that was interrupted is completed by the next: each step reads what is there, and changes what is missing.
Invariant: nothing is sent that the chain has already, and a key that belongs to another operator is never fought over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from freehold.chain.contracts import Registry, Staking, Token
from freehold.chain.contracts.registry import EndpointUpdated, NodeRegistered
from freehold.chain.journal import Journal
from freehold.chain.rpc import Log, Rpc, hexadecimal
from freehold.chain.transactor import Sender, Sent
from freehold.market.network import Network
from freehold.protocol.errors import Refused, Unavailable
from freehold.protocol.keys import Key
from freehold.protocol.typed import Message, keccak
from freehold.protocol.units import ZERO_ADDRESS, Address, Signature, Uint256

log = logging.getLogger(__name__)

SIGNATURE_SECONDS = 3600  # chain time
LONGEST_PAUSE = 5.0


class RegisterNode(Message, frozen=True, kw_only=True):
    """What a node's key signs so that its operator may register it; the Registry has the same type."""

    operator: Address
    node: Address
    endpoint: str
    payout: Address
    nonce: Uint256
    deadline: Uint256


class Registrar(Protocol):
    """Makes the chain know this node at this endpoint; returns once it does."""

    async def __call__(self, endpoint: str) -> None: ...


class Plan(NamedTuple):
    """Whose the node is, the bond that it shall have (base units), and where its transactions are noted until they are
    decided: so a node killed while it bonds does not bond twice."""

    operator: Key
    node: Key
    bond: int
    journal: Path | None = None


class ChainRegistrar:
    """Registration through the contracts. `say` is told what it waits for, or nothing."""

    def __init__(self, network: Network, plan: Plan, say: Callable[[str], None]) -> None:
        self._network = network
        self._plan = plan._replace(bond=max(plan.bond, network.parameters.minimum_bond))
        self._say = say

    async def __call__(self, endpoint: str) -> None:
        """Register, update the endpoint, stake what is missing: again and again until all stands.

        Refused where the key is another operator's, or was retired: trying again cannot help.
        """
        pause = 0.2
        async with Rpc(self._network.rpc_url, chain_id=self._network.chain_id) as rpc:
            journal = Journal(self._plan.journal) if self._plan.journal else None
            sender = Sender(rpc, self._plan.operator.secret, confirmations=1, journal=journal)
            while True:
                try:
                    await self._bring_about(rpc, sender, endpoint)
                    return
                except Unavailable as error:
                    self._say(error.message)
                    log.info("not registered yet: %s", error.message)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    async def _bring_about(self, rpc: Rpc, sender: Sender, endpoint: str) -> None:
        """Send everything that is missing, then wait for all of it: each wait is as long as a block or two."""
        sent: list[Sent] = []
        try:
            await self._register(rpc, sender, endpoint, sent)
            await self._stake(rpc, sender, sent)
        except Unavailable:
            await _wait(sender, sent)  # what was sent must not be sent again by the next try
            raise
        await _wait(sender, sent)

    async def _register(self, rpc: Rpc, sender: Sender, endpoint: str, sent: list[Sent]) -> None:
        registry, node = Registry(rpc, self._network.contracts["registry"]), self._plan.node
        if await registry.retired(node.address):
            raise Refused(f"node {node.address} was retired", hint="Give the node a new key.")
        owner = await registry.operator_of(node.address)
        if owner not in (ZERO_ADDRESS, sender.address):
            raise Refused(f"node {node.address} is registered by {owner}, not by {sender.address}")
        if owner == ZERO_ADDRESS:
            await self._check_gas(rpc, sender)
            header = await rpc.header("latest")
            request = RegisterNode(
                operator=sender.address,
                node=node.address,
                endpoint=endpoint,
                payout=ZERO_ADDRESS,
                nonce=await registry.nonces(node.address),
                deadline=(header.timestamp if header else 0) + SIGNATURE_SECONDS,
            )
            signature = sign_registration(request, node, self._network.chain_id, registry.address)
            call = registry.register(node.address, endpoint, ZERO_ADDRESS, request.deadline, bytes(signature))
            sent.append(await sender.send(call))
            log.info("registering %s at %s", node.address, endpoint)
        elif await self._known_endpoint(rpc, registry) != endpoint:
            await self._check_gas(rpc, sender)
            sent.append(await sender.send(registry.update_endpoint(node.address, endpoint)))
            log.info("%s moves to %s", node.address, endpoint)

    async def _known_endpoint(self, rpc: Rpc, registry: Registry) -> str | None:
        """The last endpoint in the events of this node; they are few, and found by its topic."""
        head = await rpc.block_number()
        topics = [None, None, hexadecimal(bytes(12) + self._plan.node.address)]
        logs: list[Log] = await rpc.get_logs(self._network.deployment_block, head, [registry.address], topics)
        for entry in reversed(logs):
            event = registry.decode(entry)
            if isinstance(event, NodeRegistered | EndpointUpdated):
                return event.endpoint
        return None

    async def _stake(self, rpc: Rpc, sender: Sender, sent: list[Sent]) -> None:
        node = self._plan.node.address
        staking = Staking(rpc, self._network.contracts["staking"])
        token = Token(rpc, self._network.contracts["token"])
        under_way = await sender.find(f"stake {node}")
        if under_way is not None:
            await sender.wait(under_way)
        position = await staking.position(sender.address, node)
        missing = self._plan.bond - position.bond
        if missing <= 0:
            return
        held = await token.balance_of(sender.address)
        if held < missing:
            raise Unavailable(f"operator {sender.address} has {held} tokens, and its bond lacks {missing}")
        if await token.allowance(sender.address, staking.address) < missing:
            sent.append(await sender.send(token.approve(staking.address, missing)))
        sent.append(await sender.send(staking.stake(node, missing), intent=f"stake {node}"))
        log.info("bonding %d for %s", missing, node)

    async def _check_gas(self, rpc: Rpc, sender: Sender) -> None:
        if not await rpc.balance(sender.address):
            raise Unavailable(f"operator {sender.address} has nothing to pay gas with")


async def _wait(sender: Sender, sent: list[Sent]) -> None:
    for transaction in sent:
        await sender.wait(transaction)


def sign_registration(request: RegisterNode, node: Key, chain_id: int, registry: Address) -> Signature:
    """The node's consent, under the Registry's own EIP-712 domain."""
    kind = keccak(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
    parts = kind + keccak(b"Freehold Registry") + keccak(b"1") + chain_id.to_bytes(32) + bytes(12) + registry
    return node.sign_digest(keccak(b"\x19\x01" + keccak(parts) + request.struct_hash()))
