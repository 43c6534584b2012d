"""What a client accepts of a quote: measurements, roots, and what its makers must have said of the platform.

A measurement is text, and what stands before its first colon says which kind of quote it is of:

    sev-snp:MEASUREMENT                    of the guest at its launch (48 bytes, in hexadecimal)
    tdx:MRTD[:RTMR0[:RTMR1[:RTMR2[:RTMR3]]]]    of the domain at its launch, and of what it loaded since; registers that
                                           are left out are not looked at, and MRTD alone is no more than the firmware
    sgx:MRENCLAVE                          of an enclave (32 bytes)
    sgx-signer:MRSIGNER:PRODUCT:LEAST      any enclave by this signer of this product, from this version on

Invariant: a Policy names at least one measurement and one root; nothing is acceptable by default.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from cryptography import x509

from freehold.protocol.errors import InvalidInput
from freehold.services.compute.verification.attestation.certificates import QuoteRefused, read_crl, read_roots
from freehold.services.compute.verification.attestation.collateral import (
    REVOKED,
    UP_TO_DATE,
    Collateral,
    decode_collateral,
)
from freehold.services.compute.verification.attestation.dcap import Domain, Enclave

SEV_SNP, TDX, SGX, SGX_SIGNER = "sev-snp", "tdx", "sgx", "sgx-signer"
PROPERTY = "attestation"  # what a node advertises: the kind of its quotes
MAKERS_ROOTS = ("amd-milan", "amd-genoa", "amd-turin", "intel-sgx")  # that come along, by the names of their files
STATUSES = (
    UP_TO_DATE,
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
)
_SHAPES = {
    SEV_SNP: re.compile(r"[0-9a-f]{96}"),
    TDX: re.compile(r"[0-9a-f]{96}(:[0-9a-f]{96}){0,4}"),
    SGX: re.compile(r"[0-9a-f]{64}"),
    SGX_SIGNER: re.compile(r"[0-9a-f]{64}:[0-9]{1,5}:[0-9]{1,5}"),
}


class Policy(NamedTuple):
    """What counts. `least_firmware`: of AMD's platforms (8 bytes, as reports have it); `statuses`: of Intel's;
    `accept_unchecked`: whether a quote counts although nothing was given to hold its platform against."""

    measurements: tuple[str, ...]
    roots: tuple[x509.Certificate, ...]
    collateral: tuple[Collateral, ...] = ()
    crls: tuple[x509.CertificateRevocationList, ...] = ()
    least_firmware: bytes | None = None
    statuses: frozenset[str] = frozenset({UP_TO_DATE})
    accept_unchecked: bool = False


def make_policy(
    measurements: Sequence[str],
    roots: Mapping[str, bytes],
    collateral: Mapping[str, bytes],
    least_firmware: str = "",
    statuses: Sequence[str] = (UP_TO_DATE,),
    accept_unchecked: bool = False,
) -> Policy:
    """The policy of a spec; files by their names. InvalidInput naming what is wrong.

    A root is PEM or DER. Collateral is a revocation list (PEM or DER), or Intel's (`collateral.py`).
    """
    for text in measurements:
        check_measurement(text)
    found = [one for name, data in roots.items() for one in read_roots(data, name)]
    if not measurements or not found:
        raise InvalidInput("attested names at least one measurement and one root")
    check_least(least_firmware)
    if unknown := sorted(set(statuses) - set(STATUSES)):
        shown = f"a status {REVOKED!r} is never accepted" if unknown == [REVOKED] else f"no status {unknown[0]!r}"
        raise InvalidInput(f"there is {shown}", hint=f"Use some of {', '.join(STATUSES)}.")
    crls, given = [], []
    for name, data in collateral.items():
        try:
            if data.lstrip().startswith(b"{"):
                given.append(decode_collateral(data))
            else:
                crls.append(read_crl(data, name))
        except (InvalidInput, QuoteRefused) as error:
            raise InvalidInput(f"{name}: {error.message}") from None
    return Policy(
        tuple(measurements), tuple(found), tuple(given), (*crls, *(crl for one in given for crl in one.crls)),
        bytes.fromhex(least_firmware) if least_firmware else None, frozenset(statuses), accept_unchecked,
    )  # fmt: skip


def check_measurement(text: str) -> None:
    """InvalidInput unless this is a measurement as the module says."""
    kind, _, value = text.partition(":")
    if kind not in _SHAPES or not _SHAPES[kind].fullmatch(value):
        raise InvalidInput(
            f"{text[:80]!r} is no measurement",
            hint="Write sev-snp:HEX, tdx:MRTD:RTMR0:..., sgx:MRENCLAVE or sgx-signer:MRSIGNER:PRODUCT:LEAST.",
        )


def check_least(text: str) -> None:
    """InvalidInput unless this is a version of AMD's firmware as reports have it, or empty."""
    if text and not re.fullmatch(r"[0-9a-f]{16}", text):
        raise InvalidInput(f"{text[:80]!r} is no version of AMD's firmware: 16 hexadecimal digits")


def kinds_of(measurements: Sequence[str]) -> tuple[str, ...]:
    """The kinds of quotes that can meet them."""
    return tuple(dict.fromkeys(text.partition(":")[0].removesuffix("-signer") for text in measurements))


def get_measurements(body: Enclave | Domain | bytes) -> tuple[str, ...]:
    """Every text that what a quote is about meets, the one that says most first; of an enclave the last is of its
    signer, with its own version."""
    if isinstance(body, bytes):
        return (f"{SEV_SNP}:{body.hex()}",)
    if isinstance(body, Enclave):
        return (
            f"{SGX}:{body.measurement.hex()}",
            f"{SGX_SIGNER}:{body.signer.hex()}:{body.product}:{body.version}",
        )
    parts = [body.measurement.hex(), *(one.hex() for one in body.registers)]
    return tuple(f"{TDX}:{':'.join(parts[:count])}" for count in range(len(parts), 0, -1))


def meets(body: Enclave | Domain | bytes, measurements: Sequence[str]) -> str:
    """The first measurement that it meets; empty where it meets none."""
    own = get_measurements(body)
    for text in measurements:
        if text in own:
            return text
        kind, _, value = text.partition(":")
        if kind == SGX_SIGNER and isinstance(body, Enclave):
            signer, product, least = value.split(":")
            if (body.signer.hex(), body.product) == (signer, int(product)) and body.version >= int(least):
                return text
    return ""


@cache
def makers_root(name: str) -> bytes:
    """A maker's root that comes along. KeyError."""
    if name not in MAKERS_ROOTS:
        raise KeyError(name)
    return (files(__package__) / "roots" / f"{name}.pem").read_bytes()
