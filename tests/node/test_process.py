"""A real node process: killed in the middle of an upload, stopped, started again; nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from freehold.local.children import Child, spawn
from freehold.market.leases import NodeLeases
from freehold.market.network import CONTRACTS, MemberRecord, Network
from freehold.net.client import Dial, Peer
from freehold.protocol.batches import encode_batch
from freehold.protocol.errors import Corrupt, FreeholdError, Unavailable
from freehold.protocol.keys import Key
from freehold.protocol.messages import STREAM, VOUCHER, Holding, Lease, Voucher
from freehold.protocol.units import Hash
from freehold.services.storage.client_node import StorageNode
from tests.conftest import SLOW
from tests.node.world import CLIENT, NODE, STREAM_PRICE, VOUCHER_PRICE
from tests.protocol.world import DOMAIN, MEMBERS, PARAMETERS, World, certify
from tests.services.storage.provider_world import Shard

READY = 30 * SLOW
PASSPHRASE = "throwaway"
LOCK = 10**26
CODE = """
import sys
from pathlib import Path
from freehold.node.process import main
sys.exit(main(Path(sys.argv[1])))
"""


def write_wallet(path: Path, key: Key) -> None:
    from eth_keyfile.keyfile import create_keyfile_json

    path.write_text(json.dumps(create_keyfile_json(key.secret, PASSPHRASE.encode(), kdf="scrypt", iterations=4096)))


class Process:
    """A node's files, and its process when it runs. No operator's wallet: it registers nothing, and needs no chain."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "passphrase").write_text(PASSPHRASE + "\n")
        write_wallet(directory / "node.json", NODE)
        network = Network(
            name="test",
            chain_id=DOMAIN.chain_id,
            rpc_url="http://127.0.0.1:1",
            contracts=dict.fromkeys(CONTRACTS, DOMAIN.contract),
            deployment_block=1,
            deployment_hash=Hash(bytes(32)),
            deployment_time=1000,
            members=tuple(MemberRecord(m.address, m.public, "http://127.0.0.1:1") for m in MEMBERS),
            parameters=PARAMETERS,
        )
        network.save(directory / "network.json")
        config: dict[str, Any] = {
            "network": "network.json",
            "data": "data",
            "wallet": "node.json",
            "passphrase_file": "passphrase",
            "ready_file": "ready.json",
            "allowance": 10**8,
            "services": {"storage": {"stream_price": str(STREAM_PRICE), "voucher_price": str(VOUCHER_PRICE)}},
            "place": "here",
            "poll": 0.05,
        }
        (directory / "config.json").write_text(json.dumps(config))
        self.stream, self.voucher = self.lease(STREAM, STREAM_PRICE), self.lease(VOUCHER, VOUCHER_PRICE)

    def lease(self, mode: int, price: int) -> Lease:
        lease = Lease(
            client=CLIENT.address, node=NODE.address, service="storage", mode=mode, price=price, number=1,
            deadline=int(time.time()) + 10_000,
        )  # fmt: skip
        return msgspec.structs.replace(lease, client_signature=CLIENT.sign(lease, DOMAIN))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[tuple[Child, Peer, StorageNode]]:
        """The process, and the client's end of it; killed at the end if it still runs."""
        ready = self.directory / "ready.json"
        environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
        argv = [sys.executable, "-c", CODE, str(self.directory / "config.json")]
        child = await spawn("node", argv, self.directory / "log", environment=environment, ready=ready)
        try:
            url = str((await child.wait_ready(READY))["url"])
            async with Dial() as dial:
                leases = NodeLeases(NODE.address, url, {STREAM: self.stream, VOUCHER: self.voucher})
                yield child, leases.peer(dial, DOMAIN, time.time), StorageNode(leases, dial, CLIENT, DOMAIN, time.time)
        finally:
            await child.stop(0)

    async def open(self, peer: Peer) -> None:
        """Both leases signed and covered."""
        for lease in (self.stream, self.voucher):
            await peer.post_json("/v1/leases", {"lease": lease.to_json()})
        world = World((CLIENT,), (NODE,))
        batch = world.reserve(CLIENT, 1, {lease.struct_hash(): LOCK for lease in (self.stream, self.voucher)})
        holding = Holding(epoch=1, subject=batch.subject)
        value = {
            "batch": f"0x{encode_batch(batch).hex()}",
            "certificate": certify(batch, 1).to_json(),
            "epoch": 1,
            "holdings": [{"member": str(m.address), "signature": str(m.sign(holding, DOMAIN))} for m in MEMBERS],
        }
        await peer.post_json("/v1/reservations", value)


