"""Intel's quotes (DCAP): SGX enclaves (version 3), TDX domains (versions 4 and 5), signed by ECDSA over P-256.

    quote        header ‖ body, signed by an attestation key of the platform's quoting enclave
    that key     in the report data of the quoting enclave's own report, as hash(key ‖ authentication data)
    that report  signed by the platform's certificate (PCK), whose chain to Intel's root comes in the quote (type 5)

Layouts: Intel SGX ECDSA Quote Library API (appendix A) and TDX DCAP Quoting Library API (appendix A). Integers are
little-endian. The platform's certificate signs whatever enclave the platform's owner may provision, so the quoting
enclave must be Intel's: signed by Intel's key for it (QE_SIGNERS), and not in debug mode. Whether it and the platform
are up to date only Intel's collateral says (`collateral.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from freehold.protocol.errors import MalformedMessage
from freehold.services.compute.verification.attestation.certificates import (
    QuoteRefused,
    check_chain,
    check_signature,
    read_pem,
    reading,
)

HEADER_BYTES, ENCLAVE_BYTES, TD10_BYTES, TD15_BYTES = 48, 384, 584, 648
SGX, TDX = 0, 0x81  # the header's kind of trusted environment
ECDSA_P256 = 2
INTEL = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")  # the vendor of the quoting enclave
PCK_CHAIN, QE_DATA = 5, 6  # kinds of certification data
BODIES = {1: (SGX, ENCLAVE_BYTES), 2: (TDX, TD10_BYTES), 3: (TDX, TD15_BYTES)}  # of version 5
SGX_INIT, SGX_DEBUG = 1, 2
TD_UNDER_DEBUG = 0xFF  # bits of a domain's attributes, any of which takes it out of Intel's trust
TD_MIGRATABLE = 1 << 29
# The signers (MRSIGNER) and products (ISVPRODID) of Intel's quoting enclaves, as its QE identities have them.
QE_SIGNERS = {
    SGX: (bytes.fromhex("8c4f5775d796503e96137f77c68a829a0056ac8ded70140b081b094490c57bff"), 1),
    TDX: (bytes.fromhex("dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5"), 2),
}


class Enclave(NamedTuple):
    """A report of an SGX enclave: of what a quote is about, or of the quoting enclave."""

    cpu_svn: bytes
    misc_select: bytes
    attributes: bytes
    measurement: bytes  # MRENCLAVE
    signer: bytes  # MRSIGNER
    product: int
    version: int
    report_data: bytes

    @property
    def flags(self) -> int:
        """The first half of its attributes."""
        return int.from_bytes(self.attributes[:8], "little")


class Domain(NamedTuple):
    """A report of a TDX domain. `svn` are the versions of what the domain runs on (16 bytes; of a domain of TDX 1.5
    also `svn_now`, as of when the report was made)."""

    svn: bytes
    module_signer: bytes
    module_attributes: bytes
    attributes: int
    measurement: bytes  # MRTD
    registers: tuple[bytes, bytes, bytes, bytes]  # RTMR0 to RTMR3
    report_data: bytes
    svn_now: bytes | None
    service: bytes  # MRSERVICETD


class Quote(NamedTuple):
    """A quote, taken apart. `signed` is what the attestation key signed, `qe_signed` what the PCK did."""

    kind: int
    version: int
    body: Enclave | Domain
    signed: bytes
    signature: bytes
    key: bytes
    qe: Enclave
    qe_signed: bytes
    qe_signature: bytes
    authentication: bytes
    chain: bytes


class _Reader:
    """Bytes from front to back; MalformedMessage where there are too few."""

    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0

    def take(self, size: int) -> bytes:
        found = self._data[self.at : self.at + size]
        if len(found) != size:
            raise MalformedMessage("a quote ends before all of it is there")
        self.at += size
        return found

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def part(self, size: int) -> _Reader:
        return _Reader(self.take(size))

    def end(self) -> None:
        if self.at != len(self._data):
            raise MalformedMessage("a quote has bytes that none of its lengths counts")


def decode_quote(data: bytes) -> Quote:
    """The parts of a quote. MalformedMessage, QuoteRefused for a kind that is not understood."""
    whole = _Reader(data)
    header = whole.take(HEADER_BYTES)
    version, algorithm = int.from_bytes(header[:2], "little"), int.from_bytes(header[2:4], "little")
    kind = int.from_bytes(header[4:8], "little")
    if kind not in (SGX, TDX) or version not in ((3, 5) if kind == SGX else (4, 5)):
        raise MalformedMessage(f"a quote of version {version} and kind {kind:#x} is not understood")
    if algorithm != ECDSA_P256:
        raise QuoteRefused(f"the quote is signed by an unknown algorithm, {algorithm}")
    if header[12:28] != INTEL:
        raise QuoteRefused("the quote is made by a quoting enclave that is not Intel's")
    size = ENCLAVE_BYTES if kind == SGX else TD10_BYTES
    if version == 5:
        body_kind, size = whole.number(2), whole.number(4)
        if BODIES.get(body_kind) != (kind, size):
            raise MalformedMessage(f"a quote's body of kind {body_kind} and {size} bytes is not understood")
    body = whole.take(size)
    signed = data[: whole.at]
    rest = whole.part(whole.number(4))
    if any(data[whole.at :]):  # buffers of a fixed size are filled up with zeros
        whole.end()
    signature, key = rest.take(64), rest.take(64)
    if version != 3:
        what, size = rest.number(2), rest.number(4)
        if what != QE_DATA:
            raise QuoteRefused(f"the quote's certification data of kind {what} is not understood")
        outer, rest = rest, rest.part(size)
        outer.end()
    qe_signed, qe_signature = rest.take(ENCLAVE_BYTES), rest.take(64)
    authentication = rest.take(rest.number(2))
    what, size = rest.number(2), rest.number(4)
    if what != PCK_CHAIN:
        raise QuoteRefused(f"the quote brings certification data of kind {what}, not its certificates (kind 5)")
    chain = rest.take(size)
    rest.end()
    return Quote(
        kind, version, _decode_enclave(body) if kind == SGX else _decode_domain(body), signed, signature, key,
        _decode_enclave(qe_signed), qe_signed, qe_signature, authentication, chain,
    )  # fmt: skip


def verify_quote(data: bytes, roots: Sequence[x509.Certificate], at: datetime) -> tuple[Quote, list[x509.Certificate]]:
    """The quote, if Intel's quoting enclave on a platform of Intel's signed it for something that nobody can look into,
    and the chain of the platform's certificate (PCK) to the root.

    MalformedMessage, QuoteRefused naming the rule that it breaks. What it measures and is bound to is the caller's.
    """
    quote = decode_quote(data)
    chain = check_chain(read_pem(quote.chain, "the quote's certificate chain"), roots, at)
    if len(chain) != 3:
        raise QuoteRefused("the quote's certificates are not a platform's, its issuer's and a root")
    with reading("the PCK certificate"):
        pck = chain[0].public_key()
    check_signature(pck, quote.qe_signature, quote.qe_signed, "the quoting enclave's report")
    _check_qe(quote)
    check_signature(_key(quote.key), quote.signature, quote.signed, "the quote")
    if isinstance(quote.body, Enclave):
        check_not_debugged(quote.body, "the enclave")
    else:
        _check_domain(quote.body)
    return quote, chain


def check_not_debugged(enclave: Enclave, what: str) -> None:
    """QuoteRefused for one that its host can look into, or that was never started."""
    if enclave.flags & SGX_DEBUG:
        raise QuoteRefused(f"{what} is in debug mode: its host can read and change what runs")
    if not enclave.flags & SGX_INIT:
        raise QuoteRefused(f"{what} was not initialised")


def _check_qe(quote: Quote) -> None:
    signer, product = QE_SIGNERS[quote.kind]
    if (quote.qe.signer, quote.qe.product) != (signer, product):
        raise QuoteRefused("the quoting enclave is not Intel's")
    check_not_debugged(quote.qe, "the quoting enclave")
    bound = hashlib.sha256(quote.key + quote.authentication).digest()
    if quote.qe.report_data != bound + bytes(32):
        raise QuoteRefused("the attestation key is not the one that the quoting enclave's report names")


def _check_domain(domain: Domain) -> None:
    if any(domain.module_signer) or any(domain.module_attributes):
        raise QuoteRefused("the domain runs on a TDX module that is not Intel's")
    if domain.attributes & TD_UNDER_DEBUG:
        raise QuoteRefused("the domain is in debug mode: its host can read and change what runs")
    if domain.attributes & TD_MIGRATABLE or any(domain.service):
        raise QuoteRefused("the domain may be handed to a service domain, which is not attested here")


def _key(data: bytes) -> ec.EllipticCurvePublicKey:
    with reading("the attestation key"):
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + data)


def _decode_enclave(data: bytes) -> Enclave:
    return Enclave(
        cpu_svn=data[:16],
        misc_select=data[16:20],
        attributes=data[48:64],
        measurement=data[64:96],
        signer=data[128:160],
        product=int.from_bytes(data[256:258], "little"),
        version=int.from_bytes(data[258:260], "little"),
        report_data=data[320:384],
    )


def _decode_domain(data: bytes) -> Domain:
    registers = (data[328:376], data[376:424], data[424:472], data[472:520])
    return Domain(
        svn=data[:16],
        module_signer=data[64:112],
        module_attributes=data[112:120],
        attributes=int.from_bytes(data[120:128], "little"),
        measurement=data[136:184],
        registers=registers,
        report_data=data[520:584],
        svn_now=data[584:600] or None,
        service=data[600:648],
    )
