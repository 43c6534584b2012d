# pragma version 0.4.3
# SPDX-License-Identifier: AGPL-3.0-only
"""
@title The rate at which claims leave
@license GNU Affero General Public License v3.0 only
@notice Claims draw on a bucket that holds `claim_epochs` budgets and refills by one budget a nominal epoch length; one
        account draws at most a quarter of the bucket (a budget, if that is more) in a nominal length of time. So even a
        dishonest quorum cannot take the pot at once.

        The budget rises at once to what an activated epoch minted, and never lies below the epoch's schedule nor below
        the average epoch so far; it falls by a 64th an epoch. So claims never leave more slowly than tokens are earned,
        and whatever is owed can leave even after budgets have become nothing. When the budget rises, the new part of the
        bucket is full: an honest network whose operators claim within `claim_epochs` / 4 epochs never meets the limit.
        Invariant: what left <= claim_epochs x the largest budget + the budgets of the time since the first activation.
"""

claim_epochs: public(immutable(uint64))
epoch_length: public(immutable(uint64))

# level (96 bits) | budget (96) | time up to which it is refilled (64), high to low
_bucket: uint256

_MASK_96: constant(uint256) = 2**96 - 1
_MASK_64: constant(uint256) = 2**64 - 1


@deploy
def __init__(claim_epochs_: uint64, epoch_length_: uint64):
    assert claim_epochs_ > 0, "bucket: no epochs"
    assert epoch_length_ > 0, "bucket: no length"
    claim_epochs = claim_epochs_
    epoch_length = epoch_length_


@internal
def _widen(wanted: uint256):
    """
    Take over the budget that an activated epoch asks for.
    """
    level: uint256 = 0
    before: uint256 = 0
    at: uint256 = 0
    level, before, at = self._refill()
    budget: uint256 = max(wanted, before - before // 64)
    capacity: uint256 = self._capacity(budget)
    level = min(capacity, level + (capacity - min(capacity, self._capacity(before))))
    self._bucket = (level << 160) | (budget << 64) | at


@internal
def _draw(wanted: uint256, taken: uint256) -> uint256:
    """
    What may leave now of `wanted`, for an account that took `taken` in this window of time; it is drawn.
    """
    level: uint256 = 0
    budget: uint256 = 0
    at: uint256 = 0
    level, budget, at = self._refill()
    amount: uint256 = min(wanted, min(level, self._left_of_ceiling(budget, taken)))
    self._bucket = (unsafe_sub(level, amount) << 160) | (budget << 64) | at
    return amount


@internal
@view
def _room(taken: uint256) -> uint256:
    """
    The most that may leave now for such an account.
    """
    level: uint256 = 0
    budget: uint256 = 0
    at: uint256 = 0
    level, budget, at = self._refill()
    return min(level, self._left_of_ceiling(budget, taken))


@internal
@view
def _window() -> uint256:
    """
    The number of the present window: nominal lengths of time since 1970.
    """
    return block.timestamp // convert(epoch_length, uint256)


@internal
@view
def _refill() -> (uint256, uint256, uint256):
    """
    Level, budget, and the time up to which the level counts. That time stands still while less than a base unit came in,
    so that asking often loses nothing.
    """
    packed: uint256 = self._bucket
    budget: uint256 = (packed >> 64) & _MASK_96
    at: uint256 = packed & _MASK_64
    # A budget has 96 bits and a time 64: the product fits.
    gained: uint256 = unsafe_mul(budget, block.timestamp - at) // convert(epoch_length, uint256)
    if gained > 0 or budget == 0:
        at = block.timestamp
    return min(self._capacity(budget), unsafe_add(packed >> 160, gained)), budget, at


@internal
@view
def _capacity(budget: uint256) -> uint256:
    return min(_MASK_96, unsafe_mul(budget, convert(claim_epochs, uint256)))


@internal
@view
def _left_of_ceiling(budget: uint256, taken: uint256) -> uint256:
    """
    What an account that took `taken` in this window may still take in it.
    """
    ceiling: uint256 = max(budget, self._capacity(budget) // 4)
    return unsafe_sub(ceiling, min(ceiling, taken))
