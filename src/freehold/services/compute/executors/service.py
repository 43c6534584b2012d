"""The service executor: programs that go on and answer on a port, until their order is used up or they are stopped.

The program runs in the sandbox or a container, with a network of its own in which there is nothing but itself: it can
talk to nobody, and only its node can talk to it, through `service_relay.py`. Its health is asked for by HTTP; where it
does not answer, or ends, it is started again, after a pause that doubles. Only the time that it runs is billed.

Invariant: while `run` goes on, the port is reached by `socket`, or `status` says why not; afterwards nothing is left.
"""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from freehold.protocol.errors import InvalidInput, NotFound, Unavailable
from freehold.services.compute.executors.bounds import Over
from freehold.services.compute.executors.container import ContainerExecutor
from freehold.services.compute.executors.process import Box, spawn
from freehold.services.compute.executors.runs import Run, Runs
from freehold.services.compute.executors.sandbox import SandboxExecutor
from freehold.services.compute.executors.seam import Capability, Outcome, Work
from freehold.services.compute.executors.service_health import is_healthy
from freehold.services.compute.tasks import Service

PORT = 8080  # where the task leaves the choice to us
START_SECONDS = 60.0  # for a program to answer for the first time
FIRST_CHECK = 0.05  # seconds, doubling to the service's own, until it has answered once
LEAST_EVERY = 0.1
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 30.0  # before it is started again
STARTS_LIMIT = 6  # starts in a row that never became healthy, after which it has failed
RELAY_SECONDS = 20.0
_MESSAGE = 4096
_RELAY = Path(__file__).with_name("service_relay.py")

State = Literal["starting", "healthy", "unhealthy", "waiting", "ended"]


class ServiceStatus(NamedTuple):
    """How a service does. `restarts`: how often it was started again; `reason`: why, the last time."""

    state: State
    healthy: bool
    restarts: int
    reason: str


class _Going(Run):
    """A service's run, over all of its boxes."""

    def __init__(self, work: Work, service: Service) -> None:
        super().__init__(work)
        self.service = service
        self.port = service.port or PORT
        self.folder = Path(tempfile.mkdtemp(prefix="fh-"))  # a socket's path has at most 107 bytes
        self.socket = self.folder / "port"
        self.state: State = "starting"
        self.restarts = 0
        self.reason = ""


