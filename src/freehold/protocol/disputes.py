"""What contracts/Disputes.vy takes: contradictions in a pending report, and answers to demands, as evidence in bytes.

A watcher knows what a report should have been (its own settlement) and what it is said to be: accounts, the stated
nodes of their tree, verdicts. The `find_*` functions compare the two and build the proof of the first contradiction, or
return None; `find_*_shown` do so with what an answer showed on chain; `answer_*` build what a demand asks for. The
contract checks every claim against the report, and refuses one that the report does not commit to, which costs the
bond. So a watcher compares the claim's roots with the report's first.

A verdict is placed by its path from the root down (bit i is the side at the i-th branching), because a report names no
count of its verdicts; so is a certificate in its observation.

Invariant: from the report that an honest settlement gives, no contradiction can be built; the contract refuses any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from eth_abi.abi import decode, encode

from freehold.protocol.batches import Batch
from freehold.protocol.bundle import Bundle
from freehold.protocol.epoch import Settlement, certified_subjects, make_context
from freehold.protocol.errors import NotFound
from freehold.protocol.merkle import ACCOUNTS, RowTree, SumNode, SumTree, depth_of
from freehold.protocol.messages import Manifest, Report
from freehold.protocol.service import Judge
from freehold.protocol.state import AccountState
from freehold.protocol.tables import Table
from freehold.protocol.typed import Message, fields_of, keccak
from freehold.protocol.units import ZERO_ADDRESS, Address, Hash
from freehold.protocol.verdicts import GOOD, Verdict

COUNT, SHRANK, NODE, LEAF, OPENING = 1, 2, 3, 4, 5  # kinds of proof
DEMAND_LEAF, DEMAND_VERDICT = 1, 2  # kinds of demand
OPENING_SERVICE, OPENING_KIND = "storage", "storage.proof"  # whose openings the contract knows

_LEAF = "(address,uint96,uint96,uint96)"
_SHOWN_LEAF = f"({_LEAF},bytes)"
_SHRUNK = f"(uint64,{_LEAF},bytes,bool,{_LEAF},bytes)"
_SIGHTING = (
    "(bytes32[],uint32,bytes32,uint96,bytes32,bytes32,address,uint64,bytes32[],uint64,uint32,bytes32,"
    "address,uint32,bytes32,uint32,bytes32[])"
)


class Contradiction(NamedTuple):
    """A proof against a report: its kind and its evidence, as `reveal` takes them."""

    kind: int
    evidence: bytes


class Answer(NamedTuple):
    """What `answer` takes: the leaf or row, and what backs a good verdict."""

    shown: bytes
    backing: bytes = b""


def commitment_of(challenger: Address, contradiction: Contradiction, salt: Hash) -> Hash:
    """What a challenger commits to before it reveals."""
    words = [bytes(12) + challenger, contradiction.kind.to_bytes(32), keccak(contradiction.evidence), salt]
    return keccak(b"".join(words))


# --- Accounts


def find_fallen_count(before: Report, report: Report) -> Contradiction | None:
    """COUNT: the report has fewer accounts than the one before."""
    return Contradiction(COUNT, b"") if report.accounts < before.accounts else None


def find_shrunk(before: Sequence[AccountState], claimed: Sequence[AccountState | None]) -> Contradiction | None:
    """SHRANK: the first position that holds another account than before, or one of whose totals fell.

    `before` are the accounts after the epoch before, `claimed` those that the report is said to commit to; None for a
    place that is empty.
    """
    for old, new in zip(before, claimed, strict=False):
        if new is None or old.account != new.account or _has_fallen(old.leaf().sums, new.leaf().sums):
            old_tree, new_tree = _tree(before), _tree(claimed)
            new_leaf = _leaf(new) if new else (ZERO_ADDRESS, 0, 0, 0)
            parts = (_leaf(old), _siblings(old_tree.proof(old.index)), new is None, new_leaf)
            values = (old.index, *parts, _siblings(new_tree.proof(old.index)))
            return Contradiction(SHRANK, encode([_SHRUNK], [values]))
    return None


def _has_fallen(old: Sequence[int], new: Sequence[int]) -> bool:
    return any(now < then for now, then in zip(new, old, strict=True))


def _tree(accounts: Sequence[AccountState | None]) -> SumTree:
    return SumTree(ACCOUNTS, [row.leaf() if row else ACCOUNTS.empty for row in accounts])


def find_wrong_sum(claimed: Sequence[AccountState], levels: Sequence[Sequence[SumNode]]) -> Contradiction | None:
    """NODE or LEAF: the topmost node whose stated sums are not those of what it is made of.

    `levels` are the nodes as stated, bottom up, each level whole; the last is the root with the report's totals.
    """
    for height in range(len(levels) - 1, -1, -1):
        for position, stated in enumerate(levels[height]):
            proof = _siblings([levels[h][(position >> (h - height)) ^ 1] for h in range(height, len(levels) - 1)])
            if height > 0:
                left, right = levels[height - 1][2 * position], levels[height - 1][2 * position + 1]
                if stated.sums != tuple(a + b for a, b in zip(left.sums, right.sums, strict=True)):
                    children = [ACCOUNTS.pack(left), ACCOUNTS.pack(right)]
                    types = "(uint96,uint96,uint96,bytes,bytes,uint64,bytes)"
                    return Contradiction(NODE, encode([types], [(*stated.sums, *children, position, proof)]))
            elif position < len(claimed):
                row = claimed[position]
                if stated.sums != row.leaf().sums or row.index != position:
                    types = f"(uint96,uint96,uint96,uint64,{_LEAF},uint64,bytes)"
                    return Contradiction(
                        LEAF, encode([types], [(*stated.sums, row.index, _leaf(row), position, proof)])
                    )
    return None


def answer_leaf(accounts: Sequence[AccountState], position: int) -> Answer:
    """The leaf at a position of the accounts tree; beyond the last account, the empty one."""
    if position >> depth_of(len(accounts)):
        raise NotFound(f"the accounts tree has no position {position}")
    proof = _siblings(_tree([*accounts, *[None] * (position + 1 - len(accounts))]).proof(position))
    leaf = _leaf(accounts[position]) if position < len(accounts) else (ZERO_ADDRESS, 0, 0, 0)
    return Answer(encode([_SHOWN_LEAF], [(leaf, proof)]))


def find_shrunk_shown(
    before: Sequence[AccountState], report: Report, position: int, shown: bytes
) -> Contradiction | None:
    """SHRANK: the leaf that `report` was shown to have at `position` against the accounts `before` it."""
    if position >= min(len(before), report.accounts):
        return None
    account, *sums, proof = decode(["address", "uint96", "uint96", "uint96", "bytes"], _tail(shown), strict=False)
    old = before[position]
    if Address(account) == old.account and not _has_fallen(old.leaf().sums, sums):
        return None
    values = (position, _leaf(old), _siblings(_tree(before).proof(position)), False, (account, *sums), proof)
    return Contradiction(SHRANK, encode([_SHRUNK], [values]))


def _leaf(row: AccountState) -> tuple[Address, int, int, int]:
    return row.account, row.tokens_earned, row.credits_earned, row.credits_spent


def _siblings(nodes: Sequence[SumNode]) -> bytes:
    return b"".join(ACCOUNTS.pack(node) for node in nodes)


# --- Verdicts and openings


def path_of(count: int, index: int) -> int:
    """The path to row `index` of `count`: its sides from the root down, the first in bit 0."""
    sides = []
    while count > 1:
        if index ^ 1 < count:
            sides.append(index & 1)
        index, count = index // 2, (count + 1) // 2
    return sum(side << depth for depth, side in enumerate(reversed(sides)))


def index_at(count: int, path: int) -> int:
    """The row that a path leads to, of `count` > 0: every path ends at one."""
    widths = [count]
    while widths[-1] > 1:
        widths.append((widths[-1] + 1) // 2)
    index = 0
    for width in reversed(widths[:-1]):
        index *= 2
        if index + 1 < width:
            index += path & 1
            path >>= 1
    return index


def find_wrong_verdict(
    claimed: Table[Verdict], settlement: Settlement, bundle: Bundle, judges: Mapping[str, Judge]
) -> Contradiction | None:
    """OPENING: a claimed verdict that calls an opening anything but good, which a certified proof answers well.

    `settlement` is what the bundle's evidence comes to.
    """
    good = _good_openings(settlement)
    for index, verdict in enumerate(claimed):
        truth = good.get(verdict.subject)
        if truth is not None and _same_opening(verdict, truth) and verdict.reason != GOOD:
            backing = _find_backing(truth, bundle, judges)
            row = (_abi_value(verdict), path_of(len(claimed), index), _row_proof(claimed, index), backing.value)
            types = f"({_abi_type(Verdict)},uint64,bytes32[],{backing.type})"
            return Contradiction(OPENING, encode([types], [row]))
    return None


def find_wrong_verdict_shown(
    shown: bytes, path: int, settlement: Settlement, bundle: Bundle, judges: Mapping[str, Judge]
) -> Contradiction | None:
    """OPENING: the verdict that an answer showed at `path`, where it is wrong in the way of `find_wrong_verdict`.

    Its texts stay bytes, and padding is not looked at: whoever answered need not have written it as we would.
    """
    verdict_type = _abi_type(Verdict).replace("string", "bytes")
    row = _tail(shown)
    values = decode(verdict_type[1:-1].split(","), _tail(row), strict=False)
    _, siblings = decode(["bytes32", "bytes32[]"], row, strict=False)
    _, service, kind, subject, _, node, reason, _ = values
    truth = _good_openings(settlement).get(subject)
    if truth is None or (service, kind) != (truth.service.encode(), truth.kind.encode()):
        return None
    if Address(node) != truth.node or reason == GOOD.encode():
        return None
    backing = _find_backing(truth, bundle, judges)
    types = f"({verdict_type},uint64,bytes32[],{backing.type})"
    return Contradiction(OPENING, encode([types], [(values, path, siblings, backing.value)]))


def _tail(data: bytes) -> bytes:
    """The dynamic value whose offset is the first word of the ABI's data: eth_abi is lenient at the top level alone."""
    return data[int.from_bytes(data[:32]) :]


