"""Ports of services that run on nodes, at hosts of their own or below /-/service/ID/ (`service_origins.py`).

The id is the key: whoever knows it may use the service. Requests, answers and WebSockets pass through as they come
(`net/passing.py`), but for what is between two ends only, and for what would speak for others than the service. A
service that has moved is found at its new node; while it is nowhere, the answer is 503.

A service has so many requests at once, and all of them together so many, as has each node: however slow its visitors
are, other services and S3 are served. Invariant: nothing is asked of a node but the path of the service, and nobody's
credentials for the gateway reach it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import aiohttp
from aiohttp import web

from freehold.client.root import ServicePlace
from freehold.client.service_places import ANSWER_HEADER, URL_PATH
from freehold.gateway.bodies import OBJECT_LIMIT, send_continue
from freehold.gateway.service_origins import (
    headers_to_node,
    headers_to_visitor,
    is_page_visit,
    own_host,
    service_at,
)
from freehold.gateway.tenants import Tenant
from freehold.market.meeting import node_peer
from freehold.net.client import Dial, Peer
from freehold.net.limits import Places
from freehold.net.passing import (
    HANDSHAKE,
    MESSAGE_LIMIT,
    Upload,
    check_status,
    is_websocket,
    open_response,
    pass_answer,
    pass_messages,
    protocols_of,
)
from freehold.protocol.errors import BodyTooLarge, DeadlineExpired, FreeholdError, Overloaded, Unavailable
from freehold.protocol.typed import Domain
from freehold.protocol.units import Address

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
NODE_AT_ONCE = 96  # requests to one node, which takes 128 connections of one address, for services and all else
FRESH_SECONDS = 5.0  # for which a place is taken as it was read
NEW_SECONDS = 1.0  # the same, of one that was nowhere: it may be new
RETRY_SECONDS = 1
_UNKNOWN = (401, 403, 404)  # statuses of a node that does not run it, or under another token


class ServicePorts:
    """Passes requests on to services of a gateway's accounts. `at_once`: requests of all services, and of each one."""

    def __init__(
        self,
        tenants: Iterable[Tenant],
        dial: Dial,
        domain: Domain,
        clock: Callable[[], float],
        *,
        service_domain: str = "",
        at_once: tuple[int, int] = (256, 64),
    ) -> None:
        self._tenants = tenants
        self._dial = dial
        self._domain = domain
        self._clock = clock
        self._service_domain = service_domain
        self._places = Places(*at_once)
        self._at_nodes = Places(at_once[0], NODE_AT_ONCE)
        self._not_there: dict[str, tuple[ServicePlace, float]] = {}  # and until when nobody looks there again
        self._sockets: set[asyncio.Task[Any]] = set()

    def close(self) -> None:
        """End all WebSockets: they would go on for as long as their ends like."""
        for task in self._sockets:
            task.cancel()

    def service_at(self, request: web.BaseRequest) -> str | None:
        """The service that a request is for by its host, whatever its path; None where that is no service's."""
        return service_at(request.headers.get("Host", ""), self._service_domain)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """The service's answer; 404 for an id that no service has, 503 where it cannot be reached."""
        try:
            return await self._answer(request)
        except Overloaded:
            return _said(503, "there are as many requests for it as there may be at once", _RETRY)
        except FreeholdError as error:  # nobody says where it is
            return _said(503, f"the service cannot be found just now: {error.message}", _RETRY)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        service = self.service_at(request)
        if service is not None:
            visit = _Visit(request, service, request.raw_path.removeprefix("/"), is_own=True)
        else:
            service, slash, rest = request.raw_path.removeprefix(URL_PATH).partition("/")
            if not slash:
                service, mark, query = service.partition("?")
                return _moved(f"{URL_PATH}{service}/{mark}{query}")
            host = own_host(service, request.headers.get("Host", ""), self._service_domain)
            visit = _Visit(request, service, rest, is_own=False)
            if (
                host is not None
                and is_page_visit(request.method, request.headers)
                and await self._find(service, FRESH_SECONDS)
            ):
                return _moved(f"//{host}/{rest}", 307)
        if request.method not in METHODS:
            return _said(405, "services are spoken to by HTTP's usual methods")
        with self._places.take(service):
            return await self._serve(visit)

    async def _serve(self, visit: _Visit) -> web.StreamResponse:
        place = await self._find(visit.service, FRESH_SECONDS) or await self._find(visit.service, NEW_SECONDS)
        if place is None:
            return _said(404, "there is no such service")
        known, until = self._not_there.get(visit.service, (None, 0.0))
        if known == place and self._clock() < until:
            return _said(503, "the service is on its way to another node", _RETRY)
        failure: FreeholdError | None = None
        for fresh in (False, True):
            if fresh:
                newer = await self._find(visit.service, 0)
                if newer is None or newer == place:
                    break
                place = newer
            try:
                with self._at_nodes.take(place.node):
                    return await self._pass_on(visit, place)
            except Overloaded:
                raise
            except FreeholdError as error:  # before anything was answered
                failure = error
                if visit.body.failure is not None:
                    return _refused(visit.body.failure)
                if visit.request.can_read_body:  # it is spent
                    break
        detail = "" if failure is None else f": {failure.message}"
        return _said(503, f"the service cannot be reached just now{detail}", _RETRY)

    async def _find(self, service: str, max_age: float) -> ServicePlace | None:
        roots = await asyncio.gather(*(tenant.root(max_age) for tenant in self._tenants))
        return next((root.services[service] for root in roots if service in root.services), None)

    async def _pass_on(self, visit: _Visit, place: ServicePlace) -> web.StreamResponse:
        request = visit.request
        peer = node_peer(self._dial, Address(place.node), place.endpoint, self._domain, self._clock)
        path = f"/v1/compute/{place.lease}/services/{place.order}/{visit.rest}"
        prefix = "" if visit.is_own else f"{URL_PATH}{visit.service}"
        headers = headers_to_node(request.headers, place.token, request.remote or "", request.scheme, prefix)
        if is_websocket(request.headers):
            for name in HANDSHAKE:
                headers.popall(name, None)
            return await self._pass_websocket(visit, place, peer, path, headers)
        try:
            visit.body.check()
        except BodyTooLarge as error:
            return _refused(error)
        if request.can_read_body and request.headers.get("Expect", "").lower() == "100-continue":
            await send_continue(request)
        data = visit.body if request.can_read_body else None
        async with peer.exchange(request.method, path, headers=headers, data=data) as answer:
            if ANSWER_HEADER not in answer.headers:
                raise self._unavailable(visit, place, answer.status)
            check_status(answer.status)
            response = web.StreamResponse(status=answer.status, reason=answer.reason)
            response.headers.extend(headers_to_visitor(answer.headers, visit.service, is_own=visit.is_own))
            await pass_answer(request, answer, response)
            return response

    async def _pass_websocket(
        self, visit: _Visit, place: ServicePlace, peer: Peer, path: str, headers: Mapping[str, str]
    ) -> web.StreamResponse:
        if not open_response(None).can_prepare(visit.request):
            return _said(400, "this asks for a WebSocket, and does not say how")
        task = asyncio.current_task()
        assert task is not None
        self._sockets.add(task)
        try:
            async with peer.websocket(
                path, headers=headers, protocols=protocols_of(visit.request.headers), limit=MESSAGE_LIMIT
            ) as there:
                here = open_response(there.protocol)
                await here.prepare(visit.request)
                await pass_messages(here, there)
                return here
        except aiohttp.WSServerHandshakeError as error:
            if error.headers is None or ANSWER_HEADER not in error.headers:
                raise self._unavailable(visit, place, error.status) from None
            return _said(error.status, "the service opens no WebSocket here")
        finally:
            self._sockets.discard(task)

    def _unavailable(self, visit: _Visit, place: ServicePlace, status: int) -> FreeholdError:
        """What the node itself has answered. Where it does not know the service, or its token, it is not asked again
        for a while: it counts what comes to nothing, and S3 needs it too."""
        if status == Overloaded.status:
            return Overloaded("the node has as many requests as it takes")
        if status in _UNKNOWN:
            self._not_there[visit.service] = place, self._clock() + NEW_SECONDS
        return Unavailable(f"{place.endpoint} does not run it", status=status)


class _Visit:
    """One request: for which service, which of its paths (without the first slash), and at whose host."""

    def __init__(self, request: web.BaseRequest, service: str, rest: str, *, is_own: bool) -> None:
        self.request = request
        self.service = service
        self.rest = rest
        self.is_own = is_own
        self.body = Upload(request, OBJECT_LIMIT)


_RETRY = {"Retry-After": str(RETRY_SECONDS)}


def _refused(error: FreeholdError) -> web.Response:
    """Its body is not wanted any more: nothing may follow on this connection."""
    response = _said(408 if isinstance(error, DeadlineExpired) else error.status, error.message)
    response.force_close()
    return response


def _said(status: int, text: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(status=status, text=f"{text}\n", headers=headers)


def _moved(location: str, status: int = 308) -> web.Response:
    return web.Response(status=status, headers={"Location": location})
