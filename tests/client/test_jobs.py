"""Jobs over nodes in memory: what is ordered where, believed, moved, capped, resumed, delivered and explained."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from freehold.client.jobs_driver import Progress
from freehold.client.jobs_spec import File, Job, Map, Resources, Step
from freehold.protocol.units import Hash
from freehold.services.compute.ordering.checks import Standing, WrongReceipt
from tests.client.jobs_world import PRICE, Came, Crash, World, script_job

SECOND = 10**9


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def go(world: World, job: Job, most: int | None = 10**18, base: Path = Path(), gateway: str = "") -> Any:
    """Order a job, and see it through: its row, and what it came to."""

    async def run() -> Any:
        jobs = world.open()
        row = await jobs.submit(job, base, gateway, most)
        done = await jobs.wait(row.id)
        return done, await jobs.results(row.id), await jobs.cost(row.id)

    return asyncio.run(run())


async def until(ready: Callable[[], bool]) -> None:
    """Wait for what another task does."""
    async with asyncio.timeout(30):
        while not ready():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def test_a_script_runs_once_and_says_what_it_printed(world: World) -> None:
    world.add(3)
    done, results, cost = go(world, script_job(arguments=["hello"]))
    assert (done.phase, done.reason) == ("done", "")
    assert [one.stdout for one in results["main"]] == [b"hello"]
    assert world.runs == 1
    assert int(cost["spent"]) == world.billed == 10 * 1_000_000
    assert int(cost["running"]) == int(cost["silent"]) == 0


def test_the_cheapest_of_equals_is_chosen(world: World) -> None:
    world.add(1, PRICE * 2)
    (cheap,) = world.add(1, PRICE)
    go(world, script_job())
    assert len(cheap.ran) == 1


def test_a_map_uses_every_slot_and_keeps_its_order(world: World) -> None:
    world.add(4)
    items = [f"item {number}" for number in range(200)]
    done, results, _ = go(world, script_job(map=Map(items=items), arguments=["{index}:{item}"]))  # type: ignore[arg-type]
    assert done.phase == "done"
    assert [one.stdout.decode() for one in results["main"]] == [f"{n}:{item}" for n, item in enumerate(items)]
    assert world.runs == 200
    assert all(node.ran for node in world.nodes)


def test_texts_of_a_map_come_on_standard_input(world: World) -> None:
    world.add(1)
    _, results, _ = go(world, script_job(map=Map(items=["a", "b", "c"], each=2)))  # type: ignore[arg-type]
    assert [one.stdout for one in results["main"]] == [b"a\nb\n", b"c\n"]


def test_steps_feed_each_other(world: World, tmp_path: Path) -> None:
    world.add(3)
    (tmp_path / "words.txt").write_text("b a\na\nb b\n")
    world.programs["count"] = lambda ran: Came(str(len(ran.stdin.split())).encode())
    world.programs["add"] = lambda ran: Came(str(sum(map(int, ran.inputs.values()))).encode(), {"sum": b"5"})
    job = Job(steps=[  # type: ignore[arg-type]
        Step(name="add", script="add", inputs={"parts/": File(step="count", stdout=True)}, output="out"),
        Step(name="count", script="count", map=Map(lines=File(path="words.txt"))),
    ])  # fmt: skip
    done, results, _ = go(world, job, base=tmp_path)
    assert done.phase == "done", done.reason
    assert results["add"][0].stdout == b"5"
    assert (tmp_path / "out" / "sum").read_bytes() == b"5"


def test_a_program_that_fails_fails_the_job_with_its_status(world: World) -> None:
    world.add(2)
    world.programs["bad"] = lambda ran: Came(status=3)
    done, _, _ = go(world, script_job("bad"))
    assert (done.phase, done.status) == ("failed", 3)
    assert "exited with status 3" in done.reason
    assert world.runs == 1  # what is the same anywhere is not tried again


def test_a_node_that_falls_silent_is_left_and_never_paid_twice(world: World) -> None:
    first, second = world.add(2)
    first.price = PRICE // 2  # preferred
    first.gate = asyncio.Event()

    async def run() -> Any:
        jobs = world.open()
        row = await jobs.submit(script_job(arguments=["x"]), most=10**18)
        driving = asyncio.create_task(jobs.wait(row.id))
        await until(lambda: bool(first.orders))
        first.silent = True
        done = await driving
        return done, await jobs.results(row.id), await jobs.cost(row.id), await jobs.why(row.id)

    done, results, cost, why = asyncio.run(run())
    assert done.phase == "done", done.reason
    assert results["main"][0].node == second.address
    assert int(cost["silent"]) == 300 * SECOND * 5  # the first may still show a receipt: it counts in full
    assert [event["node"] for event in why["events"] if event["kind"] == "failure"] == [str(first.address)]


def test_a_node_that_failed_is_not_chosen_again_soon(world: World) -> None:
    first, second = world.add(2)
    first.price = PRICE // 10
    first.refuses = "its executor is broken"
    assert go(world, script_job())[0].phase == "done"
    first.refuses = ""
    assert go(world, script_job())[0].phase == "done"
    assert (len(first.ran), len(second.ran)) == (0, 2)
    world.now += 10_000
    assert go(world, script_job())[0].phase == "done"
    assert len(first.ran) == 1


def test_nobody_is_left_after_every_node_failed(world: World) -> None:
    for node in world.add(3):
        node.refuses = "no"
    done, _, _ = go(world, script_job(retries=10))
    assert done.phase == "failed"
    assert "no node is left" in done.reason


# Assurance


def test_assurance_runs_at_distinct_operators_and_is_priced_apart(world: World) -> None:
    world.add(6)
    world.nodes[1].operator = world.nodes[0].operator
    done, results, cost = go(world, script_job(assurance=0.99, arguments=["x"]))
    assert done.phase == "done", done.reason
    ran = [node for node in world.nodes if node.ran]
    assert len(ran) >= 2
    assert len({node.operator for node in ran}) == len(ran)
    assert int(cost["work"]) == 10 * 1_000_000
    assert int(cost["assurance"]) == int(cost["work"]) * (len(ran) - 1)
    assert results["main"][0].stdout == b"x"


def test_a_wrong_result_is_outvoted_disputed_and_remembered(world: World) -> None:
    liar, *_ = world.add(7)
    liar.price = PRICE // 2
    liar.lies = lambda came: Came(b"forged")
    done, results, _ = go(world, script_job(assurance=0.99, arguments=["x"]))
    assert done.phase == "done", done.reason
    assert results["main"][0].stdout == b"x"
    assert any(liar.address in (first.node, second.node) for first, second in world.disputes)
    before = len(liar.ran)
    go(world, script_job(assurance=0.99, arguments=["y"]))
    assert len(liar.ran) == before


@pytest.mark.parametrize("ended", ["time", "stopped", "failed"])
def test_what_was_billed_for_a_run_cut_short_is_disputed_once_another_is_done(world: World, ended: str) -> None:
    liar, honest = world.add(2)
    liar.price = PRICE // 2
    liar.lies = lambda came: Came(ended=ended, measure=10**18)
    done, results, _ = go(world, script_job(arguments=["x"]))
    assert done.phase == "done", done.reason
    assert results["main"][0].stdout == b"x"
    assert [(first.node, second.node) for first, second in world.disputes] == [(honest.address, liar.address)]
    assert world.disputes[0][1].measure == world.disputes[0][1].most
    assert len(liar.orders) == len(honest.orders) == 1  # a lie about time makes no order larger


def test_a_node_that_broke_down_is_not_disputed(world: World) -> None:
    broken, honest = world.add(2)
    broken.price = PRICE // 2
    broken.lies = lambda came: Came(ended="failed", measure=10**9)

    def run(came: Came) -> Came:
        broken.silent = True
        return came

    honest.lies = run
    done, _, _ = go(world, script_job())
    assert done.phase == "done", done.reason
    assert len(broken.orders) == 1
    assert world.disputes == []


def test_what_came_to_nothing_and_costs_nothing_is_left_alone(world: World) -> None:
    broken, _ = world.add(2)
    broken.price = PRICE // 2
    broken.lies = lambda came: Came(ended="failed", measure=0)
    done, _, _ = go(world, script_job())
    assert (done.phase, world.disputes) == ("done", [])


def test_a_signed_receipt_that_does_not_check_is_disputed_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    liar, honest = world.add(2)
    liar.price = PRICE // 2

    def refuse(job: Hash, _: object) -> Standing:
        receipt = liar.jobs[job].receipt
        assert receipt is not None
        liar.silent = True
        raise WrongReceipt("it shows a receipt for other inputs", receipt=receipt.to_json())

    liar.lies = lambda came: Came(b"forged")
    monkeypatch.setattr(liar, "_checked", refuse)
    done, _, _ = go(world, script_job())
    assert done.phase == "done", done.reason
    assert [(first.node, second.node) for first, second in world.disputes] == [(honest.address, liar.address)]


def test_too_few_operators_for_an_assurance_is_said_before_anything_is_ordered(world: World) -> None:
    world.add(1)
    done, _, _ = go(world, script_job(assurance=0.999999))
    assert done.phase == "failed"
    assert "needs" in done.reason
    assert world.runs == 0


def test_a_sample_of_a_map_is_run_again_elsewhere(world: World) -> None:
    world.add(6)
    items = [str(number) for number in range(60)]
    job = script_job(map=Map(items=items), verify="sampled", assurance=0.95)  # type: ignore[arg-type]
    done, _, _ = go(world, job)
    assert done.phase == "done", done.reason
    assert 60 < world.runs < 60 * 6


def test_whoever_is_caught_by_a_sample_has_all_its_items_run_again(world: World) -> None:
    liar, *_ = world.add(8)
    liar.lies = lambda came: Came(b"forged " + came.stdout)
    items = [str(number) for number in range(40)]
    done, results, _ = go(world, script_job(map=Map(items=items), verify="sampled", assurance=0.99))  # type: ignore[arg-type]
    assert done.phase == "done", done.reason
    assert [one.stdout for one in results["main"]] == [f"{item}\n".encode() for item in items]


# Money


def test_a_cap_holds_to_the_unit_whatever_nodes_bill(world: World) -> None:
    world.add(4)
    work = Resources(work=1)
    most = 10 * SECOND  # what one order may come to
    items = [str(number) for number in range(30)]
    world.programs["greedy"] = lambda ran: Came(measure=10**18)  # each bills all that it may
    for cap in (most - 1, most, 3 * most, 3 * most + 1, 30 * most - 1, 30 * most):
        signed = len(world.signed)
        billed = world.billed
        done, _, cost = go(world, script_job("greedy", map=Map(items=items), resources=work), most=cap)  # type: ignore[arg-type]
        spent = sum(list(world.signed.values())[signed:])
        assert spent <= cap
        assert world.billed - billed == int(cost["spent"]) <= cap
        # Of a small cap an order takes half, so that one more can be placed if its node falls silent.
        assert len(world.signed) - signed == (2 if cap < 2 * most else min(30, cap // most))
        assert (done.phase == "done") == (cap >= 30 * most)


def test_orders_of_silent_and_refusing_nodes_count_in_full(world: World) -> None:
    good, *bad = world.add(4)
    for node in bad:
        node.price = PRICE // 10  # preferred, so that all are tried
        node.refuses = "no"
    good.price = PRICE
    most = 10 * SECOND + 3 * SECOND
    done, _, cost = go(world, script_job(resources=Resources(work=1), retries=5), most=most)
    assert done.phase == "done", done.reason
    assert sum(world.signed.values()) == 3 * most // 20 + most // 2  # each for half of the cap, at its price
    assert int(cost["silent"]) == 3 * most // 20
    world.now += 100_000
    tight = SECOND * 6 // 10  # less than the least order comes to at the good node
    done, _, _ = go(world, script_job("other", resources=Resources(work=1), retries=5), most=tight)
    assert done.phase == "failed"
    assert "this job may cost at most" in done.reason


def test_a_receipt_beyond_its_order_counts_for_nothing(world: World) -> None:
    greedy, honest = world.add(2)
    greedy.price = PRICE // 2
    greedy.overbills = True
    done, results, _ = go(world, script_job(arguments=["x"]))
    assert done.phase == "done"
    assert results["main"][0].node == honest.address


def test_the_next_order_is_for_what_receipts_have_shown(world: World) -> None:
    (node,) = world.add(1)
    go(world, script_job())
    go(world, script_job())
    assert [order.most for order in node.orders] == [300 * SECOND, 10**8]


def test_an_order_that_was_too_small_is_made_again_in_full(world: World) -> None:
    (node,) = world.add(1)
    go(world, script_job())

    def heavy(ran: Any) -> Came:
        enough = node.orders[-1].most >= SECOND
        return Came(measure=SECOND if enough else 10**8, ended="exited" if enough else "fuel")

    world.programs["echo"] = heavy
    done, _, _ = go(world, script_job(resources=Resources(work=5)))
    assert done.phase == "done", done.reason
    assert [order.most for order in node.orders] == [300 * SECOND, 10**8, 5 * SECOND]


def test_a_script_that_loops_for_ever_is_billed_to_its_order_and_reported(world: World) -> None:
    world.add(2)
    world.programs["loop"] = lambda ran: Came(measure=10**18, ended="fuel")
    done, _, cost = go(world, script_job("loop", resources=Resources(work=2)))
    assert done.phase == "failed"
    assert "used up what a run may be billed" in done.reason
    assert int(cost["spent"]) == 2 * SECOND * 10


# Interruptions


def test_a_client_killed_at_any_step_orders_nothing_twice(world: World, tmp_path: Path) -> None:
    world.add(3)
    items = [str(number) for number in range(4)]
    job = script_job(map=Map(items=items), assurance=0.9)  # type: ignore[arg-type]

    async def attempt(jobs: Any, id: str) -> Any:
        return await jobs.wait(id)

    for crash_at in range(60):
        place = World(tmp_path / str(crash_at))
        place.add(4)
        place.crash_at = crash_at

        async def submit(place: World = place) -> str:
            return (await place.open().submit(job, most=10**18)).id

        id = asyncio.run(submit())
        crashed = False
        try:
            done = asyncio.run(attempt(place.open(), id))
        except BaseException as error:
            if Crash.__name__ not in repr(error):
                raise
            crashed = True
            done = asyncio.run(attempt(place.open(), id))
        assert done.phase == "done", (crash_at, done.reason)
        by_id = {id for node in place.nodes for id in node.ran}
        assert place.runs == len(by_id)  # each order was run once, however often it was sent
        cost = asyncio.run(place.open().cost(id))
        assert place.billed == int(cost["spent"])
        assert int(cost["running"]) == int(cost["silent"]) == 0
        place.close()
        if not crashed:
            assert crash_at > 10
            return
    raise AssertionError("it never ran to its end")


def test_who_stops_waiting_finds_the_job_again(world: World) -> None:
    (node,) = world.add(1)
    node.gate = asyncio.Event()

    async def run() -> Any:
        jobs = world.open()
        row = await jobs.submit(script_job(arguments=["x"]), most=10**18)
        waiting = asyncio.create_task(jobs.wait(row.id))
        await until(lambda: bool(node.orders))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not node.stopped
        assert (await jobs.find(row.id[:4])).phase == "running"
        assert node.gate is not None
        node.gate.set()
        other = world.open()
        return await other.wait(row.id)

    assert asyncio.run(run()).phase == "done"
    assert len({order.struct_hash() for order in node.orders}) == 1


def test_a_job_found_again_takes_what_its_open_order_brings_however_little_is_left(world: World) -> None:
    (node,) = world.add(1)
    node.gate = asyncio.Event()

    async def run() -> Any:
        jobs = world.open()
        row = await jobs.submit(script_job(resources=Resources(work=5)), most=60 * SECOND)
        waiting = asyncio.create_task(jobs.wait(row.id))
        await until(lambda: bool(node.orders))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert node.gate is not None
        node.gate.set()
        return await world.open().wait(row.id)

    done = asyncio.run(run())
    assert done.phase == "done", done.reason
    assert len({order.struct_hash() for order in node.orders}) == 1


def test_a_job_is_stopped_at_its_nodes(world: World) -> None:
    (node,) = world.add(1)
    node.gate = asyncio.Event()

    async def run() -> Any:
        jobs = world.open()
        row = await jobs.submit(script_job(), most=10**18)
        waiting = asyncio.create_task(jobs.wait(row.id))
        await until(lambda: bool(node.orders))
        stopped = await world.open().stop(row.id)
        return stopped, await waiting

    stopped, waited = asyncio.run(run())
    assert stopped.phase == waited.phase == "stopped"
    assert node.stopped == [node.orders[0].struct_hash()]


def test_a_deadline_stops_what_runs(world: World) -> None:
    (node,) = world.add(1)
    node.gate = asyncio.Event()
    done, _, _ = go(world, script_job(deadline=1))
    assert done.phase == "failed"
    assert "deadline" in done.reason
    assert node.stopped


# Storage


def test_nodes_read_and_write_objects_by_grants_for_exactly_those(world: World) -> None:
    from freehold.client.grants import describe

    (node,) = world.add(1)
    world.objects |= {"demo/photos/a": b"A", "demo/photos/b": b"B", "demo/secret": b"S"}
    world.programs["thumb"] = lambda ran: Came(files={name: data.lower() for name, data in ran.inputs.items()})
    job = script_job("thumb", map=Map(over=File(remote="fh://demo/photos/")), output="fh://demo/thumbs/")
    done, _, _ = go(world, job, gateway="http://127.0.0.1:1")
    assert done.phase == "done", done.reason
    assert (world.objects["demo/thumbs/a"], world.objects["demo/thumbs/b"]) == (b"a", b"b")
    grants = [
        describe(token) for access in node.access if access for token in (*access["read"].values(), access["write"])
    ]
    assert {grant.describe_scope() for grant in grants} == {
        "fh://demo/photos/a", "fh://demo/photos/b", "fh://demo/thumbs/*"
    }  # fmt: skip
    assert {tuple(sorted(grant.operations)) for grant in grants} == {("read",), ("write",)}
    assert all(grant.expires == done.deadline for grant in grants)


def test_a_checked_result_is_written_only_once_it_is_accepted(world: World) -> None:
    liar, *_ = world.add(6)
    liar.price = PRICE // 2
    liar.lies = lambda came: Came(files=dict.fromkeys(came.files, b"forged"))
    world.objects["demo/in/a"] = b"A"
    world.programs["thumb"] = lambda ran: Came(files={name: data.lower() for name, data in ran.inputs.items()})
    job = script_job("thumb", map=Map(over=File(remote="fh://demo/in/")), output="fh://demo/out/", assurance=0.99)
    done, _, cost = go(world, job, gateway="http://127.0.0.1:1")
    assert done.phase == "done", done.reason
    assert world.objects["demo/out/a"] == b"a"
    assert int(cost["delivery"]) > 0
    assert not any(access and access["write"] for access in liar.access)


def test_without_a_gateway_files_pass_through_the_client_which_says_so(world: World) -> None:
    (node,) = world.add(1)
    world.objects["demo/in/a"] = b"A"
    world.programs["thumb"] = lambda ran: Came(files={name: data.lower() for name, data in ran.inputs.items()})
    job = script_job("thumb", map=Map(over=File(remote="fh://demo/in/")), output="fh://demo/out/")
    said: list[Progress] = []

    async def run() -> Any:
        jobs = world.open()
        row = await jobs.submit(job, most=10**18)
        return await jobs.wait(row.id, said.append)

    assert asyncio.run(run()).phase == "done"
    assert world.objects["demo/out/a"] == b"a"
    assert node.access == [None]
    assert any("passed through this machine" in one.text for one in said)


def test_names_that_lead_out_of_a_folder_are_not_written(world: World, tmp_path: Path) -> None:
    world.add(1)
    world.programs["evil"] = lambda ran: Came(files={"../../escaped": b"x"})
    done, _, _ = go_quietly(world, script_job("evil", output="out"), tmp_path / "below")
    assert done.phase == "failed"
    assert "no path" in done.reason
    assert not (tmp_path.parent / "escaped").exists()


def go_quietly(world: World, job: Job, base: Path) -> Any:
    async def run() -> Any:
        jobs = world.open()
        row = await jobs.submit(job, base, most=10**18)
        return await jobs.wait(row.id), None, None

    return asyncio.run(run())


# Why


def test_who_asks_for_what_nobody_has_is_told_the_rule_and_the_nearest(world: World) -> None:
    world.add(2)
    world.add(1, **{"memory.bytes": 2**36})
    done, _, _ = go_quietly(world, script_job(resources=Resources(memory="40 GiB", processors=16)), Path())  # type: ignore[arg-type]
    assert done.phase == "failed"
    assert "no node can run it\n  0 of 3 match" in done.reason
    assert "cpu.cores >= 16" in done.reason
    assert str(world.nodes[2].address) in done.reason  # which lacks processors alone
    assert world.runs == 0


def test_why_has_each_node_each_bid_and_each_check(world: World) -> None:
    world.add(4)
    world.add(1, **{"cpu.cores": 1})

    async def run() -> Any:
        jobs = world.open()
        job = script_job(assurance=0.9, resources=Resources(processors=2))
        row = await jobs.submit(job, most=10**18)
        await jobs.wait(row.id)
        return await jobs.why(row.id)

    why = asyncio.run(run())
    (survey,) = [event for event in why["events"] if event["kind"] == "survey"]
    assert len(survey["nodes"]) == 5
    assert [row["place"] for row in survey["nodes"]] == [1, 2, 3, 4, 0]
    assert "cpu.cores" in survey["nodes"][-1]["reason"]
    assert all(row["price"] for row in survey["nodes"][:4])
    assert sum(order["accepted"] for order in why["orders"]) == 1
    assert len({order["output"] for order in why["orders"]}) == 1


def test_a_quote_shows_the_price_of_assurance_apart(world: World) -> None:
    world.add(6)

    async def quote(assurance: float) -> Any:
        job = script_job(map=Map(items=["a", "b"]), assurance=assurance, resources=Resources(work=1))  # type: ignore[arg-type]
        return await world.open().quote(job)

    plain, sure = asyncio.run(quote(0)), asyncio.run(quote(0.99))
    assert (plain.work, plain.assurance, plain.most) == (20 * SECOND, 0, 20 * SECOND)
    assert sure.work == plain.work
    assert sure.assurance > 0
    assert sure.most >= sure.work + sure.assurance
    assert world.runs == 0
