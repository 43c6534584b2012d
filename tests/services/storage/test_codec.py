"""The codec: any k of n give the bytes back, a changed shard is named and never used, a rebuilt shard is the same."""

from __future__ import annotations

import itertools
import random
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.protocol.errors import Corrupt, InvalidInput, MalformedMessage, WrongPassphrase
from freehold.services.storage import codec, shard_tree
from freehold.services.storage.codec import SegmentKeys, Workspace
from freehold.services.storage.segment_record import MAX_SHARDS, SegmentRecord

KEYS = SegmentKeys(bytes(range(32)), bytes(range(16)))


def text(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def encode(plaintext: bytes, k: int, n: int) -> tuple[SegmentRecord, dict[int, bytes]]:
    encoded = codec.encode_segment(plaintext, KEYS, k, n)
    return encoded.record(), {i: bytes(shard) for i, shard in enumerate(encoded.shards)}


@pytest.mark.parametrize(("k", "n"), [(1, 2), (1, 4), (2, 3), (3, 6), (4, 7), (5, 9)])
@pytest.mark.parametrize("size", [0, 1, 100, 40_001])
def test_every_k_of_n_decode(k: int, n: int, size: int) -> None:
    plaintext = text(size)
    record, shards = encode(plaintext, k, n)
    for chosen in itertools.combinations(range(n), k):
        got = codec.decode_segment(record, {i: shards[i] for i in chosen}, size, KEYS)
        assert got == plaintext


@pytest.mark.parametrize(("k", "n"), [(29, 80), (10, 30), (40, 80), (79, 80), (1, 80)])
def test_many_k_of_n_decode_in_large_codes(k: int, n: int) -> None:
    plaintext = text(20_000)
    record, shards = encode(plaintext, k, n)
    draw = random.Random(k)
    choices = [range(k), range(n - k, n), *(draw.sample(range(n), k) for _ in range(60))]
    for chosen in choices:
        got = codec.decode_segment(record, {i: shards[i] for i in chosen}, len(plaintext), KEYS)
        assert got == plaintext


@given(st.integers(0, 150_000), st.integers(1, 12), st.integers(1, 8), st.randoms(use_true_random=False))
def test_any_size_and_code_round_trip(size: int, k: int, parity: int, draw: random.Random) -> None:
    plaintext, n = text(size), k + parity
    record, shards = encode(plaintext, k, n)
    assert SegmentRecord.from_bytes(record.to_bytes()) == record
    chosen = draw.sample(range(n), k)
    assert codec.decode_segment(record, {i: shards[i] for i in chosen}, size, KEYS) == plaintext
    lost = draw.randrange(n)
    helpers = [codec.verify_shard(record, i, shards[i]) for i in range(n) if i != lost]
    assert codec.rebuild_shard(record, lost, helpers, KEYS.repair) == shards[lost]


def test_shards_never_change() -> None:
    """Frozen: what is stored must decode for ever, and be rebuilt by any release."""
    encoded = codec.encode_segment(text(100_000), KEYS, 3, 6)
    assert encoded.shard_size == 33_339
    assert (
        sha256(b"".join(encoded.shards)).hexdigest()
        == "120f4e260ecaffca911f7d24b5f31658fc11a6674ae281f77ce0e64dafae5eda"
    )
    assert (
        encoded.record((b"sealed",)).hash().hex() == "919e62f44d72c9f6063c0e3d32bfb90c642577048e5de6a01524bf7224ded416"
    )


def test_a_shard_is_the_code_under_its_mask_and_nothing_else() -> None:
    one = codec.encode_segment(text(3000), KEYS, 3, 6)
    other = codec.encode_segment(text(3000), SegmentKeys(KEYS.key, bytes(16)), 3, 6)
    assert all(len(shard) == one.shard_size == 1006 for shard in one.shards)
    masks = [bytes(a ^ b for a, b in zip(x, y, strict=True)) for x, y in zip(one.shards, other.shards, strict=True)]
    assert len(set(masks)) == 6, "each shard has a keystream of its own"
    assert all(bytes(x) != bytes(y) for x, y in itertools.combinations(one.shards, 2))


@pytest.mark.parametrize("at", [0, 4095, 4096, -1])
@pytest.mark.parametrize("index", [0, 2, 5])
def test_a_changed_shard_is_named_and_not_used(index: int, at: int) -> None:
    record, shards = encode(text(60_000), 3, 6)
    bad = bytearray(shards[index])
    bad[at] ^= 0x80
    with pytest.raises(Corrupt) as caught:
        codec.decode_segment(record, {**shards, index: bytes(bad)}, 60_000, KEYS)
    assert caught.value.details["shard"] == index
    rest = {i: shard for i, shard in shards.items() if i != index}
    assert codec.decode_segment(record, rest, 60_000, KEYS) == text(60_000)


@pytest.mark.parametrize("wrong", [b"", b"\x00", None])
def test_a_shard_of_another_length_is_named(wrong: bytes | None) -> None:
    record, shards = encode(text(100), 3, 6)
    data = shards[1] + b"\x00" if wrong is None else wrong
    with pytest.raises(Corrupt) as caught:
        codec.verify_shard(record, 1, data)
    assert caught.value.details["shard"] == 1


def test_a_shard_in_anothers_place_is_corrupt() -> None:
    record, shards = encode(text(100), 3, 6)
    with pytest.raises(Corrupt):
        codec.verify_shard(record, 1, shards[2])
    with pytest.raises(InvalidInput):
        codec.verify_shard(record, 6, shards[2])


@pytest.mark.parametrize("keys", [SegmentKeys(bytes(32), KEYS.repair), SegmentKeys(KEYS.key, bytes(16))])
def test_a_wrong_key_never_gives_garbage(keys: SegmentKeys) -> None:
    record, shards = encode(text(5000), 3, 6)
    with pytest.raises(WrongPassphrase):
        codec.decode_segment(record, shards, 5000, keys)


def test_too_few_shards_or_a_size_that_does_not_fit() -> None:
    record, shards = encode(text(5000), 3, 6)
    two = [codec.verify_shard(record, i, shards[i]) for i in (0, 4)]
    with pytest.raises(InvalidInput) as caught:
        codec.decode_verified(record, [*two, two[0]], 5000, KEYS)
    assert caught.value.details == {"have": 2, "need": 3}
    for size in (-1, 0, 4000, 6000):
        with pytest.raises(InvalidInput):
            codec.decode_segment(record, shards, size, KEYS)
    with pytest.raises(WrongPassphrase):
        codec.decode_segment(record, shards, 4999, KEYS)


@pytest.mark.parametrize(("k", "n"), [(0, 2), (2, 2), (3, 2), (1, MAX_SHARDS + 1), (-1, 3)])
def test_codes_out_of_range(k: int, n: int) -> None:
    with pytest.raises(InvalidInput):
        codec.encode_segment(b"x", KEYS, k, n)


def test_the_rebuilder_needs_the_right_repair_key() -> None:
    record, shards = encode(text(50_000), 3, 6)
    helpers = [codec.verify_shard(record, i, shards[i]) for i in (1, 3, 5)]
    with pytest.raises(Corrupt):
        codec.rebuild_shard(record, 0, helpers, bytes(16))
    with pytest.raises(InvalidInput):
        codec.rebuild_shard(record, 0, helpers, bytes(15))


def test_a_workspace_carries_nothing_from_one_segment_to_the_next() -> None:
    space, back = Workspace(), Workspace()
    for size in (90_000, 10, 0, 70_001, 90_000, 16):
        encoded = codec.encode_segment(text(size, size), KEYS, 3, 6, space)
        fresh = codec.encode_segment(text(size, size), KEYS, 3, 6)
        assert encoded.shards == fresh.shards
        assert encoded.roots == fresh.roots == tuple(shard_tree.root(shard) for shard in fresh.shards)
        some = dict(enumerate(encoded.shards[2:5], start=2))
        assert codec.decode_segment(encoded.record(), some, size, KEYS, back) == text(size, size)


def test_threads_share_the_code_but_no_workspace() -> None:
    texts = [text(200_000, seed) for seed in range(8)]

    def there_and_back(plaintext: bytes) -> bytes:
        space, back = Workspace(), Workspace()
        encoded = codec.encode_segment(plaintext, KEYS, 3, 6, space)
        some = {i: encoded.shards[i] for i in (1, 3, 4)}
        return bytes(codec.decode_segment(encoded.record(), some, len(plaintext), KEYS, back))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(there_and_back, texts)) == texts


