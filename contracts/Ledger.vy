# pragma version 0.4.3
# pragma nonreentrancy on
# SPDX-License-Identifier: AGPL-3.0-only
"""
@title Reports through their dispute window, then claims against the active one
@license GNU Affero General Public License v3.0 only
@notice Accounts are cumulative, so a missed epoch, a late claim or a report sent again loses nothing.
        Invariants: tokens_earned grows by exactly subsidy + revenue, and no total shrinks; credits_spent <= credits paid
        in; paid(account) <= its leaf; every accepted report can be activated and is, in order, once.

        Leaf:  keccak256(0x00 | uint64 index | address | sums)[:31]
        Node:  keccak256(0x01 | left hash31 | left sums | right hash31 | right sums)[:31]
        sums = tokens_earned | credits_earned | credits_spent, uint96 each. A proof is the siblings (hash31 | sums) from
        the leaf up; bit i of the index says on which side the path stands at level i.
"""

from modules import reports


interface Token:
    def transfer(to: address, amount: uint256) -> bool: nonpayable


interface Emission:
    def schedule(epoch: uint64) -> uint96: view
    def mint_epoch(epoch: uint64, subsidy: uint96, revenue: uint96): nonpayable


interface Credits:
    def totals() -> (uint96, uint96): view


interface Registry:
    def payout_of(account: address) -> address: view


event Posted:
    epoch: indexed(uint64)
    seal: bytes32
    activates_at: uint64


event Activated:
    epoch: indexed(uint64)
    seal: bytes32
    subsidy: uint96
    revenue: uint96


event Claimed:
    account: indexed(address)
    payout: indexed(address)
    epoch: uint64
    amount: uint96
    paid: uint96


struct Totals:
    tokens_earned: uint96
    credits_earned: uint96
    credits_spent: uint96
    revenue: uint96
    posted_epoch: uint64
    active_epoch: uint64


struct Pending:
    seal: bytes32
    subsidy: uint96
    revenue: uint96
    activates_at: uint64


RING: constant(uint64) = 64
SIBLING_BYTES: constant(uint256) = 31 + 36
MAX_DEPTH: constant(uint256) = 32

oracle: public(immutable(address))
emission: public(immutable(address))
credits: public(immutable(address))
registry: public(immutable(address))
token: public(immutable(address))
dispute_window: public(immutable(uint64))

paid: public(HashMap[address, uint96])
# Of the last posted report: tokens earned (96 bits) | credits earned (96) | posted epoch (32) | active epoch (32)
_head: uint256
# Of the last posted report: credits spent (96 bits) | revenue of all reports (96)
_spent: uint256
# By epoch modulo RING: keccak256(accounts root, its three sums); and subsidy (96) | revenue (96) | time posted (64)
_seals: bytes32[RING]
_budgets: uint256[RING]

_MASK_96: constant(uint256) = 2**96 - 1
_MASK_64: constant(uint256) = 2**64 - 1
_MASK_32: constant(uint256) = 2**32 - 1
_NODE_TAG: constant(uint256) = 1 << 248


@deploy
def __init__(
    oracle_: address,
    emission_: address,
    credits_: address,
    registry_: address,
    token_: address,
    dispute_window_: uint64,
):
    """
    @param dispute_window_ Seconds between a report's acceptance and its activation.
    """
    oracle = oracle_
    emission = emission_
    credits = credits_
    registry = registry_
    token = token_
    dispute_window = dispute_window_


