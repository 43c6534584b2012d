"""What holds a native program to its resources: a cgroup of its own, or a watch over its processes.

Where this process may make cgroups (version 1 or 2, found out by making one), the kernel holds each run to its memory,
tasks and processors. Elsewhere rlimits hold each process, and `Watch` adds up the processes of the run's pid namespace
every tick: what is over its bounds is seen a tick late. Files are bounded by the size of the run's own file system
in both cases (`sandbox_command.py`); in a cgroup they count as memory too.

Invariant: a cgroup goes with its run; one that a killed node left behind goes when the next one looks.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from freehold.services.compute.tasks import Resources

CONTROLLERS = ("memory", "pids")  # without both of them there is nothing to gain
LEAST_MEMORY = 16 * 2**20  # what the sandbox itself needs to start
OWN_TASKS = 3  # bubblewrap's two processes, and one that it has for a moment
FILES_IN_BOX = 65_536  # names below /out and /tmp, which cost memory that their bytes do not show
_PREFIX = "freehold-"
_PERIOD = 100_000  # microseconds of a processor's quota
_REMOVE_TRIES = 50

_numbers = itertools.count(1)


class Over(NamedTuple):
    """A bound that was passed: `tasks.Result.ended`, and a sentence."""

    ended: str
    reason: str


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
                if owner.isdigit() and not Path("/proc", owner).exists():
                    with suppress(OSError):
                        left.rmdir()


class Group:
    """One run's cgroup. What joins by writing 0 to each of `doors` is in it, with all that it starts."""

    def __init__(self, parent: Cgroups, name: str, resources: Resources) -> None:
        self._second = parent.second
        self._folders = {controller: folder / name for controller, folder in parent.folders.items()}
        self._unique = list(dict.fromkeys(self._folders.values()))
        self.doors = [folder / "cgroup.procs" for folder in self._unique]
        try:
            for folder in self._unique:
                folder.mkdir()
            self._limit(resources)
        except OSError:
            self._drop()
            raise

    def _limit(self, resources: Resources) -> None:
        memory, pids, cpu = self._folders["memory"], self._folders["pids"], self._folders.get("cpu")
        most = str(max(resources.memory + resources.disk, LEAST_MEMORY))
        (pids / "pids.max").write_text(str(resources.processes + OWN_TASKS))
        if self._second:
            (memory / "memory.max").write_text(most)
            for name, value in (("memory.swap.max", "0"), ("memory.oom.group", "1")):
                with suppress(OSError):
                    (memory / name).write_text(value)
        else:
            (memory / "memory.limit_in_bytes").write_text(most)
            with suppress(OSError):  # only where the kernel counts swap
                (memory / "memory.memsw.limit_in_bytes").write_text(most)
        quota = resources.processors * _PERIOD
        if cpu is not None:
            with suppress(OSError):  # more than its parent has
                if self._second:
                    (cpu / "cpu.max").write_text(f"{quota} {_PERIOD}")
                else:
                    (cpu / "cpu.cfs_quota_us").write_text(str(quota))

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

    async def remove(self) -> None:
        """Remove it, once its last process is gone."""
        for _ in range(_REMOVE_TRIES):
            self._drop()
            if not any(folder.exists() for folder in self._unique):
                return
            await asyncio.sleep(0.02)

    def _drop(self) -> None:
        for folder in self._unique:
            with suppress(OSError):
                folder.rmdir()


class Watch:
    """Holds one run to its bounds, tick by tick: by its cgroup's counters, or by its pid namespace.

    `box` is the run's own file system, `processes` the /proc of its pid namespace, both open folders.
    """

    def __init__(self, resources: Resources, group: Group | None, box: int, processes: int) -> None:
        self._resources = resources
        self._group = group
        self._box = box
        self._processes = processes

    def check(self) -> Over | None:
        """What is over its bounds now."""
        resources = self._resources
        used = os.fstatvfs(self._box)
        if used.f_files - used.f_ffree > FILES_IN_BOX:
            return Over("disk", f"more than {FILES_IN_BOX} files below /out and /tmp")
        if self._group is not None:
            tasks, memory = self._group.refused_tasks(), self._group.memory_used()
            if self._group.memory_kills():
                return self._over_memory()
        else:
            count, memory = self._count()
            tasks = count > resources.processes + OWN_TASKS
        if tasks:
            return Over("processes", f"more than {resources.processes} processes and threads at once")
        return self._over_memory() if memory > resources.memory else None

    def explain(self, status: int) -> Over | None:
        """Why a program that ended with this status did so, where a bound was the reason."""
        resources = self._resources
        if status == 0:
            return None
        if self._group is not None and self._group.memory_kills():
            return self._over_memory()
        if self._group is not None and self._group.refused_tasks():
            return Over("processes", f"more than {resources.processes} processes and threads at once")
        if os.fstatvfs(self._box).f_bavail == 0 or status == 128 + signal.SIGXFSZ:
            return Over("disk", f"it filled its {resources.disk} bytes below /out and /tmp")
        return None

    def _over_memory(self) -> Over:
        return Over("memory", f"more than {self._resources.memory} bytes of memory")

    def _count(self) -> tuple[int, int]:
        """Threads and resident bytes of the pid namespace."""
        threads = pages = 0
        try:
            names = os.listdir(self._processes)
        except OSError:
            return 0, 0
        for name in names:
            if name.isdigit():
                with suppress(OSError, ValueError, IndexError):
                    pages += int(_read_at(self._processes, f"{name}/statm").split()[1])
                    threads += int(_read_at(self._processes, f"{name}/stat").rpartition(b")")[2].split()[17])
        return threads, pages * _PAGE


_PAGE = os.sysconf("SC_PAGE_SIZE")


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
    trial._drop()
    return found


def _first_version(root: Path) -> tuple[dict[str, Path], bool] | None:
    own = {name: path for names, path in _own_groups(root) for name in names.split(",")}
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
    own = dict(_own_groups(root)).get("", "")
    folder = mounted / own.lstrip("/")
    folder = folder if folder.is_dir() else mounted
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
        inner = folder / "node"
        inner.mkdir(exist_ok=True)
        (inner / "cgroup.procs").write_text(str(os.getpid()))
        try:
            control.write_text(line)
        except OSError:
            (folder / "cgroup.procs").write_text(str(os.getpid()))
            raise


def _own_groups(root: Path) -> list[tuple[str, str]]:
    """(controllers, path) of the cgroups that this process is in; version 2 has no controllers there."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    return [(names, path) for _, names, path in (line.split(":", 2) for line in lines)]


def _field(path: Path, name: str) -> int:
    """A number by its name in one of the kernel's flat files; 0 where there is none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(value) for key, _, value in (line.partition(" ") for line in lines) if key == name), 0)


def _read_at(folder: int, name: str) -> bytes:
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        return os.read(descriptor, 4096)
    finally:
        os.close(descriptor)
