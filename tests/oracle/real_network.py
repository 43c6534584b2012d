"""Four members in one event loop over a real local chain, real disks and real HTTP; and a client that asks them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from freehold.chain.contracts import Credits, Ledger, Token
from freehold.chain.rpc import Rpc
from freehold.chain.transactor import Sender
from freehold.local.deployment import Plan, deploy_network, with_ends
from freehold.local.parameters import LocalSettings
from freehold.market.network import MemberRecord, Network
from freehold.market.quorum import Quorum
from freehold.net.client import Dial
from freehold.oracle import process
from freehold.oracle.config import MemberConfig
from freehold.protocol.keys import Key
from freehold.protocol.messages import Report
from freehold.protocol.units import ONE, ZERO_HASH
from tests.conftest import SLOW
from tests.local.chains import key, local_chain

SETTINGS = LocalSettings(epoch_length=20, answering_window=6, dispute_window=40)
DEADLINE = 40.0 * SLOW
TREASURY, MEMBERS, CLIENT = key(0), [key(i) for i in range(1, 5)], key(5)
ANY_PORT = 0


class RealNetwork:
    """`members` are the running ones, by position."""

    def __init__(self, directory: Path, network: Network, rpc: Rpc, dial: Dial) -> None:
        self.directory, self.network, self.rpc, self.dial = directory, network, rpc, dial
        self.secrets, self.urls = list(MEMBERS), [""] * len(MEMBERS)
        self.running: dict[int, tuple[asyncio.Event, asyncio.Task[None]]] = {}
        self.sender = Sender(rpc, TREASURY)
        self.ledger = Ledger(rpc, network.contracts["ledger"])

    def enlist(self, secret: bytes) -> int:
        """List one more member in the network file, before any set has it; its position."""
        key = Key(secret)
        members = (*self.network.members, MemberRecord(key.address, key.public, ""))
        self.network = replace(self.network, members=members)
        self.secrets.append(secret)
        self.urls.append("")
        self.save()
        return len(self.urls) - 1

    async def start(self, i: int) -> None:
        home = self.directory / f"member-{i}"
        home.mkdir(exist_ok=True)
        ready = home / "ready.json"
        ready.unlink(missing_ok=True)
        (self.directory / "price.json").write_text(json.dumps({"price": str(ONE // 2)}))
        config = MemberConfig.from_json(
            {
                "network": "../network.json",
                "data": "data",
                "wallet": "unused",
                "price_file": "../price.json",
                "ready_file": "ready.json",
                "port": int(self.urls[i].rpartition(":")[2] or ANY_PORT),
                "tls": False,
                "view_timeout": 1.0,
                "poll": 0.05,
            },
            home,
        )
        stopping = asyncio.Event()
        task = asyncio.create_task(process.run(config, stopping, Key(self.secrets[i])))
        self.running[i] = (stopping, task)
        await until(lambda: ready.exists() or task.done())
        if task.done():
            task.result()
        self.urls[i] = json.loads(ready.read_text())["url"]
        assert json.loads(ready.read_text())["pid"] == os.getpid()
        self.save()

    def save(self) -> None:
        self.network = with_ends(self.network, self.rpc.url, [(url, ZERO_HASH) for url in self.urls])
        self.network.save(self.directory / "network.json")

    async def stop(self, i: int) -> None:
        stopping, task = self.running.pop(i)
        stopping.set()
        await task

    def quorum(self) -> Quorum:
        return Quorum(self.dial, self.network.members, self.network.domain)

    async def get(self, i: int, path: str) -> Any:
        return await self.dial.peer(self.urls[i]).get_json(path)

    async def wait_for_epoch(self, epoch: int) -> None:
        async with asyncio.timeout(DEADLINE):
            while await self.ledger.posted_epoch() < epoch:
                await asyncio.sleep(0.02)
                for _, task in self.running.values():
                    if task.done():
                        task.result()

    async def last_report(self) -> Report:
        """The newest report that the first member has committed."""
        status = await self.get(0, "/v1/status")
        return Report.from_json(status["last_report"])

    async def buy_credits(self, tokens: int) -> None:
        token = Token(self.rpc, self.network.contracts["token"])
        credits = Credits(self.rpc, self.network.contracts["credits"])
        client = Sender(self.rpc, CLIENT)
        await self.sender.transact(token.transfer(client.address, tokens))
        await client.transact(token.approve(credits.address, tokens))
        await client.transact(credits.buy(tokens, 0, 2**64))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110 - a file system cause
            await asyncio.sleep(0.01)


@asynccontextmanager
async def real_network(directory: Path, **planned: Any) -> AsyncIterator[RealNetwork]:
    """A deployed network with all its members running; `planned` are fields of its Plan."""
    async with local_chain(directory / "chain") as chain, Rpc(chain.url, chain_id=31337) as rpc, Dial() as dial:
        mining = asyncio.create_task(chain.run())
        keys = [Key(secret) for secret in MEMBERS]
        plan = Plan(
            name="test",
            members=tuple(MemberRecord(k.address, k.public, "") for k in keys),
            parameters=SETTINGS.parameters(),
            treasury=Key(TREASURY).address,
            initial_supply=SETTINGS.initial_supply,
            cap=SETTINGS.cap,
        )._replace(**planned)
        network = RealNetwork(directory, await deploy_network(rpc, TREASURY, plan), rpc, dial)
        network.save()
        try:
            for i in range(len(MEMBERS)):
                await network.start(i)
            yield network
        finally:
            for i in list(network.running):
                await network.stop(i)
            mining.cancel()
            await asyncio.gather(mining, return_exceptions=True)
