"""Blobs on their way between a client and a node: from bytes or files, and into files that are checked as they arrive.

Invariant: under the name that a blob was to be written to there is either nothing new, or the blob that was asked for.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

from freehold.protocol.errors import Corrupt, InvalidInput

Source = bytes | Path

PIECE = 1 << 20  # bytes read from a file, and handed to the transport, at once
BLOB_LIMIT = 256 * 2**20  # bytes that a node takes as one blob


async def size_of(source: Source) -> int:
    """Bytes of a source. InvalidInput where the file cannot be read, or has more than a node takes."""
    if isinstance(source, bytes):
        size = len(source)
    else:
        try:
            size = (await asyncio.to_thread(source.stat)).st_size
        except OSError as error:
            raise InvalidInput(f"{source} cannot be read: {error.strerror}") from None
    if size > BLOB_LIMIT:
        raise InvalidInput(f"a blob has at most {BLOB_LIMIT} bytes, not {size}")
    return size


async def pieces_of(source: Source) -> AsyncIterator[bytes]:
    """Its bytes, in order."""
    if isinstance(source, bytes):
        for at in range(0, len(source), PIECE):
            yield source[at : at + PIECE]
        return
    try:
        file = await asyncio.to_thread(source.open, "rb")
    except OSError as error:
        raise InvalidInput(f"{source} cannot be read: {error.strerror}") from None
    with file:
        while piece := await asyncio.to_thread(file.read, PIECE):
            yield piece


class Arrival:
    """A file that a blob is written to beside its place, and put there once it is found to be the one asked for."""

    def __init__(self, target: Path, sha256: str) -> None:
        self._target, self._sha256 = target, sha256
        self._temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
        self._hash = hashlib.sha256()
        try:
            self._file = self._temporary.open("xb")
        except OSError as error:
            raise InvalidInput(f"{target.parent} cannot be written to: {error.strerror}") from None

    def write(self, piece: bytes) -> None:
        """Take the next bytes. Blocks."""
        self._hash.update(piece)
        self._file.write(piece)

    def finish(self) -> None:
        """Put it in its place, durably. Blocks. Corrupt where it is another blob."""
        if self._hash.hexdigest() != self._sha256:
            raise Corrupt(f"what came as the blob {self._sha256} is another")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.replace(self._target)

    def close(self) -> None:
        """Leave nothing beside the place."""
        self._file.close()
        with suppress(FileNotFoundError):
            self._temporary.unlink()
