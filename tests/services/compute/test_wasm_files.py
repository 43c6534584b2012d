"""The files of a WebAssembly job: the same everywhere, nothing outside, never more than allowed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.services.compute.executors import wasm_files
from freehold.services.compute.executors.wasm_files import (
    EEXIST,
    EINVAL,
    EISDIR,
    EMFILE,
    ENAMETOOLONG,
    ENOENT,
    ENOTCAPABLE,
    ENOTDIR,
    ENOTEMPTY,
    ENTRY,
    EROFS,
    Fault,
    File,
    Files,
    Folder,
)
from freehold.services.compute.executors.wasm_terms import Stop


class World:
    """A tree with two inputs, and the host's folders."""

    def __init__(self, folder: Path, disk: int = 100_000) -> None:
        for name in ("in/b", "out", "scratch"):
            (folder / name).mkdir(parents=True)
        (folder / "in" / "a.txt").write_bytes(b"first")
        (folder / "in" / "b" / "c.txt").write_bytes(b"second")
        self.folder = folder
        self.files = Files(folder / "in", folder / "scratch", disk)
        self.root, self.out = self.files.root, self.files.get_top("out")

    def write(self, path: str, data: bytes, offset: int = 0) -> None:
        node = self.files.open(self.root, path, create=True, exclusive=False, truncate=False, write=True)
        assert isinstance(node, File)
        try:
            self.files.write(node, offset, data)
        finally:
            self.files.close(node)

    def read(self, path: str) -> bytes:
        node = self.files.open(self.root, path, create=False, exclusive=False, truncate=False, write=False)
        assert isinstance(node, File)
        try:
            return self.files.read(node, 0, 10**6)
        finally:
            self.files.close(node)

    def finish(self) -> dict[str, bytes]:
        self.files.close_all()
        self.files.finish(self.folder / "out")
        out = self.folder / "out"
        return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def fault_of(action: Callable[[], Any]) -> int:
    with pytest.raises(Fault) as caught:
        action()
    return caught.value.number


def test_inputs_are_read_and_never_changed(world: World) -> None:
    assert (world.read("in/a.txt"), world.read("in/b/c.txt")) == (b"first", b"second")
    files, root = world.files, world.root
    assert fault_of(lambda: world.write("in/a.txt", b"x")) == EROFS
    assert fault_of(lambda: world.write("in/new", b"x")) == EROFS
    assert fault_of(lambda: files.open(root, "in/a.txt", False, False, True, False)) == EROFS
    assert fault_of(lambda: files.remove_file(root, "in/a.txt")) == EROFS
    assert fault_of(lambda: files.make_folder(root, "in/d")) == EROFS
    assert fault_of(lambda: files.rename(root, "in/a.txt", root, "out/a.txt")) == EROFS
    assert fault_of(lambda: files.remove_folder(root, "out")) == EROFS
    assert (world.folder / "in" / "a.txt").read_bytes() == b"first"


def test_what_lies_below_out_comes_out(world: World) -> None:
    world.write("out/x", b"hello")
    world.files.make_folder(world.root, "out/deep")
    world.write("out/deep/y", b"there", offset=3)
    world.write("tmp/z", b"not this")
    assert world.finish() == {"x": b"hello", "deep/y": b"\0\0\0there"}


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("../x", ENOTCAPABLE),
        ("out/../../x", ENOTCAPABLE),
        ("/etc/passwd", ENOTCAPABLE),
        ("out/none/x", ENOENT),
        ("in/a.txt/x", ENOTDIR),
        ("in/a.txt/", ENOTDIR),
        ("out/x/", EISDIR),
        ("", ENOENT),
        ("out", EISDIR),
        ("out/" + "n" * 256, ENAMETOOLONG),
        ("out/" + "n/" * 300, ENAMETOOLONG),
        ("out/new\nline", EINVAL),
        ("out/back\\slash", EINVAL),
    ],
)
def test_paths_that_cannot_be_written(world: World, path: str, number: int) -> None:
    assert fault_of(lambda: world.write(path, b"x")) == number
    assert world.finish() == {}


def test_dots_stay_below(world: World) -> None:
    world.write("in/../out/./x", b"1")
    assert world.read("out/../out/x") == b"1"


def test_removed_files_live_until_they_are_closed(world: World) -> None:
    files = world.files
    node = files.open(world.root, "out/x", create=True, exclusive=True, truncate=False, write=True)
    assert isinstance(node, File)
    files.remove_file(world.root, "out/x")
    files.write(node, 0, b"still here")
    assert files.used == ENTRY + 10
    assert files.read(node, 6, 99) == b"here"
    files.close(node)
    assert files.used == 0
    assert list((world.folder / "scratch").iterdir()) == []


def test_renaming_replaces_as_posix_does(world: World) -> None:
    files, root = world.files, world.root
    world.write("out/a", b"a")
    world.write("tmp/b", b"b")
    files.rename(root, "tmp/b", root, "out/a")
    assert world.read("out/a") == b"b"
    files.make_folder(root, "out/d")
    files.make_folder(root, "out/d/e")
    assert fault_of(lambda: files.rename(root, "out/d", root, "out/d/e/f")) == EINVAL
    assert fault_of(lambda: files.rename(root, "out/a", root, "out/d")) == EISDIR
    assert fault_of(lambda: files.rename(root, "out/d", root, "out/a")) == ENOTDIR
    assert fault_of(lambda: files.remove_folder(root, "out/d")) == ENOTEMPTY
    files.rename(root, "out/d", root, "tmp/d")
    assert isinstance(files.find(root, "tmp/d/e"), Folder)
    assert files.used == 3 * ENTRY + 1
    assert world.finish() == {"a": b"b"}


