"""A network's parameters: read at an epoch's anchor and nowhere else, and named by hash in every report."""

from __future__ import annotations

from freehold.protocol.errors import InvalidInput
from freehold.protocol.typed import Message, keccak
from freehold.protocol.units import Amount, Hash, Uint32, Uint64

MILLION = 1_000_000
POSITIVE = (
    *("epoch_length", "challenges", "halving_epochs", "segment_size", "initial_price"),
    *("freeze_lengths", "answer_reports", "claim_epochs"),
)


class Parameters(Message, frozen=True):
    """What the deployment fixes. Times are seconds of chain time, fractions are parts per million."""

    epoch_length: Uint32
    answering_window: Uint32  # from a report's acceptance, in which nodes answer the beacon's challenges
    finality_depth: Uint32  # blocks below the head that count as final
    challenges: Uint32  # openings a node owes an epoch, whatever it holds
    tau: Uint32  # of every credit spent, the fraction that burns for good
    beta: Uint32  # subsidy to an account <= beta x what burned for good on its work
    initial_subsidy: Amount  # tokens an epoch, before the first halving
    halving_epochs: Uint32
    minimum_bond: Amount  # a node below it gets no subsidy and is offered no leases
    wrong_result_slash: Amount  # tokens that a result proven wrong costs its node, of its bond or what thaws
    lapse_grace: Uint32  # epochs between a stream's last paid one and the end of its obligation
    lock_release: Uint32  # committed reports after a lease closed, until its lock may fall
    segment_size: Uint32  # bytes of plaintext in a storage segment
    dispute_window: Uint32
    thaw_epochs: Uint32
    max_price_age: Uint32
    initial_price: Amount
    member_share: Uint32  # of an epoch's schedule, the fraction for the members whose observations its manifest has
    coverage_share: Uint32  # of an epoch's schedule, the fraction for devices whose place is the scarce thing
    device_bond: Amount  # tokens that an operator's nodes must have staked for each device that coverage counts
    freeze_lengths: Uint32  # nominal epoch lengths without a report until the way out opens
    answer_reports: Uint32  # accepted reports in which a demand on chain must be answered
    claim_epochs: Uint32  # epochs' budgets that may leave through claims at once
    bundle_epochs: Uint64  # how many epochs' bundles a member keeps, as long as its disk has room

    def check(self) -> None:
        """InvalidInput, naming the parameter, if the values cannot make a network."""
        if not 0 < self.beta < MILLION:
            raise InvalidInput("beta must lie between 0 and 1: otherwise self-dealing does not lose")
        if self.tau >= MILLION:
            raise InvalidInput("tau must be below 1")
        if self.member_share + self.coverage_share > MILLION:
            raise InvalidInput("member_share and coverage_share are more than the whole schedule")
        for name in POSITIVE:
            if getattr(self, name) == 0:
                raise InvalidInput(f"{name} must not be 0")

    def hash(self) -> Hash:
        """keccak of the canonical bytes, as the Oracle contract computes it."""
        return keccak(self.to_bytes())
