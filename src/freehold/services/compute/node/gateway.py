"""A job's own way to storage: it reads objects and delivers files through a gateway, by grants that its order brought.

    GET  {url}/-/share/TOKEN/bucket/key     an input, whose ETag the task may pin
    PUT  {url}/-/share/TOKEN/bucket/key     a file that came out; again after a fault, as long as the order counts

A token is a secret: it is in no log and no error, and goes from SQL when its job has ended. Nothing but the gateway
that the order names is asked: redirects are not followed, and it must be at a public address, or be one that the
operator has named: nobody reaches into an operator's network by an order.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
import logging
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec
import yarl

from freehold.net.public import is_address, is_public, public_connector
from freehold.net.server import LEAST_RATE, Pace
from freehold.protocol.errors import (
    Conflict,
    DiskFull,
    FreeholdError,
    InvalidInput,
    MalformedMessage,
    Refused,
    Unavailable,
)
from freehold.protocol.units import Hash
from freehold.services.compute.node.blobs import PIECE, in_thread
from freehold.services.compute.tasks import Input, OutputFile, Task

log = logging.getLogger(__name__)

CONNECT_SECONDS, READ_SECONDS = 10.0, 60.0
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 30.0  # between attempts
READ_ATTEMPTS = 5
ACCESS_LIMIT = 512 * 2**10  # bytes of an order's access
_TOKEN = re.compile(r"(?!\.)[A-Za-z0-9_\-=.]{1,65536}")
_URL = re.compile(r"https?://[A-Za-z0-9._\-\[\]:]+/?")
_HINT = "`access_hosts` in the node's configuration names the others that it may ask."
_AGAIN = {408, 409, 429, 500, 502, 503, 504, 507}  # statuses after which the same may work


class Access(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a job's storage is: the gateway, a token for each object that is read, one for what is delivered. Over
    https a gateway is known by its certificate's fingerprint where one is given, else by whom browsers trust."""

    url: str
    read: dict[str, str] = {}
    write: str = ""
    fingerprint: str = ""

    def __repr__(self) -> str:
        return "Access(...)"


class KeptAccess(Access, frozen=True):
    """An access as its node keeps it. `is_named`: the operator has named the gateway, wherever it is."""

    is_named: bool = False


def parse_access(value: Any, task: Task, hosts: str) -> bytes | None:
    """An order's access in the form in which it is kept; None where there is none. InvalidInput unless it fits the
    task, Refused where the gateway is not public and its host (with its port) does not match `hosts`."""
    if value is None:
        wanted = [f"{one.bucket}/{one.key}" for one in task.inputs if one.bucket]
        if wanted or task.delivery is not None:
            raise InvalidInput("the task reads or writes storage, and the order brings no access")
        return None
    try:
        access = msgspec.convert(value, Access)
    except msgspec.ValidationError as error:
        raise MalformedMessage(f"the order's access: {error}") from None
    is_named = _check_url(access.url, hosts)
    for one in task.inputs:
        if one.bucket and f"{one.bucket}/{one.key}" not in access.read:
            raise InvalidInput(f"the order's access has no token for the input {one.path!r}")
    if task.delivery is not None and not access.write:
        raise InvalidInput("the order's access has no token for its delivery")
    named = [part for one in task.inputs for part in (one.bucket, one.key)]
    if {".", ".."} & {*named, task.delivery.bucket if task.delivery is not None else ""}:
        raise InvalidInput("no bucket or object is called '.' or '..'")
    if access.fingerprint:
        Hash(access.fingerprint)
    if not all(_TOKEN.fullmatch(token) for token in (*access.read.values(), access.write or "-")):
        raise MalformedMessage("the order's access holds something that is no token")
    data = msgspec.json.encode(KeptAccess(**msgspec.structs.asdict(access), is_named=is_named))
    if len(data) > ACCESS_LIMIT:
        raise InvalidInput(f"an order's access has at most {ACCESS_LIMIT} bytes")
    return data


