"""Configuration and price file: what is wrong is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from freehold.oracle.config import MemberConfig
from freehold.oracle.price import PriceFile, parse_price
from freehold.oracle.process import main
from freehold.protocol.errors import InvalidInput, MalformedMessage, NotFound

NEEDED = {"network": "network.json", "data": "data", "wallet": "wallet.json", "price_file": "price.json"}


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(NEEDED | {"ready_file": None, "poll": 2}))
    config = MemberConfig.load(path)
    assert (config.network, config.data) == (tmp_path / "network.json", tmp_path / "data")
    assert (config.ready_file, config.poll, config.port) == (None, 2.0, 0)


def test_rows_and_blobs_may_be_elsewhere(tmp_path: Path) -> None:
    addresses = {"database": "postgresql://host/name", "blobs": "s3://bucket/prefix", "ray": "auto"}
    config = MemberConfig.from_json(NEEDED | addresses, tmp_path)
    assert (config.database, config.blobs) == ("postgresql://host/name", "s3://bucket/prefix")
    assert config.ray == "auto"
    with pytest.raises(InvalidInput, match="postgresql://") as caught:
        MemberConfig.from_json(NEEDED | {"database": "mysql://user:secret@host"}, tmp_path)
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("change", "named"),
    [({"colour": 1}, "colour"), ({"port": "80"}, "port"), ({"poll": 0}, "poll"), ({"wallet": None}, "wallet")],
)
def test_what_is_wrong_is_named(change: dict[str, object], named: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=named):
        MemberConfig.from_json(NEEDED | change, tmp_path)


def test_a_missing_configuration_or_wallet(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        MemberConfig.load(tmp_path / "none.json")
    (tmp_path / "passphrase").write_text("secret\n")
    config = MemberConfig.from_json(NEEDED | {"passphrase_file": "passphrase"}, tmp_path)
    with pytest.raises(NotFound, match="wallet"):
        config.open_wallet()
    (tmp_path / "wallet.json").write_text("{}")
    with pytest.raises(InvalidInput, match="no wallet"):
        config.open_wallet()
    assert main(tmp_path / "none.json") == 1


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"price": 5}', '{"price": "0"}', '{"price": "-1"}', '{"price": "1.5"}']
)
def test_no_price(text: str) -> None:
    with pytest.raises(MalformedMessage):
        parse_price(text.encode())


def test_the_price_is_read_again_when_its_file_changes(tmp_path: Path) -> None:
    path, seen = tmp_path / "price.json", []
    file = PriceFile(path, seen.append)
    file.look()
    for i, text in enumerate(['{"price": "5"}', '{"price": "6"}', "nonsense", '{"price": "7"}']):
        path.write_text(text)
        os.utime(path, ns=(i, i + 1))
        file.look()
        file.look()
    assert seen == [5, 6, 7]
