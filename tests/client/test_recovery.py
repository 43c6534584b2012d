"""All state is on the network: what a second device and a new machine see, with heads at real nodes."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from freehold.client.bucket_types import DeleteWhat, PutOptions
from freehold.client.errors import PreconditionFailed
from freehold.client.sdk import Freehold
from freehold.services.storage.client_sources import BytesSource
from tests.client.test_buckets import data_of
from tests.client.world import SEGMENT, world

pytestmark = pytest.mark.timeout(120)


async def read(client: Freehold, path: str) -> bytes:
    return b"".join([piece async for piece in client.read(path)])


def test_a_new_machine_lists_and_reads_everything_from_the_account_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path, nodes=8) as net:
            files = {"small": data_of(100), "large": data_of(3 * SEGMENT + 1), "a//b/": b"", "ü/1": data_of(20_000)}
            async with net.client(heads=None) as client:
                await client.mb("demo", 2, 5)
                for key, data in files.items():
                    await client.objects.put("demo", key, BytesSource(data), PutOptions(metadata={"of": "me"}))
                upload = await client.objects.create_upload("demo", "half")
                await client.objects.put_part("demo", "half", upload, 1, BytesSource(data_of(SEGMENT)))
            shutil.rmtree(net.folder / "home")
            for node in net.node[:3]:  # of 7 holders 4 are left, and of n = 5 shards k = 2
                await node.stop()
            async with net.client(home="new", heads=None) as client:
                assert [(b.name, tuple(b.code)) for b in await client.buckets()] == [("demo", (2, 5))]
                listed = await client.ls("fh://demo")
                assert [info.key for info in listed] == sorted(files, key=str.encode)
                assert all(info.metadata == {"of": "me"} for info in listed)
                for key, data in files.items():
                    assert await read(client, f"fh://demo/{key}") == data
                parts = await client.objects.list_parts("demo", "half", upload)
                assert [part.size for part in parts.entries] == [SEGMENT]

    asyncio.run(scenario())


def test_a_second_device_sees_changes_at_once_and_loses_no_race(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            world(tmp_path, nodes=7) as net,
            net.client(home="one", heads=None) as one,
            net.client(home="two", heads=None) as two,
        ):
            await one.mb("demo")
            for turn, (writer, reader) in enumerate([(one, two), (two, one), (one, two)]):
                await writer.objects.put("demo", "k", BytesSource(data_of(10, turn)))
                assert await read(reader, "fh://demo/k") == data_of(10, turn)
            await two.rm("fh://demo/k")
            assert await one.ls("fh://demo") == []
            only = PutOptions(if_none_match="*")
            results = await asyncio.gather(
                *(device.objects.put("demo", "race", BytesSource(b"x"), only) for device in (one, two, one, two)),
                return_exceptions=True,
            )
            assert sum(isinstance(result, PreconditionFailed) for result in results) == 3
            await one.objects.delete("demo", [DeleteWhat("race")])
            await two.rb("demo")
            assert await one.buckets() == []

    asyncio.run(scenario())


def test_what_a_lost_machine_left_at_the_nodes_is_found_and_taken_off(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path, nodes=7) as net:
            async with net.client(home="lost") as client:
                await client.objects.create_bucket("demo")
                await client.objects.put("demo", "kept", BytesSource(data_of(2 * SEGMENT)))
                code = (await client.objects.bucket("demo")).code
                async with client.vault.stow("0" * 32, code, [BytesSource(data_of(4 * SEGMENT))]) as stowed:
                    await stowed.unsure()
            shutil.rmtree(net.folder / "lost")
            net.memory.advance()  # the leases are found in the state
            async with net.client(home="new") as client:
                swept = await client.sweep()
                assert (swept.found, swept.failed) == (0, {})
                assert (await client.sweep(older_than=3600)).found == 0
                assert (await client.sweep(older_than=-10)).found == 4 * 6
                assert (await client.sweep(older_than=-10)).found == 0
                assert await read(client, "fh://demo/kept") == data_of(2 * SEGMENT)

    asyncio.run(scenario())
