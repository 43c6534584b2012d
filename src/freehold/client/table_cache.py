"""Objects of a table as this machine has seen them, so that they are not downloaded twice: files, sealed, bounded.

Whatever does not open, or is not there, is downloaded again. Invariant: a lost or damaged cache costs a download and
nothing else, so no error of the disk leaves here.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from pathlib import Path

from freehold.client.sealing import Sealer
from freehold.protocol.errors import FreeholdError

_SUFFIX = ".new"


class DiskCache:
    """A file for each object, by its identity; the ones longest unused go when there is too much. Blocks."""

    def __init__(self, folder: Path, sealer: Sealer, limit: int) -> None:
        self._folder = folder
        self._sealer = sealer
        self._limit = limit
        self._used: int | None = None

    def read(self, identity: bytes) -> bytes | None:
        """The object; None if it is not here."""
        path = self._folder / identity.hex()
        try:
            plain = self._sealer.open(_kind(identity), path.read_bytes())
            path.touch()
        except (OSError, FreeholdError):
            return None
        return plain

    def write(self, identity: bytes, data: bytes) -> None:
        """Keep an object."""
        path = self._folder / identity.hex()
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_SUFFIX}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary.write_bytes(self._sealer.seal(_kind(identity), data))
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            return
        if self._used is not None:
            self._used += len(data)
        if self._used is None or self._used > self._limit:
            self._shrink()

    def remove(self, identity: bytes) -> None:
        """Forget an object."""
        with suppress(OSError):
            (self._folder / identity.hex()).unlink(missing_ok=True)

    def _shrink(self) -> None:
        found = []
        for path in self._folder.iterdir():
            with suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        self._used = sum(size for _, size, _ in found)
        if self._used <= self._limit:
            return
        for _, size, path in sorted(found):
            with suppress(OSError):
                path.unlink(missing_ok=True)
            self._used -= size
            if self._used <= self._limit * 3 // 4:
                break


def _kind(identity: bytes) -> bytes:
    return b"cache/" + identity
