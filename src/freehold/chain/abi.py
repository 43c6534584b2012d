"""Calldata, answers and events of contracts, between Python values and the ABI.

The generated classes in `contracts/` hold the types and names; everything that encodes or decodes is here. Addresses
are `Address`, bytes32 is `Hash`, other bytes are `bytes`, integers are `int`; a struct is a NamedTuple.

Invariant: an answer or event that does not decode to its type is a ChainError, never a wrong value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError

from freehold.chain.errors import ChainError
from freehold.chain.rpc import Log, Rpc
from freehold.protocol.typed import keccak
from freehold.protocol.units import Address, Hash


class Call(NamedTuple):
    """What a transaction does: `to` None creates a contract; `value` is in wei."""

    to: Address | None
    data: bytes
    value: int = 0


class Parameter(NamedTuple):
    """One argument, answer or event field: `type` as eth-abi takes it; `struct` builds a tuple's NamedTuple."""

    type: str
    struct: Struct | None = None
    indexed: bool = False


class Struct(NamedTuple):
    """A tuple type: its Python class and its fields."""

    kind: type[Any]
    fields: tuple[Parameter, ...]


class EventType(NamedTuple):
    """An event's Python class, its first topic, and its fields in their order."""

    kind: type[Any]
    topic: bytes
    fields: tuple[Parameter, ...]


class Contract:
    """Base of the generated classes: one contract at one address."""

    NAME: ClassVar[str]
    EVENTS: ClassVar[Mapping[bytes, EventType]] = {}

    def __init__(self, rpc: Rpc, address: bytes) -> None:
        self.rpc = rpc
        self.address = Address(address)

    def at(self, address: bytes) -> Self:
        """The same kind of contract at another address."""
        return type(self)(self.rpc, address)

    @classmethod
    def decode(cls, log: Log) -> Any | None:
        """The event behind a log; None where this contract has no such event."""
        event = cls.EVENTS.get(log.topics[0]) if log.topics else None
        return None if event is None else decode_event(event, log)

    @classmethod
    def creation(cls, types: Sequence[str], values: Sequence[Any]) -> Call:
        """The transaction that creates this contract."""
        return Call(None, creation_code(cls.NAME) + encode(types, [to_abi(value) for value in values]))

    def transaction(self, selector: bytes, types: Sequence[str], values: Sequence[Any], value: int = 0) -> Call:
        return Call(self.address, selector + encode(types, [to_abi(item) for item in values]), value)

    async def ask(
        self,
        selector: bytes,
        types: Sequence[str],
        values: Sequence[Any],
        answers: Sequence[Parameter],
        block: int | str,
    ) -> Any:
        """The decoded answer of a view: one value, or a tuple where the ABI names several."""
        data = selector + encode(types, [to_abi(value) for value in values])
        raw = await self.rpc.eth_call(self.address, data, block=block)
        if not raw:
            raise ChainError(f"there is no {self.NAME} at {self.address}", address=str(self.address))
        decoded = decode_values(answers, raw, self.NAME)
        return decoded[0] if len(answers) == 1 else decoded


@cache
def creation_code(name: str, artifacts: Path | None = None) -> bytes:
    """The creation code in a contract's artifact: the package's own, or one in the folder `artifacts`."""
    path = (artifacts or resources.files("freehold.chain") / "artifacts") / f"{name}.json"
    return bytes.fromhex(json.loads(path.read_text())["bytecode"].removeprefix("0x"))


def to_abi(value: Any) -> Any:
    """A value as eth-abi takes it: addresses and hashes as plain bytes, tuples by item."""
    if isinstance(value, bytes):
        return bytes(value)
    if isinstance(value, list | tuple):
        return tuple(to_abi(item) for item in value)
    return value


def from_abi(parameter: Parameter, value: Any) -> Any:
    """What eth-abi gave, as the protocol's types."""
    if parameter.type.endswith("[]"):
        item = parameter._replace(type=parameter.type[:-2])
        return tuple(from_abi(item, entry) for entry in value)
    if parameter.struct is not None:
        fields = parameter.struct.fields
        return parameter.struct.kind(*(from_abi(field, item) for field, item in zip(fields, value, strict=True)))
    if parameter.type == "address":
        return Address(value)  # eth-abi gives the hexadecimal form
    if parameter.type == "bytes32":
        return Hash(value)
    return value


def decode_values(parameters: Sequence[Parameter], raw: bytes, what: str) -> tuple[Any, ...]:
    try:
        values = decode([parameter.type for parameter in parameters], raw)
    except (DecodingError, UnicodeDecodeError, OverflowError) as error:
        raise ChainError(f"{what} answered bytes that do not decode: {error}", data=raw.hex()) from error
    return tuple(from_abi(parameter, value) for parameter, value in zip(parameters, values, strict=True))


def decode_event(event: EventType, log: Log) -> Any:
    """The event's NamedTuple; indexed fields come from the topics, the others from the data."""
    name = event.kind.__name__
    indexed = [field for field in event.fields if field.indexed]
    if len(log.topics) != len(indexed) + 1:
        raise ChainError(f"{name} has {len(indexed)} indexed fields, the log {len(log.topics) - 1}")
    topics = iter(decode_values(indexed, b"".join(log.topics[1:]), name))
    plain = iter(decode_values([field for field in event.fields if not field.indexed], log.data, name))
    return event.kind(*(next(topics) if field.indexed else next(plain) for field in event.fields))


def create_address(deployer: bytes, nonce: int) -> Address:
    """The address of the contract that `deployer` creates with its transaction `nonce` (Yellow Paper, section 7)."""
    number = nonce.to_bytes((nonce.bit_length() + 7) // 8)
    item = number if nonce and nonce < 0x80 else bytes([0x80 + len(number)]) + number
    payload = b"\x94" + bytes(deployer) + item
    return Address(keccak(bytes([0xC0 + len(payload)]) + payload)[12:])
