"""One suite for every disk: what the blob store relies on holds on the real one and on the fake one."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from freehold.store.disk import Disk, RealDisk
from tests.store.fake_disk import FakeDisk, PowerCut


@pytest.fixture(params=["real", "fake"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    return RealDisk() if request.param == "real" else FakeDisk(tmp_path)


def write(disk: Disk, path: Path, data: bytes) -> None:
    file = disk.create(path)
    file.write(data)
    file.sync()
    file.close()


def test_what_is_written_is_read(disk: Disk, tmp_path: Path) -> None:
    file = disk.create(tmp_path / "a")
    for chunk in (b"one", bytearray(b"two"), memoryview(b"three"), b""):
        file.write(chunk)
    file.sync()
    file.close()
    file.close()
    assert disk.read(tmp_path / "a", 0, 100) == b"onetwothree"
    assert disk.read(tmp_path / "a", 3, 3) == b"two"
    assert disk.read(tmp_path / "a", 9, 10) == b"ee"
    assert disk.read(tmp_path / "a", 50, 10) == b""
    assert disk.size(tmp_path / "a") == 11


def test_a_name_is_taken_once(disk: Disk, tmp_path: Path) -> None:
    write(disk, tmp_path / "a", b"first")
    with pytest.raises(FileExistsError):
        disk.create(tmp_path / "a")
    assert disk.read(tmp_path / "a", 0, 9) == b"first"


def test_directories(disk: Disk, tmp_path: Path) -> None:
    disk.make_dir(tmp_path / "d")
    write(disk, tmp_path / "d" / "b", b"")
    write(disk, tmp_path / "d" / "a", b"")
    disk.make_dir(tmp_path / "d")
    disk.sync_dir(tmp_path / "d")
    assert disk.names(tmp_path / "d") == ["a", "b"]
    assert disk.names(tmp_path) == ["d"]
    with pytest.raises(FileNotFoundError):
        disk.size(tmp_path / "d")


def test_rename_replaces(disk: Disk, tmp_path: Path) -> None:
    disk.make_dir(tmp_path / "d")
    write(disk, tmp_path / "a", b"new")
    write(disk, tmp_path / "d" / "b", b"old")
    disk.rename(tmp_path / "a", tmp_path / "d" / "b")
    assert disk.read(tmp_path / "d" / "b", 0, 9) == b"new"
    assert disk.names(tmp_path) == ["d"]


def test_remove(disk: Disk, tmp_path: Path) -> None:
    write(disk, tmp_path / "a", b"x")
    disk.remove(tmp_path / "a")
    assert disk.names(tmp_path) == []


def test_what_is_missing_is_said_to_be(disk: Disk, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    for call in (
        lambda: disk.read(gone, 0, 1),
        lambda: disk.size(gone),
        lambda: disk.remove(gone),
        lambda: disk.names(gone),
        lambda: disk.sync_dir(gone),
        lambda: disk.create(gone / "a"),
        lambda: disk.make_dir(gone / "a"),
        lambda: disk.rename(gone, tmp_path / "b"),
    ):
        with pytest.raises(FileNotFoundError):
            call()


def test_the_fake_disk_forgets_what_was_not_synced(tmp_path: Path) -> None:
    disk = FakeDisk(tmp_path)
    write(disk, tmp_path / "named", b"synced")
    disk.sync_dir(tmp_path)
    write(disk, tmp_path / "unnamed", b"synced")
    disk.create(tmp_path / "empty").write(b"not synced")
    disk.sync_dir(tmp_path)
    disk.rename(tmp_path / "named", tmp_path / "renamed")
    disk.remove(tmp_path / "unnamed")
    after = disk.reboot()
    assert after.names(tmp_path) == ["empty", "named", "unnamed"]
    assert after.read(tmp_path / "empty", 0, 9) == b""
    lucky = disk.reboot("all")
    assert lucky.names(tmp_path) == ["empty", "renamed"]
    assert lucky.read(tmp_path / "empty", 0, 10) == b"not synced"


def test_the_fake_disk_is_cut_where_it_is_told(tmp_path: Path) -> None:
    disk = FakeDisk(tmp_path, cut_after=2)
    file = disk.create(tmp_path / "a")
    file.write(b"1")
    for call in (lambda: file.write(b"2"), file.sync, lambda: disk.names(tmp_path)):
        with pytest.raises(PowerCut):
            call()
    assert disk.reboot("all").read(tmp_path / "a", 0, 9) == b"1"


@pytest.mark.parametrize("size", [0, 1, 4096, 5000, (3 << 20) + 7])
def test_reading_into_memory_gives_what_fits_of_the_file(disk: Disk, tmp_path: Path, size: int) -> None:
    data, pages = bytes(i % 251 for i in range(size)), memoryview(mmap.mmap(-1, 4 << 20))
    file = disk.create(tmp_path / "file")
    file.write(data)
    file.sync()
    file.close()
    for target in (pages, pages[: size // 4096 * 4096], pages[1 : size // 2 + 1]):
        count = disk.read_into(tmp_path / "file", target)
        assert bytes(target[:count]) == data[: len(target)]
    with pytest.raises(FileNotFoundError):
        disk.read_into(tmp_path / "none", pages)
