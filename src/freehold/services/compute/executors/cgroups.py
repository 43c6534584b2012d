"""Cgroups: one for each run, in which the kernel holds it to its memory, its tasks and its processors.

Version 1 and version 2 have the same bounds under other names. Where a cgroup of this process may have cgroups below is
found out by making one. None is used twice: what a run left to be counted would be held against the next.

Invariant: a run begins in a cgroup in which nothing is; what a run leaves in its cgroup is killed. One that a killed
node left behind goes when the next one looks.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from contextlib import suppress
from pathlib import Path

from freehold.services.compute.tasks import Resources

CONTROLLERS = ("memory", "pids")  # without both of them there is nothing to gain
LEAST_MEMORY = 16 * 2**20  # what the sandbox itself needs to start
OWN_TASKS = 3  # of what sets a run up: bubblewrap's two processes, and one that it has for a moment
_PREFIX = "freehold-"
_OWN = "freehold.node"  # where this process goes, so that version 2 lets it have cgroups beside itself
_PERIOD = 100_000  # microseconds of a processor's quota
_REMOVE_TRIES = 50
_FLAT_FILE = 2**16  # bytes: more than any of them has

_numbers = itertools.count(1)


class Counters:
    """What the kernel counted in a cgroup. `folders` by controller; `second`: of version 2."""

    def __init__(self, folders: dict[str, Path], second: bool) -> None:
        self._folders = folders
        self._second = second

    def memory_kills(self) -> int:
        """How often the kernel killed one of its processes for memory."""
        name = "memory.events" if self._second else "memory.oom_control"
        return _field(self._folders["memory"] / name, "oom_kill")

    def memory_used(self) -> int:
        """Bytes of memory of its processes, without files."""
        return _field(self._folders["memory"] / "memory.stat", "anon" if self._second else "total_rss")

    def refused_tasks(self) -> int:
        """How often it was refused one more process or thread."""
        return _field(self._folders["pids"] / "pids.events", "max")


class Cgroups:
    """Where this process may make cgroups: for each controller a folder. `second`: of version 2."""

    def __init__(self, folders: dict[str, Path], second: bool) -> None:
        self.folders = folders
        self.second = second

    def make(self, resources: Resources) -> Group:
        """A cgroup with these bounds. OSError where the kernel has none left."""
        return Group(self, f"{_PREFIX}{os.getpid()}-{next(_numbers)}", resources)

    def sweep(self) -> None:
        """Remove what processes that are gone left behind."""
        for folder in set(self.folders.values()):
            for left in folder.glob(f"{_PREFIX}*-*"):
                owner = left.name[len(_PREFIX) :].partition("-")[0]
                if owner.isdigit() and not is_running(owner):
                    with suppress(OSError):
                        left.rmdir()


class Group(Counters):
    """One run's cgroup. What joins by writing 0 to each of `doors` is in it, with all that it starts."""

    def __init__(self, parent: Cgroups, name: str, resources: Resources) -> None:
        super().__init__({controller: folder / name for controller, folder in parent.folders.items()}, parent.second)
        self.bounds = bounds_of(resources)
        self._unique = list(dict.fromkeys(self._folders.values()))
        self.doors = [folder / "cgroup.procs" for folder in self._unique]
        try:
            for folder in self._unique:
                folder.mkdir()
            self._limit()
        except OSError:
            self.drop()
            raise

    def _limit(self) -> None:
        memory, pids, cpu = self._folders["memory"], self._folders["pids"], self._folders.get("cpu")
        most, processes, processors = self.bounds
        (pids / "pids.max").write_text(str(processes + OWN_TASKS))
        if self._second:
            (memory / "memory.max").write_text(str(most))
            for name, value in (("memory.swap.max", "0"), ("memory.oom.group", "1")):
                with suppress(OSError):
                    (memory / name).write_text(value)
        else:
            (memory / "memory.limit_in_bytes").write_text(str(most))
            with suppress(OSError):  # only where the kernel counts swap
                (memory / "memory.memsw.limit_in_bytes").write_text(str(most))
        quota = processors * _PERIOD
        if cpu is not None:
            with suppress(OSError):  # more than its parent has
                if self._second:
                    (cpu / "cpu.max").write_text(f"{quota} {_PERIOD}")
                else:
                    (cpu / "cpu.cfs_quota_us").write_text(str(quota))

    async def remove(self) -> None:
        """End what might still be in it (a start that was cut short leaves a process that waits), and give it back."""
        for _ in range(_REMOVE_TRIES):
            try:
                left = self._processes()
            except OSError:
                return self.drop()
            if not left:
                return self.drop()
            for process in left:
                with suppress(OSError):
                    if process > 0:  # 0 is one that cannot be seen from here
                        os.kill(process, signal.SIGKILL)
            await asyncio.sleep(0.02)
        return self.drop()

    def _processes(self) -> list[int]:
        with self.doors[0].open("rb") as file:
            return [int(process) for process in file.read().split()]

    def drop(self) -> None:
        """Remove it, if nothing is in it."""
        for folder in self._unique:
            with suppress(OSError):
                folder.rmdir()


