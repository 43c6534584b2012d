"""The price that this member sees, from a parameter file: {"price": "decimal string, 1e18 US dollars a token"}.

A seam: whatever writes the file may ask any market. A file that is missing or makes no sense is said so once, and
the last price that made sense stays.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from freehold.protocol.errors import MalformedMessage
from freehold.protocol.typed import parse_json
from freehold.protocol.units import AMOUNT_LIMIT

DIGITS = 40  # more than any amount has

log = logging.getLogger(__name__)


class PriceFile:
    """`seen` is called with the price at first, and whenever the file has changed."""

    def __init__(self, path: Path, seen: Callable[[int], None], interval: float = 1.0) -> None:
        self._path, self._seen, self._interval = path, seen, interval
        self._last: tuple[int, int] | None = None

    async def run(self) -> None:
        """Look at the file until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(self._interval)

    def look(self) -> None:
        """Read the file if it is another one than at the last look."""
        try:
            status = self._path.stat()
        except OSError:
            status = None
        mark = (status.st_mtime_ns, status.st_ino) if status else (0, 0)
        if mark == self._last:
            return
        self._last = mark
        try:
            self._seen(parse_price(self._path.read_bytes()))
        except (OSError, MalformedMessage) as error:
            log.warning("no price in %s: %s", self._path, error)


def parse_price(data: bytes) -> int:
    """The price in a price file's bytes. MalformedMessage."""
    value = parse_json(data)
    text = value.get("price") if isinstance(value, dict) else None
    if not isinstance(text, str) or not text.isascii() or not text.isdigit() or len(text) > DIGITS:
        raise MalformedMessage('a price file is {"price": "decimal string above 0"}')
    if not 0 < int(text) < AMOUNT_LIMIT:
        raise MalformedMessage('a price file is {"price": "decimal string above 0"}')
    return int(text)
