"""S3 access keys of an account: made, listed and removed in its root, where every gateway of the account finds them.

A key may carry a grant, and is then good for what the grant allows only. Invariant: ids and secrets come from the
system's random source; a secret is 40 of 62 characters, 238 bits.
"""

from __future__ import annotations

import secrets
import string
import time
from collections.abc import Callable

import msgspec

from freehold.client.root import AccessKey, AccountRoot, Root
from freehold.protocol.errors import InvalidInput, NotFound, Refused

PREFIX = "FH"
MAX_KEYS = 1_000
LABEL_LIMIT = 100  # characters

_ID_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_ID_LENGTH = 18
_SECRET_LETTERS = string.ascii_letters + string.digits  # no "/" or "+", which break where people paste them into URLs
_SECRET_LENGTH = 40


async def new(
    root: AccountRoot, label: str, grant: str = "", expires: int = 0, clock: Callable[[], float] = time.time
) -> AccessKey:
    """A new key, kept in the root. `grant`: a token of this account, "" for everything. `expires`: Unix seconds, or 0.

    Refused beyond MAX_KEYS.
    """
    key = AccessKey(
        id=PREFIX + _random(_ID_LETTERS, _ID_LENGTH),
        secret=_random(_SECRET_LETTERS, _SECRET_LENGTH),
        label=check_label(label),
        created=int(clock()),
        grant=grant,
        expires=expires,
    )

    def add(old: Root) -> Root:
        if len(old.access_keys) >= MAX_KEYS:
            raise Refused(f"an account has at most {MAX_KEYS} access keys", hint="Remove one that is not used.")
        return msgspec.structs.replace(old, access_keys=old.access_keys | {key.id: key})

    await root.change(add)
    return key


async def remove(root: AccountRoot, id_: str) -> AccessKey:
    """Take a key away; requests signed with it are refused from now on. NotFound."""
    removed: list[AccessKey] = []

    def take(old: Root) -> Root:
        if id_ not in old.access_keys:
            raise NotFound(f"this account has no access key {id_}", hint="`freehold key list` shows them.")
        removed[:] = [old.access_keys[id_]]
        return msgspec.structs.replace(old, access_keys={i: k for i, k in old.access_keys.items() if i != id_})

    await root.change(take)
    return removed[0]


async def listing(root: AccountRoot) -> list[AccessKey]:
    """All keys, oldest first."""
    return sorted((await root.read()).access_keys.values(), key=lambda key: (key.created, key.id))


def check_label(label: str) -> str:
    """The label, or InvalidInput: one printable line of at most LABEL_LIMIT characters."""
    if len(label) > LABEL_LIMIT or not label.isprintable():
        raise InvalidInput(f"a label is one line of at most {LABEL_LIMIT} printable characters")
    return label


def _random(letters: str, length: int) -> str:
    return "".join(secrets.choice(letters) for _ in range(length))
