"""The sandbox executor: native programs under bubblewrap, as if each were alone on a machine without a network.

What a program sees is in `sandbox_command.py`, which calls it may not make in `sandbox_filter.py`, what it may use up
in `bounds.py`. Its measure is the time that it took, by as many processors as it asked for, from its start to its end.

Where a node runs as root, its programs are nobody and without any capability in the sandbox, but for the kernel they
are still that user: a node is better run by a user of its own. What lies below /usr can be read by every task.
"""

from __future__ import annotations

import asyncio
import errno
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from freehold.protocol.errors import DiskFull, InvalidInput, Unavailable
from freehold.services.compute.executors.bounds import FILES_IN_BOX, Cgroups, Group, Over, find_cgroups
from freehold.services.compute.executors.outputs import copy_out
from freehold.services.compute.executors.sandbox_command import Layout, build_command
from freehold.services.compute.executors.sandbox_filter import build_filter, is_known_machine
from freehold.services.compute.executors.sandbox_probe import probe_sandbox
from freehold.services.compute.executors.sandbox_process import GRACE, Box
from freehold.services.compute.executors.seam import Capability, Outcome, Work


class Run:
    """A run that goes on: its box once there is one, and whether it was asked to end."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.box: Box | None = None
        self.stopping = False
        self.measured = 0  # of boxes that were before this one

    def measure(self) -> int:
        """What it took so far."""
        elapsed = self.box.elapsed if self.box is not None else 0
        return min(self.measured + elapsed * self.work.task.resources.processors, self.work.most)

    def end(self) -> None:
        """Ask it to end, and see to it that it does."""
        if self.stopping:
            return
        self.stopping = True
        if self.box is not None:
            after = GRACE if self.box.ask() else 0
            asyncio.get_running_loop().call_later(after, self.box.end, "stopped", "it was stopped")


class SandboxExecutor:
    """Runs native tasks. Settings: `network` (whether a task that asks for the host's network gets it)."""

    name = "sandbox"

    def __init__(self, settings: Mapping[str, Any] | None = None) -> None:
        self._network = bool((settings or {}).get("network", False))
        self._runs: dict[Path, Run] = {}
        self._cgroups: Cgroups | None = None
        self._bubblewrap = ""
        self._guards: tuple[str, ...] = ()

    async def probe(self) -> Capability:
        """Run programs that try what they must not be able to do, and see that they are not."""
        try:
            await self._find()
            return await probe_sandbox(self, self._cgroups is not None)
        except (Unavailable, OSError) as error:
            return Capability(False, str(error), {})

    async def run(self, work: Work) -> Outcome:
        """See the seam. Unavailable where bubblewrap is missing, or fails."""
        if not self._bubblewrap:
            await self._find()
        run = self._runs[work.folder] = Run(work)
        try:
            return await self._run(run)
        except InvalidInput as error:
            return Outcome("refused", 0, b"", 0, error.message)
        finally:
            del self._runs[work.folder]

    def measure(self, folder: Path) -> int:
        """What the run in this folder took so far."""
        run = self._runs.get(folder)
        return run.measure() if run is not None else 0

    def end(self, folder: Path) -> None:
        """Ask the run in this folder to end, and kill it a little later: it then ends "stopped"."""
        run = self._runs.get(folder)
        if run is not None:
            run.end()

    async def stop(self) -> None:
        """End whatever runs, and wait until it has."""
        while self._runs:
            for run in self._runs.values():
                run.stopping = True
                if run.box is not None:
                    run.box.end("stopped", "its node stopped")
            await asyncio.sleep(0.02)

    async def open_box(self, work: Work) -> Box:
        """A box in which the work's program waits for `go`. InvalidInput, Unavailable."""
        task = work.task
        if task.network and not self._network:
            raise InvalidInput("this node gives tasks no network")
        program = None
        if work.program is not None:
            program = work.folder / "program"
            await asyncio.to_thread(_copy_program, work.program, program)
        inputs = work.folder / "in"
        inputs.mkdir(exist_ok=True)
        layout = Layout(self._bubblewrap, inputs, program, task.network, self._guards)
        group: Group | None = None
        box: Box | None = None
        try:
            group = self._cgroups.make(task.resources) if self._cgroups is not None else None
            command = build_command(task, layout, group.doors if group is not None else ())
            box = Box(task.resources, group, work.log)
            await box.launch(command, work.stdin, build_filter(group is not None))
            return box
        except BaseException as error:
            if box is not None:
                await box.close()
            elif group is not None:
                await group.remove()
            if isinstance(error, OSError):
                raise _refusal(error) from None
            raise

    async def _run(self, run: Run) -> Outcome:
        work, resources = run.work, run.work.task.resources
        box = run.box = await self.open_box(work)
        try:
            if run.stopping:
                return Outcome("stopped", 0, b"", 0, "it was stopped before it began")
            box.go()
            bought = work.most // resources.processors
            allowed = resources.seconds * 10**9
            reason = (
                f"it took longer than {resources.seconds} s" if allowed <= bought else "it used up what was ordered"
            )
            status, over = await box.wait(min(allowed, bought), reason)
            measure = run.measure()
            try:
                await asyncio.to_thread(
                    copy_out, box.folder, "out", work.folder / "out", files=FILES_IN_BOX, size=resources.disk
                )
            except DiskFull as error:
                over = over or Over("disk", error.message)
            stdout = bytes(box.stdout)
        finally:
            await asyncio.shield(asyncio.ensure_future(box.close()))
        if run.stopping:
            return Outcome("stopped", 0, stdout, measure, "it was stopped")
        if over is not None:
            return Outcome(over.ended, 0, stdout, measure, over.reason)
        return Outcome("exited", status, stdout, measure)

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


def _refusal(error: OSError) -> InvalidInput | Unavailable:
    if error.errno == errno.E2BIG:
        return InvalidInput("its arguments and its environment are longer than a process may have")
    return Unavailable(f"the sandbox could not be set up: {error}")
