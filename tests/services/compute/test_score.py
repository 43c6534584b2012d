"""Compute's judge: each reason by a row that has it, and the same as the plain loops on random rows."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from freehold.protocol.keys import Key
from freehold.protocol.merkle import row_root
from freehold.protocol.messages import VOUCHER
from freehold.protocol.service import Context, Folded, Rows
from freehold.protocol.typed import keccak
from freehold.protocol.units import MEASURE_LIMIT, ZERO_HASH, Hash
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
    Verdict,
)
from freehold.services.compute import proof, terms
from freehold.services.compute.court import needed_thaw
from freehold.services.compute.proof import make_step
from freehold.services.compute.score import ComputeJudge
from freehold.services.compute.terms import (
    CROWDED,
    DISPUTE,
    DISPUTED,
    EARLY,
    EXACT,
    HELD,
    JOB,
    KEPT_EPOCHS,
    LATE,
    NEAR,
    NO_CONTRADICTION,
    OPINION,
    OVER_ORDER,
    PAID,
    RECEIPT,
    ROUNDS,
    SEAT,
    SEATS_AT_ONCE,
    UNFOUNDED,
    UNORDERED,
    UPHELD,
    WAITING,
    WRONG,
    Dispute,
    Opinion,
    Receipt,
    WorkState,
)
from tests.protocol.world import PARAMETERS, key, signed
from tests.services.compute import plain
from tests.services.compute_world import (
    CLIENT,
    EPOCH,
    NODES,
    RIGHT,
    STRANGER,
    WRONG_OUTPUT,
    case_of,
    context_of,
    dispute_of,
    job_of,
    lease_of,
    operator_of,
    opinion_of,
    order_of,
    ordered,
    receipt_of,
    records,
    rows_of,
    run,
    seat_of,
)

JUDGE = ComputeJudge()
FIRST, SECOND = NODES[:2]


def compare(context: Context, rows: Rows) -> tuple[list[Verdict], Folded]:
    """What the judge says and does, having checked that the plain loops say and do the same."""
    owed = JUDGE.obligations(context)
    verdicts = JUDGE.judge(owed, rows, context)
    expected = plain.judge(list(owed), rows, context)
    assert list(verdicts) == expected
    folded = JUDGE.fold(rows, verdicts, context)
    assert tuple(map(list, folded)) == plain.fold(rows, expected, context)
    return list(verdicts), folded


def reasons(context: Context, rows: Rows, kind: str) -> list[str]:
    """Of the rows of one kind, in their order."""
    subjects = {row.row_hash() for row in rows[kind]}
    return [v.reason for v in compare(context, rows)[0] if v.kind == kind and v.subject in subjects]


def receipt_reason(receipt: Receipt, *state: WorkState) -> str:
    (reason,) = reasons(context_of(state), rows_of([receipt]), RECEIPT)
    return reason


OTHER = lease_of(FIRST, STRANGER)
RECEIPTS: list[tuple[str, str, Callable[[], Receipt]]] = [
    ("good", GOOD, lambda: run(FIRST)),
    ("for nothing", GOOD, lambda: run(FIRST, measure=0)),
    ("as much as was ordered", GOOD, lambda: run(FIRST, measure=1000)),
    ("one more than was ordered", OVER_ORDER, lambda: run(FIRST, measure=1001)),
    ("all that a measure can be", GOOD, lambda: huge(MEASURE_LIMIT - 1)),
    ("more than a measure can be", OVER_ORDER, lambda: huge(MEASURE_LIMIT)),
    ("in its last epoch", GOOD, lambda: until(EPOCH)),
    ("after its last epoch", LATE, lambda: until(EPOCH - 1)),
    ("as far ahead as can be", GOOD, lambda: until(EPOCH + KEPT_EPOCHS)),
    ("too far ahead", EARLY, lambda: until(EPOCH + KEPT_EPOCHS + 1)),
    ("for ever", EARLY, lambda: until(2**64 - 1)),
    ("for no lease", UNKNOWN_LEASE, lambda: receipt_of(order_of(OTHER), FIRST)),
    ("by another node", UNORDERED, lambda: receipt_of(order_of(lease_of(FIRST)), SECOND)),
    ("ordered by a stranger", UNORDERED, lambda: receipt_of(order_of(lease_of(FIRST), client=STRANGER), FIRST)),
    ("not ordered", UNORDERED, lambda: receipt_of(msgspec.structs.replace(order_of(lease_of(FIRST)), most=999), FIRST)),
    ("not signed", WRONG_SIGNATURE, lambda: receipt_of(order_of(lease_of(FIRST)), SECOND, node=FIRST.address)),
    ("changed", WRONG_SIGNATURE, lambda: msgspec.structs.replace(run(FIRST), output=WRONG_OUTPUT)),
]


def huge(measure: int) -> Receipt:
    return receipt_of(order_of(lease_of(FIRST), most=2**64 - 1), FIRST, measure=measure)


def until(epoch: int) -> Receipt:
    return receipt_of(order_of(lease_of(FIRST), until=epoch), FIRST)


@pytest.mark.parametrize(("reason", "receipt"), [case[1:] for case in RECEIPTS], ids=[case[0] for case in RECEIPTS])
def test_a_receipt(reason: str, receipt: Callable[[], Receipt]) -> None:
    assert receipt_reason(receipt()) == reason


def test_a_receipt_needs_a_stream() -> None:
    context = context_of(leases=[lease_of(FIRST, mode=VOUCHER)])
    assert reasons(context, rows_of([run(FIRST)]), RECEIPT) == [WRONG_MODE]


def test_a_receipt_counts_once_whatever_has_become_of_it() -> None:
    receipt = run(FIRST)
    for stand in (WAITING, PAID, HELD, WRONG, UPHELD):
        assert receipt_reason(receipt, job_of(receipt, stand)) == KNOWN
    assert receipt_reason(run(FIRST, measure=1), job_of(receipt, PAID)) == KNOWN


def test_of_two_receipts_for_an_order_the_smaller_counts() -> None:
    small, large, third = run(FIRST, measure=5), run(FIRST, measure=6), run(FIRST, 2)
    rows = rows_of([large, third, small])
    assert reasons(context_of(), rows, RECEIPT) == [SUPERSEDED, GOOD, GOOD]
    _, folded = compare(context_of(), rows)
    assert sorted(row.measure for row in folded.state) == [5, 700]


STEPS = [keccak(bytes([i])) for i in range(7)]


def stepped(index: int, count: int = 7) -> tuple[Receipt, Receipt, list[Hash], list[Hash]]:
    """Two receipts whose states differ from a step on."""
    first = STEPS[:count]
    second = [leaf if i < index else keccak(leaf) for i, leaf in enumerate(first)]
    return run(FIRST, steps=row_root(first)), run(SECOND, steps=row_root(second), output=WRONG_OUTPUT), first, second


def by_step(at: int, steps: int = 7, /, kind: int = EXACT, **changes: Any) -> Dispute:
    first, second, *leaves = stepped(at, steps)
    step = make_step(leaves[0], leaves[1], at, first.input)
    return dispute_of(first, second, kind=kind, steps=(msgspec.structs.replace(step, **changes),))


def pair(**changes: Any) -> tuple[Receipt, Receipt]:
    return run(FIRST), run(SECOND, **{"output": WRONG_OUTPUT} | changes)


def receipt_for(node: Key, most: int, output: Hash) -> Receipt:
    """For an order that allows so much, all of it used."""
    return receipt_of(order_of(lease_of(node), most=most), node, measure=most, output=output)


DISPUTES: list[tuple[str, str, Callable[[], Dispute]]] = [
    ("outputs differ", GOOD, lambda: dispute_of(*pair())),
    ("outputs are far from each other", GOOD, lambda: dispute_of(*pair(), kind=NEAR)),
    ("of no kind", NO_CONTRADICTION, lambda: dispute_of(*pair(), kind=3)),
    ("outputs are the same", NO_CONTRADICTION, lambda: dispute_of(*pair(output=RIGHT))),
    ("other inputs", GOOD, lambda: dispute_of(*pair(input=ZERO_HASH))),
    ("only the inputs differ", GOOD, lambda: dispute_of(*pair(output=RIGHT, input=ZERO_HASH))),
    ("other inputs by distance", NO_CONTRADICTION, lambda: dispute_of(*pair(input=ZERO_HASH), kind=NEAR)),
    (
        "other tasks",
        NO_CONTRADICTION,
        lambda: dispute_of(run(FIRST), receipt_of(order_of(lease_of(SECOND), task=RIGHT), SECOND, output=WRONG_OUTPUT)),
    ),
    ("one bills more for the same", GOOD, lambda: dispute_of(run(FIRST), run(SECOND, measure=701))),
    ("one was allowed less", NO_CONTRADICTION, lambda: dispute_of(receipt_for(FIRST, 600, WRONG_OUTPUT), run(SECOND))),
    ("one was allowed just enough", GOOD, lambda: dispute_of(receipt_for(FIRST, 700, WRONG_OUTPUT), run(SECOND))),
    (
        "by distance bills may differ",
        NO_CONTRADICTION,
        lambda: dispute_of(run(FIRST), run(SECOND, measure=701), kind=NEAR),
    ),
    ("one node", NO_CONTRADICTION, lambda: dispute_of(run(FIRST), run(FIRST, 2, output=WRONG_OUTPUT))),
    ("by a stranger", UNORDERED, lambda: dispute_of(*pair(), client=STRANGER)),
    ("a receipt that is not signed", WRONG_SIGNATURE, lambda: dispute_of(unsigned(run(FIRST)), pair()[1])),
    ("the other is not signed", WRONG_SIGNATURE, lambda: dispute_of(run(FIRST), unsigned(pair()[1]))),
    ("a receipt that ran out", LATE, lambda: dispute_of(until(EPOCH - 1), pair()[1])),
    ("a receipt over its order", OVER_ORDER, lambda: dispute_of(run(FIRST), pair(measure=1001)[1])),
    ("the first step", GOOD, lambda: by_step(0)),
    ("a step", GOOD, lambda: by_step(3)),
    ("the last step, which is carried up", GOOD, lambda: by_step(6)),
    ("the only step", GOOD, lambda: by_step(0, 1)),
    ("a step by distance", NO_CONTRADICTION, lambda: by_step(3, kind=NEAR)),
    ("a step with another state before it", NO_CONTRADICTION, lambda: by_step(3, before=STEPS[1])),
    ("the first step with another input", NO_CONTRADICTION, lambda: by_step(0, before=STEPS[1])),
    ("another step", NO_CONTRADICTION, lambda: by_step(3, index=4)),
    ("a step of a shorter run", NO_CONTRADICTION, lambda: by_step(3, count=3)),
    ("a step that is the same", NO_CONTRADICTION, lambda: by_step(3, first=STEPS[3], second=STEPS[3])),
    ("a step without its path", NO_CONTRADICTION, lambda: by_step(3, first_path=b"")),
    ("a step with half a path", NO_CONTRADICTION, lambda: by_step(3, second_path=b"\x01" * 33)),
    ("a step with a path without end", NO_CONTRADICTION, lambda: by_step(3, first_before=bytes(2**16))),
    ("the first step with a path before it", NO_CONTRADICTION, lambda: by_step(0, first_before=bytes(32))),
]


def unsigned(receipt: Receipt) -> Receipt:
    return signed(receipt, node_signature=STRANGER)


@pytest.mark.parametrize(("reason", "dispute"), [case[1:] for case in DISPUTES], ids=[case[0] for case in DISPUTES])
def test_a_dispute(reason: str, dispute: Callable[[], Dispute]) -> None:
    rows = rows_of(disputes=[dispute()])
    assert reasons(context_of(), rows, DISPUTE) == [reason]
    _, folded = compare(context_of(), rows)
    assert len(folded.state) == (3 if reason == GOOD else 0)


def test_the_state_of_a_step_is_shown_by_neighbours_alone() -> None:
    """Leaf 4 of a tree of five is carried up: as the last of two it would stand behind leaf 0, and it does not."""
    first, second, leaves, others = stepped(4, 5)
    step = make_step(leaves, others, 4, first.input)
    for count, index in ((2, 1), (3, 2)):
        for before, path in ((leaves[0], step.first_path), (leaves[3], step.first_before), (leaves[3], b"")):
            changed = {"count": count, "index": index, "before": before, "first_before": path, "second_before": path}
            forged = msgspec.structs.replace(step, **changed)
            assert reasons(context_of(), rows_of(disputes=[dispute_of(first, second, steps=(forged,))]), DISPUTE) == [
                NO_CONTRADICTION
            ]


def test_only_one_step_is_disputed_and_the_whole_task_may_be() -> None:
    (step,) = by_step(3).steps
    first, second, *_ = stepped(3)
    rows = rows_of(disputes=[dispute_of(first, second, steps=(step, step))])
    assert reasons(context_of(), rows, DISPUTE) == [NO_CONTRADICTION]
    rows = rows_of(disputes=[dispute_of(first, second)])
    assert reasons(context_of(), rows, DISPUTE) == [GOOD]


def test_a_closed_lease_keeps_no_receipt_of_the_state_from_being_disputed() -> None:
    first, second = pair()
    open_leases = [lease_of(SECOND)]
    rows = rows_of(disputes=[dispute_of(first, second)])
    assert reasons(context_of([], open_leases), rows, DISPUTE) == [UNKNOWN_LEASE]
    assert reasons(context_of([job_of(first)], open_leases), rows, DISPUTE) == [GOOD]
    stolen = rows_of(disputes=[dispute_of(first, second, client=STRANGER)])
    assert reasons(context_of([job_of(first)], open_leases), stolen, DISPUTE) == [UNORDERED]


def test_what_was_ordered_before_the_lease_ended_is_paid() -> None:
    """A client that closes its lease while a job runs does not get it for nothing."""
    first, _ = pair()
    lease = lease_of(FIRST)
    ended = msgspec.structs.replace(lease, closed=EPOCH - 1)
    context = context_of((), [lease_of(SECOND)], ended={lease.lease: ended})
    assert reasons(context, rows_of(receipts=[first]), RECEIPT) == [GOOD]
    assert reasons(context_of((), [lease_of(SECOND)]), rows_of(receipts=[first]), RECEIPT) == [UNKNOWN_LEASE]


@pytest.mark.parametrize("stand", [HELD, WRONG, UPHELD])
def test_a_receipt_is_disputed_once(stand: int) -> None:
    first, second = pair()
    context = context_of([job_of(first, stand), job_of(second)])
    assert reasons(context, rows_of(disputes=[dispute_of(first, second)]), DISPUTE) == [DISPUTED]


def test_of_two_disputes_over_a_receipt_one_counts() -> None:
    first, second = pair()
    third = run(NODES[2], output=keccak(b"third"))
    disputes = [dispute_of(first, second), dispute_of(second, first), dispute_of(first, third)]
    said = reasons(context_of(), rows_of(disputes=disputes), DISPUTE)
    assert sorted(said) == [DISPUTED, DISPUTED, GOOD]


def test_a_receipt_that_was_paid_is_disputed_for_the_bond_alone() -> None:
    first, second = pair()
    state = [job_of(first, PAID), job_of(second, WAITING)]
    _, folded = compare(context_of(state), rows_of(disputes=[dispute_of(first, second)]))
    assert {row.node: row.stand for row in folded.state if row.role == JOB} == {first.node: PAID, second.node: HELD}
    assert len(folded.contributions) == 0
    again = context_of(list(folded.state), epoch=EPOCH + 1)
    assert reasons(again, rows_of(disputes=[dispute_of(first, second)]), DISPUTE) == [DISPUTED]


def test_what_waited_is_paid_a_sum_for_each_lease() -> None:
    state = [job_of(run(FIRST, i, measure=i)) for i in range(1, 6)] + [job_of(run(SECOND))]
    _, folded = compare(context_of(state), rows_of())
    assert {c.account: c.measure for c in folded.contributions} == {FIRST.address: 15, SECOND.address: 700}
    again = context_of(list(folded.state), epoch=EPOCH + 1)
    assert len(compare(again, rows_of())[1].contributions) == 0


def test_sums_stop_at_what_a_measure_can_be() -> None:
    state = [job_of(msgspec.structs.replace(run(FIRST, i), measure=MEASURE_LIMIT - 1)) for i in range(3)]
    _, folded = compare(context_of(state), rows_of())
    assert [c.measure for c in folded.contributions] == [MEASURE_LIMIT - 1]


def test_a_job_leaves_once_its_receipt_would_be_late() -> None:
    receipts = [receipt_of(order_of(lease_of(FIRST), i, until=EPOCH + i), FIRST) for i in range(3)]
    context = context_of([job_of(receipt) for receipt in receipts])
    _, folded = compare(context, rows_of())
    assert len(folded.contributions) == 1
    assert {row.until for row in folded.state} == {EPOCH + 1, EPOCH + 2}
    after = context_of(list(folded.state), epoch=EPOCH + 1)
    assert reasons(after, rows_of(receipts), RECEIPT) == [LATE, KNOWN, KNOWN]


RIGHT_ONE, WRONG_ONE = pair()
CASE = case_of(dispute_of(RIGHT_ONE, WRONG_ONE))
NEAR_CASE = case_of(dispute_of(RIGHT_ONE, WRONG_ONE, kind=NEAR))
REFEREES = NODES[2:5]
BOTH_HELD = [job_of(RIGHT_ONE, HELD), job_of(WRONG_ONE, HELD)]


def seated(case: WorkState = CASE, until: int = EPOCH + 1, referees: Any = REFEREES) -> Context:
    return context_of([*BOTH_HELD, case, *(seat_of(case, node, until) for node in referees)])


def decide(context: Context, *opinions: Opinion) -> tuple[dict[Any, int], set[Any], dict[Any, int]]:
    """The stands of the two jobs, who is slashed, and who is paid what, by node."""
    _, folded = compare(context, rows_of(opinions=opinions))
    stands = {row.node: row.stand for row in folded.state if row.role == JOB}
    return stands, {row.node for row in folded.slashes}, {c.account: c.measure for c in folded.contributions}


OPEN = {FIRST.address: HELD, SECOND.address: HELD}
FIRST_RIGHT = {FIRST.address: UPHELD, SECOND.address: WRONG}
BOTH_RIGHT = {FIRST.address: UPHELD, SECOND.address: UPHELD}
BOTH_WRONG = {FIRST.address: WRONG, SECOND.address: WRONG}
X, Y = keccak(b"x"), keccak(b"y")
VOTES: list[tuple[str, WorkState, list[tuple[Hash, int | None]], dict[Any, int], int]] = [
    ("all for one", CASE, [(RIGHT, None)] * 3, FIRST_RIGHT, 1),
    ("two for one", CASE, [(RIGHT, None)] * 2, FIRST_RIGHT, 1),
    ("two for one, one against", CASE, [(RIGHT, None)] * 2 + [(WRONG_OUTPUT, None)], FIRST_RIGHT, 1),
    ("one for one", CASE, [(RIGHT, None)], OPEN, 0),
    ("nobody", CASE, [], OPEN, 0),
    ("each another", CASE, [(RIGHT, None), (WRONG_OUTPUT, None), (X, None)], OPEN, 0),
    ("three of a third output", CASE, [(X, None)] * 3, BOTH_WRONG, 2),
    ("each a third output of its own", CASE, [(X, None), (Y, None), (keccak(b"z"), None)], OPEN, 0),
    ("two cannot tell", CASE, [(X, 3), (Y, 3)], BOTH_RIGHT, 0),
    ("one cannot tell", CASE, [(RIGHT, None)] * 2 + [(X, 3)], FIRST_RIGHT, 1),
    ("one was cut short", CASE, [(RIGHT, 1 | 8)] * 3, FIRST_RIGHT, 0),
    ("one was cut short, as two say", CASE, [(RIGHT, 1), (RIGHT, 1 | 8), (RIGHT, 1 | 8)], FIRST_RIGHT, 0),
    ("one was cut short, as one says", CASE, [(RIGHT, 1 | 8), (RIGHT, 1), (RIGHT, 1)], FIRST_RIGHT, 1),
    ("one was cut short, as one of two says", CASE, [(RIGHT, 1 | 8), (RIGHT, 1)], OPEN, 0),
    ("one was cut short, the other is wrong", CASE, [(X, 8)] * 2, BOTH_WRONG, 1),
    ("two near one, the third is out", NEAR_CASE, [(X, 1), (Y, 1)], OPEN, 0),
    ("all near one", NEAR_CASE, [(X, 1), (Y, 1), (X, 1)], FIRST_RIGHT, 1),
    ("two near one, one near both", NEAR_CASE, [(X, 1), (Y, 1), (X, 3)], FIRST_RIGHT, 0),
    ("all near none", NEAR_CASE, [(X, 0)] * 3, BOTH_WRONG, 2),
    ("one showed nothing", NEAR_CASE, [(X, 1 | 8)] * 3, FIRST_RIGHT, 0),
    ("one showed nothing to one", NEAR_CASE, [(X, 1 | 8), (X, 1), (X, 1)], FIRST_RIGHT, 0),
    ("one showed nothing, the other is far", NEAR_CASE, [(X, 8)] * 3, BOTH_WRONG, 1),
    ("two near both", NEAR_CASE, [(X, 3), (Y, 3)], BOTH_RIGHT, 0),
]


@pytest.mark.parametrize(
    ("case", "votes", "stands", "slashed"), [case[1:] for case in VOTES], ids=[case[0] for case in VOTES]
)
def test_a_case(case: WorkState, votes: list[tuple[Hash, int | None]], stands: dict[Any, int], slashed: int) -> None:
    opinions = [opinion_of(case, REFEREES[i], output, good) for i, (output, good) in enumerate(votes)]
    found, slashes, paid = decide(seated(case), *opinions)
    assert found == stands
    assert len(slashes) == slashed
    assert paid == {node: 700 for node, stand in stands.items() if stand == UPHELD}


def test_two_near_one_withhold_the_pay_when_time_is_over_and_take_no_bond() -> None:
    opinions = [opinion_of(NEAR_CASE, REFEREES[i], X, 1) for i in range(2)]
    assert decide(seated(NEAR_CASE, until=EPOCH), *opinions) == (FIRST_RIGHT, set(), {FIRST.address: 700})


OPINIONS: list[tuple[str, str, Callable[[], Opinion]]] = [
    ("good", GOOD, lambda: opinion_of(CASE, REFEREES[0])),
    ("cannot tell", GOOD, lambda: opinion_of(CASE, REFEREES[0], X, 3)),
    ("of the epoch before", WRONG_EPOCH, lambda: opinion_of(CASE, REFEREES[0], epoch=EPOCH - 1)),
    ("by nobody who was asked", UNOBLIGED, lambda: opinion_of(CASE, NODES[6])),
    ("by the accused", UNOBLIGED, lambda: opinion_of(CASE, FIRST)),
    ("for the other than its output says", UNFOUNDED, lambda: opinion_of(CASE, REFEREES[0], RIGHT, 2)),
    ("for none, with the output of one", UNFOUNDED, lambda: opinion_of(CASE, REFEREES[0], RIGHT, 0)),
    ("for one, with another output", UNFOUNDED, lambda: opinion_of(CASE, REFEREES[0], X, 1)),
    ("bits that there are not", UNFOUNDED, lambda: opinion_of(CASE, REFEREES[0], X, 16)),
    ("that the other was cut short", GOOD, lambda: opinion_of(CASE, REFEREES[0], RIGHT, 1 | 8)),
    ("that the one was, with the other's output", UNFOUNDED, lambda: opinion_of(CASE, REFEREES[0], RIGHT, 2 | 4)),
    ("that it is good and was cut short", UNFOUNDED, lambda: opinion_of(CASE, REFEREES[0], RIGHT, 1 | 4)),
]


@pytest.mark.parametrize(("reason", "opinion"), [case[1:] for case in OPINIONS], ids=[case[0] for case in OPINIONS])
def test_an_opinion(reason: str, opinion: Callable[[], Opinion]) -> None:
    assert reasons(seated(), rows_of(opinions=[opinion()]), OPINION) == [reason]


@pytest.mark.parametrize(
    ("good", "reason"), [(4, GOOD), (12, GOOD), (9, GOOD), (5, UNFOUNDED), (11, UNFOUNDED), (16, UNFOUNDED)]
)
def test_what_was_not_shown_was_not_near(good: int, reason: str) -> None:
    rows = rows_of(opinions=[opinion_of(NEAR_CASE, REFEREES[0], X, good)])
    assert reasons(seated(NEAR_CASE), rows, OPINION) == [reason]


def test_a_referee_has_one_voice() -> None:
    opinions = [opinion_of(CASE, REFEREES[0], output) for output in (RIGHT, WRONG_OUTPUT, X)]
    assert sorted(reasons(seated(), rows_of(opinions=opinions), OPINION)) == [GOOD, SUPERSEDED, SUPERSEDED]
    assert decide(seated(), *opinions)[0] == OPEN


def test_silence_and_sleep_and_what_contradicts_a_majority() -> None:
    def said(*outputs: Hash) -> list[str]:
        opinions = [opinion_of(CASE, node, output) for node, output in zip(REFEREES, outputs, strict=False)]
        verdicts, _ = compare(seated(), rows_of(opinions=opinions))
        by_node = {v.node: v.reason for v in verdicts[:3]}
        return [by_node[node.address] for node in REFEREES]

    assert said() == [SLEPT] * 3
    assert said(RIGHT) == [GOOD, SLEPT, SLEPT]
    assert said(RIGHT, RIGHT) == [GOOD, GOOD, SILENT]
    assert said(RIGHT, RIGHT, WRONG_OUTPUT) == [GOOD, GOOD, "wrong_result"]


def drawn(context: Context) -> set[Any]:
    return {row.node for row in compare(context, rows_of())[1].state if row.role == SEAT}


UNSEATED = msgspec.structs.replace(CASE, round=0, epoch=EPOCH - 1)


def test_referees_are_drawn_from_bonded_nodes_that_compute_of_other_operators() -> None:
    ordinary = context_of([*BOTH_HELD, UNSEATED])
    seats = drawn(ordinary)
    assert len(seats) == 3
    assert not seats & {FIRST.address, SECOND.address}
    assert drawn(ordinary) == seats
    rounds = {frozenset(drawn(ordinary._replace(beacon=keccak(bytes([i]))))) for i in range(20)}
    assert len(rounds) > 5
    three = NODES[2:5]
    for few in (
        {"nodes": records(NODES[:5])},
        {"nodes": (*records(NODES[:5]), *records(NODES[5:], bond=PARAMETERS.minimum_bond - 1))},
        {"leases": {lease.lease: lease for lease in map(lease_of, NODES[:5])}},
        {"nodes": (*records(NODES[:5]), *records(NODES[5:], operator=operator_of(FIRST)))},
        {"nodes": (*records(NODES[:5]), *records(NODES[5:], operator=CLIENT.address))},
    ):
        assert drawn(ordinary._replace(**few)) == {node.address for node in three}
    one_operator = (*records(NODES[:4]), *records(NODES[4:], operator=operator_of(NODES[4])))
    shared = {node.address for node in NODES[4:]}
    assert all(
        len(drawn(ordinary._replace(nodes=one_operator, beacon=keccak(bytes([i])))) & shared) == 1 for i in range(8)
    )


def test_too_few_referees_leave_a_case_undecided_and_both_are_paid() -> None:
    context = context_of([*BOTH_HELD, UNSEATED], nodes=records(NODES[:3]))
    for _ in range(2):
        _, folded = compare(context, rows_of())
        assert len(folded.contributions) == 0
        context = context._replace(state=folded.state, epoch=context.epoch + 1)
    verdicts, folded = compare(context, rows_of())
    assert {v.reason for v in verdicts} == {"undecided"}
    assert len(folded.slashes) == 0
    assert {row.stand for row in folded.state} == {UPHELD}
    assert sum(c.measure for c in folded.contributions) == 1400


def test_a_round_without_a_majority_gives_way_to_others_and_the_last_to_nobody() -> None:
    for round_ in (1, 2):
        case = msgspec.structs.replace(CASE, round=round_)
        _, folded = compare(seated(case, until=EPOCH), rows_of(opinions=[opinion_of(case, REFEREES[0])]))
        assert [(row.role, row.round) for row in folded.state if row.role != JOB] == [(2, round_)]
        _, seated_again = compare(context_of(list(folded.state), epoch=EPOCH + 1), rows_of())
        assert {row.round for row in seated_again.state if row.role == SEAT} == {round_ + 1}
    last = msgspec.structs.replace(CASE, round=3)
    assert decide(seated(last, until=EPOCH)) == (BOTH_RIGHT, set(), {FIRST.address: 700, SECOND.address: 700})


def test_referees_have_longer_for_longer_work() -> None:
    second = 10**9
    for measure, epochs in ((0, 2), (10 * second, 3), (600 * second, 62), (2**62, KEPT_EPOCHS)):
        case = msgspec.structs.replace(UNSEATED, measure=measure)
        _, folded = compare(context_of([*BOTH_HELD, case]), rows_of())
        assert {row.until for row in folded.state if row.role == SEAT} == {EPOCH + epochs}


CASE_ROW = terms.CASE
FEW = records(NODES[:5])
PLACES = SEATS_AT_ONCE * len(FEW) // 3


def flood(client: Key, count: int, epoch: int = EPOCH - 1) -> list[WorkState]:
    """So many cases of a client that nobody sits in."""
    receipts = [(run(FIRST, i), run(SECOND, i, output=WRONG_OUTPUT)) for i in range(count)]
    cases = [case_of(dispute_of(*two, client=client), round_=0, epoch=epoch) for two in receipts]
    return [msgspec.structs.replace(case, id=keccak(case.id + client.address)) for case in cases]


@pytest.mark.parametrize("measure", [700, 60 * 10**9])
def test_a_bond_that_thaws_is_there_when_the_last_round_ends(measure: int) -> None:
    """Nobody says anything until the last epoch of the last round."""
    right, wrong = (
        receipt_of(order_of(lease_of(node), most=measure), node, output=output, measure=measure)
        for node, output in ((FIRST, RIGHT), (SECOND, WRONG_OUTPUT))
    )
    context = context_of([job_of(right, epoch=EPOCH), job_of(wrong, epoch=EPOCH)], epoch=EPOCH + 1)
    rows = rows_of(disputes=[dispute_of(right, wrong)])
    for _ in range(1000):
        seats = [row for row in context.state if row.role == SEAT]
        is_last = bool(seats) and seats[0].round == ROUNDS and seats[0].until == context.epoch
        said = [opinion_of(seat, key_of(seat.node), seat.first_output, epoch=context.epoch) for seat in seats]
        _, folded = compare(context, rows_of(opinions=said) if is_last else rows)
        if len(folded.slashes):
            break
        context, rows = context._replace(state=folded.state, epoch=context.epoch + 1), rows_of()
    assert {row.node for row in folded.slashes} == {SECOND.address}
    active = EPOCH - 2 - -(-PARAMETERS.dispute_window // PARAMETERS.epoch_length)  # when the thaw may have begun
    assert context.epoch < active + needed_thaw(measure, PARAMETERS) <= context.epoch + 1


def key_of(node: Any) -> Key:
    return next(one for one in NODES if one.address == node)


def at_work(state: Any) -> Counter[Any]:
    """By client, its cases that have referees."""
    seated = {row.id for row in state if row.role == SEAT}
    return Counter(row.node for row in state if row.role == CASE_ROW and row.id in seated)


def test_who_floods_the_court_makes_itself_wait_and_loses_nothing() -> None:
    cases = flood(CLIENT, 2 * PLACES)
    oldest = msgspec.structs.replace(cases[-1], epoch=EPOCH - 2)
    _, folded = compare(context_of([*cases[:-1], oldest], nodes=FEW), rows_of())
    assert at_work(folded.state) == {CLIENT.address: (PLACES + 1) // 2}
    assert oldest.id in {row.id for row in folded.state if row.role == SEAT}
    assert len([row for row in folded.state if row.role == CASE_ROW]) == 2 * PLACES
    again = context_of(list(folded.state), epoch=EPOCH + 1, nodes=FEW)
    assert at_work(compare(again, rows_of())[1].state) == at_work(folded.state)


def test_another_clients_case_does_not_wait_behind_a_flood() -> None:
    """Neither before the flood's cases have referees, nor after, however many clients it comes from."""
    for floods in (1, 2, 3):
        state = [case for i in range(floods) for case in flood(key(100 + i), PLACES, EPOCH - 5)]
        (late,) = flood(CLIENT, 1)
        _, folded = compare(context_of([*state, late], nodes=FEW), rows_of())
        assert at_work(folded.state)[CLIENT.address] == 1
        _, folded = compare(context_of(state, nodes=FEW), rows_of())
        held = at_work(folded.state).values()
        assert max(held) - min(held) <= 1
        assert PLACES - sum(held) >= min(held) - 1 > 0
        again = context_of([*folded.state, late], epoch=EPOCH + 1, nodes=FEW)
        assert at_work(compare(again, rows_of())[1].state)[CLIENT.address] == 1


