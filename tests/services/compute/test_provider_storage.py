"""A job's own way to storage: read and deliver by its grant, again after a fault, and never tell the token."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from aiohttp import web

from freehold.net import server
from freehold.net.server import Server, make_app, serve
from freehold.services.compute.node import gateway as provider_gateway
from freehold.services.compute.node.blobs import SMALL
from freehold.services.compute.tasks import Delivery, Input, decode_result, input_root
from tests.services.compute.provider_world import World, receipt_of, until

TOKEN = "En0KEwoBMRgDIgkKBwgKEgMYgAg"


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


class Storage:
    """A gateway's shared links. `faults` are the statuses of the next answers; "cut" closes the connection, "lost" does
    so once the object is there, "none" is no fault."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.faults: list[int | str] = []
        self.asked: list[tuple[str, str]] = []
        self.checksums: dict[str, str] = {}
        self.server: Server

    async def handle(self, request: web.Request) -> web.StreamResponse:
        _, token, path = request.raw_path.partition("/-/share/")[2].partition(TOKEN)
        assert token == TOKEN
        name = unquote(path.removeprefix("/"))
        self.asked.append((request.method, name))
        fault = self.faults.pop(0) if self.faults else "none"
        if fault not in ("none", "lost"):
            if fault == "cut":
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            if fault == "hang":
                response = web.StreamResponse(headers={"Content-Length": "9"})
                await response.prepare(request)
                await asyncio.Event().wait()
            if fault == "half":
                response = web.StreamResponse(headers={"Content-Length": str(len(self.objects[name]))})
                await response.prepare(request)
                await response.write(self.objects[name][:1])
                assert request.transport is not None
                request.transport.abort()
                return response
            headers = {"Location": "http://127.0.0.1:1/"} if fault == 302 else {}
            return web.Response(status=int(fault), headers=headers)
        if request.method == "GET":
            if name not in self.objects:
                return web.Response(status=404)
            return web.Response(body=self.objects[name], headers={"ETag": f'"{etag(self.objects[name])}"'})
        self.checksums[name] = request.headers["x-amz-checksum-sha256"]
        self.objects[name] = await request.read()
        if fault == "lost":
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({}, status=201)


