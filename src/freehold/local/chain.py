"""The keeper of the local chain: anvil, mined and saved block by block.

anvil mines only when told. After each block the keeper saves the whole chain (dump to a temporary file, fsync, rename,
fsync of the directory) and only then mines the next, so whatever is killed, and whenever, at most the newest block is
lost: with a finality depth of 1 or more no final block ever is. A killed anvil is started again on the same port.

anvil can only be saved as a whole: a save takes about 20 µs and 340 bytes for each block there is (2,000 blocks, every
other with a transaction: 39 ms, 0.7 MB compressed, and 0.14 s to start again). Blocks without transactions therefore
come at `block_interval`, and never so close that saving takes more than a tenth of the time.

Block times have whole seconds and must increase. With `step` None they follow the machine's clock, hence at most one
block a second; after a night asleep the next block has the new time. With `step` s (for tests) each block is s
seconds after the one before, whatever the clock says: chain time then moves by blocks, and ten blocks a real second
give ten or more chain seconds.

Invariant: block N + 1 is mined only when a state that holds block N is on the disk.
"""

from __future__ import annotations

import asyncio
import fcntl
import gzip
import json
import logging
import os
import re
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

from freehold.chain.errors import ChainError, WrongChain
from freehold.chain.rpc import Header, Rpc, quantity, unhex
from freehold.local.children import Child, ChildFailed, read_json, reap_leftovers, spawn
from freehold.protocol.errors import Conflict, Corrupt

log = logging.getLogger(__name__)

HARDFORK = "prague"  # Vyper's default EVM version
MNEMONIC = "test test test test test test test test test test test junk"  # public: for this machine's own chain only
STATE = "state.json.gz"
SETTINGS = "chain.json"
START_SECONDS = 30.0
SAVING_SHARE = 10  # an idle block waits for this many times what the last save took
PAUSE = 0.2  # seconds before a chain that died is started again
STATES_IN_MEMORY = 64  # for eth_call at recent blocks; logs and blocks are kept for good
LISTENING = re.compile(r"^Listening on 127\.0\.0\.1:(\d+)$", re.MULTILINE)


class ChainOptions(NamedTuple):
    """What a chain begins with (chain id to balance; kept from its first start on), and how it is kept.

    `block_interval` and `poll` are seconds; `balance` is whole coins for each of `accounts`; `port` 0: any free.
    """

    chain_id: int = 31337
    mnemonic: str = MNEMONIC
    accounts: int = 20
    balance: int = 10_000
    block_interval: float = 2.0
    poll: float = 0.05
    step: int | None = None
    port: int = 0

    def genesis(self, timestamp: int) -> dict[str, Any]:
        """What decides the first block's hash. anvil makes that block anew at each start, so all of it is kept."""
        return {
            "chain_id": self.chain_id,
            "mnemonic": self.mnemonic,
            "accounts": self.accounts,
            "balance": self.balance,
            "timestamp": timestamp,
        }


