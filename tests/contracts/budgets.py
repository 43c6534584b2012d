"""How long a property test looks: a fixed budget in every run, twenty times the examples with FREEHOLD_FUZZ=1."""

from __future__ import annotations

from hypothesis import settings

from tests.conftest import LONG

DEADLINE = 3_600 if LONG["fuzz"] else 120  # seconds, for one stateful test


def budget(examples: int, steps: int = 50) -> settings:
    """Settings with this many examples, and steps for stateful tests."""
    longer = 20 if LONG["fuzz"] else 1
    return settings(max_examples=examples * longer, stateful_step_count=steps)
