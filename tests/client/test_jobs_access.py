"""What a job's nodes may do while no client is there: enough for all of the work, by grants that end with the job."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from freehold.client import jobs_delivery
from freehold.client.grants import GrantKey, Grants, describe, narrow
from freehold.client.jobs_access import GRANT, end_grants, open_grant, own_delivery
from freehold.client.jobs_journal import DONE, RUNNING, JobJournal, JobRow
from freehold.client.jobs_spec import File, Job, Map, Resources
from freehold.client.root import AccountRoot
from freehold.protocol.errors import Unavailable
from tests.client.jobs_world import CLIENT, Came, Crash, FakeObjects, World, script_job
from tests.client.memory_heads import MemoryHeads

SECOND = 10**9
SEED = b"\x05" * 32
NOW = 1_000_000
GATEWAY = "http://127.0.0.1:1"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def lower_all(ran: Any) -> Came:
    return Came(files={name: data.lower() for name, data in ran.inputs.items()})


def thumbs(**fields: Any) -> Job:
    return script_job("thumb", map=Map(over=File(remote="fh://demo/in/")), output="fh://demo/out/", **fields)


async def drive(world: World, job: Job, gateway: str = GATEWAY) -> JobRow:
    jobs = world.open()
    row = await jobs.submit(job, Path(), gateway, 10**18)
    return await jobs.wait(row.id)


# Who delivers, and what it is ordered for


def test_nodes_deliver_by_themselves_what_nobody_checks_and_no_step_takes() -> None:
    (step,) = (job := thumbs()).steps
    assert own_delivery(job, step, direct=True) == jobs_delivery.Delivery("demo", "out/")
    assert own_delivery(job, step, direct=False) is None
    (step,) = (checked := thumbs(assurance=0.9)).steps
    assert own_delivery(checked, step, direct=True) is None
    (step,) = (local := script_job("thumb", output="out")).steps
    assert own_delivery(local, step, direct=True) is None


def test_what_nodes_deliver_by_themselves_is_ordered_for_all_that_it_may_take(world: World) -> None:
    """Where other arguments take more than receipts of the same program showed, nobody may be there to order anew."""
    (node,) = world.add(1)
    world.objects["demo/in/a"] = b"A"
    world.programs["thumb"] = lower_all
    job = thumbs(resources=Resources(work=60))
    for _ in range(2):
        assert asyncio.run(drive(world, job)).phase == "done"
    assert [order.most for order in node.orders] == [60 * SECOND, 60 * SECOND]
    assert asyncio.run(drive(world, job, gateway="")).phase == "done"  # this client has to be there anyway
    assert node.orders[-1].most == SECOND // 10


# A client that comes back


def test_what_came_before_the_deadline_counts_for_who_comes_back_after_it(world: World) -> None:
    world.add(2)
    world.objects["demo/in/a"] = b"A"
    world.programs["thumb"] = lower_all

    async def killed() -> str:
        jobs = world.open()
        row = await jobs.submit(thumbs(deadline=60), Path(), GATEWAY, 10**18)
        world.crash_at = len(world.steps) + 2  # signed and sent; the answer is never read
        with pytest.raises(BaseException) as caught:
            await jobs.wait(row.id)
        assert Crash.__name__ in repr(caught.value)
        return row.id

    job = asyncio.run(killed())
    assert world.objects["demo/out/a"] == b"a"
    world.now += 3600
    done = asyncio.run(world.open().wait(job))
    assert (done.phase, done.reason) == ("done", "")
    assert world.runs == 1


def test_nothing_is_ordered_after_the_deadline(world: World) -> None:
    (node,) = world.add(1)
    world.objects["demo/in/a"] = b"A"

    async def late() -> JobRow:
        jobs = world.open()
        row = await jobs.submit(thumbs(deadline=60), Path(), GATEWAY, 10**18)
        world.now += 60
        return await jobs.wait(row.id)

    done = asyncio.run(late())
    assert done.phase == "failed"
    assert "deadline" in done.reason
    assert node.orders == []


# Grants


class Account:
    """A journal, and a root over heads that can be cut off."""

    def __init__(self, folder: Path) -> None:
        self.heads = MemoryHeads()
        self.root = AccountRoot(self.heads, SEED)
        self.journal = JobJournal(folder)
        self.row = JobRow("a" * 10, "a", "{}", "", GATEWAY, NOW, NOW + 600, 1, RUNNING, "", 0, 0, b"")

    async def add(self, id: str) -> str:
        row = self.row._replace(id=id, name=id)
        await self.journal.add_job(row)
        return await open_grant(self.journal, row, SEED, CLIENT.address)

    async def end(self, job: str, now: int = NOW) -> dict[str, str]:
        failed = await end_grants(self.journal, self.root, SEED, job, now)
        await self.journal.end_job(job, DONE, "", 0, now)
        return failed

    def cut(self, what: str) -> None:
        raise Unavailable("no member answers")

    async def why_not(self, token: str, now: int = NOW) -> str:
        """Why a gateway would refuse what an order's grant was for; "" where it would not."""
        revoked = (await self.root.read()).revoked
        try:
            Grants(GrantKey(SEED).public_key).check(token, "write", "demo", "out/a", now, revoked)
        except Exception as error:
            return str(getattr(error, "details", {}).get("reason"))
        return ""


