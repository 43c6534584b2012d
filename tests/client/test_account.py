"""Accounts and keystores, held against the field's own library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from eth_account import Account as EthAccount

from freehold.client.account import Account, Wallets, get_account_dir, get_home, new_words
from freehold.client.keystore import THROWAWAY_COST, open_secret, seal_secret
from freehold.protocol.errors import Conflict, InvalidInput, MalformedMessage, NotFound, WrongPassphrase
from freehold.protocol.typed import Domain
from freehold.protocol.units import Address

WORDS = "test test test test test test test test test test test junk"
SECRET = bytes.fromhex("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80")


def test_words_give_the_key_that_every_wallet_derives() -> None:
    account = Account.of_words(f"  {WORDS.replace(' ', '  ')} ")
    assert account.key.secret == SECRET
    assert str(account.address) == "0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266"
    assert account.seed == Account.of_secret(SECRET).seed
    assert len(account.seed) == 32
    assert account.seed != SECRET
    assert SECRET.hex() not in repr(account)
    assert account.seed.hex() not in repr(account)


def test_new_words_are_twelve_and_differ() -> None:
    words = {new_words() for _ in range(3)}
    assert len(words) == 3
    assert all(len(text.split()) == 12 for text in words)


@pytest.mark.parametrize("words", ["", "test", WORDS.replace("junk", "test"), WORDS.replace("junk", "qqqq")])
def test_words_that_do_not_check_are_refused(words: str) -> None:
    with pytest.raises(InvalidInput):
        Account.of_words(words)


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, b"short"])
def test_bytes_that_are_no_key_are_refused(secret: bytes) -> None:
    with pytest.raises(InvalidInput):
        Account.of_secret(secret)


def test_keystores_are_those_of_other_wallets() -> None:
    sealed = seal_secret(SECRET, "a pass phrase – with ünicode", THROWAWAY_COST)
    assert bytes(EthAccount.decrypt(sealed, "a pass phrase – with ünicode")) == SECRET
    theirs = EthAccount.encrypt(SECRET, "other", kdf="scrypt", iterations=THROWAWAY_COST)
    assert open_secret(json.loads(json.dumps(theirs)), "other") == SECRET


@pytest.mark.parametrize("passphrase", ["", "wrong", "Right", "right "])
def test_a_wrong_passphrase_is_told(passphrase: str) -> None:
    with pytest.raises(WrongPassphrase):
        open_secret(seal_secret(SECRET, "right", THROWAWAY_COST), passphrase)


def test_what_is_no_keystore_is_malformed() -> None:
    sealed = seal_secret(SECRET, "x", THROWAWAY_COST)
    for broken in [{}, sealed | {"version": 1}, sealed | {"crypto": []}, sealed | {"crypto": {}}]:
        with pytest.raises(MalformedMessage):
            open_secret(broken, "x")
    sealed["crypto"]["kdfparams"]["n"] = 1 << 30
    with pytest.raises(InvalidInput, match="out of range"):
        open_secret(sealed, "x")


def test_wallets_are_never_overwritten(tmp_path: Path) -> None:
    wallets = Wallets(tmp_path)
    account, words = wallets.create("mine", "pass", THROWAWAY_COST)
    before = wallets.path("mine").read_bytes()
    with pytest.raises(Conflict):
        wallets.create("mine", "pass", THROWAWAY_COST)
    assert wallets.path("mine").read_bytes() == before
    assert wallets.path("mine").stat().st_mode & 0o077 == 0
    assert wallets.open("mine", "pass").key.secret == account.key.secret == Account.of_words(words).key.secret
    assert wallets.address("mine") == account.address
    assert wallets.names() == ["mine"]
    with pytest.raises(WrongPassphrase):
        wallets.open("mine", "")
    with pytest.raises(NotFound):
        wallets.open("other", "pass")
    with pytest.raises(InvalidInput):
        wallets.path("../mine")


def test_the_home_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path))
    assert get_home() == tmp_path
    monkeypatch.delenv("FREEHOLD_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    assert get_home() == tmp_path / "xdg" / "freehold"
    one, other = Domain(1, Address(b"a" * 20)), Domain(1, Address(b"b" * 20))
    assert get_account_dir(tmp_path, one, Address(b"c" * 20)) != get_account_dir(tmp_path, other, Address(b"c" * 20))
