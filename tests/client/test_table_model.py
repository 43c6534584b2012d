"""Any sequence of changes, flushes, merges and reopenings, by two devices, gives what a sorted dict gives.

After each step all that the newest head names is there, and nothing else is: nothing leaks and nothing is lost.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from freehold.client.table import Key, Table, Value
from tests.client.memory_heads import MemoryHeads
from tests.client.memory_vault import MemoryVault
from tests.client.table_world import CALM, SMALL, check_whole, everything, key, put, table_over
from tests.conftest import LONG

T = TypeVar("T")
DEVICES = st.integers(0, 1)
NUMBERS = st.integers(0, 40)
PAYLOADS = st.one_of(st.none(), st.integers(0, 300))


class TableMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.heads, self.vault = MemoryHeads(), MemoryVault()
        self.model: dict[Key, Value] = {}
        self.tables: list[Table] = []
        self.opened = 0
        self.commits = 0

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coroutine)

    @initialize(automatic=st.booleans())
    def begin(self, automatic: bool) -> None:
        self.limits = SMALL if automatic else CALM
        self.tables = [self.open(0), self.open(1)]
        self.run(self.tables[0].create())

    def open(self, cache: int) -> Table:
        return table_over(self.heads, self.vault, Path(self.folder.name) / str(cache), self.limits)

    @rule(device=DEVICES, changes=st.dictionaries(NUMBERS, PAYLOADS, min_size=1, max_size=12))
    def change(self, device: int, changes: dict[int, int | None]) -> None:
        self.commits += 1
        made: dict[Key, Value | None] = {}
        for number, size in changes.items():
            data = None if size is None else (b"%05d" % self.commits * 60)[:size]
            made[key(number)] = None if number % 3 == size else Value(b"m%d" % self.commits, data)
        assert self.run(put(self.tables[device], made)) == self.commits
        for where, value in made.items():
            if value is None:
                self.model.pop(where, None)
            else:
                self.model[where] = value

    @rule(device=DEVICES, low=NUMBERS, count=NUMBERS)
    def remove_range(self, device: int, low: int, count: int) -> None:
        self.commits += 1
        self.run(put(self.tables[device], {key(number): None for number in range(low, low + count)}))
        for number in range(low, low + count):
            self.model.pop(key(number), None)

    @rule(device=DEVICES)
    def flush(self, device: int) -> None:
        async def flush() -> None:
            await self.tables[device].view()
            await self.tables[device]._flusher.flush()

        self.run(flush())

    @rule(device=DEVICES)
    def merge_one_step(self, device: int) -> None:
        async def step() -> None:
            await self.tables[device].view()
            state = await self.tables[device]._register.known()
            if state.directory.runs:
                await self.tables[device]._merger._step(state)

        self.run(step())

    @rule(device=DEVICES)
    def maintain(self, device: int) -> None:
        self.run(self.tables[device].maintain())

    @rule(device=DEVICES, cache=st.integers(0, 2))
    def reopen(self, device: int, cache: int) -> None:
        self.run(self.tables[device].aclose())
        self.opened += 1
        self.tables[device] = self.open(cache if cache < 2 else 2 + self.opened)

    @rule(device=DEVICES, number=NUMBERS)
    def get(self, device: int, number: int) -> None:
        async def get() -> Value | None:
            return await (await self.tables[device].view()).get(key(number))

        found, wanted = self.run(get()), self.model.get(key(number))
        assert (found and found.meta) == (wanted and wanted.meta)

    @rule(device=DEVICES, low=NUMBERS, high=NUMBERS, reverse=st.booleans())
    def scan(self, device: int, low: int, high: int, reverse: bool) -> None:
        async def scan() -> list[Key]:
            view = await self.tables[device].view()
            return [where async for where, _ in view.scan(key(low), key(high), reverse=reverse)]

        wanted = [where for where in sorted(self.model, reverse=reverse) if key(low) <= where < key(high)]
        assert self.run(scan()) == wanted

    @rule(device=DEVICES, reverse=st.booleans())
    def read_everything(self, device: int, reverse: bool) -> None:
        found = self.run(everything(self.tables[device], reverse=reverse))
        assert list(found.items()) == sorted(self.model.items(), reverse=reverse)

    @invariant()
    def nothing_leaks(self) -> None:
        if self.tables:

            async def check() -> None:
                for table in self.tables:
                    for task in (table._flush, table._merge):
                        if task is not None:
                            await task
                    if table._merge is not None:
                        await table._merge
                await check_whole(self.tables[0], self.vault)

            self.run(check())

    def teardown(self) -> None:
        for table in self.tables:
            self.run(table.aclose())
        if self.tables:
            self.run(self.tables[0].maintain())
            last = self.open(99)
            found = self.run(everything(last))
            assert list(found.items()) == sorted(self.model.items())
            self.run(last.aclose())
            self.run(self.tables[0].aclose())
        self.loop.close()
        self.folder.cleanup()


TestTable = TableMachine.TestCase
TestTable.settings = settings(max_examples=2000 if LONG["fuzz"] else 60, stateful_step_count=40)
