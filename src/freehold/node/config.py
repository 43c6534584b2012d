"""A node's configuration: one JSON file, its relative paths relative to the file's own directory.

    network, data, wallet, operator_wallet, passphrase_file    paths; the passphrase may stand in FREEHOLD_PASSPHRASE
    host, port, ready_file, endpoint                           where it listens (port 0: any), and what it registers
    tls, certificate, certificate_key                          true, as it is by default: https, with a certificate made
                                                               in `data`, or with these two PEM files
    bond, stream_price, voucher_price                          decimal strings in base units
    allowance, place, poll                                     bytes of disk; a name; seconds between looks at members

`bond` is staked up to, and never below the network's minimum. Without `operator_wallet` the node registers nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from freehold.protocol.errors import InvalidInput, MalformedMessage, NotFound
from freehold.protocol.typed import parse_json
from freehold.protocol.units import check_amount

PASSPHRASE_VARIABLE = "FREEHOLD_PASSPHRASE"
_PATHS = {
    *("network", "data", "wallet", "operator_wallet", "passphrase_file", "ready_file"),
    *("certificate", "certificate_key"),
}
_AMOUNTS = {"bond", "stream_price", "voucher_price"}


@dataclass(frozen=True)
class NodeConfig:
    """What a node is told at its start."""

    network: Path
    data: Path
    wallet: Path
    allowance: int
    stream_price: int
    voucher_price: int
    operator_wallet: Path | None = None
    passphrase_file: Path | None = None
    bond: int = 0
    endpoint: str | None = None
    place: str = ""
    host: str = "127.0.0.1"
    port: int = 0
    ready_file: Path | None = None
    tls: bool = True
    certificate: Path | None = None
    certificate_key: Path | None = None
    poll: float = 1.0

    @staticmethod
    def load(path: Path) -> NodeConfig:
        """The configuration at `path`. NotFound, or InvalidInput naming the key that is wrong."""
        try:
            value = parse_json(path.read_bytes())
        except FileNotFoundError:
            raise NotFound(f"there is no configuration at {path}") from None
        except MalformedMessage as error:
            raise InvalidInput(f"{path}: {error.message}") from None
        if not isinstance(value, dict):
            raise InvalidInput(f"{path} must hold a JSON object")
        return NodeConfig.from_json(value, path.parent)

    @staticmethod
    def from_json(value: Mapping[str, Any], directory: Path) -> NodeConfig:
        """The configuration behind its JSON form. InvalidInput naming the key that is unknown, missing or wrong."""
        unknown = sorted(set(value) - {field.name for field in fields(NodeConfig)})
        if unknown:
            raise InvalidInput(f"the configuration has an unknown key {unknown[0]!r}")
        known = {name: _parse(name, item, directory) for name, item in value.items() if item is not None}
        for name in ("network", "data", "wallet", "allowance", "stream_price", "voucher_price"):
            if name not in known:
                raise InvalidInput(f"the configuration lacks {name!r}")
        config = NodeConfig(**known)
        scheme = "https" if config.tls else "http"
        if config.endpoint is not None and not config.endpoint.startswith(f"{scheme}://"):
            raise InvalidInput(
                f"the endpoint {config.endpoint} must begin with {scheme}://",
                hint="`tls` says which of the two this node speaks; others know it by its own certificate.",
            )
        return config

    def passphrase(self) -> str:
        """What opens the wallets. InvalidInput where none is given."""
        if self.passphrase_file is not None:
            try:
                return self.passphrase_file.read_text().rstrip("\r\n")
            except OSError as error:
                raise InvalidInput(f"the passphrase file cannot be read: {error.strerror}") from None
        if PASSPHRASE_VARIABLE in os.environ:
            return os.environ[PASSPHRASE_VARIABLE]
        raise InvalidInput("no passphrase", hint=f"Name a passphrase_file, or set {PASSPHRASE_VARIABLE}.")


def _parse(name: str, item: Any, directory: Path) -> Any:
    if name in _PATHS and isinstance(item, str):
        return directory / item
    if name in _AMOUNTS and isinstance(item, str) and item.isascii() and item.isdigit():
        return check_amount(int(item), name)
    if name in ("allowance", "port") and type(item) is int and item >= 0:
        return item
    if name == "tls" and isinstance(item, bool):
        return item
    if name == "poll" and type(item) in (int, float) and item > 0:
        return float(item)
    if name in ("host", "endpoint", "place") and isinstance(item, str):
        return item
    raise InvalidInput(f"the configuration's {name!r} is not what it must be: {item!r}")
