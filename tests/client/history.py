"""Whether what many callers saw of one compare-and-set register can have happened in some order, one call at a time.

Wing and Gong's search (1993) with Lowe's memory of states tried: a call may be next if it began before every call that
is still to come has ended. A change of unknown outcome may take effect at any time after it began, or never. What fits
and changes nothing is taken at once: if there is an order at all, there is one with it next. Changes of unknown outcome
that do the same are taken in the order in which they began; those whose value nobody names do the same.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

READ, OK, CONFLICT, UNKNOWN = "read", "ok", "conflict", "unknown"
GONE = "gone"  # what a register holds whose name has ended
ANY = "any"  # expected by a change that has no condition
UNSEEN = "unseen"  # what nobody names


@dataclass
class Call:
    """A read of `value`, or a change from `expected` to `value`; `end` stays infinite where the outcome is unknown."""

    kind: str
    start: float
    expected: Hashable = None
    value: Hashable = None
    end: float = math.inf


def is_linearizable(calls: Sequence[Call], initial: Hashable = None) -> bool:
    """Whether one register, `initial` at first, can have answered all of these."""
    named = {call.expected for call in calls} | {call.value for call in calls if call.kind == READ} | {None, GONE}
    calls = sorted((c for c in calls if c.kind != UNKNOWN or c.end == math.inf), key=lambda call: call.start)
    calls = [replace(c, value=UNSEEN) if c.kind == UNKNOWN and c.value not in named else c for c in calls]
    must = sum(1 << i for i, call in enumerate(calls) if call.kind != UNKNOWN)
    stack: list[tuple[int, Hashable]] = [(0, initial)]
    seen = set(stack)
    while stack:
        done, state = stack.pop()
        if done & must == must:
            return True
        first_end = min(call.end for i, call in enumerate(calls) if not done >> i & 1 and must >> i & 1)
        following: list[tuple[int, Hashable]] = []
        unknown = set()
        for i, call in enumerate(calls):
            if call.start > first_end:
                break
            if done >> i & 1:
                continue
            fits, after = _step(call, state)
            if call.kind == UNKNOWN:
                if after == state or (call.expected, call.value) in unknown:
                    continue
                unknown.add((call.expected, call.value))
            if fits and call.kind in (READ, CONFLICT):
                following = [(done | 1 << i, after)]
                break
            if fits:
                following.append((done | 1 << i, after))
        stack.extend(found for found in following if found not in seen)
        seen.update(following)
    return False


def _step(call: Call, state: Hashable) -> tuple[bool, Hashable]:
    if call.kind == READ:
        return call.value == (None if state == GONE else state), state
    if call.kind == CONFLICT:
        return state != call.expected, state
    return call.expected in (ANY, state), call.value
