"""Makes a network: deploys the contracts and writes the network file that every party reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from freehold.chain.deploy import DeployConfig, deploy
from freehold.chain.errors import ChainError
from freehold.chain.rpc import Rpc
from freehold.market.network import MemberRecord, Network
from freehold.protocol.parameters import Parameters
from freehold.protocol.units import Address


class Plan(NamedTuple):
    """What a deployment needs beside the chain. Supplies are base units of the token.

    `artifacts`: a folder with the contracts compiled for the chain's fork; None: the package's own.
    """

    name: str
    members: tuple[MemberRecord, ...]
    parameters: Parameters
    treasury: Address
    initial_supply: int
    cap: int
    artifacts: Path | None = None


async def deploy_network(rpc: Rpc, deployer: bytes, plan: Plan) -> Network:
    """Deploy all contracts by the key `deployer` and describe what stands. DeploymentFailed, InvalidInput."""
    plan.parameters.check()
    parameters = plan.parameters
    config = DeployConfig(
        members=tuple(member.address for member in plan.members),
        parameters=parameters.to_bytes(),
        initial_price=parameters.initial_price,
        treasury=plan.treasury,
        initial_supply=plan.initial_supply,
        initial_subsidy=parameters.initial_subsidy,
        halving_epochs=parameters.halving_epochs,
        dispute_window=parameters.dispute_window,
        thaw_epochs=parameters.thaw_epochs,
        max_price_age=parameters.max_price_age,
        cap=plan.cap,
    )
    # The network file names the deployment's block by its hash, so no reorg may replace that block any more.
    at = await deploy(rpc, deployer, config, confirmations=parameters.finality_depth, artifacts=plan.artifacts)
    header = await rpc.header(at.block)
    if header is None:
        raise ChainError(f"{rpc.url} does not know the deployment's block {at.block}")
    return Network(
        name=plan.name,
        chain_id=at.chain_id,
        rpc_url=rpc.url,
        contracts={name: Address(address) for name, address in at.to_json()["contracts"].items()},
        deployment_block=at.block,
        deployment_hash=header.hash,
        deployment_time=header.timestamp,
        members=plan.members,
        parameters=parameters,
    )


def with_urls(network: Network, rpc_url: str, urls: Sequence[str]) -> Network:
    """The same network where it listens now."""
    members = tuple(replace(member, url=url) for member, url in zip(network.members, urls, strict=True))
    return replace(network, rpc_url=rpc_url, members=members)
