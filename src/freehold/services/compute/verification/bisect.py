"""The first step at which two runs differ: only that one has to be run again.

A node commits to the state after each of its steps (its receipt's `steps`); the client compares the two lists. Up to
the first difference both have the same state, so the step there, run from it, shows who is wrong: one step instead of
all. What a client builds here is what the judge checks (`proof.is_step`): this module asks it, and shows nothing that
the judge would not take.

A run whose leaves do not lead to its own receipt, or that took another number of steps, is disputed whole.
"""

from __future__ import annotations

from collections.abc import Sequence

from freehold.protocol.merkle import row_root
from freehold.protocol.units import Hash
from freehold.services.compute.proof import is_step, make_step
from freehold.services.compute.terms import Receipt, Step


def first_difference(first: Sequence[Hash], second: Sequence[Hash]) -> int | None:
    """The first index at which two lists of leaves (`tasks.state_leaf`) differ; None where none does within both."""
    return next((i for i, (one, other) in enumerate(zip(first, second, strict=False)) if one != other), None)


def are_leaves(receipt: Receipt, leaves: Sequence[Hash]) -> bool:
    """Whether these are the leaves that a receipt commits to."""
    return row_root(leaves) == receipt.steps


def build_step(
    first: Receipt, second: Receipt, first_leaves: Sequence[Hash], second_leaves: Sequence[Hash]
) -> Step | None:
    """What goes into a dispute over the first differing step; None where the whole task has to be run again."""
    if len(first_leaves) != len(second_leaves):
        return None
    if not are_leaves(first, first_leaves) or not are_leaves(second, second_leaves):
        return None
    index = first_difference(first_leaves, second_leaves)
    if index is None:
        return None
    step = make_step(first_leaves, second_leaves, index, first.input)
    return step if is_step(step, first, second) else None
