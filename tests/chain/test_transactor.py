"""One intent counts once, whatever gets lost on the way: a real anvil, mined block by block by the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from freehold.chain.abi import Call
from freehold.chain.contracts import Token
from freehold.chain.errors import ChainError, Reverted, RpcRefused, TransactionPending, TransactionReplaced
from freehold.chain.rpc import Rpc, hexadecimal, quantity
from freehold.chain.transactor import Sender
from freehold.local.chain import LocalChain
from freehold.protocol.keys import Key
from freehold.protocol.units import Address
from tests.local.chains import key, local_chain

RECIPIENT = Address(b"\x11" * 20)
PAY = Call(RECIPIENT, b"", 1)


class LosingRpc(Rpc):
    """Loses the answer to the next `lose` sends of a transaction: the chain has it, the sender does not know."""

    lose = 0

    async def broadcast(self, raw: bytes) -> None:
        await super().broadcast(raw)
        if self.lose:
            self.lose -= 1
            raise ChainError("the answer was lost")


class LatestRpc(Rpc):
    """An end whose "pending" is its latest block, as many public ones' is."""

    async def call(self, method: str, params: Sequence[Any] = ()) -> Any:
        estimate = method == "eth_estimateGas"
        return await super().call(method, [params[0], "latest"] if estimate else params)


@asynccontextmanager
async def manual_chain(directory: Path) -> AsyncIterator[tuple[LocalChain, LosingRpc]]:
    """A chain that mines only when the test says so."""
    chain = local_chain(directory)
    await chain.start()
    try:
        async with LosingRpc(chain.url, chain_id=31337, pause=0.001) as rpc:
            yield chain, rpc
    finally:
        await chain.stop()


async def nonce_of(rpc: Rpc, sender: Sender) -> int:
    return quantity(await rpc.call("eth_getTransactionCount", [hexadecimal(sender.address), "latest"]))


def test_concurrent_intents_get_consecutive_nonces(tmp_path: Path) -> None:
    async def main() -> None:
        async with local_chain(tmp_path) as chain, Rpc(chain.url) as rpc:
            sender = Sender(rpc, key(0), poll=0.01)
            receipts = await asyncio.gather(*(sender.transact(PAY) for _ in range(10)))
            assert len({receipt.transaction for receipt in receipts}) == 10
            assert await nonce_of(rpc, sender) == 10
            assert await rpc.balance(RECIPIENT) == 10

    asyncio.run(main())


def test_what_builds_on_a_transaction_waits_for_it_where_pending_does_not_show_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with local_chain(tmp_path) as chain, LatestRpc(chain.url) as rpc:
            sender = Sender(rpc, key(0), poll=0.01)
            create = Token.create("Token", "T", RECIPIENT, 100, sender.address, 100)
            receipt = await sender.transact(create)
            assert receipt.contract is not None
            token = Token(rpc, receipt.contract)
            approval = await sender.send(token.approve(sender.address, 7))
            spent = await sender.send(token.transfer_from(sender.address, RECIPIENT, 7))
            await sender.wait(approval)
            await sender.wait(spent)
            assert await token.balance_of(RECIPIENT) == 7
            with pytest.raises(Reverted):
                await sender.send(token.transfer_from(sender.address, RECIPIENT, 1))

    asyncio.run(main())


def test_a_lost_answer_does_not_pay_twice(tmp_path: Path) -> None:
    """It is met by `wait`, which finds the receipt."""

    async def main() -> None:
        async with manual_chain(tmp_path) as (chain, rpc):
            sender = Sender(rpc, key(0), poll=0.01)
            rpc.lose = 1
            sent = await sender.send(PAY)
            assert rpc.lose == 0
            await chain.mine()
            assert (await sender.wait(sent)).transaction == sent.transaction
            assert await nonce_of(rpc, sender) == 1
            assert await rpc.balance(RECIPIENT) == 1

    asyncio.run(main())


def test_a_lost_pool_gets_the_same_bytes_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with manual_chain(tmp_path) as (chain, rpc):
            sender = Sender(rpc, key(0), poll=0.01)
            first, second = await sender.send(PAY), await sender.send(PAY)
            assert (first.nonce, second.nonce) == (0, 1)
            await rpc.call("anvil_dropAllTransactions")
            # The pool is empty and the chain's count 0, yet a new intent must not take a nonce already signed.
            third = await sender.send(PAY)
            assert third.nonce == 2
            with pytest.raises(TransactionPending):
                await sender.wait(third, deadline=0.1)  # while it waited, it sent again what was lost
            await chain.mine()
            for sent in (first, second, third):
                assert (await sender.wait(sent)).transaction == sent.transaction
            assert await rpc.balance(RECIPIENT) == 3

    asyncio.run(main())


