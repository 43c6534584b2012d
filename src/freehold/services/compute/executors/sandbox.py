"""The sandbox executor: native programs under bubblewrap, as if each were alone on a machine without a network.

What a program sees is in `sandbox_command.py`, which calls it may not make in `sandbox_filter.py`, what it may use up
in `bounds.py`. Its measure is the time that it took, by as many processors as it asked for, from its start to its end.

Where a node runs as root, its programs are nobody and without any capability in the sandbox, but for the kernel they
are still that user: a node is better run by a user of its own. What lies below /usr can be read by every task.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from freehold.protocol.errors import InvalidInput, Unavailable
from freehold.services.compute.executors.cgroups import Cgroups, Group, find_cgroups
from freehold.services.compute.executors.runs import Runs, refusal
from freehold.services.compute.executors.sandbox_command import Layout, build_command, check_resources
from freehold.services.compute.executors.sandbox_filter import build_filter, is_known_machine
from freehold.services.compute.executors.sandbox_probe import probe_sandbox
from freehold.services.compute.executors.sandbox_process import Sandbox
from freehold.services.compute.executors.seam import Capability, Outcome, Turn, Work


class SandboxExecutor(Runs):
    """Runs native tasks. Settings: `network` (whether a task that asks for the host's network gets it)."""

    name = "sandbox"

    def __init__(self, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self._network = bool((settings or {}).get("network", False))
        self._cgroups: Cgroups | None = None
        self.is_counted = False  # whether a cgroup held the last run
        self._bubblewrap = ""
        self._guards: tuple[str, ...] = ()

    async def find_out(self) -> Capability:
        """Run programs that try what they must not be able to do, and see that they are not."""
        try:
            await self._find()
            return await probe_sandbox(self)
        except (Unavailable, OSError) as error:
            return Capability(False, str(error), {})

    async def run(self, work: Work) -> Outcome:
        """See the seam. Unavailable where bubblewrap is missing, or fails."""
        return await self.run_in_box(work, self)

    async def run_in_turn(self, work: Work, turn: Turn) -> Outcome:
        """See the seam."""
        return await self.run_in_box(work, self, turn)

    async def open_box(self, work: Work, echo: bool = False) -> Sandbox:
        """See `runs.BoxOpener`. `echo`: its standard output goes to the log too."""
        if not self._bubblewrap:
            await self._find()
        task = work.task
        if task.network and not self._network:
            raise InvalidInput("this node gives tasks no network")
        program = None
        if work.program is not None:
            program = work.folder / "program"
            await asyncio.to_thread(_copy_program, work.program, program)
        inputs = work.folder / "in"
        inputs.mkdir(exist_ok=True)
        check_resources(task.resources)
        layout = Layout(self._bubblewrap, inputs, program, task.network, self._guards)
        group: Group | None = None
        box: Sandbox | None = None
        try:
            group = self._cgroups.make(task.resources) if self._cgroups is not None else None
            command = build_command(task, layout, group.doors if group is not None else ())
            box = Sandbox(task.resources, group, work.log, echo)
            await box.launch(command, work.stdin, build_filter(group is not None))
            self.is_counted = group is not None
            return box
        except BaseException as error:
            if box is not None:
                await box.close()
            elif group is not None:
                await group.remove()
            if isinstance(error, OSError):
                raise refusal(error) from None
            raise

    async def _find(self) -> None:
        found = shutil.which("bwrap", path="/usr/local/bin:/usr/bin:/bin") or shutil.which("bwrap")
        if found is None:
            raise Unavailable("bubblewrap is not installed", hint="Debian and Ubuntu: apt install bubblewrap")
        if not is_known_machine():
            raise Unavailable("there is no filter of system calls for this machine's processor")
        said = await asyncio.create_subprocess_exec(found, "--help", stdout=asyncio.subprocess.PIPE)
        text, _ = await said.communicate()
        self._guards = ("--disable-userns",) if b"--disable-userns" in text else ()
        self._cgroups = await asyncio.to_thread(find_cgroups)
        self._bubblewrap = found


def _copy_program(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755)
