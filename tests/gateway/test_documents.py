"""The smaller documents: what they say, and what AWS refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.client.bucket_types import CompletedPart, DeleteWhat
from freehold.gateway.wire import documents
from freehold.gateway.wire.errors import S3Error
from tests.gateway import samples
from tests.gateway.samples import element

NOW = 1_800_000_000_000


def refused(code: str, parse: Callable[..., Any], *arguments: Any) -> None:
    with pytest.raises(S3Error) as caught:
        parse(*arguments)
    assert caught.value.code == code


def test_a_new_bucket_says_where_it_is_to_be() -> None:
    parse = documents.parse_create_bucket
    assert parse(b"", "eu") == {}
    assert parse(b"<CreateBucketConfiguration/>", "eu") == {}
    assert parse(samples.CREATE, "us-east-1") == {"a": "1"}
    with pytest.raises(S3Error, match="expecting eu") as caught:
        parse(samples.CREATE, "eu")
    assert caught.value.code == "IllegalLocationConstraintException"
    refused("NotImplemented", parse, b"<CreateBucketConfiguration><Bucket/></CreateBucketConfiguration>", "eu")


def test_versioning() -> None:
    parse = documents.parse_versioning
    for status in ("Enabled", "Suspended"):
        assert parse(documents.write_versioning(status)) == status
    wrong = "IllegalVersioningConfigurationException"
    refused(wrong, parse, documents.write_versioning(""))
    refused(wrong, parse, documents.write_versioning("enabled"))
    mfa = element("VersioningConfiguration", "<Status>Enabled</Status><MfaDelete>Enabled</MfaDelete>")
    refused("NotImplemented", parse, mfa)


def test_ownership_and_access_control_lists() -> None:
    assert documents.parse_ownership(samples.OWNERSHIP) == "BucketOwnerEnforced"
    refused("MalformedXML", documents.parse_ownership, b"<OwnershipControls/>")
    refused("MalformedXML", documents.parse_ownership, samples.OWNERSHIP.replace(b"Enforced", b""))
    refused("AccessControlListNotSupported", documents.parse_acl, samples.ACL)
    refused("MalformedACLError", documents.parse_acl, b"<Acl/>")


def delete_of(count: int) -> bytes:
    return element("Delete", *(f"<Object><Key>{i}</Key></Object>" for i in range(count)))


def test_deletes() -> None:
    found = documents.parse_delete(samples.DELETE)
    assert found.quiet
    assert found.items == (DeleteWhat(" a&b"), DeleteWhat("c", "7", "00"))
    assert not documents.parse_delete(delete_of(1)).quiet
    assert len(documents.parse_delete(delete_of(1000)).items) == 1000
    for data in (
        delete_of(0),
        delete_of(1001),
        b"<Delete><Object/></Delete>",
        b"<Delete><Quiet>x</Quiet><Object><Key>a</Key></Object></Delete>",
        b"<Delete><Prefix>a</Prefix></Delete>",
    ):
        refused("MalformedXML", documents.parse_delete, data)


def part_of(number: Any, etag: str = "e", more: str = "") -> str:
    return f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag>{more}</Part>"


def complete(*parts: str) -> bytes:
    return element("CompleteMultipartUpload", *parts)


def test_the_end_of_an_upload() -> None:
    assert documents.parse_complete(samples.COMPLETE) == (
        CompletedPart(1, "a", {}),
        CompletedPart(3, "b", {"CRC32": "y/Q5Jg=="}),
    )
    assert len(documents.parse_complete(complete(*map(part_of, range(1, 10_001))))) == 10_000
    refused("MalformedXML", documents.parse_complete, complete())
    refused("MalformedXML", documents.parse_complete, complete(*[part_of(1)] * 10_001))
    refused("MalformedXML", documents.parse_complete, complete("<Part><PartNumber>1</PartNumber></Part>"))
    for number in (0, 10_001, -1, "x", "1.0", "²"):
        refused("InvalidArgument", documents.parse_complete, complete(part_of(number)))
    wrong = part_of(1, more="<ChecksumSHA1>xx</ChecksumSHA1>")
    refused("InvalidRequest", documents.parse_complete, complete(wrong))


def test_tags() -> None:
    assert documents.parse_tagging(samples.TAGGING) == {"a": "1", "é b": "x/y"}
    assert documents.parse_tagging(documents.write_tagging({})) == {}
    assert documents.parse_tag_header("a=1&b%20c=%C3%A9+x&d") == {"a": "1", "b c": "é x", "d": ""}
    assert documents.parse_tag_header("") == {}
    refused("MalformedXML", documents.parse_tagging, b"<Tagging/>")
    refused("InvalidArgument", documents.parse_tag_header, "a=%ff")
    refused("InvalidTag", documents.parse_tag_header, "a=1&a=2")
    fifty = documents.write_tagging({str(i): "" for i in range(50)})
    assert len(documents.parse_tagging(fifty, 50)) == 50
    refused("BadRequest", documents.parse_tagging, fifty)


@pytest.mark.parametrize(
    ("key", "value", "good"),
    [
        ("k" * 128, "v" * 256, True),
        ("k" * 129, "", False),
        ("", "", False),
        ("k", "v" * 257, False),
        ("k+-=._:/@ é1", "", True),
        ("k<", "", False),
        ("k", "a;b", False),
        ("aws:k", "", False),
        ("AWS:k", "", False),
        ("awsk", "", True),
    ],
)
def test_what_a_tag_may_be(key: str, value: str, good: bool) -> None:
    if good:
        assert documents.check_tags([(key, value)], 10) == {key: value}
    else:
        refused("InvalidTag", documents.check_tags, [(key, value)], 10)


def lock(inner: str) -> bytes:
    return element("ObjectLockConfiguration", "<ObjectLockEnabled>Enabled</ObjectLockEnabled>", inner)


def default(inner: str) -> bytes:
    return lock(f"<Rule><DefaultRetention>{inner}</DefaultRetention></Rule>")


def test_the_default_retention() -> None:
    parse = documents.parse_object_lock
    assert parse(samples.OBJECT_LOCK) == ("GOVERNANCE", 30)
    assert parse(documents.write_object_lock(None)) is None
    assert parse(default("<Mode>COMPLIANCE</Mode><Years>2</Years>")) == ("COMPLIANCE", 730)
    for data in (
        b"<ObjectLockConfiguration/>",
        lock("<Rule/>"),
        default("<Mode>GOVERNANCE</Mode>"),
        default("<Mode>GOVERNANCE</Mode><Days>1</Days><Years>1</Years>"),
        default("<Mode>GOVERNANCE</Mode><Days>0</Days>"),
        default("<Mode>GOVERNANCE</Mode><Days>36501</Days>"),
        default("<Mode>governance</Mode><Days>1</Days>"),
        lock("<Other/>"),
        samples.OBJECT_LOCK.replace(b"Enabled<", b"Off<"),
    ):
        refused("MalformedXML", parse, data)


def test_retention() -> None:
    parse = documents.parse_retention
    assert parse(samples.RETENTION, NOW) == ("COMPLIANCE", 4_000_000_000_123)
    assert parse(b"<Retention/>", NOW) == ("", 0)
    refused("InvalidArgument", parse, documents.write_retention("GOVERNANCE", NOW), NOW)
    assert parse(documents.write_retention("GOVERNANCE", NOW + 1), NOW) == ("GOVERNANCE", NOW + 1)
    refused("MalformedXML", parse, b"<Retention><Mode>GOVERNANCE</Mode></Retention>", NOW)
    refused("InvalidArgument", parse, samples.RETENTION.replace(b"2096", b"year"), NOW)


def test_legal_hold() -> None:
    for hold in (True, False):
        assert documents.parse_legal_hold(documents.write_legal_hold(hold)) is hold
    refused("MalformedXML", documents.parse_legal_hold, b"<LegalHold><Status>on</Status></LegalHold>")


MODE, UNTIL, HOLD = (f"x-amz-object-lock-{name}" for name in ("mode", "retain-until-date", "legal-hold"))


def test_the_lock_of_a_put() -> None:
    parse = documents.parse_lock_headers
    assert parse({}, NOW) == ("", 0, None)
    assert parse({HOLD: "OFF"}, NOW) == ("", 0, False)
    good = {MODE: "GOVERNANCE", UNTIL: "2096-10-02T07:06:40Z", HOLD: "ON"}
    assert parse(good, NOW) == ("GOVERNANCE", 4_000_000_000_000, True)
    for change in ({MODE: "x"}, {HOLD: "x"}, {UNTIL: "x"}, {UNTIL: "2020-01-01T00:00:00Z"}):
        refused("InvalidArgument", parse, good | change, NOW)
    for missing in (MODE, UNTIL):
        refused("InvalidArgument", parse, {name: good[name] for name in good if name != missing}, NOW)


TIMES = [
    ("1970-01-01T00:00:00Z", 0),
    ("1970-01-01", 0),
    ("1970-01-01T01:00:00.250+01:00", 250),
    ("1969-12-31T23:59:59Z", -1000),
    ("", None),
    ("soon", None),
    ("2026-02-30T00:00:00Z", None),
    ("0001-01-01T00:00:00+23:59", None),
    ("9999-12-31T23:59:59-00:01", None),
    ("9999-12-31T23:59:59Z", 253_402_300_799_000),
]


@pytest.mark.parametrize(("text", "expected"), TIMES)
def test_times(text: str, expected: int | None) -> None:
    assert documents.parse_iso(text) == expected


@given(st.integers(0, 253_402_300_799_999))
def test_a_time_that_is_written_is_read(at: int) -> None:
    assert documents.parse_iso(documents.iso_milliseconds(at)) == at
