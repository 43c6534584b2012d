"""Signatures against AWS's published values, botocore's (frozen here), and everything that must be refused.

The first table is of AWS's "Signature Version 4 test suite", the second of the examples in the S3 API reference.
"""

from __future__ import annotations

import hashlib
from calendar import timegm

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.gateway.wire import sigv4
from freehold.gateway.wire.errors import S3Error
from freehold.gateway.wire.request import Request, decode_query, encode_uri, join_headers, split_query
from freehold.gateway.wire.sigv4 import EMPTY_SHA256, Scope, Seal

KEY, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
SUITE_SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"  # AWS writes it with a plus here, with a slash for S3
REGION = "us-east-1"

SUITE_STAMP = "20150830T123600Z"
SUITE_HEADERS = [("Host", "example.amazonaws.com"), ("X-Amz-Date", SUITE_STAMP)]
UNRESERVED = "-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
FORM = "application/x-www-form-urlencoded"
SUITE = {
    "get-vanilla": (
        ("GET", "/", ""),
        [],
        b"",
        "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
    ),
    "get-vanilla-query-order-key-case": (
        ("GET", "/", "Param2=value2&Param1=value1"),
        [],
        b"",
        "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
    ),
    "get-vanilla-query-order-value": (
        ("GET", "/", "Param1=value2&Param1=value1"),
        [],
        b"",
        "5772eed61e12b33fae39ee5e7012498b51d56abc0abb7c60486157bd471c4694",
    ),
    "get-vanilla-empty-query-key": (
        ("GET", "/", "Param1=value1"),
        [],
        b"",
        "a67d582fa61cc504c4bae71f336f98b97f1ea3c7a6bfe1b6e45aec72011b9aeb",
    ),
    "get-vanilla-query-unreserved": (
        ("GET", "/", f"{UNRESERVED}={UNRESERVED}"),
        [],
        b"",
        "9c3e54bfcdf0b19771a7f523ee5669cdf59bc7cc0884027167c21bb143a40197",
    ),
    "get-vanilla-utf8-query": (
        ("GET", "/", "ሴ=bar"),
        [],
        b"",
        "2cdec8eed098649ff3a119c94853b13c643bcf08f8b0a1d91e12c9027818dd04",
    ),
    "get-utf8": (
        ("GET", "/ሴ", ""),
        [],
        b"",
        "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85",
    ),
    "get-unreserved": (
        ("GET", f"/{UNRESERVED}", ""),
        [],
        b"",
        "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f",
    ),
    "get-header-value-trim": (
        ("GET", "/", ""),
        [("My-Header1", " value1"), ("My-Header2", ' "a   b   c"')],
        b"",
        "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
    ),
    "get-header-key-duplicate": (
        ("GET", "/", ""),
        [("My-Header1", "value2"), ("My-Header1", "value2"), ("My-Header1", "value1")],
        b"",
        "c9d5ea9f3f72853aea855b47ea873832890dbdd183b4468f858259531a5138ea",
    ),
    "get-header-value-order": (
        ("GET", "/", ""),
        [("My-Header1", "value4"), ("My-Header1", "value1"), ("My-Header1", "value3"), ("My-Header1", "value2")],
        b"",
        "08c7e5a9acfcfeb3ab6b2185e75ce8b1deb5e634ec47601a50643f830c755c01",
    ),
    "post-vanilla": (
        ("POST", "/", ""),
        [],
        b"",
        "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
    ),
    "post-vanilla-query": (
        ("POST", "/", "Param1=value1"),
        [],
        b"",
        "28038455d6de14eafc1f9222cf5aa6f1a96197d7deb8263271d420d138af7f11",
    ),
    "post-header-key-sort": (
        ("POST", "/", ""),
        [("My-Header1", "value1")],
        b"",
        "c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c",
    ),
    "post-header-value-case": (
        ("POST", "/", ""),
        [("My-Header1", "VALUE1")],
        b"",
        "cdbc9802e29d2942e5e10b5bccfdd67c5f22c7c4e8ae67b53629efa58b974b7d",
    ),
    "post-x-www-form-urlencoded": (
        ("POST", "/", ""),
        [("Content-Type", FORM)],
        b"Param1=value1",
        "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
    ),
    "post-x-www-form-urlencoded-parameters": (
        ("POST", "/", ""),
        [("Content-Type", f"{FORM}; charset=utf8")],
        b"Param1=value1",
        "1a72ec8f64bd914b0e42e42607c7fbce7fb2c7465f63e3092b3b0d39fa77a6fe",
    ),
}


