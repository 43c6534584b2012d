"""The RPC client against ends that fail in every way that we know of."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web
from eth_abi.abi import encode

from freehold.chain.errors import BadAnswer, ChainError, Reverted, RpcRefused, WrongChain
from freehold.chain.reverts import decode_revert
from freehold.chain.rpc import Rpc, is_repeatable, quantity, unhex
from tests.chain.scripted import Answer, RpcFault, scripted

ERROR = "0x08c379a0" + encode(["string"], ["credits: stale price"]).hex()


def ask(answer: Answer, method: str, params: tuple[Any, ...] = (), **options: Any) -> tuple[Any, list[str]]:
    """One call against a scripted end; the answer and every method that the end saw."""

    async def main() -> tuple[Any, list[str]]:
        async with scripted(answer) as (url, seen), Rpc(url, pause=0.001, **options) as rpc:
            return await rpc.call(method, params), seen

    return asyncio.run(main())


def refused(answer: Answer, method: str, **options: Any) -> tuple[ChainError, list[str]]:
    """The same, where the call must fail."""

    async def main() -> tuple[ChainError, list[str]]:
        async with scripted(answer) as (url, seen), Rpc(url, pause=0.001, **options) as rpc:
            with pytest.raises(ChainError) as caught:
                await rpc.call(method)
            return caught.value, seen

    return asyncio.run(main())


def fails(times: int) -> Answer:
    """503 for the first `times` calls other than eth_chainId, then 0x2a."""
    left = [times]

    def answer(method: str, params: list[Any]) -> Any:
        if method == "eth_chainId":
            return None
        left[0] -= 1
        return web.Response(status=503) if left[0] >= 0 else "0x2a"

    return answer


def test_the_chain_is_checked_before_the_first_answer() -> None:
    async def main() -> None:
        async with scripted(lambda method, params: None) as (url, seen), Rpc(url, chain_id=31337) as rpc:
            with pytest.raises(WrongChain, match="serves chain 1, the network file names chain 31337") as caught:
                await rpc.block_number()
            assert caught.value.details == {"served": 1, "expected": 31337}
            assert seen == ["eth_chainId"]

    asyncio.run(main())


@pytest.mark.parametrize(("failures", "works"), [(0, True), (3, True), (4, False)])
def test_reads_are_tried_four_times(failures: int, works: bool) -> None:
    if works:
        assert ask(fails(failures), "eth_blockNumber") == (
            "0x2a",
            ["eth_chainId"] + ["eth_blockNumber"] * (failures + 1),
        )
    else:
        error, seen = refused(fails(failures), "eth_blockNumber")
        assert error.retryable
        assert seen.count("eth_blockNumber") == 4


@pytest.mark.parametrize("method", ["eth_sendTransaction", "evm_mine", "anvil_setBalance"])
def test_what_changes_something_is_sent_once(method: str) -> None:
    error, seen = refused(fails(1), method)
    assert seen == ["eth_chainId", method]
    assert error.retryable
    assert not is_repeatable(method)
    assert is_repeatable("eth_sendRawTransaction")


def test_one_change_in_a_batch_keeps_the_batch_from_being_repeated() -> None:
    async def main() -> None:
        async with scripted(fails(1)) as (url, seen), Rpc(url, pause=0.001) as rpc:
            with pytest.raises(ChainError):
                await rpc.batch([("eth_blockNumber", []), ("evm_mine", [])])
            assert seen[1:] == ["eth_blockNumber"]

    asyncio.run(main())


def test_a_batch_is_matched_by_id() -> None:
    async def main() -> None:
        async with scripted(lambda method, params: params[0] if params else None) as (url, _), Rpc(url) as rpc:
            assert await rpc.batch([("eth_a", [1]), ("eth_b", [2]), ("eth_c", [3])]) == [1, 2, 3]
            assert await rpc.batch([]) == []

    asyncio.run(main())


def test_an_end_that_hangs_is_given_up() -> None:
    async def main() -> None:
        release = asyncio.Event()

        async def hang(request: web.Request) -> web.Response:
            await release.wait()
            return web.Response()

        app = web.Application()
        app.router.add_post("/", hang)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            async with Rpc(f"http://127.0.0.1:{runner.addresses[0][1]}", timeout=0.05, attempts=2, pause=0.001) as rpc:
                with pytest.raises(ChainError, match="no answer in time"):
                    await rpc.block_number()
        finally:
            release.set()
            await runner.cleanup()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (ERROR, "credits: stale price"),
        ({"data": ERROR}, "credits: stale price"),  # some ends wrap the data once more
        ("0x4e487b71" + encode(["uint256"], [0x11]).hex(), "panic 0x11"),
        ("0xdeadbeef" + "00" * 32, "0xdeadbeef" + "00" * 32),
        ("0x", ""),
        (None, ""),
        ("0x08c379a0ffff", "0x08c379a0ffff"),  # says it is text, and is not
    ],
)
def test_reverts_say_why(data: Any, reason: str) -> None:
    def answer(method: str, params: list[Any]) -> Any:
        if method == "eth_chainId":
            return None
        raise RpcFault(3, "execution reverted", data)

    error, seen = refused(answer, "eth_call")
    assert isinstance(error, Reverted)
    assert error.reason == reason
    assert not error.retryable
    assert seen.count("eth_call") == 1


def test_a_revert_without_data_is_one_too() -> None:
    def answer(method: str, params: list[Any]) -> Any:
        if method == "eth_chainId":
            return None
        raise RpcFault(-32000, "execution reverted")  # geth, of a constructor that asks where there is no code

    error, _ = refused(answer, "eth_estimateGas")
    assert isinstance(error, Reverted)
    assert error.reason == ""


def test_text_that_is_not_utf_8_is_shown_as_data() -> None:
    broken = bytes.fromhex("08c379a0") + encode(["bytes"], [b"\xff\xfe"])
    assert decode_revert(broken) == f"0x{broken.hex()}"


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        (web.Response(status=404, text="nothing here"), RpcRefused),
        (web.Response(text="<html>"), BadAnswer),
        (web.Response(text='{"jsonrpc": "2.0", "id": 1, "resu'), BadAnswer),
        (web.Response(text="7"), RpcRefused),
        (web.Response(text='{"jsonrpc": "2.0", "id": 1}'), RpcRefused),
        (web.Response(text='{"jsonrpc": "2.0", "id": 1, "error": "no"}'), RpcRefused),
        (web.Response(text="[]"), BadAnswer),
        (web.Response(text='[{"id": []}, {"id": {}}, 7]'), BadAnswer),
        (web.Response(text="[" * 100_000), BadAnswer),
        (web.Response(status=500, text="oops"), ChainError),
    ],
)
def test_answers_that_are_no_json_rpc(response: web.Response, kind: type[ChainError]) -> None:
    text = response.text

    def answer(method: str, params: list[Any]) -> Any:
        return None if method == "eth_chainId" else web.Response(status=response.status, text=text)

    error, _ = refused(answer, "eth_blockNumber", attempts=1)
    assert type(error) is kind


@pytest.mark.parametrize("value", [None, "", "0x", "zz", 7, [], {}])
def test_quantities_and_data_are_checked(value: Any) -> None:
    with pytest.raises(RpcRefused):
        quantity(value)
    if value not in ("", "0x"):
        with pytest.raises(RpcRefused):
            unhex(value)


def log_at(number: int, index: int) -> dict[str, str]:
    return {
        "address": "0x" + "11" * 20, "topics": [], "data": "0x", "blockNumber": hex(number), "logIndex": hex(index),
        "blockHash": "0x" + "22" * 32, "transactionHash": "0x" + "33" * 32,
    }  # fmt: skip


@pytest.mark.parametrize("most", [1, 2, 7, 10_000])
def test_log_ranges_halve_until_the_end_takes_them(most: int) -> None:
    """An end that gives at most `most` events at once; block b has b % 3 of them but is never refused alone."""

    def answer(method: str, params: list[Any]) -> Any:
        if method == "eth_chainId":
            return None
        first, last = quantity(params[0]["fromBlock"]), quantity(params[0]["toBlock"])
        found = [log_at(number, index) for number in range(first, last + 1) for index in reversed(range(number % 3))]
        if len(found) > most and first != last:
            raise RpcFault(-32005, "query returned more than allowed results")
        return found

    async def main() -> None:
        async with scripted(answer) as (url, _), Rpc(url) as rpc:
            logs = await rpc.get_logs(0, 100, [b"\x11" * 20])
            assert [(log.block_number, log.log_index) for log in logs] == [
                (b, i) for b in range(101) for i in range(b % 3)
            ]

    asyncio.run(main())


def test_a_single_block_that_is_refused_is_an_error() -> None:
    def answer(method: str, params: list[Any]) -> Any:
        if method == "eth_chainId":
            return None
        raise RpcFault(-32005, "too many results")

    async def main() -> None:
        async with scripted(answer) as (url, seen), Rpc(url) as rpc:
            with pytest.raises(RpcRefused, match="too many results"):
                await rpc.get_logs(0, 63, [b"\x11" * 20])
            assert seen.count("eth_getLogs") == 7  # 64 blocks, 32, 16, ... 1

    asyncio.run(main())
