"""What is lost without loss: a gateway in the middle of its work, a machine with all that was on it, nodes, room.

An account of its own, which two devices know: one with a gateway over its home, one that comes later with nothing but
the twelve words. In order.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any

import pytest

from freehold.client.account import Account
from freehold.client.node_heads import NodeHeads
from freehold.client.sdk import Freehold
from freehold.market.network import Network
from tests.end_to_end.devices import PASSPHRASE, Device
from tests.end_to_end.files import MIB, hash_of, make_file
from tests.end_to_end.gateways import (
    S3,
    Gateway,
    NoAnswer,
    NotSent,
    in_thread,
    md5_hex,
    running_gateway,
    s3_session,
)
from tests.end_to_end.network import RunningNetwork, wait_for

pytestmark = pytest.mark.timeout(200)

SMALL = 16 * 2**10  # bytes, the most that go into the commit: 64 of them make a flush
REPLACE_SECONDS = 1.0
VERSIONED = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
TAGGED = b"<Tagging><TagSet><Tag><Key>team</Key><Value>blue</Value></Tag></TagSet></Tagging>"
CORS = (
    b"<CORSConfiguration><CORSRule><AllowedOrigin>https://example.org</AllowedOrigin>"
    b"<AllowedMethod>GET</AllowedMethod></CORSRule></CORSConfiguration>"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("devices")


@pytest.fixture(scope="module")
def one(network: RunningNetwork, folder: Path) -> Device:
    device = Device(network, folder, "one")
    device.take_credits()
    network.wait_epochs(2)  # reports count the credits
    return device


@pytest.fixture(scope="module")
def two(network: RunningNetwork, folder: Path, one: Device) -> Device:
    return Device(network, folder, "two", one.words)


@pytest.fixture(scope="module")
def gateway(network: RunningNetwork, one: Device) -> Iterator[Gateway]:
    with running_gateway(network, one.home, one.wallet, PASSPHRASE) as started:
        yield started


def over(work: Callable[[S3], Awaitable[None]], gateway: Gateway) -> None:
    """Requests to a gateway."""

    async def scenario() -> None:
        async with s3_session() as session:
            await work(S3(session, gateway.url, gateway.keys))

    asyncio.run(scenario())


async def kill_while(request: Awaitable[Any], gateway: Gateway, is_time: Callable[[], bool], what: str) -> None:
    """Kill the gateway in the middle of a request, which then has no answer, and start it again."""
    task = asyncio.ensure_future(request)
    await in_thread(wait_for, lambda: is_time() or task.done(), what)
    assert not task.done(), task
    await in_thread(gateway.kill)
    with pytest.raises((NoAnswer, NotSent)):
        await task
    await in_thread(gateway.start)


def test_a_gateway_killed_in_a_put_a_part_or_its_completion_leaves_nothing_half(
    network: RunningNetwork, gateway: Gateway
) -> None:
    async def work(s3: S3) -> None:
        await s3.must("PUT", "kills")
        stored = network.stored_bytes()
        large = secrets.token_bytes(64 * MIB)
        await kill_while(
            s3.ask("PUT", "kills/large", {}, large), gateway,
            lambda: network.stored_bytes() > stored + 24 * MIB, "the put runs",
        )  # fmt: skip
        assert await s3.list("kills") == {}
        assert (await s3.ask("GET", "kills/large")).code == "NoSuchKey"

        parts = {1: secrets.token_bytes(6 * MIB), 2: large[: 24 * MIB]}
        upload = await s3.upload("kills/parts")
        etags = {}
        query = {"uploadId": upload, "partNumber": "1"}
        etags[1] = (await s3.must("PUT", "kills/parts", query, parts[1])).etag
        stored = network.stored_bytes()
        query = {"uploadId": upload, "partNumber": "2"}
        await kill_while(
            s3.ask("PUT", "kills/parts", query, parts[2]), gateway,
            lambda: network.stored_bytes() > stored + 8 * MIB, "the part runs",
        )  # fmt: skip
        assert (await s3.must("GET", "kills/parts", {"uploadId": upload})).body.count(b"<PartNumber>") == 1
        etags[2] = (await s3.must("PUT", "kills/parts", query, parts[2])).etag
        request = asyncio.ensure_future(s3.complete("kills/parts", upload, etags))
        await asyncio.sleep(0.02)  # it may be done, under way, or not have begun
        await in_thread(gateway.kill)
        await asyncio.gather(request, return_exceptions=True)
        await in_thread(gateway.start)
        if "parts" not in await s3.list("kills"):
            await s3.complete("kills/parts", upload, etags)
        assert (await s3.must("GET", "kills/parts")).body == parts[1] + parts[2]
        assert list(await s3.list("kills")) == ["parts"]

    over(work, gateway)


def kill_among_writers(
    gateway: Gateway, bucket: str, turns: int, sizes: Sequence[int], moment: Callable[[], Callable[[], bool]]
) -> None:
    """Kill the gateway at moments of many puts: what was acknowledged is there, and nothing that was not sent."""

    async def work(s3: S3) -> None:
        acknowledged: dict[str, str] = {}
        sent: dict[str, str] = {}

        async def put(name: str) -> None:
            for number in itertools.count():
                key, data = f"{name}/{number:04}", secrets.token_bytes(sizes[number % len(sizes)])
                sent[key] = md5_hex(data)
                await s3.must("PUT", f"{bucket}/{key}", {}, data)
                acknowledged[key] = sent[key]

        await s3.must("PUT", bucket)
        for turn in range(turns):
            is_time, before = moment(), len(acknowledged)
            writers = [asyncio.ensure_future(put(f"{turn}.{writer}")) for writer in range(8)]
            is_due = functools.partial(is_enough, acknowledged, before + len(writers), is_time, writers)
            await in_thread(wait_for, is_due, "it is time for a kill")
            await in_thread(gateway.kill)
            ends = await asyncio.gather(*writers, return_exceptions=True)
            assert all(isinstance(end, NoAnswer | NotSent) for end in ends), ends
            await in_thread(gateway.start)
            shown = await s3.list(bucket)
            assert acknowledged.items() <= shown.items()
            assert shown.items() <= sent.items()
            for key in random_few(shown):
                assert md5_hex((await s3.must("GET", f"{bucket}/{key}")).body) == shown[key]

    over(work, gateway)


def is_enough(
    acknowledged: Sized, count: int, is_time: Callable[[], bool], writers: Sequence[asyncio.Future[None]]
) -> bool:
    return (len(acknowledged) >= count and is_time()) or any(writer.done() for writer in writers)


def packing(network: RunningNetwork) -> Callable[[], bool]:
    """Whether a pack is being written, from now on: small objects take no room at nodes but in packs and heads."""
    stored = network.stored_bytes()
    return lambda: network.stored_bytes() > stored + 16 * SMALL


def test_a_gateway_killed_while_it_packs_small_objects_loses_none(network: RunningNetwork, gateway: Gateway) -> None:
    kill_among_writers(gateway, "packs", 2, (SMALL,), lambda: packing(network))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_gateway_killed_at_any_moment_loses_none(network: RunningNetwork, gateway: Gateway) -> None:
    draw = random.Random(seed := random.SystemRandom().randrange(2**32))
    print(f"seed {seed}")

    def moment() -> Callable[[], bool]:
        due = time.monotonic() + draw.uniform(0.5, 5)
        return lambda: time.monotonic() > due

    kill_among_writers(gateway, "moments", 60, (100, SMALL, 60_000, 5, 2 * MIB), moment)


def random_few(keys: dict[str, str]) -> list[str]:
    return sorted(keys, key=keys.__getitem__)[:40]  # ETags are as good as random


def test_what_killed_gateways_left_at_nodes_is_swept(gateway: Gateway, one: Device, two: Device) -> None:
    gateway.stop()
    one.ask("bucket", "sweep")
    # The other device compares all that nodes have listed with all that is named.
    assert wait_for(lambda: two.ask("bucket", "sweep", "--lost", "1s"), "the lists are compared")["found"] == 0
    gateway.start()


def test_twelve_words_bring_back_everything_with_three_nodes_gone(
    network: RunningNetwork, gateway: Gateway, one: Device, folder: Path
) -> None:
    made: dict[str, Any] = {}

    async def fill(s3: S3) -> None:
        await s3.must("PUT", "kept")
        await s3.must("PUT", "kept", {"versioning": ""}, VERSIONED)
        await s3.must("PUT", "kept", {"tagging": ""}, TAGGED)
        await s3.must("PUT", "kept", {"cors": ""}, CORS)
        made["old"], made["new"] = secrets.token_bytes(2_000), secrets.token_bytes(3 * MIB)
        old = await s3.must("PUT", "kept/doc/a", {}, made["old"], {"x-amz-meta-of": "one", "x-amz-tagging": "n=1"})
        made["version"] = old.headers["x-amz-version-id"]
        await s3.must("PUT", "kept/doc/a", {}, made["new"])
        made["unicode"] = secrets.token_bytes(70_000)
        await s3.must("PUT", "kept/%C3%A9t%C3%A9%20%E2%98%95", {}, made["unicode"])
        lost = await s3.must("PUT", "kept/lost", {}, secrets.token_bytes(9 * MIB))
        made["lost"] = lost.headers["x-amz-version-id"]

    async def leave(s3: S3) -> None:
        # Nothing names its shards any more, and only this machine knows that they are to come off the lists.
        await s3.must("DELETE", "kept/lost", {"versionId": made["lost"]})

    over(fill, gateway)
    digest = make_file(folder / "by-command.bin", 8 * MIB)
    one.ask("cp", str(folder / "by-command.bin"), "fh://kept/by/command.bin", "--yes")
    key = one.ask("key", "new", "--label", "phone", "--bucket", "kept")
    link = one.ask("share", "new", "fh://kept/by/command.bin", "--label", "for you")
    shares, keys = one.ask("share", "list"), one.ask("key", "list")
    over(leave, gateway)
    listed = one.ask("ls", "fh://kept")["objects"]
    gateway.kill()
    one.home.rename(one.home.with_name("burnt"))

    killed = [f"operator-{number}" for number in (2, 5, 7)]
    for name in killed:
        network.kill(name)
    new = Device(network, folder, "new", one.words)
    assert new.ask("ls", "fh://kept")["objects"] == listed
    assert new.ask("share", "list") == shares
    assert new.ask("key", "list") == keys
    new.ask("cp", "fh://kept/by/command.bin", str(folder / "back.bin"), "--yes")
    assert hash_of(folder / "back.bin") == digest
    with running_gateway(network, new.home, new.wallet, PASSPHRASE) as other:

        async def look(s3: S3) -> None:
            assert (await s3.must("GET", "kept/doc/a")).body == made["new"]
            old = await s3.must("GET", "kept/doc/a", {"versionId": made["version"]})
            assert (old.body, old.headers["x-amz-meta-of"]) == (made["old"], "one")
            assert (await s3.must("GET", "kept/%C3%A9t%C3%A9%20%E2%98%95")).body == made["unicode"]
            assert b"Enabled" in (await s3.must("GET", "kept", {"versioning": ""})).body
            assert b"blue" in (await s3.must("GET", "kept", {"tagging": ""})).body
            assert b"example.org" in (await s3.must("GET", "kept", {"cors": ""})).body
            for bucket in ("kills", "packs"):
                shown = await s3.list(bucket)
                for name in random_few(shown):
                    body = (await s3.must("GET", f"{bucket}/{name}")).body
                    assert "-" in shown[name] or md5_hex(body) == shown[name]
            async with s3_session() as session:
                path = link["token"]
                async with session.get(f"{other.url}/-/share/{path}") as response:
                    assert response.status == 200, await response.text()
                narrow = S3(session, other.url, other.keys._replace(access_key=key["id"], secret=key["secret"]))
                assert (await narrow.must("GET", "kept/doc/a")).body == made["new"]
                assert (await narrow.ask("GET", "packs")).code == "AccessDenied"
                # Small objects go on being stored: a majority of the heads' nodes is there.
                await s3.must("PUT", "kept/meanwhile", {}, b"small")

        over(look, other)
    for name in killed:
        network.restart(name)
    found = new.ask("bucket", "sweep", "--lost", "1s")["found"]
    assert found >= 6, "what the burnt machine was to take off the lists"
    assert new.ask("bucket", "sweep", "--lost", "1s")["found"] == 0
    new.home.rename(one.home)  # it takes the first one's place


def with_little_room(config: dict[str, Any]) -> dict[str, Any]:
    """A node's configuration with less disk than it uses already, in even parts for its services."""
    services = {name: {k: v for k, v in own.items() if k != "allowance"} for name, own in config["services"].items()}
    return config | {"allowance": 2**20, "services": services}


