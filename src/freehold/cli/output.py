"""What a command prints: one JSON envelope, or text for people; and nothing else on stdout.

    {"schema_version": 1, "success": true, "data": ..., "errors": [], "warnings": []}
    errors: code, message, hint, retryable, details

A command returns its data; `Command` prints them, as the envelope or through the command's own `show`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from freehold.cli.settings import SETTINGS, Settings

SCHEMA_VERSION = 1
INTERRUPTED = 130  # the exit code after Ctrl-C
Show = Callable[[Any], None]
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def error_json(code: str, message: str, hint: str = "", *, retryable: bool = False) -> dict[str, Any]:
    """An error as the envelope holds it."""
    return {"code": code, "message": message, "hint": hint, "retryable": retryable, "details": {}}


class Program:
    """What every command of one run shares: settings, and how its outcome is told."""

    def __init__(self, settings: Settings, *, as_json: bool) -> None:
        self.settings = settings
        self.as_json = as_json
        self.warnings: list[str] = []
        self.exit_code = 0  # 1 where a command could tell what it was asked, and that is bad news

    def warn(self, text: str) -> None:
        """Something that the user should know and that does not stop the command."""
        self.warnings.append(text)
        if not self.as_json:
            click.secho(f"warning: {text}", fg="yellow", err=True)

    def note(self, text: str) -> None:
        """Progress in words: on stderr, in both forms."""
        click.echo(text, err=True)

    def done(self, data: Any, show: Show | None) -> None:
        """The command's data, on stdout."""
        if self.as_json:
            self._print(success=True, data=data, errors=[])
        elif show is not None and data is not None:
            show(data)

    def fail(self, error: dict[str, Any]) -> None:
        """The error: in the envelope, or as text on stderr."""
        if self.as_json:
            self._print(success=False, data=None, errors=[error])
            return
        click.secho(f"error: {plain(error['message'])}", fg="red", err=True)
        if error["hint"]:
            click.echo(f"  {plain(error['hint'])}", err=True)

    def _print(self, *, success: bool, data: Any, errors: list[dict[str, Any]]) -> None:
        envelope = {
            "schema_version": SCHEMA_VERSION,
            "success": success,
            "data": data,
            "errors": errors,
            "warnings": self.warnings,
        }
        click.echo(json.dumps(envelope))


def _set_json(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Program).as_json = True


def _set_flag(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None and parameter.name:
        ctx.ensure_object(Program).settings.override({parameter.name: value})


def shared_options(*, hidden: bool) -> list[click.Parameter]:
    """--json and the settings' flags: every command takes them, before its name or after."""
    options: list[click.Parameter] = [
        click.Option([s.option], help=s.help, hidden=hidden, expose_value=False, is_eager=True, callback=_set_flag)
        for s in SETTINGS
        if s.flag
    ]
    text = "Print one JSON envelope on stdout."
    json_option = click.Option(
        ["--json"], is_flag=True, help=text, expose_value=False, is_eager=True, callback=_set_json
    )
    return [*options, json_option]


class Command(click.Command):
    """A command whose returned data are printed: `show` prints them for people."""

    def __init__(self, *arguments: Any, show: Show | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.show = show
        taken = {name for parameter in self.params for name in parameter.opts}
        self.params += [o for o in shared_options(hidden=True) if not taken & set(o.opts)]

    def invoke(self, ctx: click.Context) -> Any:
        data = super().invoke(ctx)
        ctx.ensure_object(Program).done(data, self.show)


class Group(click.Group):
    """A noun: its verbs are `Command`s."""

    command_class = Command


def plain(text: str) -> str:
    """Text that others wrote (a node's reason, a name) as it may stand on a terminal: without control characters, but
    for ends of lines and tabs, so that it moves no cursor and hides nothing."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def print_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns by two spaces, numbers to the right, on stdout."""
    cells = [[plain(str(cell)) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(headings), *cells]) for i in range(len(headings))]
    right = [bool(cells) and all(_is_number(line[i]) for line in cells) for i in range(len(headings))]
    for line in [list(headings), *cells]:
        padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)]
        click.echo("  ".join(padded).rstrip())


def _is_number(text: str) -> bool:
    return bool(text) and text[0].isdigit() and all(c.isdigit() or c in ".,% KMGTiB" for c in text)


def is_terminal() -> bool:
    """Whether a person sees stderr, where questions and progress go."""
    return sys.stderr.isatty()


def confirm(program: Program, question: str, *, yes: bool) -> None:
    """Ask unless `yes`; a usage error where nobody can answer."""
    if yes:
        return
    if program.as_json or not sys.stdin.isatty():
        raise click.UsageError(f"{question} There is nobody to ask here: say --yes.")
    click.confirm(question, abort=True, err=True)
