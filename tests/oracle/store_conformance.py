"""What a member's disk must do wherever its rows and blobs are: what `write` and `commit` returned is there after any
restart, and nothing in part."""

from __future__ import annotations

import asyncio
from typing import Protocol

import msgspec
import pytest

from freehold.oracle.committed import Committed
from freehold.oracle.effects import Commit, Uncommit
from freehold.oracle.records import BATCH, HELD, REVOKED, Record
from freehold.oracle.store import NODES_RESERVE, RESERVE, Store, Stored
from freehold.protocol.batches import encode_batch
from freehold.protocol.bundle import Bundle, encode_bundle, replay
from freehold.protocol.epoch import settle
from freehold.protocol.errors import DiskFull, NotFound
from freehold.protocol.typed import keccak
from tests.oracle.memo import remember
from tests.oracle.simulation import DOMAIN, QUIET, World

ALLOWANCE = 1 << 30


class OpenStore(Protocol):
    def __call__(self, allowance: int = ..., epochs: int = ..., fewest: int = ...) -> Store: ...


async def read(stored: Stored) -> bytes:
    return b"".join([piece async for piece in stored.pieces()])


@pytest.fixture(scope="session")
def world() -> World:
    with pytest.MonkeyPatch.context() as patch:
        remember(patch)
        return World(11, QUIET, target=4, load=12).run()


def commits(world: World) -> list[Commit]:
    bundles: list[Bundle] = [world.hosts[0].bundles[e] for e in sorted(world.hosts[0].bundles)]
    return [
        Commit(b, settle(b.state, b.manifest, b.batches, b.anchor, {}, DOMAIN), (Record(HELD, str(i), i, b"held"),))
        for i, b in enumerate(bundles)
    ]


class StoreConformance:
    """Inherit, and provide `open_store`: each call opens the same place anew."""

    def test_records_and_batches_come_back(self, open_store: OpenStore, world: World) -> None:
        asyncio.run(records_and_batches(open_store, world))

    def test_epochs_come_back_and_go_after_their_time(self, open_store: OpenStore, world: World) -> None:
        asyncio.run(epochs(open_store, world))

    def test_what_a_kill_left_in_between_is_swept(self, open_store: OpenStore, world: World) -> None:
        asyncio.run(sweep(open_store, world))

    def test_a_lost_state_is_replayed(self, open_store: OpenStore, world: World) -> None:
        asyncio.run(lost_state(open_store, world))

    def test_revoked_epochs_go_and_their_bundles_stay_as_evidence(self, open_store: OpenStore, world: World) -> None:
        asyncio.run(revoked(open_store, world))

    def test_a_full_disk_is_said_before_anything_is_taken(self, open_store: OpenStore) -> None:
        store = open_store(allowance=RESERVE + 3 * 10)
        store.check_room(10, is_bonded=True)
        for size, is_bonded in ((11, True), (10, False)):
            with pytest.raises(DiskFull):
                store.check_room(size, is_bonded=is_bonded)
        store.close()
        store = open_store(allowance=RESERVE + NODES_RESERVE + 3 * 10)
        store.check_room(10, is_bonded=False)
        store.close()

    def test_batches_leave_room_for_their_own_settling(self, open_store: OpenStore, world: World) -> None:
        asyncio.run(room_for_settling(open_store, world))

    def test_the_oldest_bundles_go_before_a_commit_fails(self, open_store: OpenStore, world: World) -> None:
        asyncio.run(old_bundles(open_store, world))


async def records_and_batches(open_store: OpenStore, world: World) -> None:
    batch = next(iter(world.batches.values()))
    data = encode_batch(batch)
    records = [Record(BATCH, str(batch.subject), 3, data), Record(HELD, "a", 3, b"one"), Record(HELD, "b", 4, b"two")]
    store = open_store()
    await store.write(records)
    await store.write([Record(HELD, "a", 3, None), Record(BATCH, str(batch.subject), 4, data)])
    store.close()
    store = open_store()
    committed, found = await store.load()
    assert committed is None
    assert sorted((r.kind, r.key, r.epoch) for r, _ in found) == [(BATCH, str(batch.subject), 4), (HELD, "b", 4)]
    assert next(b for r, b in found if r.kind == BATCH) == batch
    assert await read(await store.open_batch(batch.subject)) == data
    assert store.batch(batch.subject) == batch
    assert store.batch(keccak(b"none")) is None
    await store.write([Record(BATCH, str(batch.subject), 4, None)])
    assert store.used_bytes == 0
    store.close()