def _check_url(url: str, hosts: str) -> bool:
    """Whether the operator has named this host."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise InvalidInput("the access's gateway is no URL") from None
    # Without path, query and fragment: whatever host it is, nothing but shared links is asked of it.
    if not _URL.fullmatch(url) or not parts.hostname:
        raise InvalidInput("the access's gateway is an http or https URL of a host, and nothing else")
    place = parts.hostname if port is None else f"{parts.hostname}:{port}"
    is_named = re.fullmatch(hosts, place) is not None
    if not is_named and is_address(parts.hostname) and not is_public(parts.hostname):
        raise Refused(f"the gateway {place} is at no public address", hint=_HINT)
    return is_named


class Gateway:
    """One job's storage, as a context. Bytes that are read are counted for its bill."""

    def __init__(self, access: KeptAccess) -> None:
        self._access = access
        self._check = aiohttp.Fingerprint(Hash(access.fingerprint)) if access.fingerprint else True
        self._session: aiohttp.ClientSession | None = None
        self.read_bytes = 0

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector() if self._access.is_named else public_connector(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS),
            auto_decompress=False,
            headers={"Accept-Encoding": "identity", "Accept": "application/json"},
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    def _target(self, token: str, bucket: str, key: str) -> yarl.URL:
        path = f"/-/share/{token}/{quote(bucket, safe='')}/{quote(key, safe='')}"
        return yarl.URL(self._access.url.rstrip("/") + path, encoded=True)

    async def read(self, one: Input, target: Path, limit: int) -> tuple[str, int]:
        """An input's bytes, at most `limit`, into a new file; their SHA-256 and how many. Conflict where its ETag is
        not the one that the task pins, DiskFull, Refused, Unavailable; DeadlineExpired where it comes too slowly: its
        job holds a slot, and is not billed for this."""
        failure: FreeholdError = Unavailable("the gateway was not asked")
        for attempt in range(READ_ATTEMPTS):
            if attempt:
                await asyncio.sleep(_pause(attempt))
            try:
                return await self._read(one, target, limit)
            except Unavailable as error:
                failure = error
        raise failure

    async def _read(self, one: Input, target: Path, limit: int) -> tuple[str, int]:
        assert self._session is not None
        url = self._target(self._access.read[f"{one.bucket}/{one.key}"], one.bucket, one.key)
        name = f"{one.bucket}/{one.key}"
        try:
            async with self._session.get(url, allow_redirects=False, ssl=self._check) as response:
                _check_answer(response.status, name)
                etag = response.headers.get("ETag", "").strip('"')
                if one.etag and etag != one.etag.strip('"'):
                    raise Conflict(f"{name} is not the version that the task names", etag=etag)
                if (response.content_length or 0) > limit:
                    raise DiskFull(f"{name} has more than the {limit} bytes that the task may use", limit=limit)
                return await self._write(response, target, name, limit)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _fault(f"{name} cannot be read", error) from None

    async def _write(self, response: aiohttp.ClientResponse, target: Path, name: str, limit: int) -> tuple[str, int]:
        digest, size = hashlib.sha256(), 0
        async with Pace() as pace:
            with target.open("wb") as file:
                async for chunk in response.content.iter_chunked(PIECE):
                    size += len(chunk)
                    pace.count(len(chunk))
                    self.read_bytes += len(chunk)
                    if size > limit:
                        raise DiskFull(f"{name} has more than the {limit} bytes that the task may use", limit=limit)
                    digest.update(chunk)
                    await in_thread(file.write, chunk)
        return digest.hexdigest(), size

    async def deliver(
        self,
        bucket: str,
        key: str,
        pieces: Callable[[], AsyncIterator[bytes]],
        file: OutputFile,
        may_go_on: Callable[[], bool],
    ) -> None:
        """Put a file, whose bytes `pieces` gives anew for each attempt, again and again until it is there or
        `may_go_on` says no. Refused, Unavailable."""
        attempt = 0
        while True:
            try:
                return await self._deliver(bucket, key, pieces(), file)
            except Unavailable as error:
                attempt += 1
                if not may_go_on():
                    raise
                log.info("%s: tried again (attempt %d)", error.message, attempt)
                await asyncio.sleep(_pause(attempt))

    async def _deliver(self, bucket: str, key: str, data: AsyncIterator[bytes], file: OutputFile) -> None:
        assert self._session is not None
        name = f"{bucket}/{key}"
        headers = {
            "Content-Length": str(file.size),
            "Content-Type": "application/octet-stream",
            "x-amz-checksum-sha256": base64.b64encode(bytes.fromhex(file.sha256)).decode(),
        }
        url = self._target(self._access.write, bucket, key)
        try:
            async with (
                asyncio.timeout(READ_SECONDS + file.size / LEAST_RATE),
                self._session.put(url, data=data, headers=headers, allow_redirects=False, ssl=self._check) as response,
            ):
                _check_answer(response.status, name)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _fault(f"{name} cannot be written", error) from None


def _pause(attempt: int) -> float:
    return min(FIRST_PAUSE * 2.0 ** min(attempt, 20), LONGEST_PAUSE)


def _check_answer(status: int, name: str) -> None:
    if status in _AGAIN:
        raise Unavailable(f"the gateway answered {status} for {name}", status=status)
    if not 200 <= status < 300:
        raise Refused(f"the gateway answered {status} for {name}", status=status)


def _fault(what: str, error: Exception) -> FreeholdError:
    if isinstance(error, OSError) and error.errno == errno.EPERM:  # what `public_connector` says
        return Refused(f"{what}: the gateway is at no public address", hint=_HINT)
    return Unavailable(f"{what}: {_why(error)}")


def _why(error: Exception) -> str:
    """A fault without its URL, which holds the token."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__


def read_access(data: bytes | None) -> KeptAccess | None:
    """The access behind the form in which it is kept."""
    return None if data is None else msgspec.json.decode(data, type=KeptAccess)
