# pragma version 0.4.3
# SPDX-License-Identifier: AGPL-3.0-only
"""
@title The positional Merkle-sum tree over accounts
@license GNU Affero General Public License v3.0 only
@notice Leaf:  keccak256(0x00 | uint64 index | address | sums)[:31]
        Node:  keccak256(0x01 | left hash31 | left sums | right hash31 | right sums)[:31]
        Empty: 31 zero bytes and zero sums; the parent of two empty nodes is empty.
        sums = tokens_earned | credits_earned | credits_spent, uint96 each. A proof is the siblings (hash31 | sums) from
        a node up; bit i of its index says on which side the path stands at level i.
        Invariant: who compares the whole result of `_climb` with a root and its three sums has compared every sum on the
        path too.
"""

NODE_BYTES: constant(uint256) = 31 + 36
MAX_DEPTH: constant(uint256) = 32

_MASK_96: constant(uint256) = 2**96 - 1
_NODE_TAG: constant(uint256) = 1 << 248
# Of the 67 zero bytes that are a packed empty node.
_EMPTY_HASH: constant(bytes32) = keccak256(
    b"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
)


struct Sums:
    tokens_earned: uint256
    credits_earned: uint256
    credits_spent: uint256


@internal
@pure
def _leaf_hash(index: uint64, account: address, sums: Sums) -> uint256:
    """
    The 31 bytes of a leaf's hash, as an integer. Each of the sums fits 96 bits.
    """
    high: uint256 = (sums.tokens_earned << 160) | (sums.credits_earned << 64) | (sums.credits_spent >> 32)
    low: bytes4 = convert(convert(sums.credits_spent << 224, bytes32), bytes4)
    leaf: bytes32 = keccak256(
        concat(0x00, convert(index, bytes8), convert(account, bytes20), convert(high, bytes32), low)
    )
    return convert(leaf, uint256) >> 8


@internal
@pure
def _node_hash(left: Bytes[NODE_BYTES], right: Bytes[NODE_BYTES]) -> uint256:
    """
    The 31 bytes of the hash of two packed nodes' parent, as an integer. Whether either is empty is the caller's affair.
    """
    assert len(left) == NODE_BYTES and len(right) == NODE_BYTES, "tree: node length"
    return convert(keccak256(concat(0x01, left, right)), uint256) >> 8


@internal
@pure
def _unpack(node: Bytes[NODE_BYTES]) -> (uint256, Sums):
    """
    A packed node's hash, as an integer, and its sums.
    """
    assert len(node) == NODE_BYTES, "tree: node length"
    upper: uint256 = extract32(node, 31, output_type=uint256)
    lower: uint256 = extract32(node, 35, output_type=uint256)
    return extract32(node, 0, output_type=uint256) >> 8, Sums(
        tokens_earned=upper >> 160, credits_earned=(lower >> 96) & _MASK_96, credits_spent=lower & _MASK_96
    )


@internal
@pure
def _climb(hash31_: uint256, sums_: Sums, index: uint64, proof: Bytes[NODE_BYTES * MAX_DEPTH]) -> (bytes32, Sums):
    """
    The root, as a report names it, and the sums that this node and these siblings lead to. The sums it starts from fit
    96 bits; partial sums only grow, so one that left its 96 bits on the way differs from any report's in the end.
    """
    assert len(proof) % NODE_BYTES == 0, "tree: proof length"
    depth: uint256 = len(proof) // NODE_BYTES
    assert convert(index, uint256) >> depth == 0, "tree: index"
    begin: uint256 = 0
    if hash31_ | sums_.tokens_earned | sums_.credits_earned | sums_.credits_spent == 0:
        begin = self._count_empty(proof, depth)
    hash31: uint256 = hash31_
    tokens: uint256 = sums_.tokens_earned
    earned: uint256 = sums_.credits_earned
    spent: uint256 = sums_.credits_spent
    offset: uint256 = begin * NODE_BYTES
    # Claims walk this loop: it keeps everything in variables of its own, for their gas.
    for level: uint256 in range(begin, depth, bound=MAX_DEPTH):
        sibling: Bytes[NODE_BYTES] = slice(proof, offset, NODE_BYTES)
        # A sum of more than 96 bits spoils the hash; it cannot be any report's in the end, so that does not matter.
        high: bytes32 = convert((tokens << 160) | (earned << 64) | (spent >> 32), bytes32)
        low: bytes4 = convert(convert(spent << 224, bytes32), bytes4)
        node: bytes32 = empty(bytes32)
        if (convert(index, uint256) >> level) & 1 == 0:
            node = keccak256(concat(convert(hash31 | _NODE_TAG, bytes32), high, low, sibling))
        else:
            node = keccak256(concat(0x01, sibling, convert(convert(hash31 << 8, bytes32), bytes31), high, low))
        hash31 = convert(node, uint256) >> 8
        lower: uint256 = extract32(sibling, 35, output_type=uint256)
        tokens = unsafe_add(tokens, extract32(sibling, 31, output_type=uint256) >> 160)
        earned = unsafe_add(earned, (lower >> 96) & _MASK_96)
        spent = unsafe_add(spent, lower & _MASK_96)
        offset = unsafe_add(offset, NODE_BYTES)
    return convert(hash31 << 8, bytes32), Sums(tokens_earned=tokens, credits_earned=earned, credits_spent=spent)


@internal
@pure
def _count_empty(proof: Bytes[NODE_BYTES * MAX_DEPTH], depth: uint256) -> uint256:
    """
    How many siblings from the first on are empty: beside them an empty node stays empty.
    """
    for level: uint256 in range(depth, bound=MAX_DEPTH):
        if keccak256(slice(proof, level * NODE_BYTES, NODE_BYTES)) != _EMPTY_HASH:
            return level
    return depth
