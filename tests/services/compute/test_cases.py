"""Whole lives of orders, settled epoch by epoch with real signatures: paid once, disputed, decided, slashed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from freehold.protocol.batches import RESERVATION
from freehold.protocol.bundle import decode_bundle, encode_bundle, replay_bundle
from freehold.protocol.typed import keccak
from freehold.protocol.units import Hash
from freehold.protocol.verdicts import GOOD, KNOWN, LOCK_FELL
from freehold.services.compute.terms import (
    HELD,
    PAID,
    RECEIPT,
    SEAT,
    UNDECIDED,
    UPHELD,
    WAITING,
    WRONG,
    WRONG_RESULT,
)
from freehold.services.judging import JUDGES
from tests.protocol.world import PARAMETERS
from tests.services.compute_life import CLIENT, CREDIT, LOCK, NODES, SECOND, ComputeLife
from tests.services.compute_world import WRONG_OUTPUT

HONEST, CHEAT = NODES[:2]


@pytest.fixture(scope="module")
def opened() -> ComputeLife:
    """Never changed: `fresh` starts from it."""
    return ComputeLife()


@pytest.fixture
def life(opened: ComputeLife) -> ComputeLife:
    """A client with a lease at six nodes, whose first epochs are settled."""
    fresh = ComputeLife.__new__(ComputeLife)
    fresh.__dict__ = {**opened.__dict__, "bundles": [], "settlements": list(opened.settlements)}
    return fresh


def lease_of(life: ComputeLife, node: Any) -> Hash:
    return life.leases[node.address].struct_hash()


def replays(life: ComputeLife) -> None:
    """Every epoch's bundle, and nothing else, leads to its report."""
    for bundle in life.bundles:
        replay_bundle(decode_bundle(encode_bundle(bundle), JUDGES), JUDGES)


def test_a_receipt_waits_an_epoch_and_is_paid_once(life: ComputeLife) -> None:
    receipt = life.run(HONEST, 1, measure=2 * SECOND + 1)
    life.settle(life.receipts(receipt))
    assert (life.paid(), list(life.stands().values())) == ({}, [WAITING])
    life.settle(life.receipts(receipt))
    assert life.paid() == {lease_of(life, HONEST): 2 * CREDIT + PRICE_OF_ONE}
    assert [v.reason for v in life.settlements[-1].verdicts if v.kind == RECEIPT] == [KNOWN]
    for _ in range(3):
        life.settle(life.receipts(receipt))
        assert life.paid() == {}
    replays(life)


PRICE_OF_ONE = CREDIT // SECOND


def test_a_wrong_receipt_is_slashed_and_never_paid_and_the_right_one_is_paid(life: ComputeLife) -> None:
    right, wrong, other = life.run(HONEST, 1), life.run(CHEAT, 1, WRONG_OUTPUT), life.run(CHEAT, 2)
    life.settle(life.receipts(right, wrong, other))
    life.settle([life.dispute(right, wrong)])
    assert life.paid() == {lease_of(life, CHEAT): 2 * CREDIT}  # for the other order
    life.settle([])
    assert len(life.rows(SEAT)) == 3
    assert life.paid() == {}
    settlement = life.settle(life.opinions())
    assert life.paid() == {lease_of(life, HONEST): 2 * CREDIT}
    (slash,) = settlement.slashes
    assert (slash.node, slash.harmed, slash.amount) == (CHEAT.address, CLIENT.address, PARAMETERS.wrong_result_slash)
    assert settlement.report.slashes_root == settlement.slashes.root
    said = {v.subject: v.reason for v in settlement.verdicts if v.node in (HONEST.address, CHEAT.address)}
    assert said == {right.order().struct_hash(): GOOD, wrong.order().struct_hash(): WRONG_RESULT}
    for _ in range(2):
        after = life.settle([*life.receipts(right, wrong), life.dispute(right, wrong)])
        assert (len(after.payments), len(after.slashes)) == (0, 0)
    spent = {a.account: a.credits_spent for a in life.state.accounts}[CLIENT.address]
    assert spent == 4 * CREDIT
    assert life.cases() == life.rows(SEAT) == []
    replays(life)


def test_an_epoch_that_is_revoked_and_settled_again_pays_what_it_had_paid_once(life: ComputeLife) -> None:
    """Whether a receipt was paid stands in the state, which goes back with its epoch, and nowhere else."""
    life.settle(life.receipts(life.run(HONEST, 1)))
    state, report = life.state, life.report
    first = life.settle([])
    assert (life.paid(), list(life.stands().values())) == ({lease_of(life, HONEST): 2 * CREDIT}, [PAID])
    life.state, life.report = state, report
    assert list(life.stands().values()) == [WAITING]
    again = life.settle([])
    assert again.report.struct_hash() == first.report.struct_hash()
    assert list(again.state.accounts) == list(first.state.accounts)


