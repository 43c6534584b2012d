"""Keys that follow a path, names that only they open, and the wrapping of segment keys.

Storj's idea (path-derived keys), with other parts:

    s_0 = HMAC(seed, bucket)                 the secret of a bucket
    s_i = HMAC(s_{i-1}, component_i)         the secret of everything below a prefix: what one could share
    e_i = AES-SIV(key of s_{i-1}, component_i)   the name stored; the same name under the same prefix encrypts alike,
                                             so that a listing and a lookup need no table
    a segment's keys are wrapped by AES-KW (RFC 3394) under the key of s_n

Every derivation carries a label of its own, so that no two uses share a key. Invariant: a wrong secret raises
WrongPassphrase; it never gives garbage and never an empty list.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Sequence
from hashlib import sha256

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from freehold.protocol.errors import InvalidInput, MalformedMessage, WrongPassphrase

MIN_SEED_BYTES = 16
MAX_COMPONENT_BYTES = 1024  # S3's limit for a whole key

_WRONG = "nothing here opens with this secret: it is the wrong passphrase or seed, or the data was changed"


class PathSecret:
    """The secret of a bucket or of a prefix in it. `child` goes down; nothing goes up."""

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        if len(secret) != 32:
            raise InvalidInput(f"a path's secret has 32 bytes, not {len(secret)}")
        self._secret = secret

    def __repr__(self) -> str:
        return "PathSecret(...)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PathSecret) and hmac.compare_digest(self._secret, other._secret)

    def __hash__(self) -> int:
        return hash(self._key(b"hash"))

    @classmethod
    def of_bucket(cls, seed: bytes, bucket: str) -> PathSecret:
        """s_0. `seed` is the account's (16 bytes or more, all of them uniformly random)."""
        if len(seed) < MIN_SEED_BYTES:
            raise InvalidInput(f"a seed has at least {MIN_SEED_BYTES} bytes, not {len(seed)}")
        return cls(_derive(seed, b"bucket", bucket.encode()))

    def child(self, component: str) -> PathSecret:
        """The secret of what lies under `component`."""
        return PathSecret(_derive(self._secret, b"child", _encoded(component)))

    def at(self, components: Sequence[str]) -> PathSecret:
        """The secret at the end of a path from here."""
        secret = self
        for component in components:
            secret = secret.child(component)
        return secret

    def encrypt_name(self, component: str) -> str:
        """The name of an entry directly below here: base64url, without padding, the same each time."""
        return _to_text(self._siv().encrypt(b"\x01" + _encoded(component), None))

    def decrypt_name(self, name: str) -> str:
        """The component behind `encrypt_name`'s form; WrongPassphrase if it was not made by this secret."""
        raw = _from_text(name)
        try:
            return self._siv().decrypt(raw, None)[1:].decode()
        except (InvalidTag, ValueError):
            raise WrongPassphrase(_WRONG) from None

    def encrypt_path(self, components: Sequence[str]) -> str:
        """A path from here, each component encrypted under its own prefix, joined by `/`."""
        secret, names = self, []
        for component in components:
            names.append(secret.encrypt_name(component))
            secret = secret.child(component)
        return "/".join(names)

    def decrypt_path(self, path: str) -> list[str]:
        """The components behind `encrypt_path`'s form; WrongPassphrase as for `decrypt_name`."""
        secret, components = self, []
        for name in path.split("/") if path else ():
            components.append(secret.decrypt_name(name))
            secret = secret.child(components[-1])
        return components

    def wrap(self, keys: bytes) -> bytes:
        """Keys (16 bytes or more, a multiple of 8) under this secret; 8 bytes longer. The same each time."""
        return aes_key_wrap(self._key(b"wrap"), keys)

    def unwrap(self, wrapped: bytes) -> bytes:
        """The keys behind `wrap`; WrongPassphrase if they were not wrapped by this secret."""
        try:
            return aes_key_unwrap(self._key(b"wrap"), wrapped)
        except (InvalidUnwrap, ValueError):
            raise WrongPassphrase(_WRONG) from None

    def object_key(self, label: str) -> bytes:
        """32 bytes for an encrypted object that belongs to this place, such as a bucket's index."""
        return self._key(b"object/" + label.encode())

    def _key(self, label: bytes) -> bytes:
        return _derive(self._secret, b"key", label)

    def _siv(self) -> AESSIV:
        return AESSIV(self._key(b"name/1") + self._key(b"name/2"))


def segment_context(bucket: str, path: str, index: int) -> bytes:
    """The `aad` of a segment: SHA-256 over bucket, encrypted path and segment index, each with its length."""
    if index < 0:
        raise InvalidInput(f"segment {index}")
    parts = [bucket.encode(), path.encode(), index.to_bytes(8)]
    return sha256(b"freehold/context/1" + b"".join(len(part).to_bytes(4) + part for part in parts)).digest()


def _derive(secret: bytes, label: bytes, data: bytes) -> bytes:
    return hmac.digest(secret, b"freehold/path/1/" + label + b"\x00" + data, "sha256")


def _encoded(component: str) -> bytes:
    try:
        raw = component.encode()
    except UnicodeEncodeError:
        raise InvalidInput("a name that is not valid Unicode") from None
    if len(raw) > MAX_COMPONENT_BYTES:
        raise InvalidInput(f"a name has at most {MAX_COMPONENT_BYTES} bytes, not {len(raw)}")
    return raw


def _to_text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _from_text(text: str) -> bytes:
    try:
        raw = base64.b64decode(text.encode() + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise MalformedMessage("an encrypted name that is not base64url") from None
    if _to_text(raw) != text:
        raise MalformedMessage("an encrypted name that is not in its canonical form")
    return raw