class ServiceExecutor(Runs):
    """Runs services in the sandbox, which is the node's where it is given, and in containers, where these are given."""

    name = "service"

    def __init__(
        self,
        settings: Mapping[str, Any] | None = None,
        sandbox: SandboxExecutor | None = None,
        container: ContainerExecutor | None = None,
    ) -> None:
        super().__init__()
        self._sandbox = sandbox or SandboxExecutor(settings)
        self._container = container
        self._takes_images = False
        self._going: dict[Path, _Going] = {}

    async def find_out(self) -> Capability:
        """Whether the sandbox holds, and what listens in it is reached."""
        found = await self._sandbox.known()
        if not found.works:
            return found
        self._takes_images = self._container is not None and (await self._container.known()).works
        kinds = ["native", *(["image"] if self._takes_images else [])]
        bounds = found.properties.get("executor.sandbox.bounds", "")
        return Capability(True, "", {"executor.service.kinds": kinds, "executor.service.bounds": bounds})

    async def run(self, work: Work) -> Outcome:
        """See the seam: until what was ordered is used up, its time is over, it is stopped, or it does not start."""
        task = work.task
        try:
            if task.service is None or task.network:
                raise InvalidInput("a service has a network of its own, and no other")
            if task.kind == "image" and not self._takes_images:
                raise InvalidInput("this node runs no images")
            going = _Going(work, _check(task.service))
        except InvalidInput as error:
            return Outcome("refused", 0, b"", 0, error.message)
        self._runs[work.folder] = self._going[work.folder] = going
        try:
            return await self._run(going)
        except InvalidInput as error:
            return Outcome("refused", 0, b"", going.measure(), error.message)
        finally:
            going.state = "ended"
            del self._runs[work.folder], self._going[work.folder]
            shutil.rmtree(going.folder, ignore_errors=True)

    def status(self, folder: Path) -> ServiceStatus:
        """How the service that runs in this folder does. NotFound."""
        going = self._find(folder)
        return ServiceStatus(going.state, going.state == "healthy", going.restarts, going.reason)

    def socket(self, folder: Path) -> Path:
        """The UNIX socket that reaches its port. NotFound; Unavailable while it is not up."""
        going = self._find(folder)
        if not going.socket.exists():
            raise Unavailable(f"the service is not up just now: {going.reason or going.state}")
        return going.socket

    async def connect(self, folder: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to its port. NotFound; Unavailable while it is not up."""
        try:
            return await asyncio.open_unix_connection(str(self.socket(folder)))
        except OSError as error:
            raise Unavailable(f"the service is not up just now: {error}") from None

    def _find(self, folder: Path) -> _Going:
        going = self._going.get(folder)
        if going is None:
            raise NotFound("no service runs there")
        return going

    async def _run(self, going: _Going) -> Outcome:
        starts = 0  # in a row, without an answer
        while True:
            ended, over, answered = await self._run_once(going)
            if going.stopping.is_set():
                return Outcome("stopped", 0, b"", going.measured, "it was stopped")
            if over is not None and over.ended == "time":
                return Outcome("time", 0, b"", going.measured, over.reason)
            starts = 1 if answered else starts + 1
            going.reason = over.reason if over is not None else f"it ended with status {ended}"
            if starts >= STARTS_LIMIT:
                return Outcome("failed", 0, b"", going.measured, f"it did not become healthy: {going.reason}")
            going.state = "waiting"
            pause = min(FIRST_PAUSE * 2 ** (starts - 1), LONGEST_PAUSE)
            with suppress(TimeoutError):
                await asyncio.wait_for(going.stopping.wait(), pause)
                return Outcome("stopped", 0, b"", going.measured, "it was stopped")
            going.restarts += 1
            going.state = "starting"

    async def _run_once(self, going: _Going) -> tuple[int, Over | None, bool]:
        """One start, to its end: the exit status, why it did not exit by itself, and whether it ever was healthy."""
        opener = self._container if self._container and going.work.task.kind == "image" else self._sandbox
        task = msgspec.structs.replace(
            going.work.task, environment=(*going.work.task.environment, ("PORT", str(going.port)))
        )
        box = going.box = await opener.open_box(going.work._replace(task=task), echo=True)
        answered = asyncio.Event()
        checks: asyncio.Task[None] | None = None
        relay: _Relay | None = None
        try:
            relay = _Relay(box, going)
            await relay.wait_ready()
            if going.stopping.is_set():
                return 0, None, False
            await box.go()
            checks = asyncio.create_task(_check_health(going, box, answered))
            ended, over = await box.wait(*going.deadline())
            return ended, over, answered.is_set()
        finally:
            going.state = "unhealthy"
            if checks is not None:
                checks.cancel()
            await asyncio.shield(asyncio.ensure_future(_close(going, box, relay)))


async def _close(going: _Going, box: Box, relay: _Relay | None) -> None:
    going.socket.unlink(missing_ok=True)
    if relay is not None:
        relay.close()
    await box.close()
    going.measured = going.measure()
    going.box = None


class _Relay:
    """The process that stands in a service's network: see `service_relay.py`."""

    def __init__(self, box: Box, going: _Going) -> None:
        (self._stdin, near), (self._said, far) = reversed(os.pipe2(os.O_CLOEXEC)), os.pipe2(os.O_CLOEXEC)
        words = (sys.executable, "-I", "-S", str(_RELAY), str(box.first_process), str(going.socket), str(going.port))
        try:
            self._process = spawn(words, {0: near, 1: far, 2: far}, os.environ)
        except OSError:
            os.close(self._stdin)
            os.close(self._said)
            raise
        finally:
            os.close(near)
            os.close(far)

    async def wait_ready(self) -> None:
        """Until it listens. Unavailable."""
        loop, said = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._said, said.set)
        try:
            async with asyncio.timeout(RELAY_SECONDS):
                await said.wait()
        except TimeoutError:
            raise Unavailable("the relay to the service did not start in time") from None
        finally:
            loop.remove_reader(self._said)
        words = os.read(self._said, _MESSAGE).decode(errors="replace").strip()
        if words != "listening":
            raise Unavailable(f"the relay to the service did not start: {words.splitlines()[-1:]}")

    def close(self) -> None:
        """End it."""
        os.kill(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        os.close(self._stdin)
        os.close(self._said)


async def _check_health(going: _Going, box: Box, answered: asyncio.Event) -> None:
    """Ask for its health until it is missed too often, and end it then."""
    service, misses, pause = going.service, 0, FIRST_CHECK
    while True:
        if await is_healthy(going.socket, service.health, max(service.every, 1.0)):
            going.state, misses, pause = "healthy", 0, service.every
            answered.set()
        elif answered.is_set():
            misses += 1
            if misses >= service.misses:
                going.state = "unhealthy"
                box.end("failed", f"it missed {misses} checks of its health at {service.health}")
                return
        elif box.elapsed > START_SECONDS * 1e9:
            box.end("failed", f"it did not answer at {service.health} within {START_SECONDS:.0f} s")
            return
        else:
            pause = min(2 * pause, service.every)
        await asyncio.sleep(pause)


def _check(service: Service) -> Service:
    """InvalidInput unless a service can be checked as it says; the shortest that it is checked in has a bound."""
    if not math.isfinite(service.every) or not 0 < service.every <= 3600 or service.misses < 1:
        raise InvalidInput("a service's health is asked for every few seconds, and at least one check is missed")
    if not 0 <= service.port < 2**16:
        raise InvalidInput("a port is a number below 65536")
    if not service.health.startswith("/") or not all(33 <= ord(letter) < 127 for letter in service.health):
        raise InvalidInput("a service's health is a path: it begins with a slash, and has no blanks")
    return msgspec.structs.replace(service, every=max(service.every, LEAST_EVERY))
