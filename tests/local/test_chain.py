"""The keeper over a real anvil: what is final survives any kill, time goes forward, one keeper a chain."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import random
import signal
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from freehold.chain.abi import Call
from freehold.chain.errors import ChainError, WrongChain
from freehold.chain.rpc import Header, Rpc, hexadecimal, quantity, unhex
from freehold.chain.transactor import Sender
from freehold.local.chain import STATE, ChainOptions, LocalChain
from freehold.protocol.errors import Conflict, Corrupt
from freehold.protocol.keys import Key
from freehold.protocol.units import Address
from tests.local.chains import DEADLINE, QUICK, find_anvil, key, local_chain, until

# Creation code that answers block.timestamp: TIMESTAMP PUSH0 MSTORE PUSH1 32 PUSH0 RETURN
TIMESTAMP = "0x425f5260205ff3"
# Creation code of a contract that logs 32 bytes of its calldata under no topic.
LOGGER = bytes.fromhex("600a600c600039600a6000f3" + "5f355f5260205fa000")
SLOW_IDLE = QUICK._replace(block_interval=3600.0)


async def wait_for_block(chain: LocalChain, number: int) -> Header:
    """The newest header on the disk, once its number is `number` or more."""
    await until(lambda: chain.saved is not None and chain.saved.number >= number)
    assert chain.saved is not None
    return chain.saved


async def read_headers(url: str, last: int) -> list[Header | None]:
    async with Rpc(url) as rpc:
        return await rpc.headers(0, last)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


def test_mines_when_idle_and_at_once_when_there_is_a_transaction(tmp_path: Path) -> None:
    async def main() -> None:
        async with local_chain(tmp_path) as chain:
            idle = await wait_for_block(chain, 3)
            assert idle.timestamp > 0
        # No idle block comes for an hour now: only the transaction can cause one.
        async with local_chain(tmp_path, SLOW_IDLE) as chain, Rpc(chain.url, chain_id=31337) as rpc:
            before = await wait_for_block(chain, 3)
            receipt = await Sender(rpc, key(0)).transact(Call(Key(key(1)).address, b"", 7))
            assert receipt.block_number == before.number + 1 or receipt.block_number == before.number + 2
            assert await rpc.balance(Key(key(1)).address) == 10_000 * 10**18 + 7

    asyncio.run(main())


@pytest.mark.timeout(120)
def test_no_final_block_is_lost_or_changed_by_kill_9_of_anvil(tmp_path: Path) -> None:
    """Ten cuts at seeded moments while transactions flow; every final block, receipt and balance stays."""
    moments = random.Random(20)
    recipient = Address(b"\x11" * 20)

    async def main() -> None:
        final: dict[int, Header] = {}
        mined: dict[bytes, int] = {}
        async with local_chain(tmp_path) as chain, Rpc(chain.url, attempts=10) as rpc:
            url = chain.url
            sender = Sender(rpc, key(0), confirmations=1, poll=0.01, deadline=DEADLINE)

            async def remember_final_blocks() -> None:
                while True:
                    try:
                        head = await rpc.block_number()
                        header = await rpc.header(head - 1) if head else None
                    except ChainError:
                        header = None
                    if header is not None:
                        assert final.setdefault(header.number, header) == header
                    await asyncio.sleep(0.005)

            watching = asyncio.create_task(remember_final_blocks())
            for cut in range(10):
                paying = asyncio.create_task(sender.transact(Call(recipient, b"", 1), gas=21_000))
                await asyncio.sleep(moments.uniform(0, 0.15))
                pid = chain.pid
                if pid is not None:
                    os.kill(pid, signal.SIGKILL)
                receipt = await paying
                mined[receipt.transaction] = receipt.block_number
                assert len(mined) == cut + 1
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            if not watching.cancelled():
                watching.result()
            assert chain.url == url
            assert await rpc.balance(recipient) == 10
        # And once more from the disk alone.
        async with local_chain(tmp_path) as chain, Rpc(chain.url) as rpc:
            assert final
            assert {n: await rpc.header(n) for n in final} == final
            for transaction, number in mined.items():
                receipt_json = await rpc.call("eth_getTransactionReceipt", [hexadecimal(transaction)])
                assert quantity(receipt_json["blockNumber"]) == number
            assert await rpc.balance(recipient) == 10

    asyncio.run(main())


def test_resumes_the_same_chain(tmp_path: Path) -> None:
    async def main() -> None:
        async with local_chain(tmp_path) as chain, Rpc(chain.url) as rpc:
            sender = Sender(rpc, key(0), confirmations=1, poll=0.01)
            logger = (await sender.transact(Call(None, LOGGER))).contract
            assert logger is not None
            for number in range(3):
                await sender.transact(Call(logger, number.to_bytes(32)))
            saved = await wait_for_block(chain, 5)
            first = await rpc.get_logs(0, saved.number, [logger])
            port = chain.url
            genesis = await rpc.header(0)
        before_last = saved.number - 1
        for _ in range(2):
            async with local_chain(tmp_path, QUICK._replace(accounts=3)) as chain, Rpc(chain.url) as rpc:
                assert await rpc.header(0) == genesis
        async with local_chain(tmp_path) as chain, Rpc(chain.url) as rpc:
            assert chain.url == port
            assert await rpc.get_logs(0, saved.number, [logger]) == first
            assert [int.from_bytes(entry.data) for entry in first] == [0, 1, 2]
            assert await rpc.header(saved.number) == saved
            after = await wait_for_block(chain, saved.number + 1)
            assert after.timestamp > saved.timestamp
            # Neither a start nor a save leaves a second block of any number.
            blocks = json.loads(gzip.decompress((tmp_path / STATE).read_bytes()))["blocks"]
            numbers = sorted(quantity(block["header"]["number"]) for block in blocks)
            assert numbers == list(range(len(numbers)))
            # State at blocks before the restart is gone (blocks and logs are not): whoever settles reads events.
            with pytest.raises(ChainError):
                await rpc.eth_call(logger, b"", block=before_last)

    asyncio.run(main())


def test_chain_time_follows_the_clock_or_the_step(tmp_path: Path) -> None:
    async def main() -> None:
        async with local_chain(tmp_path / "steps", QUICK._replace(step=5)) as chain:
            headers = await read_headers(chain.url, (await wait_for_block(chain, 4)).number)
            times = [header.timestamp for header in headers if header is not None]
            assert [b - a for a, b in pairwise(times)] == [5] * (len(times) - 1)
        async with local_chain(tmp_path / "steps", QUICK._replace(step=5)) as chain, Rpc(chain.url) as rpc:
            # Estimates run at the chain's time, not the clock's.
            saved = await wait_for_block(chain, 0)
            now = int.from_bytes(unhex(await rpc.call("eth_call", [{"data": TIMESTAMP}, "pending"])))
            assert now > saved.timestamp
        real = ChainOptions(chain_id=31337, block_interval=0.0, poll=0.01)
        began = int(time.time())
        async with local_chain(tmp_path / "real", real) as chain:
            headers = await read_headers(chain.url, (await wait_for_block(chain, 2)).number)
            times = [header.timestamp for header in headers if header is not None]
            assert times == sorted(set(times))
            assert began <= times[0]
            assert times[-1] <= int(time.time()) + 1

    asyncio.run(main())


def test_the_clock_set_back_does_not_stop_the_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        real = ChainOptions(chain_id=31337, block_interval=0.0, poll=0.01)
        async with local_chain(tmp_path, real) as chain:
            before = await wait_for_block(chain, 1)
            monkeypatch.setattr("freehold.local.chain.time.time", lambda: 1_000.0)
            after = await wait_for_block(chain, before.number + 1)
            assert after.timestamp > before.timestamp

    asyncio.run(main())


def test_one_keeper_a_chain_and_one_chain_a_directory(tmp_path: Path) -> None:
    async def main() -> None:
        async with local_chain(tmp_path) as chain:
            pid = chain.pid
            with pytest.raises(Conflict, match="another process keeps"):
                await local_chain(tmp_path).start()
            assert chain.pid == pid
        with pytest.raises(WrongChain, match="holds chain 31337, not chain 5"):
            await local_chain(tmp_path, QUICK._replace(chain_id=5)).start()
        state = (tmp_path / STATE).read_bytes()
        (tmp_path / STATE).write_bytes(state[: len(state) // 2])
        with pytest.raises(Corrupt, match="cannot be read"):
            await local_chain(tmp_path).start()
        (tmp_path / STATE).write_bytes(state)
        async with local_chain(tmp_path) as chain:
            assert chain.pid is not None

    asyncio.run(main())


def test_stops_without_leaving_anything(tmp_path: Path) -> None:
    async def main() -> tuple[int, str]:
        async with local_chain(tmp_path) as chain:
            assert chain.pid is not None
            return chain.pid, chain.url

    pid, url = asyncio.run(main())
    assert not is_running(pid)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["anvil.log", "chain.json", "lock", STATE]
    assert json.loads(gzip.decompress((tmp_path / STATE).read_bytes()))["blocks"]

    async def ask() -> None:
        async with Rpc(url, attempts=1) as rpc:
            await rpc.block_number()

    with pytest.raises(ChainError):
        asyncio.run(ask())


KEEPER = """
import asyncio, sys
from pathlib import Path
from freehold.local.chain import ChainOptions, LocalChain
async def main():
    options = ChainOptions(chain_id=31337, block_interval=0.02, poll=0.01, step=1)
    async with LocalChain(Path(sys.argv[1]), Path(sys.argv[2]), options) as chain:
        print(chain.pid, chain.url, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


def test_no_final_block_is_lost_by_kill_9_of_the_keeper(tmp_path: Path) -> None:
    moments = random.Random(7)

    async def watch(url: str, final: dict[int, Header], seconds: float) -> None:
        """Every final block that there is to see until the time is over, and at least one more."""
        known = len(final)
        async with Rpc(url) as rpc:
            until_then = asyncio.get_running_loop().time() + seconds
            while asyncio.get_running_loop().time() < until_then or len(final) == known:
                head = await rpc.block_number()
                for header in await rpc.headers(max(0, head - 10), head - 1):
                    assert header is not None
                    assert final.setdefault(header.number, header) == header
                await asyncio.sleep(0.005)

    async def main() -> None:
        final: dict[int, Header] = {}
        for _ in range(4):
            keeper = await asyncio.create_subprocess_exec(
                sys.executable, "-c", KEEPER, str(tmp_path), str(find_anvil()),
                stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )  # fmt: skip
            assert keeper.stdout is not None
            try:
                pid, url = (await asyncio.wait_for(keeper.stdout.readline(), DEADLINE)).decode().split()
                await asyncio.wait_for(watch(url, final, moments.uniform(0, 0.1)), DEADLINE)
            finally:
                keeper.kill()
                await keeper.wait()
            await until(lambda pid=pid: not is_running(int(pid)))  # anvil goes with its keeper
        async with local_chain(tmp_path) as chain, Rpc(chain.url) as rpc:
            assert {number: await rpc.header(number) for number in final} == final

    asyncio.run(main())