def test_nodes_that_are_full_are_said_to_be_and_lose_nothing(network: RunningNetwork, gateway: Gateway) -> None:
    full = [f"operator-{number}" for number in (1, 4, 6)]
    configs = {name: network.local / "processes" / name / "config.json" for name in full}
    before = {name: path.read_text() for name, path in configs.items()}
    data = secrets.token_bytes(MIB)
    for name, path in configs.items():
        network.kill(name)
        path.write_text(json.dumps(with_little_room(json.loads(before[name]))))
        network.restart(name)
    if not gateway.is_running():
        gateway.start()

    async def work(s3: S3) -> None:
        shown = await s3.list("kept")
        answer = await s3.ask("PUT", "kept/full", {}, data)
        assert (answer.status, answer.code) == (503, "ServiceUnavailable"), answer
        assert b"operator" in answer.body
        assert await s3.list("kept") == shown
        for key in ("kills/parts", "kept/doc/a"):
            await s3.must("GET", key)

    over(work, gateway)
    for name, path in configs.items():
        network.kill(name)
        path.write_text(before[name])
        network.restart(name)

    async def again(s3: S3) -> None:
        await s3.must("PUT", "kept/full", {}, data)
        assert (await s3.must("GET", "kept/full")).body == data

    over(again, gateway)