def test_a_client_has_so_many_cases_open_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (proof, terms):
        monkeypatch.setattr(module, "CASES_AT_ONCE", 3)
    disputes = [dispute_of(run(FIRST, i), run(SECOND, i, output=WRONG_OUTPUT)) for i in range(1, 5)]
    said = reasons(context_of(flood(CLIENT, 1)), rows_of(disputes=disputes), DISPUTE)
    assert sorted(said) == [CROWDED, CROWDED, GOOD, GOOD]
    assert reasons(context_of(flood(STRANGER, 3)), rows_of(disputes=disputes[3:]), DISPUTE) == [GOOD]


def test_an_unregistered_accused_is_judged_all_the_same() -> None:
    context = context_of([*BOTH_HELD, UNSEATED], nodes=records(NODES[2:6]))
    assert len(drawn(context)) == 3


@pytest.mark.parametrize("seed", range(40))
def test_columns_and_plain_loops_agree(seed: int) -> None:
    draw = random.Random(seed)
    context = context_of([], [lease_of(node) for node in NODES if draw.random() < 0.9])
    for _ in range(7):
        rows = random_rows(draw, context)
        _, folded = compare(context, rows)
        assert list(folded.state) == ordered(list(folded.state))
        nodes = tuple(record for record in records() if draw.random() < 0.9)
        context = context._replace(
            state=folded.state, epoch=context.epoch + 1, beacon=keccak(context.beacon), nodes=nodes
        )


