"""What tests of the vault share: data, what the nodes really have listed, and nodes that fail when a test says so."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

from aiohttp import web

from freehold.client.vault import Vault
from freehold.protocol.units import Hash
from freehold.services.storage.client_objects import Code, ListedShard, StoredObject
from freehold.services.storage.client_sources import BytesSource, Source
from tests.client.world import Node, World

CODE = Code(3, 6)
LABEL = "ab" * 16
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Judge = Callable[[Node, web.Request], Awaitable[web.StreamResponse | None]]


def make(size: int, seed: int = 0) -> bytes:
    return random.Random(f"{seed} {size}").randbytes(size)


async def pieces(data: bytes, size: int = 10_000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def put(vault: Vault, *sources: bytes | Source, label: str = LABEL, code: Code = CODE) -> list[StoredObject]:
    """Stow and keep."""
    given = [BytesSource(source) if isinstance(source, bytes) else source for source in sources]
    async with vault.stow(label, code, given) as stowed:
        await stowed.keep()
    return list(stowed.objects)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what the world comes to by itself, under one deadline."""
    async with asyncio.timeout(20 * float(os.environ.get("FREEHOLD_TEST_SLOW", "1"))):
        while not await condition():  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)


async def listed(net: World) -> set[ListedShard]:
    """What the nodes' newest lists have, by their own databases."""
    found = set()
    for node in net.node:
        if node.server is not None:
            query = "SELECT position, root FROM entries WHERE to_number IS NULL"
            rows = await node.provider._sql.read(lambda c, query=query: c.execute(query).fetchall())
            found |= {ListedShard(node.key.address, position, Hash(root)) for position, root in rows}
    return found


def shards(objects: Iterable[StoredObject]) -> set[ListedShard]:
    return {shard for stored in objects for shard in stored.shards()}


async def remembered(vault: Vault) -> set[ListedShard]:
    """What a device's book says is garbage, or left by what ended."""
    query = "SELECT node, position, root FROM shards"
    rows = await vault._book._database.read(lambda c: c.execute(query).fetchall())
    return {ListedShard(node, position, root) for node, position, root in rows}


class Faults:
    """A middleware of all nodes: counts requests by what they are for, and asks `judge` before each."""

    def __init__(self, judge: Judge | None = None) -> None:
        self.judge = judge
        self.counts: Counter[str] = Counter()

    def wrap(self, node: Node) -> Any:
        @web.middleware
        async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
            self.counts[kind_of(request)] += 1
            if self.judge is not None:
                answer = await self.judge(node, request)
                if answer is not None:
                    return answer
            return await handler(request)

        return middleware


def kind_of(request: web.Request) -> str:
    """put, get, plan, delta, or the address."""
    if "/shards/" in request.path:
        return request.method.lower()
    return {"plan": "plan", "deltas": "delta"}.get(request.path.rpartition("/")[2], request.path)
