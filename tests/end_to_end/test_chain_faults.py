"""Epochs go on over a chain that misbehaves: each member asks two RPC ends of which one fails and lies by turns, and
the chain undoes several blocks again and again. Afterwards everybody is paid what the accounts say, once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import platformdirs
import pytest

from freehold.chain.contracts import Credits, Ledger, Oracle, Token
from freehold.chain.contracts.ledger import Claimed
from freehold.chain.contracts.oracle import ReportAccepted
from freehold.chain.rpc import Rpc
from freehold.client.money import Money
from freehold.local.files import LocalFiles
from freehold.local.parameters import LocalSettings
from freehold.local.supervisor import LocalNetwork, Program
from freehold.market.network import Network
from freehold.market.quorum import Quorum
from freehold.net.client import Dial
from freehold.protocol.keys import Key
from freehold.protocol.state import AccountState
from freehold.protocol.units import ONE, Address
from tests.chain.faulty import PLAUSIBLE, SELF_EVIDENT, FaultyEnd, faulty_end
from tests.end_to_end.files import MIB, make_file
from tests.end_to_end.network import DEADLINE, RunningNetwork

pytestmark = pytest.mark.timeout(180)

DEPTH = 4  # of finality; what is undone is no deeper
SETTINGS = LocalSettings(
    operators=6,
    epoch_length=16,
    answering_window=10,  # of it DEPTH seconds go by until the beacon is known
    finality_depth=DEPTH,
    dispute_window=10,
    block_interval=0.1,
    step=1,
    view_timeout=1.0,
    poll=0.1,
    restart=False,
)
SEED = 6
FAULTY = 0.4  # of the time one of a member's two ends fails or lies, and the member waits
EPOCHS = 2  # what is stored in the first is paid by the second's report


class FaultyNetwork(LocalNetwork):
    """The local network, whose members and client each ask an end of their own beside the chain itself."""

    def __init__(self, files: LocalFiles, cache: Path, stack: AsyncExitStack) -> None:
        super().__init__(files, cache, print, SETTINGS)
        self.ends: dict[str, FaultyEnd] = {}
        self.chain_url = ""
        self._ends_stack = stack

    async def _start_chain(self):  # type: ignore[no-untyped-def]
        chain = await super()._start_chain()
        self.chain_url = chain.url
        for name in [*(program.name for program in self.members), "client"]:
            self.ends[name] = await self._ends_stack.enter_async_context(faulty_end(chain.url))
        return chain

    def urls_of(self, name: str) -> str:
        return f"{self.ends[name].url} {self.chain_url}"

    def _write_network(self, name: str) -> None:
        path = self.files.networks[name] = self.files.config(name).with_name("network.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(Network.load(self.files.network), rpc_url=self.urls_of(name)).save(path)

    async def _launch(self, program: Program) -> None:
        if program.name in self.ends:
            self._write_network(program.name)
        await super()._launch(program)

    def _keep_urls(self) -> None:
        super()._keep_urls()
        for program in self.members:
            self._write_network(program.name)


class World:
    """The running network, and the chain as it is (straight) and as the client is told (through two ends)."""

    def __init__(self, network: FaultyNetwork, rpc: Rpc, dial: Dial) -> None:
        assert network.network is not None
        self.network, self.rpc, self.file = network, rpc, network.network
        self.ledger = Ledger(rpc, self.file.contracts["ledger"])
        self.token = Token(rpc, self.file.contracts["token"])
        self.quorum = Quorum(dial, self.file.members, self.file.domain)
        self.dice = random.Random(SEED)
        self.undone = 0

    async def misbehave(self) -> None:
        """Until cancelled: another fault at every end, and blocks undone, every few blocks."""
        while True:
            for end in self.network.ends.values():
                faults = list((SELF_EVIDENT | PLAUSIBLE).values())
                end.fault = self.dice.choice(faults) if self.dice.random() < FAULTY else None
            if self.dice.random() < 0.25:
                depth = self.dice.randint(1, DEPTH)
                await self.rpc.call("anvil_reorg", [depth, []])
                self.undone += depth
            await wait_blocks(self.rpc, self.dice.randint(2, 6))

    @asynccontextmanager
    async def misbehaving(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.misbehave())
        try:
            yield
            if task.done():
                task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            for end in self.network.ends.values():
                end.fault = None

    async def wait_epochs(self, count: int) -> None:
        wanted = await self.ledger.posted_epoch() + count
        await until(lambda: self.has_posted(wanted))

    async def has_posted(self, epoch: int) -> bool:
        return await self.ledger.posted_epoch() >= epoch

    async def leaf(self, account: Address, epoch: int) -> AccountState | None:
        answer = await self.quorum.agree(f"/v1/accounts/{account}?epoch={epoch}")
        return None if answer["account"] is None else AccountState.from_json(answer["account"])


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not await condition():  # noqa: ASYNC110 - other processes cause it
            await asyncio.sleep(0.05)


async def wait_blocks(rpc: Rpc, count: int) -> None:
    wanted = await rpc.block_number() + count
    while await rpc.block_number() < wanted:  # noqa: ASYNC110 - the chain causes it
        await asyncio.sleep(0.05)


def test_a_chain_that_misbehaves_costs_nobody_anything(tmp_path: Path) -> None:
    asyncio.run(scenario(tmp_path))


async def scenario(home: Path) -> None:
    async with AsyncExitStack() as stack:
        network = FaultyNetwork(LocalFiles(home / "local"), platformdirs.user_cache_path("freehold"), stack)
        await stack.enter_async_context(network)
        rpc = await stack.enter_async_context(Rpc(network.chain_url))
        world = World(network, rpc, await stack.enter_async_context(Dial()))
        make_file(home / "data.bin", MIB)
        commands = RunningNetwork(home)
        await asyncio.to_thread(commands.ask, "cp", str(home / "data.bin"), "fh://demo/data.bin", "--yes")
        async with world.misbehaving():
            first = await world.ledger.posted_epoch() + 1
            buying = asyncio.create_task(buy(world))
            await world.wait_epochs(EPOCHS)
            await buying
        await until(lambda: world.has_posted(first + EPOCHS - 1))  # the last one may have been undone since
        assert world.undone > DEPTH
        assert all(end.hits for end in network.ends.values())
        await check_reports(world, first)
        await check_payments(world, first + EPOCHS - 1)


async def buy(world: World) -> None:
    """A purchase through an end that misbehaves, over blocks that are undone: made once."""
    assert world.network.accounts is not None
    client = world.network.accounts.client
    credits = Credits(world.rpc, world.file.contracts["credits"])
    before, burned = await credits.paid_in(client.address), await credits.burned(client.address)
    async with Rpc(world.network.urls_of("client"), chain_id=world.file.chain_id, timeout=2) as rpc:
        bought = await Money(world.file, rpc, world.quorum, client).buy(100 * ONE)
    await wait_blocks(world.rpc, DEPTH + 1)
    assert await credits.burned(client.address) == burned + 100 * ONE
    assert await credits.paid_in(client.address) == before + bought


async def check_reports(world: World, first: int) -> None:
    """Each epoch has one report on the chain, and the members have committed that one."""
    oracle = Oracle(world.rpc, world.file.contracts["oracle"])
    logs = await world.rpc.get_logs(world.file.deployment_block, await world.rpc.block_number(), [oracle.address])
    reports = [event for log in logs if isinstance(event := oracle.decode(log), ReportAccepted)]
    epochs = [report.epoch for report in reports]
    assert epochs == list(range(1, len(epochs) + 1))
    assert len(epochs) >= first + EPOCHS - 1


async def check_payments(world: World, epoch: int) -> None:
    """What each account may claim arrives where it is paid; claimed again, nothing does."""
    accounts = world.network.accounts
    assert accounts is not None
    async with Rpc(world.network.urls_of("client"), chain_id=world.file.chain_id, timeout=2) as rpc:
        money = Money(world.file, rpc, world.quorum, accounts.treasury)
        await until(lambda: is_due(world, epoch))
        async with world.misbehaving():
            paid = await asyncio.gather(*(claim_all(world, money, key) for key in accounts.operators))
        claimed = {key.address: amount for key, amount in zip(accounts.operators, paid, strict=True)}
    assert sum(paid > 0 for paid in claimed.values()) == len(accounts.operators), claimed
    logs = await world.rpc.get_logs(0, await world.rpc.block_number(), [world.ledger.address])
    told: Counter[Address] = Counter()
    for log in logs:
        event = world.ledger.decode(log)
        if isinstance(event, Claimed):
            told[event.account] += event.amount
    assert dict(told) == claimed
    for address, paid in claimed.items():
        assert await world.ledger.paid(address) == paid


async def is_due(world: World, epoch: int) -> bool:
    return await world.ledger.due_epoch() >= epoch


async def claim_all(world: World, money: Money, key: Key) -> int:
    """Claim until the leaf of the epoch that is claimed from is paid in full; the sum, which is what arrived."""
    before = await world.token.balance_of(key.address)
    async with asyncio.timeout(DEADLINE):
        while True:
            result = await money.claim(key.address)
            leaf = await world.leaf(key.address, result.epoch)
            await wait_blocks(world.rpc, DEPTH + 1)
            paid = await world.ledger.paid(key.address)
            if leaf is not None and paid == leaf.tokens_earned:
                break
    assert await world.token.balance_of(key.address) == before + paid
    return paid
