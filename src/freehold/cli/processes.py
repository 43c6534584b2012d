"""`freehold node run` and `freehold oracle run`: one process in the foreground, as systemd or compose start it."""

from __future__ import annotations

from pathlib import Path

import click

from freehold.cli.output import Group

CONFIG = click.option(
    "--config",
    "path",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The process's configuration (JSON); see docs/configuration.md.",
)


@click.group(cls=Group)
def node() -> None:
    """Run an operator's node."""


@click.group(cls=Group)
def oracle() -> None:
    """Run an oracle member."""


@node.command("run")
@CONFIG
@click.pass_context
def run_node(ctx: click.Context, path: Path) -> None:
    """Run a node until it is stopped: it registers itself, bonds, stores, and answers challenges."""
    from freehold.node.process import main

    ctx.exit(main(path))


@oracle.command("run")
@CONFIG
@click.pass_context
def run_oracle(ctx: click.Context, path: Path) -> None:
    """Run a member of the quorum until it is stopped."""
    from freehold.oracle.process import main

    ctx.exit(main(path))
