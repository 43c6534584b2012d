# pragma version 0.4.3
# pragma nonreentrancy on
# SPDX-License-Identifier: AGPL-3.0-only
"""
@title Bonds of operators, one for each node
@license GNU Affero General Public License v3.0 only
@notice A thaw ends after `thaw_epochs` activated epochs, so that no clock but accepted work lets a bond leave (while the
        network is frozen: nominal lengths), and what thaws can still be slashed. One thaw for each node: asking again
        adds to it and restarts its wait.
        Invariants: the sum of positions <= tokens held (donations change nothing); a slash takes at most the position,
        the bond first, and burns at least four fifths of what it takes.
"""

from modules import permits
from modules import positions


interface Token:
    def transfer(to: address, amount: uint256) -> bool: nonpayable
    def transferFrom(owner: address, to: address, amount: uint256) -> bool: nonpayable
    def burn(amount: uint256): nonpayable


interface Registry:
    def is_live(operator: address, node: address) -> bool: view


interface Ledger:
    def nominal_epoch() -> uint64: view


event Staked:
    operator: indexed(address)
    node: indexed(address)
    amount: uint96
    bond: uint96
    thawing: uint96


event ThawStarted:
    operator: indexed(address)
    node: indexed(address)
    amount: uint96
    bond: uint96
    thawing: uint96
    ends: uint64


event Withdrawn:
    operator: indexed(address)
    node: indexed(address)
    amount: uint96
    bond: uint96
    thawing: uint96


event Slashed:
    operator: indexed(address)
    node: indexed(address)
    amount: uint96
    bond: uint96
    thawing: uint96


token: public(immutable(address))
registry: public(immutable(address))
ledger: public(immutable(address))
slasher: public(immutable(address))
thaw_epochs: public(immutable(uint64))

_positions: HashMap[address, HashMap[address, uint256]]


@deploy
def __init__(token_: address, registry_: address, ledger_: address, slasher_: address, thaw_epochs_: uint64):
    """
    @param slasher_ The only address that may slash.
    @param thaw_epochs_ Activated epochs a thaw lasts.
    """
    assert thaw_epochs_ > 0, "staking: no thaw"
    token = token_
    registry = registry_
    ledger = ledger_
    slasher = slasher_
    thaw_epochs = thaw_epochs_


@external
def stake(node: address, amount: uint96):
    """
    @notice Adds `amount` of the caller, which operates the live `node` and has approved this contract.
    """
    self._stake(node, amount)


@external
def stake_with_permit(node: address, amount: uint96, deadline: uint256, v: uint8, r: bytes32, s: bytes32):
    """
    @notice As `stake`, with the caller's ERC-2612 permit for exactly `amount`.
    """
    permits._try_permit(token, msg.sender, convert(amount, uint256), deadline, v, r, s)
    self._stake(node, amount)


@external
def thaw(node: address, amount: uint96):
    """
    @notice Moves `amount` of the caller's bond for `node` into its thaw, whose wait starts now.
    """
    position: positions.Position = self._position(msg.sender, node)
    assert amount > 0, "staking: nothing"
    assert amount <= position.bond, "staking: over bond"
    position.bond -= amount
    position.thawing += amount
    position.ends = staticcall Ledger(ledger).nominal_epoch() + thaw_epochs
    self._save(msg.sender, node, position)
    log ThawStarted(
        operator=msg.sender,
        node=node,
        amount=amount,
        bond=position.bond,
        thawing=position.thawing,
        ends=position.ends,
    )


@external
def withdraw(node: address) -> uint96:
    """
    @notice Pays the caller what has thawed of its bond for `node`.
    """
    position: positions.Position = self._position(msg.sender, node)
    amount: uint96 = position.thawing
    assert amount > 0, "staking: nothing"
    assert staticcall Ledger(ledger).nominal_epoch() >= position.ends, "staking: thawing"
    position.thawing = 0
    position.ends = 0
    self._save(msg.sender, node, position)
    log Withdrawn(operator=msg.sender, node=node, amount=amount, bond=position.bond, thawing=0)
    assert extcall Token(token).transfer(msg.sender, convert(amount, uint256))
    return amount


@external
def slash(operator: address, node: address, amount: uint96, harmed: address) -> uint96:
    """
    @notice Takes up to `amount` of a position, the bond first and then what thaws: a withdrawal that came first makes
            it smaller, and cannot make it fail. An operator that harms an account of its own loses four fifths.
    @param harmed Gets a fifth, the rest is burned; the zero address: all of it is.
    @return What was taken.
    """
    assert msg.sender == slasher, "staking: only slasher"
    position: positions.Position = empty(positions.Position)
    taken: uint96 = 0
    position, taken = positions._slash(self._position(operator, node), amount)
    self._save(operator, node, position)
    log Slashed(operator=operator, node=node, amount=taken, bond=position.bond, thawing=position.thawing)
    part: uint96 = 0
    if harmed != empty(address):
        part = taken // 5
    if part > 0:
        assert extcall Token(token).transfer(harmed, convert(part, uint256))
    extcall Token(token).burn(convert(taken - part, uint256))
    return taken


@external
@view
def position(operator: address, node: address) -> positions.Position:
    return self._position(operator, node)


@internal
def _stake(node: address, amount: uint96):
    assert amount > 0, "staking: nothing"
    assert staticcall Registry(registry).is_live(msg.sender, node), "staking: not the operator"
    position: positions.Position = self._position(msg.sender, node)
    position.bond += amount
    self._save(msg.sender, node, position)
    log Staked(operator=msg.sender, node=node, amount=amount, bond=position.bond, thawing=position.thawing)
    assert extcall Token(token).transferFrom(msg.sender, self, convert(amount, uint256))


@internal
@view
def _position(operator: address, node: address) -> positions.Position:
    return positions._unpack(self._positions[operator][node])


@internal
def _save(operator: address, node: address, position: positions.Position):
    self._positions[operator][node] = positions._pack(position)
