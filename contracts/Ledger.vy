# pragma version 0.4.3
# pragma nonreentrancy on
# SPDX-License-Identifier: AGPL-3.0-only
"""
@title Reports through their dispute window, then claims against the active one
@license GNU Affero General Public License v3.0 only
@notice Accounts are cumulative, so a missed epoch, a late claim or a report sent again loses nothing.

        A report activates when its window has passed and Disputes does not hold it. The guardian can pause activation
        and claims, for a bounded time and not again before as much time has passed. After `freeze_lengths` nominal
        epoch lengths without a report anyone may freeze: holds are void `hold_seconds` later, and not before, so that
        what is held can still be revoked. Once nothing is pending the Collector pays vouchers against the active
        state. The next report ends it, and counts what was collected.
        Invariants: tokens_earned grows by exactly subsidy + revenue + what was collected; no total shrinks, but for
        revoked reports, whose totals go back to those of the report before; credits_spent <= credits paid in; paid
        (account) <= its leaf in the active report + what it collected on that; revenue of all reports and collections
        <= burned, so that every accepted report can be activated, in order, once.
"""

from modules import accounts_tree
from modules import bucket
from modules import reports

initializes: bucket
exports: (bucket.claim_epochs, bucket.epoch_length)


interface Token:
    def transfer(to: address, amount: uint256) -> bool: nonpayable


interface Emission:
    def schedule(epoch: uint64) -> uint96: view
    def mint_epoch(epoch: uint64, subsidy: uint96, revenue: uint96) -> uint96: nonpayable


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
    left: uint96


event Held:
    epoch: indexed(uint64)
    holds: uint64


event Released:
    epoch: indexed(uint64)
    holds: uint64


event Paused:
    until: uint64


event Frozen:
    active_epoch: indexed(uint64)
    posted_epoch: uint64


event Thawed:
    lengths: uint64


event CollectionNoted:
    account: indexed(address)
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
    holds: uint64


RING: constant(uint64) = 64

oracle: public(immutable(address))
emission: public(immutable(address))
credits: public(immutable(address))
registry: public(immutable(address))
token: public(immutable(address))
collector: public(immutable(address))
disputes: public(immutable(address))
guardian: public(immutable(address))
dispute_window: public(immutable(uint64))
freeze_lengths: public(immutable(uint64))
pause_limit: public(immutable(uint64))
hold_seconds: public(immutable(uint64))

# The hash chain of everything that was collected while frozen.
collected: public(bytes32)
# Tokens collected in all, by the chain's value at that time.
_collected_at: HashMap[bytes32, uint256]
# Of the last posted report: tokens earned (96 bits) | its epoch (32); active epoch (32); end of the last pause (64)
_head: uint256
# Of the last posted report: credits earned (96 bits) | credits spent (96); nominal lengths spent frozen so far (64)
_spent: uint256
# Revenue of all reports and collections (96 bits) | collected tokens that no posted report has counted (96) | frozen (1) |
# since when it is so, at the earliest (63)
_watch: uint256
# By epoch modulo RING: keccak256(accounts root, its three sums); and subsidy (96) | revenue (96) | holds (24) | time
# posted (40). Epoch 0 was posted by the deployment.
_seals: bytes32[RING]
_budgets: uint256[RING]
# paid (96 bits) | window of the last claim (63) | whether it ever collected (1) | taken in that window (96)
_accounts: HashMap[address, uint256]
# Collected on the state of an epoch, by epoch and account: its leaf there lacks that.
_ahead: HashMap[uint64, HashMap[address, uint256]]
_pause_from: uint256

_MASK_96: constant(uint256) = 2**96 - 1
_MASK_64: constant(uint256) = 2**64 - 1
_MASK_63: constant(uint256) = 2**63 - 1
_MASK_40: constant(uint256) = 2**40 - 1
_MASK_32: constant(uint256) = 2**32 - 1
_MASK_24: constant(uint256) = 2**24 - 1
_FROZEN: constant(uint256) = 1 << 63
_COLLECTED: constant(uint256) = 1 << 96
_ONE_HOLD: constant(uint256) = 1 << 40


