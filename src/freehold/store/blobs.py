"""Blobs on disk: what a node holds for its clients, and what a member keeps of its batches.

    ROOT/incoming/N     being written
    ROOT/xx/KEY         whole and durable; xx is the first byte of sha256(KEY), in hexadecimal

A put writes to `incoming`, syncs the file, renames it, syncs the directory, and only then returns. Invariant: that of
`blob_store.py`, through any power cut or kill.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from itertools import count
from pathlib import Path

from freehold.protocol.errors import DiskFull, NotFound
from freehold.store.blob_store import Arriving, BlobStore, Buffer, check_key, check_range
from freehold.store.disk import Disk, File, RealDisk

_FULL = {errno.ENOSPC, errno.EDQUOT}
_INCOMING = "incoming"
_FAN = re.compile(r"[0-9a-f]{2}")


class Blobs(BlobStore):
    """The blobs under `root`, at most `allowance_bytes` of them (file contents; names and directories come on top)."""

    def __init__(self, root: Path, allowance_bytes: int, disk: Disk | None = None) -> None:
        super().__init__(allowance_bytes)
        self.root = root.absolute()
        self._disk: Disk = disk or RealDisk()
        self._numbers = count()
        self._ready: set[str] = set()
        self._settling: set[str] = set()
        self._prepare()

    def begin(self, key: str, size: int = 0) -> Incoming:
        final = self._path(key)
        self._take(size)
        path = self.root / _INCOMING / str(next(self._numbers))
        try:
            return Incoming(self, key, path, final, size, self._disk.create(path))
        except OSError as error:
            self._give_back(size)
            raise _typed(error) from error

    def has(self, key: str) -> bool:
        return self._size(key) is not None and key not in self._settling

    def size(self, key: str) -> int:
        size = self._size(key)
        if size is None:
            raise NotFound(f"no blob {key}")
        return size

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        check_range(offset, length)
        if length is None:
            length = max(0, self.size(key) - offset)
        try:
            return self._disk.read(self._path(key), offset, length)
        except FileNotFoundError:
            raise NotFound(f"no blob {key}") from None

    def read_into(self, key: str, target: memoryview) -> int:
        """As for every place; cheapest into whole pages of memory."""
        try:
            return self._disk.read_into(self._path(key), target)
        except FileNotFoundError:
            raise NotFound(f"no blob {key}") from None

    def delete(self, key: str) -> bool:
        path = self._path(key)
        with self._lock:
            size = self._size(key)
            if size is None:
                return False
            self._disk.remove(path)
            self._used -= size
        self._disk.sync_dir(path.parent)
        return True

    def list_keys(self) -> Iterator[str]:
        for directory in sorted(self._ready):
            yield from self._disk.names(self.root / directory)

    def close(self) -> None:
        """Files are closed as soon as they are written or read."""

    def _prepare(self) -> None:
        for directory in (self.root, self.root / _INCOMING):
            self._disk.make_dir(directory)
            self._disk.sync_dir(directory.parent)
        for name in self._disk.names(self.root / _INCOMING):
            self._disk.remove(self.root / _INCOMING / name)
        self._ready = {name for name in self._disk.names(self.root) if _FAN.fullmatch(name)}
        # After a kill (not a power cut) a name may be seen that is not on the disk yet: `has` must not promise it.
        for directory_name in sorted(self._ready):
            directory = self.root / directory_name
            self._used += sum(self._disk.size(directory / name) for name in self._disk.names(directory))
            self._disk.sync_dir(directory)

    def _path(self, key: str) -> Path:
        return self.root / sha256(check_key(key).encode()).hexdigest()[:2] / key

    def _size(self, key: str) -> int | None:
        try:
            return self._disk.size(self._path(key))
        except FileNotFoundError:
            return None

    def _place(self, source: Path, key: str, path: Path) -> None:
        """Give an arrived file its key and path. It lasts only after `_settle`."""
        with self._lock:
            if path.parent.name not in self._ready:
                self._disk.make_dir(path.parent)
                self._disk.sync_dir(self.root)
                self._ready.add(path.parent.name)
            try:
                replaced = self._disk.size(path)
            except FileNotFoundError:
                replaced = 0
                self._settling.add(key)
            self._disk.rename(source, path)
            self._used -= replaced

    def _settle(self, key: str, path: Path) -> None:
        self._disk.sync_dir(path.parent)
        self._settling.discard(key)


class Incoming(Arriving):
    """A file that is being written."""

    def __init__(self, blobs: Blobs, key: str, path: Path, final: Path, taken: int, file: File) -> None:
        super().__init__(blobs, taken)
        self._blobs, self._key, self._path, self._final, self._file = blobs, key, path, final, file
        self._state = "open"

    def _append(self, chunk: Buffer) -> None:
        try:
            self._file.write(chunk)
        except OSError as error:
            raise _typed(error) from error

    def commit(self) -> None:
        try:
            self._file.sync()
            self._file.close()
            self._blobs._place(self._path, self._key, self._final)
            self._state = "committed"
            self._blobs._give_back(self._taken - self.size)
            self._blobs._settle(self._key, self._final)
        except OSError as error:
            raise _typed(error) from error

    def abort(self) -> None:
        if self._state != "open":
            return
        self._state = "aborted"
        self._file.close()
        with suppress(FileNotFoundError):
            self._blobs._disk.remove(self._path)
        self._blobs._give_back(self._taken)


def _typed(error: OSError) -> Exception:
    return DiskFull(f"the disk is full: {error.strerror}") if error.errno in _FULL else error
