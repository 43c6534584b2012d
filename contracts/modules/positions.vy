# pragma version 0.4.3
# SPDX-License-Identifier: AGPL-3.0-only
"""
@title A bond and its one thaw, in one word
@license GNU Affero General Public License v3.0 only
@notice bond (96 bits) | thawing (96) | nominal epoch that ends the thaw (64), high to low.
        Invariant: a slash takes the bond first and then what thaws, never more than both.
"""

struct Position:
    bond: uint96
    thawing: uint96
    ends: uint64


_MASK_96: constant(uint256) = 2**96 - 1
_MASK_64: constant(uint256) = 2**64 - 1


@internal
@pure
def _unpack(packed: uint256) -> Position:
    return Position(
        bond=convert(packed >> 160, uint96),
        thawing=convert((packed >> 64) & _MASK_96, uint96),
        ends=convert(packed & _MASK_64, uint64),
    )


@internal
@pure
def _pack(position: Position) -> uint256:
    return (
        (convert(position.bond, uint256) << 160)
        | (convert(position.thawing, uint256) << 64)
        | convert(position.ends, uint256)
    )


@internal
@pure
def _slash(position_: Position, amount: uint96) -> (Position, uint96):
    """
    The position after a slash of up to `amount`, and what it took.
    """
    position: Position = position_
    from_bond: uint96 = min(amount, position.bond)
    from_thawing: uint96 = min(amount - from_bond, position.thawing)
    position.bond -= from_bond
    position.thawing -= from_thawing
    if position.thawing == 0:
        position.ends = 0
    return position, from_bond + from_thawing
