"""`freehold status` on the gateway: whether it answers, and what else may answer in its place."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from freehold.cli.status import _gateway
from freehold.net.client import Dial
from freehold.net.server import ok


async def look(answer: Any, *, is_up: bool = True) -> dict[str, Any]:
    """What the status says of a gateway that answers so."""

    async def ready(_: web.Request) -> web.Response:
        return answer() if callable(answer) else web.Response(text=answer)

    app = web.Application()
    app.router.add_get("/-/readyz", ready)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    if not is_up:
        await runner.cleanup()
    settings = SimpleNamespace(get=lambda _: SimpleNamespace(value=f"{url}/"))
    try:
        async with Dial() as dial:
            told = await _gateway(SimpleNamespace(settings=settings), SimpleNamespace(dial=dial))  # type: ignore[arg-type]
    finally:
        await runner.cleanup()
    assert told is not None
    assert told["url"] == url
    return told


@pytest.mark.parametrize(
    ("answer", "is_up", "healthy", "why"),
    [
        (lambda: ok({"ready": True, "why": ""}), True, True, ""),
        (lambda: ok({"ready": False, "why": "starting"}, 503), True, False, "starting"),
        ("hello", True, False, "no gateway"),
        (lambda: web.json_response([]), True, False, "no gateway"),
        ("", False, False, "nothing answers"),
    ],
)
def test_a_gateway_is_told_with_whether_it_answers(answer: Any, is_up: bool, healthy: bool, why: str) -> None:
    told = asyncio.run(look(answer, is_up=is_up))
    assert told["healthy"] is healthy
    assert why in told["why"]


def test_without_a_gateway_there_is_none() -> None:
    settings = SimpleNamespace(get=lambda _: SimpleNamespace(value=""))
    assert asyncio.run(_gateway(SimpleNamespace(settings=settings), SimpleNamespace())) is None  # type: ignore[arg-type]