class LocalChain:
    """One chain in one directory; `async with LocalChain(...) as chain` keeps it until the block ends.

    `url` holds as long as the object does; the next start takes the same port again if it is free.
    """

    def __init__(self, directory: Path, anvil: Path, options: ChainOptions | None = None) -> None:
        self.directory = directory
        self.options = options or ChainOptions()
        self.saved: Header | None = None
        self._anvil = anvil
        self._child: Child | None = None
        self._rpc: Rpc | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._lock: IO[str] | None = None
        self._genesis: dict[str, Any] = {}
        self._port = self.options.port
        self._mined_at = 0.0
        self._save_seconds = 0.0

    async def __aenter__(self) -> Self:
        await self.start()
        self._keeper = asyncio.create_task(self.run(), name="local chain")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
        await self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int | None:
        """anvil's process id, while it runs."""
        return None if self._child is None or self._child.returncode is not None else self._child.pid

    async def start(self) -> None:
        """Begin a chain, or resume the one in the directory. WrongChain if that one has another id."""
        self._take_directory()
        try:
            await reap_leftovers(self.directory)
            settings = read_json(self.directory / SETTINGS)
            self._resume(settings if settings is not None else {})
            await self._start_anvil(any_port=self.options.port == 0)
        except BaseException:
            await self.stop()
            raise

    async def run(self) -> None:
        """Mine and save until cancelled, and start anvil again whenever it ends."""
        while True:
            try:
                if self.pid is None:
                    await self._start_anvil(any_port=False)
                await self._keep()
            except (ChainError, ChildFailed) as error:
                log.warning("the local chain: %s", error.message)
            await asyncio.sleep(PAUSE)

    async def stop(self) -> None:
        """End anvil. The saved state is all there is; nothing more is written."""
        await self._end_anvil()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    async def mine(self) -> Header:
        """Mine one block now and save it; the new head. For tests and deployment, while `run` does not run."""
        rpc = self._client()
        head = await self._save_head(rpc)
        await rpc.call("evm_mine", [{"timestamp": hex(self._next_timestamp(head))}])
        self._mined_at = time.monotonic()
        return await self._save_head(rpc)

    async def _keep(self) -> None:
        rpc = self._client()
        head = await self._save_head(rpc)
        while True:
            if await self._is_due(rpc) and self._may_follow(head):
                head = await self.mine()
            else:
                await asyncio.sleep(self.options.poll)

    async def _is_due(self, rpc: Rpc) -> bool:
        idle = time.monotonic() - self._mined_at
        if idle >= max(self.options.block_interval, SAVING_SHARE * self._save_seconds):
            return True
        return quantity((await rpc.call("txpool_status"))["pending"]) > 0

    def _may_follow(self, head: Header) -> bool:
        """Whether a block's time has come: a new second of the clock, or one elapsed where the clock was set back."""
        if self.options.step is not None:
            return True
        return int(time.time()) > head.timestamp or time.monotonic() - self._mined_at >= 1.0

    def _next_timestamp(self, head: Header) -> int:
        if self.options.step is not None:
            return head.timestamp + self.options.step
        return max(int(time.time()), head.timestamp + 1)

    async def _save_head(self, rpc: Rpc) -> Header:
        """Save the chain unless its newest block is on the disk already."""
        head = await rpc.header("latest")
        if head is None:
            raise ChainError("the local chain has no blocks")
        if self.saved is None or self.saved.hash != head.hash:
            began = time.monotonic()
            state = unhex(await rpc.call("anvil_dumpState"))
            await asyncio.to_thread(write_durably, self.directory / STATE, state)
            self._save_seconds = time.monotonic() - began
            self.saved = head
        return head

    def _resume(self, settings: dict[str, Any]) -> None:
        """Take the genesis and the port from an earlier run, where there was one."""
        asked = self.options.genesis(int(time.time()))
        self._genesis = asked | settings.get("genesis", {})
        if self._genesis["chain_id"] != asked["chain_id"]:
            raise WrongChain(
                f"{self.directory} holds chain {self._genesis['chain_id']}, not chain {asked['chain_id']}",
                served=self._genesis["chain_id"],
                expected=asked["chain_id"],
            )
        self._port = self.options.port or int(settings.get("port", 0))

    async def _end_anvil(self) -> None:
        child, self._child = self._child, None
        rpc, self._rpc = self._rpc, None
        if rpc is not None:
            await rpc.close()
        if child is not None:
            await child.stop()

    async def _start_anvil(self, *, any_port: bool) -> None:
        await self._end_anvil()
        state = await asyncio.to_thread(self._unpack_state)
        try:
            await self._spawn(self._port, state)
        except ChildFailed:
            if not any_port or self._port == 0:
                raise
            await self._spawn(0, state)  # the port of the last run is taken now
        finally:
            if state is not None:
                state.unlink()
        rpc = Rpc(self.url, chain_id=self.options.chain_id, timeout=START_SECONDS, attempts=1)
        self._rpc = rpc
        await rpc.call("anvil_setLoggingEnabled", [False])
        settings = json.dumps({"genesis": self._genesis, "port": self._port}).encode()
        await asyncio.to_thread(write_durably, self.directory / SETTINGS, settings)
        self.saved = None if state is None else await rpc.header("latest")
        head = await self._save_head(rpc)
        # Estimates run at anvil's own time, which began at the genesis again.
        await rpc.call("evm_setTime", [self._next_timestamp(head)])
        log.info("the local chain is at block %d on %s", head.number, self.url)

    async def _spawn(self, port: int, state: Path | None) -> None:
        genesis = {name: str(value) for name, value in self._genesis.items()}
        arguments = [str(self._anvil), "--host", "127.0.0.1", "--port", str(port), "--chain-id", genesis["chain_id"]]
        arguments += ["--no-mining", "--hardfork", HARDFORK, "--order", "fifo", "--threads", "1"]
        arguments += ["--mnemonic", genesis["mnemonic"], "--accounts", genesis["accounts"]]
        arguments += ["--balance", genesis["balance"], "--timestamp", genesis["timestamp"]]
        arguments += ["--prune-history", str(STATES_IN_MEMORY)]
        arguments += ["--no-request-size-limit"]
        if state is not None:
            arguments += ["--load-state", str(state)]
        printed = self.directory / "anvil.log"
        if printed.exists():
            printed.replace(printed.with_suffix(".log.1"))  # what it said when it ended
        child = await spawn("anvil", arguments, self.directory)
        self._child = child

        def look() -> int | None:
            found = LISTENING.search(printed.read_text(errors="replace"))
            return None if found is None else int(found[1])

        self._port = await child.wait_for(look, START_SECONDS)

    def _unpack_state(self) -> Path | None:
        """The saved state as the plain JSON that anvil reads; None where the chain begins."""
        packed, plain = self.directory / STATE, self.directory / "state.json"
        try:
            plain.write_bytes(gzip.decompress(packed.read_bytes()))
        except FileNotFoundError:
            return None
        except (EOFError, OSError, ValueError) as error:
            raise Corrupt(f"{packed} cannot be read: {error}", hint="Start over with `freehold up --fresh`.") from error
        return plain

    def _take_directory(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        lock = (self.directory / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise Conflict(f"another process keeps the chain in {self.directory}") from None
        self._lock = lock

    def _client(self) -> Rpc:
        if self._rpc is None:
            raise ChainError("the local chain is not running")
        return self._rpc


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file at once and for good: after a cut there is the old content or the new, never a part."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