def test_heads_move_from_a_node_that_is_gone_for_good(network: RunningNetwork, gateway: Gateway, one: Device) -> None:
    nodes = {row["node"]: row["name"] for row in network.ask("operator", "list")["operators"]}

    async def work(s3: S3) -> None:
        file = Network.load(network.local / "network.json")
        stopping, done = asyncio.Event(), 0

        async def use() -> None:
            nonlocal done
            while not stopping.is_set():
                data = secrets.token_bytes(1_000)
                await s3.must("PUT", "kept/moving", {}, data)
                assert (await s3.must("GET", "kept/moving")).body == data
                done += 1

        async with Freehold(file, Account.of_words(one.words), home=one.home.with_name("keeper")) as client:
            heads = client.heads
            assert isinstance(heads, NodeHeads)
            heads._replace_seconds = REPLACE_SECONDS
            before = await holders(client)
            assert len(before) == 7
            user = asyncio.ensure_future(use())
            lost = nodes[before[0]]
            await in_thread(network.kill, lost)
            try:
                async with asyncio.timeout(60):
                    while before[0] in (after := await holders(client)):
                        await heads.maintain()
                        await asyncio.sleep(REPLACE_SECONDS / 4)
                        assert not user.done(), user
                at = done
                while done < at + 5:
                    await asyncio.sleep(0.05)
                    assert not user.done(), user
            finally:
                stopping.set()
                await asyncio.wait([user])
            await user
            assert len(after) == 7
            assert set(after) - set(before) == {node for node in nodes if node not in before}
            # Three more may go: four of the seven that hold the heads now are left, and three of those of before.
            for node in [node for node in after if node in before][:3]:
                await in_thread(network.kill, nodes[node])
            await s3.must("PUT", "kept/moved", {}, b"still")
            assert (await s3.must("GET", "kept/moved")).body == b"still"

    over(work, gateway)


async def holders(client: Freehold) -> list[str]:
    """The nodes that hold the account's heads."""
    assert isinstance(client.heads, NodeHeads)
    await client.objects.root.read()
    opened = await client.heads._find()
    assert opened is not None
    return [str(acceptor.node) for acceptor in opened.acceptors]
