"""Blobs in an S3 bucket: of any service that speaks S3, by `s3://BUCKET/PREFIX`.

    BUCKET/PREFIX/KEY       whole; the bucket itself is made by whoever runs it

Where and who comes from the variables that every S3 tool reads: AWS_ENDPOINT_URL_S3 (none: Amazon's), AWS_REGION,
AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile in ~/.aws.

Up to PART bytes are one PutObject, more a multipart upload: nothing is seen under its key before the last request of
either is answered, and an upload that nobody finished is aborted at the next start. So one process owns a prefix.
Invariant: that of `blob_store.py`, through any kill of this process; what becomes of an acknowledged object when the
service loses power is the service's promise. A request that is not answered is sent again; in the end it is
Unavailable, and a put that was may yet stand.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Lock
from typing import Any

from freehold.protocol.errors import DiskFull, FreeholdError, InvalidInput, NotFound, Unavailable
from freehold.store.blob_store import Arriving, BlobStore, Buffer, check_key, check_range

try:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ParamValidationError
except ImportError:
    raise InvalidInput("an S3 bucket needs boto3", hint="Install freehold[s3].") from None

PART = 8 * 2**20  # bytes of one request: S3 takes parts from 5 MiB on, and at most 10,000 of them
ATTEMPTS = 8  # of each request, with pauses that double: half a minute for a service to come back
_STRIPES = 64  # locks over keys: of two changes of one key at once, each must see the size that the other left
_URL = re.compile(r"s3://([A-Za-z0-9][A-Za-z0-9.-]{1,61}[A-Za-z0-9])((?:/[A-Za-z0-9._-]+)*)/?")
_MISSING = {"404", "NoSuchKey", "NotFound"}
_PAST_THE_END = {"416", "InvalidRange"}
_FULL = {"507", "InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"}
_CREDENTIALS = "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL_S3."


class Bucket(BlobStore):
    """The blobs below `url` (`s3://BUCKET/PREFIX`). InvalidInput, Unavailable."""

    def __init__(self, url: str, allowance_bytes: int) -> None:
        super().__init__(allowance_bytes)
        parts = _URL.fullmatch(url)
        if parts is None:
            raise InvalidInput(f"{url!r} is no bucket's address", hint="It has the form s3://BUCKET/PREFIX.")
        self._bucket, path = parts.groups()
        self._prefix = f"{path[1:]}/" if path else ""
        self._stripes = [Lock() for _ in range(_STRIPES)]
        self._client = _connect()
        try:
            with self._talking():
                self._abort_unfinished()
                self._used = sum(item["Size"] for item in self._objects())
        except BaseException:
            self.close()
            raise

    def begin(self, key: str, size: int = 0) -> Upload:
        name = self._name(key)
        self._take(size)
        return Upload(self, key, name, size)

    def has(self, key: str) -> bool:
        return self._size(key) is not None

    def size(self, key: str) -> int:
        size = self._size(key)
        if size is None:
            raise NotFound(f"no blob {key}")
        return size

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        check_range(offset, length)
        if length == 0:
            self.size(key)
            return b""
        last = "" if length is None else offset + length - 1
        with self._get(key, f"bytes={offset}-{last}" if offset or length is not None else None) as body:
            data: bytes = body.read() if body is not None else b""
            return data

    def read_into(self, key: str, target: memoryview) -> int:
        if not target:
            self.size(key)
            return 0
        at = 0
        with self._get(key, f"bytes=0-{len(target) - 1}") as body:
            while body is not None and at < len(target) and (count := body.readinto(target[at:])):
                at += count
        return at

    def delete(self, key: str) -> bool:
        with self._changing(key), self._talking():
            size = self._size(key)
            if size is None:
                return False
            self._client.delete_object(Bucket=self._bucket, Key=self._name(key))
            self._give_back(size)
            return True

    def list_keys(self) -> Iterator[str]:
        with self._talking():
            for item in self._objects():
                yield item["Key"].removeprefix(self._prefix)

    def close(self) -> None:
        self._client.close()

    def _name(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _size(self, key: str) -> int | None:
        name = self._name(key)
        try:
            with self._talking():
                size: int = self._client.head_object(Bucket=self._bucket, Key=name)["ContentLength"]
                return size
        except NotFound:
            return None

    @contextmanager
    def _get(self, key: str, span: str | None) -> Iterator[Any]:
        """The stream of an object or a range of it; None where the range begins at its end or after. NotFound."""
        wanted = {"Bucket": self._bucket, "Key": self._name(key)} | ({"Range": span} if span else {})
        with self._talking():
            try:
                body = self._client.get_object(**wanted)["Body"]
            except ClientError as error:
                if _code(error) not in _PAST_THE_END:
                    raise
                body = None
            try:
                yield body
            finally:
                if body is not None:
                    body.close()

    def _objects(self) -> Iterator[dict[str, Any]]:
        pages = self._client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix, Delimiter="/"):
            yield from page.get("Contents", [])

    def _abort_unfinished(self) -> None:
        pages = self._client.get_paginator("list_multipart_uploads")
        for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix):
            for item in page.get("Uploads", []):
                if "/" not in item["Key"].removeprefix(self._prefix):
                    self._client.abort_multipart_upload(Bucket=self._bucket, Key=item["Key"], UploadId=item["UploadId"])

    def _changing(self, key: str) -> Lock:
        return self._stripes[hash(key) % _STRIPES]

    @contextmanager
    def _talking(self) -> Iterator[None]:
        """Gives the client's errors their types."""
        try:
            yield
        except (ClientError, BotoCoreError) as error:
            raise self._typed(error) from error

    def _typed(self, error: Exception) -> FreeholdError:
        if isinstance(error, NoCredentialsError | ParamValidationError):
            return InvalidInput(f"S3: {error}", hint=_CREDENTIALS)
        if not isinstance(error, ClientError):
            return Unavailable(f"S3: {error}")
        code, status = _code(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in _FULL or status == 507:
            return DiskFull(f"the bucket {self._bucket} is full: {error}")
        if code == "NoSuchBucket":
            return InvalidInput(f"there is no bucket {self._bucket}", hint="Make it, or correct the address.")
        if code in _MISSING:
            return NotFound(f"no such object in {self._bucket}")
        if status in (301, 307, 400, 401, 403):
            return InvalidInput(f"S3 refused: {error}", hint=_CREDENTIALS)
        return Unavailable(f"S3: {error}")


class Upload(Arriving):
    """An object that is being sent. At most PART bytes of it are in memory."""

    def __init__(self, bucket: Bucket, key: str, name: str, taken: int) -> None:
        super().__init__(bucket, taken)
        self._bucket, self._key = bucket, key
        self._client = bucket._client
        self._where = {"Bucket": bucket._bucket, "Key": name}
        self._buffer = bytearray()
        self._upload: dict[str, str] | None = None
        self._parts: list[dict[str, Any]] = []
        self._is_open = True

    def _append(self, chunk: Buffer) -> None:
        with memoryview(chunk).cast("B") as view:
            at = 0
            while at < len(view):
                count = min(len(view) - at, PART - len(self._buffer))
                self._buffer += view[at : at + count]
                at += count
                if len(self._buffer) == PART:
                    with self._bucket._talking():
                        self._send_part()

    def commit(self) -> None:
        with self._bucket._changing(self._key), self._bucket._talking():
            replaced = self._bucket._size(self._key) or 0
            if self._upload is None:
                self._client.put_object(**self._where, Body=bytes(self._buffer))
            else:
                if self._buffer:
                    self._send_part()
                self._complete(self._upload)
            self._is_open = False
            self._bucket._give_back(self._taken - self.size + replaced)

    def abort(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        self._buffer.clear()
        self._bucket._give_back(self._taken)
        if self._upload is not None:
            with suppress(FreeholdError), self._bucket._talking():  # what stays is aborted at the next start
                self._client.abort_multipart_upload(**self._where, **self._upload)

    def _complete(self, upload: dict[str, str]) -> None:
        """Join the parts, and look: a service that was killed while it joined them may say it has, and not have.

        (versitygw 1.8.0 answers the request that is sent again with 200; the object never appears.)
        """
        parts = {"Parts": self._parts}
        said = self._client.complete_multipart_upload(**self._where, **upload, MultipartUpload=parts)
        try:
            found = self._client.head_object(**self._where)
        except ClientError as error:
            if _code(error) not in _MISSING:
                raise
            found = {}
        if (found.get("ETag"), found.get("ContentLength")) != (said["ETag"], self.size):
            raise Unavailable(f"S3: {self._where['Key']} was said to be complete, and is not there")

    def _send_part(self) -> None:
        if self._upload is None:
            self._upload = {
                "UploadId": self._client.create_multipart_upload(**self._where, ChecksumAlgorithm="CRC32")["UploadId"]
            }
        number = len(self._parts) + 1
        answer = self._client.upload_part(**self._where, **self._upload, PartNumber=number, Body=bytes(self._buffer))
        sums = {name: value for name, value in answer.items() if name.startswith("Checksum") and name != "ChecksumType"}
        self._parts.append({"PartNumber": number, "ETag": answer["ETag"], **sums})
        self._buffer.clear()


def _connect() -> Any:
    config = Config(
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        connect_timeout=5,
        read_timeout=60,
        max_pool_connections=32,
        user_agent_extra="freehold",
    )
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    session = boto3.session.Session(region_name=region)
    try:
        return session.client("s3", region_name=session.region_name or "us-east-1", config=config)
    except (BotoCoreError, ValueError) as error:
        raise InvalidInput(f"S3: {error}", hint=_CREDENTIALS) from None


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
