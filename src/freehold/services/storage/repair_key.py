"""The repair key of a segment: 16 random bytes, shared among the oracle's members so that f of them learn nothing.

The masks of a segment's shards come from this key (`codec.py`), so a node that stores nothing cannot make its shard
from its peers'. Whoever repairs needs it: any f+1 members together open it, for a repair order and nothing else.

    share j      Shamir over GF(2^128), position j+1, threshold f+1            (16 bytes)
    sealed[j]    ECIES to member j's secp256k1 key of: position ‖ share ‖ binding

The binding is a hash of the shards' roots. A member opens a share only beside the record that it was made for, so that
nobody can paste a stranger's sealed shares into a record of their own and have them opened.

Invariant: any `threshold` opened shares combine to the key; fewer say nothing about it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from Crypto.Protocol.SecretSharing import Shamir
from ecies import decrypt, encrypt
from ecies.config import Config

from freehold.protocol.errors import InvalidInput, WrongPassphrase
from freehold.protocol.typed import keccak

REPAIR_KEY_BYTES = 16  # Shamir's field is GF(2^128)
SHARE_BYTES = 16
MAX_MEMBERS = 255

_ECIES = Config(is_ephemeral_key_compressed=True, is_hkdf_key_compressed=True)
_BINDING = b"freehold/repair-share/1"


class Share(NamedTuple):
    """`position` is 1 for the first member."""

    position: int
    value: bytes


def random_repair_key() -> bytes:
    return secrets.token_bytes(REPAIR_KEY_BYTES)


def binding_of(roots: Sequence[bytes]) -> bytes:
    """What ties sealed shares to one segment: keccak over its shards' roots (32 bytes)."""
    return keccak(_BINDING + b"".join(roots))


def seal_repair_key(
    repair: bytes, member_keys: Sequence[bytes], threshold: int, roots: Sequence[bytes]
) -> tuple[bytes, ...]:
    """`sealed` of a segment record: share j for `member_keys[j]` (a secp256k1 public key of 33 or 65 bytes).

    `threshold` is f+1. InvalidInput for a threshold that the members cannot meet.
    """
    if len(repair) != REPAIR_KEY_BYTES:
        raise InvalidInput(f"a repair key has {REPAIR_KEY_BYTES} bytes, not {len(repair)}")
    if not 1 <= threshold <= len(member_keys) <= MAX_MEMBERS:
        raise InvalidInput(f"{threshold} of {len(member_keys)} members is no threshold")
    binding = binding_of(roots)
    if threshold == 1:  # Shamir of degree 0: every share is the key itself
        shares = [(position, repair) for position in range(1, len(member_keys) + 1)]
    else:
        shares = Shamir.split(threshold, len(member_keys), repair, ssss=False)
    return tuple(
        encrypt(key, bytes([position]) + value + binding, config=_ECIES)
        for key, (position, value) in zip(member_keys, shares, strict=True)
    )


def open_share(sealed: bytes, member_secret: bytes, roots: Sequence[bytes]) -> Share:
    """A member's share, for the segment with these shard roots.

    WrongPassphrase if it was not sealed to this key; InvalidInput if it was made for another segment.
    """
    try:
        opened = decrypt(member_secret, sealed, config=_ECIES)
    except (ValueError, IndexError):
        raise WrongPassphrase("the sealed share does not open with this member's key") from None
    if len(opened) != 1 + SHARE_BYTES + 32:
        raise InvalidInput("a sealed share that holds something else")
    if opened[1 + SHARE_BYTES :] != binding_of(roots):
        raise InvalidInput("the sealed share belongs to another segment")
    return Share(opened[0], opened[1 : 1 + SHARE_BYTES])


def combine(shares: Iterable[Share], threshold: int) -> bytes:
    """The repair key from opened shares; InvalidInput when fewer than `threshold` distinct ones are given."""
    distinct = dict(shares)
    if len(distinct) < threshold:
        raise InvalidInput(f"{len(distinct)} shares are too few: {threshold} are needed")
    chosen = sorted(distinct.items())[:threshold]
    if threshold == 1:
        return chosen[0][1]
    return bytes(Shamir.combine(chosen, ssss=False))
