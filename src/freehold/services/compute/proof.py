"""What is wrong with a receipt, a dispute or an opinion. Receipts are judged on columns, at the speed of signatures.

A receipt counts when its order is its client's, for an open lease of its node, and has not run out; and when the node
signed it for no more than the order allows. A receipt that is disputed must be as good as one that is sent, or stand
in the state already, and its node must have signed what is shown of it: then it is the node that contradicts another.

Of two receipts for one order, or two opinions for one seat, both signed by one node, the smaller counts: neither its
client nor the node gains by a second one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from freehold.protocol.hashing import Bytes
from freehold.protocol.keys import are_signed_by
from freehold.protocol.lookup import Lookup, distinct_cells, sort_order
from freehold.protocol.merkle import RowTree, verify_row
from freehold.protocol.messages import STREAM
from freehold.protocol.service import Context
from freehold.protocol.tables import Table
from freehold.protocol.units import MEASURE_LIMIT, ZERO_ADDRESS, Address, Hash
from freehold.protocol.verdicts import (
    GOOD,
    KNOWN,
    SILENT,
    SLEPT,
    SUPERSEDED,
    UNKNOWN_LEASE,
    UNOBLIGED,
    WRONG_EPOCH,
    WRONG_MODE,
    WRONG_SIGNATURE,
)
from freehold.services.compute.terms import (
    BOTH,
    CASE,
    CASES_AT_ONCE,
    CROWDED,
    DISPUTED,
    EARLY,
    EXACT,
    HELD,
    JOB,
    KEPT_EPOCHS,
    LATE,
    NEAR,
    NO_CONTRADICTION,
    OVER_ORDER,
    SEAT,
    SPARED,
    UNDECIDED,
    UNFOUNDED,
    UNORDERED,
    UPHELD,
    WRONG,
    WRONG_RESULT,
    Dispute,
    Opinion,
    Order,
    Receipt,
    Step,
    WorkState,
)

# What a verdict may say, by its code in the columns.
REASONS = (
    *(GOOD, SILENT, SLEPT, WRONG_EPOCH, UNOBLIGED, UNFOUNDED, WRONG_RESULT, UNDECIDED, SUPERSEDED, KNOWN),
    *(
        UNKNOWN_LEASE,
        WRONG_MODE,
        UNORDERED,
        OVER_ORDER,
        LATE,
        EARLY,
        WRONG_SIGNATURE,
        NO_CONTRADICTION,
        DISPUTED,
        CROWDED,
    ),
)
CODE = {reason: np.uint8(code) for code, reason in enumerate(REASONS)}
LEVEL_BYTES, LEVELS = 32, 32  # of a path to a step

Codes = NDArray[np.uint8]
Positions = NDArray[np.int64]
SeatKey = tuple[Hash, Address]


class Work:
    """The state, taken apart: `jobs` by their ids, `cases` and `seats` in their order."""

    def __init__(self, state: Table[WorkState]) -> None:
        roles = state.column("role")
        jobs = state if (roles == JOB).all() else state.filter(roles == JOB)
        order = sort_order(jobs.column("id"))
        self.jobs = jobs if order is None else jobs.take(order)
        self._lookup = Lookup(self.jobs.column("id"))
        self.cases = sorted(state.filter(roles == CASE), key=lambda row: row.id)
        self.seats = sorted(state.filter(roles == SEAT), key=lambda row: (row.id, row.node))

    def find(self, orders: Bytes) -> Positions:
        """(n,): where the jobs of these orders (n, 32) stand, -1 where they do not."""
        return self._lookup.find(orders)

    def disputed(self) -> set[bytes]:
        """The orders that are, or were, in a case."""
        stands = self.jobs.column("stand")
        decided = self.jobs.column("id")[np.isin(stands, [HELD, WRONG, UPHELD])]
        return {row.tobytes() for row in decided} | {o for c in self.cases for o in (c.first_order, c.second_order)}


class Read(NamedTuple):
    """Receipts, and what the state says of them: their orders' ids, where their jobs stand (-1: not yet), the clients
    whose orders they must be, and what is wrong with each but for its signatures."""

    receipts: Table[Receipt]
    orders: Table[Order]
    places: Positions
    clients: Bytes
    codes: Codes


def read_receipts(receipts: Table[Receipt], context: Context, work: Work) -> Read:
    """Everything that can be said of receipts before a signature is looked at."""
    count = len(receipts)
    orders = Table.from_columns(Order, {name: receipts.column(name) for name in Order.__struct_fields__}, count)
    places = work.find(orders.struct_hashes)
    values, lease = distinct_cells(receipts.column("lease"))
    # What was ordered before its lease was closed is paid from what the lock still covers.
    leases = [context.leases.get(Hash(value)) or context.ended.get(Hash(value)) for value in values]
    nodes = _addresses(row.node if row else ZERO_ADDRESS for row in leases)[lease]
    clients = _addresses(row.client if row else ZERO_ADDRESS for row in leases)[lease]
    streams = np.array([row is not None and row.mode == STREAM for row in leases], bool)[lease]
    unknown = np.array([row is None for row in leases], bool)[lease]
    measures, until = receipts.column("measure"), receipts.column("until")
    codes = np.full(count, CODE[GOOD], np.uint8)
    codes[until > context.epoch + KEPT_EPOCHS] = CODE[EARLY]
    codes[until < context.epoch] = CODE[LATE]
    codes[measures > np.minimum(receipts.column("most"), np.uint64(MEASURE_LIMIT - 1))] = CODE[OVER_ORDER]
    codes[(receipts.column("node") != nodes).any(axis=1)] = CODE[UNORDERED]
    codes[~streams] = CODE[WRONG_MODE]
    codes[unknown] = CODE[UNKNOWN_LEASE]
    stands = places >= 0  # the order was found good when its receipt came, even if the lease is closed by now
    jobs = work.jobs.take(places[stands])
    clients[stands] = jobs.column("first")
    other = (receipts.column("node")[stands] != jobs.column("node")).any(axis=1)
    codes[stands] = np.where(other, CODE[UNORDERED], CODE[GOOD])
    return Read(receipts, orders, places, clients, codes)


def check_signatures(read: Read, context: Context) -> Codes:
    """Codes of receipts with what their signatures say; only those that were good so far are looked at."""
    codes = read.codes.copy()
    for table, name, signers, reason in (
        (read.orders, "client_signature", read.clients, UNORDERED),
        (read.receipts, "node_signature", read.receipts.column("node"), WRONG_SIGNATURE),
    ):
        rows = np.flatnonzero(codes == CODE[GOOD])
        own = table if len(rows) == len(table) else table.take(rows)
        signatures = own.column(name).padded(65)
        signed = are_signed_by(own.digests(context.domain), signatures, signers[rows])
        codes[rows[~signed]] = CODE[reason]
    return codes


def judge_receipts(receipts: Table[Receipt], context: Context, work: Work) -> Codes:
    """Each receipt's code: one good receipt at most for an order, and none for an order that the state has."""
    read = read_receipts(receipts, context, work)
    read.codes[read.places >= 0] = CODE[KNOWN]
    codes = check_signatures(read, context)
    good = np.flatnonzero(codes == CODE[GOOD])
    values, order = distinct_cells(read.orders.struct_hashes[good])
    if len(values) < len(good):
        measures, hashes = receipts.column("measure"), receipts.hashes
        best: dict[int, tuple[int, bytes, int]] = {}
        for group, row in zip(order.tolist(), good.tolist(), strict=True):
            one = (int(measures[row]), hashes[row].tobytes(), row)
            best[group] = min(best.get(group, one), one)
        codes[good] = CODE[SUPERSEDED]
        codes[[row for _, _, row in best.values()]] = CODE[GOOD]
    return codes


