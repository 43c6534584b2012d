"""Sources: what can be read, in order and once, and what counts as a change."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from freehold.protocol.errors import FreeholdError, InvalidInput, NotFound
from freehold.services.storage.client_sources import BytesSource, FileSource, IterSource, Source, SourceChanged

DATA = random.Random(0).randbytes(3000)


async def take(source: Source, size: int) -> bytes:
    """All of a source, by buffers of `size` bytes."""
    parts = []
    while True:
        buffer = memoryview(bytearray(size))
        count = await source.read(buffer)
        parts.append(bytes(buffer[:count]))
        if count < size:
            await source.finish()
            return b"".join(parts)


async def chunks(*sizes: int) -> AsyncIterator[bytes]:
    at = 0
    for size in sizes:
        yield DATA[at : at + size]
        at += size


@pytest.mark.parametrize("size", [1, 7, 1000, 2999, 3000, 3001])
def test_every_source_gives_its_bytes_in_order(tmp_path: Path, size: int) -> None:
    async def scenario() -> None:
        (tmp_path / "file").write_bytes(DATA)
        with FileSource(tmp_path / "file") as source:
            assert source.size == 3000
            assert await take(source, size) == DATA
        assert await take(BytesSource(DATA), size) == DATA
        assert await take(IterSource(chunks(1, 0, 1999, 999, 0, 1, 0)), size) == DATA
        assert await take(IterSource(chunks(1000, 2000), 3000), size) == DATA
        assert await take(IterSource(chunks()), size) == b""

    asyncio.run(scenario())


@pytest.mark.parametrize("announced", [2999, 3001])
def test_chunks_that_are_more_or_less_than_announced_are_refused(announced: int) -> None:
    async def scenario() -> None:
        source = IterSource(chunks(1500, 1500), announced)
        await source.read(memoryview(bytearray(announced)))
        with pytest.raises(InvalidInput, match="announced"):
            await source.finish()

    asyncio.run(scenario())


def test_large_chunks_arrive_whole() -> None:
    async def one() -> AsyncIterator[bytes]:
        yield DATA * 1000

    assert asyncio.run(take(IterSource(one()), 2 << 20)) == DATA * 1000


def test_only_regular_files_are_taken(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        FileSource(tmp_path / "none")
    with pytest.raises(InvalidInput):
        FileSource(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidInput):
        FileSource(tmp_path / "pipe")


def test_any_change_is_told(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for change in (
        lambda: path.write_bytes(b"12345678"),
        lambda: os.utime(path, ns=(1, 1)),
        path.unlink,
        lambda: (path.unlink(), path.write_bytes(b"12345678")),
        lambda: os.truncate(path, 3),
    ):
        path.write_bytes(b"12345678")
        os.utime(path, ns=(5, 5))
        with FileSource(path) as source:
            asyncio.run(source.finish())
            change()
            with pytest.raises(SourceChanged):
                asyncio.run(source.finish())


def test_a_file_that_became_short_is_told_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345678")
    with FileSource(path) as source:
        os.truncate(path, 3)
        with pytest.raises(SourceChanged):
            asyncio.run(source.read(memoryview(bytearray(8))))


def test_the_error_has_a_code_of_its_own() -> None:
    error = FreeholdError.from_json(SourceChanged("it changed").to_json())
    assert isinstance(error, SourceChanged)
    assert (error.code, error.retryable) == ("source_changed", True)