async def revoked(open_store: OpenStore, world: World) -> None:
    made = commits(world)[:4]
    store = open_store(epochs=10)
    for commit in made:
        await store.commit(commit)
    committed, bundles = await store.read_before(2)
    assert committed is not None
    assert committed.state == made[1].settlement.state
    assert committed.report == made[1].bundle.report
    assert [bundle.report for bundle in bundles] == [commit.bundle.report for commit in made[2:]]
    await store.uncommit(Uncommit(2, (Record(REVOKED, "3", 3, b"1"), Record(HELD, "again", 3, b"held"))))
    assert store.rollbacks == 1
    store.close()
    store = open_store(epochs=10)
    committed, found = await store.load()
    assert committed is not None
    assert (committed.epoch, store.last and store.last.report) == (2, made[1].bundle.report)
    assert {(HELD, "again"), (REVOKED, "3")} <= {(record.kind, record.key) for record, _ in found}
    for epoch in (3, 4):
        with pytest.raises(NotFound):
            await store.state(epoch)
        for attempt in (None, 0):
            assert await read(await store.open_bundle(epoch, attempt)) == encode_bundle(made[epoch - 1].bundle)
    with pytest.raises(NotFound) as missing:
        await store.open_bundle(3, 1)
    assert missing.value.details["oldest"] == 1
    report = msgspec.structs.replace(made[2].bundle.report, attempt=1)
    again = made[2]._replace(bundle=made[2].bundle._replace(report=report))
    await store.commit(again)
    assert await read(await store.open_bundle(3)) == encode_bundle(again.bundle)
    assert await read(await store.open_bundle(3, 0)) == encode_bundle(made[2].bundle)
    await store.keep_evidence(made[3].bundle._replace(report=msgspec.structs.replace(report, epoch=4)))
    assert (await store.open_bundle(4, 1)).size
    assert await store.read_before(0) != (None, [])
    await store.uncommit(Uncommit(0, ()))
    assert store.last is None
    assert (await store.load())[0] is None
    store.close()


async def epochs(open_store: OpenStore, world: World) -> None:
    made = commits(world)
    store = open_store()
    store.note_transaction(made[0].bundle.report.epoch, keccak(b"transaction"))
    for commit in made:
        await store.commit(commit)
    store.close()
    store = open_store()
    committed, _ = await store.load()
    last = made[-1]
    assert isinstance(committed, Committed)
    assert committed.report == last.bundle.report
    assert committed.state == last.settlement.state
    assert [s.report.epoch for s in await store.summaries(1, 100)] == list(range(1, len(made) + 1))
    assert (await store.summary(1)).transaction == str(keccak(b"transaction"))
    assert sum((await store.summary(1)).verdicts.values()) == len(made[0].settlement.verdicts)
    for commit in made[-2:]:
        epoch = commit.bundle.report.epoch
        assert replay(await read(await store.open_bundle(epoch)), {}).report == commit.bundle.report
        assert await store.state(epoch) == commit.settlement.state
    with pytest.raises(NotFound):
        await store.open_bundle(1)
    assert await store.state(1) == made[0].settlement.state
    with pytest.raises(NotFound):
        await store.state(100)
    with pytest.raises(NotFound):
        await store.summary(100)
    store.close()


async def sweep(open_store: OpenStore, world: World) -> None:
    first, second = commits(world)[:2]
    store = open_store()
    await store.commit(first)
    kept = store.used_bytes
    store._put_epoch(second)
    await store._put_batches([Record(BATCH, str(keccak(b"x")), 1, b"no record speaks of it")])
    assert store.used_bytes > kept
    store.close()
    store = open_store()
    committed, records = await store.load()
    assert committed is not None
    assert committed.epoch == 1
    assert [record for record, _ in records] == list(first.records)
    assert store.used_bytes == kept
    store.close()


async def lost_state(open_store: OpenStore, world: World) -> None:
    first = commits(world)[0]
    store = open_store()
    await store.commit(first)
    store._blobs.put("state.1", [b"damaged"])
    committed, _ = await store.load()
    assert committed is not None
    assert committed.state == first.settlement.state
    store.close()


async def room_for_settling(open_store: OpenStore, world: World) -> None:
    commit, batch = commits(world)[0], Record(BATCH, str(keccak(b"x")), 1, bytes(1000))
    store = open_store()
    await store.commit(commit)
    last = store.used_bytes
    await store.write([batch])
    store._blobs.allowance_bytes = store.used_bytes + RESERVE + 2 * (last + 1000) + 3 * 10
    store.check_room(10, is_bonded=True)
    with pytest.raises(DiskFull):
        store.check_room(11, is_bonded=True)
    await store.write([Record(BATCH, batch.key, 1, None)])
    store.check_room(1000, is_bonded=True)
    store.close()


async def old_bundles(open_store: OpenStore, world: World) -> None:
    made = commits(world)[:4]
    store = open_store(epochs=100, fewest=2)
    for commit in made[:2]:
        await store.commit(commit)
    store._blobs.allowance_bytes = store.used_bytes + 10
    with pytest.raises(DiskFull):
        await store.commit(made[2])
    store._blobs.allowance_bytes = ALLOWANCE
    await store.commit(made[2])
    store._blobs.allowance_bytes = store.used_bytes + (await store.open_bundle(3)).size + 10_000
    before = store._bundles[:]
    await store.commit(made[3])
    assert before == [1, 2, 3]
    assert store._bundles == [3, 4]
    with pytest.raises(NotFound):
        await store.open_bundle(2)
    store.close()
    store = open_store(epochs=100, fewest=2)
    committed, _ = await store.load()
    assert committed is not None
    assert committed.epoch == 4
    assert store._bundles == [3, 4]
    store.close()
