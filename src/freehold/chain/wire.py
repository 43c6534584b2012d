"""JSON-RPC's own forms of numbers, bytes, headers and events, read strictly.

Invariant: what does not parse is a BadAnswer that names the field, never a KeyError and never a default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from freehold.chain.errors import BadAnswer, RpcRefused
from freehold.protocol.units import Address, Hash

Calls = list[tuple[str, list[Any]]]


class Header(NamedTuple):
    """A block's header, as far as the protocol reads it. `timestamp` is in seconds, `bloom` 256 bytes or none."""

    number: int
    hash: Hash
    parent_hash: Hash
    timestamp: int
    bloom: bytes = b""


class Log(NamedTuple):
    """One event as the chain stores it; `log_index` counts within the block."""

    address: Address
    topics: tuple[bytes, ...]
    data: bytes
    block_number: int
    block_hash: Hash
    transaction_hash: Hash
    log_index: int


def quantity(value: Any) -> int:
    """The integer behind a JSON-RPC quantity."""
    try:
        return int(value, 16)
    except (TypeError, ValueError):
        raise RpcRefused(f"not a quantity: {value!r:.100}") from None


def unhex(value: Any) -> bytes:
    """The bytes behind JSON-RPC data."""
    try:
        return bytes.fromhex(value.removeprefix("0x"))
    except (AttributeError, ValueError):
        raise RpcRefused(f"not hexadecimal data: {value!r:.100}") from None


def hexadecimal(value: bytes) -> str:
    """`bytes.hex` by its own name, so that an Address or Hash gives the same spelling."""
    return "0x" + bytes(value).hex()


def block_parameter(block: int | str) -> str:
    return block if isinstance(block, str) else hex(block)


def parse_header(answer: Any) -> Header | None:
    """A header out of an answer about a block; None where there is no such block. BadAnswer."""
    if answer is None:
        return None
    try:
        return Header(
            quantity(answer["number"]),
            Hash(unhex(answer["hash"])),
            Hash(unhex(answer["parentHash"])),
            quantity(answer["timestamp"]),
            unhex(answer.get("logsBloom") or "0x"),
        )
    except (KeyError, TypeError, ValueError, AttributeError, RpcRefused) as error:
        raise BadAnswer(f"a header that does not parse: {_say(error)}") from None


def parse_log(entry: Any) -> Log:
    """An event out of an answer. BadAnswer, also where the block that held it was undone (`removed`)."""
    try:
        if entry.get("removed"):
            raise BadAnswer(f"an event of block {entry['blockNumber']} was removed by a reorganisation")
        return Log(
            Address(unhex(entry["address"])),
            tuple(unhex(topic) for topic in entry["topics"]),
            unhex(entry["data"]),
            quantity(entry["blockNumber"]),
            Hash(unhex(entry["blockHash"])),
            Hash(unhex(entry["transactionHash"])),
            quantity(entry["logIndex"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, RpcRefused) as error:
        raise BadAnswer(f"an event that does not parse: {_say(error)}") from None


def parse_logs(answer: Any) -> list[Log]:
    """The events of an answer in the chain's order. BadAnswer, also where one comes twice."""
    if not isinstance(answer, list):
        raise BadAnswer("the events are no list")
    logs = sorted((parse_log(entry) for entry in answer), key=lambda log: (log.block_number, log.log_index))
    if len({(log.block_number, log.log_index) for log in logs}) != len(logs):
        raise BadAnswer("an event comes twice")
    return logs


def get_field(answer: Any, name: str) -> Any:
    """A field of an answer that must be an object with it. BadAnswer."""
    if not isinstance(answer, Mapping) or name not in answer:
        raise BadAnswer(f"an answer without {name!r}")
    return answer[name]


def _say(error: Exception) -> str:
    return error.message if isinstance(error, RpcRefused) else f"{type(error).__name__} {error}"
