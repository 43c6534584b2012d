# pragma version 0.4.3
# pragma nonreentrancy on
# SPDX-License-Identifier: AGPL-3.0-only
"""
@title Freehold token
@license GNU Affero General Public License v3.0 only
@notice ERC-20 with permit. Supply comes from exactly two places: the constructor's mint to the treasury, and Emission.
        There is no owner: the module's owner is renounced in the constructor and none of its setters is exported.
        Invariant: sum of balances = supply <= cap < 2^96, so that every amount fits a uint96.
"""

from snekmate.auth import ownable
from snekmate.tokens import erc20

initializes: ownable
initializes: erc20[ownable := ownable]

exports: (
    erc20.name,
    erc20.symbol,
    erc20.decimals,
    erc20.totalSupply,
    erc20.balanceOf,
    erc20.allowance,
    erc20.transfer,
    erc20.approve,
    erc20.transferFrom,
    erc20.burn,
    erc20.burn_from,
    erc20.permit,
    erc20.nonces,
    erc20.DOMAIN_SEPARATOR,
    erc20.eip712Domain,
)

minter: public(immutable(address))
cap: public(immutable(uint256))


@deploy
def __init__(
    name: String[25], symbol: String[5], emission: address, cap_: uint96, treasury: address, initial_supply: uint96
):
    """
    @param emission The only address that may ever mint after this constructor.
    @param cap_ Base units that supply can never exceed.
    @param treasury Receives `initial_supply`.
    """
    assert emission != empty(address), "token: no emission"
    assert initial_supply <= cap_, "token: over cap"
    minter = emission
    cap = convert(cap_, uint256)
    ownable.__init__()
    erc20.__init__(name, symbol, 18, name, "1")
    # The module makes its deployer minter and owner.
    erc20.is_minter[msg.sender] = False
    log erc20.RoleMinterChanged(minter=msg.sender, status=False)
    log erc20.RoleMinterChanged(minter=emission, status=True)
    ownable._transfer_ownership(empty(address))
    erc20._mint(treasury, convert(initial_supply, uint256))


@external
def mint(owner: address, amount: uint256):
    """
    @notice Only Emission, within the cap.
    """
    assert msg.sender == minter, "token: only emission"
    assert erc20.totalSupply + amount <= cap, "token: over cap"
    erc20._mint(owner, amount)