@deploy
def __init__(
    oracle_: address,
    emission_: address,
    credits_: address,
    registry_: address,
    token_: address,
    collector_: address,
    disputes_: address,
    guardian_: address,
    dispute_window_: uint64,
    epoch_length_: uint64,
    freeze_lengths_: uint64,
    claim_epochs_: uint64,
    pause_limit_: uint64,
    hold_seconds_: uint64,
):
    """
    @param guardian_ May pause claims and activation, and nothing else.
    @param dispute_window_ Seconds between a report's acceptance and its activation.
    @param epoch_length_ Seconds of an epoch that is on time.
    @param freeze_lengths_ Epoch lengths without a report until anyone may freeze.
    @param claim_epochs_ Epochs' budgets that may leave through claims at once.
    @param pause_limit_ Seconds a pause lasts at most.
    @param hold_seconds_ How long holds outlast a freeze's begin: as long as Disputes may need in a freeze.
    """
    assert freeze_lengths_ > 0, "ledger: no silence"
    bucket.__init__(claim_epochs_, epoch_length_)
    oracle = oracle_
    emission = emission_
    credits = credits_
    registry = registry_
    token = token_
    collector = collector_
    disputes = disputes_
    guardian = guardian_
    dispute_window = dispute_window_
    freeze_lengths = freeze_lengths_
    pause_limit = pause_limit_
    hold_seconds = hold_seconds_
    self._budgets[0] = block.timestamp
    self._watch = block.timestamp


@external
def post(report: reports.Report) -> bool:
    """
    @notice Only the Oracle, with a report that its quorum signed. It ends a freeze.
    @return Whether the report is taken. One that ends a freeze and does not count what was collected is not.
    """
    assert msg.sender == oracle, "ledger: only oracle"
    head: uint256 = self._head
    spent: uint256 = self._spent
    watch: uint256 = self._watch
    posted: uint64 = self._posted(head)
    assert report.epoch == posted + 1, "ledger: epoch"
    if watch & _FROZEN != 0:
        lengths: uint256 = self._frozen_lengths(watch)
        spent += lengths
        self._spent = spent
        watch = ((watch >> 64) << 64) | block.timestamp
        self._watch = watch
        log Thawed(lengths=convert(lengths, uint64))
        if report.collected != self.collected:
            return False
    assert report.collected == self.collected, "ledger: collected"
    # One place of the ring is the active report's: claims still read it.
    assert posted - self._active(head) < RING - 1, "ledger: ring full"
    tokens_earned: uint256 = convert(report.tokens_earned, uint256)
    credits_earned: uint256 = convert(report.credits_earned, uint256)
    credits_spent: uint256 = convert(report.credits_spent, uint256)
    subsidy: uint256 = convert(report.subsidy, uint256)
    revenue: uint256 = convert(report.revenue, uint256)
    self._check_root(report)

    uncounted: uint256 = (watch >> 64) & _MASK_96
    assert tokens_earned == (head >> 160) + subsidy + revenue + uncounted, "ledger: tokens earned"
    assert credits_earned >= spent >> 160, "ledger: credits earned shrank"
    assert credits_spent >= (spent >> 64) & _MASK_96, "ledger: credits spent shrank"
    assert report.subsidy <= staticcall Emission(emission).schedule(report.epoch), "ledger: over schedule"
    revenue_total: uint256 = (watch >> 160) + revenue
    paid_in: uint96 = 0
    burned: uint96 = 0
    paid_in, burned = staticcall Credits(credits).totals()
    assert revenue_total <= convert(burned, uint256), "ledger: revenue over burned"
    assert report.credits_spent <= paid_in, "ledger: spent over paid in"

    seal: bytes32 = self._seal(report.accounts_root, tokens_earned, credits_earned, credits_spent)
    self._seals[report.epoch % RING] = seal
    self._budgets[report.epoch % RING] = (subsidy << 160) | (revenue << 64) | block.timestamp
    self._head = (tokens_earned << 160) | (convert(report.epoch, uint256) << 128) | (head & (2**128 - 1))
    self._spent = (credits_earned << 160) | (credits_spent << 64) | (spent & _MASK_64)
    self._watch = (revenue_total << 160) | (watch & _MASK_64)
    log Posted(epoch=report.epoch, seal=seal, activates_at=convert(block.timestamp, uint64) + dispute_window)
    return True


