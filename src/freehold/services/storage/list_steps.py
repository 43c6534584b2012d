"""A delta step by step: how a list changes, so that whoever knows only its root can follow.

Removals come first, one step each in the order given, then additions, one step each in the order given. An addition
takes the lowest empty position, or else the next new one. Each step's siblings are against the tree after the steps
before it:

    position < count    the old leaf (or the empty one) climbs to the root before
    position = count    the new position's empty leaf does; where the tree grows by a level, the topmost sibling is the
                        root before itself and the others are empty

So the step of the next addition does not depend on what is added. A node shows it with each change that it signs, and
whoever has it works out the next change without asking (`follow`): any addition, and where no position is empty, any
number of them.

Invariant: a node and a client that go through the same steps from the same list end with the same root.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

from freehold.protocol.errors import Corrupt, InvalidInput, MalformedMessage, Overflow
from freehold.protocol.merkle import LISTS, SumNode, SumTree, depth_of
from freehold.protocol.units import Hash
from freehold.services.storage.proof import pack_list_path, unpack_list_path
from freehold.services.storage.terms import Delta, ShardEntry

POSITION_LIMIT = 2**32  # positions a list can have


class Step(NamedTuple):
    """One position's change: the entry that was there, and the siblings on its way to the root."""

    position: int
    old: ShardEntry | None
    siblings: tuple[SumNode, ...]

    def to_json(self) -> dict[str, Any]:
        """As it travels in a plan."""
        old = self.old.to_json() if self.old else None
        return {"position": self.position, "old": old, "siblings": f"0x{pack_list_path(self.siblings).hex()}"}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """The step behind `to_json`'s form; MalformedMessage."""
        try:
            position, old = value["position"], value["old"]
            siblings = unpack_list_path(bytes.fromhex(value["siblings"].removeprefix("0x")))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise MalformedMessage("a step has a position, an old entry and siblings") from None
        if type(position) is not int or not 0 <= position < POSITION_LIMIT or siblings is None:
            raise MalformedMessage("a step's position or siblings are out of range")
        return cls(position, ShardEntry.from_json(old) if old is not None else None, tuple(siblings))


class ListView:
    """A list as it stood after delta `number`: its tree, and which positions are empty (ascending)."""

    def __init__(self, number: int, entries: Mapping[int, ShardEntry], count: int) -> None:
        self.number = number
        self.tree = SumTree(LISTS, (entries[p].leaf() if p in entries else LISTS.empty for p in range(count)))
        self.empty = [p for p in range(count) if p not in entries]

    def copy(self) -> ListView:
        """A view that changes on its own; costs pointers, not hashes."""
        view = ListView(self.number, {}, 0)
        view.tree = self.tree.copy()
        view.empty = list(self.empty)
        return view

    def put(self, position: int, entry: ShardEntry | None) -> None:
        """Set a position, existing or next new, to an entry or to nothing."""
        is_new = position == len(self.tree)
        self.tree.set(position, entry.leaf() if entry else LISTS.empty)
        at = bisect_left(self.empty, position)
        was_empty = at < len(self.empty) and self.empty[at] == position
        if entry is None and (is_new or not was_empty):
            insort(self.empty, position)
        elif entry is not None and was_empty:
            del self.empty[at]

    def remove(self, position: int, old: ShardEntry) -> Step:
        """Empty a position."""
        step = Step(position, old, tuple(self.tree.proof(position)))
        self.put(position, None)
        return step

    def add(self, entry: ShardEntry) -> Step:
        """Put an entry at the lowest empty position, or at the end."""
        if not self.empty:
            self.put(len(self.tree), None)
        position = self.empty[0]
        step = Step(position, None, tuple(self.tree.proof(position)))
        self.put(position, entry)
        return step

    def matches(self, delta: Delta) -> bool:
        """Whether this is the list that the delta names."""
        root = self.tree.root
        return (delta.root, delta.count, delta.size) == (Hash(root.hash + b"\x00"), len(self.tree), root.sums[0])


