"""A table does what a sorted dict does, through flushes and merges, and tells damage from absence."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from freehold.client.heads import Head, LocalHeads
from freehold.client.table import INLINE_LIMIT, Changes, Limits, Table, Value, View
from freehold.protocol.errors import Conflict, Corrupt, InvalidInput, NotFound, Refused, Unavailable, WrongPassphrase
from tests.client.memory_heads import MemoryHeads
from tests.client.memory_vault import MemoryVault
from tests.client.table_world import (
    CALM,
    FIRST,
    NAME,
    SECRET,
    SMALL,
    check_whole,
    everything,
    fill,
    key,
    put,
    table_over,
)

Scenario = Callable[["World"], Awaitable[None]]


class World:
    """Heads, a vault, and any number of devices."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.heads = MemoryHeads()
        self.vault = MemoryVault()
        self.tables: list[Table] = []

    def device(self, limits: Limits = CALM, secret: bytes = SECRET, cache: str = "", memory: int = 4000) -> Table:
        self.tables.append(
            table_over(self.heads, self.vault, self.folder / (cache or str(len(self.tables))), limits, secret, memory)
        )
        return self.tables[-1]

    async def made(self, limits: Limits = CALM) -> Table:
        table = self.device(limits)
        await table.create()
        return table


def run(folder: Path, scenario: Scenario) -> None:
    async def all_of_it() -> None:
        world = World(folder)
        await scenario(world)
        for table in world.tables:
            await table.aclose()

    asyncio.run(all_of_it())


