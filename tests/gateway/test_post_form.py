"""Browser forms: AWS's example, what a policy covers, and what is answered."""

from __future__ import annotations

import base64
import json
from calendar import timegm
from typing import Any

import pytest

from freehold.gateway.wire import post_form
from freehold.gateway.wire.errors import S3Error
from freehold.gateway.wire.post_form import FormPolicy
from freehold.gateway.wire.sigv4 import Scope, iso_time
from tests.gateway import samples

SECRET, REGION, NOW = "secret", "us-east-1", 1_000_000

# The example of the S3 reference, "Browser-Based Uploads Using HTTP POST", byte for byte.
EXAMPLE_POLICY = (
    '{ "expiration": "2015-12-30T12:00:00.000Z",\r\n'
    '  "conditions": [\r\n'
    '    {"bucket": "sigv4examplebucket"},\r\n'
    '    ["starts-with", "$key", "user/user1/"],\r\n'
    '    {"acl": "public-read"},\r\n'
    '    {"success_action_redirect": "http://sigv4examplebucket.s3.amazonaws.com/successful_upload.html"},\r\n'
    '    ["starts-with", "$Content-Type", "image/"],\r\n'
    '    {"x-amz-meta-uuid": "14365123651274"},\r\n'
    '    {"x-amz-server-side-encryption": "AES256"},\r\n'
    '    ["starts-with", "$x-amz-meta-tag", ""],\r\n'
    "\r\n"
    '    {"x-amz-credential": "AKIAIOSFODNN7EXAMPLE/20151229/us-east-1/s3/aws4_request"},\r\n'
    '    {"x-amz-algorithm": "AWS4-HMAC-SHA256"},\r\n'
    '    {"x-amz-date": "20151229T000000Z" }\r\n'
    "  ]\r\n"
    "}"
)
EXAMPLE = {
    "key": "user/user1/${filename}",
    "acl": "public-read",
    "success_action_redirect": "http://sigv4examplebucket.s3.amazonaws.com/successful_upload.html",
    "content-type": "image/jpeg",
    "x-amz-meta-uuid": "14365123651274",
    "x-amz-server-side-encryption": "AES256",
    "x-amz-credential": "AKIAIOSFODNN7EXAMPLE/20151229/us-east-1/s3/aws4_request",
    "x-amz-algorithm": "AWS4-HMAC-SHA256",
    "x-amz-date": "20151229T000000Z",
    "x-amz-meta-tag": "",
    "policy": base64.b64encode(EXAMPLE_POLICY.encode()).decode(),
    "x-amz-signature": "8afdbf4008c03f22c2cd3cdb72e4afbb1f6a588f3255ac628749a66d7f09699e",
}
EXAMPLE_SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


def test_the_example_of_the_s3_reference() -> None:
    authorization = post_form.parse_form(EXAMPLE)
    assert authorization is not None
    assert authorization.access_key == "AKIAIOSFODNN7EXAMPLE"
    post_form.verify_form(authorization, EXAMPLE, EXAMPLE_SECRET, REGION)
    policy = post_form.parse_form_policy(EXAMPLE["policy"])
    assert policy.expiration == timegm((2015, 12, 30, 12, 0, 0)) * 1000
    key = post_form.get_key(EXAMPLE, "MyFilename.jpg")
    assert key == "user/user1/MyFilename.jpg"
    post_form.check_form(policy, EXAMPLE, "sigv4examplebucket", key, policy.expiration - 1)
    answer = post_form.write_form_answer(EXAMPLE, "/x", "sigv4examplebucket", key, "ab")
    assert answer.status == 303
    assert answer.headers["Location"] == (
        "http://sigv4examplebucket.s3.amazonaws.com/successful_upload.html?bucket=sigv4examplebucket"
        "&key=user%2Fuser1%2FMyFilename.jpg&etag=%22ab%22"
    )


