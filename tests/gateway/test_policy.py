"""Bucket policies: what they allow and deny, and what is refused when they are put."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.gateway.wire.errors import S3Error
from freehold.gateway.wire.policy import LARGEST, Policy, PolicyRequest, arn_of, parse_policy
from freehold.gateway.wire.policy_conditions import matches
from tests.conftest import SLOW
from tests.gateway import samples


def statement(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": "arn:aws:s3:::b/*",
    }
    found |= changes
    return {name: value for name, value in found.items() if value is not None}


def policy(*statements: dict[str, Any]) -> Policy:
    return parse_policy(json.dumps({"Version": "2012-10-17", "Statement": list(statements)}).encode(), "b")


def ask(
    found: Policy, action: str = "s3:GetObject", key: str = "k", who: tuple[str, ...] = (), **facts: list[str]
) -> bool | None:
    named = {name.replace("__", ":"): values for name, values in facts.items()}
    return found.evaluate(PolicyRequest(action, arn_of("b", key), who, named))


def test_the_sample_says_what_it_should() -> None:
    found = parse_policy(samples.POLICY, "b")
    assert found.is_public
    secure = {"aws__securetransport": ["true"]}
    assert ask(found, key="public/x", **secure) is True
    assert ask(found, key="private", **secure) is None
    assert ask(found, key="private", aws__securetransport=["false"]) is False
    assert ask(found, key="private", aws__securetransport=["false"], aws__referer=["x"]) is None
    mine = {"who": ("AKID",), "aws__currenttime": ["2026-01-01T00:00:00Z"], "s3__max-keys": ["10"]}
    inside = {"aws__sourceip": ["10.1.2.3"], **secure}
    assert ask(found, "s3:PutObject", "cat", **mine, **inside) is True
    assert ask(found, "s3:PutObject", "dog", **mine, **inside) is None
    assert ask(found, "s3:DeleteObject", "cat", **mine, **inside) is None
    assert ask(found, "s3:PutObject", "cat", **mine, aws__sourceip=["11.1.2.3"]) is None
    assert ask(found, "s3:PutObject", "cat", **mine, **inside, s3__prefix=["axb"]) is True
    assert ask(found, "s3:PutObject", "cat", **mine, **inside, s3__prefix=["x"]) is None
    assert ask(found, "s3:PutObject", "cat", **(mine | {"s3__max-keys": ["11"]}), **inside) is None
    assert ask(found, "s3:PutObject", "cat", **(mine | {"who": ("other",)}), **inside) is None


def test_a_deny_wins_wherever_it_stands() -> None:
    deny = statement(Effect="Deny", Action="s3:*", Resource="arn:aws:s3:::b/secret*")
    for found in (policy(statement(), deny), policy(deny, statement())):
        assert ask(found, key="secret/x") is False
        assert ask(found, key="open") is True
    assert not policy(deny).is_public


def test_a_bucket_is_not_its_objects() -> None:
    found = policy(statement(Action="*", Resource="arn:aws:s3:::b"))
    assert ask(found, key="") is True
    assert ask(found, key="k") is None


def test_actions_are_compared_without_case_and_keys_with_it() -> None:
    found = policy(statement(Action="S3:get*", Resource="arn:aws:s3:::b/Ab?"))
    assert ask(found, "s3:GetObjectTagging", "Abc") is True
    assert ask(found, "s3:GetObject", "abc") is None
    assert ask(found, "s3:GetObject", "Ab") is None


CONDITIONS = [
    ("StringEquals", "aws:Referer", ["a", "b"], "aws:referer", {"a": True, "b": True, "A": False, None: False}),
    ("StringNotEquals", "aws:Referer", ["a", "b"], "aws:referer", {"a": False, "c": True, None: True}),
    ("StringEqualsIgnoreCase", "aws:Referer", "a", "aws:referer", {"A": True, "b": False}),
    ("StringNotEqualsIgnoreCase", "aws:Referer", "a", "aws:referer", {"A": False, "b": True}),
    (
        "StringLike",
        "aws:Referer",
        "http://*.x/?",
        "aws:referer",
        {"http://a.x/1": True, "http://a.x/": False, None: False},
    ),
    ("StringNotLike", "aws:UserAgent", "curl*", "aws:useragent", {"curl/8": False, "boto": True, None: True}),
    ("StringEqualsIfExists", "s3:prefix", "a/", "s3:prefix", {"a/": True, "b": False, None: True}),
    (
        "IpAddress",
        "aws:SourceIp",
        "192.0.2.0/24",
        "aws:sourceip",
        {"192.0.2.9": True, "192.0.3.1": False, "::ffff:192.0.2.9": True},
    ),
    (
        "IpAddress",
        "aws:SourceIp",
        "2001:db8::/32",
        "aws:sourceip",
        {"2001:db8::1": True, "192.0.2.9": False, "x": False},
    ),
    (
        "NotIpAddress",
        "aws:SourceIp",
        "192.0.2.0/24",
        "aws:sourceip",
        {"192.0.2.9": False, "192.0.3.1": True, None: True},
    ),
    ("Bool", "aws:SecureTransport", "false", "aws:securetransport", {"false": True, "true": False, None: False}),
    ("NumericEquals", "s3:max-keys", 10, "s3:max-keys", {"10": True, "10.0": True, "11": False, "x": False}),
    ("NumericNotEquals", "s3:max-keys", "10", "s3:max-keys", {"10": False, "11": True}),
    ("NumericLessThan", "s3:max-keys", "10", "s3:max-keys", {"9": True, "10": False}),
    ("NumericGreaterThan", "s3:max-keys", "10", "s3:max-keys", {"10": False, "11": True}),
    ("NumericGreaterThanEquals", "s3:max-keys", "10", "s3:max-keys", {"9": False, "10": True}),
    (
        "DateGreaterThan",
        "aws:CurrentTime",
        "2026-01-01T00:00:00Z",
        "aws:currenttime",
        {"2026-01-01T00:00:01Z": True, "2025-12-31T23:59:59Z": False},
    ),
    ("DateLessThanEquals", "aws:EpochTime", "1700000000", "aws:epochtime", {"1700000000": True, "1700000001": False}),
    ("Null", "aws:Referer", True, "aws:referer", {None: True, "x": False}),
    ("Null", "aws:Referer", "false", "aws:referer", {None: False, "x": True}),
    (
        "StringEquals",
        "s3:ExistingObjectTag/Team",
        "a",
        "s3:existingobjecttag/Team",
        {"a": True, "b": False, None: False},
    ),
]


@pytest.mark.parametrize(("operator", "key", "values", "fact", "cases"), CONDITIONS)
def test_conditions(operator: str, key: str, values: Any, fact: str, cases: dict[str | None, bool]) -> None:
    found = policy(statement(Condition={operator: {key: values}}))
    for value, holds in cases.items():
        facts = {} if value is None else {fact: [value]}
        allowed = found.evaluate(PolicyRequest("s3:GetObject", arn_of("b", "k"), (), facts))
        assert (allowed is True) == holds, value


BAD = {
    "an effect": statement(Effect="allow"),
    "no effect": statement(Effect=None),
    "no principal": statement(Principal=None),
    "an odd principal": statement(Principal={"Service": "x"}),
    "an empty principal": statement(Principal={"AWS": []}),
    "a pattern of principals": statement(Principal={"AWS": "arn:aws:iam::1:user/*"}),
    "NotPrincipal": statement(Principal=None, NotPrincipal="*"),
    "no action": statement(Action=None),
    "action and NotAction": statement(NotAction="s3:*"),
    "another service": statement(Action="ec2:*"),
    "no action in a list": statement(Action=[]),
    "a number for an action": statement(Action=5),
    "no resource": statement(Resource=None),
    "another bucket": statement(Resource="arn:aws:s3:::c/*"),
    "no ARN": statement(Resource="b/*"),
    "an operator": statement(Condition={"StringIs": {"aws:Referer": "x"}}),
    "Null with IfExists": statement(Condition={"NullIfExists": {"aws:Referer": "true"}}),
    "ForAllValues": statement(Condition={"ForAllValues:StringEquals": {"aws:Referer": "x"}}),
    "a key": statement(Condition={"StringEquals": {"aws:Nothing": "x"}}),
    "a tag that a request brings": statement(Condition={"StringEquals": {"s3:RequestObjectTag/a": "x"}}),
    "a lock that a request brings": statement(Condition={"StringEquals": {"s3:object-lock-mode": "COMPLIANCE"}}),
    "a variable": statement(Resource="arn:aws:s3:::b/${aws:username}/*"),
    "a variable in a condition": statement(Condition={"StringLike": {"s3:prefix": "${aws:username}/*"}}),
    "a tag without a name": statement(Condition={"StringEquals": {"s3:ExistingObjectTag/": "x"}}),
    "an address": statement(Condition={"IpAddress": {"aws:SourceIp": "10.0.0.0/33"}}),
    "a number": statement(Condition={"NumericEquals": {"s3:max-keys": "ten"}}),
    "a bool": statement(Condition={"Bool": {"aws:SecureTransport": "yes"}}),
    "a date": statement(Condition={"DateLessThan": {"aws:CurrentTime": "soon"}}),
    "no values": statement(Condition={"StringEquals": {"aws:Referer": []}}),
    "a null": statement(Condition={"StringEquals": {"aws:Referer": None}}),
    "an empty operator": statement(Condition={"StringEquals": {}}),
    "a condition in text": statement(Condition="x"),
    "a field": statement(Condtion={}),
    "a number for a name": statement(Sid=5),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_what_is_not_understood_is_refused(name: str) -> None:
    with pytest.raises(S3Error) as caught:
        policy(BAD[name])
    assert caught.value.code == "MalformedPolicy"


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{", b'{"Statement": []}', b'{"Statement": "x"}', b'{"Version": "1", "Statement": {}}', b"\xff",
     b'{"Statement": {}, "Extra": 1}', b"[" * 20_000],
)  # fmt: skip
def test_documents_that_are_no_policy(data: bytes) -> None:
    with pytest.raises(S3Error, match="MalformedPolicy"):
        parse_policy(data, "b")


def test_the_limit_of_size() -> None:
    data = json.dumps({"Statement": statement()}).encode()
    assert parse_policy(data.ljust(LARGEST), "b").statements
    with pytest.raises(S3Error, match="PolicyTooLarge"):
        parse_policy(data.ljust(LARGEST + 1), "b")


@given(st.text("ab*?", max_size=8), st.text("ab", max_size=8))
def test_patterns_match_as_the_plain_expression_does(pattern: str, text: str) -> None:
    plain = re.compile("".join({"*": ".*", "?": "."}.get(sign, sign) for sign in pattern), re.DOTALL)
    assert matches(pattern, text) == (plain.fullmatch(text) is not None)


def test_no_pattern_takes_long() -> None:
    started = time.process_time()
    assert not matches("*a" * 4000 + "b", "a" * 3900)
    assert time.process_time() - started < 5 * SLOW