def judge_disputes(disputes: Table[Dispute], context: Context, work: Work) -> Codes:
    """Each dispute's code. An order is in one case at most: of several that show it the first by case and hash. So come
    a client's cases, as many as it may have open."""
    count = len(disputes)
    reads = [
        read_receipts(Table.from_columns(Receipt, disputes.column(name).columns, count), context, work)
        for name in ("first", "second")
    ]
    first, second = reads
    codes = np.where(first.codes == CODE[GOOD], second.codes, first.codes)
    codes[~_may_contradict(disputes, first.receipts, second.receipts)] = CODE[NO_CONTRADICTION]
    for read in reads:
        codes[(disputes.column("client") != read.clients).any(axis=1) & (codes == CODE[GOOD])] = CODE[UNORDERED]
    for read in reads:
        codes = check_signatures(read._replace(codes=codes), context)
    taken, cases = work.disputed(), Counter(case.node for case in work.cases)
    good = np.flatnonzero(codes == CODE[GOOD])
    shown = [(row.case(), row.row_hash(), row, place) for place, row in _rows_at(disputes, good)]
    for _, _, row, place in sorted(shown, key=lambda one: one[:2]):
        orders = {bytes(row.first.order().struct_hash()), bytes(row.second.order().struct_hash())}
        if row.steps and not is_step(row.steps[0], row.first, row.second):
            codes[place] = CODE[NO_CONTRADICTION]
        elif orders & taken:
            codes[place] = CODE[DISPUTED]
        elif cases[row.client] >= CASES_AT_ONCE:
            codes[place] = CODE[CROWDED]
        else:
            taken |= orders
            cases[row.client] += 1
    return codes


