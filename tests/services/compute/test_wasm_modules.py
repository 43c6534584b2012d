"""Compiled programs: once a machine, whole or not at all, never loaded when they are not what they were."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from freehold.services.compute.executors import modules
from freehold.services.compute.executors.modules import Bounds, Compiled, ModuleCache, find, get_name, get_path, prune
from freehold.services.compute.executors.wasm_terms import Stop
from tests.services.compute.wasm_world import Machine, count_to


def write_program(folder: Path, source: str | bytes) -> tuple[Path, str]:
    data = bytes(wasmtime.wat2wasm(source)) if isinstance(source, str) else source
    digest = hashlib.sha256(data).hexdigest()
    (folder / digest).write_bytes(data)
    return folder / digest, digest


def get_files(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.cwasm"))


def test_nodes_that_share_a_folder_compile_once(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    path, digest = write_program(tmp_path, count_to(10))

    async def scenario() -> list[Compiled]:
        return list(await asyncio.gather(*(ModuleCache(cache).get(path, digest, runner=False) for _ in range(3))))

    first, *others = asyncio.run(scenario())
    assert others == [first, first]
    assert get_files(cache) == [first.path]
    assert hashlib.sha256(first.path.read_bytes()).hexdigest() == first.digest
    assert cache.stat().st_mode & 0o777 == 0o700


def test_a_broken_file_is_made_again(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    name = get_name(hash_of(count_to(10)), runner=False)
    machine = Machine(cache, tmp_path / "runs")
    try:
        expected = machine.run(count_to(10)).outcome
        machine.run(count_to(20))
    finally:
        machine.close()
    for damage in ("flipped", "cut", "swapped", "gone"):
        found = find(cache, name)
        assert found is not None
        whole = found.path.read_bytes()
        other = next(file for file in get_files(cache) if file != found.path)
        if damage == "gone":
            found.path.unlink()
        else:
            found.path.write_bytes(
                {
                    "flipped": whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:],
                    "cut": whole[:-1],
                    "swapped": other.read_bytes(),
                }[damage]
            )
        machine = Machine(cache, tmp_path / damage, slots=1)
        try:
            assert machine.run(count_to(10)).outcome == expected
        finally:
            machine.close()
        mended = find(cache, name)
        assert mended is not None
        assert hashlib.sha256(mended.path.read_bytes()).hexdigest() == mended.digest


def hash_of(source: str) -> str:
    return hashlib.sha256(bytes(wasmtime.wat2wasm(source))).hexdigest()


def test_what_takes_too_long_to_compile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "SECONDS", 0.001)
    path, digest = write_program(tmp_path, count_to(10))
    cache = ModuleCache(tmp_path / "cache")
    with pytest.raises(Stop, match="takes more than") as caught:
        asyncio.run(cache.get(path, digest, runner=False))
    assert caught.value.ended == "refused"
    assert get_files(tmp_path / "cache") == []


@pytest.mark.parametrize("bounds", [Bounds(1, 2**33), Bounds(240, 96 * 2**20)])
def test_compiling_ends_at_its_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bounds: Bounds) -> None:
    monkeypatch.setattr(modules, "get_bounds", lambda _: bounds)
    path, digest = write_program(tmp_path, build_functions(200_000))
    with pytest.raises(Stop, match="too much") as caught:
        asyncio.run(ModuleCache(tmp_path / "cache").get(path, digest, runner=False))
    assert caught.value.ended == "refused"
    assert get_files(tmp_path / "cache") == []


def build_functions(count: int) -> bytes:
    """A module of so many functions that do nothing."""
    number = bytes([count & 127 | 128, count >> 7 & 127 | 128, count >> 14])

    def section(kind: int, body: bytes) -> bytes:
        size = len(body)
        return bytes([kind, size & 127 | 128, size >> 7 & 127 | 128, size >> 14 & 127 | 128, size >> 21]) + body

    types, functions, code = b"\1\x60\0\0", number + bytes(count), number + b"\2\0\x0b" * count
    return b"\0asm\1\0\0\0" + section(1, types) + section(3, functions) + section(10, code)


def test_a_small_program_does_not_wait_for_a_large_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "SMALL", 60)
    small, small_digest = write_program(tmp_path, '(module (func (export "_start")))')
    large, large_digest = write_program(tmp_path, count_to(10))
    assert small.stat().st_size <= 60 < large.stat().st_size

    async def scenario() -> None:
        cache, compiling, goes_on = ModuleCache(tmp_path / "cache"), asyncio.Event(), asyncio.Event()
        compile_it = cache._compile

        async def wait(program: Path, *rest: Any) -> Compiled:
            if program == large:
                compiling.set()
                await goes_on.wait()
            return await compile_it(program, *rest)

        monkeypatch.setattr(cache, "_compile", wait)
        first = asyncio.create_task(cache.get(large, large_digest, runner=False))
        second = asyncio.create_task(cache.get(large, large_digest, runner=False))
        await compiling.wait()
        await cache.get(small, small_digest, runner=False)
        assert not first.done()
        goes_on.set()
        assert await first == await second

    asyncio.run(scenario())


def test_what_is_no_program_leaves_nothing(tmp_path: Path) -> None:
    path, digest = write_program(tmp_path, b"\0asm\x01\0\0\0" + bytes(range(100)))
    with pytest.raises(Stop, match="no program for this engine"):
        asyncio.run(ModuleCache(tmp_path / "cache").get(path, digest, runner=False))
    assert get_files(tmp_path / "cache") == []


def test_a_module_is_no_runner(tmp_path: Path) -> None:
    path, digest = write_program(tmp_path, count_to(10))
    with pytest.raises(Stop, match="no program for this engine"):
        asyncio.run(ModuleCache(tmp_path / "cache").get(path, digest, runner=True))


def test_the_longest_unused_go_first(tmp_path: Path) -> None:
    paths = [get_path(tmp_path, f"{number}", "d") for number in range(4)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes(100))
        os.utime(path, (1000 + number, 1000 + number))
    assert find(tmp_path, "0") == Compiled(paths[0], "d")  # which uses it
    prune(tmp_path, 250, keep=paths[1])
    assert get_files(tmp_path) == [paths[0], paths[1]]
