"""What to do about receipts that are in: accept a result, order more runs, or leave it to referees.

Contradictions are disputed at once, whatever else happens: receipts are paid an epoch later. The rule of acceptance is
`plan.py`'s, which says what it assures; besides, as in BOINC, more than half of the operators that answered must agree.

Invariant: no group of half the operators or fewer is ever accepted, and none below the plan's assurance.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from fractions import Fraction
from itertools import combinations
from math import prod
from typing import NamedTuple

from freehold.protocol.units import Address, Hash
from freehold.services.compute.verification.plan import MILLION, Plan, has_consensus, joint_weight


class Vote(NamedTuple):
    """A receipt that is in. `weight`: of its operator (`reliability.weight`) when the plan was made."""

    node: Address
    operator: Address
    input: Hash
    output: Hash
    weight: Fraction


Pairs = tuple[tuple[int, int], ...]


class Accept(NamedTuple):
    """The result of `votes` (indices) counts: of the first, which all the others are near to. Those in `against` are
    wrong, `strays` ran on another input."""

    votes: tuple[int, ...]
    against: tuple[int, ...]
    strays: tuple[int, ...]
    disputes: Pairs


class NeedMore(NamedTuple):
    """Order it from `more` operators more; it is enough if they agree with most of the trust so far."""

    more: int
    strays: tuple[int, ...]
    disputes: Pairs


class Dispute(NamedTuple):
    """More runs would not settle it: referees do, for these pairs. What they find wrong is left out of the next call.

    Empty where all that contradict each other are disputed already: then it is waited for.
    """

    pairs: Pairs


Decision = Accept | NeedMore | Dispute


def same_output(first: Vote, second: Vote) -> bool:
    """Whether two results are equal: what `bit_exact` and `refereed` go by."""
    return first.output == second.output


def decide(
    votes: Sequence[Vote],
    plan: Plan,
    drawn: bool,
    agree: Callable[[Vote, Vote], bool] = same_output,
    expected_input: Hash | None = None,
    disputed: Collection[int] = (),
) -> Decision:
    """What to do about the receipts that are in.

    `drawn`: whether their audit was drawn (`draw_audit`, once `plan.replicas` are in; false before). `agree` says
    whether two results count as one: symmetric. Votes on an input other than `expected_input` (by default, what most
    operators ran on) are strays: nobody can dispute them, and they count nothing. `disputed`: votes that stand in a
    dispute already, which cannot stand in another.
    """
    strays = _find_strays(votes, expected_input)
    groups = _group(votes, [i for i in range(len(votes)) if i not in strays], agree)
    if (plan.assurance == 0 or plan.kind == "attested") and groups:  # then only runs whose quotes are good are votes
        return Accept(groups[0], (), strays, ())
    pairs = _pair(votes, groups, agree, disputed)
    if not groups:
        return NeedMore(plan.replicas, strays, pairs)
    collusion = plan.adversary.collusion
    double = _double_voters(votes, groups)
    weights = [_weights(votes, group, double) for group in groups]
    lead = max(range(len(groups)), key=lambda i: (joint_weight(weights[i], collusion), len(weights[i]), -i))
    rest = [found for i, found in enumerate(weights) if i != lead]
    opposed = len(groups) > 1
    fresh = 1 / plan.adversary.prior - 1
    if opposed and plan.kind == "refereed":
        unmet = any(i not in disputed for group in groups for i in group)
        return NeedMore(1, strays, ()) if unmet and not pairs and len(votes) < plan.limit else Dispute(pairs)
    for more in range(max(plan.limit - len(votes), 0) + 1):
        if _suffices(plan, [*weights[lead], *[fresh] * more], rest, drawn, opposed):
            if more:
                return NeedMore(more, strays, pairs)
            return Accept(groups[lead], _find_opposed(votes, groups, lead, agree), strays, pairs)
    return Dispute(pairs) if opposed else NeedMore(1, strays, pairs)


def confirms(plan: Plan, operators: Iterable[Address]) -> bool:
    """Whether agreement of these operators says that each was right (`Evidence.valid`): one is outside any coalition.

    Two that act as one could otherwise confirm each other until they are trusted.
    """
    return len(set(operators)) > plan.adversary.collusion


def _suffices(
    plan: Plan, lead: Sequence[Fraction], rest: Sequence[Sequence[Fraction]], drawn: bool, opposed: bool
) -> bool:
    """Whether a group with weights `lead` is accepted against the others."""
    others = sum(len(found) for found in rest)
    if not lead or len(lead) <= others or len(lead) + others < (plan.audited if drawn else plan.replicas):
        return False
    group = joint_weight(lead, plan.adversary.collusion)
    total = 1 + group + sum((prod(found, start=Fraction(1)) for found in rest), Fraction(0))
    wrong = 1 - group / total
    if opposed:
        return has_consensus(group, total, plan.assurance)
    if drawn:
        return wrong <= plan.risk_audited and has_consensus(group, total, plan.assurance)
    rate = Fraction(plan.audit_ppm, MILLION)
    return has_consensus(group, total, plan.assurance) or (1 - rate) * wrong + rate * plan.risk_audited <= (
        1 - plan.assurance
    )


def _find_strays(votes: Sequence[Vote], expected: Hash | None) -> tuple[int, ...]:
    if expected is None:
        operators: dict[Hash, set[Address]] = {}
        for vote in votes:
            operators.setdefault(vote.input, set()).add(vote.operator)
        expected = max(operators, key=lambda each: len(operators[each]), default=None)
    return tuple(i for i, vote in enumerate(votes) if vote.input != expected)


def _group(votes: Sequence[Vote], indices: Sequence[int], agree: Callable[[Vote, Vote], bool]) -> list[tuple[int, ...]]:
    """Groups of votes that agree with the first of each, the largest group first: nearness is not transitive.

    For equality these are its classes.
    """
    near = {i: {i} for i in indices}
    for i, j in combinations(indices, 2):
        if agree(votes[i], votes[j]):
            near[i].add(j)
            near[j].add(i)
    groups, left = [], set(indices)
    while left:
        best = max(sorted(left), key=lambda i: len({votes[j].operator for j in near[i] & left}))
        group = near[best] & left
        groups.append((best, *sorted(group - {best})))
        left -= group
    return groups


def _find_opposed(
    votes: Sequence[Vote], groups: Sequence[Sequence[int]], lead: int, agree: Callable[[Vote, Vote], bool]
) -> tuple[int, ...]:
    """Votes that agree with none of the leading group. One that is near some of it is not called wrong."""
    others = [i for place, group in enumerate(groups) if place != lead for i in group]
    return tuple(sorted(i for i in others if not any(agree(votes[i], votes[j]) for j in groups[lead])))


def _double_voters(votes: Sequence[Vote], groups: Sequence[Sequence[int]]) -> set[Address]:
    """Operators whose own nodes contradict each other: they count for nobody."""
    seen: set[Address] = set()
    double: set[Address] = set()
    for group in groups:
        operators = {votes[i].operator for i in group}
        double |= operators & seen
        seen |= operators
    return double


def _weights(votes: Sequence[Vote], group: Sequence[int], double: Collection[Address]) -> list[Fraction]:
    """One weight an operator, the least that its votes have."""
    found: dict[Address, Fraction] = {}
    for vote in (votes[i] for i in group):
        if vote.operator not in double:
            found[vote.operator] = min(vote.weight, found.get(vote.operator, vote.weight))
    return list(found.values())


def _pair(
    votes: Sequence[Vote],
    groups: Sequence[Sequence[int]],
    agree: Callable[[Vote, Vote], bool],
    disputed: Collection[int],
) -> Pairs:
    """Contradictions to dispute, each vote in one at most: the two largest groups left give one each, over and over."""
    left = [[i for i in group if i not in disputed] for group in groups]
    pairs = []
    while len(left := sorted((group for group in left if group), key=len, reverse=True)) > 1:
        one = left[0].pop(0)
        for i in left[1]:
            if votes[i].node != votes[one].node and not agree(votes[i], votes[one]):
                left[1].remove(i)
                pairs.append((min(one, i), max(one, i)))
                break
    return tuple(pairs)
