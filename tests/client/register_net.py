"""Nodes with registers and a network between, all in memory and in virtual time, from one seed.

The nodes run the real acceptor over SQL in memory; what passes is encoded and decoded as over HTTP. Messages are lost,
late, doubled and overtaken; nodes crash and come back with what they had answered.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import sqlite3
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from freehold.client.node_heads import NodeHeads
from freehold.protocol.errors import FreeholdError, InsufficientOperators, Unavailable
from freehold.protocol.keys import Key
from freehold.protocol.units import Address, Hash
from freehold.services.storage.register_values import Accepted, Answer, Known, Listing, Place, Prepare, Shown, decode
from freehold.services.storage.registers import MIGRATION, Registers
from tests.protocol.world import DOMAIN, key

T = TypeVar("T")
OWNER = key(500)
LEASE = Hash(bytes(32))


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time passes at once when there is nothing to do."""

    now = 0.0
    _timer_cancelled_count: int

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        timers = self._scheduled  # type: ignore[attr-defined]
        while timers and timers[0]._cancelled:
            heapq.heappop(timers)._scheduled = False
            self._timer_cancelled_count -= 1
        if not self._ready and timers:  # type: ignore[attr-defined]
            self.now = max(self.now, timers[0]._when)
        super()._run_once()  # type: ignore[misc]


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


class MemorySql:
    """`Sql` at once, in memory; what raises is undone."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect(":memory:", isolation_level=None)
        self._connection.executescript(MIGRATION)

    async def write(self, work: Callable[[Any], T]) -> T:
        self._connection.execute("SAVEPOINT one")
        try:
            value = work(self._connection)
        except BaseException:
            self._connection.execute("ROLLBACK TO one")
            raise
        finally:
            self._connection.execute("RELEASE one")
        return value

    async def read(self, work: Callable[[Any], T]) -> T:
        return work(self._connection)

    def close(self) -> None:
        self._connection.close()


class Node:
    """A node. `is_up`: whether it answers; `is_registered`: whether the network still knows it."""

    def __init__(self, number: int) -> None:
        self.address = Address(number.to_bytes(20))
        self.registers = Registers(MemorySql())
        self.is_up = True
        self.is_registered = True


class Net:
    """`count` nodes of as many operators; chance of messages by `lossy`."""

    def __init__(self, count: int, seed: int = 0, *, lossy: float = 0.0, delay: float = 0.01) -> None:
        self.chance = random.Random(seed)
        self.nodes = [Node(i + 1) for i in range(count)]
        self.lossy, self.delay = lossy, delay
        self.leased: set[Address] = set()  # in the last report
        self.messages = 0
        self.bytes = 0
        self._late: set[asyncio.Task[Any]] = set()

    def heads(self, owner: Key = OWNER, **options: Any) -> NodeHeads:
        """As if in a process of its own."""
        return NodeHeads(owner, DOMAIN, NetSeats(self), **options)

    async def carry(self, node: Node, call: Callable[[], Awaitable[T]], kind: Any, sent: object) -> T:
        """One exchange with a node."""
        self.messages += 1
        self.bytes += len(msgspec.msgpack.encode(sent))
        lossy = self.lossy
        if self.chance.random() < lossy:
            await self._lose()
        await asyncio.sleep(self.chance.uniform(0, self.delay) * (20 if self.chance.random() < lossy else 1))
        if self.chance.random() < lossy:  # the network delivers it once more, at some time
            self._later(node, call)
        if not node.is_up:
            raise Unavailable("this node is down")
        try:
            answer = await call()
        except FreeholdError as error:
            await asyncio.sleep(0)
            raise FreeholdError.from_json(error.to_json()) from None
        body = msgspec.msgpack.encode(answer)
        self.bytes += len(body)
        await asyncio.sleep(self.chance.uniform(0, self.delay))
        if self.chance.random() < lossy:
            await self._lose()
        return decode(body, kind)

    async def _lose(self) -> None:
        await asyncio.sleep(self.chance.uniform(0, 1))
        raise Unavailable("lost on the way")

    def _later(self, node: Node, call: Callable[[], Awaitable[Any]]) -> None:
        async def deliver() -> None:
            await asyncio.sleep(self.chance.uniform(0, 3))
            if node.is_up:
                try:
                    await call()
                except FreeholdError:
                    return

        task = asyncio.create_task(deliver())
        self._late.add(task)
        task.add_done_callback(self._late.discard)


class NetAcceptor:
    """One process's way to one node."""

    def __init__(self, net: Net, node: Node) -> None:
        self._net, self._node = net, node
        self.node = node.address

    async def groups(self, account: Address) -> list[Shown]:
        return await self._carry(lambda: self._node.registers.groups(account), list[Shown], bytes(account))

    async def entries(self, account: Address, group: Hash) -> Listing:
        return await self._carry(lambda: self._node.registers.entries(account, group), Listing, bytes(group))

    async def show(self, place: Place, known: Known) -> Answer:
        return await self._carry(lambda: self._node.registers.show(place, known), Answer, known)

    async def prepare(self, place: Place, wanted: Prepare) -> Answer:
        return await self._carry(lambda: self._node.registers.prepare(place, wanted, LEASE), Answer, wanted)

    async def accept(self, place: Place, proposal: Accepted) -> Answer:
        return await self._carry(lambda: self._node.registers.accept(place, proposal, LEASE), Answer, proposal)

    async def _carry(self, call: Callable[[], Awaitable[T]], kind: Any, sent: object) -> T:
        return await self._net.carry(self._node, call, kind, sent)


class Listed(NamedTuple):
    """A node and how to ask it."""

    node: Address
    operator: Address
    acceptor: NetAcceptor


class NetSeats:
    """`Seats` over the net."""

    def __init__(self, net: Net) -> None:
        self._net = net

    async def choose(self, count: int, avoid: Collection[Address]) -> Sequence[NetAcceptor]:
        there = [n for n in self._net.nodes if n.is_up and n.is_registered and n.address not in avoid]
        if len(there) < count:
            raise InsufficientOperators("too few", have=len(there), need=count)
        return [NetAcceptor(self._net, node) for node in self._net.chance.sample(there, count)]

    async def find(self, nodes: Collection[Address]) -> Mapping[Address, NetAcceptor]:
        known = [node for node in self._net.nodes if node.address in nodes and node.is_registered]
        return {node.address: NetAcceptor(self._net, node) for node in known}

    async def everyone(self) -> Sequence[Listed]:
        known = [node for node in self._net.nodes if node.is_registered]
        return [Listed(node.address, node.address, NetAcceptor(self._net, node)) for node in known]

    async def leased(self) -> Collection[Address]:
        return self._net.leased
