"""The supervisor's side of the nursery: forks by name, what they became, and how they are ended.

Each fork's pid and start time stand in `NAME.pid`, as those of every child (`children.py`), so that what outlives a
killed supervisor is found and ended by the next one.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from freehold.local.children import (
    GRACE,
    LONGEST_LOG,
    ChildFailed,
    dying_with_parent,
    read_json,
    read_tail,
    signal_group,
    start_time,
    write_json,
)

POLL = 0.02  # seconds between looks at a ready file
START_SECONDS = 60.0  # for the imports, on a busy machine with cold disks


class Fork:
    """One running program."""

    def __init__(self, name: str, pid: int, directory: Path, ready: Path) -> None:
        self.name = name
        self.pid = pid
        self.log = directory / f"{name}.log"
        self.record = directory / f"{name}.pid"
        self.ready = ready
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        write_json(self.record, {"name": name, "pid": pid, "started": start_time(pid)})

    async def wait_ready(self, timeout: float) -> dict[str, Any]:
        """What it wrote into its ready file. ChildFailed if it ended first, or after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while (answer := read_json(self.ready)) is None or answer.get("pid") != self.pid:
                    if self.ended.done():
                        raise self._failed(f"ended with code {self.ended.result()}")
                    await asyncio.sleep(POLL)
                return answer
        except TimeoutError:
            raise self._failed(f"was not ready after {timeout:g} s") from None

    def _failed(self, what: str) -> ChildFailed:
        return ChildFailed(f"{self.name} {what}; its log {self.log} ends: {read_tail(self.log)}")

    async def stop(self, grace: float = GRACE) -> None:
        """SIGTERM, after `grace` seconds SIGKILL."""
        if not self.ended.done():
            signal_group(self.pid, signal.SIGTERM)
            signal_group(self.pid, signal.SIGCONT)
            await asyncio.wait([self.ended], timeout=grace)
            if not self.ended.done():
                signal_group(self.pid, signal.SIGKILL)
                await self.ended
        self.record.unlink(missing_ok=True)


def prepare(log: Path, ready: Path) -> None:
    """Set a long log aside, and forget that an earlier run was ready."""
    if log.exists() and log.stat().st_size > LONGEST_LOG:
        log.replace(log.with_name(f"{log.name}.1"))
    ready.unlink(missing_ok=True)


class Nursery:
    """The process that imports `modules` and forks.

    `on_end` is told of every fork that ends; and, with None, that the nursery itself did.
    """

    def __init__(self, directory: Path, modules: Sequence[str], on_end: Callable[[Fork | None, int], None]) -> None:
        self.directory = directory
        self._modules = modules
        self.forks: dict[int, Fork] = {}
        self._on_end = on_end
        self._process: asyncio.subprocess.Process | None = None
        self._orders: dict[str, tuple[asyncio.Future[Fork], Path]] = {}
        self._ready: asyncio.Future[None] | None = None
        self._reader: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start it; returns at once, `fork` waits for its imports."""
        self.directory.mkdir(parents=True, exist_ok=True)
        argv = dying_with_parent([sys.executable, "-m", "freehold.local.nursery", *self._modules])
        with (self.directory / "nursery.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log, process_group=0
            )
        pid = self._process.pid
        write_json(self.directory / "nursery.pid", {"name": "nursery", "pid": pid, "started": start_time(pid)})
        self._ready = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read(self._process), name="nursery")

    async def fork(self, name: str, module: str, config: Path, ready: Path) -> Fork:
        """Run `module`'s program with `config`. ChildFailed if the nursery is gone."""
        if self._process is None or self._process.stdin is None or self._ready is None:
            raise RuntimeError("the nursery was not started")
        log = self.directory / f"{name}.log"
        prepare(log, ready)
        try:
            async with asyncio.timeout(START_SECONDS):
                await asyncio.shield(self._ready)
                waiting: asyncio.Future[Fork] = asyncio.get_running_loop().create_future()
                self._orders[name] = (waiting, ready)
                order = {"name": name, "module": module, "config": str(config), "log": str(log)}
                self._process.stdin.write(json.dumps(order).encode() + b"\n")
                await self._process.stdin.drain()
                return await waiting
        except (TimeoutError, ConnectionError):
            raise self._gone("does not answer") from None

    async def stop(self) -> None:
        """End it, and with it whatever still runs."""
        if self._process is None or self._reader is None:
            return
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(2 * GRACE):
                await self._process.wait()
        except TimeoutError:
            signal_group(self._process.pid, signal.SIGKILL)
            await self._process.wait()
        await self._reader
        (self.directory / "nursery.pid").unlink(missing_ok=True)
        self._process = None

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        assert self._ready is not None
        while line := await process.stdout.readline():
            told = json.loads(line)
            if told.get("ready"):
                self._ready.set_result(None)
            elif "returncode" in told:
                self._end(told["pid"], told["returncode"])
            else:
                waiting, ready = self._orders.pop(told["name"])
                fork = self.forks[told["pid"]] = Fork(told["name"], told["pid"], self.directory, ready)
                if not waiting.done():
                    waiting.set_result(fork)
        error = self._gone("ended")
        unanswered: list[asyncio.Future[Any]] = [self._ready, *(waiting for waiting, _ in self._orders.values())]
        for future in unanswered:
            if not future.done():
                future.set_exception(error)
                future.exception()
        for pid in list(self.forks):
            self._end(pid, -signal.SIGKILL)
        self._on_end(None, await process.wait())

    def _end(self, pid: int, code: int) -> None:
        fork = self.forks.pop(pid, None)
        if fork is not None and not fork.ended.done():
            fork.ended.set_result(code)
            self._on_end(fork, code)

    def _gone(self, what: str) -> ChildFailed:
        return ChildFailed(f"the nursery {what}; its log ends: {read_tail(self.directory / 'nursery.log')}")
