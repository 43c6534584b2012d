"""Sources: what can be read, and what counts as a change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from freehold.protocol.errors import FreeholdError, InvalidInput, NotFound
from freehold.services.storage.client_sources import BytesSource, FileSource, SourceChanged


def test_ranges_are_filled(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(200)))
    with FileSource(path) as source:
        for each in (source, BytesSource(bytes(range(200)))):
            buffer = bytearray(20)
            each.read(90, memoryview(buffer))
            assert buffer == bytes(range(90, 110))
            assert each.size == 200
            each.check()


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
            source.check()
            change()
            with pytest.raises(SourceChanged):
                source.check()


def test_a_file_that_became_short_is_told_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345678")
    with FileSource(path) as source:
        os.truncate(path, 3)
        with pytest.raises(SourceChanged):
            source.read(0, memoryview(bytearray(8)))


def test_the_error_has_a_code_of_its_own() -> None:
    error = FreeholdError.from_json(SourceChanged("it changed").to_json())
    assert isinstance(error, SourceChanged)
    assert (error.code, error.retryable) == ("source_changed", True)
