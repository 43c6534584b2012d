# pragma version 0.4.3
# pragma nonreentrancy on
# SPDX-License-Identifier: AGPL-3.0-only
"""
@title Disputes over pending reports
@license GNU Affero General Public License v3.0 only
@notice Anyone with a bond revokes a pending report, and with it all after it, in one of two ways.

        A challenge proves a contradiction. It is committed first and revealed in a later block by the same sender, so that
        nobody can copy it from the mempool. Revealed, it revokes the report, gets its bond back, and its evidence stands:
        whoever signed that very report loses its bond (`slash`). It may be revealed although the report is gone or active
        by then, else signers who see it coming would take their report back first. Not revealed in time, it loses its own.
        A demand asks for a leaf of the accounts tree, or for a verdict and, where that calls a storage opening good, for
        the good proof behind it. Whoever answers gets the demand's bond. What nobody answers within `answer_reports`
        accepted reports is revoked; silence slashes nobody, and the bond goes back.

        Kinds of proof: COUNT, there are fewer accounts than before; SHRANK, a position holds another account than before or
        one of its totals fell; NODE, a node's sums are not its children's, or it stands where a leaf belongs; LEAF, a
        leaf's sums or index are not those of its place; OPENING, a good opening stands against its verdict
        (storage/OpeningProof.vy). Each contradicts the signed report itself: an honest member's report has none.

        Holds do not last: while a challenge or demand is open, its report and those after it stay pending. Both are opened
        within the report's own dispute window (a pause keeps it open). A challenge holds for `reveal_seconds`; a demand for
        `answer_reports` reports and, once answered, for twice `reveal_seconds`: in the first half of that, what came to
        light can be committed to, in the second revealed. From then on anyone ends the hold. So a report is held no longer
        than its window, `answer_reports` reports and twice `reveal_seconds`, whatever anybody spends; and one sender has
        one hold of a report at a time, but who demanded may commit over its answered demand, whose hold then goes on. In
        a freeze nothing new holds, though challenges are still taken; what held before goes on until the Ledger's
        `hold_seconds` are over, within which every demand is answered or expires, and every answer can be disproven.

        Invariant: this contract holds exactly one `bond` for each open challenge and each unanswered demand.
"""

from modules import accounts_tree
from modules import reports
from snekmate.utils import ecdsa

MAX_MEMBERS: constant(uint256) = 31
MAX_EVIDENCE: constant(uint256) = 16_384
MAX_SHOWN: constant(uint256) = 4_096
MAX_PROOF: constant(uint256) = accounts_tree.NODE_BYTES * accounts_tree.MAX_DEPTH


interface Oracle:
    def report_hash(epoch: uint64) -> bytes32: view
    def report_digest(report: reports.Report) -> bytes32: view
    def revoked_reports() -> uint64: view
    def revoke(epoch: uint64, before: reports.Report): nonpayable


interface Ledger:
    def active_epoch() -> uint64: view
    def posted_epoch() -> uint64: view
    def nominal_epoch() -> uint64: view
    def frozen() -> bool: view
    def paused_until() -> uint64: view
    def pending(epoch: uint64) -> Pending: view
    def hold(epoch: uint64): nonpayable
    def release(epoch: uint64): nonpayable


interface Members:
    def members_at(epoch: uint64) -> DynArray[address, MAX_MEMBERS]: view
    def slash(member: address, challenger: address, harmed: address) -> uint96: nonpayable


interface Registry:
    def operator_of(node: address) -> address: view


interface Token:
    def transfer(to: address, amount: uint256) -> bool: nonpayable
    def transferFrom(owner: address, to: address, amount: uint256) -> bool: nonpayable
    def burn(amount: uint256): nonpayable


interface OpeningProof:
    def contradiction(report: reports.Report, evidence: Bytes[MAX_EVIDENCE]) -> address: view
    def is_shown(
        report: reports.Report, path: uint64, shown: Bytes[MAX_SHOWN], backing: Bytes[MAX_EVIDENCE]
    ) -> bool: view


event Committed:
    challenger: indexed(address)
    epoch: indexed(uint64)
    report_hash: indexed(bytes32)
    commitment: bytes32
    deadline: uint64


