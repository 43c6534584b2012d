"""What passes through a process between two ends that are strangers to it: a request to a service, and its answer.

    headers     without those of one connection (RFC 9110, section 7.6.1)
    body        `Upload`: as it arrives, at a pace, up to a limit; none of it is kept
    answer      `pass_answer`: piece by piece, as they come; cut off where it breaks off: nobody takes it for whole
    WebSocket   `pass_messages`: message by message, pings too; of MESSAGE_LIMIT at most, for as long as something comes

Invariant: memory is bounded by pieces and messages, whatever either end sends; an end that only keeps the other waiting
is left after a bounded time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import suppress

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from freehold.net.server import GRACE_SECONDS, LEAST_RATE
from freehold.protocol.errors import BodyTooLarge, DeadlineExpired, FreeholdError, MalformedMessage, Unavailable

PIECE = 64 * 2**10
MESSAGE_LIMIT = 2**20  # bytes of a WebSocket's message
TAKE_SECONDS = 30.0  # for whoever asked to take a piece of the answer
LOOK_SECONDS = 2.0  # between looks whether whoever asked is still there
IDLE_SECONDS = 300.0  # of a WebSocket on which nothing comes, of an answer that does not go on
CLOSE_SECONDS = 2.0  # for an end to agree that a WebSocket is closed
ONE_CONNECTION = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer"}
    | {"transfer-encoding", "upgrade", "host", "expect"}
)
HANDSHAKE = ("sec-websocket-key", "sec-websocket-version", "sec-websocket-extensions", "sec-websocket-protocol")
_GONE = 1001  # what is said of an end that did not say why it closed
_UNSAYABLE = frozenset({1004, 1005, 1006, 1015})  # RFC 6455, section 7.4.1

Headers = CIMultiDictProxy[str] | CIMultiDict[str]
WebSocket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


def pass_headers(headers: Headers, own: Collection[str] = ()) -> CIMultiDict[str]:
    """All but those of one connection, by their own words too, and `own` (lower case)."""
    named = {name.strip().lower() for name in headers.get("Connection", "").split(",")}
    return CIMultiDict(
        (k, v) for k, v in headers.items() if k.lower() not in ONE_CONNECTION | named and k.lower() not in own
    )


def is_websocket(headers: Mapping[str, str]) -> bool:
    """Whether a request asks for one."""
    return headers.get("Upgrade", "").strip().lower() == "websocket"


def protocols_of(headers: Mapping[str, str]) -> list[str]:
    """The subprotocols that a request for a WebSocket names."""
    return [name.strip() for name in headers.get("Sec-WebSocket-Protocol", "").split(",") if name.strip()]


def check_status(status: int) -> None:
    """Unavailable where an answer is none of HTTP's final ones: nobody asked to go on in another protocol."""
    if not 200 <= status < 600:
        raise Unavailable(f"the service answers with the status {status}")


class Upload:
    """A request's body on its way: at most `limit` bytes, at LEAST_RATE after GRACE_SECONDS; only the time that its
    sender takes counts. `failure` is what ended it before its end: whoever it was sent to knows nothing of that."""

    def __init__(self, request: web.BaseRequest, limit: int) -> None:
        self._request, self._limit = request, limit
        self.failure: FreeholdError | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._pieces()

    def check(self) -> None:
        """BodyTooLarge where it announces more."""
        if (self._request.content_length or 0) > self._limit:
            raise BodyTooLarge(f"the body has more than {self._limit} bytes", limit=self._limit)

    async def _pieces(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._arriving():
                yield piece
        except FreeholdError as error:
            self.failure = error
            raise

    async def _arriving(self) -> AsyncIterator[bytes]:
        loop, content = asyncio.get_running_loop(), self._request.content
        arrived, waited = 0, 0.0
        while True:
            began = loop.time()
            try:
                async with asyncio.timeout(GRACE_SECONDS + arrived / LEAST_RATE - waited):
                    piece = await content.read(PIECE)
            except TimeoutError:
                raise DeadlineExpired("the body arrives too slowly", hint="Send it faster.") from None
            except (aiohttp.ClientError, web.PayloadAccessError, aiohttp.http_exceptions.HttpProcessingError, OSError):
                raise MalformedMessage("the body cannot be read to its end") from None
            if not piece:
                return
            waited += loop.time() - began
            arrived += len(piece)
            if arrived > self._limit:
                raise BodyTooLarge(f"the body has more than {self._limit} bytes", limit=self._limit)
            yield piece


async def pass_answer(request: web.BaseRequest, answer: aiohttp.ClientResponse, response: web.StreamResponse) -> None:
    """Send `response` with the bytes of `answer`, each piece as it comes."""
    await response.prepare(request)
    try:
        while piece := await _next_piece(request, answer.content):
            async with asyncio.timeout(TAKE_SECONDS):
                await response.write(piece)
        async with asyncio.timeout(TAKE_SECONDS):
            await response.write_eof()
    except (aiohttp.ClientError, OSError):  # a timeout is one of these
        if request.transport is not None:
            request.transport.abort()  # it has begun: nothing that follows may be taken for a part of it


async def _next_piece(request: web.BaseRequest, content: aiohttp.StreamReader) -> bytes:
    """ConnectionResetError once whoever asked is gone: an answer may be silent for long."""
    reading = asyncio.ensure_future(content.read(PIECE))
    try:
        while not reading.done():
            await asyncio.wait([reading], timeout=LOOK_SECONDS)
            if request.transport is None or request.transport.is_closing():
                raise ConnectionResetError("whoever asked is gone")
        return reading.result()
    finally:
        reading.cancel()


def open_response(protocol: str | None) -> web.WebSocketResponse:
    """The near end of a WebSocket whose far end is there, and has chosen `protocol`."""
    return web.WebSocketResponse(
        timeout=CLOSE_SECONDS,
        autoping=False,
        compress=False,
        protocols=(protocol,) if protocol else (),
        max_msg_size=MESSAGE_LIMIT,
    )


async def pass_messages(here: web.WebSocketResponse, there: aiohttp.ClientWebSocketResponse) -> None:
    """Both ways, until one end closes or nothing has come for IDLE_SECONDS; then both are closed, by the same code."""
    code = _GONE
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(IDLE_SECONDS) as idle:

            def stir() -> None:
                idle.reschedule(loop.time() + IDLE_SECONDS)

            ways = [asyncio.ensure_future(way) for way in (_forward(here, there, stir), _forward(there, here, stir))]
            try:
                done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                code = min(way.result() for way in done)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
    except (TimeoutError, aiohttp.ClientError, OSError):
        pass
    finally:
        with suppress(TimeoutError):  # who takes nothing is told nothing
            async with asyncio.timeout(2 * CLOSE_SECONDS):
                closing = there.close(code=code), here.close(code=code, drain=False)
                await asyncio.gather(*closing, return_exceptions=True)


async def _forward(source: WebSocket, target: WebSocket, stir: Callable[[], None]) -> int:
    """Until `source` closes; the code that it gave."""
    async for message in source:
        stir()
        if message.type is aiohttp.WSMsgType.TEXT:
            await target.send_str(message.data)
        elif message.type is aiohttp.WSMsgType.BINARY:
            await target.send_bytes(message.data)
        elif message.type is aiohttp.WSMsgType.PING:
            await target.ping(message.data)
        elif message.type is aiohttp.WSMsgType.PONG:
            await target.pong(message.data)
        else:  # an error: what came is no WebSocket's message, or is too long
            break
    code = source.close_code
    return _GONE if code is None or code in _UNSAYABLE else code