@external
def post(report: reports.Report):
    """
    @notice Only the Oracle, with a report that its quorum signed.
    """
    assert msg.sender == oracle, "ledger: only oracle"
    head: uint256 = self._head
    posted: uint64 = self._posted(head)
    assert report.epoch == posted + 1, "ledger: epoch"
    # One place of the ring is the active report's: claims still read it.
    assert posted - self._active(head) < RING - 1, "ledger: ring full"
    tokens_earned: uint256 = convert(report.tokens_earned, uint256)
    credits_earned: uint256 = convert(report.credits_earned, uint256)
    credits_spent: uint256 = convert(report.credits_spent, uint256)
    subsidy: uint256 = convert(report.subsidy, uint256)
    revenue: uint256 = convert(report.revenue, uint256)
    self._check_root(report)

    assert tokens_earned == (head >> 160) + subsidy + revenue, "ledger: tokens earned"
    assert credits_earned >= (head >> 64) & _MASK_96, "ledger: credits earned shrank"
    spent: uint256 = self._spent
    assert credits_spent >= spent >> 96, "ledger: credits spent shrank"
    assert report.subsidy <= staticcall Emission(emission).schedule(report.epoch), "ledger: over schedule"
    revenue_total: uint256 = (spent & _MASK_96) + revenue
    paid_in: uint96 = 0
    burned: uint96 = 0
    paid_in, burned = staticcall Credits(credits).totals()
    assert revenue_total <= convert(burned, uint256), "ledger: revenue over burned"
    assert report.credits_spent <= paid_in, "ledger: spent over paid in"

    seal: bytes32 = self._seal(report.accounts_root, tokens_earned, credits_earned, credits_spent)
    self._seals[report.epoch % RING] = seal
    self._budgets[report.epoch % RING] = (subsidy << 160) | (revenue << 64) | block.timestamp
    self._head = (
        (tokens_earned << 160)
        | (credits_earned << 64)
        | (convert(report.epoch, uint256) << 32)
        | (head & _MASK_32)
    )
    self._spent = (credits_spent << 96) | revenue_total
    log Posted(epoch=report.epoch, seal=seal, activates_at=convert(block.timestamp, uint64) + dispute_window)


@external
def activate() -> uint64:
    """
    @notice Activates every report whose dispute window has passed, oldest first, and mints its budget. Anyone may call.
    @return The active epoch; the call does nothing when none is due.
    """
    return self._activate()


@external
def claim(
    index: uint64,
    account: address,
    tokens_earned: uint96,
    credits_earned: uint96,
    credits_spent: uint96,
    proof: Bytes[SIBLING_BYTES * MAX_DEPTH],
) -> uint96:
    """
    @notice Pays what `account` earned up to the active report and was not paid yet, to where it wants to be paid. Anyone
            may call for anyone. Activates first what is due: the proof must be against that report.
    @return Tokens paid; 0 when nothing is left.
    """
    epoch: uint64 = self._activate()
    assert epoch > 0, "ledger: nothing active"
    seal: bytes32 = self._compute_seal(
        convert(index, uint256),
        account,
        convert(tokens_earned, uint256),
        convert(credits_earned, uint256),
        convert(credits_spent, uint256),
        proof,
    )
    assert seal == self._seals[epoch % RING], "ledger: wrong proof"
    paid: uint96 = self.paid[account]
    if tokens_earned <= paid:
        return 0

    amount: uint96 = tokens_earned - paid
    self.paid[account] = tokens_earned
    payout: address = staticcall Registry(registry).payout_of(account)
    log Claimed(account=account, payout=payout, epoch=epoch, amount=amount, paid=tokens_earned)
    assert extcall Token(token).transfer(payout, convert(amount, uint256))
    return amount


@external
@view
def active_epoch() -> uint64:
    return self._active(self._head)


@external
@view
def posted_epoch() -> uint64:
    return self._posted(self._head)


@external
@view
def due_epoch() -> uint64:
    """
    @notice The epoch that would be active if `activate` ran now: the one to prove a claim against.
    """
    head: uint256 = self._head
    epoch: uint64 = self._active(head)
    for i: uint64 in range(RING):
        if epoch >= self._posted(head) or not self._is_due(self._budgets[(epoch + 1) % RING]):
            break
        epoch += 1
    return epoch


@external
@view
def active_seal() -> bytes32:
    """
    @return keccak256(abi.encode(accounts_root, tokens_earned, credits_earned, credits_spent)) of the active report;
            zero before the first.
    """
    epoch: uint64 = self._active(self._head)
    return self._seals[epoch % RING] if epoch > 0 else empty(bytes32)


@external
@view
def pending(epoch: uint64) -> Pending:
    """
    @return All zero unless `epoch` is posted and not yet active.
    """
    head: uint256 = self._head
    if epoch <= self._active(head) or epoch > self._posted(head):
        return empty(Pending)
    budget: uint256 = self._budgets[epoch % RING]
    return Pending(
        seal=self._seals[epoch % RING],
        subsidy=convert(budget >> 160, uint96),
        revenue=convert((budget >> 64) & _MASK_96, uint96),
        activates_at=convert(budget & _MASK_64, uint64) + dispute_window,
    )


@external
@view
def totals() -> Totals:
    """
    @return Of the last posted report; `revenue` is the sum over all reports.
    """
    head: uint256 = self._head
    spent: uint256 = self._spent
    return Totals(
        tokens_earned=convert(head >> 160, uint96),
        credits_earned=convert((head >> 64) & _MASK_96, uint96),
        credits_spent=convert(spent >> 96, uint96),
        revenue=convert(spent & _MASK_96, uint96),
        posted_epoch=self._posted(head),
        active_epoch=self._active(head),
    )


