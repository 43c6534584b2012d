"""The files of a job, for a script: /in (read only), /out and /tmp, by the usual functions of Python.

What works: `open`, `io.open`, `pathlib`, `os.listdir`, `os.scandir`, `os.walk`, `os.stat` and `os.path`, `os.mkdir`,
`os.makedirs`, `os.remove`, `os.rmdir`, `os.rename`, `shutil`, `glob`, and `import` of modules below /in. What does not:
descriptors (`os.open`, `fileno`), links, `tempfile`, `mmap`. Paths that are not absolute start at /.
"""

import errno
import io
import os
import posix
import posixpath
import stat
import sys

from wit_world.imports import host

WRITE, CREATE, EXCLUSIVE, TRUNCATE = 1, 2, 4, 8
CHUNK = 256 * 1024


class JobFile(io.RawIOBase):
    """An open file."""

    def __init__(self, path, mode):
        how = 0 if mode == "r" else WRITE
        kind = mode.replace("+", "")
        if "+" in mode:
            how |= WRITE
        how |= {"r": 0, "w": CREATE | TRUNCATE, "a": CREATE, "x": CREATE | EXCLUSIVE}[kind]
        self._handle = -1
        if isinstance(path, int):
            raise OSError(errno.EBADF, "there are no descriptors in a job")
        status = host.status(absolute(path))
        if not status[0] and status[1]:
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        self._handle = check(host.open(absolute(path), how), path)
        self.name, self.mode = path, mode
        self._path, self._position = absolute(path), 0
        self._reads, self._writes, self._appends = kind == "r" or "+" in mode, how & WRITE, kind == "a"

    def readable(self):
        return bool(self._reads)

    def writable(self):
        return bool(self._writes)

    def seekable(self):
        return True

    def readinto(self, buffer):
        if not self._reads:
            raise io.UnsupportedOperation("not readable")
        data = host.read(self._handle, self._position, min(len(buffer), CHUNK)).encode("latin-1")
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def write(self, data):
        if not self._writes:
            raise io.UnsupportedOperation("not writable")
        part = bytes(memoryview(data).cast("B")[:CHUNK])
        if self._appends:
            self._position = host.status(self._path)[3]
        check(-host.store(self._handle, self._position, part.decode("latin-1")), self.name)
        self._position += len(part)
        return len(part)

    def seek(self, offset, whence=0):
        start = (0, self._position, host.status(self._path)[3])[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), self.name)
        self._position = start + offset
        return self._position

    def tell(self):
        return self._position

    def truncate(self, size=None):
        size = self._position if size is None else size
        check(-host.resize(self._handle, size), self.name)
        return size

    def close(self):
        if not self.closed:
            super().close()
            if self._handle >= 0:
                host.close(self._handle)


class Stream(io.RawIOBase):
    """A standard stream."""

    def __init__(self, number):
        self._number, self._position = number, 0

    def readable(self):
        return self._number == 0

    def writable(self):
        return self._number > 0

    def readinto(self, buffer):
        data = host.read(0, self._position, min(len(buffer), CHUNK)).encode("latin-1")
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def write(self, data):
        part = bytes(memoryview(data).cast("B")[:CHUNK])
        host.write(self._number, part.decode("latin-1"))
        return len(part)


class Entry:
    """What `os.scandir` gives."""

    def __init__(self, folder, name):
        self.name, self.path = name, posixpath.join(folder, name)

    def __fspath__(self):
        return self.path

    def __repr__(self):
        return f"<DirEntry {self.name!r}>"

    def stat(self, *, follow_symlinks=True):
        return get_status(self.path)

    def inode(self):
        return self.stat().st_ino

    def is_dir(self, *, follow_symlinks=True):
        return stat.S_ISDIR(self.stat().st_mode)

    def is_file(self, *, follow_symlinks=True):
        return stat.S_ISREG(self.stat().st_mode)

    def is_symlink(self):
        return False

    def is_junction(self):
        return False


