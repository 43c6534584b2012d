"""The local network's accounts: the ones that every tool derives from the public mnemonic, and only weakly sealed."""

from __future__ import annotations

import json
from pathlib import Path

from eth_account.hdaccount import key_from_seed, seed_from_mnemonic
from hypothesis import given
from hypothesis import strategies as st

from freehold.client.account import Wallets
from freehold.client.keystore import THROWAWAY_COST
from freehold.local.accounts import (
    FIRST_MEMBER,
    FIRST_NODE,
    FIRST_OPERATOR,
    PASSPHRASE,
    derive_accounts,
    derive_child,
    derive_parent,
    read_accounts,
    write_accounts,
)
from freehold.local.chain import MNEMONIC

SEED = seed_from_mnemonic(MNEMONIC, "")


@given(st.integers(0, 2**31 - 1))
def test_derivation_is_that_of_every_wallet(index: int) -> None:
    assert derive_child(*derive_parent(MNEMONIC), index)[0] == key_from_seed(SEED, f"m/44'/60'/0'/0/{index}")


def test_each_role_has_accounts_of_its_own() -> None:
    accounts = derive_accounts(4, 8)
    keys = [accounts.treasury, accounts.client, *accounts.members, *accounts.operators, *accounts.nodes]
    assert len({key.address for key in keys}) == 2 + 4 + 8 + 8
    assert accounts.members[0].secret == key_from_seed(SEED, f"m/44'/60'/0'/0/{FIRST_MEMBER}")
    assert accounts.operators[7].secret == key_from_seed(SEED, f"m/44'/60'/0'/0/{FIRST_OPERATOR + 7}")
    assert accounts.nodes[7].secret == key_from_seed(SEED, f"m/44'/60'/0'/0/{FIRST_NODE + 7}")


def test_wallets_open_and_names_lead_to_addresses(tmp_path: Path) -> None:
    accounts = derive_accounts(1, 2)
    write_accounts(tmp_path, accounts)
    write_accounts(tmp_path, accounts)  # nothing is overwritten the second time
    wallets = Wallets(tmp_path)
    assert wallets.open("operator-2", PASSPHRASE).address == accounts.operators[1].address
    assert wallets.open("operator-2-node", PASSPHRASE).address == accounts.nodes[1].address
    stored = json.loads(wallets.path("client").read_text())
    assert stored["crypto"]["kdfparams"]["n"] == THROWAWAY_COST
    named = read_accounts(tmp_path)
    assert named["operator-1"] == {
        "address": str(accounts.operators[0].address),
        "node": str(accounts.nodes[0].address),
    }
    assert set(named) == {"treasury", "client", "member-1", "operator-1", "operator-2"}


def test_another_directory_has_no_names(tmp_path: Path) -> None:
    assert read_accounts(tmp_path) == {}
