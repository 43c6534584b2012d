"""The node's configuration: paths beside its file, exact amounts, and errors that name the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from freehold.node.config import NodeConfig, ServiceConfig
from freehold.protocol.errors import FreeholdError, InvalidInput, NotFound
from freehold.services.seam import Prices

GOOD: dict[str, Any] = {
    "network": "network.json",
    "data": "data",
    "wallet": "node.json",
    "allowance": 10**9,
    "services": {"storage": {"stream_price": "4000000000000000", "voucher_price": "5", "colour": "blue"}},
}


def test_it_reads_what_stands_there(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(GOOD | {"endpoint": None, "ready_file": "/run/ready.json", "poll": 1}))
    config = NodeConfig.load(path)
    assert (config.network, config.data) == (tmp_path / "network.json", tmp_path / "data")
    assert config.ready_file == Path("/run/ready.json")
    assert (config.allowance, config.poll) == (10**9, 1.0)
    assert config.services == {"storage": ServiceConfig(Prices(4 * 10**15, 5), None, {"colour": "blue"})}
    assert (config.tls, config.certificate, config.certificate_key) == (True, None, None)
    assert (config.host, config.port, config.endpoint, config.operator_wallet) == ("127.0.0.1", 0, None, None)


@pytest.mark.parametrize(
    "change",
    [
        {"wallet": None},
        {"colour": "red"},
        {"allowance": -1},
        {"allowance": "1"},
        {"port": True},
        {"services": [1]},
        {"services": {"storage": 4}},
        {"services": {"storage": {}}},
        {"bond": "-1"},
        {"poll": 0},
        {"host": 1},
        {"tls": "yes"},
        {"certificate": 1},
        {"certificate_key": 1},
        {"endpoint": "http://node.example:1"},
        {"endpoint": "https://node.example:1", "tls": False},
        {"network": 1},
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(FreeholdError, match=next(iter(change))):
        NodeConfig.from_json(GOOD | change, tmp_path)


def test_a_file_that_is_missing_or_no_json(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(NotFound):
        NodeConfig.load(path)
    for text in ("{", "[]", "\xff"):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(InvalidInput):
            NodeConfig.load(path)


def test_the_passphrase_comes_from_its_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FREEHOLD_PASSPHRASE", raising=False)
    config = NodeConfig.from_json(GOOD, tmp_path)
    with pytest.raises(InvalidInput, match="no passphrase"):
        config.passphrase()
    monkeypatch.setenv("FREEHOLD_PASSPHRASE", "from outside")
    assert config.passphrase() == "from outside"
    (tmp_path / "secret").write_text("from the file\n")
    assert NodeConfig.from_json(GOOD | {"passphrase_file": "secret"}, tmp_path).passphrase() == "from the file"
    with pytest.raises(InvalidInput):
        NodeConfig.from_json(GOOD | {"passphrase_file": "missing"}, tmp_path).passphrase()


@pytest.mark.parametrize(
    ("own", "named"),
    [
        ({"stream_price": 4}, "storage.*|stream_price"),
        ({"stream_price": "4.5"}, "stream_price"),
        ({"stream_price": "1", "voucher_price": str(2**96)}, "voucher_price"),
        ({"stream_price": "1", "allowance": -1}, "storage.allowance"),
        ({"stream_price": "1", "allowance": 10**9 + 1}, "allowance"),
    ],
)
def test_what_is_wrong_about_a_service_is_named(tmp_path: Path, own: dict[str, Any], named: str) -> None:
    with pytest.raises(FreeholdError, match=named):
        NodeConfig.from_json(GOOD | {"services": {"storage": own}}, tmp_path)


def test_services_share_the_disk(tmp_path: Path) -> None:
    """What one is given is its own; the others share what is left."""
    price = {"stream_price": "1"}
    services = {"storage": price, "compute": price | {"allowance": 10**8}, "other": price}
    config = NodeConfig.from_json(GOOD | {"services": services}, tmp_path)
    assert [config.allowance_of(name) for name in (*services, "unknown")] == [45 * 10**7, 10**8, 45 * 10**7, 0]
