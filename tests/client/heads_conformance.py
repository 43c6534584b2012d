"""What every `Heads` must do. `make` gives heads over one place, as if in another process each time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from freehold.client.heads import HEAD_LIMIT, Head, Heads
from freehold.protocol.errors import Conflict, InvalidInput, Unavailable

Make = Callable[[], Heads]
Run = Callable[[Coroutine[Any, Any, None]], None]
NAME, OTHER = "0123456789abcdef" * 2, "f" * 32


class HeadsConformance:
    """Inherit, and provide `make`; `run` where the loop is another."""

    @pytest.fixture
    def run(self) -> Run:
        return asyncio.run

    def test_what_is_not_there_is_none(self, make: Make, run: Run) -> None:
        async def scenario() -> None:
            assert await make().read(NAME) is None

        run(scenario())

    def test_what_was_set_is_read_by_others(self, make: Make, run: Run) -> None:
        async def scenario() -> None:
            one = Head(1, b"base")
            two = Head(2, b"base", (b"first",))
            three = Head(3, b"base", (b"first", b"second"))
            rebased = Head(4, b"another", (b"second", b"third"))
            whole = Head(5, b"", ())
            await make().compare_and_set(NAME, None, one)
            heads = make()
            for before, after in ((one, two), (two, three), (three, rebased), (rebased, whole)):
                assert await heads.read(NAME) == before
                await heads.compare_and_set(NAME, before, after)
                assert await heads.read(NAME) == after
                assert await make().read(NAME) == after
            await make().compare_and_set(OTHER, None, Head(1, b"", (b"", b"")))
            assert await make().read(OTHER) == Head(1, b"", (b"", b""))
            assert await make().read(NAME) == whole

        run(scenario())

    @pytest.mark.parametrize(
        "expected", [None, Head(1, b"two"), Head(2, b"one"), Head(3, b""), Head(1, b"one", (b"f",)), Head(1, b"one")]
    )
    def test_another_head_than_expected_is_a_conflict(self, make: Make, run: Run, expected: Head | None) -> None:
        async def scenario() -> None:
            heads = make()
            await heads.compare_and_set(NAME, None, Head(1, b"one", (b"frame",)))
            for setter in (heads, make()):
                with pytest.raises(Conflict):
                    await setter.compare_and_set(
                        NAME, expected, Head((expected.version if expected else 0) + 1, b"new")
                    )
            assert await make().read(NAME) == Head(1, b"one", (b"frame",))

        run(scenario())

    def test_what_can_be_no_change_is_refused(self, make: Make, run: Run) -> None:
        async def scenario() -> None:
            for name in ("..", "", "a/b", "A" * 32, "0" * 31):
                with pytest.raises(InvalidInput):
                    await make().compare_and_set(name, None, Head(1, b""))
            with pytest.raises(InvalidInput):
                await make().compare_and_set(NAME, None, Head(2, b""))
            with pytest.raises(InvalidInput):
                await make().compare_and_set(NAME, None, Head(1, bytes(HEAD_LIMIT), (b"x",)))
            assert await make().read(NAME) is None

        run(scenario())

    def test_the_largest_head_is_kept(self, make: Make, run: Run) -> None:
        async def scenario() -> None:
            head = Head(1, b"\x01" * (HEAD_LIMIT - 1), (b"x",))
            await make().compare_and_set(NAME, None, head)
            assert await make().read(NAME) == head

        run(scenario())

    def test_a_name_ends_for_good(self, make: Make, run: Run) -> None:
        async def scenario() -> None:
            await make().compare_and_set(NAME, None, Head(1, b"one"))
            with pytest.raises(Conflict):
                await make().compare_and_set(NAME, Head(1, b"other"), None)
            await make().compare_and_set(NAME, Head(1, b"one"), None)
            heads = make()
            assert await heads.read(NAME) is None
            for expected, new in ((None, Head(1, b"one")), (Head(1, b"one"), Head(2, b"two")), (Head(1, b"one"), None)):
                with pytest.raises(Conflict):
                    await heads.compare_and_set(NAME, expected, new)
            assert await make().read(NAME) is None

        run(scenario())

    def test_of_many_writers_one_wins_each_time(self, make: Make, run: Run) -> None:
        wins: list[int] = []
        unknown: list[int] = []

        async def write(number: int) -> None:
            heads = make()
            for _ in range(8):
                head = await heads.read(NAME)
                new = Head((head.version if head else 0) + 1, b"", (*(head.frames if head else ()), bytes([number])))
                try:
                    await heads.compare_and_set(NAME, head, new)
                except Conflict:
                    continue
                except Unavailable:  # on a machine that is busy for long
                    unknown.append(new.version)
                    continue
                wins.append(new.version)

        async def scenario() -> None:
            await asyncio.gather(*(write(number) for number in range(4)))
            last = await make().read(NAME)
            assert last is not None
            assert len(set(wins)) == len(wins)
            assert set(range(1, last.version + 1)) - set(wins) <= set(unknown)
            assert len(last.frames) == last.version >= max(wins)

        run(scenario())

    def test_one_of_two_equal_changes_wins(self, make: Make, run: Run) -> None:
        async def scenario() -> None:
            results = await asyncio.gather(
                *(make().compare_and_set(NAME, None, Head(1, b"same")) for _ in range(3)), return_exceptions=True
            )
            assert results.count(None) <= 1
            assert all(result is None or isinstance(result, Conflict | Unavailable) for result in results)
            assert await make().read(NAME) == Head(1, b"same")

        run(scenario())

    def test_maintaining_changes_no_head(self, make: Make, run: Run) -> None:
        async def scenario() -> None:
            heads = make()
            await heads.maintain()
            await heads.compare_and_set(NAME, None, Head(1, b"one"))
            await heads.maintain()
            assert await make().read(NAME) == Head(1, b"one")

        run(scenario())
