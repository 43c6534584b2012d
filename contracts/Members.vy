# pragma version 0.4.3
# pragma nonreentrancy on
# SPDX-License-Identifier: AGPL-3.0-only
"""
@title Who the members are, epoch by epoch, and their bonds
@license GNU Affero General Public License v3.0 only
@notice A new set is scheduled with notice: before any anchor of the epoch from which it is in force, so that everybody
        reads the same set. The first set is given at deployment, and its members bond afterwards.
        Invariants: the members of an epoch that has an anchor never change; the sum of positions <= tokens held; who
        stands in a set that may still have to answer for a report keeps its bond; what thaws can be slashed; of a slash
        at least three fifths burn, whoever the others are.
"""

from modules import positions
from modules import timeline

initializes: timeline

MAX_MEMBERS: constant(uint256) = 31
# Sets that may be scheduled at a time: a thaw looks through all of them.
MAX_SCHEDULED: constant(uint256) = 8


interface Token:
    def transfer(to: address, amount: uint256) -> bool: nonpayable
    def transferFrom(owner: address, to: address, amount: uint256) -> bool: nonpayable
    def burn(amount: uint256): nonpayable


interface Oracle:
    def highest_epoch() -> uint64: view


interface Ledger:
    def active_epoch() -> uint64: view
    def nominal_epoch() -> uint64: view


event MembersScheduled:
    from_epoch: indexed(uint64)
    members: DynArray[address, MAX_MEMBERS]


event Bonded:
    member: indexed(address)
    amount: uint96
    bond: uint96
    thawing: uint96


event ThawStarted:
    member: indexed(address)
    amount: uint96
    bond: uint96
    thawing: uint96
    ends: uint64


event Withdrawn:
    member: indexed(address)
    amount: uint96
    bond: uint96
    thawing: uint96


event MemberSlashed:
    member: indexed(address)
    challenger: indexed(address)
    harmed: indexed(address)
    amount: uint96
    reward: uint96


token: public(immutable(address))
oracle: public(immutable(address))
ledger: public(immutable(address))
disputes: public(immutable(address))
governor: public(immutable(address))
member_bond: public(immutable(uint96))
thaw_epochs: public(immutable(uint64))
notice_epochs: public(immutable(uint64))

# by the timeline's index
_sets: HashMap[uint256, DynArray[address, MAX_MEMBERS]]
_positions: HashMap[address, uint256]


@deploy
def __init__(
    token_: address,
    oracle_: address,
    ledger_: address,
    disputes_: address,
    governor_: address,
    members: DynArray[address, MAX_MEMBERS],
    member_bond_: uint96,
    thaw_epochs_: uint64,
    notice_epochs_: uint64,
):
    """
    @param governor_ The only address that schedules sets.
    @param members Distinct signing addresses; a report's bitmap and a leader's turn go by their order.
    @param member_bond_ What every member of a scheduled set has bonded.
    @param thaw_epochs_ Activated epochs a thaw lasts.
    @param notice_epochs_ Epochs between the one that is open when a set is scheduled and the set's first.
    """
    assert thaw_epochs_ > 0, "members: no thaw"
    assert notice_epochs_ > 0, "members: no notice"
    timeline.__init__()
    token = token_
    oracle = oracle_
    ledger = ledger_
    disputes = disputes_
    governor = governor_
    member_bond = member_bond_
    thaw_epochs = thaw_epochs_
    notice_epochs = notice_epochs_
    self._check_set(members)
    self._sets[0] = members
    log MembersScheduled(from_epoch=1, members=members)


@external
def schedule(members: DynArray[address, MAX_MEMBERS], from_epoch: uint64):
    """
    @notice The members from `from_epoch` on, in the order that bitmaps and turns go by. A set scheduled for the same
            epoch is replaced.
    """
    assert msg.sender == governor, "members: only governor"
    self._check_set(members)
    for member: address in members:
        assert positions._unpack(self._positions[member]).bond >= member_bond, "members: bond too small"
    # Epochs that a revocation took back have their anchors already, and so their members.
    highest: uint64 = staticcall Oracle(oracle).highest_epoch()
    index: uint256 = timeline._schedule(from_epoch, highest + 1 + notice_epochs)
    assert index - self._first_accountable() <= MAX_SCHEDULED, "members: too many sets"
    self._sets[index] = members
    log MembersScheduled(from_epoch=from_epoch, members=members)


