"""Plans: the risk that they state is real, a cheat loses money under their audits, nothing goes below its floor."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations, product
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.protocol.errors import InsufficientOperators, InvalidInput
from freehold.protocol.units import Address
from freehold.services.compute.verification.plan import (
    LEAST_AUDIT_PPM,
    MILLION,
    Adversary,
    Candidate,
    Plan,
    Stake,
    audit_floor_ppm,
    has_consensus,
    make_plan,
    read_assurance,
    risk,
)
from freehold.services.compute.verification.reliability import Record, weight

STAKE = Stake(gain=10**15, bond=10**20, slashed=Fraction(1, 10))
fractions = st.fractions(0, Fraction(99_999, 100_000), max_denominator=100_000)


def address(number: int) -> Address:
    return Address(number.to_bytes(20))


def candidates(*records: Record) -> list[Candidate]:
    return [Candidate(address(100 + i), address(1 + i), record) for i, record in enumerate(records)]


def trusted(score: int) -> Record:
    return Record(consecutive_valid=score, valid=score, score=score)


def plan_for(assurance: str, count: int, record: Record = Record(), **options: object) -> Plan:  # noqa: B008
    return make_plan(read_assurance(assurance), "bit_exact", candidates(*[record] * count), STAKE, **options)  # type: ignore[arg-type]


def probability_wrong_given_agreement(bad: list[Fraction], friends: frozenset[int]) -> Fraction:
    """By enumeration: `bad` are probabilities; `friends` are bad together, as probably as the least known of them."""
    parties = [[i] for i in range(len(bad)) if i not in friends] + ([sorted(friends)] if friends else [])
    wrong = right = Fraction(0)
    for is_bad in product([False, True], repeat=len(parties)):
        chance = Fraction(1)
        for party, state in zip(parties, is_bad, strict=True):
            p = max(bad[i] for i in party)
            chance *= p if state else 1 - p
        if all(is_bad):
            wrong += chance
        elif not any(is_bad):
            right += chance
    return wrong / (wrong + right)


@given(
    st.lists(st.fractions(Fraction(1, 1000), Fraction(1, 2), max_denominator=1000), min_size=1, max_size=5),
    st.integers(1, 4),
)
def test_the_risk_of_a_group_covers_every_coalition(bad: list[Fraction], collusion: int) -> None:
    stated = risk([1 / p - 1 for p in bad], collusion)
    sizes = range(min(collusion, len(bad)) + 1)
    worst = [
        probability_wrong_given_agreement(bad, frozenset(friends))
        for size in sizes
        for friends in combinations(range(len(bad)), size)
    ]
    assert max(worst) == stated


@given(fractions, st.lists(st.integers(0, 3000), min_size=1, max_size=8), st.integers(1, 3))
def test_a_plan_keeps_what_it_promises(assurance: Fraction, scores: list[int], collusion: int) -> None:
    adversary = Adversary(collusion=collusion)
    found = candidates(*map(trusted, scores))
    try:
        plan = make_plan(assurance, "bit_exact", found, STAKE, adversary)
    except InsufficientOperators as error:
        short = error.details
    else:
        short = None
    if short is not None:
        assert short["needed"] > short["available"] == len(scores)
        return
    weights = [weight(one.record, adversary.prior) for one in found]
    risks = [risk(weights[:n], collusion) for n in (plan.replicas, plan.audited)]
    rate = Fraction(plan.audit_ppm, MILLION)
    assert plan.residual == (1 - rate) * risks[0] + rate * risks[1]
    assert plan.residual <= 1 - assurance
    assert plan.cost == plan.replicas + rate * (plan.audited - plan.replicas)
    assert 1 <= plan.replicas <= plan.audited <= len(scores) or plan.audited == plan.replicas
    if plan.replicas <= collusion and plan.audited > plan.replicas:
        assert plan.audit_ppm >= min(MILLION, max(LEAST_AUDIT_PPM, audit_floor_ppm(STAKE))) or assurance == 0
    if plan.deterred:
        assert plan.audited > collusion


@given(st.integers(0, 10**24), st.integers(1, 10**24), st.integers(1, 100), st.integers(1, 100))
def test_at_the_floor_a_cheat_loses_and_below_it_it_may_not(gain: int, bond: int, slashed: int, found: int) -> None:
    stake = Stake(gain, bond, Fraction(slashed, 100), Fraction(found, 100))
    rate = audit_floor_ppm(stake)
    loss = stake.bond * stake.slashed * stake.detection
    assert Fraction(rate, MILLION) * loss > gain
    assert Fraction(rate - 1, MILLION) * loss <= gain


def test_where_no_rate_deters_everything_is_audited_and_the_plan_says_so() -> None:
    plan = make_plan(
        read_assurance("0.5"), "bit_exact", candidates(*[trusted(100)] * 5), Stake(10**20, 10**19, Fraction(1, 10))
    )
    assert (plan.replicas, plan.audit_ppm, plan.deterred) == (3, 0, False)
    assert any("smaller than what a cheat would gain" in reason for reason in plan.reasons)
    assert audit_floor_ppm(Stake(1, 0, Fraction(1))) > MILLION


def test_fresh_workers_under_iexecs_rule() -> None:
    """PoCo: weight max(score/3, 3) - 1 = 2, group starts at 1, total at 1; unopposed, 7 reach 99 %."""
    trust, group, total, needed = 100, 0, 1, 0
    while not group * trust > total * (trust - 1):
        delta = max(group, 1) * 2 - group
        group, total, needed = group + delta, total + delta, needed + 1
    assert needed == 7
    third = Adversary(prior=Fraction(1, 3), collusion=1)
    fresh = [weight(Record(), third.prior)] * 8
    assert fresh[0] == 2
    reached = [n for n in range(1, 9) if has_consensus(prod(fresh[:n]), 1 + prod(fresh[:n]), Fraction(99, 100))]
    assert reached[0] == 7
    plan = make_plan(Fraction(99, 100), "bit_exact", candidates(*[Record()] * 8), STAKE, third)
    assert plan.audited == 7


@pytest.mark.parametrize("score", [0, 3, 9, 12, 30, 300])
def test_weights_are_iexecs_at_its_prior(score: int) -> None:
    assert weight(Record(score=score), Fraction(1, 3)) == max(score // 3, 3) - 1


def test_boincs_rule_asks_for_two_before_ten_in_a_row_and_then_for_one_in_n() -> None:
    nine, ten, twenty = (plan_for("0.5", 5, trusted(n)) for n in (9, 10, 20))
    assert nine.replicas == 2
    assert (ten.replicas, ten.audit_ppm) == (1, 100_000)
    assert (twenty.replicas, twenty.audit_ppm) == (1, 50_000)
    assert plan_for("0.5", 5, trusted(10**6)).audit_ppm == LEAST_AUDIT_PPM


def test_assurance_is_priced() -> None:
    costs = [plan_for(text, 12).cost for text in ("0", "0.9", "0.99", "0.999", "0.9999")]
    assert costs == sorted(costs)
    assert costs[0] == 1
    known = [plan_for("0.999", 12, trusted(score)).cost for score in (0, 60, 300, 3000, 10_000)]
    assert known == sorted(known, reverse=True)
    assert known[-1] == Fraction(102, 100)


def test_nodes_of_one_operator_are_one() -> None:
    one = [Candidate(address(i), address(1), Record()) for i in range(9)]
    with pytest.raises(InsufficientOperators) as error:
        make_plan(read_assurance("0.999"), "bit_exact", one, STAKE)
    assert (error.value.details["available"], error.value.details["needed"]) == (1, 4)


@pytest.mark.parametrize("text", ["1", "1.1", "-0.1", "nan", "", "100%", "1/0", "many", "0.9999999999"])
def test_what_is_no_assurance(text: str) -> None:
    with pytest.raises(InvalidInput):
        read_assurance(text)


def test_assurances_are_exact() -> None:
    assert read_assurance("0.999") == read_assurance("99.9%") == read_assurance("999/1000") == Fraction(999, 1000)


@given(
    st.integers(20, 2000), st.integers(3, 12), st.sampled_from(["0.9", "0.99", "0.999", "0.9999"]), st.integers(1, 3)
)
def test_a_sample_finds_what_it_says_whoever_looks_away(items: int, operators: int, text: str, collusion: int) -> None:
    from freehold.services.compute.verification.sampling import detection, wrong_items

    adversary = Adversary(collusion=collusion)
    found = candidates(*[Record()] * operators)
    try:
        plan = make_plan(read_assurance(text), "sampled", found, STAKE, adversary, items=items)
    except (InsufficientOperators, InvalidInput):
        assert operators <= collusion or items < 200
        return
    shares = [len(range(i, plan.sample, plan.auditors)) for i in range(plan.auditors)]
    watched = sum(sorted(shares)[: plan.auditors - (collusion - 1)])
    wrong = wrong_items(items, Fraction(1, 20))
    accepted = adversary.prior * (1 - detection(items, wrong, watched))
    assert accepted <= plan.residual <= 1 - read_assurance(text)
    assert plan.cost == 1 + Fraction(plan.sample, items)


def test_the_more_operators_run_a_map_the_more_of_it_is_drawn() -> None:
    found = candidates(*[Record()] * 9)
    plans = [make_plan(Fraction(99, 100), "sampled", found, STAKE, items=1000, workers=n) for n in (1, 4, 8, 40)]
    assert [plan.sample for plan in plans] == sorted(plan.sample for plan in plans)
    assert plans[0].sample < plans[1].sample
    assert all(plan.residual <= Fraction(1, 100) for plan in plans)


def test_unknown_classes_of_adversaries_are_refused() -> None:
    for adversary in (Adversary(prior=Fraction(0)), Adversary(prior=Fraction(2, 3)), Adversary(collusion=0)):
        with pytest.raises(InvalidInput):
            plan_for("0.9", 3, adversary=adversary)
    with pytest.raises(InsufficientOperators):
        plan_for("0.9", 0)
