# pragma version 0.4.3
# SPDX-License-Identifier: AGPL-3.0-only
"""
@title What an epoch's evidence says of storage's openings
@license GNU Affero General Public License v3.0 only
@notice Shows that a verdict stands in a report, that a storage proof stands in the report's manifest, and whether that
        proof is a good answer to an opening. The rules are those of `judge_proof` in services/storage/proof.py, and the
        hashes those of the messages' EIP-712 types: tests hold the two side by side. Keeps nothing, and trusts nobody.

        A report names no count of its verdicts, nor an observation one of its certificates, so both are placed by their
        path: bit i of the path says on which side the row lies at the i-th branching below the root. Leaves and nodes are
        hashed under different prefixes: every path ends at exactly one row of an honest tree, and no other row can be
        shown there.

        Evidence is the ABI's encoding of one tuple:
            contradiction   (Verdict, uint64 path, bytes32[] siblings, Backing)
            row             (Verdict, bytes32[] siblings)
            backing         (Backing)
        Limits, above what an honest network reaches: 40 levels of lists and shards, 32 of rows and certificates, 31
        observations; a verdict's texts have at most 64 bytes.
"""

from ..modules import reports
from ..modules import rows

MAX_OBSERVATIONS: constant(uint256) = 31
MAX_EVIDENCE: constant(uint256) = 16_384
MAX_ROW: constant(uint256) = 4_096
MAX_LEVELS: constant(uint256) = 40
LIST_NODE: constant(uint256) = 31 + 8
LEAF_BYTES: constant(uint256) = 4_096


struct Verdict:
    epoch: uint64
    service: String[64]
    kind: String[64]
    subject: bytes32
    lease: bytes32
    node: address
    reason: String[64]
    measure: uint64


struct Opening:
    epoch: uint64
    node: address
    draw: uint32
    lease: bytes32
    root: bytes32
    count: uint64
    size: uint64
    offset: uint64


struct ShardEntry:
    record: bytes32
    index: uint32
    root: bytes32
    size: uint64


struct StorageProof:
    epoch: uint64
    node: address
    draw: uint32
    lease: bytes32
    position: uint64
    entry: ShardEntry
    list_path: Bytes[LIST_NODE * MAX_LEVELS]
    leaf: Bytes[LEAF_BYTES]
    shard_path: Bytes[32 * MAX_LEVELS]


# How a row is seen in a manifest: row `index` of a batch whose header is certified by the certificate at the path
# `certificate` of observation `observation`. Of the other observations there are hashes.
struct Sighting:
    observations: DynArray[bytes32, MAX_OBSERVATIONS]
    observation: uint32
    anchor: bytes32
    price: uint96
    commitment: bytes32
    reveal: bytes32
    member: address
    certificate: uint64
    certificate_siblings: DynArray[bytes32, rows.MAX_DEPTH]
    certificate_epoch: uint64
    signers: uint32
    signatures_hash: bytes32
    sender: address
    count: uint32
    root: bytes32
    index: uint32
    siblings: DynArray[bytes32, rows.MAX_DEPTH]


struct Backing:
    opening: Opening
    proof: StorageProof
    sighting: Sighting


struct Contradiction:
    verdict: Verdict
    path: uint64
    siblings: DynArray[bytes32, rows.MAX_DEPTH]
    backing: Backing


struct Row:
    verdict: Verdict
    siblings: DynArray[bytes32, rows.MAX_DEPTH]


_VERDICT_TYPE: constant(bytes32) = keccak256(
    "Verdict(uint64 epoch,string service,string kind,bytes32 subject,bytes32 lease,address node,string reason,uint64 measure)"
)
_OPENING_TYPE: constant(bytes32) = keccak256(
    "Opening(uint64 epoch,address node,uint32 draw,bytes32 lease,bytes32 root,uint64 count,uint64 size,uint64 offset)"
)
_ENTRY_TYPE: constant(bytes32) = keccak256("ShardEntry(bytes32 record,uint32 index,bytes32 root,uint64 size)")
_PROOF_TYPE: constant(bytes32) = keccak256(
    "StorageProof(uint64 epoch,address node,uint32 draw,bytes32 lease,uint64 position,ShardEntry entry,bytes list_path,bytes leaf,bytes shard_path)ShardEntry(bytes32 record,uint32 index,bytes32 root,uint64 size)"
)
_HEADER_TYPE: constant(bytes32) = keccak256("BatchHeader(address sender,string kind,uint32 count,bytes32 root)")
_CERTIFICATE_TYPE: constant(bytes32) = keccak256(
    "Certificate(uint64 epoch,bytes32 subject,uint32 signers,bytes signatures)"
)
_OBSERVATION_TYPE: constant(bytes32) = keccak256(
    "Observation(uint64 epoch,bytes32 anchor,uint96 price,bytes32 commitment,bytes32 reveal,bytes32 certificates,address member)"
)
_MANIFEST_TYPE: constant(bytes32) = keccak256(
    "Manifest(uint64 epoch,uint32 attempt,uint32 view,Observation[] observations)Observation(uint64 epoch,bytes32 anchor,uint96 price,bytes32 commitment,bytes32 reveal,bytes32 certificates,address member)"
)
_STORAGE: constant(bytes32) = keccak256("storage")
_PROOF_KIND: constant(bytes32) = keccak256("storage.proof")
_GOOD: constant(bytes32) = keccak256("good")


