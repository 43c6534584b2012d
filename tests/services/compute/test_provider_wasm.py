"""The provider with the real WebAssembly executor: modules run, loops end at their cap, steps and speeds are kept."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import wasmtime

from freehold.protocol.keys import is_signed_by
from freehold.services.compute.bidding import BidRequest, decode_properties
from freehold.services.compute.executors.wasm import WasmExecutor
from freehold.services.compute.executors.wasm_terms import ENGINE
from freehold.services.compute.tasks import Resources, Task, decode_result
from freehold.services.compute.terms import Bid
from tests.protocol.world import DOMAIN
from tests.services.compute.provider_world import CLIENT, NODE, PRICE, World, make_lease, receipt_of, until
from tests.services.compute.wasm_world import LOOP, count_to, program


def module(world: World, text: str, **changes: Any) -> Task:
    fields: dict[str, Any] = {
        "executor": "wasm", "kind": "module", "engine": ENGINE, "program": world.contents.add(wasmtime.wat2wasm(text)),
        "resources": Resources(memory=2**24, disk=2**20, seconds=30),
    }  # fmt: skip
    return Task(**(fields | changes))


def test_modules_are_metered_to_the_unit_and_end_at_their_cap(tmp_path: Path) -> None:
    async def scenario() -> None:
        executor = WasmExecutor(tmp_path / "modules", 2)
        async with World(tmp_path / "node", executors=[executor], settings={"slots": 2}) as world:
            await world.cover(10**12)
            task = module(world, count_to(1000))
            first, second = [await world.submit(task, most=10**6) for _ in range(2)]
            assert decode_result(first["result"].encode()).ended == "exited"
            assert receipt_of(first).measure == receipt_of(second).measure > 1000
            assert receipt_of(first).output == receipt_of(second).output
            endless = await world.submit(module(world, LOOP), most=10**7)
            assert decode_result(endless["result"].encode()).ended == "fuel"
            assert receipt_of(endless).measure == 10**7
            wrong = await world.submit(module(world, '(module (import "env" "x" (func)))'), most=10**6)
            assert decode_result(wrong["result"].encode()).ended in ("refused", "trap")
            assert receipt_of(wrong).measure <= 10**6
            hello = "(drop (call $write (i32.const 1) (i32.const 1024) (i32.const 5)))"
            said = await world.submit(module(world, program(hello, data="hello")), most=10**6)
            assert list(said["inline"].values()) == ["aGVsbG8="]
            stepped = await world.submit(module(world, program(hello, data="hello"), steps=3), most=10**7)
            assert len(stepped["steps"]) == 3
            job = (await world.submit(module(world, LOOP), most=10**11, wait=0))["job"]
            await until(lambda: world.provider.metrics()["running"] == 1)
            stopped = await world.call("DELETE", f"/orders/{job}")
            assert decode_result(stopped["result"].encode()).ended == "stopped"
            assert receipt_of(stopped).measure <= 10**11

    asyncio.run(scenario())


def test_a_node_bids_with_what_it_measured_and_the_bid_binds_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        executor = WasmExecutor(tmp_path / "modules", 1)
        settings = {"slots": 1, "benchmark": True, "rules": "processors <= 2", "pricing": {"discount": 1000}}
        async with World(tmp_path / "node", executors=[executor], settings=settings) as world:
            measuring = world.provider._bids._measuring
            assert measuring is not None
            await measuring
            request = BidRequest(
                client=str(CLIENT.address), executor="wasm", kind="module", engine=ENGINE,
                resources=Resources(memory=2**20, disk=2**20), constraint='speed.fuel > 0 and place = "here"',
            )  # fmt: skip
            asked = {"request": msgspec.to_builtins(request), "client": str(CLIENT.address)}
            bid = Bid.from_json((await world.call("POST", "/bids", asked, base="/v1/compute"))["bid"])
            assert is_signed_by(bid, bid.node_signature, NODE.address, DOMAIN)
            assert (bid.client, bid.request, bid.price) == (CLIENT.address, request.hash(), PRICE * 9 // 10)
            properties = decode_properties(bid.properties)
            assert properties["speed.fuel"] > 10**6
            assert (properties["executor.wasm.engine"], properties["network"]) == (ENGINE, False)
            lease = make_lease(NODE, number=2, price=bid.price)
            assert world.provider.agreed_price(lease) == bid.price
            world.now = bid.expiry + 1
            assert world.provider.agreed_price(lease) is None
            # Measured once a day, whatever happens.
            await world.kill()
            world.executors = [WasmExecutor(tmp_path / "modules", 1)]
            await world.start()
            assert world.provider._bids._measuring is None
            assert world.provider._bids.properties()["speed.fuel"] == properties["speed.fuel"]

    asyncio.run(scenario())