event Contradicted:
    challenger: indexed(address)
    epoch: indexed(uint64)
    report_hash: indexed(bytes32)
    kind: uint8
    harmed: address


event Forfeited:
    challenger: indexed(address)
    report_hash: indexed(bytes32)
    amount: uint96


event HoldEnded:
    challenger: indexed(address)
    report_hash: indexed(bytes32)
    amount: uint96


event Demanded:
    challenger: indexed(address)
    epoch: indexed(uint64)
    report_hash: indexed(bytes32)
    kind: uint8
    position: uint64
    deadline: uint64


event Answered:
    challenger: indexed(address)
    epoch: indexed(uint64)
    report_hash: indexed(bytes32)
    answerer: address
    position: uint64
    shown: Bytes[MAX_SHOWN]


event Unanswered:
    challenger: indexed(address)
    epoch: indexed(uint64)
    report_hash: indexed(bytes32)


event SignerSlashed:
    report_hash: indexed(bytes32)
    member: indexed(address)
    amount: uint96


# As the Ledger's.
struct Pending:
    seal: bytes32
    subsidy: uint96
    revenue: uint96
    activates_at: uint64
    holds: uint64


# `deadline` is a time, or for a demand the count of `_count_reports` from which on it is unanswered. `subject` is a
# commitment, or what is demanded. `holds` says that the Ledger holds the report for it.
struct Hold:
    kind: uint8
    holds: bool
    epoch: uint64
    opened: uint64
    deadline: uint64
    subject: bytes32


# kind | holds << 8 | epoch << 16 | opened << 80 | deadline << 144
struct PackedHold:
    packed: uint256
    subject: bytes32


struct Leaf:
    account: address
    tokens_earned: uint96
    credits_earned: uint96
    credits_spent: uint96


# `is_absent`: there is nothing at the position any more, and `new` counts for nothing.
struct Shrunk:
    index: uint64
    old: Leaf
    old_proof: Bytes[MAX_PROOF]
    is_absent: bool
    new: Leaf
    new_proof: Bytes[MAX_PROOF]


struct WrongNode:
    tokens_earned: uint96
    credits_earned: uint96
    credits_spent: uint96
    left: Bytes[accounts_tree.NODE_BYTES]
    right: Bytes[accounts_tree.NODE_BYTES]
    position: uint64
    proof: Bytes[MAX_PROOF]


struct WrongLeaf:
    tokens_earned: uint96
    credits_earned: uint96
    credits_spent: uint96
    index: uint64
    leaf: Leaf
    position: uint64
    proof: Bytes[MAX_PROOF]


struct ShownLeaf:
    leaf: Leaf
    proof: Bytes[MAX_PROOF]


struct Proven:
    challenger: address
    harmed: address


# Kinds of proof.
COUNT: constant(uint8) = 1
SHRANK: constant(uint8) = 2
NODE: constant(uint8) = 3
LEAF: constant(uint8) = 4
OPENING: constant(uint8) = 5
# Kinds of hold: a demand's are also what is demanded.
DEMANDED_LEAF: constant(uint8) = 1
DEMANDED_VERDICT: constant(uint8) = 2
CHALLENGE: constant(uint8) = 3
ANSWERED: constant(uint8) = 4
_MASK_64: constant(uint256) = 2**64 - 1

oracle: public(immutable(address))
ledger: public(immutable(address))
members: public(immutable(address))
registry: public(immutable(address))
token: public(immutable(address))
opening_proof: public(immutable(address))
bond: public(immutable(uint96))
reveal_seconds: public(immutable(uint64))
answer_reports: public(immutable(uint64))

_holds: HashMap[bytes32, HashMap[address, PackedHold]]
# Until when, by report, an answer keeps commitments open.
_answered_until: HashMap[bytes32, uint64]
_proven: HashMap[bytes32, Proven]
slashed: public(HashMap[bytes32, HashMap[address, bool]])


