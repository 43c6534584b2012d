"""WASI preview 1 for a WebAssembly module: what it may ask of its host, and answers that are the same everywhere.

The engine's own WASI shows the host's times, inode numbers, order of names, errors and chance. This one has none of
them: files are `wasm_files.py`'s; both clocks show the fuel taken so far, in nanoseconds from zero; sleeping only moves
them on; chance is a fixed stream; there are no sockets, no links and no signals. Descriptors: 0-2 are the standard
streams, 3-5 the folders /in, /out and /tmp. Each call costs fuel (`Meter`).

Invariant: a call's answer follows from the task and the fuel taken, and a call touches no memory but the module's.
"""

from __future__ import annotations

import ctypes
import hashlib
import struct
from collections.abc import Callable, Sequence

import wasmtime

from freehold.services.compute.executors.wasm_engine import Meter
from freehold.services.compute.executors.wasm_files import (
    EBADF,
    EFAULT,
    EINVAL,
    ENOTDIR,
    ENOTSUP,
    ESPIPE,
    Fault,
    File,
    Files,
    Folder,
    Node,
)
from freehold.services.compute.executors.wasm_terms import Stop

MODULE = "wasi_snapshot_preview1"
TRANSFER_LIMIT = 2**20  # bytes that one call of read or write moves: like any system, it may do less than asked
EILSEQ = 25
EVERYTHING = (1 << 29) - 1  # every right: what may be done is decided by the file
SEEKING = (1 << 2) | (1 << 5)  # the rights to seek and tell, which a stream lacks
UNKNOWN, DIRECTORY, REGULAR = 0, 3, 4  # file types
CREATE, AS_DIRECTORY, EXCLUSIVE, TRUNCATE = 1, 2, 4, 8  # of path_open
APPEND = 1
WRITING = (1 << 6) | (1 << 8) | (1 << 22)  # rights to write, allocate or set a size
SET, CURRENT, END = 0, 1, 2

# "w" a 32-bit word, "l" 64 bits: parameters. All answer with an error number but proc_exit.
SIGNATURES = {
    "args_get": "ww",
    "args_sizes_get": "ww",
    "environ_get": "ww",
    "environ_sizes_get": "ww",
    "clock_res_get": "ww",
    "clock_time_get": "wlw",
    "fd_advise": "wllw",
    "fd_allocate": "wll",
    "fd_close": "w",
    "fd_datasync": "w",
    "fd_fdstat_get": "ww",
    "fd_fdstat_set_flags": "ww",
    "fd_fdstat_set_rights": "wll",
    "fd_filestat_get": "ww",
    "fd_filestat_set_size": "wl",
    "fd_filestat_set_times": "wllw",
    "fd_pread": "wwwlw",
    "fd_prestat_get": "ww",
    "fd_prestat_dir_name": "www",
    "fd_pwrite": "wwwlw",
    "fd_read": "wwww",
    "fd_readdir": "wwwlw",
    "fd_renumber": "ww",
    "fd_seek": "wlww",
    "fd_sync": "w",
    "fd_tell": "ww",
    "fd_write": "wwww",
    "path_create_directory": "www",
    "path_filestat_get": "wwwww",
    "path_filestat_set_times": "wwwwllw",
    "path_link": "wwwwwww",
    "path_open": "wwwwwllww",
    "path_readlink": "wwwwww",
    "path_remove_directory": "www",
    "path_rename": "wwwwww",
    "path_symlink": "wwwww",
    "path_unlink_file": "www",
    "poll_oneoff": "wwww",
    "proc_exit": "w",
    "proc_raise": "w",
    "random_get": "ww",
    "sched_yield": "",
    "sock_accept": "www",
    "sock_recv": "wwwwww",
    "sock_send": "wwwww",
    "sock_shutdown": "ww",
}
MASKS = {"w": 2**32 - 1, "l": 2**64 - 1}


class Descriptor:
    """What an open descriptor stands for: a file or folder with a position, or one of the streams."""

    def __init__(self, node: Node | None, write: bool = False, append: bool = False, stream: int = -1) -> None:
        self.node, self.write, self.append, self.stream = node, write, append, stream
        self.position = 0
        self.listing: list[tuple[str, Node]] = []


