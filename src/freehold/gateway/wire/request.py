"""A request as it stood on the wire, and its query.

Signatures are over the raw path and query, so nothing here decodes what the caller may still need raw. Text that was
not UTF-8 is held with surrogate escapes, as aiohttp gives it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

from freehold.gateway.wire.errors import S3Error

# As AWS writes URIs: only these are left as they are, and hexadecimal digits are upper case.
_UNRESERVED = re.compile(r"[A-Za-z0-9\-._~]*")
_UNRESERVED_PATH = re.compile(r"[A-Za-z0-9\-._~/]*")


class Request(NamedTuple):
    """What a signature covers: the method, the raw path, the raw query (without "?") and the headers.

    Names of headers are lower case; repeated headers are one, joined by commas (`join_headers`).
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]


def join_headers(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Headers by lower-case name, repeated ones joined by commas in their order."""
    found: dict[str, str] = {}
    for name, value in pairs:
        lower = name.lower()
        found[lower] = f"{found[lower]},{value}" if lower in found else value
    return found


def to_bytes(text: str) -> bytes:
    """Text from the wire as the bytes that it was."""
    return text.encode("utf-8", "surrogateescape")


def encode_uri(data: bytes, *, slash: bool = True) -> str:
    """AWS's UriEncode; `slash` encodes "/" as well."""
    return quote_from_bytes(data, safe="-._~" if slash else "-._~/")


def canonical_path(path: str) -> str:
    """The path as it is signed for S3: encoded once, whatever the client left unencoded, and not normalised."""
    if _UNRESERVED_PATH.fullmatch(path):
        return path or "/"
    return encode_uri(unquote_to_bytes(to_bytes(path)), slash=False)


def split_query(query: str) -> list[tuple[str, str]]:
    """The pairs of a raw query, still encoded, in their order. `?acl` is `("acl", "")`."""
    pairs = (item.partition("=") for item in query.split("&") if item)
    return [(name, value) for name, _, value in pairs]


def canonical_query(pairs: Iterable[tuple[str, str]]) -> str:
    """Raw pairs as they are signed: each encoded once, in order of name and value."""
    return "&".join(f"{name}={value}" for name, value in sorted((_again(n), _again(v)) for n, v in pairs))


def _again(text: str) -> str:
    if _UNRESERVED.fullmatch(text):
        return text
    return encode_uri(unquote_to_bytes(to_bytes(text.replace("+", " "))))


def decode_text(text: str) -> str:
    """A part of the raw path or query as the text that it stands for. InvalidURI where that is not UTF-8."""
    try:
        return unquote_to_bytes(to_bytes(text)).decode("utf-8")
    except UnicodeError:
        raise S3Error("InvalidURI", URI=text) from None


def decode_query(query: str) -> dict[str, str]:
    """The parameters of a raw query; of one given twice the first counts."""
    found: dict[str, str] = {}
    for name, value in split_query(query):
        found.setdefault(decode_text(name.replace("+", " ")), decode_text(value.replace("+", " ")))
    return found
