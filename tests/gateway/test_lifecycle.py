"""Lifecycle documents and the rules they stand for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.client.lifecycle import DAY, Rule
from freehold.gateway.wire.errors import S3Error
from freehold.gateway.wire.lifecycle import parse_lifecycle, write_lifecycle
from tests.gateway import samples
from tests.gateway.samples import element


def rule(*inner: str, status: str = "Enabled") -> bytes:
    return element("LifecycleConfiguration", element("Rule", f"<Status>{status}</Status>", *inner))


DAYS = "<Expiration><Days>1</Days></Expiration>"
ALL = "<Filter/>"
GOOD = [
    (rule(ALL, DAYS), Rule(id="rule-1", days=1)),
    (rule("<Prefix>a/</Prefix>", DAYS), Rule(id="rule-1", prefix="a/", days=1)),
    (rule("<Filter><Prefix></Prefix></Filter><ID>x</ID>", DAYS), Rule(id="x", days=1)),
    (
        rule("<Filter><Tag><Key>a</Key><Value>b</Value></Tag></Filter>", DAYS),
        Rule(id="rule-1", tags={"a": "b"}, days=1),
    ),
    (
        rule(ALL, "<Expiration><Date>1970-01-02T00:00:00Z</Date></Expiration>", status="Disabled"),
        Rule(id="rule-1", enabled=False, date=DAY),
    ),
    (
        rule(
            ALL, "<Expiration><Days>2</Days><ExpiredObjectDeleteMarker>false</ExpiredObjectDeleteMarker></Expiration>"
        ),
        Rule(id="rule-1", days=2),
    ),
]


@pytest.mark.parametrize(("data", "expected"), GOOD)
def test_what_a_rule_says(data: bytes, expected: Rule) -> None:
    assert parse_lifecycle(data) == (expected,)


def test_rules_are_written_as_they_are_read() -> None:
    assert parse_lifecycle(write_lifecycle(samples.RULES)) == samples.RULES


MARKER = "<Expiration><ExpiredObjectDeleteMarker>{}</ExpiredObjectDeleteMarker></Expiration>"
ABORT = "<AbortIncompleteMultipartUpload><DaysAfterInitiation>{}</DaysAfterInitiation></AbortIncompleteMultipartUpload>"
BIG = "<Filter><ObjectSizeGreaterThan>5</ObjectSizeGreaterThan></Filter>"
BAD = {
    "no rule": (b"<LifecycleConfiguration/>", "MalformedXML"),
    "1001 rules": (element("LifecycleConfiguration", *["<Rule/>"] * 1001), "MalformedXML"),
    "no status": (element("LifecycleConfiguration", element("Rule", ALL, DAYS)), "MalformedXML"),
    "an odd status": (rule(ALL, DAYS, status="On"), "MalformedXML"),
    "no filter": (rule(DAYS), "MalformedXML"),
    "filter and prefix": (rule(ALL, "<Prefix/>", DAYS), "MalformedXML"),
    "two conditions without And": (
        rule("<Filter><Prefix>a</Prefix><Tag><Key>a</Key></Tag></Filter>", DAYS),
        "MalformedXML",
    ),
    "a condition that is not known": (rule("<Filter><Suffix>a</Suffix></Filter>", DAYS), "MalformedXML"),
    "no action": (rule(ALL), "InvalidRequest"),
    "an empty expiration": (rule(ALL, "<Expiration/>"), "MalformedXML"),
    "days and date": (
        rule(ALL, "<Expiration><Days>1</Days><Date>2030-01-01T00:00:00Z</Date></Expiration>"),
        "MalformedXML",
    ),
    "no days": (rule(ALL, "<Expiration><Days>0</Days></Expiration>"), "InvalidArgument"),
    "negative days": (rule(ALL, "<Expiration><Days>-1</Days></Expiration>"), "InvalidArgument"),
    "days in words": (rule(ALL, "<Expiration><Days>one</Days></Expiration>"), "MalformedXML"),
    "a date that is none": (rule(ALL, "<Expiration><Date>soon</Date></Expiration>"), "MalformedXML"),
    "a date in the afternoon": (
        rule(ALL, "<Expiration><Date>2030-01-01T15:00:00Z</Date></Expiration>"),
        "InvalidArgument",
    ),
    "a marker that does nothing": (rule(ALL, MARKER.format("false")), "MalformedXML"),
    "an odd marker": (rule(ALL, MARKER.format("yes")), "MalformedXML"),
    "a marker with a size": (rule(BIG, MARKER.format("true")), "InvalidRequest"),
    "an abort with a size": (rule(BIG, ABORT.format(1)), "InvalidRequest"),
    "an abort at once": (rule(ALL, ABORT.format(0)), "InvalidArgument"),
    "a transition": (rule(ALL, "<Transition><Days>1</Days></Transition>"), "NotImplemented"),
    "a noncurrent transition": (rule(ALL, DAYS, "<NoncurrentVersionTransition/>"), "NotImplemented"),
    "noncurrent without days": (rule(ALL, "<NoncurrentVersionExpiration/>"), "MalformedXML"),
    "an action that is not known": (rule(ALL, DAYS, "<Archive/>"), "MalformedXML"),
    "a long prefix": (rule(f"<Prefix>{'a' * 1025}</Prefix>", DAYS), "InvalidRequest"),
    "a long id": (rule(ALL, DAYS, f"<ID>{'a' * 256}</ID>"), "InvalidArgument"),
    "an id twice": (
        element("LifecycleConfiguration", *[element("Rule", ALL, DAYS, "<Status>Enabled</Status><ID>a</ID>")] * 2),
        "InvalidArgument",
    ),
    "sizes the wrong way round": (
        rule(
            "<Filter><And><ObjectSizeGreaterThan>5</ObjectSizeGreaterThan><ObjectSizeLessThan>5</ObjectSizeLessThan>"
            "</And></Filter>",
            DAYS,
        ),
        "InvalidRequest",
    ),
    "a tag twice": (rule(f"<Filter><And>{'<Tag><Key>a</Key></Tag>' * 2}</And></Filter>", DAYS), "InvalidTag"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_what_no_rule_may_say(name: str) -> None:
    data, code = BAD[name]
    with pytest.raises(S3Error) as caught:
        parse_lifecycle(data)
    assert caught.value.code == code


NAMES = st.text("abcé<&/ ", min_size=1, max_size=8).filter(str.strip)
TAGS = st.dictionaries(st.text("abc+-", min_size=1, max_size=5), st.text("xyz ", max_size=5), max_size=3)


@given(
    rules=st.lists(
        st.builds(
            Rule,
            id=NAMES,
            enabled=st.booleans(),
            prefix=st.text("ab<&é/", max_size=5),
            tags=TAGS,
            min_size=st.none() | st.integers(0, 10),
            max_size=st.none() | st.integers(11, 2**40),
            days=st.integers(1, 10**6),
            noncurrent_days=st.integers(1, 100),
            newer_noncurrent=st.none() | st.integers(1, 100),
        ),
        min_size=1,
        max_size=5,
        unique_by=lambda found: found.id,
    )
)
def test_any_rules_come_back(rules: list[Rule]) -> None:
    assert parse_lifecycle(write_lifecycle(rules)) == tuple(rules)
