"""How long a property test looks: a fixed budget in every run, the long profile's with FREEHOLD_FUZZ=1."""

from __future__ import annotations

from hypothesis import settings

from tests.conftest import LONG


def budget(examples: int, steps: int = 50) -> settings:
    """Settings with this many examples, and steps for stateful tests, unless a long run was asked for."""
    if LONG["fuzz"]:
        return settings()
    return settings(max_examples=examples, stateful_step_count=steps)
