"""Storage's judge: obligations, verdicts, and what each lease may be paid for.

An epoch is proven for a lease when every opening drawn from it verifies; a lease from which none was drawn is
proven if all of its node's openings verify. When nodes with more than a third of the obligated bytes are silent,
their silence is `slept`: unpaid, and harmless. A proven lease contributes bytes x seconds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Set
from typing import Any

from freehold.protocol.keys import is_signed_by
from freehold.protocol.messages import STREAM
from freehold.protocol.parameters import Parameters
from freehold.protocol.service import Context, Folded, Rows
from freehold.protocol.state import LeaseState
from freehold.protocol.tables import Table
from freehold.protocol.typed import Message
from freehold.protocol.units import MEASURE_LIMIT, ZERO_HASH, Address, Hash
from freehold.protocol.verdicts import (
    GOOD,
    KNOWN,
    SILENT,
    SLEPT,
    TOO_LARGE,
    UNKNOWN_LEASE,
    UNOBLIGED,
    WRONG_EPOCH,
    WRONG_MODE,
    WRONG_SIGNATURE,
    Contribution,
    Verdict,
)
from freehold.services.storage.proof import draw_openings, group_lists, judge_proof
from freehold.services.storage.terms import (
    DELTA,
    LIST_BYTES_LIMIT,
    LIST_COUNT_LIMIT,
    NAME,
    PROOF,
    UNITS_PER_STREAM_PRICE,
    Delta,
    ListState,
    Opening,
    StorageProof,
)


class StorageJudge:
    """The judging half of storage (`protocol/service.py`)."""

    name = NAME
    kinds: Mapping[str, type[Message]] = {DELTA: Delta, PROOF: StorageProof}
    sender_fields: Mapping[str, str] = {PROOF: "node"}
    streamed: frozenset[str] = frozenset()
    state_kind: type[Message] = ListState
    obligation_kind: type[Message] = Opening
    units_per_price = UNITS_PER_STREAM_PRICE

    def obligations(self, context: Context) -> Table[Opening]:
        """`challenges` openings for each node that holds anything."""
        openings = (o for node, lists in group_lists(context).items() for o in draw_openings(context, node, lists))
        return Table.of(Opening, openings)

    def judge(self, obligations: Table[Opening], rows: Rows, context: Context) -> Table[Verdict]:
        """Openings first, in their order, then the rows that answer none, then deltas."""
        answers: defaultdict[tuple[Address, int], list[StorageProof]] = defaultdict(list)
        owed = {(opening.node, opening.draw) for opening in obligations}
        stray = []
        for row in rows[PROOF]:
            if row.epoch != context.epoch:
                stray.append(_verdict(context, PROOF, row.row_hash(), row.lease, row.node, WRONG_EPOCH))
            elif (row.node, row.draw) not in owed:
                stray.append(_verdict(context, PROOF, row.row_hash(), row.lease, row.node, UNOBLIGED))
            else:
                answers[row.node, row.draw].append(row)
        silence = _silence(context, {node for node, _ in answers})
        verdicts = []
        for opening in obligations:
            reasons = [judge_proof(opening, row) for row in answers[opening.node, opening.draw]]
            reason = GOOD if GOOD in reasons else reasons[0] if reasons else silence
            verdicts.append(
                _verdict(context, PROOF, opening.row_hash(), opening.lease, opening.node, reason, reason == GOOD)
            )
        lists = {row.lease: row for row in context.state}
        for row in rows[DELTA]:
            lease = context.leases.get(row.lease)
            node = lease.node if lease else Address(bytes(20))
            reason = _judge_delta(row, lease, lists.get(row.lease), context)
            stray.append(_verdict(context, DELTA, row.row_hash(), row.lease, node, reason))
        return Table.of(Verdict, verdicts + stray)

    def fold(self, rows: Rows, verdicts: Table[Verdict], context: Context) -> Folded:
        """The newest good delta of each lease counts; lists of leases that are no longer open are dropped."""
        good = {v.subject for v in verdicts if v.kind == DELTA and v.reason == GOOD}
        lists = {row.lease: row for row in context.state if row.lease in context.leases}
        contributions = _contributions(verdicts, context)
        for row in sorted(rows[DELTA], key=lambda r: (r.lease, r.number, r.row_hash())):
            known = lists.get(row.lease)
            if row.row_hash() in good and (known is None or row.number > known.number):
                lists[row.lease] = ListState(
                    lease=row.lease,
                    node=context.leases[row.lease].node,
                    number=row.number,
                    root=row.root,
                    count=row.count,
                    size=row.size,
                )
        return Folded(Table.of(ListState, (lists[k] for k in sorted(lists))), Table.of(Contribution, contributions))

    def owing(self, state: Table[Any]) -> Set[Hash]:  # noqa: ARG002
        """None: what is proven in an epoch is paid in it."""
        return frozenset()

    def needed_thaw(self, parameters: Parameters) -> int:  # noqa: ARG002
        """No work of this service takes a bond after its epoch."""
        return 1

    def holdings(self, state: Table[Any]) -> Mapping[Address, int]:
        """Bytes by node."""
        sizes: defaultdict[Address, int] = defaultdict(int)
        for row in state:
            sizes[row.node] += row.size
        return sizes


def _verdict(
    context: Context, kind: str, subject: Hash, lease: Hash, node: Address, reason: str, measure: int = 0
) -> Verdict:
    return Verdict(
        epoch=context.epoch,
        service=NAME,
        kind=kind,
        subject=subject,
        lease=lease,
        node=node,
        reason=reason,
        measure=int(measure),
    )


def _silence(context: Context, answered: set[Address]) -> str:
    sizes = {node: sum(row.size for row in lists) for node, lists in group_lists(context).items()}
    silent = sum(size for node, size in sizes.items() if node not in answered)
    return SLEPT if 3 * silent > sum(sizes.values()) else SILENT


def _judge_delta(row: Delta, lease: LeaseState | None, known: ListState | None, context: Context) -> str:
    if lease is None:
        return UNKNOWN_LEASE
    if lease.mode != STREAM:
        return WRONG_MODE
    if known is not None and row.number <= known.number:
        return KNOWN
    if row.size > compute_size_limit(context) or row.count > LIST_COUNT_LIMIT:
        return TOO_LARGE
    if not is_signed_by(row, row.client_signature, lease.client, context.domain):
        return WRONG_SIGNATURE
    return GOOD if is_signed_by(row, row.node_signature, lease.node, context.domain) else WRONG_SIGNATURE


def compute_size_limit(context: Context) -> int:
    """Bytes that a list may have, so that keeping it for a whole epoch is still a measure."""
    return min(LIST_BYTES_LIMIT, (MEASURE_LIMIT - 1) // context.parameters.epoch_length)


def _contributions(verdicts: Table[Verdict], context: Context) -> list[Contribution]:
    drawn: defaultdict[Hash, list[bool]] = defaultdict(list)
    node_good: dict[Address, bool] = {}
    for verdict in verdicts:
        if verdict.kind == PROOF and verdict.lease != ZERO_HASH and verdict.reason not in (UNOBLIGED, WRONG_EPOCH):
            drawn[verdict.lease].append(verdict.reason == GOOD)
            node_good[verdict.node] = node_good.get(verdict.node, True) and verdict.reason == GOOD
    contributions = []
    for node, lists in group_lists(context).items():
        for row in lists:
            proven = all(drawn[row.lease]) if drawn[row.lease] else node_good.get(node, False)
            # A list may be older than the parameters that bound its size now: it is capped, and stops no epoch.
            measure = min(row.size * context.seconds, MEASURE_LIMIT - 1) if proven else 0
            contributions.append(Contribution(service=NAME, lease=row.lease, account=node, measure=measure))
    return contributions
