"""Access keys and shares in the account's root: made, listed, removed, revoked, and bounded."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

import pytest

from freehold.client import access_keys, shares
from freehold.client.errors import AccessDenied
from freehold.client.grants import LATEST, GrantKey, Grants, describe, narrow
from freehold.client.heads import LocalHeads
from freehold.client.root import AccountRoot
from freehold.protocol.errors import InvalidInput, NotFound, Refused
from freehold.protocol.units import Address

T = TypeVar("T")
SEED = b"s" * 32
KEY = GrantKey(SEED)
ACCOUNT = Address("0x" + "a1" * 20)


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def root(tmp_path: Path) -> AccountRoot:
    return AccountRoot(LocalHeads(tmp_path), SEED)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def do(what: Awaitable[T]) -> T:
    async def run() -> T:
        return await what

    return asyncio.run(run())


def issue(expires: int | None = 5_000, **what: object) -> str:
    return KEY.issue(ACCOUNT, ["read", "list"], bucket="b-1", prefix="p/", expires=expires)


def allowed(root: AccountRoot, token: str, now: int = 1_000) -> bool:
    try:
        Grants(KEY.public_key).check(token, "read", "b-1", "p/q", now, do(root.read()).revoked)
    except AccessDenied:
        return False
    return True


def test_keys_are_made_listed_and_removed(root: AccountRoot, clock: Clock) -> None:
    first = do(access_keys.new(root, "laptop", clock=clock))
    clock.now += 1
    token = issue()
    second = do(access_keys.new(root, "backup", token, 5_000, clock))
    for key in (first, second):
        assert re.fullmatch(r"FH[A-Z2-7]{18}", key.id)
        assert re.fullmatch(r"[A-Za-z0-9]{40}", key.secret)
    assert first.id != second.id
    assert first.secret != second.secret
    assert (second.label, second.created, second.grant, second.expires) == ("backup", 1_001, token, 5_000)
    assert do(access_keys.listing(root)) == [first, second]
    assert do(access_keys.remove(root, first.id)) == first
    assert do(access_keys.listing(root)) == [second]
    with pytest.raises(NotFound, match=first.id):
        do(access_keys.remove(root, first.id))


def test_labels_and_the_number_of_keys_are_bounded(root: AccountRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    for label in ("x" * 101, "two\nlines", "\x1b[31mred"):
        with pytest.raises(InvalidInput):
            do(access_keys.new(root, label))
    monkeypatch.setattr(access_keys, "MAX_KEYS", 2)
    for _ in range(2):
        do(access_keys.new(root, ""))
    with pytest.raises(Refused, match="at most 2"):
        do(access_keys.new(root, ""))
    assert len(do(access_keys.listing(root))) == 2


def test_a_share_is_seen_and_revoked_without_its_token(root: AccountRoot, clock: Clock) -> None:
    token = issue()
    share = do(shares.keep(root, token, "for Ann", clock))
    assert (share.path, share.operations, share.expires) == ("fh://b-1/p/*", ("read", "list"), 5_000)
    (id_,) = do(shares.listing(root, clock))
    assert (id_,) == describe(token).ids
    assert allowed(root, token)
    for wrong in ("", id_[:4], "f" * 128, "nothing"):
        with pytest.raises(NotFound):
            do(shares.revoke(root, KEY, wrong, clock=clock))
    assert do(shares.revoke(root, KEY, id_[: shares.SHOWN], clock=clock)) == (id_, "fh://b-1/p/*", 5_000)
    assert do(shares.listing(root, clock)) == {}
    assert not allowed(root, token)


def test_revoking_kills_a_token_and_what_was_narrowed_from_it_only(root: AccountRoot, clock: Clock) -> None:
    token = issue()
    child = narrow(token, prefix="p/q", expires=2_000)
    grandchild = narrow(child, operations=["read"])
    url = f"http://127.0.0.1:1/-/share/{child}/b-1/p/q"
    assert do(shares.revoke(root, KEY, url, clock=clock)).until == 2_000
    assert [allowed(root, t) for t in (token, child, grandchild)] == [True, False, False]
    revoked = do(shares.revoke(root, KEY, grandchild, everything=True, clock=clock))
    assert (revoked.id, revoked.until) == (describe(token).ids[0], 5_000)  # not as soon as what it was narrowed to
    assert [allowed(root, t) for t in (token, child, grandchild)] == [False] * 3


def test_entries_drop_out_once_they_expired_by_themselves(root: AccountRoot, clock: Clock) -> None:
    short, long, endless = issue(2_000), issue(5_000), issue(None)
    for token in (short, long, endless):
        do(shares.keep(root, token, clock=clock))
        do(shares.revoke(root, KEY, token, clock=clock))
    assert do(root.read()).revoked == {
        describe(t).ids[0]: until for t, until in ((short, 2_000), (long, 5_000), (endless, LATEST))
    }
    kept = issue(3_000)
    do(shares.keep(root, kept, clock=clock))
    clock.now = 4_000
    assert do(shares.listing(root, clock)) == {}
    last = issue(9_000)
    do(shares.keep(root, last, clock=clock))
    assert set(do(root.read()).revoked) == {describe(long).ids[0], describe(endless).ids[0]}
    assert set(do(root.read()).shares) == {describe(last).ids[0]}
    assert not allowed(root, short, now=4_000)


def test_shares_and_revocations_are_bounded(root: AccountRoot, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "MAX_SHARES", 1)
    monkeypatch.setattr(shares, "MAX_REVOKED", 1)
    first, second = issue(3_000), issue(4_000)
    do(shares.keep(root, first, clock=clock))
    with pytest.raises(Refused, match="at most 1"):
        do(shares.keep(root, second, clock=clock))
    do(shares.revoke(root, KEY, first, clock=clock))
    do(shares.revoke(root, KEY, first, clock=clock))  # again: nothing more
    with pytest.raises(Refused, match="at most 1"):
        do(shares.revoke(root, KEY, second, clock=clock))


def test_what_is_another_accounts_or_no_token_is_not_revoked(root: AccountRoot, clock: Clock) -> None:
    with pytest.raises(InvalidInput, match="another account's"):
        do(shares.revoke(root, KEY, GrantKey(b"o" * 32).issue(ACCOUNT, ["read"]), clock=clock))
    with pytest.raises(AccessDenied):
        do(shares.revoke(root, KEY, issue()[:-4], clock=clock))
    assert do(root.read()).revoked == {}


def test_tokens_are_found_in_urls() -> None:
    token = issue()
    for text in (token, f"https://h/-/share/{token}", f"http://h:1/-/share/{token}/b-1/p/?list=1", f"/{token}?x"):
        assert shares.find_token(text) == token
    assert shares.find_token("http://h/-/share/") == shares.find_token("25f670e0b953") == ""
