"""One S3 request on its way through the gateway: what it names, who asks, and how it is answered.

Path style (`/bucket/key`) and virtual-host style (`bucket.domain`) are told apart here, from the raw path: a key may
hold "..", "//", "%2F" and whatever else a library would tidy away. Invariant: every answer carries the request's id,
and HEAD never has a body.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING

from aiohttp import web

from freehold.gateway.operations import Level, Operation
from freehold.gateway.wire.errors import S3Error
from freehold.gateway.wire.names import check_key, split_target
from freehold.gateway.wire.request import decode_query, decode_text, join_headers

if TYPE_CHECKING:
    from freehold.client.buckets import Buckets
    from freehold.client.root import BucketRecord
    from freehold.gateway.app import Gateway
    from freehold.gateway.tenants import Caller, Tenant
    from freehold.gateway.wire.sigv4 import Authorization, Seal

SERVER = "Freehold"
XML = "application/xml"
_BODILESS = (204, 304)


class Call:
    """One request. `query` is decoded, `headers` have lower-case names; `bucket`, `key` are "" where none is named."""

    def __init__(self, gateway: Gateway, request: web.BaseRequest) -> None:
        self.gateway = gateway
        self.request = request
        self.method = request.method
        self.headers = join_headers(request.headers.items())
        self.path, _, self.raw_query = _strip_origin(request.raw_path).partition("?")
        self.query: Mapping[str, str] = {}
        self.level = Level.SERVICE
        self.bucket = self.key = ""
        self.hosted = ""  # the bucket, where the host names it
        self.request_id = secrets.token_hex(8).upper()
        self.common = {"x-amz-request-id": self.request_id, "x-amz-id-2": self.request_id, "Server": SERVER}
        self.has_begun = False  # the answer is on its way, and can only be cut off
        self.operation: Operation | None = None
        self.caller: Caller | None = None
        self.authorization: Authorization | None = None
        self.seal: Seal | None = None
        self.form: Mapping[str, str] | None = None  # what a form's fields say in place of headers
        self._tenant: Tenant | None = None
        self._record: BucketRecord | None = None

    def parse(self) -> None:
        """Find bucket, key and query. S3Error InvalidURI, KeyTooLongError."""
        if self.raw_query:
            self.query = decode_query(self.raw_query)
        self.hosted = find_hosted_bucket(self.headers.get("host", ""), self.gateway.domain)
        if self.hosted:
            self.bucket, self.key = self.hosted, decode_text(self.path[1:])
        else:
            self.bucket, self.key = split_target(self.path)
        if self.key:
            check_key(self.key)
            self.level = Level.OBJECT
        elif self.bucket:
            self.level = Level.BUCKET

    @property
    def tenant(self) -> Tenant:
        """The account that the request is about."""
        if self._tenant is None:
            raise S3Error("AccessDenied")
        return self._tenant

    @property
    def is_owners(self) -> bool:
        """Whether who asks is the account that the request is about."""
        return self.caller is not None and self.caller.tenant is self._tenant

    @property
    def record(self) -> BucketRecord:
        """The bucket that the request is about."""
        if self._record is None:
            raise S3Error("NoSuchBucket", BucketName=self.bucket)
        return self._record

    @property
    def objects(self) -> Buckets:
        """The account's buckets."""
        return self.tenant.objects

    def place(self, tenant: Tenant, record: BucketRecord | None) -> None:
        """The request is about this account, and this bucket of it."""
        self._tenant, self._record = tenant, record

    @property
    def version(self) -> str | None:
        """Which version is meant; None for the newest. S3Error where the parameter is there and empty."""
        version = self.query.get("versionId")
        if version == "":
            raise S3Error(
                "InvalidArgument", "Version id cannot be the empty string", ArgumentName="versionId", ArgumentValue=""
            )
        return version

    def answer(
        self, status: int = 200, headers: Mapping[str, str] | None = None, body: bytes | memoryview = b""
    ) -> web.Response:
        """An answer with these headers besides those that all have."""
        merged = {**self.common, **headers} if headers else self.common
        return web.Response(status=status, headers=merged, body=body if body or status not in _BODILESS else None)

    def xml(self, body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
        """An answer whose body is XML."""
        return self.answer(status, {"Content-Type": XML, **(headers or {})}, body)

    def fail(self, error: S3Error) -> web.Response:
        """The answer to an error. Where the request's body was not read, the connection ends with it."""
        headers = {"Content-Type": XML, **error.headers}
        if self.method == "HEAD" or error.status in _BODILESS:
            response = self.answer(error.status, error.headers)
        else:
            response = self.answer(error.status, headers, error.to_xml(self.path, self.request_id))
        if not self.request.content.is_eof():
            response.force_close()
        return response


def find_hosted_bucket(host: str, domain: str) -> str:
    """The bucket that a Host header names below `domain`; "" for the gateway itself and for other hosts."""
    if not domain:
        return ""
    name = host.lower()
    if name.endswith("]"):
        return ""
    name = name.partition(":")[0]
    return name.removesuffix(f".{domain}") if name.endswith(f".{domain}") else ""


def _strip_origin(target: str) -> str:
    """The path and query of a request's target, which proxies send with scheme and host."""
    if target.startswith("/"):
        return target
    _, found, rest = target.partition("://")
    slash = rest.find("/")
    return (rest[slash:] if slash >= 0 else "/") if found else "/"
