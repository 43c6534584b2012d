"""The gateway's decoders of the S3 protocol, for the table of decoders.py: any bytes give a value or an S3Error."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

from freehold.client.root import BucketRecord
from freehold.gateway import conditions, descriptions, share
from freehold.gateway.handlers_objects import parse_part_number
from freehold.gateway.wire import (
    checksums,
    cors,
    documents,
    headers,
    lifecycle,
    listing,
    names,
    policy,
    post_form,
    request,
    sigv2,
    sigv4,
)
from freehold.gateway.wire.errors import S3Error
from freehold.gateway.wire.request import Request
from freehold.gateway.wire.streaming import ChunkDecoder
from freehold.protocol.errors import InvalidInput
from freehold.services.storage.client_objects import Code
from tests.gateway import samples

KEY, SECRET, REGION, NOW = "AKID", "secret", "us-east-1", 1_000_000
AT = NOW * 1000


def of_s3(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """An S3Error, which must be able to be written, as the typed error that the table expects."""

    def run(data: bytes) -> Any:
        try:
            return decode(data)
        except S3Error as error:
            error.to_xml("/b/k", "1")
            raise InvalidInput(error.code) from None

    return run


def text_of(data: bytes) -> str:
    """As the HTTP server gives the text of a header or a path."""
    return data.decode("utf-8", "surrogateescape")


def of_text(decode: Callable[[str], Any]) -> Callable[[bytes], Any]:
    return of_s3(lambda data: decode(text_of(data)))


def request_of(data: bytes) -> Request:
    """A first line "GET path?query", then lines of headers."""
    first, *lines = text_of(data).split("\n")
    method, _, target = first.partition(" ")
    path, _, query = target.partition("?")
    pairs = [line.partition(": ") for line in lines]
    return Request(method, path, query, request.join_headers((name, value) for name, _, value in pairs))


def headers_of(data: bytes) -> dict[str, str]:
    return dict(request_of(b"GET /\n" + data).headers)


def verified(data: bytes) -> Any:
    found = request_of(data)
    authorization = sigv4.parse_authorization(found)
    return found if authorization is None else sigv4.verify(found, authorization, SECRET, REGION, NOW)


def signed_requests() -> list[bytes]:
    bare = Request("GET", "/b/k%20k", "prefix=a&list-type=2", {"host": "h:1", "x-amz-meta-a": "b  c"})
    signed = sigv4.sign_request(bare, KEY, SECRET, REGION, NOW)
    lines = [f"GET {bare.path}?{bare.query}", *(f"{name}: {value}" for name, value in signed.items())]
    url = sigv4.presign("GET", "h:1", "/b/k", KEY, SECRET, REGION, NOW, 60)
    return ["\n".join(lines).encode(), f"GET {url}\nhost: h:1".encode(), b"GET /b/k?acl\nhost: h"]


def verified_url(data: bytes) -> Any:
    found = request_of(data)
    query = request.decode_query(found.query)
    url = sigv2.parse_url(query, found.headers)
    return found if url is None else sigv2.verify_url(found, query, "b", url, SECRET, NOW)


def signed_urls() -> list[bytes]:
    expires, headers = str(int(NOW) + 60), {"host": "h", "x-amz-acl": "private"}
    text = sigv2.string_to_sign(Request("GET", "/k", "", headers), {"acl": ""}, "b", expires)
    signature = request.encode_uri(sigv2.sign(SECRET, text).encode())
    line = f"GET /k?acl&AWSAccessKeyId={KEY}&Signature={signature}&Expires={expires}"
    return [f"{line}\nhost: h\nx-amz-acl: private".encode(), b"GET /k\nhost: h"]


def streamed(data: bytes) -> Any:
    """The first byte chooses one of the three forms."""
    kind = sigv4.STREAMING[data[0] % 3] if data else sigv4.STREAMING_SIGNED
    announced = {"x-amz-trailer": "x-amz-checksum-crc32c", "x-amz-decoded-content-length": "5"}
    decoder = ChunkDecoder(kind, announced, samples.SEAL)
    plain = decoder.feed(data[1:9]) + decoder.feed(data[9:])
    decoder.finish()
    return plain, decoder.trailers


def checked_form(data: bytes) -> Any:
    fields = {key: value for key, value in json_object(data).items() if isinstance(value, str)}
    post_form.check_size(fields)
    authorization = post_form.parse_form(fields)
    if authorization is not None:
        post_form.verify_form(authorization, fields, SECRET, REGION)
        found = post_form.parse_form_policy(fields["policy"])
        post_form.check_form(found, fields, "b", post_form.get_key(fields, "a/b.txt"), AT)
    return post_form.write_form_answer(fields, "/b/k", "b", "k", "00")


def json_object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def forms() -> list[bytes]:
    return [json.dumps(samples.signed_form(SECRET, REGION, NOW)).encode(), b'{"key": "x"}']


def evaluated(data: bytes) -> Any:
    found = policy.parse_policy(data, "b")
    facts = {"aws:sourceip": ["10.0.0.1"], "s3:prefix": ["a" * 300], "aws:currenttime": ["2026-01-01T00:00:00Z"]}
    asked = policy.PolicyRequest("s3:GetObject", policy.arn_of("b", "a" * 300), ("AKID",), facts)
    return found.evaluate(asked), found.is_public, found


def named(text: str) -> Any:
    bucket, key = names.split_target(text)
    names.check_bucket_name(bucket)
    names.check_key(key)
    return bucket, key


def asked(text: str) -> Any:
    """Every listing's reading of one query."""
    query = request.decode_query(text)
    reads = (
        listing.parse_list_v1,
        listing.parse_list_v2,
        listing.parse_list_versions,
        listing.parse_list_uploads,
        listing.parse_list_parts,
        headers.response_overrides,
    )
    return [read(query) for read in reads]


