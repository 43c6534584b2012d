# pragma version 0.4.3
# SPDX-License-Identifier: AGPL-3.0-only
"""
@title The Merkle tree over rows in their order
@license GNU Affero General Public License v3.0 only
@notice What batches, tables of the state and fleets commit to. Leaf: keccak256(0x00 | row hash). Node: keccak256(0x01 |
        left | right); an odd node is carried up. A row hash is keccak256(struct hash | the row's signatures).
        Invariant: under one root and count, one index has one row hash.
"""

MAX_DEPTH: constant(uint256) = 32

TABLE_TYPE_HASH: constant(bytes32) = keccak256("TableRoot(string name,uint32 count,bytes32 root)")


@internal
@pure
def _row_root(count: uint32, index: uint32, row_hash: bytes32, proof: DynArray[bytes32, MAX_DEPTH]) -> bytes32:
    """
    The root of `count` rows that this row at `index` and its siblings, bottom up, lead to; levels at which it is carried
    up have none.
    """
    assert index < count, "rows: index"
    node: bytes32 = keccak256(concat(0x00, row_hash))
    width: uint256 = convert(count, uint256)
    at: uint256 = convert(index, uint256)
    used: uint256 = 0
    for i: uint256 in range(MAX_DEPTH):
        if width == 1:
            break
        if at ^ 1 < width:
            assert used < len(proof), "rows: proof length"
            if at & 1 == 0:
                node = keccak256(concat(0x01, node, proof[used]))
            else:
                node = keccak256(concat(0x01, proof[used], node))
            used += 1
        at = at >> 1
        width = (width + 1) >> 1
    assert used == len(proof), "rows: proof length"
    return node


@internal
@pure
def _table_row(name: String[64], count: uint32, root: bytes32) -> bytes32:
    """
    The row hash of one table of the state, as the state root commits to it.
    """
    return keccak256(keccak256(abi_encode(TABLE_TYPE_HASH, keccak256(name), count, root)))
