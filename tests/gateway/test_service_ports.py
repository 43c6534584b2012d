"""Services through the gateway: requests reach the node that runs them now; nothing else of either end gets across."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from multidict import CIMultiDict

from freehold.client.root import Root, ServicePlace
from freehold.client.service_places import ANSWER_HEADER, TOKEN_HEADER, URL_PATH, url_of
from freehold.gateway import process
from freehold.gateway import service as ports_module
from freehold.gateway.config import GatewayConfig
from freehold.gateway.service import ServicePorts
from freehold.gateway.service_origins import SANDBOX, headers_to_visitor, own_host, service_at
from freehold.net import passing
from freehold.net.client import Dial
from freehold.net.passing import MESSAGE_LIMIT
from freehold.protocol.errors import Unavailable
from freehold.protocol.keys import Key
from freehold.protocol.typed import Domain
from freehold.protocol.units import Address
from tests.conftest import SLOW

NODE = Key(b"\x07" * 32).address
DOMAIN = Domain(1, Address(bytes(20)))
ID = "5e" * 16
OTHER = "6f" * 16


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
        self.closed: list[int | None] = []
        self.read_first = asyncio.Event()
        self.tenant = Tenant()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> World:
        self.node = await listen(self.serve, self._stack)
        dial = await self._stack.enter_async_context(Dial())
        self.ports = ServicePorts(
            [self.tenant],  # type: ignore[list-item]
            dial,
            DOMAIN,
            time.time,
            service_domain="apps.example.org",
            at_once=(4, 2),
        )
        self.gateway = await listen(self.ports.handle, self._stack)
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
        if "/talk" in request.raw_path:
            return await self.talk(request)
        if "/events" in request.raw_path:
            return await self.tell(request)
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
                ("Content-Security-Policy", "default-src 'self'"),
                ("Set-Cookie", "a=1; Domain=example.org; Path=/; HttpOnly"),
                ("Set-Cookie", "b=2; Max-Age=5"),
            ]
        )
        return response

    async def talk(self, request: web.BaseRequest) -> web.StreamResponse:
        """A WebSocket that says what it heard, and closes with the code that it is told."""
        self.seen.append({"headers": dict(request.headers)})
        if "refused" in request.raw_path:
            return web.Response(status=403, headers={ANSWER_HEADER: "1"})
        socket = web.WebSocketResponse(protocols=("chat.v2", "chat"), autoping=False)
        socket.headers[ANSWER_HEADER] = "1"
        await socket.prepare(request)
        async for message in socket:
            if message.type is aiohttp.WSMsgType.PING:
                await socket.pong(message.data)
            elif message.type is aiohttp.WSMsgType.BINARY:
                await socket.send_bytes(message.data[::-1])
            elif message.data.startswith("close"):
                await socket.close(code=int(message.data.split()[1]))
            else:
                await socket.send_str(f"heard {message.data}")
        self.closed.append(socket.close_code)
        return socket

    async def tell(self, request: web.BaseRequest) -> web.StreamResponse:
        """Events, the second of which comes once the first has been read."""
        response = web.StreamResponse(headers={ANSWER_HEADER: "1", "Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: first\n\n")
        await self.read_first.wait()
        await response.write(b"data: second\n\n")
        await response.write_eof()
        return response

    async def ask(self, method: str, path: str, **options: Any) -> tuple[int, aiohttp.ClientResponse, bytes]:
        url = aiohttp.client.URL(f"{self.gateway}{path}", encoded=True)
        async with self.session.request(method, url, allow_redirects=False, **options) as response:
            return response.status, response, await response.read()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10 * SLOW):
        while not condition():  # noqa: ASYNC110  # what is waited for is state of other tasks
            await asyncio.sleep(0.01)


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


OWN = {"Host": f"{ID}.localhost:80"}


def test_cookies_are_for_the_service_alone() -> None:
    async def scenario(world: World) -> None:
        _, answer, _ = await world.ask("GET", f"{URL_PATH}{ID}/")
        cookies = answer.headers.getall("Set-Cookie")
        assert cookies == [f"a=1; HttpOnly; Path={URL_PATH}{ID}/", f"b=2; Max-Age=5; Path={URL_PATH}{ID}/"]
        _, answer, _ = await world.ask("GET", "/", headers=OWN)
        assert answer.headers.getall("Set-Cookie") == ["a=1; Path=/; HttpOnly", "b=2; Max-Age=5"]

    run(scenario)


@pytest.mark.parametrize("host", [f"{ID}.localhost:9000", f"{ID.upper()}.LOCALHOST", f"{ID}.apps.example.org."])
def test_a_service_has_a_host_of_its_own(host: str) -> None:
    """Whatever the path: the gateway's own are not there."""

    async def scenario(world: World) -> None:
        for path in ("/", "/-/healthz", f"{URL_PATH}{ID}/x?y"):
            status, answer, _ = await world.ask("GET", path, headers={"Host": host})
            assert status == 418
            assert world.seen[-1]["path"] == f"/v1/compute/0xlease/services/0xorder{path}"
            assert world.seen[-1]["headers"]["X-Forwarded-Host"] == host
            assert "X-Forwarded-Prefix" not in world.seen[-1]["headers"]
            assert answer.headers["Service-Worker-Allowed"] == "/"
            assert answer.headers.getall("Content-Security-Policy") == ["default-src 'self'"]
            assert "Clear-Site-Data" not in answer.headers

    run(scenario)


