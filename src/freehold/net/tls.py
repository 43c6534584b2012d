"""Certificates without an authority: each party makes its own, and others know it by its fingerprint.

A fingerprint is the SHA-256 of the certificate's DER bytes. It stands where a signature vouches for it: a node's in its
signed offer, a member's in the network file. Whoever pins it looks at nothing else in the certificate: neither names
nor dates nor who issued it. Those are there for programs that are not Freehold's and are given the file as a CA bundle.

Invariant: a key is readable by its owner alone, and a file is written whole or not at all. The certificate is made from
the key that is there, so that a stop between the two files leaves nothing that has to be mended.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import secrets
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from freehold.protocol.errors import InvalidInput
from freehold.protocol.units import Hash

VALID_DAYS = 3650
RENEW_DAYS = 30  # a certificate that has fewer left is made anew at the next start
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
CERTIFICATE_FILE, KEY_FILE = "certificate.pem", "key.pem"


class Certificate(NamedTuple):
    """A certificate and its key, as PEM files, and its fingerprint."""

    certificate: Path
    key: Path
    fingerprint: Hash


def fingerprint_of(der: bytes) -> Hash:
    """What a certificate is pinned by."""
    return Hash(hashlib.sha256(der).digest())


def load_certificate(certificate: Path, key: Path) -> Certificate:
    """An operator's own. InvalidInput where a file cannot be read, or the two do not belong together."""
    server_context(certificate, key)
    return Certificate(certificate, key, fingerprint_of(_read(certificate).public_bytes(serialization.Encoding.DER)))


def choose_certificate(tls: bool, certificate: Path | None, key: Path | None, folder: Path) -> Certificate | None:
    """What a process serves with by its configuration: nothing, an operator's own, or one made in `folder`."""
    if (certificate is None) != (key is None) or (certificate is not None and not tls):
        raise InvalidInput("'certificate' and 'certificate_key' are given together, and only with 'tls'")
    if not tls:
        return None
    return ensure_certificate(folder) if certificate is None or key is None else load_certificate(certificate, key)


def ensure_certificate(folder: Path, names: Sequence[str] = ()) -> Certificate:
    """The certificate in `folder`, made if it is not there, lacks one of the names, or ends soon.

    `names` are host names and IP addresses; those of this machine itself are always among them.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    certificate, key = folder / CERTIFICATE_FILE, folder / KEY_FILE
    if not key.exists():
        _write(key, _pem(ec.generate_private_key(ec.SECP256R1())))
    secret = _read_key(key)
    wanted = _subject_names((*LOCAL_NAMES, *names))
    if not certificate.exists() or not _serves(_read(certificate), secret, wanted):
        _write(certificate, _make(secret, wanted).public_bytes(serialization.Encoding.PEM))
    return load_certificate(certificate, key)


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """What a server listens with: TLS 1.2 or 1.3. InvalidInput where the files do not serve."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InvalidInput(f"the certificate {certificate} with the key {key} cannot be used: {reason}") from None
    return context


def client_context() -> ssl.SSLContext:
    """What looks at no authority and no name: only for connections whose certificate is compared with a fingerprint."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _subject_names(names: Sequence[str]) -> list[x509.GeneralName]:
    found: dict[x509.GeneralName, None] = {}
    for name in names:
        try:
            found[x509.IPAddress(ipaddress.ip_address(name))] = None
        except ValueError:
            try:
                found[x509.DNSName(name)] = None
            except ValueError:
                raise InvalidInput(f"a certificate cannot be made for the name {name!r}") from None
    return list(found)


def _make(key: ec.EllipticCurvePrivateKey, names: Sequence[x509.GeneralName]) -> x509.Certificate:
    now = datetime.now(UTC)
    # A name of its own for each: trust stores tell issuers apart by their names.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Freehold {secrets.token_hex(8)}")])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=VALID_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(key, hashes.SHA256())
    )


def _serves(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, wanted: Sequence[x509.GeneralName]) -> bool:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    lasts = certificate.not_valid_after_utc > datetime.now(UTC) + timedelta(days=RENEW_DAYS)
    return lasts and certificate.public_key() == key.public_key() and set(wanted) <= set(names)


def _read(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path} is no certificate in PEM: {error}") from None


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise InvalidInput(f"{path} is no key in PEM: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InvalidInput(f"{path} is not a key that Freehold made", hint="Name it with its certificate instead.")
    return key


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all, and from the first byte on for its owner only."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
