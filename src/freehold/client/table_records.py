"""What a table is made of, as bytes: entries of pages and runs, frames, and the directory that names all objects.

    head    base: where the directory is      frames: changes since, one sealed frame for each group of commits
    run     changes of one flush, sorted      page: entries, sorted, of a range of keys that no other page has
    pack    payloads that stood in frames, one after the other

A pack is named by a number that its values keep for good. `dead` are ranges of it that no entry names any more, `cut`
those of them that its object no longer has: a pack is rewritten without touching a page. Invariants: bytes that are not
exactly one of these are Corrupt; keys ascend; ranges ascend and do not touch each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import pairwise
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import msgspec

from freehold.protocol.errors import Corrupt
from freehold.services.storage.client_objects import StoredObject

VERSION = 1
INLINE_LIMIT = 16 << 10  # bytes of a payload that is kept in the table itself

Key = tuple[int, bytes, bytes]  # (space, key, sub), ordered as tuples are
FIRST: Key = (0, b"", b"")
LAST: Key = (1 << 32, b"", b"")  # after every key: a space is smaller
Ranges = tuple[tuple[int, int], ...]  # (offset, size), ascending


class Packed(msgspec.Struct, frozen=True, array_like=True):
    """A payload in a pack."""

    pack: int
    offset: int
    size: int


class Value(msgspec.Struct, frozen=True, array_like=True):
    """`meta` is the caller's own; `data` a small payload: here, or in a pack."""

    meta: bytes
    data: bytes | Packed | None = None


class Changes(NamedTuple):
    """What a change makes of the table, and the large objects that nothing names after it."""

    put: Mapping[Key, Value] = MappingProxyType({})
    remove: Set[Key] = frozenset()
    discard: Sequence[StoredObject] = ()


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """A group of commits: `count` of them, the first of which is number `first`. None removes a key."""

    version: int
    identity: bytes
    first: int
    count: int
    changes: list[tuple[Key, Value | None]]


class Entries(msgspec.Struct, frozen=True, array_like=True):
    """A page or a run: keys, and as many values. Only runs have None."""

    version: int
    keys: list[Key]
    values: list[Value | None]


class Page(msgspec.Struct, frozen=True, array_like=True):
    """Entries from `first` up to the next page's first; `identity` is random, and never used again."""

    identity: bytes
    first: Key
    count: int
    size: int
    stored: StoredObject


class Run(msgspec.Struct, frozen=True, array_like=True):
    """Changes; those before `floor` stand in pages already."""

    identity: bytes
    count: int
    size: int
    stored: StoredObject
    floor: Key = FIRST


class Pack(msgspec.Struct, frozen=True, array_like=True):
    """`size` bytes of payloads, less what is dead; the object has all but what is cut."""

    identity: bytes
    size: int
    stored: StoredObject
    dead: Ranges = ()
    cut: Ranges = ()

    @property
    def live(self) -> int:
        """Bytes that entries name."""
        return self.size - sum(size for _, size in self.dead)

    def place(self, packed: Packed) -> int:
        """Where a payload is in the object; Corrupt if it is not there."""
        end = packed.offset + packed.size
        before = 0
        for offset, size in self.cut:
            if offset >= end:
                break
            if offset + size > packed.offset:
                raise Corrupt("an entry names a payload that was cut out of its pack")
            before += size
        if end > self.size:
            raise Corrupt("an entry names a payload after the end of its pack")
        return packed.offset - before

    def bury(self, ranges: Iterable[tuple[int, int]]) -> Pack:
        """The pack with more of it dead; Corrupt for what is dead already, or was never there."""
        return msgspec.structs.replace(self, dead=join_ranges([*self.dead, *ranges], self.size))


