"""What a client knows of nodes and their operators, from results that were checked: counted, weighed, and backed off.

A result is `valid` only where so many operators agree that one is outside any coalition (`decision.confirms`): as in
BOINC's code, runs that nobody checked add nothing, so that liars cannot grow a record in silence, nor for each other.

    BOINC  (sched_send.cpp)       n valid in a row; from n = 10 on a run may go unreplicated with probability 1 - 1/n
    iExec  (IexecPoco2Facet.sol)  score + 1 for a confirmed result, x 2/3 for a wrong one; weight max(score/3, 3) - 1

iExec's weight is the odds that a worker is right, of one wrong in 3 to begin with, and then 3 / score: Sarmenta's
credibility. Here the first is the client's prior, so the weight is max(score/3, 1/prior) - 1: iExec's for prior = 1/3.

Trust is an operator's: who runs two nodes has one record, and one wrong result of either empties it. Backing off is a
node's for timeouts and crashes, and its operator's for wrong results: twice as long after each in a row.

Invariant: a weight is at least 1, and 1 (which says nothing) while an operator was found wrong within its last ten.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import msgspec

from freehold.protocol.units import Address

TRUSTED_AFTER = 10  # valid results in a row
SCORE_SHARE = 3  # of a score, that are wrong at most: iExec's max(score/3, ...)
SCORE_LIMIT = 10**6
BACK_OFF = 30  # seconds after the first failure
WRONG_BACK_OFF = 3600
BACK_OFF_DOUBLINGS = 12


class Record(msgspec.Struct, frozen=True):
    """Of one node or operator; times are whole seconds of the client's clock."""

    consecutive_valid: int = 0
    answered: int = 0  # results that came, checked or not
    valid: int = 0
    invalid: int = 0
    failures: int = 0  # timeouts, crashes, and answers that were none
    failures_in_row: int = 0
    audits: int = 0  # checks that were drawn after it had answered
    score: int = 0
    last_seen: int = 0
    blocked_until: int = 0

    def after_valid(self, now: int, audit: bool = False) -> Record:
        """Other operators' results confirmed one of its own."""
        return self._with(
            consecutive_valid=self.consecutive_valid + 1,
            valid=self.valid + 1,
            audits=self.audits + audit,
            score=min(self.score + 1, SCORE_LIMIT),
            last_seen=now,
        )

    def after_invalid(self, now: int, audit: bool = False) -> Record:
        """One of its results was found wrong."""
        doublings = min(self.invalid, BACK_OFF_DOUBLINGS)
        return self._with(
            consecutive_valid=0,
            invalid=self.invalid + 1,
            audits=self.audits + audit,
            score=self.score * 2 // 3,
            last_seen=now,
            blocked_until=max(self.blocked_until, now + (WRONG_BACK_OFF << doublings)),
        )

    def after_failure(self, now: int) -> Record:
        """It did not answer, or not in time, or its program crashed there and nowhere else."""
        doublings = min(self.failures_in_row, BACK_OFF_DOUBLINGS)
        return self._with(
            failures=self.failures + 1,
            failures_in_row=self.failures_in_row + 1,
            blocked_until=max(self.blocked_until, now + (BACK_OFF << doublings)),
        )

    def after_answer(self, now: int) -> Record:
        """It answered; whether that was right is counted when it has been checked."""
        return self._with(answered=self.answered + 1, failures_in_row=0, last_seen=now)

    def _with(self, **changes: Any) -> Record:
        return msgspec.structs.replace(self, **changes)


def is_trusted(record: Record) -> bool:
    """BOINC's rule: whether a run there may go without a second one."""
    return record.consecutive_valid >= TRUSTED_AFTER


def wrong_probability(record: Record, prior: Fraction) -> Fraction:
    """How probable it is that a result of this operator is wrong: min(prior, 3 / score); 1/2 after a wrong one."""
    if record.invalid and not is_trusted(record):
        return Fraction(1, 2)
    return min(prior, Fraction(SCORE_SHARE, record.score)) if record.score else prior


def weight(record: Record, prior: Fraction) -> Fraction:
    """The odds that a result of this operator is right: max(score/3, 1/prior) - 1; 1 after a wrong one.

    For prior = 1/3 it is iExec's. `prior` lies in (0, 1/2].
    """
    return 1 / wrong_probability(record, prior) - 1


def reliability_ppm(record: Record) -> int:
    """For ranking, in millionths: the share that came of what was ordered, times the share that was right of what was
    checked, each with one more of either kind than were counted."""
    came = Fraction(record.answered + 1, record.answered + record.failures + 2)
    right = Fraction(record.valid + 1, record.valid + record.invalid + 2)
    return int(came * right * 10**6)


class Evidence(msgspec.Struct):
    """All records of a client, by address in hexadecimal; it is kept as JSON."""

    nodes: dict[str, Record] = {}
    operators: dict[str, Record] = {}

    def of(self, operator: Address) -> Record:
        """What is known of an operator: what its results weigh by."""
        return self.operators.get(str(operator), Record())

    def of_node(self, node: Address) -> Record:
        """What is known of one node: what it is ranked by."""
        return self.nodes.get(str(node), Record())

    def valid(self, node: Address, operator: Address, now: int, audit: bool = False) -> None:
        """Its result was confirmed (`decision.confirms`)."""
        self._set(node, operator, self.of_node(node).after_valid(now, audit), self.of(operator).after_valid(now, audit))

    def invalid(self, node: Address, operator: Address, now: int, audit: bool = False) -> None:
        """Its result was wrong: referees said so, or more than half of the trust was against it."""
        self._set(
            node, operator, self.of_node(node).after_invalid(now, audit), self.of(operator).after_invalid(now, audit)
        )

    def failed(self, node: Address, operator: Address, now: int) -> None:
        """It did not answer in time, or crashed: this node is left alone for a while, its operator's others are not."""
        count = self.of(operator)
        self._set(
            node,
            operator,
            self.of_node(node).after_failure(now),
            msgspec.structs.replace(count, failures=count.failures + 1),
        )

    def answered(self, node: Address, operator: Address, now: int) -> None:
        """A receipt came, in time and for its order: to be called for each, before and besides `valid` or `invalid`."""
        self._set(node, operator, self.of_node(node).after_answer(now), self.of(operator).after_answer(now))

    def is_available(self, node: Address, operator: Address, now: int) -> bool:
        """Whether it may be chosen again."""
        return max(self.of_node(node).blocked_until, self.of(operator).blocked_until) <= now

    def _set(self, node: Address, operator: Address, of_node: Record, of_operator: Record) -> None:
        self.nodes[str(node)] = of_node
        self.operators[str(operator)] = of_operator
