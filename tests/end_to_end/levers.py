"""What tests of the ways out and of governance need beside a real network: wallets, commands, one voucher lease."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec

from freehold.chain.contracts import Registry, Token
from freehold.client.account import Account, Wallets
from freehold.client.keystore import THROWAWAY_COST
from freehold.node.book import MIGRATIONS, Book
from freehold.node.registration import ChainRegistrar, Plan
from freehold.oracle.watch import Seen, Watcher
from freehold.protocol.batches import LEASE, RESERVATION, VOUCHER, make_batch
from freehold.protocol.keys import Key
from freehold.protocol.messages import VOUCHER as BY_VOUCHER
from freehold.protocol.messages import Lease, Lock, Reservation, Voucher
from freehold.protocol.tables import Table
from freehold.protocol.typed import Message
from freehold.protocol.units import ONE, Hash
from freehold.services.seam import Charge
from freehold.store.sql import Database
from tests.cli.runner import Outcome, invoke
from tests.local.chains import key
from tests.oracle.real_network import CLIENT, DEADLINE, RealNetwork

OPERATOR, NODE = Key(key(6)), Key(key(7))
PASSPHRASE = "throwaway"


def keep_wallets(directory: Path, **secrets: bytes) -> None:
    """Keystores beside the network file, by name."""
    for name, secret in secrets.items():
        Wallets(directory).save(name, Account.of_secret(secret), PASSPHRASE, THROWAWAY_COST)


async def freehold(network: RealNetwork, *arguments: str) -> Outcome:
    """A command, run against the network beside the members that run in this loop."""
    return await _invoke(network, *arguments, "--json")


async def _invoke(network: RealNetwork, *arguments: str) -> Outcome:
    given = (*arguments, "--network", str(network.directory / "network.json"))
    return await asyncio.to_thread(invoke, network.directory, *given, FREEHOLD_PASSPHRASE=PASSPHRASE)


async def ask(network: RealNetwork, *arguments: str) -> Any:
    """The data of a command that must succeed."""
    return (await freehold(network, *arguments)).data


async def read(network: RealNetwork, *arguments: str) -> str:
    """What people read of a command that must succeed."""
    outcome = await _invoke(network, *arguments)
    assert outcome.code == 0, outcome
    return outcome.stdout


async def register_node(network: RealNetwork) -> None:
    """The operator's node, with the least bond."""
    token, bond = Token(network.rpc, network.network.contracts["token"]), network.network.parameters.minimum_bond
    await network.sender.transact(token.transfer(OPERATOR.address, bond))
    await ChainRegistrar(network.network, Plan(OPERATOR, NODE, bond), lambda _: None)("http://127.0.0.1:1")
    registry = Registry(network.rpc, network.network.contracts["registry"])
    assert await registry.operator_of(NODE.address) == OPERATOR.address


class VoucherLease:
    """One lease of the client with the node, paid by voucher, and the node's own book of it."""

    def __init__(self, network: RealNetwork, lock: int, deadline: int) -> None:
        self.network, self.domain, self.client = network, network.network.domain, Key(CLIENT)
        lease = Lease(
            client=self.client.address,
            node=NODE.address,
            service="storage",
            mode=BY_VOUCHER,
            price=ONE,
            number=1,
            deadline=deadline,
        )
        by_client, by_node = (signer.sign(lease, self.domain) for signer in (self.client, NODE))
        self.lease = msgspec.structs.replace(lease, client_signature=by_client, node_signature=by_node)
        self.id: Hash = lease.struct_hash()
        row = Reservation(
            client=self.client.address, number=1, locks=(Lock(lease=self.id, amount=lock),), deadline=2**40
        )
        self.reservation = msgspec.structs.replace(row, client_signature=self.client.sign(row, self.domain))

    def voucher(self, amount: int) -> Voucher:
        """What the client signs when it has consumed so much in all."""
        voucher = Voucher(lease=self.id, amount=amount)
        return msgspec.structs.replace(voucher, client_signature=self.client.sign(voucher, self.domain))

    async def certify(self, kind: str, row: Message, sender: Key) -> int:
        """One row as a batch; the epoch whose manifest has it for certain."""
        batch = make_batch(kind, Table.of(type(row), [row]), sender, self.domain)
        return (await self.network.quorum().certify(batch)).epoch

    async def open(self, paid: int) -> int:
        """Reserve, lease, and settle a first voucher; the epoch whose state has all of it."""
        await self.certify(RESERVATION, self.reservation, self.client)
        await self.certify(LEASE, self.lease, NODE)
        return await self.certify(VOUCHER, self.voucher(paid), NODE)

    async def keep(self, amount: int) -> Path:
        """The node's data with a voucher of `amount` in its book, as its process leaves them; its configuration."""
        home = self.network.directory / "node"
        (home / "data").mkdir(parents=True, exist_ok=True)
        config = {
            "network": "../network.json",
            "data": "data",
            "wallet": "unused",
            "allowance": 0,
            "services": {"storage": {"stream_price": "0", "voucher_price": str(ONE)}},
        }
        (home / "node.json").write_text(json.dumps(config))
        database = await asyncio.to_thread(Database, home / "data" / "node.sqlite", MIGRATIONS)
        book = Book(database, self.domain)
        await book.sign(self.lease, self.lease.deadline - 1)
        await book.cover(self.reservation)
        await book.charge(self.voucher(amount), Charge(self.client.address, "storage", measure=1, units=1))
        await asyncio.to_thread(database.close)
        return home / "node.json"


class Watching:
    """A watcher of a network, from its first epoch on."""

    def __init__(self, network: RealNetwork) -> None:
        self.seen: list[Seen] = []
        self._watcher = Watcher(network.network, network.rpc, network.dial, None, self.seen.append, poll=0.05)
        self._task = asyncio.create_task(self._watcher.run())

    async def verify(self, last: int) -> None:
        """Wait until every epoch up to `last` is verified; nothing is contested, nothing withheld."""
        async with asyncio.timeout(DEADLINE):
            while not set(range(1, last + 1)) <= {s.epoch for s in self.seen if s.what == "verified"}:
                await asyncio.sleep(0.05)
                if self._task.done():
                    await self._task
                assert not [s for s in self.seen if s.what in ("contested", "withheld")]

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def posted_after(network: RealNetwork, epochs: int) -> int:
    """Wait for so many more epochs; the last one."""
    target = await network.ledger.posted_epoch() + epochs
    await network.wait_for_epoch(target)
    return target


async def pass_time(network: RealNetwork, time: int) -> None:
    """Blocks of a second each until the newest has this time: nobody does anything meanwhile."""
    async with asyncio.timeout(DEADLINE):
        while (left := time - await chain_time(network)) > 0:
            await network.rpc.call("anvil_mine", [hex(left), "0x1"])


async def chain_time(network: RealNetwork) -> int:
    header = await network.rpc.header("latest")
    assert header is not None
    return header.timestamp