class Wasi:
    """The host of one run of one module. `write(stream, data)` takes what goes to standard output (1) and error (2)."""

    def __init__(
        self,
        files: Files,
        meter: Meter,
        arguments: Sequence[str],
        environment: Sequence[tuple[str, str]],
        stdin: bytes,
        write: Callable[[int, bytes], None],
    ) -> None:
        self.files, self.meter, self.stdin, self.write = files, meter, stdin, write
        self.arguments = [text.encode() for text in arguments]
        self.environment = [f"{name}={value}".encode() for name, value in environment]
        self.descriptors = {number: Descriptor(None, write=number > 0, stream=number) for number in range(3)}
        self.tops = {}
        for number, name in enumerate(("in", "out", "tmp"), 3):
            self.descriptors[number] = Descriptor(files.get_top(name))
            self.tops[number] = f"/{name}".encode()
        self.slept = 0
        self.drawn = 0
        self.memory: wasmtime.Memory | None = None

    def call(self, name: str, caller: wasmtime.Caller, arguments: Sequence[int]) -> int:
        """Answer one call of the module."""
        if self.memory is None:
            memory = caller.get("memory")
            if not isinstance(memory, wasmtime.Memory):
                raise Stop("trap", 'it exports no memory called "memory"')
            self.memory = memory
        self.meter.charge_call()
        answer: Callable[..., int | None] = getattr(self, name)
        masked = [value & MASKS[kind] for value, kind in zip(arguments, SIGNATURES[name], strict=True)]
        try:
            return answer(*masked) or 0
        except Fault as fault:
            return fault.number

    # Memory.

    def _place(self, address: int, size: int) -> int:
        memory, store = self.memory, self.meter.store
        assert memory is not None
        if address + size > memory.data_len(store):
            raise Fault(EFAULT)
        return (ctypes.cast(memory.data_ptr(store), ctypes.c_void_p).value or 0) + address

    def _get(self, address: int, size: int) -> bytes:
        return ctypes.string_at(self._place(address, size), size)

    def _put(self, address: int, data: bytes) -> None:
        ctypes.memmove(self._place(address, len(data)), data, len(data))

    def _put_word(self, address: int, value: int) -> None:
        self._put(address, struct.pack("<I", value))

    def _get_text(self, address: int, size: int) -> str:
        self.meter.charge_bytes(size)
        try:
            text = self._get(address, size).decode()
        except UnicodeDecodeError:
            raise Fault(EILSEQ) from None
        if "\0" in text:
            raise Fault(EINVAL)
        return text

    def _get_vectors(self, address: int, count: int) -> list[tuple[int, int]]:
        if count > 1024:
            raise Fault(EINVAL)
        return list(struct.iter_unpack("<II", self._get(address, 8 * count)))

    def _gather(self, address: int, count: int) -> bytes:
        """What a list of vectors holds, up to TRANSFER_LIMIT."""
        parts, left = [], TRANSFER_LIMIT
        for start, size in self._get_vectors(address, count):
            parts.append(self._get(start, min(size, left)))
            left -= len(parts[-1])
        data = b"".join(parts)
        self.meter.charge_bytes(len(data))
        return data

    def _scatter(self, address: int, count: int, read: Callable[[int], bytes]) -> int:
        """Fill a list of vectors from `read(size)`, up to TRANSFER_LIMIT."""
        vectors = self._get_vectors(address, count)
        data = read(min(sum(size for _, size in vectors), TRANSFER_LIMIT))
        self.meter.charge_bytes(len(data))
        done = 0
        for start, size in vectors:
            self._put(start, data[done : done + size])
            done += min(size, len(data) - done)
        return len(data)

    # Descriptors.

    def _find(self, number: int) -> Descriptor:
        found = self.descriptors.get(number)
        if found is None:
            raise Fault(EBADF)
        return found

    def _find_file(self, number: int) -> tuple[Descriptor, File]:
        found = self._find(number)
        if found.stream >= 0:
            raise Fault(ESPIPE)
        if not isinstance(found.node, File):
            raise Fault(EBADF)
        return found, found.node

    def _find_folder(self, number: int) -> tuple[Descriptor, Folder]:
        found = self._find(number)
        if not isinstance(found.node, Folder):
            raise Fault(ENOTDIR)
        return found, found.node

    def _find_writable(self, number: int) -> tuple[Descriptor, File]:
        found, file = self._find_file(number)
        if not found.write:
            raise Fault(EBADF)
        return found, file

    # Arguments and environment.

    def _put_list(self, texts: list[bytes], pointers: int, buffer: int) -> None:
        for text in texts:
            self._put_word(pointers, buffer)
            self._put(buffer, text + b"\0")
            pointers, buffer = pointers + 4, buffer + len(text) + 1

    def args_get(self, pointers: int, buffer: int) -> None:
        self._put_list(self.arguments, pointers, buffer)

    def args_sizes_get(self, count: int, size: int) -> None:
        self._put_word(count, len(self.arguments))
        self._put_word(size, sum(len(text) + 1 for text in self.arguments))

    def environ_get(self, pointers: int, buffer: int) -> None:
        self._put_list(self.environment, pointers, buffer)

    def environ_sizes_get(self, count: int, size: int) -> None:
        self._put_word(count, len(self.environment))
        self._put_word(size, sum(len(text) + 1 for text in self.environment))

    # Clock and chance.

    def _now(self) -> int:
        return self.meter.taken() + self.slept

    def clock_res_get(self, clock: int, answer: int) -> None:
        if clock > 3:
            raise Fault(EINVAL)
        self._put(answer, struct.pack("<Q", 1))

    def clock_time_get(self, clock: int, _precision: int, answer: int) -> None:
        if clock > 3:
            raise Fault(EINVAL)
        self._put(answer, struct.pack("<Q", self._now() % 2**64))

    def random_get(self, address: int, size: int) -> None:
        if size > TRANSFER_LIMIT:
            raise Fault(EINVAL)
        self.meter.charge_bytes(size)
        self._place(address, size)
        data = hashlib.shake_128(f"freehold job {self.drawn}".encode()).digest(size)
        self.drawn += 1
        self._put(address, data)

    def poll_oneoff(self, subscriptions: int, events: int, count: int, answer: int) -> None:
        """Everything is ready at once; where only clocks are waited for, the earliest comes and time moves on to it."""
        if not 0 < count <= 1024:
            raise Fault(EINVAL)
        asked = [struct.unpack("<QB7xI4xQQH6x", self._get(subscriptions + 48 * n, 48)) for n in range(count)]
        ready = [(data, kind) for data, kind, *_ in asked if kind in (1, 2)]
        if not ready:
            waits = [max(0, time - self._now()) if flags & 1 else time for _, _, _, time, _, flags in asked]
            self.slept += min(waits)
            ready = [(asked[n][0], 0) for n, wait in enumerate(waits) if wait == min(waits)]
        for number, (data, kind) in enumerate(ready):
            self._put(events + 32 * number, struct.pack("<QHB5xQH6x", data, 0, kind, 0, 0))
        self._put_word(answer, len(ready))

    def sched_yield(self) -> None:
        """There is nobody else."""

    # The process.

    def proc_exit(self, status: int) -> None:
        raise Stop("exited", "", status)

    def proc_raise(self, signal: int) -> None:
        raise Stop("trap", f"it raised the signal {signal}")

    def sock_accept(self, *_: int) -> int:
        return ENOTSUP

    sock_recv = sock_send = sock_shutdown = sock_accept

    # Open descriptors.

    def fd_advise(self, number: int, *_: int) -> None:
        self._find_file(number)

    def fd_allocate(self, number: int, offset: int, size: int) -> None:
        _, file = self._find_writable(number)
        if offset + size > file.size:
            self.files.resize(file, offset + size)

    def fd_close(self, number: int) -> None:
        found = self._find(number)
        del self.descriptors[number]
        if number not in self.tops and found.node is not None:
            self.files.close(found.node)
        self.tops.pop(number, None)

    def fd_datasync(self, number: int) -> None:
        found = self._find(number)
        if isinstance(found.node, File):
            self.meter.charge_sync()
            self.files.sync(found.node)

    fd_sync = fd_datasync

    def fd_fdstat_get(self, number: int, answer: int) -> None:
        found = self._find(number)
        kind = UNKNOWN if found.node is None else _kind(found.node)
        rights = EVERYTHING if found.stream < 0 else EVERYTHING & ~SEEKING
        if isinstance(found.node, File) and not found.write:
            rights &= ~WRITING
        self._put(answer, struct.pack("<BxH4xQQ", kind, APPEND * found.append, rights, EVERYTHING))

    def fd_fdstat_set_flags(self, number: int, flags: int) -> None:
        self._find(number).append = bool(flags & APPEND)

    def fd_fdstat_set_rights(self, number: int, *_: int) -> None:
        self._find(number)

    def fd_filestat_get(self, number: int, answer: int) -> None:
        self._put(answer, _status(self._find(number).node))

    def fd_filestat_set_size(self, number: int, size: int) -> None:
        self.files.resize(self._find_writable(number)[1], size)

    def fd_filestat_set_times(self, number: int, *_: int) -> None:
        self._find(number)

    def fd_prestat_get(self, number: int, answer: int) -> None:
        if number not in self.tops:
            raise Fault(EBADF)
        self._put(answer, struct.pack("<II", 0, len(self.tops[number])))

    def fd_prestat_dir_name(self, number: int, address: int, size: int) -> None:
        if number not in self.tops:
            raise Fault(EBADF)
        if size < len(self.tops[number]):
            raise Fault(EINVAL)
        self._put(address, self.tops[number])

    def fd_read(self, number: int, vectors: int, count: int, answer: int) -> None:
        found = self._find(number)

        def read(size: int) -> bytes:
            if found.stream == 0:
                data = self.stdin[found.position : found.position + size]
            elif isinstance(found.node, File):
                data = self.files.read(found.node, found.position, size)
            else:
                raise Fault(EBADF)
            found.position += len(data)
            return data

        self._put_word(answer, self._scatter(vectors, count, read))

    def fd_pread(self, number: int, vectors: int, count: int, offset: int, answer: int) -> None:
        _, file = self._find_file(number)
        done = self._scatter(vectors, count, lambda size: self.files.read(file, offset, size))
        self._put_word(answer, done)

    def fd_write(self, number: int, vectors: int, count: int, answer: int) -> None:
        found = self._find(number)
        if not found.write:
            raise Fault(EBADF)
        data = self._gather(vectors, count)
        if found.stream > 0:
            self.write(found.stream, data)
        elif isinstance(found.node, File):
            start = found.node.size if found.append else found.position
            self.files.write(found.node, start, data)
            found.position = start + len(data)
        self._put_word(answer, len(data))

    def fd_pwrite(self, number: int, vectors: int, count: int, offset: int, answer: int) -> None:
        _, file = self._find_writable(number)
        data = self._gather(vectors, count)
        self.files.write(file, offset, data)
        self._put_word(answer, len(data))

    def fd_readdir(self, number: int, buffer: int, size: int, cookie: int, answer: int) -> None:
        found, folder = self._find_folder(number)
        if cookie == 0:
            found.listing = [(".", folder), ("..", folder), *sorted(folder.entries.items())]
        data = b""
        for place, (name, node) in enumerate(found.listing[cookie:], cookie + 1):
            text = name.encode()
            data += struct.pack("<QQIB3x", place, node.number, len(text), _kind(node)) + text
            if len(data) >= size:
                break
        data = data[:size]
        self.meter.charge_bytes(len(data))
        self._put(buffer, data)
        self._put_word(answer, len(data))

    def fd_renumber(self, number: int, to: int) -> None:
        found = self._find(number)
        self._find(to)
        if number == to:
            return
        if number in self.tops:
            raise Fault(ENOTSUP)
        self.fd_close(to)
        del self.descriptors[number]
        self.descriptors[to] = found

    def fd_seek(self, number: int, offset: int, whence: int, answer: int) -> None:
        found, file = self._find_file(number)
        if whence > END:
            raise Fault(EINVAL)
        signed = offset - 2**64 if offset >= 2**63 else offset
        position = signed + {SET: 0, CURRENT: found.position, END: file.size}[whence]
        if not 0 <= position < 2**63:
            raise Fault(EINVAL)
        found.position = position
        self._put(answer, struct.pack("<Q", position))

    def fd_tell(self, number: int, answer: int) -> None:
        self._put(answer, struct.pack("<Q", self._find_file(number)[0].position))

    # Paths.

    def path_create_directory(self, number: int, path: int, size: int) -> None:
        self.files.make_folder(self._find_folder(number)[1], self._get_text(path, size))

    def path_filestat_get(self, number: int, _flags: int, path: int, size: int, answer: int) -> None:
        self._put(answer, _status(self.files.find(self._find_folder(number)[1], self._get_text(path, size))))

    def path_filestat_set_times(self, number: int, _flags: int, path: int, size: int, *_: int) -> None:
        self.files.find(self._find_folder(number)[1], self._get_text(path, size))

    def path_link(self, *_: int) -> int:
        return ENOTSUP

    path_symlink = path_link

    def path_open(
        self, number: int, _lookup: int, path: int, size: int, how: int, rights: int, _: int, flags: int, answer: int
    ) -> None:
        folder = self._find_folder(number)[1]
        if how & CREATE and how & AS_DIRECTORY:
            raise Fault(EINVAL)
        text = self._get_text(path, size)
        if how & AS_DIRECTORY and not isinstance(self.files.find(folder, text), Folder):
            raise Fault(ENOTDIR)
        write = bool(rights & WRITING) and not how & AS_DIRECTORY
        if write and not how & (CREATE | TRUNCATE):
            # Runtimes ask for every right of a folder that they only want to list.
            write = not isinstance(self.files.find(folder, text), Folder)
        node = self.files.open(folder, text, bool(how & CREATE), bool(how & EXCLUSIVE), bool(how & TRUNCATE), write)
        opened = 3
        while opened in self.descriptors:
            opened += 1
        self.descriptors[opened] = Descriptor(node, write=write, append=bool(flags & APPEND))
        self._put_word(answer, opened)

    def path_readlink(self, number: int, path: int, size: int, *_: int) -> int:
        self.files.find(self._find_folder(number)[1], self._get_text(path, size))
        return EINVAL

    def path_remove_directory(self, number: int, path: int, size: int) -> None:
        self.files.remove_folder(self._find_folder(number)[1], self._get_text(path, size))

    def path_rename(self, number: int, path: int, size: int, to: int, target: int, target_size: int) -> None:
        start, goal = self._find_folder(number)[1], self._find_folder(to)[1]
        self.files.rename(start, self._get_text(path, size), goal, self._get_text(target, target_size))

    def path_unlink_file(self, number: int, path: int, size: int) -> None:
        self.files.remove_file(self._find_folder(number)[1], self._get_text(path, size))


def define(linker: wasmtime.Linker, current: Callable[[], Wasi]) -> None:
    """Every function of preview 1 in `linker`, answered by the run that is `current`."""
    for name, letters in SIGNATURES.items():
        parameters = [wasmtime.ValType.i64() if kind == "l" else wasmtime.ValType.i32() for kind in letters]
        results = [] if name == "proc_exit" else [wasmtime.ValType.i32()]
        linker.define_func(MODULE, name, wasmtime.FuncType(parameters, results), _answer(name, current), True)


def _answer(name: str, current: Callable[[], Wasi]) -> Callable[..., int | None]:
    def answer(caller: wasmtime.Caller, *arguments: int) -> int | None:
        return current().call(name, caller, arguments)

    return answer


def _kind(node: Node) -> int:
    return DIRECTORY if isinstance(node, Folder) else REGULAR


def _status(node: Node | None) -> bytes:
    """A filestat: device, inode, type, links, size; the three times are zero."""
    if node is None:
        return struct.pack("<QQB7xQQQQQ", 0, 0, UNKNOWN, 1, 0, 0, 0, 0)
    size = node.size if isinstance(node, File) else 0
    return struct.pack("<QQB7xQQQQQ", 1, node.number, _kind(node), 1, size, 0, 0, 0)
