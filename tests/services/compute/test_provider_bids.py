"""Bids: refused with every reason, sealed to who asks, and never for somebody else."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from freehold.protocol.errors import FreeholdError, Refused
from freehold.services.compute.bidding import BidRequest
from freehold.services.compute.tasks import Resources
from freehold.services.compute.terms import Bid
from tests.services.compute.provider_world import CLIENT, ENGINE, PRICE, STRANGER, World, until


def asked(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "client": str(CLIENT.address), "executor": "wasm", "kind": "module", "engine": ENGINE,
        "resources": Resources(memory=2**20, disk=2**20),
    }  # fmt: skip
    request = BidRequest(**(fields | changes))
    return {"request": msgspec.to_builtins(request), "client": str(CLIENT.address)}


async def bid(world: World, **changes: Any) -> Bid:
    await until(lambda: bool(world.executor.probes))
    return Bid.from_json((await world.call("POST", "/bids", asked(**changes), base="/v1/compute"))["bid"])


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({"resources": Resources(memory=2**60, disk=2**20)}, ["memory"]),
        ({"engine": "fake-2"}, ["fake-2"]),
        ({"executor": "sandbox", "kind": "native"}, ["executor.sandbox"]),
        ({"network": True}, ["network"]),
        ({"constraint": 'place = "elsewhere"'}, ["place"]),
        ({"constraint": "gpu.count >= 1", "network": True}, ["gpu.count", "network"]),
        ({"steps": 5}, ["steps"]),
    ],
)
def test_a_node_that_does_not_bid_says_why(tmp_path: Path, changes: dict[str, Any], reasons: list[str]) -> None:
    async def scenario() -> None:
        async with World(tmp_path, settings={"rules": "steps < 5"}) as world:
            with pytest.raises(Refused) as error:
                await bid(world, **changes)
            for reason in reasons:
                assert any(reason in text for text in error.value.details["reasons"]), error.value.details
            assert world.provider._bids.bids == 0

    asyncio.run(scenario())


def test_a_bid_is_for_who_signs_the_request(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            assert (await bid(world)).price == PRICE
            with pytest.raises(FreeholdError) as error:
                await world.call("POST", "/bids", asked(), signer=STRANGER, base="/v1/compute")
            assert error.value.code == "wrong_signature"
            with pytest.raises(FreeholdError) as error:
                await world.call("POST", "/bids", asked(client=str(STRANGER.address)), base="/v1/compute")
            assert error.value.code == "malformed_message"
            for body in ({}, {"client": 5}, {"client": str(CLIENT.address), "request": []}):
                with pytest.raises(FreeholdError) as error:
                    await world.call("POST", "/bids", body, base="/v1/compute")
                assert error.value.code == "malformed_message"

    asyncio.run(scenario())


def test_how_busy_it_is_makes_the_price(tmp_path: Path) -> None:
    async def scenario() -> None:
        settings = {"slots": 1, "pricing": {"surcharge": 5000}}
        async with World(tmp_path, settings=settings) as world:
            assert (await bid(world)).price == PRICE
            for _ in range(2):
                await world.submit(world.task("wait gate 1"), wait=0)
            assert (await bid(world)).price == PRICE * 3 // 2

    asyncio.run(scenario())
