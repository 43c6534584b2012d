"""One definition of a message gives its JSON form, its EIP-712 type and its row schema.

A message is a frozen struct whose annotations are protocol types (`units.py`), `str`, `bytes`, other messages or
tuples of them. Fields of type `Signature` travel with the message but are no part of what is signed. A tuple that is
annotated as `ROOTED` travels whole and is signed as one `bytes32`: the row root (`merkle.py`) over its items' words (a
message's struct hash), so that one item can be shown without the others.

    struct_hash   keccak(type hash ‖ fields without signatures)      (EIP-712 hashStruct)
    digest        what a key signs: struct_hash under a domain        (EIP-712)
    row_hash      keccak(struct_hash ‖ signatures ‖ for each field of signed messages their row hash, or the keccak of
                  their row hashes side by side): what a batch commits to, so that no signature in it can be swapped

Invariant: `M.from_json(m.to_json()) == m`, and anything that is not exactly of the type is MalformedMessage.
Source of the hashing rules: EIP-712 (checked against eth-account in the tests).
"""

from __future__ import annotations

import re
import types
from functools import cache
from typing import Any, NamedTuple, Self, get_args, get_origin, get_type_hints

import msgspec
from sha3 import keccak_256

from freehold.protocol.errors import MalformedMessage
from freehold.protocol.merkle import row_root
from freehold.protocol.units import Address, Hash, Signature

JSON_SAFE_BITS = 53
ROOTED = "rooted"  # Annotated[tuple[...], ROOTED]
DEEPEST = 100  # nesting of JSON that is read at all
_BRACKETS = re.compile(rb"[\[\]{}]")


def keccak(data: bytes) -> Hash:
    """keccak-256, the hash of Ethereum (not SHA3-256)."""
    return Hash(keccak_256(data).digest())


class Domain(NamedTuple):
    """Where a signature counts: one chain and one contract (the network's Oracle)."""

    chain_id: int
    contract: Address

    def separator(self) -> Hash:
        """The EIP-712 domain separator for name "Freehold", version "1"."""
        return _separator(self.chain_id, self.contract)


