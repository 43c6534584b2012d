"""A pure function over partitions of many rows, run wherever the caller of settlement says.

    with partition_over(run, 16): settle(...)       run(function, *lists of parts) -> results, in order

Under that context the heaviest work, checking signatures, is cut into parts; each is given to `run` as plain arrays,
which may send them to other processes and machines (`oracle/partitions.py`). Without it the function is called once, on
all rows. It is a context, as the threads of `hashing.spread_over` are, and for the same reason.

Invariant: a function of rows that `map_rows` is given yields for the parts, one after another, what it does for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

MOST_ROWS = 16_384  # of a part: most of a second of a core, and 2 MB of signatures with their digests
LEAST_ROWS = 512  # of a part: to hand it over takes a millisecond


class _Partitions(NamedTuple):
    run: Callable[..., Iterable[Any]]
    ways: int


_PARTITIONS: ContextVar[_Partitions | None] = ContextVar("partitions", default=None)


@contextmanager
def partition_over(run: Callable[..., Iterable[Any]], ways: int) -> Iterator[None]:
    """Within the block, `map_rows` cuts its rows into parts for `run`, at least one for each of `ways` if they do."""
    token = _PARTITIONS.set(_Partitions(run, ways))
    try:
        yield
    finally:
        _PARTITIONS.reset(token)


def map_rows(function: Callable[..., T], *rows: NDArray[Any]) -> list[T]:
    """function(*rows), or its results for consecutive parts of them. Arrays are of one length."""
    partitions, count = _PARTITIONS.get(), len(rows[0])
    if partitions is None or count < 2 * LEAST_ROWS:
        return [function(*rows)]
    size = min(MOST_ROWS, max(LEAST_ROWS, -(-count // partitions.ways)))
    edges = list(range(size, count, size))
    return list(partitions.run(function, *(np.split(part, edges) for part in rows)))