@internal
def _activate() -> uint64:
    head: uint256 = self._head
    epoch: uint64 = self._active(head)
    posted: uint64 = self._posted(head)
    for i: uint64 in range(RING):
        if epoch >= posted:
            break
        budget: uint256 = self._budgets[(epoch + 1) % RING]
        if not self._is_due(budget):
            break
        epoch += 1
        self._head = (head & ~_MASK_32) | convert(epoch, uint256)
        subsidy: uint96 = convert(budget >> 160, uint96)
        revenue: uint96 = convert((budget >> 64) & _MASK_96, uint96)
        log Activated(epoch=epoch, seal=self._seals[epoch % RING], subsidy=subsidy, revenue=revenue)
        extcall Emission(emission).mint_epoch(epoch, subsidy, revenue)
    return epoch


@internal
@view
def _is_due(budget: uint256) -> bool:
    return block.timestamp >= (budget & _MASK_64) + convert(dispute_window, uint256)


@internal
@pure
def _posted(head: uint256) -> uint64:
    return convert((head >> 32) & _MASK_32, uint64)


@internal
@pure
def _active(head: uint256) -> uint64:
    return convert(head & _MASK_32, uint64)


@internal
@pure
def _check_root(report: reports.Report):
    """
    The empty tree, and only it, has the zero root; the last byte of a root is unused.
    """
    root: uint256 = convert(report.accounts_root, uint256)
    assert root & 255 == 0, "ledger: root"
    if root == 0:
        assert report.accounts == 0, "ledger: zero root"
        sums: uint96 = report.tokens_earned | report.credits_earned | report.credits_spent
        assert sums == 0, "ledger: zero root"
    else:
        assert report.accounts > 0, "ledger: root of nothing"


@internal
@pure
def _seal(accounts_root: bytes32, tokens_earned: uint256, credits_earned: uint256, credits_spent: uint256) -> bytes32:
    return keccak256(abi_encode(accounts_root, tokens_earned, credits_earned, credits_spent))


@internal
@pure
def _compute_seal(
    index: uint256,
    account: address,
    tokens: uint256,
    earned: uint256,
    spent: uint256,
    proof: Bytes[SIBLING_BYTES * MAX_DEPTH],
) -> bytes32:
    """
    The seal of the tree that this leaf and these siblings lead to. Partial sums only grow, so a sum that left its 96
    bits on the way differs from every seal's: one comparison at the end checks them all.
    """
    assert len(proof) % SIBLING_BYTES == 0, "ledger: proof length"
    depth: uint256 = len(proof) // SIBLING_BYTES
    assert index >> depth == 0, "ledger: index"
    sums_low: bytes4 = convert(convert(spent & _MASK_32, uint32), bytes4)
    sums_high: bytes32 = convert((tokens << 160) | (earned << 64) | (spent >> 32), bytes32)
    hash31: uint256 = (
        convert(
            keccak256(
                concat(0x00, convert(convert(index, uint64), bytes8), convert(account, bytes20), sums_high, sums_low)
            ),
            uint256,
        )
        >> 8
    )
    for level: uint256 in range(depth, bound=MAX_DEPTH):
        offset: uint256 = unsafe_mul(level, SIBLING_BYTES)
        sibling: Bytes[SIBLING_BYTES] = slice(proof, offset, SIBLING_BYTES)
        node: bytes32 = empty(bytes32)
        if (index >> level) & 1 == 0:
            node = keccak256(concat(convert(hash31 | _NODE_TAG, bytes32), sums_high, sums_low, sibling))
        else:
            node = keccak256(
                concat(0x01, sibling, convert(convert(hash31, uint248), bytes31), sums_high, sums_low)
            )
        hash31 = convert(node, uint256) >> 8
        upper: uint256 = extract32(sibling, 31, output_type=uint256)
        lower: uint256 = extract32(sibling, 35, output_type=uint256)
        tokens = unsafe_add(tokens, upper >> 160)
        earned = unsafe_add(earned, (lower >> 96) & _MASK_96)
        spent = unsafe_add(spent, lower & _MASK_96)
        sums_low = convert(convert(spent & _MASK_32, uint32), bytes4)
        sums_high = convert((tokens << 160) | (earned << 64) | (spent >> 32), bytes32)
    return self._seal(convert(hash31 << 8, bytes32), tokens, earned, spent)
