"""`freehold bucket`: what is done to buckets as a whole, beyond making and removing them."""

from __future__ import annotations

from typing import Any

import click

from freehold.cli.amounts import DURATION
from freehold.cli.output import Command, Group, Program


@click.group(cls=Group)
def bucket() -> None:
    """Upkeep of buckets."""


def show_swept(data: dict[str, Any]) -> None:
    click.echo(f"{data['found']} shards that nothing names were found at nodes; garbage was taken off their lists")


@bucket.command(cls=Command, show=show_swept)
@click.option("--lost", type=DURATION, metavar="AGE", help="Also what lost machines left: unnamed, older (such as 7d).")
@click.pass_obj
def sweep(program: Program, lost: int | None) -> dict[str, Any]:
    """Take off the nodes' lists what no bucket names: what transfers left that ended halfway.

    With --lost AGE every record of the account is read and compared with what the nodes have listed for longer than
    AGE, which must exceed what a transfer of any other machine takes.
    """
    from freehold.cli.connection import run

    return run(_sweep(program, lost))


async def _sweep(program: Program, older_than: int | None) -> dict[str, Any]:
    from freehold.cli.client import open_client

    async with open_client(program) as client:
        swept = await client.sweep(older_than)
        for node, error in swept.failed.items():
            program.warn(f"node {node} takes its shards off later: {error.message}")
        return {"found": swept.found, "later": sorted(str(node) for node in swept.failed)}