@pytest.mark.parametrize(
    "host",
    ["localhost", f"{ID}.example.org", f"{ID[:-1]}.localhost", f"x.{ID}.localhost", f"{ID}.localhost.example.org"],
)
def test_other_hosts_are_no_services(host: str) -> None:
    assert service_at(host, "apps.example.org") is None


def test_pages_at_the_gateways_host_are_nobodys_origin() -> None:
    async def scenario(world: World) -> None:
        _, answer, _ = await world.ask("GET", f"{URL_PATH}{ID}/")
        assert answer.headers.getall("Content-Security-Policy") == ["default-src 'self'", SANDBOX]
        assert "allow-same-origin" not in SANDBOX

    run(scenario)


@pytest.mark.parametrize("said", [{"Sec-Fetch-Mode": "navigate"}, {"Upgrade-Insecure-Requests": "1"}])
def test_browsers_are_led_to_the_services_own_host(said: dict[str, str]) -> None:
    async def scenario(world: World) -> None:
        status, answer, _ = await world.ask("GET", f"{URL_PATH}{ID}/a%2Fb?c", headers=said)
        port = world.gateway.rpartition(":")[2]
        assert (status, answer.headers["Location"]) == (307, f"//{ID}.apps.example.org:{port}/a%2Fb?c")
        assert (await world.ask("GET", f"{URL_PATH}{'0' * 32}/", headers=said))[0] == 404
        assert (await world.ask("POST", f"{URL_PATH}{ID}/", headers=said))[0] == 418

    run(scenario)


def test_hosts_of_services() -> None:
    assert own_host(ID, "127.0.0.1:9000", "") == f"{ID}.localhost:9000"
    assert own_host(ID, "[::1]:9000", "") == f"{ID}.localhost:9000"
    assert own_host(ID, "gateway.example.org", "") is None
    assert url_of("http://127.0.0.1:9000/", ID) == f"http://{ID}.localhost:9000/"
    assert url_of("https://gateway.example.org", ID) == f"https://gateway.example.org/-/service/{ID}/"
    assert url_of("https://gateway.example.org", ID, "apps.example.org") == f"https://{ID}.apps.example.org/"


# WebSockets, and answers that go on


@pytest.mark.parametrize(("path", "headers"), [(f"{URL_PATH}{ID}/talk", {}), ("/talk", OWN)])
def test_websockets_pass_through(path: str, headers: dict[str, str]) -> None:
    async def scenario(world: World) -> None:
        headers_ = {**headers, "Cookie": "a=1", "Origin": "http://here", TOKEN_HEADER: "forged"}
        async with world.session.ws_connect(
            f"{world.gateway}{path}", headers=headers_, protocols=["other", "chat"], autoping=False
        ) as socket:
            assert socket.protocol == "chat"
            await socket.send_str("you")
            assert await socket.receive_str() == "heard you"
            large = bytes(range(256)) * 2000
            await socket.send_bytes(large)
            assert await socket.receive_bytes() == large[::-1]
            await socket.ping(b"there?")
            pong = await socket.receive()
            assert (pong.type, pong.data) == (aiohttp.WSMsgType.PONG, b"there?")
            await socket.send_str("close 4321")
            assert (await socket.receive()).data == 4321
        assert (world.seen[0]["headers"]["Cookie"], world.seen[0]["headers"]["Origin"]) == ("a=1", "http://here")

    run(scenario)


