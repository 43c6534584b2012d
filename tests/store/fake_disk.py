"""A disk in memory that loses what was not synced, and that can be cut after any operation.

Every file and every directory has two contents: what a program sees, and what a power cut leaves. `sync` and `sync_dir`
carry the first over to the second. At a cut each unsynced change survives or not as `luck` says: none of them, all of
them, or each by a seeded coin (an unsynced file then keeps a random prefix, or bytes that nobody wrote).
"""

from __future__ import annotations

import errno
import random
from dataclasses import dataclass, field
from pathlib import Path


class PowerCut(BaseException):
    """No exception of the program's own: nothing but the test may catch it."""


@dataclass
class Node:
    seen: bytes = b""
    kept: bytes = b""


@dataclass
class Directory:
    seen: dict[str, Node | Directory] = field(default_factory=dict)
    kept: dict[str, Node | Directory] = field(default_factory=dict)


class FakeDisk:
    """`cut_after` operations succeed, then every one raises PowerCut. `capacity` bytes fit, then ENOSPC."""

    def __init__(self, home: Path, cut_after: int | None = None, capacity: int | None = None) -> None:
        self.home = home
        self.operations = 0
        self.cut_after = cut_after
        self.capacity = capacity
        self._root = Directory()
        for part in home.parts:
            directory = Directory()
            self._resolve(home, up_to=part).seen[part] = directory
            self._resolve(home, up_to=part).kept[part] = directory

    def reboot(self, luck: str = "none", seed: int = 0) -> FakeDisk:
        """The disk as the next start finds it. `luck`: "none", "all" or "coin"."""
        after = FakeDisk(self.home, capacity=self.capacity)
        after._root = _survivor(self._root, luck, random.Random(seed))
        return after

    def make_dir(self, path: Path) -> None:
        self._count()
        parent = self._directory(path.parent)
        if isinstance(parent.seen.get(path.name), Node):
            raise FileExistsError(str(path))
        parent.seen.setdefault(path.name, Directory())

    def names(self, path: Path) -> list[str]:
        self._count()
        return sorted(self._directory(path).seen)

    def create(self, path: Path) -> FakeFile:
        self._count()
        parent = self._directory(path.parent)
        if path.name in parent.seen:
            raise FileExistsError(str(path))
        node = parent.seen[path.name] = Node()
        return FakeFile(self, node)

    def read(self, path: Path, offset: int, length: int) -> bytes:
        self._count()
        return self._file(path).seen[offset : offset + length]

    def read_into(self, path: Path, target: memoryview) -> int:
        data = self.read(path, 0, len(target))
        target[: len(data)] = data
        return len(data)

    def size(self, path: Path) -> int:
        self._count()
        return len(self._file(path).seen)

    def rename(self, source: Path, target: Path) -> None:
        self._count()
        node = self._file(source)
        into = self._directory(target.parent)
        del self._directory(source.parent).seen[source.name]
        into.seen[target.name] = node

    def remove(self, path: Path) -> None:
        self._count()
        self._file(path)
        del self._directory(path.parent).seen[path.name]

    def sync_dir(self, path: Path) -> None:
        self._count()
        directory = self._directory(path)
        directory.kept = dict(directory.seen)

    def _count(self) -> None:
        if self.cut_after is not None and self.operations >= self.cut_after:
            raise PowerCut
        self.operations += 1

    def _used(self, directory: Directory) -> int:
        entries = directory.seen.values()
        return sum(self._used(entry) if isinstance(entry, Directory) else len(entry.seen) for entry in entries)

    def _resolve(self, path: Path, up_to: str) -> Directory:
        directory = self._root
        for part in path.parts[: path.parts.index(up_to)]:
            entry = directory.seen[part]
            assert isinstance(entry, Directory)
            directory = entry
        return directory

    def _directory(self, path: Path) -> Directory:
        directory: Node | Directory | None = self._root
        for part in path.parts:
            directory = directory.seen.get(part) if isinstance(directory, Directory) else None
        if not isinstance(directory, Directory):
            raise FileNotFoundError(str(path))
        return directory

    def _file(self, path: Path) -> Node:
        node = self._directory(path.parent).seen.get(path.name)
        if not isinstance(node, Node):
            raise FileNotFoundError(str(path))
        return node


class FakeFile:
    def __init__(self, disk: FakeDisk, node: Node) -> None:
        self._disk, self._node = disk, node

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        disk = self._disk
        disk._count()
        if disk.capacity is not None and disk._used(disk._root) + len(chunk) > disk.capacity:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._node.seen += bytes(chunk)

    def sync(self) -> None:
        self._disk._count()
        self._node.kept = self._node.seen

    def close(self) -> None:
        """A file needs no closing here; what counts is `sync`."""


def _survivor(directory: Directory, luck: str, draw: random.Random) -> Directory:
    names = dict(directory.kept)
    for name in sorted({*directory.seen, *directory.kept}):
        if directory.seen.get(name) is directory.kept.get(name):
            continue
        if luck == "all" or (luck == "coin" and draw.random() < 0.5):
            if name in directory.seen:
                names[name] = directory.seen[name]
            else:
                del names[name]
    left: dict[str, Node | Directory] = {}
    for name, entry in sorted(names.items()):
        if isinstance(entry, Directory):
            left[name] = _survivor(entry, luck, draw)
        else:
            data = _contents(entry, luck, draw)
            left[name] = Node(data, data)
    return Directory(left, dict(left))


def _contents(node: Node, luck: str, draw: random.Random) -> bytes:
    if luck == "none" or node.seen == node.kept:
        return node.kept
    if luck == "all":
        return node.seen
    length = draw.randint(len(node.kept), len(node.seen))
    return node.kept + (node.seen[len(node.kept) : length] if draw.random() < 0.5 else bytes(length - len(node.kept)))
