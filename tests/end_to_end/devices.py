"""Devices of one account: home directories with its wallet in them, and command lines that use them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from freehold.client.account import Wallets
from freehold.protocol.units import Address
from tests.end_to_end.network import Outcome, RunningNetwork

PASSPHRASE = "correct horse"


class Device:
    """A home directory with the account's wallet in it: a new account's, or that of twelve words."""

    def __init__(self, network: RunningNetwork, folder: Path, name: str, words: str = "") -> None:
        self.network, self.name, self.home = network, name, folder / name
        if not (folder / "network.json").exists():
            shutil.copy(network.local / "network.json", folder / "network.json")
        self.environment = {
            "FREEHOLD_HOME": str(self.home),
            "FREEHOLD_CONFIG": str(self.home / "config.toml"),
            "FREEHOLD_NETWORK": str(folder / "network.json"),
            "FREEHOLD_WALLET": "mine",
            "FREEHOLD_PASSPHRASE": PASSPHRASE,
        }
        if words:
            done = network.run(
                "wallet", "import", "mine", "--words-file", "-", "--json", stdin=words, **self.environment
            )
            made = done.data
        else:
            made = self.ask("wallet", "new", "mine")
        self.words, self.address = made.get("words", words), Address(made["address"])
        self.wallet = Wallets(self.home).path("mine")

    def run(self, *arguments: str) -> Outcome:
        """A command of this device."""
        return self.network.run(*arguments, "--json", **self.environment)

    def ask(self, *arguments: str) -> Any:
        """The data of a command that must succeed."""
        return self.network.ask(*arguments, **self.environment)

    def launch(self, *arguments: str) -> Any:
        """A command that is left running."""
        return self.network.launch(*arguments, "--json", **self.environment)

    def take_credits(self, tokens: str = "240") -> None:
        """Tokens of the network's client, and credits bought for some of them."""
        self.network.give_gas(str(self.address))
        self.network.ask("wallet", "send", str(self.address), "500", "--yes")
        self.ask("credits", "buy", tokens, "--yes")
