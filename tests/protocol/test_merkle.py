"""Row trees and positional sum trees against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.protocol.column_values import cells_of
from freehold.protocol.errors import Overflow
from freehold.protocol.merkle import (
    ACCOUNTS,
    LISTS,
    RowTree,
    SumNode,
    SumScheme,
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


def plain_row_root(hashes: list[bytes]) -> bytes:
    level = [keccak(b"\x00" + h) for h in hashes]
    while len(level) > 1:
        odd = level[len(level) & ~1 :]
        level = [keccak(b"\x01" + a + b) for a, b in zip(level[::2], level[1::2], strict=False)] + odd
    return level[0] if level else bytes(32)


def plain_sum_root(scheme: SumScheme, nodes: list[SumNode]) -> SumNode:
    while len(nodes) > 1:
        padded = [*nodes, scheme.empty] if len(nodes) % 2 else nodes
        nodes = [scheme.join(a, b) for a, b in zip(padded[::2], padded[1::2], strict=True)]
    return nodes[0] if nodes else scheme.empty


CHANGES = st.lists(st.integers(0, 60), max_size=20)


def fitting(changes: list[int], count: int) -> list[int]:
    """The same positions, those behind the end moved so that none is left out."""
    fresh = sorted({i for i in changes if i >= count})
    return [i if i < count else count + fresh.index(i) for i in changes]


@given(st.integers(0, 40), CHANGES)
def test_a_changed_row_tree_is_the_tree_of_the_changed_rows(count: int, changes: list[int]) -> None:
    hashes: list[bytes] = [keccak(bytes([i])) for i in range(count)]
    tree = RowTree(hashes)
    indices = fitting(changes, count)
    fresh = [keccak(b"new %d" % i) for i in range(len(indices))]
    changed = tree.update(indices, fresh)
    assert tree.root == plain_row_root(hashes) == row_root(hashes)
    for i, value in zip(indices, fresh, strict=True):
        hashes += [b""] * (i + 1 - len(hashes))
        hashes[i] = value
    assert changed.root == plain_row_root(hashes)
    assert len(changed) == len(hashes)
    for i, value in enumerate(hashes):
        assert verify_row(changed.root, len(hashes), i, value, changed.proof(i))


@given(st.sampled_from([ACCOUNTS, LISTS]), st.integers(0, 40), CHANGES, st.data())
def test_a_changed_sum_tree_is_the_tree_of_the_changed_leaves(
    scheme: SumScheme, count: int, changes: list[int], data: st.DataObject
) -> None:
    def node(i: int) -> SumNode:
        sums = tuple(data.draw(st.integers(0, 256**width // 128)) for width in scheme.widths)
        return data.draw(st.sampled_from([scheme.empty, scheme.leaf(bytes([i]), sums)]))

    nodes = [node(i) for i in range(count)]
    tree = SumTree(scheme, nodes)
    assert tree.root == plain_sum_root(scheme, nodes)
    indices = fitting(changes, count)
    fresh = [node(i) for i in indices]
    changed = tree.update(indices, fresh)
    assert tree.root == plain_sum_root(scheme, nodes)
    for i, leaf_node in zip(indices, fresh, strict=True):
        nodes += [scheme.empty] * (i + 1 - len(nodes))
        nodes[i] = leaf_node
    assert changed.root == plain_sum_root(scheme, nodes)
    for i, leaf_node in enumerate(nodes):
        assert is_sum_proof(scheme, changed.root, len(nodes), i, leaf_node, changed.proof(i))


@pytest.mark.parametrize("indices", [[-1], [4], [3, 5]])
def test_a_position_that_leaves_one_out_is_refused(indices: list[int]) -> None:
    hashes = [keccak(b"new")] * len(indices)
    with pytest.raises(IndexError):
        RowTree([keccak(b"a")] * 3).update(indices, hashes)
    with pytest.raises(IndexError):
        SumTree(LISTS, [leaf(i, i) for i in range(3)]).update(indices, [leaf(9, 9)] * len(indices))


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), AMOUNTS, AMOUNTS, AMOUNTS), max_size=20))
def test_leaves_from_columns_are_those_of_the_entries(rows: list[tuple[int, int, int, int]]) -> None:
    indices = np.array([row[0] for row in rows], np.uint64)
    owners = np.frombuffer(b"".join(keccak(bytes([i]))[:20] for i in range(len(rows))), np.uint8).reshape(-1, 20)
    packed = ACCOUNTS.leaves([indices, owners], [cells_of([row[k] for row in rows], 12) for k in (1, 2, 3)])
    nodes = [ACCOUNTS.leaf(row[0].to_bytes(8) + owners[i].tobytes(), row[1:]) for i, row in enumerate(rows)]
    assert [ACCOUNTS.unpack(node.tobytes()) for node in packed] == nodes
    assert SumTree(ACCOUNTS, packed).root == SumTree(ACCOUNTS, nodes).root
    small = LISTS.leaves([owners], [indices])
    assert [LISTS.unpack(n.tobytes()) for n in small] == [
        LISTS.leaf(owners[i].tobytes(), (row[0],)) for i, row in enumerate(rows)
    ]


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize(("amount", "fits"), [(2**96 - 2, True), (2**96 - 1, False)])
def test_a_tree_whose_sums_do_not_fit_is_refused_to_the_unit(which: int, amount: int, fits: bool) -> None:
    big, one = [0, 0, 0], [0, 0, 0]
    big[which], one[which] = amount, 1
    leaves = [ACCOUNTS.leaf(b"a", tuple(big)), ACCOUNTS.empty, ACCOUNTS.leaf(b"b", tuple(one))]
    if fits:
        assert SumTree(ACCOUNTS, leaves).root.sums[which] == 2**96 - 1
        return
    with pytest.raises(Overflow):
        SumTree(ACCOUNTS, leaves)
