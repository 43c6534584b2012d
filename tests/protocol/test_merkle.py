"""Row trees and positional sum trees against their definitions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from freehold.protocol.merkle import (
    ACCOUNTS,
    LISTS,
    SumNode,
    SumTree,
    depth_of,
    is_sum_proof,
    offset_of,
    row_proof,
    row_root,
    verify_row,
)
from freehold.protocol.typed import keccak

AMOUNTS = st.integers(0, 2**90)


def leaf(index: int, size: int) -> SumNode:
    return LISTS.leaf(index.to_bytes(8), (size,))


@given(st.integers(0, 40), st.data())
def test_every_row_is_proven_at_its_place_and_nowhere_else(count: int, data: st.DataObject) -> None:
    hashes = [keccak(bytes([i])) for i in range(count)]
    root = row_root(hashes)
    for index in range(count):
        proof = row_proof(hashes, index)
        assert verify_row(root, count, index, hashes[index], proof)
        other = data.draw(st.integers(0, count))
        assert verify_row(root, count, other, hashes[index], proof) == (other == index)
        assert not verify_row(root, count, index, keccak(b"other"), proof)
        assert not verify_row(root, count, index, hashes[index], [*proof, keccak(b"more")])


def test_a_node_cannot_pose_as_a_row() -> None:
    hashes = [keccak(bytes([i])) for i in range(4)]
    assert row_root(hashes) != row_root([row_root(hashes[:2]), row_root(hashes[2:])])


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2**40)), max_size=60))
def test_setting_leaves_one_by_one_is_building_at_once(changes: list[tuple[int, int]]) -> None:
    tree, sizes = SumTree(LISTS), []
    for position, size in changes:
        index = min(position, len(sizes))
        sizes[index : index + 1] = [size]
        tree.set(index, leaf(index, size))
        rebuilt = SumTree(LISTS, [leaf(i, s) for i, s in enumerate(sizes)])
        assert tree.root == rebuilt.root
        assert tree.root.sums == (sum(sizes),)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40), st.data())
def test_a_byte_is_found_where_it_lies(sizes: list[int], data: st.DataObject) -> None:
    tree = SumTree(LISTS, [leaf(i, s) for i, s in enumerate(sizes)])
    if not sum(sizes):
        return
    offset = data.draw(st.integers(0, sum(sizes) - 1))
    index, within = tree.find(offset)
    siblings = tree.proof(index)
    assert offset_of(index, siblings) == sum(sizes[:index])
    assert 0 <= within < sizes[index]
    assert offset == sum(sizes[:index]) + within
    assert is_sum_proof(LISTS, tree.root, len(sizes), index, leaf(index, sizes[index]), siblings)


@given(st.lists(st.tuples(AMOUNTS, AMOUNTS, AMOUNTS), min_size=1, max_size=20), st.data())
def test_no_changed_leaf_sum_sibling_or_place_verifies(rows: list[tuple[int, int, int]], data: st.DataObject) -> None:
    leaves = [ACCOUNTS.leaf(i.to_bytes(8), sums) for i, sums in enumerate(rows)]
    tree = SumTree(ACCOUNTS, leaves)
    index = data.draw(st.integers(0, len(rows) - 1))
    siblings = tree.proof(index)
    assert len(siblings) == depth_of(len(rows))
    assert is_sum_proof(ACCOUNTS, tree.root, len(rows), index, leaves[index], siblings)
    bigger = (rows[index][0] + 1, *rows[index][1:])
    lies = [
        (tree.root, index, ACCOUNTS.leaf(index.to_bytes(8), bigger), siblings),
        (tree.root, index, SumNode(leaves[index].hash, bigger), siblings),
        (SumNode(tree.root.hash, bigger), index, leaves[index], siblings),
        (tree.root, index ^ 1, leaves[index], siblings),
        (tree.root, index, leaves[index], [*siblings, ACCOUNTS.empty]),
    ]
    if siblings:
        at = data.draw(st.integers(0, len(siblings) - 1))
        stolen = (siblings[at].sums[0] + 1, *siblings[at].sums[1:])
        lies.append(
            (
                tree.root,
                index,
                leaves[index],
                [s._replace(sums=stolen) if i == at else s for i, s in enumerate(siblings)],
            )
        )
    for root, place, node, path in lies:
        if (root, place, node, path) != (tree.root, index, leaves[index], siblings):
            assert not is_sum_proof(ACCOUNTS, root, len(rows), place, node, path)


def test_sums_that_leave_their_range_are_refused() -> None:
    top = ACCOUNTS.leaf(b"a", (2**96 - 1, 0, 0))
    one = ACCOUNTS.leaf(b"b", (1, 0, 0))
    assert not is_sum_proof(ACCOUNTS, SumNode(bytes(31), (0, 0, 0)), 2, 0, top, [one])


def test_an_accounts_node_fits_one_keccak_block() -> None:
    assert 1 + 2 * ACCOUNTS.node_bytes == 135


def test_frozen_vectors() -> None:
    """Changing either breaks every published root."""
    rows = [keccak(bytes([i])) for i in range(3)]
    accounts = SumTree(ACCOUNTS, [ACCOUNTS.leaf(i.to_bytes(8), (i, 2 * i, 3 * i)) for i in range(3)])
    assert row_root(rows).hex() == "2103d78c84b2bd3626b8706bda8d1b5679c0ec273e8bf809a86758b0f792a8b3"
    assert accounts.root.hash.hex() == "b2202f15000a52c56053911b29694d817ace213aa2a096d8e0c5571f79dbe8"
    assert accounts.root.sums == (3, 6, 9)
