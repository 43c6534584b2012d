"""The nursery: forks run, are told apart, are ended, and never outlive what should outlive them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from freehold.local.children import ChildFailed, reap_leftovers, start_time
from freehold.local.forks import Fork, Nursery
from tests.conftest import SLOW
from tests.local.chains import until

PROGRAM = "tests.local.programs"
DEADLINE = 20.0 * SLOW


class Home:
    """A nursery and what it told of."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ended: list[tuple[str, int]] = []
        self.nursery = Nursery(directory / "logs", (PROGRAM,), self._on_end)

    def _on_end(self, fork: Fork | None, code: int) -> None:
        self.ended.append((fork.name if fork else "nursery", code))

    async def fork(self, name: str, **orders: Any) -> Fork:
        config, ready = self.directory / f"{name}.json", self.directory / f"{name}.ready"
        config.write_text(json.dumps({"ready": str(ready), **orders}))
        return await self.nursery.fork(name, PROGRAM, config, ready)


@asynccontextmanager
async def home(directory: Path) -> AsyncIterator[Home]:
    made = Home(directory)
    await made.nursery.start()
    try:
        yield made
    finally:
        await made.nursery.stop()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE):
            await test()

    asyncio.run(bounded())


def test_forks_run_side_by_side_and_are_stopped(tmp_path: Path) -> None:
    async def test() -> None:
        async with home(tmp_path) as h:
            forks = await asyncio.gather(*(h.fork(f"program-{i}") for i in range(4)))
            told = await asyncio.gather(*(fork.wait_ready(DEADLINE) for fork in forks))
            assert [t["pid"] for t in told] == [fork.pid for fork in forks]
            assert len({fork.pid for fork in forks}) == 4
            assert all(start_time(fork.pid) for fork in forks)
            await asyncio.gather(*(fork.stop() for fork in forks))
            assert sorted(h.ended) == [(f"program-{i}", 0) for i in range(4)]
            assert not any(start_time(fork.pid) for fork in forks)
            assert forks[0].log.read_text() == "started in group True\n"
        assert not list((tmp_path / "logs").glob("*.pid"))

    run(test)


@pytest.mark.parametrize(("orders", "code", "says"), [({"exit": 3}, 3, ""), ({"raise": "no disk"}, 1, "no disk")])
def test_a_program_that_ends_is_told_with_its_code_and_log(
    tmp_path: Path, orders: dict[str, Any], code: int, says: str
) -> None:
    async def test() -> None:
        async with home(tmp_path) as h:
            fork = await h.fork("short", **orders)
            with pytest.raises(ChildFailed, match=says or f"code {code}"):
                await fork.wait_ready(DEADLINE)
            assert h.ended == [("short", code)]

    run(test)


def test_a_stubborn_or_stopped_program_is_killed(tmp_path: Path) -> None:
    async def test() -> None:
        async with home(tmp_path) as h:
            fork = await h.fork("stubborn", stubborn=True)
            await fork.wait_ready(DEADLINE)
            os.kill(fork.pid, signal.SIGSTOP)
            await fork.stop(grace=0.2)
            assert h.ended == [("stubborn", -signal.SIGKILL)]

    run(test)


def test_killing_the_nursery_ends_the_forks_and_is_told(tmp_path: Path) -> None:
    async def test() -> None:
        async with home(tmp_path) as h:
            fork = await h.fork("orphan", stubborn=True)
            await fork.wait_ready(DEADLINE)
            record = json.loads((tmp_path / "logs" / "nursery.pid").read_text())
            os.kill(record["pid"], signal.SIGKILL)
            await until(lambda: ("nursery", -signal.SIGKILL) in h.ended)
            assert ("orphan", -signal.SIGKILL) in h.ended
            await until(lambda: start_time(fork.pid) is None)
            with pytest.raises(ChildFailed, match="the nursery"):
                await h.fork("late")

    run(test)


def test_forks_that_were_left_over_are_found_by_their_pid_files(tmp_path: Path) -> None:
    async def test() -> None:
        async with home(tmp_path) as h:
            fork = await h.fork("left")
            await fork.wait_ready(DEADLINE)
            assert await reap_leftovers(tmp_path / "logs") == ["left", "nursery"]
            await until(lambda: ("nursery", 0) in h.ended or ("nursery", -signal.SIGTERM) in h.ended)
            assert start_time(fork.pid) is None

    run(test)
