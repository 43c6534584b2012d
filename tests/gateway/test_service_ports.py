"""Services through the gateway: requests reach the node that runs them now; nothing else of either end gets across."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from freehold.client.root import Root, ServicePlace
from freehold.client.service_places import ANSWER_HEADER, TOKEN_HEADER, URL_PATH
from freehold.gateway.service import ServicePorts
from freehold.net.client import Dial
from freehold.protocol.keys import Key
from freehold.protocol.typed import Domain
from freehold.protocol.units import Address

NODE = Key(b"\x07" * 32).address
DOMAIN = Domain(1, Address(bytes(20)))
ID = "5e" * 16


class Tenant:
    """An account whose services stand in `now`, and who is seen as `before` until it is asked what is true now."""

    def __init__(self) -> None:
        self.before: dict[str, ServicePlace] = {}
        self.now: dict[str, ServicePlace] = {}

    async def root(self, max_age: float | None = None) -> Root:
        return Root(services=self.before if max_age else self.now)

    def put(self, endpoint: str) -> None:
        self.before = self.now = {ID: place(endpoint)}


def place(endpoint: str) -> ServicePlace:
    return ServicePlace(
        node=str(NODE), endpoint=endpoint, lease="0xlease", order="0xorder", token="secret", job="web", since=1
    )


async def listen(handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], stack: AsyncExitStack) -> str:
    runner = web.ServerRunner(web.Server(handler))
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return f"http://127.0.0.1:{runner.addresses[0][1]}"


class World:
    """A node with a service that tells what reached it, and a gateway before it."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.tenant = Tenant()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> World:
        self.node = await listen(self.serve, self._stack)
        dial = await self._stack.enter_async_context(Dial())
        ports = ServicePorts([self.tenant], dial, DOMAIN, time.time)  # type: ignore[list-item]
        self.gateway = await listen(ports.handle, self._stack)
        self.session = await self._stack.enter_async_context(
            aiohttp.ClientSession(auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar())
        )
        self.tenant.put(self.node)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.get(TOKEN_HEADER) != "secret" or "/services/0xorder/" not in request.raw_path:
            return web.Response(status=404)
        body = await request.read()
        self.seen.append(
            {
                "method": request.method,
                "path": request.raw_path,
                "headers": dict(request.headers),
                "body": body,
                "forwarded": request.headers.getall("X-Forwarded-For"),
            }
        )
        if body == b"break":
            broken = web.StreamResponse(headers={ANSWER_HEADER: "1", "Content-Length": "500"})
            await broken.prepare(request)
            await broken.write(b"begun")
            assert request.transport is not None
            request.transport.abort()
            return broken
        response = web.Response(status=418, body=b"x" * 100_000 if body == b"much" else b"hello " + body)
        response.headers.extend(
            [
                (ANSWER_HEADER, "1"),
                ("Connection", "keep-alive, X-Between"),
                ("X-Between", "1"),
                ("X-Own", "2"),
                ("Service-Worker-Allowed", "/"),
                ("Clear-Site-Data", '"*"'),
                ("Set-Cookie", "a=1; Domain=example.org; Path=/; HttpOnly"),
                ("Set-Cookie", "b=2; Max-Age=5"),
            ]
        )
        return response

    async def ask(self, method: str, path: str, **options: Any) -> tuple[int, aiohttp.ClientResponse, bytes]:
        url = aiohttp.client.URL(f"{self.gateway}{path}", encoded=True)
        async with self.session.request(method, url, allow_redirects=False, **options) as response:
            return response.status, response, await response.read()


