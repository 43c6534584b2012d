"""`freehold operator list`: who holds what, bond, reputation, earned; by the last report and the chain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from freehold.cli.output import Group, Program, print_table

if TYPE_CHECKING:
    from freehold.cli.connection import Connection


@click.group(cls=Group)
def operator() -> None:
    """Who holds what, bond, reputation, earned."""


def show_operators(data: dict[str, Any]) -> None:
    from freehold.cli.amounts import format_amount, format_size

    rows = [
        [
            d["name"],
            d["operator"],
            format_size(d["holds"]),
            format_amount(int(d["bond"]), 0),
            d["reputation"],
            format_amount(int(d["earned"])),
            format_amount(int(d["claimed"])),
            d["state"],
        ]
        for d in data["operators"]
    ]
    print_table(["OPERATOR", "ADDRESS", "HOLDS", "BOND", "REPUTATION", "EARNED", "CLAIMED", "STATE"], rows)
    click.echo(f"as of the report of epoch {data['epoch']}; bond, earned and claimed in tokens", err=True)


@operator.command("list", show=show_operators)
@click.pass_obj
def list_(program: Program) -> dict[str, Any]:
    """Every registered operator: what its node holds, its bond, reputation, what it earned and claimed."""
    from freehold.cli.connection import run

    return run(_list(program))


async def _list(program: Program) -> dict[str, Any]:
    import asyncio

    from freehold.cli.connection import connect, known_names, name_of
    from freehold.protocol.units import Address

    names = known_names(program)
    async with connect(program) as connection:
        epoch = await connection.ledger.posted_epoch()
        nodes = await read_registrations(connection)
        state = await read_state(connection, epoch)
        rows = await asyncio.gather(
            *(_row(connection, Address(node), record, state) for node, record in sorted(nodes.items()))
        )
        listed = [row | {"name": name_of(names, row["operator"])} for row in rows]
        return {"epoch": epoch, "operators": sorted(listed, key=lambda row: (len(row["name"]), row["name"]))}


async def _row(connection: Connection, node: bytes, record: dict[str, str], state: dict[str, Any]) -> dict[str, Any]:
    from freehold.protocol.errors import FreeholdError
    from freehold.protocol.units import Address

    owner = Address(record["operator"])
    position = await connection.staking.position(owner, node)
    known = state["operators"].get(str(Address(node)), {})
    account = state["accounts"].get(str(owner), {})
    try:
        answer = await connection.node(Address(node), record["endpoint"]).get_json("/readyz")
        up = "ready" if answer["ready"] else f"not ready: {answer['why']}"
    except FreeholdError as error:
        up = f"offline: {error.message}"
    return {
        "operator": str(owner),
        "node": str(Address(node)),
        "endpoint": record["endpoint"],
        "bond": str(position.bond),
        "holds": int(known.get("holdings", 0)),
        "reputation": int(known.get("reputation", 0)),
        "earned": str(account.get("tokens_earned", 0)),
        "claimed": str(await connection.ledger.paid(owner)),
        "state": up,
    }


async def read_registrations(connection: Connection) -> dict[str, dict[str, str]]:
    """The live nodes by address, folded from the Registry's events."""
    from freehold.chain.contracts.registry import EndpointUpdated, NodeRegistered, NodeRetired, Registry

    logs = await connection.rpc.get_logs(
        connection.network.deployment_block, await connection.rpc.block_number(), [connection.registry.address]
    )
    nodes: dict[str, dict[str, str]] = {}
    for log in logs:
        event = Registry.decode(log)
        if isinstance(event, NodeRegistered | EndpointUpdated):
            nodes[str(event.node)] = {"operator": str(event.operator), "endpoint": event.endpoint}
        elif isinstance(event, NodeRetired):
            nodes.pop(str(event.node), None)
    return nodes


async def read_state(connection: Connection, epoch: int) -> dict[str, dict[str, Any]]:
    """Operators by node and accounts by address after `epoch`, recomputed from its bundle; empty before the first."""
    from freehold.cli.bundles import fetch_bundle

    if epoch == 0:
        return {"operators": {}, "accounts": {}}
    state = (await fetch_bundle(connection, epoch)).settlement.state
    return {
        "operators": {str(node): row.to_json() for node, row in state.operators.items()},
        "accounts": {str(row.account): row.to_json() for row in state.accounts},
    }