def etag(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


@asynccontextmanager
async def both(directory: Path, **changes: Any) -> AsyncIterator[tuple[World, Storage]]:
    storage = Storage()
    app = make_app([web.route("*", "/{rest:.*}", storage.handle)], ready=lambda: (True, ""), metrics=lambda: "")
    storage.server = await serve(app, "127.0.0.1", 0)
    try:
        settings = {"access_hosts": r"127\.0\.0\.1:\d+"} | changes.pop("settings", {})
        async with World(directory, settings=settings, **changes) as world:
            yield world, storage
    finally:
        await storage.server.stop()


def access(storage: Storage, *names: str) -> dict[str, Any]:
    return {"url": storage.server.url, "read": dict.fromkeys(names, TOKEN), "write": TOKEN}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider_gateway, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(provider_gateway, "LONGEST_PAUSE", 0.01)


def reading(world: World, **changes: Any) -> Any:
    return world.task("read a", inputs=(Input(path="a", bucket="photos", key="x y/ä", **changes),))


def test_a_name_that_leads_into_the_operators_network_is_not_asked(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (world, storage):
            storage.objects["photos/x y/ä"] = b"abc"
            given = access(storage, "photos/x y/ä")
            given["url"] = given["url"].replace("127.0.0.1", "localhost")
            answer = await world.submit(reading(world), access=given)
            assert "no public address" in answer["reason"]
            assert storage.asked == []

    asyncio.run(scenario())


def test_inputs_are_read_and_files_delivered_in_one_job(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (world, storage):
            caplog.set_level(logging.DEBUG)
            large = b"p" * (SMALL + 5)
            storage.objects["photos/x y/ä"] = large
            task = world.task(
                f"write t/1 3 big {SMALL + 9}",
                inputs=(Input(path="a", bucket="photos", key="x y/ä", etag=etag(large)),),
                delivery=Delivery("thumbs", "out/"),
            )
            order = world.order(task)
            sent = world.body(order, task, access=access(storage, "photos/x y/ä"))
            answer = await world.call("POST", "/orders", sent)
            assert storage.objects["thumbs/out/t/1"] == b"ttt"
            assert storage.objects["thumbs/out/big"] == b"b" * (SMALL + 9)
            wanted = base64.b64encode(hashlib.sha256(b"ttt").digest()).decode()
            assert storage.checksums["thumbs/out/t/1"] == wanted
            assert (answer["delivered"], answer["read_bytes"], answer["written_bytes"]) == (
                True, len(large), 3 + SMALL + 9,
            )  # fmt: skip
            assert receipt_of(answer).input == input_root([("a", sha256(large))])
            assert await world.get(f"/blobs/{sha256(large)}") == large  # can be shown to a referee
            assert world.provider.metrics()["storage_read_bytes_total"] == len(large)
            assert TOKEN not in caplog.text
            assert TOKEN not in str(await world.call("GET", "/orders"))
            await world.kill()
            with sqlite3.connect(tmp_path / "compute.sqlite") as rows:
                assert rows.execute("SELECT count(*) FROM jobs WHERE access IS NOT NULL").fetchone() == (0,)
            await world.start()

    asyncio.run(scenario())


@pytest.mark.parametrize("faults", [[503], ["cut", 500], ["half", 429, "cut"]])
def test_what_was_interrupted_is_read_again(tmp_path: Path, faults: list[int | str]) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (world, storage):
            storage.objects["photos/x y/ä"], storage.faults = b"the picture", list(faults)
            answer = await world.submit(reading(world), access=access(storage, "photos/x y/ä"))
            assert decode_result(answer["result"].encode()).stdout.sha256 == sha256(b"the picture")
            assert len(storage.asked) == len(faults) + 1

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("faults", "tag", "size", "text"),
    [
        ([404], "", 5, "answered 404"),
        ([403], "", 5, "answered 403"),
        ([302], "", 5, "answered 302"),
        ([], "0" * 32, 5, "not the version"),
        ([], "", 2**22 + 1, "more than the"),
        ([503] * 9, "", 5, "answered 503"),
    ],
)
def test_inputs_that_cannot_be_read_cost_nothing(
    tmp_path: Path, faults: list[int | str], tag: str, size: int, text: str
) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (world, storage):
            storage.objects["photos/x y/ä"], storage.faults = bytes(size), list(faults)
            answer = await world.submit(reading(world, etag=tag), access=access(storage, "photos/x y/ä"))
            assert (answer["phase"], answer["receipt"]) == ("finished", None)
            assert text in answer["reason"]
            assert TOKEN not in answer["reason"]
            assert await world.provider.describe(world.id) == {"outstanding": "0"}
            assert world.executor.runs == []

    asyncio.run(scenario())


def test_a_delivery_is_tried_until_the_order_runs_out(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (world, storage):
            storage.faults = ["cut", 500, 503, "cut"]
            task = world.task("write a 3", delivery=Delivery("out", ""))
            answer = await world.submit(task, access=access(storage))
            assert (answer["delivered"], storage.objects) == (True, {"out/a": b"aaa"})

            storage.faults = ["cut"] * 10_000
            job = (await world.submit(task, access=access(storage), wait=0, until=5))["job"]
            await until(lambda: len(storage.asked) > 8)
            assert world.provider.metrics()["running"] == 0  # others may compute meanwhile
            await world.commit(4, [])
            answer = await world.wait(job)
            assert (answer["delivered"], answer["written_bytes"]) == (False, 0)
            assert receipt_of(answer).measure == 5
            assert await world.get(f"/blobs/{sha256(b'aaa')}") == b"aaa"
            assert b"not delivered" in await world.get(f"/orders/{job}/log")

    asyncio.run(scenario())


def test_a_delivery_that_is_not_allowed_is_not_tried_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (world, storage):
            storage.faults = [403, 403]
            answer = await world.submit(world.task("write a 3", delivery=Delivery("out", "")), access=access(storage))
            assert (answer["delivered"], storage.asked) == (False, [("PUT", "out/a")])
            assert answer["reason"] == "not delivered: the gateway answered 403 for out/a"

    asyncio.run(scenario())


@pytest.mark.parametrize("last", ["cut", "lost"])  # the object is not there, or is and nobody said so
def test_a_kill_in_mid_delivery_goes_on_with_it_and_bills_once(tmp_path: Path, last: str) -> None:
    """Killed with each of its files under way in turn: nothing runs again, what had arrived is not sent again."""
    large = SMALL + 9
    whole = {"o/a": b"aaa", "o/b": b"b" * large, "o/c": b"ccccc", "o/d": b""}

    async def scenario() -> None:
        async with both(tmp_path) as (world, storage):
            storage.faults = [last] * 10_000
            task = world.task(f"write a 3 b {large} c 5 d 0", delivery=Delivery("o", ""))
            job = (await world.submit(task, access=access(storage), wait=0))["job"]
            for name in ("a", "b", "c"):
                await until(lambda name=name: storage.asked[-2:] == [("PUT", f"o/{name}")] * 2)  # type: ignore[misc]
                await world.restart()
                storage.faults = ["none", *[last] * 10_000]
            storage.faults = []
            answer = await world.wait(job)
            assert (answer["delivered"], answer["written_bytes"]) == (True, 8 + large)
            assert storage.objects == whole
            assert world.executor.runs == []  # this process has run nothing
            names = [name for _, name in storage.asked]
            assert names == sorted(names)  # none was sent once the next had begun
            assert len((await world.provider.collect())["compute.receipt"]) == 1
            assert receipt_of(answer).measure == 5
            for name, body in whole.items():
                assert await world.get(f"/blobs/{sha256(body)}") == body, name
            with sqlite3.connect(tmp_path / "compute.sqlite") as rows:
                assert rows.execute("SELECT count(*) FROM deliveries").fetchone() == (0,)

    asyncio.run(scenario())


def test_a_delivery_that_would_come_too_late_after_a_kill_costs_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (world, storage):
            storage.faults = ["cut"] * 10_000
            task = world.task("write a 3", delivery=Delivery("o", ""))
            job = (await world.submit(task, access=access(storage), wait=0, until=5))["job"]
            await until(lambda: len(storage.asked) > 2)
            await world.kill()
            storage.faults = []
            with sqlite3.connect(tmp_path / "compute.sqlite") as rows:
                rows.execute("INSERT OR REPLACE INTO facts (name, body, at) VALUES ('committed', x'', 5)")
            await world.start()
            answer = await world.wait(job)
            assert (answer["receipt"], storage.objects) == (None, {})
            assert "ran out" in answer["reason"]

    asyncio.run(scenario())


def test_a_job_whose_input_does_not_come_can_be_stopped(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (world, storage):
            storage.faults = ["hang"]
            task = reading(world)
            body = world.body(world.order(task), task, access=access(storage, "photos/x y/ä"), wait=0)
            job = (await world.call("POST", "/orders", body))["job"]
            await until(lambda: len(storage.asked) == 1)
            answer = await asyncio.wait_for(world.call("DELETE", f"/orders/{job}"), 20)
            assert (answer["phase"], answer["measure"]) == ("finished", 0)
            assert world.executor.runs == []

    asyncio.run(scenario())


def test_a_gateway_that_sends_nothing_holds_no_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "GRACE_SECONDS", 0.05)

    async def scenario() -> None:
        async with both(tmp_path) as (world, storage):
            storage.faults = ["hang"]
            task = reading(world)
            answer = await world.submit(task, access=access(storage, "photos/x y/ä"))
            assert "too slowly" in answer["reason"]
            assert answer["receipt"] is None

    asyncio.run(scenario())
