"""What one address may take: connections, bytes, time, and requests that come to nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress

import pytest
from aiohttp import web

from freehold.net import limits
from freehold.net import server as net_server
from freehold.net.limits import WASTE_BURST, Connections, Places, Room, Waste, address_of
from freehold.net.server import Server, make_app, ok, read_body, read_head, serve
from freehold.protocol.errors import Overloaded
from tests.conftest import SLOW

DEADLINE = 20.0 * SLOW
GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
NOTHING = b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9%eth0", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::9", "2001:db8:1:3::/64"),
        ("a pipe", "a pipe"),
        (None, ""),
    ],
)
def test_an_address_is_what_one_party_has_whole(host: str | None, address: str) -> None:
    assert address_of(host) == address


def test_waste_is_bounded_by_address_and_forgotten_with_time() -> None:
    now = [0.0]
    waste = Waste(burst=3, rate=0.5, clock=lambda: now[0])
    for _ in range(3):
        waste.check("a")
        waste.count("a")
    with pytest.raises(Overloaded) as refused:
        waste.check("a")
    assert refused.value.details["retry_after"] == 2
    waste.check("b")
    now[0] += 2
    waste.check("a")
    waste.count("a")
    with pytest.raises(Overloaded):
        waste.check("a")


def test_the_memory_for_waste_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ADDRESSES", 2)
    waste = Waste()
    for address in "abc":
        waste.count(address)
    assert list(waste._spent) == ["b", "c"]


def test_a_room_within_a_room_is_bounded_by_both_and_by_address() -> None:
    whole = Room(100)
    part = Room(60, whole)
    with ExitStack() as stack:
        mine = stack.enter_context(part.share("a"))
        mine.take(30)
        with pytest.raises(Overloaded, match="from a"):
            mine.take(1)
        stack.enter_context(part.share("b")).take(30)
        with pytest.raises(Overloaded, match="at once"):
            stack.enter_context(part.share("c")).take(1)
        stack.enter_context(whole.share("c")).take(40)
        assert (part.used, whole.used) == (60, 100)
    assert (part.used, whole.used) == (0, 0)
    assert not part._by_address
    assert not whole._by_address
    whole.take(40, "d")
    whole.take(40, "e")
    with pytest.raises(Overloaded):
        part.take(21, "f")
    assert (part.used, whole.used) == (0, 80)  # what does not fit the outer room takes nothing of the inner


def test_places_are_bounded_by_address_and_in_all_and_given_back() -> None:
    places = Places(3, 2)

    def is_free(address: str) -> bool:
        try:
            with places.take(address):
                return True
        except Overloaded:
            return False

    with places.take("a"), places.take("a"):
        assert (is_free("a"), is_free("b")) == (False, True)
        with places.take("b"):
            assert not is_free("c")
    assert places._taken.total() == 0


async def body(request: web.Request) -> web.Response:
    head = await read_head(request, 2, 1000)
    return ok({"size": len(await read_body(request, 1000, begun=head))})


def run(use: Callable[[Server], Awaitable[None]], **bounds: int) -> None:
    async def main() -> None:
        app = make_app([web.post("/body", body)], ready=lambda: (True, ""), metrics=lambda: "")
        server = await serve(app, "127.0.0.1", 0)
        for name, value in bounds.items():
            setattr(server.connections, name, value)
        try:
            async with asyncio.timeout(DEADLINE):
                await use(server)
        finally:
            while STREAMS:
                close(STREAMS.pop())
            await server.stop()

    asyncio.run(main())


STREAMS: list[Stream] = []


async def connect(server: Server, source: str = "127.0.0.1") -> Stream:
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    STREAMS.append(await asyncio.open_connection(host, int(port), local_addr=(source, 0)))
    return STREAMS[-1]


async def ask(stream: Stream, request: bytes = GET) -> tuple[int, dict[str, str]]:
    """The status and headers of one answer, its body read; 0 where the connection is closed."""
    reader, writer = stream
    with suppress(ConnectionError):
        writer.write(request)
    try:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return 0, {}
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
    await reader.readexactly(int(headers["content-length"]))
    return int(lines[0].split(" ")[1]), headers


def close(*streams: Stream) -> None:
    for _, writer in streams:
        writer.transport.abort()


def test_one_address_has_so_many_connections_and_others_have_theirs() -> None:
    async def use(server: Server) -> None:
        held = [await connect(server) for _ in range(3)]
        assert [(await ask(stream))[0] for stream in held] == [200] * 3
        more = await connect(server)
        status, headers = await ask(more, b"")
        assert (status, headers["retry-after"]) == (429, str(limits.REFUSED_SECONDS))
        assert (await ask(more))[0] == 0
        other = await connect(server, "127.0.0.2")
        assert (await ask(other))[0] == 200
        close(held.pop(), more)
        while server.connections.count > 3:  # noqa: ASYNC110 - the server's loop is this one
            await asyncio.sleep(0)
        again = await connect(server)
        assert (await ask(again))[0] == 200

    run(use, _per_address=3)


def test_where_there_is_no_room_the_crowd_loses_its_oldest_idle_connection() -> None:
    async def use(server: Server) -> None:
        crowd = [await connect(server) for _ in range(4)]
        busy = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n1234"
        crowd[0][1].write(busy)
        assert [(await ask(stream))[0] for stream in crowd[1:]] == [200] * 3
        other = await connect(server, "127.0.0.2")
        assert (await ask(other))[0] == 200
        assert (await ask(crowd[1]))[0] == 0
        assert (await ask(crowd[0], b"56789"))[0] == 200  # what it was doing it does
        same = await connect(server)
        assert (await ask(same, b""))[0] == 429
        assert (await ask(other))[0] == 200

    run(use, _in_all=4)


def test_a_header_has_its_time_however_it_trickles(monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(server: Server) -> None:
        silent, slow = await connect(server), await connect(server)
        for i in range(len(GET) - 1):
            slow[1].write(GET[i : i + 1])
            await asyncio.sleep(0)
        assert await silent[0].read() == b""
        assert await slow[0].read() == b""
        assert server.connections.count == 0

    monkeypatch.setattr(net_server, "IDLE_SECONDS", 0.05)
    run(use)


@pytest.mark.parametrize("sent", [b"", b"1", b"123"])
def test_a_body_that_trickles_is_given_up_whatever_part_is_here(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(server: Server) -> None:
        stream = await connect(server)
        status, _ = await ask(stream, b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n" + sent)
        assert status == 401  # DeadlineExpired

    monkeypatch.setattr(net_server, "GRACE_SECONDS", 0.05)
    run(use)


def test_a_body_at_the_least_rate_may_take_longer_than_the_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(server: Server) -> None:
        stream = await connect(server)
        stream[1].write(b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        began = asyncio.get_running_loop().time()
        for _ in range(10):
            stream[1].write(b"x" * 100)
            await asyncio.sleep(0.05)
        assert (await ask(stream, b""))[0] == 200
        assert asyncio.get_running_loop().time() - began > 0.5

    monkeypatch.setattr(net_server, "GRACE_SECONDS", 0.4 * SLOW)
    monkeypatch.setattr(net_server, "LEAST_RATE", 100.0)
    run(use)


def test_who_wastes_too_much_is_refused_before_anything_is_looked_at() -> None:
    async def use(server: Server) -> None:
        stream = await connect(server)
        for _ in range(WASTE_BURST):
            assert (await ask(stream, NOTHING))[0] == 400
        while (await ask(stream, NOTHING))[0] == 400:  # the bucket has refilled meanwhile
            continue
        status, headers = await ask(stream, GET)
        assert (status, int(headers["retry-after"]) >= 1) == (429, True)
        other = await connect(server, "127.0.0.2")
        assert (await ask(other))[0] == 200

    run(use)


def test_what_is_no_http_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    async def use(server: Server) -> None:
        stream = await connect(server)
        stream[1].write(b"\x16\x03\x01 hello\r\n\r\n")
        assert b" 400 " in await stream[0].read()

    run(use)
    assert caplog.records == []


def test_a_refusal_is_an_error_in_the_envelope() -> None:
    head, _, text = limits.REFUSAL.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 429 ")
    assert json.loads(text)["errors"][0]["code"] == "overloaded"


def test_connections_leave_files_for_the_rest_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits.resource, "getrlimit", lambda _: (100, 100))
    assert Connections(asyncio.Protocol)._in_all == 50
