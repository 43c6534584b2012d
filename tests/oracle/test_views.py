"""What members answer to anybody is bounded: states that are read, answers that wait, and blobs that nobody takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from freehold.net.limits import Places
from freehold.net.server import Server, make_app, serve
from freehold.node.committed import parse_rows
from freehold.oracle import server as subject
from freehold.oracle.server import Api
from freehold.oracle.store import PIECE
from freehold.oracle.views import AT_ONCE, STATES, WAITING, Views
from freehold.protocol.errors import Overloaded
from freehold.protocol.state import State, genesis
from freehold.protocol.units import ZERO_HASH, Address
from freehold.services.compute.terms import CASE, JOB, SEAT
from tests.conftest import SLOW
from tests.oracle.test_engine import start
from tests.services.compute_life import CLIENT, NODES, ComputeLife
from tests.services.compute_world import WRONG_OUTPUT

NODE = Address(b"\x01" * 20)
DEADLINE = 20.0 * SLOW
BLOB = 64 * PIECE


class SlowStates:
    """Reads a state only when told to; counts how many are being read."""

    rollbacks = 0

    def __init__(self) -> None:
        self.may_read = asyncio.Event()
        self.reading = self.most = self.read = 0

    async def state(self, epoch: int) -> State:
        self.reading += 1
        self.most = max(self.most, self.reading)
        await self.may_read.wait()
        self.reading -= 1
        self.read += 1
        return genesis(epoch, ZERO_HASH, 0)


async def settle(tasks: list[asyncio.Task[Any]]) -> list[Any]:
    async with asyncio.timeout(DEADLINE):
        return await asyncio.gather(*tasks, return_exceptions=True)


def test_states_are_read_one_at_a_time_and_few_wait_for_one() -> None:
    asyncio.run(reading())


async def reading() -> None:
    store: Any = SlowStates()
    views = Views(store)
    tasks = [asyncio.create_task(views.node(epoch, NODE)) for epoch in range(WAITING + 3)]
    await asyncio.sleep(0)
    store.may_read.set()
    answers = await settle(tasks)
    refused = [answer for answer in answers if isinstance(answer, Overloaded)]
    assert len(refused) == 3
    assert all(error.details["retry_after"] == 1 for error in refused)
    assert (store.most, store.read) == (1, WAITING)
    assert len(views._known) <= STATES
    assert max(views._known) == WAITING - 1  # the newest stays
    assert (views._waiting, views._collecting) == (0, 0)


def test_answers_that_are_put_together_wait_in_a_bounded_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(collecting(monkeypatch))


async def collecting(monkeypatch: pytest.MonkeyPatch) -> None:
    store: Any = SlowStates()
    store.may_read.set()
    views = Views(store)
    await views.node(1, NODE)
    may_answer = asyncio.Event()
    working: list[int] = []

    async def in_thread(work: Any) -> Any:
        working.append(1)
        await may_answer.wait()
        return work()

    monkeypatch.setattr(asyncio, "to_thread", in_thread)
    tasks = [asyncio.create_task(views.client(1, NODE)) for _ in range(AT_ONCE + WAITING + 5)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(working) == AT_ONCE
    assert sum(task.done() for task in tasks) == 5  # these are refused at once
    may_answer.set()
    answers = await settle(tasks)
    assert sum(isinstance(answer, Overloaded) for answer in answers) == 5
    assert sum(isinstance(answer, dict) for answer in answers) == AT_ONCE + WAITING


class LargeBlob:
    """A blob that counts the pieces that were taken from it."""

    size = BLOB

    def __init__(self) -> None:
        self.taken = 0

    async def pieces(self) -> AsyncIterator[bytes]:
        for _ in range(0, BLOB, PIECE):
            self.taken += 1
            yield bytes(PIECE)


async def serving(blobs: list[LargeBlob]) -> tuple[Server, Api]:
    async def open_bundle(*_: object) -> LargeBlob:
        blobs.append(LargeBlob())
        return blobs[-1]

    engine, _, _ = start()
    store: Any = SimpleNamespace(open_bundle=open_bundle)
    status: Any = SimpleNamespace()
    api = Api(engine, store, status)
    app = make_app(api.routes(), ready=lambda: (True, ""), metrics=lambda: "")
    return await serve(app, "127.0.0.1", 0), api


async def fetch(server: Server, received: int = 4096) -> tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]:
    """The head of an answer; nothing more is read, and the system keeps little for us."""
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=received)
    writer.write(b"GET /v1/bundles/1 HTTP/1.1\r\nHost: x\r\n\r\n")
    return await reader.readuntil(b"\r\n\r\n"), reader, writer


def test_a_blob_that_nobody_takes_holds_a_piece_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "GRACE_SECONDS", 0.05)
    monkeypatch.setattr(subject, "LEAST_RATE", 2.0**40)
    asyncio.run(not_taking())


async def not_taking() -> None:
    blobs: list[LargeBlob] = []
    server, api = await serving(blobs)
    async with asyncio.timeout(DEADLINE):
        head, reader, writer = await fetch(server)
        assert f"Content-Length: {BLOB}".encode() in head
        while api._places._taken:  # noqa: ASYNC110 - the server's loop is this one
            await asyncio.sleep(0.005)
        assert blobs[0].taken < 16  # what the system's own buffers took, and one more
        got = len(await reader.read(BLOB)) + len(await reader.read())
        assert got < BLOB
        writer.transport.abort()
        await server.stop()


def test_blobs_are_sent_to_few_at_once() -> None:
    asyncio.run(crowded())


async def crowded() -> None:
    server, api = await serving([])
    api._places = Places(3, 2)
    open_: list[Any] = []
    async with asyncio.timeout(DEADLINE):
        for _ in range(2):
            head, *connection = await fetch(server)
            assert b" 200 " in head
            open_.append(connection)
        head, *connection = await fetch(server)
        assert head.startswith(b"HTTP/1.1 429 ")
        assert b"Retry-After: 1" in head
        open_.append(connection)
        for _, writer in open_:
            writer.transport.abort()
        await server.stop()


def test_whoever_a_case_names_finds_its_rows_and_can_prove_them() -> None:
    life = ComputeLife()
    life.settle([life.dispute(life.run(NODES[0], 1), life.run(NODES[1], 1, WRONG_OUTPUT))])
    life.settle([])
    seats = life.rows(SEAT)

    class Settled:
        rollbacks = 0

        async def state(self, epoch: int) -> State:
            return life.state

    store: Any = Settled()
    views = Views(store)

    def found(address: Address) -> list[tuple[int, Address]]:
        assert life.report is not None
        answer = asyncio.run(views.node(life.report.epoch, address))
        return [(row.role, row.node) for row in parse_rows(answer, life.report).services["compute"]]

    every = [(SEAT, seat.node) for seat in seats]
    for seat in seats:
        assert found(seat.node) == [(SEAT, seat.node)]
    for node in NODES[:2]:
        assert found(node.address) == [(JOB, node.address), (CASE, CLIENT.address), *every]
    by_client = found(CLIENT.address)
    assert (len(by_client), by_client[2:]) == (3, [(CASE, CLIENT.address)])
    idle = set(NODES[2:]) - {node for node in NODES for seat in seats if node.address == seat.node}
    assert [found(node.address) for node in idle] == [[]]
