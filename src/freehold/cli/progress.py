"""A progress bar on stderr: for what takes over a second, and only where a person watches."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from freehold.cli.amounts import format_seconds, format_size

SHOW_AFTER = 1.0  # seconds
REDRAW = 0.1
WIDTH = 30


class Bar:
    """`with Bar("up", total) as bar: bar.update(done, total)`; prints nothing where stderr is no terminal."""

    def __init__(self, label: str, *, quiet: bool = False) -> None:
        self._label = label
        self._shown = not quiet and sys.stderr.isatty()
        self._began = time.monotonic()
        self._drawn = 0.0
        self._width = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()

    def update(self, done: int, total: int) -> None:
        """`done` of `total` bytes."""
        now = time.monotonic()
        if not self._shown or now - self._began < SHOW_AFTER or (now - self._drawn < REDRAW and done < total):
            return
        self._drawn = now
        rate = done / (now - self._began)
        filled = WIDTH * done // total if total else WIDTH
        left = format_seconds((total - done) / rate) if rate else "?"
        text = (
            f"{self._label} [{'#' * filled}{'.' * (WIDTH - filled)}] {format_size(done)} of {format_size(total)}, "
            f"{format_size(int(rate))}/s, {left} left"
        )
        sys.stderr.write("\r" + text.ljust(self._width))
        sys.stderr.flush()
        self._width = max(self._width, len(text))
