"""Orders in SQL: what an epoch costs grows with what the state keeps, and not with all that was ever ordered."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from freehold.protocol.units import Hash
from freehold.services.compute.node.orders import MIGRATIONS, Orders
from freehold.store.sql import Database


def test_an_epoch_looks_at_undecided_orders_and_those_that_the_state_keeps(tmp_path: Path) -> None:
    kept, *plans = asyncio.run(explain(tmp_path))
    assert "jobs_over (until>?)" in kept
    assert len(plans) == 4, "what waited of the others, unsent and both halves of owed"
    assert all("jobs_undecided" in plan for plan in plans), plans


async def explain(folder: Path) -> list[str]:
    """How SQLite finds the rows of `jobs` in what an epoch asks for."""
    database = Database(folder / "orders.sqlite", MIGRATIONS)
    orders, asked = Orders(database), list[str]()
    try:
        for reading in (database.write, database.read):
            await reading(lambda c: c.set_trace_callback(asked.append))
        await orders.settle(5, {Hash(b"\x01" * 32): 2})
        await orders.unsent(5)
        await orders.owed(5)
        for reading in (database.write, database.read):
            await reading(lambda c: c.set_trace_callback(None))
        selects = [text for text in asked if "FROM jobs" in text]
        return [plan for text in selects for plan in await database.read(lambda c, text=text: _plan(c, text))]
    finally:
        database.close()


def _plan(c: Any, text: str) -> list[str]:
    rows = c.execute(f"EXPLAIN QUERY PLAN {text}").fetchall()
    return [row[3] for row in rows if "jobs" in row[3]]
