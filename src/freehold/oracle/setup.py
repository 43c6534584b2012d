"""What a member is told at its start: who it is, which network, and how patient to be. Who its fellow members are, the
chain says, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from freehold.oracle.chain_view import Start
from freehold.protocol.keys import Key
from freehold.protocol.service import Judge
from freehold.protocol.typed import Domain


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a monotonic clock."""

    view: int = 4_000  # the first view's time; each further view has twice that of the one before
    retransmit: int = 500  # between sendings of what may have been lost; grows while nothing happens
    submit: int = 1_000  # between the members' turns at submitting a report


@dataclass(frozen=True)
class Setup:
    """One member of one network."""

    key: Key
    domain: Domain
    start: Start
    judges: Mapping[str, Judge]
    timing: Timing = Timing()
