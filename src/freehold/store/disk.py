"""What the blob store asks of a file system, and the real one.

The seam is as narrow as the rules of durability: a file's bytes survive a power cut only once `File.sync` returned, a
name (created, renamed or removed) only once `sync_dir` of its directory did. The tests' `FakeDisk` forgets everything
else at a cut.

What is written here is synced at once and seldom read soon. So the real file system is asked to take it past its cache
where it can (O_DIRECT): to find and fill a fresh page of cache for each page costs several times what all the rest of
a write does. Where it cannot, or the file is small, the cache is used; nothing else differs. `read_into` reads whole
files the same way: a file that is read again comes from the disk again.

Errors are the operating system's: FileNotFoundError, FileExistsError, and OSError with ENOSPC or EDQUOT.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
from collections import deque
from pathlib import Path
from typing import Protocol

_ALIGNMENT = 4096  # of every direct write: no disk's blocks are larger
_BUFFER = 1 << 20
_SPARE = 16  # buffers kept for the next files
_DIRECT = getattr(os, "O_DIRECT", 0)


class File(Protocol):
    """A new file, being written from its beginning."""

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Append all of `chunk`."""

    def sync(self) -> None:
        """Return once every byte written so far is on the disk."""

    def close(self) -> None: ...


class Disk(Protocol):
    """Paths are absolute. Directories are made by `make_dir`, one level at a time."""

    def make_dir(self, path: Path) -> None:
        """Make a directory; nothing happens if it is there."""

    def names(self, path: Path) -> list[str]:
        """The names in a directory, sorted."""

    def create(self, path: Path) -> File:
        """A new file; FileExistsError if the name is taken."""

    def read(self, path: Path, offset: int, length: int) -> bytes:
        """At most `length` bytes from `offset`; fewer at the file's end."""

    def read_into(self, path: Path, target: memoryview) -> int:
        """Fill `target` from the file's beginning; how many bytes there were, fewer at the file's end.

        Past the cache where `target` begins at a page of memory and is whole pages.
        """

    def size(self, path: Path) -> int:
        """A file's size in bytes; FileNotFoundError if it is missing or no file."""

    def rename(self, source: Path, target: Path) -> None:
        """Give a file another name, atomically, in place of whatever had it."""

    def remove(self, path: Path) -> None:
        """Remove a file's name."""

    def sync_dir(self, path: Path) -> None:
        """Return once the directory's names are on the disk as they are now."""


class RealDisk:
    """The operating system's file system."""

    def make_dir(self, path: Path) -> None:
        path.mkdir(exist_ok=True)

    def names(self, path: Path) -> list[str]:
        return sorted(os.listdir(path))

    def create(self, path: Path) -> RealFile:
        return RealFile(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))

    def read(self, path: Path, offset: int, length: int) -> bytes:
        with open(path, "rb", buffering=0) as file:
            file.seek(offset)
            return _read_exactly(file.fileno(), length)

    def read_into(self, path: Path, target: memoryview) -> int:
        if _DIRECT:
            try:
                return _fill(path, _DIRECT, target, _ALIGNMENT)
            except OSError as error:
                if error.errno != errno.EINVAL:  # this file system, or this memory, has nothing but the cache
                    raise
        return _fill(path, 0, target, 1)

    def size(self, path: Path) -> int:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise FileNotFoundError(f"{path} is no file")
        return found.st_size

    def rename(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def remove(self, path: Path) -> None:
        os.unlink(path)

    def sync_dir(self, path: Path) -> None:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class RealFile:
    """Gathers what is written in an aligned buffer, which goes to the disk when it is full or `sync` is called."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._buffer: mmap.mmap | None = None
        self._filled = 0
        self._may_be_direct = bool(_DIRECT)
        self._is_direct = False

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        with memoryview(chunk).cast("B") as view:
            at = 0
            while at < len(view):
                if self._buffer is None:
                    self._buffer = _take_buffer()
                count = min(len(view) - at, _BUFFER - self._filled)
                self._buffer[self._filled : self._filled + count] = view[at : at + count]
                self._filled += count
                at += count
                if self._filled == _BUFFER:
                    self._set_direct(self._may_be_direct)
                    self._flush(0, _BUFFER)
                    self._filled = 0

    def sync(self) -> None:
        whole = self._filled // _ALIGNMENT * _ALIGNMENT if self._is_direct else 0
        self._flush(0, whole)
        if whole < self._filled:  # what follows would not be aligned either
            self._may_be_direct = False
            self._set_direct(False)
            self._flush(whole, self._filled)
        self._filled = 0
        os.fsync(self._handle)

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
        if self._buffer is not None:
            _give_back(self._buffer)
            self._buffer = None

    def _flush(self, at: int, end: int) -> None:
        if self._buffer is None:
            return
        with memoryview(self._buffer) as view:
            while at < end:
                try:
                    at += os.write(self._handle, view[at:end])
                except OSError as error:
                    if error.errno != errno.EINVAL or not self._is_direct:
                        raise
                    self._may_be_direct = False  # this disk wants another alignment
                    self._set_direct(False)

    def _set_direct(self, wanted: bool) -> None:
        if wanted == self._is_direct:
            return
        flags = fcntl.fcntl(self._handle, fcntl.F_GETFL)
        try:
            fcntl.fcntl(self._handle, fcntl.F_SETFL, flags | _DIRECT if wanted else flags & ~_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL or not wanted:
                raise
            self._may_be_direct = False  # this file system has nothing but its cache
        else:
            self._is_direct = wanted


_buffers: deque[mmap.mmap] = deque(maxlen=_SPARE)


def _take_buffer() -> mmap.mmap:
    try:
        return _buffers.pop()
    except IndexError:
        return mmap.mmap(-1, _BUFFER)  # begins at a page


def _give_back(buffer: mmap.mmap) -> None:
    _buffers.append(buffer)


def _fill(path: Path, flags: int, target: memoryview, unit: int) -> int:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        at = 0
        while at < len(target) and (count := os.readv(handle, [target[at:]])):
            at += count
            if count % unit:  # the file's end; a direct read cannot go on from there
                break
        return at
    finally:
        os.close(handle)


def _read_exactly(handle: int, length: int) -> bytes:
    chunk = os.read(handle, length)
    parts = [chunk]
    got = len(chunk)
    while chunk and got < length:
        chunk = os.read(handle, length - got)
        parts.append(chunk)
        got += len(chunk)
    return parts[0] if len(parts) == 1 else b"".join(parts)
