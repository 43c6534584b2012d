"""Referees: who answers what when two nodes contradict each other, and what nobody else gets to see."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from freehold.net import server
from freehold.net.auth import authorize
from freehold.protocol.errors import DeadlineExpired, FreeholdError, MalformedMessage, Refused, Unavailable
from freehold.protocol.units import ZERO_HASH, Address, Hash
from freehold.services.compute.executors.seam import Outcome, Work
from freehold.services.compute.node import referee as provider_referee
from freehold.services.compute.node.orders_work import empty_result
from freehold.services.compute.node.shown import Fetched, Shown, choose_inputs, was_stopped, write_checked
from freehold.services.compute.tasks import Blob, Input, Task, decode_result, state_leaf
from freehold.services.compute.terms import (
    BOTH,
    EXACT,
    NEAR,
    OPINION,
    RECEIPT,
    SEAT,
    SPARED,
    Opinion,
    Receipt,
    WorkState,
)
from tests.protocol.world import DOMAIN, signed
from tests.services.compute.provider_world import (
    NODE,
    OTHER,
    REFEREE,
    STRANGER,
    FakeExecutor,
    World,
    receipt_of,
    until,
)

ALL = (NODE, OTHER, REFEREE)


class Liar(FakeExecutor):
    """Says something else."""

    async def run(self, work: Work) -> Outcome:
        outcome = await super().run(work)
        states = tuple(state.replace(b"xxx", b"xyx") for state in outcome.states)
        return outcome._replace(stdout=outcome.stdout.replace(b"xxx", b"xyx") + b"!" * (not states), states=states)


@asynccontextmanager
async def worlds(directory: Path, liar: FakeExecutor | None = None, name: str = "wasm") -> AsyncIterator[list[World]]:
    """An honest node, one that lies, and a referee that can reach both."""
    peers: dict[Any, World] = {}
    kinds = [FakeExecutor(name), liar or Liar(name), FakeExecutor(name)]
    made = [
        World(directory / str(i), node=node, executors=[executor], peers=peers)
        for i, (node, executor) in enumerate(zip(ALL, kinds, strict=True))
    ]
    async with made[0] as first, made[1] as second, made[2] as third:
        peers |= {world.node.address: world for world in (first, second)}
        yield [first, second, third]


async def contradict(honest: World, liar: World, task: Task, most: tuple[int, int] = (100, 100)) -> list[Receipt]:
    liar.contents = honest.contents
    answers = [await world.submit(task, most=m) for world, m in zip((honest, liar), most, strict=True)]
    receipts = [receipt_of(answer) for answer in answers]
    assert receipts[0].output != receipts[1].output
    return receipts


def seat_of(receipts: list[Receipt], **changes: Any) -> WorkState:
    first, second = receipts
    said = [one.claim() for one in receipts]
    if changes.get("kind") == NEAR:
        said = [one.output for one in receipts]
    fields: dict[str, Any] = {
        "role": SEAT, "id": Hash(b"c" * 32), "node": REFEREE.address, "lease": ZERO_HASH, "task": first.task,
        "input": first.input, "first": first.node, "second": second.node, "first_output": said[0],
        "second_output": said[1], "first_order": first.order().struct_hash(),
        "second_order": second.order().struct_hash(), "step": 0, "kind": EXACT, "measure": 7, "epoch": 3, "until": 9,
        "round": 1, "stand": 0,
    }  # fmt: skip
    return WorkState(**(fields | changes))


async def opinions(world: World) -> list[Opinion]:
    return list((await world.provider.gather({RECEIPT: 0, OPINION: 0}))[OPINION])


async def judged(trio: list[World], seat: WorkState, epoch: int = 4) -> Opinion:
    """What the referee says, once the accused know who sits over them."""
    for accused in trio[:2]:
        await accused.provider.prove(accused.context(epoch, [seat]))
    referee = trio[2]
    await referee.provider.prove(referee.context(epoch, [seat]))
    await until(lambda: bool(referee.provider._evidence._opinions))
    (opinion,) = await opinions(referee)
    assert (opinion.epoch, opinion.case, opinion.node) == (epoch, seat.id, REFEREE.address)
    return opinion


def test_a_referee_finds_the_wrong_receipt_and_says_so_while_it_sits(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worlds(tmp_path) as trio:
            task = trio[0].task("echo right", stdin=trio[0].contents.add(b"in: "))
            receipts = await contradict(trio[0], trio[1], task)
            seat = seat_of(receipts)
            opinion = await judged(trio, seat)
            assert (opinion.good, opinion.output) == (1, seat.first_output)
            referee = trio[2]
            await referee.provider.prove(referee.context(5, [seat]))
            assert [(one.epoch, one.good) for one in await opinions(referee)] == [(5, 1)]
            assert len(referee.executor.runs) == 1
            await referee.provider.prove(referee.context(6, []))
            assert await opinions(referee) == []
            assert not list((tmp_path / "2" / "run" / "runs").iterdir())

    asyncio.run(scenario())


def test_the_order_of_the_two_does_not_matter(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worlds(tmp_path) as trio:
            receipts = await contradict(trio[0], trio[1], trio[0].task("echo right"))
            assert (await judged(trio, seat_of(receipts[::-1]))).good == 2

    asyncio.run(scenario())


@pytest.mark.parametrize("step", [0, 2])
def test_only_the_first_step_that_differs_is_run_again(tmp_path: Path, step: int) -> None:
    async def scenario() -> None:
        async with worlds(tmp_path) as trio:
            task = trio[0].task("steps x", steps=5, stdin=trio[0].contents.add(b"-"))
            receipts = await contradict(trio[0], trio[1], task)
            states = [hashlib.sha256(b"-" + b"x" * (i + 1)).hexdigest() for i in range(5)]
            liars = (await trio[1].call("GET", f"/orders/{receipts[1].order().struct_hash()}"))["steps"]
            assert [one == other for one, other in zip(states, liars, strict=True)] == [True, True, *[False] * 3]
            before = state_leaf(states[step - 1]) if step else receipts[0].input
            seat = seat_of(
                receipts, step=step + 1, input=before, first_output=state_leaf(states[step]),
                second_output=state_leaf(liars[2]),
            )  # fmt: skip
            opinion = await judged(trio, seat)
            assert (opinion.good, opinion.output) == (1, state_leaf(states[step]))

    asyncio.run(scenario())


def test_what_its_client_stopped_is_called_both(tmp_path: Path) -> None:
    async def scenario() -> None:
        liar = FakeExecutor()
        async with worlds(tmp_path, liar) as trio:
            honest, other, _ = trio
            task = honest.task("wait gate 3")
            other.contents = honest.contents
            honest.executor.gate("gate").set()
            trio[2].executor.gate("gate").set()
            first = await honest.submit(task)
            job = (await other.submit(task, wait=0))["job"]
            await until(lambda: len(other.executor.runs) == 1)
            second = await other.call("DELETE", f"/orders/{job}")
            assert decode_result(second["result"].encode()).ended == "stopped"
            receipts = [receipt_of(first), receipt_of(second)]
            assert (await judged(trio, seat_of(receipts))).good == BOTH

    asyncio.run(scenario())


class CutShort(FakeExecutor):
    """Says that it got nowhere, and bills all that it may."""

    def __init__(self, ended: str) -> None:
        super().__init__()
        self.ended = ended

    async def run(self, work: Work) -> Outcome:
        await super().run(work)
        return Outcome(self.ended, 0, b"", work.most, "so it says")


@pytest.mark.parametrize("ended", ["time", "stopped", "failed"])
def test_what_its_node_calls_cut_short_while_it_can_be_done_is_unpaid(tmp_path: Path, ended: str) -> None:
    async def scenario() -> None:
        async with worlds(tmp_path, CutShort(ended)) as trio:
            receipts = await contradict(trio[0], trio[1], trio[0].task("echo right"))
            assert [one.measure for one in receipts] == [7, 100]
            opinion = await judged(trio, seat_of(receipts))
            assert (opinion.good, opinion.output) == (1 | 2 * SPARED, receipts[0].claim())

    asyncio.run(scenario())


def test_what_is_cut_short_at_the_referee_too_is_called_both(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worlds(tmp_path, CutShort("time")) as trio:
            receipts = await contradict(trio[0], trio[1], trio[0].task("echo right"))
            trio[2].executor.run = trio[1].executor.run  # type: ignore[method-assign]
            assert (await judged(trio, seat_of(receipts))).good == BOTH

    asyncio.run(scenario())


@pytest.mark.parametrize("where", ["path", "signature", "nonce"])
def test_who_stopped_a_run_must_be_its_client_and_that_run(tmp_path: Path, where: str) -> None:
    """A request to end another order, or one that nobody signed, excuses nothing."""

    async def scenario() -> None:
        async with worlds(tmp_path) as trio:
            node = trio[0]
            jobs = [(await node.submit(node.task(f"wait {gate} 3"), wait=0))["job"] for gate in ("one", "two")]
            await until(lambda: len(node.executor.runs) == 2)
            for job in jobs:
                await node.call("DELETE", f"/orders/{job}")
            stops, answers = [], []
            for job in jobs:
                entry = await node.provider._orders.find(Hash(job))
                assert entry is not None
                assert entry.ending is not None
                assert entry.receipt is not None
                stops.append(entry.ending.stop)
                answers.append(entry.receipt)
            assert None not in stops
            path, request, signature = stops[0]
            assert was_stopped(path, request, signature, answers[0], DOMAIN)
            assert not was_stopped(*stops[1], answers[0], DOMAIN)
            forged = {
                "path": (stops[1][0], request, signature),
                "signature": (path, request, stops[1][2]),
                "nonce": (path, request.replace("0x", "0y"), signature),
            }
            assert not was_stopped(*forged[where], answers[0], DOMAIN)

    asyncio.run(scenario())


def test_a_receipt_for_other_inputs_than_the_task_names_is_wrong(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worlds(tmp_path, FakeExecutor()) as trio:
            honest, other, _ = trio
            task = honest.task("echo right", inputs=(Input(path="a", blob=honest.contents.add(b"a file")),))
            other.contents = honest.contents
            first, second = [receipt_of(await world.submit(task)) for world in (honest, other)]
            assert first.claim() == second.claim()
            elsewhere = signed(msgspec.structs.replace(second, input=Hash(b"i" * 32)), node_signature=OTHER)
            opinion = await judged(trio, seat_of([first, elsewhere], input=ZERO_HASH), epoch=7)
            assert (opinion.good, opinion.output) == (1, first.claim())

    asyncio.run(scenario())


def test_where_each_has_read_another_object_there_is_no_telling() -> None:
    def shown(digest: str, ended: str) -> Shown:
        inputs = () if not digest else (("a", digest),)
        return Shown(task, inputs, None, None, empty_result(ended))  # type: ignore[arg-type]

    task = Task(
        executor="wasm", kind="module", engine="e", program=Blob("0" * 64, 1), inputs=(Input("a", bucket="b", key="k"),)
    )
    one, two, cut = shown("1" * 64, "exited"), shown("2" * 64, "exited"), shown("", "time")
    both = {NODE.address: one, OTHER.address: two}
    assert choose_inputs(ZERO_HASH, both) is None
    assert choose_inputs(Hash(b"i" * 32), both) is one
    assert choose_inputs(ZERO_HASH, {NODE.address: one}) is None
    assert choose_inputs(ZERO_HASH, {OTHER.address: cut, NODE.address: one}) is one


def test_fuel_that_ran_out_of_less_is_no_lie(tmp_path: Path) -> None:
    class Metered(FakeExecutor):
        async def run(self, work: Work) -> Outcome:
            outcome = await super().run(work)
            return outcome if work.most >= 7 else Outcome("fuel", 0, b"", work.most)

    async def scenario() -> None:
        async with worlds(tmp_path, Metered()) as trio:
            receipts = await contradict(trio[0], trio[1], trio[0].task("echo x"), (100, 3))
            assert (await judged(trio, seat_of(receipts))).good == BOTH

    asyncio.run(scenario())


def test_fuel_that_cannot_have_run_out_is_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worlds(tmp_path, CutShort("fuel")) as trio:
            receipts = await contradict(trio[0], trio[1], trio[0].task("echo x"), (100, 7))
            assert (await judged(trio, seat_of(receipts))).good == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(("threshold", "good"), [(10**6, 3), (0, 1)])
def test_by_a_metric_what_is_near_is_good(tmp_path: Path, threshold: int, good: int) -> None:
    async def scenario() -> None:
        async with worlds(tmp_path) as trio:
            task = trio[0].task("echo right", metric="bytes", threshold=threshold)
            receipts = await contradict(trio[0], trio[1], task)
            assert (await judged(trio, seat_of(receipts, kind=NEAR))).good == good

    asyncio.run(scenario())


def test_one_that_is_silent_does_not_keep_the_other_from_being_found_right(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worlds(tmp_path) as trio:
            receipts = await contradict(trio[0], trio[1], trio[0].task("echo right"))
            del trio[2].peers[OTHER.address]
            assert (await judged(trio, seat_of(receipts), epoch=7)).good == 1

    asyncio.run(scenario())


def test_one_that_is_away_for_a_moment_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An honest node that restarts must not be found wrong for it: a bond hangs on that."""
    monkeypatch.setattr(provider_referee, "PATIENCE", 1)
    monkeypatch.setattr(provider_referee, "LONGEST_PAUSE", 0.01)

    async def scenario() -> None:
        async with worlds(tmp_path) as trio:
            receipts = await contradict(trio[0], trio[1], trio[0].task("echo right"))
            referee, away = trio[2], trio[2].peers.pop(NODE.address)
            asked = []
            find = referee.provider._referee._find

            async def count(seat: WorkState) -> Any:
                asked.append(seat.id)
                return await find(seat)

            monkeypatch.setattr(referee.provider._referee, "_find", count)
            seat = seat_of(receipts)
            for accused in trio[:2]:
                await accused.provider.prove(accused.context(4, [seat]))
            await referee.provider.prove(referee.context(4, [seat]))
            await until(lambda: len(asked) > 2)
            assert await opinions(referee) == []
            assert referee.executor.runs == []
            referee.peers[NODE.address] = away
            await until(lambda: bool(referee.provider._evidence._opinions))
            assert [one.good for one in await opinions(referee)] == [1]

    asyncio.run(scenario())


