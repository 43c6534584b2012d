# pragma version 0.4.3
# SPDX-License-Identifier: AGPL-3.0-only
"""
@title Values that are in force from an epoch on
@license GNU Affero General Public License v3.0 only
@notice Entry 0 is in force from the beginning. Who uses this keeps the values by their index.
        Invariant: starts strictly ascend, and an entry whose notice has passed is never replaced.
"""

# How far back an epoch's entry is looked for: what is older than so many changes is beyond any bond's reach.
MAX_STEPS: constant(uint256) = 64

# number of entries (128 bits) | start of the newest (128)
_newest: uint256
_starts: HashMap[uint256, uint64]

_MASK_128: constant(uint256) = 2**128 - 1


@deploy
def __init__():
    self._newest = 1 << 128


@internal
def _schedule(from_epoch: uint64, earliest: uint64) -> uint256:
    """
    The index of the value that is in force from `from_epoch` on: a new one, or the newest that starts there too and is
    replaced. `earliest` keeps the notice.
    """
    newest: uint256 = self._newest
    start: uint64 = convert(newest & _MASK_128, uint64)
    assert from_epoch >= earliest, "timeline: notice"
    assert from_epoch >= start, "timeline: order"
    count: uint256 = newest >> 128
    if from_epoch == start:
        return count - 1
    self._starts[count] = from_epoch
    self._newest = ((count + 1) << 128) | convert(from_epoch, uint256)
    return count


@internal
@view
def _count() -> uint256:
    return self._newest >> 128


@internal
@view
def _index_at(epoch: uint64) -> uint256:
    """
    The index of the value in force in `epoch`.
    """
    newest: uint256 = self._newest
    index: uint256 = (newest >> 128) - 1
    if convert(epoch, uint256) >= newest & _MASK_128:
        return index
    for i: uint256 in range(MAX_STEPS):
        index -= 1
        if self._starts[index] <= epoch:
            return index
    raise "timeline: long ago"
