"""Two gateways and the command line on one account: each sees at once what the others did, whatever ends meanwhile.

FREEHOLD_SOAK=1 runs the history of calls for minutes, with new seeds (`make soak`); a history prints its seed.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import secrets
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.client.object_history import ANY, CONFLICT, OK, UNKNOWN, History
from tests.conftest import SLOW
from tests.end_to_end.files import MIB, hash_of
from tests.end_to_end.gateways import (
    S3,
    Gateway,
    Keys,
    NoAnswer,
    NotSent,
    client_wallet,
    in_thread,
    md5_base64,
    md5_hex,
    read_entries,
    running_gateway,
    s3_session,
)
from tests.end_to_end.network import RunningNetwork, wait_for

pytestmark = pytest.mark.timeout(200)

WRITERS = 3  # at each gateway
LARGE = 48 * 2**10  # bytes: stored in segments, where what is small goes into the commit
PAUSE = 0.05  # seconds between a writer's calls, at most
CALL_SECONDS = 30 * SLOW


@pytest.fixture(scope="module")
def second(network: RunningNetwork, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway of the network's own client beside the one that `freehold up` has started."""
    wait_for(lambda: network.reported() >= 2, "reports count the client's credits")
    with running_gateway(network, tmp_path_factory.mktemp("second"), *client_wallet(network)) as gateway:
        yield gateway


def keys_of(network: RunningNetwork) -> tuple[str, Keys]:
    s3 = network.info["s3"]
    return s3["endpoint"], Keys(s3["access_key"], s3["secret"], s3["region"])


