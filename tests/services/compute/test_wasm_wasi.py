"""WASI preview 1, call by call, over a real memory: answers that are the same on every machine."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import wasmtime

from freehold.services.compute.executors import wasm_wasi
from freehold.services.compute.executors.wasm_engine import CALL_FUEL, SYNC_FUEL, Meter, build_engine, build_store
from freehold.services.compute.executors.wasm_files import (
    EBADF,
    EFAULT,
    EINVAL,
    ENOENT,
    ENOTDIR,
    ENOTSUP,
    ESPIPE,
    Files,
)
from freehold.services.compute.executors.wasm_terms import Stop
from freehold.services.compute.executors.wasm_wasi import Wasi

FREE = 8192  # where paths and data are put
ANSWER = 64
IN, OUT, TMP = 3, 4, 5
ALL = 2**29 - 1
READ = 2
CREATE, FOLDER = 1, 2


class Guest:
    """A module's memory, and its calls by name."""

    def __init__(self, folder: Path) -> None:
        for name in ("in", "scratch"):
            (folder / name).mkdir()
        for name in ("z", "a", "m"):
            (folder / "in" / name).write_bytes(name.encode() * 3)
        self.store = build_store(build_engine(), 2**20, 10**9)
        self.memory = wasmtime.Memory(self.store, wasmtime.MemoryType(wasmtime.Limits(1, 1)))
        self.written: list[tuple[int, bytes]] = []
        self.files = Files(folder / "in", folder / "scratch", 10**6)
        self.wasi = Wasi(
            self.files,
            Meter(self.store),
            ["program", "an argument"],
            [("NAME", "value")],
            b"typed",
            lambda stream, data: self.written.append((stream, data)),
        )
        self.wasi.memory = self.memory

    def __getattr__(self, name: str) -> Callable[..., int]:
        return lambda *arguments: self.wasi.call(name, None, arguments)  # type: ignore[arg-type]

    def put(self, data: bytes, address: int = FREE) -> tuple[int, int]:
        self.memory.write(self.store, data, address)
        return address, len(data)

    def get(self, form: str, address: int = ANSWER) -> tuple[int, ...]:
        size = struct.calcsize(form)
        return struct.unpack(form, self.memory.read(self.store, address, address + size))

    def open(self, folder: int, path: bytes, how: int = 0, rights: int = ALL, flags: int = 0) -> int:
        """A descriptor, or an error number, negated."""
        error = self.path_open(folder, 1, *self.put(path), how, rights, ALL, flags, ANSWER)
        return -error or self.get("<I")[0]

    def write(self, number: int, data: bytes) -> int:
        self.put(struct.pack("<II", *self.put(data)), 16)
        return self.fd_write(number, 16, 1, ANSWER)

    def read(self, number: int, size: int) -> bytes:
        self.put(struct.pack("<II", FREE, size), 16)
        assert self.fd_read(number, 16, 1, ANSWER) == 0
        done = self.get("<I")[0]
        return bytes(self.memory.read(self.store, FREE, FREE + done))

    def list(self, number: int, size: int = 4096) -> list[tuple[bytes, int, int]]:
        """(name, inode, kind) of each entry, read in pieces of `size` bytes."""
        found, cookie = [], 0
        while True:
            assert self.fd_readdir(number, FREE, size, cookie, ANSWER) == 0
            used, place = self.get("<I")[0], 0
            data = bytes(self.memory.read(self.store, FREE, FREE + used))
            while place + 24 <= used:
                cookie_next, inode, length, kind = struct.unpack_from("<QQIB", data, place)
                if place + 24 + length > used:
                    break
                found.append((data[place + 24 : place + 24 + length], inode, kind))
                cookie, place = cookie_next, place + 24 + length
            if used < size:
                return found


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    guest = Guest(tmp_path)
    yield guest
    guest.files.close_all()


def test_arguments_and_environment(guest: Guest) -> None:
    assert guest.args_sizes_get(ANSWER, ANSWER + 4) == 0
    assert guest.get("<II") == (2, len(b"program\0an argument\0"))
    assert guest.args_get(ANSWER, FREE) == 0
    assert guest.get("<II") == (FREE, FREE + 8)
    assert bytes(guest.memory.read(guest.store, FREE, FREE + 20)) == b"program\0an argument\0"
    assert guest.environ_sizes_get(ANSWER, ANSWER + 4) == 0
    assert guest.get("<II") == (1, len(b"NAME=value\0"))


