"""Files of a job in a local folder: names that cannot stand together are refused before anything is written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from freehold.client import jobs_folder
from freehold.client.jobs_folder import CannotPlace, check_places, place
from freehold.protocol.errors import Corrupt, DiskFull

REFUSED = [
    (["a", "a/b"], "'a' is a file and 'a/b' lies below it"),
    (["x/a/b/c", "x/a"], "'x/a' is a file and 'x/a/b/c' lies below it"),
    (["ok", ".bashrc"], "hidden files"),
    (["ok", "x/.git/config"], "hidden files"),
    (["n" * 256], "a part of 256 bytes"),
    (["é" * 128], "a part of 256 bytes"),
    (["file/a"], "is a file here, and 'file/a' is to lie below it"),
    (["folder"], "is a folder here"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    return tmp_path


def everything(folder: Path) -> set[str]:
    return {one.relative_to(folder).as_posix() for one in folder.rglob("*")}


@pytest.mark.parametrize(("names", "message"), REFUSED)
def test_names_in_each_others_way_are_refused_before_anything_is_written(
    folder: Path, names: list[str], message: str
) -> None:
    before = everything(folder)
    with pytest.raises(CannotPlace, match=message.replace("'", ".")):
        check_places(folder, names)
    assert everything(folder) == before


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "", "a//b", "a/", "x\n", "\udcff", "a" * 513])
def test_no_name_leads_out_of_the_folder(folder: Path, name: str) -> None:
    with pytest.raises(Corrupt, match="no path below a folder"):
        check_places(folder, ["ok", name])


def test_a_path_that_is_too_long_for_this_machine_is_refused(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d" * 250] * 15)
    with pytest.raises(CannotPlace, match="paths have less than"):
        check_places(deep, ["/".join(["n" * 200] * 2)])
    assert not any(tmp_path.iterdir())


def test_names_that_the_file_system_takes_for_one_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["Read.me", "read.me", "Straße/a", "STRASSE/b"]
    before = everything(folder)
    check_places(folder, names)  # this one tells them apart, or says so itself
    assert everything(folder) == before
    asked: list[tuple[str, str]] = []

    def folds(_: Path, first: str, second: str) -> bool:
        asked.append((first, second))
        return first.casefold() == second.casefold()

    monkeypatch.setattr(jobs_folder, "_is_one", folds)
    for pair in (["Read.me", "read.me"], ["A/x", "a/x"], ["A/x", "a/y"]):
        with pytest.raises(CannotPlace, match="are one name to the file system"):
            check_places(folder, pair)
    assert ("A", "a") in asked


def test_the_folder_may_be_missing_and_files_are_replaced_whole(folder: Path) -> None:
    target = folder / "new" / "deep" / "out.txt"
    check_places(folder / "new", ["deep/out.txt"])
    place(b"one", target)
    source = folder / "source"
    source.write_bytes(b"two")
    place(source, target)
    assert target.read_bytes() == b"two"
    assert everything(folder / "new") == {"deep", "deep/out.txt"}


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, DiskFull), (errno.EROFS, CannotPlace)])
def test_a_disk_that_does_not_take_it_is_told_plainly(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(kind, match=os.strerror(number)):
        place(b"x", folder / "out")
    assert everything(folder) == {"folder", "file"}
