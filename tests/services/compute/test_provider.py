"""A node's half of compute: what it acknowledges happens once, is billed once, and survives a kill."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from freehold.protocol.errors import Conflict, FreeholdError, InsufficientCredits, NotFound, Overloaded
from freehold.protocol.keys import is_signed_by
from freehold.protocol.merkle import row_root
from freehold.protocol.messages import Lock, Reservation
from freehold.protocol.tables import Table
from freehold.protocol.units import ZERO_HASH
from freehold.services.compute.node.blobs import SMALL
from freehold.services.compute.node.orders_live import LOG_LIMIT, LogTail
from freehold.services.compute.tasks import Input, Resources, decode_result, input_root, state_leaf
from freehold.services.compute.terms import HELD, JOB, OPINION, PAID, RECEIPT, WAITING, WRONG, Receipt, WorkState
from tests.protocol.world import DOMAIN
from tests.services.compute.provider_world import (
    CLIENT,
    LOCK,
    NODE,
    STRANGER,
    FakeExecutor,
    World,
    lease_state,
    make_lease,
    receipt_of,
    until,
)


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def job_row(receipt: Receipt, stand: int) -> WorkState:
    blank: dict[str, Any] = {
        "role": JOB, "id": receipt.order().struct_hash(), "node": receipt.node, "lease": receipt.lease,
        "task": receipt.task, "input": receipt.input, "first": CLIENT.address, "second": CLIENT.address,
        "first_output": receipt.output, "second_output": ZERO_HASH, "first_order": ZERO_HASH,
        "second_order": ZERO_HASH, "step": 0, "kind": 0, "measure": receipt.measure, "epoch": 1,
        "until": receipt.until, "round": 0, "stand": stand,
    }  # fmt: skip
    return WorkState(**blank)


async def collected(world: World) -> list[Receipt]:
    return list((await world.provider.collect())[RECEIPT])


async def gathered(world: World, already: int = 0) -> list[Receipt]:
    return list((await world.provider.gather({RECEIPT: already, OPINION: 0}))[RECEIPT])


def test_an_order_is_run_and_receipted_in_one_request(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            task = world.task("echo world", stdin=world.contents.add(b"hello "))
            order = world.order(task)
            standing = await world.submit(task, order=order)
            assert standing["phase"] == "finished"
            assert standing["job"] == str(order.struct_hash())
            receipt, result = receipt_of(standing), decode_result(standing["result"].encode())
            assert receipt.order() == order
            assert is_signed_by(receipt, receipt.node_signature, NODE.address, DOMAIN)
            assert (receipt.measure, receipt.steps, receipt.input) == (7, ZERO_HASH, input_root([]))
            assert receipt.output == result.hash()
            assert (result.ended, result.status, result.stdout.sha256) == ("exited", 0, sha256(b"hello world"))
            assert await world.get(f"/blobs/{result.stdout.sha256}") == b"hello world"
            assert await world.get(f"/orders/{order.struct_hash()}/log?after=4") == b"ing\n"

    asyncio.run(scenario())


def test_sent_again_it_is_one_job_and_two_at_once_are_too(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            task = world.task("wait gate 9")
            order = world.order(task)
            sending = [asyncio.create_task(world.submit(task, order=order)) for _ in range(5)]
            await until(lambda: world.executor.runs == ["wait gate 9"])
            world.executor.gate("gate").set()
            answers = [await one for one in sending] + [await world.submit(task, order=order)]
            assert all(answer["receipt"] == answers[0]["receipt"] for answer in answers)
            assert world.executor.runs == ["wait gate 9"]
            assert len(await collected(world)) == 1

    asyncio.run(scenario())


def test_files_and_inputs_are_blobs_of_the_client_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            large = bytes(SMALL + 1)
            inputs = (
                Input(path="a/b", blob=world.contents.add(b"first")),
                Input(path="z", blob=world.contents.add(large)),
            )
            task = world.task("read a/b z", inputs=inputs)
            assert await world.put(large) == 201
            assert await world.put(large) == 200
            answer = await world.submit(task, blobs=world.body(world.order(task), task)["blobs"])
            result = decode_result(answer["result"].encode())
            assert result.stdout.sha256 == sha256(b"first|" + large)
            assert receipt_of(answer).input == input_root([("a/b", sha256(b"first")), ("z", sha256(large))])
            assert await world.get(f"/blobs/{result.stdout.sha256}") == b"first|" + large

            made = await world.submit(world.task(f"write x 3 y/z {SMALL + 7}"))
            files = decode_result(made["result"].encode()).files
            assert [(one.path, one.size) for one in files] == [("x", 3), ("y/z", SMALL + 7)]
            assert await world.get(f"/blobs/{files[1].sha256}") == b"y" * (SMALL + 7)
            assert set(made["inline"]) == {sha256(b"written"), sha256(b"xxx")}
            await until(lambda: not list((tmp_path / "run" / "runs").iterdir()))

    asyncio.run(scenario())


def test_a_blob_of_another_client_is_not_there(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            secret = b"a secret of the first client"
            assert await world.put(secret) == 201
            other = make_lease(NODE, client=STRANGER.address)
            world.lease, world.id, mine = other, other.struct_hash(), world.id
            await world.book.sign(other, world.now)
            with pytest.raises(FreeholdError) as error:
                await world.get(f"/blobs/{sha256(secret)}", signer=STRANGER)
            assert isinstance(error.value, NotFound)
            world.id = mine
            with pytest.raises(FreeholdError):
                await world.get(f"/blobs/{sha256(secret)}", signer=STRANGER)
            assert await world.get(f"/blobs/{sha256(secret)}") == secret

    asyncio.run(scenario())


def test_the_states_of_steps_are_committed_to_and_kept(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            answer = await world.submit(world.task("steps x", steps=3, stdin=world.contents.add(b"-")))
            states = [b"-x", b"-xx", b"-xxx"]
            assert answer["steps"] == [sha256(state) for state in states]
            assert receipt_of(answer).steps == row_root([state_leaf(sha256(state)) for state in states])
            for state in states:
                assert await world.get(f"/blobs/{sha256(state)}") == state

    asyncio.run(scenario())


@pytest.mark.parametrize(("ended", "status"), [("fuel", 0), ("trap", 0), ("exited", 3), ("time", 0)])
def test_what_the_program_does_is_billed_to_its_cap(tmp_path: Path, ended: str, status: int) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            answer = await world.submit(world.task(f"end {ended} {status} 5000"), most=40)
            result = decode_result(answer["result"].encode())
            assert (result.ended, result.status, answer["reason"]) == (ended, status, "because")
            assert receipt_of(answer).measure == 40

    asyncio.run(scenario())


def test_too_much_output_ends_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            answer = await world.submit(world.task(f"write a {2**22} b 1"))
            assert decode_result(answer["result"].encode()).ended == "output"
            assert decode_result(answer["result"].encode()).files == ()
            assert receipt_of(answer).measure == 5

    asyncio.run(scenario())


def test_stopped_while_it_waits_and_while_it_runs(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path, settings={"slots": 1}) as world:
            task, other = world.task("wait gate 9"), world.task("echo late")
            running = await world.submit(task, wait=0)
            waiting = await world.submit(other, wait=0)
            assert (await world.call("GET", f"/orders/{waiting['job']}"))["position"] == 0
            await until(lambda: len(world.executor.runs) == 1)
            assert (await world.call("GET", f"/orders/{running['job']}"))["measure"] == 9
            stopped = await world.call("DELETE", f"/orders/{waiting['job']}")
            assert (receipt_of(stopped).measure, stopped["reason"]) == (0, "it was stopped before it began")
            assert decode_result(stopped["result"].encode()).ended == "stopped"
            ended = await world.call("DELETE", f"/orders/{running['job']}")
            assert receipt_of(ended).measure == 9
            assert decode_result(ended["result"].encode()).ended == "stopped"
            assert await world.call("DELETE", f"/orders/{running['job']}") == ended
            assert world.executor.runs == ["wait gate 9"]

    asyncio.run(scenario())


def test_a_lease_that_is_closed_ends_what_runs_under_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path, settings={"slots": 1}) as world:
            jobs = [(await world.submit(world.task("wait gate 9"), wait=0))["job"] for _ in range(2)]
            await until(lambda: len(world.executor.runs) == 1)
            state = lease_state(world.lease)
            await world.provider.commit(1, Table.of(WorkState), {world.id: state})
            assert world.provider.metrics()["running"] == 1
            closed = msgspec.structs.replace(state, closed=2)
            await world.provider.commit(2, Table.of(WorkState), {world.id: closed})
            assert [(await world.wait(job))["measure"] for job in jobs] == [9, 0]
            assert len(world.executor.runs) == 1

    asyncio.run(scenario())


def test_slots_bound_what_runs_and_the_queue_what_waits(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path, settings={"slots": 2, "queue": 4}) as world:
            task = world.task("wait gate 1")
            jobs = [(await world.submit(task, wait=0, most=1))["job"] for _ in range(4)]
            with pytest.raises(Overloaded) as error:
                await world.submit(task, wait=0, most=1)
            assert error.value.details["retry_after"] == 1
            assert world.provider._credits.outstanding(world.id) == 4  # what was refused is not bound
            world.executor.gate("gate").set()
            for job in jobs:
                assert (await world.wait(job))["phase"] == "finished"
            assert world.executor.most_at_once == 2
            assert (await world.submit(task, most=1))["phase"] == "finished"

    asyncio.run(scenario())


def test_clients_take_turns(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path, settings={"slots": 1}) as world:
            first = await world.submit(world.task("wait gate 1"), wait=0)
            mine = [await world.submit(world.task(f"echo mine {i}"), wait=0) for i in range(3)]
            other = make_lease(NODE, client=STRANGER.address)
            other = msgspec.structs.replace(other, client_signature=STRANGER.sign(other, DOMAIN))
            await world.book.sign(other, world.now)
            lock = Lock(lease=other.struct_hash(), amount=LOCK)
            await world.book.cover(Reservation(client=STRANGER.address, number=1, locks=(lock,), deadline=world.now))
            task = world.task("echo theirs")
            order = world.order(task, signer=STRANGER, lease=other.struct_hash())
            base = f"/v1/compute/{other.struct_hash()}"
            await world.call("POST", "/orders", world.body(order, task, wait=0), signer=STRANGER, base=base)
            assert (await world.call("GET", f"/orders/{mine[2]['job']}"))["position"] == 3
            world.executor.gate("gate").set()
            for job in (first, *mine):
                await world.wait(job["job"])
            await until(lambda: len(world.executor.runs) == 5)
            assert world.executor.runs.index("echo theirs") == 2  # behind one of those that came before it

    asyncio.run(scenario())


def test_the_lock_is_never_exceeded(tmp_path: Path) -> None:
    """Whatever is ordered at once: settled, owed and promised together stay within it, to the unit."""

    async def scenario() -> None:
        async with World(tmp_path, settings={"slots": 2}) as world:
            await world.cover(LOCK)
            task = world.task("end exited 0 300000")
            orders = [world.order(task, most=300_000) for _ in range(6)]
            sent = [world.call("POST", "/orders", world.body(order, task)) for order in orders]
            answers = await asyncio.gather(*sent, return_exceptions=True)
            taken = [answer for answer in answers if isinstance(answer, dict)]
            refused = [answer for answer in answers if isinstance(answer, InsufficientCredits)]
            assert (len(taken), len(refused)) == (3, 3)
            assert refused[0].details["missing"] == str(4 * 300_000 - LOCK)
            assert sum(receipt_of(answer).measure for answer in taken) <= LOCK
            assert await world.provider.describe(world.id) == {"outstanding": "900000"}
            assert (await world.submit(task, most=100_000))["phase"] == "finished"  # the exact boundary
            with pytest.raises(InsufficientCredits):
                await world.submit(task, most=1)
            # Paid in the state: settled by as much, and no longer owed.
            rows = [job_row(receipt_of(answer), PAID) for answer in taken[:1]]
            rows += [job_row(receipt_of(answer), WRONG) for answer in taken[1:2]]
            await world.commit(1, rows, settled=300_000)
            assert await world.provider.describe(world.id) == {"outstanding": "400000"}
            assert (await world.submit(task, most=300_000))["phase"] == "finished"
            with pytest.raises(InsufficientCredits):
                await world.submit(task, most=1)

    asyncio.run(scenario())


def test_an_executor_that_fails_is_probed_and_tried_once_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            await until(lambda: world.executor.probes == 1)
            answer = await world.submit(world.task("fail 1"))
            assert decode_result(answer["result"].encode()).stdout.sha256 == sha256(b"recovered")
            assert world.executor.probes == 2
            again = await world.submit(world.task("fail 100"))
            assert (again["receipt"], again["result"]) == (None, None)
            assert "its engine is gone" in again["reason"]
            assert await world.provider.describe(world.id) == {"outstanding": "1"}
            world.executor.works = False
            shown = await world.call("GET", "/properties", base="/v1/compute")
            assert shown["properties"]["cpu.cores"] >= 1

    asyncio.run(scenario())


def test_jobs_are_found_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            jobs = [(await world.submit(world.task(f"echo {i}")))["job"] for i in range(3)]
            listed = (await world.call("GET", "/orders"))["jobs"]
            assert [one["job"] for one in listed] == jobs
            assert "result" not in listed[0]
            after = (await world.call("GET", f"/orders?after={jobs[1]}"))["jobs"]
            assert [one["job"] for one in after] == jobs[2:]
            assert await world.wait(jobs[0]) == await world.wait(jobs[0])

    asyncio.run(scenario())


def test_a_log_is_followed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            job = (await world.submit(world.task("wait gate 1"), wait=0))["job"]
            async with world.raw("GET", f"/orders/{job}/log?after=0&wait=20") as response:
                assert await response.read() == b"waiting\n"
                assert response.headers["Freehold-Log-End"] == "false"
            following = asyncio.create_task(world.get(f"/orders/{job}/log?after=8&wait=20"))
            world.executor.gate("gate").set()
            assert await following == b""
            async with world.raw("GET", f"/orders/{job}/log?after=3") as response:
                assert await response.read() == b"ting\n"
                assert response.headers["Freehold-Log-End"] == "true"
                assert response.headers["Freehold-Log-Start"] == "3"

    asyncio.run(scenario())


def test_a_log_keeps_its_end() -> None:
    tail = LogTail()
    for i in range(40):
        tail.add(bytes([i]) * (LOG_LIMIT // 10))
    tail.add(b"z" * (2 * LOG_LIMIT))
    tail.add(b"end")
    assert (tail.end, tail.start) == (40 * (LOG_LIMIT // 10) + 2 * LOG_LIMIT + 3, tail.end - LOG_LIMIT)
    assert len(tail.read(0)) == LOG_LIMIT
    assert tail.read(tail.end - 3) == b"end"
    assert tail.tail(4) == b"zend"
    assert tail.read(tail.end + 5) == b""


# Evidence


def test_every_receipt_goes_out_until_the_state_has_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            early = receipt_of(await world.submit(world.task("echo early")))
            await world.provider.prove(world.context(1, []))
            assert await gathered(world) == []
            assert await collected(world) == [early]
            late = receipt_of(await world.submit(world.task("echo late")))
            assert await gathered(world) == [late]
            assert await gathered(world, 1) == []
            await world.restart()  # both may be in no manifest: they go out again
            assert await collected(world) == [early, late]
            await world.commit(1, [job_row(early, WAITING)])
            await world.provider.prove(world.context(2, []))
            assert await collected(world) == [late]
            await world.commit(2, [job_row(early, PAID), job_row(late, WAITING)])
            assert await collected(world) == []
            assert await world.provider.describe(world.id) == {"outstanding": "7"}
            await world.commit(3, [job_row(early, PAID), job_row(late, PAID)])
            assert await world.provider.describe(world.id) == {"outstanding": "0"}

    asyncio.run(scenario())


@pytest.mark.parametrize("stand", [WAITING, PAID, WRONG])
def test_what_a_revoked_state_said_of_a_receipt_counts_no_more(tmp_path: Path, stand: int) -> None:
    """The epochs were settled again, and the receipt was in no manifest: it goes out again, and is owed."""

    async def scenario() -> None:
        async with World(tmp_path) as world:
            receipt = receipt_of(await world.submit(world.task("echo x"), until=9))
            await world.commit(5, [job_row(receipt, stand)])
            assert await collected(world) == []
            await world.commit(6, [])
            assert await collected(world) == [receipt]
            assert await world.provider.describe(world.id) == {"outstanding": "7"}
            await world.commit(7, [job_row(receipt, HELD)])
            await world.commit(9, [job_row(receipt, HELD)])
            assert await world.provider.describe(world.id) == {"outstanding": "7"}
            await world.commit(10, [])  # decided in the epoch after its order ran out: nobody keeps it any more
            assert await world.provider.describe(world.id) == {"outstanding": "0"}
            assert await collected(world) == []

    asyncio.run(scenario())


@pytest.mark.parametrize("order", ["prove first", "collect first"])
def test_none_is_missed_between_two_epochs(tmp_path: Path, order: str) -> None:
    """Wherever a receipt comes in: it is in what is collected or gathered of the epoch that is then open."""

    async def scenario() -> None:
        async with World(tmp_path) as world:
            made: list[Receipt] = []

            async def make() -> None:
                made.append(receipt_of(await world.submit(world.task(f"echo {len(made)}"))))

            sent: list[Receipt] = []
            for epoch in range(1, 4):
                await make()
                if order == "prove first":
                    await world.provider.prove(world.context(epoch, []))
                    await make()
                    sent = await collected(world)
                else:
                    await collected(world)  # its batches are not certified: it is asked again
                    await make()
                    sent = await collected(world)
                    await make()
                    await world.provider.prove(world.context(epoch, []))
                await make()
                sent += await gathered(world)
                assert set(made) <= set(sent)
                twice = len(sent) - len(set(sent))
                assert twice == (order == "prove first")  # the one that came between the two
                await world.commit(epoch, [])
            assert len(made) >= 9

    asyncio.run(scenario())


def test_a_receipt_that_counts_no_more_is_let_go(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            receipt = receipt_of(await world.submit(world.task("echo x"), until=2))
            assert await collected(world) == [receipt]
            await world.commit(2, [])
            assert await collected(world) == []
            assert await world.provider.describe(world.id) == {"outstanding": "0"}
            assert (await world.wait(str(receipt.order().struct_hash())))["receipt"] is not None
            key = str(receipt.order().struct_hash())
            await world.commit(200, [])
            assert (await world.wait(key))["receipt"] is not None  # for a week
            world.now += 8 * 86400
            await world.commit(201, [])
            world.provider._closer.recent.clear()
            with pytest.raises(NotFound):
                await world.wait(key)

    asyncio.run(scenario())


def test_an_order_that_was_ready_for_too_long_is_not_run(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path, settings={"slots": 1}) as world:
            running = await world.submit(world.task("wait gate 4"), wait=0)
            ready = await world.submit(world.task("echo late"), wait=0, until=3)
            await until(lambda: len(world.provider._desk.queue._asking) == 1)
            for epoch in (1, 2, 3):
                await world.commit(epoch, [])
            world.executor.gate("gate").set()
            assert (await world.wait(running["job"]))["receipt"] is not None
            ended = await world.wait(ready["job"])
            assert ended["receipt"] is None
            assert "ran out" in ended["reason"]
            assert world.executor.runs == ["wait gate 4"]

    asyncio.run(scenario())


# Restarts


def test_what_ran_and_what_waited_runs_after_a_kill(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path, settings={"slots": 1}) as world:
            done = await world.submit(world.task("echo done"))
            running = await world.submit(world.task("wait gate 4"), wait=0)
            waiting = await world.submit(world.task("echo after"), wait=0)
            await until(lambda: "wait gate 4" in world.executor.runs)
            (tmp_path / "run" / "runs" / "left").mkdir()
            await world.restart()
            assert not (tmp_path / "run" / "runs" / "left").exists()
            assert await world.provider.describe(world.id) == {"outstanding": str(7 + 100 + 100)}
            await until(lambda: world.executor.runs == ["wait gate 4"])
            world.executor.gate("gate").set()
            first, second = await world.wait(running["job"]), await world.wait(waiting["job"])
            assert (receipt_of(first).measure, receipt_of(second).measure) == (4, 7)
            assert len(await collected(world)) == 3
            again = await world.wait(done["job"])
            assert again["receipt"] == done["receipt"]
            assert again["inline"] == done["inline"]

    asyncio.run(scenario())


def test_an_order_that_ran_out_while_the_node_was_down_costs_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            job = (await world.submit(world.task("wait gate 4"), wait=0, until=3))["job"]
            await until(lambda: len(world.executor.runs) == 1)
            await world.commit(3, [])
            await world.restart()
            ended = await world.wait(job)
            assert (ended["phase"], ended["receipt"]) == ("finished", None)
            assert "ran out" in ended["reason"]
            assert world.executor.runs == []
            assert await world.provider.describe(world.id) == {"outstanding": "0"}

    asyncio.run(scenario())


def test_a_receipt_that_was_written_and_not_told_is_the_only_one(tmp_path: Path) -> None:
    """Killed between the write and the answer."""

    async def scenario() -> None:
        async with World(tmp_path) as world:
            end = world.provider._orders.end

            async def cut(*arguments: Any) -> int:
                await end(*arguments)
                raise asyncio.CancelledError

            world.provider._orders.end = cut  # type: ignore[method-assign]
            task = world.task("echo once")
            order = world.order(task)
            await world.submit(task, order=order, wait=0)
            await until(lambda: not world.provider._desk._tasks)
            await world.restart()
            answer = await world.submit(task, order=order)
            assert answer["receipt"] is not None
            assert world.executor.runs == []
            assert await collected(world) == [receipt_of(answer)]
            entry = await world.provider._orders.find(order.struct_hash())
            assert entry is not None
            assert entry.ending is not None
            with pytest.raises(Conflict):
                await world.provider._orders.end(entry, entry.ending, entry.receipt, {}, (b"", 0), 0)

    asyncio.run(scenario())


def test_a_stop_gives_what_runs_a_moment(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            job = (await world.submit(world.task("wait gate 2"), wait=0))["job"]
            await until(lambda: len(world.executor.runs) == 1)
            stopping = asyncio.create_task(world.stop())
            await until(lambda: not world.provider._desk.queue._is_open)
            world.executor.gate("gate").set()
            await stopping
            world.executors = [FakeExecutor()]
            await world.start()
            assert (await world.wait(job))["measure"] == 2
            assert world.executor.runs == []

    asyncio.run(scenario())


# Room


def test_blobs_that_nothing_names_make_room(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path, allowance=5 * SMALL) as world:
            small = Resources(memory=1, disk=2 * SMALL)
            named = await world.submit(world.task(f"write a {SMALL + 1}", resources=small))
            result = decode_result(named["result"].encode())
            blobs = [bytes([i]) * (SMALL + 10) for i in range(6)]
            for i, blob in enumerate(blobs):
                world.now += 1
                assert await world.put(blob) == 201, i
            assert await world.get(f"/blobs/{sha256(blobs[-1])}") == blobs[-1]
            with pytest.raises(FreeholdError):
                await world.get(f"/blobs/{sha256(blobs[0])}")
            assert await world.get(f"/blobs/{result.files[0].sha256}") == b"a" * (SMALL + 1)
            with pytest.raises(FreeholdError) as error:
                await world.put(bytes(5 * SMALL))
            assert error.value.code == "disk_full"
            assert await world.get(f"/blobs/{sha256(blobs[-1])}") == blobs[-1]  # nothing went for what cannot fit

    asyncio.run(scenario())


def test_rows_and_files_are_brought_together(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            kept, lost = bytes(SMALL + 1), bytes(SMALL + 2)
            await world.put(kept)
            await world.put(lost)
            await world.kill()
            world.files.delete(sha256(lost))
            world.files.put("f" * 64, [b"nobody's"])
            await world.start()
            assert set(world.files.list_keys()) == {sha256(kept)}
            assert await world.get(f"/blobs/{sha256(kept)}") == kept
            with pytest.raises(NotFound):
                await world.get(f"/blobs/{sha256(lost)}")

    asyncio.run(scenario())


def test_metrics_and_capacity_are_of_now(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path, settings={"slots": 3}) as world:
            assert world.provider.capacity() == 3 * 10**9
            await world.submit(world.task("wait gate 1"), wait=0)
            await until(lambda: world.provider.metrics()["running"] == 1)
            assert world.provider.capacity() == 2 * 10**9
            world.executor.gate("gate").set()
            await until(lambda: world.provider.metrics()["receipts_total"] == 1)
            assert world.provider.metrics()["measure_total"] == 1

    asyncio.run(scenario())