@external
@view
def contradiction(report: reports.Report, evidence: Bytes[MAX_EVIDENCE]) -> address:
    """
    @notice Reverts unless a verdict of this report calls an opening anything but good, while a good answer to it stands
            in the report's manifest.
    @return The node that is wronged.
    """
    shown: Contradiction = abi_decode(evidence, Contradiction)
    self._check_verdict(report, shown.verdict, shown.path, shown.siblings)
    assert self._is_of_opening(shown.verdict), "opening: another verdict"
    assert keccak256(shown.verdict.reason) != _GOOD, "opening: verdict is good"
    self._check_backing(report, shown.verdict, shown.backing)
    return shown.verdict.node


@external
@view
def is_shown(report: reports.Report, path: uint64, shown: Bytes[MAX_ROW], backing: Bytes[MAX_EVIDENCE]) -> bool:
    """
    @notice Reverts unless this verdict stands at the end of `path`, and what it calls a good opening is one. Only for such a
            verdict `backing` is read.
    """
    row: Row = abi_decode(shown, Row)
    self._check_verdict(report, row.verdict, path, row.siblings)
    if self._is_of_opening(row.verdict) and keccak256(row.verdict.reason) == _GOOD:
        self._check_backing(report, row.verdict, abi_decode(backing, Backing))
    return True


@external
@view
def is_good(opening: Opening, proof: StorageProof) -> bool:
    """
    @notice Whether this is a good answer to this opening: `judge_proof`.
    """
    return self._is_good(opening, proof)


@internal
@view
def _check_verdict(
    report: reports.Report, verdict: Verdict, path: uint64, siblings: DynArray[bytes32, rows.MAX_DEPTH]
):
    verdict_hash: bytes32 = keccak256(
        abi_encode(
            _VERDICT_TYPE,
            verdict.epoch,
            keccak256(verdict.service),
            keccak256(verdict.kind),
            verdict.subject,
            verdict.lease,
            verdict.node,
            keccak256(verdict.reason),
            verdict.measure,
        )
    )
    root: bytes32 = self._root_over(keccak256(verdict_hash), path, siblings)
    assert root == report.verdicts_root, "opening: verdict not in report"


@internal
@pure
def _root_over(row_hash: bytes32, path: uint64, siblings: DynArray[bytes32, rows.MAX_DEPTH]) -> bytes32:
    """
    The root of the row tree in which this row stands at the end of `path`.
    """
    node: bytes32 = keccak256(concat(0x00, row_hash))
    depth: uint256 = len(siblings)
    for level: uint256 in range(depth, bound=rows.MAX_DEPTH):
        if (convert(path, uint256) >> (depth - 1 - level)) & 1 == 0:
            node = keccak256(concat(0x01, node, siblings[level]))
        else:
            node = keccak256(concat(0x01, siblings[level], node))
    return node


@internal
@pure
def _is_of_opening(verdict: Verdict) -> bool:
    return keccak256(verdict.service) == _STORAGE and keccak256(verdict.kind) == _PROOF_KIND


@internal
@view
def _check_backing(report: reports.Report, verdict: Verdict, backing: Backing):
    """
    The verdict is on this opening, and this good answer to it stands in the report's manifest.
    """
    opening: Opening = backing.opening
    opening_hash: bytes32 = keccak256(
        abi_encode(
            _OPENING_TYPE,
            opening.epoch,
            opening.node,
            opening.draw,
            opening.lease,
            opening.root,
            opening.count,
            opening.size,
            opening.offset,
        )
    )
    assert keccak256(opening_hash) == verdict.subject, "opening: another opening"
    assert opening.epoch == report.epoch and opening.node == verdict.node, "opening: another epoch or node"
    assert backing.proof.epoch == opening.epoch, "opening: another epoch"
    assert backing.proof.node == opening.node and backing.proof.draw == opening.draw, "opening: another draw"
    assert self._is_good(opening, backing.proof), "opening: wrong proof"
    # Storage's proofs are counted only from the node that they name.
    assert backing.sighting.sender == opening.node, "opening: wrong sender"
    self._check_sighting(report, backing.sighting, keccak256(self._proof_hash(backing.proof)))


@internal
@view
def _check_sighting(report: reports.Report, seen: Sighting, row_hash: bytes32):
    batch_root: bytes32 = rows._row_root(seen.count, seen.index, row_hash, seen.siblings)
    assert batch_root == seen.root, "opening: row not in batch"
    subject: bytes32 = keccak256(abi_encode(_HEADER_TYPE, seen.sender, _PROOF_KIND, seen.count, seen.root))
    certificate: bytes32 = keccak256(
        abi_encode(_CERTIFICATE_TYPE, seen.certificate_epoch, subject, seen.signers, seen.signatures_hash)
    )
    observation: bytes32 = keccak256(
        abi_encode(
            _OBSERVATION_TYPE,
            report.epoch,
            seen.anchor,
            seen.price,
            seen.commitment,
            seen.reveal,
            self._root_over(certificate, seen.certificate, seen.certificate_siblings),
            seen.member,
        )
    )
    assert seen.observations[seen.observation] == observation, "opening: not observed"
    manifest: bytes32 = keccak256(
        abi_encode(
            _MANIFEST_TYPE, report.epoch, report.attempt, report.view_, self._hash_many(seen.observations)
        )
    )
    assert manifest == report.manifest, "opening: another manifest"


