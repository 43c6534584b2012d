"""What a command needs of a network: its file, its members, its chain; and who a name stands for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar

from freehold.chain.contracts import Credits, Ledger, Oracle, Registry, Staking, Token
from freehold.chain.rpc import Rpc
from freehold.cli.output import Program
from freehold.market.meeting import node_peer
from freehold.market.network import MemberRecord, Network
from freehold.market.quorum import Quorum
from freehold.net.client import Dial, Peer
from freehold.protocol.errors import MalformedMessage, NotFound
from freehold.protocol.units import Address

T = TypeVar("T")


class Connection(NamedTuple):
    """An open network."""

    network: Network
    rpc: Rpc
    dial: Dial
    quorum: Quorum
    registry: Registry
    token: Token
    credits: Credits
    oracle: Oracle
    ledger: Ledger
    staking: Staking

    def member(self, record: MemberRecord) -> Peer:
        """A member's HTTP end, known by its certificate where the network file names one."""
        return self.dial.peer(record.url, record.fingerprint)

    def node(self, node: Address, endpoint: str) -> Peer:
        """A node's HTTP end, known by the certificate that its signed offer names."""
        return node_peer(self.dial, node, endpoint, self.network.domain, time.time)


def load_network(program: Program) -> Network:
    """The network file that the settings name."""
    return Network.load(program.settings.path("network"))


@asynccontextmanager
async def connect(program: Program) -> AsyncIterator[Connection]:
    """Open the network of the settings; nothing is asked of it yet."""
    network = load_network(program)
    at = network.contracts
    async with Rpc(network.rpc_url, chain_id=network.chain_id, attempts=2) as rpc, Dial() as dial:
        yield Connection(
            network,
            rpc,
            dial,
            Quorum(dial, network.members, network.domain),
            Registry(rpc, at["registry"]),
            Token(rpc, at["token"]),
            Credits(rpc, at["credits"]),
            Oracle(rpc, at["oracle"]),
            Ledger(rpc, at["ledger"]),
            Staking(rpc, at["staking"]),
        )


def run(task: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine."""
    return asyncio.run(task)


def known_names(program: Program) -> dict[str, dict[str, str]]:
    """The local network's names (`operator-1`, `client`, ...) with their addresses and keystores."""
    from freehold.local.accounts import read_accounts

    return read_accounts(program.settings.path("network").parent)


def find_address(program: Program, who: str) -> Address:
    """The address that `who` is, or that it names in this network."""
    names = known_names(program)
    if who in names:
        return Address(names[who]["address"])
    try:
        return Address(who)
    except MalformedMessage:
        known = ", ".join(sorted(names))
        hint = f"This network's names: {known}." if known else "Give an address: 0x and 40 hexadecimal digits."
        raise NotFound(f"there is nobody called {who!r} here", hint=hint) from None


def name_of(names: dict[str, dict[str, str]], address: str) -> str:
    """The local name of an address, or its short form."""
    from freehold.cli.amounts import short

    return next((n for n, a in names.items() if address.lower() in (a["address"], a.get("node"))), short(address))


async def latest_epoch(connection: Connection) -> int:
    """The last epoch whose report the chain has; NotFound while there is none."""
    epoch = await connection.ledger.posted_epoch()
    if epoch == 0:
        raise NotFound(
            "no epoch has been reported yet", hint="The first takes one epoch's length; see `freehold status`."
        )
    return epoch
