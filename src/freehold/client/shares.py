"""What an account shares: the grants that it gave, seen and revoked without their tokens; and those that it revoked.

The root keeps what a grant is for, by its revocation id, never the token. Revoking adds the id of a token's last block:
that token and everything narrowed from it is dead, what it was narrowed from is not. Invariant: an entry, of either
kind, drops out once its grant has expired by itself, so that both stay small.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import quote

import msgspec

from freehold.client.access_keys import check_label
from freehold.client.grants import LATEST, OPERATIONS, PREFIX, Grant, GrantKey, describe, root_key_of
from freehold.client.root import AccountRoot, Root, Share
from freehold.protocol.errors import InvalidInput, NotFound, Refused

MAX_SHARES = 1_000
MAX_REVOKED = 4_000  # with the shares less than 1 MiB of the root's 4
URL_PATH = "/-/share/"  # below a gateway; no bucket can be called "-"
SHOWN = 12  # hexadecimal digits of an id that tell shares apart for people

Clock = Callable[[], float]


class Revoked(NamedTuple):
    """A revocation: its id in hex, what the grant was for, and until when the root remembers it."""

    id: str
    path: str
    until: int


async def keep(root: AccountRoot, token: str, label: str = "", clock: Clock = time.time) -> Share:
    """Write down in the root what `token`, just issued, is for. Refused beyond MAX_SHARES that have not expired."""
    grant = describe(token)
    now = int(clock())
    share = Share(
        path=grant.describe_scope(),
        operations=tuple(name for name in OPERATIONS if name in grant.operations),
        created=now,
        expires=grant.expires or 0,
        label=check_label(label),
    )

    def add(old: Root) -> Root:
        old = _without_expired(old, now)
        if len(old.shares) >= MAX_SHARES:
            raise Refused(
                f"an account shares at most {MAX_SHARES} things", hint="`freehold share revoke` some of them."
            )
        return msgspec.structs.replace(old, shares=old.shares | {grant.ids[-1]: share})

    await root.change(add)
    return share


async def listing(root: AccountRoot, clock: Clock = time.time) -> dict[str, Share]:
    """What is shared and has not expired, by revocation id, oldest first."""
    shares = _without_expired(await root.read(), int(clock())).shares
    return dict(sorted(shares.items(), key=lambda item: (item[1].created, item[0])))


async def revoke(
    root: AccountRoot, key: GrantKey, what: str, *, everything: bool = False, clock: Clock = time.time
) -> Revoked:
    """Revoke a token, a URL with one, or a share by (the first SHOWN digits of) its id.

    `everything`: what the token was narrowed from dies too, up to what the account itself gave. NotFound, InvalidInput,
    AccessDenied if it is no token.
    """
    now = int(clock())
    token = find_token(what)
    revoked: list[Revoked] = []

    def change(old: Root) -> Root:
        old = _without_expired(old, now)
        revoked[:] = [_of_token(key, token, everything=everything) if token else _of_id(old, what)]
        if len(old.revoked) >= MAX_REVOKED and revoked[0].id not in old.revoked:
            raise Refused(f"an account has at most {MAX_REVOKED} revoked grants that have not expired yet")
        dead = old.revoked | {revoked[0].id: revoked[0].until}
        return msgspec.structs.replace(old, revoked=dead, shares={i: s for i, s in old.shares.items() if i not in dead})

    await root.change(change)
    return revoked[0]


def find_token(text: str) -> str:
    """The token that a text is, or that a URL has; "" where there is none."""
    return next((part for part in text.replace("?", "/").split("/") if part.startswith(PREFIX)), "")


def link_to(token: str, bucket: str, key: str, query: str = "") -> str:
    """The path of a gateway's URL for a key or prefix."""
    return f"{URL_PATH}{token}/{quote(bucket, safe='')}/{quote(key, safe='/~')}{query}"


def landing(token: str, grant: Grant) -> str:
    """The path of the URL for what a token is for: its object, or the page of what it may list."""
    if grant.bucket is None:
        return URL_PATH + token
    is_folder = not grant.prefix or grant.prefix.endswith("/")
    return link_to(token, grant.bucket, grant.prefix, "" if grant.exact or is_folder else "?list")


def _of_token(key: GrantKey, token: str, *, everything: bool) -> Revoked:
    if root_key_of(token) != key.public_key:
        raise InvalidInput("this grant is another account's: only that account can revoke it")
    grant = describe(token)
    block = 0 if everything else -1
    until = grant.lapses[block]
    return Revoked(grant.ids[block], grant.describe_scope(), LATEST if until is None else until)


def _of_id(root: Root, what: str) -> Revoked:
    found = [(i, share) for i, share in root.shares.items() if len(what) >= SHOWN and i.startswith(what)]
    if len(found) != 1:
        raise NotFound(f"nothing is shared under the id {what!r}", hint="`freehold share list` shows what is.")
    (id_, share) = found[0]
    return Revoked(id_, share.path, share.expires or LATEST)


def _without_expired(root: Root, now: int) -> Root:
    """The root without what has expired by itself. Who holds such a token is told so, revoked or not."""
    return msgspec.structs.replace(
        root,
        revoked={i: until for i, until in root.revoked.items() if until > now},
        shares={i: share for i, share in root.shares.items() if not share.expires or share.expires > now},
    )
