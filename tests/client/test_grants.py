"""Grants: what they allow, that narrowing never widens, and that nobody gets more by making tokens of their own."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from biscuit_auth import Biscuit, BiscuitBuilder, BlockBuilder, PublicKey
from hypothesis import given
from hypothesis import strategies as st

from freehold.client import grants
from freehold.client.errors import AccessDenied
from freehold.client.grants import OPERATIONS, Grant, GrantKey, Grants, decide, describe, narrow
from freehold.protocol.errors import InvalidInput
from freehold.protocol.units import Address
from tests.client.forged_blocks import append_block, last_block, pack, unpack
from tests.fuzz.mutations import mutate

ACCOUNT = Address("0x" + "a1" * 20)
KEY = GrantKey(b"seed of the account".ljust(32))
OTHER = GrantKey(b"seed of another one".ljust(32))
NOW, LATER = 1_000_000, 2_000_000
HARD = 'a"b\\c\n\r\t\x00%22!\u2028ü€🎉); right("write", ""); check if true'

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.sampled_from(["", "a", "a/", "a/b", "a/b!"])
some_operations = st.sets(st.sampled_from(OPERATIONS), min_size=1)
times = st.none() | st.integers(0, 20)


def issue(*operations: str, key: GrantKey = KEY, **what: Any) -> str:
    return key.issue(ACCOUNT, operations or OPERATIONS, **what)


def why(token: str, operation: str, bucket: str, key: str, now: int = NOW, revoked: tuple[str, ...] = ()) -> str:
    """The reason for a refusal, "" where the token allows it."""
    try:
        Grants(KEY.public_key).check(token, operation, bucket, key, now, revoked)
    except AccessDenied as error:
        return str(error.details["reason"])
    return ""


def raw(token: str) -> Biscuit:
    """The library's token inside of one."""
    body = unpack(token)
    return Biscuit.from_bytes(body[32:], PublicKey.from_bytes(body[:32], grants._ED25519))  # type: ignore[call-arg]


def text(biscuit: Biscuit, public_key: bytes = KEY.public_key) -> str:
    return pack(public_key + bytes(biscuit.to_bytes()))


def test_what_a_grant_allows_and_why_not() -> None:
    token = issue("read", "list", bucket="b-1", prefix="photos/", expires=LATER)
    assert why(token, "read", "b-1", "photos/a") == ""
    assert why(token, "list", "b-1", "photos/") == ""
    assert why(token, "list", "b-1", "photos/2026/") == ""
    assert why(token, "read", "b-1", "photos/a", now=LATER - 1) == ""
    assert why(token, "read", "b-1", "photos/a", now=LATER) == "expired"
    assert why(token, "write", "b-1", "photos/a") == "operation"
    assert why(token, "read", "b-1", "photo") == "outside"
    assert why(token, "list", "b-1", "") == "outside"
    assert why(token, "list", "", "") == "outside"
    assert why(token, "read", "b-10", "photos/a") == "outside"
    assert why(issue(key=OTHER), "read", "b-1", "a") == "signer"


def test_an_exact_grant_is_for_one_key() -> None:
    token = issue("read", "list", bucket="b-1", prefix="a", exact=True)
    assert why(token, "read", "b-1", "a") == ""
    for key in ("ab", "a!", "a/b", ""):
        assert why(token, "read", "b-1", key) == "outside"
    assert why(token, "list", "b-1", "a") == "outside"
    assert describe(token).exact
    assert describe(token).describe_scope() == "fh://b-1/a"


def test_a_grant_for_every_bucket_and_its_narrowing_to_one() -> None:
    token = issue()
    assert why(token, "list", "", "") == why(token, "write", "any", "key") == ""
    one = narrow(token, bucket="b-1", operations=["read"])
    assert why(one, "read", "b-1", "x") == ""
    assert [why(one, "list", "", ""), why(one, "write", "b-1", "x"), why(one, "read", "b-2", "x")] == [
        "operation",
        "operation",
        "outside",
    ]


def test_description_and_revocation() -> None:
    token = issue("read", "write", bucket="b-1", prefix="p/", expires=LATER)
    child = narrow(token, prefix="p/q", operations=["read"], expires=LATER - 5)
    grandchild = narrow(child, expires=LATER - 9)
    grant = describe(grandchild)
    assert grant == Grant(ACCOUNT, "b-1/p/q", frozenset({"read"}), LATER - 9, grant.ids, (LATER, LATER - 5, LATER - 9))
    assert (grant.bucket, grant.prefix, grant.exact) == ("b-1", "p/q", False)
    assert grant.ids[:2] == describe(child).ids
    assert grant.ids[:1] == describe(token).ids
    for count, revoked in enumerate(grant.ids):
        dead = [why(t, "read", "b-1", "p/q", revoked=(revoked,)) for t in (token, child, grandchild)]
        assert dead == [""] * count + ["revoked"] * (3 - count)
    judge = Grants(KEY.public_key)  # a token that it knows is not spared
    judge.check(child, "read", "b-1", "p/q", NOW, ())
    with pytest.raises(AccessDenied, match="revoked"):
        judge.check(child, "read", "b-1", "p/q", NOW, {grant.ids[1]: LATER})
    with pytest.raises(AccessDenied, match="good until"):
        judge.check(child, "read", "b-1", "p/q", LATER, ())


