"""How many tokens an epoch may mint as subsidy: a halving schedule, the same as in the Emission contract.

    schedule(e) = initial_subsidy >> ((e - 1) // halving_epochs)

Source: halving as in HIP-20. The sum over all epochs is below 2 x initial_subsidy x halving_epochs.
"""

from __future__ import annotations

from freehold.protocol.parameters import Parameters


def compute_schedule(parameters: Parameters, epoch: int) -> int:
    """Tokens (base units) that `epoch` >= 1 may mint as subsidy."""
    return parameters.initial_subsidy >> min((epoch - 1) // parameters.halving_epochs, 255)
