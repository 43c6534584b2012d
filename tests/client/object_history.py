"""What many S3 clients saw of a few keys, recorded, and whether it can have happened.

A key is a register of ETags: puts and deletes are changes, If-None-Match and If-Match conditional ones, gets are reads.
A list is a read of every key at once, so nothing acknowledged before it began may be missing from it, and nothing that
was deleted before it began may be in it. Registers compose: keys are judged one by one (`tests/client/history.py`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from tests.client.history import ANY, CONFLICT, OK, READ, UNKNOWN, Call, is_linearizable


class History:
    """Calls by key, as they ended. Times are any clock's that never goes back."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.calls: dict[str, list[Call]] = {key: [] for key in keys}
        self.counts: Counter[str] = Counter()

    def change(self, key: str, start: float, end: float, outcome: str, expected: str | None, value: str | None) -> None:
        """A put of an ETag, or a delete (None); `expected` is ANY, None (nothing is there) or an ETag.

        `outcome` is OK, CONFLICT (refused: the condition did not hold) or UNKNOWN.
        """
        self.calls[key].append(Call(outcome, start, expected, value, math.inf if outcome == UNKNOWN else end))
        self.counts[outcome if expected == ANY else f"conditional {outcome}"] += 1

    def read(self, key: str, start: float, end: float, value: str | None) -> None:
        """A get: an ETag, or None for nothing."""
        self.calls[key].append(Call(READ, start, value=value, end=end))
        self.counts[READ] += 1

    def list(self, start: float, end: float, shown: Mapping[str, str]) -> None:
        """A list of the bucket: ETags by key."""
        assert set(shown) <= set(self.calls), shown
        for key, calls in self.calls.items():
            calls.append(Call(READ, start, value=shown.get(key), end=end))
        self.counts["list"] += 1

    def impossible(self) -> dict[str, list[Call]]:
        """The keys for which there is no order of events that explains what was seen."""
        return {key: calls for key, calls in self.calls.items() if not is_linearizable(calls)}


__all__ = ["ANY", "CONFLICT", "OK", "UNKNOWN", "History"]
