"""Who asks where a stranger says asks public addresses alone, whatever a name stands for when it is asked."""

from __future__ import annotations

import asyncio
import errno

import aiohttp
import pytest
from aiohttp import web

from freehold.net.public import is_address, is_public, public_connector
from freehold.net.server import make_app, serve

HERE = ["127.0.0.1", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"]
NEAR = ["10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "fe80::1", "fe80::1%eth0", "fd00::1"]
TRANSLATED = ["::10.0.0.1", "fec0::1", "::ffff:0:a00:1", "64:ff9b:1::a00:1"]
NO_HOST = ["224.0.0.1", "255.255.255.255", "ff02::1", "localhost", "example.org", ""]


@pytest.mark.parametrize("host", [*HERE, *NEAR, *TRANSLATED, *NO_HOST])
def test_these_are_not_public(host: str) -> None:
    assert not is_public(host)


@pytest.mark.parametrize("host", ["9.9.9.9", "2620:fe::fe", "::ffff:9.9.9.9", "64:ff9b::909:909"])
def test_these_are_public_and_are_addresses(host: str) -> None:
    assert is_public(host)
    assert is_address(host)


def test_names_are_no_addresses() -> None:
    assert not is_address("localhost")
    assert not is_address("0x7f000001")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f000001"])
def test_no_spelling_of_this_machine_is_connected_to(host: str) -> None:
    asked = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response()

    async def scenario() -> None:
        app = make_app([web.get("/{rest:.*}", answer)], ready=lambda: (True, ""), metrics=lambda: "")
        server = await serve(app, "127.0.0.1", 0)
        try:
            async with aiohttp.ClientSession(connector=public_connector()) as session:
                with pytest.raises(aiohttp.ClientConnectorError) as error:
                    await session.get(server.url.replace("127.0.0.1", host))
                assert error.value.errno == errno.EPERM
            async with aiohttp.ClientSession() as session:
                await session.get(server.url)
            assert asked == ["/"]
        finally:
            await server.stop()

    asyncio.run(scenario())
