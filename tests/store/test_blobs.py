"""Blobs: what a put acknowledged survives a cut after any operation; what it did not is whole or absent."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from freehold.protocol.errors import DiskFull
from freehold.store.blobs import Blobs
from freehold.store.disk import Disk, RealDisk
from tests.store.blobs_conformance import (
    ALLOWANCE,
    BlobsConformance,
    Child,
    KillConformance,
    ListUnfinished,
    Reopen,
    stored,
)
from tests.store.fake_disk import FakeDisk, FakeFile, PowerCut


@pytest.fixture(params=["real", "fake"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    return RealDisk() if request.param == "real" else FakeDisk(tmp_path)


@pytest.fixture
def blobs(disk: Disk, tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "blobs", ALLOWANCE, disk)


class TestDirectory(BlobsConformance):
    @pytest.fixture
    def reopen(self, disk: Disk, tmp_path: Path) -> Reopen:
        return lambda allowance: Blobs(tmp_path / "blobs", allowance, disk)

    @pytest.fixture
    def list_unfinished(self, disk: Disk, tmp_path: Path) -> ListUnfinished:
        return lambda: disk.names(tmp_path / "blobs" / "incoming")


class TestDirectoryThroughKills(KillConformance):
    @pytest.fixture
    def reopen(self, tmp_path: Path) -> Reopen:
        return lambda allowance: Blobs(tmp_path / "blobs", allowance)

    @pytest.fixture
    def list_unfinished(self, tmp_path: Path) -> ListUnfinished:
        return lambda: sorted(path.name for path in (tmp_path / "blobs" / "incoming").iterdir())

    @pytest.fixture
    def child(self, tmp_path: Path) -> Child:
        return Child(f"""
from pathlib import Path
from freehold.store.blobs import Blobs
def open_blobs(allowance):
    return Blobs(Path({str(tmp_path / "blobs")!r}), allowance)
""")


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
