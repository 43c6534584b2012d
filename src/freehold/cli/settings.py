"""Where a setting's value comes from: a flag, else a FREEHOLD_* variable, else the configuration file, else a default.

The table is all there is; `freehold config show` prints it. The configuration file is TOML, one key a setting.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import click


class Setting(NamedTuple):
    """One setting: its name (the flag and the key of the file), and what it is."""

    name: str
    help: str
    secret: bool = False
    flag: bool = True

    @property
    def variable(self) -> str:
        return f"FREEHOLD_{self.name.upper()}"

    @property
    def option(self) -> str:
        return f"--{self.name.replace('_', '-')}"


SETTINGS = (
    Setting("config", "The configuration file (TOML)."),
    Setting("home", "Where networks, keys and indexes are kept."),
    Setting("network", "The network file to use."),
    Setting("wallet", "The name of the wallet that pays and signs."),
    Setting("passphrase_file", "A file whose first line opens the wallet."),
    Setting("gateway", "The URL of the gateway that shared links lead to."),
    Setting("passphrase", "What opens the wallet.", secret=True, flag=False),
)
BY_NAME = {setting.name: setting for setting in SETTINGS}


class Value(NamedTuple):
    """A setting's value and where it was found."""

    value: str
    source: str


class Settings:
    """Values by name, read once each; `flags` are those that were given on the command line."""

    def __init__(self, flags: Mapping[str, str | None], environment: Mapping[str, str] = os.environ) -> None:
        self._flags = {name: value for name, value in flags.items() if value is not None}
        self._environment = environment
        self._file: dict[str, str] | None = None

    def override(self, flags: Mapping[str, str | None]) -> None:
        """Flags of a subcommand win over those before it."""
        self._flags |= {name: value for name, value in flags.items() if value is not None}

    def get(self, name: str) -> Value:
        """The value and its source. A usage error if the configuration file cannot be read."""
        setting = BY_NAME[name]
        if name in self._flags:
            return Value(self._flags[name], f"flag {setting.option}")
        if self._environment.get(setting.variable):
            return Value(self._environment[setting.variable], f"variable {setting.variable}")
        if name != "config" and name in self._read_file():
            return Value(self._read_file()[name], f"file {self.get('config').value}")
        return Value(self._default(name), "default")

    def path(self, name: str) -> Path:
        """A setting that names a file or directory."""
        return Path(self.get(name).value).expanduser()

    @property
    def home(self) -> Path:
        return self.path("home")

    @property
    def service_domain(self) -> str:
        """The name below which services are hosts at the gateway that runs here; "" for another one, or none."""
        told = _read_gateway(self._gateway_file)
        return told.get("service_domain", "") if told.get("url") == self.get("gateway").value else ""

    @property
    def _gateway_file(self) -> Path:
        return self.path("network").parent / "gateway.json"

    @property
    def local(self) -> Path:
        """Where the local network of this home is kept."""
        return self.home / "local"

    def _default(self, name: str) -> str:
        if name == "config":
            return str(_xdg(self._environment, "XDG_CONFIG_HOME", "user_config_path") / "config.toml")
        if name == "home":
            return str(_xdg(self._environment, "XDG_DATA_HOME", "user_data_path"))
        if name == "network":
            return str(self.local / "network.json")
        if name == "wallet":
            own = self.path("network").parent / "wallets" / "client.json"  # of the local network
            return "client" if own.exists() else "default"
        if name == "gateway":
            return _read_gateway(self._gateway_file).get("url", "")  # of the local network
        return ""

    def _read_file(self) -> dict[str, str]:
        if self._file is None:
            path = self.path("config")
            self._file = _read_toml(path) if path.exists() else {}
        return self._file


def _xdg(environment: Mapping[str, str], variable: str, function: str) -> Path:
    if environment.get(variable):
        return Path(environment[variable]) / "freehold"
    import platformdirs

    return Path(getattr(platformdirs, function)("freehold", appauthor=False))


def _read_gateway(path: Path) -> dict[str, str]:
    """What a gateway that runs here wrote down: its `url` and more; nothing where there is none."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return {name: str(told[name]) for name in {"url", *told}}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError):
        raise click.UsageError(f'{path} is not what a gateway writes: {{"url": ...}}') from None


def _read_toml(path: Path) -> dict[str, str]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{path} is not TOML: {error}") from None
    unknown = set(values) - set(BY_NAME)
    if unknown:
        known = ", ".join(BY_NAME)
        raise click.UsageError(f"{path}: there is no setting {sorted(unknown)[0]!r}; the settings are {known}")
    return {name: str(value) for name, value in values.items()}
