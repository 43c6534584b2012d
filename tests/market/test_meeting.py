"""A node is met by its signed offer: whoever shows another certificate than the offer names is asked nothing more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from freehold.market.meeting import node_peer
from freehold.market.placement import Terms, survey
from freehold.net.client import Dial, Peer
from freehold.net.server import Server, make_app, ok, serve
from freehold.net.tls import Certificate, ensure_certificate
from freehold.protocol.errors import Unavailable, WrongCertificate
from freehold.protocol.keys import Key
from freehold.protocol.messages import Offer
from freehold.protocol.state import NodeRecord
from freehold.protocol.typed import Domain
from freehold.protocol.units import ZERO_HASH, Address, Hash
from tests.conftest import SLOW

DOMAIN = Domain(1, Address(b"o" * 20))
NODE, STRANGER = Key(b"\x01" * 32), Key(b"\x02" * 32)
NOW = 1000
DEADLINE = 20.0 * SLOW


class FakeNode:
    """Serves offers, and something else; counts both."""

    def __init__(self, certificate: Certificate | None, **changes: Any) -> None:
        self.certificate, self.changes = certificate, changes
        self.signer = NODE
        self.offers = self.others = 0
        self.server: Server

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def offer(self) -> Offer:
        values: dict[str, Any] = {
            "node": NODE.address, "service": "storage", "endpoint": self.url, "fingerprint": self.server.fingerprint,
            "place": "", "stream_price": 1, "voucher_price": 1, "capacity": 100, "expiry": NOW + 100,
        }  # fmt: skip
        offer = Offer(**(values | self.changes))
        return msgspec.structs.replace(offer, node_signature=self.signer.sign(offer, DOMAIN))

    async def show(self, _: web.Request) -> web.Response:
        self.offers += 1
        return ok([self.offer().to_json()])

    async def other(self, _: web.Request) -> web.Response:
        self.others += 1
        return ok("here")

    @asynccontextmanager
    async def running(self, port: int = 0) -> AsyncIterator[FakeNode]:
        routes = [web.get("/v1/offers", self.show), web.get("/other", self.other)]
        app = make_app(routes, ready=lambda: (True, ""), metrics=lambda: "")
        self.server = await serve(app, "127.0.0.1", port, tls=self.certificate)
        try:
            yield self
        finally:
            await self.server.stop()


@pytest.fixture
def certificates(tmp_path: Path) -> list[Certificate]:
    return [ensure_certificate(tmp_path / name) for name in ("first", "second", "third")]


def run(node: FakeNode, use: Callable[[FakeNode, Dial], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(DEADLINE), node.running(), Dial() as dial:
            await use(node, dial)

    asyncio.run(main())


def peer_of(dial: Dial, node: FakeNode) -> Peer:
    return node_peer(dial, NODE.address, node.url, DOMAIN, lambda: NOW)


def test_a_node_is_met_once_a_process_and_only_when_it_is_asked_something(certificates: list[Certificate]) -> None:
    async def use(node: FakeNode, dial: Dial) -> None:
        peers = [peer_of(dial, node) for _ in range(3)]
        assert node.offers == 0
        for peer in peers:
            assert await peer.get_json("/other") == "here"
        assert (node.offers, node.others) == (1, 3)

    run(FakeNode(certificates[0]), use)


def test_over_http_nothing_is_asked_first() -> None:
    async def use(node: FakeNode, dial: Dial) -> None:
        assert await peer_of(dial, node).get_json("/other") == "here"
        assert node.offers == 0

    run(FakeNode(None), use)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"fingerprint": Hash(b"x" * 32)}, "names the certificate 0x7878"),
        ({"fingerprint": ZERO_HASH}, "names the certificate 0x0000"),
        ({"expiry": NOW - 1}, "expired 1 s ago"),
        ({"node": STRANGER.address}, "another node's"),
    ],
)
def test_an_offer_that_does_not_vouch_for_the_certificate(
    certificates: list[Certificate], changes: dict[str, Any], why: str
) -> None:
    async def use(node: FakeNode, dial: Dial) -> None:
        for _ in range(2):
            with pytest.raises(WrongCertificate, match=why):
                await peer_of(dial, node).get_json("/other")
        assert (node.offers, node.others) == (2, 0)
        assert dial.known == {}

    run(FakeNode(certificates[0], **changes), use)


def test_an_offer_that_somebody_else_signed(certificates: list[Certificate]) -> None:
    async def use(node: FakeNode, dial: Dial) -> None:
        node.signer = STRANGER
        with pytest.raises(WrongCertificate, match="not signed by it"):
            await peer_of(dial, node).get_json("/other")
        assert node.others == 0

    run(FakeNode(certificates[0]), use)


def test_one_that_cannot_be_reached_is_unavailable_and_may_be_tried_again() -> None:
    async def main() -> None:
        async with Dial() as dial:
            with pytest.raises(Unavailable) as caught:
                await node_peer(dial, NODE.address, "https://127.0.0.1:1", DOMAIN, lambda: NOW).get_json("/other")
            assert caught.value.retryable

    asyncio.run(main())


def test_a_new_certificate_needs_a_newer_offer(certificates: list[Certificate]) -> None:
    async def main() -> None:
        first, second, third = certificates
        async with asyncio.timeout(DEADLINE), Dial() as dial, AsyncExitStack() as stack:
            node = await stack.enter_async_context(FakeNode(first).running())
            peer, port = peer_of(dial, node), node.port
            assert await peer.get_json("/other") == "here"
            await node.server.stop()
            # Restarted with another certificate, as its offer now says.
            node = await stack.enter_async_context(FakeNode(second, expiry=NOW + 200).running(port))
            assert await asyncio.gather(*(peer.get_json("/other") for _ in range(8))) == ["here"] * 8
            assert node.offers == 1
            await node.server.stop()
            # Somebody with the old key, and the offer of then.
            thief = await stack.enter_async_context(FakeNode(first).running(port))
            with pytest.raises(WrongCertificate, match="older than the one known"):
                await peer.get_json("/other")
            assert thief.others == 0
            await thief.server.stop()
            # Somebody who relays the node's own offer.
            between = FakeNode(third, expiry=NOW + 300, fingerprint=second.fingerprint)
            await stack.enter_async_context(between.running(port))
            with pytest.raises(WrongCertificate, match="names the certificate"):
                await peer.get_json("/other")
            assert between.others == 0

    asyncio.run(main())


def test_a_survey_meets_nodes_too_and_says_why_it_cannot(certificates: list[Certificate]) -> None:
    async def main() -> None:
        lying = {"fingerprint": Hash(b"x" * 32)}
        nodes = [FakeNode(certificates[0]), FakeNode(certificates[1], **lying), FakeNode(None, **lying), FakeNode(None)]
        terms = Terms("storage", DOMAIN, now=NOW)
        async with asyncio.timeout(DEADLINE), Dial() as dial, AsyncExitStack() as stack:
            reasons = []
            for node in nodes:
                await stack.enter_async_context(node.running())
                record = NodeRecord(
                    node=NODE.address, operator=NODE.address, payout=NODE.address, endpoint=node.url, bond=1
                )
                reasons.append((await survey([record], dial, terms)).refusals.get(NODE.address, ""))
            assert reasons[0] == reasons[3] == ""
            assert f"it shows {certificates[1].fingerprint}" in reasons[1]
            assert "spoken to over http" in reasons[2]
            assert await peer_of(dial, nodes[0]).get_json("/other") == "here"
            assert nodes[0].offers == 1

    asyncio.run(main())
