"""The epoch's randomness, and its anchor: both read from final blocks, the same for everybody.

`R_e` is the hash of the first final block after the report of e-1 was accepted: nobody knew it when that report
fixed the state that is drawn over. A proposer can bias it by withholding a block; the network's docs say what that
is worth on each chain. `anchor(e)` is the first final block at or after
max(anchor(e-1) + length, acceptance of report e-1 + answering window).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from freehold.protocol.parameters import Parameters
from freehold.protocol.typed import keccak
from freehold.protocol.units import Hash


class Block(NamedTuple):
    """A final block's header, as far as the protocol reads it. `time` is its timestamp in seconds."""

    number: int
    hash: Hash
    time: int


def compute_anchor_time(parameters: Parameters, previous_anchor_time: int, acceptance_time: int) -> int:
    """The chain time from which on a final block may be the anchor."""
    return max(previous_anchor_time + parameters.epoch_length, acceptance_time + parameters.answering_window)


def find_anchor(blocks: Iterable[Block], earliest: int, after: int) -> Block | None:
    """The first of the final blocks (ascending) with time >= earliest and number > after."""
    return next((b for b in blocks if b.time >= earliest and b.number > after), None)


def draw(beacon: Hash, label: bytes, index: int, limit: int) -> int:
    """An integer in 0 .. limit-1; the modulo's bias is below limit / 2**256."""
    return int.from_bytes(keccak(beacon + label + index.to_bytes(8))) % limit
