"""A member's work is spread from where it starts: its tasks and threads find the pool; Ray where it is told."""

from __future__ import annotations

import asyncio
import builtins
import sys
from collections.abc import Callable
from typing import Any

import pytest

from freehold.oracle.partitions import open_partitions, spread_work
from freehold.protocol import hashing
from freehold.protocol.errors import InvalidInput
from freehold.protocol.partitions import map_rows


def test_threads_begun_within_are_spread_over_the_pool() -> None:
    async def main() -> tuple[bool, bool]:
        with spread_work(None):
            within = await asyncio.create_task(asyncio.to_thread(lambda: hashing._SPREAD.get() is not None))
        return within, await asyncio.to_thread(lambda: hashing._SPREAD.get() is None)

    assert asyncio.run(main()) == (True, True)


def test_where_there_is_no_cluster_rows_are_not_cut() -> None:
    import numpy as np

    calls: list[int] = []
    with spread_work(None):
        map_rows(lambda rows: calls.append(len(rows)), np.zeros(100_000, np.uint8))
    assert calls == [100_000]


def test_without_ray_it_is_told_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name == "ray":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.delitem(sys.modules, "ray", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InvalidInput, match="need ray"), open_partitions("auto", 0):
        pass
