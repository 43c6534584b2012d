"""What every place for blobs must do: whole or not there, within the allowance, through any kill."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256

import pytest

from freehold.protocol.errors import DiskFull, InvalidInput, NotFound
from freehold.store.blob_store import BlobStore
from tests.store.sql_conformance import environment

ALLOWANCE = 1000
LARGE = 1 << 30

Reopen = Callable[[int], BlobStore]
ListUnfinished = Callable[[], list[str]]


@dataclass(frozen=True)
class Child:
    """The source of a program's `open_blobs(allowance)`, and what its environment needs."""

    source: str
    environment: Mapping[str, str] = field(default_factory=dict)


def stored(blobs: BlobStore) -> dict[str, bytes]:
    return {key: blobs.read(key) for key in blobs.list_keys()}


class BlobsConformance:
    """Inherit, and provide `reopen` (each call opens the same place anew, with this allowance) and `list_unfinished`
    (what is there of puts that have not ended)."""

    @pytest.fixture
    def blobs(self, reopen: Reopen) -> Iterator[BlobStore]:
        blobs = reopen(ALLOWANCE)
        yield blobs
        blobs.close()

    def test_put_read_delete(self, blobs: BlobStore, reopen: Reopen) -> None:
        assert blobs.put("a", [b"one", bytearray(b"two"), memoryview(b"three")]) == 11
        assert blobs.put("empty", []) == 0
        assert blobs.has("a")
        assert blobs.size("a") == 11
        assert blobs.read("a") == b"onetwothree"
        assert blobs.read("a", 3, 3) == b"two"
        assert blobs.read("a", 6) == b"three"
        assert blobs.read("a", 11) == blobs.read("a", 20) == blobs.read("a", 20, 5) == blobs.read("empty") == b""
        assert blobs.read("a", 3, 0) == b""
        assert blobs.used_bytes == 11
        assert sorted(blobs.list_keys()) == ["a", "empty"]
        assert blobs.delete("a")
        assert not blobs.delete("a")
        assert not blobs.has("a")
        assert blobs.used_bytes == 0
        assert stored(reopen(ALLOWANCE)) == {"empty": b""}

    def test_reading_into_memory(self, blobs: BlobStore) -> None:
        blobs.put("a", [b"onetwothree"])
        for room in (0, 5, 11, 20):
            memory = bytearray(room)
            assert blobs.read_into("a", memoryview(memory)) == min(room, 11)
            assert memory == b"onetwothree"[:room] + bytes(max(0, room - 11))

    def test_what_is_missing(self, blobs: BlobStore) -> None:
        for call in (blobs.read, blobs.size):
            with pytest.raises(NotFound):
                call("a")
        for span in ((0, 10), (0, 0), (5, None)):
            with pytest.raises(NotFound):
                blobs.read("a", *span)
        for room in (0, 5):
            with pytest.raises(NotFound):
                blobs.read_into("a", memoryview(bytearray(room)))

    @pytest.mark.parametrize("key", ["", ".", "..", "a/b", "../a", ".hidden", "-x", "a\x00", "a\n", "é", "x" * 201])
    def test_keys_that_could_leave_the_place(self, blobs: BlobStore, key: str) -> None:
        for call in (blobs.read, blobs.size, blobs.has, blobs.delete, blobs.begin):
            with pytest.raises(InvalidInput):
                call(key)

    @pytest.mark.parametrize("key", ["a", "A", "0.1_2-3", "x" * 200])
    def test_keys_that_may_be(self, blobs: BlobStore, key: str) -> None:
        blobs.put(key, [key.encode()])
        assert stored(blobs) == {key: key.encode()}

    @pytest.mark.parametrize(("offset", "length"), [(-1, None), (0, -1)])
    def test_ranges_that_are_none(self, blobs: BlobStore, offset: int, length: int | None) -> None:
        blobs.put("a", [b"x"])
        with pytest.raises(InvalidInput):
            blobs.read("a", offset, length)

    def test_a_put_replaces(self, blobs: BlobStore, reopen: Reopen) -> None:
        blobs.put("a", [b"old old"])
        blobs.put("a", [b"new"])
        assert blobs.read("a") == b"new"
        assert blobs.used_bytes == reopen(ALLOWANCE).used_bytes == 3

    def test_the_allowance_to_the_byte(self, blobs: BlobStore, list_unfinished: ListUnfinished) -> None:
        blobs.put("a", [bytes(ALLOWANCE - 1)])
        with pytest.raises(DiskFull) as caught:
            blobs.put("b", [b"x", b"y"])
        assert caught.value.details == {"need": 1, "free": 0, "allowance": ALLOWANCE}
        assert blobs.free_bytes == 1
        blobs.put("b", [b"x"])
        assert blobs.free_bytes == 0
        assert list_unfinished() == []
        assert sorted(blobs.list_keys()) == ["a", "b"]
        with pytest.raises(DiskFull):
            blobs.begin("c", 1)

    def test_announced_bytes_are_taken_at_once_and_given_back(self, blobs: BlobStore) -> None:
        with blobs.begin("a", 900) as arriving:
            arriving.write(b"x")
            assert blobs.free_bytes == 100
            with pytest.raises(DiskFull):
                blobs.begin("b", 101)
            assert not blobs.has("a")
            arriving.commit()
            arriving.abort()
        assert blobs.used_bytes == 1
        assert blobs.read("a") == b"x"

    def test_a_put_that_fails_leaves_nothing(
        self, blobs: BlobStore, reopen: Reopen, list_unfinished: ListUnfinished
    ) -> None:
        def broken() -> Iterator[bytes]:
            yield b"half"
            raise ConnectionResetError

        with pytest.raises(ConnectionResetError):
            blobs.put("a", broken())
        with blobs.begin("b", 10) as arriving:
            arriving.write(b"and then nothing")
        assert blobs.used_bytes == 0
        assert stored(blobs) == stored(reopen(ALLOWANCE)) == {}
        assert list_unfinished() == []

    def test_a_large_blob_is_seen_only_when_it_is_whole(self, reopen: Reopen, list_unfinished: ListUnfinished) -> None:
        blobs, draw = reopen(LARGE), random.Random(1)
        data = draw.randbytes((20 << 20) + 3)
        for version in (data, data[::-1]):
            before = stored(blobs)
            with blobs.begin("a") as arriving:
                at = 0
                while at < len(version):
                    size = draw.randint(1, 3 << 20)
                    arriving.write(memoryview(version)[at : at + size])
                    at += size
                    assert stored(blobs) == before
                arriving.commit()
            assert blobs.read("a") == version
            assert blobs.used_bytes == len(data)
        with blobs.begin("a") as arriving:
            arriving.write(data)
            assert blobs.used_bytes == 2 * len(data)
        assert blobs.read("a", 8 << 20, 1 << 20) == version[8 << 20 : 9 << 20]
        assert (blobs.used_bytes, list_unfinished()) == (len(data), [])
        blobs.close()

    def test_leftovers_go_at_the_start(self, blobs: BlobStore, reopen: Reopen, list_unfinished: ListUnfinished) -> None:
        blobs.put("a", [b"kept"])
        large = reopen(LARGE)
        large.begin("b").write(bytes(9 << 20))
        assert len(list_unfinished()) == 1
        after = reopen(ALLOWANCE)
        assert list_unfinished() == []
        assert stored(after) == {"a": b"kept"}
        assert after.used_bytes == 4

    def test_a_lower_allowance_keeps_what_is_there(self, blobs: BlobStore, reopen: Reopen) -> None:
        blobs.put("a", [bytes(500)])
        small = reopen(100)
        assert small.free_bytes == 0
        assert small.read("a") == bytes(500)
        with pytest.raises(DiskFull):
            small.put("b", [b"x"])

    def test_threads_share_the_allowance(self, blobs: BlobStore, reopen: Reopen) -> None:
        refused: list[str] = []

        def worker(name: str) -> None:
            for i in range(20):
                try:
                    blobs.put(f"{name}{i}", [bytes(10)] * 2)
                    blobs.put(f"shared{i % 3}", [bytes(ord(name) - 96)])
                    blobs.delete(f"shared{(i + 1) % 3}")
                except DiskFull:
                    refused.append(name)

        threads = [threading.Thread(target=worker, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = stored(blobs)
        assert sum(not key.startswith("shared") for key in found) + len(refused) >= 80
        assert blobs.used_bytes == sum(map(len, found.values())) == reopen(ALLOWANCE).used_bytes <= ALLOWANCE


WRITER = """
import random, sys
from hashlib import sha256
blobs, draw = open_blobs(1 << 40), random.Random(int(sys.argv[1]))
while True:
    data = draw.randbytes(draw.choice([0, 10, 10_000, 9 << 20]))
    key = sha256(data).hexdigest()
    blobs.put(key, [data])
    print(key, flush=True)
"""


class KillConformance:
    """Inherit, and provide `reopen`, `list_unfinished` and `child`."""

    def test_what_was_acknowledged_survives_kill_9_and_nothing_is_there_in_part(
        self, reopen: Reopen, list_unfinished: ListUnfinished, child: Child
    ) -> None:
        acknowledged: set[str] = set()
        for seed, puts in enumerate((1, 4, 9)):
            command = [sys.executable, "-c", child.source + WRITER, str(seed)]
            variables = {**environment(), **child.environment}
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables) as process:
                assert process.stdout is not None
                acknowledged |= {process.stdout.readline().strip() for _ in range(puts)}
                process.kill()
                rest = process.stdout.read().splitlines(keepends=True)
                acknowledged |= {line.strip() for line in rest if line[-1:] == "\n"}
            blobs = reopen(LARGE)
            found = stored(blobs)
            assert acknowledged <= found.keys()
            assert [key for key, data in found.items() if sha256(data).hexdigest() != key] == []
            assert blobs.used_bytes == sum(map(len, found.values()))
            assert list_unfinished() == []
            blobs.close()
