"""Who suits whom, why not, what would help, and who is chosen: against plain search."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.market.constraints import parse
from freehold.market.matching import Party, Rated, choose, match, match_all, nearest, rank
from freehold.protocol.errors import InvalidInput

ORDER = Party(
    "order", {"seconds": 600, "client": "0xaa"}, parse('cpu.cores >= 4 and gpu.model = "RTX*" and place = "de"')
)


def offer(name: str, rules: str = "", **properties: Any) -> Party:
    found = {key.replace("_", "."): value for key, value in properties.items()}
    return Party(name, found, parse(rules))


GOOD = offer("good", cpu_cores=8, gpu_model="RTX 4090", place="de")


def test_both_sides_must_be_true() -> None:
    assert match(ORDER, GOOD).matched
    assert match(ORDER, GOOD).reasons == ()
    picky = GOOD._replace(name="picky", constraint=parse("seconds <= 60"))
    assert not match(ORDER, picky).matched
    assert [tuple(reason) for reason in match(ORDER, picky).reasons] == [
        ("offer", "seconds <= 60", False, "it takes no such order: seconds is 600, wanted <= 60")
    ]


def test_every_clause_that_is_not_true_is_a_reason() -> None:
    found = match(ORDER, offer("small", "stake >= 1", cpu_cores=2, place="us"))
    assert found.value is False
    assert [(reason.side, reason.value, reason.text) for reason in found.reasons] == [
        ("order", False, "cpu.cores is 2, wanted >= 4"),
        ("order", None, 'gpu.model is not stated, wanted = "RTX*"'),
        ("order", False, 'place is "us", wanted = "de"'),
        ("offer", None, "it takes no such order: stake is not stated, wanted >= 1"),
    ]


# golemfactory/yagna, core/market/resolver/tests/matching.rs
@pytest.mark.parametrize(
    ("name", "wants", "takes", "expected"),
    [
        ("match_weak_simple_match", 'o1 = "v2"', 'd1 = "v1"', True),
        ("match_weak_simple_no_match", 'o1 = "v2"', 'd1 = "v3"', False),
        ("match_weak_simple_undefined, and false the other way", 'o3 = "v2"', 'd1 = "v3"', False),
        ("undefined on one side alone", 'o3 = "v2"', 'd1 = "v1"', None),
        ("undefined on the other side alone", 'o1 = "v2"', 'd3 = "v1"', None),
        ("match_weak_dynamic_property_no_match", "exists o1dblah", 'd1 = "v1"', False),
    ],
)
def test_golems_published_cases(name: str, wants: str, takes: str, expected: bool | None) -> None:
    found = match(Party("demand", {"d1": "v1"}, parse(wants)), Party("offer", {"o1": "v2"}, parse(takes)))
    assert found.value is expected, name
    assert found.matched is (expected is True)


# A small world, in which properties are missing as often as they are there.
NAMES = ["a", "b", "c"]
WORLDS = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 3), max_size=3)
CLAUSE = st.tuples(st.sampled_from(NAMES), st.sampled_from(["=", ">=", "<"]), st.integers(0, 4).map(str)).map(" ".join)
CLAUSES = st.lists(CLAUSE, max_size=4, unique=True)
TEXTS = CLAUSES.map(" and ".join)
PARTIES = st.builds(lambda world, text: Party("", world, parse(text)), WORLDS, TEXTS)
OFFERS = st.lists(PARTIES, max_size=8).map(lambda found: [one._replace(name=f"n{i}") for i, one in enumerate(found)])


def holds(clause: str, world: dict[str, Any]) -> bool | None:
    """A clause of the small world, read plainly."""
    name, sign, value = clause.split()
    if name not in world:
        return None
    return {"=": world[name] == int(value), ">=": world[name] >= int(value), "<": world[name] < int(value)}[sign]


def clauses(party: Party) -> list[str]:
    return [text for text in party.constraint.text.split(" and ") if text]


def failed(order: Party, offered: Party) -> tuple[set[str], set[str]]:
    ours = {clause for clause in clauses(order) if not holds(clause, dict(offered.properties))}
    return ours, {clause for clause in clauses(offered) if not holds(clause, dict(order.properties))}


@given(PARTIES, OFFERS)
def test_matching_is_what_a_plain_reading_says(order: Party, offers: list[Party]) -> None:
    for offered, found in zip(offers, match_all(order, offers), strict=True):
        values = [holds(clause, dict(offered.properties)) for clause in clauses(order)]
        values += [holds(clause, dict(order.properties)) for clause in clauses(offered)]
        assert found.value is (False if False in values else None if None in values else True)
        assert found.offer is offered
        ours, theirs = failed(order, offered)
        assert {reason.clause for reason in found.reasons if reason.side == "order"} == ours
        assert {reason.clause for reason in found.reasons if reason.side == "offer"} == theirs
        assert found.matched is not bool(found.reasons)


@given(PARTIES, OFFERS)
def test_the_nearest_is_what_a_search_finds(order: Party, offers: list[Party]) -> None:
    found = nearest(order, offers)
    fails = [failed(order, offered) for offered in offers]
    assert found.offers == len(offers)
    assert found.matched == sum(not ours and not theirs for ours, theirs in fails)
    assert [tuple(hurdle) for hurdle in found.hurdles] == [
        (
            clause,
            sum(clause in ours for ours, _ in fails),
            sum(ours == {clause} and not theirs for ours, theirs in fails),
        )
        for clause in clauses(order)
    ]
    assert sum(count for _, count in found.rules) == sum(bool(theirs) for _, theirs in fails)
    # the fewest clauses to drop: every set of them, the small ones first
    freed: dict[tuple[str, ...], int] = {}
    for size in range(len(clauses(order)) + 1):
        for dropped in combinations(clauses(order), size):
            count = sum(ours <= set(dropped) and not theirs for ours, theirs in fails)
            if count:
                freed[dropped] = count
        if freed:
            break
    if found.matched or not freed:
        assert (found.drop, found.freed) == ((), 0)
    else:
        assert found.freed == max(freed.values())
        assert freed[found.drop] == found.freed
    if not offers:
        assert found.offer is None
    else:
        assert found.offer is not None
        ours, theirs = failed(order, found.offer.offer)
        # an offer's own constraint counts as one, since the order cannot change it
        fewest = min(len(a) + bool(b) for a, b in fails)
        assert len(ours) + bool(theirs) == fewest


@given(PARTIES, OFFERS, st.randoms())
def test_the_order_of_the_offers_does_not_matter(order: Party, offers: list[Party], chance: Any) -> None:
    mixed = list(offers)
    chance.shuffle(mixed)
    first, second = nearest(order, offers), nearest(order, mixed)
    assert first[:3] == second[:3]
    assert (first.drop, first.freed, first.rules) == (second.drop, second.freed, second.rules)
    assert (first.offer and first.offer.offer.name) == (second.offer and second.offer.offer.name)


def test_the_nearest_misses_its_number_by_the_least_and_says_so() -> None:
    order = ORDER._replace(constraint=parse("cpu.cores >= 16 and memory.bytes >= 1 TiB"))
    offers = [
        offer("far", cpu_cores=64, memory_bytes=2**33),
        offer("near", cpu_cores=64, memory_bytes=2**39),
        offer("unwilling", "seconds < 60", cpu_cores=64, memory_bytes=2**41),
        offer("both", cpu_cores=1, memory_bytes=1),
    ]
    found = nearest(order, offers)
    assert found.describe() == [
        "0 of 4 match",
        "cpu.cores >= 16: not so for 1",
        "memory.bytes >= 1 TiB: not so for 3, the only thing for 2",
        "1 take only orders with seconds < 60",
        "without memory.bytes >= 1 TiB, 2 would match",
        "the nearest is near: memory.bytes is 0.5 TiB, wanted >= 1 TiB",
    ]
    assert nearest(order, [GOOD, offer("x", cpu_cores=16, memory_bytes=2**40)]).describe()[0] == "1 of 2 match"
    assert nearest(order, []).describe() == ["0 of 0 match"]


def rated(number: int, price: int, speed: int = 1, reliability: int = 1, operator: int | None = None) -> Rated:
    return Rated(bytes([number]) * 20, bytes([operator or number]) * 20, price, speed, reliability)


def test_ranked_by_price_for_what_is_done_then_by_address() -> None:
    ranked = rank([rated(5, 1, 0), rated(4, 6, 3), rated(3, 2), rated(2, 4, 2), rated(1, 3), rated(6, 1, 1, 0)])
    assert [one.address[0] for one in ranked] == [2, 3, 4, 1, 5, 6]
    with pytest.raises(InvalidInput, match="below zero"):
        rank([rated(1, -1)])


RATED = st.lists(
    st.builds(rated, st.integers(1, 9), st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.integers(1, 4)),
    unique_by=lambda one: one.address,
)


@given(RATED, st.integers(0, 6), st.integers(1, 2))
def test_the_choice_is_the_cheapest_of_distinct_operators(found: list[Rated], count: int, per_operator: int) -> None:
    chosen = choose(found, count, per_operator)
    assert chosen == choose(list(reversed(found)), count, per_operator)
    operators = [one.operator for one in chosen]
    assert max(map(operators.count, operators), default=0) <= per_operator
    possible = sum(min(per_operator, [one.operator for one in found].count(o)) for o in {one.operator for one in found})
    assert len(chosen) == min(count, possible)

    def cost(one: Rated) -> Fraction | float:
        worth = one.speed * one.reliability
        return Fraction(one.price, worth) if worth else float("inf")

    for one in found:  # whoever was passed over is not better than any chosen, or its operator is there already
        if one not in chosen and chosen and operators.count(one.operator) < per_operator:
            assert cost(one) >= max(map(cost, chosen))
