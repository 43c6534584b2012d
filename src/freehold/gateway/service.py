"""Ports of services that run on nodes: /-/service/ID/path leads to where the service of that id runs now.

The id is the key: whoever knows it may use the service. Requests and answers pass through as they come, but for what is
between two ends only (RFC 9110, section 7.6.1), for cookies, which go to that service alone, and for what speaks for
the whole host. A service that has moved is found at its new node; while it is nowhere, the answer is 503. WebSockets
are not passed on.

Invariant: nothing is asked of a node but the path of the service, and nobody's credentials for the gateway reach it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from http.cookies import CookieError, SimpleCookie

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from freehold.client.root import ServicePlace
from freehold.client.service_places import ANSWER_HEADER, TOKEN_HEADER, URL_PATH
from freehold.gateway.tenants import Tenant
from freehold.market.meeting import node_peer
from freehold.net.client import Dial
from freehold.protocol.errors import FreeholdError, Unavailable
from freehold.protocol.typed import Domain
from freehold.protocol.units import Address

PIECE = 64 * 2**10
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
BODIES = frozenset({"POST", "PUT", "PATCH"})
FRESH_SECONDS = 5.0  # for which a place is taken as it was read
_BETWEEN = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer"),
        *("transfer-encoding", "upgrade", "host", "content-length", "expect"),
    }
)
_OWN = frozenset({TOKEN_HEADER.lower(), ANSWER_HEADER.lower()})
_FORWARDED = ("X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Prefix")
# What speaks for the whole host, of which a service is one path among others'.
_OF_THE_HOST = frozenset(
    {"service-worker-allowed", "clear-site-data", "strict-transport-security", "alt-svc", "public-key-pins", "nel"}
    | {"report-to", "reporting-endpoints", "origin-agent-cluster", "server"}
)


class ServicePorts:
    """Passes requests on to services of a gateway's accounts."""

    def __init__(self, tenants: Iterable[Tenant], dial: Dial, domain: Domain, clock: Callable[[], float]) -> None:
        self._tenants = tenants
        self._dial = dial
        self._domain = domain
        self._clock = clock

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """The service's answer; 404 for an id that no service has, 502 and 503 where it cannot be reached."""
        service, slash, rest = request.raw_path.removeprefix(URL_PATH).partition("/")
        if not slash:
            service, mark, query = service.partition("?")
            return _moved(f"{URL_PATH}{service}/{mark}{query}")
        if request.method not in METHODS:
            return _said(405, "services are spoken to by HTTP's usual methods")
        place = await self._find(service, FRESH_SECONDS)
        if place is None:
            return _said(404, "there is no such service")
        failure: FreeholdError | None = None
        for fresh in (False, True):
            if fresh:
                newer = await self._find(service, 0)
                if newer is None or newer == place:
                    break
                place = newer
            try:
                return await self._pass_on(request, service, place, rest)
            except FreeholdError as error:  # before anything was answered
                failure = error
                if request.can_read_body:  # it is spent
                    break
        detail = "" if failure is None else f": {failure.message}"
        return _said(503, f"the service cannot be reached just now{detail}", {"Retry-After": "2"})

    async def _find(self, service: str, max_age: float) -> ServicePlace | None:
        roots = await asyncio.gather(*(tenant.root(max_age) for tenant in self._tenants))
        return next((root.services[service] for root in roots if service in root.services), None)

    async def _pass_on(
        self, request: web.BaseRequest, service: str, place: ServicePlace, rest: str
    ) -> web.StreamResponse:
        peer = node_peer(self._dial, Address(place.node), place.endpoint, self._domain, self._clock)
        path = f"/v1/compute/{place.lease}/services/{place.order}/{rest}"
        host = request.headers.get("Host", "")
        headers = _passed(request.headers) | {
            TOKEN_HEADER: place.token,
            **dict(zip(_FORWARDED, (request.remote or "", host, request.scheme, f"{URL_PATH}{service}"), strict=True)),
        }
        body = request.content.iter_chunked(PIECE) if request.method in BODIES and request.can_read_body else None
        async with peer.exchange(request.method, path, headers=headers, data=body) as answer:
            if ANSWER_HEADER not in answer.headers:
                raise Unavailable(f"{place.endpoint} does not run it", status=answer.status)
            response = web.StreamResponse(status=answer.status, reason=answer.reason)
            response.headers.extend(_answered(answer.headers, f"{URL_PATH}{service}/"))
            if answer.content_length is not None:
                response.content_length = answer.content_length
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


def _between(headers: Mapping[str, str]) -> frozenset[str]:
    """What is for the next end only, by its own words too."""
    named = headers.get("Connection", "").lower().split(",")
    return _BETWEEN | {name.strip() for name in named}


def _passed(headers: CIMultiDictProxy[str]) -> dict[str, str]:
    dropped = _between(headers) | _OWN | {name.lower() for name in _FORWARDED}
    return {name: value for name, value in headers.items() if name.lower() not in dropped}


def _answered(headers: CIMultiDictProxy[str], path: str) -> CIMultiDict[str]:
    dropped = _between(headers) | _OWN | _OF_THE_HOST
    kept: CIMultiDict[str] = CIMultiDict()
    for name, value in headers.items():
        if name.lower() == "set-cookie":
            for cookie in _confined(value, path):
                kept.add(name, cookie)
        elif name.lower() not in dropped:
            kept.add(name, value)
    return kept


def _confined(value: str, path: str) -> list[str]:
    """The cookies of a header, for this service's path alone."""
    try:
        cookies = SimpleCookie(value)
    except CookieError:
        return []
    for cookie in cookies.values():
        cookie["path"], cookie["domain"] = path, ""
    return [cookie.OutputString() for cookie in cookies.values()]


def _said(status: int, text: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(status=status, text=f"{text}\n", headers=headers)


def _moved(location: str) -> web.Response:
    return web.Response(status=308, headers={"Location": location})
