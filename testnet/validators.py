"""The chain: geth processes that seal Clique blocks in turn, each with a key, a directory and ports of its own.

Every port is one that the system gave (geth binds 0 and logs what it got); a validator that is started again takes the
ports it had, as the others and the members know it by them. Each is told, as static peers, of those that run when it
starts; so all are connected with all. Nothing listens beyond 127.0.0.1, and nobody is looked for.

Invariant: the signing keys are of this run, and own nothing: that geth keeps them unlocked risks blocks, not coins.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from freehold.chain.errors import ChainError
from freehold.chain.rpc import Rpc
from freehold.client.keystore import THROWAWAY_COST, seal_secret
from freehold.local.children import Child, ChildFailed, spawn
from freehold.protocol.keys import Key
from freehold.protocol.units import Address
from testnet.genesis import build_genesis
from testnet.geth import run

START_SECONDS = 60.0
ATTEMPTS, PAUSE = 5, 1.0  # a port that was this validator's may be taken for a moment by somebody's connection
PASSPHRASE = "testnet"
CACHE_MEGABYTES = 64
ENDS = 3  # that each process asks: of three, two must agree (freehold/chain/rpc.py), so that one may be gone
HTTP = re.compile(r"HTTP server started +endpoint=127\.0\.0\.1:(\d+)")
PEER = re.compile(r'Started P2P networking +self="?enode://([0-9a-f]{128})@127\.0\.0\.1:(\d+)')
REORG = re.compile(r"[Cc]hain reorg detected.*\bdrop=(\d+)")


class Validator:
    """One validator. `enode` and `url` are known once it has started, and stay."""

    def __init__(self, name: str, directory: Path, geth: Path, key: Key) -> None:
        self.name, self.address = name, key.address
        self.enode = ""
        self.killed = 0  # times
        self._directory, self._data, self._geth, self._key = directory, directory / name, geth, key
        self._http = self._peer = 0
        self._child: Child | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http}"

    @property
    def pid(self) -> int | None:
        """None while it does not run."""
        return None if self._child is None or self._child.returncode is not None else self._child.pid

    async def prepare(self, genesis: Path) -> None:
        """The data directory: key, passphrase, first block."""
        folder = self._data / "keystore"
        folder.mkdir(parents=True, mode=0o700)
        sealed = seal_secret(self._key.secret, PASSPHRASE, THROWAWAY_COST)
        (folder / "signer.json").write_text(json.dumps(sealed))
        (self._data / "passphrase").write_text(PASSPHRASE)
        await run(str(self._geth), "init", "--datadir", str(self._data), str(genesis))

    async def start(self, peers: Sequence[str], chain_id: int) -> None:
        """Start it, with the enodes of those that run. ChildFailed, with the end of its log."""
        for attempt in range(ATTEMPTS):
            try:
                await self._start(peers, chain_id)
                return
            except ChildFailed:
                if attempt == ATTEMPTS - 1 or not self._http:
                    raise
            await asyncio.sleep(PAUSE)

    async def _start(self, peers: Sequence[str], chain_id: int) -> None:
        settings = self._data / "geth.toml"
        settings.write_text(
            f'[Node.P2P]\nListenAddr = "127.0.0.1:{self._peer}"\nNoDiscovery = true\n'
            f'NetRestrict = ["127.0.0.0/8"]\nStaticNodes = {json.dumps(list(peers))}\n'
        )
        log = self._directory / f"{self.name}.log"
        said = log.stat().st_size if log.exists() else 0
        child = await spawn(self.name, self._command(settings, chain_id), self._directory)
        self._child = child

        def look() -> tuple[re.Match[str], re.Match[str]] | None:
            with log.open("rb") as file:
                file.seek(said)
                text = file.read().decode(errors="replace")
            http, peer = HTTP.search(text), PEER.search(text)
            return (http, peer) if http and peer else None

        try:
            http, peer = await child.wait_for(look, START_SECONDS)
        except ChildFailed:
            await child.stop()
            raise
        self._http, self._peer = int(http[1]), int(peer[2])
        self.enode = f"enode://{peer[1]}@127.0.0.1:{self._peer}"

    def _command(self, settings: Path, chain_id: int) -> list[str]:
        return [
            str(self._geth),
            *("--config", str(settings), "--datadir", str(self._data), "--networkid", str(chain_id)),
            *("--nat", "none", "--nodiscover", "--ipcdisable", "--syncmode", "full", "--cache", str(CACHE_MEGABYTES)),
            *("--http", "--http.addr", "127.0.0.1", "--http.port", str(self._http)),
            *("--http.api", "eth,net,web3,txpool,clique"),
            *("--authrpc.addr", "127.0.0.1", "--authrpc.port", "0"),
            *("--mine", "--miner.etherbase", str(self.address), "--unlock", str(self.address)),
            *("--password", str(self._data / "passphrase"), "--allow-insecure-unlock"),
        ]

    async def kill(self) -> int:
        """SIGKILL, by its process id, and it has ended; the id."""
        child, pid = self._child, self.pid
        if child is None or pid is None:
            raise ChainError(f"{self.name} does not run")
        os.kill(pid, signal.SIGKILL)
        await child.stop()
        self.killed += 1
        return pid

    async def stop(self) -> None:
        """End it as geth likes to be ended: SIGTERM first."""
        child, self._child = self._child, None
        if child is not None:
            await child.stop()

    def count_reorgs(self) -> list[int]:
        """The blocks dropped at each change of branch that its log tells of."""
        text = (self._directory / f"{self.name}.log").read_text(errors="replace")
        return [int(found) for found in REORG.findall(text)]


class Validators:
    """All of them: what the network stands on. Fulfils `freehold.local.supervisor.Chain`."""

    def __init__(self, directory: Path, geth: Path, count: int, chain_id: int, period: int) -> None:
        self.directory, self.chain_id, self.period = directory, chain_id, period
        keys = [Key(os.urandom(32)) for _ in range(count)]
        self.all = [Validator(f"validator-{i + 1}", directory, geth, key) for i, key in enumerate(keys)]

    def __getitem__(self, number: int) -> Validator:
        """By the number in its name."""
        return self.all[number - 1]

    def urls_from(self, validator: Validator) -> str:
        """The RPC ends of who prefers this validator: it, and the next ones, so that a quorum outlives one of them."""
        i = self.all.index(validator)
        return " ".join(self.all[(i + step) % len(self.all)].url for step in range(ENDS))

    @property
    def url(self) -> str:
        """The RPC ends of those that are neither member nor node."""
        return self.urls_from(self.all[-1])

    @property
    def pid(self) -> int | None:
        return self.all[-1].pid

    async def start(self, funded: Sequence[Address]) -> None:
        """A new chain, on which `funded` own coins, and every validator."""
        self.directory.mkdir(parents=True, mode=0o700)
        genesis = self.directory / "genesis.json"
        signers = [validator.address for validator in self.all]
        genesis.write_text(json.dumps(build_genesis(self.chain_id, self.period, signers, funded), indent=1) + "\n")
        for validator in self.all:
            await validator.prepare(genesis)
        for validator in self.all:
            await self.start_one(validator)

    async def start_one(self, validator: Validator) -> None:
        """Start one, or start it again."""
        peers = [other.enode for other in self.all if other.pid is not None]
        await validator.start(peers, self.chain_id)

    async def read_signers(self, rpc: Rpc, first: int, last: int) -> list[Address]:
        """Who signed the blocks `first` to `last`, as the signatures in their headers say."""
        return [Address(s) for s in await rpc.batch([("clique_getSigner", [hex(n)]) for n in range(first, last + 1)])]

    def name_of(self, signer: Address) -> str:
        return next(validator.name for validator in self.all if validator.address == signer)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(validator.stop() for validator in self.all))
