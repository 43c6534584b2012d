"""`freehold deploy`: the contracts on any EVM chain, and the network file that everybody needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.cli.output import Command, Program, confirm

if TYPE_CHECKING:
    from freehold.local.deployment import Plan


def show_network(data: dict[str, Any]) -> None:
    click.echo(f"deployed on chain {data['chain_id']} at block {data['deployment_block']}")
    for name, address in data["contracts"].items():
        click.echo(f"  {name:<13} {address}")
    click.echo(f"the network file is {data['path']}")


@click.command(cls=Command, show=show_network)
@click.option("--rpc", "rpc_url", required=True, help="The chain's JSON-RPC URL.")
@click.option("--config", "config", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="The network's name, members, parameters and supply (JSON).")  # fmt: skip
@click.option(
    "--out", "out", type=click.Path(path_type=Path), default="network.json", help="The network file to write."
)
@click.option(
    "--artifacts",
    "artifacts",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The contracts compiled for an older fork of the EVM, by scripts/compile_contracts.py.",
)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.pass_obj
def deploy(
    program: Program, rpc_url: str, config: Path, out: Path, artifacts: Path | None, yes: bool
) -> dict[str, Any]:
    """Deploy the contracts and write the network file. The wallet pays the gas, and has no rights afterwards."""
    from freehold.cli.connection import run
    from freehold.protocol.errors import Conflict

    if out.exists():
        raise Conflict(f"{out} exists, and is not overwritten", hint="Choose another file with --out.")
    plan = read_plan(config)._replace(artifacts=artifacts)
    return run(_deploy(program, rpc_url, plan, out, yes))


async def _deploy(program: Program, rpc_url: str, plan: Plan, out: Path, yes: bool) -> dict[str, Any]:
    from freehold.chain.deploy import ORDER
    from freehold.chain.rpc import Rpc
    from freehold.cli.wallets import open_wallet
    from freehold.local.deployment import deploy_network

    account = open_wallet(program)
    async with Rpc(rpc_url) as rpc:
        chain, balance = await rpc.chain_id(), await rpc.balance(account.address)
        question = f"Deploy {len(ORDER)} contracts to chain {chain} from {account.address} (balance {balance} wei)?"
        confirm(program, question, yes=yes)
        network = await deploy_network(rpc, account.key.secret, plan)
    network.save(out)
    return network.to_json() | {"path": str(out)}


def read_plan(path: Path) -> Plan:
    """The deployment's plan; InvalidInput names the key that is missing or wrong."""
    from freehold.local.deployment import Plan
    from freehold.market.network import MemberRecord
    from freehold.protocol.errors import InvalidInput
    from freehold.protocol.parameters import Parameters
    from freehold.protocol.units import Address

    try:
        value = json.loads(path.read_text())
        return Plan(
            name=str(value["name"]),
            members=tuple(MemberRecord.from_json(member) for member in value["members"]),
            parameters=Parameters.from_json(value["parameters"]),
            treasury=Address(value["treasury"]),
            initial_supply=int(value["initial_supply"]),
            cap=int(value["cap"]),
        )
    except KeyError as error:
        raise InvalidInput(f"{path} lacks {error}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidInput(f"{path} does not parse: {error}") from None
