"""What a member is told at its start: who it is, which network, and how patient to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from freehold.oracle.chain_view import Start
from freehold.protocol.certificates import faults, quorum
from freehold.protocol.keys import Key
from freehold.protocol.service import Judge
from freehold.protocol.typed import Domain
from freehold.protocol.units import Address


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a monotonic clock."""

    view: int = 4_000  # the first view's time; each further view has twice that of the one before
    retransmit: int = 500  # between sendings of what may have been lost; grows while nothing happens
    submit: int = 1_000  # between the members' turns at submitting a report


@dataclass(frozen=True)
class Setup:
    """One member of one network. `members` stand in the Oracle contract's order."""

    key: Key
    members: tuple[Address, ...]
    domain: Domain
    start: Start
    judges: Mapping[str, Judge]
    timing: Timing = Timing()

    @cached_property
    def position(self) -> int:
        """This member's place among the members."""
        return self.members.index(self.key.address)

    @cached_property
    def others(self) -> tuple[Address, ...]:
        """The other members."""
        return tuple(member for member in self.members if member != self.key.address)

    @property
    def quorum(self) -> int:
        """Q."""
        return quorum(len(self.members))

    @property
    def faults(self) -> int:
        """f."""
        return faults(len(self.members))
