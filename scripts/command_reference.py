"""Writes docs/commands.md from the commands' own help, so that the reference cannot drift from the program.

    python scripts/command_reference.py [--check]

With --check nothing is written: exit 1 where the page differs from what the commands say now.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from freehold.cli.main import main as cli

PAGE = Path(__file__).resolve().parent.parent / "docs" / "commands.md"
WIDTH = 100
HEAD = "# Commands\n\nWritten by `make docs` from each command's `--help`.\n"


def walk(command: click.Command, context: click.Context) -> Iterator[click.Context]:
    yield context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                yield from walk(child, click.Context(child, info_name=name, parent=context))


def build_page(command: click.Command) -> str:
    settings = {**command.context_settings, "max_content_width": WIDTH, "terminal_width": WIDTH}
    top = click.Context(command, info_name="freehold", **settings)
    sections = [
        f"\n## `{context.command_path}`\n\n```text\n{context.command.get_help(context).rstrip()}\n```\n"
        for context in walk(command, top)
    ]
    return HEAD + "".join(sections)


def main(arguments: list[str]) -> int:
    page = build_page(cli)
    if "--check" in arguments:
        if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page:
            return 0
        print(f"{PAGE} is not what the commands say now: run `make docs`", file=sys.stderr)
        return 1
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page, encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