def test_fuel_that_ran_out_says_nothing_of_a_receipt_that_nobody_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its order may have allowed more."""
    monkeypatch.setattr(provider_referee, "PATIENCE", 1)

    class Metered(FakeExecutor):
        async def run(self, work: Work) -> Outcome:
            outcome = await super().run(work)
            return outcome if work.most >= 7 else Outcome("fuel", 0, b"", work.most)

    async def scenario() -> None:
        async with worlds(tmp_path, Metered()) as trio:
            receipts = await contradict(trio[0], trio[1], trio[0].task("echo x"), (100, 3))
            trio[2].executor.run = trio[1].executor.run  # type: ignore[method-assign]
            del trio[2].peers[NODE.address]
            assert (await judged(trio, seat_of(receipts), epoch=7)).good == BOTH

    asyncio.run(scenario())


def test_what_only_webassembly_can_decide_is_not_run_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worlds(tmp_path, name="sandbox") as trio:
            task = msgspec.structs.replace(trio[0].task("echo right"), executor="sandbox", kind="native", engine="")
            receipts = await contradict(trio[0], trio[1], task)
            assert (await judged(trio, seat_of(receipts))).good == BOTH
            assert trio[2].executor.runs == []

    asyncio.run(scenario())


def test_a_referee_runs_nothing_beyond_what_its_operator_offers(tmp_path: Path) -> None:
    """A client and its own nodes may name any resources, and contradict each other on purpose."""

    async def scenario() -> None:
        async with worlds(tmp_path) as trio:
            receipts = await contradict(trio[0], trio[1], trio[0].task("echo right"))
            referee, seat = trio[2].provider._referee, seat_of(receipts)
            asked = trio[0].task("echo right").resources
            referee._settings = msgspec.structs.replace(referee._settings, memory=asked.memory - 1)
            for accused in trio[:2]:
                await accused.provider.prove(accused.context(4, [seat]))
            with pytest.raises(Refused):
                await referee._find(seat)
            assert trio[2].executor.runs == []
            referee._settings = msgspec.structs.replace(referee._settings, memory=asked.memory, seconds=1)
            ran = []
            run = trio[2].executor.run

            async def note(work: Work) -> Outcome:
                ran.append(work.task.resources.seconds)
                return await run(work)

            trio[2].executor.run = note  # type: ignore[method-assign]
            assert (await referee._find(seat)).good == 1
            assert set(ran) == {1}

    asyncio.run(scenario())


def test_where_both_are_silent_there_is_no_opinion(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worlds(tmp_path) as trio:
            receipts = await contradict(trio[0], trio[1], trio[0].task("echo right"))
            referee, seat = trio[2], seat_of(receipts)
            await referee.provider.prove(referee.context(4, [seat]))  # neither knows that it is accused
            task = referee.provider._referee._tasks[seat.id]
            await until(lambda: trio[0].executor.runs == ["echo right"] and not task.done())
            assert await opinions(referee) == []
            for accused in trio[:2]:
                await accused.commit(4, [seat])
            await until(lambda: bool(referee.provider._evidence._opinions))

    asyncio.run(scenario())


@pytest.mark.parametrize("what", ["task", "inputs", "receipt", "result", "state"])
def test_what_is_shown_must_be_what_the_case_is_about(tmp_path: Path, what: str) -> None:
    from freehold.services.compute.node.shown import check_shown

    async def scenario() -> None:
        async with worlds(tmp_path) as trio:
            receipts = await contradict(trio[0], trio[1], trio[0].task("echo right"))
            seat = seat_of(receipts)
            await trio[0].provider.prove(trio[0].context(4, [seat]))
            shown = await ask(trio[0], seat, "task")
            other = await trio[0].submit(trio[0].task("echo other"))
            forged = {
                "task": trio[0].task("echo other").encode().decode(),
                "inputs": [["a", "0" * 64]],
                "receipt": other["receipt"],
                "result": other["result"],
                "state": "0" * 64,
            }
            assert check_shown(shown, seat, NODE.address, DOMAIN).receipt == receipts[0]
            with pytest.raises(FreeholdError):
                check_shown(shown | {what: forged[what]}, seat, NODE.address, DOMAIN)

    asyncio.run(scenario())


async def ask(world: World, seat: WorkState, what: str, signer: Any = REFEREE, who: Any = REFEREE) -> Any:
    path = f"/v1/compute/cases/{seat.id}/{what}?referee={who.address}"
    headers = authorize(
        signer,
        "GET",
        path,
        ZERO_HASH,
        world.node.address,
        DOMAIN,
        world.now,
        Hash(hashlib.sha256(path.encode()).digest()),
    )
    status, _, body = await world.bare("GET", path, headers)
    assert status == 200
    return msgspec.json.decode(body)["data"] if what == "task" else body


def test_only_a_seated_referee_is_shown_anything_and_only_the_case(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worlds(tmp_path) as trio:
            task = trio[0].task("echo right", stdin=trio[0].contents.add(b"in: "))
            receipts = await contradict(trio[0], trio[1], task)
            secret = b"of another task"
            await trio[0].put(secret)
            seat = seat_of(receipts)
            with pytest.raises(FreeholdError):
                await ask(trio[0], seat, "task")  # not known yet
            await trio[0].provider.prove(trio[0].context(4, [seat]))
            assert (await ask(trio[0], seat, "task"))["task"] == task.encode().decode()
            assert task.stdin is not None
            assert await ask(trio[0], seat, f"blobs/{task.stdin.sha256}") == b"in: "
            with pytest.raises(FreeholdError):
                await ask(trio[0], seat, f"blobs/{hashlib.sha256(secret).hexdigest()}")
            with pytest.raises(FreeholdError):
                await ask(trio[0], seat, "task", signer=STRANGER)
            with pytest.raises(FreeholdError):
                await ask(trio[0], seat, "task", signer=STRANGER, who=STRANGER)

    asyncio.run(scenario())


def test_what_is_shown_stays_in_the_cases_folder_and_within_its_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = b"x" * 1000
    name = hashlib.sha256(body).hexdigest()

    async def fetch(_: Address, sha256: str, target: Path) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            yield body

        await write_checked(pieces(), target, sha256, 2000)

    async def silent() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    async def scenario() -> None:
        task = Task(executor="sandbox", kind="native", arguments=("true",))
        async with Fetched(tmp_path / "case", [NODE.address], fetch, 2500) as files:
            with pytest.raises(MalformedMessage):
                await files.get("../outside")
            assert os.listdir(tmp_path) == ["case"]
            for count, fits in ((2, True), (3, False)):
                inputs = tuple((f"in{number}", name) for number in range(count))
                shown = Shown(task, inputs, None, None, None)  # type: ignore[arg-type]
                if fits:
                    await (await files.give(shown, 0)).write_inputs(tmp_path / "run")
                    assert (tmp_path / "run" / "in1").read_bytes() == body
                else:
                    with pytest.raises(Unavailable):
                        await files.give(shown, 0)
            monkeypatch.setattr(server, "GRACE_SECONDS", 0.05)
            with pytest.raises(DeadlineExpired):
                await write_checked(silent(), tmp_path / "case" / name, name, 2000)

    asyncio.run(scenario())