@deploy
def __init__(
    oracle_: address,
    ledger_: address,
    members_: address,
    registry_: address,
    token_: address,
    opening_proof_: address,
    bond_: uint96,
    reveal_seconds_: uint64,
    answer_reports_: uint64,
):
    """
    @param bond_ Tokens that each challenge and each demand puts up.
    @param reveal_seconds_ From a commitment to the end of its hold.
    @param answer_reports_ Accepted reports within which a demand is answered.
    """
    assert bond_ > 0, "disputes: no bond"
    assert reveal_seconds_ > 0, "disputes: no time to reveal"
    assert answer_reports_ > 0, "disputes: no time to answer"
    oracle = oracle_
    ledger = ledger_
    members = members_
    registry = registry_
    token = token_
    opening_proof = opening_proof_
    bond = bond_
    reveal_seconds = reveal_seconds_
    answer_reports = answer_reports_


@external
def commit(epoch: uint64, report_hash: bytes32, commitment: bytes32):
    """
    @notice Announces a proof against a pending report. Within its window this holds the report and those after it; over
            the caller's own answered demand, as long as that did.
    @param commitment keccak256(abi.encode(challenger, kind, keccak256(evidence), salt)).
    """
    assert self._is_current(epoch, report_hash), "disputes: another report"
    now: uint64 = convert(block.timestamp, uint64)
    window_end: uint64 = self._window_end(epoch)
    is_frozen: bool = staticcall Ledger(ledger).frozen()
    assert now < max(window_end, self._answered_until[report_hash]) or is_frozen, "disputes: too late"
    answered: Hold = self._load(report_hash, msg.sender)
    assert answered.kind == 0 or answered.kind == ANSWERED, "disputes: one hold at a time"
    deadline: uint64 = max(now + reveal_seconds, answered.deadline)
    self._open(
        report_hash,
        answered.holds,
        Hold(
            kind=CHALLENGE,
            holds=answered.holds or (now < window_end and not is_frozen),
            epoch=epoch,
            opened=convert(block.number, uint64),
            deadline=deadline,
            subject=commitment,
        ),
    )
    log Committed(
        challenger=msg.sender, epoch=epoch, report_hash=report_hash, commitment=commitment, deadline=deadline
    )


@external
def reveal(
    before: reports.Report, report: reports.Report, kind: uint8, evidence: Bytes[MAX_EVIDENCE], salt: bytes32
):
    """
    @notice Proves what the caller committed to, and revokes the report if it is still pending. The first proof of a report
            counts: who comes later withdraws. A reveal that fails may be tried again in time.
    @param before The report of the epoch before; all zero for epoch 1.
    """
    report_hash: bytes32 = reports._struct_hash(report)
    hold: Hold = self._load(report_hash, msg.sender)
    assert hold.kind == CHALLENGE, "disputes: no challenge"
    assert convert(block.number, uint64) > hold.opened, "disputes: same block"
    assert block.timestamp <= convert(hold.deadline, uint256), "disputes: too late"
    commitment: bytes32 = keccak256(abi_encode(msg.sender, kind, keccak256(evidence), salt))
    assert commitment == hold.subject, "disputes: not committed"
    assert self._proven[report_hash].challenger == empty(address), "disputes: proven"

    harmed: address = self._prove(before, report, kind, evidence)
    self._clear(report_hash, msg.sender)
    self._proven[report_hash] = Proven(challenger=msg.sender, harmed=harmed)
    log Contradicted(
        challenger=msg.sender, epoch=report.epoch, report_hash=report_hash, kind=kind, harmed=harmed
    )
    if self._is_pending(hold.epoch, report_hash):
        extcall Oracle(oracle).revoke(report.epoch, before)
    self._pay(msg.sender)


