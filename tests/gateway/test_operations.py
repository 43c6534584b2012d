"""The table of operations: every request finds its operation, every operation its handler or a refusal by name."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from freehold.gateway.app import HANDLERS
from freehold.gateway.operations import BY_NAME, COPY, OPERATIONS, Level, find_operation
from freehold.gateway.wire.request import decode_query
from tests.gateway.gateway_world import World, play


def test_exactly_what_is_offered_has_a_handler() -> None:
    assert set(HANDLERS) == {operation.name for operation in OPERATIONS if operation.offered}


def test_each_operation_stands_there_once_and_says_what_it_needs() -> None:
    assert not [name for name, count in Counter(each.name for each in OPERATIONS).items() if count > 1]
    assert not [each.name for each in OPERATIONS if each.offered and not each.action.startswith("s3:")]


@pytest.mark.parametrize(
    ("level", "method", "query", "headers", "name"),
    [
        ("service", "GET", "", (), "ListBuckets"),
        ("service", "GET", "prefix=a&max-buckets=3", (), "ListBuckets"),
        ("bucket", "GET", "", (), "ListObjects"),
        ("bucket", "GET", "list-type=1", (), "ListObjects"),
        ("bucket", "GET", "list-type=2&prefix=versions", (), "ListObjectsV2"),
        ("bucket", "GET", "versions&prefix=a", (), "ListObjectVersions"),
        ("bucket", "GET", "uploads=", (), "ListMultipartUploads"),
        ("bucket", "GET", "analytics&id=1", (), "GetBucketAnalyticsConfiguration"),
        ("bucket", "GET", "analytics", (), "ListBucketAnalyticsConfigurations"),
        ("bucket", "POST", "delete", (), "DeleteObjects"),
        ("bucket", "POST", "", (), "PostObject"),
        ("object", "GET", "versionId=1&x-id=GetObject", (), "GetObject"),
        ("object", "GET", "partNumber=1", (), "GetObject"),
        ("object", "GET", "uploadId=1", (), "ListParts"),
        ("object", "PUT", "", (), "PutObject"),
        ("object", "PUT", "", (COPY,), "CopyObject"),
        ("object", "PUT", "partNumber=1&uploadId=2", (), "UploadPart"),
        ("object", "PUT", "partNumber=1&uploadId=2", (COPY,), "UploadPartCopy"),
        ("object", "PUT", "tagging", (COPY,), "PutObjectTagging"),
        ("object", "POST", "uploads", (), "CreateMultipartUpload"),
        ("object", "POST", "uploadId=1", (), "CompleteMultipartUpload"),
        ("object", "DELETE", "uploadId=1", (), "AbortMultipartUpload"),
        ("object", "POST", "select&select-type=2", (), "SelectObjectContent"),
        ("object", "POST", "", (), None),
        ("service", "PUT", "", (), None),
        ("bucket", "PATCH", "acl", (), None),
    ],
)
def test_a_request_finds_its_operation(
    level: str, method: str, query: str, headers: tuple[str, ...], name: str | None
) -> None:
    found = find_operation(Level(level), method, decode_query(query), headers)
    assert (found.name if found else None) == name


def test_what_is_not_offered_says_so_by_name(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        for operation in OPERATIONS:
            if not operation.offered:
                path = {Level.SERVICE: "/", Level.BUCKET: "/bucket-1", Level.OBJECT: "/bucket-1/key"}[operation.level]
                query = "&".join(mark if "=" in mark else f"{mark}=" for mark in operation.marks)
                answer = await world.send(operation.method, path, query)
                assert (answer.status, answer.code) == (501, "NotImplemented"), operation
                assert answer.find("Operation") == operation.name

    play(tmp_path, scene)


def test_names_are_those_of_s3() -> None:
    known = BY_NAME.keys()
    assert {"GetObject", "SelectObjectContent", "PutBucketReplication", "CreateSession"} <= known
    assert len(known) > 105
