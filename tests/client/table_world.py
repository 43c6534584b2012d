"""Tables over heads and a vault in memory, for tests: small limits, so that every path runs with few keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from freehold.client.heads import Heads
from freehold.client.table import Changes, Key, Limits, Memory, Table, Value, View
from freehold.services.storage.client_objects import Code
from tests.client.memory_vault import MemoryVault

NAME, SECRET, CODE = "ab" * 16, b"s" * 32, Code(2, 3)
FIRST: Key = (0, b"", b"")
SMALL = Limits(
    group=8,
    group_bytes=4000,
    flush=12,
    flush_bytes=3000,
    runs=3,
    page=6,
    page_bytes=1500,
    step=2,
    inline_directory=3000,
    disk=20_000,
    patience=5.0,
)
CALM = SMALL._replace(flush=10**9, flush_bytes=10**9)  # flushes when it is told to


def table_over(
    heads: Heads,
    vault: MemoryVault,
    cache: Path,
    limits: Limits = CALM,
    secret: bytes = SECRET,
    memory: int = 4000,
) -> Table:
    return Table(heads, vault, NAME, secret, cache, CODE, memory=Memory(memory), limits=limits)


def key(number: int, space: int = 1) -> Key:
    return (space, b"k%05d" % number, b"")


async def put(table: Table, changes: Mapping[Key, Value | None]) -> int:
    """Commit changes as they are; None removes."""

    async def change(view: View) -> Changes:
        gone = {where for where, value in changes.items() if value is None}
        return Changes({where: value for where, value in changes.items() if value is not None}, gone)

    return await table.commit(change)


async def fill(table: Table, numbers: Iterable[int], size: int = 100) -> dict[Key, Value]:
    """Put a value with a payload at each of these keys, in commits of a few."""
    values = {key(number): Value(b"meta %d" % number, number.to_bytes(4) * (size // 4)) for number in numbers}
    rows = list(values.items())
    for start in range(0, len(rows), 10):
        await put(table, dict(rows[start : start + 10]))
    return values


async def everything(table: Table, *, reverse: bool = False) -> dict[Key, Value]:
    """All entries as a new view gives them, with their payloads."""
    view = await table.view()
    found: dict[Key, Value] = {}
    async for where, value in view.scan(FIRST, reverse=reverse):
        assert where not in found
        found[where] = Value(value.meta, None if value.data is None else await table.payload(value, where))
    return found


async def check_whole(table: Table, vault: MemoryVault) -> None:
    """The newest head names nothing that is not there, and nothing is there that it does not name."""
    named = await table.own_objects()
    assert vault.missing(named) == []
    assert len(vault.files) == len(named)
