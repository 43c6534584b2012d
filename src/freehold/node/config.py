"""A node's configuration: one JSON file, its relative paths relative to the file's own directory.

    network, data, wallet, operator_wallet, passphrase_file    paths; the passphrase may stand in FREEHOLD_PASSPHRASE
    host, port, ready_file, endpoint                           where it listens (port 0: any), and what it registers
    tls, certificate, certificate_key                          true, as it is by default: https, with a certificate made
                                                               in `data`, or with these two PEM files
    bond                                                       decimal string in base units
    allowance, place, poll                                     bytes of disk; a name; seconds between looks at members
    services                                                   what it offers, by service: `stream_price` and
                                                               `voucher_price` (decimal strings in base units, for the
                                                               service's own unit), `allowance` (bytes; an even part of
                                                               what is left), and the service's own settings

`bond` is staked up to, and never below the network's minimum. Without `operator_wallet` the node registers nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from freehold.protocol.errors import InvalidInput
from freehold.protocol.units import check_amount
from freehold.services.seam import Prices
from freehold.store.configuration import parse_configuration, read_configuration, read_passphrase, wrong

_PATHS = {
    *("network", "data", "wallet", "operator_wallet", "passphrase_file", "ready_file"),
    *("certificate", "certificate_key"),
}
_SERVICE_KEYS = {"stream_price", "voucher_price", "allowance"}


class ServiceConfig(NamedTuple):
    """What a node is told of a service that clients lease; `settings` are the service's own."""

    prices: Prices
    allowance: int | None
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class NodeConfig:
    """What a node is told at its start."""

    network: Path
    data: Path
    wallet: Path
    allowance: int
    services: Mapping[str, ServiceConfig]
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
        return NodeConfig.from_json(read_configuration(path), path.parent)

    @staticmethod
    def from_json(value: Mapping[str, Any], directory: Path) -> NodeConfig:
        """The configuration behind its JSON form. InvalidInput naming the key that is unknown, missing or wrong."""
        config = parse_configuration(NodeConfig, value, directory, _parse)
        scheme = "https" if config.tls else "http"
        if config.endpoint is not None and not config.endpoint.startswith(f"{scheme}://"):
            raise InvalidInput(
                f"the endpoint {config.endpoint} must begin with {scheme}://",
                hint="`tls` says which of the two this node speaks; others know it by its own certificate.",
            )
        config.check_allowances()
        return config

    def check_allowances(self) -> None:
        """InvalidInput unless what services are given of the disk is there."""
        given = sum(service.allowance or 0 for service in self.services.values())
        if given > self.allowance:
            raise InvalidInput(f"the services' allowances come to {given}, the node's 'allowance' is {self.allowance}")

    def allowance_of(self, name: str) -> int:
        """Bytes of disk for a service: its own, or an even part of what is left; 0 for one that is not offered."""
        if name not in self.services:
            return 0
        given = [service.allowance for service in self.services.values()]
        own = self.services[name].allowance
        return own if own is not None else (self.allowance - sum(a or 0 for a in given)) // given.count(None)

    def passphrase(self) -> str:
        """What opens the wallets. InvalidInput where none is given."""
        return read_passphrase(self.passphrase_file)


def _parse(name: str, item: Any, directory: Path) -> Any:
    if name in _PATHS and isinstance(item, str):
        return directory / item
    if name == "bond":
        return _parse_amount(name, item)
    if name == "services" and isinstance(item, dict):
        return {service: _parse_service(service, own) for service, own in item.items()}
    if name in ("allowance", "port") and type(item) is int and item >= 0:
        return item
    if name == "tls" and isinstance(item, bool):
        return item
    if name == "poll" and type(item) in (int, float) and item > 0:
        return float(item)
    if name in ("host", "endpoint", "place") and isinstance(item, str):
        return item
    raise wrong(name, item)


def _parse_amount(name: str, item: Any) -> int:
    if not isinstance(item, str) or not item.isascii() or not item.isdigit():
        raise wrong(name, item)
    return check_amount(int(item), name)


def _parse_service(name: str, item: Any) -> ServiceConfig:
    if not isinstance(item, dict) or "stream_price" not in item:
        raise InvalidInput(f"the configuration's 'services' must say the 'stream_price' of {name!r}")
    prices = [_parse_amount(f"{name}.{key}", item.get(key, "0")) for key in ("stream_price", "voucher_price")]
    allowance = item.get("allowance")
    if allowance is not None and (type(allowance) is not int or allowance < 0):
        raise wrong(f"{name}.allowance", allowance)
    return ServiceConfig(Prices(*prices), allowance, {k: v for k, v in item.items() if k not in _SERVICE_KEYS})
