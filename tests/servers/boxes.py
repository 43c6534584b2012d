"""What tests of native executors share: runs in folders of their own, and what must not be left of them."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from freehold.services.compute.executors.seam import Executor, Outcome, Work
from freehold.services.compute.tasks import Resources, Task
from tests.conftest import SLOW

SMALL = Resources(processors=1, memory=64 * 2**20, disk=2**20, seconds=20, processes=16)
MOST = 400_000_000  # nanoseconds: far more than a trick needs, far less than a test may take
PATIENT = int(10e9 * SLOW)  # for programs that come to their end by themselves
LIMIT = 30 * SLOW
MISSING = "not run: bubblewrap is not installed (apt install bubblewrap)"
MARK = "FREEHOLD_TEST_RUN"


_made: list[str] = []  # names of the folders of this process's runs


class Ran(NamedTuple):
    """A run: what came of it, what it logged, and its folder."""

    outcome: Outcome
    log: bytes
    folder: Path

    @property
    def text(self) -> str:
        """What it wrote to its standard output."""
        return self.outcome.stdout.decode(errors="replace")

    def files(self) -> dict[str, bytes]:
        """What came out, by path."""
        out = self.folder / "out"
        return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def native(*arguments: str, resources: Resources = SMALL, environment: Mapping[str, str] | None = None) -> Task:
    """A task that runs a program of the root."""
    pairs = tuple((environment or {}).items())
    return Task(executor="sandbox", kind="native", arguments=arguments, resources=resources, environment=pairs)


def make_work(folder: Path, task: Task, most: int = PATIENT, program: Path | None = None, stdin: bytes = b"") -> Work:
    """Work in a new folder below this one. What it logs is in `log` beside it."""
    work = folder / f"run-{uuid.uuid4().hex[:8]}"
    _made.append(work.name)
    for part in ("in", "out"):
        (work / part).mkdir(parents=True)
    (work / "in" / "given").write_text("an input")
    source = work / "stdin" if stdin else None
    if source is not None:
        source.write_bytes(stdin)
    log = work / "log"

    def note(data: bytes) -> None:
        with log.open("ab") as file:
            file.write(data[: 2**16])

    return Work(task, program, source, work, most, note)


def has_logged(work: Path, text: bytes) -> bool:
    """Whether the run in this folder has logged this."""
    log = work / "log"
    return log.exists() and text in log.read_bytes()


def run(executor: Executor, work: Work) -> Ran:
    """Run to the end."""
    outcome = asyncio.run(executor.run(work))
    log = work.folder / "log"
    return Ran(outcome, log.read_bytes() if log.exists() else b"", work.folder)


async def wait_for(condition: Callable[[], bool]) -> None:
    """Wait for a condition that nothing tells of: what happens in another process."""
    async with asyncio.timeout(LIMIT):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


class Traces:
    """What this process has, before and after its runs: children, open files, mounts and cgroups with anything in
    them (a few empty ones are kept for further runs)."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self._before = self._look()

    def assert_none(self) -> None:
        """Nothing of what ran since is left."""
        for kind, found in self._look().items():
            assert found == self._before[kind], kind
        assert not self._marked(), "processes of the run are left"

    def _look(self) -> dict[str, object]:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        return {
            "children": _children(),
            "files": len(os.listdir("/proc/self/fd")),
            "mounts": [line for line in mounts if any(name in line for name in _made)],
            "cgroups": _busy_cgroups(),
        }

    def _marked(self) -> list[str]:
        """Processes, anywhere on this machine, whose environment is that of the run."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if f"{MARK}={self.mark}".encode() in (process / "environ").read_bytes():
                    found.append(process.name)
            except OSError:
                continue
        return found


def _children() -> set[int]:
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.add(int(stat.parent.name))
    return found


def _busy_cgroups() -> list[str]:
    """This process's cgroups with anything in them. Others' come and go meanwhile, which `os.walk` does not mind."""
    own = f"freehold-{os.getpid()}-"
    found = [folder for folder, _, _ in os.walk("/sys/fs/cgroup") if os.path.basename(folder).startswith(own)]
    return [folder for folder in found if _holds(folder)]


def _holds(folder: str) -> bool:
    try:
        return bool(Path(folder, "cgroup.procs").read_bytes())
    except OSError:
        return False  # it has gone