@external
def forfeit(report_hash: bytes32, challenger: address):
    """
    @notice Ends a hold whose time has passed. The bond of a challenge that was not revealed burns. Anyone calls.
    """
    hold: Hold = self._load(report_hash, challenger)
    assert hold.kind == CHALLENGE or hold.kind == ANSWERED, "disputes: nothing to forfeit"
    assert block.timestamp > convert(hold.deadline, uint256), "disputes: too early"
    is_current: bool = self._is_current(hold.epoch, report_hash)
    if hold.kind == CHALLENGE:
        assert is_current and hold.epoch > staticcall Ledger(ledger).active_epoch(), "disputes: report is gone"
    self._clear(report_hash, challenger)
    amount: uint96 = bond if hold.kind == CHALLENGE else 0
    if amount > 0:
        log Forfeited(challenger=challenger, report_hash=report_hash, amount=amount)
    else:
        log HoldEnded(challenger=challenger, report_hash=report_hash, amount=0)
    if is_current and hold.holds:
        extcall Ledger(ledger).release(hold.epoch)
    if amount > 0:
        extcall Token(token).burn(convert(amount, uint256))


@external
def withdraw(report_hash: bytes32):
    """
    @notice Gives the caller its bond back where nothing is left to dispute: its report was revoked by someone else's
            doing, or became active in a freeze.
    """
    hold: Hold = self._load(report_hash, msg.sender)
    assert hold.kind != 0 and hold.kind != ANSWERED, "disputes: no bond"
    assert not self._is_pending(hold.epoch, report_hash), "disputes: still pending"
    self._clear(report_hash, msg.sender)
    log HoldEnded(challenger=msg.sender, report_hash=report_hash, amount=bond)
    self._pay(msg.sender)


@external
def demand(report: reports.Report, kind: uint8, position: uint64):
    """
    @notice Asks for a leaf of the accounts tree by its position, or for a verdict by its path. Positions beyond the last
            account are asked for too: they must be empty.
    """
    report_hash: bytes32 = reports._struct_hash(report)
    assert self._is_current(report.epoch, report_hash), "disputes: another report"
    assert not staticcall Ledger(ledger).frozen(), "disputes: frozen"
    assert block.timestamp < convert(self._window_end(report.epoch), uint256), "disputes: too late"
    if kind == DEMANDED_LEAF:
        assert convert(position, uint256) >> self._depth_of(report.accounts) == 0, "disputes: no such position"
    else:
        assert kind == DEMANDED_VERDICT, "disputes: unknown kind"
        assert report.verdicts_root != empty(bytes32), "disputes: no verdicts"
    assert self._load(report_hash, msg.sender).kind == 0, "disputes: one hold at a time"
    deadline: uint64 = self._count_reports() + answer_reports
    self._open(
        report_hash,
        False,
        Hold(
            kind=kind,
            holds=True,
            epoch=report.epoch,
            opened=convert(block.number, uint64),
            deadline=deadline,
            subject=convert(position, bytes32),
        ),
    )
    log Demanded(
        challenger=msg.sender,
        epoch=report.epoch,
        report_hash=report_hash,
        kind=kind,
        position=position,
        deadline=deadline,
    )


@external
def answer(report: reports.Report, challenger: address, shown: Bytes[MAX_SHOWN], backing: Bytes[MAX_EVIDENCE]):
    """
    @notice Shows what `challenger` demanded, and takes its bond. What was shown stands in the event. The report stays held
            for twice `reveal_seconds` more.
    @param shown (Leaf, proof), or a verdict's row as OpeningProof takes it. Beyond the last account the leaf counts for
           nothing: the place is empty.
    @param backing For a verdict that calls an opening good: as OpeningProof takes it; else empty.
    """
    report_hash: bytes32 = reports._struct_hash(report)
    hold: Hold = self._demand_of(report_hash, challenger)
    assert self._count_reports() < hold.deadline, "disputes: too late"
    assert self._is_pending(hold.epoch, report_hash), "disputes: not pending"
    position: uint64 = convert(hold.subject, uint64)
    if hold.kind == DEMANDED_LEAF:
        leaf: ShownLeaf = abi_decode(shown, ShownLeaf)
        self._check_leaf(report, position, position >= report.accounts, leaf.leaf, leaf.proof)
    else:
        assert staticcall OpeningProof(opening_proof).is_shown(report, position, shown, backing)

    until: uint64 = convert(block.timestamp, uint64) + reveal_seconds
    self._answered_until[report_hash] = until
    hold.kind = ANSWERED
    hold.deadline = until + reveal_seconds
    self._store(report_hash, challenger, hold)
    log Answered(
        challenger=challenger,
        epoch=hold.epoch,
        report_hash=report_hash,
        answerer=msg.sender,
        position=position,
        shown=shown,
    )
    self._pay(msg.sender)


