"""What a header proves by itself: that its fields have its hash, and which contracts cannot have logged in its block.

Ethereum's block hash is the keccak of the RLP of the header's fields, under every consensus that go-ethereum and
anvil speak (Clique's signature is part of the extra data, so it too is hashed). Then whoever confirms a hash confirms
every field, the bloom included. Not everywhere: on cosmos/evm it is CometBFT's hash of CometBFT's header, and nothing
can be recomputed. So this says only whether a header does; `chain/rpc.py` keeps in mind whether a chain's headers do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from freehold.chain.errors import RpcRefused
from freehold.chain.wire import quantity, unhex
from freehold.protocol.typed import keccak

BLOOM_BYTES = 256

# In RLP's order. Numbers lose their leading zeros, everything else is bytes.
FIELDS = (
    "parentHash", "sha3Uncles", "miner", "stateRoot", "transactionsRoot", "receiptsRoot", "logsBloom", "difficulty",
    "number", "gasLimit", "gasUsed", "timestamp", "extraData", "mixHash", "nonce",
)  # fmt: skip
# Each fork added to the end, so these are present up to some point and absent behind it.
LATER_FIELDS = (
    "baseFeePerGas", "withdrawalsRoot", "blobGasUsed", "excessBlobGas", "parentBeaconBlockRoot", "requestsHash",
)  # fmt: skip
NUMBERS = {
    "difficulty", "number", "gasLimit", "gasUsed", "timestamp", "baseFeePerGas", "blobGasUsed", "excessBlobGas",
}  # fmt: skip
# What a block has beside its header.
OTHER = {"hash", "size", "totalDifficulty", "transactions", "uncles", "withdrawals"}
KNOWN = OTHER | set(FIELDS) | set(LATER_FIELDS)


def is_hash_of_fields(block: Mapping[str, Any]) -> bool | None:
    """Whether a block's hash is the keccak of its header; None where it has fields that this release does not know."""
    present = [name for name in LATER_FIELDS if block.get(name) is not None]
    if list(LATER_FIELDS[: len(present)]) == present and all(name in block for name in FIELDS):
        try:
            items = [_encode_field(name, block[name]) for name in (*FIELDS, *present)]
            if keccak(encode_list(items)) == unhex(block["hash"]):
                return True
        except (RpcRefused, KeyError):
            return False
    return None if any(block[name] is not None for name in set(block) - KNOWN) else False


def may_contain(bloom: bytes, item: bytes) -> bool:
    """Whether a block with this bloom may have logs with `item` (an address or a topic); False is certain."""
    digest = keccak(item)
    for i in (0, 2, 4):
        bit = int.from_bytes(digest[i : i + 2]) % (8 * BLOOM_BYTES)
        if not bloom[BLOOM_BYTES - 1 - bit // 8] >> bit % 8 & 1:
            return False
    return True


def encode_item(data: bytes) -> bytes:
    """RLP of a byte string (Yellow Paper, appendix B)."""
    return data if len(data) == 1 and data[0] < 0x80 else _encode_length(len(data), 0x80) + data


def encode_list(items: list[bytes]) -> bytes:
    """RLP of a list of items that are encoded already."""
    payload = b"".join(items)
    return _encode_length(len(payload), 0xC0) + payload


def _encode_length(length: int, offset: int) -> bytes:
    if length < 56:
        return bytes([offset + length])
    size = (length.bit_length() + 7) // 8
    return bytes([offset + 55 + size]) + length.to_bytes(size)


def _encode_field(name: str, value: Any) -> bytes:
    if name not in NUMBERS:
        return encode_item(unhex(value))
    number = quantity(value)
    return encode_item(number.to_bytes((number.bit_length() + 7) // 8))
