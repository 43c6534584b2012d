"""Blocks that no library would make, signed rightly all the same: whoever holds a token can append any bytes to it.

A biscuit on the wire is protobuf: a SignedBlock is (1: block, 2: next public key, 3: signature), a Biscuit is (2: the
first, 3: further blocks, 4: proof), a Proof (1: next secret). A block's signature is over block, algorithm, next key.
"""

from __future__ import annotations

import base64
import hashlib

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from freehold.client.grants import PREFIX

_ED25519 = bytes(4)  # the algorithm's number, little-endian


def append_block(token: str, block: bytes) -> str:
    """The token with one more block of these bytes."""
    raw = unpack(token)
    fields = list(_fields(raw[32:]))
    (proof,) = [value for number, value in fields if number == 4]
    (secret,) = [value for number, value in _fields(proof) if number == 1]
    next_secret = hashlib.sha256(secret).digest()
    next_public = _public(next_secret)
    signature = Ed25519PrivateKey.from_private_bytes(secret).sign(block + _ED25519 + next_public)
    key = b"\x08\x00" + _field(2, next_public)
    signed = _field(1, block) + _field(2, key) + _field(3, signature)
    kept = b"".join(_field(number, value) for number, value in fields if number != 4)
    return pack(raw[:32] + kept + _field(3, signed) + _field(4, _field(1, next_secret)))


def last_block(token: str) -> bytes:
    """The bytes of a token's last appended block."""
    signed = [value for number, value in _fields(unpack(token)[32:]) if number == 3][-1]
    return next(value for number, value in _fields(signed) if number == 1)


def unpack(token: str) -> bytes:
    """A token's bytes."""
    return base64.urlsafe_b64decode(token.removeprefix(PREFIX) + "===")


def pack(raw: bytes) -> str:
    """The token of some bytes."""
    return PREFIX + base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _public(secret: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def _field(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _fields(data: bytes) -> list[tuple[int, bytes]]:
    """The fields of a message that are bytes; none of the others matters here."""
    found, at = [], 0
    while at < len(data):
        tag, at = _read(data, at)
        size, at = _read(data, at)
        if tag & 7 == 2:
            found.append((tag >> 3, data[at : at + size]))
            at += size
    return found


def _read(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 0x80:
            return value, at