def test_segment_keys_are_random_and_travel_together() -> None:
    keys = SegmentKeys.random()
    assert SegmentKeys.from_bytes(keys.to_bytes()) == keys != SegmentKeys.random()
    with pytest.raises(InvalidInput):
        SegmentKeys.from_bytes(bytes(47))


RECORD = SegmentRecord(1, 2, 3, 10, (bytes(32), bytes(32), bytes(32)), (b"sealed",))


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2}, {"k": 0}, {"k": 3}, {"n": 2}, {"n": 81}, {"shard_size": 0}, {"shard_size": 1 << 31},
        {"roots": (bytes(32),)}, {"roots": (bytes(31),) * 3}, {"sealed": (b"",) * 256}, {"sealed": (bytes(513),)},
    ],
)  # fmt: skip
def test_a_record_out_of_range_is_malformed(change: dict[str, object]) -> None:
    fields = {name: getattr(RECORD, name) for name in RECORD.__struct_fields__}
    with pytest.raises(MalformedMessage):
        SegmentRecord.from_bytes(SegmentRecord(**{**fields, **change}).to_bytes())


@pytest.mark.parametrize("data", [b"", b"\x90", b"\x80", b"\xc1", bytes(70_000)])
def test_bytes_that_are_no_record(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        SegmentRecord.from_bytes(data)


def test_a_record_has_one_spelling() -> None:
    data = RECORD.to_bytes()
    assert SegmentRecord.from_bytes(data) == RECORD
    assert data[:5] == bytes([0x96, 1, 2, 3, 10])
    for other in (bytes([0x96, 0xCC, 1]) + data[2:], data + b"\x00", b"\x97" + data[1:] + b"\x00"):
        with pytest.raises(MalformedMessage):
            SegmentRecord.from_bytes(other)


@given(st.binary(max_size=200))
def test_noise_is_malformed_or_canonical(noise: bytes) -> None:
    try:
        record = SegmentRecord.from_bytes(noise)
    except MalformedMessage:
        return
    assert record.to_bytes() == noise