def test_every_call_costs_fuel_and_every_byte(guest: Guest) -> None:
    before = guest.store.get_fuel()
    guest.sched_yield()
    assert before - guest.store.get_fuel() == CALL_FUEL
    guest.write(1, bytes(100))
    assert before - guest.store.get_fuel() == 2 * CALL_FUEL + 100


def test_fuel_ends_a_run_within_a_call(guest: Guest) -> None:
    guest.store.set_fuel(CALL_FUEL - 1)
    with pytest.raises(Stop) as caught:
        guest.sched_yield()
    assert (caught.value.ended, guest.store.get_fuel()) == ("fuel", 0)


def test_folders_are_preopened(guest: Guest) -> None:
    for number, name in ((IN, b"/in"), (OUT, b"/out"), (TMP, b"/tmp")):
        assert guest.fd_prestat_get(number, ANSWER) == 0
        assert guest.get("<II") == (0, len(name))
        assert guest.fd_prestat_dir_name(number, FREE, len(name)) == 0
        assert bytes(guest.memory.read(guest.store, FREE, FREE + len(name))) == name
    assert guest.fd_prestat_get(6, ANSWER) == EBADF


def test_listings_are_sorted_and_numbers_count_up(guest: Guest) -> None:
    expected = [(b".", 2, 3), (b"..", 2, 3), (b"a", 5, 4), (b"m", 6, 4), (b"z", 7, 4)]
    assert guest.list(IN) == expected
    assert guest.list(IN, size=64) == expected


def test_a_listing_stands_while_names_go(guest: Guest) -> None:
    for name in (b"1", b"2", b"3"):
        assert guest.fd_close(guest.open(OUT, name, CREATE)) == 0
    assert guest.fd_readdir(OUT, FREE, 24 + 1, 0, ANSWER) == 0  # "." only, and takes the listing
    guest.path_unlink_file(OUT, *guest.put(b"2"))
    assert guest.fd_readdir(OUT, FREE, 4096, 2, ANSWER) == 0
    assert guest.get("<I")[0] == 3 * 25
    assert [name for name, _, _ in guest.list(OUT)] == [b".", b"..", b"1", b"3"]


def test_files_have_no_times(guest: Guest) -> None:
    assert guest.path_filestat_get(IN, 1, *guest.put(b"a"), ANSWER) == 0
    assert guest.get("<QQBxxxxxxxQQQQQ") == (1, 5, 4, 1, 3, 0, 0, 0)


def test_writing_seeking_and_reading(guest: Guest) -> None:
    number = guest.open(OUT, b"file", CREATE)
    assert guest.write(number, b"0123456789") == 0
    assert guest.fd_seek(number, -4, 2, ANSWER) == 0
    assert guest.get("<Q") == (6,)
    assert guest.read(number, 100) == b"6789"
    assert guest.fd_tell(number, ANSWER) == 0
    assert guest.get("<Q") == (10,)
    assert guest.fd_seek(number, -11, 1, ANSWER) == EINVAL
    assert guest.fd_filestat_set_size(number, 4) == 0
    assert guest.fd_seek(number, 0, 0, ANSWER) == 0
    assert guest.read(number, 100) == b"0123"
    appending = guest.open(OUT, b"file", flags=1)
    assert guest.write(appending, b"end") == 0
    assert guest.read(number, 100) == b"end"
    before = guest.store.get_fuel()
    assert guest.fd_sync(number) == 0
    assert before - guest.store.get_fuel() == CALL_FUEL + SYNC_FUEL
    assert guest.fd_renumber(appending, number) == 0
    assert guest.fd_close(appending) == EBADF
    assert guest.fd_close(number) == 0


def test_what_is_open_for_reading_is_not_written(guest: Guest) -> None:
    number = guest.open(IN, b"a", rights=READ)
    assert guest.read(number, 10) == b"aaa"
    assert guest.write(number, b"x") == EBADF
    assert guest.fd_filestat_set_size(number, 0) == EBADF
    assert guest.write(0, b"x") == EBADF
    assert guest.write(77, b"x") == EBADF
    assert guest.fd_seek(1, 0, 0, ANSWER) == ESPIPE


