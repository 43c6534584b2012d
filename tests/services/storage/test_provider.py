"""The provider: what it acknowledges is there, lists follow their deltas, openings are good, old shards go in time."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.protocol.errors import Conflict, Corrupt, FreeholdError, InvalidInput, NotFound
from freehold.protocol.units import Hash
from freehold.protocol.verdicts import GOOD, SILENT
from freehold.services.judging import JUDGES
from freehold.services.storage.lists import LINGER
from freehold.services.storage.proof import judge_proof
from freehold.services.storage.receiving import key_of
from freehold.services.storage.terms import DELTA, PROOF, Delta, ShardEntry
from tests.services.storage.provider_world import Provided, Shard, epoch_context, tree_root

JUDGE: Any = JUDGES["storage"]


async def judged(world: Provided, epoch: int, delta: Delta, challenges: int = 8) -> list[str]:
    context = epoch_context(epoch, world.stream, delta, challenges)
    rows: Any = {**await world.provider.prove(context), DELTA: []}
    return [verdict.reason for verdict in JUDGE.judge(JUDGE.obligations(context), rows, context)]


def test_a_shard_comes_in_is_listed_and_proven(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Provided(tmp_path) as world:
            shards = [Shard(size, i) for i, size in enumerate([1, 4096, 4097, 50_000])]
            delta = await world.change(shards)
            assert (delta.number, delta.count, delta.size) == (1, 4, 1 + 4096 + 4097 + 50_000)
            assert await judged(world, 2, delta, 64) == [GOOD] * 64
            evidence = await world.provider.collect()
            assert list(evidence[DELTA]) == [delta]
            await world.commit(1, delta)
            assert len((await world.provider.collect())[DELTA]) == 0

    asyncio.run(scenario())


@settings(max_examples=8)
@given(st.randoms(use_true_random=False))
def test_random_lists_stay_provable_as_of_every_committed_number(
    tmp_path_factory: pytest.TempPathFactory, draw: random.Random
) -> None:
    """Against a plain model: additions fill the lowest empty position, removals leave it empty."""

    async def scenario(directory: Path) -> None:
        model: list[ShardEntry | None] = []
        seed = 0
        history: list[Delta] = []
        async with Provided(directory) as world:
            for epoch in range(1, 7):
                held = [i for i, entry in enumerate(model) if entry]
                remove = draw.sample(held, draw.randint(0, len(held)))
                add = [Shard(draw.choice([33, 4095, 4096, 9000]), seed + i) for i in range(draw.randint(1, 4))]
                seed += len(add)
                delta = await world.change(add, remove)
                for position in remove:
                    model[position] = None
                for shard in add:
                    position = model.index(None) if None in model else len(model)
                    model[position : position + 1] = [shard.entry]
                assert delta.root == tree_root(model) + b"\x00"
                assert delta.count == len(model)
                history.append(delta)
                if draw.random() < 0.5:  # the state lags behind what both have signed
                    committed = draw.choice(history)
                    history = [d for d in history if d.number >= committed.number]
                    await world.commit(epoch, committed)
                for d in history:
                    assert await judged(world, epoch + 1, d) == [GOOD] * 8
            await world.commit(9, history[-1])
            live = {key_of(world.id, entry.root) for entry in model if entry}
            assert world.stored() == live
            reopened = Provided(directory)
            world_again = await reopened.__aenter__()
            assert await judged(world_again, 10, history[-1]) == [GOOD] * 8
            await reopened.close()

    asyncio.run(scenario(tmp_path_factory.mktemp("lists")))


def test_old_shards_stay_until_the_state_names_the_delta_that_dropped_them(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Provided(tmp_path) as world:
            old, new = Shard(5000, 1), Shard(5000, 2)
            first = await world.change([old])
            await world.commit(1, first)
            second = await world.change([new], [0])
            assert second.count == 1
            await world.provider.tidy()
            assert key_of(world.id, old.root) in world.stored()
            assert await judged(world, 2, first) == [GOOD] * 8
            await world.commit(2, first)
            assert key_of(world.id, old.root) in world.stored()
            await world.commit(3, second)
            assert world.stored() == {key_of(world.id, new.root)}
            assert await judged(world, 4, second) == [GOOD] * 8

    asyncio.run(scenario())


def test_an_upload_that_no_delta_names_goes_after_a_while(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Provided(tmp_path) as world:
            named, forgotten = Shard(100, 1), Shard(200, 2)
            await world.change([named])
            await world.put(forgotten)
            world.now += LINGER
            await world.provider.tidy()
            assert len(world.stored()) == 2
            world.now += 1
            await world.provider.tidy()
            assert world.stored() == {key_of(world.id, named.root)}
            assert await world.provider._lists.record(world.id, forgotten.record.hash()) is None
            assert await world.provider._lists.record(world.id, named.record.hash()) == named.record.to_bytes()
            assert world.files.used_bytes == 100

    asyncio.run(scenario())


def test_a_shard_offered_again_is_kept_as_if_new(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Provided(tmp_path) as world:
            shard = Shard(300, 1)
            await world.put(shard)
            await world.put(shard)
            world.now += LINGER + 1
            assert (await world.put(shard, at=world.now)).status == 201
            await world.provider.tidy()
            assert len(world.stored()) == 1

    asyncio.run(scenario())


def test_a_closed_lease_loses_its_shards_after_the_grace(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Provided(tmp_path) as world:
            delta = await world.change([Shard(100, 1), Shard(200, 2)])
            await world.commit(5, delta, closed=5, lapsed=3)
            await world.commit(6, delta, closed=5, lapsed=3)
            assert len(world.stored()) == 2
            await world.commit(7, delta, closed=5, lapsed=3)
            assert world.stored() == set()
            with pytest.raises(FreeholdError, match="closed in epoch 5"):
                await world.put(Shard(10, 3))

    asyncio.run(scenario())


def test_a_lease_that_left_the_state_or_never_came_into_it_is_dropped(tmp_path: Path) -> None:
    from freehold.protocol.tables import Table
    from freehold.services.storage.terms import ListState

    async def scenario() -> None:
        async with Provided(tmp_path) as world:
            await world.change([Shard(100, 1)])
            nothing = Table.of(ListState, [])
            await world.provider.commit(5, nothing, {})
            assert len(world.stored()) == 1
            world.now += 1000 + 86400
            await world.provider.commit(6, nothing, {})
            assert len(world.stored()) == 1
            world.now += 1
            await world.provider.commit(7, nothing, {})
            assert world.stored() == set()

    asyncio.run(scenario())


def test_the_same_delta_again_gives_what_was_signed_then(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Provided(tmp_path) as world:
            shard = Shard(100, 1)
            await world.put(shard)
            _, body = await world.plan([shard])
            first = await world.post("deltas", body)
            assert first["next"]["position"] == 1
            assert (await world.post("deltas", body))["delta"] == first["delta"]

    asyncio.run(scenario())


def test_of_two_writers_the_loser_gets_the_newest_delta_and_rebases(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Provided(tmp_path) as world:
            one, two = Shard(100, 1), Shard(200, 2)
            for shard in (one, two):
                await world.put(shard)
            _, mine = await world.plan([one])
            _, theirs = await world.plan([two])
            newest = (await world.post("deltas", theirs))["delta"]
            with pytest.raises(Conflict) as caught:
                await world.post("deltas", mine)
            assert caught.value.details == {"delta": newest}
            delta = await world.change([one])
            assert (delta.number, delta.count, delta.size) == (2, 2, 300)

    asyncio.run(scenario())


@pytest.mark.parametrize("damage", ["changed", "truncated", "gone"])
def test_damage_on_disk_is_silence_and_a_typed_error_never_a_crash(tmp_path: Path, damage: str) -> None:
    async def scenario() -> None:
        async with Provided(tmp_path) as world:
            bad, good = Shard(9000, 1), Shard(9000, 2)
            delta = await world.change([bad, good])
            path = world.files._path(key_of(world.id, bad.root))
            if damage == "gone":
                path.unlink()
            else:
                data = path.read_bytes()
                path.write_bytes(data[:4000] if damage == "truncated" else bytes(len(data)))
            found = await judged(world, 2, delta, 32)
            assert set(found) == {GOOD, SILENT}
            served = world.provider._sender.get(world.download(bad.root, world.pay(0)))
            with pytest.raises(Corrupt):
                await served
            assert await world.provider._lists.figures() == {"shards": 2, "shard_bytes": 18000, "corrupt_shards": 1}
            _, again = await world.plan([Shard(10, 3)])
            with pytest.raises(NotFound):
                await world.post("deltas", again)
            # The client brings it again: it is whole from then on.
            await world.put(bad)
            assert await judged(world, 2, delta, 32) == [GOOD] * 32

    asyncio.run(scenario())


def test_proofs_answer_for_the_state_and_for_nothing_else(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Provided(tmp_path) as world:
            delta = await world.change([Shard(5000, 1)])
            unknown = Delta(lease=delta.lease, number=9, root=delta.root, count=1, size=5000)
            assert set(await judged(world, 2, unknown)) == {"slept"}
            context = epoch_context(2, world.stream, delta)
            openings = JUDGE.obligations(context)
            rows = (await world.provider.prove(context))[PROOF]
            assert [judge_proof(o, r) for o, r in zip(openings, rows, strict=True)] == [GOOD] * 8

    asyncio.run(scenario())


def test_missing_bytes_are_found_at_the_start_and_strays_go(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Provided(tmp_path) as world:
            shard = Shard(100, 1)
            await world.change([shard, Shard(200, 2)])
            world.files._path(key_of(world.id, shard.root)).unlink()
            world.files.put(key_of(world.id, Hash(bytes(32))), [b"stray"])
        async with Provided(tmp_path) as world:
            assert len(world.stored()) == 1
            assert world.provider.metrics()["corrupt_shards"] == 1
            with pytest.raises(Corrupt):
                await world.provider._sender.get(world.download(shard.root, world.pay(0)))

    asyncio.run(scenario())


def test_a_shard_stands_in_a_list_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Provided(tmp_path) as world:
            shard = Shard(100, 1)
            await world.change([shard])
            _, body = await world.plan([shard])
            with pytest.raises(InvalidInput, match="already"):
                await world.post("deltas", body)
            delta = await world.change([shard], [0])
            assert (delta.number, delta.count, delta.size) == (2, 1, 100)

    asyncio.run(scenario())