@pytest.mark.parametrize("name", sorted(SUITE))
def test_the_signature_suite_of_aws(name: str) -> None:
    (method, path, query), extra, body, expected = SUITE[name]
    headers = join_headers([*extra, *SUITE_HEADERS])
    scope = Scope("20150830", REGION, "service")
    canonical = sigv4.canonical_request(
        method, path, split_query(query), headers, sorted(headers), hashlib.sha256(body).hexdigest()
    )
    text = sigv4.string_to_sign(canonical, SUITE_STAMP, scope)
    assert sigv4.sign(sigv4.signing_key(SUITE_SECRET, scope), text) == expected


STAMP = "20130524T000000Z"
NOW = timegm((2013, 5, 24, 0, 0, 0))
HOST = "examplebucket.s3.amazonaws.com"


def request_of(
    method: str,
    path: str,
    query: str,
    headers: dict[str, str],
    payload_hash: str,
    signature: str,
    host: str = HOST,
) -> Request:
    found = {"host": host, "x-amz-content-sha256": payload_hash, "x-amz-date": STAMP} | headers
    names = ";".join(sorted(found))
    found["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={KEY}/20130524/us-east-1/s3/aws4_request,"
        f"SignedHeaders={names},Signature={signature}"
    )
    return Request(method, path, query, found)


def check(request: Request, now: float = NOW, region: str = REGION, secret: str = SECRET) -> Seal:
    authorization = sigv4.parse_authorization(request)
    assert authorization is not None
    return sigv4.verify(request, authorization, secret, region, now)


PUT_HEADERS = {"date": "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class": "REDUCED_REDUNDANCY"}
CHUNKED = {
    "x-amz-storage-class": "REDUCED_REDUNDANCY",
    "content-encoding": "aws-chunked",
    "x-amz-decoded-content-length": "66560",
}
EXAMPLES = {
    "get object with range": request_of(
        "GET",
        "/test.txt",
        "",
        {"range": "bytes=0-9"},
        EMPTY_SHA256,
        "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
    ),
    "put object": request_of(
        "PUT",
        "/test%24file.text",
        "",
        PUT_HEADERS,
        hashlib.sha256(b"Welcome to Amazon S3.").hexdigest(),
        "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
    ),
    "put object, a path that was not encoded": request_of(
        "PUT",
        "/test$file.text",
        "",
        PUT_HEADERS,
        hashlib.sha256(b"Welcome to Amazon S3.").hexdigest(),
        "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
    ),
    "get bucket lifecycle": request_of(
        "GET",
        "/",
        "lifecycle",
        {},
        EMPTY_SHA256,
        "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
    ),
    "list objects": request_of(
        "GET",
        "/",
        "max-keys=2&prefix=J",
        {},
        EMPTY_SHA256,
        "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
    ),
    "streamed": request_of(
        "PUT",
        "/examplebucket/chunkObject.txt",
        "",
        CHUNKED | {"content-length": "66824"},
        sigv4.STREAMING_SIGNED,
        "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9",
        "s3.amazonaws.com",
    ),
    "streamed with a trailer": request_of(
        "PUT",
        "/examplebucket/chunkObject.txt",
        "",
        CHUNKED | {"x-amz-trailer": "x-amz-checksum-crc32c"},
        sigv4.STREAMING_SIGNED_TRAILER,
        "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e",
        "s3.amazonaws.com",
    ),
}


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_the_examples_of_the_s3_reference(name: str) -> None:
    seal = check(EXAMPLES[name])
    assert (seal.stamp, seal.scope) == (STAMP, Scope("20130524", REGION))


CHUNKS = {
    "streamed": [
        "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
        "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497",
        "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9",
    ],
    "streamed with a trailer": [
        "b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2",
        "1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7",
        "2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992",
    ],
}
TRAILER = b"x-amz-checksum-crc32c:sOO8/Q==\n"
TRAILER_SIGNATURE = "d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435"


@pytest.mark.parametrize("name", sorted(CHUNKS))
def test_the_chunk_signatures_of_the_s3_reference(name: str) -> None:
    seal = check(EXAMPLES[name])
    previous, found = seal.seed, []
    for size in (65536, 1024, 0):
        previous = sigv4.chunk_signature(seal, previous, hashlib.sha256(b"a" * size).hexdigest())
        found.append(previous)
    assert found == CHUNKS[name]
    if "trailer" in name:
        assert sigv4.trailer_signature(seal, previous, TRAILER) == TRAILER_SIGNATURE