def test_a_visitors_own_close_reaches_the_service() -> None:
    async def scenario(world: World) -> None:
        async with world.session.ws_connect(f"{world.gateway}{URL_PATH}{ID}/talk") as socket:
            await socket.close(code=4000)
        await until(lambda: world.closed == [4000])

    run(scenario)


def test_a_message_that_is_too_long_ends_its_websocket_alone() -> None:
    async def scenario(world: World) -> None:
        url = f"{world.gateway}{URL_PATH}{ID}/talk"
        async with world.session.ws_connect(url) as good, world.session.ws_connect(url) as bad:
            await bad.send_bytes(bytes(MESSAGE_LIMIT + 1))
            message = await bad.receive()
            assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1009)
            await good.send_str("you")
            assert await good.receive_str() == "heard you"

    run(scenario)


def test_a_websocket_on_which_nothing_comes_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passing, "IDLE_SECONDS", 0.05)

    async def scenario(world: World) -> None:
        async with world.session.ws_connect(f"{world.gateway}{URL_PATH}{ID}/talk") as socket:
            message = await socket.receive()
            assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1001)

    run(scenario)


def test_a_websocket_that_is_refused_says_so() -> None:
    async def scenario(world: World) -> None:
        with pytest.raises(aiohttp.WSServerHandshakeError) as error:
            await world.session.ws_connect(f"{world.gateway}{URL_PATH}{ID}/talk/refused")
        assert error.value.status == 403
        half = await world.ask("GET", f"{URL_PATH}{ID}/talk", headers={"Connection": "Upgrade", "Upgrade": "websocket"})
        assert half[0] == 400
        world.tenant.put("http://127.0.0.1:1")
        with pytest.raises(aiohttp.WSServerHandshakeError) as error:
            await world.session.ws_connect(f"{world.gateway}{URL_PATH}{ID}/talk")
        assert error.value.status == 503

    run(scenario)


def test_websockets_end_with_the_gateway() -> None:
    async def scenario(world: World) -> None:
        async with world.session.ws_connect(f"{world.gateway}{URL_PATH}{ID}/talk") as socket:
            world.ports.close()
            assert (await socket.receive()).data == 1001

    run(scenario)


def test_a_node_that_does_not_run_it_is_not_asked_by_every_visitor() -> None:
    async def scenario(world: World) -> None:
        asked = 0

        async def count(_: web.BaseRequest) -> web.StreamResponse:
            nonlocal asked
            asked += 1
            return web.Response(status=404)

        async with AsyncExitStack() as stack:
            world.tenant.put(await listen(count, stack))
            for _ in range(5):
                assert (await world.ask("GET", f"{URL_PATH}{ID}/"))[0] == 503
            assert asked == 1
            world.tenant.put(world.node)  # where it has moved is found at once
            assert (await world.ask("GET", f"{URL_PATH}{ID}/"))[0] == 418

    run(scenario)


def test_an_answer_comes_piece_by_piece() -> None:
    """The service waits with the second event until the first has been read at the other end."""

    async def scenario(world: World) -> None:
        async with world.session.get(f"{world.gateway}{URL_PATH}{ID}/events") as answer:
            assert await answer.content.readuntil(b"\n\n") == b"data: first\n\n"
            world.read_first.set()
            assert await answer.content.read() == b"data: second\n\n"

    run(scenario)


# Visitors that take what they can


def test_one_service_has_so_many_requests_at_once_and_others_are_served() -> None:
    async def scenario(world: World) -> None:
        world.tenant.now[OTHER] = world.tenant.now[ID]
        url = f"{world.gateway}{URL_PATH}{ID}/talk"
        async with world.session.ws_connect(url) as first, world.session.ws_connect(url):
            status, answer, _ = await world.ask("GET", f"{URL_PATH}{ID}/")
            assert (status, answer.headers["Retry-After"]) == (503, "1")
            assert (await world.ask("GET", f"{URL_PATH}{OTHER}/"))[0] == 418
            await first.close()
            await until(lambda: world.ports._places._taken[ID] == 1)
            assert (await world.ask("GET", f"{URL_PATH}{ID}/"))[0] == 418

    run(scenario)


