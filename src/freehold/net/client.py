"""The one HTTP client: connections are reused, errors come back as the types that the server raised.

Over https a peer is known by the fingerprint of its certificate (`tls.py`), and by nothing else. Where that is not yet
known, `Dial.fingerprint_at` asks for it; whoever calls that must find it in something signed before relying on what the
peer says. Invariant: no byte of a request leaves over a connection whose certificate was not compared with one, and a
peer that has a fingerprint is never spoken to over http.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import aiohttp
import yarl

from freehold.net.tls import client_context, fingerprint_of
from freehold.protocol.errors import (
    Corrupt,
    FreeholdError,
    MalformedMessage,
    Overloaded,
    Unavailable,
    WrongCertificate,
)
from freehold.protocol.typed import canonical_json, parse_json
from freehold.protocol.units import ZERO_HASH, Address, Hash

CONNECT_SECONDS = 5.0
READ_SECONDS = 60.0  # without a byte arriving
BYTES_LIMIT = 256 * 2**20  # of an answer that is raw bytes: bundles are the largest
JSON_LIMIT = 4 * 2**20  # of an answer in the envelope; who expects more says so
ERROR_LIMIT = 64 * 2**10
JSON_HEADERS = {"Content-Type": "application/json"}
BYTES_HEADERS = {"Content-Type": "application/octet-stream"}

T = TypeVar("T")
Check = aiohttp.Fingerprint | bool  # aiohttp's `ssl`


class Pin(Protocol):
    """Who knows a peer's fingerprint, and can find out again when the peer has a new certificate."""

    async def fingerprint(self, wrong: Hash = ZERO_HASH) -> Hash:
        """What the peer's certificate must have; `wrong`: anything but this one, which it no longer has."""


class Known(NamedTuple):
    """A certificate that its owner has signed for, in something that stands until `expiry` (unix time)."""

    fingerprint: Hash
    expiry: int