PRESIGNED = (
    "/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2F"
    "aws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host"
    "&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
)


def presigned(target: str = PRESIGNED, host: str = HOST) -> Request:
    path, _, query = target.partition("?")
    return Request("GET", path, query, {"host": host})


def test_the_presigned_example_of_the_s3_reference() -> None:
    assert sigv4.presign("GET", HOST, "/test.txt", KEY, SECRET, REGION, NOW, 86400) == PRESIGNED
    check(presigned(), NOW)
    check(presigned(), NOW + 86400)
    check(presigned(), NOW - 900)


# What botocore 1.44 signed at 2026-01-02T03:04:05Z.
BOTO_NOW = timegm((2026, 1, 2, 3, 4, 5))
BOTO_PUT = Request(
    "PUT",
    "/bucket/a%20b/%C3%A9%2B%28x%29~/../%E2%98%83",
    "partNumber=1&uploadId=a+b%2Bc%2F%C3%A9",
    {
        "host": "127.0.0.1:9000",
        "x-amz-meta-name": "two  spaces",
        "content-type": "text/plain",
        "x-amz-date": "20260102T030405Z",
        "x-amz-content-sha256": hashlib.sha256(b"hello").hexdigest(),
        "accept-encoding": "identity",
        "authorization": "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20260102/us-east-1/s3/aws4_request, "
        "SignedHeaders=content-type;host;x-amz-content-sha256;x-amz-date;x-amz-meta-name, "
        "Signature=0592ac1ef541a35f67c55c875617728e1cf78b399d51cc27537b3280307eb427",
    },
)
BOTO_GET = (
    "/bucket/a%20b/%C3%A9?response-content-disposition=attachment%3B%20filename%3D%22x%20y%22"
    "&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20260102%2Fus-east-1%2Fs3%2Faws4_request"
    "&X-Amz-Date=20260102T030405Z&X-Amz-Expires=3600&X-Amz-SignedHeaders=host"
    "&X-Amz-Signature=6c88eb3a59fbf0656c560b9cf57a017d534dffb9b4cc2f77d2fb0870138d57b6"
)


def test_what_botocore_signs_is_verified() -> None:
    check(BOTO_PUT, BOTO_NOW)
    check(presigned(BOTO_GET, "127.0.0.1:9000"), BOTO_NOW)


def test_a_request_without_a_signature_is_anonymous() -> None:
    assert sigv4.parse_authorization(Request("GET", "/b/k", "acl&prefix=x", {"host": "h"})) is None


def without(name: str) -> Request:
    request = EXAMPLES["get object with range"]
    return request._replace(headers={n: v for n, v in request.headers.items() if n != name})


def with_header(name: str, value: str) -> Request:
    request = EXAMPLES["get object with range"]
    return request._replace(headers={**request.headers, name: value})


def with_authorization(old: str, new: str) -> Request:
    header = EXAMPLES["get object with range"].headers["authorization"]
    assert old in header
    return with_header("authorization", header.replace(old, new))


def with_query(old: str, new: str) -> Request:
    assert old in PRESIGNED
    return presigned(PRESIGNED.replace(old, new))