def bounds_of(resources: Resources) -> tuple[int, int, int]:
    """What of a task's resources a cgroup holds it to: bytes, processes, processors."""
    return max(resources.memory + resources.disk, LEAST_MEMORY), resources.processes, resources.processors


def is_running(process: str) -> bool:
    """Whether there is a process with this id."""
    return Path("/proc", process).exists()


def find_cgroups(root: Path = Path("/")) -> Cgroups | None:
    """Where this process may make cgroups of its own; None where it may not."""
    folders = _first_version(root) or _second_version(root)
    if folders is None:
        return None
    found = Cgroups(*folders)
    found.sweep()
    try:
        trial = found.make(Resources())
    except OSError:
        return None
    trial.drop()
    return found


def _first_version(root: Path) -> tuple[dict[str, Path], bool] | None:
    own = {name: path for names, path in _groups(root, "self") for name in names.split(",")}
    folders = {}
    for name in (*CONTROLLERS, "cpu"):
        mounted = root / "sys/fs/cgroup" / name
        folder = mounted / own.get(name, "").lstrip("/")
        # In a container the path may be one of the host's, and its own cgroup stands at the mount.
        folder = folder if folder.is_dir() else mounted
        if (folder / "cgroup.procs").is_file():
            folders[name] = folder
    if "memory" not in folders or not (folders["memory"] / "memory.limit_in_bytes").exists():
        return None
    return (folders, False) if all(name in folders for name in CONTROLLERS) else None


def _second_version(root: Path) -> tuple[dict[str, Path], bool] | None:
    mounted = root / "sys/fs/cgroup"
    folder = mounted / dict(_groups(root, "self")).get("", "").lstrip("/")
    folder = folder if folder.is_dir() else mounted
    folder = folder.parent if folder.name == _OWN else folder
    try:
        offered = (folder / "cgroup.controllers").read_text().split()
        if not all(name in offered for name in CONTROLLERS):
            return None
        wanted = [name for name in (*CONTROLLERS, "cpu") if name in offered]
        control = folder / "cgroup.subtree_control"
        if not set(wanted) <= set(control.read_text().split()):
            _hand_down(folder, control, wanted)
    except OSError:
        return None
    return dict.fromkeys(wanted, folder), True


def _hand_down(folder: Path, control: Path, wanted: list[str]) -> None:
    """Hand controllers down to the cgroups below: the kernel takes that only where no process is in the one above, so
    this process goes to one of its own first. OSError where that is not allowed, or others are in it too."""
    line = " ".join(f"+{name}" for name in wanted)
    try:
        control.write_text(line)
    except OSError:
        inner = folder / _OWN
        inner.mkdir(exist_ok=True)
        (inner / "cgroup.procs").write_text(str(os.getpid()))
        try:
            control.write_text(line)
        except OSError:
            (folder / "cgroup.procs").write_text(str(os.getpid()))
            raise


def find_counters(process: int) -> Counters | None:
    """What is counted of the cgroup that a process is in; None where this process is in it too, or nothing is."""
    root = Path("/sys/fs/cgroup")
    groups = _groups(Path("/"), str(process))
    own = _groups(Path("/"), "self")
    if any(group in own for group in groups if not group[0] or set(group[0].split(",")) & set(CONTROLLERS)):
        return None
    first = {name: root / name / path.lstrip("/") for names, path in groups for name in names.split(",") if name}
    if all((first.get(name, root / "none") / "cgroup.procs").is_file() for name in CONTROLLERS):
        return Counters(first, False)
    second = root / dict(groups).get("", "").lstrip("/")
    if (second / "memory.events").is_file() and (second / "pids.events").is_file():
        return Counters(dict.fromkeys(CONTROLLERS, second), True)
    return None


def _groups(root: Path, process: str) -> list[tuple[str, str]]:
    """(controllers, path) of the cgroups that a process is in; version 2 names no controllers there."""
    try:
        lines = (root / "proc" / process / "cgroup").read_text().splitlines()
    except OSError:
        return []
    return [(names, path) for _, names, path in (line.split(":", 2) for line in lines)]


def _field(path: Path, name: str) -> int:
    """A number by its name in one of the kernel's flat files; 0 where there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        words = os.read(descriptor, _FLAT_FILE).split()
    finally:
        os.close(descriptor)
    at = words.index(name.encode()) if name.encode() in words else -1
    return int(words[at + 1]) if 0 <= at < len(words) - 1 else 0
