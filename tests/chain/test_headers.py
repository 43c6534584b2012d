"""Headers whose hashes are known from elsewhere, and what changes when a field does."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from freehold.chain.errors import BadAnswer
from freehold.chain.headers import encode_item, encode_list, is_hash_of_fields, may_contain
from freehold.chain.rpc import Rpc
from freehold.chain.transactor import Sender
from tests.chain.counter import TOPIC, Counter
from tests.chain.scripted import scripted
from tests.local.chains import key, local_chain

EMPTY_UNCLES = "0x1dcc4de8dec75d7aab85b567b6ccd41ad312451b948a7413f0a142fd40d49347"
EMPTY_TRIE = "0x56e81f171bcc55a6ff8345e692c0f86e5b48e01b996cadc001622fb5e363b421"
MAINNET = {
    "hash": "0xd4e56740f876aef8c010b86a40d5f56745a118d0906a34e69aec8c0db1cb8fa3",
    "parentHash": "0x" + "00" * 32,
    "sha3Uncles": EMPTY_UNCLES,
    "miner": "0x" + "00" * 20,
    "stateRoot": "0xd7f8974fb5ac78d9ac099b9ad5018bedc2ce0a72dad1827a1709da30580f0544",
    "transactionsRoot": EMPTY_TRIE,
    "receiptsRoot": EMPTY_TRIE,
    "logsBloom": "0x" + "00" * 256,
    "difficulty": "0x400000000",
    "number": "0x0",
    "gasLimit": "0x1388",
    "gasUsed": "0x0",
    "timestamp": "0x0",
    "extraData": "0x11bbe8db4e347b4e8c937c1c8370e4b5ed33adb3db69cbdb7a38e1e50b1b82fa",
    "mixHash": "0x" + "00" * 32,
    "nonce": "0x0000000000000042",
    "size": "0x21c",
    "totalDifficulty": "0x400000000",
    "transactions": [],
    "uncles": [],
}
GOERLI = MAINNET | {  # Clique: the signers are in the extra data
    "hash": "0xbf7e331f7f7c1dd2e05159666b3bf8bc7a8a3a9eb1d518969eab529dd9b88c1a",
    "stateRoot": "0x5d6cded585e73c4e322c30c2f782a336316f17dd85a4863b9d838d2d4b8b3008",
    "difficulty": "0x1",
    "gasLimit": "0xa00000",
    "timestamp": "0x5c51a607",
    "extraData": "0x22466c6578692069732061207468696e6722202d204166726900000000000000"
    "e0a2bd4258d2768837baa26a28fe71dc079f84c7" + "00" * 65,
    "nonce": "0x0000000000000000",
}


@pytest.mark.parametrize("block", [MAINNET, GOERLI])
def test_known_headers(block: dict[str, Any]) -> None:
    assert is_hash_of_fields(block) is True
    for name in set(block) - {"size", "totalDifficulty", "transactions", "uncles", "hash"}:
        text = block[name]
        changed = text[:-1] + ("1" if text[-1] != "1" else "2")
        assert is_hash_of_fields(block | {name: changed}) is False, name
        assert is_hash_of_fields({k: v for k, v in block.items() if k != name}) is False, name
    assert is_hash_of_fields(block | {"baseFeePerGas": "0x7"}) is False
    # A field of a fork that this release does not know: nothing can be said, unless the hash does not cover it.
    assert is_hash_of_fields(block | {"slotNumber": "0x7"}) is True
    assert is_hash_of_fields(block | {"slotNumber": "0x7", "gasUsed": "0x1"}) is None
    assert is_hash_of_fields(block | {"slotNumber": None, "gasUsed": "0x1"}) is False


def test_a_real_chain_proves_its_headers_and_its_blooms_name_who_logged(tmp_path: Path) -> None:
    async def main() -> None:
        async with local_chain(tmp_path) as chain, Rpc(chain.url) as rpc:
            sender = Sender(rpc, key(0), poll=0.01)
            counter = await Counter.make(sender)
            receipt = await sender.transact(counter.count(1))
            header = await rpc.header(receipt.block_number)
            assert header is not None
            assert rpc.hashes_fields is True
            assert may_contain(header.bloom, counter.address)
            assert may_contain(header.bloom, TOPIC)
            assert not may_contain(header.bloom, b"\x11" * 20)
            empty = await rpc.header(0)
            assert empty is not None
            assert not may_contain(empty.bloom, counter.address)

    asyncio.run(main())


def test_a_chain_whose_hashes_are_of_something_else_is_followed_without_that_proof() -> None:
    """As cosmos/evm: the hash is CometBFT's, whatever the fields are."""

    async def main() -> None:
        blocks = {hex(n): MAINNET | {"number": hex(n), "hash": f"0x{n + 1:064x}"} for n in range(2)}

        def answer(method: str, params: list[Any]) -> Any:
            return None if method == "eth_chainId" else blocks.get(params[0])

        async with scripted(answer) as (url, _), Rpc(url, attempts=1) as rpc:
            header = await rpc.header(1)
            assert header is not None
            assert header.hash.hex() == f"{2:064x}"
            assert rpc.hashes_fields is False

    asyncio.run(main())


def test_once_a_chain_proved_its_headers_one_that_does_not_is_refused() -> None:
    async def main() -> None:
        block = dict(MAINNET)

        def answer(method: str, params: list[Any]) -> Any:
            return None if method == "eth_chainId" else block

        async with scripted(answer) as (url, _), Rpc(url, attempts=1) as rpc:
            assert await rpc.header(0) is not None
            block["timestamp"] = "0x1"
            with pytest.raises(BadAnswer, match="its fields have another"):
                await rpc.header(0)
            block["slotNumber"] = "0x1"  # a fork after this release: believed, as far as the ends agree
            assert await rpc.header(0) is not None

    asyncio.run(main())


def test_rlp_of_the_yellow_paper() -> None:
    assert encode_item(b"dog") == b"\x83dog"
    assert encode_item(b"\x0f") == b"\x0f"
    assert encode_item(b"\x80") == b"\x81\x80"
    assert encode_item(b"") == b"\x80"
    assert encode_item(b"a" * 56) == b"\xb8\x38" + b"a" * 56
    assert encode_list([encode_item(b"cat"), encode_item(b"dog")]) == b"\xc8\x83cat\x83dog"
    assert encode_list([]) == b"\xc0"
