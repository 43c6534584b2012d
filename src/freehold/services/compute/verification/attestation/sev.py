"""AMD SEV-SNP: a guest's attestation report, signed by the chip's key (VCEK), and the chain from that to AMD's root.

A quote is the report (1184 bytes) followed by the table of certificates that the guest's firmware interface gives with
it (`/dev/sev-guest`'s extended report; `outblob` and `auxblob` of configfs-tsm one after the other): entries of a GUID,
an offset and a length (24 bytes), ended by zeros. VCEK and ASK are taken from it; the root (ARK) never is.

Layouts: AMD 56860 (SEV-SNP firmware ABI, "ATTESTATION_REPORT", "TCB_VERSION"), AMD 57230 (VCEK certificates), GHCB
56421 ("CERT_TABLE"). Integers are little-endian. Refused besides what is forged: guests that may be debugged or handed
to a migration agent, reports that the host asked for, keys of a cloud provider (VLEK), masked chip ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from freehold.protocol.errors import MalformedMessage
from freehold.services.compute.verification.attestation.certificates import (
    QuoteRefused,
    check_chain,
    read_der,
    read_pem,
    reading,
)

REPORT_BYTES = 1184
SIGNED_BYTES = 0x2A0  # of the report, before the signature: r and s, 72 bytes each
VERSIONS = range(2, 6)
ECDSA_P384_SHA384 = 1
DEBUG, MIGRATION_AGENT = 1 << 19, 1 << 18  # of the guest's policy
VMPL_LIMIT = 4  # a guest's own levels; a report that the host asked for names none of them
TURIN_FAMILY, TURIN_MODELS = 0x1A, range(0x12)

VCEK = bytes.fromhex("63da758de6644564adc5f4b93be8accd")  # GUIDs of the table's entries, as they stand in it
ASK = bytes.fromhex("4ab7b379bbac4fe4a02f05aef327c782")
ENTRY, ENTRIES_LIMIT = 24, 16
TABLE_LIMIT = 64 * 2**10

_OID = "1.3.6.1.4.1.3704.1."
_CHIP = x509.ObjectIdentifier(_OID + "4")
# Which part of a TCB version each of its eight bytes is, by the number of the certificate's extension for it.
_MILAN = (1, 2, 4, 5, 6, 7, 3, 8)  # boot loader, TEE, four that are reserved, SNP, microcode; Genoa has the same
_TURIN = (9, 1, 2, 3, None, None, None, 8)  # FMC, boot loader, TEE, SNP, three that are reserved, microcode


class Report(NamedTuple):
    """What a report says: the guest's policy, its measurement (48 bytes), the 64 bytes that it chose, the TCB version
    that the key is for (8 bytes), the chip's id (64 bytes), and who signed."""

    version: int
    policy: int
    vmpl: int
    algorithm: int
    key_info: int
    report_data: bytes
    measurement: bytes
    reported_tcb: bytes
    chip_id: bytes
    is_turin: bool | None  # None: the report does not say on what it was made (version 2)


def decode_report(data: bytes) -> Report:
    """The fields of a report. MalformedMessage."""
    if len(data) != REPORT_BYTES:
        raise MalformedMessage(f"a report of SEV-SNP has {REPORT_BYTES} bytes, not {len(data)}")
    version = _integer(data, 0, 4)
    if version not in VERSIONS:
        raise MalformedMessage(f"a report of SEV-SNP of version {version} is not understood")
    turin = data[0x188] == TURIN_FAMILY and data[0x189] in TURIN_MODELS if version >= 3 else None
    return Report(
        version=version,
        policy=_integer(data, 0x08, 8),
        vmpl=_integer(data, 0x30, 4),
        algorithm=_integer(data, 0x34, 4),
        key_info=_integer(data, 0x48, 4),
        report_data=data[0x50:0x90],
        measurement=data[0x90:0xC0],
        reported_tcb=data[0x180:0x188],
        chip_id=data[0x1A0:0x1E0],
        is_turin=turin,
    )


def decode_table(data: bytes) -> Mapping[bytes, bytes]:
    """The certificates that came with a report, by GUID. MalformedMessage."""
    if len(data) > TABLE_LIMIT:
        raise MalformedMessage(f"a table of certificates has at most {TABLE_LIMIT} bytes")
    found: dict[bytes, bytes] = {}
    for at in range(0, ENTRY * (ENTRIES_LIMIT + 1), ENTRY):
        entry = data[at : at + ENTRY]
        if len(entry) != ENTRY:
            raise MalformedMessage("a report's table of certificates has no end")
        guid, offset, length = entry[:16], _integer(entry, 16, 4), _integer(entry, 20, 4)
        if not any(entry):
            return found
        if offset + length > len(data):
            raise MalformedMessage("a report's table of certificates names bytes beyond its end")
        found[guid] = data[offset : offset + length]
    raise MalformedMessage(f"a report's table has more than {ENTRIES_LIMIT} certificates")


