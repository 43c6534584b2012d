"""Serving as one of many readers: places are shared out, and a reader that is too slow pays for its place."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from freehold.services.storage import serving
from tests.services.storage.provider_world import Provided, Shard

SHARD = Shard(5000, 1)


class Response:
    """An answer whose reader takes nothing until `release` is set."""

    taking = most = 0
    full: asyncio.Event
    release: asyncio.Event

    def __init__(self, headers: Any) -> None:
        self.content_length = 0

    async def prepare(self, _: Any) -> None:
        Response.taking += 1
        Response.most = max(Response.most, Response.taking)
        if Response.taking == serving.PER_CLIENT:
            Response.full.set()

    async def write(self, _: Any) -> None:
        await Response.release.wait()

    async def write_eof(self) -> None:
        Response.taking -= 1


async def drain() -> None: ...


def get(world: Provided) -> Any:
    request = world.download(SHARD.root, world.pay(10**6))
    request.writer = type("Writer", (), {"drain": staticmethod(drain)})
    return world.provider._sender.get(request)


@pytest.fixture(autouse=True)
def answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.web, "StreamResponse", Response)
    monkeypatch.setattr(serving, "unbuffered", lambda _: nullcontext())
    Response.taking = Response.most = 0


def test_one_client_has_only_some_of_the_places(tmp_path: Path) -> None:
    async def scenario() -> None:
        Response.full, Response.release = asyncio.Event(), asyncio.Event()
        async with Provided(tmp_path) as world:
            await world.put(SHARD)
            tasks = [asyncio.create_task(get(world)) for _ in range(serving.PER_CLIENT + 3)]
            await Response.full.wait()
            for _ in range(50):
                await asyncio.to_thread(int)  # the others would have come this far by now
            assert Response.taking == serving.PER_CLIENT
            Response.release.set()
            await asyncio.gather(*tasks)
            assert Response.most == serving.PER_CLIENT

    asyncio.run(scenario())


def test_a_reader_that_is_too_slow_loses_its_place_and_what_it_paid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "GRACE_SECONDS", 0.01)
    monkeypatch.setattr(serving, "LEAST_RATE", 10**9)

    async def scenario() -> None:
        Response.full, Response.release = asyncio.Event(), asyncio.Event()
        async with Provided(tmp_path) as world:
            await world.put(SHARD)
            with pytest.raises(TimeoutError):
                await get(world)
            assert (await world.book.entry(world.voucher.struct_hash())).owed == 5000

    asyncio.run(scenario())
