"""Calldata, answers and events against eth-abi and the compiler's own ABI."""

from __future__ import annotations

import asyncio
import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from eth_abi.abi import decode, encode
from hypothesis import given
from hypothesis import strategies as st

from freehold.chain.abi import create_address
from freehold.chain.contracts import Credits, Ledger, Oracle, Registry, Token, ledger, oracle
from freehold.chain.contracts.ledger import Claimed, Pending
from freehold.chain.contracts.oracle import Report, ReportAccepted
from freehold.chain.contracts.registry import NodeRegistered
from freehold.chain.contracts.token import Transfer
from freehold.chain.errors import ChainError
from freehold.chain.rpc import Log, Rpc
from freehold.protocol import messages
from freehold.protocol.typed import keccak
from freehold.protocol.units import ZERO_HASH, Address, Hash
from scripts import generate_wrappers
from tests.chain.scripted import scripted

A, B = Address(b"\xaa" * 20), Address(b"\xbb" * 20)
RPC = Rpc("http://127.0.0.1:1")
TRANSFER_TOPIC = keccak(b"Transfer(address,address,uint256)")
REPORT_TYPES = [field.type for field in oracle.REPORT_STRUCT.fields]


def log_of(topics: list[bytes], data: bytes) -> Log:
    return Log(A, tuple(topics), data, 1, ZERO_HASH, ZERO_HASH, 0)


def report(seed: int = 0) -> Report:
    """Every field another value, so that a swap shows."""
    values = [Hash(bytes([i + seed]) * 32) if kind == "bytes32" else i + seed for i, kind in enumerate(REPORT_TYPES)]
    return Report(*values)  # type: ignore[arg-type]


def test_the_generated_classes_belong_to_the_artifacts() -> None:
    built = generate_wrappers.build()
    present = {path.name: path.read_text() for path in generate_wrappers.WRAPPERS.glob("*.py")}
    assert built == present


def test_every_function_and_event_of_the_abi_has_its_selector_in_the_class() -> None:
    for path in Path(str(resources.files("freehold.chain") / "artifacts")).glob("*.json"):
        artifact = json.loads(path.read_text())
        text = (generate_wrappers.WRAPPERS / f"{generate_wrappers.snake(artifact['name'])}.py").read_text()
        for item in artifact["abi"]:
            signature = (
                f"{item.get('name')}({','.join(generate_wrappers.canonical(i) for i in item.get('inputs', []))})"
            )
            digest = keccak(signature.encode()).hex()
            if item["type"] == "function":
                assert f'"{digest[:8]}"' in text, signature
            elif item["type"] == "event":
                assert f'"{digest}"' in text, signature


def test_calldata_is_selector_and_arguments() -> None:
    call = Token(RPC, A).transfer_from(A, B, 5)
    assert call.to == A
    assert call.value == 0
    # ERC-20's well-known selector of transferFrom(address,address,uint256).
    assert call.data == bytes.fromhex("23b872dd") + encode(["address", "address", "uint256"], [A.hex(), B.hex(), 5])


def test_a_struct_goes_in_and_comes_out_field_by_field() -> None:
    call = Oracle(RPC, A).submit(report(), 0b1011, b"\x01" * 195)
    struct, bitmap, signatures = decode([f"({','.join(REPORT_TYPES)})", "uint256", "bytes"], call.data[4:])
    assert Report(*struct) == tuple(bytes(v) if isinstance(v, bytes) else v for v in report())
    assert (bitmap, signatures) == (0b1011, b"\x01" * 195)
    data = encode([f"({','.join(REPORT_TYPES)})", "uint256"], [struct, 7])
    topic = next(topic for topic, event in Oracle.EVENTS.items() if event.kind is ReportAccepted)
    event = Oracle.decode(log_of([topic, (9).to_bytes(32), b"\x05" * 32], data))
    assert event == ReportAccepted(9, Hash(b"\x05" * 32), report(), 7)
    assert isinstance(event.report.anchor_hash, Hash)


def test_a_report_of_the_protocol_has_the_fields_of_the_contracts() -> None:
    message = messages.Report(**report(1)._asdict())
    assert Report(*(getattr(message, name) for name in Report._fields)) == report(1)
    assert oracle.REPORT_STRUCT.fields == ledger.REPORT_STRUCT.fields


