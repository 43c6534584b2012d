"""Seals what others keep for an account: AES-256-GCM under a secret of one head, bound to that head and to its use.

    sealed = check (8 bytes) ‖ nonce (12, random) ‖ ciphertext and tag

`check` depends on the secret and the head only, so a wrong secret can be told from changed bytes: WrongPassphrase is
for the first, Corrupt for the second. Invariant: what opens was sealed by the same secret, for the same head and kind.
"""

from __future__ import annotations

import hmac
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from freehold.protocol.errors import Corrupt, InvalidInput, WrongPassphrase

_LABEL = b"freehold/sealing/1/"
_CHECK_BYTES = 8
_NONCE_BYTES = 12
_TAG_BYTES = 16
OVERHEAD = _CHECK_BYTES + _NONCE_BYTES + _TAG_BYTES  # bytes that sealing adds


class Sealer:
    """Seals and opens for one head. `kind` says what it is: what was sealed as one does not open as another."""

    __slots__ = ("_check", "_cipher", "_context")

    def __init__(self, secret: bytes, name: str) -> None:
        if len(secret) != 32:
            raise InvalidInput(f"a secret has 32 bytes, not {len(secret)}")
        self._context = _LABEL + name.encode() + b"/"
        self._cipher = AESGCM(HKDF(SHA256(), 32, salt=None, info=_LABEL + b"key").derive(secret))
        self._check = hmac.digest(secret, self._context + b"check", "sha256")[:_CHECK_BYTES]

    def __repr__(self) -> str:
        return "Sealer(...)"

    def seal(self, kind: bytes, plain: bytes) -> bytes:
        """`OVERHEAD` bytes longer; other bytes each time."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return b"".join((self._check, nonce, self._cipher.encrypt(nonce, plain, self._context + kind)))

    def open(self, kind: bytes, sealed: bytes) -> bytes:
        """What was sealed; WrongPassphrase for another secret's or head's, Corrupt for changed bytes."""
        if len(sealed) < OVERHEAD:
            raise Corrupt("sealed bytes that are cut short")
        if not hmac.compare_digest(sealed[:_CHECK_BYTES], self._check):
            raise WrongPassphrase(
                "this was not sealed with this secret: it is the wrong wallet, or the data was changed"
            )
        nonce = sealed[_CHECK_BYTES : _CHECK_BYTES + _NONCE_BYTES]
        try:
            return self._cipher.decrypt(nonce, memoryview(sealed)[_CHECK_BYTES + _NONCE_BYTES :], self._context + kind)
        except InvalidTag:
            raise Corrupt("sealed bytes that were changed, or stand in another's place") from None
