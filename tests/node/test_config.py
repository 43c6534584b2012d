"""The node's configuration: paths beside its file, exact amounts, and errors that name the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from freehold.node.config import NodeConfig
from freehold.protocol.errors import FreeholdError, InvalidInput, NotFound

GOOD: dict[str, Any] = {
    "network": "network.json",
    "data": "data",
    "wallet": "node.json",
    "allowance": 10**9,
    "stream_price": "4000000000000000",
    "voucher_price": "5",
}


def test_it_reads_what_stands_there(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(GOOD | {"endpoint": None, "ready_file": "/run/ready.json", "poll": 1}))
    config = NodeConfig.load(path)
    assert (config.network, config.data) == (tmp_path / "network.json", tmp_path / "data")
    assert config.ready_file == Path("/run/ready.json")
    assert (config.stream_price, config.allowance, config.poll) == (4 * 10**15, 10**9, 1.0)
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
        {"stream_price": 4},
        {"stream_price": "4.5"},
        {"bond": "-1"},
        {"poll": 0},
        {"host": 1},
        {"tls": "yes"},
        {"certificate": 1},
        {"certificate_key": 1},
        {"endpoint": "http://node.example:1"},
        {"endpoint": "https://node.example:1", "tls": False},
        {"network": 1},
        {"voucher_price": str(2**96)},
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
