"""A setting's value: flag, variable, file, default; and that `config show` says which."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from freehold.cli.settings import Settings
from tests.cli.runner import invoke


def source(home: Path, name: str, *arguments: str, **environment: str) -> tuple[str, str]:
    rows = invoke(home, *arguments, "config", "show", "--json", **environment).data
    (row,) = [row for row in rows if row["name"] == name]
    return row["value"], row["source"]


def test_flag_over_variable_over_file_over_default(tmp_path: Path) -> None:
    assert source(tmp_path, "wallet") == ("default", "default")
    (tmp_path / "config.toml").write_text('wallet = "filed"\n')
    assert source(tmp_path, "wallet") == ("filed", f"file {tmp_path / 'config.toml'}")
    assert source(tmp_path, "wallet", FREEHOLD_WALLET="varied") == ("varied", "variable FREEHOLD_WALLET")
    flagged = source(tmp_path, "wallet", "--wallet", "flagged", FREEHOLD_WALLET="varied")
    assert flagged == ("flagged", "flag --wallet")


def test_a_flag_after_the_command_counts_too(tmp_path: Path) -> None:
    rows = invoke(tmp_path, "config", "show", "--json", "--network", "/n.json").data
    assert {"name": "network", "value": "/n.json", "source": "flag --network"} in rows


def test_a_passphrase_is_never_shown(tmp_path: Path) -> None:
    shown = invoke(tmp_path, "config", "show", FREEHOLD_PASSPHRASE="correct horse")
    assert "correct horse" not in shown.stdout + shown.stderr
    assert "FREEHOLD_PASSPHRASE" in shown.stdout


def test_the_default_network_is_the_local_one_of_this_home(tmp_path: Path) -> None:
    assert source(tmp_path, "network")[0] == str(tmp_path / "local" / "network.json")


def test_xdg_directories_are_respected() -> None:
    settings = Settings({}, {"XDG_DATA_HOME": "/data", "XDG_CONFIG_HOME": "/conf"})
    assert settings.get("home").value == "/data/freehold"
    assert settings.get("config").value == "/conf/freehold/config.toml"


@pytest.mark.parametrize(("text", "says"), [("= nonsense", "not TOML"), ('walet = "x"', "no setting 'walet'")])
def test_a_bad_file_is_a_usage_error_that_says_what_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(click.UsageError, match=says):
        Settings({"config": str(file)}, {}).get("wallet")
