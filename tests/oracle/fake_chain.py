"""A chain in memory: blocks by the clock, finality by depth, and an Oracle that takes the first good report."""

from __future__ import annotations

from freehold.oracle.chain_view import (
    Accepted,
    AcceptedEpoch,
    Bonded,
    Bought,
    ChainRecord,
    ChainView,
    FinalBlock,
    Registered,
    Start,
)
from freehold.protocol.beacon import Block
from freehold.protocol.bundle import check_report_signatures
from freehold.protocol.errors import FreeholdError
from freehold.protocol.messages import Report
from freehold.protocol.parameters import Parameters
from freehold.protocol.typed import Domain, keccak
from freehold.protocol.units import ONE, Address, Hash

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
    lapse_grace=2,
    lock_release=2,
    segment_size=1 << 20,
    dispute_window=10,
    thaw_epochs=2,
    max_price_age=3600,
    initial_price=ONE,
    bundle_epochs=8,
)
START = Start(Block(0, keccak(b"block 0"), 1_000), PARAMETERS)
FINALITY = 1


class FakeChain:
    """`mine` closes a block. `final` are the blocks that members may see."""

    def __init__(self, members: tuple[Address, ...], domain: Domain) -> None:
        self.members, self.domain = members, domain
        self.view = ChainView(START)
        self.blocks: list[FinalBlock] = []
        self.accepted: list[AcceptedEpoch] = []
        self.shows_signatures = True
        self._waiting: list[tuple[Report, int, bytes]] = []
        self._records: list[ChainRecord] = []
        self._last: Hash = PARAMETERS.hash()
        self._epoch = 0

    @property
    def final(self) -> list[FinalBlock]:
        return self.blocks[: max(0, len(self.blocks) - FINALITY)]

    def register(self, operator: Address, node: Address, bond: int) -> None:
        self._records += [Registered(operator, node, "http://node", operator), Bonded(operator, node, bond)]

    def buy(self, client: Address, paid_in: int) -> None:
        self._records.append(Bought(client, paid_in, paid_in))

    def submit(self, report: Report, signers: int, signatures: bytes) -> None:
        self._waiting.append((report, signers, signatures))

    def mine(self) -> None:
        number = len(self.blocks) + 1
        block = Block(number, keccak(f"block {number}".encode()), START.block.time + number)
        records, self._records = self._records, []
        for report, signers, signatures in self._waiting:
            if self._is_good(report, signers, signatures):
                self._last, self._epoch = report.struct_hash(), report.epoch
                records.append(Accepted(report, signers, signatures if self.shows_signatures else b""))
        self._waiting.clear()
        final = FinalBlock(block, tuple(records))
        self.blocks.append(final)
        epoch = self.view.process_block(final)
        if epoch is not None:
            self.accepted.append(epoch)

    def _is_good(self, report: Report, signers: int, signatures: bytes) -> bool:
        if report.epoch != self._epoch + 1 or report.previous != self._last or report.price == 0:
            return False
        try:
            check_report_signatures(report, signers, signatures, self.members, self.domain)
        except FreeholdError:
            return False
        return True
