"""Quotes that real hardware made: each is good under its maker's root, and no byte of it can be another."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from pathlib import Path

import pytest

from freehold.protocol.errors import FreeholdError
from freehold.services.compute.verification.attestation import dcap, sev
from freehold.services.compute.verification.attestation.certificates import QuoteRefused
from freehold.services.compute.verification.attestation.policy import (
    Policy,
    get_measurements,
    make_policy,
    makers_root,
)
from freehold.services.compute.verification.attestation.verify import get_kind, get_report_data, verify
from tests.services.compute.quote_maker import make_table

VECTORS = Path(__file__).parent / "vectors" / "attestation"
JUNE = datetime(2025, 6, 20, tzinfo=UTC)
FEBRUARY = datetime(2026, 2, 20, tzinfo=UTC)
INTEL = {"intel-sgx": makers_root("intel-sgx")}
MILAN = {"amd-milan": makers_root("amd-milan")}


def read(name: str) -> bytes:
    return (VECTORS / name).read_bytes()


def snp_quote(name: str, vcek: str = "") -> bytes:
    certificates = {sev.VCEK: read(vcek or f"{name}_vcek.der"), sev.ASK: read("snp_milan_ask.pem")}
    return read(f"{name}.report") + make_table(certificates)


def measured(quote: bytes) -> str:
    if get_kind(quote) == "sev-snp":
        return get_measurements(sev.decode_report(quote[: sev.REPORT_BYTES]).measurement)[0]
    return get_measurements(dcap.decode_quote(quote).body)[0]


def policy(quote: bytes, roots: dict[str, bytes], *collateral: str, **rules: object) -> Policy:
    given = {name: read(name) for name in collateral}
    return make_policy([measured(quote)], roots, given, **rules)  # type: ignore[arg-type]


LAX = {"statuses": ["UpToDate", "ConfigurationAndSWHardeningNeeded"]}


@pytest.mark.parametrize(
    ("name", "kind", "statuses"),
    [
        ("sgx_v3", "sgx", ("UpToDate", "ConfigurationAndSWHardeningNeeded")),
        ("tdx_v4", "tdx", ("UpToDate",)),
    ],
)
def test_intels_are_good_with_their_collateral(name: str, kind: str, statuses: tuple[str, ...]) -> None:
    quote = read(f"{name}.quote")
    rules = policy(quote, INTEL, f"{name}_collateral.json", **LAX)
    found = verify(quote, get_report_data(quote), rules, JUNE)
    assert (found.kind, found.statuses, found.unchecked) == (kind, statuses, ())
    assert found.measurement == measured(quote)


def test_a_status_that_is_not_accepted_is_named() -> None:
    quote = read("sgx_v3.quote")
    with pytest.raises(QuoteRefused, match="status is ConfigurationAndSWHardeningNeeded"):
        verify(quote, get_report_data(quote), policy(quote, INTEL, "sgx_v3_collateral.json"), JUNE)


def test_a_platform_below_every_level_is_refused() -> None:
    quote = read("tdx_v5.quote")
    rules = policy(quote, INTEL, "tdx_v5_collateral.json")
    with pytest.raises(QuoteRefused, match="older than every level"):
        verify(quote, get_report_data(quote), rules, FEBRUARY)
    unchecked = policy(quote, INTEL, accept_unchecked=True)
    assert verify(quote, get_report_data(quote), unchecked, FEBRUARY).kind == "tdx"


def test_collateral_counts_only_while_it_is_valid() -> None:
    quote = read("tdx_v4.quote")
    rules = policy(quote, INTEL, "tdx_v4_collateral.json")
    with pytest.raises(QuoteRefused, match="not valid now"):
        verify(quote, get_report_data(quote), rules, FEBRUARY)


@pytest.mark.parametrize(
    ("quote", "roots"),
    [(read("tdx_v4_gce.quote"), INTEL), (snp_quote("snp_milan"), MILAN)],
    ids=["tdx_v4_gce", "snp_milan"],
)
def test_without_collateral_it_is_said_and_refused_unless_accepted(quote: bytes, roots: dict[str, bytes]) -> None:
    bound = get_report_data(quote)
    with pytest.raises(QuoteRefused, match="collateral not checked: no revocation list covers"):
        verify(quote, bound, policy(quote, roots), JUNE)
    found = verify(quote, bound, policy(quote, roots, accept_unchecked=True), JUNE)
    assert found.unchecked
    assert found.measurement == measured(quote)


def test_a_guest_that_may_be_debugged_is_refused() -> None:
    quote = snp_quote("snp_debug")
    with pytest.raises(QuoteRefused, match="may be debugged"):
        verify(quote, get_report_data(quote), policy(quote, MILAN, accept_unchecked=True), JUNE)


def test_another_chips_certificate_is_refused() -> None:
    quote = snp_quote("snp_milan", "snp_debug_vcek.der")
    with pytest.raises(QuoteRefused, match="another chip"):
        verify(quote, get_report_data(quote), policy(quote, MILAN, accept_unchecked=True), JUNE)
    quote = snp_quote("snp_milan", "snp_turin_vcek.der")
    with pytest.raises(QuoteRefused, match="was not issued by"):
        verify(quote, get_report_data(quote), policy(quote, MILAN, accept_unchecked=True), JUNE)


def test_another_makers_root_is_refused() -> None:
    for quote, roots in ((read("tdx_v4.quote"), MILAN), (snp_quote("snp_milan"), INTEL)):
        with pytest.raises(QuoteRefused, match=r"leads to no root|is no root that is configured"):
            verify(quote, get_report_data(quote), policy(quote, roots, accept_unchecked=True), JUNE)


@pytest.mark.parametrize("name", ["sgx_v3", "tdx_v4", "tdx_v5", "snp_milan"])
def test_no_byte_can_be_another(name: str) -> None:
    """Each byte of what is signed, and each fiftieth of the rest: no quote that differs passes as it stands."""
    quote = snp_quote(name) if name == "snp_milan" else read(f"{name}.quote")
    rules = policy(quote, MILAN if name == "snp_milan" else INTEL, accept_unchecked=True)
    bound, at = get_report_data(quote), FEBRUARY if name == "tdx_v5" else JUNE
    verify(quote, bound, rules, at)
    signed = sev.SIGNED_BYTES if name == "snp_milan" else len(dcap.decode_quote(quote).signed)
    chance = random.Random(name)
    places = [*range(signed), *range(signed, len(quote), 50)]
    for place in chance.sample(places, min(len(places), 300)):
        if _is_unsigned(name, place, signed, quote):
            continue
        changed = bytearray(quote)
        changed[place] ^= 1 << chance.randrange(8)
        with pytest.raises(FreeholdError):
            verify(bytes(changed), bound, rules, at)


def _is_unsigned(name: str, place: int, signed: int, quote: bytes) -> bool:
    """What says nothing: room of AMD's report behind the signature's numbers, Intel's PEM text around its base64."""
    if name == "snp_milan":
        return sev.SIGNED_BYTES + 144 <= place < sev.REPORT_BYTES
    return quote.find(b"-----BEGIN") <= place