@external
def revoke(
    epoch: uint64, tokens_earned: uint96, credits_earned: uint96, credits_spent: uint96, collected: bytes32
) -> uint64:
    """
    @notice Only the Oracle: takes back `epoch`, which is not active yet, and all after it. Nothing of them was minted.
    @param tokens_earned With the other totals and `collected`: of the report before, zero where there is none.
    @return When the report before was posted.
    """
    assert msg.sender == oracle, "ledger: only oracle"
    head: uint256 = self._head
    watch: uint256 = self._watch
    posted: uint64 = self._posted(head)
    assert epoch > self._active(head) and epoch <= posted, "ledger: not pending"
    revenue: uint256 = watch >> 160
    for i: uint64 in range(RING):
        if epoch + i > posted:
            break
        revenue -= (self._budgets[(epoch + i) % RING] >> 64) & _MASK_96
    uncounted: uint256 = self._collected_at[self.collected] - self._collected_at[collected]
    # Silence counts from now on: the members need time to settle again.
    clock: uint256 = watch & _MASK_64 if watch & _FROZEN != 0 else block.timestamp
    self._head = (convert(tokens_earned, uint256) << 160) | (convert(epoch - 1, uint256) << 128) | (head & (2**128 - 1))
    self._spent = (
        (convert(credits_earned, uint256) << 160) | (convert(credits_spent, uint256) << 64) | (self._spent & _MASK_64)
    )
    self._watch = (revenue << 160) | (uncounted << 64) | clock
    return convert(self._budgets[(epoch - 1) % RING] & _MASK_40, uint64)


@external
def activate() -> uint64:
    """
    @notice Activates every report that is due, oldest first, and mints its budget. Anyone may call.
    @return The active epoch; the call does nothing when none is due.
    """
    return self._activate(self._head)


@external
def claim(
    index: uint64,
    account: address,
    tokens_earned: uint96,
    credits_earned: uint96,
    credits_spent: uint96,
    proof: Bytes[accounts_tree.NODE_BYTES * accounts_tree.MAX_DEPTH],
) -> uint96:
    """
    @notice Pays what `account` earned up to the active report and was not paid yet, to where it wants to be paid, as far
            as the rate at which claims leave allows now. Anyone may call for anyone. Activates first what is due: the
            proof must be against that report.
    @return Tokens paid; 0 when nothing is left, or nothing can leave now.
    """
    head: uint256 = self._head
    assert block.timestamp >= head & _MASK_64, "ledger: paused"
    epoch: uint64 = self._activate(head)
    assert epoch > 0, "ledger: nothing active"
    sums: accounts_tree.Sums = accounts_tree.Sums(
        tokens_earned=convert(tokens_earned, uint256),
        credits_earned=convert(credits_earned, uint256),
        credits_spent=convert(credits_spent, uint256),
    )
    root: bytes32 = empty(bytes32)
    total: accounts_tree.Sums = empty(accounts_tree.Sums)
    root, total = accounts_tree._climb(accounts_tree._leaf_hash(index, account, sums), sums, index, proof)
    seal: bytes32 = self._seal(root, total.tokens_earned, total.credits_earned, total.credits_spent)
    assert seal == self._seals[epoch % RING], "ledger: wrong proof"

    before: uint256 = self._accounts[account]
    paid: uint256 = before >> 160
    earned: uint256 = sums.tokens_earned
    if before & _COLLECTED != 0:
        earned += self._ahead[epoch][account]
    if earned <= paid:
        return 0
    window: uint256 = bucket._window()
    taken: uint256 = before & _MASK_96 if (before >> 97) & _MASK_63 == window else 0
    amount: uint256 = bucket._draw(earned - paid, taken)
    if amount == 0:
        return 0
    paid += amount
    self._accounts[account] = (paid << 160) | (window << 97) | (before & _COLLECTED) | (taken + amount)
    payout: address = staticcall Registry(registry).payout_of(account)
    log Claimed(
        account=account,
        payout=payout,
        epoch=epoch,
        amount=convert(amount, uint96),
        paid=convert(paid, uint96),
        left=convert(earned - paid, uint96),
    )
    assert extcall Token(token).transfer(payout, amount)
    return convert(amount, uint96)


@external
def hold(epoch: uint64):
    """
    @notice Only Disputes: `epoch` does not activate, and so none after it, until as many releases as holds. Only within
            the report's window, which stays open during a pause, or while another hold lasts.
    """
    assert msg.sender == disputes, "ledger: only disputes"
    head: uint256 = self._head
    assert epoch > self._active(head) and epoch <= self._posted(head), "ledger: not pending"
    assert self._watch & _FROZEN == 0, "ledger: frozen"
    budget: uint256 = self._budgets[epoch % RING]
    is_open: bool = block.timestamp < (budget & _MASK_40) + convert(dispute_window, uint256)
    holds: uint256 = (budget >> 40) & _MASK_24
    assert is_open or holds > 0 or block.timestamp < head & _MASK_64, "ledger: window over"
    assert holds < _MASK_24, "ledger: too many holds"
    self._budgets[epoch % RING] = budget + _ONE_HOLD
    log Held(epoch=epoch, holds=convert(holds + 1, uint64))


