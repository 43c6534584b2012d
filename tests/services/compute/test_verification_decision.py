"""Decisions: no minority, no more risk than agreed (by enumeration of every way in which operators may be bad)."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import product
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.protocol.typed import keccak
from freehold.protocol.units import Address, Hash
from freehold.services.compute.verification.decision import Accept, Dispute, NeedMore, Vote, confirms, decide
from freehold.services.compute.verification.plan import (
    MILLION,
    Adversary,
    Candidate,
    Plan,
    Stake,
    for_item,
    make_plan,
    read_assurance,
)
from freehold.services.compute.verification.reliability import Record, weight

STAKE = Stake(gain=10**15, bond=10**20, slashed=Fraction(1, 10))
INPUT = keccak(b"input")
FRESH = Fraction(19)


def address(number: int) -> Address:
    return Address(number.to_bytes(20))


def vote(operator: int, output: str, weighs: Fraction = FRESH, node: int | None = None, given: Hash = INPUT) -> Vote:
    return Vote(
        address(1000 + (operator if node is None else node)), address(operator), given, keccak(output.encode()), weighs
    )


def plan_for(text: str, records: list[Record], collusion: int = 2, kind: str = "bit_exact") -> Plan:
    found = [Candidate(address(1000 + i), address(i), record) for i, record in enumerate(records)]
    return make_plan(read_assurance(text), kind, found, STAKE, Adversary(collusion=collusion))  # type: ignore[arg-type]


PLAN = plan_for("0.99", [Record()] * 8)


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.sampled_from("abcd"), st.sampled_from([1, 2, 19, 500, 10**6])), max_size=12
    ),
    st.sampled_from(["0.5", "0.9", "0.99", "0.999"]),
    st.booleans(),
)
def test_no_minority_is_ever_accepted(cast: list[tuple[int, str, int]], text: str, drawn: bool) -> None:
    weights = {operator: Fraction(weighs) for operator, _, weighs in cast}
    votes = [vote(operator, output, weights[operator], node=i) for i, (operator, output, _) in enumerate(cast)]
    plan = plan_for(text, [Record()] * 8)
    found = decide(votes, plan, drawn)
    pairs = found.pairs if isinstance(found, Dispute) else found.disputes
    flat = [i for pair in pairs for i in pair]
    assert len(flat) == len(set(flat))
    assert all(votes[i].output != votes[j].output and votes[i].node != votes[j].node for i, j in pairs)
    if isinstance(found, NeedMore):
        assert found.more >= 1
    if isinstance(found, Accept):
        supporters = {votes[i].operator for i in found.votes}
        opponents = {votes[i].operator for i in found.against} - supporters
        assert len({votes[i].output for i in found.votes}) == 1
        assert len(supporters) > len(opponents)
        assert len(supporters) >= plan.replicas
        assert set(found.votes) | set(found.against) == set(range(len(votes)))


def wrong_accepted(
    plan: Plan, bad: list[Fraction], friends: set[int], answer: Callable[[int], str]
) -> tuple[Fraction, Fraction]:
    """The exact probability that a wrong result is accepted, and that anything is. Operators are asked in their order;
    those of `friends` are bad together; the audit is drawn either way, each as probable as the plan says."""
    parties = [[i] for i in range(len(bad)) if i not in friends] + [sorted(friends)]
    wrong = settled = Fraction(0)
    rate = Fraction(plan.audit_ppm, MILLION)
    for states in product([False, True], repeat=len(parties)):
        is_bad = {i: state for party, state in zip(parties, states, strict=True) for i in party}
        chance = prod(
            (bad[party[0]] if state else 1 - bad[party[0]])
            for party, state in zip(parties, states, strict=True)
            if party
        )
        if not friends and states[-1]:
            continue  # nobody is one state, not two
        for drawn, share in ((True, rate), (False, 1 - rate)):
            outcome = run(plan, [answer(i) if is_bad[i] else "right" for i in range(len(bad))], bad, drawn)
            wrong += chance * share * (outcome not in ("right", None))
            settled += chance * share * (outcome is not None)
    return wrong, settled


def run(plan: Plan, answers: list[str], bad: list[Fraction], drawn: bool) -> str | None:
    """What is accepted in the end; None where referees have to tell, or operators run out."""
    count = plan.replicas
    while count <= len(answers):
        votes = [vote(i, answers[i], 1 / bad[i] - 1) for i in range(count)]
        found = decide(votes, plan, drawn)
        if isinstance(found, Accept):
            return answers[found.votes[0]]
        if isinstance(found, Dispute):
            return None
        count += found.more
    return None


@pytest.mark.parametrize("text", ["0.9", "0.99", "0.999"])
@pytest.mark.parametrize("friends", [set(), {0, 1}, {0, 3}])
@pytest.mark.parametrize("score", [0, 200])
def test_by_enumeration_wrong_results_are_no_more_frequent_than_agreed(
    text: str, friends: set[int], score: int
) -> None:
    """Bad operators all give one wrong answer, each its own, or all but a friend that is sacrificed."""
    record = Record(consecutive_valid=score, valid=score, score=score)
    bad = [1 / (weight(record, Fraction(1, 20)) + 1)] * 8
    plan = plan_for(text, [record] * 8)
    for answer in (lambda _: "wrong", lambda i: f"wrong {i}", lambda i: "bait" if i == 1 else "wrong"):
        wrong, settled = wrong_accepted(plan, bad, friends, answer)
        assert wrong <= 1 - plan.assurance
        assert settled > Fraction(9, 10)


def test_the_enumeration_can_fail() -> None:
    """The same with a plan for less: its wrong results are more frequent than the higher assurance allows."""
    bad = [Fraction(1, 20)] * 8
    wrong, _ = wrong_accepted(plan_for("0.9", [Record()] * 8), bad, {0, 1}, lambda _: "wrong")
    assert Fraction(1, 1000) < wrong <= Fraction(1, 10)


def test_agreement_is_accepted_and_fewer_votes_are_not() -> None:
    assert decide([], PLAN, False) == NeedMore(PLAN.replicas, (), ())
    assert isinstance(decide([vote(1, "a")], PLAN, False), NeedMore)
    two = [vote(1, "a"), vote(2, "a")]
    assert decide(two, PLAN, drawn=False) == Accept((0, 1), (), (), ())
    assert decide(two, PLAN, drawn=True) == NeedMore(1, (), ())
    assert decide([*two, vote(3, "a")], PLAN, drawn=True) == Accept((0, 1, 2), (), (), ())


def test_two_nodes_of_one_operator_are_one_vote_and_none_if_they_differ() -> None:
    twice = [vote(1, "a", node=1), vote(1, "a", node=2)]
    assert isinstance(decide(twice, PLAN, drawn=False), NeedMore)
    torn = [vote(1, "a", node=1), vote(1, "b", node=2), vote(2, "a")]
    found = decide(torn, PLAN, drawn=False)
    assert isinstance(found, NeedMore)
    assert found.more >= 2


def test_a_contradiction_is_disputed_at_once_and_only_once() -> None:
    votes = [vote(1, "a"), vote(2, "b")]
    found = decide(votes, PLAN, drawn=False)
    assert isinstance(found, NeedMore)
    assert found.disputes == ((0, 1),)
    again = decide([*votes, vote(3, "a")], PLAN, drawn=False, disputed={0, 1})
    assert isinstance(again, NeedMore)
    assert again.disputes == ()
    ends = [*votes, *(vote(i, "a") for i in range(3, 6))]
    assert decide(ends, PLAN, drawn=False, disputed={0, 1}) == Accept((0, 2, 3, 4), (1,), (), ())


def test_refereed_leaves_a_contradiction_to_referees_and_goes_on_with_what_they_left() -> None:
    plan = plan_for("0.99", [Record()] * 8, kind="refereed")
    votes = [vote(1, "a"), vote(2, "b")]
    assert decide(votes, plan, drawn=False) == Dispute(((0, 1),))
    assert isinstance(decide(votes[:1], plan, drawn=False), NeedMore)
    assert decide(votes, plan, drawn=False, disputed={0, 1}) == Dispute(())  # it waits
    liars = [vote(1, "lie"), vote(2, "lie"), vote(3, "a")]
    assert decide(liars, plan, drawn=True) == Dispute(((0, 2),))
    left = liars[1:]  # the first was found wrong; the honest one cannot be shown again, so somebody else is asked
    assert decide(left, plan, drawn=True, disputed={1}) == NeedMore(1, (), ())
    assert decide([*left, vote(4, "a")], plan, drawn=True, disputed={1}) == Dispute(((0, 2),))
    assert decide([liars[2], vote(4, "a"), vote(5, "a")], plan, drawn=True, disputed={0, 1}) == Accept(
        (0, 1, 2), (), (), ()
    )


@pytest.mark.parametrize("score", [0, 400, 5000])
def test_an_item_of_a_sample_is_run_twice_however_trusted_its_operator_is(score: int) -> None:
    records = [Record(consecutive_valid=score, valid=score, score=score)] * 8
    found = [Candidate(address(1000 + i), address(i), record) for i, record in enumerate(records)]
    plan = for_item(make_plan(Fraction(99, 100), "sampled", found, STAKE, items=1000), "bit_exact")
    weighs = weight(records[0], Fraction(1, 20))
    assert decide([vote(1, "a", weighs)], plan, drawn=False) == NeedMore(1, (), ())
    assert decide([vote(1, "a", weighs), vote(2, "a", weighs)], plan, drawn=False) == Accept((0, 1), (), (), ())
    torn = decide([vote(1, "a", weighs), vote(2, "b", weighs)], plan, drawn=False)
    assert isinstance(torn, NeedMore)
    assert torn.disputes == ((0, 1),)


def test_many_against_many_are_left_to_referees() -> None:
    votes = [vote(i, "ab"[i % 2]) for i in range(PLAN.limit + 1)]
    found = decide(votes, PLAN, drawn=False)
    assert isinstance(found, Dispute)
    assert len(found.pairs) == len(votes) // 2


def test_a_coalition_cannot_vouch_for_itself() -> None:
    assert not confirms(PLAN, [address(1), address(2), address(2)])
    assert confirms(PLAN, [address(1), address(2), address(3)])
    assert confirms(plan_for("0.99", [Record()] * 8, collusion=1), [address(1), address(2)])


def test_results_on_another_input_are_strays() -> None:
    """Reusing an earlier output: the receipt names the earlier input, and is no vote; nor can it be disputed."""
    votes = [vote(1, "new"), vote(2, "new"), vote(3, "old", given=keccak(b"earlier input"))]
    assert decide(votes, PLAN, drawn=False, expected_input=INPUT) == Accept((0, 1), (), (2,), ())
    assert decide(votes[1:], PLAN, drawn=False, expected_input=INPUT) == NeedMore(1, (1,), ())
    lies = [votes[0], vote(3, "old")]  # it names the input that it was given: a contradiction
    found = decide(lies, PLAN, drawn=False, expected_input=INPUT)
    assert isinstance(found, NeedMore)
    assert found.disputes == ((0, 1),)


def test_within_a_tolerance_results_near_one_of_them_count_as_one() -> None:
    values = {keccak(str(n).encode()): n for n in range(100)}

    def agree(one: Vote, other: Vote) -> bool:
        return abs(values[one.output] - values[other.output]) <= 2

    votes = [vote(i, str(n)) for i, n in enumerate([50, 51, 49, 90])]
    found = decide(votes, PLAN, drawn=False, agree=agree)
    assert not isinstance(found, Dispute)
    assert len(found.disputes) == 1
    more = decide([*votes, vote(9, "52")], PLAN, drawn=False, agree=agree)
    assert isinstance(more, Accept)
    assert more.against == (3,)


def test_who_is_near_some_of_the_accepted_is_not_called_wrong() -> None:
    """50 agrees with 48 and 52, which are not near each other; 54 is near 52 only; 60 is near nobody."""
    values = {keccak(str(n).encode()): n for n in range(100)}

    def agree(one: Vote, other: Vote) -> bool:
        return abs(values[one.output] - values[other.output]) <= 2

    votes = [vote(i, str(n)) for i, n in enumerate([48, 50, 52, 54, 60, 50, 51, 49])]
    found = decide(votes, PLAN, drawn=False, agree=agree)
    assert isinstance(found, Accept)
    assert found.votes[0] in (1, 5)
    assert set(found.votes) == {0, 1, 2, 5, 6, 7}
    assert found.against == (4,)
    assert all(not agree(votes[i], votes[j]) for i, j in found.disputes)


def test_an_assurance_of_nothing_takes_what_comes() -> None:
    plan = plan_for("0", [Record()])
    assert decide([vote(1, "a")], plan, drawn=False) == Accept((0,), (), (), ())
    assert decide([], plan, drawn=False) == NeedMore(1, (), ())


def test_votes_that_weigh_nothing_never_suffice() -> None:
    found = decide([vote(i, "a", Fraction(1)) for i in range(6)], PLAN, drawn=False)
    assert isinstance(found, NeedMore)


@pytest.mark.parametrize("assurance", ["0", "0.999"])
def test_what_is_attested_runs_once_and_one_vote_decides(assurance: str) -> None:
    """Only runs whose quotes are good come to be votes (client/jobs_checks.py)."""
    plan = plan_for(assurance, [Record()], kind="attested")
    assert (plan.kind, plan.replicas, plan.limit) == ("attested", 1, 1)
    assert decide([], plan, drawn=False) == NeedMore(1, (), ())
    assert decide([vote(0, "a")], plan, drawn=False) == Accept((0,), (), (), ())
