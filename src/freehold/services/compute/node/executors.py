"""A node's executors: which of them work, what they advertise, and which one runs a task.

Each is probed at the start, all at once and in the background: the node is up at once, and a task that comes meanwhile
waits for the probe of its executor. One that fails is probed again before it is offered again, at growing intervals.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress

from freehold.protocol.errors import FreeholdError, Refused, Unavailable
from freehold.services.compute.executors.seam import Capability, Executor
from freehold.services.compute.tasks import Task, pinned_engine

log = logging.getLogger(__name__)

PROBE_SECONDS = 120.0  # for one probe
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 300.0  # until an executor that does not work is probed again

_UNPROBED = Capability(False, "it has not been probed yet", {})


class Executors:
    """The executors that the operator enabled."""

    def __init__(self, executors: Sequence[Executor]) -> None:
        self._executors = {executor.name: executor for executor in executors}
        self._found: dict[str, Capability] = dict.fromkeys(self._executors, _UNPROBED)
        self._probes: dict[str, asyncio.Task[None]] = {}
        self._probed = {name: asyncio.Event() for name in self._executors}

    def start(self) -> None:
        """Probe all of them in the background."""
        for name in self._executors:
            self._probes[name] = asyncio.create_task(self._probe(name), name=f"probe of {name}")

    async def stop(self) -> None:
        """End whatever runs."""
        for task in self._probes.values():
            task.cancel()
        await asyncio.gather(*self._probes.values(), return_exceptions=True)
        for executor in self._executors.values():
            with suppress(FreeholdError, OSError):
                await executor.stop()

    async def _probe(self, name: str) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                async with asyncio.timeout(PROBE_SECONDS):
                    found = await self._executors[name].probe()
            except (FreeholdError, OSError, TimeoutError) as error:
                found = Capability(False, f"its probe failed: {error}", {})
            if found != self._found[name]:
                log.info("executor %s %s", name, "works" if found.works else f"does not work: {found.reason}")
            self._found[name] = found
            self._probed[name].set()
            if found.works:
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def failed(self, name: str, why: str) -> None:
        """It failed at a task: not offered until a probe has worked."""
        log.warning("executor %s failed, and is probed again: %s", name, why)
        self._found[name] = Capability(False, f"it failed: {why}", {})
        probe = self._probes.get(name)
        if probe is None or probe.done():
            self._probed[name].clear()
            self._probes[name] = asyncio.create_task(self._probe(name), name=f"probe of {name}")

    def properties(self) -> dict[str, object]:
        """What is advertised: flat, as bids and `/properties` have it."""
        found: dict[str, object] = {}
        for name, capability in self._found.items():
            found[f"executor.{name}"] = capability.works
            if capability.works:
                found |= capability.properties
        return found

    def reasons(self) -> Mapping[str, str]:
        """Why executors do not work, by name."""
        return {name: capability.reason for name, capability in self._found.items() if not capability.works}

    async def find(self, task: Task, patience: float = PROBE_SECONDS) -> Executor:
        """The executor of a task. Refused, saying what there is, where none runs exactly what it names; Unavailable
        where it is being probed for `patience` seconds more."""
        name = task.executor
        if name not in self._executors:
            there = ", ".join(sorted(self._executors)) or "none"
            raise Refused(f"this node offers no executor {name!r}", hint=f"It offers: {there}.", executors=there)
        try:
            if not self._probed[name].is_set():
                await asyncio.wait_for(self._probed[name].wait(), patience)
        except TimeoutError:
            raise Unavailable(f"executor {name!r} is being probed", retry_after=math.ceil(FIRST_PAUSE)) from None
        capability = self._found[name]
        if not capability.works:
            raise Refused(f"executor {name!r} does not work here: {capability.reason}")
        own = str(capability.properties.get(f"executor.{name}.engine", ""))
        wanted = pinned_engine(task) or (own if task.kind == "python" else "")
        if wanted != own and (wanted or name == "wasm"):
            raise Refused(f"the task is for the engine {wanted!r}, executor {name!r} is {own!r} here", engine=own)
        return self._executors[name]
