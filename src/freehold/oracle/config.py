"""A member's configuration: one JSON file, its relative paths relative to the file's own directory.

network, data, wallet, passphrase_file   paths; the passphrase may stand in FREEHOLD_PASSPHRASE instead
host, port, ready_file                   where it listens (port 0: any)
tls, certificate, certificate_key        true, as it is by default: https, with a certificate made in `data`, or with
                                         these two PEM files; its fingerprint stands in the network file
price_file                               {"price": "decimal string, 1e18 US dollars a token"}, read as it changes
view_timeout, poll                       seconds: the first view's time; between looks at the chain
allowance                                bytes that batches, bundles and states may take
database                                 postgresql://... instead of a file in `data` (store/postgres.py)
ray                                      a Ray cluster that checks signatures: "auto", HOST:PORT (oracle/partitions.py)
blobs                                    s3://BUCKET/PREFIX instead of a directory in `data` (store/bucket.py)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freehold.protocol.errors import InvalidInput
from freehold.protocol.keys import Key
from freehold.store.configuration import open_wallet, parse_configuration, read_configuration, read_passphrase, wrong

ALLOWANCE = 20 * 2**30
_ADDRESSES = {"database": "postgresql://", "blobs": "s3://"}
_PATHS = {
    *("network", "data", "wallet", "passphrase_file", "price_file", "ready_file"),
    *("certificate", "certificate_key"),
}


@dataclass(frozen=True)
class MemberConfig:
    """What a member's process is told at its start."""

    network: Path
    data: Path
    wallet: Path
    price_file: Path
    passphrase_file: Path | None = None
    host: str = "127.0.0.1"
    port: int = 0
    ready_file: Path | None = None
    tls: bool = True
    certificate: Path | None = None
    certificate_key: Path | None = None
    view_timeout: float = 4.0
    poll: float = 1.0
    allowance: int = ALLOWANCE
    database: str | None = None
    blobs: str | None = None
    ray: str | None = None

    @staticmethod
    def load(path: Path) -> MemberConfig:
        """The configuration at `path`. NotFound, or InvalidInput naming the key that is wrong."""
        return MemberConfig.from_json(read_configuration(path), path.parent)

    @staticmethod
    def from_json(value: Mapping[str, Any], directory: Path) -> MemberConfig:
        """The configuration behind its JSON form. InvalidInput naming the key that is unknown, missing or wrong."""
        return parse_configuration(MemberConfig, value, directory, _parse)

    def open_wallet(self) -> Key:
        """The member's key. NotFound, InvalidInput, WrongPassphrase. Slow."""
        return open_wallet(self.wallet, read_passphrase(self.passphrase_file))


def _parse(name: str, item: Any, directory: Path) -> Any:
    if name in _PATHS and isinstance(item, str):
        return directory / item
    if name in ("allowance", "port") and type(item) is int and item >= 0:
        return item
    if name == "tls" and isinstance(item, bool):
        return item
    if name in ("view_timeout", "poll") and type(item) in (int, float) and item > 0:
        return float(item)
    if name in ("host", "ray") and isinstance(item, str):
        return item
    if name in _ADDRESSES and isinstance(item, str):
        if not item.startswith(_ADDRESSES[name]):
            raise InvalidInput(f"the configuration's {name!r} must begin with {_ADDRESSES[name]}")
        return item
    raise wrong(name, item)
