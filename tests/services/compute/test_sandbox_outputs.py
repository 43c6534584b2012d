"""What is taken of a folder that a program wrote, among what it may plant there."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.protocol.errors import DiskFull
from freehold.services.compute.executors.outputs import close_all, collect, copy_out, matches
from freehold.services.compute.tasks import check_path


def taken(folder: Path, *patterns: str, files: int = 100, size: int = 10**6) -> dict[str, bytes]:
    found = collect(folder, patterns or ("**",), files=files, size=size)
    try:
        return {one.path: one.file.read() for one in found}
    finally:
        close_all(found)


@contextmanager
def open_folder(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """Two plain files, among what is none."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "wallet").write_text("secret")
    out = tmp_path / "out"
    (out / "a").mkdir(parents=True)
    (out / "plain").write_bytes(b"plain")
    (out / "a" / "deep").write_bytes(b"deep")
    (out / "a" / "deep").chmod(0o755)
    (out / "file").symlink_to(tmp_path / "secret" / "wallet")
    (out / "up").symlink_to("../secret/wallet")
    (out / "folder").symlink_to(tmp_path / "secret")
    (out / "loop").symlink_to("loop")
    (out / "gone").symlink_to("nothing")
    os.link(tmp_path / "secret" / "wallet", out / "hard")
    os.mkfifo(out / "pipe")
    (out / "back\\slash").write_bytes(b"x")
    (out / "new\nline").write_bytes(b"x")
    Path(os.fsdecode(os.fsencode(out) + b"/\xff")).write_bytes(b"x")
    with socket.socket(socket.AF_UNIX) as listener, open_folder(out) as folder:
        listener.bind(f"/proc/self/fd/{folder}/socket")
    return out


def test_only_plain_files_are_taken(planted: Path) -> None:
    assert taken(planted) == {"plain": b"plain", "a/deep": b"deep"}


def test_copies_are_plain_files_too(planted: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    target.mkdir()
    with open_folder(tmp_path) as box:
        copy_out(box, "out", target, files=10, size=100)
    assert sorted(str(path.relative_to(target)) for path in target.rglob("*")) == ["a", "a/deep", "plain"]
    assert (target / "a" / "deep").stat().st_mode & 0o777 == 0o700
    assert (target / "plain").stat().st_mode & 0o777 == 0o600


def test_folder_that_became_a_symlink_is_empty(planted: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    target.mkdir()
    with open_folder(planted) as box:
        copy_out(box, "folder", target, files=10, size=100)
        copy_out(box, "nothing", target, files=10, size=100)
    assert list(target.iterdir()) == []


def test_file_that_was_changed_for_a_symlink_is_not_followed(planted: Path, tmp_path: Path) -> None:
    found = collect(planted, ["**"], size=100)
    (planted / "plain").unlink()
    (planted / "plain").symlink_to(tmp_path / "secret" / "wallet")
    (planted / "a" / "deep").unlink()
    (planted / "a").rmdir()
    (planted / "a").symlink_to(tmp_path / "secret")
    for one in found:
        with pytest.raises(OSError):
            _ = one.file


def test_more_than_its_bounds_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(2**40)
    assert len(collect(tmp_path, ["**"], files=3, size=3 * 2**40)) == 3
    with pytest.raises(DiskFull):
        collect(tmp_path, ["**"], files=3, size=3 * 2**40 - 1)
    with pytest.raises(DiskFull):
        collect(tmp_path, ["**"], files=2, size=2**60)
    assert len(collect(tmp_path, ["a"], files=1, size=2**40)) == 1  # what nobody asked for does not count


def test_more_files_than_a_process_may_have_open(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"{number:03}").write_bytes(b"%d" % number)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 64, hard))
    try:
        for one in collect(tmp_path, ["**"], files=300, size=10**6):
            assert one.file.read() == b"%d" % int(one.path)
            one.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("path", "pattern", "does"),
    [
        ("a", "a", True),
        ("a", "*", True),
        ("a/b", "*", False),
        ("a/b", "**", True),
        ("a/b", "a/*", True),
        ("a/b/c.png", "**/*.png", True),
        ("c.png", "**/*.png", True),
        ("c.jpg", "**/*.png", False),
        ("a/b/c", "a/**/c", True),
        ("a/c", "a/**/c", True),
        ("a/c/d", "a/**/c", False),
        ("a/b/c", "**/b/**", True),
        ("frame-07.png", "frame-[0-9][0-9].png", True),
        ("a", "/a/", True),
        ("A", "a", False),
    ],
)
def test_pattern(path: str, pattern: str, does: bool) -> None:
    assert matches(path, [pattern]) is does
    assert matches(path, ["nothing", pattern]) is does


def test_pattern_of_many_stars_costs_little() -> None:
    assert not matches("/".join(["a"] * 250), ["/".join(["**", "a"] * 60 + ["b"])])
    assert matches("/".join(["a"] * 250), ["**/" * 80_000 + "a"])


NAMES = st.text(alphabet="ab.", min_size=1, max_size=3).filter(lambda name: name.strip("."))


@given(st.lists(NAMES, min_size=1, max_size=4))
def test_path_matches_itself_and_everything(parts: list[str]) -> None:
    path = "/".join(parts)
    check_path(path)
    assert matches(path, [path])
    assert matches(path, ["**"])
    assert matches(path, [f"**/{parts[-1]}"])