def test_a_folder_that_is_gone_takes_nothing(world: World) -> None:
    world.files.make_folder(world.root, "out/d")
    gone = world.files.find(world.root, "out/d")
    assert isinstance(gone, Folder)
    world.files.remove_folder(world.root, "out/d")
    assert fault_of(lambda: world.files.make_folder(gone, "e")) == ENOENT


@pytest.mark.parametrize("room", [0, 1])
def test_bytes_are_counted_to_the_last(tmp_path: Path, room: int) -> None:
    world = World(tmp_path, disk=ENTRY + 1000 - 1 + room)
    if room:
        world.write("out/x", bytes(1000))
        assert world.files.used == world.files.disk
    else:
        with pytest.raises(Stop, match="kept more than"):
            world.write("out/x", bytes(1000))
    world.files.close_all()


def test_holes_and_sizes_count_too(world: World) -> None:
    with pytest.raises(Stop, match="kept more than"):
        world.write("out/x", b"1", offset=10**12)
    node = world.files.find(world.root, "out/x")
    assert isinstance(node, File)
    with pytest.raises(Stop, match="kept more than"):
        world.files.resize(node, 2**62)


def test_names_and_handles_are_counted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wasm_files, "ENTRIES", 3)
    monkeypatch.setattr(wasm_files, "HANDLES", 2)
    for name in "abc":
        world.write(f"tmp/{name}", b"")
    with pytest.raises(Stop, match="more than 3 files"):
        world.files.make_folder(world.root, "tmp/d")
    for _ in range(2):
        world.files.open(world.root, "tmp/a", False, False, False, False)
    assert fault_of(lambda: world.files.open(world.root, "tmp/a", False, False, False, False)) == EMFILE
    assert fault_of(lambda: world.files.open(world.root, "in", False, False, False, False)) == EMFILE
    world.files.close_all()


def test_exclusive_creation(world: World) -> None:
    world.write("out/x", b"1")
    assert fault_of(lambda: world.files.open(world.root, "out/x", True, True, False, True)) == EEXIST


def test_a_path_that_no_result_could_have(world: World) -> None:
    """Each step down is short enough; the whole is not."""
    folder = world.out
    for _ in range(3):
        world.files.make_folder(folder, "n" * 200)
        below = folder.entries["n" * 200]
        assert isinstance(below, Folder)
        folder = below
    with pytest.raises(Stop, match="a path below /out"):
        world.finish()


NAMES = ["out/a", "out/b", "out/a/c", "tmp/d", "in/a.txt", "out/../tmp/d", "../x"]
STEPS = st.one_of(
    st.tuples(st.just("write"), st.sampled_from(NAMES), st.integers(0, 3000), st.integers(0, 3000)),
    st.tuples(st.sampled_from(["mkdir", "rmdir", "unlink"]), st.sampled_from(NAMES)),
    st.tuples(st.just("rename"), st.sampled_from(NAMES), st.sampled_from(NAMES)),
    st.tuples(st.just("resize"), st.sampled_from(NAMES), st.integers(0, 3000)),
)


@given(st.lists(STEPS, max_size=30))
def test_what_is_counted_is_what_there_is(steps: list[tuple[Any, ...]]) -> None:
    with TemporaryDirectory() as name:
        world = World(Path(name), disk=10_000)
        for step in steps:
            with suppress(Fault, Stop):
                do_step(world, step)
            sizes, entries = measure_tree(world)
            assert (world.files.used, world.files.entries) == (sizes + ENTRY * entries, entries)
            assert world.files.used <= 10_000
        assert world.files.handles == 0
        expected = {path: data for path, data in read_tree(world, world.out, "out") if data is not None}
        assert {f"out/{path}": data for path, data in world.finish().items()} == expected


def do_step(world: World, step: tuple[Any, ...]) -> None:
    files, root = world.files, world.root
    match step:
        case ("write", path, offset, size):
            world.write(path, b"x" * size, offset)
        case ("mkdir", path):
            files.make_folder(root, path)
        case ("rmdir", path):
            files.remove_folder(root, path)
        case ("unlink", path):
            files.remove_file(root, path)
        case ("rename", path, target):
            files.rename(root, path, root, target)
        case ("resize", path, size):
            node = files.find(root, path)
            if isinstance(node, File):
                files.resize(node, size)


def measure_tree(world: World) -> tuple[int, int]:
    """Bytes and names below /out and /tmp, by what the host has."""
    sizes = entries = 0
    pending = [world.out, world.files.get_top("tmp")]
    while pending:
        for node in pending.pop().entries.values():
            entries += 1
            if isinstance(node, Folder):
                pending.append(node)
            else:
                assert node.path.stat().st_size == node.size
                sizes += node.size
    return sizes, entries


def read_tree(world: World, folder: Folder, path: str) -> list[tuple[str, bytes | None]]:
    found: list[tuple[str, bytes | None]] = []
    for name, node in folder.entries.items():
        if isinstance(node, Folder):
            found += read_tree(world, node, f"{path}/{name}")
        else:
            found.append((f"{path}/{name}", world.read(f"{path}/{name}")))
    return found
