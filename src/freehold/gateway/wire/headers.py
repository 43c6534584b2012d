"""Headers that carry an object's own facts: user metadata, what a copy copies, what an answer is to say instead.

Metadata that is not ASCII travels as UTF-8 in requests (raw, or as RFC 2047 words) and as RFC 2047 words in answers,
as AWS does.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping
from email.errors import HeaderParseError
from email.header import Header, decode_header
from typing import NamedTuple

from freehold.gateway.wire.errors import S3Error, invalid_argument
from freehold.gateway.wire.names import split_target
from freehold.gateway.wire.request import decode_query, to_bytes

METADATA = "x-amz-meta-"
LARGEST_METADATA = 2048  # bytes of names and values
# Query parameters of GET that replace headers of the answer; only for signed requests.
OVERRIDES = {
    "response-content-type": "Content-Type",
    "response-content-language": "Content-Language",
    "response-expires": "Expires",
    "response-cache-control": "Cache-Control",
    "response-content-disposition": "Content-Disposition",
    "response-content-encoding": "Content-Encoding",
}

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+\-.^_`|~]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class CopySource(NamedTuple):
    """What is copied; `version_id` None: the current one."""

    bucket: str
    key: str
    version_id: str | None


def read_text(raw: str) -> str:
    """A header's value as text: UTF-8, or Latin-1 where it is none."""
    if raw.isascii():
        return raw
    data = to_bytes(raw)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def check_field(name: str, value: str) -> None:
    """S3Error InvalidArgument for a form's field that could not have been a header."""
    if not _TOKEN.fullmatch(name) or _CONTROL.search(value):
        raise invalid_argument(name, value, "This field holds what no header can hold.")


def parse_metadata(headers: Mapping[str, str]) -> dict[str, str]:
    """User metadata by name without the prefix. S3Error MetadataTooLarge over 2 KiB."""
    found: dict[str, str] = {}
    size = 0
    for name, raw in headers.items():
        if not name.startswith(METADATA):
            continue
        value = _decode_value(raw)
        found[name.removeprefix(METADATA)] = value
        size += len(name) - len(METADATA) + len(value.encode())
    if size > LARGEST_METADATA:
        raise S3Error("MetadataTooLarge", Size=size, MaxSizeAllowed=LARGEST_METADATA)
    return found


def _decode_value(raw: str) -> str:
    text = to_bytes(raw).decode("utf-8", "replace").strip()
    if "=?" not in text or not text.isascii():
        return text
    try:
        words = [word.decode(charset or "ascii") if isinstance(word, bytes) else word
                 for word, charset in decode_header(text)]  # fmt: skip
        plain = "".join(words)
        plain.encode()
    except (HeaderParseError, LookupError, UnicodeError, ValueError, binascii.Error):
        return text
    return text if any(sign in plain for sign in "\r\n\x00") else plain


def write_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """The headers that answer user metadata; what is not plain ASCII is written as RFC 2047 words on one line."""
    return {f"{METADATA}{name}": _encode_value(value) for name, value in metadata.items()}


def _encode_value(value: str) -> str:
    if value.isascii() and value.isprintable():
        return value
    return Header(value, "utf-8").encode(maxlinelen=0, linesep="")


def parse_copy_source(text: str) -> CopySource:
    """`x-amz-copy-source`: `/bucket/key?versionId=...`, percent-encoded, with or without the first slash."""
    path, _, query = text.partition("?versionId=")
    try:
        # Some clients encode the slash between bucket and key as well.
        bucket, key = split_target(path if "/" in path.removeprefix("/") else path.replace("%2F", "/", 2))
        version = decode_query(f"versionId={query}").get("versionId") if query else None
    except S3Error:
        bucket, key, version = "", "", None
    if not bucket or not key:
        message = "Copy Source must mention the source bucket and key: sourcebucket/sourcekey"
        raise invalid_argument("x-amz-copy-source", text, message)
    return CopySource(bucket, key, version)


def response_overrides(query: Mapping[str, str]) -> dict[str, str]:
    """Headers of the answer that the query replaces. S3Error for values that no header can hold."""
    found = {}
    for name, header in OVERRIDES.items():
        value = query.get(name)
        if value is None:
            continue
        if any(ord(sign) < 32 or ord(sign) == 127 for sign in value):
            raise invalid_argument(name, value, f"The value of {name} cannot stand in a header.")
        found[header] = value
    return found
