"""Ledger, claims: a leaf of the active tree is paid up to its total, once, to where its account wants it."""

from __future__ import annotations

from typing import Any

import boa
import pytest
from boa.util.abi import Address
from eth_utils import keccak
from hypothesis import given
from hypothesis import strategies as st

from freehold.protocol.merkle import ACCOUNTS
from freehold.protocol.units import Hash
from tests.contracts.budgets import budget
from tests.contracts.world import TOKEN, Account, World, hexed, key_of, leaf_of, logs_of, proof_of, tree_of

OWNERS = [key_of(f"owner {i}").address for i in range(5)]
ACCOUNTS_OF_ONE_EPOCH = [Account(owner, (i + 1) * 10 * TOKEN, i, 2 * i) for i, owner in enumerate(OWNERS)]


def named(index: int) -> str:
    return str(Address(hexed(OWNERS[index])))


@pytest.fixture
def active(world: World) -> World:
    """150 tokens of five accounts, active."""
    world.buy(boa.env.generate_address(), TOKEN)
    world.post(ACCOUNTS_OF_ONE_EPOCH)
    world.activate()
    return world


def call(world: World, position: int = 2, **changes: Any) -> int:
    """Claim a position as it is, but for `changes`."""
    account = ACCOUNTS_OF_ONE_EPOCH[position]
    fields = {
        "index": position,
        "account": hexed(account.address),
        "tokens_earned": account.tokens_earned,
        "credits_earned": account.credits_earned,
        "credits_spent": account.credits_spent,
        "proof": proof_of(tree_of(ACCOUNTS_OF_ONE_EPOCH), position),
    } | changes
    return int(world.ledger.claim(*fields.values(), sender=boa.env.generate_address()))


@pytest.mark.parametrize("index", range(5))
def test_anyone_claims_for_any_account_and_it_is_paid(active: World, index: int) -> None:
    amount = (index + 1) * 10 * TOKEN
    assert call(active, index) == amount == active.token.balanceOf(named(index))
    (event,) = logs_of(active.ledger, "Claimed")
    assert (event.account, event.payout, event.epoch) == (named(index), named(index), 1)
    assert (event.amount, event.paid) == (amount, amount) == (amount, active.ledger.paid(named(index)))


def test_claiming_again_pays_nothing_and_does_not_revert(active: World) -> None:
    call(active)
    balance = active.token.balanceOf(active.ledger)
    assert call(active) == 0
    assert logs_of(active.ledger, "Claimed") == []
    assert active.token.balanceOf(active.ledger) == balance


def test_a_late_claim_gets_what_every_epoch_added(active: World) -> None:
    call(active)
    grown = [account._replace(tokens_earned=account.tokens_earned * 3) for account in ACCOUNTS_OF_ONE_EPOCH]
    active.post(grown)
    active.activate()
    assert active.claim(grown, 2) == 60 * TOKEN
    assert active.ledger.paid(named(2)) == 90 * TOKEN
    assert active.claim(grown, 2) == 0
    assert active.claim(grown, 3) == 120 * TOKEN
    with boa.reverts("ledger: wrong proof"):
        call(active)


def test_a_claim_goes_where_the_operator_said(active: World) -> None:
    payout = boa.env.generate_address()
    active.registry.set_payout(payout, sender=named(2))
    assert call(active) == 30 * TOKEN == active.token.balanceOf(payout)
    assert active.token.balanceOf(named(2)) == 0
    (event,) = logs_of(active.ledger, "Claimed")
    assert (event.account, event.payout) == (named(2), payout)


def test_a_claim_activates_what_is_due(world: World) -> None:
    world.buy(boa.env.generate_address(), TOKEN)
    world.post(ACCOUNTS_OF_ONE_EPOCH)
    with boa.reverts("ledger: nothing active"):
        call(world)
    boa.env.time_travel(seconds=world.settings.dispute_window - 1)
    with boa.reverts("ledger: nothing active"):
        call(world)
    boa.env.time_travel(seconds=1)
    assert call(world) == 30 * TOKEN
    assert world.ledger.active_epoch() == 1


