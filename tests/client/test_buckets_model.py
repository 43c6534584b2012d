"""Any sequence of calls on one bucket, by two devices in turn, against lists in plain Python."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule
from msgspec.structs import replace

from freehold.client.bucket_types import CompletedPart, DeleteWhat, PutOptions
from freehold.client.buckets import Buckets
from freehold.client.errors import KeyNotFound, MethodNotAllowed, PreconditionFailed, VersionNotFound
from freehold.client.root import ENABLED, SUSPENDED
from freehold.services.storage.client_sources import BytesSource
from tests.client.bucket_world import SEGMENT, Net
from tests.client.test_buckets import data_of, get

KEYS = st.sampled_from(["a", "a/", "a/b", "a/c/d", "b", "é"])
SIZES = st.sampled_from([0, 5, 16 << 10, (16 << 10) + 1, SEGMENT + 1])

T = TypeVar("T")


@dataclass
class Entry:
    """A version, as the model has it; no data for a delete marker."""

    id: str
    data: bytes | None
    etag: str = ""


class Model(RuleBasedStateMachine):
    ids = Bundle("ids")
    uploads = Bundle("uploads")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.net = Net(Path(self.folder.name))
        self.runner = asyncio.Runner()
        self.devices = [self.net.device(name) for name in ("one", "two")]
        self.turn = 0
        self.state = ""
        self.count = 0
        self.keys: dict[str, list[Entry]] = {}  # newest first
        self.parts: dict[str, tuple[str, dict[int, tuple[bytes, str]]]] = {}

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @property
    def buckets(self) -> Buckets:
        self.turn += 1
        return self.devices[self.turn % 2]

    def teardown(self) -> None:
        for device in self.devices:
            self.run(device.aclose())
        self.runner.close()
        self.folder.cleanup()

    def data(self, size: int) -> bytes:
        self.count += 1
        return data_of(size, self.count)

    def place(self, key: str, entry: Entry) -> None:
        stack = self.keys.setdefault(key, [])
        if self.state != ENABLED:
            stack[:] = [other for other in stack if other.id != "null"]
        stack.insert(0, entry)

    def current(self, key: str) -> Entry | None:
        stack = self.keys.get(key)
        return stack[0] if stack and stack[0].data is not None else None

    @initialize()
    def create(self) -> None:
        self.run(self.buckets.create_bucket("demo"))

    @rule(state=st.sampled_from([ENABLED, SUSPENDED]))
    def configure(self, state: str) -> None:
        self.state = state
        for device in self.devices:  # the other one may be two seconds late by itself
            self.run(device.configure("demo", lambda record: replace(record, versioning=state)))
            self.run(device.root.read())

    @rule(target=ids, key=KEYS, size=SIZES, condition=st.sampled_from(["", "none", "match", "wrong"]))
    def put(self, key: str, size: int, condition: str) -> Any:
        data, now = self.data(size), self.current(key)
        options = {
            "": PutOptions(),
            "none": PutOptions(if_none_match="*"),
            "match": PutOptions(if_match=now.etag if now else "*"),
            "wrong": PutOptions(if_match="0" * 32),
        }[condition]
        try:
            info = self.run(self.buckets.put("demo", key, BytesSource(data), options))
        except PreconditionFailed:
            assert self.keys.get(key)
            assert condition == "wrong" or (condition == "none") == (now is not None)
            return multiple()
        except KeyNotFound:
            assert condition in ("match", "wrong")
            assert not self.keys.get(key)
            return multiple()
        assert condition == "" or (condition == "none" and now is None) or (condition == "match" and now is not None)
        assert (info.version_id == "null") == (self.state != ENABLED)
        self.place(key, Entry(info.version_id, data, info.etag))
        return key, info.version_id

    @rule(target=ids, key=KEYS)
    def delete(self, key: str) -> Any:
        [done] = self.run(self.buckets.delete("demo", [DeleteWhat(key)]))
        if not self.state:
            self.keys.pop(key, None)
            return multiple()
        self.place(key, Entry(done.marker_id, None))  # type: ignore[union-attr, arg-type]
        return key, done.marker_id  # type: ignore[union-attr]

    @rule(id=ids)
    def delete_version(self, id: tuple[str, str]) -> None:
        self.run(self.buckets.delete("demo", [DeleteWhat(*id)]))
        key, version = id
        self.keys[key] = [entry for entry in self.keys.get(key, []) if entry.id != version]

    @rule(target=uploads, key=KEYS)
    def begin(self, key: str) -> str:
        upload = self.run(self.buckets.create_upload("demo", key))
        self.parts[upload] = key, {}
        return upload

    @rule(upload=uploads, number=st.integers(1, 4))
    def part(self, upload: str, number: int) -> None:
        if upload in self.parts:
            key, parts = self.parts[upload]
            data = self.data(SEGMENT + number)
            part = self.run(self.buckets.put_part("demo", key, upload, number, BytesSource(data)))
            parts[number] = data, part.etag

    @rule(target=ids, upload=consumes(uploads), abort=st.booleans())
    def end(self, upload: str, abort: bool) -> Any:
        key, parts = self.parts.pop(upload)
        if abort or not parts:
            self.run(self.buckets.abort_upload("demo", key, upload))
            return multiple()
        named = [CompletedPart(number, parts[number][1]) for number in sorted(parts)]
        info = self.run(self.buckets.complete_upload("demo", key, upload, named))
        whole = b"".join(parts[number][0] for number in sorted(parts))
        self.place(key, Entry(info.version_id, whole, info.etag))
        return key, info.version_id

    @rule(id=ids)
    def read(self, id: tuple[str, str]) -> None:
        key, version = id
        entry = next((entry for entry in self.keys.get(key, []) if entry.id == version), None)
        try:
            found: bytes | None = self.run(get(self.buckets, key, version))
        except VersionNotFound:
            assert entry is None
        except MethodNotAllowed:
            assert entry is not None
            assert entry.data is None
        else:
            assert entry is not None
            assert found == entry.data
        now = self.current(key)
        try:
            found = self.run(get(self.buckets, key))
        except KeyNotFound:
            found = None
        assert found == (now.data if now else None)

    @rule()
    def upkeep(self) -> None:
        self.run(self.buckets.maintain(1, 0))

    @invariant()
    def lists_are_what_they_should_be(self) -> None:
        if not self.turn:
            return
        there = {key for key in self.keys if self.current(key)}
        page = self.run(self.buckets.list("demo"))
        assert [entry.key for entry in page.entries] == sorted(there, key=str.encode)
        versions = self.run(self.buckets.list_versions("demo")).entries
        expected = [(key, entry.id) for key in sorted(self.keys, key=str.encode) for entry in self.keys[key]]
        assert [(entry.key, entry.version_id) for entry in versions] == expected

    @invariant()
    def nothing_is_left_over(self) -> None:
        for device in self.devices:
            self.run(device.quiet())
        if self.turn:
            assert set(self.net.shelf.blobs) == self.run(named(self.devices[0]))


async def named(buckets: Buckets) -> set[bytes]:
    """The roots of all that records and table name."""
    return {segment.roots[0] async for stored in buckets._named("demo") for segment in stored.segments}


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
