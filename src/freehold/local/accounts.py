"""The local network's accounts: the same on every machine, from a mnemonic that everybody knows. Throwaway.

    account index   0 treasury   1 client   2.. members   10.. operators   30.. nodes' hot keys

Keystores (Web3 Secret Storage with a weak cost, told by its own name) stand in the network's `wallets` directory;
`accounts.json` has names and addresses. Invariant: nothing of value may ever be sent to any of them.
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from typing import NamedTuple

from coincurve import PrivateKey

from freehold.client.account import Account, Wallets
from freehold.client.keystore import THROWAWAY_COST
from freehold.local.chain import MNEMONIC
from freehold.local.children import read_json, write_json
from freehold.protocol.keys import Key

ACCOUNTS = "accounts.json"
PASSPHRASE_FILE = "passphrase"
PASSPHRASE = "freehold"
HARDENED = 2**31
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141  # of secp256k1 (SEC 2)
FIRST_MEMBER, FIRST_OPERATOR, FIRST_NODE = 2, 10, 30
FUNDED = 30  # accounts to which the local chain gives coins for gas


class LocalAccounts(NamedTuple):
    """Every key of a local network."""

    treasury: Key
    client: Key
    members: tuple[Key, ...]
    operators: tuple[Key, ...]
    nodes: tuple[Key, ...]

    def named(self) -> dict[str, Key]:
        """Those that have a wallet, by name."""
        members = {f"member-{i + 1}": key for i, key in enumerate(self.members)}
        operators = {f"operator-{i + 1}": key for i, key in enumerate(self.operators)}
        return {"treasury": self.treasury, "client": self.client} | members | operators

    def to_json(self) -> dict[str, dict[str, str]]:
        """Names and addresses; an operator's also with its node's."""
        listed = {name: {"address": str(key.address)} for name, key in self.named().items()}
        for i, key in enumerate(self.nodes):
            listed[f"operator-{i + 1}"]["node"] = str(key.address)
        return listed


def derive_accounts(members: int, operators: int, mnemonic: str = MNEMONIC) -> LocalAccounts:
    """The keys at m/44'/60'/0'/0/i."""
    parent = derive_parent(mnemonic)

    def key(index: int) -> Key:
        return Key(derive_child(*parent, index)[0])

    return LocalAccounts(
        treasury=key(0),
        client=key(1),
        members=tuple(key(FIRST_MEMBER + i) for i in range(members)),
        operators=tuple(key(FIRST_OPERATOR + i) for i in range(operators)),
        nodes=tuple(key(FIRST_NODE + i) for i in range(operators)),
    )


def derive_parent(mnemonic: str) -> tuple[bytes, bytes]:
    """Secret and chain code at m/44'/60'/0'/0 (BIP-39, BIP-32).

    Written here because importing eth-account takes a third of the time in which a network resumes; the tests hold
    both against each other.
    """
    seed = hashlib.pbkdf2_hmac("sha512", mnemonic.encode(), b"mnemonic", 2048)
    digest = hmac.digest(b"Bitcoin seed", seed, "sha512")
    node = digest[:32], digest[32:]
    for index in (44 + HARDENED, 60 + HARDENED, HARDENED, 0):
        node = derive_child(*node, index)
    return node


def derive_child(secret: bytes, code: bytes, index: int) -> tuple[bytes, bytes]:
    """BIP-32's private child derivation. That a child is invalid happens once in 2**127."""
    own = b"\x00" + secret if index >= HARDENED else PrivateKey(secret).public_key.format()
    digest = hmac.digest(code, own + index.to_bytes(4), "sha512")
    child = (int.from_bytes(digest[:32]) + int.from_bytes(secret)) % ORDER
    return child.to_bytes(32), digest[32:]


def write_accounts(directory: Path, accounts: LocalAccounts) -> None:
    """Keystores, the file with their passphrase, and the list of names."""
    wallets = Wallets(directory)
    nodes = {f"operator-{i + 1}-node": key for i, key in enumerate(accounts.nodes)}
    for name, key in (accounts.named() | nodes).items():
        if not wallets.path(name).exists():
            wallets.save(name, Account.of_secret(key.secret), PASSPHRASE, THROWAWAY_COST)
    (wallets.folder / PASSPHRASE_FILE).write_text(PASSPHRASE + "\n")
    write_json(directory / ACCOUNTS, accounts.to_json())


def read_accounts(directory: Path) -> dict[str, dict[str, str]]:
    """Names with their addresses (`address`, of an operator also `node`); empty for a network that is not local."""
    return read_json(directory / ACCOUNTS) or {}
