"""A program in a container of podman.

`podman init` makes the container's namespaces, mounts and cgroup, with its first process waiting; its file systems are
opened from out here then, and `podman start --attach` starts the program and passes on what it writes.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import gettempdir

from freehold.protocol.errors import InvalidInput, Unavailable
from freehold.services.compute.executors.bounds import Over, Watch
from freehold.services.compute.executors.cgroups import find_counters
from freehold.services.compute.executors.process import Box
from freehold.services.compute.tasks import Resources

ANSWER_LIMIT = 600.0  # seconds for one call of podman: pulling an image is the longest
_MESSAGE = 500  # letters of what podman says when it fails
_UNUSABLE = (
    ': exec: "'  # how runtimes say that it is the image's program that they cannot start: podman has no code for it
)
_PASSED_ON = (
    "PATH",
    "HOME",
    "TMPDIR",
    "XDG_RUNTIME_DIR",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "DBUS_SESSION_BUS_ADDRESS",
)


class Podman:
    """podman, with the options that work here. Unavailable where it is not installed."""

    def __init__(self, options: Sequence[str]) -> None:
        program = shutil.which("podman")
        if program is None:
            raise Unavailable("podman is not installed", hint="Debian and Ubuntu: apt install podman runc")
        self.command = (program, *options)
        self.environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}

    async def ask(self, *words: str) -> str:
        """What it prints. Unavailable, with its own words, where it fails."""
        code, said, complaint = await self._call(words)
        if code:
            reason = complaint.strip().splitlines()[-1:] or [f"it ended with status {code}"]
            raise Unavailable(f"podman {words[0]} failed: {reason[0][:_MESSAGE]}")
        return said.strip()

    async def tells(self, *words: str) -> bool:
        """Whether it ends with status 0."""
        return (await self._call(words))[0] == 0

    async def _call(self, words: Sequence[str]) -> tuple[int, str, str]:
        child = await asyncio.create_subprocess_exec(
            *self.command,
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self.environment,
            cwd=gettempdir(),  # conmon leaves a file "oom" where it was started
            process_group=0,
        )
        try:
            async with asyncio.timeout(ANSWER_LIMIT):
                said, complaint = await child.communicate()
        except TimeoutError:
            raise Unavailable(f"podman {words[0]} did not end within {ANSWER_LIMIT:.0f} s") from None
        finally:
            if child.returncode is None:
                with suppress(ProcessLookupError):
                    child.kill()
                await child.wait()
        return child.returncode or 0, said.decode(errors="replace"), complaint.decode(errors="replace")


class Container(Box):
    """A run under podman. `is_counted`: a cgroup of its own holds it."""

    def __init__(self, podman: Podman, resources: Resources, log: Callable[[bytes], None], echo: bool = False) -> None:
        super().__init__(resources, log, echo)
        self._podman = podman
        self._identity = ""
        self._stdin: Path | None = None
        self._out = -1
        self.is_counted = False

    async def launch(self, options: Sequence[str], stdin: Path | None) -> None:
        """Set everything up. Unavailable, with podman's own words, where that fails; InvalidInput where the
        image has no such program."""
        self._stdin = stdin
        try:
            self._identity = await self._podman.ask("create", "--quiet", *options)
        except Unavailable as error:
            if await self._podman.tells("version"):  # it works: what it was asked for is wrong
                raise InvalidInput(f"podman does not take this: {error.message}") from None
            raise
        try:
            await self._podman.ask("init", self._identity)
        except Unavailable as error:
            if _UNUSABLE in error.message:
                raise InvalidInput(f"the image's program cannot be started: {error.message}") from None
            raise
        self._first = int(await self._inspect("{{.State.Pid}}"))
        self._handle = self.keep(os.pidfd_open(self._first))
        self._out = self.keep_folder("out")
        disk = [self._out, self.keep_folder("tmp")]
        shared, processes = self.keep_folder("dev/shm"), self.keep_folder("proc")
        counters = find_counters(self._first)
        self.is_counted = counters is not None
        self._watch = Watch(self._resources, counters, disk, shared, processes)
        self._loop.add_reader(self._handle, self._note_end)

    async def go(self) -> None:
        fed = ("--interactive",) if self._stdin is not None else ()
        words = ("start", "--attach", "--sig-proxy=false", *fed, self._identity)
        self.begin()
        self.start((*self._podman.command, *words), self._stdin, {}, self._podman.environment)

    def out(self) -> tuple[int, str]:
        return self._out, "."

    async def explain(self, status: int) -> Over | None:
        # Nothing inside can kill its first process: it was the kernel, for memory. Its cgroup is gone by now, and
        # podman does not always see it.
        if status == 128 + signal.SIGKILL:
            return Over("memory", f"more than {self._resources.memory} bytes of memory")
        return await super().explain(status)

    def ask(self) -> bool:
        with suppress(OSError):
            signal.pidfd_send_signal(self._handle, signal.SIGTERM)
            return not self._status.done()
        return False

    async def close(self) -> None:
        await super().close()
        if self._identity:
            with suppress(Unavailable):
                await self._podman.ask("rm", "--force", "--ignore", "--time", "0", self._identity)

    async def _inspect(self, form: str) -> str:
        return await self._podman.ask("inspect", "--type", "container", "--format", form, self._identity)

    def _note_end(self) -> None:
        self._loop.remove_reader(self._handle)
        if self._started:
            self._ended = time.monotonic_ns()
