"""Lifecycle rules: when they are due, by S3's count of days, and what a bucket loses by them."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from freehold.client.bucket_types import DeleteWhat
from freehold.client.lifecycle import (
    DAY,
    NOTHING,
    Due,
    Facts,
    Rule,
    compute_due,
    find_expiry,
    is_upload_due,
    select_due,
)
from freehold.client.root import ENABLED
from freehold.services.storage.client_sources import BytesSource
from tests.client.bucket_world import SEGMENT, START, Net
from tests.client.test_buckets import data_of, get, put, run

T = 100 * DAY + 37_800_000  # half past ten in the morning
NOW = int(START * 1000)


def facts(modified: int = T, size: int = 10, marker: bool = False, **tags: str) -> Facts:
    return Facts(size, modified, tags, marker)


def test_days_end_at_the_next_midnight() -> None:
    assert compute_due(T, 3) == 104 * DAY
    assert compute_due(100 * DAY, 1) == 101 * DAY
    rule = Rule(days=1)
    assert select_due([rule], "k", [facts()], 102 * DAY - 1) == NOTHING
    assert select_due([rule], "k", [facts()], 102 * DAY) == Due(True, ())
    assert find_expiry([rule], "k", facts()) == (102 * DAY, "")


@pytest.mark.parametrize(
    ("rule", "taken"),
    [
        (Rule(days=1), True),
        (Rule(days=1, enabled=False), False),
        (Rule(), False),
        (Rule(date=200 * DAY), True),
        (Rule(date=200 * DAY + 1), False),
        (Rule(days=1, prefix="lo"), True),
        (Rule(days=1, prefix="x"), False),
        (Rule(days=1, tags={"a": "1"}), True),
        (Rule(days=1, tags={"a": "2"}), False),
        (Rule(days=1, tags={"a": "1", "b": "2"}), False),
        (Rule(days=1, min_size=9), True),
        (Rule(days=1, min_size=10), False),
        (Rule(days=1, max_size=11), True),
        (Rule(days=1, max_size=10), False),
        (Rule(days=100), False),
    ],
)
def test_filters(rule: Rule, taken: bool) -> None:
    assert select_due([rule], "log", [facts(a="1")], 200 * DAY).current is taken


def test_noncurrent_versions_count_from_their_successor_and_some_are_kept() -> None:
    stack = [facts(180 * DAY), facts(150 * DAY), facts(120 * DAY), facts(100 * DAY)]
    assert select_due([Rule(noncurrent_days=40)], "k", stack, 200 * DAY) == Due(False, (2, 3))
    assert select_due([Rule(noncurrent_days=1, newer_noncurrent=2)], "k", stack, 200 * DAY) == Due(False, (3,))
    assert select_due([Rule(noncurrent_days=1)], "k", stack, 200 * DAY) == Due(False, (1, 2, 3))


def test_a_marker_goes_once_it_hides_nothing() -> None:
    marker, rule = facts(marker=True), Rule(expired_delete_marker=True)
    assert select_due([rule], "k", [marker], T) == Due(False, (0,))
    assert select_due([rule], "k", [marker, facts()], T) == NOTHING
    both = [rule, Rule(noncurrent_days=1)]
    assert select_due(both, "k", [marker, facts()], 200 * DAY) == Due(False, (0, 1))
    assert select_due([Rule(days=1)], "k", [marker], 200 * DAY) == Due(False, (0,))
    assert select_due([Rule(days=1, tags={"a": "1"})], "k", [marker], 200 * DAY) == NOTHING


def test_uploads() -> None:
    rule = Rule(prefix="a", abort_days=1)
    assert not is_upload_due([rule], "a", T, 102 * DAY - 1)
    assert is_upload_due([rule], "a", T, 102 * DAY)
    assert not is_upload_due([rule], "b", T, 102 * DAY)


def test_a_bucket_without_versions_loses_objects_and_uploads(tmp_path: Path) -> None:
    async def scenario() -> None:
        net = Net(tmp_path)
        one = net.device()
        await one.create_bucket("demo")
        await put(one, "log/1", data_of(SEGMENT))
        await put(one, "keep")
        upload = await one.create_upload("demo", "log/2")
        await one.put_part("demo", "log/2", upload, 1, BytesSource(data_of(SEGMENT)))
        assert await one.expire("demo", NOW + 9 * DAY) == 0
        rules = (Rule(prefix="log/", days=3, abort_days=2),)
        await one.configure("demo", lambda record: replace(record, lifecycle=rules))
        assert await one.expire("demo", NOW + DAY) == 0
        assert await one.expire("demo", NOW + 3 * DAY) == 1
        assert await one.expire("demo", NOW + 9 * DAY) == 1
        assert [entry.key for entry in (await one.list("demo")).entries] == ["keep"]
        assert (await one.list_uploads("demo")).entries == []
        assert not net.shelf.blobs
        await one.aclose()

    run(scenario)


def test_a_versioned_bucket_hides_first_and_forgets_later_but_not_what_is_locked(tmp_path: Path) -> None:
    async def scenario() -> None:
        net = Net(tmp_path)
        one = net.device()
        await one.create_bucket("demo", object_lock=True)
        assert (await one.bucket("demo")).versioning == ENABLED
        await put(one, "k", data_of(SEGMENT))
        held = await put(one, "held", data_of(SEGMENT), legal_hold=True)
        rules = (Rule(days=1), Rule(noncurrent_days=5, expired_delete_marker=True))
        await one.configure("demo", lambda record: replace(record, lifecycle=rules))
        net.now += 2 * DAY / 1000
        assert await one.expire("demo", int(net.now * 1000)) == 2
        assert (await one.list("demo")).entries == []
        assert len((await one.list_versions("demo")).entries) == 4
        net.now += 6 * DAY / 1000
        assert await one.expire("demo", int(net.now * 1000)) >= 1
        await one.expire("demo", int(net.now * 1000))
        left = (await one.list_versions("demo")).entries
        assert [(entry.key, entry.is_delete_marker) for entry in left] == [("held", True), ("held", False)]
        assert await get(one, "held", held) == data_of(SEGMENT)
        assert len(net.shelf.blobs) == 1
        await one.delete("demo", [DeleteWhat("held", left[0].version_id)])
        await one.aclose()

    run(scenario)