def test_who_retires_or_thaws_its_bond_is_slashed_all_the_same(life: ComputeLife) -> None:
    """A cheat that asks for its bond back at once: until the thaw ends, the contract takes what thaws."""
    cheat = NODES[-1]
    operator = life.state.operators[cheat.address].operator
    right, wrong = life.run(HONEST, 1), life.run(cheat, 1, WRONG_OUTPUT)
    life.settle(life.receipts(right, wrong))
    life.nodes = tuple(node for node in NODES if node is not cheat)
    life.settle([life.dispute(right, wrong)])
    life.settle([])
    settlement = life.settle(life.opinions())
    (slash,) = settlement.slashes
    assert (slash.node, slash.operator, slash.amount) == (cheat.address, operator, PARAMETERS.wrong_result_slash)
    assert settlement.state.operators[cheat.address].bond == 0
    replays(life)


def test_a_dispute_brings_receipts_that_their_nodes_never_sent(life: ComputeLife) -> None:
    right, wrong = life.run(HONEST, 1), life.run(CHEAT, 1, WRONG_OUTPUT)
    life.settle([life.dispute(wrong, right)])
    assert set(life.stands().values()) == {HELD}
    life.settle(life.receipts(right, wrong))
    life.settle(life.opinions())
    assert life.paid() == {lease_of(life, HONEST): 2 * CREDIT}
    assert [row.node for row in life.settlements[-1].slashes] == [CHEAT.address]


def test_who_bills_more_than_it_took_is_found_by_its_fuel(life: ComputeLife) -> None:
    """The same result, at twice the measure: referees get what it takes."""
    fair, greedy = life.run(HONEST, 1), life.run(CHEAT, 1, measure=4 * SECOND)
    life.settle(life.receipts(fair, greedy))
    life.settle([life.dispute(fair, greedy)])
    life.settle([])
    settlement = life.settle(life.opinions(measure=2 * SECOND))
    assert [row.node for row in settlement.slashes] == [CHEAT.address]
    assert life.paid() == {lease_of(life, HONEST): 2 * CREDIT}


def test_what_was_paid_before_it_was_disputed_costs_the_bond_alone(life: ComputeLife) -> None:
    right, wrong = life.run(HONEST, 1), life.run(CHEAT, 1, WRONG_OUTPUT)
    life.settle(life.receipts(wrong))
    life.settle([])
    assert life.paid() == {lease_of(life, CHEAT): 2 * CREDIT}
    life.settle([life.dispute(right, wrong)])
    life.settle([])
    settlement = life.settle(life.opinions())
    assert [row.node for row in settlement.slashes] == [CHEAT.address]
    assert life.paid() == {lease_of(life, HONEST): 2 * CREDIT}
    assert sorted(life.stands().values()) == [WRONG, UPHELD]


def test_what_was_paid_and_is_found_good_is_not_paid_again(life: ComputeLife) -> None:
    right, wrong = life.run(HONEST, 1), life.run(CHEAT, 1, WRONG_OUTPUT)
    life.settle(life.receipts(right))
    life.settle([])
    life.settle([life.dispute(right, wrong)])
    life.settle([])
    settlement = life.settle(life.opinions())
    assert ([row.node for row in settlement.slashes], life.paid()) == ([CHEAT.address], {})
    assert sorted(life.stands().values()) == [WRONG, UPHELD]


def test_a_client_that_closes_its_lease_pays_for_what_was_done(life: ComputeLife) -> None:
    waiting, held, wrong = life.run(NODES[2], 1), life.run(HONEST, 1), life.run(CHEAT, 1, WRONG_OUTPUT)
    life.settle([*life.receipts(waiting, held, wrong), *(life.close(node) for node in (HONEST, CHEAT, NODES[2]))])
    late = life.run(HONEST, 2)
    settlement = life.settle([life.dispute(held, wrong), *life.receipts(late)])
    assert life.paid() == {lease_of(life, NODES[2]): 2 * CREDIT}
    assert [v.reason for v in settlement.verdicts if v.kind == RECEIPT] == [GOOD]
    life.settle([])
    assert life.paid() == {lease_of(life, HONEST): 2 * CREDIT}  # what was still being done when the lease was closed
    settlement = life.settle(life.opinions())
    assert life.paid() == {lease_of(life, HONEST): 2 * CREDIT}
    assert [row.node for row in settlement.slashes] == [CHEAT.address]


