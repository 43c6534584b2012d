"""Where a local network keeps what: one directory, which `freehold up --fresh` deletes, and nothing elsewhere."""

from __future__ import annotations

import fcntl
import json
import shutil
from pathlib import Path
from typing import IO, Any

from freehold.local.accounts import PASSPHRASE_FILE
from freehold.local.children import read_json, write_json
from freehold.local.parameters import DEFAULT, LocalSettings
from freehold.protocol.errors import Conflict, InvalidInput


class LocalFiles:
    """The directory of one local network."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.network = root / "network.json"
        self.networks: dict[str, Path] = {}  # of the processes that read another one
        self.chain = root / "chain"
        self.logs = root / "logs"  # also the pid files
        self.wallets = root / "wallets"
        self.price = root / "price.json"
        self.settings = root / "settings.json"
        self.supervisor = root / "supervisor.json"

    def config(self, name: str) -> Path:
        return self.root / "processes" / name / "config.json"

    def ready(self, name: str) -> Path:
        return self.root / "processes" / name / "ready.json"

    def last_port(self, name: str) -> int:
        """The port of the last run, so that endpoints stay what the chain knows; 0 if there was none."""
        known = read_json(self.config(name).with_name("port.json")) or {}
        return int(known.get("port", 0))

    def keep_port(self, name: str, url: str) -> None:
        write_json(self.config(name).with_name("port.json"), {"port": int(url.rpartition(":")[2])})

    def read_settings(self, given: Path | None = None) -> LocalSettings:
        """What this network was made with; for a new one the file `given`, else the defaults. InvalidInput."""
        path = self.settings if self.settings.exists() else given
        if path is None:
            return DEFAULT
        try:
            return LocalSettings.from_json(json.loads(path.read_text()))
        except ValueError as error:
            raise InvalidInput(f"{path} is not JSON: {error}") from None

    def write_settings(self, settings: LocalSettings) -> None:
        write_json(self.settings, settings._asdict())

    def write_price(self, price: int) -> None:
        """The price file that members read; an existing one is the user's."""
        if not self.price.exists():
            write_json(self.price, {"price": str(price)})

    def write_member(self, name: str, settings: LocalSettings, port: int) -> Path:
        """The configuration of an oracle member."""
        return self._write(name, port, {
            "wallet": str(self.wallets / f"{name}.json"),
            "price_file": str(self.price),
            "tls": settings.tls,
            "view_timeout": settings.view_timeout,
            "poll": settings.poll,
        })  # fmt: skip

    def write_node(self, name: str, settings: LocalSettings, port: int) -> Path:
        """The configuration of an operator's node."""
        return self._write(name, port, {
            "wallet": str(self.wallets / f"{name}-node.json"),
            "operator_wallet": str(self.wallets / f"{name}.json"),
            "bond": str(settings.bond),
            "tls": settings.tls,
            "endpoint": None,
            "place": "local",
            "allowance": settings.allowance,
            "services": self._services(settings),
            "poll": settings.poll,
        })  # fmt: skip

    def _services(self, settings: LocalSettings) -> dict[str, Any]:
        storage = {"stream_price": str(settings.stream_price), "voucher_price": str(settings.voucher_price)}
        compute = {
            "stream_price": str(settings.compute_price),
            "allowance": min(settings.compute_allowance, settings.allowance // 2),
            "executors": ["wasm", "sandbox", "service"],  # to try podman out takes each node seconds
            "slots": settings.slots,
            "module_cache": settings.module_cache or str(self.root / "modules"),  # eight nodes compile a module once
            "benchmark": False,  # and would measure each other
            "access_hosts": r"127\.0\.0\.1(:\d+)?",  # the local gateway
        }
        return {"storage": storage, **({"compute": compute} if settings.compute else {})}

    def write_gateway(self, name: str, settings: LocalSettings, port: int) -> Path:
        """The configuration of the client's S3 gateway."""
        return self._write(name, port, {
            "wallets": [str(self.wallets / "client.json")],
            "key_label": "local",
            "tls": settings.tls,
            "jobs": str(self.root),  # its client's journal: services outlive the processes that ordered them
        })  # fmt: skip

    def _write(self, name: str, port: int, own: dict[str, Any]) -> Path:
        path = self.config(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        shared = {
            "network": str(self.networks.get(name, self.network)),
            "data": str(path.parent / "data"),
            "passphrase_file": str(self.wallets / PASSPHRASE_FILE),
            "host": "127.0.0.1",
            "port": port,
            "ready_file": str(self.ready(name)),
        }
        text = json.dumps(shared | own, indent=2) + "\n"
        temporary = path.with_name("config.json.new")
        temporary.write_text(text)
        temporary.replace(path)
        return path

    def lock(self) -> IO[str]:
        """Held by the one supervisor of this network; Conflict if there is another."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = self.root.with_name(self.root.name + ".lock").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            known = read_json(self.supervisor) or {}
            raise Conflict(
                f"this network runs already, as process {known.get('pid', 'unknown')}",
                hint="`freehold status` shows it. Stop it with Ctrl-C where it runs, or use another --home.",
            ) from None
        return file

    def delete(self) -> None:
        """All of it: chain, files, accounts."""
        shutil.rmtree(self.root, ignore_errors=False)

    def size(self) -> int:
        """Bytes in all files."""
        return sum(path.stat().st_size for path in self.root.rglob("*") if path.is_file())
