"""One program in its sandbox: started, held to its bounds, heard, and ended with all that it started.

    launch()  bubblewrap sets everything up, and its shell says so; only then is the run's file system opened from here
    go()      the program starts, and so does its clock
    wait()    until it ends by itself, or a bound, a limit of output, a deadline or the caller ends it

Everything of a run is in one pid namespace, whose first process is killed to end it: the kernel then kills the rest,
and bubblewrap ends only when nothing is left. The run's file system, in memory, stays open here until `close`.

Invariant: after `close`, no process, open file or cgroup of the run is left, however it went.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from freehold.protocol.errors import Unavailable
from freehold.services.compute.executors.bounds import Group, Over, Watch
from freehold.services.compute.executors.sandbox_command import CONTROL, FILTER, HOST_ENVIRONMENT, INFO
from freehold.services.compute.tasks import Resources

STDOUT_LIMIT = 16 * 2**20  # bytes of standard output, which is part of the result
LOG_RATE = 16 * 2**20  # bytes a second that are taken from standard error: a program that floods it waits
START_LIMIT = 30.0  # seconds until bubblewrap has set everything up
TICK = 0.1  # seconds between looks at its bounds
GRACE = 2.0  # seconds between asking it to end and killing it
_CHUNK = 2**16
_MESSAGE = 4096  # bytes of what bubblewrap says when it fails


class Box:
    """A run. `stdout` is what the program wrote to its standard output so far."""

    def __init__(self, resources: Resources, group: Group | None, log: Callable[[bytes], None]) -> None:
        self._resources = resources
        self._group = group
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._open: set[int] = set()
        self._bubblewrap = self._first = 0  # process ids
        self._waiting = self._handle = -1  # their pidfds
        self._control: socket.socket | None = None
        self._status: asyncio.Future[int] = self._loop.create_future()
        self._drained: list[asyncio.Future[None]] = []
        self._over: asyncio.Future[Over] = self._loop.create_future()
        self._watch: Watch | None = None
        self._started = self._ended = 0
        self._killed = False
        self.folder = -1  # the root of its own file system, open: "out" and "tmp" are in it
        self.stdout = bytearray()

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

    async def launch(self, command: Sequence[str], stdin: Path | None, rules: bytes) -> None:
        """Set everything up. Unavailable, with bubblewrap's own words, where that fails."""
        said = bytearray()
        log, self._log = self._log, said.extend
        info = self._spawn(command, stdin, rules)
        assert self._control is not None
        ready = asyncio.ensure_future(self._loop.sock_recv(self._control, 1))
        try:
            async with asyncio.timeout(START_LIMIT):
                await asyncio.wait([ready, self._status], return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            raise _failure(said) from None
        finally:
            ready.cancel()
        if not (ready.done() and not ready.cancelled() and ready.exception() is None and ready.result()):
            await asyncio.wait([self._status, *self._drained], timeout=START_LIMIT)
            raise _failure(said)
        self._first = int(json.loads(os.read(info, _MESSAGE))["child-pid"])
        self._handle = self._keep(os.pidfd_open(self._first))
        root = f"/proc/{self._first}/root"
        self.folder = self._keep(os.open(f"{root}/box", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        processes = self._keep(os.open(f"{root}/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        self._watch = Watch(self._resources, self._group, self.folder, processes)
        self._log = log

    def go(self) -> None:
        """Start the program."""
        assert self._control is not None
        self._started = time.monotonic_ns()
        self._control.send(b"go\n")

    async def wait(self, deadline: int, reason: str) -> tuple[int, Over | None]:
        """Until it ended: its exit status (128 + the signal that killed it), and why it did not exit by itself.

        It is ended `deadline` nanoseconds after its start, with `reason`.
        """
        assert self._watch is not None
        over = None
        while not self._status.done():
            left = deadline - self.elapsed
            if left <= 0:
                over = Over("time", reason)
            elif self._over.done():
                over = self._over.result()
            else:
                over = self._watch.check()
            if over is not None:
                break
            await asyncio.wait(
                [self._status, self._over] if not self._over.done() else [self._status],
                timeout=min(TICK, left / 1e9),
                return_when=asyncio.FIRST_COMPLETED,
            )
        if over is not None:
            self.kill()
        status = await asyncio.shield(self._status)
        await asyncio.wait(self._drained)
        if over is None and self._over.done():
            over = self._over.result()
        return status, over or (None if self._killed else self._watch.explain(status))

    def end(self, ended: str, reason: str) -> None:
        """Ask the program to end, and kill it after a while: `wait` then says this."""
        if not self._over.done():
            self._over.set_result(Over(ended, reason))

    def ask(self) -> bool:
        """Send the program SIGTERM; False where it cannot be found."""
        with suppress(OSError, ValueError):
            children = Path(f"/proc/{self._first}/task/{self._first}/children").read_text().split()
            program = os.pidfd_open(int(children[0]))
            try:
                signal.pidfd_send_signal(program, signal.SIGTERM)
                return not self._status.done()
            finally:
                os.close(program)
        return False

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
        if self._control is not None:
            self._control.close()
        if self._group is not None:
            await self._group.remove()

    def _spawn(self, command: Sequence[str], stdin: Path | None, rules: bytes) -> int:
        """Start bubblewrap; the reading end of what it says of itself."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._control = ours
        source = os.open(stdin or os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        ends = [os.pipe2(os.O_CLOEXEC) for _ in range(4)]
        (out, out_in), (log, log_in), (info, info_in), (filtered, filter_in) = ends
        os.write(filter_in, rules)  # a thousand bytes: a pipe holds them
        os.close(filter_in)
        try:
            files = {0: source, 1: out_in, 2: log_in, CONTROL: theirs.fileno(), INFO: info_in, FILTER: filtered}
            self._bubblewrap = spawn(command, files, HOST_ENVIRONMENT)
        except OSError:
            for descriptor in (out, log, info):
                os.close(descriptor)
            raise
        finally:
            theirs.close()
            for descriptor in (source, out_in, log_in, info_in, filtered):
                os.close(descriptor)
        self._waiting = self._keep(os.pidfd_open(self._bubblewrap))
        self._loop.add_reader(self._waiting, self._reap)
        for descriptor, take in ((out, self._take_output), (log, self._take_log)):
            os.set_blocking(descriptor, False)
            drained = self._loop.create_future()
            self._drained.append(drained)
            self._loop.add_reader(self._keep(descriptor), self._read, descriptor, take, drained)
        return self._keep(info)

    def _keep(self, descriptor: int) -> int:
        self._open.add(descriptor)
        return descriptor

    def _reap(self) -> None:
        self._loop.remove_reader(self._waiting)
        self._ended = time.monotonic_ns()
        _, status = os.waitpid(self._bubblewrap, 0)
        code = os.waitstatus_to_exitcode(status)
        if not self._status.done():
            self._status.set_result(code if code >= 0 else 128 - code)

    def _read(self, descriptor: int, take: Callable[[bytes], float], drained: asyncio.Future[None]) -> None:
        try:
            data = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            return
        if data:
            if pause := take(data):
                self._loop.remove_reader(descriptor)
                self._loop.call_later(pause, self._resume, descriptor, take, drained)
            return
        self._loop.remove_reader(descriptor)
        if not drained.done():
            drained.set_result(None)

    def _resume(self, descriptor: int, take: Callable[[bytes], float], drained: asyncio.Future[None]) -> None:
        if descriptor in self._open:
            self._loop.add_reader(descriptor, self._read, descriptor, take, drained)

    def _take_output(self, data: bytes) -> float:
        if self._over.done():
            return 0
        self.stdout += data
        if len(self.stdout) > STDOUT_LIMIT:
            del self.stdout[STDOUT_LIMIT:]
            self.end("output", f"more than {STDOUT_LIMIT} bytes of standard output")
        return 0

    def _take_log(self, data: bytes) -> float:
        self._log(data)
        return len(data) / LOG_RATE


def _failure(said: bytes) -> Unavailable:
    words = bytes(said[:_MESSAGE]).decode(errors="replace").strip()
    return Unavailable(f"the sandbox could not be set up: {words or 'it did not say why'}")


def spawn(command: Sequence[str], files: Mapping[int, int], environment: Mapping[str, str]) -> int:
    """Start a process that has these open files (its number: ours) and no others, in a process group of its own."""
    # Above the numbers they get, so that none is written over before it was taken.
    high = {target: fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, 64) for target, source in files.items()}
    try:
        return os.posix_spawn(
            command[0],
            command,
            environment,
            file_actions=[(os.POSIX_SPAWN_DUP2, source, target) for target, source in high.items()],
            setpgroup=0,
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM],
        )
    finally:
        for descriptor in high.values():
            os.close(descriptor)