@external
def release(epoch: uint64):
    """
    @notice Only Disputes: takes back one hold. Nothing happens where the epoch is active by now or was revoked; of an
            epoch that was revoked and posted again, Disputes must not take back what it held before.
    """
    assert msg.sender == disputes, "ledger: only disputes"
    head: uint256 = self._head
    budget: uint256 = self._budgets[epoch % RING]
    if epoch <= self._active(head) or epoch > self._posted(head) or (budget >> 40) & _MASK_24 == 0:
        return
    self._budgets[epoch % RING] = budget - _ONE_HOLD
    log Released(epoch=epoch, holds=convert(((budget >> 40) & _MASK_24) - 1, uint64))


@external
def pause(seconds: uint64):
    """
    @notice Only the guardian: claims, activation and collecting stop. Not again before as much time has passed unpaused.
    """
    assert msg.sender == guardian, "ledger: only guardian"
    assert seconds > 0 and seconds <= pause_limit, "ledger: pause too long"
    assert block.timestamp >= self._pause_from, "ledger: paused too soon"
    until: uint256 = block.timestamp + convert(seconds, uint256)
    self._head = (self._head & ~_MASK_64) | until
    self._pause_from = until + convert(seconds, uint256)
    log Paused(until=convert(until, uint64))


@external
def unpause():
    """
    @notice Only the guardian: ends a pause before its time.
    """
    assert msg.sender == guardian, "ledger: only guardian"
    head: uint256 = self._head
    until: uint256 = head & _MASK_64
    assert block.timestamp < until, "ledger: not paused"
    # The pause began as long before its end as the next may begin after it.
    lasted: uint256 = block.timestamp - (2 * until - self._pause_from)
    self._head = (head & ~_MASK_64) | block.timestamp
    self._pause_from = block.timestamp + lasted
    log Paused(until=convert(block.timestamp, uint64))


@external
def freeze():
    """
    @notice Anyone, once `freeze_lengths` nominal lengths have passed without a report.
    """
    head: uint256 = self._head
    watch: uint256 = self._watch
    assert watch & _FROZEN == 0, "ledger: frozen"
    heard: uint256 = max(self._budgets[self._posted(head) % RING] & _MASK_40, watch & _MASK_64)
    silence: uint256 = convert(freeze_lengths, uint256) * convert(bucket.epoch_length, uint256)
    assert block.timestamp > heard + silence, "ledger: not silent"
    self._watch = ((watch >> 64) << 64) | _FROZEN | block.timestamp
    log Frozen(active_epoch=self._active(head), posted_epoch=self._posted(head))


@external
def note_collection(
    lease: bytes32, client: address, operator: address, credits_: uint96, released: uint96, tokens: uint96
) -> bytes32:
    """
    @notice Only the Collector, while frozen, on the state of the active report, once nothing is pending: a pending
            report might have settled the same voucher.
    @return The new end of the hash chain.
    """
    assert msg.sender == collector, "ledger: only collector"
    head: uint256 = self._head
    watch: uint256 = self._watch
    assert watch & _FROZEN != 0, "ledger: not frozen"
    assert block.timestamp >= head & _MASK_64, "ledger: paused"
    assert self._active(head) == self._posted(head), "ledger: reports pending"
    amount: uint256 = convert(tokens, uint256)
    revenue: uint256 = (watch >> 160) + amount
    paid_in: uint96 = 0
    burned: uint96 = 0
    paid_in, burned = staticcall Credits(credits).totals()
    assert revenue <= convert(burned, uint256), "ledger: revenue over burned"
    chain_before: bytes32 = self.collected
    chain_after: bytes32 = keccak256(abi_encode(chain_before, lease, client, operator, credits_, released, tokens))

    self.collected = chain_after
    self._collected_at[chain_after] = self._collected_at[chain_before] + amount
    self._watch = (revenue << 160) | (((watch >> 64) & _MASK_96) + amount << 64) | (watch & _MASK_64)
    before: uint256 = self._accounts[operator]
    paid: uint256 = (before >> 160) + amount
    self._accounts[operator] = (paid << 160) | (before & (2**160 - 1)) | _COLLECTED
    epoch: uint64 = self._active(head)
    self._ahead[epoch][operator] += amount
    log CollectionNoted(account=operator, epoch=epoch, amount=tokens, paid=convert(paid, uint96))
    return chain_after


@external
@view
def paid(account: address) -> uint96:
    """
    @return Tokens that `account` was paid so far, by claims and while frozen.
    """
    return convert(self._accounts[account] >> 160, uint96)


@external
@view
def uncounted() -> uint96:
    """
    @return Collected tokens that no posted report has counted: the next one must.
    """
    return convert((self._watch >> 64) & _MASK_96, uint96)


