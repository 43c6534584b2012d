# pragma version 0.4.3
# pragma nonreentrancy on
# SPDX-License-Identifier: AGPL-3.0-only
"""
@title The members' quorum
@license GNU Affero General Public License v3.0 only
@notice Accepts one report an epoch, in strict order, each naming the one before, under exactly a quorum's signatures:
        with n >= 3f+1 members any two quorums share an honest one. Keeps the prices that Credits sells at. Reports that
        are not active yet can be revoked by Disputes; their epochs then settle again, as the next attempt.
        Invariants: one live report an epoch, strictly ordered; a signed report counts for one attempt only; the
        parameters of an epoch that has an anchor never change.
"""

from modules import reports
from modules import timeline
from snekmate.utils import ecdsa
from snekmate.utils import eip712_domain_separator

initializes: eip712_domain_separator
initializes: timeline
exports: eip712_domain_separator.eip712Domain

MAX_MEMBERS: constant(uint256) = 31
# Selector, report (21 words), bitmap, and the offset and length of the signatures.
HEAD_BYTES: constant(uint256) = 4 + 32 * 24
# As many as the Ledger has pending at most, and the active one.
RING: constant(uint64) = 64


interface Ledger:
    def post(report: reports.Report) -> bool: nonpayable
    def revoke(
        epoch: uint64, tokens_earned: uint96, credits_earned: uint96, credits_spent: uint96, collected: bytes32
    ) -> uint64: nonpayable
    def posted_epoch() -> uint64: view


interface Members:
    def members_at(epoch: uint64) -> DynArray[address, MAX_MEMBERS]: view
    def slash(member: address, challenger: address, harmed: address) -> uint96: nonpayable


event Deployed:
    parameters: Bytes[4096]


event ReportAccepted:
    epoch: indexed(uint64)
    report_hash: indexed(bytes32)
    report: reports.Report
    bitmap: uint256


event ParametersScheduled:
    from_epoch: indexed(uint64)
    parameters: Bytes[4096]


event Revoked:
    epoch: indexed(uint64)
    last: uint64
    attempt: uint32


event Resumed:
    epoch: indexed(uint64)
    attempt: uint32


event EquivocationRecorded:
    member: indexed(address)
    epoch: indexed(uint64)
    attempt: uint32
    view_: uint32
    report_a: bytes32
    report_b: bytes32


ledger: public(immutable(address))
members: public(immutable(address))
disputes: public(immutable(address))
governor: public(immutable(address))
notice_epochs: public(immutable(uint64))
initial_price: public(immutable(uint96))

# How often an epoch's settlement was begun again: what its next report must name.
attempt_of: public(HashMap[uint64, uint32])
# By epoch modulo RING: struct hashes of reports; of epoch 0: the hash of the first parameters.
_hashes: bytes32[RING]
# latest price (96 bits) | previous price (96) | time of the last acceptance (64), high to low
_prices: uint256
# Hashes of the parameters, by the timeline's index.
_parameters: HashMap[uint256, bytes32]
# The last epoch that was ever taken back.
_highest_revoked: uint64
# Reports taken back in all.
revoked_reports: public(uint64)
_equivocations: HashMap[bytes32, bool]

_MASK_96: constant(uint256) = 2**96 - 1
_MASK_64: constant(uint256) = 2**64 - 1


@deploy
def __init__(
    ledger_: address,
    members_: address,
    disputes_: address,
    governor_: address,
    parameters: Bytes[4096],
    initial_price_: uint96,
    notice_epochs_: uint64,
):
    """
    @param governor_ The only address that schedules parameters.
    @param parameters The network's parameters as canonical JSON; every report names the hash of its epoch's.
    @param initial_price_ USD (1e18) a token until the first report.
    @param notice_epochs_ Epochs between the one that is open when parameters are scheduled and their first.
    """
    assert len(parameters) > 0, "oracle: no parameters"
    assert initial_price_ > 0, "oracle: no price"
    assert notice_epochs_ > 0, "oracle: no notice"
    eip712_domain_separator.__init__("Freehold", "1")
    timeline.__init__()
    ledger = ledger_
    members = members_
    disputes = disputes_
    governor = governor_
    notice_epochs = notice_epochs_
    initial_price = initial_price_
    self._parameters[0] = keccak256(parameters)
    # The chain of reports starts at what they are reports about.
    self._hashes[0] = keccak256(parameters)
    self._save_prices(initial_price_, initial_price_, convert(block.timestamp, uint64))
    log Deployed(parameters=parameters)


