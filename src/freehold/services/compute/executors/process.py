"""A program in a box: held to its bounds, heard, and ended with all that it started.

What starts it (bubblewrap, podman) is a child of this process, and ends when nothing of the program is left. Everything
of a run is in one pid namespace, whose first process is killed to end it: the kernel then kills the rest. Its own file
systems, in memory, stay open here until `close`, so that what came out is read when nothing can change it any more.

Invariant: after `close`, no process, open file or cgroup of the run is left, however it went.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from freehold.services.compute.executors.bounds import Over, Watch, most_files
from freehold.services.compute.executors.outputs import copy_out
from freehold.services.compute.tasks import Resources

STDOUT_LIMIT = 16 * 2**20  # bytes of standard output, which is part of the result
LOG_RATE = 16 * 2**20  # bytes a second that are taken from standard error: a program that floods it waits
GRACE = 2.0  # seconds between asking it to end and killing it
_CHUNK = 2**16
_SHORT, _SHORT_READS, _SHORT_PAUSE = 4096, 64, 0.005  # bytes; reads that may be shorter at once; seconds after others

Reader = Callable[[bytes], float]  # takes what was read, and says how long to wait before reading on


class Box(ABC):
    """A run. `stdout` is what the program wrote to its standard output so far; where `echo` is set, it goes to the log
    instead."""

    def __init__(self, resources: Resources, log: Callable[[bytes], None], echo: bool = False) -> None:
        self.stdout = bytearray()
        self._resources = resources
        self._log = log
        self._echo = echo
        self._loop = asyncio.get_running_loop()
        self._open: set[int] = set()
        self._child = self._first = 0  # process ids: what starts it, and the first one in its pid namespace
        self._waiting = self._handle = -1  # their pidfds
        self._status: asyncio.Future[int] = self._loop.create_future()
        self._drained: list[asyncio.Future[None]] = []
        self._over: asyncio.Future[Over] = self._loop.create_future()
        self._watch: Watch | None = None
        self._started = self._ended = 0
        self._killed = False
        self._short_reads = 0

    @property
    def first_process(self) -> int:
        """The id, out here, of the first process in its pid namespace."""
        return self._first

    @property
    def elapsed(self) -> int:
        """Nanoseconds since the program started, until it ended."""
        if not self._started:
            return 0
        return (self._ended or time.monotonic_ns()) - self._started

    def begin(self) -> None:
        """Its clock starts."""
        self._started = time.monotonic_ns()

    @abstractmethod
    async def go(self) -> None:
        """Start the program."""

    @abstractmethod
    def out(self) -> tuple[int, str]:
        """What came out: an open folder, and the name of the folder below it."""

    def take(self, target: Path) -> None:
        """Copy what came out to `target`, an empty folder. DiskFull where it is more than the task may leave."""
        copy_out(*self.out(), target, files=most_files(self._resources), size=self._resources.disk)

    async def wait(self, deadline: int, reason: str) -> tuple[int, Over | None]:
        """Until it ended: its exit status (128 + the signal that killed it), and why it did not exit by itself.

        It is ended `deadline` nanoseconds after its start, with `reason`.
        """
        assert self._watch is not None
        over = None
        ends: list[asyncio.Future[Any]] = [self._status, self._over]
        while not self._status.done():
            left = deadline - self.elapsed
            if over is None and left <= 0:
                over = Over("time", reason)
            elif over is None and self._over.done():
                over = self._over.result()
            if over is not None:
                self.kill()
                break
            seconds = min(self._watch.tick, left / 1e9)
            done, _ = await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            over = None if done else self._watch.check()
        status = await asyncio.shield(self._status)
        await asyncio.wait(self._drained)
        if over is None and self._over.done():
            over = self._over.result()
        return status, over or (None if self._killed else await self.explain(status))

    async def explain(self, status: int) -> Over | None:
        """Why a program that ended by itself did so, where a bound was the reason."""
        return self._watch.explain(status) if self._watch is not None else None

    def end(self, ended: str, reason: str) -> None:
        """End it: `wait` then says this."""
        if not self._over.done():
            self._over.set_result(Over(ended, reason))

    @abstractmethod
    def ask(self) -> bool:
        """Send the program SIGTERM; False where it cannot be found."""

    def kill(self) -> None:
        """End everything of it, now."""
        self._killed = True
        handle = self._handle if self._handle >= 0 else self._waiting
        if handle >= 0 and not self._status.done():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)

    async def close(self) -> None:
        """End what still runs, and give everything back."""
        if self._waiting >= 0 and not self._status.done():
            self.kill()
            await asyncio.shield(self._status)
        for descriptor in self._open:
            self._loop.remove_reader(descriptor)
            os.close(descriptor)
        self._open.clear()

    def start(
        self, command: Sequence[str], stdin: Path | None, files: Mapping[int, int], variables: Mapping[str, str]
    ) -> None:
        """Start the child that starts the program, with these further open files and this environment, and hear it."""
        source = os.open(stdin or os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        (out, out_in), (log, log_in) = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
        self._open |= {out, log}
        try:
            self._child = spawn(command, {0: source, 1: out_in, 2: log_in, **files}, variables)
        finally:
            for descriptor in (source, out_in, log_in):
                os.close(descriptor)
        self._waiting = self.keep(os.pidfd_open(self._child))
        self._loop.add_reader(self._waiting, self._reap)
        for descriptor, take in ((out, self._take_output), (log, self._take_log)):
            os.set_blocking(descriptor, False)
            drained = self._loop.create_future()
            self._drained.append(drained)
            self._loop.add_reader(descriptor, self._read, descriptor, take, drained)

    def keep(self, descriptor: int) -> int:
        """Close this with the box."""
        self._open.add(descriptor)
        return descriptor

    def keep_folder(self, name: str) -> int:
        """A folder as the first process in the box sees it, open."""
        path = f"/proc/{self._first}/root/{name}"
        return self.keep(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))

    def _reap(self) -> None:
        self._loop.remove_reader(self._waiting)
        self._ended = self._ended or time.monotonic_ns()
        _, status = os.waitpid(self._child, 0)
        code = os.waitstatus_to_exitcode(status)
        self._status.set_result(code if code >= 0 else 128 - code)

    def _read(self, descriptor: int, take: Reader, drained: asyncio.Future[None]) -> None:
        try:
            data = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            return
        if data:
            if pause := max(take(data), self._pause_after(data)):
                self._loop.remove_reader(descriptor)
                self._loop.call_later(pause, self._resume, descriptor, take, drained)
            return
        self._loop.remove_reader(descriptor)
        drained.set_result(None)

    def _pause_after(self, data: bytes) -> float:
        """Seconds: a program that writes byte by byte, slower than it is read, would cost a wake-up for each."""
        self._short_reads += len(data) < _SHORT
        return _SHORT_PAUSE if len(data) < _SHORT and self._short_reads > _SHORT_READS else 0

    def _resume(self, descriptor: int, take: Reader, drained: asyncio.Future[None]) -> None:
        if descriptor in self._open:
            self._loop.add_reader(descriptor, self._read, descriptor, take, drained)

    def _take_output(self, data: bytes) -> float:
        if self._echo:
            return self._take_log(data)
        if not self._over.done():
            self.stdout += data
            if len(self.stdout) > STDOUT_LIMIT:
                del self.stdout[STDOUT_LIMIT:]
                self.end("output", f"more than {STDOUT_LIMIT} bytes of standard output")
        return 0

    def _take_log(self, data: bytes) -> float:
        self._log(data)
        return len(data) / LOG_RATE if len(data) == _CHUNK else 0


def spawn(command: Sequence[str], files: Mapping[int, int], variables: Mapping[str, str]) -> int:
    """Start a process that has these open files (its number: ours) and no others, with this environment, in a process
    group of its own. OSError."""
    # Python opens no file that a child would have too, but whoever started this process may have. To close one that is
    # closed already is no error.
    there = set(map(int, os.listdir("/proc/self/fd")))
    # Above the numbers they get, so that none is written over before it was taken.
    high = {target: fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, 64) for target, source in files.items()}
    closed = [(os.POSIX_SPAWN_CLOSE, descriptor) for descriptor in there - files.keys() - set(high.values())]
    try:
        return os.posix_spawn(
            command[0],
            list(command),
            variables,
            file_actions=[*closed, *((os.POSIX_SPAWN_DUP2, source, target) for target, source in high.items())],
            setpgroup=0,
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM],
        )
    finally:
        for descriptor in high.values():
            os.close(descriptor)
