"""Where cgroups may be made, and what is made of their counters: on folders that look like the kernel's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from freehold.services.compute.executors.bounds import Over, Watch, most_files
from freehold.services.compute.executors.cgroups import OWN_TASKS, Counters, Group, find_cgroups
from freehold.services.compute.tasks import FILES_LIMIT, Resources

RESOURCES = Resources(processors=2, memory=100 * 2**20, disk=10 * 2**20, processes=5)


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """A machine with version 1, this process in a cgroup of memory's and at the top of the others."""
    write(
        tmp_path,
        {
            "proc/self/cgroup": "8:pids:/\n4:memory:/user/a\n2:cpu,cpuacct:/\n0::/\n",
            "sys/fs/cgroup/pids/cgroup.procs": "",
            "sys/fs/cgroup/cpu/cgroup.procs": "",
            "sys/fs/cgroup/memory/user/a/cgroup.procs": "",
            "sys/fs/cgroup/memory/user/a/memory.limit_in_bytes": "",
        },
    )
    return tmp_path


@pytest.fixture
def second(tmp_path: Path) -> Path:
    """A machine with version 2, whose cgroup of this process hands its controllers down."""
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/system/node\n",
            "sys/fs/cgroup/system/node/cgroup.controllers": "cpu memory pids\n",
            "sys/fs/cgroup/system/node/cgroup.subtree_control": "cpu memory pids\n",
        },
    )
    return tmp_path


def make(root: Path) -> dict[str, str]:
    """The bounds of a run, by file, where cgroups are plain folders."""
    found = find_cgroups(root)
    assert found is not None
    group = found.make(RESOURCES)
    top = root / "sys/fs/cgroup"
    return {
        str(path.relative_to(top)).replace(f"freehold-{os.getpid()}-", "run").rstrip("0123456789"): path.read_text()
        for door in group.doors
        for path in door.parent.iterdir()
    }


def test_bounds_of_version_one(first: Path) -> None:
    bounds = {Path(path).name: text for path, text in make(first).items()}
    assert bounds["memory.limit_in_bytes"] == str(110 * 2**20)
    assert bounds["pids.max"] == str(5 + OWN_TASKS)
    assert bounds["cpu.cfs_quota_us"] == "200000"


def test_bounds_of_version_two(second: Path) -> None:
    bounds = {Path(path).name: text for path, text in make(second).items()}
    assert bounds["memory.max"] == str(110 * 2**20)
    assert bounds["memory.swap.max"] == "0"
    assert bounds["pids.max"] == str(5 + OWN_TASKS)
    assert bounds["cpu.max"] == "200000 100000"


@pytest.mark.parametrize("lines", ["", "0::/nowhere\n", "8:pids:/\n"])
def test_no_cgroups_where_controllers_are_missing(tmp_path: Path, lines: str) -> None:
    write(tmp_path, {"proc/self/cgroup": lines, "sys/fs/cgroup/pids/cgroup.procs": ""})
    assert find_cgroups(tmp_path) is None


def test_what_a_node_that_is_gone_left_is_removed(second: Path) -> None:
    folder = second / "sys/fs/cgroup/system/node"
    (folder / "freehold-999999999-1").mkdir()
    (folder / f"freehold-{os.getpid()}-7").mkdir()
    (folder / "other-999999999-1").mkdir()
    find_cgroups(second)
    left = {path.name for path in folder.iterdir() if path.is_dir()}
    assert "freehold-999999999-1" not in left
    assert {f"freehold-{os.getpid()}-7", "other-999999999-1"} <= left


class Boxed:
    """A run whose files are in a folder and whose counters are what a test writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write(
            folder,
            {"memory.events": "oom_kill 0\n", "memory.stat": "anon 5\nfile 7\n", "pids.events": "max 0\n"},
        )
        self._open = os.open(folder, os.O_RDONLY)
        counters = Counters({"memory": folder, "pids": folder}, True)
        # The folder's own file system is larger than any task's, so its size is not looked at here.
        self.watch = Watch(RESOURCES, counters, [], self._open, self._open)

    def close(self) -> None:
        os.close(self._open)


@pytest.mark.parametrize(
    ("name", "text", "ended"),
    [
        ("memory.events", "oom 1\noom_kill 1\n", "memory"),
        ("memory.stat", f"anon {100 * 2**20 + 1}\n", "memory"),
        ("memory.stat", f"anon {100 * 2**20}\n", None),
        ("pids.events", "max 1\n", "processes"),
    ],
)
def test_counters_say_what_is_over(
    tmp_path: Path, name: str, text: str, ended: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("freehold.services.compute.executors.bounds.most_files", lambda _: 2**62)
    box = Boxed(tmp_path)
    try:
        assert box.watch.check() is None
        write(tmp_path, {name: text})
        over = box.watch.check()
        assert (over.ended if over is not None else None) == ended
        assert over is None or isinstance(over, Over)
        if ended is not None and name != "memory.stat":
            assert box.watch.explain(1) == over
            assert box.watch.explain(0) is None
    finally:
        box.close()


def test_bound_of_files_grows_with_the_disk() -> None:
    assert most_files(Resources(disk=1)) == FILES_LIMIT
    assert most_files(Resources(disk=2**20)) == FILES_LIMIT + 2**20 // os.sysconf("SC_PAGE_SIZE")
    assert most_files(Resources(disk=2**40)) == 65_536


def test_group_that_cannot_be_made_leaves_nothing(first: Path) -> None:
    found = find_cgroups(first)
    assert found is not None
    (first / "sys/fs/cgroup/pids").chmod(0o700)
    found.folders["pids"] = first / "sys/fs/cgroup/nothing"
    with pytest.raises(OSError):
        Group(found, "freehold-run", RESOURCES)
    assert not list(first.rglob("freehold-run"))
