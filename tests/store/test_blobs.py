"""Blobs: what a put acknowledged survives a cut after any operation; what it did not is whole or absent."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from freehold.protocol.errors import DiskFull, InvalidInput, NotFound
from freehold.store.blobs import Blobs
from freehold.store.disk import Disk, RealDisk
from tests.store.fake_disk import FakeDisk, FakeFile, PowerCut

ALLOWANCE = 1000


@pytest.fixture(params=["real", "fake"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    return RealDisk() if request.param == "real" else FakeDisk(tmp_path)


@pytest.fixture
def blobs(disk: Disk, tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "blobs", ALLOWANCE, disk)


def stored(blobs: Blobs) -> dict[str, bytes]:
    return {key: blobs.read(key) for key in blobs.list_keys()}


def again(blobs: Blobs) -> Blobs:
    return Blobs(blobs.root, blobs.allowance_bytes, blobs._disk)


def test_put_read_delete(blobs: Blobs) -> None:
    assert blobs.put("a", [b"one", bytearray(b"two"), memoryview(b"three")]) == 11
    assert blobs.put("empty", []) == 0
    assert blobs.has("a")
    assert blobs.size("a") == 11
    assert blobs.read("a") == b"onetwothree"
    assert blobs.read("a", 3, 3) == b"two"
    assert blobs.read("a", 6) == b"three"
    assert blobs.read("a", 20) == blobs.read("a", 20, 5) == blobs.read("empty") == b""
    assert blobs.used_bytes == 11
    assert sorted(blobs.list_keys()) == ["a", "empty"]
    assert blobs.delete("a")
    assert not blobs.delete("a")
    assert not blobs.has("a")
    assert blobs.used_bytes == 0
    assert stored(again(blobs)) == {"empty": b""}


def test_what_is_missing(blobs: Blobs) -> None:
    for call in (blobs.read, blobs.size):
        with pytest.raises(NotFound):
            call("a")
    with pytest.raises(NotFound):
        blobs.read("a", 0, 10)


@pytest.mark.parametrize("key", ["", ".", "..", "a/b", "../a", ".hidden", "-x", "a\x00", "a\n", "é", "x" * 201])
def test_keys_that_could_leave_the_directory(blobs: Blobs, key: str) -> None:
    for call in (blobs.read, blobs.size, blobs.has, blobs.delete, blobs.begin):
        with pytest.raises(InvalidInput):
            call(key)


@pytest.mark.parametrize(("offset", "length"), [(-1, None), (0, -1)])
def test_ranges_that_are_none(blobs: Blobs, offset: int, length: int | None) -> None:
    blobs.put("a", [b"x"])
    with pytest.raises(InvalidInput):
        blobs.read("a", offset, length)


def test_a_put_replaces(blobs: Blobs) -> None:
    blobs.put("a", [b"old old"])
    blobs.put("a", [b"new"])
    assert blobs.read("a") == b"new"
    assert blobs.used_bytes == again(blobs).used_bytes == 3


def test_the_allowance_to_the_byte(blobs: Blobs) -> None:
    blobs.put("a", [bytes(ALLOWANCE - 1)])
    with pytest.raises(DiskFull) as caught:
        blobs.put("b", [b"x", b"y"])
    assert caught.value.details == {"need": 1, "free": 0, "allowance": ALLOWANCE}
    assert blobs.free_bytes == 1
    blobs.put("b", [b"x"])
    assert blobs.free_bytes == 0
    assert blobs._disk.names(blobs.root / "incoming") == []
    assert sorted(blobs.list_keys()) == ["a", "b"]
    with pytest.raises(DiskFull):
        blobs.begin("c", 1)


def test_announced_bytes_are_taken_at_once_and_given_back(blobs: Blobs) -> None:
    with blobs.begin("a", 900) as incoming:
        incoming.write(b"x")
        assert blobs.free_bytes == 100
        with pytest.raises(DiskFull):
            blobs.begin("b", 101)
        incoming.commit()
        incoming.abort()
    assert blobs.used_bytes == 1
    assert blobs.read("a") == b"x"


def test_a_put_that_fails_leaves_nothing(blobs: Blobs) -> None:
    def broken() -> Iterator[bytes]:
        yield b"half"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        blobs.put("a", broken())
    with blobs.begin("b", 10) as incoming:
        incoming.write(b"and then nothing")
    assert blobs.used_bytes == 0
    assert stored(blobs) == stored(again(blobs)) == {}
    assert blobs._disk.names(blobs.root / "incoming") == []


def test_leftovers_go_at_the_start(blobs: Blobs) -> None:
    blobs.put("a", [b"kept"])
    blobs.begin("b").write(b"interrupted")
    after = again(blobs)
    assert after._disk.names(after.root / "incoming") == []
    assert stored(after) == {"a": b"kept"}
    assert after.used_bytes == 4


def test_a_lower_allowance_keeps_what_is_there(blobs: Blobs) -> None:
    blobs.put("a", [bytes(500)])
    small = Blobs(blobs.root, 100, blobs._disk)
    assert small.free_bytes == 0
    assert small.read("a") == bytes(500)
    with pytest.raises(DiskFull):
        small.put("b", [b"x"])


def test_a_full_disk_is_said_so_and_leaves_nothing(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path / "blobs", ALLOWANCE, FakeDisk(tmp_path, capacity=100))
    blobs.put("a", [bytes(60)])
    with pytest.raises(DiskFull):
        blobs.put("b", [bytes(30), bytes(30)])
    assert stored(blobs) == {"a": bytes(60)}
    assert blobs.used_bytes == 60
    blobs.put("b", [bytes(40)])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_sync_that_fails_acknowledges_nothing(blobs: Blobs, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise OSError(number, "failed")

    monkeypatch.setattr(FakeFile, "sync", fail)
    monkeypatch.setattr("freehold.store.disk.RealFile.sync", fail)
    with pytest.raises(OSError if number == errno.EIO else DiskFull):
        blobs.put("a", [b"x"])
    assert not blobs.has("a")
    assert blobs.used_bytes == 0


def test_a_name_counts_only_once_its_directory_is_synced(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    sync_dir = blobs._disk.sync_dir

    def watched(path: Path) -> None:
        if path.parent == blobs.root:
            seen.append(blobs.has("a"))
        sync_dir(path)

    monkeypatch.setattr(blobs._disk, "sync_dir", watched)
    blobs.put("a", [b"x"])
    assert seen == [False]
    assert blobs.has("a")


def test_threads_share_the_allowance(blobs: Blobs) -> None:
    refused: list[str] = []

    def worker(name: str) -> None:
        for i in range(20):
            try:
                blobs.put(f"{name}{i}", [bytes(10)] * 2)
            except DiskFull:
                refused.append(name)

    threads = [threading.Thread(target=worker, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(blobs.list_keys())) + len(refused) == 80
    assert blobs.used_bytes == sum(map(len, stored(blobs).values())) == again(blobs).used_bytes <= ALLOWANCE


class Workload:
    """Puts, replacements, deletes and a broken put, and what each state of them may leave after a cut."""

    def __init__(self) -> None:
        self.acknowledged: dict[str, bytes] = {}
        self.pending: tuple[str, bytes | None] | None = None

    def run(self, blobs: Blobs) -> None:
        for step in range(4):
            self._do(f"k{step}", bytes([65 + step]) * (20 + step), blobs)
        self._do("k1", b"replaced, and longer than before", blobs)
        self._do("k2", None, blobs)
        with blobs.begin("never", 50) as incoming:
            incoming.write(b"given up")
        self._do("k4", b"", blobs)
        self._do("k2", b"back", blobs)

    def _do(self, key: str, data: bytes | None, blobs: Blobs) -> None:
        self.pending = (key, data)
        if data is None:
            blobs.delete(key)
            del self.acknowledged[key]
        else:
            blobs.put(key, [data[:7], data[7:]])
            self.acknowledged[key] = data
        self.pending = None

    def check(self, blobs: Blobs) -> None:
        found = stored(blobs)
        expected = dict(self.acknowledged)
        if self.pending is not None:
            key, data = self.pending
            assert found.get(key) in (data, self.acknowledged.get(key)), f"{key} is there in part"
            for state in (found, expected):
                state.pop(key, None)
        assert found == expected
        assert blobs.used_bytes == sum(blobs.size(key) for key in blobs.list_keys())
        assert blobs._disk.names(blobs.root / "incoming") == []


def length_of(root: Path) -> int:
    disk = FakeDisk(root)
    Workload().run(Blobs(root / "blobs", ALLOWANCE, disk))
    return disk.operations


@pytest.mark.parametrize(("luck", "seeds"), [("none", 1), ("all", 1), ("coin", 20)])
def test_a_cut_after_every_operation_loses_nothing_acknowledged(luck: str, seeds: int) -> None:
    root = Path("/disk")
    operations = length_of(root)
    assert operations > 60
    for cut in range(operations + 1):
        for seed in range(seeds):
            disk, work = FakeDisk(root, cut_after=cut), Workload()
            try:
                work.run(Blobs(root / "blobs", ALLOWANCE, disk))
            except PowerCut:
                assert cut < operations
            after = disk.reboot(luck, seed)
            try:
                work.check(Blobs(root / "blobs", ALLOWANCE, after))
                work.check(Blobs(root / "blobs", ALLOWANCE, after.reboot()))
            except AssertionError as error:
                raise AssertionError(f"cut after {cut} of {operations}, luck {luck}, seed {seed}") from error


def test_a_cut_during_the_restart_loses_nothing_either() -> None:
    root, work = Path("/disk"), Workload()
    disk = FakeDisk(root, cut_after=length_of(root) - 3)
    with pytest.raises(PowerCut):
        work.run(Blobs(root / "blobs", ALLOWANCE, disk))
    for cut in range(40):
        after = disk.reboot("all")
        after.cut_after = cut
        try:
            Blobs(root / "blobs", ALLOWANCE, after)
        except PowerCut:
            work.check(Blobs(root / "blobs", ALLOWANCE, after.reboot()))


@pytest.mark.parametrize("forgotten", ["sync", "sync_dir"])
def test_the_enumeration_sees_a_forgotten_sync(forgotten: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: without either of the two syncs it does."""
    nothing: Callable[..., None] = lambda *_: None  # noqa: E731
    monkeypatch.setattr(FakeFile if forgotten == "sync" else FakeDisk, forgotten, nothing)
    root, disk, work = Path("/disk"), FakeDisk(Path("/disk")), Workload()
    work.run(Blobs(root / "blobs", ALLOWANCE, disk))
    with pytest.raises(AssertionError):
        work.check(Blobs(root / "blobs", ALLOWANCE, disk.reboot()))
