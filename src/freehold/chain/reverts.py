"""What a contract says when it reverts.

Solidity and Vyper agree on `Error(string)`; `Panic(uint256)` is the compiler's own; a bare `assert` says nothing;
anything else is a custom error, which is given as its hexadecimal data.
"""

from __future__ import annotations

from eth_abi.abi import decode
from eth_abi.exceptions import DecodingError

ERROR = bytes.fromhex("08c379a0")  # keccak("Error(string)")[:4]
PANIC = bytes.fromhex("4e487b71")  # keccak("Panic(uint256)")[:4]


def decode_revert(data: bytes) -> str:
    """The reason in the returned bytes of a revert; empty where none was given."""
    selector, arguments = data[:4], data[4:]
    try:
        if selector == ERROR:
            return str(decode(["string"], arguments)[0])
        if selector == PANIC:
            return f"panic 0x{decode(['uint256'], arguments)[0]:x}"
    except (DecodingError, UnicodeDecodeError, OverflowError):
        return f"0x{data.hex()}"
    return f"0x{data.hex()}" if data else ""
