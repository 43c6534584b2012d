"""What the certificate of an Intel platform (PCK) says of it: the extension 1.2.840.113741.1.13.1.

The extension is DER: a sequence of (object identifier, value). Layout: Intel SGX PCK Certificate and CRL Profile
Specification, section 1.3.5.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from cryptography import x509

from freehold.services.compute.verification.attestation.certificates import QuoteRefused, reading

EXTENSION = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
PREFIX = bytes.fromhex("2a864886f84d010d01")  # that identifier, as DER has it without tag and length
SEQUENCE, INTEGER, OCTETS, IDENTIFIER = 0x30, 2, 4, 6
TCB, PCE_ID, FMSPC = 2, 3, 4  # what the first parts are, by the last number of their identifiers
COMPONENTS, PCE_SVN = 16, 17


class Platform(NamedTuple):
    """The versions of its parts that a PCK is for (16 bytes, and the PCE's), and which kind of platform it is, in
    lower-case hexadecimal."""

    components: bytes
    pce_svn: int
    pce_id: str
    fmspc: str


def read_platform(pck: x509.Certificate) -> Platform:
    """What the certificate of a platform says of it. QuoteRefused where it is not such a certificate."""
    with reading("the PCK certificate"):
        try:
            found = pck.extensions.get_extension_for_oid(EXTENSION).value
        except x509.ExtensionNotFound:
            raise QuoteRefused("the quote is not certified for a platform: its leaf is no PCK certificate") from None
    assert isinstance(found, x509.UnrecognizedExtension)
    return decode_platform(found.value)


def decode_platform(data: bytes) -> Platform:
    """The platform behind the extension's bytes. QuoteRefused."""
    parts = dict(_pairs(_only(data), PREFIX))
    versions = dict(_pairs(_content(parts.get(TCB), SEQUENCE), PREFIX + bytes((TCB,))))
    components = bytes(_number(versions.get(place), 255) for place in range(1, COMPONENTS + 1))
    pce_id, fmspc = _content(parts.get(PCE_ID), OCTETS), _content(parts.get(FMSPC), OCTETS)
    if len(pce_id) != 2 or len(fmspc) != 6:
        raise _malformed()
    return Platform(components, _number(versions.get(PCE_SVN), 0xFFFF), pce_id.hex(), fmspc.hex())


def _malformed() -> QuoteRefused:
    return QuoteRefused("the PCK certificate does not describe a platform as it must")


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(tag, content) of the DER elements side by side."""
    at = 0
    while at < len(data):
        if at + 2 > len(data):
            raise _malformed()
        tag, size = data[at], data[at + 1]
        at += 2
        if size & 0x80:
            count = size & 0x7F
            if not 1 <= count <= 2 or at + count > len(data):
                raise _malformed()
            size = int.from_bytes(data[at : at + count], "big")
            at += count
        if at + size > len(data):
            raise _malformed()
        yield tag, data[at : at + size]
        at += size


def _only(data: bytes) -> bytes:
    found = list(_elements(data))
    if len(found) != 1:
        raise _malformed()
    return _content(found[0], SEQUENCE)


def _pairs(data: bytes, prefix: bytes) -> Iterator[tuple[int, tuple[int, bytes]]]:
    """The values of a sequence of (identifier, value), by the last number of identifiers that begin with `prefix`."""
    for element in _elements(data):
        pair = list(_elements(_content(element, SEQUENCE)))
        if len(pair) != 2 or pair[0][0] != IDENTIFIER:
            raise _malformed()
        name = pair[0][1]
        if len(name) == len(prefix) + 1 and name.startswith(prefix):
            yield name[-1], pair[1]


def _content(element: tuple[int, bytes] | None, tag: int) -> bytes:
    if element is None or element[0] != tag:
        raise _malformed()
    return element[1]


def _number(element: tuple[int, bytes] | None, most: int) -> int:
    number = int.from_bytes(_content(element, INTEGER), "big", signed=True)
    if not 0 <= number <= most:
        raise _malformed()
    return number
