"""The local network as processes: one chain, n members, m nodes, an S3 gateway, kept running until told to stop.

    start   lock, leftovers, nursery | chain; contracts and money (once); members and nodes; all ready; gateway
    run     whoever ends is started again, after a pause that doubles; it is said
    stop    gateway, nodes, members, nursery, chain: nobody is asked for what has already gone

Invariant: whatever is killed, and whenever, the next `start` resumes the same chain, files and accounts: all that
counts is on disk before it is acted on, and every process that might be left over is found by pid and start time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Protocol

from freehold.chain.rpc import Rpc
from freehold.local.accounts import FUNDED, LocalAccounts, derive_accounts, write_accounts
from freehold.local.anvil import ensure_anvil
from freehold.local.chain import MNEMONIC, ChainOptions, LocalChain
from freehold.local.children import ChildFailed, reap_leftovers, start_time, write_json
from freehold.local.deployment import Plan, deploy_network, with_ends
from freehold.local.files import LocalFiles
from freehold.local.forks import Fork, Nursery
from freehold.local.funding import fund
from freehold.local.parameters import DEFAULT, LocalSettings
from freehold.market.network import MemberRecord, Network
from freehold.net.client import Dial
from freehold.protocol.errors import FreeholdError, InvalidInput
from freehold.protocol.units import Hash

READY_SECONDS = 60.0
LEAST_FREE = 500 * 2**20  # bytes of disk, below which nothing is started
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds before a program that ended is started again
STEADY_SECONDS = 60.0  # a program that ran this long starts with the first pause again
NAME = "local"
ORACLE, NODE, GATEWAY = "freehold.oracle.process", "freehold.node.process", "freehold.gateway.process"
MODULES = ("eth_account", "freehold.chain.deploy", "freehold.services.judging", ORACLE, NODE, GATEWAY)
KINDS = {ORACLE: "member", NODE: "node", GATEWAY: "gateway"}
Say = Callable[[str], None]


class Chain(Protocol):
    """What runs under the network: it is running when handed over, and ended by `__aexit__`."""

    @property
    def url(self) -> str: ...

    @property
    def pid(self) -> int | None: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Program(NamedTuple):
    """One of the programs that the network consists of."""

    name: str
    module: str

    @property
    def kind(self) -> str:
        return KINDS[self.module]


class LocalNetwork:
    """`async with LocalNetwork(...) as network: await network.run()`."""

    def __init__(
        self,
        files: LocalFiles,
        cache: Path,
        say: Say,
        settings: LocalSettings = DEFAULT,
    ) -> None:
        self.files = files
        self.settings = settings
        self.mnemonic = MNEMONIC
        self.artifacts: Path | None = None  # the contracts compiled for another fork than the package's own
        self.forks: dict[str, Fork] = {}
        self.urls: dict[str, str] = {}
        self.fingerprints: dict[str, Hash] = {}
        self.accounts: LocalAccounts | None = None
        self.network: Network | None = None
        self._cache = cache
        self._say = say
        self._lock: IO[str] | None = None
        self._chain: Chain | None = None
        self._nursery: Nursery | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._pauses: dict[str, float] = {}
        self._began: dict[str, float] = {}
        self._stopping = False
        self._broken = asyncio.Event()

    @property
    def members(self) -> list[Program]:
        return [Program(f"member-{i + 1}", ORACLE) for i in range(self.settings.members)]

    @property
    def nodes(self) -> list[Program]:
        return [Program(f"operator-{i + 1}", NODE) for i in range(self.settings.operators)]

    @property
    def gateways(self) -> list[Program]:
        return [Program("gateway", GATEWAY)] if self.settings.gateway else []

    @property
    def programs(self) -> list[Program]:
        return [*self.members, *self.nodes, *self.gateways]

    async def __aenter__(self) -> LocalNetwork:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Bring everything up. Conflict if it is up already; otherwise the error of whatever did not start."""
        self._lock = self.files.lock()
        self.files.write_settings(self.settings)
        self._check_disk()
        left = await reap_leftovers(self.files.logs)
        if left:
            self._say(f"ended what an earlier run had left: {', '.join(left)}")
        self._nursery = Nursery(self.files.logs, MODULES, self._on_end)
        await self._nursery.start()
        self._chain = await self._start_chain()
        accounts = derive_accounts(self.settings.members, self.settings.operators, self.mnemonic)
        self.accounts = accounts
        write_accounts(self.files.root, accounts)
        self.files.write_price(self.settings.price)
        async with Rpc(self._chain.url) as rpc:
            self.network = await self._open_network(rpc, accounts)
            self.network.save(self.files.network)
            async with asyncio.TaskGroup() as group:
                group.create_task(fund(rpc, self.network, accounts, self.settings))
                for program in [*self.members, *self.nodes]:  # they wait for each other, and for their tokens
                    group.create_task(self._launch(program))
        await self._wait_ready()
        for program in self.gateways:  # their accounts' heads are kept by the nodes
            await self._launch(program)
        self._write_status()

    async def run(self) -> None:
        """Until cancelled, or until the nursery is gone, which only a new start mends (then ChildFailed)."""
        await self._broken.wait()
        raise ChildFailed("the nursery ended, and every process with it; start the network again")

    async def stop(self) -> None:
        """End everything, in order. What is acknowledged is on disk already."""
        self._stopping = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for programs in (self.gateways, self.nodes, self.members):
            await asyncio.gather(*(self.forks[p.name].stop() for p in programs if p.name in self.forks))
        if self._nursery is not None:
            await self._nursery.stop()
        if self._chain is not None:
            await self._chain.__aexit__(None, None, None)
        if self._lock is not None:  # otherwise the file is that of the network that runs
            self.files.supervisor.unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def _check_disk(self) -> None:
        free = shutil.disk_usage(self.files.root).free
        if free < LEAST_FREE:
            raise InvalidInput(
                f"{self.files.root} has {free // 2**20} MiB free, and a local network needs {LEAST_FREE // 2**20}",
                hint="Free some space, or choose another place with --home.",
            )

    async def _start_chain(self) -> Chain:
        """The running chain. Another kind of network overrides this; the story of testnet/ runs over validators."""
        anvil = await ensure_anvil(self._cache)
        options = ChainOptions(accounts=FUNDED, block_interval=self.settings.block_interval, step=self.settings.step)
        chain = LocalChain(self.files.chain, anvil, options)
        await chain.__aenter__()
        return chain

    async def _open_network(self, rpc: Rpc, accounts: LocalAccounts) -> Network:
        """The network of the last run at today's addresses, or a new one."""
        if self.files.network.exists():
            known = Network.load(self.files.network)
            if await rpc.code(known.contracts["oracle"]):
                return replace(known, rpc_url=rpc.url)
        self._say("deploying the contracts")
        plan = Plan(
            name=NAME,
            members=tuple(MemberRecord(key.address, key.public, "") for key in accounts.members),
            parameters=self.settings.parameters(),
            treasury=accounts.treasury.address,
            initial_supply=self.settings.initial_supply,
            cap=self.settings.cap,
            member_bond=self.settings.member_bond,
            dispute_bond=self.settings.dispute_bond,
            reveal_seconds=self.settings.reveal_seconds,
            artifacts=self.artifacts,
        )
        return await deploy_network(rpc, accounts.treasury.secret, plan)

    async def _launch(self, program: Program) -> None:
        """Start one program; where its port of last time is taken, on another."""
        port = self.files.last_port(program.name)
        try:
            await self._launch_at(program, port)
        except ChildFailed:
            if not port:
                raise
            await self._launch_at(program, 0)

    async def _launch_at(self, program: Program, port: int) -> None:
        assert self._nursery is not None
        if program.module == ORACLE:
            config = self.files.write_member(program.name, self.settings, port)
        elif program.module == NODE:
            config = self.files.write_node(program.name, self.settings, port)
        else:
            config = self.files.write_gateway(program.name, self.settings, port)
        ready = self.files.ready(program.name)
        self._began[program.name] = time.monotonic()
        fork = await self._nursery.fork(program.name, program.module, config, ready)
        self.forks[program.name] = fork
        told = await fork.wait_ready(READY_SECONDS)
        url = str(told["url"])
        self.files.keep_port(program.name, url)
        self.urls[program.name], self.fingerprints[program.name] = url, Hash(told["fingerprint"])
        self._keep_urls()

    def _keep_urls(self) -> None:
        """Tell everybody where the members listen, once all are known, and whenever one moved."""
        ends = [(self.urls[p.name], self.fingerprints[p.name]) for p in self.members if p.name in self.urls]
        if self.network is None or len(ends) < len(self.members):
            return
        if [(member.url, member.fingerprint) for member in self.network.members] != ends:
            self.network = with_ends(self.network, self.network.rpc_url, ends)
            self.network.save(self.files.network)

    async def _wait_ready(self) -> None:
        """Until every member and node says that it takes part."""
        async with Dial() as dial:
            await asyncio.gather(*(self._wait_program(dial, p.name) for p in [*self.members, *self.nodes]))

    async def _wait_program(self, dial: Dial, name: str) -> None:
        why = "it did not answer"
        try:
            async with asyncio.timeout(READY_SECONDS):
                while True:
                    try:
                        answer = await dial.peer(self.urls[name], self.fingerprints[name]).get_json("/readyz")
                        if answer["ready"]:
                            return
                    except FreeholdError as error:
                        why = error.message
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise ChildFailed(f"{name} is not ready after {READY_SECONDS:g} s: {why}") from None

    def _on_end(self, fork: Fork | None, code: int) -> None:
        if self._stopping:
            return
        if fork is None:
            self._broken.set()
            return
        program = next(p for p in self.programs if p.name == fork.name)
        if self.forks.get(fork.name) is not fork or not self.settings.restart:
            return
        task = asyncio.create_task(self._restart(program, code), name=f"restart {fork.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _restart(self, program: Program, code: int) -> None:
        ran = time.monotonic() - self._began.get(program.name, 0.0)
        pause = FIRST_PAUSE if ran > STEADY_SECONDS else self._pauses.get(program.name, FIRST_PAUSE)
        self._pauses[program.name] = min(2 * pause, LONGEST_PAUSE)
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        log = self.files.logs / f"{program.name}.log"
        self._say(f"{program.name} {how}; starting it again in {pause:g} s (its log: {log})")
        await asyncio.sleep(pause)
        try:
            await self._launch(program)
        except ChildFailed as error:
            self._say(error.message)  # its end has come to `_on_end` too, which tries again
            return
        self._say(f"{program.name} runs again")
        self._write_status()

    def _write_status(self) -> None:
        status: dict[str, Any] = {
            "pid": os.getpid(),
            "started": start_time(os.getpid()),
            "rpc_url": self.network.rpc_url if self.network else "",
            "chain_pid": self._chain.pid if self._chain else None,
            "programs": [
                {"name": p.name, "kind": p.kind, "url": self.urls.get(p.name, ""), "pid": self.forks[p.name].pid}
                for p in self.programs
                if p.name in self.forks
            ],
        }
        with contextlib.suppress(FileNotFoundError):  # the network is being deleted
            write_json(self.files.supervisor, status)
