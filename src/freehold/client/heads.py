"""Heads: registers that change in place. All else on the network is written once.

    read(name) -> Head | None
    compare_and_set(name, expected, new)        Conflict, and no change, unless the head is `expected`

A head is a `base`, replaced as a whole, and the `frames` appended to it since. Its version grows by one with each
change, so that an old one cannot pass for new. What stands in it is sealed by whoever sets it (`sealing.py`).
`NodeHeads` (`node_heads.py`) keeps heads at several nodes of the network, `LocalHeads` in files of this machine.
Invariants: what `compare_and_set` set survives a power cut; of any number of writers with one expectation at most one
wins; a read sees every change that was acknowledged before it began.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from freehold.protocol.errors import Conflict, Corrupt, InvalidInput

HEAD_LIMIT = 4 << 20  # bytes of base and frames together
_NAME = re.compile(r"[0-9a-f]{32}")
_SUFFIX = ".head"


class Head(NamedTuple):
    """`version` counts changes from 1; `base` and `frames` are the setter's own, sealed."""

    version: int
    base: bytes
    frames: tuple[bytes, ...] = ()


class Heads(Protocol):
    """The seam behind which heads stand. `name` is 32 lower-case hexadecimal digits that say nothing to others."""

    async def read(self, name: str) -> Head | None:
        """The head; None where there is none, or where it is gone for good."""

    async def compare_and_set(self, name: str, expected: Head | None, new: Head | None) -> None:
        """Replace `expected` by `new`; None for `new` ends the name for good.

        Conflict, and surely no change, where the head is another. Unavailable: the change may or may not come about.
        """

    async def maintain(self) -> None:
        """Bring what is kept to where it should be; for those who run for long."""


def check_change(name: str, expected: Head | None, new: Head | None) -> None:
    """InvalidInput unless the change is one that any implementation may be asked for."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(f"{name!r} is not a head's name")
    if new is None:
        return
    if new.version != (expected.version if expected else 0) + 1:
        raise InvalidInput(f"version {new.version} does not follow {expected.version if expected else 0}")
    size = len(new.base) + sum(map(len, new.frames))
    if size > HEAD_LIMIT:
        raise InvalidInput(f"a head has at most {HEAD_LIMIT} bytes, not {size}", limit=HEAD_LIMIT)


class LocalHeads:
    """Heads as files, for whoever has one machine only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    async def read(self, name: str) -> Head | None:
        """See `Heads`."""
        return await asyncio.to_thread(self._read, name)

    async def compare_and_set(self, name: str, expected: Head | None, new: Head | None) -> None:
        """See `Heads`."""
        check_change(name, expected, new)
        await asyncio.to_thread(self._compare_and_set, name, expected, new)

    async def maintain(self) -> None:
        """Nothing: a file stays where it is."""

    def _read(self, name: str) -> Head | None:
        try:
            raw = self._path(name).read_bytes()
        except FileNotFoundError:
            return None
        try:
            return msgspec.msgpack.decode(raw, type=Head) if raw else None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Corrupt(f"the head {name} does not decode: {error}") from None

    def _compare_and_set(self, name: str, expected: Head | None, new: Head | None) -> None:
        with self._locked():
            current = self._read(name)
            if current != expected or (expected is None and self._path(name).exists()):
                raise Conflict(f"head {name} was changed by another writer", version=current.version if current else 0)
            self._write(self._path(name), msgspec.msgpack.encode(new) if new is not None else b"")

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{_SUFFIX}"

    def _write(self, path: Path, data: bytes) -> None:
        temporary = path.with_name(path.name + ".new")
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / "lock").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
