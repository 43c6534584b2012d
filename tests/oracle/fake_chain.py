"""A chain in memory: blocks by the clock, finality by depth, and an Oracle that takes the first good report.

It also does what more than f members, a governor and a challenger can bring about: take a wrong report, revoke, freeze
and resume, replace the members, change the parameters.
"""

from __future__ import annotations

from collections.abc import Callable

from freehold.oracle.chain_records import (
    Accepted,
    Activated,
    Bonded,
    Bought,
    ChainRecord,
    FinalBlock,
    Frozen,
    MembersScheduled,
    ParametersScheduled,
    Registered,
    Resumed,
    Revoked,
)
from freehold.oracle.chain_view import AcceptedEpoch, ChainView, Start
from freehold.protocol.beacon import Block
from freehold.protocol.bundle import check_report_signatures
from freehold.protocol.errors import FreeholdError
from freehold.protocol.keys import Key
from freehold.protocol.messages import Report
from freehold.protocol.parameters import Parameters
from freehold.protocol.typed import Domain, keccak
from freehold.protocol.units import ONE, Address

KEYS = [Key(keccak(f"member {i}".encode())) for i in range(7)]
MEMBERS = tuple(key.address for key in KEYS[:4])
PARAMETERS = Parameters(
    epoch_length=3,
    answering_window=1,
    finality_depth=1,
    challenges=1,
    tau=100_000,
    beta=500_000,
    initial_subsidy=1000 * ONE,
    halving_epochs=100,
    minimum_bond=ONE,
    wrong_result_slash=ONE // 10,
    lapse_grace=2,
    lock_release=2,
    segment_size=1 << 20,
    dispute_window=10,
    thaw_epochs=2,
    max_price_age=3600,
    initial_price=ONE,
    member_share=50_000,
    coverage_share=0,
    device_bond=10**15,
    freeze_lengths=5,
    answer_reports=2,
    claim_epochs=4,
    bundle_epochs=8,
)
START = Start(Block(0, keccak(b"block 0"), 1_000), PARAMETERS, MEMBERS)
FINALITY = 1


class FakeChain:
    """`mine` closes a block. `final` are the blocks that members may see; `accepted` the epochs that stand."""

    def __init__(self, domain: Domain, start: Start = START) -> None:
        self.domain = domain
        self.view = ChainView(start)
        self.blocks: list[FinalBlock] = []
        self.accepted: list[AcceptedEpoch] = []
        self.revoked: list[Revoked] = []
        self.shows_signatures = True
        self.corrupt: Callable[[Report], Report | None] = lambda _: None  # what a dishonest quorum has taken instead
        self._waiting: list[tuple[Report, int, bytes]] = []
        self._records: list[ChainRecord] = []
        self._due: list[tuple[int, int]] = []  # (time, epoch) of what becomes active

    @property
    def final(self) -> list[FinalBlock]:
        return self.blocks[: max(0, len(self.blocks) - FINALITY)]

    @property
    def pending(self) -> list[int]:
        """The epochs that may be revoked."""
        return list(range(self.view.active + 1, self.view.epoch))

    def register(self, operator: Address, node: Address, bond: int) -> None:
        self._records += [Registered(operator, node, "http://node", operator), Bonded(operator, node, bond)]

    def buy(self, client: Address, paid_in: int) -> None:
        self._records.append(Bought(client, paid_in, paid_in))

    def schedule_members(self, from_epoch: int, members: tuple[Address, ...]) -> None:
        self._records.append(MembersScheduled(from_epoch, members))

    def schedule_parameters(self, from_epoch: int, parameters: Parameters) -> None:
        self._records.append(ParametersScheduled(from_epoch, parameters))

    def freeze(self) -> None:
        """No report is taken before `resume`."""
        self._records.append(Frozen(START.block.time + len(self.blocks)))

    def resume(self) -> None:
        self._records.append(Resumed(self.view.epoch, self.view.attempt + 1))

    def revoke(self, epoch: int) -> None:
        """A pending epoch and all after it, in the next block; nothing if it is not pending any more."""
        if epoch in self.pending and not any(isinstance(record, Revoked) for record in self._records):
            posted = sum(isinstance(record, Accepted) for record in self._records)
            revoked = Revoked(epoch, self.view.epoch - 1 + posted, self.view.attempt_of(epoch) + 1)
            self._records.append(revoked)
            self.revoked.append(revoked)
            self._due = [(time, due) for time, due in self._due if due < epoch]

    def submit(self, report: Report, signers: int, signatures: bytes) -> None:
        self._waiting.append((report, signers, signatures))

    def post(self, report: Report) -> None:
        """In the next block, a dishonest quorum's report, whatever it is about."""
        self._records.append(Accepted(report, *self.sign(report)))

    def mine(self) -> None:
        number = len(self.blocks) + 1
        block = Block(number, keccak(f"block {number}".encode()), START.block.time + number)
        records, self._records = self._records, []
        if not any(isinstance(record, Revoked | Resumed) for record in records):
            records += self._take(block.time)
        self._waiting.clear()
        for time, epoch in list(self._due):
            if block.time >= time and not any(isinstance(record, Revoked) for record in records):
                self._due.remove((time, epoch))
                records.append(Activated(epoch))
        final = FinalBlock(block, tuple(records))
        self.blocks.append(final)
        for happened in self.view.process_block(final):
            if isinstance(happened, AcceptedEpoch):
                self.accepted.append(happened)
            elif isinstance(happened, Revoked):
                del self.accepted[happened.epoch - 1 :]

    def _take(self, time: int) -> list[ChainRecord]:
        for report, signers, signatures in self._waiting:
            if self._is_good(report, signers, signatures):
                self._due.append((time + self.view.parameters.dispute_window, report.epoch))
                wrong = self.corrupt(report)
                if wrong is not None:
                    return [Accepted(wrong, *self.sign(wrong))]
                return [Accepted(report, signers, signatures if self.shows_signatures else b"")]
        return []

    def sign(self, report: Report) -> tuple[int, bytes]:
        """A dishonest quorum's signatures: those of all members."""
        members = self.view.members_of(report.epoch)
        keys = {key.address: key for key in KEYS}
        return (1 << len(members)) - 1, b"".join(keys[member].sign(report, self.domain) for member in members)

    def _is_good(self, report: Report, signers: int, signatures: bytes) -> bool:
        view = self.view
        if (report.epoch, report.attempt, report.previous) != (view.epoch, view.attempt, view.previous):
            return False
        if report.price == 0 or report.parameters != view.parameters.hash() or view.frozen_at is not None:
            return False
        try:
            check_report_signatures(report, signers, signatures, view.members_of(report.epoch), self.domain)
        except FreeholdError:
            return False
        return True