@pytest.mark.parametrize(
    "more",
    [
        {"prefix": "q"},
        {"prefix": ""},
        {"exact": True},
        {"bucket": "b-2"},
        {"bucket": ""},
        {"operations": ["write"]},
        {"operations": []},
        {"operations": ["everything"]},
        {"expires": LATER + 1},
        {"expires": -1},
        {"prefix": "p/\ud800"},
        {"prefix": "p/" + "x" * 4000},
    ],
    ids=str,
)
def test_narrowing_to_more_is_refused(more: dict[str, Any]) -> None:
    token = issue("read", bucket="b-1", prefix="p/", expires=LATER)
    with pytest.raises(InvalidInput):
        narrow(token, **more)


def test_narrowing_ends_before_tokens_grow_without_bound() -> None:
    token = issue()
    for _ in range(15):
        token = narrow(token)
    with pytest.raises(InvalidInput, match="17 blocks"):
        narrow(token)


@given(names, names, some_operations, st.booleans(), times)
def test_what_was_named_comes_back_and_what_it_says_is_what_the_library_decides(
    prefix: str, key: str, operations: set[str], exact: bool, expires: int | None
) -> None:
    token = issue(*operations, bucket="b-1", prefix=prefix, exact=exact and bool(prefix), expires=expires)
    grant = describe(token)
    assert (grant.bucket, grant.prefix, grant.expires) == ("b-1", prefix, expires)
    for operation in OPERATIONS:
        for now in (0, 10, 20):
            for name in (key, prefix + key):
                inside = name.startswith(prefix) if not grant.exact else name == prefix and operation != "list"
                allowed = operation in operations and inside and (expires is None or now < expires)
                path = grants.resource(operation, "b-1", name)
                assert grant.allows(operation, "b-1", name, now) == allowed
                assert decide(raw(token), operation, path, now) == allowed


narrowings = st.lists(st.tuples(names, st.booleans(), st.none() | some_operations, times), max_size=3)


@given(names, some_operations, times, narrowings, names)
def test_any_chain_of_narrowings_allows_a_subset(
    prefix: str, operations: set[str], expires: int | None, chain: list[Any], key: str
) -> None:
    tokens = [issue(*operations, bucket="b-1", prefix=prefix, expires=expires)]
    for more, exact, fewer, sooner in chain:
        try:
            whole = describe(tokens[-1]).prefix + more
            tokens.append(
                narrow(tokens[-1], prefix=whole, exact=exact and bool(whole), operations=fewer, expires=sooner)
            )
        except InvalidInput:
            continue
    for operation in OPERATIONS:
        for name in (prefix, key, prefix + key, describe(tokens[-1]).prefix + key):
            for now in (0, 19):
                allowed = [why(token, operation, "b-1", name, now) == "" for token in tokens]
                assert allowed == sorted(allowed, reverse=True)
                path = grants.resource(operation, "b-1", name)
                assert allowed == [decide(raw(token), operation, path, now) for token in tokens]


def test_names_cannot_become_statements() -> None:
    token = narrow(issue("read", bucket="b-1", prefix=HARD), prefix=HARD + '"); right("write", "b-1/")')
    assert describe(token).operations == {"read"}
    assert describe(token).prefix == HARD + '"); right("write", "b-1/")'
    assert why(token, "read", "b-1", HARD + '"); right("write", "b-1/")x') == ""
    assert why(token, "write", "b-1", HARD + '"); right("write", "b-1/")x') == "operation"
    assert why(token, "read", "b-1", HARD) == "outside"
    assert raw(token).block_count() == 2