@external
def expire(before: reports.Report, report: reports.Report, challenger: address):
    """
    @notice Revokes a report over a demand that nobody answered in time. Anyone calls; nobody is slashed.
    @param before The report of the epoch before; all zero for epoch 1.
    """
    report_hash: bytes32 = reports._struct_hash(report)
    hold: Hold = self._demand_of(report_hash, challenger)
    assert self._count_reports() >= hold.deadline, "disputes: too early"
    assert self._is_pending(hold.epoch, report_hash), "disputes: not pending"
    self._clear(report_hash, challenger)
    log Unanswered(challenger=challenger, epoch=hold.epoch, report_hash=report_hash)
    extcall Oracle(oracle).revoke(hold.epoch, before)
    self._pay(challenger)


@external
def slash(report: reports.Report, bitmap: uint256, signatures: Bytes[65 * MAX_MEMBERS]) -> uint256:
    """
    @notice Takes the bonds of members that signed a report which was proven wrong. Bit i of `bitmap` names member i of the
            report's epoch; signatures (r, s, v) stand in that order. Who was slashed for it already is passed over.
    @return Tokens taken.
    """
    report_hash: bytes32 = reports._struct_hash(report)
    proven: Proven = self._proven[report_hash]
    assert proven.challenger != empty(address), "disputes: not proven"
    digest: bytes32 = staticcall Oracle(oracle).report_digest(report)
    signers: DynArray[address, MAX_MEMBERS] = staticcall Members(members).members_at(report.epoch)
    assert bitmap >> len(signers) == 0, "disputes: unknown member"
    found: uint256 = 0
    fresh: uint256 = 0
    taken: uint256 = 0
    for i: uint256 in range(len(signers), bound=MAX_MEMBERS):
        if (bitmap >> i) & 1 == 0:
            continue
        signature: Bytes[65] = slice(signatures, 65 * found, 65)
        found += 1
        assert ecdsa._recover_sig(digest, signature) == signers[i], "disputes: wrong signature"
        if self.slashed[report_hash][signers[i]]:
            continue
        fresh += 1
        self.slashed[report_hash][signers[i]] = True
        amount: uint96 = extcall Members(members).slash(signers[i], proven.challenger, proven.harmed)
        taken += convert(amount, uint256)
        log SignerSlashed(report_hash=report_hash, member=signers[i], amount=amount)
    assert len(signatures) == 65 * found, "disputes: signatures length"
    assert fresh > 0, "disputes: nobody to slash"
    return taken


@external
@view
def hold_of(report_hash: bytes32, challenger: address) -> Hold:
    """
    @return All zero where there is none.
    """
    return self._load(report_hash, challenger)


@external
@view
def proven(report_hash: bytes32) -> Proven:
    """
    @return Who proved this report wrong, and the account that it wronged; zero where there is none.
    """
    return self._proven[report_hash]


@external
@view
def report_count() -> uint64:
    """
    @return What demands' deadlines are counted in: reports ever accepted and, in a freeze, nominal lengths. Never falls.
    """
    return self._count_reports()


@internal
def _open(report_hash: bytes32, is_held: bool, hold: Hold):
    """
    @param is_held Whether the Ledger holds the report already, for what this hold replaces.
    """
    self._store(report_hash, msg.sender, hold)
    if hold.holds and not is_held:
        extcall Ledger(ledger).hold(hold.epoch)
    elif is_held and not hold.holds:
        extcall Ledger(ledger).release(hold.epoch)
    assert extcall Token(token).transferFrom(msg.sender, self, convert(bond, uint256))


@internal
@view
def _load(report_hash: bytes32, challenger: address) -> Hold:
    stored: PackedHold = self._holds[report_hash][challenger]
    return Hold(
        kind=convert(stored.packed & 255, uint8),
        holds=(stored.packed >> 8) & 1 == 1,
        epoch=convert((stored.packed >> 16) & _MASK_64, uint64),
        opened=convert((stored.packed >> 80) & _MASK_64, uint64),
        deadline=convert(stored.packed >> 144, uint64),
        subject=stored.subject,
    )


