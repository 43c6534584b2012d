"""The epoch's randomness, and its anchor: both read from final blocks, the same for everybody.

The beacon of e is keccak(R_e ‖ reveals). `R_e` is the hash of the first final block after the report of e-1 was
accepted: nobody knew it when that report fixed the state that is drawn over. `reveals` is what members revealed in the
manifest of e-1, each the secret behind its commitment in the manifest of e-2: whoever makes the block did not choose
them, and they were fixed before it. A maker of blocks can still bias the draw by withholding a block, and a leader by
leaving a reveal out, but neither knows what the other will add (docs/decisions.md).

`anchor(e)` is the first final block at or after max(anchor(e-1) + length, acceptance of report e-1 + answering window).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from freehold.protocol.messages import Observation
from freehold.protocol.parameters import Parameters
from freehold.protocol.typed import keccak
from freehold.protocol.units import ZERO_HASH, Address, Hash


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


def compute_beacon(block: Hash, reveals: Hash) -> Hash:
    """The beacon, of the block's hash and the state's `reveals`."""
    return keccak(block + reveals)


def compute_reveals(observations: Sequence[Observation], commitments: Mapping[Address, Hash]) -> Hash:
    """keccak of the reveals that open their member's commitment, in the order of their addresses; zero for none."""
    valid = [
        o.reveal
        for o in sorted(observations, key=lambda o: o.member)
        if commitments.get(o.member, ZERO_HASH) != ZERO_HASH and keccak(o.reveal) == commitments[o.member]
    ]
    return keccak(b"".join(valid)) if valid else ZERO_HASH


def draw(beacon: Hash, label: bytes, index: int, limit: int) -> int:
    """An integer in 0 .. limit-1; the modulo's bias is below limit / 2**256."""
    return int.from_bytes(keccak(beacon + label + index.to_bytes(8))) % limit
