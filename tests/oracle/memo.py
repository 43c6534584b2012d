"""Pure functions remembered, so that thousands of schedules fit into seconds: hashing and recovering signers.

Both depend on their arguments alone; a remembered answer is the answer.
"""

from __future__ import annotations

from functools import lru_cache

import pytest

from freehold.protocol import certificates, keys
from freehold.protocol.errors import WrongSignature
from freehold.protocol.typed import Message
from freehold.protocol.units import Address, Hash, Signature

REMEMBERED = 200_000


def remember(patch: pytest.MonkeyPatch) -> None:
    """Until the patch is undone."""
    recover = keys.recover

    @lru_cache(REMEMBERED)
    def attempt(digest: Hash, signature: Signature) -> Address | None:
        try:
            return recover(digest, signature)
        except WrongSignature:
            return None

    def remembered(digest: Hash, signature: Signature) -> Address:
        found = attempt(digest, signature)
        return recover(digest, signature) if found is None else found

    patch.setattr(keys, "recover", remembered)
    patch.setattr(certificates, "recover", remembered)
    patch.setattr(Message, "struct_hash", lru_cache(REMEMBERED)(Message.struct_hash))
    patch.setattr(Message, "row_hash", lru_cache(REMEMBERED)(Message.row_hash))