def test_a_pending_report_pays_nothing_yet(active: World) -> None:
    grown = [account._replace(tokens_earned=account.tokens_earned * 2) for account in ACCOUNTS_OF_ONE_EPOCH]
    active.post(grown)
    with boa.reverts("ledger: wrong proof"):
        active.claim(grown, 2)
    assert call(active) == 30 * TOKEN


PROOF = proof_of(tree_of(ACCOUNTS_OF_ONE_EPOCH), 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"index": 3},
        {"account": named(3)},
        {"tokens_earned": 30 * TOKEN + 1},
        {"tokens_earned": 30 * TOKEN - 1},
        {"credits_earned": 1},
        {"credits_spent": 3},
        {"tokens_earned": 2, "credits_earned": 30 * TOKEN},
        {"proof": PROOF[:-1] + b"\x00"},
        {"proof": b"\x00" + PROOF[1:]},
        {"proof": PROOF[:67], "index": 0},
        {"proof": PROOF + bytes(67)},
        {"proof": b"", "index": 0},
        {"proof": PROOF[67:134] + PROOF[:67] + PROOF[134:]},
    ],
)
def test_a_proof_shows_one_leaf_exactly(active: World, changes: dict[str, Any]) -> None:
    with boa.reverts("ledger: wrong proof"):
        call(active, **changes)


@pytest.mark.parametrize("length", [1, 66, 68, 200, 202])
def test_a_proof_is_whole_siblings(active: World, length: int) -> None:
    with boa.reverts("tree: proof length"):
        call(active, proof=(PROOF + bytes(67))[:length])


@pytest.mark.parametrize("index", [8, 2 + 8, 2**63 + 2])
def test_an_index_lies_within_the_tree(active: World, index: int) -> None:
    with boa.reverts("tree: index"):
        call(active, index=index)


def test_an_empty_position_is_nobodys(active: World) -> None:
    last = ACCOUNTS.pack(leaf_of(4, ACCOUNTS_OF_ONE_EPOCH[4]))
    proof = last + proof_of(tree_of(ACCOUNTS_OF_ONE_EPOCH), 4)[67:]
    with boa.reverts("ledger: wrong proof"):
        call(active, index=5, tokens_earned=0, credits_earned=0, credits_spent=0, proof=proof)


def test_an_inner_node_cannot_pose_as_a_leaf(world: World) -> None:
    """The leaf of 65 bytes and the node of 135 differ in length and prefix: no bytes are both."""
    lone = Account(OWNERS[0], 10 * TOKEN)
    tree = tree_of([lone, Account(OWNERS[1], 20 * TOKEN)])
    world.post([lone, Account(OWNERS[1], 20 * TOKEN)])
    world.activate()
    inner = ACCOUNTS.pack(tree.root)
    with boa.reverts("ledger: wrong proof"):
        world.ledger.claim(0, hexed(inner[:20]), 30 * TOKEN, 0, 0, b"")
    with boa.reverts("ledger: wrong proof"):
        world.ledger.claim(0, hexed(OWNERS[0]), 10 * TOKEN, 0, 0, proof_of(tree, 0) + inner)


def test_a_leaf_that_shrank_is_paid_nothing_more_and_loses_nothing(active: World) -> None:
    call(active, 2)
    moved = list(ACCOUNTS_OF_ONE_EPOCH)
    moved[2] = moved[2]._replace(tokens_earned=10 * TOKEN)
    moved[1] = moved[1]._replace(tokens_earned=40 * TOKEN)
    active.post(moved)
    active.activate()
    assert active.claim(moved, 2) == 0
    assert active.ledger.paid(named(2)) == 30 * TOKEN
    assert active.claim(moved, 1) == 40 * TOKEN


