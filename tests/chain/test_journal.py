"""Killed at any step, a payment is made once, or not at all and then by the next: never twice."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from freehold.chain.errors import TransactionPending
from freehold.chain.journal import Journal
from freehold.chain.rpc import Rpc, hexadecimal, quantity
from freehold.chain.transactor import Sender
from freehold.protocol.errors import Corrupt
from tests.chain.interrupted import PAY, PURCHASE, RECIPIENT, STEPS, pay
from tests.chain.test_transactor import manual_chain
from tests.local.chains import DEADLINE, key, local_chain


async def nonce_of(rpc: Rpc, sender: Sender) -> int:
    return quantity(await rpc.call("eth_getTransactionCount", [hexadecimal(sender.address), "latest"]))


async def run_killed(url: str, journal: Path, step: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.chain.interrupted", url, str(journal), step
    )
    assert await asyncio.wait_for(process.wait(), DEADLINE) == -9


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_a_purchase_is_made_once(tmp_path: Path, step: str) -> None:
    async def main() -> None:
        journal = tmp_path / "journal.json"
        async with local_chain(tmp_path / "chain") as chain, Rpc(chain.url) as rpc:
            await run_killed(chain.url, journal, step)
            if step != "before it is kept":
                (kept,) = json.loads(journal.read_text())["sent"]
                assert kept["intent"] == PURCHASE
            receipt = await pay(chain.url, journal, "")
            if step != "before it is kept":
                assert str(receipt.transaction) == kept["transaction"]
            assert await rpc.balance(RECIPIENT) == 1
            assert await nonce_of(rpc, Sender(rpc, key(0))) == 1
            assert json.loads(journal.read_text())["sent"] == []
            # Decided and told: the same intent is another purchase from here on.
            await pay(chain.url, journal, "")
            assert await rpc.balance(RECIPIENT) == 2

    asyncio.run(main())


def test_what_was_signed_and_never_sent_keeps_its_nonce_and_is_sent(tmp_path: Path) -> None:
    async def main() -> None:
        journal = tmp_path / "journal.json"
        async with local_chain(tmp_path / "chain") as chain, Rpc(chain.url) as rpc:
            await run_killed(chain.url, journal, "before it is sent")
            sender = Sender(rpc, key(0), poll=0.01, confirmations=1, journal=Journal(journal))
            other = await sender.send(PAY)
            assert other.nonce == 1
            await sender.wait(other)
            assert await rpc.balance(RECIPIENT) == 2
            found = await sender.find(PURCHASE)
            assert found is not None
            assert (await sender.wait(found)).transaction == found.transaction
            assert await sender.find(PURCHASE) is None

    asyncio.run(main())


def test_two_with_one_journal_never_take_one_nonce(tmp_path: Path) -> None:
    async def main() -> None:
        async with local_chain(tmp_path / "chain") as chain, Rpc(chain.url) as rpc:
            senders = [Sender(rpc, key(0), poll=0.01, journal=Journal(tmp_path / "journal")) for _ in range(2)]
            sent = await asyncio.gather(*(sender.send(PAY) for sender in senders * 4))
            assert sorted(entry.nonce for entry in sent) == list(range(8))
            same = await asyncio.gather(*(sender.send(PAY, intent=PURCHASE) for sender in senders))
            assert same[0] == same[1]
            for entry in [*sent, same[0]]:
                await senders[0].wait(entry)
            assert await rpc.balance(RECIPIENT) == 9

    asyncio.run(main())


def test_not_known_in_time_is_found_by_the_next_try(tmp_path: Path) -> None:
    async def main() -> None:
        async with manual_chain(tmp_path / "chain") as (chain, rpc):
            journal = Journal(tmp_path / "journal")
            with pytest.raises(TransactionPending):
                await Sender(rpc, key(0), poll=0.01, deadline=0.05, journal=journal).transact(PAY, intent=PURCHASE)
            await rpc.call("anvil_dropAllTransactions")
            again = Sender(rpc, key(0), poll=0.01, journal=journal)
            waiting = asyncio.create_task(again.transact(PAY, intent=PURCHASE))
            while not waiting.done():
                await chain.mine()
            assert await rpc.balance(RECIPIENT) == 1
            waiting.result()

    asyncio.run(main())


def test_the_journal_of_another_chain_is_forgotten_and_a_broken_one_named(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "journal"
        async with manual_chain(tmp_path / "a") as (_, rpc):
            sent = await Sender(rpc, key(0), journal=Journal(path)).send(PAY, intent=PURCHASE)
            kept = await Journal(path).read(await rpc.genesis())
            assert kept == {0: sent}
            assert await Journal(path).read(type(sent.transaction)(b"\1" * 32)) == {}
            for broken in (b"", b"{", b"[]", b"{}", path.read_bytes().replace(b'"nonce"', b'"other"')):
                path.write_bytes(broken)
                with pytest.raises(Corrupt, match="no journal"):
                    await Sender(rpc, key(0), journal=Journal(path)).send(PAY)

    asyncio.run(main())
