"""Lifecycle rules: what is due to go, by age, date, prefix, tags, size and versions. Pure: the time is handed in.

As S3 counts: an age of d days is reached at the first midnight UTC that is at least d days after the moment counted
from, which is an object's own time, or for a version that is no longer current the time of its successor; a date is
reached when it has come. Invariants: an empty or disabled rule takes nothing; what no rule's filter matches stays;
the current version is never removed for being noncurrent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

DAY = 86_400_000  # milliseconds


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One rule. Sizes in bytes, exclusive as S3's (greater than, less than); `date` in unix milliseconds."""

    id: str = ""
    enabled: bool = True
    prefix: str = ""
    tags: dict[str, str] = {}
    min_size: int | None = None
    max_size: int | None = None
    days: int | None = None
    date: int | None = None
    expired_delete_marker: bool = False
    noncurrent_days: int | None = None
    newer_noncurrent: int | None = None
    abort_days: int | None = None


class Facts(NamedTuple):
    """What rules ask of a version; `modified` in unix milliseconds."""

    size: int
    modified: int
    tags: dict[str, str]
    is_delete_marker: bool


class Due(NamedTuple):
    """What goes of one key: the current version expires (S3: is hidden or deleted); versions by index for good."""

    current: bool
    versions: tuple[int, ...]


NOTHING = Due(False, ())


def select_due(rules: Sequence[Rule], key: str, versions: Sequence[Facts], now: int) -> Due:
    """What the rules take of a key whose versions are given newest first; `now` in unix milliseconds."""
    matching = [rule for rule in rules if rule.enabled and key.startswith(rule.prefix)]
    if not matching or not versions:
        return NOTHING
    newest = versions[0]
    gone = {index for rule in matching for index in _noncurrent(rule, versions, now)}
    current = False
    if newest.is_delete_marker:
        if len(gone) == len(versions) - 1 and any(_takes_marker(rule, newest, now) for rule in matching):
            gone.add(0)
    else:
        current = any(_fits(rule, newest) and _is_expired(rule, newest, now) for rule in matching)
    return Due(current, tuple(sorted(gone)))


def is_upload_due(rules: Iterable[Rule], key: str, created: int, now: int) -> bool:
    """Whether an unfinished upload is to be aborted. Filters by tag or size do not go with that in S3."""
    return any(
        rule.enabled and rule.abort_days is not None and key.startswith(rule.prefix)
        and now >= compute_due(created, rule.abort_days)
        for rule in rules
    )  # fmt: skip


def find_expiry(rules: Iterable[Rule], key: str, facts: Facts) -> tuple[int, str] | None:
    """When the current version expires (unix milliseconds) and by which rule: S3's `x-amz-expiration`."""
    found = []
    for rule in rules:
        if rule.enabled and key.startswith(rule.prefix) and not facts.is_delete_marker and _fits(rule, facts):
            if rule.days is not None:
                found.append((compute_due(facts.modified, rule.days), rule.id))
            elif rule.date is not None:
                found.append((rule.date, rule.id))
    return min(found, default=None)


def compute_due(since: int, days: int) -> int:
    """The midnight UTC at which something is `days` old, rounded up."""
    return -(-(since + days * DAY) // DAY) * DAY


def _noncurrent(rule: Rule, versions: Sequence[Facts], now: int) -> list[int]:
    if rule.noncurrent_days is None:
        return []
    return [
        index
        for index in range(1 + (rule.newer_noncurrent or 0), len(versions))
        if _fits(rule, versions[index]) and now >= compute_due(versions[index - 1].modified, rule.noncurrent_days)
    ]


def _takes_marker(rule: Rule, marker: Facts, now: int) -> bool:
    """Once it hides nothing, a delete marker goes by a rule that says so, or by age as an object does."""
    filtered = bool(rule.tags) or rule.min_size is not None or rule.max_size is not None
    return not filtered and (rule.expired_delete_marker or _is_expired(rule, marker, now))


def _fits(rule: Rule, facts: Facts) -> bool:
    if facts.is_delete_marker:  # it has neither size nor tags
        return not rule.tags and rule.min_size is None and rule.max_size is None
    return (
        rule.tags.items() <= facts.tags.items()
        and (rule.min_size is None or facts.size > rule.min_size)
        and (rule.max_size is None or facts.size < rule.max_size)
    )


def _is_expired(rule: Rule, facts: Facts, now: int) -> bool:
    if rule.days is not None:
        return now >= compute_due(facts.modified, rule.days)
    return rule.date is not None and now >= rule.date
