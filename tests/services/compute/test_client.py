"""A client of compute: whom it asks, under which lease and lock it orders, and what it can show of it later."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from freehold.market.reservations import Want
from freehold.oracle.views import Views
from freehold.protocol.errors import InsufficientCredits, InvalidInput, NotFound, Refused, Unavailable
from freehold.protocol.merkle import row_root
from freehold.protocol.messages import STREAM, VOUCHER
from freehold.protocol.state import EpochState, NodeRecord, State
from freehold.protocol.tables import Table
from freehold.protocol.units import ONE, ZERO_ADDRESS, ZERO_HASH, Hash
from freehold.services.compute.client import ComputeClient, ComputeNode, Offered, WrongReceipt
from freehold.services.compute.ordering import sessions as client_sessions
from freehold.services.compute.proof import make_step
from freehold.services.compute.terms import CASE, EXACT, JOB, KEPT_EPOCHS, PAID, Dispute, Receipt, WorkState
from tests.client.world import World, key, world
from tests.services.compute.client_world import (
    PRICE,
    SECOND,
    FakeNode,
    blob,
    compute_client,
    fake_nodes,
    make_task,
    until,
)
from tests.services.compute.test_client_node import PROGRAM, UNTIL, request_of, wrong

Scenario = Callable[[World, ComputeClient, list[FakeNode]], Awaitable[None]]
BLOBS = {blob(PROGRAM).sha256: PROGRAM}


def run(folder: Path, scenario: Scenario, nodes: int = 1, credits: int = 1000 * ONE) -> None:
    async def body() -> None:
        async with (
            world(folder / "net", nodes=0) as net,
            fake_nodes(net, nodes) as fakes,
            compute_client(net, fakes, credits=credits) as client,
        ):
            await scenario(net, client, fakes)

    asyncio.run(body())


async def bids(client: ComputeClient) -> list[Offered]:
    found = await client.survey(request_of(client))
    assert found.refusals == {}
    return sorted(found.bids, key=lambda offered: offered.node)


async def order(node: ComputeNode, count: int = 1, most: int = SECOND) -> None:
    task = make_task(PROGRAM)
    orders = [node.order(task, most, UNTIL) for _ in range(count)]
    await asyncio.gather(*(node.submit(one, task, BLOBS, wait=10) for one in orders))


# Bids


def test_who_bids_is_found_and_who_does_not_says_why(tmp_path: Path) -> None:
    async def scenario(net: World, client: ComputeClient, fakes: list[FakeNode]) -> None:
        fakes[1].price = PRICE // 2
        fakes[2].silent = True
        await fakes[3].server.stop()
        poor = msgspec.structs.replace(fakes[4].record(), bond=0)
        records = [*(fake.record() for fake in fakes[:4]), poor]
        client._context.directory.nodes = lambda: answer(records)  # type: ignore[method-assign]
        found = await client.survey(request_of(client, seconds=1))
        assert {(o.node, o.price) for o in found.bids} == {
            (fakes[0].key.address, PRICE),
            (fakes[1].key.address, PRICE // 2),
        }
        own = next(o for o in found.bids if o.node == fakes[0].key.address)
        assert own.properties["operator"] == str(fakes[0].operator)
        assert (own.properties["cpu.cores"], own.properties["bond"]) == (4, ONE)
        assert "within 1 s" in found.refusals[fakes[2].key.address]
        assert "does not answer" in found.refusals[fakes[3].key.address]
        assert "bond of 0" in found.refusals[poor.node]

    run(tmp_path, scenario, nodes=5)


async def answer(records: Sequence[NodeRecord]) -> Sequence[NodeRecord]:
    return records


def test_a_node_that_refuses_a_request_gives_its_reasons(tmp_path: Path) -> None:
    async def scenario(net: World, client: ComputeClient, fakes: list[FakeNode]) -> None:
        found = await client.survey(request_of(client, engine="wasmtime-1", constraint="cpu.cores >= 64"))
        assert found.bids == []
        [reason] = found.refusals.values()
        assert "wasmtime-1" in reason
        assert "cpu.cores" in reason

    run(tmp_path, scenario)


def test_a_bid_for_another_request_does_not_count(tmp_path: Path) -> None:
    async def scenario(net: World, client: ComputeClient, fakes: list[FakeNode]) -> None:
        fakes[0].key, own = key("compute", 77), fakes[0].key
        record = msgspec.structs.replace(fakes[0].record(), node=own.address)
        client._context.directory.nodes = lambda: answer([record])  # type: ignore[method-assign]
        found = await client.survey(request_of(client))
        assert found.bids == []
        assert "another node's" in found.refusals[own.address]

    run(tmp_path, scenario)


# Leases and locks


def test_a_standing_session_costs_nothing_but_the_order(tmp_path: Path) -> None:
    async def scenario(net: World, client: ComputeClient, fakes: list[FakeNode]) -> None:
        [offered] = await bids(client)
        node = await client.session(offered, 5 * ONE)
        assert (node.price, node.operator) == (PRICE, fakes[0].operator)
        assert node.free >= 5 * ONE
        reserved = dict(net.memory.pending)
        assert await client.session(offered, 5 * ONE) is node
        await order(node)
        assert await client.session(offered, 5 * ONE) is node
        assert net.memory.pending == reserved

    run(tmp_path, scenario)


def test_many_nodes_are_locked_for_under_one_reservation(tmp_path: Path) -> None:
    async def scenario(net: World, client: ComputeClient, fakes: list[FakeNode]) -> None:
        offers = await bids(client)
        await fakes[1].server.stop()
        nodes, failures = await client.sessions([(offered, 5 * ONE) for offered in offers])
        assert [node.node for node in nodes] == [o.node for o in offers if o.node != fakes[1].key.address]
        assert set(failures) == {fakes[1].key.address}
        assert max(net.memory.pending.values()) == 1
        await asyncio.gather(*(order(node, 3) for node in nodes))

    run(tmp_path, scenario, nodes=4)


def test_sessions_that_are_asked_for_at_once_share_a_reservation(tmp_path: Path) -> None:
    async def scenario(net: World, client: ComputeClient, fakes: list[FakeNode]) -> None:
        offers = await bids(client)
        nodes = await asyncio.gather(*(client.session(offered, ONE) for offered in [*offers, *offers]))
        assert len({node.lease for node in nodes}) == len(fakes)
        assert max(net.memory.pending.values()) <= 2

    run(tmp_path, scenario, nodes=4)


def test_orders_beyond_the_lock_lock_more_together(tmp_path: Path) -> None:
    async def scenario(net: World, client: ComputeClient, fakes: list[FakeNode]) -> None:
        [offered] = await bids(client)
        node = await client.session(offered, ONE)
        fakes[0].hold = asyncio.Event()
        working = asyncio.create_task(order(node, 20))
        await until(lambda: len(fakes[0].orders) == 20)
        fakes[0].hold.set()
        await working
        assert max(net.memory.pending.values()) <= 4
        assert len(await client.receipts()) == 20

    run(tmp_path, scenario)


def test_more_is_locked_in_the_background_before_it_runs_out(tmp_path: Path) -> None:
    async def scenario(net: World, client: ComputeClient, fakes: list[FakeNode]) -> None:
        [offered] = await bids(client)
        node = await client.session(offered, 4 * ONE)
        lock, fakes[0].hold = node.funds.lock, asyncio.Event()
        while node.free >= 3 * ONE:
            task = make_task(PROGRAM)
            await node.submit(node.order(task, SECOND, UNTIL), task, BLOBS)
            assert node.funds.lock == lock
        task = make_task(PROGRAM)
        await node.submit(node.order(task, 2 * SECOND, UNTIL), task, BLOBS)
        await until(lambda: node.funds.lock > lock)
        assert node.free >= 4 * ONE

    run(tmp_path, scenario)


def test_too_few_credits_are_said_to_be_missing_and_whoever_came_first_is_served(tmp_path: Path) -> None:
    async def scenario(net: World, client: ComputeClient, fakes: list[FakeNode]) -> None:
        offers = await bids(client)
        nodes, failures = await client.sessions([(offered, 6 * ONE) for offered in offers])
        assert [node.node for node in nodes] == [offers[0].node]
        error = failures[offers[1].node]
        assert isinstance(error, InsufficientCredits)
        assert error.details["missing"] == str(2 * ONE)
        with pytest.raises(InsufficientCredits):
            await order(nodes[0], 1, 11 * SECOND)
        assert nodes[0].free == 6 * ONE  # what was not ordered is not counted
        await order(nodes[0], 1, 6 * SECOND)

    run(tmp_path, scenario, nodes=2, credits=10 * ONE)


def test_whoever_is_cancelled_leaves_the_others_their_sessions(tmp_path: Path) -> None:
    async def scenario(net: World, client: ComputeClient, fakes: list[FakeNode]) -> None:
        offers = await bids(client)
        slow = next(fake for fake in fakes if fake.key.address == offers[0].node)
        slow.signing = asyncio.Event()
        first = asyncio.create_task(client.session(offers[0], ONE))
        await until(client._sessions._changing.locked)
        others = [asyncio.create_task(client.session(offered, ONE)) for offered in offers[1:]]
        await asyncio.sleep(0)
        first.cancel()
        nodes = await asyncio.gather(*others)
        assert [node.node for node in nodes] == [offered.node for offered in offers[1:]]
        assert first.cancelled()
        slow.signing.set()
        await order(await client.session(offers[0], ONE))

    run(tmp_path, scenario, nodes=3)


def test_a_node_that_does_not_sign_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_sessions, "OPEN_SECONDS", 0.3)

    async def scenario(net: World, client: ComputeClient, fakes: list[FakeNode]) -> None:
        offers = await bids(client)
        fakes[0].signing = asyncio.Event()
        nodes, failures = await client.sessions([(offered, ONE) for offered in offers])
        assert {node.node for node in nodes} == {fakes[1].key.address}
        assert isinstance(failures[fakes[0].key.address], Unavailable)
        fakes[0].signing.set()

    run(tmp_path, scenario, nodes=2)


def test_nodes_are_known_by_their_certificates(tmp_path: Path) -> None:
    async def body() -> None:
        async with (
            world(tmp_path / "net", nodes=0) as net,
            fake_nodes(net, 1, tls=True) as fakes,
            compute_client(net, fakes) as client,
        ):
            assert fakes[0].server.url.startswith("https:")
            await order(await client.session((await bids(client))[0], ONE))
            fakes[0].offers.fingerprint = Hash(b"f" * 32)  # somebody in between, with another certificate
            async with compute_client(net, fakes, home="other") as other:
                found = await other.survey(request_of(other))
                assert found.bids == []
                assert "does not prove to be node" in found.refusals[fakes[0].key.address]

    asyncio.run(body())


def test_without_members_no_session_is_opened(tmp_path: Path) -> None:
    async def scenario(net: World, client: ComputeClient, fakes: list[FakeNode]) -> None:
        [offered] = await bids(client)
        for member in net.members[:3]:
            await member.server.stop()
        with pytest.raises(Unavailable):
            await client.session(offered, ONE)

    run(tmp_path, scenario)


def test_what_other_devices_have_ordered_is_taken_into_account(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path / "net", nodes=0) as net, fake_nodes(net, 1) as fakes:
            async with compute_client(net, fakes) as one, compute_client(net, fakes, home="other") as two:
                first = await one.session((await bids(one))[0], 5 * ONE)
                second = await two.session((await bids(two))[0], 5 * ONE)
                assert first.lease == second.lease
                fakes[0].hold = asyncio.Event()
                working = asyncio.create_task(order(first, 12))
                await until(lambda: len(fakes[0].orders) == 12)
                later = asyncio.create_task(order(second, 12))  # its lock is used up, as only the node knows
                await until(lambda: len(fakes[0].orders) == 24)
                fakes[0].hold.set()
                await asyncio.gather(working, later)
            async with compute_client(net, fakes, home="third") as three:
                third = await three.session((await bids(three))[0], ONE)
                assert third.lease == first.lease
                assert third.funds.used == 24 * ONE // 10

    asyncio.run(body())


def test_a_node_that_says_only_what_is_missing_is_believed_as_far_as_it_can_be_true(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path / "net", nodes=0) as net, fake_nodes(net, 1) as fakes:
            fakes[0].forget_outstanding = True
            async with compute_client(net, fakes) as one, compute_client(net, fakes, home="other") as two:
                first = await one.session((await bids(one))[0], 5 * ONE)
                second = await two.session((await bids(two))[0], 5 * ONE)
                await order(first, 1, 15 * SECOND)
                fakes[0].hold = asyncio.Event()
                working = asyncio.create_task(order(first, 1, 14 * SECOND))
                await until(lambda: len(fakes[0].orders) == 2)
                later = asyncio.create_task(order(second, 2, 4 * SECOND))
                await until(lambda: len(fakes[0].orders) == 4)
                fakes[0].hold.set()
                await asyncio.gather(working, later)
                lock = second.funds.lock
                missing = str(4 * ONE + 1)  # more than the order may cost
                fakes[0].fail_with = InsufficientCredits("no", missing=missing, lock="0")
                with pytest.raises(Refused, match="cannot miss"):
                    await order(second, 1, 4 * SECOND)
                assert second.funds.lock == lock

    asyncio.run(body())


def test_a_lower_bid_opens_a_lease_beside_the_dearer_one_and_a_higher_bid_none(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path / "net", nodes=0) as net, fake_nodes(net, 1) as fakes:
            async with compute_client(net, fakes) as client:
                dear = await client.session((await bids(client))[0], ONE)
                fakes[0].price = PRICE // 2
                [offered] = await bids(client)
                cheap = await client.session(offered, ONE)
                assert (dear.price, cheap.price) == (PRICE, PRICE // 2)
                assert dear.lease != cheap.lease
                fakes[0].price = PRICE * 2
                assert await client.session((await bids(client))[0], ONE) is cheap
                await order(dear)
                await order(cheap)
            async with compute_client(net, fakes, home="other") as client:  # knows neither of them
                fakes[0].price = PRICE // 2
                assert (await client.session((await bids(client))[0], ONE)).lease == cheap.lease

    asyncio.run(body())


def test_a_lease_that_was_closed_is_not_used_again(tmp_path: Path) -> None:
    async def scenario(net: World, client: ComputeClient, fakes: list[FakeNode]) -> None:
        [offered] = await bids(client)
        node = await client.session(offered, ONE)
        net.memory.advance()
        assert await client._context.leases.close([offered.node]) == [node.lease]
        net.memory.advance()
        fakes[0].fail_with = Refused("this lease is closed")
        with pytest.raises(Refused):
            await order(node)
        fakes[0].fail_with = None
        await fakes[0].book.commit(2, net.memory.leases, [])
        assert (await client.session(offered, ONE)).lease != node.lease

    run(tmp_path, scenario)


def test_a_node_that_has_moved_is_found_where_it_is_now(tmp_path: Path) -> None:
    async def scenario(net: World, client: ComputeClient, fakes: list[FakeNode]) -> None:
        node = await client.session((await bids(client))[0], 5 * ONE)
        await order(node)
        url, free = fakes[0].server.url, node.free
        await fakes[0].stop()
        await fakes[0].start()
        assert fakes[0].server.url != url
        moved = await client.session((await bids(client))[0], ONE)
        assert (moved.lease, moved.free) == (node.lease, free)
        await order(moved)
        assert await client.reopen(node.node, node.lease) is moved

    run(tmp_path, scenario)


def test_leases_that_nothing_hangs_on_are_released(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path / "net", nodes=0) as net, fake_nodes(net, 4) as fakes:
            async with compute_client(net, fakes) as client:
                idle, owing, running, gone = await asyncio.gather(*(client.session(o, ONE) for o in await bids(client)))
                by_node = {fake.key.address: fake for fake in fakes}
                await order(owing)  # its receipt is not settled
                by_node[running.node].hold = asyncio.Event()
                task = make_task(PROGRAM)
                await running.submit(running.order(task, SECOND, UNTIL), task, BLOBS)
                await by_node[gone.node].server.stop()
                net.memory.advance()
            async with compute_client(net, fakes, home="another device") as other:
                assert await other.release() == [idle.lease]
                net.memory.advance()
                closed = {key for key, row in net.memory.leases.items() if row.closed}
                assert closed == {idle.lease}
                await by_node[idle.node].book.commit(2, net.memory.leases, [])
                again = next(
                    offered for offered in (await other.survey(request_of(other))).bids if offered.node == idle.node
                )
                assert (await other.session(again, ONE)).lease != idle.lease

    asyncio.run(body())


def test_a_session_is_found_again_after_a_restart_and_its_jobs_with_it(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path / "net", nodes=0) as net, fake_nodes(net, 1) as fakes:
            fakes[0].hold = asyncio.Event()
            async with compute_client(net, fakes) as client:
                node = await client.session((await bids(client))[0], ONE)
                task = make_task(PROGRAM)
                job = (await node.submit(node.order(task, SECOND, UNTIL), task, BLOBS)).job
            net.memory.advance()
            fakes[0].hold.set()
            for home in ("home", "another device"):
                async with compute_client(net, fakes, home=home) as client:
                    again = await client.reopen(node.node, node.lease)
                    assert again.price == PRICE
                    assert [standing.job for standing in await again.jobs()] == [job]
                    assert (await again.wait(job, 5, task)).is_over
                    assert [kept.cost for kept in await client.receipts([job])] == [ONE // 10]
                    with pytest.raises(NotFound):
                        await client.reopen(node.node, Hash(b"n" * 32))
                    with pytest.raises(NotFound):
                        await client.reopen(ZERO_ADDRESS, node.lease)

    asyncio.run(body())


def test_locks_of_storage_and_compute_stand_side_by_side(tmp_path: Path) -> None:
    async def body() -> None:
        async with (
            world(tmp_path / "net", nodes=6) as net,
            fake_nodes(net, 1) as fakes,
            net.client(credits=1000 * ONE) as freehold,
            compute_client(net, fakes) as client,
        ):
            source = tmp_path / "file"
            source.write_bytes(b"data" * 50_000)
            await freehold.put(source, "fh://demo/file")
            stored = await freehold._leases.caps()
            assert len(stored) == 12
            node = await client.session((await bids(client))[0], ONE)
            await order(node)
            caps = await freehold._leases.caps()
            assert {lease: caps[lease] for lease in stored} == stored
            assert set(caps) - set(stored) == {node.lease}
            await freehold.put(source, "fh://demo/again")
            assert (await freehold._leases.caps())[node.lease] == caps[node.lease]
            view = await freehold._leases.view()
            assert {mode for _, mode in await freehold._leases.known(view)} == {STREAM, VOUCHER}
            assert set(await client._context.leases.known(view)) == {(node.node, STREAM)}
            net.memory.advance()
            listed = {info.lease: info.service for info in await freehold.leases()}
            assert listed[node.lease] == "compute"
            assert set(listed.values()) == {"storage", "compute"}

    asyncio.run(body())


# What can be shown later


def test_a_dispute_is_held_by_a_quorum(tmp_path: Path) -> None:
    async def scenario(net: World, client: ComputeClient, fakes: list[FakeNode]) -> None:
        offers = await bids(client)
        nodes, _ = await client.sessions([(offered, ONE) for offered in offers])
        await order(nodes[0])
        liar = next(fake for fake in fakes if fake.key.address == nodes[1].node)
        liar.lie = wrong(output=Hash(b"x" * 32))
        with pytest.raises(WrongReceipt) as caught:
            await order(nodes[1])
        [first], second = await client.receipts(), Receipt.from_json(caught.value.details["receipt"])
        for bad in (first.receipt, msgspec.structs.replace(second, output=first.receipt.output)):
            with pytest.raises(InvalidInput):
                await client.dispute(first.receipt, bad, EXACT)
        with pytest.raises(InvalidInput):
            await client.dispute(first.receipt, second, 3)
        leaves = [[Hash(bytes([byte]) * 32) for byte in row] for row in (b"abc", b"axc")]
        stepped = [
            msgspec.structs.replace(receipt, steps=row_root(own))
            for receipt, own in zip((first.receipt, second), leaves, strict=True)
        ]
        step = make_step(*leaves, 1, first.receipt.input)
        for bad_step in (msgspec.structs.replace(step, index=2), msgspec.structs.replace(step, before=step.first)):
            with pytest.raises(InvalidInput):
                await client.dispute(stepped[0], stepped[1], EXACT, [bad_step])
        assert await client.dispute(stepped[0], stepped[1], EXACT, [step])
        net.memory.held.clear()
        case = await client.dispute(first.receipt, second, EXACT)
        rows = [r for s in net.memory.held for r in net.memory.batches[s].table if isinstance(r, Dispute)]
        assert [row.case() for row in rows] == [case]

    run(tmp_path, scenario, nodes=2)


def test_receipts_are_kept_until_their_orders_run_out(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path / "net", nodes=0) as net, fake_nodes(net, 1) as fakes:
            task = make_task(PROGRAM, steps=3)
            async with compute_client(net, fakes) as client:
                node = await client.session((await bids(client))[0], 5 * ONE)
                for last in (5, 9):
                    await node.submit(node.order(task, SECOND, last), task, BLOBS, wait=5)
                kept = await client.receipts()
                assert [one.receipt.until for one in kept] == [5, 9]
                assert len(kept[0].steps) == 3
            net.memory.epoch = 7
            async with compute_client(net, fakes) as client:
                assert await client.receipts() == kept
                await client.until(1)
                assert await client.receipts() == kept[1:]

    asyncio.run(body())


def test_an_order_runs_out_when_what_it_may_take_is_over_and_no_later_than_nodes_allow(tmp_path: Path) -> None:
    async def scenario(net: World, client: ComputeClient, fakes: list[FakeNode]) -> None:
        net.memory.epoch = 11  # epochs of 20 s; 10 is committed
        assert await client.until(0) == 14
        assert await client.until(61) == 18
        assert await client.until(10**9) == 10 + KEPT_EPOCHS - 2

    run(tmp_path, scenario)


def test_what_the_state_says_of_cases_and_orders_is_read_from_members(tmp_path: Path) -> None:
    async def scenario(net: World, client: ComputeClient, fakes: list[FakeNode]) -> None:
        own, node = client._context.key.address, fakes[0].key.address
        rows = [
            work(JOB, b"j", node, stand=PAID), work(JOB, b"k", node), work(CASE, b"c", own, round=1),
            work(CASE, b"d", node),
        ]  # fmt: skip
        epoch = EpochState(epoch=3, anchor_block=0, anchor_hash=ZERO_HASH, anchor_time=0, reveals=ZERO_HASH)
        state = State(epoch, services={"compute": Table.of(WorkState, rows)})

        async def load(_: int) -> State:
            return state

        views = Views(SimpleNamespace(state=load, rollbacks=0))  # type: ignore[arg-type]

        class Members:
            members = (own,)
            epoch = 0

            async def ask(self, path: str) -> list[Any]:
                return [(own, {"last_report": {"epoch": self.epoch}})]

            async def agree(self, path: str) -> Any:
                assert path.startswith(f"/v1/state/{self.epoch}/nodes/")
                if not self.epoch:
                    raise NotFound("nothing is committed yet")
                return await views.node(self.epoch, type(own)(path.rpartition("/")[2]))

        members = Members()
        client._context = client._context._replace(quorum=members)  # type: ignore[arg-type]
        assert await client.cases() == []
        members.epoch = 3
        assert await client.cases() == [rows[2]]
        assert await client.standings(node, [Hash(b"j" * 32)]) == {Hash(b"j" * 32): rows[0]}

    run(tmp_path, scenario)


def work(role: int, id: bytes, node: Any, **changes: int) -> WorkState:
    fields: dict[str, Any] = {
        "role": role, "id": Hash(id * 32), "node": node, "lease": ZERO_HASH, "task": ZERO_HASH, "input": ZERO_HASH,
        "first": ZERO_ADDRESS, "second": ZERO_ADDRESS, "first_output": ZERO_HASH, "second_output": ZERO_HASH,
        "first_order": ZERO_HASH, "second_order": ZERO_HASH, "step": 0, "kind": EXACT, "measure": 1, "epoch": 2,
        "until": 9, "round": 0, "stand": 1,
    }  # fmt: skip
    return WorkState(**(fields | changes))


def test_reservations_of_one_service_keep_the_locks_of_another(tmp_path: Path) -> None:
    async def scenario(net: World, client: ComputeClient, fakes: list[FakeNode]) -> None:
        other = Hash(b"s" * 32)
        await client._context.leases.reserve({other: Want(7, 7)})
        node = await client.session((await bids(client))[0], ONE)
        caps = await client._context.leases.caps()
        assert caps[other] == 7
        assert caps[node.lease] >= ONE

    run(tmp_path, scenario)