def run(scenario: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        async with World() as world:
            await scenario(world)

    asyncio.run(main())


def test_a_request_and_its_answer_pass_through() -> None:
    async def scenario(world: World) -> None:
        status, answer, body = await world.ask(
            "POST", f"{URL_PATH}{ID}/a%2Fb/../c?q=%20&r", data=b"you", headers={"X-Mine": "3", TOKEN_HEADER: "forged"}
        )
        assert (status, body) == (418, b"hello you")
        (seen,) = world.seen
        assert (seen["method"], seen["path"]) == ("POST", "/v1/compute/0xlease/services/0xorder/a%2Fb/../c?q=%20&r")
        assert (seen["headers"]["X-Mine"], seen["headers"][TOKEN_HEADER]) == ("3", "secret")
        assert seen["headers"]["X-Forwarded-Prefix"] == f"{URL_PATH}{ID}"
        assert answer.headers["X-Own"] == "2"
        assert "X-Between" not in answer.headers
        for name in (ANSWER_HEADER, "Service-Worker-Allowed", "Clear-Site-Data"):
            assert name not in answer.headers

    run(scenario)


def test_cookies_are_for_the_service_alone() -> None:
    async def scenario(world: World) -> None:
        _, answer, _ = await world.ask("GET", f"{URL_PATH}{ID}/")
        cookies = answer.headers.getall("Set-Cookie")
        assert cookies == [f"a=1; HttpOnly; Path={URL_PATH}{ID}/", f"b=2; Max-Age=5; Path={URL_PATH}{ID}/"]

    run(scenario)


@pytest.mark.parametrize("method", ["HEAD", "GET", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_every_usual_method_is_passed_on(method: str) -> None:
    async def scenario(world: World) -> None:
        status, _, body = await world.ask(method, f"{URL_PATH}{ID}/")
        assert (status, body) == (418, b"" if method == "HEAD" else b"hello ")
        assert world.seen[0]["method"] == method

    run(scenario)


def test_what_is_no_service_is_said() -> None:
    async def scenario(world: World) -> None:
        for path, status in ((f"{URL_PATH}{'0' * 32}/", 404), (f"{URL_PATH}/", 404), (f"{URL_PATH}{ID}", 308)):
            assert (await world.ask("GET", path))[0] == status
        assert (await world.ask("GET", f"{URL_PATH}{ID}?a=b"))[1].headers["Location"] == f"{URL_PATH}{ID}/?a=b"
        assert (await world.ask("TRACE", f"{URL_PATH}{ID}/"))[0] == 405
        assert world.seen == []

    run(scenario)


def test_a_service_that_moved_is_found_at_its_new_node() -> None:
    async def scenario(world: World) -> None:
        world.tenant.before = {ID: place("http://127.0.0.1:1")}
        status, _, body = await world.ask("GET", f"{URL_PATH}{ID}/")
        assert (status, body) == (418, b"hello ")

    run(scenario)


def test_a_node_that_does_not_run_it_any_more_is_not_the_service() -> None:
    """Its own 404 is not passed on as the service's."""

    async def scenario(world: World) -> None:
        old = world.tenant.now[ID]
        world.tenant.before = world.tenant.now = {
            ID: ServicePlace(**{name: getattr(old, name) for name in old.__struct_fields__} | {"token": "old"})
        }
        status, answer, _ = await world.ask("GET", f"{URL_PATH}{ID}/")
        assert (status, answer.headers["Retry-After"]) == (503, "2")

    run(scenario)


def test_a_node_that_is_gone_is_503() -> None:
    async def scenario(world: World) -> None:
        world.tenant.put("http://127.0.0.1:1")
        assert (await world.ask("POST", f"{URL_PATH}{ID}/", data=b"you"))[0] == 503

    run(scenario)


def test_an_answer_that_breaks_off_is_not_made_whole() -> None:
    async def scenario(world: World) -> None:
        with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientConnectionError)):
            await world.ask("PUT", f"{URL_PATH}{ID}/", data=b"break")

    run(scenario)


def test_nobody_says_where_another_request_came_from() -> None:
    async def scenario(world: World) -> None:
        await world.ask("GET", f"{URL_PATH}{ID}/", headers={"x-forwarded-for": "10.0.0.1"})
        assert world.seen[0]["forwarded"] == ["127.0.0.1"]

    run(scenario)