@external
def submit(report: reports.Report, bitmap: uint256, signatures: Bytes[65 * MAX_MEMBERS]):
    """
    @notice Anyone submits. Bit i of `bitmap` says that member i of the epoch signed; signatures (r, s, v) stand in that
            order. The calldata has exactly one length: nothing is padded. A report that ends a freeze without counting
            what was collected is not taken: it shows that the quorum is back, and its epoch settles again.
            Only an account without code calls, and calls directly: so the signatures stand in the transaction's own
            calldata, where members and watchers read them. An account that delegates its code could hide them too.
    """
    assert msg.sender == tx.origin and msg.sender.codesize == 0, "oracle: not direct"
    signers: DynArray[address, MAX_MEMBERS] = staticcall Members(members).members_at(report.epoch)
    quorum: uint256 = self._quorum(len(signers))
    assert len(signatures) == 65 * quorum, "oracle: signatures length"
    assert len(msg.data) == HEAD_BYTES + (65 * quorum + 31) // 32 * 32, "oracle: calldata length"
    attempt: uint32 = self.attempt_of[report.epoch]
    assert report.attempt == attempt, "oracle: attempt"
    assert report.parameters == self._parameters[timeline._index_at(report.epoch)], "oracle: parameters"
    assert report.previous == self._hashes[unsafe_sub(report.epoch, 1) % RING], "oracle: previous"
    assert report.price > 0, "oracle: no price"
    report_hash: bytes32 = reports._struct_hash(report)
    self._check_signatures(
        eip712_domain_separator._hash_typed_data_v4(report_hash), bitmap, signatures, signers, quorum
    )

    # The Ledger checks that this is the epoch after the last one posted.
    if extcall Ledger(ledger).post(report):
        self._hashes[report.epoch % RING] = report_hash
        latest: uint96 = convert(self._prices >> 160, uint96)
        self._save_prices(report.price, latest, convert(block.timestamp, uint64))
        log ReportAccepted(epoch=report.epoch, report_hash=report_hash, report=report, bitmap=bitmap)
    else:
        self.attempt_of[report.epoch] = attempt + 1
        log Resumed(epoch=report.epoch, attempt=attempt + 1)


@external
def revoke(epoch: uint64, before: reports.Report):
    """
    @notice Only Disputes: takes back the pending report of `epoch`, and every one after it. Prices of reports taken back
            count for nothing.
    @param before The report of `epoch - 1`; the empty one where `epoch` is the first.
    """
    assert msg.sender == disputes, "oracle: only disputes"
    last: uint64 = staticcall Ledger(ledger).posted_epoch()
    assert epoch > 0, "oracle: epoch"
    price: uint96 = initial_price
    if epoch == 1:
        assert reports._struct_hash(before) == reports._struct_hash(empty(reports.Report)), "oracle: before"
    else:
        assert reports._struct_hash(before) == self._hashes[(epoch - 1) % RING], "oracle: before"
        price = before.price
    since: uint64 = extcall Ledger(ledger).revoke(
        epoch, before.tokens_earned, before.credits_earned, before.credits_spent, before.collected
    )
    for i: uint64 in range(RING):
        if epoch + i > last:
            break
        self.attempt_of[epoch + i] += 1
    self._highest_revoked = max(self._highest_revoked, last)
    self.revoked_reports += last - epoch + 1
    self._save_prices(price, price, since)
    log Revoked(epoch=epoch, last=last, attempt=self.attempt_of[epoch])


@external
def schedule_parameters(parameters: Bytes[4096], from_epoch: uint64):
    """
    @notice The parameters from `from_epoch` on, as canonical JSON. Those scheduled for the same epoch are replaced.
    """
    assert msg.sender == governor, "oracle: only governor"
    assert len(parameters) > 0, "oracle: no parameters"
    index: uint256 = timeline._schedule(from_epoch, self._highest_epoch() + 1 + notice_epochs)
    self._parameters[index] = keccak256(parameters)
    log ParametersScheduled(from_epoch=from_epoch, parameters=parameters)