def test_what_is_put_is_there_in_order_on_every_device_and_after_everything(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        table = await world.made(SMALL)
        values = await fill(table, [n * 7919 % 199 for n in range(199)])
        await put(table, dict.fromkeys([key(3), key(150)]))
        del values[key(3)], values[key(150)]
        wanted = dict(sorted(values.items()))
        for _ in range(2):
            for device in (table, world.device()):
                assert list((await everything(device)).items()) == list(wanted.items())
                assert list((await everything(device, reverse=True)).items()) == list(wanted.items())[::-1]
                view = await device.view()
                assert await view.get(key(3)) is None
                assert (await view.get(key(4))) is not None
                assert await view.get((9, b"", b"")) is None
            await table.maintain()
            await check_whole(table, world.vault)

    run(tmp_path, scenario)


def test_scans_stop_where_they_are_told_and_at_the_edges_of_pages(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        table = await world.made()
        values = sorted((await fill(table, range(0, 100, 2))).items())
        for flushed in range(3):
            if flushed == 1:
                await table.maintain()
            if flushed == 2:
                values = sorted({**dict(values), **await fill(table, range(50, 150, 5))}.items())
            view = await table.view()
            for low in range(0, 101, 7):
                for high in range(0, 160, 13):
                    for reverse in (False, True):
                        found = [where async for where, _ in view.scan(key(low), key(high), reverse=reverse)]
                        wanted = [where for where, _ in values if key(low) <= where < key(high)]
                        assert found == (wanted[::-1] if reverse else wanted)

    run(tmp_path, scenario)


def test_after_everything_was_removed_nothing_is_kept_and_nothing_paid(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        table = await world.made(CALM._replace(inline_directory=20_000))
        values = await fill(table, range(300))
        await table.maintain()
        assert len(world.vault.files) > 40
        for where in values:
            await put(table, {where: None})
        await table.maintain()
        assert world.vault.files == {}
        assert await everything(table) == {}
        assert len(world.heads.heads[NAME].base) < 20_000

    run(tmp_path, scenario)


def test_a_pack_that_is_mostly_dead_is_rewritten_and_what_lives_stays(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        table = await world.made()
        values = await fill(table, range(100))
        await table.maintain()
        other = world.device()
        view = await other.view()
        old = {where: value async for where, value in view.scan(FIRST)}
        for round_ in range(4):
            gone = [where for where in values if where[1][-1] % 5 == round_]
            await put(table, dict.fromkeys(gone))
            for where in gone:
                del values[where]
            await table.maintain()
            await check_whole(table, world.vault)
            assert await everything(table) == values
            assert await everything(world.device()) == values
        kept = [data for data in world.vault.files.values() if b"meta" not in data]
        assert sum(map(len, kept)) < 100 * 100 // 2 + 3000
        for where, value in old.items():  # read before all that; its pack has moved since
            if where in values:
                assert await other.payload(value, where) == values[where].data

    run(tmp_path, scenario)


def test_a_large_directory_is_an_object_and_the_base_stays_small(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        table = await world.made()
        values = await fill(table, range(400))
        await table.maintain()
        assert len(world.heads.heads[NAME].base) < 1000
        assert await everything(world.device()) == values
        await check_whole(table, world.vault)

    run(tmp_path, scenario)


def test_concurrent_commits_share_frames_and_are_numbered_without_a_gap(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        table = await world.made(CALM._replace(group=100))
        seen: list[int] = []

        async def change(view: View) -> Changes:
            found = await view.get(key(0))
            count = int(found.meta) if found else 0
            assert view.number == count
            seen.append(count)
            return Changes({key(0): Value(b"%d" % (count + 1))})

        numbers = await asyncio.gather(*(table.commit(change) for _ in range(100)))
        assert sorted(numbers) == list(range(1, 101))
        assert seen == list(range(100))
        assert world.heads.sets == 2  # one made the table
        assert (await table.view()).number == 100

    run(tmp_path, scenario)


def test_a_group_has_a_limit_of_bytes_and_a_large_change_goes_alone(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        table = await world.made(CALM._replace(group=100, change_bytes=9000))
        sizes = [1500, 1500, 1500, 8000, 100]
        values = [{key(n): Value(bytes(size))} for n, size in enumerate(sizes)]
        assert await asyncio.gather(*(put(table, value) for value in values)) == [1, 2, 3, 4, 5]
        assert [len(frame) // 1000 for frame in world.heads.heads[NAME].frames] == [3, 1, 8, 0]
        with pytest.raises(InvalidInput, match="at most 9000"):
            await put(table, {key(9): Value(bytes(9000))})

    run(tmp_path, scenario)


def test_a_change_that_raises_harms_no_other(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        table = await world.made()

        async def refuse(view: View) -> Changes:
            raise Refused("not so")

        results: list[Any] = await asyncio.gather(
            put(table, {key(1): Value(b"a")}), table.commit(refuse), put(table, {key(2): Value(b"b")}),
            return_exceptions=True,
        )  # fmt: skip
        assert (results[0], results[2]) == (1, 2)
        assert isinstance(results[1], Refused)
        with pytest.raises(Refused):
            await table.commit(refuse)
        assert len(await everything(table)) == 2

    run(tmp_path, scenario)


def test_a_refusal_holds_for_the_newest_head_and_not_for_what_this_device_last_saw(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        table = await world.made()
        await put(table, {key(1): Value(b"a")})
        other = world.device()
        await put(other, {key(1): None})

        async def unless_there(view: View) -> Changes:
            if await view.get(key(1)) is not None:
                raise Refused("it is there")
            return Changes({key(1): Value(b"b")})

        assert await table.commit(unless_there) == 3
        with pytest.raises(Refused):
            await other.commit(unless_there)

    run(tmp_path, scenario)


def test_views_that_overlap_share_a_read_that_began_after_they_were_asked_for(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        table = await world.made()
        world.heads.reads = 0
        await asyncio.gather(*(table.view() for _ in range(50)))
        assert world.heads.reads == 1
        reached, go_on = asyncio.Event(), asyncio.Event()
        read = world.heads.read

        async def slow(name: str) -> Head | None:
            head = await read(name)
            reached.set()
            await go_on.wait()
            return head

        world.heads.read = slow  # type: ignore[method-assign]
        early = asyncio.create_task(table.view())
        await reached.wait()
        world.heads.read = read  # type: ignore[method-assign]
        await put(world.device(), {key(5): Value(b"late")})
        late = asyncio.create_task(table.view())
        await asyncio.sleep(0)
        go_on.set()
        await early
        found = await (await late).get(key(5))
        assert found is not None
        assert found.meta == b"late"

    run(tmp_path, scenario)


def test_a_wrong_secret_is_said_to_be_one_and_changed_bytes_are_corrupt(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        table = await world.made()
        await fill(table, range(5))
        for secret, error in ((b"x" * 32, WrongPassphrase), (SECRET, None)):
            device = world.device(secret=secret)
            if error is None:
                assert len(await everything(device)) == 5
                continue
            with pytest.raises(error):
                await device.view()
            with pytest.raises(error):
                await put(device, {key(1): Value(b"")})
        head = world.heads.heads[NAME]
        for at in (0, 10, 40, len(head.frames[0]) - 1):
            broken = bytearray(head.frames[0])
            broken[at] ^= 1
            world.heads.heads[NAME] = head._replace(frames=(bytes(broken),))
            with pytest.raises(Corrupt):
                await world.device().view()
        world.heads.heads[NAME] = head._replace(base=head.base[:-1] + bytes([head.base[-1] ^ 1]))
        with pytest.raises(Corrupt):
            await world.device().view()
        world.heads.heads[NAME] = head._replace(frames=head.frames * 2)
        with pytest.raises(Corrupt, match="begins at"):
            await world.device().view()
        world.heads.heads[NAME] = head._replace(frames=(head.base,))
        with pytest.raises(Corrupt):
            await world.device().view()

    run(tmp_path, scenario)


def test_damaged_pages_and_packs_are_corrupt_and_a_damaged_cache_costs_a_download(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        table = await world.made()
        values = await fill(table, range(30))
        await table.maintain()
        for path in (tmp_path / "0").iterdir():
            path.write_bytes(b"x" + path.read_bytes()[1:])
        assert await everything(world.device(cache="0")) == values
        fetched = world.vault.fetched
        assert await everything(world.device(cache="0")) == values
        assert world.vault.fetched < fetched + 4000  # of payloads, the first of each pack
        for name, data in list(world.vault.files.items()):
            for broken in (data[:-1], data + b"x", b"\xff" + data[1:]):
                world.vault.files[name] = broken
                if b"meta" in data or len(broken) != len(data):
                    with pytest.raises(Corrupt):
                        await everything(world.device())
            world.vault.files[name] = data
        assert await everything(world.device()) == values

    run(tmp_path, scenario)


def test_what_is_lost_is_unavailable_and_never_an_empty_answer(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        table = await world.made()
        await fill(table, range(30))
        await table.maintain()
        world.vault.files.clear()
        with pytest.raises(Unavailable):
            await everything(world.device())

    run(tmp_path, scenario)


def test_a_scan_goes_on_when_another_device_took_its_pages_away(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        table = await world.made()
        values = sorted(await fill(table, range(0, 200, 2)))
        await table.maintain()
        for reverse in (False, True):
            reader = world.device(CALM._replace(disk=1), memory=1)
            view = await reader.view()
            found = []
            async for where, _ in view.scan(FIRST, reverse=reverse):
                found.append(where)
                if len(found) == 50:
                    await fill(table, range(1, 200, 2))
                    await table.maintain()
            assert found == sorted(set(found), reverse=reverse)
            assert set(values) <= set(found)

    run(tmp_path, scenario)


def test_a_change_made_on_pages_that_are_gone_is_made_again(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        table = await world.made()
        await fill(table, range(60))
        await table.maintain()
        other = world.device(CALM._replace(disk=1), memory=1)
        await other.view()
        await fill(table, range(60, 90))
        await fill(table, range(10, 50))
        await table.maintain()
        runs: list[int] = []

        async def change(view: View) -> Changes:
            runs.append(view.number)
            assert await view.get(key(20)) is not None
            return Changes(remove={key(20)})

        assert await other.commit(change) == runs[-1] + 1
        assert len(runs) == 2
        assert await (await table.view()).get(key(20)) is None

    run(tmp_path, scenario)


def test_a_packed_payload_may_be_put_again_at_its_key_only(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        table = await world.made()
        values = await fill(table, range(20))
        await table.maintain()

        def again(source: int, target: int) -> Callable[[View], Awaitable[Changes]]:
            async def change(view: View) -> Changes:
                value = await view.get(key(source))
                assert value is not None
                return Changes({key(target): Value(b"changed", value.data)})

            return change

        for _ in range(3):
            await table.commit(again(1, 1))
            await table.maintain()
        with pytest.raises(InvalidInput, match="belongs to its key"):
            await table.commit(again(1, 2))
        assert await everything(table) == {**values, key(1): Value(b"changed", values[key(1)].data)}
        await check_whole(table, world.vault)

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    "changes",
    [
        Changes({key(1): Value(b"")}, {key(1)}),
        Changes({key(1): Value(b"", bytes(INLINE_LIMIT + 1))}),
        Changes({(-1, b"", b""): Value(b"")}),
        Changes({(1 << 32, b"", b""): Value(b"")}),
        Changes(remove={(-1, b"", b"")}),
    ],
)
def test_what_a_table_does_not_take_is_refused_to_its_caller_alone(tmp_path: Path, changes: Changes) -> None:
    async def scenario(world: World) -> None:
        table = await world.made()

        async def change(view: View) -> Changes:
            return changes

        good, bad = await asyncio.gather(
            put(table, {key(1): Value(b"a")}), table.commit(change), return_exceptions=True
        )
        assert good == 1
        assert isinstance(bad, InvalidInput)

    run(tmp_path, scenario)


def test_tables_are_made_once_and_end_for_good_when_the_check_passes_at_that_version(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        table = world.device()
        for action in (table.view(), table.maintain(), put(table, {})):
            with pytest.raises(NotFound):
                await action
        await table.create()
        with pytest.raises(Conflict):
            await world.device().create()
        await fill(table, range(30))
        await table.maintain()
        other = world.device()
        await other.view()

        async def check(view: View) -> None:
            async for _ in view.scan(FIRST):
                raise Refused("not empty")

        with pytest.raises(Refused):
            await other.close_for_good(check)
        await put(table, {key(n): None for n in range(30)})
        fill_again = True

        async def check_while_others_write(view: View) -> None:
            nonlocal fill_again
            await check(view)
            if fill_again:
                fill_again = False
                await put(table, {key(1): Value(b"late")})

        with pytest.raises(Refused):
            await other.close_for_good(check_while_others_write)
        await put(table, {key(1): None})
        await other.close_for_good(check)
        assert world.vault.files == {}
        for device in (table, other, world.device()):
            with pytest.raises(NotFound):
                await device.view()
            with pytest.raises(NotFound):
                await put(device, {key(1): Value(b"")})
            with pytest.raises(Conflict):
                await device.create()

    run(tmp_path, scenario)


def test_objects_that_a_commit_no_longer_names_are_discarded_once(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        table, other = await world.made(), world.device()
        await other.view()
        async with world.vault.stow(NAME, (2, 3), []) as stowed:  # type: ignore[arg-type]
            large = world.vault._store(b"large")
            await stowed.keep()

        async def change(view: View) -> Changes:
            if await view.get(key(1)) is None:
                await put(other, {key(1): Value(b"other")})  # so that the first try meets a conflict
                return Changes({key(2): Value(b"")}, set(), [large])
            return Changes({key(2): Value(b"")}, set(), [large])

        await table.commit(change)
        assert world.vault.files == {}
        assert world.vault.intents == []

    run(tmp_path, scenario)


def test_a_full_head_makes_room_before_it_takes_more(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        table = await world.made(Limits(flush=10**9, flush_bytes=10**9))
        wanted = {}
        for number in range(90):
            values = {key(number * 8 + n): Value(b"m", bytes([number]) * INLINE_LIMIT) for n in range(8)}
            wanted.update(values)
            await put(table, values)
        assert world.vault.stowed > 6 << 20
        assert await everything(table) == wanted

    run(tmp_path, scenario)


def test_one_get_and_a_short_scan_fetch_a_few_pages_of_a_large_table(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        limits = CALM._replace(page=50, page_bytes=10_000, inline_directory=64 << 10)
        table = await world.made(limits)
        rows = [((1, b"k%05d" % n, b""), Value(b"m" * 100)) for n in range(10_000)]
        for start in range(0, len(rows), 100):
            await put(table, dict(rows[start : start + 100]))
        await table.maintain()
        total = sum(map(len, world.vault.files.values()))
        reader = world.device(limits, memory=1 << 20)
        view = await reader.view()
        world.vault.fetched = 0
        assert await view.get(key(5000)) is not None
        assert world.vault.fetched < total / 100
        found = []
        async for where, _ in view.scan(key(2000)):
            found.append(where)
            if len(found) == 200:
                break
        await reader.aclose()
        assert found == [key(n) for n in range(2000, 2200)]
        assert world.vault.fetched < total / 25

    run(tmp_path, scenario)


def test_over_local_heads_too(tmp_path: Path) -> None:
    async def scenario() -> None:
        heads, vault = LocalHeads(tmp_path / "heads"), MemoryVault()
        first, second = (table_over(heads, vault, tmp_path / str(n), SMALL) for n in range(2))
        await first.create()
        await asyncio.gather(fill(first, range(100)), fill(second, range(100, 200)))
        assert await everything(first) == await everything(second)
        assert len(await everything(first)) == 200
        await first.aclose()
        await second.aclose()

    asyncio.run(scenario())