def change(
    view: ListView, held: Mapping[int, ShardEntry], add: Sequence[ShardEntry], remove: Sequence[int]
) -> list[Step]:
    """Change the view; `held` has the entries at the positions to remove. InvalidInput where there is none."""
    if len(set(remove)) != len(remove):
        raise InvalidInput("a position is removed twice")
    if len({entry.root for entry in add}) != len(add):
        raise InvalidInput("a shard is added twice")
    for position in remove:
        if position not in held:
            raise InvalidInput(f"there is no shard at position {position}", position=position)
    return [view.remove(position, held[position]) for position in remove] + [view.add(entry) for entry in add]


def look_ahead(view: ListView, last: Step, entry: ShardEntry) -> Step | None:
    """The step of the next addition after `last` added `entry`; None where that takes more than this step to know."""
    if view.empty:
        return Step(view.empty[0], None, tuple(view.tree.proof(view.empty[0])))
    return _Edge(last).follow([entry])[1] if last.position + 1 == len(view.tree) else None


def follow(ahead: Step, count: int, add: Sequence[ShardEntry]) -> list[Step] | None:
    """The steps of additions to a list of `count` positions whose next one is `ahead`; None where it takes more to
    know them."""
    if len(add) == 1:
        return [ahead]
    return _Edge(ahead).follow(add)[:-1] if ahead.position == count else None


class _Edge:
    """What is left of a list's end, from the step of an addition there; right of it all is empty."""

    def __init__(self, step: Step) -> None:
        self._position = step.position
        self._nodes = {(level, (step.position >> level) ^ 1): sibling for level, sibling in enumerate(step.siblings)}

    def follow(self, add: Sequence[ShardEntry]) -> list[Step]:
        """The steps of these additions, the first of which is at the position of the step; and the next after them."""
        steps = [self._step(self._position)]
        for entry in add:
            node, position = entry.leaf(), steps[-1].position
            for level, sibling in enumerate(steps[-1].siblings):
                self._nodes[level, position >> level] = node
                node = LISTS.join(sibling, node) if (position >> level) & 1 else LISTS.join(node, sibling)
            self._nodes[len(steps[-1].siblings), 0] = node
            steps.append(self._step(position + 1))
        return steps

    def _step(self, position: int) -> Step:
        levels = range(depth_of(position + 1))
        return Step(
            position, None, tuple(self._nodes.get((level, (position >> level) ^ 1), LISTS.empty) for level in levels)
        )


def apply_steps(
    delta: Delta | None, add: Sequence[ShardEntry], remove: Sequence[int], steps: Sequence[Step]
) -> tuple[SumNode, int]:
    """The root and the count of positions after the steps, each checked against the root before; Corrupt where one
    does not follow, so that a node cannot have a client sign away what it stored."""
    root = SumNode(bytes(delta.root[:31]), (delta.size,)) if delta else LISTS.empty
    count = delta.count if delta else 0
    if len(steps) != len(add) + len(remove) or [s.position for s in steps[: len(remove)]] != list(remove):
        raise Corrupt("the node's plan is not for this change")
    changes: list[ShardEntry | None] = [*(None for _ in remove), *add]
    for step, entry in zip(steps, changes, strict=True):
        if (step.old is None) == (entry is None) or not _follows(root, count, step):
            raise Corrupt(f"the node's plan does not follow from its list at position {step.position}")
        leaf = entry.leaf() if entry else LISTS.empty
        try:
            root = LISTS.climb(leaf, step.position, step.siblings)
        except Overflow:
            raise Corrupt("the node's plan adds up to more than a list can hold") from None
        count = max(count, step.position + 1)
    return root, count


def _follows(root: SumNode, count: int, step: Step) -> bool:
    grown = max(count, step.position + 1)
    if step.position > count or len(step.siblings) != depth_of(grown):
        return False
    if count and depth_of(grown) > depth_of(count):
        return step.siblings[-1] == root and all(s == LISTS.empty for s in step.siblings[:-1])
    try:
        return LISTS.climb(step.old.leaf() if step.old else LISTS.empty, step.position, step.siblings) == root
    except Overflow:
        return False