@external
@view
def claimable(account: address) -> uint96:
    """
    @return The most that may leave to `account` now, whatever it has earned.
    """
    if block.timestamp < self._head & _MASK_64:
        return 0
    packed: uint256 = self._accounts[account]
    taken: uint256 = packed & _MASK_96 if (packed >> 97) & _MASK_63 == bucket._window() else 0
    return convert(bucket._room(taken), uint96)


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
def nominal_epoch() -> uint64:
    """
    @notice What thaws count by: activated epochs, and every nominal length that was spent frozen. It never falls.
    """
    watch: uint256 = self._watch
    lengths: uint256 = self._spent & _MASK_64
    if watch & _FROZEN != 0:
        lengths += self._frozen_lengths(watch)
    return self._active(self._head) + convert(lengths, uint64)


@external
@view
def frozen() -> bool:
    return self._watch & _FROZEN != 0


@external
@view
def frozen_at() -> uint64:
    """
    @return Since when it is frozen; 0 if it is not.
    """
    watch: uint256 = self._watch
    return convert(watch & (_FROZEN - 1), uint64) if watch & _FROZEN != 0 else 0


@external
@view
def freezes_at() -> uint64:
    """
    @return The time after which anyone may freeze, if no report comes.
    """
    heard: uint256 = max(self._budgets[self._posted(self._head) % RING] & _MASK_40, self._watch & (_FROZEN - 1))
    return convert(heard, uint64) + freeze_lengths * bucket.epoch_length


@external
@view
def paused_until() -> uint64:
    """
    @return The end of the last pause; it is over once that time is reached.
    """
    return convert(self._head & _MASK_64, uint64)


@external
@view
def due_epoch() -> uint64:
    """
    @notice The epoch that would be active if `activate` ran now: the one to prove a claim against.
    """
    head: uint256 = self._head
    epoch: uint64 = self._active(head)
    for i: uint64 in range(RING):
        if epoch >= self._posted(head) or not self._is_due(head, self._budgets[(epoch + 1) % RING]):
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
        activates_at=convert(budget & _MASK_40, uint64) + dispute_window,
        holds=convert((budget >> 40) & _MASK_24, uint64),
    )


@external
@view
def totals() -> Totals:
    """
    @return Of the last posted report; `revenue` is the sum over all reports and collections.
    """
    head: uint256 = self._head
    spent: uint256 = self._spent
    return Totals(
        tokens_earned=convert(head >> 160, uint96),
        credits_earned=convert(spent >> 160, uint96),
        credits_spent=convert((spent >> 64) & _MASK_96, uint96),
        revenue=convert(self._watch >> 160, uint96),
        posted_epoch=self._posted(head),
        active_epoch=self._active(head),
    )


@internal
def _activate(head: uint256) -> uint64:
    epoch: uint64 = self._active(head)
    posted: uint64 = self._posted(head)
    for i: uint64 in range(RING):
        if epoch >= posted:
            break
        budget: uint256 = self._budgets[(epoch + 1) % RING]
        if not self._is_due(head, budget):
            break
        epoch += 1
        self._head = (head & ~(_MASK_32 << 96)) | (convert(epoch, uint256) << 96)
        subsidy: uint96 = convert(budget >> 160, uint96)
        revenue: uint96 = convert((budget >> 64) & _MASK_96, uint96)
        log Activated(epoch=epoch, seal=self._seals[epoch % RING], subsidy=subsidy, revenue=revenue)
        most: uint96 = extcall Emission(emission).mint_epoch(epoch, subsidy, revenue)
        average: uint256 = (head >> 160) // convert(posted, uint256)
        bucket._widen(max(max(convert(most, uint256), convert(subsidy + revenue, uint256)), average))
    return epoch


@internal
@view
def _is_due(head: uint256, budget: uint256) -> bool:
    if block.timestamp < (budget & _MASK_40) + convert(dispute_window, uint256) or block.timestamp < head & _MASK_64:
        return False
    if (budget >> 40) & _MASK_24 == 0:
        return True
    watch: uint256 = self._watch
    return watch & _FROZEN != 0 and block.timestamp >= (watch & (_FROZEN - 1)) + convert(hold_seconds, uint256)


@internal
@view
def _frozen_lengths(watch: uint256) -> uint256:
    return (block.timestamp - (watch & (_FROZEN - 1))) // convert(bucket.epoch_length, uint256)


@internal
@pure
def _posted(head: uint256) -> uint64:
    return convert((head >> 128) & _MASK_32, uint64)


@internal
@pure
def _active(head: uint256) -> uint64:
    return convert((head >> 96) & _MASK_32, uint64)


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