class Scan:
    """The iterator that `os.scandir` returns."""

    def __init__(self, path):
        folder = os.fspath(path)
        self._entries = iter([Entry(folder, name) for name in list_folder(folder)])

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._entries)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._entries = iter(())


working = "/"


def absolute(path):
    """The path as the host takes it: below /, without . and .. ."""
    if isinstance(path, int):
        raise OSError(errno.EBADF, "there are no descriptors in a job")
    text = os.fsdecode(os.fspath(path))
    if "\0" in text:
        raise ValueError("embedded null byte")
    return posixpath.normpath(posixpath.join(working, text)).lstrip("/") or "."


def check(answer, path, target=None):
    """OSError where the host answered with an error number, negated."""
    if answer < 0:
        raise OSError(-answer, os.strerror(-answer), path, None, target)
    return answer


def open_file(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
    """As the built-in `open`."""
    kinds = mode.replace("b", "").replace("t", "")
    if kinds not in ("r", "w", "a", "x", "r+", "w+", "a+", "x+", "+r", "+w", "+a", "+x") or (
        "b" in mode and "t" in mode
    ):
        raise ValueError(f"invalid mode: {mode!r}")
    raw = JobFile(file, kinds)
    if "b" in mode and buffering == 0:
        return raw
    size = buffering if buffering > 1 else 65536
    if "+" in kinds:
        buffered = io.BufferedRandom(raw, size)
    elif kinds == "r":
        buffered = io.BufferedReader(raw, size)
    else:
        buffered = io.BufferedWriter(raw, size)
    if kinds.startswith("a") or "+a" in kinds:
        buffered.seek(0, 2)
    if "b" in mode:
        return buffered
    text = io.TextIOWrapper(buffered, encoding or "utf-8", errors, newline, line_buffering=buffering == 1)
    text.mode = mode
    return text


def get_status(path, *, dir_fd=None, follow_symlinks=True):
    error, is_folder, number, size = host.status(absolute(path))
    check(-error, path)
    mode = stat.S_IFDIR | 0o755 if is_folder else stat.S_IFREG | 0o644
    return os.stat_result((mode, number, 1, 1, 0, 0, size, 0, 0, 0))


def list_folder(path="."):
    if not stat.S_ISDIR(get_status(path).st_mode):
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    return host.listing(absolute(path)).split("/")[1:]


def change(what):
    def function(path, *_, **__):
        check(-host.change(what, absolute(path), ""), path)

    return function


def rename(source, target, **_):
    check(-host.change("rename", absolute(source), absolute(target)), source, target)


def get_working():
    return working


def set_working(path):
    global working
    if not stat.S_ISDIR(get_status(path).st_mode):
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    working = "/" + absolute(path).removeprefix(".")


def is_allowed(path, mode, **_):
    try:
        get_status(path)
    except OSError:
        return False
    return True


def read_link(path, **_):
    get_status(path)
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)


def ignore(*_, **__):
    """Times, owners and modes are not kept."""


def install():
    """Put all of this in the place of what would ask the operating system."""
    import _io
    import builtins

    builtins.open = io.open = _io.open = open_file
    io.open_code = _io.open_code = lambda path: open_file(path, "rb")
    functions = {
        "stat": get_status,
        "lstat": get_status,
        "listdir": list_folder,
        "scandir": lambda path=".": Scan(path),
        "mkdir": change("mkdir"),
        "rmdir": change("rmdir"),
        "unlink": change("unlink"),
        "remove": change("unlink"),
        "rename": rename,
        "replace": rename,
        "getcwd": get_working,
        "getcwdb": lambda: working.encode(),
        "chdir": set_working,
        "access": is_allowed,
        "readlink": read_link,
        "utime": ignore,
        "chmod": ignore,
    }
    for module in (os, posix):
        for name, function in functions.items():
            setattr(module, name, function)
    sys.path[:] = ["/in"]
    sys.path_importer_cache.clear()
    sys.dont_write_bytecode = True
