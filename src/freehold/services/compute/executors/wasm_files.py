"""The files that a WebAssembly job sees: /in (read only), /out and /tmp; in memory but for their contents.

Names, numbers and order are kept here, not by a file system, so they are the same on every machine: inode numbers
count up, times are zero, listings are sorted. There are no links of any kind, so no path leads elsewhere. The
contents lie in files of the work folder whose names the job does not choose, and those below /out are moved into place
when it has ended.

Invariant: bytes kept below /out and /tmp, and an ENTRY for each file and folder there, are at most `disk`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from freehold.services.compute.executors.wasm_terms import Stop

ENTRY = 512  # bytes that a name counts as
ENTRIES = 4096  # files and folders below /out and /tmp
HANDLES = 256  # open at once
NAME_LIMIT, PATH_LIMIT = 255, 512  # bytes

# Numbers of WASI preview 1, which are those of `errno` inside the module as well.
EBADF, EBUSY, EEXIST, EFAULT, EINVAL, EISDIR, EMFILE, ENAMETOOLONG = 8, 10, 20, 21, 28, 31, 33, 37
ENOENT, ENOTDIR, ENOTEMPTY, ENOTSUP, EROFS, ESPIPE, ENOTCAPABLE = 44, 54, 55, 58, 69, 70, 76


class Fault(Exception):
    """A call that fails with this number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class File:
    """A file: its contents are the bytes at `path` of the host."""

    def __init__(self, number: int, path: Path, size: int, read_only: bool) -> None:
        self.number, self.path, self.size, self.read_only = number, path, size, read_only
        self.linked = True
        self.handles = 0
        self.descriptor = -1


class Folder:
    """A folder: names to what they name."""

    def __init__(self, number: int, read_only: bool) -> None:
        self.number, self.read_only = number, read_only
        self.linked = True
        self.entries: dict[str, File | Folder] = {}


Node = File | Folder