def random_rows(draw: random.Random, context: Context) -> Rows:
    """Receipts of a few orders with faults, disputes over them, and what referees might say."""

    def receipt() -> Receipt:
        node = draw.choice(NODES[:3])
        client = STRANGER if draw.random() < 0.05 else CLIENT
        last = context.epoch + draw.choice([0, 1, 2, 30]) - (draw.random() < 0.05)
        most = draw.choice([1000, 1000, 600])
        order = order_of(lease_of(node), draw.randint(0, 2), client, most=most, until=last)
        output = draw.choice([RIGHT, RIGHT, WRONG_OUTPUT])
        signer = STRANGER if draw.random() < 0.05 else node
        return receipt_of(order, signer, node=node.address, output=output, measure=draw.choice([0, 500, 700]))

    receipts = [receipt() for _ in range(draw.randint(0, 8))]
    pool = [*receipts, *(receipt() for _ in range(4))]
    disputes = [
        dispute_of(*draw.choices(pool, k=2), client=draw.choice([CLIENT] * 9 + [STRANGER]), kind=draw.choice([1, 2]))
        for _ in range(draw.randint(0, 6))
    ]
    disputes += [by_step(draw.randint(0, 6))] if draw.random() < 0.3 else []
    opinions = [
        Opinion(
            epoch=context.epoch - (draw.random() < 0.1),
            case=seat.id,
            node=seat.node if draw.random() < 0.9 else NODES[7].address,
            output=draw.choice([seat.first_output, seat.first_output, X]),
            good=draw.choice([0, 1, 1, 1, 2, 3, 4, 9, 16]),
        )
        for seat in context.state
        if seat.role == SEAT
        for _ in range(draw.randint(0, 2))
    ]
    return rows_of(receipts, disputes, opinions)
