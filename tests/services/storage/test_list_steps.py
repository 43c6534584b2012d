"""Deltas step by step: whoever knows only the root follows an honest plan, and catches any other."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.protocol.errors import Corrupt, FreeholdError, InvalidInput, MalformedMessage
from freehold.protocol.merkle import LISTS, SumNode
from freehold.protocol.typed import keccak
from freehold.protocol.units import ZERO_HASH, Hash
from freehold.services.storage.list_steps import ListView, Step, apply_steps, change, follow, look_ahead
from freehold.services.storage.terms import Delta, ShardEntry
from tests.services.storage.provider_world import tree_root


def entry(number: int, size: int = 100) -> ShardEntry:
    return ShardEntry(record=keccak(b"record"), index=1, root=keccak(number.to_bytes(8)), size=size)


def delta_of(view: ListView) -> Delta | None:
    root = view.tree.root
    if not len(view.tree):
        return None
    return Delta(lease=ZERO_HASH, number=1, root=Hash(root.hash + b"\x00"), count=len(view.tree), size=root.sums[0])


def build(model: list[ShardEntry | None]) -> ListView:
    return ListView(1, {i: e for i, e in enumerate(model) if e}, len(model))


@given(st.lists(st.booleans(), max_size=20), st.integers(0, 12), st.randoms(use_true_random=False))
def test_both_sides_come_to_the_same_list(held: list[bool], additions: int, draw: random.Random) -> None:
    model = [entry(i, i + 1) if there else None for i, there in enumerate(held)]
    view = build(model)
    before = delta_of(view)
    positions = [i for i, e in enumerate(model) if e]
    remove = draw.sample(positions, draw.randint(0, len(positions)))
    add = [entry(100 + i, 50 + i) for i in range(additions)]
    after = view.copy()
    steps = change(after, {i: e for i, e in enumerate(model) if e}, add, remove)
    assert [Step.from_json(step.to_json()) for step in steps] == steps
    root, count = apply_steps(before, add, remove, steps)
    for position in remove:
        model[position] = None
    for one in add:
        at = model.index(None) if None in model else len(model)
        model[at : at + 1] = [one]
    assert (root, count) == (after.tree.root, len(after.tree))
    assert (root.hash, count) == (tree_root(model), len(model))
    assert after.empty == [i for i, e in enumerate(model) if e is None]
    assert delta_of(view) == before  # the copy left it alone


def other_sibling(steps: list[Step]) -> list[Step]:
    first = steps[0]
    changed = SumNode(b"\x01" * 31, first.siblings[0].sums)
    return [first._replace(siblings=(changed, *first.siblings[1:])), *steps[1:]]


def hidden_sum(steps: list[Step]) -> list[Step]:
    last = steps[-1]
    changed = SumNode(last.siblings[0].hash, (last.siblings[0].sums[0] + 1,))
    return [*steps[:-1], last._replace(siblings=(changed, *last.siblings[1:]))]


def huge_sum(steps: list[Step]) -> list[Step]:
    last = steps[-1]
    return [*steps[:-1], last._replace(siblings=(SumNode(b"\x01" * 31, (2**64 - 1,)), *last.siblings[1:]))]


LIES: list[Callable[[list[Step]], list[Step]]] = [
    other_sibling,
    hidden_sum,
    huge_sum,
    lambda steps: steps[1:],
    lambda steps: [*steps, steps[-1]],
    lambda steps: steps[::-1],
    lambda steps: [steps[0]._replace(old=entry(999)), *steps[1:]],
    lambda steps: [steps[0]._replace(old=None), *steps[1:]],
    lambda steps: [*steps[:-1], steps[-1]._replace(old=entry(3))],
    lambda steps: [*steps[:-1], steps[-1]._replace(position=1)],
    lambda steps: [*steps[:-1], steps[-1]._replace(position=9)],
    lambda steps: [*steps[:-1], steps[-1]._replace(siblings=())],
    lambda steps: [*steps[:-1], steps[-1]._replace(siblings=(*steps[-1].siblings, LISTS.empty))],
]


@pytest.mark.parametrize("size", [4, 5])  # at 4 the additions make the tree grow by a level
@pytest.mark.parametrize("lie", LIES)
def test_a_plan_that_does_not_follow_is_caught(lie: Callable[[list[Step]], list[Step]], size: int) -> None:
    model: list[Any] = [entry(i) for i in range(size)]
    view = build(model)
    add = [entry(100), entry(101)]
    steps = change(view.copy(), dict(enumerate(model)), add, [2])
    apply_steps(delta_of(view), add, [2], steps)
    with pytest.raises(Corrupt):
        apply_steps(delta_of(view), add, [2], lie(steps))


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        {"position": -1, "old": None, "siblings": "0x"},
        {"position": "1", "old": None, "siblings": "0x"},
        {"position": 2**40, "old": None, "siblings": "0x"},
        {"position": 1, "old": None, "siblings": "0x00"},
        {"position": 1, "old": None, "siblings": "zz"},
        {"position": 1, "old": None, "siblings": 7},
        {"position": 1, "old": {}, "siblings": "0x"},
    ],
)
def test_a_step_that_does_not_parse(value: Any) -> None:
    with pytest.raises(MalformedMessage):
        Step.from_json(value)


@pytest.mark.parametrize(("add", "remove"), [([entry(1)] * 2, []), ([], [0, 0]), ([], [1])])
def test_a_change_that_makes_no_sense(add: list[ShardEntry], remove: list[int]) -> None:
    view = build([entry(7)])
    with pytest.raises(FreeholdError) as caught:
        change(view, {0: entry(7)}, add, remove)
    assert isinstance(caught.value, InvalidInput)


@given(st.lists(st.booleans(), max_size=20), st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_a_signed_change_tells_what_the_next_additions_take(held: list[bool], rounds: list[int]) -> None:
    view = build([entry(i, i + 1) if there else None for i, there in enumerate(held)])
    ahead, made = None, 100
    for number in rounds:
        add = [entry(made + i, 50 + i) for i in range(number)]
        made += number
        before, holes, count = delta_of(view), len(view.empty), len(view.tree)
        steps = change(view, {}, add, [])
        if ahead is not None:
            foreseen = follow(ahead, count, add)
            assert foreseen == (steps if number == 1 or not holes else None)
            if foreseen:
                assert apply_steps(before, add, [], foreseen) == (view.tree.root, len(view.tree))
        else:
            assert holes or before is None or count == len(held)
        ahead = look_ahead(view, steps[-1], add[-1])
        assert ahead is not None or (not view.empty and steps[-1].position + 1 < len(view.tree))
