"""Quotes of platforms made of software: everything that may be wrong with one is refused, and said."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from freehold.protocol.errors import FreeholdError, InvalidInput, MalformedMessage
from freehold.protocol.units import Address, Hash
from freehold.services.compute.terms import Receipt
from freehold.services.compute.verification.attestation import dcap, sev
from freehold.services.compute.verification.attestation.certificates import QuoteRefused, read_roots
from freehold.services.compute.verification.attestation.platform import EXTENSION, decode_platform
from freehold.services.compute.verification.attestation.policy import Policy, kinds_of, make_policy
from freehold.services.compute.verification.attestation.verify import Attested, bind, verify
from tests.services.compute.quote_maker import (
    CHIP,
    DAYS,
    MEASURED,
    NOW,
    REGISTERS,
    TCB,
    Authority,
    Chip,
    Platform,
    make_table,
    pck_extension,
    vcek_extensions,
)

BOUND = bytes(range(64))
SNP = f"sev-snp:{MEASURED.hex()}"
TD = ":".join(["tdx", MEASURED.hex(), *(one.hex() for one in REGISTERS)])
ENCLAVE = f"sgx:{MEASURED[:32].hex()}"
SIGNER = f"sgx-signer:{'55' * 32}:7:2"


@cache
def chip() -> Chip:
    return Chip()


@cache
def platform(kind: int = dcap.TDX) -> Platform:
    return Platform(kind)


def rules(root: Authority, *measurements: str, collateral: dict[str, bytes] | None = None, **more: Any) -> Policy:
    more.setdefault("accept_unchecked", collateral is None)
    return make_policy(measurements, {"root": root.pem}, collateral or {}, **more)


def check(quote: bytes, policy: Policy, bound: bytes = BOUND, later: timedelta = timedelta()) -> Attested:
    return verify(quote, bound, policy, NOW + later)


# What is good


def test_each_kind_is_good() -> None:
    found = check(chip().quote(BOUND), rules(chip().root, SNP))
    assert (found.kind, found.measurement, len(found.unchecked)) == ("sev-snp", SNP, 2)
    for version in (4, 5):
        assert check(platform().quote(BOUND, version=version), rules(platform().root, TD)).kind == "tdx"
    for version in (3, 5):
        machine = platform(dcap.SGX)
        assert check(machine.quote(BOUND, version=version), rules(machine.root, ENCLAVE)).kind == "sgx"


def test_nothing_is_left_unchecked_with_collateral() -> None:
    lists = {"ark.crl": chip().root.crl()}
    policy = rules(chip().root, SNP, collateral=lists, least_firmware=TCB.hex())
    assert check(chip().quote(BOUND), policy).unchecked == ()
    for kind, measurement in ((dcap.TDX, TD), (dcap.SGX, ENCLAVE)):
        machine = platform(kind)
        policy = rules(machine.root, measurement, collateral={"c.json": machine.collateral()})
        found = check(machine.quote(BOUND), policy)
        assert (found.statuses, found.unchecked) == (("UpToDate",), ())


def test_a_domain_is_held_against_as_many_registers_as_are_named() -> None:
    quote = platform().quote(BOUND, rtmr2=(328 + 96, b"\x77" * 48))
    firmware = f"tdx:{MEASURED.hex()}"
    for accepted in (firmware, ":".join([firmware, *(one.hex() for one in REGISTERS[:2])])):
        assert check(quote, rules(platform().root, accepted)).measurement == accepted
    with pytest.raises(QuoteRefused, match=r"measurement tdx:.* is not accepted"):
        check(quote, rules(platform().root, TD))


def test_an_enclave_may_be_accepted_by_its_signer() -> None:
    machine = platform(dcap.SGX)
    for text, good in ((SIGNER, True), (SIGNER[:-1] + "1", True), (SIGNER[:-1] + "3", False),
                       (SIGNER.replace(":7:", ":8:"), False)):  # fmt: skip
        if good:
            assert check(machine.quote(BOUND), rules(machine.root, text)).measurement == text
        else:
            with pytest.raises(QuoteRefused, match="is not accepted"):
                check(machine.quote(BOUND), rules(machine.root, text))


def test_a_chip_of_the_newest_generation() -> None:
    tcb = bytes((1, 2, 3, 4, 0, 0, 0, 9))
    extensions = vcek_extensions(tcb, CHIP[:8], turin=True)
    new = Chip(extensions=extensions)
    fields = {"tcb": (0x180, tcb), "chip": (0x1A0, CHIP[:8] + bytes(56)), "version": (0, b"\x03"),
              "cpu": (0x188, b"\x1a\x02")}  # fmt: skip
    assert check(new.quote(BOUND, **fields), rules(new.root, SNP)).kind == "sev-snp"
    with pytest.raises(QuoteRefused, match="another generation"):
        check(new.quote(BOUND, **(fields | {"cpu": (0x188, b"\x19\x01")})), rules(new.root, SNP))


# What is not


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"bound": (0x50, bytes(64))}, "bound to something else"),
        ({"measured": (0x90, bytes(48))}, "measurement sev-snp:0+ is not accepted"),
        ({"policy": (8, (0x30000 | sev.DEBUG).to_bytes(8, "little"))}, "may be debugged"),
        ({"policy": (8, (0x30000 | sev.MIGRATION_AGENT).to_bytes(8, "little"))}, "migration agent"),
        ({"vmpl": (0x30, b"\xff" * 4)}, "asked for by the host"),
        ({"algorithm": (0x34, b"\x02")}, "unknown algorithm"),
        ({"key_info": (0x48, b"\x04")}, "not signed by its chip's own key"),
        ({"key_info": (0x48, b"\x02")}, "not signed by its chip's own key"),
        ({"chip": (0x1A0, bytes(64))}, "hides its chip's id"),
        ({"chip": (0x1A0, CHIP[::-1])}, "another chip"),
        ({"tcb": (0x180, bytes((3, 0, 0, 0, 0, 0, 9, 115)))}, "another version of the firmware"),
        ({"tcb": (0x180, bytes((3, 0, 1, 0, 0, 0, 8, 115)))}, "another version of the firmware"),
        ({"cpu": (0x188, b"\x1a\x02"), "version": (0, b"\x03")}, "another generation"),
        ({"version": (0, b"\x09")}, "version 9"),
    ],
)
def test_a_report_that_says_something_else(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(FreeholdError, match=reason):
        check(chip().quote(BOUND, **fields), rules(chip().root, SNP))


def with_certificates(vcek: bytes | None, ask: bytes | None) -> bytes:
    given = {sev.VCEK: vcek, sev.ASK: ask}
    return chip().report(BOUND) + make_table({guid: der for guid, der in given.items() if der is not None})


OTHER = Chip()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: with_certificates(None, chip().ask.der), "comes without the certificates"),
        (lambda: with_certificates(chip().vcek.der, None), "comes without the certificates"),
        (lambda: with_certificates(chip().ask.der, chip().vcek.der), "leads to no root"),
        (lambda: with_certificates(chip().vcek.der, OTHER.ask.der), "is not signed by the configured"),
        (lambda: with_certificates(OTHER.vcek.der, chip().ask.der), "is not signed by the certificate 'SEV-Test'"),
        (lambda: with_certificates(chip().vcek.der[:-9], chip().ask.der), "the VCEK cannot be read"),
        (lambda: OTHER.quote(BOUND), "is not signed by the configured"),
        (lambda: chip().report(BOUND), "table of certificates has no end"),
        (lambda: chip().report(BOUND)[:-1] + make_table({}), "has no end|beyond its end|1184 bytes"),
        (lambda: b"", "1184 bytes"),
    ],
)
def test_a_report_with_other_certificates(make: Callable[[], bytes], reason: str) -> None:
    with pytest.raises(FreeholdError, match=reason):
        check(make(), rules(chip().root, SNP))


@pytest.mark.parametrize(
    ("vcek", "reason"),
    [
        ({"extensions": {}}, "does not say which version"),
        ({"extensions": {k: v for k, v in vcek_extensions().items() if not k.endswith("3704.1.4")}}, "the chip's id"),
        ({"extensions": vcek_extensions() | {"1.2.3": b"\x05\x00"}}, "critical extension 1.2.3"),
        ({"curve": ec.SECP256R1()}, "not on the curve P-384"),
        ({"dates": (NOW - DAYS, NOW - timedelta(1))}, "was valid until 2025-06-19"),
        ({"dates": (NOW + timedelta(1), NOW + DAYS)}, "is valid from 2025-06-21"),
    ],
)
def test_a_chips_certificate_that_is_wrong(vcek: dict[str, Any], reason: str) -> None:
    wrong = Chip(**vcek)
    with pytest.raises(QuoteRefused, match=reason):
        check(wrong.quote(BOUND), rules(wrong.root, SNP))


def test_issuers_must_be_authorities() -> None:
    made = Chip()
    for issuer, reason in (
        (Authority("SEV-Test", made.root, is_ca=False), "may not issue"),
        (Authority("SEV-Test", made.root, may_sign=False), "may not sign certificates"),
    ):
        made.ask = issuer
        made.vcek = Authority("SEV-VCEK", issuer, is_ca=False, extensions=vcek_extensions(), curve=ec.SECP384R1())
        with pytest.raises(QuoteRefused, match=reason):
            check(made.quote(BOUND), rules(made.root, SNP))
    with pytest.raises(InvalidInput, match="no root"):
        read_roots(made.ask.pem, "a file")
    short = Chip()
    short.root = Authority("ARK-Test", below=0, curve=ec.SECP384R1(), key=short.root.key)
    with pytest.raises(QuoteRefused, match="'ARK-Test' may not issue"):
        check(short.quote(BOUND), rules(short.root, SNP))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"bound": (520, bytes(64))}, "bound to something else"),
        ({"measured": (136, bytes(48))}, "is not accepted"),
        ({"rtmr3": (472, bytes(48))}, "is not accepted"),
        ({"attributes": (120, ((1 << 28) | 1).to_bytes(8, "little"))}, "domain is in debug mode"),
        ({"attributes": (120, ((1 << 28) | 1 << 29).to_bytes(8, "little"))}, "service domain"),
        ({"module": (64, b"\x01")}, "TDX module that is not Intel's"),
        ({"version": 5, "service": (600, b"\x01")}, "service domain"),
        ({"header": {"vendor": (12, bytes(16))}}, "quoting enclave that is not Intel's"),
        ({"header": {"key": (2, b"\x03\x00")}}, "unknown algorithm"),
        ({"header": {"version": (0, b"\x06\x00")}}, "version 6"),
        ({"header": {"kind": (4, b"\x82")}}, "kind 0x82"),
        ({"qe": {"signer": (128, bytes(32))}}, "the quoting enclave is not Intel's"),
        ({"qe": {"product": (256, b"\x01\x00")}}, "the quoting enclave is not Intel's"),
        ({"qe": {"attributes": (48, b"\x17" + bytes(15))}}, "the quoting enclave is in debug mode"),
        ({"qe": {"attributes": (48, bytes(16))}}, "was not initialised"),
        ({"qe": {"bound": (320, bytes(64))}}, "the attestation key is not the one"),
        ({"certified": 3}, "certification data of kind 3"),
        ({"chain": b""}, "cannot be read"),
        ({"chain": b"x" * 40_000}, "more than"),
    ],
)
def test_a_domains_quote_that_is_wrong(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(FreeholdError, match=reason):
        check(platform().quote(BOUND, **given), rules(platform().root, TD))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"bound": (320, bytes(64))}, "bound to something else"),
        ({"measured": (64, bytes(32))}, "is not accepted"),
        ({"attributes": (48, b"\x07" + bytes(15))}, "the enclave is in debug mode"),
        ({"attributes": (48, bytes(16))}, "the enclave was not initialised"),
        ({"qe": {"signer": (128, dcap.QE_SIGNERS[dcap.TDX][0])}}, "the quoting enclave is not Intel's"),
    ],
)
def test_an_enclaves_quote_that_is_wrong(given: dict[str, Any], reason: str) -> None:
    machine = platform(dcap.SGX)
    with pytest.raises(FreeholdError, match=reason):
        check(machine.quote(BOUND, **given), rules(machine.root, ENCLAVE))


def test_chains_of_other_platforms() -> None:
    own, other = platform(), Platform()
    for chain, reason in (
        (own.issuer.pem + own.pck.pem + own.root.pem, "leads to no root"),
        (other.pck.pem + own.issuer.pem + own.root.pem, "is not signed by"),
        (own.pck.pem + own.issuer.pem + other.root.pem, "no root that is configured"),
        (own.pck.pem + other.issuer.pem, "is not signed by the configured"),
        (other.pck.pem + other.issuer.pem + other.root.pem, "no root that is configured"),
        (own.pck.pem + own.root.pem, "leads to no root"),
        (own.root.pem, "a root alone"),
    ):
        with pytest.raises(QuoteRefused, match=reason):
            check(own.quote(BOUND, chain=chain), rules(own.root, TD))
    with pytest.raises(QuoteRefused, match="no root that is configured"):
        check(own.quote(BOUND), rules(other.root, TD))


def test_certificates_have_dates() -> None:
    for later, reason in ((DAYS * 2, "was valid until"), (-DAYS * 2, "is valid from")):
        with pytest.raises(QuoteRefused, match=reason):
            check(platform().quote(BOUND), rules(platform().root, TD), later=later)


def test_only_a_platforms_certificate_signs_for_one() -> None:
    """Others under the same root, like those that sign collateral, do not."""
    signer = Platform(extensions={})
    policy = rules(signer.root, TD, collateral={"c.json": signer.collateral()})
    with pytest.raises(QuoteRefused, match="no PCK certificate"):
        check(signer.quote(BOUND), policy)
    with pytest.raises(QuoteRefused, match="no PCK certificate"):
        check(signer.quote(BOUND), rules(signer.root, TD))


def test_each_signature_counts() -> None:
    quote = platform().quote(BOUND)
    parts = dcap.decode_quote(quote)
    for part, reason in (
        (parts.signature, "the quote is not signed by its key"),
        (parts.qe_signature, "the quoting enclave's report is not signed by its key"),
        (parts.qe_signed, "the quoting enclave's report is not signed by its key"),
        (parts.authentication, "the attestation key is not the one"),
        (parts.signed, "kind|version|algorithm|vendor|Intel's|understood|ends before"),
    ):
        at = quote.index(part)
        with pytest.raises(FreeholdError, match=reason):
            check(quote[:at] + bytes([part[0] ^ 1]) + quote[at + 1 :], rules(platform().root, TD))
    report = chip().quote(BOUND)
    at = sev.SIGNED_BYTES + 5
    with pytest.raises(QuoteRefused, match="not signed by its VCEK"):
        check(report[:at] + bytes([report[at] ^ 1]) + report[at + 1 :], rules(chip().root, SNP))


def test_lengths_are_exact() -> None:
    quote = platform().quote(BOUND)
    assert check(quote + bytes(100), rules(platform().root, TD)).kind == "tdx"
    for cut in (*range(0, 700, 41), len(quote) - 1):
        with pytest.raises(FreeholdError):
            check(quote[:cut], rules(platform().root, TD))
    with pytest.raises(MalformedMessage, match="none of its lengths counts"):
        check(quote + b"\x01", rules(platform().root, TD))
    with pytest.raises(MalformedMessage, match="at most"):
        check(quote + bytes(2**16), rules(platform().root, TD))


# The policy, and what is bound


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"measurements": []}, "at least one measurement"),
        ({"measurements": ["sev-snp:12"]}, "no measurement"),
        ({"measurements": ["sgx:" + "AB" * 32]}, "no measurement"),
        ({"roots": {}}, "at least one"),
        ({"roots": {"x": b"nothing"}}, "x cannot be read"),
        ({"collateral": {"x": b"{}"}}, "x: that is no collateral"),
        ({"collateral": {"x": b"y"}}, "x: x cannot be read"),
        ({"least_firmware": "12"}, "no version"),
        ({"statuses": ["Revoked"]}, "never accepted"),
        ({"statuses": ["Fine"]}, "no status 'Fine'"),
    ],
)
def test_a_policy_that_makes_no_sense(given: dict[str, Any], reason: str) -> None:
    honest: dict[str, Any] = {"measurements": [SNP], "roots": {"r": chip().root.pem}, "collateral": {}}
    with pytest.raises(InvalidInput, match=reason):
        make_policy(**(honest | given))


def test_which_kinds_can_meet_measurements() -> None:
    assert kinds_of([TD, SIGNER, ENCLAVE, SNP]) == ("tdx", "sgx", "sev-snp")


def test_everything_a_receipt_says_is_bound() -> None:
    own = {"node": Address(b"\x01" * 20), "lease": Hash(b"\x02" * 32), "number": 3, "task": Hash(b"\x04" * 32),
           "most": 5, "until": 6, "input": Hash(b"\x07" * 32), "output": Hash(b"\x08" * 32),
           "steps": Hash(b"\x09" * 32), "measure": 10}  # fmt: skip
    bound = bind(Receipt(**own))
    assert (len(bound), bound[32:]) == (64, bytes(32))
    for name, value in own.items():
        other = value + 1 if isinstance(value, int) else type(value)(b"\xee" * len(value))
        assert bind(Receipt(**(own | {name: other}))) != bound, name


def test_what_a_platform_says_of_itself() -> None:
    good = pck_extension()
    found = decode_platform(good)
    assert (found.components, found.pce_svn, found.pce_id) == (bytes(range(16)), 13, "0000")
    assert EXTENSION.dotted_string == "1.2.840.113741.1.13.1"
    for at in range(len(good)):
        with pytest.raises(QuoteRefused, match="does not describe a platform"):
            decode_platform(good[:at])
