# pragma version 0.4.3
# pragma nonreentrancy on
# SPDX-License-Identifier: AGPL-3.0-only
"""
@title The members' quorum
@license GNU Affero General Public License v3.0 only
@notice Accepts one report an epoch, in strict order, each naming the one before, under exactly `quorum()` signatures:
        with n >= 3f+1 members any two quorums share an honest one. Keeps the prices that Credits sells at.
        Members and parameters never change here; a change is a new deployment.
"""

from modules import reports
from snekmate.utils import ecdsa
from snekmate.utils import eip712_domain_separator

initializes: eip712_domain_separator
exports: eip712_domain_separator.eip712Domain

MAX_MEMBERS: constant(uint256) = 31
# Selector, report (20 words), bitmap, and the offset and length of the signatures.
HEAD_BYTES: constant(uint256) = 4 + 32 * 23


interface Ledger:
    def post(report: reports.Report): nonpayable


event Deployed:
    parameters: Bytes[4096]


event ReportAccepted:
    epoch: indexed(uint64)
    report_hash: indexed(bytes32)
    report: reports.Report
    bitmap: uint256


event EquivocationRecorded:
    member: indexed(address)
    epoch: indexed(uint64)
    attempt: uint32
    view_: uint32
    report_a: bytes32
    report_b: bytes32


ledger: public(immutable(address))
parameters_hash: public(immutable(bytes32))
MEMBERS: immutable(DynArray[address, MAX_MEMBERS])

last_report_hash: public(bytes32)
# latest price (96 bits) | previous price (96) | time of the last acceptance (64), high to low
_prices: uint256
_equivocations: HashMap[bytes32, bool]

_MASK_96: constant(uint256) = 2**96 - 1
_MASK_64: constant(uint256) = 2**64 - 1


@deploy
def __init__(
    members_: DynArray[address, MAX_MEMBERS], ledger_: address, parameters: Bytes[4096], initial_price: uint96
):
    """
    @param members_ Distinct signing addresses; a report's bitmap and a leader's turn go by their order.
    @param parameters The network's parameters as canonical JSON; every report names their hash.
    @param initial_price USD (1e18) a token until the first report.
    """
    assert len(members_) > 0, "oracle: no members"
    assert len(parameters) > 0, "oracle: no parameters"
    assert initial_price > 0, "oracle: no price"
    for i: uint256 in range(len(members_), bound=MAX_MEMBERS):
        assert members_[i] != empty(address), "oracle: zero member"
        for j: uint256 in range(i, bound=MAX_MEMBERS):
            assert members_[j] != members_[i], "oracle: member twice"
    eip712_domain_separator.__init__("Freehold", "1")
    ledger = ledger_
    MEMBERS = members_
    parameters_hash = keccak256(parameters)
    # The chain of reports starts at what they are reports about.
    self.last_report_hash = keccak256(parameters)
    self._save_price(convert(initial_price, uint256), convert(initial_price, uint256))
    log Deployed(parameters=parameters)


@external
def submit(report: reports.Report, bitmap: uint256, signatures: Bytes[65 * MAX_MEMBERS]):
    """
    @notice Anyone submits. Bit i of `bitmap` says that `members(i)` signed; signatures (r, s, v) stand in that order.
            The calldata has exactly one length: nothing is padded.
    """
    quorum: uint256 = self._quorum()
    assert len(signatures) == 65 * quorum, "oracle: signatures length"
    assert len(msg.data) == HEAD_BYTES + (65 * quorum + 31) // 32 * 32, "oracle: calldata length"
    assert report.attempt == 0, "oracle: attempt"
    assert report.parameters == parameters_hash, "oracle: parameters"
    assert report.previous == self.last_report_hash, "oracle: previous"
    assert report.price > 0, "oracle: no price"
    report_hash: bytes32 = reports._struct_hash(report)
    self._check_signatures(eip712_domain_separator._hash_typed_data_v4(report_hash), bitmap, signatures, quorum)

    self.last_report_hash = report_hash
    self._save_price(convert(report.price, uint256), self._prices >> 160)
    log ReportAccepted(epoch=report.epoch, report_hash=report_hash, report=report, bitmap=bitmap)
    extcall Ledger(ledger).post(report)


@external
def record_equivocation(
    report_a: reports.Report, signature_a: Bytes[65], report_b: reports.Report, signature_b: Bytes[65]
):
    """
    @notice Anyone shows that one member signed two reports for one (epoch, attempt, view). Recorded once; it slashes
            nothing and revokes nothing by itself.
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
    assert member in MEMBERS, "oracle: not a member"
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


@external
@view
def members() -> DynArray[address, MAX_MEMBERS]:
    return MEMBERS


@external
@view
def quorum() -> uint256:
    """
    @return floor((n + f) / 2) + 1 of n members, where f = floor((n - 1) / 3) may be faulty.
    """
    return self._quorum()


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
@view
def _quorum() -> uint256:
    count: uint256 = len(MEMBERS)
    return (count + (count - 1) // 3) // 2 + 1


@internal
@view
def _check_signatures(digest: bytes32, bitmap: uint256, signatures: Bytes[65 * MAX_MEMBERS], quorum: uint256):
    assert bitmap >> len(MEMBERS) == 0, "oracle: unknown member"
    found: uint256 = 0
    for i: uint256 in range(len(MEMBERS), bound=MAX_MEMBERS):
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
        assert signer == MEMBERS[i], "oracle: wrong signature"
        found += 1
    assert found == quorum, "oracle: too few signers"


@internal
def _save_price(latest: uint256, previous: uint256):
    self._prices = (latest << 160) | (previous << 64) | block.timestamp


@internal
@pure
def _equivocation_key(member: address, epoch: uint64, attempt: uint32, view_: uint32) -> bytes32:
    return keccak256(abi_encode(member, epoch, attempt, view_))
