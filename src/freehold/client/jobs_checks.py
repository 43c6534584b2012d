"""When a piece's result is believed: its receipts as votes, the plan's decision over them, and who was wrong.

`verification/` decides; here stands what it is given. Only runs that claim something of the result vote: a run that its
node ended, or whose order was too small for it, says nothing. An audit is drawn from the job's secret and the receipts,
once as many are in as the plan's replicas: by then every node has committed to its result.

Invariant: nothing is accepted, disputed or held against a node but by `decide`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

from freehold.client.jobs_attested import Quotes
from freehold.client.jobs_journal import OrderRow, PieceRow
from freehold.protocol.units import Address, Hash
from freehold.services.compute.tasks import DETERMINISTIC_ENDS, Result, Task, decode_result, state_leaf
from freehold.services.compute.terms import Receipt, Step
from freehold.services.compute.verification.bisect import build_step
from freehold.services.compute.verification.decision import Decision, Vote, decide, same_output
from freehold.services.compute.verification.metrics import result_distance
from freehold.services.compute.verification.plan import Plan
from freehold.services.compute.verification.reliability import Evidence, weight
from freehold.services.compute.verification.sampling import draw_audit, receipts_hash

TRY_ELSEWHERE = frozenset({"failed", "refused", "stopped"})  # ends that say nothing of the program


class Piece:
    """A task, and what came of its orders so far. `most`: the largest measure of its next order; `bound`: of any."""

    def __init__(self, row: PieceRow, task: Task, most: int, bound: int) -> None:
        self.row = row
        self.task = task
        self.most = most
        self.bound = bound
        self.runs: list[OrderRow] = []  # with receipts that claim something, in the order in which they came
        self.operators: set[Address] = set()  # that run it or have run it
        self.bad_nodes: set[Address] = set()
        self.open: list[OrderRow] = []  # that another process left
        self.failures = 0
        self.fruitless: list[Receipt] = []  # for runs that were cut short, as their nodes say
        self.forged: list[Receipt] = []  # that do not fit their orders
        self.disputed: set[Hash] = set()  # orders whose receipts stand in a dispute
        self.wrong: set[Hash] = set()  # orders that referees found wrong
        self.checked = True  # whether it is held to the step's plan

    def add(self, row: OrderRow) -> None:
        """A run with a receipt."""
        self.operators.add(row.operator)
        if all(row.id != known.id for known in self.runs):
            self.runs.append(row)

    def grow(self) -> bool:
        """Whether it may be ordered anew with all that it may take; what came before says nothing then."""
        if self.most >= self.bound:
            return False
        self.most = self.bound
        self.runs.clear()
        self.operators.clear()
        return True


def result_of(row: OrderRow) -> Result:
    """What came out of an order that is done."""
    assert row.result is not None
    return decode_result(row.result.encode())


def receipt_of(row: OrderRow) -> Receipt:
    """The receipt of an order that is done."""
    assert row.receipt is not None
    return row.receipt


def is_claim(task: Task, result: Result) -> bool:
    """Whether a run says something of the result, right or wrong."""
    return result.ended in DETERMINISTIC_ENDS if task.executor == "wasm" else result.ended == "exited"


def may_try_elsewhere(task: Task, result: Result) -> bool:
    """Whether a run that claims nothing may come to something at another node."""
    return result.ended in TRY_ELSEWHERE or (task.executor == "wasm" and result.ended == "time")


def ran_out(result: Result, row: OrderRow) -> bool:
    """Whether it ended because its order was for no more."""
    return result.ended in ("fuel", "time") and receipt_of(row).measure >= row.order.most


class Checker:
    """Decides for one step. `read` gives contents that are on this machine, for metrics; `quotes` is for a step that
    is attested."""

    def __init__(
        self, plan: Plan, evidence: Evidence, secret: bytes, read: Callable[[str], bytes], quotes: Quotes | None = None
    ) -> None:
        self.plan = plan
        self.quotes = quotes
        self._evidence = evidence
        self._secret = secret
        self._read = read

    def voters(self, piece: Piece) -> list[OrderRow]:
        """The runs that count."""
        rows = [row for row in piece.runs if row.id not in piece.wrong and row.order.most == piece.most]
        return rows if self.quotes is None else [row for row in rows if not self.quotes.refuses(row)]

    def is_audited(self, piece: Piece) -> bool:
        """Whether its audit was drawn; false while fewer receipts than the plan's replicas are in."""
        first = self.voters(piece)[: self.plan.replicas]
        if len(first) < self.plan.replicas or not self.plan.audit_ppm:
            return False
        hashes = receipts_hash([receipt_of(row).struct_hash() for row in first])
        return draw_audit(self._secret, hashes, self.plan.audit_ppm)

    def decide(self, piece: Piece) -> Decision:
        """What to do about the receipts that are in."""
        rows = self.voters(piece)
        votes = [self._vote(row, piece.task) for row in rows]
        disputed = [at for at, row in enumerate(rows) if row.id in piece.disputed]
        agree = self._agree(piece.task, rows) if piece.task.metric else same_output
        return decide(votes, self.plan, self.is_audited(piece), agree, disputed=disputed)

    def _vote(self, row: OrderRow, task: Task) -> Vote:
        receipt = receipt_of(row)
        trust: Fraction = weight(self._evidence.of(row.operator), self.plan.adversary.prior)
        # What a deterministic task takes is the same anywhere: who bills more contradicts the others.
        is_exact = task.executor == "wasm" and not task.metric
        said = receipt.claim() if is_exact else receipt.output
        return Vote(row.node, row.operator, receipt.input, said, trust)

    def _agree(self, task: Task, rows: Sequence[OrderRow]) -> Callable[[Vote, Vote], bool]:
        results = {receipt_of(row).output: result_of(row) for row in rows}

        def near(one: Vote, other: Vote) -> bool:
            if one.output == other.output:
                return True
            apart = result_distance(task.metric, results[one.output], results[other.output], self._read)
            return apart <= task.threshold

        return near


def first_step(first: OrderRow, second: OrderRow) -> tuple[Step, ...]:
    """What goes into their dispute so that only the first differing step is run again; empty: the whole task is."""
    if not first.states or not second.states:
        return ()
    leaves = [[state_leaf(state) for state in row.states] for row in (first, second)]
    step = build_step(receipt_of(first), receipt_of(second), *leaves)
    return () if step is None else (step,)
