"""A running service's port, reached through its node.

    ANY /v1/compute/{lease}/services/{order}/{path}     signed by the lease's client, or with the service's token

Path, query, headers, bodies and WebSockets go through as they are (`net/passing.py`), but for what belongs to one
connection, and the token, which the program does not see. An answer of the service itself has the header
`Freehold-Service`; the node's own errors have not. A service is asked so many things at once, and no more: those of
others are not held up. Invariant: nobody without token or key reaches a program, and one is reached for as long as an
order pays for it, no longer.
"""

from __future__ import annotations

import asyncio
import hmac
from pathlib import Path

import aiohttp
import yarl
from aiohttp import web
from multidict import CIMultiDict

from freehold.net.limits import Places
from freehold.net.passing import (
    HANDSHAKE,
    IDLE_SECONDS,
    MESSAGE_LIMIT,
    Upload,
    check_status,
    is_websocket,
    open_response,
    pass_answer,
    pass_headers,
    pass_messages,
    protocols_of,
)
from freehold.net.server import failure
from freehold.protocol.errors import BodyTooLarge, DeadlineExpired, FreeholdError, NotFound, Unavailable
from freehold.protocol.units import ZERO_HASH
from freehold.services.compute.node.orders_checks import parse_key
from freehold.services.compute.node.orders_desk import Desk
from freehold.services.compute.node.orders_live import Job
from freehold.services.compute.node.orders_services import Instance, Services
from freehold.services.seam import ProviderContext

TOKEN_HEADER, ANSWER_HEADER = "Freehold-Service-Token", "Freehold-Service"
FORWARDED_HOST = "X-Forwarded-Host"
BODY_LIMIT = 5 * 2**30
AT_ONCE, AT_ONCE_EACH = 256, 64  # requests and WebSockets, of all services, and of one
_OWN = frozenset({"freehold-request", "freehold-signature", TOKEN_HEADER.lower(), ANSWER_HEADER.lower()})


class Proxy:
    """The way to the services of one node."""

    def __init__(self, context: ProviderContext, desk: Desk, services: Services) -> None:
        self._context, self._desk, self._services = context, desk, services
        self._sessions: dict[Path, aiohttp.ClientSession] = {}
        self._places = Places(AT_ONCE, AT_ONCE_EACH)

    def routes(self, base: str) -> list[web.RouteDef]:
        """Below `base`."""
        return [web.route("*", f"{base}/{{lease}}/services/{{order}}/{{path:(?s:.*)}}", self._pass_on)]

    async def stop(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(session.close() for session in self._sessions.values()))
        self._sessions.clear()

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        instance = await self._find(request)
        with self._places.take(instance.token):
            session = await self._session_of(instance.socket())
            target = yarl.URL("http://service" + _path_of(request), encoded=True)
            if is_websocket(request.headers):
                return await _pass_websocket(request, session, target)
            return await _pass_request(request, session, target)

    async def _find(self, request: web.Request) -> Instance:
        """The instance that an order pays for, or has paid for. NotFound, WrongSignature."""
        standing = await self._context.leases.find(parse_key(request.match_info["lease"], "a lease"))
        found = await self._desk.find(parse_key(request.match_info["order"]))
        entry = found.entry if isinstance(found, Job) else found
        instance = None if entry is None else self._services.find(entry)
        token = request.headers.get(TOKEN_HEADER, "").encode(errors="surrogateescape")
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
                connector=aiohttp.UnixConnector(path=str(socket), limit=0),
                timeout=aiohttp.ClientTimeout(total=None, sock_read=IDLE_SECONDS),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return session


def _path_of(request: web.Request) -> str:
    """What follows the order's id, raw."""
    return "/" + request.raw_path.partition("/services/")[2].partition("/")[2]


def _headers_to(request: web.Request) -> CIMultiDict[str]:
    """With the host that its visitor asked for: programs compare it with where a request says it came from."""
    headers = pass_headers(request.headers, _OWN)
    headers["Host"] = request.headers.get(FORWARDED_HOST, "") or "service"
    return headers


async def _pass_request(request: web.Request, session: aiohttp.ClientSession, target: yarl.URL) -> web.StreamResponse:
    body = Upload(request, BODY_LIMIT)
    try:
        body.check()
        async with session.request(
            request.method,
            target,
            headers=_headers_to(request),
            data=body if request.body_exists else None,
            allow_redirects=False,
        ) as answer:
            check_status(answer.status)
            response = web.StreamResponse(
                status=answer.status, reason=answer.reason, headers=pass_headers(answer.headers, _OWN)
            )
            response.headers[ANSWER_HEADER] = "1"
            await pass_answer(request, answer, response)
            return response
    except BodyTooLarge as error:
        return _refused(error)
    except aiohttp.ClientError as error:  # what it says may be no HTTP at all
        if body.failure is not None:
            return _refused(body.failure)
        raise Unavailable(f"the service does not answer: {type(error).__name__}") from None


def _refused(error: FreeholdError) -> web.Response:
    """Told, and not raised: it is the waste of a visitor, and not of the gateway that brought it."""
    response = failure(error)
    if isinstance(error, DeadlineExpired):
        response.set_status(408)
    response.force_close()
    return response


async def _pass_websocket(request: web.Request, session: aiohttp.ClientSession, target: yarl.URL) -> web.StreamResponse:
    headers = _headers_to(request)
    for name in HANDSHAKE:
        headers.popall(name, None)
    try:
        there = await session.ws_connect(
            target, headers=headers, protocols=protocols_of(request.headers), max_msg_size=MESSAGE_LIMIT, autoping=False
        )
    except aiohttp.WSServerHandshakeError as error:  # the service has answered: something else
        status = error.status if error.status >= 400 else 502
        return web.Response(status=status, headers={ANSWER_HEADER: "1"})
    except aiohttp.ClientError as error:
        raise Unavailable(f"the service takes no WebSocket: {type(error).__name__}") from None
    async with there:
        here = open_response(there.protocol)
        here.headers[ANSWER_HEADER] = "1"
        await here.prepare(request)
        await pass_messages(here, there)
    return here
