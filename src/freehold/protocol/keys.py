"""secp256k1 signatures over EIP-712 digests: sign, and recover who signed.

An Ethereum address is an identity. Only low-s signatures with v of 27 or 28 are taken, so that a signature has
one spelling. Signing is deterministic (RFC 6979), hence pure.

Many signatures are checked at once by `recover_all`: the same curve library called with buffers that are used again,
in the threads of `hashing.spread_over` or the partitions of `partition_over`, and the public keys hashed together.
What it takes is what signatures cost.

Invariant: `recover_all` finds the address that `recover` finds for each row, and marks the rows where that raises.
"""

from __future__ import annotations

import numpy as np
from coincurve import PrivateKey as CurveKey
from coincurve import PublicKey as CurvePoint
from coincurve._libsecp256k1 import ffi, lib
from coincurve.context import GLOBAL_CONTEXT
from numpy.typing import NDArray

from freehold.protocol.errors import WrongSignature
from freehold.protocol.hashing import Bytes, for_ranges, keccak_rows
from freehold.protocol.partitions import map_rows
from freehold.protocol.typed import Domain, Message, keccak
from freehold.protocol.units import Address, Hash, Signature

HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0  # secp256k1 n // 2 (SEC 2)

RECOVERED_AT_ONCE = 256  # signatures: ten milliseconds of a thread


class Key:
    """A private key: its address, its public key, and its signature under any message."""

    def __init__(self, secret: bytes) -> None:
        self._key = CurveKey(secret)
        self.public = self._key.public_key.format(compressed=False)
        self.address = address_of(self.public)

    @property
    def secret(self) -> bytes:
        """The 32 secret bytes. Never logged, never in a message."""
        return self._key.secret

    def __repr__(self) -> str:
        return f"Key({self.address})"

    def sign_digest(self, digest: Hash) -> Signature:
        """r ‖ s ‖ v over a 32-byte digest."""
        raw = self._key.sign_recoverable(digest, hasher=None)
        return Signature(raw[:64] + bytes([raw[64] + 27]))

    def sign(self, message: Message, domain: Domain) -> Signature:
        """The signature under a message's EIP-712 digest."""
        return self.sign_digest(message.digest(domain))


def address_of(public: bytes) -> Address:
    """The address of a 65-byte uncompressed public key."""
    return Address(keccak(public[1:])[12:])


def recover_public(digest: Hash, signature: Signature) -> bytes:
    """The 65-byte public key that signed `digest`; WrongSignature if none can have."""
    if len(signature) != 65:
        raise WrongSignature("the message is not signed")
    if signature[64] not in (27, 28) or int.from_bytes(signature[32:64]) > HALF_ORDER:
        raise WrongSignature("the signature is not in its canonical form")
    try:
        point = CurvePoint.from_signature_and_message(signature[:64] + bytes([signature[64] - 27]), digest, hasher=None)
    except ValueError:
        raise WrongSignature("the signature belongs to no key") from None
    return point.format(compressed=False)


def recover(digest: Hash, signature: Signature) -> Address:
    """The address that signed `digest`; WrongSignature if none can have."""
    return address_of(recover_public(digest, signature))


def is_signed_by(message: Message, signature: Signature, signer: Address, domain: Domain) -> bool:
    """Whether `signature` is `signer`'s under the message, on this chain and contract."""
    try:
        return recover(message.digest(domain), signature) == signer
    except WrongSignature:
        return False


def check_signed_by(message: Message, signature: Signature, signer: Address, domain: Domain) -> None:
    """WrongSignature unless `signature` is `signer`'s under the message, on this chain and contract."""
    if not is_signed_by(message, signature, signer, domain):
        raise WrongSignature(f"{type(message).__name__} is not signed by {signer} for chain {domain.chain_id}")


def recover_all(digests: Bytes, signatures: Bytes) -> tuple[Bytes, NDArray[np.bool_]]:
    """Who signed each of n digests (n, 32) with signatures (n, 65): addresses (n, 20), and where there is one.

    Where no key can have signed, or the signature is not in its canonical form, the address is zero.
    """
    count = len(digests)
    if digests.shape != (count, 32) or signatures.shape != (count, 65):
        raise ValueError(f"digests of shape {digests.shape}, signatures of shape {signatures.shape}")
    parts = map_rows(_recover_part, digests, signatures)
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([addresses for addresses, _ in parts]), np.concatenate([good for _, good in parts])


def _recover_part(digests: Bytes, signatures: Bytes) -> tuple[Bytes, NDArray[np.bool_]]:
    count = len(digests)
    digests, signatures = np.ascontiguousarray(digests), np.ascontiguousarray(signatures)
    good = _are_canonical(signatures)
    points = np.zeros((count, 65), np.uint8)
    for_ranges(count, RECOVERED_AT_ONCE, lambda start, stop: _recover(digests, signatures, points, good, start, stop))
    addresses = keccak_rows([points[:, 1:]], count)[:, 12:].copy()
    addresses[~good] = 0
    return addresses, good


def are_signed_by(digests: Bytes, signatures: Bytes, signers: Bytes) -> NDArray[np.bool_]:
    """Whether each signature (n, 65) is the signer's (n, 20) under the digest (n, 32)."""
    addresses, good = recover_all(digests, signatures)
    signed: NDArray[np.bool_] = good & (addresses == signers).all(axis=1)
    return signed


def _are_canonical(signatures: Bytes) -> NDArray[np.bool_]:
    s = np.ascontiguousarray(signatures[:, 32:64]).view(">u8")
    limit = np.frombuffer(HALF_ORDER.to_bytes(32), ">u8")
    above = np.zeros(len(signatures), bool)
    for word in reversed(range(4)):
        above = (s[:, word] > limit[word]) | ((s[:, word] == limit[word]) & above)
    canonical: NDArray[np.bool_] = ~above & ((signatures[:, 64] == 27) | (signatures[:, 64] == 28))
    return canonical


def _recover(digests: Bytes, signatures: Bytes, points: Bytes, good: NDArray[np.bool_], start: int, stop: int) -> None:
    """Write the public keys of rows start .. stop - 1 into `points`; mark those that have none."""
    context = GLOBAL_CONTEXT.ctx
    parse, find = lib.secp256k1_ecdsa_recoverable_signature_parse_compact, lib.secp256k1_ecdsa_recover
    write = lib.secp256k1_ec_pubkey_serialize
    signature, point = ffi.new("secp256k1_ecdsa_recoverable_signature *"), ffi.new("secp256k1_pubkey *")
    size = ffi.new("size_t *", 65)
    at_digest, at_signature = ffi.from_buffer(digests), ffi.from_buffer(signatures)
    at_point = ffi.from_buffer(points)
    parities = signatures[:, 64]
    for i in (start + np.flatnonzero(good[start:stop])).tolist():
        if parse(context, signature, at_signature + 65 * i, int(parities[i]) - 27) and find(
            context, point, signature, at_digest + 32 * i
        ):
            write(context, at_point + 65 * i, size, point, lib.SECP256K1_EC_UNCOMPRESSED)
        else:
            good[i] = False
