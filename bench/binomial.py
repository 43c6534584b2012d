"""Bounds of a share that was counted: Clopper and Pearson's, which are never too narrow.

The upper bound of k in n is the largest p under which k or fewer still have a probability of `miss`; the lower one is
its mirror. Found by bisection over the exact binomial sum.
"""

from __future__ import annotations

from math import exp, lgamma, log

MISS = 0.025  # on each side: 95 %
STEPS = 60  # of bisection: to the last bit of a float


def upper_bound(hits: int, trials: int, miss: float = MISS) -> float:
    """The largest share that `hits` of `trials` leave possible; 1 for no trials."""
    if hits >= trials:
        return 1.0
    low, high = hits / trials, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if at_most(hits, trials, middle) > miss else (low, middle)
    return high


def lower_bound(hits: int, trials: int, miss: float = MISS) -> float:
    """The smallest share that `hits` of `trials` leave possible; 0 for no trials."""
    return 1.0 - upper_bound(trials - hits, trials, miss)


def at_most(hits: int, trials: int, share: float) -> float:
    """The probability of `hits` or fewer of `trials`, each with probability `share`."""
    if share <= 0:
        return 1.0
    if share >= 1:
        return float(hits >= trials)
    logs = (
        lgamma(trials + 1) - lgamma(k + 1) - lgamma(trials - k + 1) + k * log(share) + (trials - k) * log(1 - share)
        for k in range(hits + 1)
    )
    return min(1.0, sum(exp(each) for each in logs))
