"""Hardware made of software: makers with roots of their own, and platforms that quote whatever they are asked to.

The forms are those of the real ones, the keys are not: nothing trusts these roots unless a test names them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding

from freehold.services.compute.verification.attestation import dcap, sev
from freehold.services.compute.verification.attestation.platform import EXTENSION, PREFIX

NOW = datetime(2025, 6, 20, tzinfo=UTC)
DAYS = timedelta(days=1000)
OWN = "1.3.6.1.4.1.3704.1."
TCB = bytes((3, 0, 0, 0, 0, 0, 8, 115))
CHIP = bytes(range(64))
MEASURED = b"\x4d" * 48
REGISTERS = tuple(bytes([number]) * 48 for number in range(4))
FMSPC = "00a067110000"


class Authority:
    """A key and its certificate."""

    def __init__(
        self, name: str, issuer: Authority | None = None, *, is_ca: bool = True, below: int | None = 1,
        curve: ec.EllipticCurve | None = None, dates: tuple[datetime, datetime] = (NOW - DAYS, NOW + DAYS),
        extensions: Mapping[str, bytes] = {}, may_sign: bool = True, key: ec.EllipticCurvePrivateKey | None = None,
    ) -> None:  # fmt: skip
        self.key = key or ec.generate_private_key(curve or ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        signer = issuer or self
        builder = (
            x509.CertificateBuilder().subject_name(self.name).issuer_name(signer.name)
            .public_key(self.key.public_key()).serial_number(x509.random_serial_number())
            .not_valid_before(dates[0]).not_valid_after(dates[1])
            .add_extension(x509.BasicConstraints(is_ca, below if is_ca else None), critical=True)
            .add_extension(
                x509.KeyUsage(False, False, False, False, False, is_ca and may_sign, is_ca, False, False), critical=True
            )
        )  # fmt: skip
        for oid, value in extensions.items():
            unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)
            builder = builder.add_extension(unknown, critical=oid.startswith("1.2.3"))
        self.certificate = builder.sign(signer.key, SHA384())

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    def crl(self, *revoked: Authority, dates: tuple[datetime, datetime] = (NOW, NOW + DAYS)) -> bytes:
        """A revocation list (DER)."""
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.name)
        builder = builder.last_update(dates[0]).next_update(dates[1])
        for one in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(one.certificate.serial_number)
            builder = builder.add_revoked_certificate(entry.revocation_date(NOW).build())
        return builder.sign(self.key, SHA384()).public_bytes(Encoding.DER)

    def sign(self, data: bytes) -> bytes:
        return sign_p256(self.key, data)


def sign_p256(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """As Intel's quotes have signatures."""
    return b"".join(one.to_bytes(32, "big") for one in decode_dss_signature(key.sign(data, ec.ECDSA(SHA256()))))


