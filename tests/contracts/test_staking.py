"""Staking: a bond leaves only after k activated epochs, and can be slashed until it has left."""

from __future__ import annotations

import boa
import pytest
from boa.util.abi import Address

from tests.contracts.world import NEVER, TOKEN, World, hexed, key_of, logs_of

NODE = key_of("node")
AT = str(Address(hexed(NODE.address)))
OPERATOR_KEY = key_of("operator")
OPERATOR = str(Address(hexed(OPERATOR_KEY.address)))
STRANGER = str(boa.env.generate_address())
NOBODY = "0x" + "00" * 20


@pytest.fixture
def staked(world: World) -> World:
    """An operator with 100 tokens bonded on one node, and 100 more."""
    world.register(OPERATOR, NODE)
    world.fund(OPERATOR, 200 * TOKEN)
    world.token.approve(world.staking, 2**256 - 1, sender=OPERATOR)
    world.staking.stake(AT, 100 * TOKEN, sender=OPERATOR)
    return world


def position(world: World) -> tuple[int, int, int]:
    found = world.staking.position(OPERATOR, AT)
    return found.bond // TOKEN, found.thawing // TOKEN, found.ends


def pass_epochs(world: World, count: int) -> None:
    for _ in range(count):
        world.post()
        world.activate()


def test_a_bond_is_pulled_and_recorded(staked: World) -> None:
    staked.staking.stake(AT, 5 * TOKEN, sender=OPERATOR)
    (event,) = logs_of(staked.staking, "Staked")
    assert (event.operator, event.node, event.amount, event.bond) == (OPERATOR, AT, 5 * TOKEN, 105 * TOKEN)
    assert position(staked) == (105, 0, 0)
    assert staked.token.balanceOf(staked.staking) == 105 * TOKEN


def test_only_the_operator_of_a_live_node_stakes(staked: World) -> None:
    with boa.reverts("staking: not the operator"):
        staked.staking.stake(AT, 1, sender=STRANGER)
    with boa.reverts("staking: nothing"):
        staked.staking.stake(AT, 0, sender=OPERATOR)
    staked.registry.retire(AT, sender=OPERATOR)
    with boa.reverts("staking: not the operator"):
        staked.staking.stake(AT, 1, sender=OPERATOR)


def test_a_retired_nodes_bond_thaws_like_any(staked: World) -> None:
    staked.registry.retire(AT, sender=OPERATOR)
    staked.staking.thaw(AT, 100 * TOKEN, sender=OPERATOR)
    pass_epochs(staked, 3)
    assert staked.staking.withdraw(AT, sender=OPERATOR) == 100 * TOKEN


@pytest.mark.parametrize(("epochs", "reverts"), [(2, True), (3, False), (4, False)])
def test_a_thaw_ends_after_k_activated_epochs(staked: World, epochs: int, reverts: bool) -> None:
    pass_epochs(staked, 1)
    staked.staking.thaw(AT, 40 * TOKEN, sender=OPERATOR)
    assert position(staked) == (60, 40, 4)
    pass_epochs(staked, epochs)
    boa.env.time_travel(seconds=10**6)
    if reverts:
        staked.post()
        with boa.reverts("staking: thawing"):
            staked.staking.withdraw(AT, sender=OPERATOR)
    else:
        assert staked.staking.withdraw(AT, sender=OPERATOR) == 40 * TOKEN
        assert position(staked) == (60, 0, 0)
        assert staked.token.balanceOf(OPERATOR) == 140 * TOKEN


def test_time_without_reports_thaws_nothing(staked: World) -> None:
    staked.staking.thaw(AT, 1, sender=OPERATOR)
    boa.env.time_travel(seconds=10**9)
    with boa.reverts("staking: thawing"):
        staked.staking.withdraw(AT, sender=OPERATOR)


@pytest.mark.parametrize(("amount", "reverts"), [(0, "staking: nothing"), (100 * TOKEN + 1, "staking: over bond")])
def test_a_thaw_is_within_the_bond(staked: World, amount: int, reverts: str) -> None:
    with boa.reverts(reverts):
        staked.staking.thaw(AT, amount, sender=OPERATOR)
    staked.staking.thaw(AT, 100 * TOKEN, sender=OPERATOR)


def test_a_second_thaw_joins_the_first_and_restarts_its_wait(staked: World) -> None:
    staked.staking.thaw(AT, 40 * TOKEN, sender=OPERATOR)
    pass_epochs(staked, 2)
    staked.staking.thaw(AT, 10 * TOKEN, sender=OPERATOR)
    assert position(staked) == (50, 50, 5)
    pass_epochs(staked, 1)
    with boa.reverts("staking: thawing"):
        staked.staking.withdraw(AT, sender=OPERATOR)
    pass_epochs(staked, 2)
    assert staked.staking.withdraw(AT, sender=OPERATOR) == 50 * TOKEN
    with boa.reverts("staking: nothing"):
        staked.staking.withdraw(AT, sender=OPERATOR)


