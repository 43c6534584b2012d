"""Layers one over the other read as one dict, in both directions, however small the pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.client import table_layers
from freehold.client.table import Key, Value
from freehold.client.table_layers import Layer, Pending, join, merge
from tests.client.table_world import key

CHANGES = st.dictionaries(st.integers(0, 60), st.booleans(), max_size=60)


def layer_of(changes: dict[int, bool], mark: bytes) -> Layer:
    values = {key(number): Value(mark) if there else None for number, there in sorted(changes.items())}
    return Layer(list(values), values)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_layers, "CHUNK", 3)
    monkeypatch.setattr(table_layers, "_FEW", 4)


@given(st.lists(CHANGES, max_size=4), st.integers(0, 61), st.integers(0, 61))
def test_merging_is_what_one_dict_over_the_other_gives(found: list[dict[int, bool]], low: int, high: int) -> None:
    layers = [layer_of(changes, b"%d" % index) for index, changes in enumerate(found)]
    model: dict[Key, Value | None] = {}
    for layer in layers:
        model.update(layer.values)
    wanted = [(where, model[where]) for where in sorted(model) if model[where] and key(low) <= where < key(high)]
    assert [entry for piece in merge(layers, key(low), key(high)) for entry in piece] == wanted
    assert [entry for piece in merge(layers, key(low), key(high), True) for entry in piece] == wanted[::-1]
    joined = join(layers)
    stacked = Layer()
    for layer in layers:
        stacked = stacked.with_changes(layer.values)
    for one in (joined, stacked):
        assert list(one.keys) == sorted(model)
        assert one.values == model
        part = one.between(key(low), key(high))
        assert list(part.keys) == [where for where in sorted(model) if key(low) <= where < key(high)]
        assert set(part.values) == set(part.keys)


@given(CHANGES, CHANGES)
def test_a_layer_does_not_change_when_more_is_put_over_it(first: dict[int, bool], second: dict[int, bool]) -> None:
    layer = layer_of(first, b"a")
    keys, values = list(layer.keys), dict(layer.values)
    layer.with_changes(layer_of(second, b"b").values)
    assert (list(layer.keys), dict(layer.values)) == (keys, values)


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans())))
def test_pending_changes_are_in_order(rows: list[tuple[int, bool]]) -> None:
    pending = Pending()
    for number, there in rows:
        pending.add([(key(number), Value(b"") if there else None)])
    assert list(pending.keys) == sorted({key(number) for number, _ in rows})
    assert set(pending.values) == set(pending.keys)