def _same_opening(verdict: Verdict, truth: Verdict) -> bool:
    return (verdict.service, verdict.kind, verdict.node) == (truth.service, truth.kind, truth.node)


def _good_openings(settlement: Settlement) -> dict[Hash, Verdict]:
    return {v.subject: v for v in settlement.verdicts if _is_good_opening(v)}


def answer_verdict(settlement: Settlement, bundle: Bundle, path: int, judges: Mapping[str, Judge]) -> Answer:
    """The verdict at the end of a path and, where it calls an opening good, the proof behind it."""
    verdicts = settlement.verdicts
    index = index_at(len(verdicts), path)
    verdict = verdicts.rows[index]
    shown = encode([f"({_abi_type(Verdict)},bytes32[])"], [(_abi_value(verdict), _row_proof(verdicts, index))])
    if not _is_good_opening(verdict):
        return Answer(shown)
    backing = _find_backing(verdict, bundle, judges)
    return Answer(shown, encode([backing.type], [backing.value]))


def _is_good_opening(verdict: Verdict) -> bool:
    return (verdict.service, verdict.kind, verdict.reason) == (OPENING_SERVICE, OPENING_KIND, GOOD)


class _Encodable(NamedTuple):
    """A value of the ABI and its type."""

    type: str
    value: tuple[Any, ...]


