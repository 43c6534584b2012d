"""Whether a quote shows that accepted hardware runs an accepted program that stands by a receipt.

    signed, up to a root that the client named -> not open to its host -> bound to the receipt -> of an accepted
    measurement -> not revoked or too old, by the collateral -> what that leaves open is accepted only if asked for

What is bound is the receipt's struct hash: node, lease, number, task, inputs, output, states and measure. So a quote is
good for one order of one node. What it does not show: that the measured program is the node's and honest, that the
hardware cannot be broken, that what the guest reads from its host's disk is what it wrote there.

Invariant: `verify` returns only for a quote that passed all of it; every refusal names its rule.
"""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from freehold.protocol.errors import MalformedMessage
from freehold.protocol.typed import keccak
from freehold.services.compute.terms import Receipt
from freehold.services.compute.verification.attestation import dcap, sev
from freehold.services.compute.verification.attestation.certificates import QuoteRefused, check_revoked
from freehold.services.compute.verification.attestation.collateral import REVOKED, judge_platform
from freehold.services.compute.verification.attestation.dcap import Domain, Enclave
from freehold.services.compute.verification.attestation.policy import SEV_SNP, SGX, TDX, Policy, get_measurements, meets

QUOTE_LIMIT = 64 * 2**10  # bytes of a quote with its certificates
REPORT_DATA = 64  # bytes that a quote is bound to


class Attested(NamedTuple):
    """What a quote has shown: its kind, the measurement that was accepted, the statuses of its platform (Intel's), and
    what could not be checked, in sentences."""

    kind: str
    measurement: str
    statuses: tuple[str, ...]
    unchecked: tuple[str, ...]


def bind(receipt: Receipt) -> bytes:
    """The 64 bytes that a quote for this receipt is bound to."""
    return keccak(b"freehold attested receipt" + receipt.struct_hash()) + bytes(REPORT_DATA - 32)


def get_kind(quote: bytes) -> str:
    """Which kind of quote this is, by its first bytes. MalformedMessage."""
    if len(quote) > QUOTE_LIMIT:
        raise MalformedMessage(f"a quote has at most {QUOTE_LIMIT} bytes")
    if int.from_bytes(quote[2:4], "little") == 0:  # of Intel's the kind of key, of AMD's half of the version
        return SEV_SNP
    return SGX if quote[4:8] == bytes(4) else TDX


def get_report_data(quote: bytes) -> bytes:
    """What a quote says it is bound to, unverified. MalformedMessage, QuoteRefused."""
    if get_kind(quote) == SEV_SNP:
        return sev.decode_report(quote[: sev.REPORT_BYTES]).report_data
    return dcap.decode_quote(quote).body.report_data


def verify(quote: bytes, bound: bytes, policy: Policy, at: datetime) -> Attested:
    """What the quote shows, at the time `at` (with a time zone). MalformedMessage, QuoteRefused."""
    kind = get_kind(quote)
    statuses: tuple[str, ...] = ()
    body: Enclave | Domain | bytes
    if kind == SEV_SNP:
        report, chain = sev.verify_report(quote, policy.roots, at)
        body, report_data = report.measurement, report.report_data
        unchecked = _unlisted(check_revoked(chain[1:], policy.crls, at))  # AMD lists no chips
        if policy.least_firmware is None:
            unchecked = (*unchecked, "no least version of the firmware is set")
        else:
            sev.check_least(report, policy.least_firmware)
    else:
        parsed, chain = dcap.verify_quote(quote, policy.roots, at)
        body, report_data = parsed.body, parsed.body.report_data
        unchecked = _unlisted(check_revoked(chain, policy.crls, at))
        statuses = judge_platform(parsed, chain[0], policy.collateral, policy.crls, policy.roots, at)
        if not statuses:
            unchecked = (*unchecked, "no collateral says how up to date the platform is")
    if report_data != bound:
        raise QuoteRefused("the quote is bound to something else than this receipt (report_data)")
    measurement = meets(body, policy.measurements)
    if not measurement:
        raise QuoteRefused(f"the measurement {get_measurements(body)[0]} is not accepted")
    if refused := [one for one in statuses if one not in policy.statuses or one == REVOKED]:
        raise QuoteRefused(f"the platform's status is {refused[0]}, which is not accepted")
    if unchecked and not policy.accept_unchecked:
        raise QuoteRefused(f"collateral not checked: {'; '.join(unchecked)}")
    return Attested(kind, measurement, statuses, unchecked)


def _unlisted(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"no revocation list covers {name}" for name in names)