class Directory(msgspec.Struct, frozen=True, array_like=True):
    """Everything below the frames. `number` counts commits; `recent` are identities of the last changes of the head."""

    version: int
    number: int = 0
    recent: tuple[bytes, ...] = ()
    pages: tuple[Page, ...] = ()
    runs: tuple[Run, ...] = ()
    packs: dict[int, Pack] = {}
    next_pack: int = 0

    def objects(self) -> Iterator[Page | Run | Pack]:
        """All that it names."""
        yield from self.pages
        yield from self.runs
        yield from self.packs.values()


class Base(msgspec.Struct, frozen=True, array_like=True):
    """The directory itself, or the object that holds it."""

    version: int
    directory: bytes | StoredObject


def join_ranges(ranges: Iterable[tuple[int, int]], limit: int) -> Ranges:
    """Sorted and joined where they touch; Corrupt where they overlap or pass the limit."""
    joined: list[tuple[int, int]] = []
    end = 0
    for offset, size in sorted(ranges):
        if size <= 0 or offset < end or offset + size > limit:
            raise Corrupt("a pack's ranges overlap, or pass its end")
        if joined and offset == end:
            joined[-1] = (joined[-1][0], joined[-1][1] + size)
        else:
            joined.append((offset, size))
        end = offset + size
    return tuple(joined)


def encode(record: Frame | Entries | Directory | Base) -> bytes:
    """A record as it is kept."""
    return _ENCODER.encode(record)


def decode_frame(data: bytes) -> Frame:
    """A frame; Corrupt."""
    frame = _read(_FRAMES, data, "frame")
    if len(frame.identity) != 16 or frame.first < 0 or frame.count < 1:
        raise Corrupt("a frame that cannot be")
    for key, _ in frame.changes:
        check_key(key)
    return frame


def decode_entries(data: bytes) -> Entries:
    """A run's entries, or a page's; Corrupt."""
    entries = _read(_ENTRIES, data, "page")
    keys = entries.keys
    if len(keys) != len(entries.values) or any(a >= b for a, b in pairwise(keys)):
        raise Corrupt("a page whose keys and values do not fit each other")
    if keys:
        check_key(keys[0])
        check_key(keys[-1])
    return entries


def decode_base(data: bytes) -> Base:
    """What a head's base says; Corrupt."""
    base = _read(_BASES, data, "base")
    if isinstance(base.directory, StoredObject):
        base.directory.check()
    return base


def decode_directory(data: bytes) -> Directory:
    """A directory; Corrupt."""
    directory = _read(_DIRECTORIES, data, "directory")
    firsts = [page.first for page in directory.pages]
    if directory.number < 0 or any(a >= b for a, b in pairwise(firsts)):
        raise Corrupt("a directory whose pages are not in order")
    for named in directory.objects():
        named.stored.check()
    for number, pack in directory.packs.items():
        ordered = join_ranges(pack.dead, pack.size) == pack.dead and join_ranges(pack.cut, pack.size) == pack.cut
        if not ordered or pack.live < 0 or not 0 <= number < directory.next_pack:
            raise Corrupt("a directory that names a pack that cannot be")
    return directory


def check_key(key: Key) -> Key:
    """The key; Corrupt where its space is out of range."""
    if not FIRST[0] <= key[0] < LAST[0]:
        raise Corrupt(f"a key's space is not {key[0]}")
    return key


_Record = TypeVar("_Record", Frame, Entries, Directory, Base)


def _read(decoder: msgspec.msgpack.Decoder[_Record], data: bytes, what: str) -> _Record:
    try:
        record = decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"not a table's {what}: {error}") from None
    if record.version != VERSION:
        raise Corrupt(f"version {record.version} of a table's {what} is not {VERSION}")
    return record


_ENCODER = msgspec.msgpack.Encoder()
_FRAMES = msgspec.msgpack.Decoder(Frame)
_ENTRIES = msgspec.msgpack.Decoder(Entries)
_BASES = msgspec.msgpack.Decoder(Base)
_DIRECTORIES = msgspec.msgpack.Decoder(Directory)
