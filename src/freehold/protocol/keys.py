"""secp256k1 signatures over EIP-712 digests: sign, and recover who signed.

An Ethereum address is an identity. Only low-s signatures with v of 27 or 28 are taken, so that a signature has
one spelling. Signing is deterministic (RFC 6979), hence pure.
"""

from __future__ import annotations

from coincurve import PrivateKey as CurveKey
from coincurve import PublicKey as CurvePoint

from freehold.protocol.errors import WrongSignature
from freehold.protocol.typed import Domain, Message, keccak
from freehold.protocol.units import Address, Hash, Signature

HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0  # secp256k1 n // 2 (SEC 2)


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
