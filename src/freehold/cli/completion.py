"""`freehold completion SHELL`: the script that makes a shell complete freehold's commands."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from freehold.cli.output import Command


def show_script(data: dict[str, str]) -> None:
    click.echo(data["script"])


@click.command(cls=Command, show=show_script)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> dict[str, str]:
    """Print the completion script of SHELL. For bash: eval "$(freehold completion bash)" """
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    made = kind(ctx.find_root().command, {}, "freehold", "_FREEHOLD_COMPLETE")
    return {"shell": shell, "script": made.source_template % made.source_vars()}
