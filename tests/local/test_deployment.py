"""A local network's deployment: what its file names, and members whose bonds the treasury paid."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from freehold.chain.contracts import Members, Oracle, Token
from freehold.chain.rpc import Rpc
from freehold.local.deployment import Plan, deploy_network
from freehold.local.parameters import DEFAULT
from freehold.market.network import CONTRACTS, MemberRecord
from freehold.protocol.errors import InvalidInput
from freehold.protocol.keys import Key
from freehold.services.compute.court import needed_thaw
from tests.local.chains import key, local_chain

MEMBERS = tuple(MemberRecord(Key(key(i)).address, Key(key(i)).public, "") for i in range(1, 5))


def test_the_treasury_bonds_the_first_members(tmp_path: Path) -> None:
    async def main() -> None:
        async with local_chain(tmp_path) as chain, Rpc(chain.url, chain_id=31337) as rpc:
            treasury = Key(key(0)).address
            plan = Plan(
                name="local",
                members=MEMBERS,
                parameters=DEFAULT.parameters(),
                treasury=treasury,
                initial_supply=DEFAULT.initial_supply,
                cap=DEFAULT.cap,
                member_bond=DEFAULT.member_bond,
            )
            network = await deploy_network(rpc, key(0), plan)
            assert tuple(network.contracts) == CONTRACTS
            members = Members(rpc, network.contracts["members"])
            for record in MEMBERS:
                assert (await members.position(record.address)).bond == DEFAULT.member_bond
            token = Token(rpc, network.contracts["token"])
            assert await token.balance_of(members.address) == 4 * DEFAULT.member_bond
            assert await token.allowance(treasury, members.address) == 0
            assert await Oracle(rpc, network.contracts["oracle"]).governor() == treasury
            # Without bonds in the plan nothing is paid.
            unbonded = await deploy_network(rpc, key(0), plan._replace(member_bond=0))
            token = Token(rpc, unbonded.contracts["token"])
            assert await token.balance_of(unbonded.contracts["members"]) == 0

    asyncio.run(main())


def test_a_bond_that_thaws_before_a_result_is_proven_wrong_makes_no_network() -> None:
    parameters = DEFAULT.parameters()
    short = msgspec.structs.replace(parameters, thaw_epochs=needed_thaw(0, parameters) - 1)
    plan = Plan(
        name="local", members=MEMBERS, parameters=short, treasury=MEMBERS[0].address, initial_supply=1, cap=2,
    )  # fmt: skip
    with pytest.raises(InvalidInput, match="thaw_epochs"):
        asyncio.run(deploy_network(Rpc("http://127.0.0.1:1"), key(0), plan))
