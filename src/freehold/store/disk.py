"""What the blob store asks of a file system, and the real one.

The seam is as narrow as the rules of durability: a file's bytes survive a power cut only once `File.sync` returned, a
name (created, renamed or removed) only once `sync_dir` of its directory did. The tests' `FakeDisk` forgets everything
else at a cut.

Errors are the operating system's: FileNotFoundError, FileExistsError, and OSError with ENOSPC or EDQUOT.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Protocol


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
    def __init__(self, handle: int) -> None:
        self._handle = handle

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        view = memoryview(chunk).cast("B")
        while view:
            view = view[os.write(self._handle, view) :]

    def sync(self) -> None:
        os.fsync(self._handle)

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def _read_exactly(handle: int, length: int) -> bytes:
    chunk = os.read(handle, length)
    parts = [chunk]
    got = len(chunk)
    while chunk and got < length:
        chunk = os.read(handle, length - got)
        parts.append(chunk)
        got += len(chunk)
    return parts[0] if len(parts) == 1 else b"".join(parts)
