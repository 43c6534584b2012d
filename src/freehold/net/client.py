"""The one HTTP client: connections are reused, errors come back as the types that the server raised."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import aiohttp
import yarl

from freehold.protocol.errors import Corrupt, FreeholdError, MalformedMessage, Overloaded, Unavailable
from freehold.protocol.typed import canonical_json, parse_json

CONNECT_SECONDS = 5.0
READ_SECONDS = 60.0  # without a byte arriving
BYTES_LIMIT = 256 * 2**20  # of an answer that is raw bytes: bundles are the largest
JSON_LIMIT = 4 * 2**20  # of an answer in the envelope; who expects more says so
ERROR_LIMIT = 64 * 2**10
JSON_HEADERS = {"Content-Type": "application/json"}
BYTES_HEADERS = {"Content-Type": "application/octet-stream"}


class Dial:
    """One a process: hands out peers that share its connections."""

    def __init__(self, connections_per_peer: int = 16) -> None:
        self._per_peer = connections_per_peer
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, limit_per_host=self._per_peer),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS),
            auto_decompress=False,
            read_bufsize=2**20,
            headers={"Accept-Encoding": "identity"},
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    @property
    def session(self) -> aiohttp.ClientSession:
        """The shared session; only inside `async with`."""
        if self._session is None:
            raise RuntimeError("this Dial is not open")
        return self._session

    def peer(self, url: str) -> Peer:
        """The party at `url` (scheme, host and port)."""
        return Peer(self, url.rstrip("/"))


class Peer:
    """One party's HTTP end. Every method raises Unavailable, or the typed error that the party answered."""

    def __init__(self, dial: Dial, url: str) -> None:
        self._dial = dial
        self.url = url

    def __repr__(self) -> str:
        return f"Peer({self.url})"

    @asynccontextmanager
    async def request(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, data: Any = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A streaming exchange; `path` is sent as it is written. A non-2xx answer raises its typed error.

        Redirects are not followed: a peer must not choose whom this process asks.
        """
        target = yarl.URL(self.url + path, encoded=True)
        try:
            async with self._dial.session.request(
                method, target, headers=headers, data=data, allow_redirects=False
            ) as response:
                if response.status >= 300:
                    raise await _error_of(response, self.url)
                yield response
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise Unavailable(f"{self.url} does not answer: {reason}", url=self.url) from None
        except aiohttp.ClientError as error:
            raise Unavailable(f"{self.url}: {error}", url=self.url) from None

    async def get_bytes(self, path: str, limit: int = BYTES_LIMIT) -> bytes:
        """A GET's whole body, at most `limit` bytes."""
        async with self.request("GET", path) as response:
            return await _read(response, limit)

    async def get_json(self, path: str, limit: int = JSON_LIMIT) -> Any:
        """The `data` of a GET's envelope, which has at most `limit` bytes."""
        return _data_of(await self.get_bytes(path, limit))

    async def post_json(self, path: str, value: object, limit: int = JSON_LIMIT) -> Any:
        """The `data` of a POST's envelope, which has at most `limit` bytes."""
        async with self.request("POST", path, headers=JSON_HEADERS, data=canonical_json(value)) as response:
            return _data_of(await _read(response, limit))

    async def post_bytes(
        self, path: str, data: bytes, headers: Mapping[str, str] | None = None, limit: int = JSON_LIMIT
    ) -> Any:
        """The `data` of a POST's envelope, which has at most `limit` bytes; the body are raw bytes."""
        async with self.request("POST", path, headers=BYTES_HEADERS | dict(headers or {}), data=data) as response:
            return _data_of(await _read(response, limit))


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    if (response.content_length or 0) > limit:
        raise Corrupt(f"an answer of more than {limit} bytes")
    chunks, size = [], 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > limit:
            raise Corrupt(f"an answer of more than {limit} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def _data_of(body: bytes) -> Any:
    value = parse_json(body)
    if not isinstance(value, dict) or "data" not in value:
        raise MalformedMessage("the answer is not in the envelope")
    return value["data"]


async def _error_of(response: aiohttp.ClientResponse, url: str) -> FreeholdError:
    """The typed error of an answer; with `retry_after` in its details, in seconds, where the header says so."""
    try:
        error = FreeholdError.from_json(parse_json(await _read(response, ERROR_LIMIT))["errors"][0])
    except (Corrupt, MalformedMessage, KeyError, IndexError, TypeError, AttributeError):
        kind = Overloaded if response.status == Overloaded.status else Unavailable
        error = kind(f"{url} answered {response.status}", url=url, status=response.status)
    error.details.pop("retry_after", None)
    seconds = response.headers.get("Retry-After", "")
    if seconds.isascii() and seconds.isdigit() and len(seconds) < 9:
        error.details["retry_after"] = int(seconds)
    return error


def retry_after(error: FreeholdError) -> int:
    """Seconds for which whoever raised this wants to be left alone; 0 where nothing was said."""
    seconds = error.details.get("retry_after")
    return seconds if type(seconds) is int and seconds >= 0 else 0
