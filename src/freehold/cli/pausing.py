"""`freehold pause` and `freehold unpause`: the guardian stops what leaves the contracts, for a bounded time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from freehold.cli.output import Command, Program, confirm

if TYPE_CHECKING:
    from freehold.cli.connection import Connection


def show_pause(data: dict[str, Any]) -> None:
    from freehold.cli.amounts import format_seconds

    left = data["paused_until"] - data["time"]
    if left > 0:
        click.echo(f"claims, activation and collecting are paused for {format_seconds(left)}; epochs go on")
    else:
        click.echo("nothing is paused")


@click.command(cls=Command, show=show_pause)
@click.argument("seconds", type=click.IntRange(min=1))
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.pass_obj
def pause(program: Program, seconds: int, yes: bool) -> dict[str, Any]:
    """Pause claims, activation and collecting for SECONDS of chain time. Only the guardian's wallet may.

    It ends by itself, and there is no other before as much time has passed unpaused. Reports, disputes and thaws go on.
    """
    from freehold.cli.connection import run

    return run(_pause(program, seconds, yes))


async def _pause(program: Program, seconds: int, yes: bool) -> dict[str, Any]:
    from freehold.chain.errors import Reverted
    from freehold.cli.amounts import format_seconds
    from freehold.cli.connection import connect
    from freehold.cli.signing import check_holder, open_sender
    from freehold.protocol.errors import InvalidInput, Refused

    async with connect(program) as connection:
        limit, guardian = await connection.ledger.pause_limit(), await connection.ledger.guardian()
        if seconds > limit:
            raise InvalidInput(f"a pause of this network lasts at most {limit} s ({format_seconds(limit)})")
        sender = open_sender(program, connection, guardian)
        check_holder(sender, "guardian", guardian)
        confirm(program, f"Pause claims and activation for {format_seconds(seconds)}?", yes=yes)
        try:
            await sender.transact(connection.ledger.pause(seconds))
        except Reverted as error:
            if error.reason != "ledger: paused too soon":
                raise
            raise Refused(
                "the last pause is too recent: as much time must pass unpaused as it lasted",
                hint="`freehold unpause` ends one that is on, and then only what it lasted counts.",
            ) from None
        return await _describe(connection)


@click.command(cls=Command, show=show_pause)
@click.pass_obj
def unpause(program: Program) -> dict[str, Any]:
    """End a pause before its time. Only the guardian's wallet may."""
    from freehold.cli.connection import run

    return run(_unpause(program))


async def _unpause(program: Program) -> dict[str, Any]:
    from freehold.cli.connection import connect
    from freehold.cli.signing import send_as

    async with connect(program) as connection:
        told = await _describe(connection)
        if told["paused_until"] > told["time"]:
            guardian = await connection.ledger.guardian()
            await send_as(program, connection, "guardian", guardian, connection.ledger.unpause())
            told = await _describe(connection)
        return told


async def _describe(connection: Connection) -> dict[str, Any]:
    from freehold.cli.signing import chain_time

    return {"paused_until": await connection.ledger.paused_until(), "time": await chain_time(connection)}
