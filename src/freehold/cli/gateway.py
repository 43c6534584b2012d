"""`freehold gateway run`: the S3 gateway in the foreground, as systemd or compose start it; `status` asks how it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from freehold.cli.output import Group, Program
from freehold.cli.processes import CONFIG


@click.group(cls=Group)
def gateway() -> None:
    """Run an S3 gateway, and ask how it is."""


@gateway.command("run")
@CONFIG
@click.pass_context
def run_gateway(ctx: click.Context, path: Path) -> None:
    """Run an S3 gateway for the accounts of its configuration until it is stopped."""
    from freehold.gateway.process import main

    ctx.exit(main(path))


def show_status(data: dict[str, Any]) -> None:
    region = f"   region {data['region']}" if data["region"] else ""
    click.echo(f"S3 gateway  {data['url']}{region}   {'ready' if data['ready'] else data['why']}")


@gateway.command("status", show=show_status)
@click.pass_obj
def show(program: Program) -> dict[str, Any]:
    """Whether a gateway is ready, or why not."""
    from freehold.cli.connection import run

    return run(_status(program))


async def _status(program: Program) -> dict[str, Any]:
    from freehold.net.client import Dial
    from freehold.protocol.errors import FreeholdError, NotFound

    where = program.settings.get("gateway").value
    if not where:
        raise NotFound("no gateway is known", hint="Name one with --gateway URL, or start one: `freehold up`.")
    data: dict[str, Any] = {"url": where, "region": None, "ready": False, "why": ""}
    async with Dial() as dial:
        try:
            shown = await dial.fingerprint_at(where)  # nothing here is relied on: whoever answers may be shown
            answer = await dial.peer(where, shown).get_json("/-/readyz")
        except FreeholdError as error:
            return data | {"why": error.message}
    return data | {"region": answer["region"], "ready": answer["ready"], "why": answer["why"]}
