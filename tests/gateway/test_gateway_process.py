"""The gateway as it runs: over real nodes, for two accounts, with TLS, told to stop."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import stat
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from freehold.client.account import Account, Wallets
from freehold.client.jobs_spec import Job, Step
from freehold.client.keystore import THROWAWAY_COST
from freehold.client.root import ServicePlace
from freehold.client.sdk import Freehold
from freehold.client.service_places import ANSWER_HEADER, publish
from freehold.gateway import process
from freehold.gateway.config import GatewayConfig
from freehold.gateway.wire.request import Request
from freehold.gateway.wire.sigv4 import sign_request
from freehold.market.network import Network
from freehold.protocol.errors import InvalidInput, NotFound, WrongPassphrase
from tests.client.world import World, world

SLOW = float(os.environ.get("FREEHOLD_TEST_SLOW", "1"))
BIG = os.urandom(300_000)


def configure(net: World, accounts: int = 2, **more: Any) -> GatewayConfig:
    """A configuration for the world's first accounts, whose passphrases are "word"."""
    net.network.save(net.folder / "network.json")
    wallets = Wallets(net.folder)
    for number in range(accounts):
        wallets.save(f"client{number}", net.account(number), "word", THROWAWAY_COST)
    (net.folder / "passphrase").write_text("word\n")
    value = {
        "network": "network.json", "data": "gateway", "passphrase_file": "passphrase", "ready_file": "ready.json",
        "wallets": [f"wallets/client{number}.json" for number in range(accounts)], "key_label": "test", **more,
    }  # fmt: skip
    return GatewayConfig.from_json(value, net.folder)


class Running:
    """A gateway in this process; `told` is its ready file."""

    def __init__(self, net: World, config: GatewayConfig, session: aiohttp.ClientSession) -> None:
        self.session = session
        self.stopping = asyncio.Event()

        def connect(network: Network, account: Account, home: Path) -> Freehold:
            return Freehold(network, account, home=home, directory=net)

        self.task = asyncio.create_task(process.run(config, self.stopping, connect))
        self.ready = config.ready_file

    async def wait(self) -> None:
        assert self.ready is not None
        async with asyncio.timeout(20 * SLOW):
            while not self.ready.exists():
                if self.task.done():
                    self.task.result()
                await asyncio.sleep(0.01)
        self.told = json.loads(self.ready.read_text())
        self.url = self.told["url"]

    async def send(self, method: str, path: str, data: bytes = b"", account: int = 0) -> tuple[int, bytes]:
        key, host = self.told["keys"][account], self.url.partition("://")[2]
        headers = sign_request(
            Request(method, path, "", {"host": host}), key["access_key"], key["secret"], self.told["region"],
            time.time(), hashlib.sha256(data).hexdigest(),
        )  # fmt: skip
        return await self.fetch(method, path, headers=headers, data=io.BytesIO(data) if data else None)

    async def fetch(self, method: str, path: str, **more: Any) -> tuple[int, bytes]:
        target = URL(self.url + path, encoded=True)
        async with self.session.request(method, target, ssl=False, **more) as answer:
            return answer.status, await answer.read()


def play(folder: Path, scene: Any, **more: Any) -> None:
    async def run() -> None:
        async with world(folder) as net, aiohttp.ClientSession() as session:
            running = Running(net, configure(net, **more), session)
            try:
                await running.wait()
                await scene(net, running)
            finally:
                running.stopping.set()
                await running.task

    asyncio.run(run())


@pytest.mark.parametrize("tls", [False, True])
def test_two_accounts_over_real_nodes(tmp_path: Path, tls: bool) -> None:
    async def scene(net: World, running: Running) -> None:
        assert running.url.startswith("https://" if tls else "http://")
        for account in (0, 1):
            data = BIG + bytes([account])
            for method, path, body, status in (
                ("PUT", "/bucket-1", b"", 200),
                ("PUT", "/bucket-1/small", b"s%d" % account, 200),
                ("PUT", "/bucket-1/big", data, 200),
            ):
                assert (await running.send(method, path, body, account))[0] == status
        for account in (0, 1):
            assert await running.send("GET", "/bucket-1/small", account=account) == (200, b"s%d" % account)
            assert await running.send("GET", "/bucket-1/big", account=account) == (200, BIG + bytes([account]))
        assert await running.fetch("GET", "/-/healthz") == (200, await _body(running, "/-/healthz"))
        assert json.loads(await _body(running, "/-/readyz"))["data"] == {
            "ready": True,
            "why": "",
            "region": "us-east-1",
        }
        metrics = (await _body(running, "/-/metrics")).decode()
        assert 'freehold_gateway_requests_total{operation="GetObject",status="200"} 4' in metrics
        assert (await running.fetch("GET", "/-/nothing"))[0] == 404
        assert (await running.fetch("GET", "/-/share/nonsense"))[0] == 404
        assert stat.S_IMODE((net.folder / "ready.json").stat().st_mode) == 0o600
        assert json.loads((net.folder / "gateway.json").read_text())["url"] == running.url

    play(tmp_path, scene, tls=tls)


