"""Child processes that do not outlive their parent, and leftovers that are found again.

A child runs in a process group of its own, logs to `NAME.log`, and stands in `NAME.pid` with the moment it started,
so that after a crash of the parent the next start ends exactly those processes and never one that merely got the
same number. On Linux a child also dies with the thread that started it (PR_SET_PDEATHSIG).

Invariant: what is signalled is a process of this directory's pid files, with the very start time recorded there.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from freehold.protocol.errors import Unavailable

T = TypeVar("T")

POLL = 0.02  # seconds between looks at a ready file or a dying process
LONGEST_LOG = 8 * 1024 * 1024  # bytes, beyond which a log is set aside at the child's next start
GRACE = 5.0  # seconds between SIGTERM and SIGKILL
TAIL = 2_000  # bytes of a dead child's log that its error quotes

# Runs as the child, then becomes the program, keeping the process id. A shim instead of preexec_fn, which may deadlock
# in a parent with threads. 1 is PR_SET_PDEATHSIG (linux/prctl.h); the parent may have died before it took effect.
DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""


class ChildFailed(Unavailable):
    """A child ended, or did not become ready; `details["log"]` is the end of what it printed."""

    code = "child_failed"


class Child:
    """One running child; made by `spawn`."""

    def __init__(self, name: str, directory: Path, process: asyncio.subprocess.Process, ready: Path | None) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        self.pid = process.pid
        self._process = process
        self._ready = ready
        self._record = directory / f"{name}.pid"

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.returncode

    async def wait(self) -> int:
        """The return code, once it has ended."""
        return await self._process.wait()

    async def wait_ready(self, timeout: float) -> dict[str, Any]:
        """What the child wrote into its ready file. ChildFailed if it ended first, or after `timeout` seconds."""
        ready = self._ready
        if ready is None:
            raise ValueError(f"{self.name} was started without a ready file")

        def look() -> dict[str, Any] | None:
            return read_json(ready)

        return await self.wait_for(look, timeout)

    async def wait_for(self, look: Callable[[], T | None], timeout: float) -> T:
        """The first answer of `look` that is not None. ChildFailed if the child ended first, or after `timeout`."""
        try:
            async with asyncio.timeout(timeout):
                while (answer := look()) is None:
                    if self._process.returncode is not None:
                        raise self._failed(f"ended with code {self._process.returncode}")
                    await asyncio.sleep(POLL)
                return answer
        except TimeoutError:
            raise self._failed(f"was not ready after {timeout:g} s") from None

    def _failed(self, what: str) -> ChildFailed:
        tail = read_tail(self.log)
        return ChildFailed(f"{self.name} {what}; its log {self.log} ends: {tail}", log=tail, returncode=self.returncode)

    async def stop(self, grace: float = GRACE) -> int:
        """SIGTERM, after `grace` seconds SIGKILL, to its whole group; the return code. Twice does no harm."""
        # A child that ended by itself is left alone: its number may be another's by now.
        if self._process.returncode is None:
            signal_group(self.pid, signal.SIGTERM)
            try:
                async with asyncio.timeout(grace):
                    await self._process.wait()
            except TimeoutError:
                signal_group(self.pid, signal.SIGKILL)
                await self._process.wait()
            signal_group(self.pid, signal.SIGKILL)  # what the child itself had started and left behind
        code = await self._process.wait()
        self._record.unlink(missing_ok=True)
        return code


async def spawn(
    name: str,
    argv: Sequence[str],
    directory: Path,
    *,
    environment: Mapping[str, str] | None = None,
    ready: Path | None = None,
) -> Child:
    """Start `argv` as the child `name`; its log and pid file go into `directory`.

    `ready` is a file that the program writes (atomically, a JSON object) once it serves; one from an earlier run is
    removed first. `environment` adds to this process's own.
    """
    with open_log(directory, name, ready) as output:
        process = await asyncio.create_subprocess_exec(
            *dying_with_parent(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(environment or {})},
            process_group=0,
        )
    write_json(directory / f"{name}.pid", {"name": name, "pid": process.pid, "started": start_time(process.pid)})
    return Child(name, directory, process, ready)


def open_log(directory: Path, name: str, ready: Path | None) -> BinaryIO:
    """The child's log, opened to append, in a directory made ready for it."""
    directory.mkdir(parents=True, exist_ok=True)
    if ready is not None:
        ready.unlink(missing_ok=True)
    log = directory / f"{name}.log"
    if log.exists() and log.stat().st_size > LONGEST_LOG:
        log.replace(directory / f"{name}.log.1")
    return log.open("ab")


def dying_with_parent(argv: Sequence[str]) -> list[str]:
    """`argv`, which on Linux is killed when the parent's starting thread ends."""
    if sys.platform != "linux":
        return list(argv)
    return [sys.executable, "-I", "-S", "-c", DIE_WITH_PARENT, str(os.getpid()), *argv]


async def reap_leftovers(directory: Path, grace: float = GRACE) -> list[str]:
    """End the children that an earlier parent left in `directory`; their names. Their pid files are removed."""
    leftovers = []
    for path in find_records(directory):
        record = read_json(path) or {}
        pid, started = record.get("pid"), record.get("started")
        if isinstance(pid, int) and started is not None and start_time(pid) == started:
            leftovers.append(str(record.get("name", path.stem)))
            await _end_stranger(pid, started, grace)
        path.unlink(missing_ok=True)
    return leftovers


def find_records(directory: Path) -> list[Path]:
    """The pid files in a directory, by name; none if there is no such directory."""
    return sorted(directory.glob("*.pid"))


async def _end_stranger(pid: int, started: str, grace: float) -> None:
    """End a process that is not our own child, and so cannot be waited for."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if start_time(pid) != started:
            return
        signal_group(pid, number)
        try:
            async with asyncio.timeout(grace):
                while start_time(pid) == started:  # noqa: ASYNC110 - a stranger's end is no event here
                    await asyncio.sleep(POLL)
        except TimeoutError:
            continue
    if start_time(pid) == started:
        raise ChildFailed(f"process {pid}, left by an earlier run, does not end", pid=pid)


def signal_group(pid: int, number: int) -> None:
    """Signal the process group that `spawn` made for `pid`; nothing happens if it is gone."""
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):  # macOS answers EPERM for a group of zombies
        return


def start_time(pid: int) -> str | None:
    """When a process started, in the system's own words, unique with its pid; None if it does not run."""
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            return None
        fields = stat.rpartition(")")[
            2
        ].split()  # after the name, which may hold anything; proc(5): 3 state, 22 starttime
        return None if fields[0] in ("Z", "X") else f"{boot}:{fields[19]}"
    answer = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Atomically, so that a reader sees all of it or none. For ready and pid files: not synced to disk."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value))
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file; None if there is no such file, or no object in it."""
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def read_tail(path: Path) -> str:
    """The last lines of a log."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            return file.read().decode(errors="replace").strip()
    except FileNotFoundError:
        return ""