def test_many_thaws_cost_what_one_does(staked: World) -> None:
    costs = set()
    for _ in range(20):
        staked.staking.thaw(AT, TOKEN, sender=OPERATOR)
        costs.add(staked.staking._computation.get_gas_used())
    assert max(costs) < 40_000


def test_only_the_slasher_slashes(staked: World) -> None:
    for sender in (OPERATOR, STRANGER, staked.oracle.address, staked.ledger.address, boa.env.eoa):
        with boa.reverts("staking: only slasher"):
            staked.staking.slash(OPERATOR, AT, 1, NOBODY, sender=sender)


@pytest.mark.parametrize(
    ("amount", "taken", "bond", "thawing"),
    [(0, 0, 60, 40), (59, 59, 1, 40), (60, 60, 0, 40), (61, 61, 0, 39), (100, 100, 0, 0), (101, 100, 0, 0)],
)
def test_a_slash_mid_thaw_takes_the_bond_first(staked: World, amount: int, taken: int, bond: int, thawing: int) -> None:
    staked.staking.thaw(AT, 40 * TOKEN, sender=OPERATOR)
    supply = staked.token.totalSupply()
    assert staked.staking.slash(OPERATOR, AT, amount * TOKEN, NOBODY, sender=staked.slasher) == taken * TOKEN
    (event,) = logs_of(staked.staking, "Slashed")
    assert (event.amount, event.bond, event.thawing) == (taken * TOKEN, bond * TOKEN, thawing * TOKEN)
    assert position(staked)[:2] == (bond, thawing)
    assert staked.token.totalSupply() == supply - taken * TOKEN
    assert staked.token.balanceOf(staked.staking) == (bond + thawing) * TOKEN


@pytest.mark.parametrize(("amount", "part"), [(30 * TOKEN, 6 * TOKEN), (4, 0), (5, 1), (500 * TOKEN, 20 * TOKEN)])
def test_who_was_harmed_gets_a_fifth_and_the_rest_burns(staked: World, amount: int, part: int) -> None:
    supply, harmed = staked.token.totalSupply(), boa.env.generate_address()
    taken = staked.staking.slash(OPERATOR, AT, amount, harmed, sender=staked.slasher)
    assert taken == min(amount, 100 * TOKEN)
    assert staked.token.balanceOf(harmed) == part
    assert staked.token.totalSupply() == supply - taken + part


def test_who_asks_to_leave_before_the_slash_is_still_slashed(staked: World) -> None:
    staked.staking.thaw(AT, 100 * TOKEN, sender=OPERATOR)
    pass_epochs(staked, 3)
    staked.staking.slash(OPERATOR, AT, 30 * TOKEN, NOBODY, sender=staked.slasher)
    assert staked.staking.withdraw(AT, sender=OPERATOR) == 70 * TOKEN
    assert staked.staking.slash(OPERATOR, AT, 30 * TOKEN, NOBODY, sender=staked.slasher) == 0


def test_a_donation_is_nobodys(staked: World) -> None:
    staked.token.transfer(staked.staking, 7 * TOKEN, sender=OPERATOR)
    assert position(staked) == (100, 0, 0)
    assert staked.staking.slash(OPERATOR, AT, 2**96 - 1, NOBODY, sender=staked.slasher) == 100 * TOKEN
    assert staked.token.balanceOf(staked.staking) == 7 * TOKEN


def test_positions_of_operators_are_apart(staked: World) -> None:
    with boa.reverts("staking: over bond"):
        staked.staking.thaw(AT, 1, sender=STRANGER)
    with boa.reverts("staking: nothing"):
        staked.staking.withdraw(AT, sender=STRANGER)
    assert staked.staking.slash(STRANGER, AT, 1, NOBODY, sender=staked.slasher) == 0


def test_a_permit_sent_first_by_someone_else_changes_nothing(staked: World) -> None:
    staked.token.approve(staked.staking, 0, sender=OPERATOR)
    permit = staked.sign_permit(OPERATOR_KEY, staked.staking, TOKEN)
    staked.token.permit(OPERATOR, staked.staking, TOKEN, NEVER, *permit, sender=STRANGER)
    staked.staking.stake_with_permit(AT, TOKEN, NEVER, *permit, sender=OPERATOR)
    assert position(staked) == (101, 0, 0)
