"""What holds a native program to its resources, beside what the kernel does by itself.

In a cgroup of its own (`cgroups.py`) the kernel holds a run to its memory, tasks and processors, and a `Watch` says at
every tick that it did. Where this process may make none, rlimits hold each process, and the watch adds up the processes
of the run's pid namespace: what is over its bounds is then seen a tick late. Files are bounded by the size of the run's
own file systems in both cases; in a cgroup they count as memory too.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from freehold.services.compute.executors.cgroups import OWN_TASKS, Counters
from freehold.services.compute.tasks import FILES_LIMIT, Resources

MOST_FILES = 65_536
_PAGE = os.sysconf("SC_PAGE_SIZE")


def most_files(resources: Resources) -> int:
    """How many files a task may have below /out and /tmp: names cost memory that their bytes do not show."""
    return min(FILES_LIMIT + resources.disk // _PAGE, MOST_FILES)


class Over(NamedTuple):
    """A bound that was passed: `tasks.Result.ended`, and a sentence."""

    ended: str
    reason: str


class Watch:
    """Holds one run to its bounds, tick by tick: by its cgroup's counters, or by its pid namespace.

    `disk` are folders of the run's own file systems, `shared` that of its shared memory, `processes` the /proc of its
    pid namespace. All are open.
    """

    def __init__(
        self, resources: Resources, counters: Counters | None, disk: Sequence[int], shared: int, processes: int
    ) -> None:
        self._resources = resources
        self._counters = counters
        self._disk = disk
        self._shared = shared
        self._processes = processes

    @property
    def tick(self) -> float:
        """Seconds between checks: a cgroup holds a run meanwhile, and rlimits less so."""
        return 0.1 if self._counters is not None else 0.02

    def check(self) -> Over | None:
        """What is over its bounds now."""
        resources = self._resources
        if over := self._check_disk():
            return over
        if self._counters is not None:
            tasks, memory = self._counters.refused_tasks() > 0, self._counters.memory_used()
            if self._counters.memory_kills():
                return self._over_memory()
        else:
            count, memory = self._count()
            tasks = count > resources.processes + OWN_TASKS
        if tasks:
            return self._over_tasks()
        return self._over_memory() if memory > resources.memory else None

    def explain(self, status: int) -> Over | None:
        """Why a program that ended with this status did so, where a bound was the reason."""
        if status == 0:
            return None
        if self._counters is not None and self._counters.memory_kills():
            return self._over_memory()
        if self._counters is not None and self._counters.refused_tasks():
            return self._over_tasks()
        if status == 128 + signal.SIGXFSZ or any(os.fstatvfs(folder).f_bavail == 0 for folder in self._disk):
            return self._over_disk()
        return None

    def _check_disk(self) -> Over | None:
        found = [os.fstatvfs(folder) for folder in (*self._disk, self._shared)]
        files = most_files(self._resources)
        if sum(one.f_files - one.f_ffree for one in found) > files:
            return Over("disk", f"more than {files} files below /out and /tmp")
        used = sum((one.f_blocks - one.f_bfree) * one.f_frsize for one in found[:-1])
        rounded = self._resources.disk + len(self._disk) * _PAGE
        return self._over_disk() if used > rounded else None

    def _over_disk(self) -> Over:
        return Over("disk", f"it filled its {self._resources.disk} bytes below /out and /tmp")

    def _over_memory(self) -> Over:
        return Over("memory", f"more than {self._resources.memory} bytes of memory")

    def _over_tasks(self) -> Over:
        return Over("processes", f"more than {self._resources.processes} processes and threads at once")

    def _count(self) -> tuple[int, int]:
        """Threads of the pid namespace, and bytes that they and its shared memory have."""
        threads = pages = 0
        try:
            names = [name for name in os.listdir(self._processes) if name.isdigit()]
        except OSError:
            return 0, 0
        if len(names) > self._resources.processes + OWN_TASKS:
            return len(names), 0  # enough to know
        for name in names:
            with suppress(OSError, ValueError, IndexError):
                pages += int(_read_at(self._processes, f"{name}/statm").split()[1])
                threads += int(_read_at(self._processes, f"{name}/stat").rpartition(b")")[2].split()[17])
        shared = os.fstatvfs(self._shared)
        return threads, pages * _PAGE + (shared.f_blocks - shared.f_bfree) * shared.f_frsize


def _read_at(folder: int, name: str) -> bytes:
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        return os.read(descriptor, 4096)
    finally:
        os.close(descriptor)
