"""Keccak-256 over many rows at once.

Few rows go through the plain hash one by one; many go through `kernels.py`, whose compiler takes a second and a
hundred megabytes to load: so it is loaded when first an input is large enough to pay for it, and used from then on.

Threads are handed in: under `with spread_over(pool.map, 2)` rows are hashed in ranges over that pool. It is a
context, not an argument, because every root that settlement computes is somewhere below it and none depends on it.

Invariant: `keccak_rows(parts, n)[i] == keccak(part[i] ‖ part[i] ‖ ..)`, whatever the number of rows or threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sha3 import keccak_256

Bytes: TypeAlias = NDArray[np.uint8]
Integers: TypeAlias = NDArray[Any]

BLOCK_BYTES = 136
LOADING_PAYS = 2**14  # permutations: 16 ms one by one
KERNEL_PAYS = 2**6  # permutations, once the kernels are loaded
CHUNK_BYTES = 2**19  # of padded messages: they stay in a core's cache
RANGES_A_WAY = 32  # so that no thread waits long for the slowest
LITTLE_ENDIAN = np.dtype("<u2").isnative  # the kernels' assumption


class Gathered(NamedTuple):
    """A part whose row i is values[codes[i]]: made chunk by chunk, never whole."""

    values: Bytes
    codes: Integers


Part: TypeAlias = bytes | Bytes | Integers | Gathered


class _Varying(NamedTuple):
    left: int
    right: int
    part: Bytes | Integers | Gathered


class _Spread(NamedTuple):
    map: Callable[..., Iterable[Any]]
    ways: int


_SPREAD: ContextVar[_Spread | None] = ContextVar("spread", default=None)
_kernels: ModuleType | None = None


@contextmanager
def spread_over(run: Callable[..., Iterable[Any]], ways: int) -> Iterator[None]:
    """Within the block, work on many rows runs as `run(function, ranges)` over `ways` threads (`pool.map`)."""
    token = _SPREAD.set(_Spread(run, ways))
    try:
        yield
    finally:
        _SPREAD.reset(token)


def for_ranges(count: int, least: int, function: Callable[[int, int], None]) -> None:
    """Call function(start, stop) on ranges that make up range(count), of at least `least` each if there are several.

    In the threads of `spread_over`, if there are any; a function called there does not spread again.
    """
    spread = _SPREAD.get()
    pieces = 1 if spread is None else max(1, min(spread.ways * RANGES_A_WAY, count // max(1, least)))
    if spread is None or pieces == 1:
        function(0, count)
        return
    edges = [count * i // pieces for i in range(pieces + 1)]
    for _ in spread.map(function, edges[:-1], edges[1:]):
        pass


def load_kernels() -> ModuleType:
    """Compile or load the kernels now. A process with deadlines calls this while it starts, in a thread."""
    global _kernels
    if _kernels is None:
        from freehold.protocol import kernels

        _kernels = kernels
    return _kernels


def _uses_kernels(permutations: int) -> bool:
    return LITTLE_ENDIAN and permutations >= (LOADING_PAYS if _kernels is None else KERNEL_PAYS)


def keccak_rows(parts: Sequence[Part], count: int) -> Bytes:
    """(count, 32): for each row the keccak of its parts side by side.

    A part is bytes (the same in every row), (count, w) uint8, (count,) unsigned integers (8 bytes each, big-endian),
    or `Gathered`.
    """
    size = sum(_width(part, count) for part in parts)
    blocks = size // BLOCK_BYTES + 1
    if not _uses_kernels(count * blocks):
        return _plain_digests(join_parts(parts, count).tobytes(), [size * i for i in range(count + 1)])
    kernels = load_kernels()
    template, varying = _layout(parts, count, blocks * BLOCK_BYTES)
    template[size] ^= 0x01
    template[-1] ^= 0x80
    step = max(KERNEL_PAYS, CHUNK_BYTES // len(template))
    digests = np.empty((count, 32), np.uint8)

    def run(start: int, stop: int) -> None:
        chunk = np.empty((min(step, stop - start), len(template)), np.uint8)
        chunk[:] = template
        for first in range(start, stop, step):
            last = min(first + step, stop)
            rows = chunk[: last - first]
            _fill(rows, varying, first, last)
            kernels.absorb(rows.view(np.uint64), digests[first:last].view(np.uint64))

    for_ranges(count, step, run)
    return digests


def join_parts(parts: Sequence[Part], count: int) -> Bytes:
    """(count, sum of the widths): the parts of each row side by side."""
    template, varying = _layout(parts, count, sum(_width(part, count) for part in parts))
    rows = np.empty((count, len(template)), np.uint8)
    rows[:] = template
    _fill(rows, varying, 0, count)
    return rows


def keccak_ragged(data: Bytes, ends: Integers) -> Bytes:
    """(n, 32): the keccak of each value of a ragged column, the i-th of which ends at ends[i]."""
    count = len(ends)
    edges = np.zeros(count + 1, np.int64)
    edges[1:] = ends
    sizes = np.diff(edges)
    blocks = sizes // BLOCK_BYTES
    if not _uses_kernels(int(blocks.sum()) + count):
        return _plain_digests(data.tobytes(), edges.tolist())
    kernels = load_kernels()
    digests = np.empty((count, 32), np.uint8)
    data = np.ascontiguousarray(data)
    order = np.argsort(blocks, kind="stable") if np.ptp(blocks) else np.arange(count)

    def run(start: int, stop: int) -> None:
        kernels.absorb_ragged(data, edges[:-1], sizes, order[start:stop], digests.view(np.uint64))

    for_ranges(count, KERNEL_PAYS, run)
    return digests


def _layout(parts: Sequence[Part], count: int, size: int) -> tuple[Bytes, list[_Varying]]:
    """A row of `size` bytes with everything that is the same in all rows, and where the rest stands."""
    template = np.zeros(size, np.uint8)
    varying, at = [], 0
    for part in parts:
        width = _width(part, count)
        if isinstance(part, bytes):
            template[at : at + width] = np.frombuffer(part, np.uint8)
        else:
            varying.append(_Varying(at, at + width, part))
        at += width
    return template, varying


def _width(part: Part, count: int) -> int:
    if isinstance(part, bytes):
        return len(part)
    rows = part.codes if isinstance(part, Gathered) else part
    if len(rows) != count:
        raise ValueError(f"a part of {len(rows)} rows among parts of {count}")
    cells = part.values if isinstance(part, Gathered) else part
    return cells.shape[1] if cells.ndim == 2 else 8


def _fill(rows: Bytes, varying: list[_Varying], start: int, stop: int) -> None:
    for left, right, part in varying:
        if isinstance(part, Gathered):
            rows[:, left:right] = part.values[part.codes[start:stop]]
        elif part.ndim == 2:
            rows[:, left:right] = part[start:stop]
        else:
            rows[:, left:right] = part[start:stop].astype(">u8").view(np.uint8).reshape(-1, 8)


def _plain_digests(data: bytes, edges: Sequence[int]) -> Bytes:
    digests = b"".join(keccak_256(data[a:b]).digest() for a, b in pairwise(edges))
    return np.frombuffer(digests, np.uint8).reshape(-1, 32)


def first_of_equal(hashes: Bytes) -> NDArray[np.int64]:
    """Where each distinct hash stands first, ascending."""
    prefixes = np.ascontiguousarray(hashes[:, :8]).view(np.uint64).reshape(-1)
    ordered = np.sort(prefixes)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(repeated):
        return np.arange(len(hashes))
    # A prefix that repeats need not be a hash that does: its finder may have ground for it.
    keep = np.ones(len(hashes), bool)
    seen: set[bytes] = set()
    for i in np.flatnonzero(np.isin(prefixes, repeated)).tolist():
        whole = hashes[i].tobytes()
        keep[i] = whole not in seen
        seen.add(whole)
    return np.flatnonzero(keep)