ATTACKS = [
    'right("write", "");',
    'right("read", ""); right("write", "b-1/");',
    'operation("read"); resource("b-1/p/x!"); time(1970-01-01T00:00:00Z);',
    "right($operation, $path) <- operation($operation), resource($path);",
    'right("write", $path) <- resource($path) trusting authority;',
    "check if true;",
    'check if right("read", $scope);',
    "reject if false;",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_blocks_of_other_statements_give_nothing_and_are_refused(attack: str) -> None:
    forged = raw(issue("read", bucket="b-1", prefix="p/", expires=LATER)).append(BlockBuilder(attack))
    assert not decide(forged, "write", "b-1/p/x!", NOW)
    assert not decide(forged, "read", "b-1/q!", NOW)
    assert not decide(forged, "read", "b-1/p/x!", LATER)
    assert why(text(forged), "read", "b-1", "p/x") == "malformed"


def test_a_text_that_prints_as_other_statements_allows_nothing() -> None:
    """The library prints texts as they are: this one check looks like three, and is false for every key."""
    lie = 'b-1/");\ncheck if time($time), $time < 2100-01-01T00:00:00Z;\ncheck if resource($path), $path.starts_with("'
    forged = text(
        raw(issue("read", bucket="b-1")).append(
            BlockBuilder("check if resource($path), $path.starts_with({lie})", {"lie": lie})
        )
    )
    assert describe(forged).operations == {"read"}
    assert why(forged, "read", "b-1", "x") == "outside"


def test_contradicting_blocks_allow_nothing() -> None:
    block = "check if resource($path), $path.starts_with({scope})"
    token = raw(issue("read", bucket="b-1", prefix="p/"))
    for scope in ("b-1/p/a", "b-1/p/b", "b-1/p/a/c"):
        token = token.append(BlockBuilder(block, {"scope": scope}))
    assert describe(text(token)).operations == frozenset()
    assert why(text(token), "read", "b-1", "p/a/c") == "operation"


def test_another_signer_under_this_accounts_name() -> None:
    stolen = text(raw(issue(key=OTHER)), KEY.public_key)
    assert why(stolen, "read", "b-1", "x") == "malformed"
    strange = BiscuitBuilder('account("0x00");').build(KEY._private)
    assert why(text(strange), "read", "b-1", "x") == "malformed"


def seeds() -> list[bytes]:
    token = raw(issue("read", bucket="b-1", prefix="p/", expires=LATER))
    ours = narrow(text(token), prefix="p/q", operations=["read"], expires=LATER - 1)
    return [last_block(ours), *(last_block(text(token.append(BlockBuilder(attack)))) for attack in ATTACKS)]


@given(st.integers(0, 2**64))
def test_signed_blocks_of_any_bytes_give_nothing(seed: int) -> None:
    token = append_block(
        issue("read", bucket="b-1", prefix="p/", expires=LATER), mutate(seeds(), random.Random(seed))[:1_500]
    )
    for operation, key, now in (("write", "p/x", NOW), ("read", "q", NOW), ("list", "p/", NOW), ("read", "p/x", LATER)):
        assert why(token, operation, "b-1", key, now) != ""


def test_a_block_whose_names_are_missing_is_refused_where_the_library_finds_out_late() -> None:
    """Found by mutation: it is taken and printed, and cannot be evaluated."""
    token = issue("read", bucket="b-1", prefix="p/")
    block = last_block(narrow(token, prefix="p/q"))
    assert block[:1] == b"\x0a"  # the scope, field 1; as field 9 it is unknown and left out
    assert why(append_block(token, block), "read", "b-1", "p/q") == ""
    forged = append_block(token, b"\x4a" + block[1:])
    assert why(forged, "read", "b-1", "p/q") == "operation"  # nothing is below both scopes
    with pytest.raises(AccessDenied):
        decide(raw(forged), "read", "b-1/p/q!", NOW)


def mutations() -> list[Callable[[str], str]]:
    return [
        lambda t: "",
        lambda t: t[4:],
        lambda t: t + "=",
        lambda t: t[:-1],
        lambda t: t + "A",
        lambda t: t.replace("_", "/"),
        lambda t: t[:60] + "é" + t[61:],
        lambda t: t[:100] + ("A" if t[100] != "A" else "B") + t[101:],
        lambda t: "fhg_" + "A" * 4_092,
        lambda t: "fhg_" + "A" * 1_000_000,
        lambda t: pack(KEY.public_key),
    ]


@pytest.mark.parametrize("number", range(len(mutations())))
def test_junk_is_refused(number: int) -> None:
    token = mutations()[number](issue("read", bucket="b-1", expires=LATER))
    assert why(token, "read", "b-1", "x") in ("malformed", "signer")
    with pytest.raises(AccessDenied):
        describe(token)


@given(st.binary(max_size=400), st.integers(0, 600), st.integers(0, 255))
def test_any_bytes_are_a_grant_or_refused(body: bytes, place: int, value: int) -> None:
    good = bytearray(unpack(narrow(issue(bucket="b-1"), prefix="a")))
    good[place % len(good)] ^= value
    for junk in (body, KEY.public_key + body, bytes(good)):
        token = pack(junk)
        if why(token, "read", "b-1", "a") == "":
            assert value == 0


def test_keys_of_one_seed_are_the_same_and_of_two_are_not() -> None:
    assert GrantKey(b"x" * 32).public_key == GrantKey(b"x" * 32).public_key != OTHER.public_key
    assert grants.root_key_of(issue()) == KEY.public_key


def test_a_refusal_costs_less_than_a_verification() -> None:
    """A ratio within one run: junk of the longest length is refused before any signature is looked at."""
    junk, good = "fhg_" + "A" * 4_092, issue("read", bucket="b-1")

    def cost(token: str) -> float:
        began = time.perf_counter()
        for _ in range(50):
            why(token, "read", "b-1", "x")
        return time.perf_counter() - began

    assert min(cost(junk) for _ in range(5)) < max(cost(good) for _ in range(5))
