"""The host of one run of a Python script: what the runner component (`python_runner/`) asks for, by its job.wit.

Bytes cross as text of characters U+0000 to U+00FF: a component's list of bytes is a hundred times slower in the
engine's Python binding. Invariant: as in `wasm_wasi.py`, an answer follows from the task and the fuel taken.
"""

from __future__ import annotations

from collections.abc import Callable

from wasmtime import component

from freehold.services.compute.executors.wasm_engine import Meter
from freehold.services.compute.executors.wasm_files import EBADF, EINVAL, Fault, File, Files, Folder

WRITE, CREATE, EXCLUSIVE, TRUNCATE = 1, 2, 4, 8  # bits of `open`
TRANSFER_LIMIT = 2**20


class ScriptHost:
    """One run. `write(stream, data)` takes what goes to standard output (1) and error (2)."""

    def __init__(self, files: Files, meter: Meter, stdin: bytes, write: Callable[[int, bytes], None]) -> None:
        self.files, self.meter, self.stdin, self._write = files, meter, stdin, write
        self.handles: dict[int, File] = {}

    def write(self, stream: int, data: str) -> None:
        raw = self._take(data)
        self._write(1 if stream == 1 else 2, raw)

    def open(self, path: str, how: int) -> int:
        self.meter.charge_call(len(path))
        try:
            node = self.files.open(
                self.files.root,
                path,
                create=bool(how & CREATE),
                exclusive=bool(how & EXCLUSIVE),
                truncate=bool(how & TRUNCATE),
                write=bool(how & WRITE),
            )
        except Fault as fault:
            return -fault.number
        if isinstance(node, Folder):
            self.files.close(node)
            return -EBADF
        handle = 1
        while handle in self.handles:
            handle += 1
        self.handles[handle] = node
        return handle

    def close(self, handle: int) -> None:
        self.meter.charge_call()
        node = self.handles.pop(handle, None)
        if node is not None:
            self.files.close(node)

    def read(self, handle: int, offset: int, size: int) -> str:
        size = min(size, TRANSFER_LIMIT)
        file = self.handles.get(handle)
        if file is not None:
            data = self.files.read(file, offset, size)
        else:
            data = b"" if handle else self.stdin[offset : offset + size]
        self.meter.charge_call(len(data))
        return data.decode("latin-1")

    def store(self, handle: int, offset: int, data: str) -> int:
        raw = self._take(data)
        return self._try(lambda: self.files.write(self._find(handle), offset, raw))

    def resize(self, handle: int, size: int) -> int:
        self.meter.charge_call()
        return self._try(lambda: self.files.resize(self._find(handle), size))

    def status(self, path: str) -> tuple[int, int, int, int]:
        self.meter.charge_call(len(path))
        try:
            node = self.files.find(self.files.root, path)
        except Fault as fault:
            return fault.number, 0, 0, 0
        return (0, 1, node.number, 0) if isinstance(node, Folder) else (0, 0, node.number, node.size)

    def listing(self, path: str) -> str:
        try:
            node = self.files.find(self.files.root, path)
        except Fault:
            return ""
        found = "".join(f"/{name}" for name in sorted(node.entries)) if isinstance(node, Folder) else ""
        self.meter.charge_call(len(found))
        return found

    def change(self, what: str, path: str, target: str) -> int:
        self.meter.charge_call(len(path) + len(target))
        root = self.files.root
        if what == "rename":
            return self._try(lambda: self.files.rename(root, path, root, target))
        changes = {
            "mkdir": self.files.make_folder,
            "rmdir": self.files.remove_folder,
            "unlink": self.files.remove_file,
        }
        return self._try(lambda: changes[what](root, path)) if what in changes else EINVAL

    def spent(self) -> int:
        self.meter.charge_call()
        return self.meter.taken()

    def _take(self, data: str) -> bytes:
        self.meter.charge_call(len(data))
        return data.encode("latin-1", "replace")

    def _find(self, handle: int) -> File:
        if handle not in self.handles:
            raise Fault(EBADF)
        return self.handles[handle]

    def _try(self, action: Callable[[], None]) -> int:
        try:
            action()
        except Fault as fault:
            return fault.number
        return 0


INTERFACE = "freehold:job/host@1.0.0"
FUNCTIONS = ("write", "open", "close", "read", "store", "resize", "status", "listing", "change", "spent")


def define(linker: component.Linker, current: Callable[[], ScriptHost]) -> None:
    """Every function of job.wit's `host` in `linker`, answered by the run that is `current`."""
    with linker.root() as root, root.add_instance(INTERFACE) as host:
        for name in FUNCTIONS:
            host.add_func(name, _answer(name, current))


def _answer(name: str, current: Callable[[], ScriptHost]) -> Callable[..., object]:
    def answer(_store: object, *arguments: object) -> object:
        return getattr(current(), name)(*arguments)

    return answer