def test_even_a_lying_quorum_pays_no_more_than_was_minted(active: World) -> None:
    for index in range(5):
        call(active, index)
    shifted = [a._replace(tokens_earned=150 * TOKEN if i == 0 else 0) for i, a in enumerate(ACCOUNTS_OF_ONE_EPOCH)]
    active.post(shifted)
    active.activate()
    with boa.reverts("erc20: transfer amount exceeds balance"):
        active.claim(shifted, 0)
    assert active.ledger.paid(named(0)) == 10 * TOKEN


def test_sums_that_wrap_round_96_bits_are_refused(world: World) -> None:
    """10 and 2**96 - 5 are 5 in 96 bits, which is what the report says: the path's sums are compared in full."""
    account = Account(OWNERS[0], 10)
    sibling = bytes(31) + (2**96 - 5).to_bytes(12) + bytes(24)
    root = keccak(b"\x01" + ACCOUNTS.pack(leaf_of(0, account)) + sibling)[:31]
    world.post(subsidy=5, accounts_root=Hash(root + b"\x00"), accounts=2)
    world.activate()
    with boa.reverts("ledger: wrong proof"):
        world.ledger.claim(0, hexed(account.address), *account.sums, sibling)


def test_a_tree_of_one_has_an_empty_proof(world: World) -> None:
    lone = [Account(OWNERS[0], 10 * TOKEN)]
    world.post(lone)
    world.activate()
    assert world.claim(lone, 0) == 10 * TOKEN


def test_a_proof_from_another_network_pays_nothing_here(active: World) -> None:
    other = World()
    other.post(subsidy=150 * TOKEN)
    other.activate()
    with boa.reverts("ledger: wrong proof"):
        call(other)


def test_a_donation_to_the_ledger_pays_nobody(active: World) -> None:
    active.fund(active.ledger.address, 1_000 * TOKEN)
    assert sum(call(active, index) for index in range(5)) == 150 * TOKEN
    assert active.token.balanceOf(active.ledger) == 1_000 * TOKEN
    active.post(ACCOUNTS_OF_ONE_EPOCH)
    assert active.activate() == 2


def test_the_deepest_path_is_paid(world: World) -> None:
    account = Account(OWNERS[0], 10 * TOKEN)
    index = 0xDEADBEEF
    root = ACCOUNTS.climb(leaf_of(index, account), index, [ACCOUNTS.empty] * 32)
    world.post(accounts_root=Hash(root.hash + b"\x00"), accounts=2**32, subsidy=10 * TOKEN)
    world.activate()
    assert world.ledger.claim(index, hexed(account.address), *account.sums, bytes(67 * 32)) == 10 * TOKEN


sums = st.integers(0, 2**70)


@budget(40)
@given(data=st.data(), rows=st.lists(st.tuples(st.integers(0, 150 * TOKEN), sums, sums), min_size=1, max_size=9))
def test_every_leaf_of_any_tree_is_claimed_and_no_changed_byte_is(
    deployed: World, data: st.DataObject, rows: list[tuple[int, int, int]]
) -> None:
    accounts = [Account(key_of(f"leaf {i % 4}").address, t // len(rows), e, s) for i, (t, e, s) in enumerate(rows)]
    proofs = [proof_of(tree_of(accounts), index) for index in range(len(accounts))]
    with boa.env.anchor():
        deployed.buy(boa.env.generate_address(), 10_000 * TOKEN)
        deployed.post(accounts, credits_spent=sum(a.credits_spent for a in accounts))
        deployed.activate()
        index = data.draw(st.integers(0, len(accounts) - 1))
        if proofs[index]:
            at = data.draw(st.integers(0, len(proofs[index]) - 1))
            broken = bytearray(proofs[index])
            broken[at] ^= data.draw(st.integers(1, 255))
            with boa.reverts():
                claim(deployed, accounts[index], index, bytes(broken))
        paid = sum(claim(deployed, account, i, proofs[i]) for i, account in enumerate(accounts))
        best = {a.address: max(x.tokens_earned for x in accounts if x.address == a.address) for a in accounts}
        assert paid == sum(best.values())


def claim(world: World, account: Account, index: int, proof: bytes) -> int:
    return int(world.ledger.claim(index, hexed(account.address), *account.sums, proof))
