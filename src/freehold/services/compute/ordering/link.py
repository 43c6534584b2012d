"""Signed requests of one client to one node, under one lease, each within a time limit.

Invariant: whatever a node does, a request of `call` and `post` ends within what was to be waited for and GRACE_SECONDS.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import aiohttp

from freehold.market.leases import NodeLeases
from freehold.net.auth import authorize
from freehold.net.client import JSON_HEADERS, Dial
from freehold.protocol.errors import Unavailable
from freehold.protocol.keys import Key
from freehold.protocol.typed import Domain, keccak
from freehold.protocol.units import ZERO_HASH, Hash

LONGEST_WAIT = 30  # seconds of one long poll: connections that are silent for longer are given up
GRACE_SECONDS = 10.0  # for an answer, beyond what was to be waited for


class Link:
    """One node, under the stream of `leases`. Paths begin after /v1/compute/{lease}."""

    def __init__(self, leases: NodeLeases, key: Key, domain: Domain, dial: Dial, clock: Callable[[], float]) -> None:
        self._node = leases.node
        self._peer = leases.peer(dial, domain, clock)
        self._base = f"/v1/compute/{leases.stream_id}"
        self._key, self._domain, self._clock = key, domain, clock

    @property
    def url(self) -> str:
        """Where the node is."""
        return self._peer.url

    async def call(self, method: str, path: str, limit: int, wait: float = 0) -> Any:
        """The `data` of an answer of at most `limit` bytes; `wait`: what the path asks the node to wait for."""
        path = self._base + path
        async with self._patience(wait):
            return await self._peer.call(method, path, headers=self._sign(method, path, ZERO_HASH), limit=limit)

    async def post(self, path: str, body: bytes, limit: int, wait: float) -> Any:
        """The same, of JSON that is posted."""
        path = self._base + path
        async with self._patience(wait):
            headers = JSON_HEADERS | self._sign("POST", path, keccak(body))
            return await self._peer.call("POST", path, headers=headers, data=body, limit=limit)

    def stream(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, data: Any = None
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """An exchange of bytes. It has no limit but that bytes go on arriving."""
        path = self._base + path
        signed = self._sign(method, path, ZERO_HASH)  # a blob's path names its content
        return self._peer.request(method, path, headers=signed | dict(headers or {}), data=data)

    @asynccontextmanager
    async def brief(self, method: str, path: str, wait: float = 0) -> AsyncIterator[aiohttp.ClientResponse]:
        """An exchange of bytes within the time of a `call`."""
        async with self._patience(wait), self.stream(method, path) as response:
            yield response

    @asynccontextmanager
    async def _patience(self, wait: float) -> AsyncIterator[None]:
        seconds = min(wait, LONGEST_WAIT) + GRACE_SECONDS
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            raise Unavailable(f"{self.url} did not answer within {seconds:.0f} s", url=self.url) from None

    def _sign(self, method: str, path: str, body: Hash) -> dict[str, str]:
        nonce = Hash(secrets.token_bytes(32))
        return authorize(self._key, method, path, body, self._node, self._domain, int(self._clock()), nonce)


def whole_seconds(wait: float) -> int:
    """As paths and bodies have it, of one long poll."""
    return math.ceil(max(0.0, min(wait, LONGEST_WAIT)))
