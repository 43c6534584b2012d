"""Typed reading and writing of S3's smaller XML documents. Larger ones have files of their own (cors, lifecycle).

Every `parse_*` takes a request's body and raises S3Error for what AWS refuses; `write_*` gives an answer's body.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple

from freehold.client.bucket_types import COMPLIANCE, GOVERNANCE, CompletedPart, DeleteWhat
from freehold.gateway.wire.checksums import ALGORITHMS, decode_digest
from freehold.gateway.wire.errors import S3Error, invalid_argument
from freehold.gateway.wire.request import decode_text
from freehold.gateway.wire.xml import Node, malformed, parse_xml
from freehold.gateway.wire.xml_writer import Writer

MOST_DELETES = 1000
MOST_PARTS = 10_000
MOST_OBJECT_TAGS = 10
MOST_BUCKET_TAGS = 50
MOST_RETENTION_DAYS = 36_500
OWNERSHIPS = ("BucketOwnerEnforced", "BucketOwnerPreferred", "ObjectWriter")
_FIRST, _LAST = -62_135_596_800_000, 253_402_300_799_999  # the years 1 to 9999 in UTC
_TAG_SIGNS = frozenset("+-=._:/@")


# --- buckets ----------------------------------------------------------------------------------------------------------


def parse_create_bucket(data: bytes, region: str) -> dict[str, str]:
    """The tags of a new bucket. Its location, where one is named, must be this region."""
    if not data:
        return {}
    root = parse_xml(data, "CreateBucketConfiguration")
    location = root.get_text("LocationConstraint")
    if location and location.strip() != region:
        message = f"The {location.strip()} location constraint is incompatible for the region specific endpoint this "
        raise S3Error("IllegalLocationConstraintException", f"{message}request was sent to: expecting {region}")
    if root.get("Bucket") is not None or root.get("Location") is not None:
        raise S3Error("NotImplemented", "Directory buckets are not offered")
    tags = root.get("Tags")
    return {} if tags is None else _read_tags(tags, MOST_BUCKET_TAGS)


def parse_versioning(data: bytes) -> str:
    """ "Enabled" or "Suspended"."""
    root = parse_xml(data, "VersioningConfiguration")
    if (root.get_text("MfaDelete") or "Disabled") != "Disabled":
        raise S3Error("NotImplemented", "MFA delete is not offered")
    status = root.get_text("Status")
    if status not in ("Enabled", "Suspended"):
        raise S3Error("IllegalVersioningConfigurationException")
    return status


def write_versioning(status: str) -> bytes:
    writer = Writer("VersioningConfiguration")
    writer.optional("Status", status)
    return writer.done()


def parse_ownership(data: bytes) -> str:
    """One of OWNERSHIPS."""
    rule = parse_xml(data, "OwnershipControls").get("Rule")
    ownership = rule.require_text("ObjectOwnership") if rule else ""
    if ownership not in OWNERSHIPS:
        raise malformed(f"<ObjectOwnership> must be one of {', '.join(OWNERSHIPS)}")
    return ownership


def parse_acl(data: bytes, owner: str = "") -> None:
    """S3Error for any list but the one that says what is so: `owner`, and nobody else, has all access."""
    try:
        root = parse_xml(data, "AccessControlPolicy")
        listed = root.get("AccessControlList")
        grants = [] if listed is None else list(listed.all("Grant"))
        held = [(g.get_text("Permission"), node.get_text("ID")) for g in grants if (node := g.get("Grantee"))]
    except S3Error as error:
        raise S3Error("MalformedACLError", error.message) from None
    if not owner or len(held) != len(grants) or set(held) != {("FULL_CONTROL", owner)}:
        raise S3Error("AccessControlListNotSupported")


# --- deletes and uploads ----------------------------------------------------------------------------------------------


class DeleteRequest(NamedTuple):
    """What DeleteObjects names; `quiet`: only errors are answered."""

    items: tuple[DeleteWhat, ...]
    quiet: bool


def parse_delete(data: bytes) -> DeleteRequest:
    root = parse_xml(data, "Delete")
    root.check_children("Object", "Quiet")
    items = []
    for node in root.all("Object"):
        etag = node.get_text("ETag")
        version = node.get_text("VersionId")
        items.append(DeleteWhat(node.require_text("Key"), version or None, _unquote(etag) if etag else None))
    if not 1 <= len(items) <= MOST_DELETES:
        raise malformed(f"<Delete> takes from 1 to {MOST_DELETES} objects")
    return DeleteRequest(tuple(items), _is_true(root, "Quiet"))


def parse_complete(data: bytes) -> tuple[CompletedPart, ...]:
    """The parts in the order given; whether that ascends is not checked here."""
    root = parse_xml(data, "CompleteMultipartUpload")
    root.check_children("Part")
    if not 1 <= len(root.children) <= MOST_PARTS:
        raise malformed(f"<CompleteMultipartUpload> takes from 1 to {MOST_PARTS} parts")
    return tuple(_read_part(node) for node in root.children)


def _read_part(node: Node) -> CompletedPart:
    number = node.require_text("PartNumber").strip()
    if not (number.isascii() and number.isdigit() and len(number) <= 20 and 1 <= int(number) <= MOST_PARTS):
        message = f"Part number must be an integer between 1 and {MOST_PARTS}, inclusive"
        raise invalid_argument("partNumber", number, message)
    checksums = {}
    for name in ALGORITHMS:
        text = node.get_text(f"Checksum{name}")
        if text:
            if decode_digest(name, text.strip()) is None:
                raise S3Error("InvalidRequest", f"Value for Checksum{name} is invalid.")
            checksums[name] = text.strip()
    return CompletedPart(int(number), _unquote(node.require_text("ETag")), checksums)


def _unquote(etag: str) -> str:
    return etag.strip().strip('"')


def _is_true(node: Node, name: str) -> bool:
    text = (node.get_text(name) or "false").strip().lower()
    if text not in ("true", "false"):
        raise malformed(f"<{name}> must be true or false")
    return text == "true"


# --- tags -------------------------------------------------------------------------------------------------------------


def parse_tagging(data: bytes, limit: int = MOST_OBJECT_TAGS) -> dict[str, str]:
    """The tags of an object, or with another `limit` of a bucket."""
    tags = parse_xml(data, "Tagging").get("TagSet")
    if tags is None:
        raise malformed("<Tagging> needs <TagSet>")
    return _read_tags(tags, limit)


def parse_tag_header(text: str) -> dict[str, str]:
    """The tags of `x-amz-tagging`: `a=1&b=2`, percent-encoded."""
    pairs = []
    for item in text.split("&") if text else []:
        name, _, value = item.replace("+", " ").partition("=")
        try:
            pairs.append((decode_text(name), decode_text(value)))
        except S3Error:
            message = "The header 'x-amz-tagging' shall be encoded as UTF-8 then URLEncoded URL query parameters "
            raise invalid_argument("x-amz-tagging", text, f"{message}without tag name duplicates.") from None
    return check_tags(pairs, MOST_OBJECT_TAGS)


def write_tagging(tags: Mapping[str, str]) -> bytes:
    writer = Writer("Tagging")
    with writer.inside("TagSet"):
        for key, value in tags.items():
            with writer.inside("Tag"):
                writer.leaf("Key", key)
                writer.leaf("Value", value)
    return writer.done()


def _read_tags(node: Node, limit: int) -> dict[str, str]:
    node.check_children("Tag")
    return check_tags([(tag.get_text("Key") or "", tag.get_text("Value") or "") for tag in node.children], limit)


def check_tags(pairs: list[tuple[str, str]], limit: int) -> dict[str, str]:
    """The tags by key. S3Error for what S3 does not take as tags, or for more than `limit`."""
    if len(pairs) > limit:
        what = "Object" if limit == MOST_OBJECT_TAGS else "Bucket"
        raise S3Error("BadRequest", f"{what} tags cannot be greater than {limit}")
    tags: dict[str, str] = {}
    for key, value in pairs:
        if not 1 <= len(key) <= 128 or not _is_tag_text(key):
            raise S3Error("InvalidTag", "The TagKey you have provided is invalid", TagKey=key)
        if len(value) > 256 or not _is_tag_text(value):
            raise S3Error("InvalidTag", "The TagValue you have provided is invalid", TagKey=key, TagValue=value)
        if key.lower().startswith("aws:"):
            raise S3Error("InvalidTag", "System tags cannot be added/updated by requester", TagKey=key)
        if key in tags:
            raise S3Error("InvalidTag", "Cannot provide multiple Tags with the same key", TagKey=key)
        tags[key] = value
    return tags


def _is_tag_text(text: str) -> bool:
    return all(sign.isalnum() or sign.isspace() or sign in _TAG_SIGNS for sign in text)


# --- object lock ------------------------------------------------------------------------------------------------------


def parse_object_lock(data: bytes) -> tuple[str, int] | None:
    """The default retention as (mode, days); None where there is to be none. A year has 365 days."""
    root = parse_xml(data, "ObjectLockConfiguration")
    root.check_children("ObjectLockEnabled", "Rule")
    if root.require_text("ObjectLockEnabled") != "Enabled":
        raise malformed("<ObjectLockEnabled> must be Enabled")
    rule = root.get("Rule")
    if rule is None:
        return None
    default = rule.get("DefaultRetention")
    if default is None:
        raise malformed("<Rule> needs <DefaultRetention>")
    mode = _check_mode(default.require_text("Mode"))
    days = default.get_integer("Days", 1, MOST_RETENTION_DAYS)
    years = default.get_integer("Years", 1, MOST_RETENTION_DAYS // 365)
    if (days is None) == (years is None):
        raise malformed("<DefaultRetention> needs either <Days> or <Years>")
    return mode, days if days is not None else (years or 0) * 365


def write_object_lock(default: tuple[str, int] | None) -> bytes:
    writer = Writer("ObjectLockConfiguration")
    writer.leaf("ObjectLockEnabled", "Enabled")
    if default is not None:
        with writer.inside("Rule"), writer.inside("DefaultRetention"):
            writer.leaf("Mode", default[0])
            writer.leaf("Days", default[1])
    return writer.done()


def parse_retention(data: bytes, now: int) -> tuple[str, int]:
    """(mode, until), both times in Unix milliseconds; ("", 0) takes the retention away."""
    root = parse_xml(data, "Retention")
    root.check_children("Mode", "RetainUntilDate")
    mode, until = root.get_text("Mode"), root.get_text("RetainUntilDate")
    if mode is None and until is None:
        return "", 0
    if not mode or not until:
        raise malformed("<Retention> needs <Mode> and <RetainUntilDate>")
    return _check_mode(mode), _check_until(until, now)


def write_retention(mode: str, until: int) -> bytes:
    writer = Writer("Retention")
    writer.leaf("Mode", mode)
    writer.leaf("RetainUntilDate", iso_milliseconds(until))
    return writer.done()


def parse_legal_hold(data: bytes) -> bool:
    status = parse_xml(data, "LegalHold").get_text("Status")
    if status not in ("ON", "OFF"):
        raise malformed("<Status> must be ON or OFF")
    return status == "ON"


def write_legal_hold(hold: bool) -> bytes:
    writer = Writer("LegalHold")
    writer.leaf("Status", "ON" if hold else "OFF")
    return writer.done()


def parse_lock_headers(headers: Mapping[str, str], now: int) -> tuple[str, int, bool | None]:
    """(mode, until, legal hold) of a PUT's x-amz-object-lock-* headers; ("", 0, None) where it has none."""
    mode = headers.get("x-amz-object-lock-mode")
    until = headers.get("x-amz-object-lock-retain-until-date")
    hold = headers.get("x-amz-object-lock-legal-hold")
    if hold not in (None, "ON", "OFF"):
        message = "Legal Hold must be either of 'ON' or 'OFF'"
        raise invalid_argument("x-amz-object-lock-legal-hold", hold or "", message)
    if (mode is None) != (until is None):
        message = "x-amz-object-lock-retain-until-date and x-amz-object-lock-mode must both be supplied"
        raise invalid_argument("x-amz-object-lock-mode", mode or "", message)
    held = None if hold is None else hold == "ON"
    if mode is None or until is None:
        return "", 0, held
    if mode not in (GOVERNANCE, COMPLIANCE):
        raise invalid_argument("x-amz-object-lock-mode", mode, "Unknown wormMode directive.")
    return mode, _check_until(until, now), held


def _check_mode(mode: str) -> str:
    if mode not in (GOVERNANCE, COMPLIANCE):
        raise malformed(f"<Mode> must be {GOVERNANCE} or {COMPLIANCE}")
    return mode


def _check_until(text: str, now: int) -> int:
    until = parse_iso(text)
    if until is None:
        message = "The retain until date must be provided in ISO 8601 format"
        raise invalid_argument("x-amz-object-lock-retain-until-date", text, message)
    if until <= now:
        message = "The retain until date must be in the future!"
        raise invalid_argument("x-amz-object-lock-retain-until-date", text, message)
    return until


def parse_iso(text: str) -> int | None:
    """The Unix milliseconds of an ISO 8601 date or time, UTC where it does not say; None for what is none."""
    try:
        at = datetime.fromisoformat(text.strip())
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
        since = at - datetime(1970, 1, 1, tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
    found = (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000
    return found if _FIRST <= found <= _LAST else None  # a time zone may carry it out of what can be written


def iso_milliseconds(at: int) -> str:
    """Unix milliseconds as S3 writes them: 2026-01-02T03:04:05.678Z."""
    moment = datetime.fromtimestamp(at // 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{at % 1000:03d}Z"
