"""Indexes, heads' data and the cache: what was written comes back, anything else is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.client.bucket_heads import Head
from freehold.client.cache import IndexCache
from freehold.client.index import IndexEntry, decode_head, decode_index, encode_head, encode_index
from freehold.protocol.errors import Corrupt
from freehold.services.storage.client_objects import Code, StoredObject, StoredSegment


def stored(size: int = 10, nodes: int = 3) -> StoredObject:
    segment = StoredSegment(
        size=size, k=2, shard_size=13, record=b"r" * 32, wrapped=b"w" * 56, roots=(b"a" * 32,) * nodes,
        nodes=(b"n" * 20,) * nodes, positions=tuple(range(nodes)),
    )  # fmt: skip
    return StoredObject(size, (segment,))


def test_what_was_encoded_comes_back() -> None:
    entries = {"name": IndexEntry(stored(), 7), "empty": IndexEntry(StoredObject(0), 8)}
    assert decode_index(encode_index(entries)) == entries
    head = decode_head(encode_head(Code(2, 3), stored()))
    assert (head.code, head.index) == ((2, 3), stored())
    assert decode_head(encode_head(Code(2, 3), None)).index is None


@given(st.binary(max_size=200))
def test_any_bytes_are_an_index_or_corrupt(data: bytes) -> None:
    for decode in (decode_index, decode_head):
        try:
            decode(data)
        except Corrupt:
            continue


def test_fields_that_do_not_fit_are_corrupt() -> None:
    good = stored()
    bad = StoredObject(11, good.segments)
    with pytest.raises(Corrupt, match="do not add up"):
        decode_index(encode_index({"name": IndexEntry(bad, 7)}))
    with pytest.raises(Corrupt, match="cannot be"):
        decode_head(encode_head(Code(2, 3), stored(nodes=2)))


def test_the_cache_opens_for_its_head_and_account_only(tmp_path: Path) -> None:
    cache, head = IndexCache(tmp_path, b"s" * 32), Head(3, b"data")
    cache.write("demo", head, b"an index")
    assert cache.read("demo", head) == b"an index"
    assert cache.read("demo", Head(4, b"data")) is None
    assert cache.read("demo", Head(3, b"other")) is None
    assert cache.read("other", head) is None
    assert IndexCache(tmp_path, b"t" * 32).read("demo", head) is None
    (tmp_path / "demo").write_bytes(b"xyz")
    assert cache.read("demo", head) is None
