"""Whatever a node does not take: each with its reason, and nothing of it left behind."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from freehold.protocol.errors import FreeholdError, InvalidInput, Refused, Unavailable
from freehold.protocol.messages import VOUCHER
from freehold.protocol.units import UNSIGNED, Hash
from freehold.services.compute.node import orders_desk
from freehold.services.compute.node.settings import read_settings
from freehold.services.compute.tasks import Blob, Delivery, Input, Resources
from freehold.services.compute.terms import KEPT_EPOCHS
from tests.services.compute.provider_world import NODE, STRANGER, FakeExecutor, World, lease_state, make_lease, until

Change = Callable[[World], dict[str, Any]]


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def changed(world: World, *, most: int = 100, until: int = 10, **changes: Any) -> dict[str, Any]:
    task = world.task("echo x", **changes)
    return world.body(world.order(task, most, until), task)


def resources(**changes: Any) -> Resources:
    return msgspec.structs.replace(Resources(memory=2**20, disk=2**20, seconds=10), **changes)


def other_signature(world: World) -> dict[str, Any]:
    task = world.task("echo x")
    return world.body(world.order(task, signer=STRANGER), task)


def unsigned(world: World) -> dict[str, Any]:
    task = world.task("echo x")
    return world.body(msgspec.structs.replace(world.order(task), client_signature=UNSIGNED), task)


def other_task(world: World) -> dict[str, Any]:
    return world.body(world.order(world.task("echo x")), world.task("echo y"))


def loose_task(world: World) -> dict[str, Any]:
    body = changed(world)
    return body | {"task": body["task"].replace('{"', '{ "', 1)}


def other_lease(world: World) -> dict[str, Any]:
    task = world.task("echo x")
    return world.body(world.order(task, lease=Hash(b"l" * 32)), task)


def other_blob(world: World) -> dict[str, Any]:
    return changed(world) | {"blobs": {sha256(b"a"): base64.b64encode(b"b").decode()}}


def needless_blob(world: World) -> dict[str, Any]:
    return changed(world) | {"blobs": {sha256(b"a"): base64.b64encode(b"a").decode()}}


def below(world: World) -> dict[str, Any]:
    blob = world.contents.add(b"x")
    return changed(world, inputs=(Input(path="a", blob=blob), Input(path="a/b", blob=blob)))


REFUSALS: list[tuple[str, Change, str, str]] = [
    ("no order", lambda w: {"task": "x"}, "malformed_message", "Order"),
    ("no task", lambda w: changed(w) | {"task": None}, "malformed_message", "task is text"),
    ("something else", lambda w: changed(w) | {"pay": 0}, "malformed_message", "'pay'"),
    ("a wait of a year", lambda w: changed(w) | {"wait": 10**7}, "malformed_message", "'wait'"),
    ("signed by another", other_signature, "wrong_signature", "not signed by"),
    ("not signed", unsigned, "wrong_signature", "not signed by"),
    ("for another lease", other_lease, "invalid_input", "another lease"),
    ("for another task", other_task, "invalid_input", "the order is for the task"),
    ("a task spelled otherwise", loose_task, "malformed_message", "canonical"),
    ("most of 0", lambda w: changed(w, most=0), "invalid_input", "from 1 to"),
    ("most beyond a measure", lambda w: changed(w, most=2**63), "invalid_input", "from 1 to"),
    ("the committed epoch", lambda w: changed(w, until=0), "invalid_input", "from 2 to 64"),
    ("the open epoch", lambda w: changed(w, until=1), "invalid_input", "from 2 to 64"),
    ("too far ahead", lambda w: changed(w, until=KEPT_EPOCHS + 1), "invalid_input", "from 2 to 64"),
    ("no such executor", lambda w: changed(w, executor="sandbox", kind="native", engine=""), "refused", "offers"),
    ("another engine", lambda w: changed(w, engine="fake-2"), "refused", "'fake-1' here"),
    ("no engine", lambda w: changed(w, engine=""), "refused", "'fake-1' here"),
    ("no runner", lambda w: changed(w, kind="python", engine="python:xyz"), "invalid_input", "by its SHA-256"),
    ("too many processors", lambda w: changed(w, resources=resources(processors=9)), "refused", "offers 4"),
    ("too much memory", lambda w: changed(w, resources=resources(memory=2**30 + 1)), "refused", "offers 1073741824"),
    ("too much disk", lambda w: changed(w, resources=resources(disk=2**40)), "refused", "disk"),
    (
        "files in memory that is not there",
        lambda w: changed(w, executor="sandbox", kind="native", engine="", resources=resources(memory=2**30)),
        "refused", "files, which are in memory",
    ),
    ("too long", lambda w: changed(w, resources=resources(seconds=601)), "refused", "offers 600"),
    ("a GPU", lambda w: changed(w, resources=resources(gpus=1)), "refused", "has 0"),
    ("a GPU's memory", lambda w: changed(w, resources=resources(gpu_memory=1)), "refused", "GPU memory"),
    ("a GPU's model", lambda w: changed(w, resources=resources(gpu_model="X")), "refused", "'X'"),
    ("the network", lambda w: changed(w, network=True), "refused", "does not grant"),
    ("the operator's rules", lambda w: changed(w, resources=resources(processors=4)), "refused", "does not take"),
    ("other bytes", other_blob, "invalid_input", "other bytes"),
    ("bytes that nobody needs", needless_blob, "invalid_input", "does not need"),
    ("no base64", lambda w: changed(w) | {"blobs": {"a": "%%"}}, "malformed_message", "base64"),
    *(
        (
            f"the image {name}",
            lambda w, name=name: changed(
                w, executor="container", kind="image", engine="", image=f"{name}@sha256:{'0' * 64}"
            ),
            "invalid_input", "by its digest",
        )
        for name in ("--help", "docker-archive:/etc/passwd")
    ),
    (
        "patterns without end",
        lambda w: changed(w, outputs=("**/" * 2000,)),
        "invalid_input", "letters",
    ),
    ("an input below another", below, "invalid_input", "below another"),
    (
        "storage without access",
        lambda w: changed(w, inputs=(Input(path="a", bucket="b", key="c"),)),
        "invalid_input", "brings no access",
    ),
    ("delivery without access", lambda w: changed(w, delivery=Delivery("b", "p/")), "invalid_input", "no access"),
    ("more than the lock", lambda w: changed(w, most=10**6 + 1), "insufficient_credits", "does not cover"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "code", "text"), [pytest.param(*row[1:], id=row[0]) for row in REFUSALS])
def test_each_refusal_says_why(tmp_path: Path, change: Change, code: str, text: str) -> None:
    settings = {"processors": 4, "memory": 2**30, "seconds": 600, "rules": "processors <= 3"}

    async def scenario() -> None:
        async with World(tmp_path, settings=settings) as world:
            with pytest.raises(FreeholdError) as error:
                await world.call("POST", "/orders", change(world))
            assert (error.value.code, text in error.value.message) == (code, True), error.value.message
            assert await world.provider.describe(world.id) == {"outstanding": "0"}
            assert (await world.call("GET", "/orders"))["jobs"] == []
            assert world.executor.runs == []
            assert world.provider.metrics()["waiting"] == 0
            assert (await world.submit(world.task("echo fine")))["phase"] == "finished"

    asyncio.run(scenario())


def test_one_blob_as_many_inputs_does_not_fill_the_disk(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path, settings={"disk": 2**20}) as world:
            blob = world.contents.add(b"x" * 2**16)
            inputs = tuple(Input(path=str(number), blob=blob) for number in range(17))
            task = world.task("echo x", inputs=inputs, resources=resources())
            answer = await world.submit(task)
            assert "more than the 1048576" in answer["reason"]
            assert answer["receipt"] is None
            assert world.executor.runs == []

    asyncio.run(scenario())


ACCESS: list[tuple[str, Any, str]] = [
    ("no object", "x", "access"),
    ("no url", {"read": {}}, "access"),
    ("a file", {"url": "file:///etc/passwd", "read": {"b/c": "t"}, "write": "t"}, "http or https"),
    ("somebody's password", {"url": "http://me:pw@host", "read": {"b/c": "t"}, "write": "t"}, "http or https"),
    ("a query", {"url": "http://host/?x=", "read": {"b/c": "t"}, "write": "t"}, "http or https"),
    ("an empty query", {"url": "http://storage/x?", "read": {"b/c": "t"}, "write": "t"}, "http or https"),
    ("an empty fragment", {"url": "http://storage/x#", "read": {"b/c": "t"}, "write": "t"}, "http or https"),
    ("a path", {"url": "http://storage/latest", "read": {"b/c": "t"}, "write": "t"}, "http or https"),
    ("the folder above as token", {"url": "http://storage", "read": {"b/c": ".."}, "write": "t"}, "no token"),
    ("another host", {"url": "http://169.254.169.254", "read": {"b/c": "t"}, "write": "t"}, "no public address"),
    ("a port that is none", {"url": "http://storage:x", "read": {"b/c": "t"}, "write": "t"}, "no URL"),
    ("no token for an input", {"url": "http://storage:80", "read": {}, "write": "t"}, "no token for the input"),
    ("no token for the delivery", {"url": "http://storage:80", "read": {"b/c": "t"}}, "no token for its delivery"),
    ("a path as token", {"url": "http://storage:80", "read": {"b/c": "../x"}, "write": "t"}, "no token"),
    ("unknown fields", {"url": "http://storage:80", "read": {"b/c": "t"}, "write": "t", "x": 1}, "access"),
]


@pytest.mark.parametrize(("access", "text"), [pytest.param(*row[1:], id=row[0]) for row in ACCESS])
def test_an_access_is_held_against_the_task(tmp_path: Path, access: Any, text: str) -> None:
    async def scenario() -> None:
        async with World(tmp_path, settings={"access_hosts": r"storage(:\d+)?"}) as world:
            task = world.task(
                "read a", inputs=(Input(path="a", bucket="b", key="c"),), delivery=Delivery("out", "jobs/")
            )
            with pytest.raises((InvalidInput, Refused)) as error:
                await world.submit(task, access=access)
            assert text in error.value.message

    asyncio.run(scenario())


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.1:80", "[::1]", "169.254.169.254"])
def test_no_gateway_within_a_network_is_asked_that_its_operator_has_not_named(tmp_path: Path, host: str) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            task = world.task("read a", inputs=(Input(path="a", bucket="b", key="c"),))
            with pytest.raises(Refused, match="no public address"):
                await world.submit(task, access={"url": f"http://{host}", "read": {"b/c": "t"}})

    asyncio.run(scenario())


def test_unknown_blobs_are_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            task = world.task("echo x", stdin=Blob(sha256(b"never pushed"), 12))
            order = world.order(task)
            with pytest.raises(Refused) as error:
                await world.submit(task, order=order)
            assert error.value.code == "conflict"
            assert error.value.details == {"missing": [sha256(b"never pushed")]}
            assert await world.provider.describe(world.id) == {"outstanding": "0"}
            assert await world.put(b"never pushed") == 201
            assert (await world.submit(task, order=order))["phase"] == "finished"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"mode": VOUCHER}, "refused"),
        ({"service": "storage"}, "refused"),
        ({"deadline": 1_900_000_000}, "deadline_expired"),
        ({"number": 2}, "insufficient_credits"),  # one that nothing covers
    ],
)
def test_only_covered_streams_that_go_on_are_worked_under(tmp_path: Path, changes: dict[str, Any], code: str) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            world.lease = make_lease(NODE, **changes)
            world.id = world.lease.struct_hash()
            await world.book.sign(world.lease, world.now)
            if "number" not in changes:
                await world.cover(1000)
            with pytest.raises(FreeholdError) as error:
                await world.submit(world.task("echo x"))
            assert error.value.code == code

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("state", "code"), [({"closed": 1}, "refused"), ({"lapsed": 1}, "insufficient_credits"), ({}, None)]
)
def test_a_lease_that_ended_takes_nothing_more(tmp_path: Path, state: dict[str, int], code: str | None) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            row = lease_state(world.lease, **state)
            await world.book.commit(1, {row.lease: row}, ())
            if code is None:
                assert (await world.submit(world.task("echo x")))["phase"] == "finished"
                return
            with pytest.raises(FreeholdError) as error:
                await world.submit(world.task("echo x"))
            assert error.value.code == code

    asyncio.run(scenario())


def test_a_lease_by_voucher_is_not_signed_and_a_bid_binds(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            with pytest.raises(Refused):
                world.provider.agreed_price(make_lease(NODE, mode=VOUCHER))
            assert world.provider.agreed_price(make_lease(NODE, price=5)) is None
            await world.submit(world.task("echo x"))
            assert world.provider.agreed_price(make_lease(NODE, number=7)) == world.lease.price
            await world.restart()
            assert world.provider.agreed_price(make_lease(NODE, number=7)) == world.lease.price
            assert world.provider.agreed_price(make_lease(NODE, number=7, client=STRANGER.address)) is None

    asyncio.run(scenario())


@pytest.mark.parametrize("what", ["another's order", "a stranger", "no signature", "a blob's name", "other bytes"])
def test_nobody_else_is_answered(tmp_path: Path, what: str) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            job = (await world.submit(world.task("echo x")))["job"]
            other = make_lease(NODE, client=STRANGER.address)
            await world.book.sign(other, world.now)
            base = f"/v1/compute/{other.struct_hash()}"
            asked = {
                "another's order": lambda: world.call("DELETE", f"/orders/{job}", signer=STRANGER, base=base),
                "a stranger": lambda: world.call("GET", f"/orders/{job}", signer=STRANGER),
                "no signature": lambda: world.bare("GET", f"/v1/compute/{world.id}/orders/{job}"),
                "a blob's name": lambda: world.put(b"x", name="../../etc/passwd"),
                "other bytes": lambda: world.put(b"x", name=sha256(b"y")),
            }
            with pytest.raises(FreeholdError) as error:
                await asked[what]()
            codes = {"another's order": "not_found", "a blob's name": "malformed_message", "other bytes": "corrupt"}
            assert error.value.code == codes.get(what, "wrong_signature")

    asyncio.run(scenario())


def test_an_executor_that_does_not_work_is_not_offered(tmp_path: Path) -> None:
    async def scenario() -> None:
        executor = FakeExecutor()
        executor.works = False
        async with World(tmp_path, executors=[executor]) as world:
            with pytest.raises(Refused) as error:
                await world.submit(world.task("echo x"))
            assert "it was switched off" in error.value.message
            shown = await world.call("GET", "/properties", base="/v1/compute")
            assert shown["properties"]["executor.wasm"] is False
            assert shown["reasons"] == {"wasm": "it was switched off"}

    asyncio.run(scenario())


def test_a_task_waits_for_the_probe_of_its_executor(tmp_path: Path) -> None:
    class Slow(FakeExecutor):
        async def probe(self) -> Any:
            await self.gate("probe").wait()
            return await super().probe()

    async def scenario() -> None:
        executor = Slow()
        async with World(tmp_path, executors=[executor]) as world:
            sent = asyncio.create_task(world.submit(world.task("echo x")))
            await until(lambda: "probe" in executor.gates)
            assert executor.runs == []
            executor.gate("probe").set()
            assert (await sent)["phase"] == "finished"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"executors": ["magic"]}, "'magic'"),
        ({"executors": "wasm"}, "settings of compute"),
        ({"slots": -1}, "'slots'"),
        ({"slots": "2"}, "settings of compute"),
        ({"queue": 0}, "'queue'"),
        ({"colour": 1}, "colour"),
        ({"access_hosts": "("}, "regular expression"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidInput) as error:
        read_settings(settings, 1)
    assert text in error.value.message


def test_settings_have_sensible_defaults() -> None:
    found = read_settings({}, 12345)
    assert found.slots >= 2
    assert found.memory > 2**20
    assert (found.disk, found.network, found.container_pull) == (12345, False, False)
    assert set(found.executors) == {"wasm", "sandbox", "container", "service"}


def test_an_order_does_not_wait_for_ever_for_a_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(FakeExecutor):
        async def probe(self) -> Any:
            await self.gate("probe").wait()

    monkeypatch.setattr(orders_desk, "PROBE_PATIENCE", 0.01)

    async def scenario() -> None:
        async with World(tmp_path, executors=[Stuck()]) as world:
            with pytest.raises(Unavailable) as error:
                await world.submit(world.task("echo x"))
            assert "is being probed" in error.value.message
            assert error.value.details["retry_after"] == 5

    asyncio.run(scenario())
