"""The S3 API as boto3 speaks it, feature by feature, against the gateway of a real network."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import secrets
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.servers.s3_programs import S3Account

pytestmark = pytest.mark.timeout(300)

MIB = 1 << 20
_numbers = count()


@pytest.fixture(scope="module")
def client(gateway: S3Account) -> Iterator[Any]:
    made = gateway.client(max_pool_connections=20)
    yield made
    made.close()


@pytest.fixture
def bucket(client: Any) -> str:
    name = f"boto3-{next(_numbers)}"
    client.create_bucket(Bucket=name)
    return name


def error_of(call: Callable[..., Any], **arguments: Any) -> tuple[str, int]:
    """Code and status of the error that a call must end with."""
    from botocore.exceptions import ClientError

    with pytest.raises(ClientError) as caught:
        call(**arguments)
    answer = caught.value.response
    return answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"]


def read(client: Any, **where: Any) -> bytes:
    return bytes(client.get_object(**where)["Body"].read())


NAMES = [
    "a", "a b", "a+b", "a%2Fb", "a//b", "a/", "/a", "./a", "a/../b", "&<>\"'", "?query=1", "#fragment", "~tilde",
    "\u00e9", "e\u0301", "\uffff\u00e4"[1:], "\U0001f680", "\u200b", "%", "%zz", "*", "\\", "a" * 1024,
]  # fmt: skip


def test_names_of_every_kind_come_back_in_the_order_of_their_bytes(client: Any, bucket: str) -> None:
    for name in NAMES:
        client.put_object(Bucket=bucket, Key=name, Body=name.encode())
    found: list[str] = []
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, PaginationConfig={"PageSize": 3}):
        found += [item["Key"] for item in page.get("Contents", [])]
    assert found == sorted(NAMES, key=str.encode)
    assert [read(client, Bucket=bucket, Key=name) for name in NAMES] == [name.encode() for name in NAMES]
    deleted = client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": name} for name in NAMES]})
    assert len(deleted["Deleted"]) == len(NAMES)
    assert client.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_lists_of_both_versions_page_by_prefix_and_delimiter(client: Any, bucket: str) -> None:
    names = [f"{folder}/{i}" for folder in ("a", "b", "c") for i in range(4)] + ["a.txt", "b"]
    for name in names:
        client.put_object(Bucket=bucket, Key=name, Body=b"")
    for call in ("list_objects", "list_objects_v2"):
        seen = []
        for page in client.get_paginator(call).paginate(Bucket=bucket, Delimiter="/", PaginationConfig={"PageSize": 2}):
            seen += [item["Key"] for item in page.get("Contents", [])]
            seen += [item["Prefix"] for item in page.get("CommonPrefixes", [])]
        assert sorted(seen) == ["a.txt", "a/", "b", "b/", "c/"]
        page = getattr(client, call)(Bucket=bucket, Prefix="b/")
        assert [item["Key"] for item in page["Contents"]] == [f"b/{i}" for i in range(4)]
    after = client.list_objects_v2(Bucket=bucket, StartAfter="b/1", MaxKeys=2)
    assert ([item["Key"] for item in after["Contents"]], after["IsTruncated"]) == (["b/2", "b/3"], True)
    assert error_of(client.list_objects_v2, Bucket=bucket, ContinuationToken="junk")[0] == "InvalidArgument"


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"])
def test_checksums_are_checked_kept_and_shown(client: Any, bucket: str, algorithm: str) -> None:
    pytest.importorskip("awscrt", reason="not run: awscrt is not installed (make test-servers installs it)")
    data = secrets.token_bytes(100_000)
    field = f"Checksum{algorithm}"
    put = client.put_object(Bucket=bucket, Key="k", Body=data, ChecksumAlgorithm=algorithm)
    head = client.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert put[field] == head[field]
    got = client.get_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")  # boto3 checks what it reads
    assert got["Body"].read() == data
    wrong = {field: base64.b64encode(bytes(len(base64.b64decode(head[field])))).decode()}
    assert error_of(client.put_object, Bucket=bucket, Key="k", Body=b"other", **wrong) == ("BadDigest", 400)
    assert read(client, Bucket=bucket, Key="k") == data


def test_md5_is_the_tag_and_is_checked(client: Any, bucket: str) -> None:
    put = client.put_object(Bucket=bucket, Key="k", Body=b"data")
    assert put["ETag"] == f'"{hashlib.md5(b"data").hexdigest()}"'
    wrong = base64.b64encode(bytes(16)).decode()
    assert error_of(client.put_object, Bucket=bucket, Key="k", Body=b"x", ContentMD5=wrong) == ("BadDigest", 400)
    assert error_of(client.put_object, Bucket=bucket, Key="k", Body=b"x", ContentMD5="?")[0] == "InvalidDigest"


def test_ranges_and_conditions(client: Any, bucket: str) -> None:
    data = secrets.token_bytes(3 * MIB)
    tag = client.put_object(Bucket=bucket, Key="k", Body=data)["ETag"]
    for text, part in [("bytes=0-0", data[:1]), ("bytes=1000000-2000000", data[1000000:2000001]),
                       ("bytes=-5", data[-5:]), ("bytes=3145700-", data[3145700:])]:  # fmt: skip
        got = client.get_object(Bucket=bucket, Key="k", Range=text)
        assert (got["Body"].read(), got["ResponseMetadata"]["HTTPStatusCode"]) == (part, 206)
    assert error_of(client.get_object, Bucket=bucket, Key="k", Range="bytes=9999999-") == ("InvalidRange", 416)
    assert error_of(client.get_object, Bucket=bucket, Key="k", IfNoneMatch=tag)[1] == 304
    assert error_of(client.get_object, Bucket=bucket, Key="k", IfMatch='"other"') == ("PreconditionFailed", 412)
    there = {"Bucket": bucket, "Key": "k", "Body": b"new"}
    assert error_of(client.put_object, **there, IfNoneMatch="*") == ("PreconditionFailed", 412)
    client.put_object(**there, IfMatch=tag)
    assert error_of(client.put_object, **there, IfMatch=tag) == ("PreconditionFailed", 412)


def test_of_many_writers_who_want_to_be_first_one_is(gateway: S3Account, bucket: str) -> None:
    clients = [gateway.client() for _ in range(8)]

    def write(number: int) -> str:
        from botocore.exceptions import ClientError

        try:
            clients[number].put_object(Bucket=bucket, Key="lock", Body=str(number).encode(), IfNoneMatch="*")
        except ClientError as error:
            return str(error.response["Error"]["Code"])
        return ""

    with ThreadPoolExecutor(len(clients)) as pool:
        answers = list(pool.map(write, range(len(clients))))
    won = [number for number, code in enumerate(answers) if not code]
    assert len(won) == 1
    assert set(answers) <= {"", "PreconditionFailed", "ConditionalRequestConflict"}
    assert read(clients[0], Bucket=bucket, Key="lock") == str(won[0]).encode()
    for one in clients:
        one.close()


def test_headers_and_metadata_come_back(client: Any, bucket: str) -> None:
    client.put_object(
        Bucket=bucket, Key="k", Body=b"x", ContentType="text/x-test", CacheControl="max-age=7",
        ContentDisposition="attachment", ContentLanguage="de", ContentEncoding="identity", Metadata={"colour": "blue"},
    )  # fmt: skip
    head = client.head_object(Bucket=bucket, Key="k")
    assert (head["ContentType"], head["CacheControl"], head["ContentDisposition"]) == (
        "text/x-test", "max-age=7", "attachment",
    )  # fmt: skip
    assert head["Metadata"] == {"colour": "blue"}
    got = client.get_object(Bucket=bucket, Key="k", ResponseContentType="text/plain")
    assert got["ContentType"] == "text/plain"
    replaced = {"Metadata": {"colour": "red"}, "MetadataDirective": "REPLACE"}
    client.copy_object(Bucket=bucket, Key="k", CopySource={"Bucket": bucket, "Key": "k"}, **replaced)
    assert client.head_object(Bucket=bucket, Key="k")["Metadata"] == {"colour": "red"}
    large = {"large": "x" * 3000}
    assert error_of(client.put_object, Bucket=bucket, Key="k", Body=b"", Metadata=large)[0] == "MetadataTooLarge"


def test_tags_of_objects_and_buckets(client: Any, bucket: str) -> None:
    client.put_object(Bucket=bucket, Key="k", Body=b"", Tagging="a=1&b=two%20words")
    tags = client.get_object_tagging(Bucket=bucket, Key="k")["TagSet"]
    assert {tag["Key"]: tag["Value"] for tag in tags} == {"a": "1", "b": "two words"}
    client.put_object_tagging(Bucket=bucket, Key="k", Tagging={"TagSet": [{"Key": "c", "Value": "3"}]})
    assert client.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == [{"Key": "c", "Value": "3"}]
    client.delete_object_tagging(Bucket=bucket, Key="k")
    assert client.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == []
    assert error_of(client.get_bucket_tagging, Bucket=bucket) == ("NoSuchTagSet", 404)
    client.put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": [{"Key": "team", "Value": "x"}]})
    assert client.get_bucket_tagging(Bucket=bucket)["TagSet"] == [{"Key": "team", "Value": "x"}]


def test_versions_are_kept_hidden_shown_and_removed(client: Any, bucket: str) -> None:
    client.put_object(Bucket=bucket, Key="k", Body=b"before")
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    first = client.put_object(Bucket=bucket, Key="k", Body=b"first")["VersionId"]
    second = client.put_object(Bucket=bucket, Key="k", Body=b"second")["VersionId"]
    marker = client.delete_object(Bucket=bucket, Key="k")
    assert marker["DeleteMarker"]
    assert error_of(client.get_object, Bucket=bucket, Key="k") == ("NoSuchKey", 404)
    assert read(client, Bucket=bucket, Key="k", VersionId=first) == b"first"
    assert read(client, Bucket=bucket, Key="k", VersionId="null") == b"before"
    listed = client.list_object_versions(Bucket=bucket)
    assert [(v["VersionId"], v["IsLatest"]) for v in listed["Versions"]] == [
        (second, False), (first, False), ("null", False),
    ]  # fmt: skip
    assert [(m["VersionId"], m["IsLatest"]) for m in listed["DeleteMarkers"]] == [(marker["VersionId"], True)]
    client.delete_object(Bucket=bucket, Key="k", VersionId=marker["VersionId"])
    assert read(client, Bucket=bucket, Key="k") == b"second"
    client.delete_object(Bucket=bucket, Key="k", VersionId=second)
    assert read(client, Bucket=bucket, Key="k") == b"first"
    assert error_of(client.delete_bucket, Bucket=bucket) == ("BucketNotEmpty", 409)


def test_a_locked_version_stays(client: Any) -> None:
    bucket = f"boto3-lock-{next(_numbers)}"
    client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    until = datetime.now(UTC) + timedelta(days=1)
    kept = client.put_object(
        Bucket=bucket, Key="k", Body=b"", ObjectLockMode="GOVERNANCE", ObjectLockRetainUntilDate=until
    )["VersionId"]
    there = {"Bucket": bucket, "Key": "k", "VersionId": kept}
    assert error_of(client.delete_object, **there) == ("AccessDenied", 403)
    assert client.get_object_retention(**there)["Retention"]["Mode"] == "GOVERNANCE"
    client.put_object_legal_hold(**there, LegalHold={"Status": "ON"})
    assert error_of(client.delete_object, **there, BypassGovernanceRetention=True) == ("AccessDenied", 403)
    client.put_object_legal_hold(**there, LegalHold={"Status": "OFF"})
    client.delete_object(**there, BypassGovernanceRetention=True)
    assert "Versions" not in client.list_object_versions(Bucket=bucket)


def test_parts_are_sent_copied_and_joined(client: Any, bucket: str) -> None:
    source = secrets.token_bytes(12 * MIB)
    client.put_object(Bucket=bucket, Key="source", Body=source)
    upload = client.create_multipart_upload(Bucket=bucket, Key="k", Metadata={"a": "b"})["UploadId"]
    there = {"Bucket": bucket, "Key": "k", "UploadId": upload}
    copy = {"CopySource": {"Bucket": bucket, "Key": "source"}, "CopySourceRange": f"bytes={MIB}-{7 * MIB - 1}"}
    tags = {1: client.upload_part_copy(**there, **copy, PartNumber=1)["CopyPartResult"]["ETag"]}
    tags[2] = client.upload_part(**there, PartNumber=2, Body=b"end")["ETag"]
    parts = [{"PartNumber": number, "ETag": tag} for number, tag in tags.items()]
    swapped = {"Parts": parts[::-1]}
    assert error_of(client.complete_multipart_upload, **there, MultipartUpload=swapped)[0] == "InvalidPartOrder"
    other = {"Parts": [{"PartNumber": 1, "ETag": '"00000000000000000000000000000000"'}]}
    assert error_of(client.complete_multipart_upload, **there, MultipartUpload=other)[0] == "InvalidPart"
    client.complete_multipart_upload(**there, MultipartUpload={"Parts": parts})
    assert read(client, Bucket=bucket, Key="k") == source[MIB : 7 * MIB] + b"end"
    assert client.head_object(Bucket=bucket, Key="k")["Metadata"] == {"a": "b"}
    assert client.get_object(Bucket=bucket, Key="k", PartNumber=2)["Body"].read() == b"end"
    shown = client.get_object_attributes(Bucket=bucket, Key="k", ObjectAttributes=["ObjectSize", "ObjectParts"])
    assert (shown["ObjectSize"], shown["ObjectParts"]["TotalPartsCount"]) == (6 * MIB + 3, 2)


def test_small_parts_and_numbers_out_of_range_are_refused(client: Any, bucket: str) -> None:
    upload = client.create_multipart_upload(Bucket=bucket, Key="k")["UploadId"]
    there = {"Bucket": bucket, "Key": "k", "UploadId": upload}
    parts = [{"PartNumber": n, "ETag": client.upload_part(**there, PartNumber=n, Body=b"x")["ETag"]} for n in (1, 2)]
    wanted = {"MultipartUpload": {"Parts": parts}}
    assert error_of(client.complete_multipart_upload, **there, **wanted) == ("EntityTooSmall", 400)
    assert error_of(client.upload_part, **there, PartNumber=10_001, Body=b"x") == ("InvalidArgument", 400)


def test_presigned_addresses_and_forms(gateway: S3Account, bucket: str) -> None:
    client = gateway.client(signature_version="s3v4")  # for addresses boto3 still prefers the version before
    where = {"Bucket": bucket, "Key": "a b"}
    put = client.generate_presigned_url("put_object", Params=where, ExpiresIn=60)
    request = urllib.request.Request(put, data=b"by a link", method="PUT")
    with urllib.request.urlopen(request, timeout=30) as response:
        assert response.status == 200
    get = client.generate_presigned_url("get_object", Params=where, ExpiresIn=60)
    with urllib.request.urlopen(get, timeout=30) as response:
        assert response.read() == b"by a link"
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(get.replace("X-Amz-Expires=60", "X-Amz-Expires=61"), timeout=30)
    assert caught.value.code == 403
    assert b"SignatureDoesNotMatch" in caught.value.read()

    conditions: list[Any] = [["content-length-range", 1, 100]]
    form = client.generate_presigned_post(bucket, "up/${filename}", Conditions=conditions, ExpiresIn=60)
    status, _ = post_form(form, "file.txt", b"by a form")
    assert status == 204
    assert read(client, Bucket=bucket, Key="up/file.txt") == b"by a form"
    status, answer = post_form(form, "file.txt", b"x" * 101)
    assert (status, b"EntityTooLarge" in answer) == (400, True)


def post_form(form: dict[str, Any], filename: str, data: bytes) -> tuple[int, bytes]:
    """Status and body of a browser's upload."""
    boundary = secrets.token_hex(16)
    lines = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in form["fields"].items()
    ]
    lines.append(f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n\r\n')
    body = "".join(lines).encode() + data + f"\r\n--{boundary}--\r\n".encode()
    url = urlsplit(form["url"])
    connection = http.client.HTTPConnection(url.netloc, timeout=30)
    connection.request("POST", url.path, body, {"Content-Type": f"multipart/form-data; boundary={boundary}"})
    response = connection.getresponse()
    answer = response.status, response.read()
    connection.close()
    return answer


def test_policies_open_a_bucket_to_everybody_and_close_it(gateway: S3Account, client: Any, bucket: str) -> None:
    client.put_object(Bucket=bucket, Key="public/k", Body=b"for all")
    client.put_object(Bucket=bucket, Key="private/k", Body=b"for me")

    def status(path: str) -> int:
        try:
            with urllib.request.urlopen(f"{gateway.endpoint}/{bucket}/{path}", timeout=30) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code

    assert status("public/k") == 403
    statement = {
        "Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{bucket}/public/*",
    }  # fmt: skip
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
    assert (status("public/k"), status("private/k")) == (200, 403)
    assert json.loads(client.get_bucket_policy(Bucket=bucket)["Policy"])["Statement"] == [statement]
    client.delete_bucket_policy(Bucket=bucket)
    assert status("public/k") == 403
    assert error_of(client.put_bucket_policy, Bucket=bucket, Policy="{}")[0] == "MalformedPolicy"


def test_browsers_of_other_origins_are_let_in_by_rule(gateway: S3Account, client: Any, bucket: str) -> None:
    assert error_of(client.get_bucket_cors, Bucket=bucket) == ("NoSuchCORSConfiguration", 404)
    rule = {"AllowedOrigins": ["https://*.example"], "AllowedMethods": ["GET", "PUT"], "AllowedHeaders": ["*"]}
    client.put_bucket_cors(Bucket=bucket, CORSConfiguration={"CORSRules": [rule]})
    url = f"{gateway.endpoint}/{bucket}/k"

    def preflight(origin: str) -> tuple[int, str | None]:
        headers = {"Origin": origin, "Access-Control-Request-Method": "PUT"}
        request = urllib.request.Request(url, method="OPTIONS", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, response.headers["Access-Control-Allow-Origin"]
        except urllib.error.HTTPError as error:
            return error.code, error.headers["Access-Control-Allow-Origin"]

    assert preflight("https://a.example") == (200, "https://a.example")
    assert preflight("https://elsewhere.test") == (403, None)


def test_rules_of_expiry_are_kept(client: Any, bucket: str) -> None:
    rule = {"ID": "old", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 3}}
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [rule]})
    assert client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"] == [rule]
    client.delete_bucket_lifecycle(Bucket=bucket)
    assert error_of(client.get_bucket_lifecycle_configuration, Bucket=bucket)[0] == "NoSuchLifecycleConfiguration"