def _rows_at(disputes: Table[Dispute], places: Positions) -> Iterable[tuple[int, Dispute]]:
    return zip(places.tolist(), disputes.take(places).rows, strict=True)


def _may_contradict(disputes: Table[Dispute], first: Table[Receipt], second: Table[Receipt]) -> NDArray[np.bool_]:
    """Different nodes, one task; different outputs, or by EXACT measures or inputs, or for one input one step in which
    they are said to differ. By EXACT of the whole each order must have allowed what the other's run took: what ran out
    of less may be as right."""
    differ = {
        name: (first.column(name) != second.column(name)).any(axis=1) for name in ("node", "task", "input", "output")
    }
    kinds, steps = disputes.column("kind"), np.diff(disputes.column("steps").edges())
    claims = differ["output"] | differ["input"] | (first.column("measure") != second.column("measure"))
    most = [table.column("most") for table in (first, second)]
    took = [np.minimum(table.column("measure"), own) for table, own in zip((first, second), most, strict=True)]
    claims &= np.minimum(*most) >= np.maximum(*took)
    exact = (kinds == EXACT) & (((steps == 0) & claims) | ((steps == 1) & ~differ["input"]))
    near = (kinds == NEAR) & (steps == 0) & differ["output"] & ~differ["input"]
    may: NDArray[np.bool_] = differ["node"] & ~differ["task"] & (exact | near)
    return may


def is_step(step: Step, first: Receipt, second: Receipt) -> bool:
    """Whether two receipts' steps have the same state before this one, and different states after it.

    `count` may be another than the true one: leaves that stand side by side in a tree of any shape that both paths fit
    do so in the true one, and the leftmost is its first.
    """
    if step.first == step.second:
        return False
    shown = (
        (first.steps, step.first, step.first_path, step.first_before),
        (second.steps, step.second, step.second_path, step.second_before),
    )
    for root, after, path, path_before in shown:
        if len(path) > LEVELS * LEVEL_BYTES or len(path_before) > LEVELS * LEVEL_BYTES:
            return False
        if not verify_row(root, step.count, step.index, after, _siblings(path)):
            return False
        if step.index == 0:
            if path_before or step.before != first.input:
                return False
        elif not verify_row(root, step.count, step.index - 1, step.before, _siblings(path_before)):
            return False
    return True


def make_step(first: Sequence[Hash], second: Sequence[Hash], index: int, given: Hash) -> Step:
    """The step at which the leaves of two receipts' `steps` differ first; `given` is the receipts' input. ValueError
    where they have different numbers of steps: such receipts are disputed whole."""
    if len(first) != len(second):
        raise ValueError("these receipts have different numbers of steps")
    trees = RowTree(first), RowTree(second)
    paths = [b"".join(tree.proof(index)) for tree in trees]
    before = [b"".join(tree.proof(index - 1)) if index else b"" for tree in trees]
    return Step(
        index=index,
        count=len(first),
        before=first[index - 1] if index else given,
        first=first[index],
        second=second[index],
        first_path=paths[0],
        second_path=paths[1],
        first_before=before[0],
        second_before=before[1],
    )


def judge_opinions(opinions: Table[Opinion], seats: Mapping[SeatKey, WorkState], context: Context) -> list[str]:
    """Each opinion's reason: one good opinion at most for a seat."""
    reasons = [_judge_opinion(row, seats.get((row.case, row.node)), context) for row in opinions]
    best: dict[SeatKey, tuple[Hash, int]] = {}
    for place, (row, reason) in enumerate(zip(opinions, reasons, strict=True)):
        if reason == GOOD:
            one = (row.row_hash(), place)
            best[row.case, row.node] = min(best.get((row.case, row.node), one), one)
    counting = {place for _, place in best.values()}
    return [SUPERSEDED if reason == GOOD and place not in counting else reason for place, reason in enumerate(reasons)]


def _judge_opinion(row: Opinion, seat: WorkState | None, context: Context) -> str:
    if row.epoch != context.epoch:
        return WRONG_EPOCH
    if seat is None:
        return UNOBLIGED
    bits = (row.output == seat.first_output) | (row.output == seat.second_output) << 1
    known = row.good <= BOTH * (1 + SPARED) and not row.good & (row.good // SPARED)
    founded = seat.kind == NEAR or row.good & BOTH in (bits, BOTH)
    return GOOD if known and founded else UNFOUNDED


def _siblings(path: bytes) -> list[bytes]:
    return [path[i : i + LEVEL_BYTES] for i in range(0, len(path), LEVEL_BYTES)]


def _addresses(addresses: Iterable[Address]) -> Bytes:
    return np.frombuffer(b"".join(addresses), np.uint8).reshape(-1, 20)