@external
def record_equivocation(
    report_a: reports.Report, signature_a: Bytes[65], report_b: reports.Report, signature_b: Bytes[65]
):
    """
    @notice Anyone shows that one member signed two reports for one (epoch, attempt, view). Recorded once; the member
            loses its bond, all of it burned, and nothing is revoked. Nobody is paid: a member about to be slashed would
            accuse itself and keep a fifth.
    """
    assert report_a.epoch == report_b.epoch, "oracle: epochs differ"
    assert report_a.attempt == report_b.attempt, "oracle: attempts differ"
    assert report_a.view_ == report_b.view_, "oracle: views differ"
    hash_a: bytes32 = reports._struct_hash(report_a)
    hash_b: bytes32 = reports._struct_hash(report_b)
    assert hash_a != hash_b, "oracle: same report"
    assert len(signature_a) == 65 and len(signature_b) == 65, "oracle: signature length"
    member: address = ecdsa._recover_sig(eip712_domain_separator._hash_typed_data_v4(hash_a), signature_a)
    other: address = ecdsa._recover_sig(eip712_domain_separator._hash_typed_data_v4(hash_b), signature_b)
    assert member == other, "oracle: two signers"
    assert member in staticcall Members(members).members_at(report_a.epoch), "oracle: not a member"
    key: bytes32 = self._equivocation_key(member, report_a.epoch, report_a.attempt, report_a.view_)
    assert not self._equivocations[key], "oracle: recorded"

    self._equivocations[key] = True
    log EquivocationRecorded(
        member=member,
        epoch=report_a.epoch,
        attempt=report_a.attempt,
        view_=report_a.view_,
        report_a=hash_a,
        report_b=hash_b,
    )
    extcall Members(members).slash(member, empty(address), empty(address))


@external
@view
def quorum(epoch: uint64) -> uint256:
    """
    @return floor((n + f) / 2) + 1 of the n members of `epoch`, where f = floor((n - 1) / 3) may be faulty.
    """
    return self._quorum(len(staticcall Members(members).members_at(epoch)))


@external
@view
def parameters_at(epoch: uint64) -> bytes32:
    """
    @return The hash of the parameters of `epoch`, as scheduled so far.
    """
    return self._parameters[timeline._index_at(epoch)]


@external
@view
def report_hash(epoch: uint64) -> bytes32:
    """
    @return The struct hash of a live report, of the last 64; zero for any other epoch.
    """
    posted: uint64 = staticcall Ledger(ledger).posted_epoch()
    if epoch == 0 or epoch > posted or posted - epoch >= RING:
        return empty(bytes32)
    return self._hashes[epoch % RING]


@external
@view
def last_report_hash() -> bytes32:
    """
    @return What the next report names as the one before: the first parameters' hash until there is one.
    """
    posted: uint64 = staticcall Ledger(ledger).posted_epoch()
    return self._hashes[posted % RING]


@external
@view
def highest_epoch() -> uint64:
    """
    @return The last epoch that ever had a report, revoked or not.
    """
    return self._highest_epoch()


@external
@view
def prices() -> (uint96, uint96, uint64):
    """
    @return The prices of the last two accepted reports (newer first), and when the last one was accepted.
    """
    packed: uint256 = self._prices
    return (
        convert(packed >> 160, uint96),
        convert((packed >> 64) & _MASK_96, uint96),
        convert(packed & _MASK_64, uint64),
    )


@external
@view
def report_digest(report: reports.Report) -> bytes32:
    """
    @return What members sign: the EIP-712 digest.
    """
    return eip712_domain_separator._hash_typed_data_v4(reports._struct_hash(report))


@external
@view
def equivocated(member: address, epoch: uint64, attempt: uint32, view_: uint32) -> bool:
    return self._equivocations[self._equivocation_key(member, epoch, attempt, view_)]


@internal
@pure
def _quorum(count: uint256) -> uint256:
    return (count + (count - 1) // 3) // 2 + 1


@internal
@view
def _highest_epoch() -> uint64:
    return max(staticcall Ledger(ledger).posted_epoch(), self._highest_revoked)


@internal
@pure
def _check_signatures(
    digest: bytes32,
    bitmap: uint256,
    signatures: Bytes[65 * MAX_MEMBERS],
    signers: DynArray[address, MAX_MEMBERS],
    quorum: uint256,
):
    assert bitmap >> len(signers) == 0, "oracle: unknown member"
    found: uint256 = 0
    for i: uint256 in range(len(signers), bound=MAX_MEMBERS):
        if (bitmap >> i) & 1 == 0:
            continue
        assert found < quorum, "oracle: too many signers"
        offset: uint256 = 65 * found
        signer: address = ecdsa._recover_vrs(
            digest,
            convert(slice(signatures, offset + 64, 1), uint256),
            extract32(signatures, offset, output_type=uint256),
            extract32(signatures, offset + 32, output_type=uint256),
        )
        assert signer == signers[i], "oracle: wrong signature"
        found += 1
    assert found == quorum, "oracle: too few signers"


@internal
def _save_prices(latest: uint96, previous: uint96, accepted_at: uint64):
    self._prices = (
        (convert(latest, uint256) << 160) | (convert(previous, uint256) << 64) | convert(accepted_at, uint256)
    )


@internal
@pure
def _equivocation_key(member: address, epoch: uint64, attempt: uint32, view_: uint32) -> bytes32:
    return keccak256(abi_encode(member, epoch, attempt, view_))
