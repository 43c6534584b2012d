"""Disputes: proofs and demands revoke what is wrong or hidden, and nothing else; bonds go where they belong."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import boa
import msgspec
import pytest
from eth_abi.abi import encode
from hypothesis import given
from hypothesis import strategies as st

from freehold.protocol.disputes import (
    COUNT,
    DEMAND_LEAF,
    DEMAND_VERDICT,
    LEAF,
    NODE,
    OPENING,
    SHRANK,
    Contradiction,
    answer_leaf,
    answer_verdict,
    commitment_of,
    find_fallen_count,
    find_shrunk,
    find_shrunk_shown,
    find_wrong_sum,
    find_wrong_verdict_shown,
    path_of,
)
from freehold.protocol.errors import NotFound
from freehold.protocol.merkle import ACCOUNTS
from freehold.protocol.messages import Report
from freehold.protocol.units import Address, Hash
from freehold.protocol.verdicts import SILENT
from freehold.services.judging import JUDGES
from tests.contracts.budgets import budget
from tests.contracts.disputing import (
    NO_REPORT,
    NOBODY,
    SALT,
    Challenger,
    accounts_of,
    bond_members,
    levels_over,
    mine,
    root_fields,
    states_of,
    wait,
)
from tests.contracts.test_opening import claim, find, settled
from tests.contracts.world import TOKEN, Account, World, deployer_of, flip_s, hexed, key_of, logs_of, tuple_of

BEFORE = accounts_of(100 * TOKEN, 200 * TOKEN, 300 * TOKEN, 7, 11, credits=5)
GROWN = [a._replace(tokens_earned=a.tokens_earned + TOKEN) for a in BEFORE]


@pytest.fixture
def challenger(world: World) -> Challenger:
    """A challenger; there are credits to have been spent, and members' bonds to lose."""
    world.buy(boa.env.generate_address(), 1_000 * TOKEN)
    bond_members(world)
    return Challenger(world)


def with_account(accounts: list[Account], index: int, **changes: Any) -> list[Account]:
    return [a._replace(**changes) if i == index else a for i, a in enumerate(accounts)]


def shrunken(world: World, index: int = 1) -> tuple[Report, Report, Contradiction]:
    """A report, the next in which an account lost a token, and the proof of that."""
    before = world.post(BEFORE)
    after = with_account(GROWN, index, tokens_earned=BEFORE[index].tokens_earned - TOKEN)
    found = find_shrunk(states_of(BEFORE), states_of(after))
    assert found is not None
    return before, world.post(after), found


# --- Proofs


def test_a_shrunken_account_revokes_its_report_and_all_after_it(world: World, challenger: Challenger) -> None:
    before, report, found = shrunken(world)
    world.post(subsidy=1)
    had = challenger.balance
    challenger.challenge(before, report, found)
    (event,) = logs_of(world.disputes, "Contradicted")
    assert (event.challenger, event.epoch, event.report_hash) == (challenger.address, 2, report.struct_hash())
    assert (event.kind, event.harmed.lower()) == (SHRANK, hexed(BEFORE[1].address))
    assert world.ledger.posted_epoch() == 1
    assert [world.oracle.attempt_of(e) for e in (1, 2, 3)] == [0, 1, 1]
    assert challenger.balance == had
    assert world.disputes.proven(report.struct_hash())[0] == challenger.address
    again = world.post(GROWN)
    assert again.attempt == 1
    assert world.activate() == 2
    assert world.claim(GROWN, 1) == GROWN[1].tokens_earned


@pytest.mark.parametrize(
    ("index", "changes"),
    [
        (0, {"tokens_earned": 100 * TOKEN - 1}),
        (1, {"credits_earned": 4}),
        (2, {"credits_spent": 4}),
        (3, {"address": key_of("someone else").address}),
        (4, {"tokens_earned": 0, "credits_earned": 0, "credits_spent": 0}),
    ],
)
def test_a_position_keeps_its_account_and_its_totals(
    world: World, challenger: Challenger, index: int, changes: dict[str, Any]
) -> None:
    before = world.post(BEFORE)
    rich = with_account(GROWN, (index + 1) % 5, tokens_earned=500 * TOKEN, credits_earned=99, credits_spent=99)
    after = with_account(rich, index, **changes)
    report = world.post(after)
    challenger.challenge(before, report, find_shrunk(states_of(BEFORE), states_of(after)))
    assert world.ledger.posted_epoch() == 1
    assert world.disputes.proven(report.struct_hash())[1].lower() == hexed(BEFORE[index].address)


def test_an_account_that_vanished_is_shown_by_its_empty_place(world: World, challenger: Challenger) -> None:
    """The count still names five accounts, but the fifth position holds nothing."""
    before = world.post(BEFORE)
    kept = with_account(GROWN, 0, tokens_earned=400 * TOKEN, credits_earned=99, credits_spent=99)[:4]
    report = world.post(**root_fields(levels_over([row.leaf() for row in states_of(kept)], positions=5), accounts=5))
    challenger.challenge(before, report, find_shrunk(states_of(BEFORE), [*states_of(kept), None]))
    assert world.ledger.posted_epoch() == 1
    assert world.disputes.proven(report.struct_hash())[1].lower() == hexed(BEFORE[4].address)


def levels_siblings(accounts: list[Account], index: int) -> list[Any]:
    levels = levels_over([row.leaf() for row in states_of(accounts)])
    return [level[(index >> h) ^ 1] for h, level in enumerate(levels[:-1])]


