"""An S3 bucket for blobs: all that a directory does, and what a service adds: it may be killed, full, or refuse."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from freehold.protocol.errors import DiskFull, InvalidInput, Unavailable
from freehold.store.blob_store import BlobStore
from tests.servers.processes import DEADLINE
from tests.servers.s3_server import S3Server
from tests.store.blobs_conformance import (
    ALLOWANCE,
    LARGE,
    BlobsConformance,
    Child,
    KillConformance,
    ListUnfinished,
    Reopen,
    stored,
)

pytest.importorskip("boto3", reason="not run: boto3 is not installed (make test-servers installs it)")

from botocore.stub import Stubber

from freehold.store import bucket
from freehold.store.bucket import Bucket


@pytest.fixture
def reopen(bucket_url: str) -> Iterator[Reopen]:
    opened: list[Bucket] = []

    def reopen(allowance: int) -> BlobStore:
        opened.append(Bucket(bucket_url, allowance))
        return opened[-1]

    yield reopen
    for each in opened:
        each.close()


@pytest.fixture
def list_unfinished(s3: S3Server, bucket_url: str) -> ListUnfinished:
    return lambda: s3.list_uploads(bucket_url.split("/")[2])


class TestBucket(BlobsConformance):
    pass


class TestBucketThroughKills(KillConformance):
    @pytest.fixture
    def child(self, s3: S3Server, bucket_url: str) -> Child:
        source = f"""
from freehold.store.bucket import Bucket
def open_blobs(allowance):
    return Bucket({bucket_url!r}, allowance)
"""
        return Child(source, s3.environment)


def test_a_service_killed_while_it_is_written_to_keeps_what_was_acknowledged(s3: S3Server, reopen: Reopen) -> None:
    blobs, numbers = reopen(LARGE), itertools.count()
    acknowledged: dict[str, bytes] = {}
    started: dict[str, bytes] = {}
    stopping, progress = threading.Event(), threading.Event()

    def write() -> None:
        while not stopping.is_set():
            key = f"k{next(numbers)}"
            data = started[key] = os.urandom(10_000 if len(started) % 4 else 9 << 20)
            try:
                blobs.put(key, [data])
            except Unavailable:
                continue
            acknowledged[key] = data
            progress.set()

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    for _ in range(2):
        assert progress.wait(DEADLINE)
        s3.kill()
        s3.restart()
        progress.clear()
        assert progress.wait(2 * DEADLINE)  # the same object goes on
    stopping.set()
    for writer in writers:
        writer.join()
    found = stored(reopen(LARGE))
    assert acknowledged.items() <= found.items() <= started.items()


def test_prefixes_keep_apart_and_what_is_deeper_is_not_counted(s3: S3Server, bucket_url: str) -> None:
    for name, data in (("top", b"1"), ("some/prefix/deeper/x", b"22"), ("some/prefixed", b"333")):
        with s3.client() as client:
            client.put_object(Bucket=bucket_url.split("/")[2], Key=name, Body=data)
    blobs, top = Bucket(bucket_url, ALLOWANCE), Bucket("/".join(bucket_url.split("/")[:3]), ALLOWANCE)
    assert (stored(blobs), blobs.used_bytes) == ({}, 0)
    blobs.put("top", [b"mine"])
    assert (stored(top), top.used_bytes) == ({"top": b"1"}, 1)
    blobs.close()
    top.close()


def test_more_keys_than_one_page_of_a_list(s3: S3Server, bucket_url: str) -> None:
    name = bucket_url.split("/")[2]
    with s3.client() as client, ThreadPoolExecutor(8) as pool:
        put = client.put_object
        for each in [pool.submit(put, Bucket=name, Key=f"some/prefix/{n}", Body=b"x") for n in range(1001)]:
            each.result()
    blobs = Bucket(bucket_url, ALLOWANCE)
    assert (blobs.used_bytes, len(set(blobs.list_keys()))) == (1001, 1001)
    blobs.close()


@pytest.mark.parametrize("url", ["", "s3://", "s3://b", "http://bucket/x", "s3://bucket//x", "s3://bucket/a b"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(InvalidInput, match="address"):
        Bucket(url, ALLOWANCE)


def test_a_bucket_that_is_not_there_and_a_wrong_secret_are_told(
    bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidInput, match="there is no bucket"):
        Bucket("s3://not-there/x", ALLOWANCE)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(InvalidInput, match="SignatureDoesNotMatch") as caught:
        Bucket(bucket_url, ALLOWANCE)
    assert "AWS_REGION" in caught.value.advice
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(InvalidInput, match="credentials"):
        Bucket(bucket_url, ALLOWANCE)


def test_a_service_that_is_not_there_is_unavailable(bucket_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "ATTEMPTS", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    with pytest.raises(Unavailable):
        Bucket(bucket_url, ALLOWANCE)


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("QuotaExceeded", 403, DiskFull),
        ("InsufficientStorage", 507, DiskFull),
        ("AccessDenied", 403, InvalidInput),
        ("InternalError", 500, Unavailable),
        ("SlowDown", 503, Unavailable),
    ],
)
def test_what_a_service_refuses_has_its_type_and_leaves_nothing(
    reopen: Reopen, code: str, status: int, kind: type[Exception]
) -> None:
    blobs = reopen(ALLOWANCE)
    assert isinstance(blobs, Bucket)
    with Stubber(blobs._client) as service:
        service.add_client_error("head_object", "404", http_status_code=404)
        service.add_client_error("put_object", code, http_status_code=status)
        with pytest.raises(kind):
            blobs.put("a", [b"x"])
    assert blobs.used_bytes == 0
    assert stored(blobs) == {}


def test_an_upload_that_was_said_to_be_complete_and_is_not_there_is_not_acknowledged(reopen: Reopen) -> None:
    blobs = reopen(LARGE)
    assert isinstance(blobs, Bucket)
    with Stubber(blobs._client) as service:
        service.add_response("create_multipart_upload", {"UploadId": "u"})
        service.add_response("upload_part", {"ETag": "one"})
        service.add_client_error("head_object", "404", http_status_code=404)
        service.add_response("upload_part", {"ETag": "two"})
        service.add_response("complete_multipart_upload", {"ETag": "whole"})
        service.add_client_error("head_object", "404", http_status_code=404)
        service.add_response("abort_multipart_upload", {})
        with pytest.raises(Unavailable, match="not there"):
            blobs.put("a", [bytes(bucket.PART + 1)])
        service.assert_no_pending_responses()
    assert blobs.used_bytes == 0
