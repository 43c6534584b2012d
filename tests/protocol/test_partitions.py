"""Cut into parts or not, the rows give the same; and nothing is cut that is too small."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.protocol import partitions
from freehold.protocol.hashing import Bytes
from freehold.protocol.keys import Key, recover_all
from freehold.protocol.partitions import map_rows, partition_over
from freehold.protocol.typed import keccak


def add(first: Bytes, second: Bytes) -> Bytes:
    return first + second


@given(st.integers(0, 5000), st.integers(1, 9))
def test_parts_one_after_another_are_all_rows(count: int, ways: int) -> None:
    rows = np.arange(count, dtype=np.uint8), np.arange(count, dtype=np.uint8)[::-1]
    sizes: list[int] = []

    def run(function, *parts):  # type: ignore[no-untyped-def]
        sizes.extend(map(len, parts[0]))
        return map(function, *parts)

    with partition_over(run, ways):
        found = np.concatenate(map_rows(add, *rows))
    assert (found == np.concatenate(map_rows(add, *rows))).all()
    assert sum(sizes) in (0, count)
    assert all(size <= partitions.MOST_ROWS for size in sizes)
    assert not sizes or len(sizes) == 1 or min(sizes[:-1]) >= partitions.LEAST_ROWS
    if count >= 2 * partitions.LEAST_ROWS * ways:
        assert len(sizes) >= ways


@pytest.mark.parametrize("most", [1024, 1500])
def test_signatures_are_checked_in_parts(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "MOST_ROWS", most)
    count = 3000
    digests = np.stack([np.frombuffer(keccak(bytes([i])), np.uint8) for i in range(10)])
    keys = [Key(keccak(b"key" + bytes([i]))) for i in range(10)]
    signed = [key.sign_digest(keccak(bytes([i]))) for i, key in enumerate(keys)]
    signatures = np.stack([np.frombuffer(each, np.uint8) for each in signed])
    many = np.tile(digests, (count // 10, 1)), np.tile(signatures, (count // 10, 1))
    many[1][::7, 40] ^= 1
    alone = recover_all(*many)
    with partition_over(map, 1):
        parts = recover_all(*many)
    assert (alone[0] == parts[0]).all()
    assert (alone[1] == parts[1]).all()
    assert alone[1].sum() > 0
    assert (alone[0][1] == np.frombuffer(keys[1].address, np.uint8)).all()
