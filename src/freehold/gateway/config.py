"""A gateway's configuration: one JSON file, its relative paths relative to the file's own directory.

    network, data, passphrase_file            paths; the passphrase may stand in FREEHOLD_PASSPHRASE
    wallets                                   keystores, or {"wallet", "passphrase_file"}: one account each, in the
                                              order in which a bucket is looked for when a request names no account
    key_label                                 accept one access key more for each account, made of its seed and this
    host, port, ready_file                    where it listens (port 0: any)
    region, domain                            what clients sign for; the name below which buckets are hosts
    tls, certificate, certificate_key         own files (PEM), or one that is made where there are none
    service_domain                            the name below which services are hosts, besides localhost
    requests, requests_per_address            worked on at once, before others hear SlowDown
    requests_per_service                      of one service at once; of all services: half of `requests`
    jobs                                      the home of a client of the same accounts on this machine: services that
                                              were ordered there are kept up here when nobody else does
    lifecycle_seconds                         between looks at what has expired

Invariant: what is not understood is refused by name, at the start.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from freehold.protocol.errors import InvalidInput
from freehold.store.configuration import parse_configuration, read_configuration, read_passphrase, wrong

DEFAULT_REGION = "us-east-1"
_PATHS = {"network", "data", "passphrase_file", "ready_file", "certificate", "certificate_key", "jobs"}
_REGION = re.compile(r"[a-z0-9-]{1,64}")
_DOMAIN = re.compile(r"[a-z0-9.-]{1,253}")


class WalletFile(NamedTuple):
    """A keystore, and the file with what opens it (None: the configuration's own)."""

    path: Path
    passphrase_file: Path | None = None


@dataclass(frozen=True)
class GatewayConfig:
    """What a gateway is told at its start."""

    network: Path
    data: Path
    wallets: tuple[WalletFile, ...]
    passphrase_file: Path | None = None
    key_label: str = ""
    host: str = "127.0.0.1"
    port: int = 0
    ready_file: Path | None = None
    region: str = DEFAULT_REGION
    domain: str = ""
    tls: bool = False
    certificate: Path | None = None
    certificate_key: Path | None = None
    requests: int = 512
    requests_per_address: int = 512
    requests_per_service: int = 64
    service_domain: str = ""
    jobs: Path | None = None
    lifecycle_seconds: float = 3600.0

    @staticmethod
    def load(path: Path) -> GatewayConfig:
        """The configuration at `path`. NotFound, or InvalidInput naming the key that is wrong."""
        return GatewayConfig.from_json(read_configuration(path), path.parent)

    @staticmethod
    def from_json(value: Mapping[str, Any], directory: Path) -> GatewayConfig:
        """The configuration behind its JSON form. InvalidInput naming the key that is unknown, missing or wrong."""
        config = parse_configuration(GatewayConfig, value, directory, _parse)
        if (config.certificate is None) != (config.certificate_key is None):
            raise InvalidInput("'certificate' and 'certificate_key' go together")
        if config.domain == "localhost" or config.service_domain == "localhost":
            raise InvalidInput("hosts below 'localhost' are services', whatever 'domain' and 'service_domain' are")
        if config.service_domain and config.service_domain == config.domain:
            raise InvalidInput("'domain' and 'service_domain' are two names: buckets and services are hosts below them")
        return config

    def passphrase(self, wallet: WalletFile) -> str:
        """What opens a wallet. InvalidInput where none is given."""
        return read_passphrase(wallet.passphrase_file or self.passphrase_file)


def _parse(name: str, item: Any, directory: Path) -> Any:
    if name in _PATHS and isinstance(item, str):
        return directory / item
    if name == "wallets" and isinstance(item, list) and item:
        return tuple(_parse_wallet(each, directory) for each in item)
    if name == "tls" and isinstance(item, bool):
        return item
    if name in ("requests", "requests_per_address", "requests_per_service") and type(item) is int and item > 0:
        return item
    if name == "port" and type(item) is int and 0 <= item < 65536:
        return item
    if name == "lifecycle_seconds" and type(item) in (int, float) and item > 0:
        return float(item)
    if name in ("host", "key_label") and isinstance(item, str):
        return item
    if name == "region" and isinstance(item, str) and _REGION.fullmatch(item):
        return item
    if name in ("domain", "service_domain") and isinstance(item, str) and (not item or _DOMAIN.fullmatch(item)):
        return item
    raise wrong(name, item)


def _parse_wallet(item: Any, directory: Path) -> WalletFile:
    if isinstance(item, str):
        return WalletFile(directory / item)
    if isinstance(item, dict) and set(item) <= {"wallet", "passphrase_file"} and isinstance(item.get("wallet"), str):
        secret = item.get("passphrase_file")
        if secret is None or isinstance(secret, str):
            return WalletFile(directory / item["wallet"], None if secret is None else directory / secret)
    raise InvalidInput(f"the configuration's 'wallets' has an entry that is none: {item!r}")
