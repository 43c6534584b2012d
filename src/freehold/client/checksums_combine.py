"""Checksums of a whole from those of its parts, without the bytes.

A cyclic redundancy check is linear: that of A followed by B is that of A moved on by B's length (multiplied by
x^(8|B|) modulo the polynomial), plus that of B. So S3's FULL_OBJECT kind needs no data. Its COMPOSITE kind is the
checksum of the parts' raw checksums, with their count. All values are base64 of the big-endian digest, as S3 has them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from freehold.protocol.errors import InvalidInput


class _Kind(NamedTuple):
    width: int  # bits
    polynomial: int  # reflected


_KINDS = {
    "CRC32": _Kind(32, 0xEDB88320),
    "CRC32C": _Kind(32, 0x82F63B78),
    "CRC64NVME": _Kind(64, 0x9A6C9329AC4BC9B5),
}
_HASHES = {"SHA1": hashlib.sha1, "SHA256": hashlib.sha256}


def combine_full(algorithm: str, parts: Sequence[tuple[str, int]]) -> str:
    """The checksum of the whole from each part's (checksum, size). InvalidInput for what is not linear."""
    kind = _KINDS.get(algorithm)
    if kind is None:
        raise InvalidInput(f"{algorithm} has no checksum of the full object from those of its parts")
    whole = 0
    for value, size in parts:
        whole = _multiply(_power(kind, size), whole, kind) ^ int.from_bytes(_decode(value, kind.width // 8))
    return base64.b64encode(whole.to_bytes(kind.width // 8)).decode()


def combine_composite(algorithm: str, values: Sequence[str]) -> str:
    """The checksum of the parts' checksums, and "-" and their count. InvalidInput for an algorithm without one."""
    if algorithm in _HASHES:
        hasher = _HASHES[algorithm](usedforsecurity=False)
        for value in values:
            hasher.update(_decode(value, hasher.digest_size))
        digest = hasher.digest()
    elif algorithm in ("CRC32", "CRC32C"):
        kind = _KINDS[algorithm]
        joined = b"".join(_decode(value, kind.width // 8) for value in values)
        digest = compute_crc(algorithm, joined).to_bytes(kind.width // 8)
    else:
        raise InvalidInput(f"{algorithm} has no composite checksum")
    return f"{base64.b64encode(digest).decode()}-{len(values)}"


def compute_crc(algorithm: str, data: bytes) -> int:
    """The check of a few bytes, one at a time: for what is short."""
    kind = _KINDS[algorithm]
    table, mask = _table(kind), (1 << kind.width) - 1
    value = mask
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ mask


def _decode(value: str, size: int) -> bytes:
    try:
        raw = base64.b64decode(value, validate=True)
    except binascii.Error:
        raw = b""
    if len(raw) != size:
        raise InvalidInput(f"{value!r} is not a checksum of {size} bytes")
    return raw


def _multiply(a: int, b: int, kind: _Kind) -> int:
    """The product of two reflected polynomials (x^0 is the highest bit) modulo the kind's."""
    product, bit = 0, 1 << (kind.width - 1)
    while a:
        if a & bit:
            product ^= b
            a ^= bit
        bit >>= 1
        b = (b >> 1) ^ kind.polynomial if b & 1 else b >> 1
    return product


@cache
def _power(kind: _Kind, size: int) -> int:
    """x^(8 size) modulo the kind's polynomial."""
    power, square, exponent = 1 << (kind.width - 1), 1 << (kind.width - 2), 8 * size
    while exponent:
        if exponent & 1:
            power = _multiply(square, power, kind)
        square = _multiply(square, square, kind)
        exponent >>= 1
    return power


@cache
def _table(kind: _Kind) -> tuple[int, ...]:
    rows = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ kind.polynomial if value & 1 else value >> 1
        rows.append(value)
    return tuple(rows)
