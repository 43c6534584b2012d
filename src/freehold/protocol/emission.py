"""How many tokens an epoch may mint as subsidy: a halving schedule, the same as in the Emission contract.

    schedule(e) = initial_subsidy >> ((e - 1) // halving_epochs)

It is split, the last part being the residual of the split:

    members  = floor(schedule x member_share)
    coverage = floor(schedule x coverage_share)
    matched  = schedule - members - coverage

What a pool's rules (`shares.py`) do not give away is not minted. Source: halving as in HIP-20. The sum over all epochs
is below 2 x initial_subsidy x halving_epochs.
"""

from __future__ import annotations

from typing import NamedTuple

from freehold.protocol.parameters import MILLION, Parameters
from freehold.protocol.units import mul_div


def compute_schedule(parameters: Parameters, epoch: int) -> int:
    """Tokens (base units) that `epoch` >= 1 may mint as subsidy."""
    return parameters.initial_subsidy >> min((epoch - 1) // parameters.halving_epochs, 255)


class Pools(NamedTuple):
    """What an epoch may mint, by what for. Tokens in base units."""

    members: int
    coverage: int
    matched: int


def compute_pools(parameters: Parameters, epoch: int) -> Pools:
    """The split of the epoch's schedule."""
    schedule = compute_schedule(parameters, epoch)
    members = mul_div(schedule, parameters.member_share, MILLION)
    coverage = mul_div(schedule, parameters.coverage_share, MILLION)
    return Pools(members, coverage, schedule - members - coverage)
