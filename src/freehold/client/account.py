"""Accounts: twelve words, the key they give, the keystore file that holds it, and the storage seed derived from it.

    words (BIP-39)  ->  m/44'/60'/0'/0/0  ->  32 secret bytes  ->  signing key, address
                                                              ->  HKDF, own label: storage seed

The seed comes from the secret, not from the words, so that a wallet imported by its private key opens the same files.
Invariants: no file of a wallet is ever overwritten; nothing but a signature or a ciphertext leaves this module.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from freehold.client.keystore import DEFAULT_COST, open_secret, seal_secret
from freehold.protocol.errors import Conflict, InvalidInput, MalformedMessage, NotFound
from freehold.protocol.keys import Key
from freehold.protocol.typed import Domain
from freehold.protocol.units import Address

DERIVATION = "m/44'/60'/0'/0/0"
DEFAULT_WALLET = "default"

_SEED_LABEL = b"freehold/storage-seed/1"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


@dataclass(frozen=True)
class Account:
    """A client's identity: `key` signs, `seed` (32 bytes) opens its files."""

    key: Key
    seed: bytes = field(repr=False)

    @property
    def address(self) -> Address:
        """The account's address."""
        return self.key.address

    @staticmethod
    def of_secret(secret: bytes) -> Account:
        """The account of a private key of 32 bytes; InvalidInput if it is none."""
        try:
            key = Key(secret) if len(secret) == 32 else None
        except ValueError:
            key = None
        if key is None:
            raise InvalidInput("these bytes are not a secp256k1 private key")
        return Account(key, HKDF(SHA256(), 32, salt=None, info=_SEED_LABEL).derive(secret))

    @staticmethod
    def of_words(words: str) -> Account:
        """The account of a BIP-39 mnemonic, at m/44'/60'/0'/0/0; InvalidInput if the words do not check."""
        return Account.of_secret(_secret_of(words))


def new_words() -> str:
    """Twelve fresh BIP-39 words (128 random bits)."""
    from eth_account import Account as EthAccount

    EthAccount.enable_unaudited_hdwallet_features()
    return str(EthAccount.create_with_mnemonic(num_words=12)[1])


def _secret_of(words: str) -> bytes:
    from eth_account import Account as EthAccount
    from eth_utils.exceptions import ValidationError

    EthAccount.enable_unaudited_hdwallet_features()
    try:
        return bytes(EthAccount.from_mnemonic(" ".join(words.split()), account_path=DERIVATION).key)
    except (ValueError, ValidationError) as error:
        raise InvalidInput(f"these are not the words of a wallet: {error}") from None


def get_home() -> Path:
    """Where clients keep their data: FREEHOLD_HOME, else the XDG data directory."""
    if chosen := os.environ.get("FREEHOLD_HOME"):
        return Path(chosen)
    import platformdirs

    return Path(platformdirs.user_data_dir("freehold", appauthor=False))


def get_account_dir(home: Path, domain: Domain, address: Address) -> Path:
    """What an account keeps for one network: heads, leases, vouchers, evidence."""
    return home / "networks" / f"{domain.chain_id}-{domain.contract.hex()[:12]}" / address.hex()


class Wallets:
    """The keystore files of one home directory, by name."""

    def __init__(self, home: Path) -> None:
        self.folder = home / "wallets"

    def path(self, name: str) -> Path:
        """Where the wallet of this name is, or would be."""
        if not _NAME.fullmatch(name):
            raise InvalidInput(f"{name!r} is not a wallet's name: lower-case letters, digits, '.', '_', '-'")
        return self.folder / f"{name}.json"

    def names(self) -> list[str]:
        """The wallets that are here."""
        return sorted(path.stem for path in self.folder.glob("*.json"))

    def address(self, name: str = DEFAULT_WALLET) -> Address:
        """A wallet's address, without its passphrase."""
        return Address(str(self._read(name).get("address", "")))

    def create(self, name: str, passphrase: str, cost: int = DEFAULT_COST) -> tuple[Account, str]:
        """A new account and its twelve words, which are shown once and kept nowhere."""
        words = new_words()
        return self.save(name, Account.of_words(words), passphrase, cost), words

    def save(self, name: str, account: Account, passphrase: str, cost: int = DEFAULT_COST) -> Account:
        """Keep an account under a name. Conflict if there is one already: nothing is overwritten."""
        path = self.path(name)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        text = json.dumps(seal_secret(account.key.secret, passphrase, cost), indent=2) + "\n"
        with tempfile.NamedTemporaryFile("w", dir=self.folder, prefix=f".{name}.") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            try:
                os.link(file.name, path)
            except FileExistsError:
                raise Conflict(
                    f"there is a wallet {name!r} already, and it is not overwritten", hint="Choose another name."
                ) from None
        return account

    def open(self, name: str, passphrase: str) -> Account:
        """The account behind a name. NotFound, WrongPassphrase."""
        return Account.of_secret(open_secret(self._read(name), passphrase))

    def _read(self, name: str) -> dict[str, object]:
        path = self.path(name)
        try:
            value = json.loads(path.read_text())
        except FileNotFoundError:
            raise NotFound(
                f"there is no wallet {name!r} in {self.folder}", hint="Make one with `freehold wallet new`."
            ) from None
        except ValueError as error:
            raise MalformedMessage(f"{path} is not a keystore: {error}") from None
        if not isinstance(value, dict):
            raise MalformedMessage(f"{path} is not a keystore")
        return value