@pytest.fixture
def account(tmp_path: Path) -> Iterator[Account]:
    made = Account(tmp_path)
    yield made
    made.journal.close()


def narrowed(grant: str) -> str:
    return narrow(grant, operations=["write"], bucket="demo", prefix="out/")


def test_a_jobs_grant_ends_with_it_and_by_itself(account: Account) -> None:
    async def scenario() -> None:
        first, second = [await account.add(id) for id in ("a" * 10, "b" * 10)]
        assert await open_grant(account.journal, account.row, SEED, CLIENT.address) == first
        assert describe(first).expires == NOW + 600
        assert await account.why_not(narrowed(first)) == ""
        assert await account.end("a" * 10) == {}
        assert await account.why_not(narrowed(first)) == "revoked"
        assert await account.why_not(narrowed(second)) == ""  # another job's goes on
        assert await account.why_not(narrowed(second), NOW + 600) == "expired"  # where nobody ever comes back
        assert list(await account.journal.records(GRANT)) == [GRANT + "b" * 10]

    asyncio.run(scenario())


def test_a_grant_that_could_not_be_revoked_is_revoked_with_the_next_job(account: Account) -> None:
    async def scenario() -> None:
        first, _ = [await account.add(id) for id in ("a" * 10, "b" * 10)]
        account.heads.before = account.cut
        assert await account.end("a" * 10) == {"a" * 10: "no member answers"}
        account.heads.before = lambda what: None
        assert await account.why_not(narrowed(first)) == ""
        assert await account.end("b" * 10) == {}
        assert await account.why_not(narrowed(first)) == "revoked"
        assert await account.journal.records(GRANT) == {}

    asyncio.run(scenario())


def test_a_grant_that_has_expired_costs_no_revocation(account: Account) -> None:
    async def scenario() -> None:
        await account.add("a" * 10)
        assert await account.end("a" * 10, NOW + 600) == {}
        assert (await account.root.read()).revoked == {}
        assert await account.journal.records(GRANT) == {}

    asyncio.run(scenario())


# Why


def test_why_a_node_did_not_write_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (node,) = world.add(1)
    world.objects["demo/in/a"] = b"A"
    world.programs["thumb"] = lower_all
    monkeypatch.setattr(world, "wrote", lambda task, files: None)
    finish = node.finish

    def finish_saying(job: Any, order: Any, task: Any) -> None:
        finish(job, order, task)
        node.jobs[job] = msgspec.structs.replace(node.jobs[job], delivered=False, reason="not delivered: answered 507")

    monkeypatch.setattr(node, "finish", finish_saying)

    async def run() -> tuple[JobRow, dict[str, Any]]:
        done = await drive(world, thumbs())
        return done, await world.open().why(done.id)

    done, why = asyncio.run(run())
    assert (done.phase, world.objects["demo/out/a"]) == ("done", b"a")  # through this machine, in the end
    told = [event for event in why["events"] if event["kind"] == "delivery"]
    assert [(one["node"], one["files"], one["reason"]) for one in told] == [
        (str(node.address), 1, "not delivered: answered 507")
    ] * 2  # as its task ended, and as it was asked again


def test_what_cannot_be_looked_up_is_written_and_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (node,) = world.add(1)
    world.objects["demo/in/a"] = b"A"
    world.programs["thumb"] = lower_all
    stat = FakeObjects.stat
    cut = iter([True, False])

    async def stat_cut(objects: FakeObjects, path: Any) -> Any:
        if next(cut, False):
            raise Unavailable("too few nodes answer")
        return await stat(objects, path)

    monkeypatch.setattr(FakeObjects, "stat", stat_cut)

    async def run() -> tuple[JobRow, dict[str, Any]]:
        done = await drive(world, thumbs())
        return done, await world.open().why(done.id)

    done, why = asyncio.run(run())
    assert (done.phase, world.objects["demo/out/a"]) == ("done", b"a")
    (told,) = [event for event in why["events"] if event["kind"] == "delivery"]
    assert told["node"] == str(node.address)
    assert "too few nodes answer" in told["reason"]
