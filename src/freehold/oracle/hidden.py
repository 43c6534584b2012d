"""What a member hides at first and shows later: the secret behind a commitment, the salt behind a seal.

Both follow from the member's key and from what they are for, so a restarted member has the same ones with nothing on
disk, and nobody without the key can guess them. HMAC-SHA-256 as a pseudo-random function of the key; the labels keep
it apart from everything else that the key does.
"""

from __future__ import annotations

import hmac

from freehold.protocol.keys import Key
from freehold.protocol.typed import Domain, keccak
from freehold.protocol.units import Address, Hash


def derive_secret(key: Key, domain: Domain, epoch: int) -> Hash:
    """What the member's commitment of `epoch` hides."""
    return _derive(key, b"freehold beacon", domain, epoch)


def derive_salt(key: Key, domain: Domain, epoch: int, attempt: int, view: int) -> Hash:
    """What the member's seal of this view hides its report with."""
    return _derive(key, b"freehold seal", domain, epoch, attempt, view)


def compute_seal(salt: Hash, report: Hash, member: Address) -> Hash:
    """keccak(salt ‖ struct hash of the report ‖ member)."""
    return keccak(salt + report + member)


def _derive(key: Key, label: bytes, domain: Domain, *numbers: int) -> Hash:
    words = b"".join(number.to_bytes(32) for number in (domain.chain_id, *numbers))
    return Hash(hmac.digest(key.secret, label + domain.contract + words, "sha256"))