BAD = {
    "SigV2": (with_header("authorization", "AWS AKID:abc="), "InvalidRequest", "Please use AWS4-HMAC-SHA256"),
    "SigV2 in the query": (
        Request("GET", "/b/k", "AWSAccessKeyId=A&Expires=1&Signature=x", {"host": "h"}),
        "InvalidRequest",
        "Please use AWS4-HMAC-SHA256",
    ),
    "SigV4a": (with_authorization("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"), "InvalidRequest", "not supported"),
    "a bearer": (with_header("authorization", "Bearer x"), "InvalidArgument", "Unsupported Authorization Type"),
    "both": (
        presigned()._replace(headers={"host": HOST, "authorization": "AWS4-HMAC-SHA256 x"}),
        "InvalidArgument",
        "Only one auth mechanism",
    ),
    "no credential": (with_authorization("Credential=", "C="), "AuthorizationHeaderMalformed", "missing Credential"),
    "no signature": (with_authorization("Signature=", "S="), "AuthorizationHeaderMalformed", "missing Signature"),
    "no signed headers": (
        with_authorization("SignedHeaders=", "H="),
        "AuthorizationHeaderMalformed",
        "missing SignedHeaders",
    ),
    "a short credential": (
        with_authorization("/s3/aws4_request", "/s3"),
        "AuthorizationHeaderMalformed",
        "expecting",
    ),
    "a bad day": (with_authorization("/20130524/", "/2013-5-4/"), "AuthorizationHeaderMalformed", "yyyyMMdd"),
    "another day": (with_authorization("/20130524/", "/20130523/"), "AuthorizationHeaderMalformed", "20130524"),
    "another terminal": (with_authorization("aws4_request", "aws5"), "AuthorizationHeaderMalformed", "aws4_request"),
    "another service": (with_authorization("/s3/", "/iam/"), "AuthorizationHeaderMalformed", '"s3"'),
    "another region": (
        with_authorization("us-east-1", "eu-west-1"),
        "AuthorizationHeaderMalformed",
        "the region 'eu-west-1' is wrong; expecting 'us-east-1'",
    ),
    "no payload hash": (without("x-amz-content-sha256"), "InvalidRequest", "x-amz-content-sha256"),
    "a bad payload hash": (with_header("x-amz-content-sha256", "ff"), "InvalidArgument", "valid sha256 value"),
    "no date": (without("x-amz-date"), "AccessDenied", "valid Date"),
    "a bad date": (with_header("x-amz-date", "20131324T000000Z"), "AccessDenied", "valid Date"),
    "the host not signed": (with_authorization("host;", ""), "AccessDenied", "not signed"),
    "an x-amz header not signed": (with_header("x-amz-acl", "private"), "AccessDenied", "not signed"),
    "another path": (
        EXAMPLES["get object with range"]._replace(path="/test.txt2"),
        "SignatureDoesNotMatch",
        "signature we calculated",
    ),
    "a missing header that is signed": (without("range"), "SignatureDoesNotMatch", ""),
    "a signature that is not ASCII": (with_authorization("Signature=f", "Signature=é"), "SignatureDoesNotMatch", ""),
    "URL: another algorithm": (with_query("HMAC", "CMAC"), "AuthorizationQueryParametersError", "only supports"),
    "URL: SigV4a": (with_query("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"), "InvalidRequest", "not supported"),
    "URL: no signature": (with_query("X-Amz-Signature", "X-Other"), "AuthorizationQueryParametersError", "requires"),
    "URL: no expiry": (with_query("Expires=86400", "Expires="), "AuthorizationQueryParametersError", "requires"),
    "URL: expiry in words": (with_query("86400", "soon"), "AuthorizationQueryParametersError", "should be a number"),
    "URL: expiry 0": (with_query("86400", "0"), "AuthorizationQueryParametersError", "604800"),
    "URL: expiry -1": (with_query("86400", "-1"), "AuthorizationQueryParametersError", "non-negative"),
    "URL: expiry 604801": (with_query("86400", "604801"), "AuthorizationQueryParametersError", "604800"),
    "URL: a bad date": (with_query("T000000Z", "T0"), "AuthorizationQueryParametersError", "yyyyMMdd"),
    "URL: another region": (with_query("us-east-1", "x"), "AuthorizationQueryParametersError", "expecting 'us-east-1'"),
    "URL: another expiry": (with_query("86400", "86401"), "SignatureDoesNotMatch", ""),
    "URL: a parameter more": (presigned(PRESIGNED + "&versionId=1"), "SignatureDoesNotMatch", ""),
    "URL: another method": (presigned()._replace(method="PUT"), "SignatureDoesNotMatch", ""),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_what_is_wrong_is_refused_with_what_was_expected(name: str) -> None:
    request, code, said = BAD[name]
    with pytest.raises(S3Error) as caught:
        check(request)
    assert caught.value.code == code
    assert said in caught.value.message


def test_a_wrong_region_is_answered_with_the_right_one() -> None:
    with pytest.raises(S3Error) as caught:
        check(EXAMPLES["list objects"], region="freehold-1")
    assert caught.value.fields == {"Region": "freehold-1"}


def test_a_wrong_signature_is_answered_with_what_should_have_been_signed() -> None:
    with pytest.raises(S3Error) as caught:
        check(EXAMPLES["list objects"], secret="other")
    fields = caught.value.fields
    assert fields["AWSAccessKeyId"] == KEY
    assert str(fields["SignatureProvided"]).startswith("34b48302")
    canonical = str(fields["CanonicalRequest"])
    assert canonical.startswith(f"GET\n/\nmax-keys=2&prefix=J\nhost:{HOST}\n")
    assert bytes.fromhex(str(fields["CanonicalRequestBytes"])).decode() == canonical
    assert str(fields["StringToSign"]).endswith(hashlib.sha256(canonical.encode()).hexdigest())
    assert bytes.fromhex(str(fields["StringToSignBytes"])).decode() == fields["StringToSign"]


@pytest.mark.parametrize(("age", "good"), [(-901, False), (-900, True), (900, True), (901, False)])
def test_a_clock_may_be_fifteen_minutes_off(age: int, good: bool) -> None:
    if good:
        check(EXAMPLES["list objects"], NOW + age)
        return
    with pytest.raises(S3Error) as caught:
        check(EXAMPLES["list objects"], NOW + age)
    assert caught.value.code == "RequestTimeTooSkewed"
    assert caught.value.fields["RequestTime"] == STAMP
    assert caught.value.fields["ServerTime"] == sigv4.iso_time(NOW + age)
    assert caught.value.fields["MaxAllowedSkewMilliseconds"] == 900_000


@pytest.mark.parametrize(("age", "said"), [(86401, "expired"), (-901, "not valid yet")])
def test_a_url_holds_between_its_date_and_its_expiry(age: int, said: str) -> None:
    with pytest.raises(S3Error, match=said) as caught:
        check(presigned(), NOW + age)
    assert caught.value.code == "AccessDenied"


def test_the_date_header_does_for_x_amz_date() -> None:
    headers = {"host": HOST, "date": "Fri, 24 May 2013 02:00:00 +0200", "x-amz-content-sha256": EMPTY_SHA256}
    scope, names = Scope("20130524", REGION), sorted(headers)
    canonical = sigv4.canonical_request("GET", "/k", [], headers, names, EMPTY_SHA256)
    signature = sigv4.sign(sigv4.signing_key(SECRET, scope), sigv4.string_to_sign(canonical, STAMP, scope))
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={KEY}/{scope}, SignedHeaders={';'.join(names)}, Signature={signature}"
    )
    check(Request("GET", "/k", "", headers))


