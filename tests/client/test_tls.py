"""The SDK over TLS: files come back, everybody is known by a certificate, and nodes may change theirs meanwhile."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from freehold.client.sdk import Freehold
from freehold.protocol.errors import InsufficientOperators
from tests.client.test_sdk import write
from tests.client.world import Node, world


async def change_certificate(node: Node) -> None:
    """Restart a node under another certificate, at the same place."""
    before = node.server.fingerprint if node.server else None
    await node.stop()
    shutil.rmtree(node.folder / "tls")
    await node.start()
    assert node.server is not None
    assert node.server.fingerprint != before


async def check_back(client: Freehold, source: Path, path: str) -> None:
    back = source.with_name("back")
    await client.get(path, back)
    assert await asyncio.to_thread(back.read_bytes) == await asyncio.to_thread(source.read_bytes)


def test_files_go_there_and_back_and_nodes_change_their_certificates(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=6, tls=True) as net, net.client() as client:
            assert all(end.url.startswith("https://") for end in [*net.network.members, *net.node])
            source = write(tmp_path / "source")
            await client.put(source, "fh://demo/file")
            await check_back(client, source, "fh://demo/file")
            for node in net.node:
                await change_certificate(node)
            await check_back(client, source, "fh://demo/file")
            await client.put(source, "fh://demo/second")
            for node in net.node:
                await change_certificate(node)
            await client.put(source, "fh://demo/third")
            await check_back(client, source, "fh://demo/third")

    asyncio.run(scenario())


def test_a_new_process_knows_nobody_and_meets_everybody(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=6, tls=True) as net:
            source = write(tmp_path / "source")
            async with net.client() as client:
                await client.put(source, "fh://demo/file")
            async with net.client() as client:
                await check_back(client, source, "fh://demo/file")

    asyncio.run(scenario())


def test_nothing_is_put_on_a_node_whose_offers_name_another_certificate(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=6, tls=True) as net, net.client() as client:
            node = net.node[0]
            assert node.server is not None
            node.claims = node.server.fingerprint
            await change_certificate(node)  # as somebody in between, who relays the offers
            with pytest.raises(InsufficientOperators, match="5 operators"):
                await client.put(write(tmp_path / "source"), "fh://demo/file")

    asyncio.run(scenario())
