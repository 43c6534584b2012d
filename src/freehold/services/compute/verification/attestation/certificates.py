"""Certificate chains of hardware makers: leaf, issuers, and a root that the verifier was given.

The chain's shape is known beforehand (a quote's format says it), so nothing is searched for: each certificate is held
against the one after it, and the last against the roots. Checked of each: its signature, its dates, that its issuer is
an authority that may sign certificates and so many below it, and that it has no critical extension unknown here.

Invariant: what `check_chain` lets through leads to one of the roots; a root counts because it was given, never because
it came along.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.utils import CryptographyDeprecationWarning

from freehold.protocol.errors import Corrupt, InvalidInput

CHAIN_LIMIT = 8  # certificates that are read of one chain
CHAIN_BYTES = 32 * 2**10
KNOWN_CRITICAL = (x509.BasicConstraints, x509.KeyUsage)


class QuoteRefused(Corrupt):
    """A quote that does not show what it has to; the message says which rule it breaks."""

    code = "quote_refused"
    hint = "`freehold job why JOB` has it; another node may have a better one."


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Whatever the parser of certificates says of bytes, as QuoteRefused."""
    try:
        yield
    except QuoteRefused:
        raise
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
        raise QuoteRefused(f"{what} cannot be read: {error}") from None
    except Exception as error:  # the parser names its errors as it likes; none of them says that the bytes are good
        raise QuoteRefused(f"{what} cannot be read: {type(error).__name__}") from None


def read_der(data: bytes, what: str) -> x509.Certificate:
    """One certificate. QuoteRefused."""
    if len(data) > CHAIN_BYTES:
        raise QuoteRefused(f"{what} has more than {CHAIN_BYTES} bytes")
    with reading(what), _serial_zero():
        return x509.load_der_x509_certificate(data)


def read_pem(data: bytes, what: str) -> list[x509.Certificate]:
    """The certificates of a PEM text, in its order. QuoteRefused."""
    if len(data) > CHAIN_BYTES:
        raise QuoteRefused(f"{what} has more than {CHAIN_BYTES} bytes")
    with reading(what), _serial_zero():
        found = x509.load_pem_x509_certificates(data.rstrip(b"\x00"))
    if len(found) > CHAIN_LIMIT:
        raise QuoteRefused(f"{what} has more than {CHAIN_LIMIT} certificates")
    return found


def read_roots(data: bytes, name: str) -> tuple[x509.Certificate, ...]:
    """Roots from a file, PEM or DER. InvalidInput unless each is an authority that signed itself."""
    try:
        found = read_pem(data, name) if b"-----BEGIN" in data else [read_der(data, name)]
    except QuoteRefused as error:
        raise InvalidInput(error.message) from None
    try:
        with reading(name):
            roots = tuple(one for one in found if one.issuer == one.subject)
            for one in roots:
                _check_issued(one, one, 0)
    except QuoteRefused as error:
        raise InvalidInput(f"{name} is no root: {error.message}") from None
    if not roots:
        raise InvalidInput(f"{name} has no root: a certificate that signed itself")
    return roots


def read_crl(data: bytes, name: str) -> x509.CertificateRevocationList:
    """A revocation list, PEM or DER. QuoteRefused."""
    with reading(name):
        return x509.load_pem_x509_crl(data) if b"-----BEGIN" in data else x509.load_der_x509_crl(data)


def check_chain(
    chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], at: datetime
) -> list[x509.Certificate]:
    """The chain from its leaf to the configured root, that one included, valid at `at` (with a time zone).

    `chain` may end with its root or before it. QuoteRefused says what is wrong with which certificate.
    """
    with reading("the certificate chain"):
        whole = _build(chain, roots)
        for below, (one, issuer) in enumerate(pairwise(whole)):
            _check_issued(one, issuer, below)
        for one in whole:
            _check_dates(one, at)
    return whole


def check_revoked(
    chain: Sequence[x509.Certificate], crls: Sequence[x509.CertificateRevocationList], at: datetime
) -> tuple[str, ...]:
    """The names of those in a chain (as `check_chain` gave it) of whose issuers no list is here.

    QuoteRefused where one was revoked, or where none of its issuer's lists is signed by it and valid at `at`.
    """
    unknown = []
    with reading("a revocation list"):
        for one, issuer in pairwise(chain):
            named = [crl for crl in crls if crl.issuer == issuer.subject]
            valid = [crl for crl in named if not _doubt(crl, issuer, at)]
            if named and not valid:
                raise QuoteRefused(_doubt(named[0], issuer, at))
            if any(crl.get_revoked_certificate_by_serial_number(one.serial_number) for crl in valid):
                raise QuoteRefused(f"{name_of(one)} was revoked by its issuer")
            if not valid:
                unknown.append(name_of(one))
    return tuple(unknown)