def number(value: int) -> bytes:
    """DER."""
    data = value.to_bytes(value.bit_length() // 8 + 1, "big")
    return bytes((2, len(data))) + data


def vcek_extensions(tcb: bytes = TCB, chip: bytes = CHIP, *, turin: bool = False) -> dict[str, bytes]:
    """What a chip's certificate says of it."""
    places = (9, 1, 2, 3, None, None, None, 8) if turin else (1, 2, 4, 5, 6, 7, 3, 8)
    named = {f"{OWN}3.{place}": number(part) for place, part in zip(places, tcb, strict=True) if place is not None}
    return {f"{OWN}1": number(0), **named, f"{OWN}4": chip}


class Chip:
    """A processor of "AMD", its maker's root and what issues certificates of chips."""

    def __init__(self, **vcek: Any) -> None:
        self.root = Authority("ARK-Test", curve=ec.SECP384R1())
        self.ask = Authority("SEV-Test", self.root, below=0, curve=ec.SECP384R1())
        given = {"extensions": vcek_extensions(), "is_ca": False, "curve": ec.SECP384R1()}
        self.vcek = Authority("SEV-VCEK", self.ask, **(given | vcek))

    def report(self, bound: bytes, /, **fields: Any) -> bytes:
        return make_report(self.vcek.key, bound, **fields)

    def quote(self, bound: bytes, /, **fields: Any) -> bytes:
        return self.report(bound, **fields) + make_table({sev.VCEK: self.vcek.der, sev.ASK: self.ask.der})


def make_report(key: ec.EllipticCurvePrivateKey, bound: bytes, /, **fields: Any) -> bytes:
    """A report; `fields` are (offset, bytes) that stand in it instead of what an honest one has."""
    data = bytearray(sev.REPORT_BYTES)
    honest = {
        "version": (0, (2).to_bytes(4, "little")), "policy": (8, (0x30000).to_bytes(8, "little")),
        "vmpl": (0x30, bytes(4)), "algorithm": (0x34, b"\x01"), "key_info": (0x48, bytes(4)),
        "bound": (0x50, bound), "measured": (0x90, MEASURED), "tcb": (0x180, TCB), "chip": (0x1A0, CHIP),
    }  # fmt: skip
    for offset, value in (honest | fields).values():
        data[offset : offset + len(value)] = value
    r, s = decode_dss_signature(key.sign(bytes(data[: sev.SIGNED_BYTES]), ec.ECDSA(SHA384())))
    data[sev.SIGNED_BYTES : sev.SIGNED_BYTES + 144] = r.to_bytes(72, "little") + s.to_bytes(72, "little")
    return bytes(data)


def make_table(certificates: Mapping[bytes, bytes]) -> bytes:
    """The table that comes with a report."""
    head, body, at = b"", b"", 24 * (len(certificates) + 1)
    for guid, der in certificates.items():
        head += guid + (at + len(body)).to_bytes(4, "little") + len(der).to_bytes(4, "little")
        body += der
    return head + bytes(24) + body


def pck_extension(components: bytes = bytes(range(16)), pce_svn: int = 13, fmspc: str = FMSPC) -> bytes:
    """What a platform's certificate says of it."""

    def element(tag: int, content: bytes) -> bytes:
        size = bytes((len(content),)) if len(content) < 128 else b"\x82" + len(content).to_bytes(2, "big")
        return bytes((tag,)) + size + content

    def pair(name: bytes, value: bytes) -> bytes:
        return element(0x30, element(6, PREFIX + name) + value)

    parts = [pair(bytes((2, place + 1)), number(one)) for place, one in enumerate(components)]
    versions = element(0x30, b"".join([*parts, pair(bytes((2, 17)), number(pce_svn))]))
    rest = pair(b"\x03", element(4, bytes(2))) + pair(b"\x04", element(4, bytes.fromhex(fmspc)))
    return element(0x30, pair(b"\x01", element(4, bytes(16))) + pair(b"\x02", versions) + rest)


class Platform:
    """A machine of "Intel", with its quoting enclave."""

    def __init__(self, kind: int = dcap.TDX, **pck: Any) -> None:
        self.kind = kind
        self.root = Authority("Intel Test Root CA")
        self.issuer = Authority("Intel Test PCK Platform CA", self.root, below=0)
        given = {"extensions": {EXTENSION.dotted_string: pck_extension()}, "is_ca": False}
        self.pck = Authority("Intel Test PCK Certificate", self.issuer, **(given | pck))
        self.signer = Authority("Intel SGX TCB Signing", self.root, is_ca=False)
        self.attestation = ec.generate_private_key(ec.SECP256R1())

    def enclave(self, bound: bytes, /, **fields: Any) -> bytes:
        """A report of an enclave: the quoting one's, unless told otherwise."""
        signer, product = dcap.QE_SIGNERS[self.kind]
        honest = {
            "attributes": (48, (0x15).to_bytes(8, "little") + bytes(8)), "measured": (64, MEASURED[:32]),
            "signer": (128, signer), "product": (256, product.to_bytes(2, "little")),
            "version": (258, (8).to_bytes(2, "little")), "bound": (320, bound),
        }  # fmt: skip
        return _fill(dcap.ENCLAVE_BYTES, honest | fields)

    def body(self, bound: bytes, version: int, /, **fields: Any) -> bytes:
        if self.kind == dcap.SGX:
            own = {"signer": (128, b"\x55" * 32), "product": (256, b"\x07\x00"), "version": (258, b"\x02\x00")}
            return self.enclave(bound, **(own | {"attributes": (48, b"\x05" + bytes(15))} | fields))
        registers = {f"rtmr{at}": (328 + 48 * at, value) for at, value in enumerate(REGISTERS)}
        svn = bytes((5, 1, 2, *bytes(13)))
        honest = {
            "svn": (0, svn), "attributes": (120, (1 << 28).to_bytes(8, "little")), "measured": (136, MEASURED),
            "bound": (520, bound), **registers,
        }  # fmt: skip
        if version == 5:
            honest["svn_now"] = (584, svn)
        return _fill(dcap.TD15_BYTES if version == 5 else dcap.TD10_BYTES, honest | fields)

    def quote(
        self, bound: bytes, /, *, version: int = 0, qe: Mapping[str, Any] = {}, header: Mapping[str, Any] = {},
        chain: bytes | None = None, authentication: bytes = b"\xa1" * 32, certified: int = 5, **fields: Any,
    ) -> bytes:  # fmt: skip
        """A quote; `fields`, `qe` and `header` are what differs from an honest one."""
        version = version or (3 if self.kind == dcap.SGX else 4)
        honest = {
            "version": (0, version.to_bytes(2, "little")), "key": (2, b"\x02\x00"),
            "kind": (4, self.kind.to_bytes(4, "little")), "vendor": (12, dcap.INTEL),
        }  # fmt: skip
        body = self.body(bound, version, **fields)
        if version == 5:
            body = (1 if self.kind == dcap.SGX else 3).to_bytes(2, "little") + len(body).to_bytes(4, "little") + body
        signed = _fill(dcap.HEADER_BYTES, honest | dict(header)) + body
        numbers = self.attestation.public_key().public_numbers()
        key = numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
        report = self.enclave(hashlib.sha256(key + authentication).digest() + bytes(32), **qe)
        pem = self.pck.pem + self.issuer.pem + self.root.pem if chain is None else chain
        inner = report + self.pck.sign(report) + len(authentication).to_bytes(2, "little") + authentication
        inner += certified.to_bytes(2, "little") + len(pem).to_bytes(4, "little") + pem
        if version != 3:
            inner = (6).to_bytes(2, "little") + len(inner).to_bytes(4, "little") + inner
        rest = sign_p256(self.attestation, signed) + key + inner
        return signed + len(rest).to_bytes(4, "little") + rest

    def collateral(
        self, *, info: Mapping[str, Any] = {}, identity: Mapping[str, Any] = {}, level: Mapping[str, Any] = {},
        crls: tuple[bytes, bytes] | None = None, signer: Authority | None = None, chain: bytes | None = None,
    ) -> bytes:  # fmt: skip
        """What the maker says of such platforms, as a file."""
        is_sgx = self.kind == dcap.SGX
        dates = {"issueDate": "2025-06-19T10:00:00Z", "nextUpdate": "2025-07-19T10:00:00Z"}
        tcb = {"sgxtcbcomponents": [{"svn": one} for one in range(16)], "pcesvn": 13}
        if not is_sgx:
            tcb["tdxtcbcomponents"] = [{"svn": one} for one in (9, 9, 2, *bytes(13))]  # the first two are the module's
        modules = [{"id": "TDX_01", "tcbLevels": [{"tcb": {"isvsvn": 5}, "tcbStatus": "UpToDate"}]}]
        said = {
            "id": "SGX" if is_sgx else "TDX", "version": 3, **dates, "fmspc": FMSPC.upper(), "pceId": "0000",
            "tcbLevels": [{"tcb": tcb, "tcbStatus": "UpToDate"} | dict(level)], "tdxModuleIdentities": modules,
        }  # fmt: skip
        own, product = dcap.QE_SIGNERS[self.kind]
        told = {
            "id": "QE" if is_sgx else "TD_QE", "version": 2, **dates, "miscselect": "00000000",
            "miscselectMask": "FFFFFFFF", "attributes": "11000000000000000000000000000000",
            "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000", "mrsigner": own.hex().upper(), "isvprodid": product,
            "tcbLevels": [{"tcb": {"isvsvn": 8}, "tcbStatus": "UpToDate"}],
        }  # fmt: skip
        texts = [json.dumps(said | dict(info)), json.dumps(told | dict(identity))]
        lists = crls or (self.root.crl(), self.issuer.crl())
        by = signer or self.signer
        pem = (by.pem + self.root.pem if chain is None else chain).decode()
        return json.dumps({
            "root_ca_crl": lists[0].hex(), "pck_crl": lists[1].hex(),
            "tcb_info_issuer_chain": pem, "tcb_info": texts[0], "tcb_info_signature": by.sign(texts[0].encode()).hex(),
            "qe_identity_issuer_chain": pem, "qe_identity": texts[1],
            "qe_identity_signature": by.sign(texts[1].encode()).hex(),
        }).encode()  # fmt: skip


def _fill(size: int, fields: Mapping[str, Any]) -> bytes:
    data = bytearray(size)
    for offset, value in fields.values():
        data[offset : offset + len(value)] = value
    return bytes(data)