@internal
@pure
def _hash_many(hashes: DynArray[bytes32, MAX_OBSERVATIONS]) -> bytes32:
    """
    EIP-712's hash of an array of structs: keccak256 over their hashes side by side. The ABI's form has two words before
    them: its offset and its length.
    """
    encoded: Bytes[64 + 32 * MAX_OBSERVATIONS] = abi_encode(hashes)
    return keccak256(slice(encoded, 64, 32 * len(hashes)))


@internal
@pure
def _proof_hash(proof: StorageProof) -> bytes32:
    return keccak256(
        abi_encode(
            _PROOF_TYPE,
            proof.epoch,
            proof.node,
            proof.draw,
            proof.lease,
            proof.position,
            self._entry_hash(proof.entry),
            keccak256(proof.list_path),
            keccak256(proof.leaf),
            keccak256(proof.shard_path),
        )
    )


@internal
@pure
def _entry_hash(entry: ShardEntry) -> bytes32:
    return keccak256(abi_encode(_ENTRY_TYPE, entry.record, entry.index, entry.root, entry.size))


@internal
@view
def _is_good(opening: Opening, proof: StorageProof) -> bool:
    if proof.lease != opening.lease:
        return False
    is_listed: bool = False
    start: uint256 = 0
    is_listed, start = self._place(opening, proof)
    if not is_listed:
        return False
    offset: uint256 = convert(opening.offset, uint256)
    size: uint256 = convert(proof.entry.size, uint256)
    if offset < start or offset - start >= size:
        return False
    index: uint256 = (offset - start) // LEAF_BYTES
    if len(proof.leaf) != min(LEAF_BYTES, size - index * LEAF_BYTES):
        return False
    return self._is_in_shard(proof.entry.root, (size + LEAF_BYTES - 1) // LEAF_BYTES, index, proof.leaf, proof.shard_path)


@internal
@pure
def _place(opening: Opening, proof: StorageProof) -> (bool, uint256):
    """
    Whether the entry stands at its position in the list that the opening names, and the bytes before it. The list's tree is
    positional, and carries the sizes.
    """
    position: uint256 = convert(proof.position, uint256)
    if proof.position >= opening.count or len(proof.list_path) % LIST_NODE != 0:
        return False, 0
    depth: uint256 = len(proof.list_path) // LIST_NODE
    # depth is ceil(log2(count)).
    count: uint256 = convert(opening.count, uint256)
    if (count - 1) >> depth != 0 or (depth > 0 and (count - 1) >> (depth - 1) == 0):
        return False, 0
    total: uint256 = convert(proof.entry.size, uint256)
    before: uint256 = 0
    node: bytes32 = keccak256(concat(0x00, self._entry_hash(proof.entry), convert(proof.entry.size, bytes8)))
    for level: uint256 in range(depth, bound=MAX_LEVELS):
        sibling: Bytes[LIST_NODE] = slice(proof.list_path, level * LIST_NODE, LIST_NODE)
        beside: uint256 = extract32(sibling, 7, output_type=uint256) & convert(max_value(uint64), uint256)
        own: Bytes[LIST_NODE] = concat(
            convert(convert(convert(node, uint256) >> 8, uint248), bytes31), convert(convert(total, uint64), bytes8)
        )
        if (position >> level) & 1 == 0:
            node = keccak256(concat(0x01, own, sibling))
        else:
            node = keccak256(concat(0x01, sibling, own))
            before += beside
        total += beside
        if total > convert(max_value(uint64), uint256):
            return False, 0
    is_root: bool = convert(node, uint256) >> 8 == convert(opening.root, uint256) >> 8
    return is_root and total == convert(opening.size, uint256), before


@internal
@view
def _is_in_shard(
    root: bytes32,
    count: uint256,
    index: uint256,
    leaf: Bytes[LEAF_BYTES],
    path: Bytes[32 * MAX_LEVELS],
) -> bool:
    """
    Whether `leaf` is leaf `index` of `count` in a shard's tree: SHA-256 in the shape of RFC 6962.
    """
    if len(path) % 32 != 0:
        return False
    node: bytes32 = sha256(concat(0x00, leaf))
    used: uint256 = 0
    at: uint256 = index
    width: uint256 = count
    for i: uint256 in range(64):
        if width == 1:
            break
        if at ^ 1 < width:
            if used == len(path):
                return False
            sibling: bytes32 = extract32(path, used)
            node = sha256(concat(0x01, node, sibling)) if at & 1 == 0 else sha256(concat(0x01, sibling, node))
            used += 32
        at = at >> 1
        width = (width + 1) >> 1
    return used == len(path) and node == root
