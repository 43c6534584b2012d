"""Bundles: everything that an epoch's report follows from, in one file, and the replay that shows that it does.

A bundle is a ZIP archive (stored, fixed dates: its bytes are canonical), so that anybody can look inside:

    index.json             SHA-256 of every other file
    network.json           domain
    anchor.json            chain data at the anchor: members, parameters, the block behind the beacon
    previous.json          the report before (absent for epoch 1)
    state/<table>.table    the state after the epoch before
    manifest.json          Q observations
    batches/<subject>.json, .table     certified evidence: header, rows
    report.json            what was signed, by whom, and the signatures

Invariant: any changed byte makes `replay` raise ReplayMismatch, and it names the first thing that differs.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from freehold.protocol.batches import Batch, check_rows, kinds_of
from freehold.protocol.certificates import quorum
from freehold.protocol.epoch import Settlement, certified_subjects, check_manifest, settle
from freehold.protocol.errors import FreeholdError, MalformedMessage, ReplayMismatch
from freehold.protocol.keys import check_signed_by, recover
from freehold.protocol.messages import BatchHeader, Manifest, Report
from freehold.protocol.service import Judge
from freehold.protocol.state import TABLES, AnchorData, State
from freehold.protocol.tables import Table
from freehold.protocol.typed import Domain, Message, canonical_json, fields_of, parse_json
from freehold.protocol.units import ZERO_HASH, Address, Hash, Signature

VERSION = 2
DATE = (1980, 1, 1, 0, 0, 0)


class Bundle(NamedTuple):
    """An epoch's bundle, decoded. `signers` is the members' bitmap of `signatures` (65 bytes each, ascending)."""

    domain: Domain
    anchor: AnchorData
    previous: Report | None
    state: State
    manifest: Manifest
    batches: Mapping[Hash, Batch]
    report: Report
    signers: int
    signatures: bytes


def encode_bundle(bundle: Bundle) -> bytes:
    """The bundle as one file."""
    files = {
        "network.json": canonical_json(
            {
                "version": VERSION,
                "chain_id": bundle.domain.chain_id,
                "contract": str(bundle.domain.contract),
            }
        ),
        "anchor.json": bundle.anchor.to_bytes(),
        "manifest.json": bundle.manifest.to_bytes(),
        "report.json": canonical_json(
            {
                "report": bundle.report.to_json(),
                "signers": bundle.signers,
                "signatures": f"0x{bundle.signatures.hex()}",
            }
        ),
    }
    if bundle.previous is not None:
        files["previous.json"] = bundle.previous.to_bytes()
    for name, table in bundle.state.tables().items():
        files[f"state/{name}.table"] = table.encode()
    for subject in certified_subjects(bundle.manifest):
        batch = bundle.batches[subject]
        files[f"batches/{subject}.json"] = batch.header.to_bytes()
        files[f"batches/{subject}.table"] = batch.table.encode()
    index = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    return _pack({"index.json": canonical_json(index)} | files)


def _pack(files: Mapping[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, DATE)
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, files[name])
    return sink.getvalue()


def _unpack(data: bytes) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            files = {}
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise ReplayMismatch(f"{entry.filename}: compressed", first=entry.filename)
                try:
                    files[entry.filename] = archive.read(entry)
                except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
                    raise ReplayMismatch(f"{entry.filename}: {error}", first=entry.filename) from None
    except (zipfile.BadZipFile, UnicodeDecodeError, ValueError, OSError, NotImplementedError) as error:
        raise ReplayMismatch(f"the bundle's container is damaged: {error}", first="container") from None
    canonical = _pack(files)
    if canonical != data:
        at = next((i for i, (a, b) in enumerate(zip(canonical, data, strict=False)) if a != b), len(canonical))
        raise ReplayMismatch(f"the bundle's container differs from its canonical form at byte {at}", first="container")
    index = _index(files)
    for name in sorted(set(index) | (set(files) - {"index.json"})):
        if name not in files or name not in index:
            raise ReplayMismatch(f"{name}: not in both the index and the bundle", first=name)
        if hashlib.sha256(files[name]).hexdigest() != index[name]:
            raise ReplayMismatch(f"{name}: its SHA-256 is not the one in the index", first=name)
    return files


def _index(files: Mapping[str, bytes]) -> dict[str, Any]:
    try:
        index = parse_json(files["index.json"])
    except (KeyError, MalformedMessage) as error:
        raise ReplayMismatch(f"index.json: {error}", first="index.json") from None
    if not isinstance(index, dict) or canonical_json(index) != files["index.json"]:
        raise ReplayMismatch("index.json: not canonical", first="index.json")
    return index


def decode_bundle(data: bytes, judges: Mapping[str, Judge]) -> Bundle:
    """The bundle behind `encode_bundle`'s form; ReplayMismatch names the first file that is not as it must be."""
    files = _unpack(data)
    name = "network.json"
    try:
        network = parse_json(files[name])
        domain = Domain(int(network["chain_id"]), Address(network["contract"]))
        name = "report.json"
        signed = parse_json(files[name])
        report = Report.from_json(signed["report"])
        signers, signatures = int(signed["signers"]), bytes.fromhex(signed["signatures"].removeprefix("0x"))
        name = "anchor.json"
        anchor = AnchorData.from_bytes(files[name])
        name = "previous.json"
        previous = Report.from_bytes(files[name]) if name in files else None
        name = "manifest.json"
        manifest = Manifest.from_bytes(files[name])
        kinds = dict(TABLES) | {f"service.{judge.name}": judge.state_kind for judge in judges.values()}
        tables = {}
        for name in sorted(n for n in files if n.startswith("state/")):
            table = name.removeprefix("state/").removesuffix(".table")
            tables[table] = Table.decode(kinds[table], files[name])
        state = State.from_tables(tables)
        batches, taken = {}, kinds_of(judges)
        for name in sorted(n for n in files if n.startswith("batches/") and n.endswith(".table")):
            header = BatchHeader.from_bytes(files[name.removesuffix(".table") + ".json"])
            batch = Batch(header, Table.decode(taken.types[header.kind], files[name]))
            check_rows(header, batch.table, taken)
            if name != f"batches/{batch.subject}.table":
                raise MalformedMessage("not the batch that its name says")
            check_signed_by(header, header.sender_signature, header.sender, domain)
            batches[batch.subject] = batch
    except (FreeholdError, KeyError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise ReplayMismatch(f"{name}: {error or type(error).__name__}", first=name) from None
    return Bundle(domain, anchor, previous, state, manifest, batches, report, signers, signatures)


def replay(data: bytes, judges: Mapping[str, Judge]) -> Settlement:
    """Recompute an epoch from its bundle alone.

    Returns the settlement whose report equals the bundle's, which Q members signed. Otherwise ReplayMismatch says
    what differs first. To know that it is *the* epoch, compare `report.struct_hash()` with the chain.
    """
    return replay_bundle(decode_bundle(data, judges), judges)


def replay_bundle(bundle: Bundle, judges: Mapping[str, Judge]) -> Settlement:
    """As `replay`, of a bundle that is decoded already."""
    check_start(bundle)
    try:
        check_manifest(bundle.manifest, bundle.anchor, bundle.domain)
        settlement = settle(bundle.state, bundle.manifest, bundle.batches, bundle.anchor, judges, bundle.domain)
    except ReplayMismatch:
        raise
    except FreeholdError as error:
        raise ReplayMismatch(f"manifest.json: {error.message}", first="manifest.json") from None
    first = first_difference(settlement.report, bundle.report)
    if first:
        raise ReplayMismatch(
            f"report.{first}: recomputed {getattr(settlement.report, first)}, reported {getattr(bundle.report, first)}",
            first=f"report.{first}",
        )
    check_report_signatures(bundle.report, bundle.signers, bundle.signatures, bundle.anchor.members, bundle.domain)
    return settlement


def check_start(bundle: Bundle) -> None:
    """ReplayMismatch unless the bundle's state is the one that the report before commits to."""
    anchor = bundle.anchor
    if bundle.previous is None:
        expected = anchor.parameters.hash()
        tables = bundle.state.tables()
        filled = tables.keys() != set(TABLES) or any(len(table) for name, table in tables.items() if name != "epoch")
        if anchor.epoch != 1 or filled or bundle.state.epoch.reveals != ZERO_HASH:
            raise ReplayMismatch("previous.json: only epoch 1 starts from the empty state", first="previous.json")
    else:
        expected = bundle.previous.struct_hash()
        if bundle.previous.state_root != bundle.state.root():
            raise ReplayMismatch("state: not the one that the report before commits to", first="state")
    if anchor.previous != expected:
        raise ReplayMismatch("anchor.json: names another report before", first="anchor.json")


def first_difference(ours: Message, theirs: Message) -> str | None:
    """The first field in which two messages of one type differ."""
    names = (field.name for field in fields_of(type(ours)))
    return next((name for name in names if getattr(ours, name) != getattr(theirs, name)), None)


def check_report_signatures(
    report: Report, signers: int, signatures: bytes, members: Sequence[Address], domain: Domain
) -> None:
    """ReplayMismatch unless at least Q members signed the report, in the members' order."""
    chosen = [member for i, member in enumerate(members) if signers >> i & 1]
    if len(chosen) < quorum(len(members)) or len(signatures) != 65 * len(chosen) or signers >> len(members):
        raise ReplayMismatch("report.json: fewer than a quorum of signatures", first="report.json")
    digest = report.digest(domain)
    for i, member in enumerate(chosen):
        try:
            signer = recover(digest, Signature(signatures[65 * i : 65 * i + 65]))
        except FreeholdError as error:
            raise ReplayMismatch(f"report.json: signature {i}: {error.message}", first="report.json") from None
        if signer != member:
            raise ReplayMismatch(f"report.json: signature {i} is not {member}'s", first="report.json")
