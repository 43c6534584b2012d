"""A network's parameters: read at an epoch's anchor and nowhere else, and named by hash in every report."""

from __future__ import annotations

from freehold.protocol.errors import InvalidInput
from freehold.protocol.typed import Message, keccak
from freehold.protocol.units import Amount, Hash, Uint32, Uint64

MILLION = 1_000_000


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
    lapse_grace: Uint32  # epochs between a stream's last paid one and the end of its obligation
    lock_release: Uint32  # committed reports after a lease closed, until its lock may fall
    segment_size: Uint32  # bytes of plaintext in a storage segment
    dispute_window: Uint32
    thaw_epochs: Uint32
    max_price_age: Uint32
    initial_price: Amount
    bundle_epochs: Uint64  # how many epochs' bundles a member keeps, as long as its disk has room

    def check(self) -> None:
        """InvalidInput, naming the parameter, if the values cannot make a network."""
        if not 0 < self.beta < MILLION:
            raise InvalidInput("beta must lie between 0 and 1: otherwise self-dealing does not lose")
        if self.tau >= MILLION:
            raise InvalidInput("tau must be below 1")
        for name in ("epoch_length", "challenges", "halving_epochs", "segment_size", "initial_price"):
            if getattr(self, name) == 0:
                raise InvalidInput(f"{name} must not be 0")

    def hash(self) -> Hash:
        """keccak of the canonical bytes, as the Oracle contract computes it."""
        return keccak(self.to_bytes())
