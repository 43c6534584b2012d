"""Lists against plain sorting: prefixes, delimiters and pages of any size, with versions and markers among them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from freehold.client.bucket_types import DeleteWhat
from freehold.client.buckets import Buckets
from freehold.client.object_lists import PATIENCE
from freehold.client.object_records import Version, encode, version_place
from freehold.client.root import ENABLED
from freehold.client.table_records import Changes, Value
from tests.client.bucket_world import Net
from tests.client.test_buckets import put, run

TEXT = st.text(alphabet="ab/\x00é\U0001f600", min_size=1, max_size=4)


async def fill(buckets: Buckets, keys: list[str]) -> None:
    """Many empty objects in one commit."""

    async def change(_: object) -> Changes:
        version = Version(2, 0, 0, "e")
        rows = {version_place(key.encode(), n): Value(encode(version), b"") for n, key in enumerate(keys)}
        return Changes(rows)

    at = buckets._opened("demo", await buckets.bucket("demo"))
    await at.table.commit(change)


def expected(keys: set[str], prefix: str, delimiter: str, after: str) -> list[str]:
    """What S3 lists, the slow way: keys, and common prefixes by their text."""
    shown: dict[str, None] = {}
    for key in sorted(keys, key=str.encode):
        if not key.startswith(prefix):
            continue
        at = key.find(delimiter, len(prefix)) if delimiter else -1
        group = key if at < 0 else key[: at + len(delimiter)]
        if key.encode() > after.encode() and group != after:
            shown[group] = None
    return sorted(shown, key=str.encode)


async def pages(buckets: Buckets, prefix: str, delimiter: str, after: str, limit: int) -> list[str]:
    found: list[str] = []
    at: str | None = after
    while at is not None:
        page = await buckets.list("demo", prefix, delimiter, at, limit)
        some = [entry.key for entry in page.entries] + page.prefixes
        assert len(some) == limit or page.next is None
        found += sorted(some, key=str.encode)
        at = page.next
    return found


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    keys=st.sets(TEXT, max_size=30),
    asked=st.lists(
        st.tuples(st.sampled_from(["", "a", "a/", "é"]), st.sampled_from(["", "/", "b", "a/"]), TEXT | st.just(""),
                  st.integers(1, 4)), min_size=1, max_size=6,
    ),
)  # fmt: skip
def test_pages_are_the_whole_list_in_byte_order(
    tmp_path_factory, keys: set[str], asked: list[tuple[str, str, str, int]]
) -> None:  # type: ignore[no-untyped-def]
    async def scenario() -> None:
        buckets = Net(tmp_path_factory.mktemp("lists")).device()
        await buckets.create_bucket("demo")
        await fill(buckets, sorted(keys))
        for prefix, delimiter, after, limit in asked:
            found = await pages(buckets, prefix, delimiter, after, limit)
            assert found == expected(keys, prefix, delimiter, after)
        await buckets.aclose()

    run(scenario)


def test_what_lies_below_a_common_prefix_is_not_read(tmp_path: Path) -> None:
    async def scenario() -> None:
        buckets = Net(tmp_path).device()
        await buckets.create_bucket("demo")
        keys = [f"{folder}/{n:05}" for folder in "abc" for n in range(3000)] + ["z"]
        for at in range(0, len(keys), 3000):
            await fill(buckets, keys[at : at + 3000])
        view = await buckets._opened("demo", await buckets.bucket("demo")).view()
        read = 0
        scan = type(view).scan

        async def counting(self, *arguments, **options):  # type: ignore[no-untyped-def]
            nonlocal read
            async for row in scan(self, *arguments, **options):
                read += 1
                yield row

        type(view).scan = counting  # type: ignore[method-assign]
        try:
            page = await buckets.list("demo", "", "/")
        finally:
            type(view).scan = scan  # type: ignore[method-assign]
        assert ([entry.key for entry in page.entries], page.prefixes) == (["z"], ["a/", "b/", "c/"])
        assert read <= 4 * (PATIENCE + 2)
        assert (await buckets.list("demo", "", "/", limit=0)).next is None
        await buckets.aclose()

    run(scenario)


def test_markers_hide_keys_and_common_prefixes(tmp_path: Path) -> None:
    async def scenario() -> None:
        buckets = Net(tmp_path).device()
        await buckets.create_bucket("demo", versioning=ENABLED)
        for key in ("a/1", "a/2", "b/1", "c"):
            for _ in range(3):
                await put(buckets, key)
        await buckets.delete("demo", [DeleteWhat(key) for key in ("a/1", "a/2", "c")])
        page = await buckets.list("demo", "", "/")
        assert (page.entries, page.prefixes) == ([], ["b/"])
        versions = await buckets.list_versions("demo", "", "/")
        assert ([entry.key for entry in versions.entries], versions.prefixes) == (["c"] * 4, ["a/", "b/"])
        await asyncio.gather(*(put(buckets, "b/1", str(n).encode()) for n in range(2 * PATIENCE)))
        assert [entry.key for entry in (await buckets.list("demo")).entries] == ["b/1"]
        await buckets.aclose()

    run(scenario)


def test_versions_come_in_pages_that_may_end_within_a_key(tmp_path: Path) -> None:
    async def scenario() -> None:
        buckets = Net(tmp_path).device()
        await buckets.create_bucket("demo")
        await put(buckets, "k")
        await put(buckets, "l/1")
        await buckets.configure("demo", lambda record: replace(record, versioning=ENABLED))
        for _ in range(3):
            await put(buckets, "k")
        await put(buckets, "l/1")
        whole = (await buckets.list_versions("demo")).entries
        assert [(entry.key, entry.is_latest) for entry in whole] == [
            ("k", True), ("k", False), ("k", False), ("k", False), ("l/1", True), ("l/1", False),
        ]  # fmt: skip
        assert whole[3].version_id == whole[5].version_id == "null"
        for limit in (1, 2, 4, 5):
            found, marker = [], ("", "")
            while True:
                page = await buckets.list_versions("demo", "", "", *marker, limit)
                found += page.entries
                if page.next_key is None:
                    break
                marker = page.next_key, page.next_version or ""
            assert found == whole
        page = await buckets.list_versions("demo", "", "/", "k", "null", 5)
        assert (page.entries, page.prefixes, page.next_key) == ([], ["l/"], None)
        page = await buckets.list_versions("demo", "", "", "k", "", 5)
        assert page.entries == whole[4:]
        await buckets.aclose()

    run(scenario)