def test_confirmations_wait_for_blocks_above_and_outlive_a_lost_head(tmp_path: Path) -> None:
    async def main() -> None:
        async with manual_chain(tmp_path) as (chain, rpc):
            sender = Sender(rpc, key(0), poll=0.01, confirmations=1)
            await chain.mine()
            before = await rpc.call("evm_snapshot")
            sent = await sender.send(PAY)
            first = await chain.mine()
            with pytest.raises(TransactionPending):
                await sender.wait(sent, deadline=0.1)  # mined, but nothing stands above it
            await rpc.call("evm_revert", [before])
            assert await rpc.balance(RECIPIENT) == 0
            with pytest.raises(TransactionPending):
                await sender.wait(sent, deadline=0.1)
            again = await chain.mine()
            await chain.mine()
            receipt = await sender.wait(sent)
            assert receipt.block_number == first.number == again.number
            assert receipt.block_hash == again.hash != first.hash
            assert await rpc.balance(RECIPIENT) == 1

    asyncio.run(main())


def test_a_replaced_transaction_is_named_and_never_sent_under_another_nonce(tmp_path: Path) -> None:
    from eth_account import Account

    async def main() -> None:
        async with manual_chain(tmp_path) as (chain, rpc):
            sender = Sender(rpc, key(0), poll=0.01)
            sent = await sender.send(PAY)
            fields = {
                "type": 2, "chainId": 31337, "nonce": sent.nonce, "gas": 21_000, "value": 0, "data": b"",
                "to": bytes(Key(key(1)).address), "maxFeePerGas": 10**11, "maxPriorityFeePerGas": 10**10,
            }  # fmt: skip
            other = Account.sign_transaction(fields, key(0))
            await rpc.call("eth_sendRawTransaction", [hexadecimal(bytes(other.raw_transaction))])
            await chain.mine()
            with pytest.raises(TransactionReplaced, match="took nonce 0") as caught:
                await sender.wait(sent)
            assert caught.value.details["transaction"] == str(sent.transaction)
            await chain.mine()
            assert await rpc.balance(RECIPIENT) == 0
            assert (await sender.send(PAY)).nonce == 1  # a new intent, on purpose

    asyncio.run(main())


def test_not_mined_in_time_names_the_transaction_and_can_be_waited_for_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with manual_chain(tmp_path) as (chain, rpc):
            sender = Sender(rpc, key(0), poll=0.01)
            sent = await sender.send(PAY)
            with pytest.raises(TransactionPending, match=r"not mined within 0\.05 s") as caught:
                await sender.wait(sent, deadline=0.05)
            assert caught.value.details == {"transaction": str(sent.transaction), "nonce": 0}
            await chain.mine()
            assert (await sender.wait(sent)).block_number == 1

    asyncio.run(main())


def test_reverts_say_why_before_and_after_sending(tmp_path: Path) -> None:
    async def main() -> None:
        async with manual_chain(tmp_path) as (chain, rpc):
            sender = Sender(rpc, key(0), poll=0.01)
            created = await sender.send(Token.create("Freehold", "FHD", RECIPIENT, 10**27, sender.address, 100))
            await chain.mine()
            contract = (await sender.wait(created)).contract
            assert contract is not None
            token = Token(rpc, contract)
            too_much = token.transfer(RECIPIENT, 101)
            with pytest.raises(Reverted) as before:
                await sender.send(too_much)
            assert before.value.reason == "erc20: transfer amount exceeds balance"
            assert await nonce_of(rpc, sender) == 1  # nothing was sent
            sent = await sender.send(too_much, gas=100_000)
            await chain.mine()
            with pytest.raises(Reverted) as after:
                await sender.wait(sent)
            assert after.value.reason == "erc20: transfer amount exceeds balance"
            assert after.value.details["transaction"] == str(sent.transaction)
            # Its own transactions that wait in the pool count for the estimate: an approval, and then its use.
            first = await sender.send(token.approve(sender.address, 60))
            second = await sender.send(token.transfer_from(sender.address, RECIPIENT, 60))
            await chain.mine()
            assert (await sender.wait(first)).block_number == (await sender.wait(second)).block_number
            assert await token.balance_of(RECIPIENT) == 60

    asyncio.run(main())


def test_an_account_without_coins_is_refused_and_keeps_its_nonce(tmp_path: Path) -> None:
    async def main() -> None:
        async with manual_chain(tmp_path) as (chain, rpc):
            poor = Sender(rpc, b"\x07" * 32, poll=0.01)
            with pytest.raises(RpcRefused):
                await poor.send(PAY, gas=21_000)
            rich = Sender(rpc, key(0), poll=0.01)
            funded = await rich.send(Call(poor.address, b"", 10**18))
            await chain.mine()
            await rich.wait(funded)
            sent = await poor.send(PAY)
            assert sent.nonce == 0
            await chain.mine()
            await poor.wait(sent)

    asyncio.run(main())


def test_keys_do_not_show() -> None:
    sender = Sender(Rpc("http://127.0.0.1:1"), key(0))
    assert key(0).hex() not in repr(sender)
    assert repr(sender) == f"Sender({sender.address})"
