"""Blobs on their way between a client and a node: from bytes or files, and into files that are checked as they arrive.

Which blobs the node has is remembered, not known: it keeps those that orders and receipts name, and may forget others.
Invariant: under the name that a blob was to be written to there is either nothing new, or the blob that was asked for.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import suppress
from pathlib import Path

from freehold.protocol.errors import Corrupt, FreeholdError, InvalidInput
from freehold.services.compute.ordering.link import Link

Source = bytes | Path

PIECE = 1 << 20  # bytes read from a file, and handed to the transport, at once
BLOB_LIMIT = 256 * 2**20  # bytes that a node takes as one blob, and that are read into memory
INLINE_BLOB, INLINE_LIMIT = 64 * 2**10, 1 << 20  # bytes of a blob that goes along with its order, and of all of them
PUSHES = 4  # blobs on their way to a node at once
KNOWN_LIMIT = 65536  # blobs that a node is known to have


class Blobs:
    """The blobs of one client at one node."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._known: dict[str, None] = {}
        self._pushing = asyncio.Semaphore(PUSHES)

    def choose_inline(self, blobs: Mapping[str, Source]) -> dict[str, bytes]:
        """What goes along with an order: small, and not known to be there."""
        chosen: dict[str, bytes] = {}
        room = INLINE_LIMIT
        for name, source in blobs.items():
            if isinstance(source, bytes) and name not in self._known and len(source) <= min(INLINE_BLOB, room):
                chosen[name] = source
                room -= len(source)
        return chosen

    def remember(self, names: Collection[str]) -> None:
        """The node has these."""
        for name in names:
            self._known[name] = None
        while len(self._known) > KNOWN_LIMIT:
            del self._known[next(iter(self._known))]

    def forget(self, names: Collection[str]) -> None:
        """The node misses these."""
        for name in names:
            self._known.pop(name, None)

    async def push(self, sha256: str, source: Source) -> None:
        """Have the node keep a blob; one that it has costs a question, one that it is known to have nothing."""
        if sha256 in self._known:
            return
        size = await size_of(source)
        path = f"/blobs/{sha256}"
        async with self._pushing:
            if not await self._has(path):
                headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
                async with self._link.stream("PUT", path, headers, pieces_of(source)) as response:
                    await response.read()
        self.remember([sha256])

    async def push_all(self, sources: Mapping[str, Source]) -> None:
        """The same of many; all that can be are there where one cannot."""
        pushes = [self.push(name, source) for name, source in sources.items()]
        for result in await asyncio.gather(*pushes, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def _has(self, path: str) -> bool:
        try:
            async with self._link.brief("HEAD", path):
                return True
        except FreeholdError as error:
            if error.details.get("status") == 404:  # an answer to HEAD has no body to say more
                return False
            raise

    async def fetch(self, sha256: str) -> bytes:
        """A blob of at most BLOB_LIMIT bytes. Corrupt where the node sends another."""
        data = bytearray()
        async with self._link.stream("GET", f"/blobs/{sha256}") as response:
            async for piece in response.content.iter_any():
                data += piece
                if len(data) > BLOB_LIMIT:
                    raise self._other(sha256)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise self._other(sha256)
        return bytes(data)

    async def fetch_to(self, sha256: str, path: Path, size: int | None) -> None:
        """A blob into a file, which is there whole or not at all; of exactly `size` bytes where that is known."""
        arrival, arrived = await asyncio.to_thread(Arrival, path), 0
        try:
            async with self._link.stream("GET", f"/blobs/{sha256}") as response:
                async for piece in response.content.iter_any():
                    arrived += len(piece)
                    if size is not None and arrived > size:
                        raise self._other(sha256)
                    await asyncio.to_thread(arrival.write, piece)
            if arrival.sha256 != sha256:
                raise self._other(sha256)
            await asyncio.to_thread(arrival.finish)
        finally:
            arrival.close()

    def _other(self, sha256: str) -> Corrupt:
        return Corrupt(f"{self._link.url} sends another blob than {sha256}", url=self._link.url, sha256=sha256)


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
    """A file that is written beside its place, and put there once it is found to be the one asked for. It blocks."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
        self._hash = hashlib.sha256()
        try:
            self._file = self._temporary.open("xb")
        except OSError as error:
            raise InvalidInput(f"{target.parent} cannot be written to: {error.strerror}") from None

    @property
    def sha256(self) -> str:
        """Of what has arrived."""
        return self._hash.hexdigest()

    def write(self, piece: bytes) -> None:
        """Take the next bytes."""
        self._hash.update(piece)
        self._file.write(piece)

    def finish(self) -> None:
        """Put it in its place, durably."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.replace(self._target)

    def close(self) -> None:
        """Leave nothing beside the place."""
        self._file.close()
        with suppress(FileNotFoundError):
            self._temporary.unlink()