@external
def bond(member: address, amount: uint96):
    """
    @notice Adds `amount` of the caller's, who has approved this contract, to the bond of `member`.
    """
    assert amount > 0, "members: nothing"
    position: positions.Position = positions._unpack(self._positions[member])
    position.bond += amount
    self._positions[member] = positions._pack(position)
    log Bonded(member=member, amount=amount, bond=position.bond, thawing=position.thawing)
    assert extcall Token(token).transferFrom(msg.sender, self, convert(amount, uint256))


@external
def thaw(amount: uint96):
    """
    @notice Moves `amount` of the caller's bond into its thaw, whose wait starts now. Who is in a set that is scheduled,
            in force, or has a report that is not active yet, keeps at least `member_bond`.
    """
    position: positions.Position = positions._unpack(self._positions[msg.sender])
    assert amount > 0, "members: nothing"
    assert amount <= position.bond, "members: over bond"
    position.bond -= amount
    assert position.bond >= member_bond or not self._is_accountable(msg.sender), "members: in office"
    position.thawing += amount
    position.ends = staticcall Ledger(ledger).nominal_epoch() + thaw_epochs
    self._positions[msg.sender] = positions._pack(position)
    log ThawStarted(
        member=msg.sender, amount=amount, bond=position.bond, thawing=position.thawing, ends=position.ends
    )


@external
def withdraw() -> uint96:
    """
    @notice Pays the caller what has thawed of its bond.
    """
    position: positions.Position = positions._unpack(self._positions[msg.sender])
    amount: uint96 = position.thawing
    assert amount > 0, "members: nothing"
    assert staticcall Ledger(ledger).nominal_epoch() >= position.ends, "members: thawing"
    position.thawing = 0
    position.ends = 0
    self._positions[msg.sender] = positions._pack(position)
    log Withdrawn(member=msg.sender, amount=amount, bond=position.bond, thawing=0)
    assert extcall Token(token).transfer(msg.sender, convert(amount, uint256))
    return amount


@external
def slash(member: address, challenger: address, harmed: address) -> uint96:
    """
    @notice Only Disputes and the Oracle, on a proof: takes all that `member` has here, bonded or thawing.
            Three fifths or more are burned: signers who challenge themselves, over an account of their own, lose that.
    @param challenger Gets a fifth; the zero address: nobody does.
    @param harmed Gets another fifth, unless it is the challenger; the zero address: nobody does.
    @return What was taken.
    """
    assert msg.sender == disputes or msg.sender == oracle, "members: only disputes"
    position: positions.Position = positions._unpack(self._positions[member])
    taken: uint96 = position.bond + position.thawing
    self._positions[member] = 0
    part: uint96 = taken // 5
    rest: uint96 = taken
    reward: uint96 = 0
    if challenger != empty(address):
        reward = part
        rest -= part
    log MemberSlashed(member=member, challenger=challenger, harmed=harmed, amount=taken, reward=reward)
    if reward > 0:
        assert extcall Token(token).transfer(challenger, convert(reward, uint256))
    if harmed != empty(address) and harmed != challenger and part > 0:
        rest -= part
        assert extcall Token(token).transfer(harmed, convert(part, uint256))
    extcall Token(token).burn(convert(rest, uint256))
    return taken


@external
@view
def members_at(epoch: uint64) -> DynArray[address, MAX_MEMBERS]:
    """
    @return The members of `epoch`, as scheduled so far.
    """
    return self._sets[timeline._index_at(epoch)]


@external
@view
def position(member: address) -> positions.Position:
    return positions._unpack(self._positions[member])


@internal
@view
def _first_accountable() -> uint256:
    """
    The set of the oldest report that is not active yet: what came before can be revoked no more.
    """
    return timeline._index_at(staticcall Ledger(ledger).active_epoch() + 1)


@internal
@view
def _is_accountable(member: address) -> bool:
    first: uint256 = self._first_accountable()
    for i: uint256 in range(MAX_SCHEDULED + 1):
        if first + i == timeline._count():
            break
        if member in self._sets[first + i]:
            return True
    return False


@internal
@pure
def _check_set(members: DynArray[address, MAX_MEMBERS]):
    assert len(members) > 0, "members: none"
    for i: uint256 in range(len(members), bound=MAX_MEMBERS):
        assert members[i] != empty(address), "members: zero member"
        for j: uint256 in range(i, bound=MAX_MEMBERS):
            assert members[j] != members[i], "members: member twice"
