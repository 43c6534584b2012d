"""What is kept in memory and on disk stays below its limit; whatever happens to the files, there is an answer."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from freehold.client.sealing import Sealer
from freehold.client.table_cache import DiskCache
from freehold.client.table_memory import Memory
from tests.client.table_world import NAME, SECRET


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 60), st.booleans())))
def test_memory_keeps_what_was_used_last_up_to_its_limit(rows: list[tuple[int, int, bool]]) -> None:
    memory, model = Memory(100), dict[int, int]()
    for number, size, look in rows:
        if look and number in model:
            model[number] = model.pop(number)
        elif look:
            assert memory.get(bytes([number])) is None
            continue
        else:
            model.pop(number, None)
            model[number] = size
            while sum(model.values()) > 100:
                del model[next(iter(model))]
            memory.keep(bytes([number]), size, b"%d" % size)
        assert memory.get(bytes([number])) == b"%d" % model[number]
    assert [number for number in range(10) if bytes([number]) in memory] == sorted(model)
    for number in model:
        memory.drop(bytes([number]))
    assert memory._used == 0


def test_files_stay_below_the_limit_and_the_ones_unused_for_longest_go(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", Sealer(SECRET, NAME), 10_000)
    for number in range(100):
        cache.write(number.to_bytes(16), bytes(1000))
        path = tmp_path / "cache" / number.to_bytes(16).hex()
        os.utime(path, ns=(number, number))
        files = list((tmp_path / "cache").iterdir())
        assert sum(file.stat().st_size for file in files) <= 12_000
        assert path in files
    assert cache.read((99).to_bytes(16)) == bytes(1000)
    assert cache.read((0).to_bytes(16)) is None


def test_no_trouble_with_files_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    cache = DiskCache(folder, Sealer(SECRET, NAME), 10_000)
    cache.write(bytes(16), b"data")
    path = folder / bytes(16).hex()
    good = path.read_bytes()
    assert b"data" not in good
    for broken in (b"", good[:-1], good[:-1] + bytes([good[-1] ^ 1])):
        path.write_bytes(broken)
        assert cache.read(bytes(16)) is None
    path.write_bytes(good)
    path.rename(folder / (b"\x01" * 16).hex())
    assert cache.read(b"\x01" * 16) is None  # another's bytes in its place
    cache.remove(b"\x02" * 16)
    for entry in folder.iterdir():
        entry.unlink()
    folder.rmdir()
    folder.write_bytes(b"a file where the folder should be")
    cache.write(bytes(16), b"data")
    assert cache.read(bytes(16)) is None