def test_a_lock_does_not_fall_while_work_under_it_may_still_be_paid(life: ComputeLife) -> None:
    """Else a client disputes honest work, closes its lease, and takes the lock back before the referees are done."""
    held, wrong = life.run(HONEST, 1), life.run(CHEAT, 1, WRONG_OUTPUT)
    life.settle([*life.receipts(held, wrong), life.close(HONEST)])
    life.settle([life.dispute(held, wrong)])
    for _ in range(PARAMETERS.lock_release):
        life.settle([])
    assert free(life) == [LOCK_FELL]
    for _ in range(3):  # referees may have to be drawn again
        life.settle(life.opinions())
        if life.paid():
            break
    assert life.paid() == {lease_of(life, HONEST): 2 * CREDIT}
    assert free(life) == [GOOD]


def free(life: ComputeLife) -> list[str]:
    """Reserve without a lock for the honest node's lease; what is said of it."""
    left = [lease for lease in life.leases.values() if lease.node != HONEST.address]
    locks = {lease.struct_hash(): LOCK for lease in left}
    settlement = life.settle([life.reserve(CLIENT, life.reservation + 1, locks)])
    reasons = [v.reason for v in settlement.verdicts if v.kind == RESERVATION]
    life.reservation += reasons == [GOOD]
    return reasons


def test_a_lease_that_is_gone_keeps_no_epoch_from_being_settled(life: ComputeLife) -> None:
    """Its lock fell and its row went while referees were silent: nothing is left to pay the receipt from."""
    held, wrong = life.run(HONEST, 1), life.run(CHEAT, 1, WRONG_OUTPUT)
    life.settle([*life.receipts(held, wrong), life.close(HONEST)])
    life.settle([life.dispute(held, wrong)])
    left = {key: row for key, row in life.state.leases.items() if row.node != HONEST.address}
    life.state = replace(life.state, leases=left)
    life.settle([])
    settlement = life.settle(life.opinions())
    assert (life.paid(), len(settlement.slashes)) == ({}, 1)
    assert lease_of(life, HONEST) in {c.lease for c in settlement.contributions}


def test_more_than_the_lock_is_owed_and_not_paid(life: ComputeLife) -> None:
    receipts = [life.run(HONEST, i, measure=10 * SECOND) for i in range(1, 121)]
    life.settle(life.receipts(*receipts))
    life.settle([])
    (payment,) = life.settlements[-1].payments
    assert (payment.owed, payment.credits) == (1200 * CREDIT, LOCK)
    assert life.state.leases[lease_of(life, HONEST)].lapsed == life.epoch - 1


def test_silent_referees_decide_nothing_and_cost_nobody(life: ComputeLife) -> None:
    right, wrong = life.run(HONEST, 1), life.run(CHEAT, 1, WRONG_OUTPUT)
    life.settle([life.dispute(right, wrong)])
    panels = []
    while life.cases():
        settlement = life.settle([])
        panels.append(frozenset(row.node for row in life.rows(SEAT)))
        assert len(settlement.slashes) == 0
        assert len(panels) < 20
    assert len(set(panels)) > 2
    assert {v.reason for v in settlement.verdicts if v.kind == "compute.dispute"} == {UNDECIDED}
    assert life.paid() == {lease_of(life, HONEST): 2 * CREDIT, lease_of(life, CHEAT): 2 * CREDIT}
    assert set(life.stands().values()) == {UPHELD}


def test_one_liar_among_three_referees_changes_nothing_and_keeps_its_bond(life: ComputeLife) -> None:
    right, wrong = life.run(HONEST, 1), life.run(CHEAT, 1, WRONG_OUTPUT)
    life.settle([life.dispute(right, wrong)])
    life.settle([])
    liar = next(node for node in NODES if node.address == life.rows(SEAT)[0].node)
    settlement = life.settle(life.opinions(liars=[liar], lie=WRONG_OUTPUT))
    assert [row.node for row in settlement.slashes] == [CHEAT.address]
    assert {v.node for v in settlement.verdicts if v.reason == WRONG_RESULT} == {liar.address, CHEAT.address}


def test_what_is_random_by_its_nature_costs_no_honest_node(life: ComputeLife) -> None:
    """A client orders what nobody can repeat, and accuses: honest referees find it so, whichever way they say it."""
    first, second = life.run(HONEST, 1, keccak(b"1")), life.run(CHEAT, 1, keccak(b"2"))
    life.settle([life.dispute(first, second)])
    rounds = 0
    while life.cases():
        outputs = [life.opinions(keccak(bytes([rounds, i])))[i : i + 1] for i in range(3)] if life.rows(SEAT) else []
        settlement = life.settle([batch for batches in outputs for batch in batches])
        assert len(settlement.slashes) == 0
        rounds += 1
    assert life.paid() == {lease_of(life, HONEST): 2 * CREDIT, lease_of(life, CHEAT): 2 * CREDIT}


def test_nothing_is_left_of_an_order_once_it_ran_out(life: ComputeLife) -> None:
    life.settle(life.receipts(life.run(HONEST, 1)))
    for _ in range(21):
        life.settle([])
    assert len(life.state.services["compute"]) == 0
