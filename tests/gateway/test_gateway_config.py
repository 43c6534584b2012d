"""A gateway's configuration: read whole, or refused by the name of what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from freehold.gateway.config import GatewayConfig, WalletFile
from freehold.protocol.errors import InvalidInput, NotFound

LEAST: dict[str, Any] = {"network": "network.json", "data": "data", "wallets": ["client.json"]}


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    value = LEAST | {
        "wallets": ["a.json", {"wallet": "b.json", "passphrase_file": "b.txt"}],
        "passphrase_file": "a.txt",
    }
    (tmp_path / "config.json").write_text(json.dumps(value))
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "b.txt").write_text("two")
    config = GatewayConfig.load(tmp_path / "config.json")
    assert config.network == tmp_path / "network.json"
    assert config.wallets == (WalletFile(tmp_path / "a.json"), WalletFile(tmp_path / "b.json", tmp_path / "b.txt"))
    assert [config.passphrase(wallet) for wallet in config.wallets] == ["one", "two"]
    assert (config.region, config.port, config.tls) == ("us-east-1", 0, False)


def test_the_passphrase_may_stand_in_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    config = GatewayConfig.from_json(LEAST, Path("/x"))
    monkeypatch.setenv("FREEHOLD_PASSPHRASE", "three")
    assert config.passphrase(config.wallets[0]) == "three"
    monkeypatch.delenv("FREEHOLD_PASSPHRASE")
    with pytest.raises(InvalidInput, match="no passphrase"):
        config.passphrase(config.wallets[0])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"colour": 1}, "colour"),
        ({"network": None}, "network"),
        ({"wallets": []}, "wallets"),
        ({"wallets": [{"path": "x"}]}, "wallets"),
        ({"wallets": [{"wallet": "x", "passphrase_file": 1}]}, "wallets"),
        ({"port": 65_536}, "port"),
        ({"port": True}, "port"),
        ({"requests": 0}, "requests"),
        ({"region": "EU west"}, "region"),
        ({"domain": "s3_test"}, "domain"),
        ({"tls": "yes"}, "tls"),
        ({"certificate": "c.pem"}, "certificate_key"),
        ({"lifecycle_seconds": -1}, "lifecycle_seconds"),
        ({"requests_per_service": 0}, "requests_per_service"),
        ({"service_domain": "a b"}, "service_domain"),
        ({"service_domain": "a.example", "domain": "a.example"}, "service_domain"),
        ({"jobs": 1}, "jobs"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        GatewayConfig.from_json(LEAST | change, Path("/x"))


def test_a_file_that_is_not_there_or_no_object(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        GatewayConfig.load(tmp_path / "none.json")
    for text in ("[]", "{", ""):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(InvalidInput):
            GatewayConfig.load(tmp_path / "config.json")
