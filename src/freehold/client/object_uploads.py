"""Multipart uploads: what a view says of one, and what its parts make when they are put together.

Parts are segments of their own under keys of their own, so an object is its parts' segments in a row: no byte is read
to complete an upload. Invariants: what is completed is exactly what the caller named, part by part; every part of the
upload that the object does not have is dropped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from itertools import pairwise
from typing import NamedTuple

import msgspec

from freehold.client.bucket_types import COMPOSITE, FULL_OBJECT, CompletedPart, PartInfo
from freehold.client.checksums_combine import combine_composite, combine_full
from freehold.client.errors import InvalidPart, InvalidPartOrder, PartTooSmall
from freehold.client.object_records import LAST_SUB, PARTS, Part, PartRow, Upload, decode, part_place, sequence_of
from freehold.client.table import View
from freehold.client.table_records import Key
from freehold.protocol.errors import InvalidInput
from freehold.services.storage.client_objects import StoredObject, decode_object, join

MAX_PARTS = 10_000
MIN_PART = 5 << 20  # bytes, of every part but the last
DIGITS = 32  # of an MD5 in hex


class Joined(NamedTuple):
    """An upload put together: what the object is, and all that the table forgets."""

    stored: StoredObject
    etag: str
    parts: bytes  # rows, packed
    checksums: dict[str, str]
    checksum_type: str
    remove: frozenset[Key]
    unused: tuple[StoredObject, ...]


async def read_parts(view: View, place: Key) -> dict[int, Part]:
    """An upload's parts, by number."""
    sequence = sequence_of(place).to_bytes(8)
    parts = {}
    async with aclosing(view.scan((PARTS, sequence, b""), (PARTS, sequence, LAST_SUB))) as rows:
        async for at, value in rows:
            parts[int.from_bytes(at[2])] = decode(value.meta, Part)
    return parts


def check_number(number: int) -> int:
    """A part's number; InvalidInput outside of 1 to 10,000."""
    if not 1 <= number <= MAX_PARTS:
        raise InvalidInput(f"part numbers are 1 to {MAX_PARTS}, not {number}", limit=MAX_PARTS)
    return number


def put_together(
    place: Key, upload: Upload, there: Mapping[int, Part], named: Sequence[CompletedPart], least: int
) -> Joined:
    """What the named parts make. InvalidPart, InvalidPartOrder, PartTooSmall, InvalidInput for none at all."""
    if not named:
        raise InvalidInput("an upload is completed with at least one part")
    if any(one.number >= other.number for one, other in pairwise(named)):
        raise InvalidPartOrder("part numbers must ascend")
    chosen = [_choose(there, part) for part in named]
    for part, said in zip(chosen[:-1], named, strict=False):
        if part.size < least:
            raise PartTooSmall(
                f"part {said.number} has {part.size} bytes; all but the last have at least {least}",
                number=said.number, size=part.size, minimum=least, etag=part.etag,
            )  # fmt: skip
    rows: list[PartRow] = [(said.number, part.size, part.checksums) for said, part in zip(named, chosen, strict=True)]
    stored = join(decode_object(part.stored) for part in chosen)
    checksums, kind = _combine(upload, chosen)
    numbers = {part.number for part in named}
    unused = tuple(decode_object(part.stored) for number, part in there.items() if number not in numbers)
    remove = frozenset({place, *(part_place(sequence_of(place), number) for number in there)})
    return Joined(stored, _etag(chosen), msgspec.msgpack.encode(rows), checksums, kind, remove, unused)


def unpack_parts(data: bytes) -> tuple[PartInfo, ...]:
    """The parts of an object, from its record."""
    if not data:
        return ()
    return tuple(PartInfo(number, size, "", checksums) for number, size, checksums in decode(data, list[PartRow]))


def _choose(there: Mapping[int, Part], said: CompletedPart) -> Part:
    part = there.get(said.number)
    if part is None or said.etag.strip('"') != part.etag:
        raise InvalidPart(f"there is no part {said.number} with this ETag", number=said.number, etag=said.etag)
    for name, value in said.checksums.items():
        if part.checksums.get(name) != value:
            raise InvalidPart(f"part {said.number} has another {name} checksum", number=said.number)
    return part


def _etag(parts: Sequence[Part]) -> str:
    """As S3 makes it: the MD5 of the parts' MD5s, and their count. An ETag that is no MD5 counts as text."""
    hasher = hashlib.md5(usedforsecurity=False)
    for part in parts:
        is_md5 = len(part.etag) == DIGITS and "-" not in part.etag
        hasher.update(bytes.fromhex(part.etag) if is_md5 else part.etag.encode())
    return f"{hasher.hexdigest()}-{len(parts)}"


def _combine(upload: Upload, parts: Sequence[Part]) -> tuple[dict[str, str], str]:
    name, kind = upload.algorithm, upload.extra.checksum_type or COMPOSITE
    values = [(part.checksums.get(name, ""), part.size) for part in parts]
    if not name or not all(value for value, _ in values):
        return {}, ""
    if kind == FULL_OBJECT:
        return {name: combine_full(name, values)}, FULL_OBJECT
    return {name: combine_composite(name, [value for value, _ in values])}, COMPOSITE