def test_a_creation_is_the_code_and_its_arguments() -> None:
    artifact = json.loads((resources.files("freehold.chain") / "artifacts" / "Credits.json").read_text())
    call = Credits.create(A, B, 60)
    assert call.to is None
    assert call.data.hex().startswith(artifact["bytecode"][2:])
    arguments = call.data[len(artifact["bytecode"]) // 2 - 1 :]
    assert decode(["address", "address", "uint64"], arguments)[2] == 60


def test_events_take_indexed_fields_from_the_topics() -> None:
    event = Token.decode(log_of([TRANSFER_TOPIC, bytes(12) + A, bytes(12) + B], (5).to_bytes(32)))
    assert event == Transfer(A, B, 5)
    assert isinstance(event.sender, Address)
    topic = next(topic for topic, kind in Registry.EVENTS.items() if kind.kind is NodeRegistered)
    data = encode(["string", "address"], ["http://127.0.0.1:80/ä", B.hex()])
    registered = Registry.decode(log_of([topic, bytes(12) + A, bytes(12) + B], data))
    assert registered == NodeRegistered(A, B, "http://127.0.0.1:80/ä", B)


@pytest.mark.parametrize("topics", [[], [b"\x00" * 32]])
def test_an_unknown_event_is_none(topics: list[bytes]) -> None:
    assert Token.decode(log_of(topics, b"")) is None


@pytest.mark.parametrize(
    ("topics", "data"),
    [
        ([TRANSFER_TOPIC], (5).to_bytes(32)),
        ([TRANSFER_TOPIC, bytes(12) + A, bytes(12) + B], b""),
        ([TRANSFER_TOPIC, bytes(12) + A, bytes(12) + B], b"\x00" * 31),
        ([TRANSFER_TOPIC, b"\x01" * 32, bytes(12) + B], (5).to_bytes(32)),
    ],
)
def test_an_event_that_does_not_decode_is_an_error(topics: list[bytes], data: bytes) -> None:
    with pytest.raises(ChainError):
        Token.decode(log_of(topics, data))


@given(st.binary(max_size=200))
def test_any_bytes_are_an_event_or_a_typed_error(data: bytes) -> None:
    topic = next(topic for topic, event in Ledger.EVENTS.items() if event.kind is Claimed)
    try:
        event = Ledger.decode(log_of([topic, bytes(12) + A, bytes(12) + B], data))
    except ChainError:
        return
    assert isinstance(event, Claimed)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            "0x" + encode(["(bytes32,uint96,uint96,uint64,uint32)"], [(b"\x07" * 32, 1, 2, 3, 4)]).hex(),
            Pending(Hash(b"\x07" * 32), 1, 2, 3, 4),
        ),
        ("0x", None),
        ("0x1234", None),
    ],
)
def test_a_view_answers_a_typed_value_or_fails(answer: str, expected: Any) -> None:
    async def main() -> None:
        async with (
            scripted(lambda method, params: None if method == "eth_chainId" else answer) as (url, _),
            Rpc(url) as rpc,
        ):
            if expected is not None:
                assert await Ledger(rpc, A).pending(4) == expected
                return
            with pytest.raises(ChainError, match=r"no Ledger at 0xaaaa|do not decode"):
                await Ledger(rpc, A).pending(4)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("nonce", "expected"),
    [  # of 0x6ac7ea33f8831ea9dcc53393aaa88b25a785dbf0, as go-ethereum's crypto tests have them
        (0, "cd234a471b72ba2f1ccf0a70fcaba648a5eecd8d"),
        (1, "343c43a37d37dff08ae8c4a11544c718abb4fcf8"),
        (2, "f778b86fa74e846c4f0a1fbd1335fe81c00a0c91"),
        (3, "fffd933a0bc612844eaf0c6fe3e5b8e9b6c1d19c"),
    ],
)
def test_addresses_of_created_contracts(nonce: int, expected: str) -> None:
    assert create_address(bytes.fromhex("6ac7ea33f8831ea9dcc53393aaa88b25a785dbf0"), nonce).hex() == expected


@given(st.binary(min_size=20, max_size=20), st.integers(0, 2**64 - 2))
def test_addresses_of_created_contracts_are_those_of_rlp(deployer: bytes, nonce: int) -> None:
    import rlp

    assert create_address(deployer, nonce) == keccak(rlp.encode([deployer, nonce]))[12:]
