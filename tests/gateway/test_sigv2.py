"""Signatures of version 2 in URLs and forms: AWS's own example, and what botocore makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold.gateway.wire.errors import S3Error
from freehold.gateway.wire.request import Request, decode_query, encode_uri
from freehold.gateway.wire.sigv2 import parse_url, sign, string_to_sign, verify_form, verify_url
from tests.gateway.gateway_world import World, play

# The published example: docs.aws.amazon.com/AmazonS3/latest/userguide/RESTAuthentication.html, "Query string request".
SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
QUERY = "AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature=NpgCjnDzrM%2BWFzoENXmpNDUsSn8%3D&Expires=1175139620"
REQUEST = Request("GET", "/photos/puppy.jpg", QUERY, {"host": "johnsmith.s3.amazonaws.com"})


def verify(request: Request, query: str, secret: str = SECRET, now: float = 1_175_139_000, bucket: str = "") -> str:
    decoded = decode_query(query)
    url = parse_url(decoded, request.headers)
    assert url is not None
    try:
        verify_url(request, decoded, bucket, url, secret, now)
    except S3Error as error:
        return error.code
    return ""


def test_the_published_example() -> None:
    assert verify(REQUEST, QUERY, bucket="johnsmith") == ""
    assert verify(REQUEST, QUERY, bucket="another") == "SignatureDoesNotMatch"
    assert verify(REQUEST._replace(method="PUT"), QUERY, bucket="johnsmith") == "SignatureDoesNotMatch"
    assert verify(REQUEST, QUERY, "x" * 40, bucket="johnsmith") == "SignatureDoesNotMatch"
    assert verify(REQUEST, QUERY, now=1_175_139_621, bucket="johnsmith") == "AccessDenied"


def test_what_is_signed_has_headers_and_parameters_in_order() -> None:
    headers = {"content-type": "text/plain", "x-amz-meta-b": " 2 ", "x-amz-acl": "private", "host": "h"}
    query = {"versionId": "1", "uploads": "", "prefix": "p", "response-content-type": "a/b", "Expires": "5"}
    text = string_to_sign(Request("PUT", "/b/a%20k", "", headers), query, "", "5")
    assert text == (
        "PUT\n\ntext/plain\n5\nx-amz-acl:private\nx-amz-meta-b:2\n"
        "/b/a%20k?response-content-type=a/b&uploads&versionId=1"
    )


@pytest.mark.parametrize("expires", ["", "x", "-1", "1" * 13, "²"])
def test_an_expiry_that_is_none(expires: str) -> None:
    with pytest.raises(S3Error, match="AccessDenied"):
        parse_url({"AWSAccessKeyId": "a", "Signature": "b", "Expires": expires}, {})


def test_other_requests_are_not_of_this_version() -> None:
    assert parse_url({"AWSAccessKeyId": "a"}, {}) is None
    assert parse_url({"AWSAccessKeyId": "a", "Signature": "b", "Expires": "1"}, {"authorization": "AWS4 .."}) is None


def test_forms() -> None:
    fields = {"awsaccesskeyid": "a", "policy": "e30=", "signature": sign(SECRET, "e30=")}
    verify_form(fields, SECRET)
    with pytest.raises(S3Error, match="SignatureDoesNotMatch"):
        verify_form({**fields, "policy": "e30K"}, SECRET)


def test_the_gateway_takes_such_urls_and_no_such_headers(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.send("PUT", "/bucket-1")
        expires = str(int(world.net.now) + 60)
        for method, data, status in (("PUT", b"x", 200), ("GET", b"", 200), ("DELETE", b"", 403)):
            text = f"{'GET' if method == 'DELETE' else method}\n\n\n{expires}\n/bucket-1/k"
            signature = encode_uri(sign(world.key.secret, text).encode())
            query = f"AWSAccessKeyId={world.key.id}&Expires={expires}&Signature={signature}"
            assert (await world.send_as_is(method, "/bucket-1/k", query, data=data)).status == status
        header = {"authorization": f"AWS {world.key.id}:{sign(world.key.secret, 'x')}"}
        assert (await world.send_as_is("GET", "/bucket-1/k", headers=header)).status == 400

    play(tmp_path, scene)
