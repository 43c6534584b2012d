"""Any order and repetition of receipts, disputes and opinions, over many epochs: nothing is paid twice, what was found
wrong before it was paid never is, and while most referees of a case are honest, no honest node is slashed.

The n-th order measures 2^n, so that a lease's sum says which orders it is for. So two honest receipts differ in what
they took, as if the task were not deterministic: then honest referees cannot tell. Where one of the accused is honest
they find what it claims, and where none is what neither claims.
"""

from __future__ import annotations

import random
from collections.abc import Set
from typing import Any

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from freehold.protocol.keys import Key
from freehold.protocol.typed import keccak
from freehold.protocol.units import Hash
from freehold.services.compute.score import ComputeJudge
from freehold.services.compute.terms import (
    BOTH,
    EXACT,
    HELD,
    JOB,
    NEAR,
    SEAT,
    WAITING,
    WRONG_RESULT,
    Dispute,
    Opinion,
    Receipt,
    WorkState,
)
from tests.services.compute_world import (
    NODES,
    RIGHT,
    WRONG_OUTPUT,
    context_of,
    dispute_of,
    lease_of,
    opinion_of,
    order_of,
    ordered,
    receipt_of,
    rows_of,
)

JUDGE = ComputeJudge()
WORKERS, CHEATS, LIAR = NODES[:4], NODES[:2], NODES[7]
NEITHER = keccak(b"neither")
ORDERS = 40


class Life(RuleBasedStateMachine):
    """Two honest nodes and two that cheat are given orders; one of the possible referees lies."""

    def __init__(self) -> None:
        super().__init__()
        self.context = context_of()
        self.receipts: list[Receipt] = []
        self.sent: list[Receipt] = []
        self.disputes: list[Dispute] = []
        self.opinions: list[Opinion] = []
        self.taken: set[Hash] = set()
        self.paid: set[Hash] = set()
        self.refused: set[Hash] = set()

    @precondition(lambda self: len(self.receipts) < ORDERS)
    @rule(node=st.sampled_from(WORKERS), life=st.integers(0, 6), twice=st.booleans())
    def run(self, node: Key, life: int, twice: bool) -> None:
        number = len(self.receipts)
        until = self.context.epoch + life
        order = order_of(lease_of(node), number, most=2**ORDERS, until=until)
        output = WRONG_OUTPUT if node in CHEATS else RIGHT
        self.receipts.append(receipt_of(order, node, output=output, measure=1 << number))
        if twice:  # what else its node may say of the same order
            self.sent.append(receipt_of(order, node, output=output, measure=1 << number, steps=RIGHT))

    @precondition(lambda self: self.receipts)
    @rule(picks=st.lists(st.integers(0, ORDERS), max_size=6))
    def send(self, picks: list[int]) -> None:
        self.sent += [self.receipts[pick % len(self.receipts)] for pick in picks]

    @precondition(lambda self: self.receipts)
    @rule(first=st.integers(0, ORDERS), second=st.integers(0, ORDERS), kind=st.sampled_from([EXACT, EXACT, NEAR]))
    def dispute(self, first: int, second: int, kind: int) -> None:
        count = len(self.receipts)
        self.disputes.append(dispute_of(self.receipts[first % count], self.receipts[second % count], kind=kind))

    @rule(right=st.integers(0, ORDERS), wrong=st.integers(0, ORDERS))
    def accuse(self, right: int, wrong: int) -> None:
        cheats = {node.address for node in CHEATS}
        honest = [receipt for receipt in self.receipts if receipt.node not in cheats]
        cheated = [receipt for receipt in self.receipts if receipt.node in cheats]
        if honest and cheated:
            pair = honest[right % len(honest)], cheated[wrong % len(cheated)]
            self.disputes.append(dispute_of(*(pair if (right + wrong) % 2 else pair[::-1])))

    def answer(self, silent: Set[Key]) -> None:
        cases = {(row.id, row.node): row for row in self.context.state if row.role == SEAT}
        for owed in JUDGE.obligations(self.context):
            node = next(node for node in NODES if node.address == owed.node)
            if node not in silent:
                self.opinions.append(self.opinion(cases[owed.case, owed.node], node, owed.epoch))

    def opinion(self, seat: WorkState, node: Key, epoch: int) -> Opinion:
        """What this referee says of a case: the liar, what the other side claims."""
        if seat.kind == NEAR:
            return opinion_of(seat, node, WRONG_OUTPUT if node is LIAR else RIGHT, epoch=epoch)
        claims = {seat.first: seat.first_output, seat.second: seat.second_output}
        honest = [claim for accused, claim in claims.items() if accused not in {cheat.address for cheat in CHEATS}]
        if node is LIAR:
            lie = next((claim for claim in claims.values() if claim not in honest), seat.first_output)
            return opinion_of(seat, node, lie, epoch=epoch)
        if len(honest) == len(claims):
            return opinion_of(seat, node, good=BOTH, epoch=epoch)
        return opinion_of(seat, node, honest[0] if honest else NEITHER, epoch=epoch)

    @rule(seed=st.integers(0, 2**16), silent=st.sets(st.sampled_from(NODES), max_size=4), answers=st.integers(0, 2))
    def settle(self, seed: int, silent: Set[Key] = frozenset(), answers: int = 1) -> None:
        for _ in range(answers):
            self.answer(silent)
        for rows in (self.sent, self.disputes, self.opinions):
            random.Random(seed).shuffle(rows)
        rows = rows_of(self.sent, self.disputes, self.opinions)
        verdicts = JUDGE.judge(JUDGE.obligations(self.context), rows, self.context)
        folded = JUDGE.fold(rows, verdicts, self.context)
        self._check(folded, [v.subject for v in verdicts if v.reason == WRONG_RESULT and v.kind == "compute.dispute"])
        self.context = self.context._replace(
            state=folded.state, epoch=self.context.epoch + 1, beacon=keccak(self.context.beacon)
        )
        self.sent, self.disputes, self.opinions = [], [], []
        assert all(row.epoch < self.context.epoch for row in folded.state)

    def _check(self, folded: Any, wrong: list[Hash]) -> None:
        state = list(folded.state)
        assert state == ordered(state)
        jobs = [row for row in state if row.role == JOB]
        assert len({row.id for row in jobs}) == len(jobs)
        self.taken |= {row.id for row in jobs}
        for contribution in folded.contributions:
            for number, receipt in enumerate(self.receipts):
                if contribution.measure >> number & 1:
                    order = receipt.order().struct_hash()
                    assert (receipt.lease, receipt.node) == (contribution.lease, contribution.account)
                    assert order not in self.paid
                    assert order not in self.refused
                    self.paid.add(order)
            assert contribution.measure < 1 << len(self.receipts)
        self.refused |= set(wrong) - self.paid
        cheats = {node.address for node in CHEATS}
        assert {row.node for row in folded.slashes} <= cheats
        wrongs = {receipt.order().struct_hash() for receipt in self.receipts if receipt.node in cheats}
        assert self.refused <= wrongs

    def teardown(self) -> None:
        """Whatever was counted is paid, or was found wrong, once referees answer."""
        for _ in range(20):
            self.settle(0)
        assert not any(row.stand in (WAITING, HELD) for row in self.context.state)
        assert self.taken == self.paid | self.refused


TestLife = Life.TestCase
# What fails is not shrunk, which takes minutes: an example has thirty steps, and a run of it prints them.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.target)
TestLife.settings = settings(max_examples=20, stateful_step_count=30, phases=PHASES)
