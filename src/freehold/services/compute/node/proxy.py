"""A running service's port, reached through its node.

    ANY /v1/compute/{lease}/services/{order}/{path}     signed by the lease's client, or with the service's token

Path, query, headers and bodies go through as they are, but for what belongs to one connection, and the token, which
the program does not see. An answer of the service itself has the header `Freehold-Service`; the node's own errors have
not. WebSockets are passed on message by message. Invariant: nobody without token or key reaches a program, and one
is reached for as long as an order pays for it, no longer.
"""

from __future__ import annotations

import asyncio
import hmac
from pathlib import Path

import aiohttp
import yarl
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from freehold.protocol.errors import NotFound, Unavailable
from freehold.protocol.units import ZERO_HASH
from freehold.services.compute.node.orders_checks import parse_key
from freehold.services.compute.node.orders_desk import Desk
from freehold.services.compute.node.orders_live import Job
from freehold.services.compute.node.orders_services import Instance, Services
from freehold.services.seam import ProviderContext

TOKEN_HEADER, ANSWER_HEADER = "Freehold-Service-Token", "Freehold-Service"
READ_SECONDS = 300.0  # without a byte of the service's answer
MESSAGE_LIMIT = 16 * 2**20  # bytes of a WebSocket's message
# Of one connection (RFC 9110, 7.6.1), or of this node.
_DROPPED = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding"}
    | {"upgrade", "host", "expect", "freehold-request", "freehold-signature", TOKEN_HEADER.lower()}
)
_HANDSHAKE = ("sec-websocket-key", "sec-websocket-version", "sec-websocket-extensions", "sec-websocket-protocol")


class Proxy:
    """The way to the services of one node."""

    def __init__(self, context: ProviderContext, desk: Desk, services: Services) -> None:
        self._context, self._desk, self._services = context, desk, services
        self._sessions: dict[Path, aiohttp.ClientSession] = {}

    def routes(self, base: str) -> list[web.RouteDef]:
        """Below `base`."""
        return [web.route("*", f"{base}/{{lease}}/services/{{order}}/{{path:.*}}", self._pass_on)]

    async def stop(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(session.close() for session in self._sessions.values()))
        self._sessions.clear()

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        instance = await self._find(request)
        session = await self._session_of(instance.socket())
        target = yarl.URL("http://service" + _path_of(request), encoded=True)
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await _pass_messages(request, session, target)
        body = request.content if request.body_exists else None
        try:
            async with session.request(
                request.method, target, headers=_headers_of(request.headers), data=body, allow_redirects=False
            ) as answer:
                return await _send(request, answer)
        except aiohttp.ClientError as error:  # what it says may be no HTTP at all
            raise Unavailable(f"the service does not answer: {type(error).__name__}") from None

    async def _find(self, request: web.Request) -> Instance:
        """The instance that an order pays for, or has paid for. NotFound, WrongSignature."""
        standing = await self._context.leases.find(parse_key(request.match_info["lease"], "a lease"))
        found = await self._desk.find(parse_key(request.match_info["order"]))
        entry = found.entry if isinstance(found, Job) else found
        instance = None if entry is None else self._services.find(entry)
        token = request.headers.get(TOKEN_HEADER, "").encode()
        if not (instance is not None and hmac.compare_digest(token, instance.token.encode())):
            client = standing.lease.client
            self._context.authenticate(client, request.headers, request.method, request.raw_path, ZERO_HASH)
        if instance is None or entry is None or entry.lease != standing.lease.struct_hash():
            raise NotFound("no such service runs here")
        return instance

    async def _session_of(self, socket: Path) -> aiohttp.ClientSession:
        session = self._sessions.get(socket)
        if session is None:
            for path in [path for path in self._sessions if not path.exists()]:
                await self._sessions.pop(path).close()
            session = self._sessions[socket] = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(path=str(socket)),
                timeout=aiohttp.ClientTimeout(total=None, sock_read=READ_SECONDS),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return session


def _path_of(request: web.Request) -> str:
    """What follows the order's id, raw."""
    return "/" + request.raw_path.partition("/services/")[2].partition("/")[2]


def _headers_of(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    named = {name.strip().lower() for name in headers.get("Connection", "").split(",")}
    return CIMultiDict((k, v) for k, v in headers.items() if k.lower() not in _DROPPED | named)


async def _send(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=_headers_of(answer.headers))
    response.headers[ANSWER_HEADER] = "1"
    await response.prepare(request)
    try:
        async for piece in answer.content.iter_any():
            await response.write(piece)
    except (aiohttp.ClientError, OSError):
        if request.transport is not None:
            request.transport.abort()  # it has begun: nothing that follows may be taken for a part of it
        return response
    await response.write_eof()
    return response


async def _pass_messages(request: web.Request, session: aiohttp.ClientSession, target: yarl.URL) -> web.StreamResponse:
    names = [name.strip() for name in request.headers.get("Sec-WebSocket-Protocol", "").split(",") if name.strip()]
    headers = _headers_of(request.headers)
    for name in _HANDSHAKE:
        headers.popall(name, None)
    try:
        there = await session.ws_connect(target, headers=headers, protocols=names, max_msg_size=MESSAGE_LIMIT)
    except aiohttp.ClientError as error:
        raise Unavailable(f"the service takes no WebSocket: {type(error).__name__}") from None
    async with there:
        chosen = (there.protocol,) if there.protocol else ()
        here = web.WebSocketResponse(protocols=chosen, max_msg_size=MESSAGE_LIMIT)
        here.headers[ANSWER_HEADER] = "1"
        await here.prepare(request)
        ways = [asyncio.create_task(_forward(here, there)), asyncio.create_task(_forward(there, here))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            await here.close()
    return here


WebSocket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


async def _forward(source: WebSocket, target: WebSocket) -> None:
    async for message in source:
        if message.type is aiohttp.WSMsgType.TEXT:
            await target.send_str(message.data)
        elif message.type is aiohttp.WSMsgType.BINARY:
            await target.send_bytes(message.data)
