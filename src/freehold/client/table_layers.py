"""Sorted maps in memory, one over the other: what a page, a run or the frames say; the uppermost that names a key wins.

Invariant: a `Layer` never changes once it is made, so that whoever scans it may go on while others write.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping, Sequence

from freehold.client.table_records import Key, Value

CHUNK = 512  # entries of any one layer that are merged at a time
_FEW = 32

Entry = tuple[Key, Value]


class Layer:
    """Keys in order, and what each stands for; None where it is removed."""

    __slots__ = ("keys", "values")

    def __init__(self, keys: Sequence[Key] = (), values: Mapping[Key, Value | None] | None = None) -> None:
        self.keys = keys
        self.values: Mapping[Key, Value | None] = {} if values is None else values

    def with_changes(self, changes: Mapping[Key, Value | None]) -> Layer:
        """This layer with others' changes over it."""
        values = {**self.values, **changes}
        fresh = [key for key in changes if key not in self.values]
        if len(fresh) > _FEW:
            return Layer(sorted([*self.keys, *sorted(fresh)]), values)
        keys = list(self.keys)
        for key in fresh:
            insort(keys, key)
        return Layer(keys, values)

    def slice(self, start: Key, end: Key) -> Sequence[Key]:
        """The keys with start <= key < end."""
        return self.keys[bisect_left(self.keys, start) : bisect_left(self.keys, end)]

    def between(self, start: Key, end: Key) -> Layer:
        """The part with start <= key < end."""
        keys = self.slice(start, end)
        return self if len(keys) == len(self.keys) else Layer(keys, {key: self.values[key] for key in keys})


class Pending(Layer):
    """Changes that are still being gathered: the one layer that changes."""

    __slots__ = ("changes", "sorted_keys")

    def __init__(self) -> None:
        self.changes: dict[Key, Value | None] = {}
        self.sorted_keys: list[Key] = []
        super().__init__(self.sorted_keys, self.changes)

    def add(self, changes: Iterable[tuple[Key, Value | None]]) -> None:
        """Put changes over those that are there."""
        for key, value in changes:
            if key not in self.changes:
                insort(self.sorted_keys, key)
            self.changes[key] = value


def join(layers: Iterable[Layer]) -> Layer:
    """One layer for several, the lowest first."""
    values: dict[Key, Value | None] = {}
    keys: list[Key] = []
    for layer in layers:
        keys += [key for key in layer.keys if key not in values]
        values.update(layer.values)
    keys.sort()  # of sorted pieces: nearly a merge
    return Layer(keys, values)


def merge(layers: Sequence[Layer], start: Key, end: Key, reverse: bool = False) -> Iterator[list[Entry]]:
    """What there is from start up to end, piece by piece in order; the lowest layer first."""
    while start < end:
        spans = [(layer, bisect_left(layer.keys, start), bisect_left(layer.keys, end)) for layer in layers]
        spans = [span for span in spans if span[1] < span[2]]
        if not spans:
            return
        long = [(layer.keys, low, high) for layer, low, high in spans if high - low > CHUNK]
        if reverse:
            bound = max((keys[high - CHUNK] for keys, _, high in long), default=start)
            pieces = [(layer, layer.keys[bisect_left(layer.keys, bound) : high]) for layer, _, high in spans]
            end = bound
        else:
            bound = min((keys[low + CHUNK] for keys, low, _ in long), default=end)
            pieces = [(layer, layer.keys[low : bisect_left(layer.keys, bound)]) for layer, low, _ in spans]
            start = bound
        yield _merge_pieces(pieces, reverse)


def _merge_pieces(pieces: Sequence[tuple[Layer, Sequence[Key]]], reverse: bool) -> list[Entry]:
    if len(pieces) == 1:
        layer, keys = pieces[0]
        values = layer.values
        found = [(key, value) for key in keys if (value := values[key]) is not None]
    else:
        merged: dict[Key, Value | None] = {}
        for layer, keys in pieces:
            values = layer.values
            for key in keys:
                merged[key] = values[key]
        found = [(key, value) for key in sorted(merged) if (value := merged[key]) is not None]
    if reverse:
        found.reverse()
    return found
