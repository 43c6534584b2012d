"""Makes a network: deploys the contracts and writes the network file that every party reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from freehold.chain.deploy import DeployConfig, Deployment, deploy
from freehold.chain.errors import ChainError
from freehold.chain.rpc import Rpc
from freehold.chain.transactor import Sender
from freehold.market.network import MemberRecord, Network
from freehold.protocol.errors import InvalidInput
from freehold.protocol.keys import Key
from freehold.protocol.parameters import Parameters
from freehold.protocol.units import ONE, Address, Hash
from freehold.services.judging import JUDGES

BOND_GAS = 200_000


class Plan(NamedTuple):
    """What a deployment needs beside the chain. Supplies and bonds are base units of the token, times seconds.

    Without a governor or a guardian, the treasury is it. Where the deployer is the treasury, it pays the first members'
    bonds; elsewhere they, or others for them, do that afterwards.
    `artifacts`: a folder with the contracts compiled for the chain's fork; None: the package's own.
    """

    name: str
    members: tuple[MemberRecord, ...]
    parameters: Parameters
    treasury: Address
    initial_supply: int
    cap: int
    governor: Address | None = None
    guardian: Address | None = None
    notice_epochs: int = 24
    pause_limit: int = 7 * 86_400
    member_bond: int = 0
    dispute_bond: int = 1_000 * ONE
    reveal_seconds: int = 6 * 3_600
    artifacts: Path | None = None


async def deploy_network(rpc: Rpc, deployer: bytes, plan: Plan) -> Network:
    """Deploy all contracts by the key `deployer` and describe what stands. DeploymentFailed, InvalidInput."""
    plan.parameters.check()
    parameters = plan.parameters
    least = max(judge.needed_thaw(parameters) for judge in JUDGES.values())
    if parameters.thaw_epochs < least:
        raise InvalidInput(
            f"thaw_epochs is {parameters.thaw_epochs}: whoever gives a wrong result could take its bond before it is "
            f"proven wrong, which takes up to {least} epochs even for short work"
        )
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
        epoch_length=parameters.epoch_length,
        freeze_lengths=parameters.freeze_lengths,
        claim_epochs=parameters.claim_epochs,
        answer_reports=parameters.answer_reports,
        tau=parameters.tau,
        governor=plan.governor or plan.treasury,
        guardian=plan.guardian or plan.treasury,
        notice_epochs=plan.notice_epochs,
        pause_limit=plan.pause_limit,
        member_bond=plan.member_bond,
        dispute_bond=plan.dispute_bond,
        reveal_seconds=plan.reveal_seconds,
        cap=plan.cap,
    )
    # The network file names the deployment's block by its hash, so no reorg may replace that block any more.
    at = await deploy(rpc, deployer, config, confirmations=parameters.finality_depth, artifacts=plan.artifacts)
    if plan.member_bond and Key(deployer).address == plan.treasury:
        await bond_members(rpc, deployer, at, config)
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


async def bond_members(rpc: Rpc, secret: bytes, at: Deployment, config: DeployConfig) -> None:
    """Pay every first member's bond out of the wallet behind `secret`."""
    contracts, sender = at.contracts(rpc), Sender(rpc, secret)
    approval = contracts.token.approve(at.members, config.member_bond * len(config.members))
    sent = [await sender.send(approval)]
    for member in config.members:
        # What it would cost cannot be asked before the approval is mined.
        sent.append(await sender.send(contracts.members.bond(member, config.member_bond), gas=BOND_GAS))
    for transaction in sent:
        await sender.wait(transaction)


def with_ends(network: Network, rpc_url: str, ends: Sequence[tuple[str, Hash]]) -> Network:
    """The same network where it listens now: each member's URL and certificate."""
    members = tuple(
        replace(member, url=url, fingerprint=fingerprint)
        for member, (url, fingerprint) in zip(network.members, ends, strict=True)
    )
    return replace(network, rpc_url=rpc_url, members=members)
