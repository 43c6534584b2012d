"""Blobs by key, within an allowance: what a directory (`blobs.py`) and an S3 bucket (`bucket.py`) have in common.

Invariant: whatever a put acknowledged is there, whole; whatever it did not is there whole or not at all, and never
under its key in part. The allowance bounds what is stored plus what is arriving; it is counted anew at each start from
what is there, so it cannot drift. tests/store/blobs_conformance.py is what both must do.

Everything blocks: call it in a thread. Any number of threads may; but one process at a time owns the place.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from threading import Lock
from types import TracebackType
from typing import Self

from freehold.protocol.errors import DiskFull, InvalidInput

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")

Buffer = bytes | bytearray | memoryview


class BlobStore(ABC):
    """At most `allowance_bytes` of blobs: their contents, without what the place itself needs for each."""

    def __init__(self, allowance_bytes: int) -> None:
        self.allowance_bytes = allowance_bytes
        self._lock = Lock()
        self._used = 0

    @property
    def used_bytes(self) -> int:
        """Bytes stored and arriving."""
        return self._used

    @property
    def free_bytes(self) -> int:
        """Bytes left of the allowance; the place itself may have fewer."""
        return max(0, self.allowance_bytes - self._used)

    @abstractmethod
    def begin(self, key: str, size: int = 0) -> Arriving:
        """Start a put that arrives piece by piece; `size` bytes of allowance are taken at once, the rest as it comes.

        DiskFull when they are not to be had. Use as a context: leaving it without `commit` leaves nothing behind.
        """

    def put(self, key: str, chunks: Iterable[Buffer]) -> int:
        """Store a blob, in place of one with this key; returns its size once it is durable. DiskFull."""
        with self.begin(key) as arriving:
            for chunk in chunks:
                arriving.write(chunk)
            arriving.commit()
            return arriving.size

    @abstractmethod
    def has(self, key: str) -> bool:
        """Whether a blob is stored, durably."""

    @abstractmethod
    def size(self, key: str) -> int:
        """A blob's bytes. NotFound."""

    @abstractmethod
    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """A blob or a range of it; shorter where the blob ends. NotFound."""

    @abstractmethod
    def read_into(self, key: str, target: memoryview) -> int:
        """Fill `target` from a blob's beginning; how many bytes. NotFound."""

    @abstractmethod
    def delete(self, key: str) -> bool:
        """Remove a blob for good; False if there was none."""

    @abstractmethod
    def list_keys(self) -> Iterator[str]:
        """Every key, in no order that means anything."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what it takes to reach the place."""

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


class Arriving(ABC):
    """A blob that is arriving (`BlobStore.begin`)."""

    def __init__(self, store: BlobStore, taken: int) -> None:
        self.size = 0
        self._store, self._taken = store, taken

    def write(self, chunk: Buffer) -> None:
        """Append. DiskFull when the allowance or the place is used up; the put is then over."""
        size = self.size + len(chunk)
        if size > self._taken:
            self._store._take(size - self._taken)
            self._taken = size
        self._append(chunk)
        self.size = size

    @abstractmethod
    def _append(self, chunk: Buffer) -> None: ...

    @abstractmethod
    def commit(self) -> None:
        """Return once the blob is durable under its key."""

    @abstractmethod
    def abort(self) -> None:
        """Leave nothing behind. Nothing happens after `commit`, nor the second time."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


def check_key(key: str) -> str:
    """The key, if it is one that every place takes. InvalidInput."""
    if not _KEY.fullmatch(key):
        raise InvalidInput("a blob's key is letters, digits, '.', '_' and '-', at most 200 of them")
    return key


def check_range(offset: int, length: int | None) -> None:
    """InvalidInput for a range that is none."""
    if offset < 0 or (length is not None and length < 0):
        raise InvalidInput(f"a range from {offset} of {length} bytes")
