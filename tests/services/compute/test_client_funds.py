"""What a lock covers, as its client counts it: never more than the node does, whatever came when."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.protocol.units import Hash
from freehold.services.compute.ordering.funds import Funds

LOCK = 1000
JOBS = [Hash(bytes([number]) * 32) for number in range(6)]


def test_an_order_is_counted_once_and_then_as_what_it_came_to() -> None:
    funds = Funds(lock=LOCK)
    assert funds.begin(JOBS[0], 300)
    assert not funds.begin(JOBS[0], 300)
    assert (funds.taken, funds.free) == (300, 700)
    funds.settle(JOBS[0], 120)
    funds.settle(JOBS[0], 120)
    assert (funds.taken, funds.free) == (120, 880)
    assert not funds.begin(JOBS[0], 300)  # sent again, it is the same job


def test_an_order_that_was_not_taken_is_not_counted() -> None:
    funds = Funds(lock=LOCK)
    funds.begin(JOBS[0], 300)
    funds.drop(JOBS[0])
    assert (funds.taken, funds.begin(JOBS[0], 200)) == (0, True)


def test_what_is_missing_is_what_must_be_locked_more() -> None:
    funds = Funds(lock=LOCK)
    funds.begin(JOBS[0], 300)
    funds.lack(50)  # the node counts 1,050 with this order
    assert (funds.used, funds.taken) == (750, LOCK + 50)


whats = st.sampled_from(["order", "answer", "end", "others", "learn"])
steps = st.lists(st.tuples(whats, st.sampled_from(JOBS), st.integers(0, 100)), max_size=40)


@given(steps)
@settings(max_examples=300)
def test_no_more_is_free_than_the_node_takes(script: list[tuple[str, Hash, int]]) -> None:
    """`bound` is what the node counts: of each job its most, then its cost; and what others have ordered.

    What others ordered is known after the client has learned of it; until then the node says what is missing.
    """
    funds, bound, others, learned = Funds(lock=10**6), dict[Hash, int](), 0, 0
    ended: dict[Hash, int] = {}
    for what, job, amount in script:
        if what == "order" and job not in bound:
            assert funds.begin(job, amount)
            bound[job] = amount
        elif what == "answer" and job in bound:
            funds.show(job)
        elif what == "end" and job in funds.running:
            cost = min(amount, funds.running[job])
            ended[job] = bound[job] = cost
            funds.settle(job, cost)
        elif what == "others":
            others += amount
        elif what == "learn":
            funds.learn(sum(bound.values()) + others)
            learned = others
        assert funds.taken >= sum(bound.values()) + learned
    if not funds.running:
        funds.learn(sum(bound.values()) + others)
        assert funds.taken == sum(ended.values()) + others
