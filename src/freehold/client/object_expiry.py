"""Finding what a bucket's lifecycle rules take, by `lifecycle.py`, in one walk over its versions and uploads."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import NamedTuple

from freehold.client.lifecycle import Facts, Rule, is_upload_due, select_due
from freehold.client.object_records import OBJECTS, UPLOADS, Upload, Version, decode, decode_version
from freehold.client.table import View
from freehold.client.table_records import Key


class DueVersion(NamedTuple):
    """A version that goes, as it was when it was looked at; `expires`: as the current one, by the bucket's rules."""

    place: Key
    version: Version
    expires: bool


async def find_due_versions(view: View, rules: Sequence[Rule], now: int) -> AsyncGenerator[DueVersion, None]:
    """Every version that the rules take now."""
    stack: list[tuple[Key, Version]] = []
    async with aclosing(view.scan((OBJECTS, b"", b""), (OBJECTS + 1, b"", b""))) as rows:
        async for place, value in rows:
            if stack and stack[0][0][1] != place[1]:
                for due in _due(rules, stack, now):
                    yield due
                stack = []
            stack.append((place, decode_version(value.meta)))
    for due in _due(rules, stack, now):
        yield due


async def find_due_uploads(view: View, rules: Sequence[Rule], now: int) -> list[Key]:
    """Every unfinished upload that is to be aborted."""
    async with aclosing(view.scan((UPLOADS, b"", b""), (UPLOADS + 1, b"", b""))) as rows:
        return [
            place
            async for place, value in rows
            if is_upload_due(rules, place[1].decode(), decode(value.meta, Upload).created, now)
        ]


def _due(rules: Sequence[Rule], stack: Sequence[tuple[Key, Version]], now: int) -> list[DueVersion]:
    if not stack:
        return []
    facts = [Facts(v.size, v.modified, v.extra.tags, v.is_marker) for _, v in stack]
    due = select_due(rules, stack[0][0][1].decode(), facts, now)
    found = [DueVersion(*stack[index], False) for index in due.versions]
    return [DueVersion(*stack[0], True), *found] if due.current else found