class Files:
    """The tree of one run. `scratch` is an empty folder of the host for contents; `inputs` is read, never written."""

    def __init__(self, inputs: Path, scratch: Path, disk: int) -> None:
        self.scratch, self.disk = scratch, disk
        self.used = self.entries = self.handles = self.numbers = 0
        self.opened: set[File] = set()
        self.root = Folder(self._number(), read_only=True)
        for name in ("in", "out", "tmp"):
            self.root.entries[name] = Folder(self._number(), read_only=name == "in")
        self._read_inputs(self.get_top("in"), inputs)

    def get_top(self, name: str) -> Folder:
        """/in, /out or /tmp."""
        folder = self.root.entries[name]
        assert isinstance(folder, Folder)
        return folder

    def find(self, start: Folder, path: str) -> Node:
        """What `path` below `start` names. Fault."""
        _, _, node, _ = self._walk(start, path)
        if node is None:
            raise Fault(ENOENT)
        return node

    def open(self, start: Folder, path: str, create: bool, exclusive: bool, truncate: bool, write: bool) -> Node:
        """The file or folder at `path`, for one handle more. Fault."""
        if self.handles >= HANDLES:
            raise Fault(EMFILE)
        parent, name, node, as_folder = self._walk(start, path)
        if node is None:
            if not create:
                raise Fault(ENOENT)
            if as_folder:
                raise Fault(EISDIR)
            node = self._create_file(parent, name)
        elif create and exclusive:
            raise Fault(EEXIST)
        if isinstance(node, File):
            if node.read_only and (write or truncate):
                raise Fault(EROFS)
            if truncate:
                self.resize(node, 0)
            if node.descriptor < 0:
                node.descriptor = os.open(
                    node.path, os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_RDONLY if node.read_only else os.O_RDWR)
                )
                self.opened.add(node)
            node.handles += 1
        elif write or truncate:
            raise Fault(EISDIR)
        self.handles += 1
        return node

    def close(self, node: Node) -> None:
        """One handle less."""
        self.handles -= 1
        if isinstance(node, File):
            node.handles -= 1
            if not node.handles:
                self._shut(node)
                self._release(node)

    def read(self, file: File, offset: int, size: int) -> bytes:
        """At most `size` bytes of an open file from `offset` on; fewer only at its end."""
        found = b""
        size = min(size, max(0, file.size - offset))
        while len(found) < size:
            part = os.pread(file.descriptor, size - len(found), offset + len(found))
            if not part:
                raise OSError(f"{file.path} is shorter than it was")
            found = found + part if found else part
        return found

    def write(self, file: File, offset: int, data: bytes) -> None:
        """Write all of it into an open file. Stop ("disk") where that is more than the job may keep."""
        if file.read_only:
            raise Fault(EBADF)
        self._grow(file, offset + len(data))
        view = memoryview(data)
        while view:
            done = os.pwrite(file.descriptor, view, offset)
            view, offset = view[done:], offset + done

    def sync(self, file: File) -> None:
        """Put an open file's bytes on the host's disk."""
        if not file.read_only:
            os.fdatasync(file.descriptor)

    def resize(self, file: File, size: int) -> None:
        """Cut it or fill it up with zeros."""
        if file.read_only:
            raise Fault(EROFS)
        self._grow(file, size)
        os.truncate(file.path if file.descriptor < 0 else file.descriptor, size)
        self.used += size - file.size
        file.size = size

    def make_folder(self, start: Folder, path: str) -> None:
        """Fault."""
        parent, name, node, _ = self._walk(start, path)
        if node is not None:
            raise Fault(EEXIST)
        self._add_entry(parent, name, Folder(self._number(), read_only=False))

    def remove_folder(self, start: Folder, path: str) -> None:
        """Fault."""
        parent, name, node, _ = self._walk(start, path)
        if node is None:
            raise Fault(ENOENT)
        if isinstance(node, File):
            raise Fault(ENOTDIR)
        self._remove_entry(parent, name, node)

    def remove_file(self, start: Folder, path: str) -> None:
        """Fault."""
        parent, name, node, as_folder = self._walk(start, path)
        if node is None:
            raise Fault(ENOENT)
        if isinstance(node, Folder):
            raise Fault(EISDIR)
        if as_folder:
            raise Fault(ENOTDIR)
        self._remove_entry(parent, name, node)

    def rename(self, start: Folder, path: str, to: Folder, target: str) -> None:
        """As POSIX does: what stands at `target` is replaced. Fault."""
        parent, name, node, from_folder = self._walk(start, path)
        goal, goal_name, standing, to_folder = self._walk(to, target)
        if node is None:
            raise Fault(ENOENT)
        if parent.read_only or goal.read_only:
            raise Fault(EROFS)
        if not goal.linked:
            raise Fault(ENOENT)
        if not name or not goal_name:
            raise Fault(EBUSY)  # "." or a top folder itself
        if node is standing:
            return
        if isinstance(node, Folder):
            if goal is node or goal in self._below(node):
                raise Fault(EINVAL)
            if isinstance(standing, File):
                raise Fault(ENOTDIR)
        elif isinstance(standing, Folder):
            raise Fault(EISDIR)
        elif from_folder or to_folder:
            raise Fault(ENOTDIR)
        if standing is not None:
            self._remove_entry(goal, goal_name, standing)
        del parent.entries[name]
        goal.entries[goal_name] = node

    def close_all(self) -> None:
        """Whatever the job left open: nothing is read or written after this."""
        for file in list(self.opened):
            self._shut(file)

    def finish(self, out: Path) -> None:
        """Move what lies below /out to `out`, an empty folder of the host. Stop ("disk") where a path is too long."""
        pending = [(self.get_top("out"), "")]
        while pending:
            folder, above = pending.pop()
            for name, node in folder.entries.items():
                path = above + name
                if len(path.encode()) > PATH_LIMIT:
                    raise Stop("disk", f"a path below /out has more than {PATH_LIMIT} bytes")
                if isinstance(node, Folder):
                    (out / path).mkdir()
                    pending.append((node, path + "/"))
                else:
                    node.path.rename(out / path)

    def _read_inputs(self, folder: Folder, path: Path) -> None:
        with os.scandir(path) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                below = Folder(self._number(), read_only=True)
                self._read_inputs(below, Path(entry.path))
                folder.entries[entry.name] = below
            elif entry.is_file(follow_symlinks=False):
                size = entry.stat(follow_symlinks=False).st_size
                folder.entries[entry.name] = File(self._number(), Path(entry.path), size, read_only=True)

    def _walk(self, start: Folder, path: str) -> tuple[Folder, str, Node | None, bool]:
        """(folder, name in it, what stands there, whether the path ends in a slash). The name is empty where the path
        comes to `start` itself or goes up."""
        if len(path.encode()) > PATH_LIMIT:
            raise Fault(ENAMETOOLONG)
        if not path:
            raise Fault(ENOENT)
        if path.startswith("/"):
            raise Fault(ENOTCAPABLE)
        above: list[Folder] = []
        parts = [part for part in path.split("/") if part not in ("", ".")]
        folder, name = start, ""
        node: Node | None = start
        for part in parts:
            if not isinstance(node, Folder):
                raise Fault(ENOENT if node is None else ENOTDIR)
            if part == "..":
                if not above:
                    raise Fault(ENOTCAPABLE)
                node, name = above.pop(), ""
                continue
            above.append(node)
            folder, name, node = node, part, node.entries.get(part)
        as_folder = path.endswith(("/", "/.")) or path == "."
        if as_folder and isinstance(node, File):
            raise Fault(ENOTDIR)
        return folder, name, node, as_folder

    def _create_file(self, parent: Folder, name: str) -> File:
        number = self._number()
        file = File(number, self.scratch / str(number), 0, read_only=False)
        self._add_entry(parent, name, file)
        os.close(os.open(file.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        return file

    def _add_entry(self, parent: Folder, name: str, node: Node) -> None:
        if parent.read_only:
            raise Fault(EROFS)
        if not parent.linked:
            raise Fault(ENOENT)
        if len(name.encode()) > NAME_LIMIT:
            raise Fault(ENAMETOOLONG)
        if not name or "\\" in name or any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
            raise Fault(EINVAL)  # no name that a result could not have (`tasks.check_path`)
        if self.entries >= ENTRIES:
            raise Stop("disk", f"it kept more than {ENTRIES} files")
        self._count(ENTRY)
        self.entries += 1
        parent.entries[name] = node

    def _remove_entry(self, parent: Folder, name: str, node: Node) -> None:
        if parent.read_only:
            raise Fault(EROFS)
        if not name:
            raise Fault(EINVAL)
        if isinstance(node, Folder):
            if node.entries:
                raise Fault(ENOTEMPTY)
            node.linked = False
            self._forget_entry()
        else:
            node.linked = False
            self._release(node)
        del parent.entries[name]

    def _shut(self, file: File) -> None:
        os.close(file.descriptor)
        file.descriptor = -1
        self.opened.discard(file)

    def _release(self, file: File) -> None:
        """Its bytes count until it has neither a name nor a handle."""
        if not file.linked and not file.handles:
            file.path.unlink()
            self.used -= file.size
            self._forget_entry()

    def _forget_entry(self) -> None:
        self.used -= ENTRY
        self.entries -= 1

    def _grow(self, file: File, size: int) -> None:
        if size > file.size:
            self._count(size - file.size)
            file.size = size

    def _count(self, more: int) -> None:
        if self.used + more > self.disk:
            raise Stop("disk", f"it kept more than {self.disk} bytes below /out and /tmp")
        self.used += more

    def _number(self) -> int:
        self.numbers += 1
        return self.numbers

    def _below(self, folder: Folder) -> Iterator[Folder]:
        pending = [folder]
        while pending:
            below = [node for node in pending.pop().entries.values() if isinstance(node, Folder)]
            yield from below
            pending += below