def test_whoever_leaves_takes_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even while the service has nothing to say, so that nothing is written to them."""
    monkeypatch.setattr(passing, "LOOK_SECONDS", 0.01)

    async def scenario(world: World) -> None:
        async with world.session.get(f"{world.gateway}{URL_PATH}{ID}/events") as answer:
            await answer.content.readuntil(b"\n\n")
            assert world.ports._places._taken.total() == 1
            answer.close()
        await until(lambda: not world.ports._places._taken)
        world.read_first.set()

    run(scenario)


@pytest.mark.parametrize(
    ("said", "own", "below"),
    [
        ('a=1; SameSite="Lax; Path=/"', 'a=1; SameSite="Lax; Path=/"', 'a=1; SameSite="Lax'),
        ('a=1; Path="/;Domain=example.org"', 'a=1; Path="/', "a=1"),
        ("a=1; DOMAIN = example.org;domain", "a=1", "a=1"),
        ("a=1; Partitioned; Priority=High", "a=1; Partitioned; Priority=High", "a=1; Partitioned; Priority=High"),
        ('a={"x":1}', 'a={"x":1}', 'a={"x":1}'),
    ],
)
def test_no_spelling_of_a_cookie_is_for_more_than_its_service(said: str, own: str, below: str) -> None:
    headers = CIMultiDict([("Set-Cookie", said)])
    assert headers_to_visitor(headers, ID, is_own=True).getall("Set-Cookie") == [own]
    confined = headers_to_visitor(headers, ID, is_own=False)["Set-Cookie"]
    assert confined == f"{below}; Path={URL_PATH}{ID}/"


def test_a_cookie_with_a_control_character_is_none() -> None:
    headers = CIMultiDict([("Set-Cookie", "a=1; SameSite=x\x01")])
    assert "Set-Cookie" not in headers_to_visitor(headers, ID, is_own=True)


@pytest.mark.parametrize("status", [101, 600])
def test_a_status_that_ends_nothing_is_not_passed_on(status: int) -> None:
    with pytest.raises(Unavailable, match=str(status)):
        passing.check_status(status)


def test_a_body_that_comes_too_slowly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passing, "GRACE_SECONDS", 0.05)

    async def scenario(world: World) -> None:
        host, port = world.gateway.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST {URL_PATH}{ID}/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nbegun"
        writer.write(head.encode())
        said = await reader.readuntil(b"too slowly")
        assert said.startswith(b"HTTP/1.1 408")
        writer.close()
        assert world.seen == []

    run(scenario)


def test_a_header_that_comes_too_slowly_ends_its_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever it is for: a service's visitors hold no connections of the gateway's that way."""
    monkeypatch.setattr(process, "IDLE_SECONDS", 0.05)

    async def never(_: web.BaseRequest) -> web.StreamResponse:
        raise AssertionError

    async def nothing() -> None:
        pass

    async def scenario() -> None:
        config = GatewayConfig(tmp_path / "network.json", tmp_path, ())
        url, stop = await process.serve(never, nothing, config, None)
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET / HTTP/1.1\r\nHost: {ID}.localhost\r\nX-More: ".encode())
        assert await reader.read() == b""
        writer.close()
        await stop()

    asyncio.run(scenario())


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch, announced: bool) -> None:
    monkeypatch.setattr(ports_module, "OBJECT_LIMIT", 1000)

    async def pieces() -> AsyncIterator[bytes]:
        yield bytes(600)
        yield bytes(600)

    async def scenario(world: World) -> None:
        data = bytes(1001) if announced else pieces()
        status, _, _ = await world.ask("POST", f"{URL_PATH}{ID}/", data=data)
        assert status == 413
        assert world.seen == []
        assert (await world.ask("POST", f"{URL_PATH}{ID}/", data=bytes(1000)))[0] == 418
        assert world.seen[0]["headers"]["Content-Length"] == "1000"

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
        assert (status, answer.headers["Retry-After"]) == (503, "1")

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
