"""`freehold config`: every setting, its value, and where the value comes from."""

from __future__ import annotations

from typing import Any

import click

from freehold.cli.output import Group, Program, print_table
from freehold.cli.settings import SETTINGS


@click.group(cls=Group)
def config() -> None:
    """Show every setting and where its value comes from."""


def show_settings(data: list[dict[str, Any]]) -> None:
    print_table(["SETTING", "VALUE", "SOURCE"], [[d["name"], d["value"], d["source"]] for d in data])


@config.command("show", show=show_settings)
@click.pass_obj
def show(program: Program) -> list[dict[str, Any]]:
    """Every setting. A flag wins over a FREEHOLD_* variable, that over the configuration file, that over a default."""
    rows = []
    for setting in SETTINGS:
        value, source = program.settings.get(setting.name)
        rows.append(
            {"name": setting.name, "value": "(hidden)" if setting.secret and value else value, "source": source}
        )
    return rows
