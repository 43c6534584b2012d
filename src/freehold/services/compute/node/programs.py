"""Programs as files that executors read: written out of the blobs once, and shared by the runs that need them.

A kill may leave one behind half: so the folder is emptied at each start, and a file has its name only once it is whole.
Invariant: no file goes while a run uses it.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from shutil import rmtree

from freehold.services.compute.node.blobs import Blobs, in_thread

BYTES_KEPT = 512 * 2**20
FILES_KEPT = 512


class Programs:
    """The files of one node's programs, by SHA-256."""

    def __init__(self, folder: Path, blobs: Blobs) -> None:
        self._folder, self._blobs = folder, blobs
        self._sizes: OrderedDict[str, int] = OrderedDict()  # of files that are whole; the last one used is the last
        self._users: Counter[str] = Counter()
        self._lock = asyncio.Lock()

    async def start(self) -> None:
        """Begin with nothing."""
        await in_thread(_make_empty, self._folder)

    @asynccontextmanager
    async def lend(self, wanted: Iterable[str]) -> AsyncIterator[dict[str, Path]]:
        """These blobs as files, until the context ends. NotFound, Corrupt."""
        names = set(wanted)
        self._users.update(names)
        try:
            if not names <= self._sizes.keys():
                async with self._lock:
                    await self._write(names - self._sizes.keys())
            for name in names:
                self._sizes.move_to_end(name)
            yield {name: self._folder / name for name in names}
        finally:
            self._users.subtract(names)
            self._users += Counter()

    async def _write(self, names: Iterable[str]) -> None:
        await self._make_room()
        for name in names:
            part = self._folder / f"{name}.part"
            with suppress(FileNotFoundError):
                part.unlink()
            self._sizes[name] = await self._blobs.write_out([(name, part)])
            os.rename(part, self._folder / name)

    async def _make_room(self) -> None:
        for name in list(self._sizes):
            if sum(self._sizes.values()) <= BYTES_KEPT and len(self._sizes) <= FILES_KEPT:
                return
            if not self._users[name]:
                del self._sizes[name]
                (self._folder / name).unlink()


def _make_empty(folder: Path) -> None:
    rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