async def _body(running: Running, path: str) -> bytes:
    return (await running.fetch("GET", path))[1]


def test_what_runs_is_finished_and_keys_stay_what_they_were(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as net, aiohttp.ClientSession() as session:
            config = configure(net, 1)
            first = Running(net, config, session)
            await first.wait()
            await first.send("PUT", "/bucket-1")
            put = asyncio.create_task(first.send("PUT", "/bucket-1/big", BIG))
            while "requests_running 1" not in (await _body(first, "/-/metrics")).decode():
                assert not put.done()
            first.stopping.set()
            await first.task
            assert (await put)[0] == 200
            assert config.ready_file is not None
            config.ready_file.unlink()
            second = Running(net, config, session)
            await second.wait()
            assert second.told["keys"] == first.told["keys"]
            assert await second.send("GET", "/bucket-1/big") == (200, BIG)
            second.stopping.set()
            await second.task

    asyncio.run(run())


def test_services_are_hosts_beside_buckets_and_kept_up(tmp_path: Path) -> None:
    service = "5e" * 16

    async def serve(request: web.BaseRequest) -> web.Response:
        return web.Response(text=request.raw_path, headers={ANSWER_HEADER: "1"})

    async def scene(net: World, running: Running) -> None:
        node = web.ServerRunner(web.Server(serve))
        await node.setup()
        home = Freehold(net.network, net.account(0), home=net.folder / "home", directory=net)
        async with home, AsyncExitStack() as stack:
            stack.push_async_callback(node.cleanup)
            await web.TCPSite(node, "127.0.0.1", 0).start()
            place = ServicePlace(
                node=str(net.account(0).address), endpoint=f"http://127.0.0.1:{node.addresses[0][1]}", lease="lease",
                order="order", token="t", job="web", since=1,
            )  # fmt: skip
            await publish(home.objects.root, service, place)
            for host in (f"{service}.apps.test", f"{service}.localhost:1"):
                async with asyncio.timeout(20 * SLOW):  # that it is new is seen within a second
                    while (answer := await running.fetch("GET", "/-/healthz?x", headers={"Host": host}))[0] == 404:  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
                assert answer == (200, b"/v1/compute/lease/services/order/-/healthz?x")
            assert (await running.fetch("GET", "/", headers={"Host": "6f" * 16 + ".apps.test"}))[0] == 404
            assert (await running.send("PUT", "/bucket-1"))[0] == 200
            assert json.loads((net.folder / "gateway.json").read_text())["service_domain"] == "apps.test"
            # What the client at that home has ordered is driven here: to its end, since no node here runs anything.
            job = Job(steps=[Step(name="web", command=["serve"], service={})])  # type: ignore[arg-type]
            row = await home.jobs.submit(job, most=1)
            async with asyncio.timeout(20 * SLOW):
                while not (await home.jobs.find(row.id)).ended:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert (await home.jobs.find(row.id)).phase == "failed"
            assert [event["kind"] for event in (await home.jobs.why(row.id))["events"]] == ["survey", "end"]

    play(tmp_path, scene, accounts=1, service_domain="apps.test", jobs="home")


def test_what_keeps_it_from_starting_is_said(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as net:
            good = configure(net, 1)
            for change, kind in (
                ({"wallets": ["none.json"]}, NotFound),
                ({"wallets": ["network.json"]}, InvalidInput),
                ({"passphrase_file": "wrong"}, WrongPassphrase),
                ({"certificate": "none.pem", "certificate_key": "none.pem"}, InvalidInput),
            ):
                (net.folder / "wrong").write_text("other")
                value = {"network": "network.json", "data": "d", "passphrase_file": "passphrase",
                         "wallets": ["wallets/client0.json"], **change}  # fmt: skip
                with pytest.raises(kind):
                    await process.run(GatewayConfig.from_json(value, net.folder), asyncio.Event())
            assert good.wallets[0].path.exists()

    asyncio.run(run())
