"""The gateway over buckets in memory, on a port of this machine, and a small client that signs what it is told to.

Requests are sent as they are written: paths are raw, nothing is tidied up, and whatever is wrong with one arrives.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import aiohttp
from yarl import URL

from freehold.client import access_keys
from freehold.client.root import AccessKey
from freehold.gateway.app import Gateway
from freehold.gateway.config import GatewayConfig, WalletFile
from freehold.gateway.process import serve
from freehold.gateway.tenants import Tenant, Tenants
from freehold.gateway.wire.request import Request, encode_uri
from freehold.gateway.wire.sigv4 import UNSIGNED, presign, sign_request
from tests.client.bucket_world import Net

REGION = "us-east-1"
SEEDS = (b"s" * 32, b"t" * 32)


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The S3 error's code."""
        return self.find("Code")

    def find(self, path: str) -> str:
        """The text of the first element of this path, without namespaces; "" where there is none."""
        return next(iter(self.all(path)), "")

    def all(self, path: str) -> list[str]:
        """The texts of all elements of this path."""
        root = ElementTree.fromstring(self.body)
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
        return [element.text or "" for element in root.findall(path)]


class World:
    """Two accounts; `key` is the first one's."""

    def __init__(self, folder: Path, label: str = "", **settings: Any) -> None:
        self.net = Net(folder)
        self.devices = [self.net.device(f"account{i}", seed) for i, seed in enumerate(SEEDS)]
        owners = [f"{i + 1}" * 40 for i in range(len(SEEDS))]
        self.tenants = Tenants(
            [Tenant(*each, label) for each in zip(self.devices, owners, SEEDS, strict=True)], clock=lambda: self.net.now
        )
        self.gateway = Gateway(self.tenants, region=REGION, clock=lambda: self.net.now, **settings)
        self.config = GatewayConfig(folder, folder, (WalletFile(folder),))
        self.url = self.host = ""
        self.key: AccessKey
        self.other: AccessKey

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[World]:
        self.key, self.other = [await access_keys.new(device.root, "test") for device in self.devices]
        self.url, stop = await serve(self.gateway, lambda: self.gateway.close(0), self.config, None)
        self.host = self.url.removeprefix("http://")
        async with aiohttp.ClientSession(auto_decompress=False) as self._session:
            try:
                yield self
            finally:
                await stop()

    async def send(
        self,
        method: str,
        path: str,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        data: Any = b"",
        *,
        key: AccessKey | None = None,
        payload_hash: str | None = None,
        region: str = REGION,
        age: float = 0,
    ) -> Answer:
        """A signed request; `data` may be something that is streamed, with its `payload_hash`."""
        known = hashlib.sha256(data).hexdigest() if isinstance(data, bytes) else UNSIGNED
        used = key or self.key
        wanted = {"host": self.host, **{name.lower(): value for name, value in (headers or {}).items()}}
        signed = sign_request(
            Request(method, path, query, wanted),
            used.id,
            used.secret,
            region,
            self.net.now - age,
            payload_hash or known,
        )
        return await self.send_as_is(method, path, query, signed, data)

    async def send_as_is(
        self, method: str, path: str, query: str = "", headers: Mapping[str, str] | None = None, data: Any = b""
    ) -> Answer:
        """A request without a signature of its own."""
        target = URL(f"{self.url}{path}{'?' if query else ''}{query}", encoded=True)
        async with self._session.request(
            method,
            target,
            headers=headers,
            data=data or None,
            allow_redirects=False,
            skip_auto_headers=["Content-Type"] if isinstance(data, bytes) else [],
        ) as answer:
            return Answer(answer.status, answer.headers, await answer.read())

    def presign(self, method: str, path: str, expires: int = 60, query: list[tuple[str, str]] | None = None) -> str:
        """Path and query of a presigned URL."""
        return presign(
            method, self.host, path, self.key.id, self.key.secret, REGION, self.net.now, expires, query or []
        )

    async def raw(self, data: bytes, *, close: bool = True) -> bytes:
        """Bytes to the gateway's port, and all that comes back until it closes the connection."""
        host, _, port = self.host.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(data)
            await writer.drain()
            if close:
                writer.write_eof()
            return await reader.read()
        finally:
            writer.close()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Until it holds, within one deadline."""
        async with asyncio.timeout(10 * float(os.environ.get("FREEHOLD_TEST_SLOW", "1"))):
            while not condition():  # noqa: ASYNC110 - there is nothing that would say so
                await asyncio.sleep(0.005)


Scene = Callable[[World], Awaitable[None]]


def play(folder: Path, scene: Scene, **settings: Any) -> None:
    """Run a scene in a world of its own."""

    async def run() -> None:
        async with World(folder, **settings).serving() as world:
            await scene(world)

    asyncio.run(run())


def path_of(bucket: str, key: str) -> str:
    """The raw path of an object."""
    return f"/{bucket}/{encode_uri(key.encode(), slash=False)}"
