"""A program in bubblewrap's sandbox.

Bubblewrap sets everything up, and the shell in it says so and waits. Only then are the run's own file systems opened
from out here, and only then does the program start, and its clock.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from freehold.protocol.errors import Unavailable
from freehold.services.compute.executors.bounds import Watch
from freehold.services.compute.executors.cgroups import Group
from freehold.services.compute.executors.process import Box
from freehold.services.compute.executors.sandbox_command import CONTROL, FILTER, HOST_ENVIRONMENT, INFO
from freehold.services.compute.tasks import Resources

START_LIMIT = 30.0  # seconds until bubblewrap has set everything up
_MESSAGE = 4096  # bytes of what bubblewrap says, of itself or when it fails


class Sandbox(Box):
    """A run under bubblewrap."""

    def __init__(
        self, resources: Resources, group: Group | None, log: Callable[[bytes], None], echo: bool = False
    ) -> None:
        super().__init__(resources, log, echo)
        self._group = group
        self._control, self._far = socket.socketpair()
        self._control.setblocking(False)
        self._folder = -1

    async def launch(self, command: Sequence[str], stdin: Path | None, rules: bytes) -> None:
        """Set everything up. Unavailable, with bubblewrap's own words, where that fails; OSError where it cannot even
        be started."""
        said = bytearray()
        log, self._log = self._log, said.extend
        info = self._start(command, stdin, rules)
        ready = asyncio.ensure_future(self._loop.sock_recv(self._control, 1))
        either: list[asyncio.Future[Any]] = [ready, self._status]
        try:
            await asyncio.wait(either, timeout=START_LIMIT, return_when=asyncio.FIRST_COMPLETED)
            is_ready = ready.done() and ready.exception() is None and ready.result() != b""
        finally:
            ready.cancel()
        if not is_ready:
            self.kill()
            ends: list[asyncio.Future[Any]] = [self._status, *self._drained]
            await asyncio.wait(ends)
            words = bytes(said[:_MESSAGE]).decode(errors="replace").strip()
            raise Unavailable(f"the sandbox could not be set up: {words or 'it did not say why'}")
        self._first = int(json.loads(os.read(info, _MESSAGE))["child-pid"])
        self._handle = self.keep(os.pidfd_open(self._first))
        self._folder = self.keep_folder("box")
        shared, processes = self.keep_folder("dev/shm"), self.keep_folder("proc")
        self._watch = Watch(self._resources, self._group, [self._folder], shared, processes)
        self._log = log

    async def go(self) -> None:
        self.begin()
        self._control.send(b"go\n")

    def out(self) -> tuple[int, str]:
        return self._folder, "out"

    def ask(self) -> bool:
        with suppress(OSError, IndexError):
            children = Path(f"/proc/{self._first}/task/{self._first}/children").read_text().split()
            program = os.pidfd_open(int(children[0]))
            try:
                signal.pidfd_send_signal(program, signal.SIGTERM)
                return not self._status.done()
            finally:
                os.close(program)
        return False

    async def close(self) -> None:
        await super().close()
        self._control.close()
        self._far.close()
        if self._group is not None:
            await self._group.remove()

    def _start(self, command: Sequence[str], stdin: Path | None, rules: bytes) -> int:
        """The reading end of what bubblewrap says of itself."""
        (info, info_in), (filtered, filter_in) = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
        self.keep(info)
        try:
            os.write(filter_in, rules)  # a thousand bytes: a pipe holds them
            os.close(filter_in)
            files = {CONTROL: self._far.fileno(), INFO: info_in, FILTER: filtered}
            self.start(command, stdin, files, HOST_ENVIRONMENT)
        finally:
            self._far.close()
            os.close(info_in)
            os.close(filtered)
        return info
