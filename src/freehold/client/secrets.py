"""All that an account needs on the network, from its seed alone: its heads' names and the secrets they open with.

A head's name is what nodes know it by: without the seed it says nothing, not even that two belong together. Invariant:
every derivation has a label of its own, so that no name or secret tells anything about another.
"""

from __future__ import annotations

import hmac

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from freehold.protocol.errors import InvalidInput

MIN_SEED_BYTES = 16
SECRET_BYTES = 32

_NAMES = b"freehold/head-name/1\x00"
_SECRETS = b"freehold/secret/1/"


def head_name(seed: bytes, identity: bytes) -> str:
    """The name of the head that the account knows as `identity`: 32 hexadecimal digits."""
    return hmac.digest(_checked(seed), _NAMES + identity, "sha256")[:16].hex()


def derive_secret(seed: bytes, label: str, identity: bytes = b"") -> bytes:
    """32 bytes for one use (`label`) of one thing (`identity`)."""
    info = _SECRETS + label.encode() + b"\x00" + identity
    return HKDF(SHA256(), SECRET_BYTES, salt=None, info=info).derive(_checked(seed))


def _checked(seed: bytes) -> bytes:
    if len(seed) < MIN_SEED_BYTES:
        raise InvalidInput(f"a seed has at least {MIN_SEED_BYTES} bytes, not {len(seed)}")
    return seed
