"""Runs a command in this process, as the console script would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import click
from click.testing import CliRunner

from freehold.cli.main import main


class Outcome(NamedTuple):
    """What a command did. `data` is the envelope, where there is one."""

    code: int
    stdout: str
    stderr: str

    @property
    def envelope(self) -> dict[str, Any]:
        value = json.loads(self.stdout)
        assert isinstance(value, dict)
        return value

    @property
    def data(self) -> Any:
        assert self.code == 0, self
        return self.envelope["data"]

    @property
    def error(self) -> dict[str, Any]:
        assert self.code != 0, self
        (error,) = self.envelope["errors"]
        return dict(error)


def invoke(home: Path, *arguments: str, stdin: str = "", **environment: str) -> Outcome:
    """Run `freehold ARGUMENTS` with a home of its own and nothing else of this machine's settings."""
    assert isinstance(main, click.Command)
    own = {"FREEHOLD_HOME": str(home), "FREEHOLD_CONFIG": str(home / "config.toml")}
    names = ("NETWORK", "WALLET", "PASSPHRASE", "GATEWAY", "JSON")
    cleared = dict.fromkeys(f"FREEHOLD_{name}" for name in names)
    result = CliRunner().invoke(main, list(arguments), input=stdin, env={**cleared, **own, **environment})
    return Outcome(result.exit_code, result.stdout, result.stderr)
