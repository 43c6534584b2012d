"""Blobs on disk: what a node holds for its clients, and what a member keeps of its batches.

    ROOT/incoming/N     being written
    ROOT/xx/KEY         whole and durable; xx is the first byte of sha256(KEY), in hexadecimal

A put writes to `incoming`, syncs the file, renames it, syncs the directory, and only then returns. Invariant: whatever
a put acknowledged is there, whole, after any power cut or kill; whatever it did not is there whole or not at all, and
never under its key in part. The allowance bounds what is stored plus what is arriving; it is counted anew at each start
from the files themselves, so it cannot drift.

Everything blocks: call it in a thread. Any number of threads may.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from hashlib import sha256
from itertools import count
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Self

from freehold.protocol.errors import DiskFull, InvalidInput, NotFound
from freehold.store.disk import Disk, File, RealDisk

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_FULL = {errno.ENOSPC, errno.EDQUOT}
_INCOMING = "incoming"
_FAN = re.compile(r"[0-9a-f]{2}")

Buffer = bytes | bytearray | memoryview


class Blobs:
    """The blobs under `root`, at most `allowance_bytes` of them (file contents; names and directories come on top)."""

    def __init__(self, root: Path, allowance_bytes: int, disk: Disk | None = None) -> None:
        self.root = root.absolute()
        self.allowance_bytes = allowance_bytes
        self._disk: Disk = disk or RealDisk()
        self._lock = Lock()
        self._numbers = count()
        self._ready: set[str] = set()
        self._settling: set[str] = set()
        self._used = 0
        self._prepare()

    @property
    def used_bytes(self) -> int:
        """Bytes stored and arriving."""
        return self._used

    @property
    def free_bytes(self) -> int:
        """Bytes left of the allowance; the disk itself may have fewer."""
        return max(0, self.allowance_bytes - self._used)

    def begin(self, key: str, size: int = 0) -> Incoming:
        """Start a put that arrives piece by piece; `size` bytes of allowance are taken at once, the rest as it comes.

        DiskFull when they are not to be had. Use as a context: leaving it without `commit` leaves nothing behind.
        """
        self._path(key)
        self._take(size)
        path = self.root / _INCOMING / str(next(self._numbers))
        try:
            return Incoming(self, key, path, size, self._disk.create(path))
        except OSError as error:
            self._give_back(size)
            raise _typed(error) from error

    def put(self, key: str, chunks: Iterable[Buffer]) -> int:
        """Store a blob, in place of one with this key; returns its size once it is durable. DiskFull."""
        with self.begin(key) as incoming:
            for chunk in chunks:
                incoming.write(chunk)
            incoming.commit()
            return incoming.size

    def has(self, key: str) -> bool:
        """Whether a blob is stored, durably."""
        return self._size(key) is not None and key not in self._settling

    def size(self, key: str) -> int:
        """A blob's bytes. NotFound."""
        size = self._size(key)
        if size is None:
            raise NotFound(f"no blob {key}")
        return size

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """A blob or a range of it; shorter where the blob ends. NotFound."""
        if offset < 0 or (length is not None and length < 0):
            raise InvalidInput(f"a range from {offset} of {length} bytes")
        if length is None:
            length = max(0, self.size(key) - offset)
        try:
            return self._disk.read(self._path(key), offset, length)
        except FileNotFoundError:
            raise NotFound(f"no blob {key}") from None

    def read_into(self, key: str, target: memoryview) -> int:
        """Fill `target` from a blob's beginning; how many bytes. Cheapest into whole pages of memory. NotFound."""
        try:
            return self._disk.read_into(self._path(key), target)
        except FileNotFoundError:
            raise NotFound(f"no blob {key}") from None

    def delete(self, key: str) -> bool:
        """Remove a blob for good; False if there was none."""
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
        """Every key, in no order that means anything."""
        for directory in sorted(self._ready):
            yield from self._disk.names(self.root / directory)

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
        if not _KEY.fullmatch(key):
            raise InvalidInput("a blob's key is letters, digits, '.', '_' and '-', at most 200 of them")
        return self.root / sha256(key.encode()).hexdigest()[:2] / key

    def _size(self, key: str) -> int | None:
        try:
            return self._disk.size(self._path(key))
        except FileNotFoundError:
            return None

    def _take(self, size: int) -> None:
        with self._lock:
            if self._used + size > self.allowance_bytes:
                raise DiskFull(
                    f"{size} bytes do not fit: {self.allowance_bytes - self._used} of {self.allowance_bytes} are left",
                    need=size, free=self.allowance_bytes - self._used, allowance=self.allowance_bytes,
                )  # fmt: skip
            self._used += size

    def _give_back(self, size: int) -> None:
        with self._lock:
            self._used -= size

    def _place(self, source: Path, key: str) -> None:
        """Give an arrived file its key. It lasts only after `_settle`."""
        path = self._path(key)
        with self._lock:
            if path.parent.name not in self._ready:
                self._disk.make_dir(path.parent)
                self._disk.sync_dir(self.root)
                self._ready.add(path.parent.name)
            replaced = self._size(key)
            if replaced is None:
                self._settling.add(key)
            self._disk.rename(source, path)
            self._used -= replaced or 0

    def _settle(self, key: str) -> None:
        self._disk.sync_dir(self._path(key).parent)
        self._settling.discard(key)


class Incoming:
    """A blob that is arriving (`Blobs.begin`)."""

    def __init__(self, blobs: Blobs, key: str, path: Path, taken: int, file: File) -> None:
        self.size = 0
        self._blobs, self._key, self._path, self._taken, self._file = blobs, key, path, taken, file
        self._state = "open"

    def write(self, chunk: Buffer) -> None:
        """Append. DiskFull when the allowance or the disk is used up; the put is then over."""
        size = self.size + len(chunk)
        if size > self._taken:
            self._blobs._take(size - self._taken)
            self._taken = size
        try:
            self._file.write(chunk)
        except OSError as error:
            raise _typed(error) from error
        self.size = size

    def commit(self) -> None:
        """Return once the blob is durable under its key."""
        try:
            self._file.sync()
            self._file.close()
            self._blobs._place(self._path, self._key)
            self._state = "committed"
            self._blobs._give_back(self._taken - self.size)
            self._blobs._settle(self._key)
        except OSError as error:
            raise _typed(error) from error

    def abort(self) -> None:
        """Leave nothing behind. Nothing happens after `commit`, nor the second time."""
        if self._state != "open":
            return
        self._state = "aborted"
        self._file.close()
        with suppress(FileNotFoundError):
            self._blobs._disk.remove(self._path)
        self._blobs._give_back(self._taken)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


def _typed(error: OSError) -> Exception:
    return DiskFull(f"the disk is full: {error.strerror}") if error.errno in _FULL else error
