"""A node registers itself on a real chain: once, at its endpoint, with its bond; and what is missing it says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from freehold.chain.contracts import Registry, Staking, Token
from freehold.chain.contracts.registry import EndpointUpdated, NodeRegistered
from freehold.chain.errors import WrongChain
from freehold.chain.rpc import Rpc
from freehold.chain.transactor import Sender
from freehold.local.deployment import Plan as Deployment
from freehold.local.deployment import deploy_network
from freehold.market.network import MemberRecord, Network
from freehold.node.registration import ChainRegistrar, Plan
from freehold.protocol.errors import Refused
from freehold.protocol.keys import Key
from tests.local.chains import key, local_chain, until
from tests.protocol.world import MEMBERS, PARAMETERS
from tests.protocol.world import key as any_key

NODE, OPERATOR, OTHER = any_key(11), Key(key(6)), Key(key(7))
BOND = 3 * 10**18


@asynccontextmanager
async def deployed(directory: Path) -> AsyncIterator[tuple[Rpc, Network]]:
    treasury = Key(key(5))
    plan = Deployment(
        name="test",
        members=tuple(MemberRecord(m.address, m.public, "http://127.0.0.1:1") for m in MEMBERS),
        parameters=msgspec.structs.replace(PARAMETERS, thaw_epochs=24),
        treasury=treasury.address,
        initial_supply=10**26,
        cap=2**96 - 1,
    )
    async with local_chain(directory) as chain, Rpc(chain.url, chain_id=31337) as rpc:
        network = await deploy_network(rpc, treasury.secret, plan)
        yield rpc, network


async def give(rpc: Rpc, network: Network, tokens: int) -> None:
    sender = Sender(rpc, key(5))
    await sender.transact(Token(rpc, network.contracts["token"]).transfer(OPERATOR.address, tokens))


async def events(rpc: Rpc, network: Network) -> list[object]:
    registry = Registry(rpc, network.contracts["registry"])
    logs = await rpc.get_logs(network.deployment_block, await rpc.block_number(), [registry.address])
    return [registry.decode(entry) for entry in logs]


@pytest.mark.timeout(90)
def test_it_registers_once_moves_and_tops_up_its_bond(tmp_path: Path) -> None:
    said: list[str] = []

    async def scenario() -> None:
        async with deployed(tmp_path) as (rpc, network):
            registrar = ChainRegistrar(network, Plan(OPERATOR, NODE, BOND), said.append)
            # It waits for its tokens, and says so; the registration stands meanwhile.
            task = asyncio.create_task(registrar("http://127.0.0.1:9001"))
            await until(lambda: any("its bond lacks" in reason for reason in said))
            await give(rpc, network, 10 * BOND)
            await task
            staking = Staking(rpc, network.contracts["staking"])
            assert (await staking.position(OPERATOR.address, NODE.address)).bond == BOND
            first = await events(rpc, network)
            assert first == [NodeRegistered(OPERATOR.address, NODE.address, "http://127.0.0.1:9001", OPERATOR.address)]
            # Again: nothing is sent.
            sent = await rpc.call("eth_getTransactionCount", [str(OPERATOR.address), "latest"])
            await registrar("http://127.0.0.1:9001")
            assert await rpc.call("eth_getTransactionCount", [str(OPERATOR.address), "latest"]) == sent
            # Elsewhere, and with a larger bond.
            await ChainRegistrar(network, Plan(OPERATOR, NODE, 2 * BOND), said.append)("http://127.0.0.1:9002")
            assert (await events(rpc, network))[1:] == [
                EndpointUpdated(OPERATOR.address, NODE.address, "http://127.0.0.1:9002", OPERATOR.address)
            ]
            assert (await staking.position(OPERATOR.address, NODE.address)).bond == 2 * BOND
            # Never below the network's minimum, whatever is configured.
            await ChainRegistrar(network, Plan(OPERATOR, NODE, 0), said.append)("http://127.0.0.1:9002")
            assert (await staking.position(OPERATOR.address, NODE.address)).bond == 2 * BOND

            with pytest.raises(Refused, match="is registered by"):
                await ChainRegistrar(network, Plan(OTHER, NODE, BOND), said.append)("http://127.0.0.1:9002")
            registry = Registry(rpc, network.contracts["registry"])
            await Sender(rpc, OPERATOR.secret).transact(registry.retire(NODE.address))
            with pytest.raises(Refused, match="retired"):
                await registrar("http://127.0.0.1:9002")
            wrong = replace(network, chain_id=1)
            with pytest.raises(WrongChain):
                await ChainRegistrar(wrong, Plan(OPERATOR, NODE, BOND), said.append)("http://127.0.0.1:9002")

    asyncio.run(scenario())