def test_an_access_key_may_hold_a_slash() -> None:
    request = Request("GET", "/", "", {"host": "h"})
    headers = sigv4.sign_request(request, "a/b", SECRET, REGION, NOW)
    authorization = sigv4.parse_authorization(request._replace(headers=headers))
    assert authorization is not None
    assert authorization.access_key == "a/b"


TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
LATIN = st.text(st.characters(codec="latin-1", min_codepoint=32), max_size=20)


@given(
    key=TEXTS, query=st.lists(st.tuples(TEXTS, TEXTS), max_size=4), value=LATIN, payload=st.sampled_from([b"", b"abc"])
)
def test_what_is_signed_here_is_verified_here(
    key: str, query: list[tuple[str, str]], value: str, payload: bytes
) -> None:
    path = "/bucket/" + encode_uri(key.encode(), slash=False)
    raw = "&".join(f"{encode_uri(n.encode())}={encode_uri(v.encode())}" for n, v in query)
    request = Request("PUT", path, raw, {"host": "h:1", "x-amz-meta-x": value})
    digest = hashlib.sha256(payload).hexdigest()
    signed = request._replace(headers=sigv4.sign_request(request, KEY, SECRET, REGION, NOW, digest))
    check(signed)
    for changed in (
        signed._replace(path=path + "x"),
        signed._replace(method="GET"),
        signed._replace(query="a=b&" + raw),
        signed._replace(headers={**signed.headers, "x-amz-meta-x": value.strip() + "x"}),
    ):
        with pytest.raises(S3Error, match="SignatureDoesNotMatch"):
            check(changed)


@given(key=TEXTS, query=st.lists(st.tuples(TEXTS, TEXTS), max_size=4))
def test_a_presigned_url_is_verified_and_says_what_was_asked(key: str, query: list[tuple[str, str]]) -> None:
    path = "/bucket/" + encode_uri(key.encode(), slash=False)
    target = sigv4.presign("GET", "h", path, KEY, SECRET, REGION, NOW, 60, query)
    request = presigned(target, "h")
    check(request)
    wanted: dict[str, str] = {}
    for name, text in sorted(query, key=lambda pair: (encode_uri(pair[0].encode()), encode_uri(pair[1].encode()))):
        wanted.setdefault(name, text)
    assert wanted.items() <= decode_query(request.query).items()
