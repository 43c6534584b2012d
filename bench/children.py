"""Child processes of a bench: each in a group of its own, all of them ended by pid, whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

GRACE = 10  # seconds


class Children:
    """A context: on leaving it no child is left."""

    def __init__(self) -> None:
        self._children: list[subprocess.Popen[str]] = []

    def start(self, command: Sequence[str], log: Path, *, piped: bool = True) -> subprocess.Popen[str]:
        """Start a child. Its stderr goes to `log`, its stdout too unless it is piped (for a ready line)."""
        with log.open("a") as errors:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else errors,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        self._children.append(child)
        return child

    @staticmethod
    def ready_line(child: subprocess.Popen[str]) -> str:
        """The first line that the child prints; an error if it ends without one."""
        line = child.stdout.readline().strip() if child.stdout else ""
        if not line:
            raise RuntimeError(f"{child.args!r} ended before it was ready")
        return line

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children:
            _signal(child, signal.SIGTERM)
        for child in self._children:
            try:
                child.wait(GRACE)
            except subprocess.TimeoutExpired:
                _signal(child, signal.SIGKILL)
                child.wait()
            if child.stdout is not None:
                child.stdout.close()


def _signal(child: subprocess.Popen[str], number: signal.Signals) -> None:
    if child.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, number)
