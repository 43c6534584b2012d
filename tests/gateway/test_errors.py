"""S3's errors as XML."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from freehold.gateway.wire.errors import ERRORS, S3Error, invalid_argument
from freehold.gateway.wire.xml_writer import Writer, escape


def texts(data: bytes) -> dict[str, str | None]:
    return {child.tag: child.text for child in ElementTree.fromstring(data)}


def test_an_error_says_its_fields_resource_and_request() -> None:
    error = S3Error("NoSuchKey", Key="a<b&c>\r\n")
    assert (error.status, str(error)) == (404, "NoSuchKey: The specified key does not exist.")
    assert texts(error.to_xml("/bucket/a", "1F")) == {
        "Code": "NoSuchKey",
        "Message": "The specified key does not exist.",
        "Key": "a<b&c>\r\n",
        "Resource": "/bucket/a",
        "RequestId": "1F",
        "HostId": "1F",
    }


def test_an_argument_is_named_with_its_value() -> None:
    found = texts(invalid_argument("max-keys", "x", "not an integer").to_xml())
    assert found["ArgumentName"] == "max-keys"
    assert found["ArgumentValue"] == "x"
    assert found["Message"] == "not an integer"


def test_fields_with_a_dash_are_written_with_an_underscore() -> None:
    assert b"<X-Amz-Expires>5</X-Amz-Expires>" in S3Error("AccessDenied", X_Amz_Expires=5).to_xml()


@pytest.mark.parametrize("code", sorted(ERRORS))
def test_every_code_has_an_error_status_and_a_sentence(code: str) -> None:
    error = S3Error(code)
    assert 300 <= error.status < 600
    assert texts(error.to_xml())["Message"] == error.message


def test_a_code_that_is_not_in_the_table_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        S3Error("NoSuchThing")


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("plain é 😀", "plain é 😀"),
        ("<&>\"'", "&lt;&amp;&gt;&quot;'"),
        ("\x00\x01\t\n\r\x7f\uffff", "&#x0;&#x1;&#x9;&#xa;&#xd;&#x7f;&#xffff;"),
        ("\udc80", "&#xdc80;"),
    ],
)
def test_text_is_escaped_as_s3_does(text: str, written: str) -> None:
    assert escape(text) == written


def test_the_writer_nests_elements_in_the_namespace() -> None:
    writer = Writer("List")
    with writer.inside("Item", 'kind="x"'):
        writer.leaf("Flag", True)
        writer.leaf("Size", 0)
        writer.optional("None", None)
        writer.optional("Empty", "")
        writer.optional("Zero", 0)
    assert writer.done() == (
        b'<?xml version="1.0" encoding="UTF-8"?>\n<List xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        b'<Item kind="x"><Flag>true</Flag><Size>0</Size><Zero>0</Zero></Item></List>'
    )
