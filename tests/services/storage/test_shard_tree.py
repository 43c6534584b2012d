"""The shard tree: frozen roots, openings at their own index only, and the same root however the bytes arrive."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.services.storage import shard_tree
from freehold.services.storage.shard_tree import LEAF_BYTES, ShardHasher


def shard(size: int) -> bytes:
    return (b"freehold" * (size // 8 + 1))[:size]


def plain_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, word for word: split at the largest power of two below the count."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    split = 1 << ((len(leaves) - 1).bit_length() - 1)
    return hashlib.sha256(b"\x01" + plain_root(leaves[:split]) + plain_root(leaves[split:])).digest()


FROZEN = [
    (0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    (1, "f5a06d3c52937089c51b7c6c1cc1948ccdc5581328b2ebb578e8cca66a7b5221"),
    (4096, "2e48a7c305f29925f0a4be74fb05a0945c63b1200a69791215682d9df353ed58"),
    (4097, "77aebac49aad70f9972c8dac50268118290db5cc0416a838c39d9fa00139eb78"),
    (12288, "0f7368f37f4cbde6f4d623b6aeeb4303b9a9a5ccdea5e71218a3b2d5fd2f9ab6"),
    (100_000, "3e0d7b65482f72f94d49430f53abf0531f400c8dbdf75cf4e5c9855a722760bb"),
]


@pytest.mark.parametrize(("size", "expected"), FROZEN)
def test_roots_never_change(size: int, expected: str) -> None:
    assert shard_tree.root(shard(size)).hex() == expected


def test_the_root_is_rfc_6962s() -> None:
    for count in range(34):
        data = shard(count * LEAF_BYTES - (count % 3 if count else 0))
        leaves = [data[at : at + LEAF_BYTES] for at in range(0, len(data), LEAF_BYTES)]
        assert shard_tree.root(data) == plain_root(leaves)


@given(st.integers(1, 9 * LEAF_BYTES), st.data())
def test_every_leaf_opens_and_only_as_itself(size: int, draw: st.DataObject) -> None:
    data = shard(size)
    hashes = shard_tree.leaf_hashes(data)
    root, count = shard_tree.root_of(hashes), shard_tree.leaf_count(size)
    assert count == len(hashes)
    index = draw.draw(st.integers(0, count - 1))
    leaf = data[index * LEAF_BYTES : (index + 1) * LEAF_BYTES]
    assert len(leaf) == shard_tree.leaf_size(size, index)
    siblings = shard_tree.proof(hashes, index)
    assert shard_tree.verify(root, count, index, leaf, siblings)
    changed = bytes([leaf[0] ^ 1]) + leaf[1:]
    assert not shard_tree.verify(root, count, index, changed, siblings)
    assert not shard_tree.verify(bytes(32), count, index, leaf, siblings)
    assert not shard_tree.verify(root, count, index, leaf, [*siblings, bytes(32)])
    assert not shard_tree.verify(root, count, index, leaf, siblings[:-1]) or not siblings
    assert not shard_tree.verify(root, count, count, leaf, siblings)
    assert not shard_tree.verify(root, count, -1, leaf, siblings)
    assert not shard_tree.verify(root, count, index, b"", siblings)
    assert not shard_tree.verify(root, count, index, leaf, [sibling[:31] for sibling in siblings]) or not siblings


def test_a_node_is_no_leaf() -> None:
    hashes = shard_tree.leaf_hashes(shard(2 * LEAF_BYTES))
    forged = hashes[0] + hashes[1]
    assert not shard_tree.verify(shard_tree.root_of(hashes), 1, 0, forged, [])


def test_an_opening_at_another_index_is_refused() -> None:
    data = b"".join(bytes([i]) * LEAF_BYTES for i in range(7))
    hashes = shard_tree.leaf_hashes(data)
    root = shard_tree.root_of(hashes)
    for index in range(7):
        leaf = data[index * LEAF_BYTES : (index + 1) * LEAF_BYTES]
        fits = [other for other in range(7) if shard_tree.verify(root, 7, other, leaf, shard_tree.proof(hashes, index))]
        assert fits == [index]


def test_proof_of_no_leaf() -> None:
    with pytest.raises(IndexError):
        shard_tree.proof([bytes(32)], 1)


@given(st.lists(st.integers(0, 3 * LEAF_BYTES), max_size=8))
def test_the_hasher_takes_pieces_of_any_size(pieces: list[int]) -> None:
    data = shard(sum(pieces))
    hasher, at = ShardHasher(), 0
    for piece in pieces:
        hasher.update(memoryview(data)[at : at + piece])
        at += piece
        assert hasher.root() == shard_tree.root(data[:at])
    assert hasher.size == len(data)
    assert hasher.hashes() == shard_tree.leaf_hashes(data)
