"""A real anvil behind ends that fail and lie: what is followed is the chain, each block once, in order, or nothing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from freehold.chain import agreement, endpoint
from freehold.chain.errors import BadAnswer, ChainError, DeepReorg, Disagreement, WrongChain
from freehold.chain.follower import Batch, Follower
from freehold.chain.rpc import Rpc
from freehold.chain.transactor import Sender
from freehold.local.chain import LocalChain
from tests.chain.counter import Counter
from tests.chain.faulty import FAULTS, PLAUSIBLE, SELF_EVIDENT, FaultyEnd, change, faulty_end, hang, status
from tests.conftest import SLOW
from tests.local.chains import DEADLINE, key, local_chain, until

TIMEOUT = 0.25 * SLOW


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "GRACE", 0.2 * SLOW)
    monkeypatch.setattr(endpoint, "FIRST_REST", 0.01)
    monkeypatch.setattr(endpoint, "LONGEST_REST", 0.05)


class World:
    """A chain mined by the test, a counter on it, and ends of it; `events` are what stands in it now."""

    def __init__(self, chain: LocalChain, rpc: Rpc, counter: Counter, ends: list[FaultyEnd]) -> None:
        self.chain, self.rpc, self.counter, self.ends = chain, rpc, counter, ends
        self.next = 0

    async def mine(self, events: int = 1) -> None:
        sender = Sender(self.rpc, key(0), poll=0.01)  # without memory of what a reorganisation undid
        for _ in range(events):
            await sender.send(self.counter.count(self.next), gas=60_000)
            self.next += 1
        await self.chain.mine()

    async def read(self, depth: int) -> list[Batch]:
        """The final chain, straight from the chain."""
        last = await self.rpc.block_number() - depth
        return await collect(Follower(self.rpc, [self.counter], finality_depth=depth, interval=0.01), last)

    def client(self, *ends: FaultyEnd) -> Rpc:
        urls = " ".join(end.url for end in ends)
        return Rpc(urls, chain_id=31337, timeout=TIMEOUT, attempts=2, pause=0.001)


@asynccontextmanager
async def world(directory: Path, ends: int) -> AsyncIterator[World]:
    chain = local_chain(directory)
    await chain.start()
    try:
        async with AsyncExitStack() as stack:
            rpc = await stack.enter_async_context(Rpc(chain.url, pause=0.001))
            sender = Sender(rpc, key(0), poll=0.01)
            making = asyncio.create_task(Counter.make(sender))
            while not making.done():
                await chain.mine()
            faulty = [await stack.enter_async_context(faulty_end(chain.url)) for _ in range(ends)]
            yield World(chain, rpc, making.result(), faulty)
    finally:
        await chain.stop()


async def collect(follower: Follower, last: int) -> list[Batch]:
    batches: list[Batch] = []
    async with asyncio.timeout(DEADLINE):
        async for batch in follower.run(0):
            batches.append(batch)
            if batch.header.number >= last:
                break
    return batches


@asynccontextmanager
async def following(follower: Follower) -> AsyncIterator[list[Batch]]:
    """What the follower delivers while the block runs."""
    batches: list[Batch] = []

    async def run() -> None:
        async for batch in follower.run(0):
            batches.append(batch)

    task = asyncio.create_task(run())
    try:
        yield batches
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def check_whole(batches: list[Batch], expected: list[Batch]) -> None:
    assert batches == expected
    assert all(b.header.parent_hash == a.header.hash for a, b in pairwise(batches))


def test_of_three_ends_one_may_do_what_it_likes(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, 3) as w:
            for events in (2, 0, 1, 3, 1):
                await w.mine(events)
            expected = await w.read(1)
            last = expected[-1].header.number
            for name, fault in FAULTS.items():
                for bad in w.ends:  # preferred, or last
                    bad.fault = fault
                    async with w.client(*w.ends) as rpc:
                        batches = await collect(Follower(rpc, [w.counter], finality_depth=1, interval=0.01), last)
                        assert batches == expected, name
                    assert bad.hits or bad is not w.ends[0], name
                    bad.fault, bad.hits = None, 0

    asyncio.run(main())


def test_of_two_ends_one_that_fails_or_lies_is_waited_out(tmp_path: Path) -> None:
    """Nothing wrong is ever delivered, `failure` says why nothing comes; and once it is mended all of it comes."""
    harmless = {"head too high"}  # the other end's is what counts

    async def main() -> None:
        async with world(tmp_path, 2) as w:
            for name, fault in FAULTS.items():
                async with w.client(*w.ends) as rpc:
                    follower = Follower(rpc, [w.counter], finality_depth=1, interval=0.01)
                    w.ends[0].fault = fault
                    await w.mine(2)
                    await w.mine(0)
                    expected = await w.read(1)
                    async with following(follower) as batches:
                        if name in harmless:
                            await until(lambda: len(batches) == len(expected))  # noqa: B023
                        elif name not in ("head too low", "stuck"):
                            await until(lambda: follower.failure is not None)  # noqa: B023
                            assert w.ends[0].url in follower.failure.message, (name, follower.failure)
                        assert batches == expected[: len(batches)], name
                        assert name in harmless or len(batches) < len(expected), name
                        w.ends[0].fault = None
                        await until(lambda: len(batches) == len(expected))  # noqa: B023
                        check_whole(batches, expected)
                        await until(lambda: follower.failure is None)  # noqa: B023

    asyncio.run(main())


@pytest.mark.parametrize("name", [*SELF_EVIDENT, "no events"])
def test_one_end_alone_cannot_contradict_itself(tmp_path: Path, name: str) -> None:
    """`no events`: the blooms of the headers say that there are some; a real end whose index lags does this."""

    async def main() -> None:
        async with world(tmp_path, 1) as w:
            (end,) = w.ends
            await w.mine(2)
            await w.mine(1)
            expected = await w.read(1)
            async with w.client(end) as rpc:
                await rpc.header(0)
                follower = Follower(rpc, [w.counter], finality_depth=1, interval=0.01)
                end.fault = lagging if name == "no events" else SELF_EVIDENT[name]
                async with following(follower) as batches:
                    if name not in ("a chain of its own", "no events"):
                        await until(lambda: follower.failure is not None)
                        assert batches == expected[: len(batches)]
                        assert not any(batch.events for batch in batches)
                    end.fault = None if name != "no events" else end.fault
                    await until(lambda: len(batches) == len(expected))
                    check_whole(batches, expected)

    asyncio.run(main())


def lagging(calls: list[dict[str, object]], answers: list[dict[str, object]]) -> None:
    """The index of events by range knows nothing yet; the blocks themselves do."""
    for call, answer in zip(calls, answers, strict=True):
        if call["method"] == "eth_getLogs" and "fromBlock" in str(call["params"]):
            answer["result"] = []


@pytest.mark.parametrize("seed", range(6))
def test_any_schedule_of_faults_and_reorganisations_delivers_the_final_chain(tmp_path: Path, seed: int) -> None:
    """Three ends fail in their own ways by turns, one of them lies; reorganisations of up to the finality depth."""
    depth = 3

    async def main() -> None:
        dice = random.Random(seed)
        async with world(tmp_path, 3) as w, w.client(*w.ends) as rpc:
            await rpc.header(0)
            follower = Follower(rpc, [w.counter], finality_depth=depth, interval=0.005)
            for _ in range(depth):
                await w.mine()
            async with following(follower) as batches:
                for _ in range(12):
                    for end in w.ends:
                        end.fault = dice.choice([None, *SELF_EVIDENT.values()])
                    dice.choice(w.ends).fault = dice.choice(list(PLAUSIBLE.values()))
                    if dice.random() < 0.4:
                        await w.rpc.call("anvil_reorg", [dice.randint(1, depth), []])
                    for _ in range(dice.randint(1, 3)):
                        await w.mine(dice.randint(0, 2))
                    if dice.random() < 0.5:  # let it come level under the last faults, of which a quorum is free
                        for end in dice.sample(w.ends, 2):
                            end.fault = None
                        final = await w.rpc.block_number() - depth
                        await until(lambda: bool(batches) and batches[-1].header.number >= final)  # noqa: B023
                for end in w.ends:
                    end.fault = None
                expected = await w.read(depth)
                await until(lambda: len(batches) >= len(expected))
                check_whole(batches, expected)

    asyncio.run(main())


@pytest.mark.parametrize("depth", range(1, 7))
def test_reorganisations_above_finality_are_not_seen(tmp_path: Path, depth: int) -> None:
    async def main() -> None:
        async with world(tmp_path, 0) as w:
            follower = Follower(w.rpc, [w.counter], finality_depth=6, interval=0.005)
            async with following(follower) as batches:
                for _ in range(8):
                    await w.mine()
                final = await w.rpc.block_number() - 6
                await until(lambda: bool(batches) and batches[-1].header.number == final)
                undone = await w.rpc.header()
                await w.rpc.call("anvil_reorg", [depth, []])
                assert await w.rpc.header() != undone
                for _ in range(7):
                    await w.mine(2)
                expected = await w.read(6)
                await until(lambda: len(batches) >= len(expected))
                check_whole(batches, expected)
                assert follower.failure is None
                numbers = [event.value.number for batch in batches for event in batch.events]
                assert len(numbers) == len(set(numbers))

    asyncio.run(main())


def test_a_reorganisation_below_finality_ends_the_stream_and_an_older_state_goes_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, 0) as w:
            for _ in range(8):
                await w.mine()
            follower = Follower(w.rpc, [w.counter], finality_depth=1, interval=0.005)
            stream = follower.run(0)
            before = await collect(follower, await w.rpc.block_number() - 1)
            async with asyncio.timeout(DEADLINE):
                while (await anext(stream)).header.number < before[-1].header.number:
                    pass
                await w.rpc.call("anvil_reorg", [5, []])
                await w.mine(2)
                with pytest.raises(DeepReorg, match=f"block {before[-1].header.number} was final"):
                    await anext(stream)
            snapshot = before[2]  # what a consumer kept from below the fork
            resumed = follower.run(snapshot.header.number + 1, parent=snapshot.header.hash)
            expected = (await w.read(1))[3:]
            assert [await anext(resumed) for _ in expected] == expected
            assert expected != before[3:]

    asyncio.run(main())


def test_one_wrong_answer_about_a_final_block_stops_nobody(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, 1) as w, w.client(*w.ends) as rpc:
            for _ in range(3):
                await w.mine()
            follower = Follower(rpc, [w.counter], finality_depth=1, interval=0.005)
            async with following(follower) as batches:
                await until(lambda: len(batches) >= 3)
                other = await w.rpc.call("eth_getBlockByNumber", ["0x1", False])
                number = hex(batches[-1].header.number)
                left = [4]  # each look at the chain asks twice

                def lie(block: dict[str, object]) -> dict[str, object]:
                    if block["number"] != number or not left[0]:
                        return block
                    left[0] -= 1
                    return other | {"number": number, "hash": "0x" + "cd" * 32, "someNewField": "0x1"}

                w.ends[0].fault = change("eth_getBlockByNumber", lie)
                await until(lambda: not left[0])
                await w.mine()
                expected = await w.read(1)
                await until(lambda: len(batches) == len(expected))
                check_whole(batches, expected)

    asyncio.run(main())


def test_two_ends_on_two_chains_are_named_with_both_hashes(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path / "a", 2) as w, local_chain(tmp_path / "b") as other:
            await w.mine(2)
            number = await w.rpc.block_number()  # the other chain's has no transactions
            await w.mine(0)
            w.ends[1].target = other.url
            async with Rpc(other.url) as straight, w.client(*w.ends) as rpc:
                await until_async(lambda: reached(straight, number + 1))
                with pytest.raises(Disagreement) as caught:
                    await rpc.header(number)
                ours, theirs = await w.rpc.header(number), await straight.header(number)
                assert ours is not None
                assert theirs is not None
                assert ours.hash != theirs.hash
                for end, header in zip(w.ends, (ours, theirs), strict=True):
                    assert str(header.hash) in caught.value.details["answers"][end.url]
                    assert f"{end.url} says" in caught.value.message
                follower = Follower(rpc, [w.counter], finality_depth=1, interval=0.005)
                async with following(follower) as batches:
                    await until(lambda: isinstance(follower.failure, Disagreement))
                    assert not batches
                    w.ends[1].target = w.chain.url
                    expected = await w.read(1)
                    await until(lambda: len(batches) == len(expected))
                    check_whole(batches, expected)

    asyncio.run(main())


async def reached(rpc: Rpc, number: int) -> bool:
    return await rpc.block_number() >= number


async def until_async(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not await condition():  # noqa: ASYNC110 - another process causes it
            await asyncio.sleep(0.01)


def test_reads_go_on_with_what_answers_unless_it_is_contradicted(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, 2) as w, w.client(*w.ends) as rpc:
            await w.mine(1)
            address = w.counter.address
            good = await w.rpc.code(address)
            for fault in (hang, status(500), None):
                w.ends[0].fault = fault
                assert await rpc.code(address) == good
                assert await rpc.block_number() == await w.rpc.block_number()
                assert await rpc.call("eth_blockNumber") == hex(await w.rpc.block_number())
                if fault is not None:
                    assert w.ends[0].url in rpc.failures
                    with pytest.raises(ChainError, match="2 of 2 RPC ends must agree"):
                        await rpc.header(1)
            assert await rpc.header(1) == await w.rpc.header(1)
            assert not rpc.failures
            w.ends[0].fault = change("eth_getCode", lambda code: "0x6000")
            with pytest.raises(Disagreement, match="contradict each other"):
                await rpc.code(address)

    asyncio.run(main())


def test_an_end_on_another_chain_counts_as_away(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, 2) as w, w.client(*w.ends) as rpc:
            w.ends[0].fault = SELF_EVIDENT["a chain of its own"]
            assert await rpc.block_number() == await w.rpc.block_number()
            assert "serves chain 1" in rpc.failures[w.ends[0].url]
            w.ends[1].fault = SELF_EVIDENT["a chain of its own"]
            async with w.client(*w.ends) as again:
                with pytest.raises(WrongChain):
                    await again.header(0)

    asyncio.run(main())


def test_an_end_that_asks_for_time_gets_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, 3) as w, w.client(*w.ends) as rpc:
            w.ends[0].fault = status(429, **{"Retry-After": "100"})
            for _ in range(10):
                assert await rpc.header(1) is not None
                await rpc.call("eth_blockNumber")
            assert w.ends[0].hits == 1

    asyncio.run(main())


def test_a_body_without_end_is_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "MAX_BODY", 10_000)

    async def main() -> None:
        async with world(tmp_path, 1) as w, w.client(*w.ends) as rpc:
            w.ends[0].fault = change("eth_getCode", lambda code: code + "00" * 10_000)
            with pytest.raises(BadAnswer, match="longer than 10000 bytes"):
                await rpc.code(w.counter.address)
            assert await rpc.block_number() > 0
            # What is asked of a chain of our own (its whole state, to be saved) may be longer.
            assert len(await w.rpc.call("anvil_dumpState")) > 0

    asyncio.run(main())
