"""`freehold parameters`: what the network counts by, epoch by epoch; the governor changes it with notice."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.cli.output import Group, Program, confirm, print_table

if TYPE_CHECKING:
    from freehold.cli.connection import Connection
    from freehold.protocol.parameters import Parameters

# What contracts were deployed with and go by: a report by other numbers would be refused, or mean nothing.
FIXED = (
    *("dispute_window", "thaw_epochs", "max_price_age", "initial_price", "initial_subsidy", "halving_epochs"),
    *("freeze_lengths", "answer_reports", "claim_epochs"),
)
# What reports go by as scheduled, while a contract keeps its own number for another use.
KEPT = {
    "epoch_length": "the Ledger's freeze, thaws while frozen and the rate of claims keep the length of the deployment",
    "tau": "vouchers that are collected while frozen still burn what the deployment fixed",
}


@click.group(cls=Group)
def parameters() -> None:
    """The network's parameters, by epoch."""


def show_parameters(data: dict[str, Any]) -> None:
    sets = data["sets"]
    headings = ["PARAMETER", *(f"FROM EPOCH {one['from_epoch']}" for one in sets)]
    print_table(headings, [[name, *(one["parameters"][name] for one in sets)] for name in sets[0]["parameters"]])
    click.echo(f"only the governor, {data['governor']}, schedules others, from epoch {data['earliest']} on", err=True)


@parameters.command("show", show=show_parameters)
@click.pass_obj
def show(program: Program) -> dict[str, Any]:
    """The parameters in force and those that are scheduled, and who may change them from when on."""
    from freehold.cli.connection import run

    return run(_show(program))


async def _show(program: Program) -> dict[str, Any]:
    from freehold.cli.connection import connect

    async with connect(program) as connection:
        sets = await read_sets(connection)
        opened = await connection.ledger.posted_epoch() + 1
        current = max(start for start in sets if start <= opened)
        return {
            "governor": str(await connection.oracle.governor()),
            "earliest": await earliest(connection, sets),
            "sets": [
                {
                    "from_epoch": start,
                    "in_force": start == current,
                    "hash": str(sets[start].hash()),
                    "parameters": sets[start].to_json(),
                }
                for start in sorted(sets)
                if start >= current
            ],
        }


async def read_sets(connection: Connection) -> dict[int, Parameters]:
    """Every set of parameters by its first epoch, as the chain published it; of two for one epoch the later counts."""
    from freehold.chain.contracts.oracle import EVENTS, Deployed, Oracle, ParametersScheduled
    from freehold.protocol.parameters import Parameters

    topics = [f"0x{t.hex()}" for t, event in EVENTS.items() if event.kind in (Deployed, ParametersScheduled)]
    head, first = await connection.rpc.block_number(), connection.network.deployment_block
    logs = await connection.rpc.get_logs(first, head, [connection.oracle.address], [topics])
    sets: dict[int, Parameters] = {}
    for event in map(Oracle.decode, logs):
        if isinstance(event, Deployed):
            sets[1] = Parameters.from_bytes(event.parameters)
        elif isinstance(event, ParametersScheduled):
            sets[event.from_epoch] = Parameters.from_bytes(event.parameters)
    return sets


async def earliest(connection: Connection, sets: dict[int, Parameters]) -> int:
    """The first epoch from which parameters that are scheduled now may count: with notice, and not before others."""
    noticed = await connection.oracle.highest_epoch() + 1 + await connection.oracle.notice_epochs()
    return max(noticed, *sets)


def show_scheduled(data: dict[str, Any]) -> None:
    click.echo(f"from epoch {data['from_epoch']} on:")
    for name, (before, after) in data["changes"].items():
        click.echo(f"  {name:<18} {before} -> {after}")


@parameters.command("schedule", show=show_scheduled)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--from", "from_epoch", type=click.IntRange(min=1), required=True, help="Their first epoch.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.pass_obj
def schedule(program: Program, file: Path, from_epoch: int, yes: bool) -> dict[str, Any]:
    """Let other parameters count from an epoch on. Only the governor's wallet may.

    FILE is a JSON object of the parameters that change; the others stay as they are in that epoch. Parameters that are
    scheduled for the same epoch are replaced.
    """
    from freehold.cli.connection import run
    from freehold.protocol.errors import InvalidInput
    from freehold.protocol.typed import parse_json

    changes = parse_json(file.read_bytes())
    if not isinstance(changes, dict):
        raise InvalidInput(f"{file} must hold a JSON object")
    return run(_schedule(program, changes, from_epoch, yes))


async def _schedule(program: Program, changes: dict[str, Any], from_epoch: int, yes: bool) -> dict[str, Any]:
    from freehold.cli.connection import connect
    from freehold.cli.signing import check_holder, open_sender
    from freehold.protocol.errors import InvalidInput

    async with connect(program) as connection:
        sets = await read_sets(connection)
        first = await earliest(connection, sets)
        if from_epoch < first:
            raise InvalidInput(
                f"parameters scheduled now may count from epoch {first} on: with notice, and in their order",
                earliest=first,
            )
        before = sets[max(start for start in sets if start < from_epoch)]
        after = change(before, changes)
        theirs, ours = before.to_json(), after.to_json()
        changed = {name: (theirs[name], ours[name]) for name in ours if ours[name] != theirs[name]}
        for name in changed:
            if name in KEPT:
                program.warn(f"{name}: {KEPT[name]}")
        governor = await connection.oracle.governor()
        sender = open_sender(program, connection, governor)
        check_holder(sender, "governor", governor)
        told = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in changed.items())
        confirm(program, f"From epoch {from_epoch} on: {told or 'no change'}?", yes=yes)
        await sender.transact(connection.oracle.schedule_parameters(after.to_bytes(), from_epoch))
        return {"from_epoch": from_epoch, "hash": str(after.hash()), "changes": changed}


def change(before: Parameters, changes: dict[str, Any]) -> Parameters:
    """Those parameters with these entries replaced. InvalidInput names one that is unknown, wrong, or not to change."""
    from freehold.protocol.errors import InvalidInput
    from freehold.protocol.parameters import Parameters

    known = before.to_json()
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise InvalidInput(f"there is no parameter {unknown[0]!r}")
    after = Parameters.from_json(known | changes)
    after.check()
    for name in FIXED:
        if getattr(after, name) != getattr(before, name):
            raise InvalidInput(f"{name} is fixed: contracts were deployed with it, and go by it for good")
    return after