def test_fewer_accounts_than_before_are_a_contradiction(world: World, challenger: Challenger) -> None:
    before = world.post(BEFORE)
    fewer = with_account(GROWN, 0, tokens_earned=900 * TOKEN, credits_earned=99, credits_spent=99)[:4]
    report = world.post(fewer)
    assert find_shrunk(states_of(BEFORE), states_of(fewer)) is None
    challenger.challenge(before, report, find_fallen_count(before, report))
    assert world.disputes.proven(report.struct_hash()) == (challenger.address, NOBODY)
    assert find_fallen_count(before, before) is None


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("height", [0, 1, 2, 3])
def test_a_wrong_sum_is_shown_wherever_it_stands(world: World, challenger: Challenger, count: int, height: int) -> None:
    accounts = accounts_of(*(TOKEN + i for i in range(count)))
    leaves = [row.leaf() for row in states_of(accounts)]
    depth = len(levels_over(leaves)) - 1
    if height > depth:
        return
    position = (count - 1) >> height
    levels = levels_over(leaves, (height, position, 1000 * TOKEN // 2))
    report = world.post(**root_fields(levels, count))
    found = find_wrong_sum(states_of(accounts), levels)
    assert found is not None
    assert found.kind == (NODE if height else LEAF)
    challenger.challenge(NO_REPORT, report, found)
    assert world.ledger.posted_epoch() == 0
    assert world.disputes.proven(report.struct_hash()) == (challenger.address, NOBODY)


def test_a_leaf_with_another_index_than_its_place_is_shown(world: World, challenger: Challenger) -> None:
    rows = states_of(accounts_of(1, 2, 3))
    rows[2] = msgspec.structs.replace(rows[2], index=7)
    levels = levels_over([row.leaf() for row in rows])
    report = world.post(**root_fields(levels, 3))
    found = find_wrong_sum(rows, levels)
    assert found is not None
    assert found.kind == LEAF
    challenger.challenge(NO_REPORT, report, found)


def test_leaves_beyond_the_last_account_or_above_the_lowest_level_are_shown(
    world: World, challenger: Challenger
) -> None:
    """What hides outside the positions that are counted could be claimed all the same."""
    rows = states_of(accounts_of(1, 2, 3, 4))
    levels = levels_over([row.leaf() for row in rows])
    proof = b"".join(ACCOUNTS.pack(n) for n in (levels[0][2], levels[1][0]))
    leaf = (hexed(rows[3].account), 4, 0, 0)
    types = "(uint96,uint96,uint96,uint64,(address,uint96,uint96,uint96),uint64,bytes)"
    hidden = Contradiction(LEAF, encode([types], [(4, 0, 0, 3, leaf, 3, proof)]))
    for accounts in (3, 9):  # the fourth is not counted; or the tree is less deep than its count says
        report = world.post(**root_fields(levels, accounts))
        challenger.challenge(NO_REPORT, report, hidden)
        assert world.ledger.posted_epoch() == 0
    inner = encode(
        ["(uint96,uint96,uint96,bytes,bytes,uint64,bytes)"],
        [(10, 0, 0, ACCOUNTS.pack(levels[1][0]), ACCOUNTS.pack(levels[1][1]), 0, b"")],
    )
    report = world.post(**root_fields(levels, 1))  # of one account the root is a leaf
    challenger.challenge(NO_REPORT, report, Contradiction(NODE, inner))
    assert world.ledger.posted_epoch() == 0


def test_a_storage_opening_against_its_verdict_revokes_and_names_the_operator(
    world: World, challenger: Challenger
) -> None:
    wrong, verdicts = claim()
    node = next(v for v in verdicts if v.reason == "silent").node
    keys = {k.address: k for k in settled().nodes}
    operator = boa.env.generate_address()
    world.register(operator, keys[node])
    world.post()
    before = world.post()
    report = world.post(epoch=3, manifest=wrong.manifest, verdicts_root=wrong.verdicts_root, view=wrong.view)
    found = find(verdicts)
    assert found.kind == OPENING
    challenger.challenge(before, report, found)
    assert world.ledger.posted_epoch() == 2
    assert world.disputes.proven(report.struct_hash()) == (challenger.address, operator)


def honest_evidence(before: Report, report: Report) -> list[Contradiction]:
    """True statements about honest reports, in the form of each kind of proof."""
    levels = levels_over([row.leaf() for row in states_of(GROWN)])
    leaf, node = "(address,uint96,uint96,uint96)", ACCOUNTS.pack
    old, new = BEFORE[2], GROWN[2]
    proofs = [b"".join(node(n) for n in levels_siblings(accounts, 2)) for accounts in (BEFORE, GROWN)]
    shrunk = (2, (hexed(old.address), *old.sums), proofs[0], False, (hexed(new.address), *new.sums), proofs[1])
    root = levels[-1][0].sums
    right = (
        *levels[1][1].sums,
        node(levels[0][2]),
        node(levels[0][3]),
        1,
        b"".join(node(n) for n in (levels[1][0], levels[2][1])),
    )
    return [
        Contradiction(COUNT, b""),
        Contradiction(SHRANK, encode([f"(uint64,{leaf},bytes,bool,{leaf},bytes)"], [shrunk])),
        Contradiction(
            NODE,
            encode(
                ["(uint96,uint96,uint96,bytes,bytes,uint64,bytes)"],
                [(*root, node(levels[-2][0]), node(levels[-2][1]), 0, b"")],
            ),
        ),
        Contradiction(NODE, encode(["(uint96,uint96,uint96,bytes,bytes,uint64,bytes)"], [right])),
        Contradiction(
            LEAF,
            encode(
                [f"(uint96,uint96,uint96,uint64,{leaf},uint64,bytes)"],
                [(*new.sums, 2, (hexed(new.address), *new.sums), 2, proofs[1])],
            ),
        ),
    ]


def test_true_statements_contradict_nothing(world: World, challenger: Challenger) -> None:
    before, report = world.post(BEFORE), world.post(GROWN)
    assert find_shrunk(states_of(BEFORE), states_of(GROWN)) is None
    assert find_wrong_sum(states_of(GROWN), levels_over([row.leaf() for row in states_of(GROWN)])) is None
    for number, evidence in enumerate(honest_evidence(before, report)):
        other = Challenger(world)
        other.commit(report, evidence)
        mine()
        with boa.reverts("disputes: no contradiction"):
            other.reveal(before, report, evidence)
        assert world.ledger.posted_epoch() == 2, number


def test_false_statements_are_refused(world: World, challenger: Challenger) -> None:
    """Every one with something changed that the report does not commit to."""
    before, report, found = shrunken(world)
    world_before = world.ledger.posted_epoch()
    lies = {
        "disputes: unknown kind": found._replace(kind=6),
        "disputes: evidence": Contradiction(COUNT, b"\x00"),
        "disputes: no contradiction": Contradiction(COUNT, b""),
        "disputes: wrong proof": find_shrunk(states_of(BEFORE), states_of(with_account(GROWN, 0, tokens_earned=1))),
        "disputes: proof length": find_shrunk(states_of(BEFORE[:2]), states_of(GROWN[1:3])),
    }
    for reason, lie in lies.items():
        other = Challenger(world)
        other.commit(report, lie)
        mine()
        with boa.reverts(reason):
            other.reveal(before, report, lie)
    other = Challenger(world)
    other.commit(report, found)
    mine()
    with boa.reverts("disputes: not the report before"):
        other.reveal(report, report, found)
    assert world.ledger.posted_epoch() == world_before


# --- Commit and reveal


def test_a_challenge_cannot_be_copied(world: World, challenger: Challenger) -> None:
    before, report, found = shrunken(world)
    thief = Challenger(world)
    challenger.commit(report, found)
    copied = commitment_of(Address(challenger.address), found, SALT)
    world.disputes.commit(2, report.struct_hash(), copied, sender=thief.address)
    mine()
    with boa.reverts("disputes: not committed"):
        thief.reveal(before, report, found)
    late = Challenger(world)
    late.commit(report, found)  # saw the reveal in the mempool, and is a block behind
    with boa.reverts("disputes: same block"):
        late.reveal(before, report, found)
    challenger.reveal(before, report, found)
    assert world.disputes.proven(report.struct_hash())[0] == challenger.address


def test_a_commitment_says_nothing_and_opens_to_one_thing(world: World, challenger: Challenger) -> None:
    before, report, found = shrunken(world)
    challenger.commit(report, found)
    mine()
    for changed, salt in (
        (found, Hash(bytes(32))),
        (found._replace(kind=NODE), SALT),
        (found._replace(evidence=found.evidence + bytes(32)), SALT),
    ):
        with boa.reverts("disputes: not committed"):
            challenger.reveal(before, report, changed, salt)
    challenger.reveal(before, report, found)
    with boa.reverts("disputes: no challenge"):
        challenger.reveal(before, report, found)


def test_one_hold_of_a_report_at_a_time(world: World, challenger: Challenger) -> None:
    _, report, found = shrunken(world)
    challenger.commit(report, found)
    with boa.reverts("disputes: one hold at a time"):
        challenger.commit(report, found)
    with boa.reverts("disputes: one hold at a time"):
        challenger.demand(report, DEMAND_LEAF, 0)
    assert world.ledger.pending(2).holds == 1


def test_only_the_pending_report_of_that_hash_is_challenged(world: World, challenger: Challenger) -> None:
    before, report, found = shrunken(world)
    commitment = commitment_of(Address(challenger.address), found, SALT)
    for epoch, report_hash in ((2, before.struct_hash()), (1, report.struct_hash()), (3, bytes(32)), (0, bytes(32))):
        with boa.reverts("disputes: another report"):
            world.disputes.commit(epoch, report_hash, commitment, sender=challenger.address)
    world.activate()
    with boa.reverts("disputes: not pending"):
        challenger.commit(report, found)
    with boa.reverts("disputes: not pending"):
        challenger.demand(report, DEMAND_LEAF, 0)


def test_the_last_second_of_the_window_counts_and_the_next_does_not(world: World, challenger: Challenger) -> None:
    _, report, found = shrunken(world)
    wait(world.settings.dispute_window - 1)
    challenger.commit(report, found)
    wait(1)
    other = Challenger(world)
    with boa.reverts("disputes: too late"):
        other.commit(report, found)
    with boa.reverts("disputes: too late"):
        other.demand(report, DEMAND_LEAF, 0)


def test_a_new_attempt_is_another_report(world: World, challenger: Challenger) -> None:
    """What was committed against a revoked report does not touch the one in its place, and the bond comes back."""
    before, report, found = shrunken(world)
    late = Challenger(world)
    challenger.commit(report, found)
    late.commit(report, found)
    mine()
    challenger.reveal(before, report, found)
    for method in (lambda: late.reveal(before, report, found), lambda: late.commit(report, found)):
        with boa.reverts():
            method()
    again = world.post(GROWN)
    assert again.attempt == 1
    assert world.ledger.pending(2).holds == 0
    with boa.reverts("disputes: proven"):
        late.reveal(before, report, found)
    assert world.disputes.proven(report.struct_hash())[0] == challenger.address
    with boa.reverts("disputes: report is gone"):
        wait(world.settings.reveal_seconds + 1)
        world.disputes.forfeit(report.struct_hash(), late.address)
    had = late.balance
    world.disputes.withdraw(report.struct_hash(), sender=late.address)
    assert late.balance == had + world.settings.dispute_bond
    with boa.reverts("disputes: no bond"):
        world.disputes.withdraw(report.struct_hash(), sender=late.address)


def test_what_fell_with_an_earlier_report_is_still_proven_wrong(world: World, challenger: Challenger) -> None:
    """And what stands in its place stays."""
    before, report, found = shrunken(world)
    challenger.commit(report, found)
    world.revoke(1)
    again = [world.post(BEFORE), world.post(GROWN)]
    had, supply = challenger.balance, world.token.totalSupply()
    mine()
    challenger.reveal(before, report, found)
    assert challenger.balance == had + world.settings.dispute_bond
    assert (world.ledger.posted_epoch(), world.oracle.report_hash(2)) == (2, again[1].struct_hash())
    world.disputes.slash(tuple_of(report), *world.sign(report))
    assert world.token.totalSupply() < supply
    assert world.activate() == 2


def test_a_report_that_became_active_in_a_freeze_is_still_proven_wrong(world: World, challenger: Challenger) -> None:
    """It stays active: what was minted is not taken back. But its signers pay."""
    before, report, found = shrunken(world)
    freeze(world)
    challenger.commit(report, found)
    assert world.ledger.activate() == 2
    mine()
    challenger.reveal(before, report, found)
    assert (world.ledger.active_epoch(), world.token.balanceOf(world.disputes)) == (2, 0)
    assert world.disputes.slash(tuple_of(report), *world.sign(report)) == 3 * world.settings.member_bond


def test_a_challenge_that_is_not_revealed_loses_its_bond(world: World, challenger: Challenger) -> None:
    before, report, found = shrunken(world)
    wait(world.settings.dispute_window - 1)
    challenger.commit(report, found)
    wait(world.settings.reveal_seconds)
    assert world.ledger.activate() == 1  # the challenged one is held
    with boa.reverts("disputes: too early"):
        world.disputes.forfeit(report.struct_hash(), challenger.address)
    with boa.reverts("disputes: still pending"):
        world.disputes.withdraw(report.struct_hash(), sender=challenger.address)
    wait(1)
    with boa.reverts("disputes: too late"):
        challenger.reveal(before, report, found)
    supply = world.token.totalSupply()
    world.disputes.forfeit(report.struct_hash(), challenger.address)
    assert logs_of(world.disputes, "Forfeited")[0].amount == world.settings.dispute_bond
    assert world.token.totalSupply() == supply - world.settings.dispute_bond
    assert world.ledger.activate() == 2
    with boa.reverts("disputes: nothing to forfeit"):
        world.disputes.forfeit(report.struct_hash(), challenger.address)


def test_reveal_in_the_last_second(world: World, challenger: Challenger) -> None:
    before, report, found = shrunken(world)
    wait(world.settings.dispute_window - 1)
    challenger.commit(report, found)
    wait(world.settings.reveal_seconds)
    challenger.reveal(before, report, found)
    assert world.ledger.posted_epoch() == 1


def test_holds_cannot_block_activation_for_good(world: World, challenger: Challenger) -> None:
    """However many there are, the last ends a window and a reveal after the report came; later ones are refused."""
    report = world.post(BEFORE)
    griefers = [Challenger(world) for _ in range(4)]
    junk = Contradiction(COUNT, b"")
    for griefer in griefers[:3]:
        wait(30)
        griefer.commit(report, junk)
    wait(10)
    with boa.reverts("disputes: too late"):
        griefers[3].commit(report, junk)
    wait(world.settings.reveal_seconds)
    assert world.ledger.activate() == 0
    for griefer in griefers[:3]:
        world.disputes.forfeit(report.struct_hash(), griefer.address)
    assert world.ledger.activate() == 1
    assert world.token.balanceOf(world.disputes) == 0


def test_a_bond_is_put_up_or_nothing_happens(world: World, challenger: Challenger) -> None:
    report = world.post(BEFORE)
    poor = Challenger(world, tokens=world.settings.dispute_bond - 1)
    with boa.reverts():
        poor.commit(report, Contradiction(COUNT, b""))
    with boa.reverts():
        poor.demand(report, DEMAND_LEAF, 0)
    assert world.ledger.pending(1).holds == 0


# --- Demands


def answer(world: World, report: Report, challenger: Challenger, given: tuple[bytes, bytes], who: str) -> None:
    world.disputes.answer(tuple_of(report), challenger.address, *given, sender=who)


@pytest.mark.parametrize("position", range(8))
def test_every_leaf_can_be_demanded_and_shown(world: World, challenger: Challenger, position: int) -> None:
    """Of five accounts, in a tree with eight places: those beyond the last are shown to be empty."""
    report, answerer = world.post(BEFORE), boa.env.generate_address()
    challenger.demand(report, DEMAND_LEAF, position)
    (event,) = logs_of(world.disputes, "Demanded")
    assert (event.kind, event.position, event.deadline) == (DEMAND_LEAF, position, 1 + world.settings.answer_reports)
    other = answer_leaf(states_of(BEFORE), (position + 1) % 5)
    with boa.reverts():
        answer(world, report, challenger, other, answerer)
    shown = answer_leaf(states_of(BEFORE), position)
    answer(world, report, challenger, shown, answerer)
    assert world.token.balanceOf(answerer) == world.settings.dispute_bond
    (event,) = logs_of(world.disputes, "Answered")
    assert (event.answerer, event.position, event.shown) == (answerer, position, shown.shown)
    with boa.reverts("disputes: no demand"):
        answer(world, report, challenger, shown, answerer)
    with boa.reverts("disputes: no bond"):
        world.disputes.withdraw(report.struct_hash(), sender=challenger.address)


def test_there_must_be_such_a_leaf_or_verdict(world: World, challenger: Challenger) -> None:
    report = world.post(BEFORE, verdicts_root=Hash(bytes(32)))
    with boa.reverts("disputes: no such position"):
        challenger.demand(report, DEMAND_LEAF, 8)
    with boa.reverts("disputes: no verdicts"):
        challenger.demand(report, DEMAND_VERDICT, 0)
    with boa.reverts("disputes: unknown kind"):
        challenger.demand(report, 3, 0)
    with boa.reverts("disputes: another report"):
        challenger.demand(msgspec.structs.replace(report, price=1), DEMAND_LEAF, 0)


def test_an_empty_tree_answers_too(world: World, challenger: Challenger) -> None:
    report = world.post([])
    challenger.demand(report, DEMAND_LEAF, 0)
    answer(world, report, challenger, answer_leaf([], 0), challenger.address)


def test_an_empty_place_is_no_answer_for_an_account(world: World, challenger: Challenger) -> None:
    """Position 3 of four is counted as an account, but the tree has nothing there."""
    levels = levels_over([row.leaf() for row in states_of(accounts_of(1, 2, 3))])
    report = world.post(**root_fields(levels, 4))
    challenger.demand(report, DEMAND_LEAF, 3)
    with boa.reverts("disputes: wrong proof"):
        answer(world, report, challenger, answer_leaf(states_of(accounts_of(1, 2, 3)), 3), challenger.address)


def test_an_account_is_no_answer_for_an_empty_place(world: World, challenger: Challenger) -> None:
    accounts = accounts_of(1, 2, 3, 4)
    report = world.post(**root_fields(levels_over([row.leaf() for row in states_of(accounts)]), 3))
    challenger.demand(report, DEMAND_LEAF, 3)
    with boa.reverts("disputes: wrong proof"):
        answer(world, report, challenger, answer_leaf(states_of(accounts), 3), challenger.address)


def test_the_zero_address_is_an_account_like_any_other(world: World, challenger: Challenger) -> None:
    """Devices may name it as their owner: its leaf can be shown, also while it has earned nothing."""
    accounts = [Account(Address(bytes(20)), 0), Account(key_of("other").address, 0)]
    report = world.post(accounts)
    challenger.demand(report, DEMAND_LEAF, 0)
    answer(world, report, challenger, answer_leaf(states_of(accounts), 0), challenger.address)


def test_what_nobody_answers_is_revoked_and_nobody_is_slashed(world: World, challenger: Challenger) -> None:
    before = world.post(BEFORE)
    report = world.post(GROWN)
    challenger.demand(report, DEMAND_LEAF, 2)
    for _ in range(world.settings.answer_reports):
        with boa.reverts("disputes: too early"):
            world.disputes.expire(tuple_of(before), tuple_of(report), challenger.address)
        world.post(subsidy=1)
    wait(world.settings.dispute_window + 1)
    assert world.ledger.activate() == 1  # the demanded one and all after it are held
    with boa.reverts("disputes: too late"):
        answer(world, report, challenger, answer_leaf(states_of(GROWN), 2), challenger.address)
    had = challenger.balance
    world.disputes.expire(tuple_of(before), tuple_of(report), challenger.address)
    assert challenger.balance == had + world.settings.dispute_bond
    assert world.ledger.posted_epoch() == 1
    assert world.oracle.attempt_of(2) == 1
    with boa.reverts("disputes: not proven"):
        world.disputes.slash(tuple_of(report), *world.sign(report))
    with boa.reverts("disputes: no demand"):
        world.disputes.expire(tuple_of(before), tuple_of(report), challenger.address)


def test_nobody_answers_for_a_report_that_is_gone(world: World, challenger: Challenger) -> None:
    """The bond goes back to who demanded: there is nothing left to show."""
    before, report, found = shrunken(world)
    asker = Challenger(world)
    asker.demand(report, DEMAND_LEAF, 0)
    challenger.challenge(before, report, found)
    lost = with_account(GROWN, 1, tokens_earned=BEFORE[1].tokens_earned - TOKEN)
    with boa.reverts("disputes: not pending"):
        answer(world, report, asker, answer_leaf(states_of(lost), 0), challenger.address)
    world.disputes.withdraw(report.struct_hash(), sender=asker.address)
    assert world.token.balanceOf(world.disputes) == 0


def test_an_answer_in_the_last_report_counts(world: World, challenger: Challenger) -> None:
    report = world.post(BEFORE)
    challenger.demand(report, DEMAND_LEAF, 2)
    for _ in range(world.settings.answer_reports - 1):
        world.post(subsidy=1)
    answer(world, report, challenger, answer_leaf(states_of(BEFORE), 2), challenger.address)
    world.post(subsidy=1)
    with boa.reverts("disputes: no demand"):
        world.disputes.expire(tuple_of(NO_REPORT), tuple_of(report), challenger.address)


def test_what_an_answer_brings_to_light_can_still_be_challenged(world: World, challenger: Challenger) -> None:
    before, report, found = shrunken(world)
    wait(world.settings.dispute_window - 1)
    challenger.demand(report, DEMAND_LEAF, 1)
    wait(10)
    shown = answer_leaf(states_of(with_account(GROWN, 1, tokens_earned=BEFORE[1].tokens_earned - TOKEN)), 1)
    answer(world, report, challenger, shown, boa.env.generate_address())
    assert world.ledger.activate() == 1
    wait(world.settings.reveal_seconds - 1)
    other = Challenger(world)
    other.commit(report, found)
    assert not other.hold(report).holds  # the answered demand's hold outlasts it
    wait(1)
    with boa.reverts("disputes: too late"):
        Challenger(world).commit(report, found)
    wait(world.settings.reveal_seconds - 1)
    with boa.reverts("disputes: too early"):
        world.disputes.forfeit(report.struct_hash(), challenger.address)
    other.reveal(before, report, found)
    assert world.ledger.posted_epoch() == 1


def answered_demand(world: World, challenger: Challenger) -> tuple[Report, Report, Contradiction]:
    """A demand in the last second of the window, whose answer shows that an account shrank."""
    before, report, found = shrunken(world)
    wait(world.settings.dispute_window - 1)
    challenger.demand(report, DEMAND_LEAF, 1)
    wait(10)
    lost = with_account(GROWN, 1, tokens_earned=BEFORE[1].tokens_earned - TOKEN)
    answer(world, report, challenger, answer_leaf(states_of(lost), 1), boa.env.generate_address())
    return before, report, found


def test_who_demanded_challenges_over_its_answered_demand(world: World, challenger: Challenger) -> None:
    before, report, _ = answered_demand(world, challenger)
    (event,) = logs_of(world.disputes, "Answered")
    found = find_shrunk_shown(states_of(BEFORE), report, event.position, event.shown)
    wait(5)
    ends = challenger.hold(report).deadline
    challenger.commit(report, found)
    hold = challenger.hold(report)
    assert (hold.kind, hold.holds, hold.deadline) == (3, True, ends)
    assert world.ledger.pending(2).holds == 1
    assert world.token.balanceOf(world.disputes) == world.settings.dispute_bond
    with boa.reverts("disputes: one hold at a time"):
        challenger.commit(report, found)
    wait(2 * world.settings.reveal_seconds - 5)
    assert world.ledger.activate() == 1
    challenger.reveal(before, report, found)
    assert world.ledger.posted_epoch() == 1
    assert world.token.balanceOf(world.disputes) == 0


def test_a_challenge_over_an_answered_demand_holds_no_longer_than_that_did(
    world: World, challenger: Challenger
) -> None:
    _, report, found = answered_demand(world, challenger)
    wait(world.settings.reveal_seconds - 1)
    challenger.commit(report, found)
    wait(world.settings.reveal_seconds + 1)
    with boa.reverts("disputes: too early"):
        world.disputes.forfeit(report.struct_hash(), challenger.address)
    wait(1)
    with boa.reverts("disputes: too late"):
        challenger.commit(report, found)
    world.disputes.forfeit(report.struct_hash(), challenger.address)
    assert world.ledger.activate() == 2


def test_an_answered_demand_is_challenged_within_the_window_too(world: World, challenger: Challenger) -> None:
    """And there it holds as any challenge does, though the answered demand's time is over."""
    report = world.post(BEFORE)
    challenger.demand(report, DEMAND_LEAF, 1)
    answer(world, report, challenger, answer_leaf(states_of(BEFORE), 1), challenger.address)
    with boa.reverts("disputes: one hold at a time"):
        challenger.demand(report, DEMAND_LEAF, 2)
    wait(world.settings.dispute_window - 1)
    challenger.commit(report, Contradiction(COUNT, b""))
    wait(world.settings.reveal_seconds)
    assert (world.ledger.pending(1).holds, world.ledger.activate()) == (1, 0)
    wait(1)
    world.disputes.forfeit(report.struct_hash(), challenger.address)
    assert world.ledger.activate() == 1


def test_in_a_freeze_a_challenge_keeps_the_hold_of_its_answered_demand(world: World, challenger: Challenger) -> None:
    before, report, found = answered_demand(world, challenger)
    freeze(world)
    challenger.commit(report, found)
    assert challenger.hold(report).holds
    assert world.ledger.pending(2).holds == 1
    assert world.ledger.activate() == 1
    mine()
    challenger.reveal(before, report, found)
    assert world.ledger.posted_epoch() == 1


def test_an_answered_demand_holds_no_longer_than_twice_the_time_to_reveal(world: World, challenger: Challenger) -> None:
    report = world.post(BEFORE)
    challenger.demand(report, DEMAND_LEAF, 1)
    answer(world, report, challenger, answer_leaf(states_of(BEFORE), 1), challenger.address)
    wait(2 * world.settings.reveal_seconds)
    with boa.reverts("disputes: too early"):
        world.disputes.forfeit(report.struct_hash(), challenger.address)
    wait(1)
    supply = world.token.totalSupply()
    world.disputes.forfeit(report.struct_hash(), challenger.address)
    assert world.token.totalSupply() == supply
    assert world.ledger.activate() == 1


def test_verdicts_are_demanded_by_path(world: World, challenger: Challenger) -> None:
    """A verdict that calls an opening good is shown with its proof; other verdicts stand for themselves."""
    honest = settled()
    world.post()
    world.post()
    fields = {name: getattr(honest.report, name) for name in ("manifest", "verdicts_root", "view")}
    report = world.post(epoch=3, **fields)
    for path in (0, 5):
        other, answerer = Challenger(world), boa.env.generate_address()
        other.demand(report, DEMAND_VERDICT, path)
        shown = answer_verdict(honest.settlements[-1], honest.bundles[-1], path, JUDGES)
        assert shown.backing
        with boa.reverts():
            answer(world, report, other, (shown.shown, b""), answerer)
        answer(world, report, other, shown, answerer)
        assert world.token.balanceOf(answerer) == world.settings.dispute_bond


@pytest.mark.parametrize("padding", [b"\x00", b"\x01"])
def test_a_demanded_verdict_that_is_wrong_is_proven_from_its_answer(
    world: World, challenger: Challenger, padding: bytes
) -> None:
    """All that the challenger has of the quorum's verdicts is the one in the event, however it was encoded."""
    wrong, verdicts = claim()
    honest, bundle = settled().settlements[-1], settled().bundles[-1]
    at = next(i for i, verdict in enumerate(verdicts) if verdict.reason == SILENT)
    world.register(boa.env.generate_address(), next(k for k in settled().nodes if k.address == verdicts.rows[at].node))
    world.post()
    before = world.post()
    report = world.post(epoch=3, manifest=wrong.manifest, verdicts_root=wrong.verdicts_root, view=wrong.view)
    challenger.demand(report, DEMAND_VERDICT, path_of(len(verdicts), at))
    lied = type(honest)(**{**vars(honest), "verdicts": verdicts})
    given = answer_verdict(lied, bundle, path_of(len(verdicts), at), JUDGES)
    shown = given.shown.replace(b"silent".ljust(32, b"\x00"), b"silent".ljust(32, padding))
    answer(world, report, challenger, (shown, b""), boa.env.generate_address())
    (event,) = logs_of(world.disputes, "Answered")
    found = find_wrong_verdict_shown(event.shown, event.position, honest, bundle, JUDGES)
    assert found is not None
    challenger.challenge(before, report, found)
    assert world.ledger.posted_epoch() == 2
    assert world.disputes.proven(report.struct_hash())[0] == challenger.address


# --- Freeze and pause


def freeze(world: World) -> None:
    wait(world.settings.freeze_lengths * world.settings.epoch_length + 1)
    world.ledger.freeze()


def test_long_frozen_demands_are_void_and_give_their_bonds_back(world: World, challenger: Challenger) -> None:
    report = world.post(BEFORE)
    challenger.demand(report, DEMAND_LEAF, 1)
    freeze(world)
    with boa.reverts("disputes: frozen"):
        Challenger(world).demand(report, DEMAND_LEAF, 1)
    wait(world.settings.hold_seconds - 1)
    assert world.ledger.activate() == 0
    wait(1)
    assert world.ledger.activate() == 1
    with boa.reverts("disputes: not pending"):
        world.disputes.expire(tuple_of(NO_REPORT), tuple_of(report), challenger.address)
    had = challenger.balance
    world.disputes.withdraw(report.struct_hash(), sender=challenger.address)
    assert challenger.balance == had + world.settings.dispute_bond


def test_in_a_freeze_lengths_count_as_reports(world: World, challenger: Challenger) -> None:
    report = world.post(BEFORE)
    challenger.demand(report, DEMAND_LEAF, 1)
    freeze(world)
    count = world.disputes.report_count()
    wait((world.settings.answer_reports - count + 1) * world.settings.epoch_length)
    with boa.reverts("disputes: too late"):
        answer(world, report, challenger, answer_leaf(states_of(BEFORE), 1), challenger.address)
    world.disputes.expire(tuple_of(NO_REPORT), tuple_of(report), challenger.address)
    assert world.ledger.posted_epoch() == 0


def test_a_proof_counts_in_a_freeze_while_its_report_is_pending(world: World, challenger: Challenger) -> None:
    before, report, found = shrunken(world)
    freeze(world)
    challenger.commit(report, found)
    assert not challenger.hold(report).holds
    mine()
    challenger.reveal(before, report, found)
    assert world.ledger.posted_epoch() == 1


def test_a_pause_keeps_the_window_open(world: World, challenger: Challenger) -> None:
    before, report, found = shrunken(world)
    wait(world.settings.dispute_window - 1)
    world.ledger.pause(300, sender=world.guardian)
    wait(299)
    challenger.challenge(before, report, found)
    assert world.ledger.posted_epoch() == 1


# --- Slashing


def test_signers_of_a_wrong_report_lose_their_bonds_once(world: World, challenger: Challenger) -> None:
    before, report, found = shrunken(world)
    bond, harmed = world.settings.member_bond, hexed(BEFORE[1].address)
    with boa.reverts("disputes: not proven"):
        world.disputes.slash(tuple_of(report), *world.sign(report))
    challenger.challenge(before, report, found)
    had = challenger.balance
    assert world.disputes.slash(tuple_of(report), *world.sign(report, [0, 2])) == 2 * bond
    assert [log.amount for log in logs_of(world.disputes, "SignerSlashed")] == [bond, bond]
    with boa.reverts("disputes: nobody to slash"):
        world.disputes.slash(tuple_of(report), *world.sign(report, [2]))
    assert world.disputes.slash(tuple_of(report), *world.sign(report, [0, 1, 2])) == bond
    assert challenger.balance - had == 3 * bond // 5
    assert world.token.balanceOf(harmed) == 3 * bond // 5
    assert world.membership.position(hexed(world.members[3].address)).bond == bond


def test_who_did_not_sign_that_very_report_cannot_be_slashed(world: World, challenger: Challenger) -> None:
    """Neither by a signature over the true report, nor over another attempt, chain or quorum's words."""
    before, report, found = shrunken(world)
    challenger.challenge(before, report, found)
    true = world.post(GROWN)
    bitmap, signatures = world.sign(report)
    _, honest = world.sign(true, [3])
    others = [msgspec.structs.replace(report, **{name: 1}) for name in ("attempt", "view")]
    for signed in (true, before, *others):
        _, other = world.sign(signed, [3])
        with boa.reverts("disputes: wrong signature"):
            world.disputes.slash(tuple_of(report), 0b1000, other)
    with boa.reverts("disputes: not proven"):
        world.disputes.slash(tuple_of(true), 0b1000, honest)
    with boa.reverts("disputes: wrong signature"):
        world.disputes.slash(tuple_of(report), 0b1000, signatures[:65])
    with boa.reverts("ecdsa: invalid signature `s` value"):
        world.disputes.slash(tuple_of(report), 0b1, flip_s(signatures[:65]))
    with boa.reverts("disputes: unknown member"):
        world.disputes.slash(tuple_of(report), 0b10000, signatures[:65])
    with boa.reverts("disputes: signatures length"):
        world.disputes.slash(tuple_of(report), 0b11, signatures)
    with boa.reverts("disputes: nobody to slash"):
        world.disputes.slash(tuple_of(report), 0, b"")
    assert bitmap == 0b111
    assert world.membership.position(hexed(world.members[3].address)).bond == world.settings.member_bond


def test_reports_that_fell_with_a_wrong_one_slash_nobody(world: World, challenger: Challenger) -> None:
    before, report, found = shrunken(world)
    after = world.post(subsidy=1)
    challenger.challenge(before, report, found)
    with boa.reverts("disputes: not proven"):
        world.disputes.slash(tuple_of(after), *world.sign(after))


def test_who_challenges_itself_keeps_a_fifth_at_most(world: World, challenger: Challenger) -> None:
    """The harmed account is the challenger's own: it gets the challenger's part, and the rest burns."""
    own = challenger.address
    mine_first = with_account(BEFORE, 1, address=Address(own))
    before = world.post(mine_first)
    after = with_account(mine_first, 1, tokens_earned=TOKEN)
    after = with_account(after, 0, tokens_earned=900 * TOKEN)
    report = world.post(after)
    challenger.challenge(before, report, find_shrunk(states_of(mine_first), states_of(after)))
    had, supply, bond = challenger.balance, world.token.totalSupply(), world.settings.member_bond
    world.disputes.slash(tuple_of(report), *world.sign(report))
    assert challenger.balance - had == 3 * (bond // 5)
    assert world.token.totalSupply() == supply - 3 * (bond - bond // 5)


# --- Construction, and everything in any order


def test_construction_refuses_what_cannot_work(world: World) -> None:
    at = [boa.env.generate_address() for _ in range(6)]
    for values, reason in (
        ((0, 1, 1), "disputes: no bond"),
        ((1, 0, 1), "disputes: no time to reveal"),
        ((1, 1, 0), "disputes: no time to answer"),
    ):
        with boa.reverts(reason):
            deployer_of("Disputes").deploy(*at, *values)


ACTIONS = ("post", "wrong", "commit", "commit", "reveal", "reveal", "forfeit", "demand", "demand")
MORE = ("answer", "answer", "expire", "withdraw", "wait", "activate")
STEPS = st.lists(
    st.tuples(st.sampled_from(ACTIONS + MORE), st.integers(0, 1), st.integers(0, 70)), min_size=15, max_size=30
)


@budget(examples=6)
@given(STEPS)
def test_the_bonds_held_are_those_of_open_challenges_and_demands(
    deployed: World, steps: list[tuple[str, int, int]]
) -> None:
    """In any order of calls, refused ones included: the balance is one bond each, the Ledger counts the same holds."""
    with boa.env.anchor():
        world = deployed
        people = [Challenger(world) for _ in range(2)]
        told: dict[int, tuple[list[Account], Report]] = {0: ([], NO_REPORT)}
        reports: list[Report] = []
        for action, who, number in [("post", 0, 0), ("post", 0, 0), *steps]:
            posted = world.ledger.posted_epoch()
            accounts, report = told[posted]
            accounts_before, before = told[max(posted - 1, 0)]
            found = find_shrunk(states_of(accounts_before), states_of(accounts)) or Contradiction(COUNT, b"")
            actor = people[who]
            with suppress(boa.BoaError, NotFound):
                match action:
                    case "post" | "wrong":
                        grown = accounts_of(*(a.tokens_earned + 1 for a in accounts), 1)
                        if action == "wrong":
                            grown = with_account(grown, 0, tokens_earned=0)
                            grown = with_account(grown, 1, tokens_earned=grown[1].tokens_earned + posted + 9)
                        told[posted + 1] = (grown, world.post(grown))
                        reports.append(told[posted + 1][1])
                    case "commit":
                        actor.commit(report, found)
                        mine()
                    case "reveal":
                        actor.reveal(before, report, found)
                    case "demand":
                        actor.demand(report, DEMAND_LEAF, number % 4)
                    case "answer":
                        position = int.from_bytes(actor.hold(report).subject) % 8
                        answer(world, report, actor, answer_leaf(states_of(accounts), position), actor.address)
                    case "expire":
                        held = oldest(world, actor, reports)
                        epoch = next((e for e, (_, r) in told.items() if r.struct_hash() == held), 1)
                        pair = told[epoch - 1][1], told[epoch][1]
                        world.disputes.expire(*map(tuple_of, pair), actor.address)
                    case "forfeit":
                        world.disputes.forfeit(oldest(world, actor, reports), actor.address)
                    case "withdraw":
                        world.disputes.withdraw(oldest(world, actor, reports), sender=actor.address)
                    case "wait":
                        wait(number)
                    case _:
                        world.ledger.activate()
            check_bonds(world, people, reports)


def oldest(world: World, actor: Challenger, reports: list[Report]) -> Hash:
    """The first report that was ever posted of which the actor still has a hold."""
    held = (report.struct_hash() for report in reports if actor.hold(report).kind)
    return next(held, Hash(bytes(32)))


def check_bonds(world: World, people: list[Challenger], reports: list[Report]) -> None:
    holds = [(report.struct_hash(), person.hold(report)) for report in reports for person in people]
    bonds = sum(hold.kind in (1, 2, 3) for _, hold in holds)
    assert world.token.balanceOf(world.disputes) == bonds * world.settings.dispute_bond
    for epoch in range(world.ledger.active_epoch() + 1, world.ledger.posted_epoch() + 1):
        current = world.oracle.report_hash(epoch)
        assert world.ledger.pending(epoch).holds == sum(h == current and hold.holds for h, hold in holds)
