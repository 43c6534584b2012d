"""One server and one client over real sockets: typed errors, bounded bodies, health, ready files."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from freehold.net import server as net_server
from freehold.net.client import ERROR_LIMIT, JSON_LIMIT, Dial, Peer
from freehold.net.limits import Room
from freehold.net.server import make_app, ok, read_body, read_json, serve
from freehold.protocol import errors
from freehold.protocol.errors import (
    Corrupt,
    DeadlineExpired,
    FreeholdError,
    InsufficientCredits,
    MalformedMessage,
    Overloaded,
    Unavailable,
)

LIMIT = 1000


def every_error() -> list[type[FreeholdError]]:
    return [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, FreeholdError)]


async def echo(request: web.Request) -> web.Response:
    return ok({"size": len(await read_body(request, LIMIT))})


async def parse(request: web.Request) -> web.Response:
    return ok(await read_json(request))


async def fail(request: web.Request) -> web.Response:
    kind = next(k for k in every_error() if k.code == request.match_info["code"])
    raise kind("it did", hint="do that", missing="5")


async def crash(request: web.Request) -> web.Response:
    raise RuntimeError("secret")


ROOM = Room(LIMIT, share_of_address=1)


async def keep(request: web.Request) -> web.Response:
    with ROOM.share() as share:
        return ok({"size": len(await read_body(request, LIMIT, share)), "used": ROOM.used})


async def rant(request: web.Request) -> web.Response:
    error = InsufficientCredits("x" * int(request.match_info["size"]))
    return web.json_response({"errors": [error.to_json()]}, status=error.status)


async def send_on(request: web.Request) -> web.Response:
    raise web.HTTPFound("/healthz")


async def talk(request: web.Request) -> web.Response:
    return ok("x" * int(request.match_info["size"]))


ROUTES = [
    web.post("/echo", echo),
    web.post("/parse", parse),
    web.get("/fail/{code}", fail),
    web.get("/crash", crash),
    web.post("/keep", keep),
    web.get("/rant/{size}", rant),
    web.get("/elsewhere", send_on),
    web.get("/talk/{size}", talk),
    web.post("/talk/{size}", talk),
]


def run(use: Callable[[Peer, Path], Awaitable[None]], tmp_path: Path, is_ready: bool = True) -> None:
    async def main() -> None:
        app = make_app(ROUTES, ready=lambda: (is_ready, "still starting"), metrics=lambda: "freehold_test_total 1\n")
        server = await serve(app, "127.0.0.1", 0, tmp_path / "ready.json")
        try:
            async with Dial() as dial:
                await use(dial.peer(server.url), tmp_path)
        finally:
            await server.stop()

    asyncio.run(main())


def test_every_error_arrives_as_the_type_that_was_raised(tmp_path: Path) -> None:
    async def use(peer: Peer, _: Path) -> None:
        for kind in every_error():
            with pytest.raises(FreeholdError) as caught:
                await peer.get_json(f"/fail/{kind.code}")
            assert type(caught.value) is kind
            assert (caught.value.message, caught.value.advice) == ("it did", "do that")
            later = {"retry_after": net_server.RETRY_AFTER} if kind.status in (429, 503) else {}
            assert caught.value.details == {"missing": "5"} | later

    run(use, tmp_path)


def test_codes_are_unique() -> None:
    codes = [kind.code for kind in every_error()]
    assert len(set(codes)) == len(codes)


def test_bodies_are_bounded_to_the_byte(tmp_path: Path) -> None:
    async def chunks(size: int) -> Any:
        for _ in range(size):
            yield b"x"

    async def use(peer: Peer, _: Path) -> None:
        assert await peer.post_bytes("/echo", b"x" * LIMIT) == {"size": LIMIT}
        with pytest.raises(errors.BodyTooLarge):
            await peer.post_bytes("/echo", b"x" * (LIMIT + 1))
        with pytest.raises(errors.BodyTooLarge):
            async with peer.request("POST", "/echo", data=chunks(LIMIT + 1)):
                pass

    run(use, tmp_path)


def test_bytes_are_counted_as_they_arrive_and_given_back(tmp_path: Path) -> None:
    async def use(peer: Peer, _: Path) -> None:
        held = [asyncio.Event() for _ in range(4)]

        async def announce(part: asyncio.Event) -> Any:
            yield b"x"
            part.set()
            await asyncio.Event().wait()

        idle = [asyncio.create_task(peer.post_bytes("/keep", announce(e), {"Content-Length": "900"})) for e in held]
        for event in held:
            await event.wait()
        while ROOM.used < len(held):  # noqa: ASYNC110 - the server's loop is this one
            await asyncio.sleep(0)
        most = LIMIT - len(held)
        assert await peer.post_bytes("/keep", b"x" * most) == {"size": most, "used": LIMIT}
        with pytest.raises(Overloaded):
            await peer.post_bytes("/keep", b"x" * (most + 1))
        for task in idle:
            task.cancel()
        await asyncio.gather(*idle, return_exceptions=True)

    run(use, tmp_path)
    assert ROOM.used == 0


def test_a_body_that_does_not_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def endless() -> Any:
        yield b"x"
        await asyncio.Event().wait()

    async def use(peer: Peer, _: Path) -> None:
        with pytest.raises(DeadlineExpired):
            async with peer.request("POST", "/keep", data=endless()):
                pass

    monkeypatch.setattr(net_server, "GRACE_SECONDS", 0.05)
    run(use, tmp_path)
    assert ROOM.used == 0


def test_answers_are_bounded(tmp_path: Path) -> None:
    async def use(peer: Peer, _: Path) -> None:
        with pytest.raises(InsufficientCredits):
            await peer.get_json(f"/rant/{ERROR_LIMIT - 1000}")
        with pytest.raises(Unavailable, match="answered 402"):
            await peer.get_json(f"/rant/{ERROR_LIMIT}")
        assert len(await peer.get_json(f"/talk/{JSON_LIMIT - 1000}")) == JSON_LIMIT - 1000
        assert len(await peer.get_json(f"/talk/{JSON_LIMIT}", 2 * JSON_LIMIT)) == JSON_LIMIT
        with pytest.raises(Corrupt):
            await peer.get_json(f"/talk/{JSON_LIMIT}")
        with pytest.raises(Corrupt):
            await peer.post_json(f"/talk/{JSON_LIMIT}", {})
        with pytest.raises(Corrupt):
            await peer.post_bytes(f"/talk/{JSON_LIMIT}", b"")

    run(use, tmp_path)


def test_redirects_are_not_followed(tmp_path: Path) -> None:
    async def use(peer: Peer, _: Path) -> None:
        with pytest.raises(Unavailable, match="answered 302"):
            await peer.get_json("/elsewhere")

    run(use, tmp_path)


def test_an_unknown_exception_says_nothing_of_its_inside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def use(peer: Peer, _: Path) -> None:
        with pytest.raises(FreeholdError) as caught:
            await peer.get_json("/crash")
        assert "secret" not in json.dumps(caught.value.to_json())

    run(use, tmp_path)
    assert "secret" in caplog.text


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff"])
def test_a_body_that_is_no_object_is_malformed(tmp_path: Path, body: bytes) -> None:
    async def use(peer: Peer, _: Path) -> None:
        with pytest.raises(MalformedMessage):
            await peer.post_bytes("/parse", body)

    run(use, tmp_path)


def test_health_readiness_metrics_and_the_ready_file(tmp_path: Path) -> None:
    async def use(peer: Peer, folder: Path) -> None:
        ready = json.loads((folder / "ready.json").read_text())
        assert ready["url"] == peer.url
        assert await peer.get_json("/healthz") == {"live": True}
        assert b"freehold_test_total 1" in await peer.get_bytes("/metrics")
        with pytest.raises(Unavailable, match="503"):
            await peer.get_json("/readyz")

    run(use, tmp_path, is_ready=False)


def test_nobody_listening_is_unavailable_and_names_the_url(tmp_path: Path) -> None:
    async def main() -> None:
        async with Dial() as dial:
            with pytest.raises(Unavailable, match=r"http://127\.0\.0\.1:1"):
                await dial.peer("http://127.0.0.1:1").get_json("/x")

    asyncio.run(main())


def test_an_error_keeps_its_meaning_through_json() -> None:
    error = InsufficientCredits("5 credits are missing", missing="5")
    again = FreeholdError.from_json(json.loads(json.dumps(error.to_json())))
    assert type(again) is InsufficientCredits
    assert again.to_json() == error.to_json()
    assert type(FreeholdError.from_json({"code": "from the future"})) is FreeholdError
