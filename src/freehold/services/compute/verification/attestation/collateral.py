"""What Intel signs about its platforms: how up to date they are (TCB info), and its quoting enclaves (QE identity).

Both are JSON with a validity of some weeks, signed by a certificate under the same root as the platform's. They come as
files in the form of Intel's library (`sgx_ql_qve_collateral_t` as JSON: texts, chains in PEM, lists and signatures in
hexadecimal), which whoever has a provisioning service writes. Who handed them over does not matter.

A platform has a status for each part of it: processor and firmware, TDX module, quoting enclave. Intel's own library
merges them into one; here each must be acceptable by itself, which is never laxer.

Invariant: what `judge_platform` says rests on signed statements that are valid at the time that it was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, NamedTuple, TypeVar

import msgspec
from cryptography import x509

from freehold.protocol.errors import MalformedMessage
from freehold.services.compute.verification.attestation.certificates import (
    QuoteRefused,
    check_chain,
    check_revoked,
    check_signature,
    name_of,
    read_crl,
    read_pem,
    reading,
)
from freehold.services.compute.verification.attestation.dcap import SGX, Enclave, Quote
from freehold.services.compute.verification.attestation.platform import read_platform

T = TypeVar("T")
Zoned = Annotated[datetime, msgspec.Meta(tz=True)]

COLLATERAL_LIMIT = 2**20
SIGNER = "Intel SGX TCB Signing"  # whom TCB info and QE identity are signed by
UP_TO_DATE, REVOKED = "UpToDate", "Revoked"


class Collateral(NamedTuple):
    """One file's, by Intel's names; `fmspc` and `id` say which platforms it is about, still unverified."""

    tcb_info: bytes
    tcb_signature: bytes
    tcb_chain: tuple[x509.Certificate, ...]
    identity: bytes
    identity_signature: bytes
    identity_chain: tuple[x509.Certificate, ...]
    crls: tuple[x509.CertificateRevocationList, ...]
    fmspc: str
    id: str


class _File(msgspec.Struct, frozen=True):
    root_ca_crl: str
    pck_crl: str
    tcb_info_issuer_chain: str
    tcb_info: str
    tcb_info_signature: str
    qe_identity_issuer_chain: str
    qe_identity: str
    qe_identity_signature: str


class _Svn(msgspec.Struct, frozen=True):
    svn: int


class _Tcb(msgspec.Struct, frozen=True):
    sgxtcbcomponents: tuple[_Svn, ...]
    pcesvn: int
    tdxtcbcomponents: tuple[_Svn, ...] = ()


class _Level(msgspec.Struct, frozen=True, rename="camel"):
    tcb: _Tcb
    tcb_status: str


class _Isv(msgspec.Struct, frozen=True):
    isvsvn: int


class _IsvLevel(msgspec.Struct, frozen=True, rename="camel"):
    tcb: _Isv
    tcb_status: str


class _Module(msgspec.Struct, frozen=True, rename="camel"):
    id: str
    tcb_levels: tuple[_IsvLevel, ...]


class _TcbInfo(msgspec.Struct, frozen=True, rename="camel"):
    id: str
    version: int
    issue_date: Zoned
    next_update: Zoned
    fmspc: str
    pce_id: str
    tcb_levels: tuple[_Level, ...]
    tdx_module_identities: tuple[_Module, ...] = ()


class _Identity(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    id: str
    version: int
    issue_date: Zoned
    next_update: Zoned
    miscselect: str
    miscselect_mask: str
    attributes: str
    attributes_mask: str
    mrsigner: str
    isvprodid: int
    tcb_levels: tuple[_IsvLevel, ...]


def decode_collateral(data: bytes) -> Collateral:
    """The collateral behind a file. MalformedMessage, QuoteRefused for certificates and lists that cannot be read."""
    if len(data) > COLLATERAL_LIMIT:
        raise MalformedMessage(f"collateral has at most {COLLATERAL_LIMIT} bytes")
    try:
        file = msgspec.json.decode(data, type=_File)
        lists = tuple(bytes.fromhex(text) for text in (file.root_ca_crl, file.pck_crl))
        signatures = bytes.fromhex(file.tcb_info_signature), bytes.fromhex(file.qe_identity_signature)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MalformedMessage(f"that is no collateral: {error}") from None
    info = _decode(file.tcb_info.encode(), _TcbInfo, "TCB info")
    return Collateral(
        tcb_info=file.tcb_info.encode(),
        tcb_signature=signatures[0],
        tcb_chain=tuple(read_pem(file.tcb_info_issuer_chain.encode(), "the chain of the TCB info")),
        identity=file.qe_identity.encode(),
        identity_signature=signatures[1],
        identity_chain=tuple(read_pem(file.qe_identity_issuer_chain.encode(), "the chain of the QE identity")),
        crls=tuple(read_crl(one, "a revocation list of the collateral") for one in lists),
        fmspc=info.fmspc.lower(),
        id=info.id,
    )


def judge_platform(
    quote: Quote,
    pck: x509.Certificate,
    given: Sequence[Collateral],
    crls: Sequence[x509.CertificateRevocationList],
    roots: Sequence[x509.Certificate],
    at: datetime,
) -> tuple[str, ...]:
    """The status of each part of the platform, once each; nothing where no collateral is about it.

    QuoteRefused where collateral is forged or out of date, or says that this is no platform of Intel's.
    """
    platform = read_platform(pck)
    wanted = "SGX" if quote.kind == SGX else "TDX"
    about = [one for one in given if (one.id, one.fmspc) == (wanted, platform.fmspc)]
    if not about:
        return ()
    one = next((one for one in about if not _stale(one, at)), about[0])
    _check_signed(one.tcb_info, one.tcb_signature, one.tcb_chain, crls, roots, at, "TCB info")
    _check_signed(one.identity, one.identity_signature, one.identity_chain, crls, roots, at, "QE identity")
    info = _decode(one.tcb_info, _TcbInfo, "TCB info")
    identity = _decode(one.identity, _Identity, "QE identity")
    _check_dates(info, at, "TCB info")
    _check_dates(identity, at, "QE identity")
    if info.version != 3 or info.pce_id.lower() != platform.pce_id or identity.version != 2:
        raise QuoteRefused("the collateral is of a version that is not understood, or for another platform")
    found = [_judge_qe(quote, identity)]
    body = quote.body
    versions: list[bytes | None] = [None] if isinstance(body, Enclave) else [body.svn, body.svn_now or body.svn]
    for svn in versions:
        found.append(_judge_level(info, platform.components, platform.pce_svn, svn))
        if svn is not None and svn[1]:
            found.append(_judge_module(info, svn))
    return tuple(dict.fromkeys(found))


def _judge_level(info: _TcbInfo, components: bytes, pce_svn: int, svn: bytes | None) -> str:
    """The status of processor and firmware: of the first level that all its parts have reached."""
    skipped = 2 if svn is not None and svn[1] else 0  # the module's own levels are about the first two then
    for level in info.tcb_levels:
        needed = [one.svn for one in level.tcb.sgxtcbcomponents]
        if len(needed) != len(components):
            raise QuoteRefused("the TCB info has levels of another form")
        if pce_svn < level.tcb.pcesvn or any(have < want for have, want in zip(components, needed, strict=True)):
            continue
        if svn is not None:
            needed = [one.svn for one in level.tcb.tdxtcbcomponents]
            if len(needed) != len(svn):
                raise QuoteRefused("the TCB info has levels of another form")
            if any(have < want for have, want in zip(svn[skipped:], needed[skipped:], strict=True)):
                continue
        return level.tcb_status
    raise QuoteRefused("the platform's firmware is older than every level of its TCB info")


def _judge_module(info: _TcbInfo, svn: bytes) -> str:
    name = f"TDX_{svn[1]:02X}"
    module = next((one for one in info.tdx_module_identities if one.id.upper() == name), None)
    if module is None:
        raise QuoteRefused(f"the TCB info does not know the TDX module {name}")
    return _reached(module.tcb_levels, svn[0], f"the TDX module {name}")


def _judge_qe(quote: Quote, identity: _Identity) -> str:
    qe = quote.qe
    try:
        signer = bytes.fromhex(identity.mrsigner)
        masked = (
            (qe.misc_select, bytes.fromhex(identity.miscselect)[::-1], bytes.fromhex(identity.miscselect_mask)[::-1]),
            (qe.attributes, bytes.fromhex(identity.attributes), bytes.fromhex(identity.attributes_mask)),
        )
    except ValueError:
        raise QuoteRefused("the QE identity has a field that is not hexadecimal") from None
    if identity.id != ("QE" if quote.kind == SGX else "TD_QE") or (qe.signer, qe.product) != (
        signer,
        identity.isvprodid,
    ):
        raise QuoteRefused("the quoting enclave is not the one of the QE identity")
    for have, want, mask in masked:
        if len(want) != len(have) or len(mask) != len(have):
            raise QuoteRefused("the QE identity has a field of another length")
        if any((a ^ b) & m for a, b, m in zip(have, want, mask, strict=True)):
            raise QuoteRefused("the quoting enclave runs with other attributes than the QE identity allows")
    return _reached(identity.tcb_levels, qe.version, "the quoting enclave")


def _reached(levels: Sequence[_IsvLevel], version: int, what: str) -> str:
    for level in levels:
        if version >= level.tcb.isvsvn:
            return level.tcb_status
    raise QuoteRefused(f"{what} is older than every level that Intel lists")


def _check_signed(
    data: bytes,
    signature: bytes,
    chain: Sequence[x509.Certificate],
    crls: Sequence[x509.CertificateRevocationList],
    roots: Sequence[x509.Certificate],
    at: datetime,
    what: str,
) -> None:
    whole = check_chain(chain, roots, at)
    check_revoked(whole, crls, at)
    if SIGNER not in name_of(whole[0]):
        raise QuoteRefused(f"the {what} is signed by {name_of(whole[0])}, whose task that is not")
    with reading("the certificate of the collateral"):
        key = whole[0].public_key()
    check_signature(key, signature, data, f"the {what}")


def _stale(one: Collateral, at: datetime) -> bool:
    """Whether either part of it is not valid now."""
    parts = _decode(one.tcb_info, _TcbInfo, "TCB info"), _decode(one.identity, _Identity, "QE identity")
    return any(not part.issue_date <= at <= part.next_update for part in parts)


def _check_dates(one: _TcbInfo | _Identity, at: datetime, what: str) -> None:
    if not one.issue_date <= at <= one.next_update:
        raise QuoteRefused(f"the {what} is valid from {one.issue_date:%Y-%m-%d} to {one.next_update:%Y-%m-%d}")


def _decode(data: bytes, kind: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MalformedMessage(f"the {what} cannot be read: {error}") from None
