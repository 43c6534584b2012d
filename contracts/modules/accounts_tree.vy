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
_MASK_32: constant(uint256) = 2**32 - 1
_NODE_TAG: constant(uint256) = 1 << 248


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
    high: bytes32 = empty(bytes32)
    low: bytes4 = empty(bytes4)
    high, low = self._pack(sums)
    return (
        convert(keccak256(concat(0x00, convert(index, bytes8), convert(account, bytes20), high, low)), uint256) >> 8
    )


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
    hash31: uint256 = hash31_
    sums: Sums = sums_
    high: bytes32 = empty(bytes32)
    low: bytes4 = empty(bytes4)
    for level: uint256 in range(depth, bound=MAX_DEPTH):
        sibling: Bytes[NODE_BYTES] = slice(proof, unsafe_mul(level, NODE_BYTES), NODE_BYTES)
        upper: uint256 = extract32(sibling, 31, output_type=uint256)
        lower: uint256 = extract32(sibling, 35, output_type=uint256)
        if hash31 == 0:
            # Only the empty node has this hash. Beside another one it stays what it is.
            beside: uint256 = extract32(sibling, 0, output_type=uint256) | upper | lower
            if beside | sums.tokens_earned | sums.credits_earned | sums.credits_spent == 0:
                continue
        high, low = self._pack(sums)
        node: bytes32 = empty(bytes32)
        if (convert(index, uint256) >> level) & 1 == 0:
            node = keccak256(concat(convert(hash31 | _NODE_TAG, bytes32), high, low, sibling))
        else:
            node = keccak256(concat(0x01, sibling, convert(convert(hash31, uint248), bytes31), high, low))
        hash31 = convert(node, uint256) >> 8
        sums.tokens_earned = unsafe_add(sums.tokens_earned, upper >> 160)
        sums.credits_earned = unsafe_add(sums.credits_earned, (lower >> 96) & _MASK_96)
        sums.credits_spent = unsafe_add(sums.credits_spent, lower & _MASK_96)
    return convert(hash31 << 8, bytes32), sums


@internal
@pure
def _pack(sums: Sums) -> (bytes32, bytes4):
    """
    The 36 bytes of three sums; bits above the 96th are cut off.
    """
    return (
        convert(
            (sums.tokens_earned << 160)
            | ((sums.credits_earned & _MASK_96) << 64)
            | ((sums.credits_spent & _MASK_96) >> 32),
            bytes32,
        ),
        convert(convert(sums.credits_spent & _MASK_32, uint32), bytes4),
    )