@internal
def _store(report_hash: bytes32, challenger: address, hold: Hold):
    packed: uint256 = convert(hold.kind, uint256) | (convert(hold.holds, uint256) << 8)
    packed |= (convert(hold.epoch, uint256) << 16) | (convert(hold.opened, uint256) << 80)
    packed |= convert(hold.deadline, uint256) << 144
    self._holds[report_hash][challenger] = PackedHold(packed=packed, subject=hold.subject)


@internal
def _clear(report_hash: bytes32, challenger: address):
    self._holds[report_hash][challenger] = empty(PackedHold)


@internal
def _pay(to: address):
    assert extcall Token(token).transfer(to, convert(bond, uint256))


@internal
@view
def _demand_of(report_hash: bytes32, challenger: address) -> Hold:
    hold: Hold = self._load(report_hash, challenger)
    assert hold.kind == DEMANDED_LEAF or hold.kind == DEMANDED_VERDICT, "disputes: no demand"
    return hold


@internal
@view
def _is_current(epoch: uint64, report_hash: bytes32) -> bool:
    return report_hash != empty(bytes32) and staticcall Oracle(oracle).report_hash(epoch) == report_hash


@internal
@view
def _is_pending(epoch: uint64, report_hash: bytes32) -> bool:
    return self._is_current(epoch, report_hash) and epoch > staticcall Ledger(ledger).active_epoch()


@internal
@view
def _window_end(epoch: uint64) -> uint64:
    due: uint64 = (staticcall Ledger(ledger).pending(epoch)).activates_at
    assert due > 0, "disputes: not pending"
    return max(due, staticcall Ledger(ledger).paused_until())


@internal
@view
def _count_reports() -> uint64:
    frozen_lengths: uint64 = staticcall Ledger(ledger).nominal_epoch() - staticcall Ledger(ledger).active_epoch()
    # Those taken back were accepted too: else signers who have a later report revoked put off a demand's end.
    accepted: uint64 = staticcall Ledger(ledger).posted_epoch() + staticcall Oracle(oracle).revoked_reports()
    return accepted + frozen_lengths


@internal
@view
def _prove(
    before: reports.Report, report: reports.Report, kind: uint8, evidence: Bytes[MAX_EVIDENCE]
) -> address:
    """
    @return The account that is wronged; zero for nobody in particular. Reverts where nothing is proven.
    """
    if kind == COUNT:
        self._check_before(before, report)
        assert len(evidence) == 0, "disputes: evidence"
        assert report.accounts < before.accounts, "disputes: no contradiction"
        return empty(address)
    if kind == SHRANK:
        self._check_before(before, report)
        return self._prove_shrunk(before, report, abi_decode(evidence, Shrunk))
    if kind == NODE:
        self._prove_node(report, abi_decode(evidence, WrongNode))
        return empty(address)
    if kind == LEAF:
        self._prove_leaf(report, abi_decode(evidence, WrongLeaf))
        return empty(address)
    assert kind == OPENING, "disputes: unknown kind"
    node: address = staticcall OpeningProof(opening_proof).contradiction(report, evidence)
    return staticcall Registry(registry).operator_of(node)


@internal
@pure
def _check_before(before: reports.Report, report: reports.Report):
    assert reports._struct_hash(before) == report.previous, "disputes: not the report before"


@internal
@pure
def _prove_shrunk(before: reports.Report, report: reports.Report, shown: Shrunk) -> address:
    self._check_leaf(before, shown.index, False, shown.old, shown.old_proof)
    self._check_leaf(report, shown.index, shown.is_absent, shown.new, shown.new_proof)
    is_same: bool = shown.new.account == shown.old.account and not shown.is_absent
    assert (
        not is_same
        or shown.new.tokens_earned < shown.old.tokens_earned
        or shown.new.credits_earned < shown.old.credits_earned
        or shown.new.credits_spent < shown.old.credits_spent
    ), "disputes: no contradiction"
    return shown.old.account