def test_errors_say_what_was_expected(gateway: S3Account, client: Any, bucket: str) -> None:
    assert error_of(client.get_object, Bucket=bucket, Key="none") == ("NoSuchKey", 404)
    assert error_of(client.list_objects_v2, Bucket="nobody-has-this-one") == ("NoSuchBucket", 404)
    site = {"IndexDocument": {"Suffix": "index.html"}}
    assert error_of(client.put_bucket_website, Bucket=bucket, WebsiteConfiguration=site) == ("NotImplemented", 501)
    wrong = gateway._replace(secret_key="x" * 40).client()
    assert error_of(wrong.list_buckets) == ("SignatureDoesNotMatch", 403)
    unknown = gateway._replace(access_key="FHAAAAAAAAAAAAAAAAAA").client()
    assert error_of(unknown.list_buckets) == ("InvalidAccessKeyId", 403)
    elsewhere = gateway._replace(region="eu-nowhere-9").client()
    with pytest.raises(Exception, match=gateway.region):
        elsewhere.list_buckets()
    assert elsewhere.list_objects_v2(Bucket=bucket)["KeyCount"] == 0  # boto3 takes the region from the error


def test_two_writers_at_one_key_leave_one_of_both(gateway: S3Account, bucket: str) -> None:
    bodies = [bytes([i]) * (2 * MIB) for i in range(6)]
    clients = [gateway.client() for _ in bodies]
    with ThreadPoolExecutor(len(bodies)) as pool:
        list(pool.map(lambda i: clients[i].put_object(Bucket=bucket, Key="k", Body=bodies[i]), range(len(bodies))))
    assert read(clients[0], Bucket=bucket, Key="k") in bodies
    for one in clients:
        one.close()


def test_crc_of_what_is_streamed_with_a_trailer(client: Any, bucket: str) -> None:
    """boto3 sends files of unknown checksums with it in a trailer."""
    import io

    data = secrets.token_bytes(9 * MIB)
    client.upload_fileobj(io.BytesIO(data), bucket, "k", ExtraArgs={"ChecksumAlgorithm": "CRC32"})
    got = client.get_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert got["Body"].read() == data
    client.put_object(Bucket=bucket, Key="one", Body=io.BytesIO(data), ChecksumAlgorithm="CRC32")
    shown = client.head_object(Bucket=bucket, Key="one", ChecksumMode="ENABLED")["ChecksumCRC32"]
    assert base64.b64decode(shown) == zlib.crc32(data).to_bytes(4)
