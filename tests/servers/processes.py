"""A real server for tests: started on a free port of 127.0.0.1, killed with all of its processes, started again.

Servers that cannot bind port 0 and say what they got are given a port below those that the system hands out, and
another one where it turns out to be taken: the server's own bind decides, and nobody else gets it during a restart.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

SLOW = float(os.environ.get("FREEHOLD_TEST_SLOW", "1"))
DEADLINE = 30 * SLOW  # seconds for a server to start or to end
ATTEMPTS = 20
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


class Server(ABC):
    """`start` on a new port, `kill` as a power cut would, `restart` on the same port, `stop`."""

    def __init__(self, log: Path) -> None:
        self.port = 0
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def _launch(self, log: int) -> subprocess.Popen[bytes]:
        """Start the process on `self.port`; everything it says goes to the file `log`."""

    @abstractmethod
    def _is_ready(self) -> bool:
        """Whether this process answers, and no other that has the port."""

    def start(self) -> None:
        """Start on a free port and wait until it answers."""
        first = int(EPHEMERAL.read_text().split()[0]) if EPHEMERAL.exists() else 32768
        for _ in range(ATTEMPTS):
            self.port = random.randrange(first // 2, first)
            if self._run():
                return
        raise AssertionError(f"the server did not start:\n{self._log.read_text()[-2000:]}")

    def restart(self) -> None:
        """Start again on the port it had."""
        assert self._run(), self._log.read_text()[-2000:]

    def _run(self) -> bool:
        with self._log.open("wb") as log:
            self._process = process = self._launch(log.fileno())
        wait_until(lambda: process.poll() is not None or self._is_ready(), "the server is ready")
        return process.poll() is None

    def kill(self) -> None:
        """End every process of the server at once, without a word."""
        assert self._process is not None
        pids = [self._process.pid, *get_descendants(self._process.pid)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)  # or a child could still say goodbye to its client
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self._process.wait()
        wait_until(lambda: not any(map(is_running, pids)), "the server's processes are gone")

    def stop(self, number: int = signal.SIGINT) -> None:
        """Ask it to end; whatever is left then is killed, and told."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        pids = get_descendants(process.pid)
        process.send_signal(number)
        try:
            process.wait(DEADLINE)
            wait_until(lambda: not any(map(is_running, pids)), "the server's processes are gone")
        except (subprocess.TimeoutExpired, AssertionError):
            self.kill()
            raise


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Look until the condition holds; AssertionError when the deadline passes."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.01)


def get_descendants(pid: int) -> list[int]:
    """The processes below one, at this moment."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := read_stat(int(entry.name))):
            parents.setdefault(int(stat[1]), []).append(int(entry.name))
    found, at = [pid], 0
    while at < len(found):
        found += parents.get(found[at], [])
        at += 1
    return found[1:]


def is_running(pid: int) -> bool:
    stat = read_stat(pid)
    return stat is not None and stat[0] not in ("Z", "X")


def read_stat(pid: int) -> list[str] | None:
    """A process's state, its parent's id, and what follows; None if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