def test_what_is_signed_here_is_the_example() -> None:
    text, signature = post_form.sign_form(EXAMPLE_POLICY.encode(), EXAMPLE_SECRET, Scope("20151229", REGION))
    assert (text, signature) == (EXAMPLE["policy"], EXAMPLE["x-amz-signature"])


def test_a_form_without_a_policy_is_anonymous() -> None:
    assert post_form.parse_form({"key": "k", "content-type": "x"}) is None


def verify(fields: dict[str, str]) -> None:
    authorization = post_form.parse_form(fields)
    assert authorization is not None
    post_form.verify_form(authorization, fields, SECRET, REGION)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"policy": None}, "AccessDenied"),
        ({"x-amz-signature": None}, "AccessDenied"),
        ({"x-amz-date": "yesterday"}, "AccessDenied"),
        ({"x-amz-algorithm": "AWS4-HMAC-MD5"}, "InvalidRequest"),
        ({"signature": "x", "awsaccesskeyid": "y"}, "InvalidRequest"),
        ({"x-amz-credential": "x"}, "AuthorizationQueryParametersError"),
        ({"x-amz-credential": "AKID/19700112/eu/s3/aws4_request"}, "AuthorizationQueryParametersError"),
        ({"x-amz-signature": "00"}, "SignatureDoesNotMatch"),
        ({"policy": "e30="}, "SignatureDoesNotMatch"),
    ],
)
def test_forms_that_are_not_signed_right(changes: dict[str, str | None], code: str) -> None:
    fields = {k: v for k, v in (samples.signed_form(SECRET, REGION, NOW) | changes).items() if v is not None}
    with pytest.raises(S3Error) as caught:
        verify(fields)
    assert caught.value.code == code


def check(fields: dict[str, str], bucket: str = "b", now: int = NOW * 1000) -> None:
    policy = post_form.parse_form_policy(fields["policy"])
    post_form.check_form(policy, fields, bucket, post_form.get_key(fields, "C:\\dir\\a.txt"), now)


def test_a_form_that_its_policy_covers() -> None:
    fields = samples.signed_form(SECRET, REGION, NOW)
    check(fields)
    assert post_form.get_key(fields, "C:\\dir\\a.txt") == "user/a.txt"
    assert post_form.get_key(fields, "x/y/../b.txt") == "user/b.txt"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"key": "other/x"}, 'Policy Condition failed: ["starts-with","$key","user/"]'),
        ({"acl": "public"}, 'Policy Condition failed: ["eq","$acl","private"]'),
        ({"content-type": "text/html"}, "Extra input fields: content-type"),
        ({"x-amz-meta-a": ""}, "Extra input fields: x-amz-meta-a"),
    ],
)
def test_a_form_that_its_policy_does_not_cover(changes: dict[str, str], said: str) -> None:
    with pytest.raises(S3Error) as caught:
        check(samples.signed_form(SECRET, REGION, NOW) | changes)
    assert caught.value.code == "AccessDenied"
    assert said in caught.value.message


def test_a_policy_is_for_its_bucket_and_its_time() -> None:
    fields = samples.signed_form(SECRET, REGION, NOW)
    end = timegm((2030, 1, 1, 0, 0, 0)) * 1000
    check(fields, now=end - 1)
    with pytest.raises(S3Error, match="Policy expired"):
        check(fields, now=end)
    with pytest.raises(S3Error, match="Policy Condition failed"):
        check(fields, bucket="c")


def test_a_policy_that_names_no_bucket_is_for_none() -> None:
    with pytest.raises(S3Error, match="Extra input fields: bucket"):
        post_form.check_form(FormPolicy(1, (("eq", "key", "k"),), 0, None), {"key": "k"}, "b", "k", 0)


def test_a_field_that_a_condition_names_must_be_there() -> None:
    fields = samples.signed_form(SECRET, REGION, NOW)
    del fields["acl"]
    with pytest.raises(S3Error, match="Policy Condition failed"):
        check(fields)


