# pragma version 0.4.3
# pragma nonreentrancy on
# SPDX-License-Identifier: AGPL-3.0-only
"""
@title Prepaid credits, priced in USD, bought by burning tokens
@license GNU Affero General Public License v3.0 only
@notice 1e18 credits are 1 USD. A client's credits remember the tokens burned for them (cost basis); spending stands in
        the Ledger's accounts, so credits left = paid_in - credits_spent. Not transferable, and there is no withdrawal:
        a refund at cost basis would be a free option on the price.
        Invariants: both totals only grow and equal the sums over clients; buying rounds down; the price is the lower of
        the last two accepted reports', and never older than `max_price_age`.
"""

from modules import permits


interface Token:
    def burn_from(owner: address, amount: uint256): nonpayable


interface Oracle:
    def prices() -> (uint96, uint96, uint64): view


event Bought:
    client: indexed(address)
    tokens: uint96
    credits: uint96
    price: uint96
    paid_in: uint96
    burned: uint96


token: public(immutable(address))
oracle: public(immutable(address))
max_price_age: public(immutable(uint64))

# each: paid in (96 bits, credits) | burned (96 bits, tokens), high to low
_clients: HashMap[address, uint256]
_totals: uint256

_MASK_96: constant(uint256) = 2**96 - 1
_ONE: constant(uint256) = 10**18


@deploy
def __init__(token_: address, oracle_: address, max_price_age_: uint64):
    """
    @param max_price_age_ Seconds after the last accepted report for which its price still sells.
    """
    token = token_
    oracle = oracle_
    max_price_age = max_price_age_


@external
def buy(tokens: uint96, min_credits: uint96, deadline: uint256) -> uint96:
    """
    @notice Burns `tokens` of the caller, who has approved this contract.
    @param min_credits The fewest credits the caller accepts: its guard against a price that moved.
    @return Credits bought.
    """
    return self._buy(tokens, min_credits, deadline)


@external
def buy_with_permit(
    tokens: uint96, min_credits: uint96, deadline: uint256, v: uint8, r: bytes32, s: bytes32
) -> uint96:
    """
    @notice As `buy`, with the caller's ERC-2612 permit for exactly `tokens` and the same `deadline`.
    """
    permits._try_permit(token, msg.sender, convert(tokens, uint256), deadline, v, r, s)
    return self._buy(tokens, min_credits, deadline)


@external
@view
def price() -> uint96:
    """
    @notice The price `buy` would use now, in USD (1e18) a token; 0 while it is too old to use.
    """
    lowest: uint96 = 0
    fresh: bool = False
    lowest, fresh = self._price()
    return lowest if fresh else 0


@external
@view
def paid_in(client: address) -> uint96:
    return convert(self._clients[client] >> 96, uint96)


@external
@view
def burned(client: address) -> uint96:
    return convert(self._clients[client] & _MASK_96, uint96)


@external
@view
def total_paid_in() -> uint96:
    return convert(self._totals >> 96, uint96)


@external
@view
def total_burned() -> uint96:
    return convert(self._totals & _MASK_96, uint96)


@external
@view
def totals() -> (uint96, uint96):
    """
    @return Credits paid in, and tokens burned for them, over all clients.
    """
    total: uint256 = self._totals
    return convert(total >> 96, uint96), convert(total & _MASK_96, uint96)


@internal
@view
def _price() -> (uint96, bool):
    latest: uint96 = 0
    previous: uint96 = 0
    accepted_at: uint64 = 0
    latest, previous, accepted_at = staticcall Oracle(oracle).prices()
    fresh: bool = block.timestamp <= convert(accepted_at, uint256) + convert(max_price_age, uint256)
    return min(latest, previous), fresh


@internal
def _buy(tokens: uint96, min_credits: uint96, deadline: uint256) -> uint96:
    assert block.timestamp <= deadline, "credits: expired"
    lowest: uint96 = 0
    fresh: bool = False
    lowest, fresh = self._price()
    assert fresh, "credits: stale price"
    credits: uint96 = convert(convert(tokens, uint256) * convert(lowest, uint256) // _ONE, uint96)
    assert credits > 0, "credits: nothing bought"
    assert credits >= min_credits, "credits: below minimum"

    client: uint256 = self._clients[msg.sender]
    paid_in: uint96 = convert(client >> 96, uint96) + credits
    burned: uint96 = convert(client & _MASK_96, uint96) + tokens
    total: uint256 = self._totals
    total_paid_in: uint96 = convert(total >> 96, uint96) + credits
    total_burned: uint96 = convert(total & _MASK_96, uint96) + tokens
    self._clients[msg.sender] = (convert(paid_in, uint256) << 96) | convert(burned, uint256)
    self._totals = (convert(total_paid_in, uint256) << 96) | convert(total_burned, uint256)
    log Bought(client=msg.sender, tokens=tokens, credits=credits, price=lowest, paid_in=paid_in, burned=burned)
    extcall Token(token).burn_from(msg.sender, convert(tokens, uint256))
    return credits
