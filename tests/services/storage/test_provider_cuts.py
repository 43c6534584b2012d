"""A power cut after any operation of the disk: whatever was acknowledged is there, whole, and provable."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from freehold.protocol.verdicts import GOOD
from freehold.services.storage.lists import LINGER
from freehold.services.storage.receiving import key_of
from freehold.services.storage.terms import Delta
from tests.services.storage.provider_world import Provided, Shard
from tests.services.storage.test_provider import judged
from tests.store.fake_disk import FakeDisk, PowerCut

SHARDS = [Shard(3000, 1), Shard(9000, 2), Shard(100, 3)]


class Acknowledged:
    """What the client was told."""

    def __init__(self) -> None:
        self.shards: list[Shard] = []
        self.delta: Delta | None = None
        self.committed = False


async def use(world: Provided, told: Acknowledged) -> None:
    """Two deltas, a commit that lets a shard go, and an upload that is not listed."""
    one, two, three = SHARDS
    for shard in (one, two):
        await world.put(shard)
        told.shards.append(shard)
        told.delta = await world.change([shard])
    told.delta = await world.change([], [0])
    await world.put(three)
    told.shards.append(three)
    told.committed = True  # from here on the first shard may be gone
    await world.commit(1, told.delta)


async def check(world: Provided, told: Acknowledged) -> None:
    """What was acknowledged is there; what is there is whole; the allowance counts exactly that."""
    wanted = told.shards[1:] if told.committed else told.shards
    stored = world.stored()
    for shard in wanted:
        assert world.files.read(key_of(world.id, shard.root)) == shard.data
    for shard in SHARDS:
        if key_of(world.id, shard.root) in stored:
            assert world.files.read(key_of(world.id, shard.root)) == shard.data
    assert world.files.used_bytes == sum(world.files.size(key) for key in stored)
    newest = await world.provider._lists.newest(world.id)
    assert told.delta is None or (newest is not None and newest.number >= told.delta.number)
    if newest is not None:
        assert set(await judged(world, 2, newest)) <= {GOOD}
    # And it goes on: everything that was interrupted can be done again.
    again = Acknowledged()
    rest = Shard(777, 9)
    await world.put(rest)
    again.delta = await world.change([rest])
    assert set(await judged(world, 3, again.delta)) == {GOOD}
    world.now += LINGER + 1
    await world.provider.tidy()
    assert world.files.used_bytes == sum(world.files.size(key) for key in world.stored())


async def restart(directory: Path, disk: FakeDisk, told: Acknowledged) -> None:
    async with Provided(directory, disk) as world:
        await check(world, told)


@pytest.mark.parametrize("luck", ["none", "all", "coin"])
def test_whatever_was_acknowledged_survives_a_cut_after_any_operation(tmp_path: Path, luck: str) -> None:
    cuts = 0
    for cut_after in itertools.count():
        directory = tmp_path / str(cut_after)
        directory.mkdir()
        disk, told = FakeDisk(directory, cut_after=cut_after), Acknowledged()

        async def before(directory: Path = directory, disk: FakeDisk = disk, told: Acknowledged = told) -> None:
            async with Provided(directory, disk) as world:
                await use(world, told)

        try:
            asyncio.run(before())
        except PowerCut:
            cuts += 1
        asyncio.run(restart(directory, disk.reboot(luck, cut_after), told))
        if disk.operations < cut_after:
            break
    assert cuts > 30
