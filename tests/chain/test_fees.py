"""Fees follow the market up to a cap; what it has left behind is replaced, and counts once all the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.chain.abi import Call
from freehold.chain.errors import FeeTooHigh, RpcRefused, TransactionPending, TransactionReplaced
from freehold.chain.fees import Fees, Market, ask_market
from freehold.chain.rpc import Rpc, hexadecimal, quantity
from freehold.chain.transactor import Sender
from freehold.local import chain as local
from freehold.local.chain import LocalChain
from freehold.protocol.keys import Key
from tests.chain.faulty import FaultyEnd, change, faulty_end
from tests.chain.test_transactor import PAY, RECIPIENT, manual_chain
from tests.local.chains import key

GWEI = 10**9
fees = st.integers(0, 2**64)


@given(base=st.none() | fees, tip=fees, cap=st.none() | fees, old=st.tuples(fees, fees))
def test_an_offer_is_enough_and_within_the_cap(
    base: int | None, tip: int, cap: int | None, old: tuple[int, int]
) -> None:
    market = Market(base, tip)
    before = Fees(max(old), None if base is None else min(old))
    for make in (market.offer, lambda cap: market.replace(before, cap)):
        try:
            offer = make(cap)
        except FeeTooHigh:
            assert cap is not None
            continue
        if offer is None:
            assert before.most >= market.least
            continue
        assert offer.most >= market.least
        assert cap is None or offer.most <= cap
        assert (offer.tip is None) == (base is None)
        assert offer.tip is None or tip <= offer.tip <= offer.most
        if make != market.offer:
            assert 8 * offer.most >= 9 * before.most
            assert offer.tip is None or before.tip is None or 8 * offer.tip >= 9 * before.tip


async def mine_until(chain: LocalChain, task: asyncio.Task[object], most: int = 200) -> None:
    for _ in range(most):
        if task.done():
            return
        await chain.mine()
        await asyncio.sleep(0.02)


async def spike(rpc: Rpc, chain: LocalChain, base: int) -> None:
    await rpc.call("anvil_setNextBlockBaseFeePerGas", [hex(base)])
    await chain.mine()


def test_what_the_market_left_behind_is_replaced_and_counts_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with manual_chain(tmp_path) as (chain, rpc):
            sender = Sender(rpc, key(0), poll=0.01)
            first, second = await sender.send(PAY), await sender.send(PAY)
            await spike(rpc, chain, 500 * GWEI)
            waiting = asyncio.create_task(sender.wait(second))
            await mine_until(chain, waiting)
            receipt = waiting.result()
            assert receipt.transaction != second.transaction  # its replacement; the first one's too was needed for it
            assert (await sender.wait(first)).transaction != first.transaction
            assert await rpc.balance(RECIPIENT) == 2
            assert await rpc.call("eth_getTransactionReceipt", [hexadecimal(second.transaction)]) is None

    asyncio.run(main())


def test_the_cap_holds_says_so_and_is_tried_again(tmp_path: Path) -> None:
    cap = 20 * GWEI

    async def main() -> None:
        async with manual_chain(tmp_path) as (chain, rpc):
            sender = Sender(rpc, key(0), poll=0.01, fee_cap=cap)
            sent = await sender.send(PAY)
            await spike(rpc, chain, 500 * GWEI)
            with pytest.raises(FeeTooHigh, match=f"the cap is {cap}") as refused:
                await sender.send(PAY)
            assert refused.value.retryable
            waiting = asyncio.create_task(sender.wait(sent, deadline=0.5))
            await mine_until(chain, waiting, most=8)
            with pytest.raises(TransactionPending, match=f"stuck at .* the cap is {cap}"):
                await waiting
            waiting = asyncio.create_task(sender.wait(sent))
            await mine_until(chain, waiting)  # the base fee falls by an eighth each time
            receipt = waiting.result()
            mined = await rpc.call("eth_getTransactionByHash", [hexadecimal(receipt.transaction)])
            assert quantity(mined["maxFeePerGas"]) <= cap
            assert (await sender.send(PAY)).nonce == 1
            assert await rpc.balance(RECIPIENT) == 1

    asyncio.run(main())


def test_a_chain_without_a_base_fee(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "HARDFORK", "berlin")

    async def main() -> None:
        async with manual_chain(tmp_path) as (chain, rpc):
            assert (await ask_market(rpc)).base is None
            sender = Sender(rpc, key(0), poll=0.01)
            sent = await sender.send(PAY)
            assert sent.fees.tip is None
            await chain.mine()
            await sender.wait(sent)
            shown = await rpc.call("eth_getTransactionByHash", [hexadecimal(sent.transaction)])
            assert quantity(shown["type"]) == 0
            assert quantity(shown["gasPrice"]) == sent.fees.most
            # Left behind by the market, as if signed at half its price.
            await rpc.call("anvil_setMinGasPrice", [hex(sent.fees.most * 10)])
            late = await sender.send(PAY)
            assert late.fees.most >= sent.fees.most * 10
            await chain.mine()
            await sender.wait(late)
            assert await rpc.balance(RECIPIENT) == 2

    asyncio.run(main())


def test_a_transaction_whose_block_was_undone_is_sent_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with manual_chain(tmp_path) as (chain, rpc):
            sender = Sender(rpc, key(0), poll=0.01, confirmations=4)
            await chain.mine()
            sent = await sender.send(PAY)
            for _ in range(3):
                await chain.mine()
            assert await rpc.balance(RECIPIENT) == 1
            await rpc.call("anvil_reorg", [3, []])
            assert await rpc.balance(RECIPIENT) == 0
            waiting = asyncio.create_task(sender.wait(sent))
            await mine_until(chain, waiting)
            assert waiting.result().transaction == sent.transaction
            assert await rpc.balance(RECIPIENT) == 1

    asyncio.run(main())


def test_who_took_a_nonce_is_named(tmp_path: Path) -> None:
    async def main() -> None:
        async with manual_chain(tmp_path) as (chain, rpc):
            ours, theirs = Sender(rpc, key(0), poll=0.01), Sender(rpc, key(0), poll=0.01)
            sent = await ours.send(PAY)
            await rpc.call("anvil_dropAllTransactions")
            other = await theirs.send(Call(Key(key(1)).address, b"", 5))
            assert other.nonce == sent.nonce
            await chain.mine()
            with pytest.raises(TransactionReplaced, match=str(other.transaction)):
                await ours.wait(sent)
            assert await rpc.balance(RECIPIENT) == 0

    asyncio.run(main())


def test_a_nonce_counts_as_taken_only_when_its_taker_is_deep_enough(tmp_path: Path) -> None:
    async def main() -> None:
        async with manual_chain(tmp_path) as (chain, rpc):
            ours, theirs = Sender(rpc, key(0), poll=0.01, confirmations=3), Sender(rpc, key(0), poll=0.01)
            sent = await ours.send(PAY)
            await rpc.call("anvil_dropAllTransactions")
            await theirs.send(Call(Key(key(1)).address, b"", 5))
            await chain.mine()
            with pytest.raises(TransactionPending):
                await ours.wait(sent, deadline=0.3)
            await rpc.call("anvil_reorg", [1, []])
            waiting = asyncio.create_task(ours.wait(sent))
            await mine_until(chain, waiting)
            assert waiting.result().transaction == sent.transaction
            assert await rpc.balance(RECIPIENT) == 1

    asyncio.run(main())


@asynccontextmanager
async def behind_ends(directory: Path, ends: int) -> AsyncIterator[tuple[LocalChain, Rpc, Rpc, list[FaultyEnd]]]:
    async with manual_chain(directory) as (chain, straight), AsyncExitStack() as stack:
        used = [await stack.enter_async_context(faulty_end(chain.url)) for _ in range(ends)]
        urls = " ".join(end.url for end in used)
        async with Rpc(urls, chain_id=31337, timeout=0.5, pause=0.001) as rpc:
            yield chain, straight, rpc, used


def lie_replaced(calls: list[dict[str, object]], answers: list[dict[str, object]]) -> None:
    """This key has sent much since, and nobody knows this transaction."""
    for call, answer in zip(calls, answers, strict=True):
        if call["method"] == "eth_getTransactionCount":
            answer["result"] = "0x7"
        if call["method"] == "eth_getTransactionReceipt":
            answer["result"] = None


def lie_refused(calls: list[dict[str, object]], answers: list[dict[str, object]]) -> None:
    """It was sent on all the same."""
    for call, answer in zip(calls, answers, strict=True):
        if call["method"] == "eth_sendRawTransaction":
            answer.pop("result", None)
            answer["error"] = {"code": -32000, "message": "nonce too low"}
        elif call["method"] == "eth_getTransactionByHash":
            answer["result"] = None


@pytest.mark.parametrize("ends", [2, 3])
def test_an_end_that_lies_about_a_fate_makes_nobody_pay_twice(tmp_path: Path, ends: int) -> None:
    async def main() -> None:
        async with behind_ends(tmp_path, ends) as (chain, straight, rpc, faulty):
            faulty[0].fault = lie_replaced
            sender = Sender(rpc, key(0), poll=0.01)
            sent = await sender.send(PAY)
            assert sent.nonce == 0
            await chain.mine()
            if ends == 2:
                with pytest.raises(TransactionPending, match="contradict each other"):
                    await sender.wait(sent, deadline=0.3)
                faulty[0].fault = None
            assert (await sender.wait(sent)).transaction == sent.transaction
            faulty[0].fault = lie_refused
            again = await sender.send(PAY)
            await chain.mine()
            assert (await sender.wait(again)).transaction == again.transaction
            assert await straight.balance(RECIPIENT) == 2

    asyncio.run(main())


def test_an_end_that_swallows_transactions_does_no_harm_where_there_is_another(tmp_path: Path) -> None:
    async def main() -> None:
        async with behind_ends(tmp_path, 2) as (chain, straight, rpc, faulty):
            faulty[0].fault = change("eth_sendRawTransaction", lambda _: "0x" + "00" * 32)
            sender = Sender(rpc, key(0), poll=0.01)
            sent = await sender.send(PAY)
            await chain.mine()
            await sender.wait(sent)
            assert await straight.balance(RECIPIENT) == 1
            with pytest.raises(RpcRefused):
                await Sender(rpc, b"\x07" * 32).send(PAY, gas=21_000)  # no coins: all ends refuse

    asyncio.run(main())


def test_no_single_end_of_three_sets_the_price(tmp_path: Path) -> None:
    async def main() -> None:
        async with behind_ends(tmp_path, 3) as (_, straight, rpc, faulty):
            honest = await ask_market(straight)
            faulty[0].fault = change("eth_maxPriorityFeePerGas", lambda _: hex(10**15))
            assert await ask_market(rpc) == honest
            faulty[0].fault = change("eth_getBlockByNumber", lambda block: block | {"baseFeePerGas": hex(10**15)})
            assert await ask_market(rpc) == honest

    asyncio.run(main())
