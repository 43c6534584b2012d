"""A pack's payloads stay where their entries say, whatever is dead and cut; sealed bytes open for one use only."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.client.sealing import OVERHEAD, Sealer
from freehold.client.secrets import derive_secret, head_name
from freehold.client.table_records import (
    VERSION,
    Directory,
    Entries,
    Frame,
    Pack,
    Packed,
    Page,
    Value,
    decode_directory,
    decode_entries,
    decode_frame,
    encode,
    join_ranges,
)
from freehold.protocol.errors import Corrupt, FreeholdError, InvalidInput, WrongPassphrase
from freehold.services.storage.client_objects import StoredObject
from tests.client.table_world import NAME, SECRET, key


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(0, 2**32))
def test_payloads_are_found_in_what_is_left_of_a_pack(sizes: list[int], seed: int) -> None:
    draw = random.Random(seed)
    offsets = [sum(sizes[:index]) for index in range(len(sizes))]
    places = [Packed(0, offset, size) for offset, size in zip(offsets, sizes, strict=True)]
    whole = bytes(draw.randrange(256) for _ in range(sum(sizes)))
    pack, physical, alive = Pack(bytes(16), len(whole), StoredObject(0)), whole, set(places)
    while alive:
        gone = draw.sample(sorted(alive, key=lambda packed: packed.offset), draw.randint(1, len(alive)))
        alive -= set(gone)
        pack = pack.bury((packed.offset, packed.size) for packed in gone)
        assert pack.live == sum(packed.size for packed in alive)
        with pytest.raises(Corrupt):
            pack.bury([(gone[0].offset, gone[0].size)])
        if draw.random() < 0.5:
            dead = {at for offset, size in pack.dead for at in range(offset, offset + size)}
            physical = bytes(byte for at, byte in enumerate(whole) if at not in dead)
            pack = Pack(bytes(16), len(whole), StoredObject(0), pack.dead, pack.dead)
            with pytest.raises(Corrupt, match="cut out"):
                pack.place(gone[0])
        for packed in alive:
            at = pack.place(packed)
            assert physical[at : at + packed.size] == whole[packed.offset : packed.offset + packed.size]
    with pytest.raises(Corrupt, match="after the end"):
        Pack(bytes(16), 5, StoredObject(0)).place(Packed(0, 3, 3))


def test_ranges_join_where_they_touch_and_may_not_overlap() -> None:
    assert join_ranges([(5, 5), (0, 5), (12, 1)], 13) == ((0, 10), (12, 1))
    for wrong in ([(0, 5), (4, 2)], [(12, 2)], [(3, 0)], [(-1, 2)]):
        with pytest.raises(Corrupt):
            join_ranges(wrong, 13)


def test_records_that_cannot_be_are_corrupt() -> None:
    value = Value(b"")
    pages = tuple(Page(bytes(16), key(number), 1, 1, StoredObject(0)) for number in (2, 1))
    bad_packs = [
        {5: Pack(bytes(16), 9, StoredObject(0))},
        {0: Pack(bytes(16), 9, StoredObject(0), ((5, 2), (0, 5)))},
        {0: Pack(bytes(16), 9, StoredObject(0), (), ((0, 10),))},
    ]
    for decode, record in (
        (decode_entries, Entries(VERSION, [key(2), key(1)], [value, value])),
        (decode_entries, Entries(VERSION, [key(1), key(1)], [value, value])),
        (decode_entries, Entries(VERSION, [key(1)], [])),
        (decode_entries, Entries(VERSION, [(-1, b"", b"")], [value])),
        (decode_entries, Entries(VERSION + 1, [], [])),
        (decode_frame, Frame(VERSION, bytes(15), 1, 1, [])),
        (decode_frame, Frame(VERSION, bytes(16), 1, 0, [])),
        (decode_frame, Frame(VERSION, bytes(16), 1, 1, [((1 << 32, b"", b""), None)])),
        (decode_directory, Directory(VERSION, 0, (), pages)),
        *((decode_directory, Directory(VERSION, packs=packs, next_pack=1)) for packs in bad_packs),
    ):
        with pytest.raises(Corrupt):
            decode(encode(record))


@given(st.binary(max_size=200), st.integers(0, 2**32))
def test_what_was_sealed_opens_for_the_same_secret_head_and_kind_only(plain: bytes, seed: int) -> None:
    sealer = Sealer(SECRET, NAME)
    sealed = sealer.seal(b"frame", plain)
    assert len(sealed) == len(plain) + OVERHEAD
    assert sealed != sealer.seal(b"frame", plain)
    assert Sealer(SECRET, NAME).open(b"frame", sealed) == plain
    with pytest.raises(Corrupt):
        sealer.open(b"base", sealed)
    for other in (Sealer(b"t" * 32, NAME), Sealer(SECRET, "cd" * 16)):
        with pytest.raises(WrongPassphrase):
            other.open(b"frame", sealed)
    draw = random.Random(seed)
    at = draw.randrange(len(sealed))
    for broken in (sealed[:at], sealed[:at] + bytes([sealed[at] ^ (1 << draw.randrange(8))]) + sealed[at + 1 :]):
        with pytest.raises(FreeholdError) as raised:
            sealer.open(b"frame", broken)
        assert isinstance(raised.value, Corrupt | WrongPassphrase)


def test_names_and_secrets_follow_from_the_seed_and_say_nothing_of_each_other() -> None:
    seed = b"0123456789abcdef"
    names = {head_name(seed, identity) for identity in (b"", b"a", b"b")} | {head_name(seed[::-1], b"a")}
    assert len(names) == 4
    assert all(len(name) == 32 and int(name, 16) >= 0 for name in names)
    found = {derive_secret(seed, label, identity) for label in ("a", "b") for identity in (b"", b"a")}
    assert len(found) == 4
    assert {len(secret) for secret in found} == {32}
    assert head_name(seed, b"a") == head_name(seed, b"a")
    for derive in (lambda: head_name(b"short", b""), lambda: derive_secret(b"short", "a")):
        with pytest.raises(InvalidInput):
            derive()
    with pytest.raises(InvalidInput):
        Sealer(b"short", NAME)
