"""What is acknowledged stays and counts once: through crashes at every step, lost answers, and writers at once.

The histories: every commit appends its own name to one value, so the value is the order of all commits; a commit's
number is its place there, and a view's number is how many it has. Schedules come from a seed, and repeat as far as the
threads that keep the disk cache let them.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from freehold.client.heads import Head
from freehold.client.table import Changes, Key, Table, Value, View
from freehold.client.table_state import RECENT
from freehold.protocol.errors import Corrupt, FreeholdError, InsufficientCredits, Unavailable
from freehold.services.storage.register_values import FRAMES_LIMIT
from tests.client.memory_heads import MemoryHeads
from tests.client.memory_vault import MemoryVault
from tests.client.table_world import CALM, NAME, SMALL, check_whole, everything, fill, key, put, table_over
from tests.conftest import LONG

LOG: Key = (7, b"log", b"")
NAME_BYTES = 5


class Crash(BaseException):
    """The process ends here."""


class Trap:
    """Lets so many steps go by, then raises: once, or (a crash) at every step from then on."""

    def __init__(self, vault: MemoryVault, heads: MemoryHeads, after: int, crash: bool) -> None:
        self.left = after
        self.vault, self.heads, self.crash = vault, heads, crash
        self.sprung = ""
        vault.before = heads.before = self.step

    def step(self, what: str) -> None:
        if self.sprung and self.crash:
            raise Crash
        self.left -= 1
        if self.left < 0 and not self.sprung:
            self.sprung = what
            if self.crash:
                self.vault.dead = True
                raise Crash
            raise Unavailable(f"at {what}")

    def remove(self) -> None:
        self.vault.before = self.heads.before = lambda what: None
        self.vault.dead = False


async def prepared(folder: Path) -> tuple[MemoryHeads, MemoryVault, dict[Key, Value]]:
    """A table with pages, a run, a tail, and packs that deserve to be rewritten, or to go."""
    heads, vault = MemoryHeads(), MemoryVault()
    table = table_over(heads, vault, folder / "first")
    await table.create()
    model = await fill(table, range(40))
    await table.maintain()
    model |= await fill(table, range(30, 50))
    await table._flusher.flush()
    removed = [key(number) for number in range(25)]
    await put(table, dict.fromkeys(removed))
    for where in removed:
        del model[where]
    await table.aclose()
    return heads, vault, model


@pytest.mark.parametrize("crash", [True, False])
def test_flush_and_merge_may_end_at_any_step(tmp_path: Path, crash: bool) -> None:
    async def attempt(after: int) -> str:
        heads, vault, model = await prepared(tmp_path / str(after))
        table = table_over(heads, vault, tmp_path / str(after) / "second")
        trap = Trap(vault, heads, after, crash)
        try:
            await table.maintain()
        except (Crash, FreeholdError):
            assert trap.sprung
        trap.remove()
        survivor = table_over(heads, vault, tmp_path / str(after) / "third") if crash else table
        assert vault.missing(await survivor.own_objects()) == []
        assert await everything(survivor) == model
        vault.settle(await survivor.own_objects())
        await check_whole(survivor, vault)
        await put(survivor, {key(77): Value(b"after", b"all" * 50)})
        await survivor.maintain()
        assert await everything(survivor) == model | {key(77): Value(b"after", b"all" * 50)}
        await check_whole(survivor, vault)
        await survivor.aclose()
        return trap.sprung

    async def scenario() -> list[str]:
        sprung: list[str] = []
        while not sprung or sprung[-1]:
            sprung.append(await attempt(len(sprung)))
        return sprung

    steps = asyncio.run(scenario())
    assert len(steps) > 40
    assert {"stow", "stowed", "keep", "intend", "done", "fetch", "read", "set", "set done", ""} <= set(steps)


@pytest.mark.parametrize("crash", [True, False])
def test_a_commit_may_end_at_any_step(tmp_path: Path, crash: bool) -> None:
    async def attempt(after: int) -> str:
        heads, vault, model = await prepared(tmp_path / str(after))
        table = table_over(heads, vault, tmp_path / str(after) / "second")
        await table.view()
        large = vault._store(b"large")
        trap = Trap(vault, heads, after, crash)

        async def change(view: View) -> Changes:
            return Changes({key(60): Value(b"new")}, {key(26)}, [large])

        outcome = (await asyncio.gather(table.commit(change), return_exceptions=True))[0]
        trap.remove()
        found = await everything(table_over(heads, vault, tmp_path / str(after) / "third"))
        before, done = model, {**model, key(60): Value(b"new")}
        del done[key(26)]
        assert found == done if isinstance(outcome, int) else found in (before, done)
        is_named = found == before
        assert is_named <= (vault.missing([large]) == [])
        own = await table_over(heads, vault, tmp_path / str(after) / "third").own_objects()
        vault.settle([*own, large] if is_named else own)
        assert len(vault.files) == len(own) + is_named
        return trap.sprung

    async def scenario() -> list[str]:
        sprung: list[str] = []
        while not sprung or sprung[-1]:
            sprung.append(await attempt(len(sprung)))
        return sprung

    assert {"intend", "set", "set done", "done"} <= set(asyncio.run(scenario()))


class Writers:
    """Several devices that write one table at once over heads that lose answers."""

    def __init__(self, folder: Path, seed: int, devices: int) -> None:
        self.draw = random.Random(seed)
        self.heads = MemoryHeads(seed, doubt=self.draw.choice([0.0, 0.1, 0.4]), pause=self.draw.choice([0, 1, 5]))
        self.vault = MemoryVault(seed)
        self.vault.pause = self.draw.choice([0, 1, 5])
        limits = SMALL._replace(patience=self.draw.choice([0.0, 5.0]))
        self.tables = [table_over(self.heads, self.vault, folder / str(n), limits) for n in range(devices)]
        self.acknowledged: dict[str, int] = {}
        self.doubtful: set[str] = set()
        self.count = 0

    async def make(self) -> None:
        doubt, self.heads.doubt = self.heads.doubt, 0.0
        await self.tables[0].create()
        self.heads.doubt = doubt

    async def write(self, table: Table, times: int) -> None:
        for _ in range(times):
            self.count += 1
            name = f"{self.count:0{NAME_BYTES}}"
            where = key(self.draw.randrange(30))
            self.doubtful.add(name)

            async def change(view: View, name: str = name, where: Key = where) -> Changes:
                log = await view.get(LOG)
                names = log.meta if log else b""
                assert view.number == len(names) // NAME_BYTES, "a view that is not what its number says"
                mine = Value(name.encode(), name.encode() * 20)
                puts = {LOG: Value(names + name.encode()), where: mine}
                return Changes(puts, {key(self.draw.randrange(30))} - {where})

            try:
                self.acknowledged[name] = await table.commit(change)
                self.doubtful.discard(name)
            except Unavailable:
                pass
            await asyncio.sleep(0)

    async def read(self, table: Table, times: int) -> None:
        for _ in range(times):
            known = max(self.acknowledged.values(), default=0)
            try:
                view = await table.view()
                assert view.number >= known, "a view older than what was acknowledged before it"
                names = await view.get(LOG)
                rows = [where async for where, _ in view.scan(key(0), key(99), reverse=self.draw.random() < 0.5)]
            except Unavailable:
                continue
            assert len(names.meta if names else b"") // NAME_BYTES >= known
            assert len(rows) == len(set(rows))
            await asyncio.sleep(0)

    async def check(self) -> None:
        self.heads.doubt, self.heads.pause, self.vault.pause = 0.0, 0, 0
        table = self.tables[0]
        for each in self.tables:
            await each.aclose()
        view = await table.view()
        log = await view.get(LOG)
        assert log is not None
        names = [
            log.meta[at : at + NAME_BYTES].decode() for at in range(0, len(log.meta), NAME_BYTES)
        ]  # the order of all commits
        assert len(names) == len(set(names)), "a commit counted twice"
        assert set(self.acknowledged) <= set(names), "a commit was lost"
        assert set(names) <= set(self.acknowledged) | self.doubtful
        for name, number in self.acknowledged.items():
            assert names[number - 1] == name
        assert view.number == len(names)
        for value in (await everything(table)).values():
            if value.data is not None:
                assert value.data == value.meta * 20
        assert self.vault.missing(await table.own_objects()) == []
        await table.maintain()
        self.vault.settle(await table.own_objects())
        await check_whole(table, self.vault)


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_writers_at_once_lose_nothing_and_double_nothing(
    tmp_path: Path, devices: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(seed: int) -> int:
        writers = Writers(tmp_path / str(seed), seed, devices)
        await writers.make()
        async with asyncio.timeout(60):
            await asyncio.gather(
                *(writers.write(table, 8) for table in writers.tables for _ in range(3)),
                *(writers.read(table, 8) for table in writers.tables),
            )
            await writers.check()
        return len(writers.acknowledged)

    total = 0
    for seed in range(2000 if LONG["fuzz"] else 25):
        try:
            total += asyncio.run(scenario(seed))
        except BaseException as error:
            error.add_note(f"seed {seed}, {devices} devices")
            raise
    assert total > 0
    assert not [record for record in caplog.records if isinstance((record.args or (None,))[0], Corrupt)]


def test_an_outcome_that_stays_unknown_is_said_to_be_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        heads, vault = MemoryHeads(), MemoryVault()
        table = table_over(heads, vault, tmp_path, CALM._replace(patience=0.0))
        await table.create()

        async def unknown(name: str, expected: Head | None, new: Head | None) -> None:
            raise Unavailable("no majority answered")

        compare_and_set = heads.compare_and_set
        heads.compare_and_set = unknown  # type: ignore[method-assign]
        with pytest.raises(Unavailable) as raised:
            await put(table, {key(1): Value(b"a")})
        assert raised.value.details == {"outcome": "unknown"}
        heads.compare_and_set = compare_and_set  # type: ignore[method-assign]
        assert await put(table, {key(1): Value(b"b")}) == 1
        assert heads.heads[NAME].version == 2

    asyncio.run(scenario())


@pytest.mark.parametrize("since", [40, RECENT + 40])
def test_a_change_counts_once_however_much_was_changed_since(tmp_path: Path, since: int) -> None:
    """The answer to a change is lost, and while the table looks, another device commits and flushes."""

    async def scenario() -> None:
        heads, vault = MemoryHeads(), MemoryVault()
        table, other = (table_over(heads, vault, tmp_path / name) for name in ("one", "two"))
        await table.create()
        compare_and_set = heads.compare_and_set

        async def unanswered(name: str, expected: Head | None, new: Head | None) -> None:
            heads.compare_and_set = compare_and_set  # type: ignore[method-assign]
            await compare_and_set(name, expected, new)
            for number in range(since):
                await put(other, {key(2): Value(b"%d" % number)})
            await other._flusher.flush()
            raise Unavailable("no majority answered")

        heads.compare_and_set = unanswered  # type: ignore[method-assign]
        result = (await asyncio.gather(put(table, {key(1): Value(b"a")}), return_exceptions=True))[0]
        assert result == 1 if since < RECENT else isinstance(result, Unavailable)
        assert (await table.view()).number == since + 1

    asyncio.run(scenario())


def test_what_fails_after_a_change_was_sent_leaves_it_unknown(tmp_path: Path) -> None:
    async def scenario() -> None:
        heads, vault = MemoryHeads(), MemoryVault()
        table = table_over(heads, vault, tmp_path, CALM._replace(patience=0.0))
        await table.create()
        compare_and_set, read = heads.compare_and_set, heads.read

        async def set_and_fail(name: str, expected: Head | None, new: Head | None) -> None:
            await compare_and_set(name, expected, new)
            raise InsufficientCredits("this group moved, and the next one is to be paid")

        async def damaged(name: str) -> Head | None:
            raise Corrupt("what a node shows is damaged")

        heads.compare_and_set, heads.read = set_and_fail, damaged  # type: ignore[method-assign]
        with pytest.raises(Unavailable) as raised:
            await put(table, {key(1): Value(b"a")})
        assert raised.value.details == {"outcome": "unknown"}
        heads.compare_and_set, heads.read = compare_and_set, read  # type: ignore[method-assign]
        assert list(await everything(table)) == [key(1)]

    asyncio.run(scenario())


def test_a_head_of_many_small_frames_makes_room_too(tmp_path: Path) -> None:
    async def scenario() -> None:
        heads, vault = MemoryHeads(), MemoryVault()
        table = table_over(heads, vault, tmp_path)
        await table.create()
        for number in range(FRAMES_LIMIT + 2):
            await put(table, {(1, b"", b""): Value(b"%d" % number)})
        assert len(heads.heads[NAME].frames) == 2

    asyncio.run(scenario())


def test_a_caller_that_goes_away_does_not_take_others_with_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        heads, vault = MemoryHeads(pause=3), MemoryVault()
        table = table_over(heads, vault, tmp_path)
        await table.create()
        tasks = [asyncio.create_task(put(table, {key(n): Value(b"%d" % n)})) for n in range(20)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, int) for result in results[1::2])
        assert {key(n) for n in range(1, 20, 2)} <= set(await everything(table))
        await table.aclose()

    asyncio.run(scenario())


@pytest.mark.parametrize("seed", range(12))
def test_devices_that_merge_at_once_drop_what_another_has_done(tmp_path: Path, seed: int) -> None:
    async def scenario() -> None:
        heads, vault, model = await prepared(tmp_path)
        heads.pause, vault.pause = 3, 3
        devices = [table_over(heads, vault, tmp_path / str(n)) for n in range(3)]
        vault._draw = random.Random(seed)
        await asyncio.gather(*(device.maintain() for device in devices))
        for device in devices:
            assert await everything(device) == model
        await check_whole(devices[0], vault)
        assert (await devices[0]._register.known()).directory.runs == ()

    asyncio.run(scenario())
