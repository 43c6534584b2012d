"""Decoders of quotes: what a node sends to show that its hardware vouches for a result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from freehold.services.compute.verification.attestation import collateral, dcap, platform, sev
from freehold.services.compute.verification.attestation.policy import make_policy, makers_root
from freehold.services.compute.verification.attestation.verify import Attested, get_report_data, verify
from tests.services.compute.quote_maker import pck_extension
from tests.services.compute.test_attestation_vectors import JUNE, VECTORS, measured, snp_quote

HOME = "services.compute.verification.attestation"
INTELS = ("sgx_v3.quote", "tdx_v4.quote", "tdx_v5.quote")


def read(*names: str) -> list[bytes]:
    return [(VECTORS / name).read_bytes() for name in names]


def quote_decoders(entry: Callable[..., Any]) -> Iterator[Any]:
    """One for each form, and one for all that becomes of a quote: its chain, its signatures."""
    amds = snp_quote("snp_milan")
    yield entry("snp_report", sev.decode_report, lambda: read("snp_milan.report"), f"{HOME}.sev.decode_report")
    yield entry("snp_table", sev.decode_table, lambda: [amds[sev.REPORT_BYTES :]], f"{HOME}.sev.decode_table")
    names = [f"{HOME}.dcap.{name}" for name in ("decode_quote", "_decode_enclave", "_decode_domain")]
    yield entry("dcap_quote", dcap.decode_quote, lambda: read(*INTELS), *names)
    files = ("sgx_v3_collateral.json", "tdx_v4_collateral.json")
    names = [f"{HOME}.collateral.{name}" for name in ("decode_collateral", "_decode")]
    yield entry("collateral", collateral.decode_collateral, lambda: read(*files), *names)
    yield entry(
        "pck_extension", platform.decode_platform, lambda: [pck_extension()], f"{HOME}.platform.decode_platform"
    )
    yield entry("attested", verify_anything, lambda: [amds, *read("sgx_v3.quote", "tdx_v4.quote")])


def verify_anything(data: bytes) -> Attested:
    """Whether a quote is good for whatever it says."""
    roots = {name: makers_root(name) for name in ("amd-milan", "intel-sgx")}
    policy = make_policy([measured(data)], roots, {}, accept_unchecked=True)
    return verify(data, get_report_data(data), policy, JUNE)