class Dial:
    """One a process: hands out peers that share its connections. `known` are certificates, by owner and URL."""

    def __init__(self, connections_per_peer: int = 16, read_seconds: float = READ_SECONDS) -> None:
        self._per_peer = connections_per_peer
        self._read_seconds = read_seconds
        self._session: aiohttp.ClientSession | None = None
        self._checks: dict[Hash, aiohttp.Fingerprint] = {}  # one of each: connections are kept by the object
        self.known: dict[tuple[Address, str], Known] = {}

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, limit_per_host=self._per_peer),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=self._read_seconds),
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

    def peer(self, url: str, pin: Hash | Pin = ZERO_HASH) -> Peer:
        """The party at `url` (scheme, host and port), whose certificate must have this fingerprint; zero over http."""
        return Peer(self, url.rstrip("/"), pin)

    def check(self, fingerprint: Hash) -> aiohttp.Fingerprint:
        """What compares a connection's certificate with `fingerprint` before anything is sent."""
        return self._checks.setdefault(fingerprint, aiohttp.Fingerprint(fingerprint))

    async def fingerprint_at(self, url: str) -> Hash:
        """The fingerprint of the certificate that is shown at `url` now, by whomever; zero for http. Unavailable."""
        target = _target_of(url)
        if target.scheme != "https" or not target.host:
            return ZERO_HASH
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, writer = await asyncio.open_connection(target.host, target.port, ssl=client_context())
        except TimeoutError:
            raise Unavailable(f"{url} shows no certificate within {CONNECT_SECONDS:.0f} s", url=url) from None
        except OSError as error:
            raise Unavailable(f"{url} shows no certificate: {error.strerror or error}", url=url) from None
        try:
            return fingerprint_of(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
        finally:
            writer.transport.abort()


class Peer:
    """One party's HTTP end. Every method raises Unavailable, or the typed error that the party answered."""

    def __init__(self, dial: Dial, url: str, pin: Hash | Pin) -> None:
        self._dial = dial
        self._pin = pin
        self.url = url

    def __repr__(self) -> str:
        return f"Peer({self.url})"

    @asynccontextmanager
    async def request(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, data: Any = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A streaming exchange; `path` is sent as it is written. A non-2xx answer raises its typed error."""
        async with self.exchange(method, path, headers=headers, data=data) as response:
            if response.status >= 300:
                raise await _error_of(response, self.url)
            yield response

    @asynccontextmanager
    async def exchange(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, data: Any = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A streaming exchange, whatever the answer's status.

        Redirects are not followed: a peer must not choose whom this process asks.
        """
        session = self._dial.session

        async def send(target: yarl.URL, check: Check) -> aiohttp.ClientResponse:
            return await session.request(method, target, headers=headers, data=data, allow_redirects=False, ssl=check)

        with self._named():
            async with await self._meet(path, send) as response:
                yield response

    @asynccontextmanager
    async def websocket(
        self, path: str, *, headers: Mapping[str, str], protocols: Sequence[str], limit: int
    ) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """A WebSocket whose messages have at most `limit` bytes; pings are the caller's to answer. What else than one
        is answered is aiohttp's WSServerHandshakeError."""
        session, closing = self._dial.session, aiohttp.ClientWSTimeout(ws_close=CONNECT_SECONDS)

        async def send(target: yarl.URL, check: Check) -> aiohttp.ClientWebSocketResponse:
            return await session.ws_connect(
                target, headers=headers, protocols=protocols, max_msg_size=limit, autoping=False, timeout=closing,
                ssl=check,
            )  # fmt: skip

        with self._named():
            async with await self._meet(path, send) as socket:
                yield socket

    @contextmanager
    def _named(self) -> Iterator[None]:
        """What goes wrong between two processes, as Unavailable; `refused` in its details where nothing listens."""
        try:
            yield
        except aiohttp.WSServerHandshakeError:
            raise
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError) as error:
            reason = str(error) or type(error).__name__
            refused = isinstance(error, aiohttp.ClientConnectorError) and error.errno == errno.ECONNREFUSED
            failure = Unavailable(f"{self.url} does not answer: {reason}", url=self.url)
            failure.details |= {"refused": True} if refused else {}
            raise failure from None
        except aiohttp.ClientError as error:
            raise Unavailable(f"{self.url}: {error}", url=self.url) from None

    async def _meet(self, path: str, send: Callable[[yarl.URL, Check], Awaitable[T]]) -> T:
        """The answer of the peer itself: one whose certificate is another is asked nothing."""
        target = _target_of(self.url + path)

        async def send_to(fingerprint: Hash) -> T:
            return await send(target, self._dial.check(fingerprint) if target.scheme == "https" else True)

        expected = await self._fingerprint(target)
        try:
            return await send_to(expected)
        except aiohttp.ServerFingerprintMismatch as error:
            shown = Hash(error.got)
        # Nothing was sent, so any body is whole. A certificate that its owner has signed for meanwhile is as good.
        newer = expected if isinstance(self._pin, Hash) else await self._pin.fingerprint(wrong=expected)
        if newer != shown:
            raise self._wrong(shown, newer)
        return await send_to(newer)

    async def _fingerprint(self, target: yarl.URL) -> Hash:
        expected = self._pin if isinstance(self._pin, Hash) else await self._pin.fingerprint()
        if target.scheme == "https" and expected == ZERO_HASH:
            raise WrongCertificate(f"{self.url} has no known certificate", url=self.url)
        if target.scheme != "https" and expected != ZERO_HASH:
            raise WrongCertificate(
                f"{self.url} must be spoken to over https: its certificate is {expected}",
                url=self.url,
                expected=str(expected),
            )
        return expected

    def _wrong(self, shown: Hash, expected: Hash) -> WrongCertificate:
        return WrongCertificate(
            f"{self.url} shows the certificate {shown}, not {expected}",
            url=self.url,
            shown=str(shown),
            expected=str(expected),
        )

    async def get_bytes(self, path: str, limit: int = BYTES_LIMIT, headers: Mapping[str, str] | None = None) -> bytes:
        """A GET's whole body, at most `limit` bytes."""
        async with self.request("GET", path, headers=headers) as response:
            return await _read(response, limit)

    async def call(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        data: Any = None,
        limit: int = JSON_LIMIT,
    ) -> Any:
        """The `data` of an answer's envelope, which has at most `limit` bytes."""
        async with self.request(method, path, headers=headers, data=data) as response:
            return _data_of(await _read(response, limit))

    async def get_json(self, path: str, limit: int = JSON_LIMIT) -> Any:
        """`call` by GET."""
        return await self.call("GET", path, limit=limit)

    async def post_json(self, path: str, value: object, limit: int = JSON_LIMIT) -> Any:
        """`call` by POST."""
        return await self.call("POST", path, headers=JSON_HEADERS, data=canonical_json(value), limit=limit)

    async def post_bytes(
        self, path: str, data: bytes, headers: Mapping[str, str] | None = None, limit: int = JSON_LIMIT
    ) -> Any:
        """`call` by POST; the body are raw bytes."""
        return await self.call("POST", path, headers=BYTES_HEADERS | dict(headers or {}), data=data, limit=limit)


def _target_of(url: str) -> yarl.URL:
    try:
        return yarl.URL(url, encoded=True)
    except ValueError:
        raise Unavailable(f"{url!r} is no address of a peer", url=url) from None


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
