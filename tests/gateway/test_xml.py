"""Bodies in XML: with and without namespaces, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.gateway.wire.errors import S3Error
from freehold.gateway.wire.xml import DEEPEST, LARGEST_BODY, MOST_ELEMENTS, parse_xml
from freehold.gateway.wire.xml_writer import Writer

SAME = [
    b"<A><B> x </B><B/></A>",
    b'<A xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><B> x </B><B></B></A>',
    b'<A xmlns="http://other.example/"><B> x </B><B></B></A>',
    b'<?xml version="1.0" encoding="UTF-8"?>\n<s:A xmlns:s="http://x.example/"><s:B> x </s:B><B/></s:A>',
    b"<a:A><b:B> x </b:B><B/></a:A>",  # prefixes that nobody declared
    b"<A>\n  <B> <![CDATA[x]]> </B>\n<!-- y --><B/></A>\n",
]


@pytest.mark.parametrize("data", SAME)
def test_namespaces_are_looked_through(data: bytes) -> None:
    root = parse_xml(data, "A")
    assert [node.text for node in root.all("B")] == [" x ", ""]
    assert [node.name for node in root.children] == ["B", "B"]


BOMB = b'<!DOCTYPE A [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><A>&b;</A>'
BAD = {
    "nothing closed": b"<A>",
    "two roots": b"<A/><A/>",
    "another root": b"<B/>",
    "text": b"hello",
    "a document type": b"<!DOCTYPE A><A/>",
    "entities": BOMB,
    "an outer entity": b'<!DOCTYPE A [<!ENTITY x SYSTEM "file:///etc/passwd">]><A>&x;</A>',
    "an entity that nobody declared": b"<A>&x;</A>",
    "a control character": b"<A>\x01</A>",
    "not UTF-8": b"<A>\xff</A>",
    "too deep": b"<A>" + b"<B>" * DEEPEST + b"</B>" * DEEPEST + b"</A>",
    "too many": b"<A>" + b"<B/>" * MOST_ELEMENTS + b"</A>",
    "a reference to a surrogate": b"<A>&#xD800;</A>",
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_what_is_malformed(name: str) -> None:
    with pytest.raises(S3Error) as caught:
        parse_xml(BAD[name], "A")
    assert caught.value.code == "MalformedXML"


def test_the_limits_let_their_own_value_pass() -> None:
    parse_xml(b"<A>" + b"<B>" * (DEEPEST - 1) + b"</B>" * (DEEPEST - 1) + b"</A>", "A")
    parse_xml(b"<A>" + b" " * (LARGEST_BODY - 7) + b"</A>", "A")
    with pytest.raises(S3Error, match="MaxMessageLengthExceeded"):
        parse_xml(b"<A>" + b" " * (LARGEST_BODY - 6) + b"</A>", "A")
    with pytest.raises(S3Error, match="MissingRequestBodyError"):
        parse_xml(b"", "A")


def test_children_are_asked_for_by_name() -> None:
    root = parse_xml(b"<A><N> 5 </N><T>x</T><D/><D/></A>", "A")
    assert root.get_integer("N", 1, 5) == 5
    assert root.get_integer("M", 1, 5) is None
    assert (root.get_text("T"), root.get_text("U")) == ("x", None)
    for wrong in (
        lambda: root.get_integer("N", 1, 4),
        lambda: root.get_integer("T", 0, 9),
        lambda: root.get("D"),
        lambda: root.require_text("U"),
        lambda: root.check_children("N", "T"),
    ):
        with pytest.raises(S3Error, match="MalformedXML"):
            wrong()


@given(st.text(st.characters(exclude_categories=("Cs",), min_codepoint=32)))
def test_what_is_written_is_read_again(text: str) -> None:
    writer = Writer("A")
    writer.leaf("B", text + "\r\n\t")
    if any(sign in text for sign in "￾￿"):  # XML has no place for them, however they are written
        return
    assert parse_xml(writer.done(), "A").get_text("B") == text + "\r\n\t"
