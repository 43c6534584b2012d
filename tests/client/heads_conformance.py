"""What every `Heads` must do. `make` gives heads over one place, as if in another process each time."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from freehold.client.bucket_heads import Head, Heads
from freehold.protocol.errors import Conflict, InvalidInput

Make = Callable[[], Heads]


class HeadsConformance:
    """Inherit, and provide `make`."""

    def test_what_is_not_there_is_none(self, make: Make) -> None:
        assert make().read("demo") is None
        assert make().names() == []

    def test_what_was_set_is_read_by_others(self, make: Make) -> None:
        make().compare_and_set("demo", None, Head(1, b"one"))
        make().compare_and_set("demo", Head(1, b"one"), Head(2, b"two"))
        make().compare_and_set("other", None, Head(1, b""))
        assert make().read("demo") == Head(2, b"two")
        assert make().names() == ["demo", "other"]

    @pytest.mark.parametrize("expected", [None, Head(1, b"two"), Head(2, b"one"), Head(3, b"")])
    def test_another_head_than_expected_is_a_conflict(self, make: Make, expected: Head | None) -> None:
        heads = make()
        heads.compare_and_set("demo", None, Head(1, b"one"))
        with pytest.raises(Conflict):
            heads.compare_and_set("demo", expected, Head((expected.version if expected else 0) + 1, b"new"))
        assert heads.read("demo") == Head(1, b"one")

    def test_versions_do_not_skip(self, make: Make) -> None:
        with pytest.raises(InvalidInput):
            make().compare_and_set("demo", None, Head(2, b""))

    def test_a_bucket_goes(self, make: Make) -> None:
        heads = make()
        heads.compare_and_set("demo", None, Head(1, b"one"))
        with pytest.raises(Conflict):
            heads.compare_and_set("demo", Head(1, b"other"), None)
        heads.compare_and_set("demo", Head(1, b"one"), None)
        assert heads.read("demo") is None
        assert heads.names() == []

    def test_names_are_checked(self, make: Make) -> None:
        for name in ("..", "a/b", "", "seal.."):
            with pytest.raises(InvalidInput):
                make().read(name)

    def test_of_many_writers_one_wins_each_time(self, make: Make) -> None:
        wins: list[int] = []

        def write(number: int) -> None:
            heads = make()
            for _ in range(20):
                head = heads.read("demo")
                new = Head((head.version if head else 0) + 1, bytes([number]))
                try:
                    heads.compare_and_set("demo", head, new)
                except Conflict:
                    continue
                wins.append(new.version)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        last = make().read("demo")
        assert last is not None
        assert sorted(wins) == list(range(1, last.version + 1))
