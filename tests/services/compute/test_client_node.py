"""One node as a client of compute sees it: what goes right, and each way in which a node may lie or fail."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from freehold.protocol.errors import Conflict, Corrupt, FreeholdError, NotFound, Overloaded, Refused, Unavailable
from freehold.protocol.units import ONE, UNSIGNED, ZERO_ADDRESS, Hash
from freehold.services.compute.bidding import BidRequest
from freehold.services.compute.client import ComputeClient, ComputeNode, WrongReceipt
from freehold.services.compute.ordering import link as client_link
from freehold.services.compute.ordering import node as client_node
from freehold.services.compute.tasks import Input, OutputFile, Result, decode_result
from freehold.services.compute.terms import Receipt
from tests.client.world import world
from tests.services.compute.client_world import (
    MEASURE,
    SECOND,
    FakeNode,
    blob,
    compute_client,
    fake_nodes,
    make_task,
    until,
)

PROGRAM = b"program"
UNTIL = 20
Scenario = Callable[[ComputeClient, ComputeNode, FakeNode], Awaitable[None]]


def request_of(client: ComputeClient, **changes: Any) -> BidRequest:
    own = str(client._context.key.address)
    return BidRequest(**({"client": own, "executor": "wasm", "kind": "module", "engine": "wasmtime-test"} | changes))


def run(folder: Path, scenario: Scenario, amount: int = 10 * ONE) -> None:
    """A scenario with one node under a lease that covers `amount`."""

    async def body() -> None:
        async with (
            world(folder / "net", nodes=0) as net,
            fake_nodes(net, 1) as [fake],
            compute_client(net, [fake]) as client,
        ):
            found = await client.survey(request_of(client))
            await scenario(client, await client.session(found.bids[0], amount), fake)

    asyncio.run(body())


def test_an_order_with_its_blobs_costs_one_request(tmp_path: Path) -> None:
    async def scenario(client: ComputeClient, node: ComputeNode, fake: FakeNode) -> None:
        fake.seen.clear()
        task = make_task(PROGRAM)
        order = node.order(task, SECOND, UNTIL)
        standing = await node.submit(order, task, {blob(PROGRAM).sha256: PROGRAM}, wait=10)
        assert fake.seen == ["POST orders"]
        assert standing.is_over
        outcome = standing.outcome
        assert outcome is not None
        assert standing.inline[outcome.stdout.sha256] == PROGRAM
        assert standing.receipt is not None
        assert standing.receipt.order() == order
        [kept] = await client.receipts([standing.job])
        assert kept.receipt == standing.receipt
        assert decode_result(kept.result) == outcome
        assert kept.cost == ONE // 10
        fake.seen.clear()
        again = node.order(task, SECOND, UNTIL)
        await node.submit(again, task, {blob(PROGRAM).sha256: PROGRAM}, wait=10)
        assert fake.seen == ["POST orders"]
        assert len({order.struct_hash(), again.struct_hash()}) == 2

    run(tmp_path, scenario)


def test_free_credits_follow_orders_and_receipts(tmp_path: Path) -> None:
    async def scenario(client: ComputeClient, node: ComputeNode, fake: FakeNode) -> None:
        free, fake.hold = node.free, asyncio.Event()
        task, blobs = make_task(PROGRAM), {blob(PROGRAM).sha256: PROGRAM}
        orders = [node.order(task, SECOND, UNTIL) for _ in range(3)]
        for order in orders:
            standing = await node.submit(order, task, blobs)
            assert standing.phase == "running"
        assert node.free == free - 3 * ONE
        await node.submit(orders[0], task, blobs)  # the same job
        assert node.free == free - 3 * ONE
        fake.hold.set()
        for order in orders:
            assert (await node.wait(order.struct_hash(), 5)).is_over
            await node.wait(order.struct_hash(), 0)  # counted once
        assert node.free == free - 3 * ONE // 10
        assert (await node.submit(orders[0], task, blobs)).is_over  # known to be over, and not counted again
        assert node.free == free - 3 * ONE // 10

    run(tmp_path, scenario)


def test_blobs_that_the_node_misses_are_pushed_and_the_order_sent_again(tmp_path: Path) -> None:
    async def scenario(client: ComputeClient, node: ComputeNode, fake: FakeNode) -> None:
        large, file = b"\x07" * 300_000, tmp_path / "input"
        file.write_bytes(large)
        task = make_task(PROGRAM, inputs=(Input("a/b", blob(large)),))
        order = node.order(task, SECOND, UNTIL)
        blobs = {blob(PROGRAM).sha256: PROGRAM, blob(large).sha256: file}
        standing = await node.submit(order, task, blobs, wait=5)
        name = blob(large).sha256
        put = [f"HEAD blobs/{name}", f"PUT blobs/{name}"]
        assert fake.seen[-4:] == ["POST orders", *put, "POST orders"]
        assert fake.blobs[name] == large
        assert standing.outcome is not None
        assert standing.outcome.files[0].sha256 == name
        # What it has forgotten, though it is known to have had it, comes again.
        del fake.blobs[name], fake.blobs[blob(PROGRAM).sha256]
        assert (await node.submit(node.order(task, SECOND, UNTIL), task, blobs, wait=5)).is_over
        await node.push(name, file)
        seen = len(fake.seen)
        await node.push(name, file)
        assert len(fake.seen) == seen

    run(tmp_path, scenario)


def test_blobs_that_nobody_has_given_are_named(tmp_path: Path) -> None:
    async def scenario(client: ComputeClient, node: ComputeNode, fake: FakeNode) -> None:
        task, free = make_task(PROGRAM), node.free
        with pytest.raises(Conflict) as caught:
            await node.submit(node.order(task, SECOND, UNTIL), task)
        assert caught.value.details["missing"] == [blob(PROGRAM).sha256]
        assert node.free == free

    run(tmp_path, scenario)


def test_an_output_is_fetched_and_checked(tmp_path: Path) -> None:
    async def scenario(client: ComputeClient, node: ComputeNode, fake: FakeNode) -> None:
        data = bytes(range(256)) * 5000
        name = hashlib.sha256(data).hexdigest()
        fake.blobs[name] = data
        job, target = Hash(bytes(32)), tmp_path / "there"
        assert await node.fetch(job, name) == data
        await node.fetch_to(job, name, target)
        assert target.read_bytes() == data
        fake.blobs[name] = data[:-1] + b"x"
        target.unlink()
        with pytest.raises(Corrupt):
            await node.fetch(job, name)
        with pytest.raises(Corrupt):
            await node.fetch_to(job, name, target)
        assert sorted(os.listdir(tmp_path)) == ["net"]
        with pytest.raises(NotFound):
            await node.fetch(job, "0" * 64)

    run(tmp_path, scenario)


def wrong(**changes: Any) -> Callable[[dict[str, Any], Receipt], None]:
    def lie(standing: dict[str, Any], receipt: Receipt) -> None:
        standing["receipt"] = msgspec.structs.replace(receipt, **changes)

    return lie


def shown(**changes: Any) -> Callable[[dict[str, Any], Receipt], None]:
    return lambda standing, _: standing.update(changes)


def left(*files: OutputFile) -> Callable[[dict[str, Any], Receipt], None]:
    """The result has these files, and the receipt commits to it."""

    def lie(standing: dict[str, Any], receipt: Receipt) -> None:
        result = msgspec.structs.replace(msgspec.json.decode(standing["result"], type=Result), files=files)
        standing["result"] = result.encode().decode()
        standing["receipt"] = msgspec.structs.replace(receipt, output=result.hash())

    return lie


OTHER = Hash(b"o" * 32)
RESULT = '{"ended":"exited","files":[],"status":0,"stdout":{"path":"","sha256":"","size":0}}'
LIES = {
    "other task": wrong(task=OTHER),
    "other lease": wrong(lease=OTHER),
    "more ordered": wrong(most=2 * SECOND),
    "longer": wrong(until=UNTIL + 1),
    "more billed": wrong(measure=SECOND + 1),
    "other node": wrong(node=ZERO_ADDRESS),
    "other input": wrong(input=OTHER),
    "other output": wrong(output=OTHER),
    "other steps": wrong(steps=OTHER),
    "no such order": wrong(number=1),
    "no client": wrong(client_signature=UNSIGNED),
    "other result": shown(result=RESULT),
    "no result": shown(result=None),
    "not a result": shown(result="{}"),
    "other job": shown(job=str(OTHER)),
    "fewer steps": shown(steps=["00" * 32]),
    "early receipt": shown(phase="running"),
    "a file not asked for": left(OutputFile(".git/config", blob(PROGRAM).sha256, 1)),
    "a file elsewhere": left(OutputFile("../made", blob(PROGRAM).sha256, 1)),
    "a file twice": left(OutputFile("made", blob(PROGRAM).sha256, 1), OutputFile("made", "0" * 64, 1)),
    "a file too large": left(OutputFile("made", blob(PROGRAM).sha256, 2**50)),
    "a hash that is a path": left(OutputFile("made", "../" * 8 + "tmp/x", 1)),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_node_that_lies_about_a_job_is_found_out(tmp_path: Path, lie: str) -> None:
    async def scenario(client: ComputeClient, node: ComputeNode, fake: FakeNode) -> None:
        fake.lie = LIES[lie]
        task = make_task(PROGRAM, inputs=(Input("in", blob(PROGRAM)),), steps=3, outputs=("made", "in"))
        with pytest.raises(WrongReceipt) as caught:
            await node.submit(node.order(task, SECOND, UNTIL), task, {blob(PROGRAM).sha256: PROGRAM}, wait=5)
        assert caught.value.details["node"] == str(fake.key.address)
        assert await client.receipts() == []
        fake.lie = None
        order = node.order(task, SECOND, UNTIL)
        assert (await node.submit(order, task, {blob(PROGRAM).sha256: PROGRAM}, wait=5)).is_over

    run(tmp_path, scenario)


def test_a_receipt_that_is_not_signed_is_found_out(tmp_path: Path) -> None:
    async def scenario(client: ComputeClient, node: ComputeNode, fake: FakeNode) -> None:
        fake.resign, task = False, make_task(PROGRAM)
        with pytest.raises(WrongReceipt, match="did not sign"):
            await node.submit(node.order(task, SECOND, UNTIL), task, {blob(PROGRAM).sha256: PROGRAM}, wait=5)

    run(tmp_path, scenario)


def test_a_signed_receipt_whose_result_is_another_can_be_disputed(tmp_path: Path) -> None:
    async def scenario(client: ComputeClient, node: ComputeNode, fake: FakeNode) -> None:
        fake.lie, task = shown(result=None), make_task(PROGRAM)
        with pytest.raises(WrongReceipt) as caught:
            await node.submit(node.order(task, SECOND, UNTIL), task, {blob(PROGRAM).sha256: PROGRAM}, wait=5)
        assert Receipt.from_json(caught.value.details["receipt"]).node == fake.key.address

    run(tmp_path, scenario)


def test_an_inline_blob_that_is_another_is_found_out(tmp_path: Path) -> None:
    async def scenario(client: ComputeClient, node: ComputeNode, fake: FakeNode) -> None:
        fake.lie, task = shown(inline={blob(b"x").sha256: "eQ=="}), make_task(PROGRAM)
        with pytest.raises(Corrupt):
            await node.submit(node.order(task, SECOND, UNTIL), task, {blob(PROGRAM).sha256: PROGRAM}, wait=5)

    run(tmp_path, scenario)


def test_a_job_that_was_given_up_is_refused_with_its_reason_and_costs_nothing(tmp_path: Path) -> None:
    async def scenario(client: ComputeClient, node: ComputeNode, fake: FakeNode) -> None:
        free, task = node.free, make_task(PROGRAM)
        fake.lie = shown(receipt=None, result=None, reason="its executor is gone")
        with pytest.raises(Refused, match="its executor is gone"):
            await node.submit(node.order(task, SECOND, UNTIL), task, {blob(PROGRAM).sha256: PROGRAM}, wait=5)
        assert node.free == free

    run(tmp_path, scenario)


@pytest.mark.parametrize("lost", ["drop", "drop_before"])
def test_an_answer_that_was_lost_is_asked_for_and_nothing_is_ordered_twice(tmp_path: Path, lost: str) -> None:
    async def scenario(client: ComputeClient, node: ComputeNode, fake: FakeNode) -> None:
        setattr(fake, lost, 1)
        task, fake.seen = make_task(PROGRAM), []
        order = node.order(task, SECOND, UNTIL)
        standing = await node.submit(order, task, {blob(PROGRAM).sha256: PROGRAM}, wait=5)
        assert standing.is_over
        assert list(fake.orders) == [order.struct_hash()]
        ask = f"GET orders/{order.struct_hash()}"
        assert fake.seen == (["POST orders", ask] if lost == "drop" else ["POST orders", ask, "POST orders"])

    run(tmp_path, scenario)


def test_a_node_that_is_gone_is_unavailable_and_what_it_may_run_stays_counted(tmp_path: Path) -> None:
    async def scenario(client: ComputeClient, node: ComputeNode, fake: FakeNode) -> None:
        free, task = node.free, make_task(PROGRAM)
        await fake.server.stop()
        order = node.order(task, SECOND, UNTIL)
        with pytest.raises(Unavailable) as caught:
            await node.submit(order, task, {blob(PROGRAM).sha256: PROGRAM})
        assert caught.value.details["job"] == str(order.struct_hash())
        assert node.free == free - ONE

    run(tmp_path, scenario)


def test_a_node_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_link, "GRACE_SECONDS", 0.2)
    monkeypatch.setattr(client_node, "PAUSES", (0.01,))

    async def scenario(client: ComputeClient, node: ComputeNode, fake: FakeNode) -> None:
        fake.silent, task = True, make_task(PROGRAM)
        with pytest.raises(Unavailable):
            await node.submit(node.order(task, SECOND, UNTIL), task, {blob(PROGRAM).sha256: PROGRAM})

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("answer", "is_stale"),
    [(Overloaded("busy", retry_after=3), False), (Refused("this lease is closed"), True), (NotFound("what"), True)],
)
def test_what_a_node_refuses_is_raised_as_it_says(tmp_path: Path, answer: FreeholdError, is_stale: bool) -> None:
    async def scenario(client: ComputeClient, node: ComputeNode, fake: FakeNode) -> None:
        fake.fail_with, task, free = answer, make_task(PROGRAM), node.free
        with pytest.raises(type(answer)) as caught:
            await node.submit(node.order(task, SECOND, UNTIL), task, {blob(PROGRAM).sha256: PROGRAM})
        assert caught.value.details.get("retry_after") == answer.details.get("retry_after")
        assert (node.free, node.is_stale) == (free, is_stale)

    run(tmp_path, scenario)


def test_a_node_that_is_unavailable_for_a_moment_is_asked_again(tmp_path: Path) -> None:
    async def scenario(client: ComputeClient, node: ComputeNode, fake: FakeNode) -> None:
        fake.fail_with, task = Unavailable("starting"), make_task(PROGRAM)
        order = node.order(task, SECOND, UNTIL)
        sending = asyncio.create_task(node.submit(order, task, {blob(PROGRAM).sha256: PROGRAM}, wait=5))
        fake.seen.clear()
        await until(lambda: len(fake.seen) >= 2)
        fake.fail_with = None
        assert (await sending).is_over

    run(tmp_path, scenario)


def test_a_log_is_followed_to_its_end_and_what_is_kept_no_longer_passed_over(tmp_path: Path) -> None:
    async def scenario(client: ComputeClient, node: ComputeNode, fake: FakeNode) -> None:
        fake.log_start, fake.log, fake.log_over = 1000, b"later", False
        task, fake.hold = make_task(PROGRAM), asyncio.Event()
        job = (await node.submit(node.order(task, SECOND, UNTIL), task, {blob(PROGRAM).sha256: PROGRAM})).job
        assert await node.log(job) == (b"later", False)
        got = []
        async for piece in node.follow(job):
            got.append(piece)
            if len(got) < 3:
                await fake.write_log(b" %d" % len(got), over=len(got) == 2)
        assert b"".join(got) == b"later 1 2"
        assert await node.log(job, 1005) == (b" 1 2", True)

    run(tmp_path, scenario)


def test_a_job_is_stopped_and_what_it_took_is_billed(tmp_path: Path) -> None:
    async def scenario(client: ComputeClient, node: ComputeNode, fake: FakeNode) -> None:
        fake.hold, task = asyncio.Event(), make_task(PROGRAM)
        job = (await node.submit(node.order(task, SECOND, UNTIL), task, {blob(PROGRAM).sha256: PROGRAM})).job
        standing = await node.stop(job)
        assert standing.outcome is not None
        assert standing.outcome.ended == "stopped"
        [kept] = await client.receipts()
        assert kept.receipt.measure == MEASURE

    run(tmp_path, scenario)


def test_jobs_are_found_again_page_by_page(tmp_path: Path) -> None:
    async def scenario(client: ComputeClient, node: ComputeNode, fake: FakeNode) -> None:
        task = make_task(PROGRAM)
        orders = [node.order(task, SECOND, UNTIL) for _ in range(5)]
        for order in orders:
            await node.submit(order, task, {blob(PROGRAM).sha256: PROGRAM})
        assert [standing.job for standing in await node.jobs()] == [order.struct_hash() for order in orders]

    run(tmp_path, scenario)


def test_more_jobs_are_waited_for_than_there_are_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_node, "POLLS", 2)

    async def scenario(client: ComputeClient, node: ComputeNode, fake: FakeNode) -> None:
        fake.hold, task = asyncio.Event(), make_task(PROGRAM)
        orders = [node.order(task, SECOND // 10, UNTIL) for _ in range(8)]
        sent = [asyncio.create_task(node.submit(o, task, {blob(PROGRAM).sha256: PROGRAM}, wait=20)) for o in orders]
        await until(lambda: sum(one.done() for one in sent) == 6)
        assert {one.result().phase for one in sent if one.done()} == {"running"}
        assert (await node.wait(orders[7].struct_hash(), 0.01)).phase == "running"
        waiting = [asyncio.create_task(node.wait(o.struct_hash(), 20)) for o in orders]
        fake.hold.set()
        assert all(standing.is_over for standing in await asyncio.gather(*waiting))
        await asyncio.gather(*sent)

    run(tmp_path, scenario)


def test_whoever_waits_may_be_cancelled_and_the_job_goes_on(tmp_path: Path) -> None:
    async def scenario(client: ComputeClient, node: ComputeNode, fake: FakeNode) -> None:
        fake.hold, task = asyncio.Event(), make_task(PROGRAM)
        order = node.order(task, SECOND, UNTIL)
        waiting = asyncio.create_task(node.submit(order, task, {blob(PROGRAM).sha256: PROGRAM}, wait=20))
        await until(lambda: bool(fake.orders))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        fake.hold.set()
        assert (await node.wait(order.struct_hash(), 5)).is_over

    run(tmp_path, scenario)
