"""Services: orders pay in slices, one after another, and the port is reached by whoever may."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
import yarl
from aiohttp import web

from freehold.net import passing
from freehold.net.passing import MESSAGE_LIMIT
from freehold.protocol.errors import FreeholdError, NotFound
from freehold.services.compute.executors.seam import Outcome, Work
from freehold.services.compute.node import proxy
from freehold.services.compute.node.proxy import ANSWER_HEADER, TOKEN_HEADER
from freehold.services.compute.tasks import Resources, Service, Task, decode_result
from tests.services.compute.provider_world import FakeExecutor, World, receipt_of, until


class Status(NamedTuple):
    healthy: bool = True
    restarts: int = 2
    state: str = "healthy"
    reason: str = ""


class FakeServices(FakeExecutor):
    """A program that answers on a UNIX socket; its measure is what the test says."""

    def __init__(self, name: str = "service") -> None:
        super().__init__(name)
        self.used = 0
        self.ending: Outcome | None = None
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.read_first = asyncio.Event()
        self._ended = asyncio.Event()
        self._folders: dict[Path, Path] = {}

    async def run(self, work: Work) -> Outcome:
        self.runs.append(work.task.kind)
        stop = self.stopped[work.folder] = asyncio.Event()
        folder = self._folders[work.folder] = Path(tempfile.mkdtemp(prefix="fh-"))
        app = web.Application()
        app.add_routes([web.get("/socket", self._talk), web.get("/events", self._tell)])
        app.add_routes([web.route("*", "/{path:.*}", self._answer)])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.UnixSite(runner, str(folder / "port")).start()
        waiting = [asyncio.ensure_future(stop.wait()), asyncio.ensure_future(self._ended.wait())]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waiting:
                one.cancel()
            await runner.cleanup()
            del self.stopped[work.folder], self._folders[work.folder]
        if self.ending is not None and not stop.is_set():
            return self.ending
        return Outcome("stopped", 0, b"", self.used)

    def fail(self, outcome: Outcome) -> None:
        self.ending = outcome
        self._ended.set()

    def measure(self, folder: Path) -> int:
        return self.used

    def status(self, folder: Path) -> Status:
        if folder not in self._folders:
            raise NotFound("no service runs there")
        return Status()

    def socket(self, folder: Path) -> Path:
        return self._folders[folder] / "port"

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        if body in (b"break", b"babble"):
            assert request.transport is not None
            assert isinstance(request.transport, asyncio.WriteTransport)
            begun = b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nbegun"
            request.transport.write(begun if body == b"break" else b"\x16\x03babble\r\n\r\n")
            await asyncio.sleep(0)
            request.transport.close()
        self.seen.append((request.raw_path, dict(request.headers)))
        headers = {"X-Own": "1", "Connection": "close"}
        return web.Response(status=418, body=request.method.encode() + b":" + body, headers=headers)

    async def _tell(self, request: web.Request) -> web.StreamResponse:
        """The second event is sent once the first has been read."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: first\n\n")
        await self.read_first.wait()
        await response.write(b"data: second\n\n")
        return response

    async def _talk(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(f"heard {message.data}")
        return socket


@asynccontextmanager
async def running(directory: Path, **settings: Any) -> AsyncIterator[tuple[World, FakeServices]]:
    executor = FakeServices()
    settings = {"executors": ["service"], "slots": 1} | settings
    async with World(directory, executors=[executor], settings=settings) as world:
        yield world, executor


def service(**changes: Any) -> Task:
    fields: dict[str, Any] = {
        "executor": "service", "kind": "native", "engine": "", "arguments": ("serve",),
        "service": Service(), "resources": Resources(memory=2**20, disk=2**20, seconds=1),
    }  # fmt: skip
    return Task(**(fields | changes))


async def started(world: World, executor: FakeServices, task: Task, most: int = 100, until_epoch: int = 10) -> str:
    answer = await world.submit(task, most=most, until=until_epoch, wait=0, blobs={})
    await until(lambda: bool(executor._folders))
    return str(answer["job"])


def ended(answer: dict[str, Any]) -> tuple[str, int]:
    return decode_result(answer["result"].encode()).ended, receipt_of(answer).measure


def test_orders_pay_one_after_another_for_one_instance(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (world, executor):
            task = service()
            first = await started(world, executor, task)
            second = (await world.submit(task, most=50, wait=0, blobs={}))["job"]
            third = (await world.submit(task, most=70, wait=0, blobs={}))["job"]
            executor.used = 30
            standing = await world.call("GET", f"/orders/{first}")
            assert (standing["phase"], standing["measure"]) == ("running", 30)
            assert standing["service"]["restarts"] == 2
            assert (await world.call("GET", f"/orders/{second}"))["measure"] == 0
            executor.used = 120
            assert ended(await world.wait(first)) == ("time", 100)
            standing = await world.call("GET", f"/orders/{second}")
            assert (standing["phase"], standing["measure"]) == ("running", 20)
            executor.used = 160
            assert ended(await world.wait(second)) == ("time", 50)
            executor.used = 175
            assert ended(await world.call("DELETE", f"/orders/{third}")) == ("stopped", 25)
            await until(lambda: not executor._folders)
            assert executor.runs == ["native"]
            await until(lambda: world.provider.metrics()["running"] == 0)
            assert len(await collect(world)) == 3
            # A further order starts another.
            executor.used = 0
            fourth = await started(world, executor, task)
            assert ended(await world.call("DELETE", f"/orders/{fourth}")) == ("stopped", 0)

    async def collect(world: World) -> list[Any]:
        return list((await world.provider.collect())["compute.receipt"])

    asyncio.run(scenario())


def test_a_slice_ends_before_its_receipt_would_come_too_late(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (world, executor):
            job = await started(world, executor, service(), most=10**6, until_epoch=5)
            executor.used = 44
            await world.commit(3, [])
            assert (await world.call("GET", f"/orders/{job}"))["phase"] == "running"
            await world.commit(4, [])
            for instance in world.provider._proxy._services._instances.values():
                instance.wake()
            assert ended(await world.wait(job)) == ("time", 44)
            await until(lambda: not executor._folders)

    asyncio.run(scenario())


def test_one_that_fails_bills_who_paid_last_and_nobody_else(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (world, executor):
            task = service()
            first = await started(world, executor, task)
            second = (await world.submit(task, wait=0, blobs={}))["job"]
            executor.used = 12
            executor.fail(Outcome("failed", 0, b"", 13, "it did not become healthy"))
            assert ended(await world.wait(first)) == ("failed", 13)
            other = await world.wait(second)
            assert (other["receipt"], "did not become healthy" in other["reason"]) == (None, True)
            assert await world.provider.describe(world.id) == {"outstanding": "13"}

    asyncio.run(scenario())


def test_after_a_kill_the_slices_pay_for_one_new_instance(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (world, executor):
            task = service()
            jobs = [await started(world, executor, task)]
            jobs.append((await world.submit(task, wait=0, blobs={}))["job"])
            executor.used = 60
            await world.kill()
            world.executors = [fresh := FakeServices()]
            await world.start()
            await until(lambda: bool(fresh._folders))
            assert fresh.runs == ["native"]
            fresh.used = 150
            assert ended(await world.wait(jobs[0])) == ("time", 100)
            assert ended(await world.call("DELETE", f"/orders/{jobs[1]}")) == ("stopped", 50)

    asyncio.run(scenario())


def test_other_orders_wait_for_the_slot_of_a_service(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (world, executor):
            job = await started(world, executor, service())
            task = service(arguments=("other",))
            others = [(await world.submit(task, wait=0, blobs={}))["job"] for _ in range(3)]
            for other in others:
                assert (await world.call("GET", f"/orders/{other}"))["phase"] == "queued"
            assert ended(await world.call("DELETE", f"/orders/{others[1]}")) == ("stopped", 0)
            assert ended(await world.call("DELETE", f"/orders/{others[0]}")) == ("stopped", 0)
            assert (await world.call("GET", f"/orders/{others[2]}"))["phase"] == "queued"
            assert ended(await world.call("DELETE", f"/orders/{job}")) == ("stopped", 0)
            await until(lambda: len(executor.runs) == 2)
            executor.used = 40
            assert ended(await world.call("DELETE", f"/orders/{others[2]}")) == ("stopped", 40)

    asyncio.run(scenario())


# The port


def test_what_is_asked_goes_through_as_it_is(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (world, executor):
            job = await started(world, executor, service())
            place = (await world.call("GET", f"/orders/{job}"))["service"]
            path = place["url"] + "a%2Fb//c?x=1&x=%20"
            headers = {TOKEN_HEADER: place["token"], "X-Mine": "2", "Cookie": "a=b"}
            async with aiohttp.ClientSession() as session:
                url = yarl.URL(world.server.url + path, encoded=True)
                async with session.post(url, headers=headers, data=b"hello") as response:
                    assert response.status == 418
                    assert await response.read() == b"POST:hello"
                    assert (response.headers[ANSWER_HEADER], response.headers["X-Own"]) == ("1", "1")
                raw, seen = executor.seen[-1]
                assert raw == "/a%2Fb//c?x=1&x=%20"
                # No path of a visitor's is one that the node does not know: that would count against the gateway.
                url = yarl.URL(world.server.url + place["url"] + "a%0Ab", encoded=True)
                async with session.get(url, headers=headers) as response:
                    assert response.headers[ANSWER_HEADER] == "1"
                assert (seen["X-Mine"], seen["Cookie"]) == ("2", "a=b")
                assert not {TOKEN_HEADER, "Freehold-Signature", "Freehold-Request"} & set(seen)
                async with session.ws_connect(
                    world.server.url + place["url"] + "socket", headers={TOKEN_HEADER: place["token"]}
                ) as socket:
                    await socket.send_str("you")
                    assert await socket.receive_str() == "heard you"
            # The lease's client needs no token.
            with pytest.raises(FreeholdError) as error:
                await world.get(place["url"].removeprefix(f"/v1/compute/{world.id}"))
            assert error.value.details["status"] == 418

    asyncio.run(scenario())


def test_answers_and_messages_come_piece_by_piece(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (world, executor):
            place = (await world.call("GET", f"/orders/{await started(world, executor, service())}"))["service"]
            url, headers = world.server.url + place["url"], {TOKEN_HEADER: place["token"], "X-Forwarded-Host": "a.b:1"}
            async with aiohttp.ClientSession(headers=headers) as session:
                async with session.get(f"{url}events") as answer:
                    assert await answer.content.readuntil(b"\n\n") == b"data: first\n\n"
                    executor.read_first.set()
                    assert await answer.content.read() == b"data: second\n\n"
                async with session.get(url) as answer:
                    assert executor.seen[-1][1]["Host"] == "a.b:1"  # as its visitor asked for it
                async with session.ws_connect(f"{url}socket", autoping=False) as socket:
                    await socket.ping(b"there?")
                    assert (await socket.receive()).data == b"there?"
                    await socket.send_str("x" * (MESSAGE_LIMIT + 1))
                    assert (await socket.receive()).data == 1009
                with pytest.raises(aiohttp.WSServerHandshakeError) as error:
                    await session.ws_connect(url)
                assert (error.value.status, ANSWER_HEADER in (error.value.headers or {})) == (418, True)

    asyncio.run(scenario())


def test_what_is_sent_and_asked_at_once_has_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "AT_ONCE_EACH", 2)
    monkeypatch.setattr(proxy, "BODY_LIMIT", 1000)
    monkeypatch.setattr(passing, "GRACE_SECONDS", 0.05)

    async def never() -> AsyncIterator[bytes]:
        yield b"begun"
        await asyncio.Event().wait()

    async def scenario() -> None:
        async with running(tmp_path, slots=2) as (world, executor):
            jobs = [await started(world, executor, service())]
            jobs.append(await started(world, executor, service(arguments=("other",))))
            await until(lambda: len(executor._folders) == 2)
            places = [(await world.call("GET", f"/orders/{job}"))["service"] for job in jobs]
            (url, headers), (other, others) = [
                (world.server.url + place["url"], {TOKEN_HEADER: place["token"]}) for place in places
            ]
            async with aiohttp.ClientSession() as session:
                for data, status in ((bytes(1001), 413), (never(), 408), (bytes(1000), 418)):
                    async with session.post(url, headers=headers, data=data) as answer:
                        assert answer.status == status
                async with (
                    session.ws_connect(f"{url}socket", headers=headers),
                    session.ws_connect(f"{url}socket", headers=headers),
                ):
                    async with session.get(url, headers=headers) as answer:
                        assert (answer.status, ANSWER_HEADER in answer.headers) == (429, False)
                    async with session.get(other, headers=others) as answer:
                        assert answer.status == 418

    asyncio.run(scenario())


def test_an_answer_that_breaks_off_or_is_none_is_not_taken_for_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (world, executor):
            job = await started(world, executor, service())
            place = (await world.call("GET", f"/orders/{job}"))["service"]
            url, headers = world.server.url + place["url"], {TOKEN_HEADER: place["token"]}
            async with aiohttp.ClientSession() as session:
                with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientConnectionError)):
                    async with session.post(url, headers=headers, data=b"break") as response:
                        await response.read()
                async with session.post(url, headers=headers, data=b"babble") as response:
                    assert (response.status, ANSWER_HEADER in response.headers) == (503, False)

    asyncio.run(scenario())


def test_nobody_else_reaches_it_nor_anybody_once_it_ended(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (world, executor):
            job = await started(world, executor, service())
            place = (await world.call("GET", f"/orders/{job}"))["service"]
            for headers in ({}, {TOKEN_HEADER: "x"}, {TOKEN_HEADER: ""}):
                with pytest.raises(FreeholdError) as error:
                    await world.bare("GET", place["url"], headers)
                assert error.value.code == "wrong_signature"
            assert executor.seen == []
            await world.call("DELETE", f"/orders/{job}")
            with pytest.raises(FreeholdError):
                await world.bare("GET", place["url"], {TOKEN_HEADER: place["token"]})
            with pytest.raises(FreeholdError) as error:
                await world.get(place["url"].removeprefix(f"/v1/compute/{world.id}"))
            assert error.value.code == "not_found"

    asyncio.run(scenario())