async def put(storage: StorageNode, shard: Shard) -> None:
    await storage.put_shard(shard.index, shard.root, shard.record.to_bytes(), memoryview(shard.data))


async def fetch(storage: StorageNode, shard: Shard, paid: int) -> bytes:
    buffer = bytearray(len(shard.data))
    voucher = Voucher(lease=storage.leases.voucher_id, amount=paid)
    voucher = msgspec.structs.replace(voucher, client_signature=CLIENT.sign(voucher, DOMAIN))
    await storage.get_shard(shard.root, memoryview(buffer), voucher, lambda n: None, is_prepaid=False)
    return bytes(buffer)


@pytest.mark.timeout(120)
def test_kill_9_in_the_middle_of_uploads_loses_nothing_acknowledged(tmp_path: Path) -> None:
    node = Process(tmp_path)
    shards = [Shard(300_000, i) for i in range(24)]
    acknowledged: list[Shard] = []

    async def upload(storage: StorageNode, work: list[Shard]) -> None:
        while work:
            shard = work.pop()
            await put(storage, shard)
            acknowledged.append(shard)

    async def first_life() -> None:
        async with node.running() as (child, peer, storage):
            await node.open(peer)
            await put(storage, shards[0])
            delta, _ = await storage.plan([shards[0].entry], [], None)
            await storage.change(delta, [shards[0].entry], [])
            acknowledged.append(shards[0])
            work = shards[1:]
            tasks = [asyncio.create_task(upload(storage, work)) for _ in range(4)]
            while len(acknowledged) < 8:  # noqa: ASYNC110
                await asyncio.sleep(0)
            os.kill(child.pid, signal.SIGKILL)
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(r, FreeholdError) for r in results if r is not None)

    async def second_life() -> None:
        async with node.running() as (child, peer, storage):
            shown = await peer.get_json(f"/v1/leases/{storage.leases.stream_id}")
            assert shown["covered"]
            newest = storage.check_delta(shown["delta"])
            assert (newest.number, newest.size) == (1, 300_000)
            paid = 0
            for shard in acknowledged:
                paid += 300_000
                assert await fetch(storage, shard, paid) == shard.data
            # Everything that was interrupted is simply done again.
            for shard in shards[1:]:
                await put(storage, shard)
            entries = [shard.entry for shard in shards[1:]]
            delta, positions = await storage.plan(entries, [], newest)
            assert positions == list(range(1, 24))
            await storage.change(delta, entries, [])
            kept = [path for path in (node.directory / "data" / "storage").rglob("*") if path.is_file()]
            assert sum(path.stat().st_size for path in kept) == 24 * 300_000
            os.kill(child.pid, signal.SIGTERM)
            assert await child.wait() == 0

    asyncio.run(first_life())
    assert 8 <= len(acknowledged) < 24
    asyncio.run(second_life())


@pytest.mark.timeout(90)
def test_a_clean_stop_health_and_damage_on_disk(tmp_path: Path) -> None:
    node = Process(tmp_path)
    shard = Shard(50_000, 1)

    async def scenario() -> None:
        async with node.running() as (child, peer, storage):
            await node.open(peer)
            await put(storage, shard)
            assert (await peer.get_json("/healthz")) == {"live": True}
            with pytest.raises(Unavailable):
                await peer.get_json("/readyz")
            text = (await peer.get_bytes("/metrics")).decode()
            assert f'freehold_node_ready{{node="{NODE.address}"}} 0' in text
            assert "freehold_node_storage_received_bytes_total" in text
            (path,) = [p for p in (node.directory / "data" / "storage").rglob("*") if p.is_file()]
            path.write_bytes(bytes(50_000))
            with pytest.raises(Corrupt):
                await fetch(storage, shard, 0)
            await put(storage, shard)
            assert await fetch(storage, shard, 0) == shard.data
            os.kill(child.pid, signal.SIGTERM)
            assert await child.wait() == 0

    asyncio.run(scenario())


def test_a_configuration_that_is_wrong_ends_with_a_reason(tmp_path: Path) -> None:
    from freehold.node.process import main

    node = Process(tmp_path)
    path = node.directory / "config.json"
    good = json.loads(path.read_text())
    for bad in ({"passphrase_file": "node.json"}, {"wallet": "missing"}, {"network": "missing"}, {"extra": 1}):
        path.write_text(json.dumps(good | bad))
        assert main(path) == 1
