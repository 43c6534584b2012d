"""Records, samples, steps and classes."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import combinations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.protocol.errors import InvalidInput
from freehold.protocol.merkle import row_root
from freehold.protocol.typed import keccak
from freehold.protocol.units import ZERO_HASH, Address, Hash
from freehold.services.compute.proof import is_step
from freehold.services.compute.tasks import Blob, ExecutorName, ProgramKind, Service, Task, state_leaf
from freehold.services.compute.terms import EXACT, NEAR, Receipt
from freehold.services.compute.verification.bisect import build_step, first_difference
from freehold.services.compute.verification.classes import check_class, dispute_kind
from freehold.services.compute.verification.reliability import (
    BACK_OFF,
    Evidence,
    Record,
    is_trusted,
    reliability_ppm,
    weight,
    wrong_probability,
)
from freehold.services.compute.verification.sampling import (
    detection,
    draw_audit,
    draw_crops,
    draw_items,
    receipts_hash,
    sample_size,
)

NODE, TWIN, OPERATOR, OTHER = (Address(bytes([n]) * 20) for n in range(1, 5))
PRIOR = Fraction(1, 20)


# Records


def test_ten_in_a_row_are_trusted_until_one_is_wrong() -> None:
    record = Record()
    for count in range(1, 13):
        record = record.after_valid(count)
        assert is_trusted(record) == (count >= 10)
    wrong = record.after_invalid(20)
    assert (wrong.consecutive_valid, wrong.score, is_trusted(wrong)) == (0, 8, False)
    assert weight(wrong, PRIOR) == 1
    assert wrong_probability(wrong, PRIOR) == Fraction(1, 2)


@given(st.lists(st.sampled_from(["valid", "invalid", "failed", "answered"]), max_size=60))
def test_weights_stay_in_range_and_evidence_survives_its_own_spelling(events: list[str]) -> None:
    evidence = Evidence()
    for now, event in enumerate(events):
        getattr(evidence, event)(NODE, OPERATOR, now)
        record = evidence.of(OPERATOR)
        assert 0 < wrong_probability(record, PRIOR) <= Fraction(1, 2)
        assert weight(record, PRIOR) >= 1
        assert 0 <= reliability_ppm(record) <= 10**6
    assert msgspec.json.decode(msgspec.json.encode(evidence), type=Evidence) == evidence


def test_who_fails_is_left_alone_twice_as_long_each_time_until_it_answers() -> None:
    evidence, now, waits = Evidence(), 1000, []
    for _ in range(4):
        evidence.failed(NODE, OPERATOR, now)
        assert not evidence.is_available(NODE, OPERATOR, now)
        assert evidence.is_available(TWIN, OPERATOR, now)  # a crash says nothing of its operator's other nodes
        waits.append(evidence.of_node(NODE).blocked_until - now)
        now += waits[-1]
        assert evidence.is_available(NODE, OPERATOR, now)
    assert waits == [BACK_OFF, 2 * BACK_OFF, 4 * BACK_OFF, 8 * BACK_OFF]
    evidence.answered(NODE, OPERATOR, now)
    evidence.failed(NODE, OPERATOR, now)
    assert evidence.of_node(NODE).blocked_until == now + BACK_OFF


def test_a_wrong_result_of_one_node_blocks_all_of_its_operator_and_no_other() -> None:
    evidence = Evidence()
    evidence.invalid(NODE, OPERATOR, 1000)
    assert not evidence.is_available(TWIN, OPERATOR, 1001)
    assert evidence.is_available(TWIN, OTHER, 1001)
    assert weight(evidence.of(OPERATOR), PRIOR) == 1


def test_reliability_falls_with_failures_and_with_wrong_results() -> None:
    good = Record(answered=100, valid=10)
    assert reliability_ppm(good) > reliability_ppm(Record(answered=100, valid=10, failures=10))
    assert reliability_ppm(good) > reliability_ppm(Record(answered=100, valid=10, invalid=1))
    assert reliability_ppm(good) > reliability_ppm(Record())


# Samples


@given(st.integers(1, 9), st.data())
def test_detection_is_what_counting_every_draw_gives(items: int, data: st.DataObject) -> None:
    wrong, sampled = (data.draw(st.integers(0, items)) for _ in range(2))
    draws = list(combinations(range(items), sampled))
    hits = sum(any(item < wrong for item in draw) for draw in draws)
    assert detection(items, wrong, sampled) == Fraction(hits, len(draws))


@given(st.integers(1, 400), st.fractions(Fraction(1, 100), 1), st.fractions(0, 1, max_denominator=1000))
def test_a_sample_is_as_small_as_it_can_be(items: int, fraction: Fraction, wanted: Fraction) -> None:
    size = sample_size(items, fraction, wanted)
    wrong = max(1, -(-items * fraction.numerator // fraction.denominator))
    assert detection(items, wrong, size) >= wanted
    assert size == 0 or detection(items, wrong, size - 1) < wanted


def test_samples_of_large_maps_are_quick_and_impossible_ones_refused() -> None:
    assert sample_size(2**20, Fraction(1, 20), Fraction(999, 1000)) == 135
    for items, fraction in ((0, PRIOR), (2**20 + 1, PRIOR), (10, Fraction(0)), (10, Fraction(2))):
        with pytest.raises(InvalidInput):
            sample_size(items, fraction, Fraction(1, 2))
    with pytest.raises(InvalidInput):
        detection(5, 6, 1)


@given(st.binary(max_size=8), st.binary(min_size=32, max_size=32), st.integers(0, 60), st.data())
def test_draws_are_different_indices_and_the_same_again(
    secret: bytes, seed: bytes, items: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, items))
    drawn = draw_items(secret, Hash(seed), items, count)
    assert len(set(drawn)) == count
    assert drawn == sorted(drawn) == draw_items(secret, Hash(seed), items, count)
    assert all(0 <= item < items for item in drawn)


def test_draws_are_even_and_depend_on_secret_and_receipt() -> None:
    hashes = [keccak(bytes([n % 256, n // 256])) for n in range(3000)]
    counts = Counter(item for each in hashes for item in draw_items(b"s", each, 10, 3))
    assert all(800 < counts[item] < 1000 for item in range(10))  # 900 +- 4 sigma
    audits = [draw_audit(b"s", each, 250_000) for each in hashes]
    assert 650 < sum(audits) < 850
    assert audits != [draw_audit(b"t", each, 250_000) for each in hashes]
    assert not any(draw_audit(b"s", each, 0) for each in hashes)
    assert all(draw_audit(b"s", each, 10**6) for each in hashes)
    assert receipts_hash(hashes[:3]) == receipts_hash(hashes[2::-1]) != receipts_hash(hashes[:2])


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 50))
def test_crops_lie_within_the_picture(width: int, height: int, part: int) -> None:
    crops = draw_crops(b"s", keccak(b"r"), width, height, part=part)
    assert len(crops) == 3
    for crop in crops:
        assert crop.width >= 1
        assert crop.height >= 1
        assert 0 <= crop.left <= width - crop.width
        assert 0 <= crop.top <= height - crop.height


# Steps


def receipt(node: Address, leaves: list[Hash], given: Hash = keccak(b"input")) -> Receipt:  # noqa: B008
    return Receipt(
        node=node,
        lease=ZERO_HASH,
        number=1,
        task=ZERO_HASH,
        most=1,
        until=9,
        input=given,
        output=leaves[-1],
        steps=row_root(leaves),
        measure=1,
    )


def leaves_of(*states: int) -> list[Hash]:
    return [state_leaf(f"{state:064x}") for state in states]


@given(st.lists(st.integers(0, 2**64), min_size=1, max_size=70, unique=True), st.data())
def test_the_first_differing_step_is_found_and_the_judge_takes_it(states: list[int], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(states) - 1))
    first, second = leaves_of(*states), leaves_of(*states[:index], *(2**65 + s for s in states[index:]))
    one, other = receipt(NODE, first), receipt(TWIN, second)
    step = build_step(one, other, first, second)
    assert step is not None
    assert (step.index, step.first, step.second) == (index, first[index], second[index])
    assert is_step(step, one, other)
    assert first_difference(first, second) == index


def test_what_is_disputed_whole() -> None:
    first, second = leaves_of(1, 2, 3), leaves_of(1, 2, 4)
    one, other = receipt(NODE, first), receipt(TWIN, second)
    assert build_step(one, other, first, leaves_of(1, 2)) is None  # another number of steps
    assert build_step(one, other, first, leaves_of(1, 9, 4)) is None  # not what its receipt commits to
    assert build_step(one, receipt(TWIN, first), first, first) is None  # the same steps
    assert first_difference(first, first[:2]) is None


# Classes


def task(executor: ExecutorName = "wasm", kind: ProgramKind = "module", **fields: object) -> Task:
    return Task(executor=executor, kind=kind, program=Blob("0" * 64, 0), **fields)  # type: ignore[arg-type]


NATIVE = task("sandbox", "native")


@pytest.mark.parametrize(
    ("name", "of", "items", "reason"),
    [
        ("magic", task(), 1, "no verification class"),
        ("bit_exact", NATIVE, 1, "deterministic executor"),
        ("refereed", task("sandbox", "native", steps=4), 1, "deterministic executor"),
        ("refereed", task(), 1, "number of steps"),
        ("tolerance", NATIVE, 1, "needs a metric"),
        ("tolerance", task(metric="taste", threshold=1), 1, "no metric"),
        ("bit_exact", task(metric="bytes"), 1, "compares bytes"),
        ("sampled", task(), 1, "two items"),
        ("attested", task(), 1, "asks for a quote"),
        ("bit_exact", task("service", "native", service=Service()), 1, "no result to verify"),
    ],
)
def test_what_a_class_needs_is_said(name: str, of: Task, items: int, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        check_class(name, of, items)


def test_what_each_class_takes() -> None:
    check_class("bit_exact", task())
    check_class("refereed", task(steps=3))
    check_class("tolerance", task("sandbox", "native", metric="pixels", threshold=9))
    check_class("sampled", NATIVE, 2)
    check_class("attested", task(attested=True))
    assert dispute_kind(task()) == EXACT
    assert dispute_kind(task(metric="bytes")) == NEAR