@internal
@pure
def _prove_node(report: reports.Report, shown: WrongNode):
    stated: accounts_tree.Sums = self._sums(shown.tokens_earned, shown.credits_earned, shown.credits_spent)
    node: uint256 = accounts_tree._node_hash(shown.left, shown.right)
    self._check_root(report, node, stated, shown.position, shown.proof)
    ignored: uint256 = 0
    left: accounts_tree.Sums = empty(accounts_tree.Sums)
    right: accounts_tree.Sums = empty(accounts_tree.Sums)
    ignored, left = accounts_tree._unpack(shown.left)
    ignored, right = accounts_tree._unpack(shown.right)
    depth: uint256 = len(shown.proof) // accounts_tree.NODE_BYTES
    assert (
        stated.tokens_earned != left.tokens_earned + right.tokens_earned
        or stated.credits_earned != left.credits_earned + right.credits_earned
        or stated.credits_spent != left.credits_spent + right.credits_spent
        or depth >= self._depth_of(report.accounts)
    ), "disputes: no contradiction"


@internal
@pure
def _prove_leaf(report: reports.Report, shown: WrongLeaf):
    stated: accounts_tree.Sums = self._sums(shown.tokens_earned, shown.credits_earned, shown.credits_spent)
    leaf: accounts_tree.Sums = self._leaf_sums(shown.leaf)
    node: uint256 = accounts_tree._leaf_hash(shown.index, shown.leaf.account, leaf)
    self._check_root(report, node, stated, shown.position, shown.proof)
    depth: uint256 = len(shown.proof) // accounts_tree.NODE_BYTES
    assert (
        stated.tokens_earned != leaf.tokens_earned
        or stated.credits_earned != leaf.credits_earned
        or stated.credits_spent != leaf.credits_spent
        or shown.index != shown.position
        or shown.position >= report.accounts
        or depth != self._depth_of(report.accounts)
    ), "disputes: no contradiction"


@internal
@pure
def _check_leaf(report: reports.Report, index: uint64, is_absent: bool, leaf: Leaf, proof: Bytes[MAX_PROOF]):
    """
    The leaf, or the empty node, stands at `index` of the report's tree, at its full depth.
    """
    depth: uint256 = self._depth_of(report.accounts)
    assert len(proof) == depth * accounts_tree.NODE_BYTES, "disputes: proof length"
    if is_absent:
        self._check_root(report, 0, empty(accounts_tree.Sums), index, proof)
    else:
        sums: accounts_tree.Sums = self._leaf_sums(leaf)
        self._check_root(report, accounts_tree._leaf_hash(index, leaf.account, sums), sums, index, proof)


@internal
@pure
def _check_root(
    report: reports.Report, node: uint256, sums: accounts_tree.Sums, index: uint64, proof: Bytes[MAX_PROOF]
):
    root: bytes32 = empty(bytes32)
    total: accounts_tree.Sums = empty(accounts_tree.Sums)
    root, total = accounts_tree._climb(node, sums, index, proof)
    assert (
        root == report.accounts_root
        and total.tokens_earned == convert(report.tokens_earned, uint256)
        and total.credits_earned == convert(report.credits_earned, uint256)
        and total.credits_spent == convert(report.credits_spent, uint256)
    ), "disputes: wrong proof"


@internal
@pure
def _sums(tokens_earned: uint96, credits_earned: uint96, credits_spent: uint96) -> accounts_tree.Sums:
    return accounts_tree.Sums(
        tokens_earned=convert(tokens_earned, uint256),
        credits_earned=convert(credits_earned, uint256),
        credits_spent=convert(credits_spent, uint256),
    )


@internal
@pure
def _leaf_sums(leaf: Leaf) -> accounts_tree.Sums:
    return self._sums(leaf.tokens_earned, leaf.credits_earned, leaf.credits_spent)


@internal
@pure
def _depth_of(accounts: uint64) -> uint256:
    """
    Levels above the leaves: ceil(log2(accounts)), and none for one account or fewer.
    """
    depth: uint256 = 0
    for level: uint256 in range(64):
        if accounts <= 1 or convert(accounts - 1, uint256) >> level == 0:
            break
        depth += 1
    return depth
