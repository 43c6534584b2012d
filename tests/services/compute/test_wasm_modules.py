"""Compiled programs: once a machine, whole or not at all, never loaded when they are not what they were."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import pytest
import wasmtime

from freehold.services.compute.executors import modules
from freehold.services.compute.executors.modules import Compiled, ModuleCache, find, get_name, get_path, prune
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