@cache
def _separator(chain_id: int, contract: Address) -> Hash:
    kind = keccak(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
    parts = kind + keccak(b"Freehold") + keccak(b"1") + chain_id.to_bytes(32) + bytes(12) + contract
    return keccak(parts)


class Field(NamedTuple):
    """One field of a message: `solidity` is its EIP-712 base type; `item` a message's class; `many` a tuple of them,
    which is signed as its root where `rooted`."""

    name: str
    solidity: str
    bits: int
    item: type[Message] | None
    many: bool
    rooted: bool = False

    @property
    def signed_type(self) -> str:
        """Its type as the EIP-712 type string has it."""
        return "bytes32" if self.rooted else f"{self.solidity}[]" if self.many else self.solidity


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every message. Construction checks every field's type and range."""

    def __post_init__(self) -> None:
        for field in fields_of(type(self)):
            value = getattr(self, field.name)
            if field.many:
                if not isinstance(value, tuple):
                    raise MalformedMessage(f"{type(self).__name__}.{field.name} is not a tuple")
                for item in value:
                    _check(self, field, item)
            else:
                _check(self, field, value)

    def struct_hash(self) -> Hash:
        """EIP-712 hashStruct over the fields that are not signatures."""
        kind = type(self)
        parts: list[bytes] = [type_hash(kind)]
        for field in fields_of(kind):
            if field.solidity != "signature":
                parts.append(_encode(field, getattr(self, field.name)))
        return keccak(b"".join(parts))

    def digest(self, domain: Domain) -> Hash:
        """What a key signs."""
        return keccak(b"\x19\x01" + domain.separator() + self.struct_hash())

    def row_hash(self) -> Hash:
        """The leaf that stands for this message, its signatures included, in a batch's or table's Merkle root."""
        fields = fields_of(type(self))
        parts = [self.struct_hash(), *(getattr(self, f.name) for f in fields if f.solidity == "signature")]
        for field in fields:
            if field.item is not None and is_signed(field.item):
                value = getattr(self, field.name)
                parts.append(keccak(b"".join(i.row_hash() for i in value)) if field.many else value.row_hash())
        return keccak(b"".join(parts))

    def to_json(self) -> dict[str, Any]:
        """JSON-ready: bytes as 0x hex, integers above 53 bits as decimal strings."""
        return {f.name: _to_json(f, getattr(self, f.name)) for f in fields_of(type(self))}

    @classmethod
    def from_json(cls, value: object) -> Self:
        """The message behind `to_json`'s form. MalformedMessage names the field that is not as it must be."""
        if not isinstance(value, dict):
            raise MalformedMessage(f"{cls.__name__} must be an object")
        fields = fields_of(cls)
        unknown = set(value) - {f.name for f in fields}
        if unknown:
            raise MalformedMessage(f"{cls.__name__} has no field {sorted(unknown)[0]!r}")
        arguments = {}
        for field in fields:
            if field.name not in value:
                raise MalformedMessage(f"{cls.__name__}.{field.name} is missing")
            arguments[field.name] = _from_json(cls, field, value[field.name])
        return cls(**arguments)

    def to_bytes(self) -> bytes:
        """Canonical JSON: sorted keys, no spaces."""
        return canonical_json(self.to_json())

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The message behind `to_bytes`'s form (any JSON spelling is taken)."""
        return cls.from_json(parse_json(data))


def canonical_json(value: object) -> bytes:
    """JSON with sorted keys and no spaces: one value, one spelling."""
    return msgspec.json.encode(value, order="sorted")


def parse_json(data: bytes) -> Any:
    """Decoded JSON, or MalformedMessage."""
    if is_deep(data):
        raise MalformedMessage(f"not JSON: nested deeper than {DEEPEST}")
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedMessage(f"not JSON: {error}") from None


def is_deep(data: bytes) -> bool:
    """Whether JSON may be nested deeper than DEEPEST: parsers recurse, and a library may have raised Python's limit so
    far that they overflow the stack. Brackets in strings count too."""
    if data.count(b"[") + data.count(b"{") <= DEEPEST:
        return False
    depth = 0
    for bracket in _BRACKETS.finditer(data):
        depth += 1 if bracket[0] in b"[{" else -1
        if depth > DEEPEST:
            return True
    return False


@cache
def fields_of(kind: type[Message]) -> tuple[Field, ...]:
    """The fields of a message class in their order of definition."""
    hints = get_type_hints(kind, include_extras=True)
    return tuple(_field(name, hints[name]) for name in kind.__struct_fields__)


@cache
def is_signed(kind: type[Message]) -> bool:
    """Whether a message has a signature, its own or that of a message in it."""
    return any(f.solidity == "signature" or (f.item is not None and is_signed(f.item)) for f in fields_of(kind))


def _field(name: str, hint: Any) -> Field:
    if get_origin(hint) is tuple:
        return _field(name, get_args(hint)[0])._replace(many=True)
    if isinstance(hint, type) and not isinstance(hint, types.GenericAlias):
        if issubclass(hint, Message):
            return Field(name, hint.__name__, 0, hint, False)
        known = {Address: "address", Hash: "bytes32", Signature: "signature", bytes: "bytes", str: "string"}
        if hint in known:
            return Field(name, known[hint], 0, None, False)
    metadata = getattr(hint, "__metadata__", ())
    if metadata == (ROOTED,):
        return _field(name, get_args(hint)[0])._replace(rooted=True)
    if metadata and str(metadata[0]).startswith("uint"):
        return Field(name, metadata[0], int(metadata[0][4:]), None, False)
    raise TypeError(f"{name}: {hint} is not a protocol type")


def _references(kind: type[Message]) -> set[type[Message]]:
    found: set[type[Message]] = set()
    for field in fields_of(kind):
        if field.item is not None and not field.rooted and field.item not in found:
            found |= {field.item} | _references(field.item)
    return found


def _type_string(kind: type[Message]) -> str:
    members = [f"{f.signed_type} {f.name}" for f in fields_of(kind) if f.solidity != "signature"]
    return f"{kind.__name__}({','.join(members)})"


@cache
def eip712_type(kind: type[Message]) -> str:
    """The EIP-712 encodeType string: the type itself, then the types it refers to, by name."""
    others = sorted(_references(kind) - {kind}, key=lambda k: k.__name__)
    return "".join(_type_string(k) for k in [kind, *others])


@cache
def type_hash(kind: type[Message]) -> Hash:
    """keccak of the EIP-712 type string."""
    return keccak(eip712_type(kind).encode())


def _encode(field: Field, value: Any) -> bytes:
    if field.many:
        single = field._replace(many=False)
        words = [_encode(single, item) for item in value]
        return row_root(words) if field.rooted else keccak(b"".join(words))
    if field.bits:
        return int(value).to_bytes(32)
    if field.item is not None:
        return bytes(value.struct_hash())
    if field.solidity == "bytes32":
        return bytes(value)
    if field.solidity == "address":
        return bytes(12) + bytes(value)
    return keccak(value.encode() if isinstance(value, str) else value)


_CLASSES: dict[str, type] = {"address": Address, "bytes32": Hash, "signature": Signature, "bytes": bytes, "string": str}


def _check(message: Message, field: Field, value: Any) -> None:
    if field.bits:
        if type(value) is not int or not 0 <= value < 1 << field.bits:
            raise MalformedMessage(f"{type(message).__name__}.{field.name} is not a {field.solidity}: {value!r}")
        return
    wanted = field.item or _CLASSES[field.solidity]
    if not isinstance(value, wanted):
        raise MalformedMessage(f"{type(message).__name__}.{field.name} is not a {wanted.__name__}")


def _to_json(field: Field, value: Any) -> Any:
    if field.many:
        single = field._replace(many=False)
        return [_to_json(single, item) for item in value]
    if field.bits:
        return value if field.bits <= JSON_SAFE_BITS else str(value)
    if field.item is not None:
        return value.to_json()
    return value if field.solidity == "string" else f"0x{value.hex()}"


def _from_json(kind: type[Message], field: Field, value: Any) -> Any:
    what = f"{kind.__name__}.{field.name}"
    if field.many:
        if not isinstance(value, list):
            raise MalformedMessage(f"{what} must be a list")
        single = field._replace(many=False)
        return tuple(_from_json(kind, single, item) for item in value)
    if field.item is not None:
        return field.item.from_json(value)
    if field.bits:
        return _parse_integer(what, field, value)
    if not isinstance(value, str):
        raise MalformedMessage(f"{what} must be a string")
    if field.solidity == "string":
        return value
    if not value.startswith("0x"):
        raise MalformedMessage(f"{what} must be 0x hexadecimal")
    try:
        raw = bytes.fromhex(value[2:])
    except ValueError:
        raise MalformedMessage(f"{what} is not hexadecimal") from None
    try:
        return raw if field.solidity == "bytes" else _CLASSES[field.solidity](raw)
    except MalformedMessage as error:
        raise MalformedMessage(f"{what}: {error.message}") from None


def _parse_integer(what: str, field: Field, value: Any) -> int:
    if field.bits <= JSON_SAFE_BITS:
        if type(value) is int:
            return value
        raise MalformedMessage(f"{what} must be a number")
    if isinstance(value, str) and 0 < len(value) <= 78 and value.isascii() and value.isdigit():
        return int(value)
    raise MalformedMessage(f"{what} must be a decimal string")
