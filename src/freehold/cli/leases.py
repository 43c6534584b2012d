"""`freehold lease`: what this account has agreed on with operators, and ending it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from freehold.cli.output import Group, Program, confirm, print_table

if TYPE_CHECKING:
    from freehold.client.sdk import LeaseInfo


@click.group(cls=Group)
def lease() -> None:
    """List and close leases with operators."""


def show_leases(data: list[dict[str, Any]]) -> None:
    from freehold.cli.amounts import format_amount, short

    def state(row: dict[str, Any]) -> str:
        return f"closed in {row['closed']}" if row["closed"] else f"lapsed in {row['lapsed']}" if row["lapsed"] else ""

    print_table(
        ["LEASE", "OPERATOR", "PAID BY", "LOCKED", "SETTLED", "STATE"],
        [
            [
                short(d["lease"]),
                d["name"],
                d["mode"],
                *map(format_amount, (int(d["lock"]), int(d["settled"]))),
                state(d),
            ]
            for d in data
        ],
    )


@lease.command("list", show=show_leases)
@click.pass_obj
def list_(program: Program) -> list[dict[str, Any]]:
    """This account's leases: with whom, how they are paid, credits locked and settled."""
    from freehold.cli.connection import run

    return run(_list(program))


async def _list(program: Program) -> list[dict[str, Any]]:
    from freehold.cli.client import open_client

    async with open_client(program) as client:
        return [_describe(program, info) for info in await client.leases()]


def _describe(program: Program, info: LeaseInfo) -> dict[str, Any]:
    from freehold.cli.connection import known_names, name_of
    from freehold.protocol.messages import MODES

    operator = str(info.operator or info.node)
    return {
        "lease": str(info.lease),
        "operator": operator,
        "name": name_of(known_names(program), operator),
        "node": str(info.node),
        "service": info.service,
        "mode": MODES[info.mode],
        "lock": str(info.lock),
        "settled": str(info.settled),
        "lapsed": info.lapsed,
        "closed": info.closed,
    }


def show_closed(data: dict[str, Any]) -> None:
    click.echo(f"closed {len(data['leases'])} leases with {data['operator']}, from the open epoch's report on")
    click.echo(f"  its shards go {data['lapse_grace']} reports later")
    click.echo(f"  its credits can be reserved again {data['lock_release']} reports later")


@lease.command("close", show=show_closed)
@click.argument("operator")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.pass_obj
def close(program: Program, operator: str, yes: bool) -> dict[str, Any]:
    """End this account's leases with OPERATOR (a name or an address).

    Its nodes then delete what they keep: objects that were stored there lose those shards, and one that has fewer than
    k left is lost. What was proven and sent until then is still paid. The locked credits come free afterwards.
    """
    from freehold.cli.connection import run

    return run(_close(program, operator, yes))


async def _close(program: Program, operator: str, yes: bool) -> dict[str, Any]:
    from freehold.cli.client import open_client
    from freehold.cli.connection import find_address

    who = find_address(program, operator)
    confirm(
        program,
        f"End all leases with {operator}? It then deletes every shard that it keeps for this account: objects stored "
        "there lose them, and cannot be read once fewer than k are left.",
        yes=yes,
    )
    async with open_client(program) as client:
        parameters = client.network.parameters
        return {
            "operator": str(who),
            "leases": [str(key) for key in await client.close_leases(who)],
            "lapse_grace": parameters.lapse_grace,
            "lock_release": parameters.lock_release,
        }