def check_signature(key: object, signature: bytes, data: bytes, what: str) -> None:
    """ECDSA with SHA-256 over P-256, `signature` as 32 bytes each of r and s, big-endian. QuoteRefused."""
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise QuoteRefused(f"{what}: its key is not on the curve P-256")
    numbers = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    try:
        key.verify(encode_dss_signature(*numbers), data, ec.ECDSA(SHA256()))
    except (InvalidSignature, ValueError):
        raise QuoteRefused(f"{what} is not signed by its key") from None


def name_of(certificate: x509.Certificate) -> str:
    """What people call it: its common name."""
    found = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return f"the certificate {str(found[0].value)!r}" if found else "a certificate without a name"


def _build(chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate]) -> list[x509.Certificate]:
    """The chain with its root, of which only that is known that it is configured and signed the last below it."""
    whole = list(chain)
    if whole and whole[-1].issuer == whole[-1].subject:
        top = whole.pop()
        if top not in roots:
            raise QuoteRefused(f"{name_of(top)} is no root that is configured here")
        if not whole:
            raise QuoteRefused("the certificate chain is a root alone")
    if not whole:
        raise QuoteRefused("the certificate chain is empty")
    return [*whole, _find_root(whole[-1], roots)]


def _find_root(last: x509.Certificate, roots: Sequence[x509.Certificate]) -> x509.Certificate:
    named = [root for root in roots if root.subject == last.issuer]
    for root in named:
        try:
            last.verify_directly_issued_by(root)
        except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
            continue
        return root
    if named:
        raise QuoteRefused(f"{name_of(last)} is not signed by the configured {name_of(named[0])}")
    raise QuoteRefused(f"{name_of(last)} leads to no root that is configured here")


def _check_issued(one: x509.Certificate, issuer: x509.Certificate, below: int) -> None:
    """QuoteRefused unless `issuer` signed it, as an authority with `below` authorities between itself and the leaf."""
    with reading(name_of(one)):
        try:
            one.verify_directly_issued_by(issuer)
        except InvalidSignature:
            raise QuoteRefused(f"{name_of(one)} is not signed by {name_of(issuer)}") from None
        except ValueError:
            raise QuoteRefused(f"{name_of(one)} was not issued by {name_of(issuer)}") from None
        _check_key(issuer)
        limits = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
        if not limits.ca or (limits.path_length is not None and limits.path_length < below):
            raise QuoteRefused(f"{name_of(issuer)} may not issue {name_of(one)}")
        if not issuer.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign:
            raise QuoteRefused(f"{name_of(issuer)} may not sign certificates")
        for extension in one.extensions:
            if extension.critical and not isinstance(extension.value, KNOWN_CRITICAL):
                raise QuoteRefused(f"{name_of(one)} has a critical extension {extension.oid.dotted_string}")


def _check_key(issuer: x509.Certificate) -> None:
    key = issuer.public_key()
    strong = (isinstance(key, ec.EllipticCurvePublicKey) and key.key_size >= 256) or (
        isinstance(key, rsa.RSAPublicKey) and key.key_size >= 3072
    )
    if not strong:
        raise QuoteRefused(f"{name_of(issuer)} has a key that is too weak, or of an unknown kind")


def _check_dates(one: x509.Certificate, at: datetime) -> None:
    if at < one.not_valid_before_utc:
        raise QuoteRefused(f"{name_of(one)} is valid from {one.not_valid_before_utc:%Y-%m-%d} on")
    if at > one.not_valid_after_utc:
        raise QuoteRefused(f"{name_of(one)} was valid until {one.not_valid_after_utc:%Y-%m-%d}")


def _doubt(crl: x509.CertificateRevocationList, issuer: x509.Certificate, at: datetime) -> str:
    """Why a list says nothing; empty if it counts."""
    what = f"the revocation list of {name_of(issuer)}"
    if not crl.is_signature_valid(issuer.public_key()):  # type: ignore[arg-type]
        return f"{what} is not signed by it"
    if at < crl.last_update_utc or crl.next_update_utc is None or at > crl.next_update_utc:
        return f"{what} is not valid now: get a new one"
    return ""


@contextmanager
def _serial_zero() -> Iterator[None]:
    """AMD's certificates of chips have the serial number 0, which the parser warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        yield
