"""What a program left in its folder, taken without following anything that it may have planted there.

The program owns its output folder: names in it may be symlinks to the node's files, FIFOs that never answer, devices,
or sparse files of a terabyte. So every step down is an open of one name beneath the folder that is already open, which
fails on a symlink; only regular files with one name are taken; and count and bytes are bounded before any is read.

Invariant: nothing outside the folder is opened, and no call waits for the program.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO, NamedTuple

from freehold.protocol.errors import DiskFull
from freehold.services.compute.tasks import FILES_LIMIT, PATH_LIMIT

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_DEPTH = 64  # folders within folders
_WINDOW = 2**20


class Found(NamedTuple):
    """A file that came out: its path below the folder, with slashes, the file open for reading, its bytes."""

    path: str
    file: BinaryIO
    size: int


def collect(folder: Path, patterns: Sequence[str], *, files: int = FILES_LIMIT, size: int) -> list[Found]:
    """The files below `folder` that a pattern names, in the order of their paths; the caller closes them.

    Passed over: symlinks, FIFOs, sockets, devices, files with a second name, and names that are no text. DiskFull where
    there are more than `files`, or their sizes sum to more than `size` bytes.
    """
    with _open_folder(os.fspath(folder), None) as top:
        found = _take(top, lambda path: matches(path, patterns), files, size)
    return sorted(found, key=lambda one: one.path)


def close_all(found: Iterable[Found]) -> None:
    """Close what `collect` opened."""
    for one in found:
        one.file.close()


def copy_out(box: int, name: str, target: Path, *, files: int, size: int) -> None:
    """Copy the plain files and folders below the folder `name` of the open folder `box` to `target`, an empty folder.

    For outputs that stand in a file system that is about to go. What `collect` passes over is not copied. DiskFull as
    there: nothing was copied then. A `name` that is no folder any more is an empty one.
    """
    found: list[Found] = []
    with suppress(OSError), _open_folder(name, box) as top:
        found = _take(top, lambda _: True, files, size)
    try:
        for one in found:
            path = target / one.path
            path.parent.mkdir(parents=True, exist_ok=True)
            mode = 0o700 if os.fstat(one.file.fileno()).st_mode & stat.S_IXUSR else 0o600
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
            with open(descriptor, "wb") as out:
                left = one.size
                while left and (data := one.file.read(min(left, _WINDOW))):
                    out.write(data)
                    left -= len(data)
    finally:
        close_all(found)


def matches(path: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern names this path. Component by component: `*`, `?` and `[]` stay within one, `**` is any number
    of them, none included."""
    parts = path.split("/")
    return any(_match(parts, pattern.strip("/").split("/")) for pattern in patterns)


def _match(parts: list[str], pattern: list[str]) -> bool:
    # The set of places in `pattern` that may match what comes next, so that a pattern of many `**` costs no more.
    places = _past_any(pattern, {0})
    for part in parts:
        following = {at for at in places if at < len(pattern) and pattern[at] == "**"}
        following |= {
            at + 1 for at in places if at < len(pattern) and pattern[at] != "**" and fnmatchcase(part, pattern[at])
        }
        places = _past_any(pattern, following)
    return len(pattern) in places


def _past_any(pattern: list[str], places: set[int]) -> set[int]:
    for at in list(places):
        step = at
        while step < len(pattern) and pattern[step] == "**":
            step += 1
            places.add(step)
    return places


@contextmanager
def _open_folder(name: str, parent: int | None) -> Iterator[int]:
    """An open folder. OSError unless it is one and no symlink."""
    descriptor = os.open(name, _FOLDER, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _take(top: int, wanted: Callable[[str], bool], files: int, size: int) -> list[Found]:
    found: list[Found] = []
    total = 0
    try:
        for one in _walk(top, "", wanted, 0):
            found.append(one)
            total += one.size
            if len(found) > files:
                raise DiskFull(f"more than {files} files came out")
            if total > size:
                raise DiskFull(f"more than {size} bytes came out")
    except BaseException:
        close_all(found)
        raise
    return found


def _walk(folder: int, above: str, wanted: Callable[[str], bool], depth: int) -> Iterator[Found]:
    for name in sorted(os.listdir(folder)):
        path = f"{above}{name}"
        if len(path) > PATH_LIMIT or not _is_plain(name):
            continue
        with suppress(OSError):  # it went, or is not what the kernel opens this way
            mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode) and depth < _DEPTH:
                with _open_folder(name, folder) as below:
                    yield from _walk(below, f"{path}/", wanted, depth + 1)
            elif stat.S_ISREG(mode) and wanted(path) and (one := _open_file(folder, name, path)):
                yield one


def _open_file(folder: int, name: str, path: str) -> Found | None:
    descriptor = os.open(name, _FILE, dir_fd=folder)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(descriptor)
        return None
    return Found(path, open(descriptor, "rb"), found.st_size)


def _is_plain(name: str) -> bool:
    """Whether a name can stand in a task's result: text, without control characters and backslashes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return "\\" not in name and all(ord(letter) >= 32 and letter != "\x7f" for letter in name)
