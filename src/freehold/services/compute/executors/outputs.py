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
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from freehold.protocol.errors import DiskFull
from freehold.services.compute.tasks import FILES_LIMIT, PATH_LIMIT

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DEPTH = 64  # folders within folders
_WINDOW = 2**20


class Found:
    """A file that came out: its path below the folder, with slashes, and its bytes. `file` is opened when it is first
    asked for: a task may leave more files than a process may have open. OSError where it is not there any more."""

    def __init__(self, folder: Path, path: str, size: int) -> None:
        self.path = path
        self.size = size
        self._folder = folder
        self._file: BinaryIO | None = None

    @property
    def file(self) -> BinaryIO:
        """It, open for reading."""
        if self._file is None:
            with _open_folder(os.fspath(self._folder), None) as top:
                self._file = _open_beneath(top, self.path)
        return self._file

    def close(self) -> None:
        """Close it, where it was opened."""
        if self._file is not None:
            self._file.close()


def collect(folder: Path, patterns: Sequence[str], *, files: int = FILES_LIMIT, size: int) -> list[Found]:
    """The files below `folder` that a pattern names, in the order of their paths; the caller closes them.

    Passed over: symlinks, FIFOs, sockets, devices, files with a second name, and names that are no text. DiskFull where
    there are more than `files`, or their sizes sum to more than `size` bytes.
    """
    with _open_folder(os.fspath(folder), None) as top:
        found = _list(top, lambda path: matches(path, patterns), files, size)
    return [Found(folder, path, length) for path, length in sorted(found)]


def close_all(found: Iterable[Found]) -> None:
    """Close what was opened of this."""
    for one in found:
        one.close()


def copy_out(box: int, name: str, target: Path, *, files: int, size: int) -> None:
    """Copy the plain files and folders below the folder `name` of the open folder `box` to `target`, an empty folder.

    For outputs that stand in a file system that is about to go. What `collect` passes over is not copied. DiskFull as
    there: nothing was copied then. A `name` that is no folder any more is an empty one.
    """
    with ExitStack() as stack:
        try:
            top = stack.enter_context(_open_folder(name, box))
        except OSError:
            return
        for path, length in _list(top, lambda _: True, files, size):
            copy = target / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            with _open_beneath(top, path) as file:
                mode = 0o700 if os.fstat(file.fileno()).st_mode & stat.S_IXUSR else 0o600
                with open(os.open(copy, _NEW, mode), "wb") as out:
                    left = length
                    while left and (data := file.read(min(left, _WINDOW))):
                        out.write(data)
                        left -= len(data)


def is_empty(box: int | None, name: str) -> bool:
    """Whether nothing at all is in the folder `name` of the open folder `box`, or there is no such folder."""
    try:
        with _open_folder(name, box) as folder, os.scandir(folder) as entries:
            return next(entries, None) is None
    except OSError:
        return True


def matches(path: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern names this path. Component by component: `*`, `?` and `[]` stay within one, `**` is any number
    of them, none included."""
    parts = path.split("/")
    return any(_match(parts, _split(pattern)) for pattern in patterns)


@lru_cache(maxsize=256)
def _split(pattern: str) -> list[str]:
    """Its components; of `**` after `**`, one."""
    parts = pattern.strip("/").split("/")
    return [part for at, part in enumerate(parts) if part != "**" or at == 0 or parts[at - 1] != "**"]


def _match(parts: list[str], pattern: list[str]) -> bool:
    # The set of places in `pattern` that may match what comes next, so that nothing is tried twice.
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


def _list(top: int, is_wanted: Callable[[str], bool], files: int, size: int) -> list[tuple[str, int]]:
    """Paths and sizes of the plain files that are wanted. DiskFull."""
    found: list[tuple[str, int]] = []
    total = 0
    for path, length in _walk(top, "", 0):
        if is_wanted(path):
            found.append((path, length))
            total += length
            if len(found) > files:
                raise DiskFull(f"more than {files} files came out")
            if total > size:
                raise DiskFull(f"more than {size} bytes came out")
    return found


def _walk(folder: int, above: str, depth: int) -> Iterator[tuple[str, int]]:
    for name in os.listdir(folder):
        path = f"{above}{name}"
        if len(path) > PATH_LIMIT or not _is_plain(name):
            continue
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if _is_taken(found):
            yield path, found.st_size
        elif stat.S_ISDIR(found.st_mode) and depth < _DEPTH:
            with _open_folder(name, folder) as below:
                yield from _walk(below, f"{path}/", depth + 1)


def _open_beneath(top: int, path: str) -> BinaryIO:
    """A file below an open folder. OSError unless it is a plain one, and so is every folder on the way."""
    with ExitStack() as stack:
        *folders, name = path.split("/")
        for folder in folders:
            top = stack.enter_context(_open_folder(folder, top))
        descriptor = os.open(name, _FILE, dir_fd=top)
    if not _is_taken(os.fstat(descriptor)):
        os.close(descriptor)
        raise OSError(f"{path} is no plain file any more")
    return os.fdopen(descriptor, "rb")


def _is_taken(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1


def _is_plain(name: str) -> bool:
    """Whether a name can stand in a task's result: text, without control characters and backslashes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return "\\" not in name and all(ord(letter) >= 32 and letter != "\x7f" for letter in name)
