"""What can be uploaded: anything that gives its bytes once, in order: a file, bytes, chunks that arrive.

`finish` is where a source says whether what it gave is what was meant: a file that was not written to meanwhile, a body
of the announced length. Whoever checks a digest on the way wraps a source and raises there. Invariant: what `finish`
refuses is never named by anything.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterable
from pathlib import Path
from typing import Protocol

from freehold.protocol.errors import Conflict, InvalidInput, NotFound

_IN_PLACE = 1 << 20  # a shorter piece of memory is copied faster than handed to a thread


class SourceChanged(Conflict):
    """The file was written to while it was being uploaded."""

    code = "source_changed"
    hint = "Nothing was stored. Try again when nobody writes to the file."


class Source(Protocol):
    """Bytes that are read once, in order."""

    @property
    def size(self) -> int | None:
        """Bytes in all; None where only the end tells."""

    async def read(self, buffer: memoryview) -> int:
        """Fill the buffer with what comes next; how many bytes. Less than its length only at the end."""

    async def finish(self) -> None:
        """After the last byte, before anything is listed for good: raises if what was read is not what was meant."""


class FileSource:
    """A regular file, held open. SourceChanged unless its inode, size and times are at the end what they were."""

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
        self._size = status.st_size
        self._at = 0

    def __enter__(self) -> FileSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._handle)

    @property
    def size(self) -> int:
        """Bytes of the file when it was opened."""
        return self._size

    async def read(self, buffer: memoryview) -> int:
        """See `Source`."""
        count = min(len(buffer), self._size - self._at)
        await asyncio.to_thread(self._fill, buffer[:count])
        self._at += count
        return count

    async def finish(self) -> None:
        """See `Source`."""
        if not await asyncio.to_thread(self._is_same):
            raise SourceChanged(f"{self.path} changed while it was being uploaded")

    def _fill(self, buffer: memoryview) -> None:
        at = 0
        while at < len(buffer):
            count = os.preadv(self._handle, [buffer[at:]], self._at + at)
            if count == 0:
                raise SourceChanged(f"{self.path} became shorter while it was being uploaded")
            at += count

    def _is_same(self) -> bool:
        try:
            return _identity(os.fstat(self._handle)) == self._identity == _identity(os.stat(self.path))
        except FileNotFoundError:
            return False


class BytesSource:
    """Bytes in memory."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._data = memoryview(data).cast("B")
        self._at = 0

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self._data)

    async def read(self, buffer: memoryview) -> int:
        """See `Source`."""
        piece = self._data[self._at : self._at + len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    async def finish(self) -> None:
        """Bytes do not change."""


class IterSource:
    """Chunks that arrive, of any sizes. Where `size` is given, InvalidInput unless they come to exactly that."""

    def __init__(self, chunks: AsyncIterable[bytes | bytearray | memoryview], size: int | None = None) -> None:
        self._chunks = aiter(chunks)
        self._size = size
        self._rest = memoryview(b"")
        self._given = 0
        self._ended = False

    @property
    def size(self) -> int | None:
        """What was announced."""
        return self._size

    async def read(self, buffer: memoryview) -> int:
        """See `Source`."""
        at = 0
        while at < len(buffer) and (self._rest or await self._next()):
            piece = self._rest[: len(buffer) - at]
            if len(piece) < _IN_PLACE:
                buffer[at : at + len(piece)] = piece
            else:
                await asyncio.to_thread(_copy, buffer[at : at + len(piece)], piece)
            at += len(piece)
            self._rest = self._rest[len(piece) :]
        self._given += at
        return at

    async def finish(self) -> None:
        """See `Source`."""
        if self._size is None:
            return
        if self._rest or await self._next():
            raise InvalidInput(f"there are more than the {self._size} bytes that were announced")
        if self._given != self._size:
            raise InvalidInput(f"{self._given} of the {self._size} bytes that were announced arrived")

    async def _next(self) -> bool:
        """Whether there is another chunk that holds anything."""
        while not self._ended:
            try:
                self._rest = memoryview(await anext(self._chunks)).cast("B")
            except StopAsyncIteration:
                self._ended = True
                break
            if self._rest:
                return True
        return False


def _copy(target: memoryview, piece: memoryview) -> None:
    target[:] = piece


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
