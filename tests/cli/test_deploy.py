"""`freehold deploy` on a real chain: a network file that everything else takes, and no second one over it."""

from __future__ import annotations

import asyncio
import json
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from freehold.chain.abi import create_address
from freehold.client.account import Account, Wallets
from freehold.client.keystore import THROWAWAY_COST
from freehold.local.accounts import derive_accounts
from freehold.local.parameters import DEFAULT
from freehold.market.network import Network
from tests.cli.runner import Outcome, invoke
from tests.local.chains import local_chain

ACCOUNTS = derive_accounts(4, 0)
PLAN = {
    "name": "trial",
    "members": [
        {"address": str(key.address), "public_key": key.public.hex(), "url": f"https://member-{i}.example"}
        for i, key in enumerate(ACCOUNTS.members)
    ],
    "parameters": DEFAULT.parameters().to_json(),
    "treasury": str(ACCOUNTS.treasury.address),
    "initial_supply": DEFAULT.initial_supply,
    "cap": DEFAULT.cap,
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    Wallets(tmp_path).save("default", Account.of_secret(ACCOUNTS.treasury.secret), "secret", THROWAWAY_COST)
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))
    return tmp_path


def deploy(home: Path, rpc: str, *more: str) -> Outcome:
    plan, out = str(home / "plan.json"), str(home / "network.json")
    arguments = ["deploy", "--rpc", rpc, "--config", plan, "--out", out, "--json", *more]
    return invoke(home, *arguments, FREEHOLD_PASSPHRASE="secret")


def test_one_command_deploys_to_an_rpc_url(home: Path) -> None:
    async def test() -> tuple[Outcome, Outcome, Outcome]:
        async with local_chain(home / "chain") as chain:
            unasked = await asyncio.to_thread(deploy, home, chain.url)
            done = await asyncio.to_thread(deploy, home, chain.url, "--yes")
            return unasked, done, await asyncio.to_thread(deploy, home, chain.url, "--yes")

    unasked, done, again = asyncio.run(test())
    assert unasked.code == 2
    network = Network.load(home / "network.json")
    assert network.name == "trial"
    assert network.member_addresses == tuple(key.address for key in ACCOUNTS.members)
    assert done.data["contracts"]["oracle"] == str(network.contracts["oracle"])
    assert again.error["code"] == "conflict"


def test_contracts_of_another_fork_come_from_a_folder_that_must_hold_them_all(home: Path) -> None:
    folder = home / "artifacts"
    shutil.copytree(str(resources.files("freehold.chain") / "artifacts"), folder)
    kept = (folder / "Token.json").read_text()
    (folder / "Token.json").unlink()

    async def test() -> tuple[Outcome, Outcome]:
        async with local_chain(home / "chain") as chain:
            lacking = await asyncio.to_thread(deploy, home, chain.url, "--artifacts", str(folder), "--yes")
            (folder / "Token.json").write_text(kept)
            return lacking, await asyncio.to_thread(deploy, home, chain.url, "--artifacts", str(folder), "--yes")

    lacking, done = asyncio.run(test())
    assert "Token.json" in lacking.error["message"]
    assert done.data["contracts"]["registry"] == str(create_address(ACCOUNTS.treasury.address, 0))  # nothing was sent


@pytest.mark.parametrize("missing", sorted(PLAN))
def test_a_plan_that_lacks_something_is_named(home: Path, missing: str) -> None:
    plan: dict[str, Any] = {name: value for name, value in PLAN.items() if name != missing}
    (home / "plan.json").write_text(json.dumps(plan))
    error = deploy(home, "http://127.0.0.1:1", "--yes").error
    assert error["code"] == "invalid_input"
    assert missing in error["message"]


def test_a_chain_that_is_not_there_is_said(home: Path) -> None:
    error = deploy(home, "http://127.0.0.1:1", "--yes").error
    assert error["code"] == "chain_error"
    assert error["retryable"]
    assert not (home / "network.json").exists()
