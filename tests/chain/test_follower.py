"""Every final block once and in order, through restarts and lost heads; a changed final block is an error."""

from __future__ import annotations

import asyncio
import os
import signal
from itertools import pairwise
from pathlib import Path

import pytest

from freehold.chain.errors import ChainError, DeepReorg
from freehold.chain.follower import Batch, Follower
from freehold.chain.rpc import Rpc
from freehold.chain.transactor import Sender
from freehold.protocol.units import Hash
from tests.chain.counter import Counted, Counter
from tests.local.chains import DEADLINE, key, local_chain, until


async def follow(follower: Follower, first: int, last: int, parent: Hash | None = None) -> list[Batch]:
    """The batches of the blocks `first` to `last`."""
    batches: list[Batch] = []
    async with asyncio.timeout(DEADLINE):
        async for batch in follower.run(first, parent=parent):
            batches.append(batch)
            if batch.header.number >= last:
                break
    return batches


def check_chained(batches: list[Batch]) -> None:
    for before, after in pairwise(batches):
        assert after.header.number == before.header.number + 1
        assert after.header.parent_hash == before.header.hash


def numbers_in(batches: list[Batch]) -> list[int]:
    return [event.value.number for batch in batches for event in batch.events]


def test_every_final_block_once_in_order(tmp_path: Path) -> None:
    async def main() -> None:
        async with local_chain(tmp_path) as chain, Rpc(chain.url) as rpc:
            sender = Sender(rpc, key(0), confirmations=1, poll=0.01)
            counter, stranger = await Counter.make(sender), await Counter.make(sender)
            follower = Follower(rpc, [counter], finality_depth=1, interval=0.01)
            first = await rpc.block_number()
            sent = [await sender.send(counter.count(n)) for n in range(8)]
            await sender.transact(stranger.count(99))
            last = max([(await sender.wait(transaction)).block_number for transaction in sent])
            batches = await follow(follower, 0, last)
            check_chained(batches)
            assert batches[0].header.number == 0
            assert numbers_in(batches) == list(range(8))
            for batch in batches:
                assert {event.block_number for event in batch.events} <= {batch.header.number}
                assert [event.log_index for event in batch.events] == sorted({e.log_index for e in batch.events})
            event = next(event for batch in batches for event in batch.events)
            assert event.value == Counted(0)
            assert event.contract == counter.address
            assert event.transaction == sent[0].transaction
            # Resumed after a block, by its number and hash, it goes on from there.
            middle = next(batch for batch in batches if batch.header.number == first)
            resumed = await follow(follower, first + 1, last, parent=middle.header.hash)
            assert resumed == [batch for batch in batches if batch.header.number > first]
            assert await follower.header(first) == middle.header
            assert await follower.header(10**9) is None

    asyncio.run(main())


def test_only_what_is_deep_enough_is_final(tmp_path: Path) -> None:
    async def main() -> None:
        chain = local_chain(tmp_path)
        await chain.start()
        try:
            async with Rpc(chain.url) as rpc:
                follower = Follower(rpc, [], finality_depth=3, interval=0.01)
                assert await follower.final_header() is None
                for _ in range(3):
                    await chain.mine()
                final = await follower.final_header()
                assert final is not None
                assert final.number == 0
                batches: list[int] = []

                async def collect() -> None:
                    async for batch in follower.run(0):
                        batches.append(batch.header.number)

                following = asyncio.create_task(collect())
                await until(lambda: batches == [0])
                await chain.mine()
                await until(lambda: batches == [0, 1])
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
                # Depth 0 leaves it to the chain's own tag; anvil's lags 64 blocks, and names the genesis until then.
                tagged = await Follower(rpc, [], finality_depth=0).final_header()
                assert tagged is not None
                assert tagged.number == 0
        finally:
            await chain.stop()

    asyncio.run(main())


def test_a_killed_chain_is_waited_out_and_nothing_comes_twice(tmp_path: Path) -> None:
    async def main() -> None:
        async with local_chain(tmp_path) as chain, Rpc(chain.url, attempts=1) as rpc:
            sender = Sender(rpc, key(0), confirmations=1, poll=0.01, deadline=DEADLINE)
            counter = await Counter.make(sender)
            follower = Follower(rpc, [counter], finality_depth=1, interval=0.01)
            batches: list[Batch] = []

            async def collect() -> None:
                async for batch in follower.run(0):
                    batches.append(batch)

            following = asyncio.create_task(collect())
            for number in range(3):
                await sender.transact(counter.count(number))
                pid = chain.pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                await until(lambda: follower.failure is not None)
                await until(lambda: follower.failure is None)
            last = (await sender.transact(counter.count(3))).block_number
            await until(lambda: bool(batches) and batches[-1].header.number >= last)
            assert not following.done()
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            check_chained(batches)
            assert numbers_in(batches) == [0, 1, 2, 3]

    asyncio.run(main())


@pytest.mark.parametrize("running", [True, False])
def test_a_changed_final_block_is_an_error(tmp_path: Path, running: bool) -> None:
    """Undone while it follows, or while it was away (known by the hash that it kept)."""

    async def main() -> None:
        chain = local_chain(tmp_path)
        await chain.start()
        try:
            async with Rpc(chain.url) as rpc:
                follower = Follower(rpc, [], finality_depth=1, interval=0.01)
                await chain.mine()
                fork = await rpc.call("evm_snapshot")
                for _ in range(3):
                    await chain.mine()
                stream = follower.run(0)
                delivered = [await anext(stream) for _ in range(4)]
                assert delivered[-1].header.number == 3
                await rpc.call("evm_revert", [fork])
                for _ in range(4):
                    await chain.mine()
                after = stream if running else follower.run(4, parent=delivered[-1].header.hash)
                with pytest.raises(DeepReorg, match="block 3 was final as") as caught:
                    await asyncio.wait_for(anext(after), DEADLINE)
                assert caught.value.details["expected"] == str(delivered[-1].header.hash)
                assert caught.value.details["block"] == 3
                assert not caught.value.retryable
        finally:
            await chain.stop()

    asyncio.run(main())


def test_events_of_another_block_than_was_read_are_not_delivered(tmp_path: Path) -> None:
    """Headers and events come in two answers; if the chain changed in between, both are asked for again."""

    class Switching(Rpc):
        switched = 0

        async def headers(self, first: int, last: int):  # type: ignore[no-untyped-def]
            found = await super().headers(first, last)
            if self.switched < 2:
                self.switched += 1
                return [None if h is None else h._replace(hash=Hash(b"\x01" * 32)) for h in found[:1]]
            return found

    async def main() -> None:
        async with local_chain(tmp_path) as chain, Rpc(chain.url) as rpc, Switching(chain.url) as switching:
            sender = Sender(rpc, key(0), confirmations=1, poll=0.01)
            counter = await Counter.make(sender)
            block = (await sender.transact(counter.count(5))).block_number
            follower = Follower(switching, [counter], finality_depth=1, interval=0.01)
            batches = await follow(follower, block, block)
            assert numbers_in(batches) == [5]
            assert batches[0].header == await rpc.header(block)
            assert switching.switched == 2
            assert follower.failure is None

    asyncio.run(main())


def test_an_end_that_is_away_shows_as_failure() -> None:
    async def main() -> None:
        async with Rpc("http://127.0.0.1:1", attempts=1) as rpc:
            follower = Follower(rpc, [], finality_depth=1, interval=0.01)
            following = asyncio.create_task(anext(follower.run(0)))
            await until(lambda: follower.failure is not None)
            assert isinstance(follower.failure, ChainError)
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    asyncio.run(main())
