"""Freehold's own processes over the validators: the local network of `freehold up`, on another chain.

Member i and node i ask validator i and the two after it (after the last comes the first): each process has a network
file of its own that names its RPC ends. All accounts come from words made for this run. Nobody is started again
unless it is asked for.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from freehold.client.account import new_words
from freehold.local.accounts import derive_accounts
from freehold.local.children import reap_leftovers
from freehold.local.files import LocalFiles
from freehold.local.parameters import LocalSettings
from freehold.local.supervisor import LocalNetwork, Program, Say
from freehold.market.network import Network
from testnet.genesis import compute_majority
from testnet.validators import Validator, Validators

CHAIN_ID = 7_331
PERIOD = 2  # seconds between blocks, at least
VALIDATORS = 5  # two may fail; an odd number, since two halves on two branches can block each other for good (EIP-3436)
SETTINGS = LocalSettings(
    members=4,
    operators=6,
    epoch_length=30,
    answering_window=16,
    finality_depth=compute_majority(VALIDATORS),
    dispute_window=60,
    restart=False,
)


class RealFiles(LocalFiles):
    """As the local network's, with a network file for each process, which names the RPC ends that it asks."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.validators = root / "validators"

    def write_network(self, name: str, rpc_url: str) -> None:
        """A process's own network file, from the shared one as it is now."""
        path = self.networks[name] = self.config(name).with_name("network.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(Network.load(self.network), rpc_url=rpc_url).save(path)

    async def clear(self) -> list[str]:
        """End what an interrupted run left, and delete it; the names of what was ended."""
        left = await reap_leftovers(self.logs) + await reap_leftovers(self.validators)
        if self.root.exists():
            self.delete()
        return left


class RealNetwork(LocalNetwork):
    """`async with RealNetwork(...) as network`: validators, contracts, members and nodes, all up."""

    def __init__(self, files: RealFiles, cache: Path, say: Say, geth: Path, artifacts: Path) -> None:
        super().__init__(files, cache, say, SETTINGS)
        self.mnemonic, self.artifacts = new_words(), artifacts
        self.validators = Validators(files.validators, geth, VALIDATORS, CHAIN_ID, PERIOD)
        self._files = files

    async def _start_chain(self) -> Validators:
        accounts = derive_accounts(self.settings.members, self.settings.operators, self.mnemonic)
        try:
            await self.validators.start([key.address for key in accounts.named().values()])
        except BaseException:
            await self.validators.__aexit__(None, None, None)
            raise
        return self.validators

    async def _launch(self, program: Program) -> None:
        self._files.write_network(program.name, self.validators.urls_from(self.validator_of(program)))
        await super()._launch(program)

    def _keep_urls(self) -> None:
        super()._keep_urls()
        for program in [*self.members, *self.nodes]:
            if program.name in self.forks:
                self._files.write_network(program.name, self.validators.urls_from(self.validator_of(program)))

    def validator_of(self, program: Program) -> Validator:
        """The validator that a member or node asks."""
        i = (self.members if program in self.members else self.nodes).index(program)
        return self.validators[1 + i % VALIDATORS]

    async def kill(self, name: str) -> int:
        """SIGKILL to a member or node, by its process id, and it has ended; the id."""
        fork = self.forks[name]
        os.kill(fork.pid, signal.SIGKILL)
        await fork.ended
        return fork.pid

    async def start_again(self, name: str) -> None:
        """Start a member or node that has ended, on the port it had."""
        await self._launch(next(p for p in [*self.members, *self.nodes] if p.name == name))

    def pids(self) -> Mapping[str, int]:
        """The processes there are, by name."""
        validators = {v.name: v.pid for v in self.validators.all if v.pid is not None}
        return validators | {name: fork.pid for name, fork in self.forks.items() if not fork.ended.done()}