def _find_backing(verdict: Verdict, bundle: Bundle, judges: Mapping[str, Judge]) -> _Encodable:
    """The opening that a verdict is on, a good proof of it, and where the manifest has that proof."""
    judge = judges[OPENING_SERVICE]
    context = make_context(bundle.state, bundle.anchor, judge, bundle.domain, bundle.state.leases)
    opening = next((o for o in judge.obligations(context) if o.row_hash() == verdict.subject), None)
    kinds = judge.kinds.items()
    for subject in certified_subjects(bundle.manifest):
        batch = bundle.batches[subject]
        if opening is None or batch.header.kind != OPENING_KIND or batch.header.sender != verdict.node:
            continue
        for index, row in enumerate(batch.table):
            if row.draw != opening.draw or row.epoch != opening.epoch:
                continue
            rows = {kind: Table.of(rows_of, [row] if kind == OPENING_KIND else []) for kind, rows_of in kinds}
            verdicts = judge.judge(Table.of(judge.obligation_kind, [opening]), rows, context)
            if any(v.subject == verdict.subject and v.reason == GOOD for v in verdicts):
                sighting = _sight(bundle.manifest, batch, index)
                types = f"({_abi_type(type(opening))},{_abi_type(type(row))},{_SIGHTING})"
                return _Encodable(types, (_abi_value(opening), _abi_value(row), sighting))
    raise NotFound(f"no certified proof answers {verdict.subject}")


def _sight(manifest: Manifest, batch: Batch, index: int) -> tuple[Any, ...]:
    """Where a row stands in a manifest: in the first observation that has its batch's certificate."""
    at, number = next(
        (at, number)
        for at, observation in enumerate(manifest.observations)
        for number, certificate in enumerate(observation.certificates)
        if certificate.subject == batch.subject
    )
    observation = manifest.observations[at]
    certificate = observation.certificates[number]
    certificates = RowTree([row.struct_hash() for row in observation.certificates])
    return (
        [row.struct_hash() for row in manifest.observations],
        at,
        observation.anchor,
        observation.price,
        observation.commitment,
        observation.reveal,
        observation.member,
        path_of(len(certificates), number),
        certificates.proof(number),
        certificate.epoch,
        certificate.signers,
        keccak(certificate.signatures),
        batch.header.sender,
        batch.header.count,
        batch.header.root,
        index,
        _row_proof(batch.table, index),
    )


def _row_proof(table: Table[Any], index: int) -> list[Hash]:
    return RowTree(table.row_hashes).proof(index)


def _abi_type(kind: type[Message]) -> str:
    """A message's fields, signatures left out, as a tuple of the ABI."""
    signed = (f for f in fields_of(kind) if f.solidity != "signature")
    return f"({','.join(_abi_type(f.item) if f.item else f.solidity for f in signed)})"


def _abi_value(message: Message) -> tuple[Any, ...]:
    signed = (f for f in fields_of(type(message)) if f.solidity != "signature")
    values = ((f, getattr(message, f.name)) for f in signed)
    return tuple(_abi_value(value) if f.item else value for f, value in values)
