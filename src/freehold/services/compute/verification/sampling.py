"""Which parts of a run are run again elsewhere: how many find a cheat, and which, drawn after the run has committed.

`detection` is hypergeometric and exact: of n items of which m are wrong, k drawn without replacement hit a wrong one
with probability 1 - C(n-m, k) / C(n, k). Draws are keyed by the client's secret and the receipt's hash: a node cannot
know them before it has signed its receipt, and the client can show later that it drew them so and chose nothing.

An item that was a task of its own gives a second receipt, which a dispute can show. A crop or a segment of a larger
task gives none for the same task: a bad one is the client's reason to order the whole task elsewhere, which does.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from fractions import Fraction
from math import comb
from typing import NamedTuple

from freehold.protocol.errors import InvalidInput
from freehold.protocol.typed import keccak
from freehold.protocol.units import Hash

ITEMS_LIMIT = 2**20
MILLION = 10**6
CROPS = 3  # of a picture: as many as Golem's verifier rendered again


class Crop(NamedTuple):
    """A rectangle of a picture, in pixels."""

    left: int
    top: int
    width: int
    height: int


def detection(items: int, wrong: int, sampled: int) -> Fraction:
    """The probability that at least one of `wrong` items is among `sampled` drawn of `items`."""
    if not (0 <= wrong <= items <= ITEMS_LIMIT and 0 <= sampled <= items):
        raise InvalidInput(f"{sampled} sampled and {wrong} wrong of {items} items: there are not as many")
    few, many = sorted((wrong, sampled))  # C(n-m, k) / C(n, k) is the same with m and k exchanged
    return 1 - Fraction(comb(items - many, few), comb(items, few))


def wrong_items(items: int, fraction: Fraction) -> int:
    """The fewest wrong items that are at least this fraction, and at least one."""
    return max(1, -(-items * fraction.numerator // fraction.denominator))


def sample_size(items: int, fraction: Fraction, wanted: Fraction) -> int:
    """The fewest items to draw so that a run with at least `fraction` wrong is found with probability `wanted`."""
    if not 1 <= items <= ITEMS_LIMIT or not 0 < fraction <= 1 or not 0 <= wanted <= 1:
        raise InvalidInput(f"a sample is of 1 to {ITEMS_LIMIT} items, its fractions within 0 and 1")
    wrong, high = wrong_items(items, fraction), 1
    while high < items and detection(items, wrong, high) < wanted:
        high = min(2 * high, items)
    return bisect_left(range(high), wanted, key=lambda count: detection(items, wrong, count))


def draw_items(secret: bytes, receipt: Hash, items: int, count: int) -> list[int]:
    """`count` different indices below `items`, ascending, every set as probable as any other (Floyd's way)."""
    if not 0 <= count <= items:
        raise InvalidInput(f"{count} of {items} items cannot be drawn")
    chosen: set[int] = set()
    for top in range(items - count, items):
        drawn = _draw(secret, b"items", receipt, top, top + 1)
        chosen.add(top if drawn in chosen else drawn)
    return sorted(chosen)


def draw_crops(secret: bytes, receipt: Hash, width: int, height: int, count: int = CROPS, part: int = 5) -> list[Crop]:
    """`count` crops, each 1 / `part` of the picture wide and high, anywhere in it; they may overlap."""
    if min(width, height, part) < 1 or count < 0:
        raise InvalidInput("a picture and its crops have at least one pixel")
    wide, high = max(1, width // part), max(1, height // part)
    return [
        Crop(
            _draw(secret, b"left", receipt, i, width - wide + 1),
            _draw(secret, b"top", receipt, i, height - high + 1),
            wide,
            high,
        )
        for i in range(count)
    ]


def draw_audit(secret: bytes, receipt: Hash, rate_ppm: int) -> bool:
    """Whether this receipt's run is audited; `receipt` may be a hash over several (`receipts_hash`)."""
    return _draw(secret, b"audit", receipt, 0, MILLION) < rate_ppm


def receipts_hash(receipts: Sequence[Hash]) -> Hash:
    """What a draw over several receipts goes by, whatever their order."""
    return keccak(b"freehold receipts" + b"".join(sorted(receipts)))


def _draw(secret: bytes, what: bytes, receipt: Hash, number: int, below: int) -> int:
    """Uniform but for a bias of under below / 2**256."""
    seed = keccak(b"freehold draw" + keccak(secret) + keccak(what) + receipt + number.to_bytes(8))
    return int.from_bytes(seed) % below
