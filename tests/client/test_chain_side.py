"""Directory and money against real contracts on a real local chain."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from freehold.chain.contracts import Registry, Staking
from freehold.chain.rpc import Rpc
from freehold.chain.transactor import Sender
from freehold.client.money import Money
from freehold.local.deployment import Plan, deploy_network
from freehold.local.parameters import LocalSettings
from freehold.market.directory import ChainDirectory
from freehold.market.network import MemberRecord
from freehold.node.registration import ChainRegistrar
from freehold.node.registration import Plan as NodePlan
from freehold.protocol.errors import NotFound, Refused
from freehold.protocol.keys import Key
from freehold.protocol.units import ONE, Address
from tests.local.chains import key, local_chain

SETTINGS = LocalSettings()
TREASURY, OPERATOR, CLIENT = Key(key(0)), Key(key(1)), Key(key(2))
NODE, MEMBER = Key(b"n" * 32), Key(b"m" * 32)


class OneAccount:
    """Members that agree on one account's totals and proof."""

    def __init__(self, value: Any) -> None:
        self.value = value

    async def agree(self, path: str) -> Any:
        if self.value is None:
            raise NotFound("no such account")
        return self.value


def test_nodes_are_read_from_events_and_credits_are_bought_by_burning(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with local_chain(tmp_path / "chain") as chain, Rpc(chain.url, chain_id=31337) as rpc:
            mining = asyncio.create_task(chain.run())
            plan = Plan(
                name="test",
                members=(MemberRecord(MEMBER.address, MEMBER.public, "http://127.0.0.1:1"),),
                parameters=SETTINGS.parameters(),
                treasury=TREASURY.address,
                initial_supply=SETTINGS.initial_supply,
                cap=SETTINGS.cap,
            )
            network = await deploy_network(rpc, TREASURY.secret, plan)
            try:
                await check_money(network, rpc)
                await check_directory(network, rpc)
            finally:
                mining.cancel()
                await asyncio.gather(mining, return_exceptions=True)

    asyncio.run(scenario())


async def check_money(network: Any, rpc: Rpc) -> None:
    treasury = Money(network, rpc, OneAccount(None), TREASURY)  # type: ignore[arg-type]
    client = Money(network, rpc, OneAccount(None), CLIENT)  # type: ignore[arg-type]
    with pytest.raises(Refused, match="tokens are needed"):
        await client.buy(1)
    await treasury.send(CLIENT.address, 100 * ONE)
    await treasury.send(OPERATOR.address, 2 * SETTINGS.bond)
    tokens = await client.quote(10 * ONE + 1)
    assert tokens == 20 * ONE + 2  # a token is half a dollar
    assert await client.buy(tokens) == 10 * ONE + 1
    balance = await client.balance()
    assert (balance.tokens, balance.credits_paid_in, balance.price) == (80 * ONE - 2, 10 * ONE + 1, ONE // 2)
    assert balance.coins > 0
    assert await client.buy(ONE) == ONE // 2
    with pytest.raises(Refused, match="no report has become active"):
        await client.claim()


async def check_directory(network: Any, rpc: Rpc) -> None:
    directory = ChainDirectory(network, rpc)
    assert await directory.nodes() == []
    registrar = ChainRegistrar(network, NodePlan(OPERATOR, NODE, SETTINGS.bond), lambda _: None)
    await registrar("http://127.0.0.1:2")
    directory = ChainDirectory(network, rpc)
    (record,) = await directory.nodes()
    assert (record.node, record.operator, record.endpoint) == (NODE.address, OPERATOR.address, "http://127.0.0.1:2")
    assert record.bond == SETTINGS.bond
    sender = Sender(rpc, OPERATOR.secret, confirmations=1)
    staking, registry = Staking(rpc, network.contracts["staking"]), Registry(rpc, network.contracts["registry"])
    await sender.transact(staking.thaw(NODE.address, 1))
    await sender.transact(registry.update_endpoint(NODE.address, "http://127.0.0.1:3"))
    directory._read_at = float("-inf")
    (record,) = await directory.nodes()
    assert (record.endpoint, record.bond) == ("http://127.0.0.1:3", SETTINGS.bond - 1)
    await sender.transact(registry.retire(NODE.address))
    assert len(await directory.nodes()) == 1  # fresh enough: the chain is not asked again
    directory._read_at = float("-inf")
    assert await directory.nodes() == []
    assert Address(record.payout) == OPERATOR.address
