"""How every command ends: exit codes, the envelope, stdout and stderr; and that asking for help imports little."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from freehold.cli.main import COMMANDS, main
from tests.cli.runner import invoke

HEAVY = ("aiohttp", "asyncio", "polars", "eth_account", "eth_abi", "coincurve", "cryptography", "freehold.protocol")


@pytest.mark.parametrize("arguments", [["--help"], ["cp", "--help"], ["epoch", "replay", "--help"], ["up", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from freehold.cli.main import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        f"loaded = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "sys.stderr.write(' '.join(loaded))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("Usage: freehold")
    allowed = {"freehold.protocol"} if arguments != ["--help"] else set()  # units and errors, without a library
    assert set(result.stderr.split()) <= allowed


def walk(command: click.Command, path: tuple[str, ...]) -> list[tuple[str, ...]]:
    if not isinstance(command, click.Group):
        return [path]
    context = click.Context(command)
    found = []
    for name in command.list_commands(context):
        child = command.get_command(context, name)
        assert child is not None
        found += walk(child, (*path, name))
    return found


def test_every_command_has_help_and_takes_json(tmp_path: Path) -> None:
    paths = walk(main, ())
    assert {path[0] for path in paths} == set(COMMANDS)
    for path in paths:
        shown = invoke(tmp_path, *path, "--help")
        assert shown.code == 0
        assert "--json" in shown.stdout, path
        assert len(shown.stdout.splitlines()) > 4, path


def test_a_usage_error_is_2_and_a_failure_is_1(tmp_path: Path) -> None:
    assert invoke(tmp_path, "nonsense").code == 2
    assert invoke(tmp_path, "epoch", "show", "zero").code == 2
    failed = invoke(tmp_path, "status")
    assert failed.code == 1
    assert failed.stdout == ""
    assert "there is no network file" in failed.stderr
    assert "freehold up" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize("place", ["before", "after", "variable"])
def test_the_envelope_stands_on_stdout_wherever_json_is_said(tmp_path: Path, place: str) -> None:
    arguments = {"before": ["--json", "status"], "after": ["status", "--json"], "variable": ["status"]}[place]
    environment = {"FREEHOLD_JSON": "1"} if place == "variable" else {}
    failed = invoke(tmp_path, *arguments, **environment)
    assert failed.code == 1
    assert failed.stderr == ""
    assert failed.envelope["schema_version"] == 1
    assert failed.envelope["success"] is False
    assert failed.envelope["data"] is None
    assert failed.envelope["warnings"] == []
    assert set(failed.error) >= {"code", "message", "hint", "retryable"}
    assert failed.error["code"] == "not_found"


def test_a_usage_error_is_in_the_envelope_too(tmp_path: Path) -> None:
    wrong = invoke(tmp_path, "epoch", "show", "--json")
    assert wrong.code == 2
    assert wrong.error["code"] == "usage"


def test_success_is_in_the_envelope(tmp_path: Path) -> None:
    shown = invoke(tmp_path, "completion", "bash", "--json")
    assert shown.envelope["success"] is True
    assert "_FREEHOLD_COMPLETE" in shown.data["script"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(tmp_path: Path, shell: str) -> None:
    assert "freehold" in invoke(tmp_path, "completion", shell).stdout


def test_an_error_nobody_foresaw_is_told_without_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freehold.cli.settings.Settings.get", lambda *_: 1 // 0)
    failed = invoke(tmp_path, "config", "show")
    assert failed.code == 1
    assert "ZeroDivisionError" in failed.stderr
    assert "FREEHOLD_DEBUG=1" in failed.stderr
    assert "Traceback" not in failed.stderr