def test_every_content_type_of_a_list_must_fit() -> None:
    policy = FormPolicy(1, (("eq", "bucket", "b"), ("starts-with", "content-type", "image/")), 0, None)
    post_form.check_form(policy, {"content-type": "image/jpeg, image/png"}, "b", "k", 0)
    with pytest.raises(S3Error, match="failed"):
        post_form.check_form(policy, {"content-type": "image/jpeg,text/html"}, "b", "k", 0)


def policy_of(**changes: Any) -> str:
    document = {"expiration": "2030-01-01T00:00:00Z", "conditions": []} | changes
    present = {name: value for name, value in document.items() if value is not None}
    return base64.b64encode(json.dumps(present).encode()).decode()


def test_a_length_may_be_text_or_a_number() -> None:
    policy = post_form.parse_form_policy(policy_of(conditions=[["content-length-range", "5", 10]]))
    assert (policy.smallest, policy.largest) == (5, 10)
    post_form.check_length(policy, 3, ended=False)
    post_form.check_length(policy, 5, ended=True)
    post_form.check_length(policy, 10, ended=True)
    for size, ended, code in ((4, True, "EntityTooSmall"), (11, False, "EntityTooLarge")):
        with pytest.raises(S3Error) as caught:
            post_form.check_length(policy, size, ended=ended)
        assert caught.value.code == code


@pytest.mark.parametrize(
    "text",
    [
        "",
        "!",
        base64.b64encode(b"[]").decode(),
        base64.b64encode(b"\xff").decode(),
        policy_of(expiration=None),
        policy_of(expiration="soon"),
        policy_of(expiration=5),
        policy_of(conditions=None),
        policy_of(conditions={}),
        policy_of(conditions=["x"]),
        policy_of(conditions=[["eq", "$key"]]),
        policy_of(conditions=[["eq", "key", "x"]]),
        policy_of(conditions=[["ends-with", "$key", "x"]]),
        policy_of(conditions=[["eq", "$key", 5]]),
        policy_of(conditions=[{"acl": ["private"]}]),
        policy_of(conditions=[["content-length-range", -1, 5]]),
        policy_of(conditions=[["content-length-range", True, 5]]),
        policy_of(conditions=[[5, 5, 5]]),
    ],
)
def test_documents_that_are_no_policy(text: str) -> None:
    with pytest.raises(S3Error, match="InvalidPolicyDocument"):
        post_form.parse_form_policy(text)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, 204),
        ({"success_action_status": "200"}, 200),
        ({"success_action_status": "201"}, 201),
        ({"success_action_status": "404"}, 204),
        ({"success_action_redirect": "javascript:alert(1)"}, 204),
        ({"success_action_redirect": "http://x/\r\nSet-Cookie: a"}, 204),
        ({"success_action_redirect": "http://["}, 204),
        ({"redirect": "https://x/?a=1"}, 303),
    ],
)
def test_what_success_is_answered_with(fields: dict[str, str], status: int) -> None:
    answer = post_form.write_form_answer(fields, "/b/a%26b", "b", "a&b", "ab")
    assert answer.status == status
    assert answer.headers["ETag"] == '"ab"'
    if status == 201:
        assert b"<Key>a&amp;b</Key>" in answer.body
    if status == 303:
        assert answer.headers["Location"] == "https://x/?a=1&bucket=b&key=a%26b&etag=%22ab%22"


def test_the_fields_have_a_limit_and_must_name_a_key() -> None:
    post_form.check_size({"a": "b" * (post_form.LARGEST_FIELDS - 1)})
    with pytest.raises(S3Error, match="MaxPostPreDataLengthExceeded"):
        post_form.check_size({"a": "b" * post_form.LARGEST_FIELDS})
    with pytest.raises(S3Error, match="UserKeyMustBeSpecified"):
        post_form.get_key({"acl": "x"}, "f")


def test_the_sample_is_for_its_time() -> None:
    assert iso_time(NOW) == "1970-01-12T13:46:40Z"
