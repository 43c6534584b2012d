# pragma version 0.4.3
# pragma nonreentrancy on
# SPDX-License-Identifier: AGPL-3.0-only
"""
@title An epoch's budget, minted once, when its report activates
@license GNU Affero General Public License v3.0 only
@notice Invariants: subsidy(e) <= schedule(e); revenue minted so far, collected tokens too, <= tokens burned for credits
        so far; epochs strictly increase, so none is minted twice, whatever was revoked. The constructor demands that the whole schedule fits under the token's cap,
        and revenue only puts back what was burned: so a mint that passed the Ledger's checks can never fail later.
"""

interface Token:
    def mint(owner: address, amount: uint256): nonpayable
    def cap() -> uint256: view
    def totalSupply() -> uint256: view


interface Credits:
    def totals() -> (uint96, uint96): view


event EpochMinted:
    epoch: indexed(uint64)
    subsidy: uint96
    revenue: uint96
    total_subsidy: uint96
    total_revenue: uint96


event CollectionMinted:
    owner: indexed(address)
    amount: uint96
    total_revenue: uint96


token: public(immutable(address))
ledger: public(immutable(address))
credits: public(immutable(address))
collector: public(immutable(address))
initial_subsidy: public(immutable(uint96))
halving_epochs: public(immutable(uint64))

# last epoch (64 bits) | total subsidy (96) | total revenue (96), high to low
_minted: uint256

_MASK_96: constant(uint256) = 2**96 - 1


@deploy
def __init__(
    token_: address,
    ledger_: address,
    credits_: address,
    collector_: address,
    initial_subsidy_: uint96,
    halving_epochs_: uint64,
):
    """
    @param token_ Already deployed: its cap is read here.
    @param initial_subsidy_ Base units an epoch, before the first halving.
    @param halving_epochs_ Epochs from one halving to the next.
    """
    assert halving_epochs_ > 0, "emission: no halving"
    # The sum of initial >> k over all k is below twice the initial subsidy.
    schedule_total: uint256 = 2 * convert(initial_subsidy_, uint256) * convert(halving_epochs_, uint256)
    room: uint256 = staticcall Token(token_).cap() - staticcall Token(token_).totalSupply()
    assert schedule_total <= room, "emission: schedule over cap"
    token = token_
    ledger = ledger_
    credits = credits_
    collector = collector_
    initial_subsidy = initial_subsidy_
    halving_epochs = halving_epochs_


@external
@view
def schedule(epoch: uint64) -> uint96:
    """
    @notice The most that may be minted as subsidy for `epoch`; the first epoch is 1, and epoch 0 has nothing.
    """
    return self._schedule(epoch)


@external
@view
def last_epoch() -> uint64:
    return convert(self._minted >> 192, uint64)


@external
@view
def total_subsidy() -> uint96:
    return convert((self._minted >> 96) & _MASK_96, uint96)


@external
@view
def total_revenue() -> uint96:
    return convert(self._minted & _MASK_96, uint96)


@external
def mint_epoch(epoch: uint64, subsidy: uint96, revenue: uint96) -> uint96:
    """
    @notice Mints `subsidy + revenue` to the Ledger, which pays it out by claims.
    @return The epoch's schedule.
    """
    assert msg.sender == ledger, "emission: only ledger"
    minted: uint256 = self._minted
    assert convert(epoch, uint256) > minted >> 192, "emission: epoch minted"
    most: uint96 = self._schedule(epoch)
    assert subsidy <= most, "emission: over schedule"
    total_subsidy: uint96 = convert((minted >> 96) & _MASK_96, uint96) + subsidy
    total_revenue: uint96 = self._add_revenue(minted, revenue)

    self._minted = (
        (convert(epoch, uint256) << 192) | (convert(total_subsidy, uint256) << 96) | convert(total_revenue, uint256)
    )
    log EpochMinted(
        epoch=epoch, subsidy=subsidy, revenue=revenue, total_subsidy=total_subsidy, total_revenue=total_revenue
    )
    extcall Token(token).mint(ledger, convert(subsidy, uint256) + convert(revenue, uint256))
    return most


@external
def mint_collected(owner: address, amount: uint96):
    """
    @notice Only the Collector: mints what a voucher is worth while the network is frozen.
    """
    assert msg.sender == collector, "emission: only collector"
    minted: uint256 = self._minted
    total_revenue: uint96 = self._add_revenue(minted, amount)
    self._minted = (minted & ~_MASK_96) | convert(total_revenue, uint256)
    log CollectionMinted(owner=owner, amount=amount, total_revenue=total_revenue)
    extcall Token(token).mint(owner, convert(amount, uint256))


@internal
@view
def _add_revenue(minted: uint256, revenue: uint96) -> uint96:
    """
    The total of revenue with this added, within what was burned.
    """
    total_revenue: uint96 = convert(minted & _MASK_96, uint96) + revenue
    paid_in: uint96 = 0
    burned: uint96 = 0
    paid_in, burned = staticcall Credits(credits).totals()
    assert total_revenue <= burned, "emission: revenue over burned"
    return total_revenue


@internal
@view
def _schedule(epoch: uint64) -> uint96:
    if epoch == 0:
        return 0
    halvings: uint256 = convert((epoch - 1) // halving_epochs, uint256)
    return convert(convert(initial_subsidy, uint256) >> halvings, uint96)
