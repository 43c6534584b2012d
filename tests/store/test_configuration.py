"""Configurations: what is unknown, missing or not readable is named; passphrases and wallets open or say why not."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from eth_keyfile.keyfile import create_keyfile_json

from freehold.protocol.errors import FreeholdError, InvalidInput, NotFound, WrongPassphrase
from freehold.protocol.keys import Key
from freehold.store.configuration import (
    PASSPHRASE_VARIABLE,
    open_wallet,
    parse_configuration,
    read_configuration,
    read_passphrase,
    wrong,
)

SECRET = bytes(range(1, 33))


@dataclass(frozen=True)
class Lamp:
    colour: str
    watts: int = 5
    names: list[str] = field(default_factory=list)


def parse(name: str, item: Any, directory: Path) -> Any:
    if name == "colour":
        return f"{directory.name}/{item}"
    raise wrong(name, item)


def test_a_dataclass_says_what_may_and_must_be_there(tmp_path: Path) -> None:
    assert parse_configuration(Lamp, {"colour": "red", "watts": None}, tmp_path, parse) == Lamp(f"{tmp_path.name}/red")
    with pytest.raises(InvalidInput, match="unknown key 'size'"):
        parse_configuration(Lamp, {"colour": "red", "size": 1}, tmp_path, parse)
    with pytest.raises(InvalidInput, match="lacks 'colour'"):
        parse_configuration(Lamp, {"colour": None}, tmp_path, parse)
    with pytest.raises(InvalidInput, match="'watts' is not what it must be: 'x'"):
        parse_configuration(Lamp, {"colour": "red", "watts": "x"}, tmp_path, parse)


@pytest.mark.parametrize("text", ["[]", "{", "1"])
def test_a_file_that_holds_no_object_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "lamp.json"
    with pytest.raises(NotFound, match=r"lamp\.json"):
        read_configuration(path)
    path.write_text(text)
    with pytest.raises(InvalidInput, match=r"lamp\.json"):
        read_configuration(path)


def test_a_passphrase_is_in_a_file_or_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PASSPHRASE_VARIABLE, raising=False)
    path = tmp_path / "secret"
    with pytest.raises(InvalidInput, match="no passphrase") as raised:
        read_passphrase(None)
    assert PASSPHRASE_VARIABLE in raised.value.advice
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_passphrase(path)
    path.write_text(" with spaces \n")
    assert read_passphrase(path) == " with spaces "
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "other")
    assert (read_passphrase(None), read_passphrase(path)) == ("other", " with spaces ")


@pytest.mark.parametrize("kdf", ["pbkdf2", "scrypt"])
def test_wallets_open_or_say_why_not(tmp_path: Path, kdf: Any) -> None:
    path = tmp_path / "wallet.json"
    with pytest.raises(NotFound):
        open_wallet(path, "right")
    path.write_text(json.dumps(create_keyfile_json(SECRET, b"right", kdf=kdf, iterations=2)))
    assert open_wallet(path, "right").address == Key(SECRET).address
    with pytest.raises(WrongPassphrase):
        open_wallet(path, "wrong")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 3}', '{"version": 3, "crypto": 1}'])
def test_what_is_no_wallet_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "wallet.json"
    path.write_text(text)
    with pytest.raises(FreeholdError, match=r"wallet\.json is no wallet"):
        open_wallet(path, "right")