def test_standard_streams(guest: Guest) -> None:
    assert guest.read(0, 3) == b"typ"
    assert guest.read(0, 30) == b"ed"
    assert guest.read(0, 30) == b""
    guest.write(1, b"out")
    guest.write(2, b"err")
    assert guest.written == [(1, b"out"), (2, b"err")]


def test_folders_open_as_folders(guest: Guest) -> None:
    assert guest.path_create_directory(OUT, *guest.put(b"d")) == 0
    number = guest.open(OUT, b"d", FOLDER)
    assert guest.fd_close(guest.open(number, b"x", CREATE)) == 0
    assert guest.open(number, b"../y", CREATE) == -76
    assert guest.open(OUT, b"d/x", FOLDER) == -ENOTDIR
    assert guest.open(OUT, b"none", FOLDER) == -ENOENT


def test_there_are_no_links_and_no_sockets(guest: Guest) -> None:
    target = guest.put(b"/etc/passwd", FREE)
    assert guest.path_symlink(*target, OUT, *guest.put(b"p", FREE + 100)) == ENOTSUP
    assert guest.path_link(IN, 0, *guest.put(b"a"), OUT, *guest.put(b"b", FREE + 100)) == ENOTSUP
    assert guest.path_readlink(IN, *guest.put(b"a"), FREE, 100, ANSWER) == EINVAL
    assert guest.sock_accept(OUT, 0, ANSWER) == ENOTSUP
    assert guest.sock_send(OUT, FREE, 1, 0, ANSWER) == ENOTSUP


def test_waiting_moves_the_clock_and_takes_no_time(guest: Guest) -> None:
    guest.put(struct.pack("<QB7xI4xQQH6x", 42, 0, 1, 5 * 10**9, 0, 0), FREE)
    guest.put(struct.pack("<QB7xI4xQQH6x", 43, 0, 1, 7 * 10**9, 0, 0), FREE + 48)
    assert guest.poll_oneoff(FREE, FREE + 200, 2, ANSWER) == 0
    assert guest.get("<I") == (1,)
    assert guest.get("<QHB", FREE + 200) == (42, 0, 0)
    assert guest.clock_time_get(1, 0, ANSWER) == 0
    assert 5 * 10**9 < guest.get("<Q")[0] < 5 * 10**9 + 10 * CALL_FUEL
    assert guest.clock_time_get(9, 0, ANSWER) == EINVAL
    assert guest.poll_oneoff(FREE, FREE, 0, ANSWER) == EINVAL


@pytest.mark.parametrize("address", [65536, 65535, 2**32 - 1, -1])
def test_no_call_touches_what_is_not_the_modules(guest: Guest, address: int) -> None:
    guest.put(struct.pack("<II", 2**32 - 8, 2**32 - 1), 16)
    assert guest.fd_write(1, 16, 1, ANSWER) == EFAULT
    assert guest.fd_read(0, 16, 1, ANSWER) == EFAULT
    assert guest.fd_write(1, 16, 1, address) == EFAULT
    assert guest.fd_write(1, address, 1, ANSWER) == EFAULT
    assert guest.random_get(address, 100) == EFAULT
    assert guest.clock_time_get(0, 0, address) == EFAULT
    assert guest.path_open(OUT, 0, address, 5, 0, 0, 0, 0, ANSWER) == EFAULT
    assert guest.args_get(ANSWER, address) == EFAULT
    assert guest.fd_readdir(IN, address, 100, 0, ANSWER) == EFAULT


def test_paths_are_text(guest: Guest) -> None:
    assert guest.open(OUT, b"\xff\xfe", CREATE) == -wasm_wasi.EILSEQ
    assert guest.open(OUT, b"a\0b", CREATE) == -EINVAL


def test_the_process_ends_itself(guest: Guest) -> None:
    with pytest.raises(Stop) as caught:
        guest.proc_exit(7)
    assert (caught.value.ended, caught.value.status) == ("exited", 7)
    with pytest.raises(Stop) as caught:
        guest.proc_raise(6)
    assert caught.value.ended == "trap"


def test_every_call_of_preview_1_is_answered() -> None:
    assert set(wasm_wasi.SIGNATURES) <= set(dir(Wasi))
    assert len(wasm_wasi.SIGNATURES) == 46
