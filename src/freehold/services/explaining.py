"""How a service explains its part of an epoch: what `freehold why` asks each of, and knows nothing else about.

A service that says nothing of its own uses `Explainer` as it is: its verdicts, contributions and payments are explained
alike for all. Facts are JSON-ready and recomputed from the bundle; sentences are made from facts alone, so that whoever
has the facts can have them told. Invariant: an explainer asks nobody anything, and what it computes equals what
settlement says, or it is an error (ReplayMismatch).
"""

# ruff: noqa: ARG002, ARG004  # what one service needs another does not

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from freehold.protocol.bundle import Bundle
from freehold.protocol.epoch import Settlement
from freehold.protocol.hashing import Bytes
from freehold.protocol.service import Judge
from freehold.protocol.units import Address, Hash
from freehold.protocol.verdicts import Contribution

Facts = dict[str, Any]


class Words(NamedTuple):
    """How amounts (base units), bytes, and hashes or addresses are written for people."""

    amount: Callable[[int], str]
    size: Callable[[int], str]
    short: Callable[[object], str]


class Explainer:
    """One service in one settled epoch. A service changes of it what it has more to say of."""

    def __init__(self, name: str, bundle: Bundle, settlement: Settlement, judges: Mapping[str, Judge]) -> None:
        self.name = name
        self.bundle = bundle
        self.settlement = settlement
        self.judges = judges

    # Facts

    def owner_of(self, subject: Address) -> Address | None:
        """The account that is, or was until this epoch, paid for something of the service's own (a device); None for
        what it does not know."""
        return None

    def describe(self, subject: Address, account: Address, nodes: Set[Address]) -> Facts | None:
        """What became of what `account` has here, whose nodes these are; or of `subject` alone, where it is neither
        (`owner_of` knows it). None where there is nothing."""
        return None

    def find(self, subject: Hash) -> Facts | None:
        """A piece of work by its id: `what` it is, its `lease` if it has one. None for what the service does not
        know."""
        return None

    def means(self, kind: str, reason: str) -> str | None:
        """What a verdict says, in a sentence; None where the reason says it for all services alike."""
        return None

    def measured(self, contribution: Contribution) -> Facts:
        """What a contribution's measure comes from."""
        return {}

    def zero(self, facts: Facts, nodes: Set[Address]) -> list[str]:
        """Why the account was paid nothing, where it was paid nothing: sentences, from what `describe` has told."""
        return []

    # Sentences

    @staticmethod
    def tell(facts: Facts, words: Words) -> Iterator[str]:
        """What `describe` has told."""
        return iter(())

    @staticmethod
    def tell_found(facts: Facts, words: Words) -> Iterator[str]:
        """What `find` has told."""
        return iter(())

    @staticmethod
    def tell_contribution(facts: Facts, words: Words) -> str:
        """A contribution, with what `measured` has told."""
        return f"a measure of {facts['measure']}"

    @staticmethod
    def tell_obligation(facts: Facts, words: Words) -> str:
        """What a node had to answer: the row of `Judge.obligations`; empty where a count is enough."""
        return ""


def are_cells(column: Bytes, *wanted: bytes) -> NDArray[np.bool_]:
    """(n,): whether each row of cells is one of those wanted."""
    mask = np.zeros(len(column), bool)
    for value in set(wanted):
        mask |= (column == np.frombuffer(value, np.uint8)).all(axis=1)
    return mask