def digests(data: bytes) -> Any:
    found = headers_of(data)
    body = checksums.BodyDigests(found, found.get("x-amz-content-sha256", ""))
    body.update(b"123456789")
    body.finish(found)
    return checksums.parse_checksum_type(found), checksums.parse_wanted(found, composite=True), body.checksums


def own_headers(data: bytes) -> Any:
    found = headers_of(data)
    metadata = headers.parse_metadata(found)
    return headers.write_metadata(metadata), documents.parse_lock_headers(found, AT)


def put_headers(data: bytes) -> Any:
    record = BucketRecord(id=bytes(16), created=0, code=Code(3, 6), versioning="Enabled", object_lock=True)
    return descriptions.parse_options(headers_of(data), record, NOW)


def spans(text: str) -> Any:
    """Every reading of a header that names bytes or a time; the strictest last."""
    found = conditions.parse_date(text), conditions.parse_range(text, 1_000)
    return found, conditions.parse_copy_range(text, 1_000)


def wire_decoders(entry: Callable[..., Any]) -> Iterator[Any]:
    """`entry` is the table's own maker of rows."""

    def cover(module: str, *functions: str) -> tuple[str, ...]:
        return tuple(f"gateway.wire.{module}.{name}" for name in functions)

    yield entry(
        "s3_request",
        of_s3(verified),
        signed_requests,
        *cover(
            "sigv4",
            *("parse_authorization", "_parse_header", "_parse_query", "parse_credential", "_parse_date", "parse_stamp"),
            "parse_payload_hash",
        ),
        *cover("request", "decode_text"),
    )
    yield entry(
        "s3_url_version_2",
        of_s3(verified_url),
        signed_urls,
        *cover("sigv2", "parse_url"),
    )
    yield entry("s3_chunks", of_s3(streamed), samples.streams, *cover("streaming", "parse_decoded_length"))
    yield entry(
        "s3_digests",
        of_s3(digests),
        lambda: [b"content-md5: JfnnlDI7RTiF9RgfG2JNCw==\nx-amz-checksum-crc32: y/Q5Jg==", b"x-amz-trailer: x"],
        *cover("checksums", "decode_digest", "parse_algorithm", "parse_trailer_name", "parse_wanted"),
        *cover("checksums", "parse_content_md5", "parse_checksum_type"),
    )
    yield entry(
        "s3_query",
        of_text(asked),
        lambda: [b"prefix=a%20b&max-keys=5&continuation-token=AWE=&encoding-type=url", b"marker=x&delimiter=/"],
        *cover("request", "decode_query"),
        *cover("listing", "parse_number", "_parse_common", "parse_list_v1", "parse_list_v2", "parse_list_versions"),
        *cover("listing", "parse_list_uploads", "parse_list_parts"),
    )
    yield entry(
        "s3_token",
        of_text(listing.parse_token),
        lambda: [listing.write_token("a/é").encode()],
        *cover("listing", "parse_token"),
        encode=lambda after: listing.write_token(after).encode(),
    )
    yield entry("s3_target", of_text(named), lambda: [b"/bucket/a%2Fb/../c"])
    yield entry(
        "s3_headers",
        of_s3(own_headers),
        lambda: [
            b"x-amz-meta-a: =?utf-8?b?w6k=?=\nx-amz-object-lock-legal-hold: ON",
            b"x-amz-object-lock-mode: GOVERNANCE\nx-amz-object-lock-retain-until-date: 2030-01-01T00:00:00Z",
        ],
        *cover("headers", "parse_metadata", "_decode_value"),
        *cover("documents", "parse_lock_headers", "parse_iso"),
    )
    yield entry(
        "s3_copy_source",
        of_text(headers.parse_copy_source),
        lambda: [b"/b/k%20k?versionId=5", b"b/k"],
        *cover("headers", "parse_copy_source"),
    )
    yield entry(
        "s3_tag_header",
        of_text(documents.parse_tag_header),
        lambda: [b"a=1&b=c%20d", b""],
        *cover("documents", "parse_tag_header"),
    )
    yield entry(
        "s3_put_headers",
        of_s3(put_headers),
        lambda: [
            b'content-type: text/plain\ncache-control: no-store\nx-amz-meta-a: b\nx-amz-tagging: a=1\nif-match: "x"',
            b"x-amz-object-lock-legal-hold: ON\nx-amz-storage-class: STANDARD\nif-none-match: *\nexpires: 0",
        ],
        *(f"gateway.descriptions.parse_{name}" for name in ("options", "condition", "storage_class", "lock", "kept")),
    )
    yield entry(
        "s3_spans",
        of_text(spans),
        lambda: [b"bytes=0-9", b"bytes=-5", b"Sun, 06 Nov 1994 08:49:37 GMT"],
        *(f"gateway.conditions.parse_{name}" for name in ("date", "range", "copy_range")),
    )
    yield entry(
        "s3_part_number",
        of_text(parse_part_number),
        lambda: [b"1", b"10000"],
        "gateway.handlers_objects.parse_part_number",
    )
    yield entry("share_path", of_text(share._decode), lambda: [b"a%20b"], "gateway.share._decode")
    yield entry("s3_policy", of_s3(evaluated), lambda: [samples.POLICY], *cover("policy", "parse_policy"),
                *cover("policy_conditions", "parse_conditions"))  # fmt: skip
    yield entry("s3_form", of_s3(checked_form), forms, *cover("post_form", "parse_form"))
    yield entry(
        "s3_form_policy",
        of_s3(lambda data: post_form.parse_form_policy(base64.b64encode(data).decode())),
        lambda: [samples.FORM_POLICY],
        *cover("post_form", "parse_form_policy"),
    )
    yield entry("s3_cors", of_s3(cors.parse_cors), lambda: [samples.CORS], *cover("cors", "parse_cors"))
    yield entry(
        "s3_lifecycle",
        of_s3(lifecycle.parse_lifecycle),
        lambda: [lifecycle.write_lifecycle(samples.RULES)],
        *cover("lifecycle", "parse_lifecycle"),
        encode=lifecycle.write_lifecycle,
    )
    for name, decode, seed, encode in (
        ("parse_create_bucket", lambda data: documents.parse_create_bucket(data, REGION), samples.CREATE, None),
        ("parse_versioning", documents.parse_versioning, samples.VERSIONING, documents.write_versioning),
        ("parse_ownership", documents.parse_ownership, samples.OWNERSHIP, None),
        ("parse_acl", documents.parse_acl, samples.ACL, None),
        ("parse_delete", documents.parse_delete, samples.DELETE, None),
        ("parse_complete", documents.parse_complete, samples.COMPLETE, None),
        ("parse_tagging", documents.parse_tagging, samples.TAGGING, documents.write_tagging),
        ("parse_object_lock", documents.parse_object_lock, samples.OBJECT_LOCK, documents.write_object_lock),
        (
            "parse_retention",
            lambda data: documents.parse_retention(data, AT),
            samples.RETENTION,
            lambda found: documents.write_retention(*found),
        ),
        ("parse_legal_hold", documents.parse_legal_hold, samples.LEGAL_HOLD, documents.write_legal_hold),
    ):
        yield entry(
            f"s3_{name.removeprefix('parse_')}",
            of_s3(decode),
            lambda seed=seed: [seed],
            *cover("documents", name),
            *cover("xml", "parse_xml"),
            encode=encode,
        )
