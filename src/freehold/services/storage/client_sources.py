"""What can be uploaded: a file, or bytes.

A file is read by offset, as often as needed. Invariant: what was uploaded is the file as it stood at the start, or
`SourceChanged` is raised and nothing is recorded: a file is the same if its inode, size and times are.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Protocol

from freehold.protocol.errors import Conflict, InvalidInput, NotFound


class SourceChanged(Conflict):
    """The file was written to while it was being uploaded."""

    code = "source_changed"
    hint = "Nothing was stored. Try again when nobody writes to the file."


class Source(Protocol):
    """Bytes that can be read again."""

    size: int

    def read(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer; blocks. SourceChanged where the source has become too short."""

    def check(self) -> None:
        """SourceChanged unless the source is as it was at the start; blocks."""


class FileSource:
    """A regular file, held open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe must not be waited for
        except FileNotFoundError:
            raise NotFound(f"there is no file {path}") from None
        except OSError as error:
            raise InvalidInput(f"{path} cannot be read: {error.strerror}") from None
        status = os.fstat(self._handle)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise InvalidInput(f"{path} is not a regular file")
        self._identity = _identity(status)
        self.size = status.st_size

    def __enter__(self) -> FileSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._handle)

    def read(self, offset: int, buffer: memoryview) -> None:
        """See `Source`."""
        at = 0
        while at < len(buffer):
            count = os.preadv(self._handle, [buffer[at:]], offset + at)
            if count == 0:
                raise SourceChanged(f"{self.path} became shorter while it was being uploaded")
            at += count

    def check(self) -> None:
        """See `Source`."""
        try:
            same = _identity(os.fstat(self._handle)) == self._identity == _identity(os.stat(self.path))
        except FileNotFoundError:
            same = False
        if not same:
            raise SourceChanged(f"{self.path} changed while it was being uploaded")


class BytesSource:
    """Bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self.size = len(data)

    def read(self, offset: int, buffer: memoryview) -> None:
        """See `Source`."""
        buffer[:] = self._data[offset : offset + len(buffer)]

    def check(self) -> None:
        """Bytes do not change."""


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
