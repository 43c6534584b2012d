"""How S3's headers describe a version of an object, and what of a request's headers becomes part of one.

Pure. Times are unix milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import formatdate
from functools import lru_cache

from freehold.client.bucket_types import ObjectInfo, PutOptions
from freehold.client.lifecycle import Facts, find_expiry
from freehold.client.root import BucketRecord
from freehold.gateway.conditions import unquote_tag
from freehold.gateway.wire.checksums import header_name
from freehold.gateway.wire.documents import iso_milliseconds, parse_lock_headers, parse_tag_header
from freehold.gateway.wire.errors import S3Error
from freehold.gateway.wire.headers import parse_metadata, read_text, write_metadata

DEFAULT_TYPE = "binary/octet-stream"
KEPT = {  # what a GET gives back: as buckets name it, and as answers do
    "content-type": "Content-Type",
    "cache-control": "Cache-Control",
    "content-disposition": "Content-Disposition",
    "content-encoding": "Content-Encoding",
    "content-language": "Content-Language",
    "expires": "Expires",
}
STORAGE_CLASSES = ("STANDARD",)
ENCRYPTION = "x-amz-server-side-encryption"


@lru_cache(maxsize=4096)
def http_date(seconds: int) -> str:
    """Unix seconds as HTTP writes them."""
    return formatdate(seconds, usegmt=True)


def quote_tag(etag: str) -> str:
    """An entity tag as headers and XML have it."""
    return f'"{etag}"'


def describe(info: ObjectInfo, record: BucketRecord) -> dict[str, str]:
    """The headers of a GET or HEAD, but for lengths and checksums."""
    headers = {
        "ETag": f'"{info.etag}"',
        "Last-Modified": http_date(info.modified // 1000),
        "Accept-Ranges": "bytes",
        ENCRYPTION: "AES256",
        "Content-Type": DEFAULT_TYPE,
        **{KEPT[name]: value for name, value in info.headers.items()},
    }
    if info.metadata:
        headers |= write_metadata(info.metadata)
    if record.versioning:
        headers["x-amz-version-id"] = info.version_id
    if info.tags:
        headers["x-amz-tagging-count"] = str(len(info.tags))
    if info.lock_mode:
        headers["x-amz-object-lock-mode"] = info.lock_mode
        headers["x-amz-object-lock-retain-until-date"] = iso_milliseconds(info.retain_until)
    if info.legal_hold:
        headers["x-amz-object-lock-legal-hold"] = "ON"
    if record.lifecycle and info.is_latest and (expiry := write_expiry(info, record)):
        headers["x-amz-expiration"] = expiry
    return headers


def write_expiry(info: ObjectInfo, record: BucketRecord) -> str:
    """`x-amz-expiration`: when the bucket's rules take the object, and which; "" where none does."""
    facts = Facts(info.size, info.modified, dict(info.tags), info.is_delete_marker)
    found = find_expiry(record.lifecycle, info.key, facts)
    return f'expiry-date="{http_date(found[0] // 1000)}", rule-id="{found[1]}"' if found else ""


def checksum_headers(checksums: Mapping[str, str], kind: str = "") -> dict[str, str]:
    """An object's checksums as headers."""
    headers = {header_name(name): value for name, value in checksums.items()}
    if headers and kind:
        headers["x-amz-checksum-type"] = kind
    return headers


def stored_headers(info: ObjectInfo, record: BucketRecord) -> dict[str, str]:
    """The headers that tell whoever stored an object what became of it."""
    headers = {
        "ETag": quote_tag(info.etag),
        ENCRYPTION: "AES256",
        **checksum_headers(info.checksums, info.checksum_type),
    }
    if record.versioning:
        headers["x-amz-version-id"] = info.version_id
    if record.lifecycle and (expiry := write_expiry(info, record)):
        headers["x-amz-expiration"] = expiry
    return headers


def parse_options(
    headers: Mapping[str, str], record: BucketRecord, now: float, *, conditions: bool = True
) -> PutOptions:
    """How the headers of a PUT, a copy or a new upload say that the object is put. S3Error for what is not offered."""
    check_not_offered(headers)
    mode, until, hold = parse_lock(headers, record, now)
    return PutOptions(
        headers=parse_kept(headers),
        metadata=parse_metadata(headers),
        tags=parse_tag_header(headers["x-amz-tagging"]) if "x-amz-tagging" in headers else {},
        storage_class=parse_storage_class(headers),
        lock_mode=mode,
        retain_until=until,
        legal_hold=hold,
        if_match=parse_condition(headers.get("if-match")) if conditions else None,
        if_none_match=parse_condition(headers.get("if-none-match"), only_any=True) if conditions else None,
    )


def parse_condition(header: str | None, *, only_any: bool = False) -> str | None:
    """The tag of a conditional write; S3 takes nothing but "*" in If-None-Match."""
    if header is None:
        return None
    tag = unquote_tag(header)
    if only_any and tag != "*":
        raise S3Error("NotImplemented", 'If-None-Match of a write takes "*" only.', Header="If-None-Match")
    return tag


def check_not_offered(headers: Mapping[str, str]) -> None:
    """S3Error NotImplemented, or what AWS answers, for headers that ask for what there is not."""
    acl = headers.get("x-amz-acl")
    granted = next((name for name in headers if name.startswith("x-amz-grant-")), None)
    if granted or (acl is not None and acl not in ("private", "bucket-owner-full-control")):
        raise S3Error("AccessControlListNotSupported")
    if headers.get(ENCRYPTION, "AES256") != "AES256":
        raise S3Error("NotImplemented", "Only AES256 is offered for server-side encryption.", Header=ENCRYPTION)
    for name in headers:
        if name.startswith(("x-amz-server-side-encryption-customer-", "x-amz-server-side-encryption-aws-kms")):
            raise S3Error("NotImplemented", f"{name} is not offered by this gateway.", Header=name)
        if name in ("x-amz-website-redirect-location", "x-amz-write-offset-bytes"):
            raise S3Error("NotImplemented", f"{name} is not offered by this gateway.", Header=name)


def parse_storage_class(headers: Mapping[str, str]) -> str:
    """The storage class: there is one."""
    found = headers.get("x-amz-storage-class", "STANDARD")
    if found not in STORAGE_CLASSES:
        raise S3Error("InvalidStorageClass", f"{found} is not offered: every object is STANDARD.")
    return found


def parse_lock(headers: Mapping[str, str], record: BucketRecord, now: float) -> tuple[str, int, bool]:
    """Mode, until when, and legal hold, as headers ask; ("", 0, False) leaves it to the bucket's default."""
    mode, until, hold = parse_lock_headers(headers, int(now * 1000))
    if (mode or hold is not None) and not record.object_lock:
        raise S3Error("InvalidRequest", "Bucket is missing Object Lock Configuration")
    return mode, until, bool(hold)


def parse_kept(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that a GET gives back; Content-Encoding without `aws-chunked`, which is about the request alone."""
    kept = {name: read_text(headers[name]) for name in KEPT if name in headers}
    if "aws-chunked" in kept.get("content-encoding", ""):
        items = [item.strip() for item in kept.pop("content-encoding").split(",")]
        if rest := [item for item in items if item != "aws-chunked"]:
            kept["content-encoding"] = ",".join(rest)
    return kept
