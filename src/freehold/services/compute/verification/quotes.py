"""Quotes of trusted execution environments: who verifies them, and what can be checked of one without the hardware.

`check_quote` reads an Intel TDX quote (version 4: a header of 48 bytes and a TD report of 584) and holds it against a
policy: not in debug mode, an allowed measurement (MRTD), and bound to the receipt by REPORTDATA. That is its structure
only. What is missing, and what a `QuoteVerifier` has to do besides: the attestation key's signature over header and
report, the quoting enclave's signature over that key, the certificate chain up to the maker's root with its revocation
lists, and the platform's TCB level. Without these a quote proves nothing, so the default verifier refuses every one.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, Protocol

from freehold.protocol.errors import Corrupt, MalformedMessage, Unavailable
from freehold.protocol.units import Hash

HEADER_BYTES, REPORT_BYTES = 48, 584
QUOTE_LIMIT = 64 * 2**10  # bytes of a quote with its certificates
TDX_VERSION, TDX_TYPE = 4, 0x81
DEBUG = 1  # bit 0 of the TD's attributes


class Quote(NamedTuple):
    """What a quote says: attributes of the domain, the measurement of what it was started with (48 bytes), and the 64
    bytes that the program inside chose."""

    attributes: int
    measurement: bytes
    report_data: bytes


class QuoteVerifier(Protocol):
    """Decides whether a quote shows that an allowed program gave the result behind `bound` (a receipt's `output`)."""

    def verify(self, quote: bytes, bound: Hash) -> None:
        """Corrupt where it does not; Unavailable where that cannot be decided here."""


class NoVerifier:
    """The default: nothing here can check a quote's signatures, so none is taken for good."""

    def verify(self, quote: bytes, bound: Hash) -> None:  # noqa: ARG002
        """Unavailable, always."""
        raise Unavailable(
            "no hardware here: a quote's signatures and certificates cannot be checked",
            hint="Configure a quote verifier, or use another verification class.",
        )


def decode_quote(data: bytes) -> Quote:
    """The fields of a TDX quote. MalformedMessage."""
    if not HEADER_BYTES + REPORT_BYTES + 4 <= len(data) <= QUOTE_LIMIT:
        raise MalformedMessage(f"a quote has {HEADER_BYTES + REPORT_BYTES + 4} to {QUOTE_LIMIT} bytes")
    version, kind = int.from_bytes(data[:2], "little"), int.from_bytes(data[4:8], "little")
    if (version, kind) != (TDX_VERSION, TDX_TYPE):
        raise MalformedMessage(f"a quote of version {version} and type {kind:#x} is not understood")
    report = data[HEADER_BYTES : HEADER_BYTES + REPORT_BYTES]
    signed = int.from_bytes(data[HEADER_BYTES + REPORT_BYTES : HEADER_BYTES + REPORT_BYTES + 4], "little")
    if len(data) != HEADER_BYTES + REPORT_BYTES + 4 + signed:
        raise MalformedMessage("a quote's signature data has not the length that it says")
    return Quote(int.from_bytes(report[120:128], "little"), report[136:184], report[520:584])


def check_quote(data: bytes, allowed: Collection[bytes], bound: Hash) -> Quote:
    """The quote, if its structure is right under the policy. Corrupt naming the rule that it breaks.

    `allowed` are measurements (48 bytes). This alone is no attestation: see the module.
    """
    quote = decode_quote(data)
    if quote.attributes & DEBUG:
        raise Corrupt("the quote is of a domain in debug mode: its owner can read and change what runs")
    if quote.measurement not in allowed:
        raise Corrupt(f"the quote's measurement {quote.measurement.hex()} is not allowed")
    if quote.report_data != bound + bytes(32):
        raise Corrupt("the quote is not bound to this result")
    return quote
