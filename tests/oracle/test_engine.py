"""The engine: nothing is sent before what it rests on is durable, and those who wait share one commit."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from freehold.oracle.chain_records import FinalBlock
from freehold.oracle.effects import Signed
from freehold.oracle.engine import Engine
from freehold.oracle.events import BatchReceived, ChainAdvanced, Tick
from freehold.oracle.member import Member
from freehold.oracle.records import Record
from freehold.oracle.setup import Setup
from freehold.protocol.batches import CLOSE, Batch, encode_batch, make_batch
from freehold.protocol.beacon import Block
from freehold.protocol.errors import DiskFull, Unavailable
from freehold.protocol.messages import Close
from freehold.protocol.tables import Table
from freehold.protocol.typed import keccak
from tests.oracle.fake_chain import START
from tests.oracle.simulation import DOMAIN, KEYS, NODE, TIMING


class SlowStore:
    """Writes only when told to."""

    def __init__(self) -> None:
        self.writes: list[Sequence[Record]] = []
        self.may_write = asyncio.Event()
        self.failure: Exception | None = None

    async def write(self, records: Sequence[Record]) -> None:
        await self.may_write.wait()
        if self.failure is not None:
            raise self.failure
        self.writes.append(records)


class FakePeers:
    def __init__(self, store: SlowStore) -> None:
        self.store = store
        self.sent: list[tuple[int, str]] = []

    def send(self, _: bytes, message: Any) -> None:
        self.sent.append((len(self.store.writes), type(message).__name__))


def start() -> tuple[Engine, SlowStore, FakePeers]:
    store = SlowStore()
    peers = FakePeers(store)
    member = Member(Setup(KEYS[0], DOMAIN, START, {}, TIMING))
    return Engine(member, store, peers, None), store, peers  # type: ignore[arg-type]


def batches(count: int) -> list[Batch]:
    rows = [Table.of(Close, [Close(lease=keccak(bytes([i])))]) for i in range(count)]
    return [make_batch(CLOSE, table, NODE, DOMAIN) for table in rows]


async def acknowledge(engine: Engine, batch: Batch) -> Signed:
    return await engine.ask(lambda reply: BatchReceived(batch, encode_batch(batch), reply))


def test_acknowledgements_wait_for_the_disk_and_share_a_commit() -> None:
    asyncio.run(group_commit())


async def group_commit() -> None:
    engine, store, _ = start()
    running = asyncio.create_task(engine.run())
    first, *others = batches(30)
    waiting = [asyncio.create_task(acknowledge(engine, first))]
    await asyncio.sleep(0)
    waiting += [asyncio.create_task(acknowledge(engine, batch)) for batch in others]
    for _ in range(20):
        await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    store.may_write.set()
    answers = await asyncio.gather(*waiting)
    assert {answer.epoch for answer in answers} == {1}
    assert len(store.writes) <= 2
    assert sum(len(records) for records in store.writes) == 30
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def test_messages_leave_after_what_they_rest_on() -> None:
    asyncio.run(messages())


async def messages() -> None:
    engine, store, peers = start()
    running = asyncio.create_task(engine.run())
    blocks = [FinalBlock(Block(i, keccak(bytes([i])), START.block.time + i), ()) for i in range(1, 4)]
    engine.handle(Tick(0))
    engine.handle(ChainAdvanced(tuple(blocks)))
    for _ in range(20):
        await asyncio.sleep(0)
    assert peers.sent == []
    store.may_write.set()
    for _ in range(20):
        await asyncio.sleep(0)
    assert peers.sent == [(1, "Observation")] * 3
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def test_a_disk_that_fails_ends_the_member() -> None:
    asyncio.run(failing_disk())


async def failing_disk() -> None:
    engine, store, _ = start()
    store.failure = DiskFull("full")
    store.may_write.set()
    running = asyncio.create_task(engine.run())
    asking = asyncio.create_task(acknowledge(engine, batches(1)[0]))
    with pytest.raises(DiskFull):
        await running
    with pytest.raises(Unavailable):
        await asking
