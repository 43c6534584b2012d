"""Units as types, and the two arithmetic rules of money: shares floor, and leaving the range is an error.

Amounts are integers in base units: a token has 18 decimals, a credit (one US dollar, prepaid) has 18 decimals,
a price is US dollars per token times 1e18. Measures are below 2**63, amounts below 2**96; products are Python
integers and so never overflow before they are checked.
"""

from __future__ import annotations

from typing import Annotated

from freehold.protocol.errors import MalformedMessage, Overflow

Uint8 = Annotated[int, "uint8"]
Uint32 = Annotated[int, "uint32"]
Uint64 = Annotated[int, "uint64"]
Uint256 = Annotated[int, "uint256"]
Measure = Annotated[int, "uint64"]
Amount = Annotated[int, "uint96"]

ONE = 10**18
MEASURE_LIMIT = 2**63
AMOUNT_LIMIT = 2**96


def _fixed(value: bytes | str, size: int, what: str) -> bytes:
    if isinstance(value, str):
        try:
            value = bytes.fromhex(value.removeprefix("0x"))
        except ValueError:
            raise MalformedMessage(f"{what} is not hexadecimal") from None
    elif not isinstance(value, bytes | bytearray | memoryview):
        raise MalformedMessage(f"{what} is hexadecimal, or bytes")
    if len(value) != size:
        raise MalformedMessage(f"{what} has {size} bytes, not {len(value)}")
    return bytes(value)


class Address(bytes):
    """The last 20 bytes of the keccak of a secp256k1 public key: an identity, as on every EVM chain."""

    __slots__ = ()

    def __new__(cls, value: bytes | str) -> Address:
        return super().__new__(cls, _fixed(value, 20, "an address"))

    def __repr__(self) -> str:
        return f"0x{self.hex()}"

    __str__ = __repr__


class Hash(bytes):
    """32 bytes: a keccak, a SHA-256 root, or the id that one of them gives."""

    __slots__ = ()

    def __new__(cls, value: bytes | str) -> Hash:
        return super().__new__(cls, _fixed(value, 32, "a hash"))

    def __repr__(self) -> str:
        return f"0x{self.hex()}"

    __str__ = __repr__


class Signature(bytes):
    """65 bytes r ‖ s ‖ v of a recoverable secp256k1 signature; empty while a message is not signed."""

    __slots__ = ()

    def __new__(cls, value: bytes | str = b"") -> Signature:
        return super().__new__(cls, _fixed(value, 65, "a signature") if len(value) > 2 else b"")

    def __repr__(self) -> str:
        return f"0x{self.hex()}"

    __str__ = __repr__


ZERO_HASH = Hash(bytes(32))
ZERO_ADDRESS = Address(bytes(20))
UNSIGNED = Signature()


def check_amount(value: int, what: str = "amount") -> int:
    """`value` if 0 <= value < 2**96, else Overflow."""
    if not 0 <= value < AMOUNT_LIMIT:
        raise Overflow(f"{what} {value} is outside 0 .. 2**96 - 1")
    return value


def check_measure(value: int, what: str = "measure") -> int:
    """`value` if 0 <= value < 2**63, else Overflow."""
    if not 0 <= value < MEASURE_LIMIT:
        raise Overflow(f"{what} {value} is outside 0 .. 2**63 - 1")
    return value


def mul_div(a: int, b: int, divisor: int) -> int:
    """floor(a * b / divisor), exact; a, b >= 0 and divisor > 0."""
    return a * b // divisor