def test_command_line_and_both_gateways_see_each_others_changes_at_once(
    network: RunningNetwork, second: Gateway, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with s3_session() as session:
            one, two = S3(session, *keys_of(network)), S3(session, second.url, second.keys)
            await one.must("PUT", "seen")
            assert await two.list("seen") == {}
            for number, size in enumerate((1_000, MIB)):
                file, data = tmp_path / f"{number}", secrets.token_bytes(size)
                file.write_bytes(data)
                await in_thread(network.ask, "cp", str(file), f"fh://seen/{number}", "--yes")
                for gateway in (one, two):
                    assert f"{number}" in await gateway.list("seen")
                    assert (await gateway.must("GET", f"seen/{number}")).body == data
                # Replaced at one gateway: the other, and a command, have the new one.
                data = secrets.token_bytes(size // 2)
                await two.must("PUT", f"seen/{number}", body=data)
                assert (await one.list("seen"))[f"{number}"] == md5_hex(data)
                assert (await one.must("GET", f"seen/{number}")).body == data
                await in_thread(network.ask, "cp", f"fh://seen/{number}", f"{file}.back", "--yes")
                assert hash_of(tmp_path / f"{number}.back") == hashlib.sha256(data).hexdigest()
            await one.must("DELETE", "seen/0")
            listed = await in_thread(network.ask, "ls", "fh://seen")
            assert [row["path"] for row in listed["objects"]] == ["fh://seen/1"]
            await in_thread(network.ask, "rm", "fh://seen/1", "--yes")
            assert await two.list("seen") == {}
            assert (await two.ask("GET", "seen/1")).code == "NoSuchKey"
            await in_thread(network.ask, "rb", "fh://seen")
            assert (await two.ask("GET", "seen/1")).code == "NoSuchBucket"

    asyncio.run(scenario())


def test_bodies_that_end_early_or_lie_leave_nothing_and_two_at_once_leave_one(
    network: RunningNetwork, second: Gateway
) -> None:
    async def half(data: bytes) -> AsyncIterator[bytes]:
        yield data
        raise ConnectionAbortedError("the client goes away")

    async def scenario() -> None:
        async with s3_session() as session:
            one, two = S3(session, *keys_of(network)), S3(session, second.url, second.keys)
            await one.must("PUT", "bodies")
            for size in (10_000, 24 * MIB):
                data = secrets.token_bytes(size)
                with pytest.raises(NoAnswer):
                    await one.ask("PUT", "bodies/cut", {}, half(data[: size // 2]), {"content-length": str(size)})
                wrong = {"content-md5": md5_base64(data[1:])}
                assert (await one.ask("PUT", "bodies/wrong", {}, data, wrong)).code == "BadDigest"
                crc = {"x-amz-checksum-crc32": "AAAAAA=="}
                assert (await one.ask("PUT", "bodies/wrong", {}, data, crc)).code == "BadDigest"
                assert await two.list("bodies") == {}
            both = [secrets.token_bytes(16 * MIB) for _ in range(2)]
            await asyncio.gather(
                *(s3.must("PUT", "bodies/both", {}, d) for s3, d in zip((one, two), both, strict=True))
            )
            found = [(await s3.must("GET", "bodies/both")).body for s3 in (one, two)]
            assert found[0] == found[1]
            assert found[0] in both
            assert await two.list("bodies") == {"both": md5_hex(found[0])}

    asyncio.run(scenario())


class Writer:
    """Puts, gets, deletes and lists at one gateway as a seed has it, and writes down what it was told."""

    def __init__(self, s3: S3, bucket: str, history: History, draw: random.Random, name: str) -> None:
        self._s3, self._bucket, self._history, self._draw, self._name = s3, bucket, history, draw, name
        self._keys = tuple(history.calls)
        self._last: dict[str, str | None] = {}  # what this writer last saw of a key
        self._number = 0

    async def run(self, until: asyncio.Event) -> None:
        while not until.is_set():
            try:
                await self._call()
            except NotSent:
                await asyncio.sleep(PAUSE)
            await asyncio.sleep(self._draw.uniform(0, PAUSE))

    async def _call(self) -> None:
        key = self._draw.choice(self._keys)
        match self._draw.choice(("put", "put", "create", "replace", "replace", "delete", "get", "get", "get", "list")):
            case "put":
                await self._change(key, ANY, {}, delete=False)
            case "create":
                await self._change(key, None, {"if-none-match": "*"}, delete=False)
            case "replace":
                expected = self._last.get(key) or md5_hex(b"never put")
                await self._change(key, expected, {"if-match": f'"{expected}"'}, delete=False)
            case "delete":
                await self._change(key, ANY, {}, delete=True)
            case "get":
                await self._get(key)
            case "list":
                await self._list()

    async def _change(self, key: str, expected: str | None, headers: dict[str, str], *, delete: bool) -> None:
        self._number += 1
        data = f"{self._name}-{self._number}".encode()
        if self._draw.random() < 0.15:
            data = data.ljust(LARGE)
        value = None if delete else md5_hex(data)
        start = time.monotonic()
        try:
            method, body = ("DELETE", b"") if delete else ("PUT", data)
            answer = await self._s3.ask(method, f"{self._bucket}/{key}", {}, body, headers)
        except NoAnswer:
            outcome = UNKNOWN
        else:
            if answer.status >= 500 or answer.status == 409:
                outcome = UNKNOWN
            elif headers and answer.code in ("PreconditionFailed", "NoSuchKey"):
                outcome = CONFLICT
            else:
                assert answer.status in (200, 204), answer
                outcome, self._last[key] = OK, value
                assert delete or answer.etag == value
        self._history.change(key, start, time.monotonic(), outcome, expected, value)

    async def _get(self, key: str) -> None:
        start = time.monotonic()
        try:
            answer = await self._s3.ask("GET", f"{self._bucket}/{key}")
        except NoAnswer:
            self._history.counts["unanswered"] += 1
            return
        if answer.status >= 500:
            self._history.counts["failed get"] += 1
            return
        assert answer.status == 200 or answer.code == "NoSuchKey", answer
        value = answer.etag if answer.status == 200 else None
        assert value is None or md5_hex(answer.body) == value
        self._last[key] = value
        self._history.read(key, start, time.monotonic(), value)

    async def _list(self) -> None:
        start = time.monotonic()
        try:
            answer = await self._s3.ask("GET", self._bucket, {"list-type": "2"})
        except NoAnswer:
            self._history.counts["unanswered"] += 1
            return
        if answer.status >= 500:
            self._history.counts["failed list"] += 1
            return
        assert answer.status == 200, answer
        shown = read_entries(ElementTree.fromstring(answer.body))
        self._history.list(start, time.monotonic(), shown)


def drill(network: RunningNetwork, second: Gateway, draw: random.Random, rounds: int) -> None:
    """Kill and stop what the writers depend on, one after the other, and bring it back."""
    pause = threading.Event()
    nodes = [f"operator-{i + 1}" for i in range(8)]
    for _ in range(rounds):
        pause.wait(1)
        stopped = draw.sample(nodes, 3)
        for name in stopped:
            network.signal(name, signal.SIGSTOP)
        pause.wait(2)
        for name in stopped:
            network.signal(name, signal.SIGCONT)
        second.kill()
        pause.wait(0.5)
        second.start()
        killed = [*draw.sample(nodes, 2), f"member-{draw.randrange(4) + 1}"]
        for name in killed:
            network.kill(name)
        pause.wait(2)
        second.kill()
        second.start()
        for name in killed:
            network.restart(name)
        pause.wait(1)


def record(network: RunningNetwork, second: Gateway, seed: int, rounds: int, keys: Sequence[str]) -> History:
    """What writers at both gateways saw of one bucket during a drill, and what both have when all is well again."""
    draw, history, bucket = random.Random(seed), History(keys), f"history-{seed}"

    async def scenario() -> None:
        async with s3_session(CALL_SECONDS) as session:
            ends = [S3(session, *keys_of(network)), S3(session, second.url, second.keys)]
            await ends[0].must("PUT", bucket)
            until = asyncio.Event()
            writers = [
                Writer(end, bucket, history, random.Random(draw.random()), f"{at}.{number}")
                for at, end in enumerate(ends)
                for number in range(WRITERS)
            ]
            async with asyncio.TaskGroup() as group:
                for writer in writers:
                    group.create_task(writer.run(until))
                await in_thread(drill, network, second, draw, rounds)
                until.set()
            for end in ends:
                start = time.monotonic()
                shown = await end.list(bucket)
                history.list(start, time.monotonic(), shown)
                for key in keys:
                    start = time.monotonic()
                    answer = await end.ask("GET", f"{bucket}/{key}")
                    assert answer.status == 200 or answer.code == "NoSuchKey", answer
                    value = md5_hex(answer.body) if answer.status == 200 else None
                    history.read(key, start, time.monotonic(), value)

    asyncio.run(scenario())
    return history


def judge(history: History, seed: int) -> None:
    """Everything seen has one order of events; and enough was seen for that to mean something."""
    print(f"seed {seed}: {dict(sorted(history.counts.items()))}")
    assert not (wrong := history.impossible()), f"seed {seed}: no order of events explains {wrong}"
    for what in ("read", "list", OK, f"conditional {OK}", f"conditional {CONFLICT}"):
        assert history.counts[what] >= 10, history.counts


def test_what_writers_at_two_gateways_see_while_things_end_is_one_order_of_events(
    network: RunningNetwork, second: Gateway
) -> None:
    seed = 4
    judge(record(network, second, seed, 1, ("a", "b/1", "b/2", "c")), seed)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_histories_of_many_seeds(network: RunningNetwork, second: Gateway) -> None:
    for _ in range(10):
        seed = random.SystemRandom().randrange(2**32)
        print(f"seed {seed}")
        judge(record(network, second, seed, 5, ("a", "b/1", "b/2", "c")), seed)
