"""Signed requests: every way of replaying or changing one is refused, and costs the sender nothing new."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from freehold.net import auth
from freehold.net.auth import REQUEST_HEADER, SIGNATURE_HEADER, WINDOW, Guard, authorize
from freehold.protocol.errors import DeadlineExpired, FreeholdError, MalformedMessage, NonceReused, Overloaded
from freehold.protocol.errors import WrongSignature as Wrong
from freehold.protocol.keys import Key
from freehold.protocol.typed import Domain
from freehold.protocol.units import ZERO_HASH, Address, Hash

DOMAIN = Domain(31337, Address(bytes(19) + b"\x07"))
SENDER, RECIPIENT = Key(b"\x01" * 32), Key(b"\x02" * 32).address
NOW = 1_000_000
BODY = Hash(b"\x05" * 32)


def signed(
    path: str = "/v1/x", now: int = NOW, domain: Domain = DOMAIN, recipient: Address = RECIPIENT
) -> dict[str, str]:
    return authorize(SENDER, "PUT", path, BODY, recipient, domain, now, Hash(os.urandom(32)))


def guard(now: Callable[[], float] = lambda: NOW) -> Guard:
    return Guard(RECIPIENT, DOMAIN, now)


def test_a_signed_request_names_its_sender() -> None:
    assert guard().check(signed(), "PUT", "/v1/x", BODY) == SENDER.address


@pytest.mark.parametrize(
    ("headers", "method", "path", "body"),
    [
        (signed(), "GET", "/v1/x", BODY),
        (signed(), "PUT", "/v1/y", BODY),
        (signed(), "PUT", "/v1/x?a=1", BODY),
        (signed(), "PUT", "/v1/x", ZERO_HASH),
        (signed(domain=Domain(1, DOMAIN.contract)), "PUT", "/v1/x", BODY),
        (signed(domain=Domain(31337, RECIPIENT)), "PUT", "/v1/x", BODY),
        (signed(recipient=SENDER.address), "PUT", "/v1/x", BODY),
    ],
)
def test_anything_changed_gives_another_sender(headers: dict[str, str], method: str, path: str, body: Hash) -> None:
    assert guard().check(headers, method, path, body) != SENDER.address


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({}, Wrong),
        ({REQUEST_HEADER: signed()[REQUEST_HEADER]}, Wrong),
        (signed() | {REQUEST_HEADER: "x"}, MalformedMessage),
        (signed() | {REQUEST_HEADER: f"{ZERO_HASH} soon"}, MalformedMessage),
        (signed() | {SIGNATURE_HEADER: "0x12"}, MalformedMessage),
        (signed() | {SIGNATURE_HEADER: "0x" + "00" * 65}, Wrong),
        (signed(now=NOW - WINDOW - 1), DeadlineExpired),
        (signed(now=NOW + 2 * WINDOW), DeadlineExpired),
    ],
)
def test_what_cannot_be_right_is_refused_by_type(headers: dict[str, str], error: type[FreeholdError]) -> None:
    with pytest.raises(error):
        guard().check(headers, "PUT", "/v1/x", BODY)


@pytest.mark.parametrize(("age", "good"), [(WINDOW, True), (WINDOW + 1, False)])
def test_the_deadline_is_exact(age: int, good: bool) -> None:
    headers = signed(now=NOW - age)
    if good:
        assert guard().check(headers, "PUT", "/v1/x", BODY) == SENDER.address
    else:
        with pytest.raises(DeadlineExpired):
            guard().check(headers, "PUT", "/v1/x", BODY)


def test_a_request_counts_once() -> None:
    checks, headers = guard(), signed()
    checks.check(headers, "PUT", "/v1/x", BODY)
    with pytest.raises(NonceReused):
        checks.check(headers, "PUT", "/v1/x", BODY)


def test_nonces_are_forgotten_when_they_expire_and_bounded_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "NONCE_LIMIT", 3)
    now = [float(NOW)]
    checks = guard(lambda: now[0])
    for _ in range(3):
        checks.check(signed(), "PUT", "/v1/x", BODY)
    with pytest.raises(Overloaded):
        checks.check(signed(), "PUT", "/v1/x", BODY)
    now[0] += WINDOW + 1
    assert checks.check(signed(now=int(now[0])), "PUT", "/v1/x", BODY) == SENDER.address


def test_one_sender_takes_a_part_of_the_memory_for_nonces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "SENDER_LIMIT", 2)
    now = [float(NOW)]
    checks = guard(lambda: now[0])
    for _ in range(2):
        checks.check(signed(), "PUT", "/v1/x", BODY)
    with pytest.raises(Overloaded) as refused:
        checks.check(signed(), "PUT", "/v1/x", BODY)
    assert refused.value.details["retry_after"] == WINDOW
    other = authorize(Key(b"\x03" * 32), "PUT", "/v1/x", BODY, RECIPIENT, DOMAIN, NOW, Hash(os.urandom(32)))
    checks.check(other, "PUT", "/v1/x", BODY)
    now[0] += WINDOW + 1
    checks.check(signed(now=int(now[0])), "PUT", "/v1/x", BODY)
    assert sum(checks._by_sender.values()) == len(checks._nonces) == 1


def test_from_one_sender_anybody_else_uses_up_nothing() -> None:
    checks = guard()
    with pytest.raises(Wrong):
        checks.check_from(Key(b"\x03" * 32).address, signed(), "PUT", "/v1/x", BODY)
    assert not checks._nonces
    headers = signed()
    checks.check_from(SENDER.address, headers, "PUT", "/v1/x", BODY)
    with pytest.raises(NonceReused):
        checks.check_from(SENDER.address, headers, "PUT", "/v1/x", BODY)


def test_only_those_who_may_send_pass_and_use_up_nonces() -> None:
    closed = Guard(RECIPIENT, DOMAIN, lambda: NOW, {SENDER.address})
    stranger = authorize(Key(b"\x03" * 32), "PUT", "/v1/x", BODY, RECIPIENT, DOMAIN, NOW, Hash(os.urandom(32)))
    with pytest.raises(Wrong):
        closed.check(stranger, "PUT", "/v1/x", BODY)
    assert not closed._nonces
    assert closed.check(signed(), "PUT", "/v1/x", BODY) == SENDER.address


def test_what_was_signed_before_the_start_is_refused() -> None:
    fresh = Guard(RECIPIENT, DOMAIN, lambda: NOW, started=NOW)  # it cannot know what was here before
    with pytest.raises(DeadlineExpired, match="before this process started"):
        fresh.check(signed(now=NOW - 1), "PUT", "/v1/x", BODY)
    assert fresh.check(signed(), "PUT", "/v1/x", BODY) == SENDER.address