def verify_report(
    data: bytes, roots: Sequence[x509.Certificate], at: datetime
) -> tuple[Report, list[x509.Certificate]]:
    """The report, if a chip of AMD's signed it for a guest that nobody can look into, and the chain to its root.

    MalformedMessage, QuoteRefused naming the rule that it breaks. What it measures and is bound to is the caller's.
    """
    report = decode_report(data[:REPORT_BYTES])
    table = decode_table(data[REPORT_BYTES:])
    _check_kind(report)
    if VCEK not in table or ASK not in table:
        raise QuoteRefused("the report comes without the certificates of its chip (VCEK) and of their issuer (ASK)")
    vcek, ask = _read(table[VCEK], "the VCEK"), _read(table[ASK], "the ASK")
    chain = check_chain([vcek, ask], roots, at)
    if len(chain) != 3:
        raise QuoteRefused("the report's certificates are not a chip's, its issuer's and a root")
    _check_chip(report, vcek)
    _check_signature(data[:REPORT_BYTES], vcek)
    return report, chain


def check_least(report: Report, least: bytes) -> None:
    """QuoteRefused where one of the firmware's parts is older than `least`: a TCB version as reports have it."""
    if any(have < want for have, want in zip(report.reported_tcb, least, strict=True)):
        raise QuoteRefused(f"the firmware's version {report.reported_tcb.hex()} is below the least, {least.hex()}")


def _check_kind(report: Report) -> None:
    if report.algorithm != ECDSA_P384_SHA384:
        raise QuoteRefused(f"the report is signed by an unknown algorithm, {report.algorithm}")
    if report.key_info >> 2 & 7 or report.key_info & 2:
        raise QuoteRefused("the report is not signed by its chip's own key (VCEK)")
    if report.vmpl >= VMPL_LIMIT:
        raise QuoteRefused("the report was asked for by the host, not by the guest")
    if report.policy & DEBUG:
        raise QuoteRefused("the guest may be debugged: its host can read and change what runs")
    if report.policy & MIGRATION_AGENT:
        raise QuoteRefused("the guest may be handed to a migration agent, which is not attested here")


def _check_chip(report: Report, vcek: x509.Certificate) -> None:
    """The certificate is for this chip and this version of its firmware."""
    if not any(report.chip_id):
        raise QuoteRefused("the report hides its chip's id, so its certificate cannot be held against it")
    numbers = _tcb_numbers(vcek)
    is_turin = 9 in numbers
    if report.is_turin not in (None, is_turin):
        raise QuoteRefused("the VCEK is for another generation of chips than the report")
    chip = _extension(vcek, _CHIP, "the chip's id")
    if chip[:2] == bytes((4, len(chip) - 2)):  # an OCTET STRING around it
        chip = chip[2:]
    if len(chip) != (8 if is_turin else 64) or chip + bytes(64 - len(chip)) != report.chip_id:
        raise QuoteRefused("the VCEK is for another chip than the report")
    for place, number in enumerate(_TURIN if is_turin else _MILAN):
        if (numbers.get(number, 0) if number is not None else 0) != report.reported_tcb[place]:
            raise QuoteRefused("the VCEK is for another version of the firmware than the report")


def _tcb_numbers(vcek: x509.Certificate) -> Mapping[int, int]:
    """The parts of the firmware's version that a VCEK is for, by the number of their extension."""
    found: dict[int, int] = {}
    with reading("the VCEK"):
        for extension in vcek.extensions:
            home, _, number = extension.oid.dotted_string.rpartition(".")
            if home == _OID + "3":
                assert isinstance(extension.value, x509.UnrecognizedExtension)
                found[int(number)] = _read_integer(extension.value.value)
    if 8 not in found or 1 not in found:
        raise QuoteRefused("the VCEK does not say which version of the firmware it is for")
    return found


def _read_integer(value: bytes) -> int:
    """An INTEGER of DER from 0 to 255."""
    if len(value) < 3 or value[0] != 2 or value[1] != len(value) - 2:
        raise QuoteRefused("the VCEK has a version that is no number")
    number = int.from_bytes(value[2:], "big", signed=True)
    if not 0 <= number < 256:
        raise QuoteRefused("the VCEK has a version that is no byte")
    return number


def _extension(certificate: x509.Certificate, oid: x509.ObjectIdentifier, what: str) -> bytes:
    with reading("the VCEK"):
        try:
            found = certificate.extensions.get_extension_for_oid(oid).value
        except x509.ExtensionNotFound:
            raise QuoteRefused(f"the VCEK does not say {what}") from None
    assert isinstance(found, x509.UnrecognizedExtension)
    return found.value


def _check_signature(data: bytes, vcek: x509.Certificate) -> None:
    with reading("the VCEK"):
        key = vcek.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise QuoteRefused("the VCEK's key is not on the curve P-384")
    numbers = _integer(data, SIGNED_BYTES, 72), _integer(data, SIGNED_BYTES + 72, 72)
    try:
        key.verify(encode_dss_signature(*numbers), data[:SIGNED_BYTES], ec.ECDSA(SHA384()))
    except (InvalidSignature, ValueError):
        raise QuoteRefused("the report is not signed by its VCEK") from None


def _read(data: bytes, what: str) -> x509.Certificate:
    if b"-----BEGIN" not in data:
        return read_der(data, what)
    found = read_pem(data, what)
    if len(found) != 1:
        raise QuoteRefused(f"{what} is not one certificate")
    return found[0]


def _integer(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")
