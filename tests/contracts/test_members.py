"""Members: sets that change with notice, by the governor alone, and bonds that stay while their owner must answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import boa
import pytest
from boa.util.abi import Address

from freehold.protocol.keys import Key
from freehold.protocol.units import Hash
from tests.contracts.world import NEVER, TOKEN, World, deployer_of, hexed, key_of, logs_of

BOND = 100 * TOKEN
NEW = [key_of(f"new member {i}") for i in range(4)]


def at(key: Key) -> str:
    return str(Address(hexed(key.address)))


def addresses(keys: Sequence[Key]) -> list[str]:
    return [at(key) for key in keys]


def bond(world: World, key: Key, amount: int = BOND) -> None:
    world.token.approve(world.membership, amount, sender=world.treasury)
    world.membership.bond(at(key), amount, sender=world.treasury)


def schedule(world: World, keys: Sequence[Key], from_epoch: int) -> None:
    world.membership.schedule(addresses(keys), from_epoch, sender=world.governor)


def pass_epochs(world: World, count: int) -> None:
    for _ in range(count):
        world.post()
        world.activate()


@pytest.fixture
def bonded(world: World) -> Iterator[World]:
    """The four members of the deployment and four others, each with its bond."""
    first = world.members
    for key in (*first, *NEW):
        bond(world, key)
    yield world
    world.members = first


def test_the_first_set_is_in_force_from_the_beginning(world: World) -> None:
    for epoch in (0, 1, 2**64 - 1):
        assert world.membership.members_at(epoch) == addresses(world.members)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([], "members: none"),
        (["0x" + "00" * 20], "members: zero member"),
        ([at(NEW[0]), at(NEW[1]), at(NEW[0])], "members: member twice"),
    ],
)
def test_a_set_has_members_each_once(world: World, members: list[str], reason: str) -> None:
    with boa.reverts(reason):
        world.membership.schedule(members, 3, sender=world.governor)
    others = [boa.env.generate_address() for _ in range(5)]
    with boa.reverts(reason):
        deployer_of("Members").deploy(*others, members, 0, 1, 1)


@pytest.mark.parametrize(("thaw", "notice", "reason"), [(0, 1, "members: no thaw"), (1, 0, "members: no notice")])
def test_construction_refuses_what_cannot_work(world: World, thaw: int, notice: int, reason: str) -> None:
    others = [boa.env.generate_address() for _ in range(5)]
    with boa.reverts(reason):
        deployer_of("Members").deploy(*others, [at(NEW[0])], 0, thaw, notice)


@pytest.mark.parametrize("sender", ["treasury", "guardian", "slasher"])
def test_only_the_governor_schedules(bonded: World, sender: str) -> None:
    with boa.reverts("members: only governor"):
        bonded.membership.schedule(addresses(NEW), 3, sender=getattr(bonded, sender))
    with boa.reverts("oracle: only governor"):
        bonded.oracle.schedule_parameters(b"{}", 3, sender=getattr(bonded, sender))


@pytest.mark.parametrize("posted", [0, 1, 5])
def test_notice_is_kept_exactly(bonded: World, posted: int) -> None:
    """With a notice of two epochs, and epoch posted + 1 open: posted + 3 is the first that may change."""
    pass_epochs(bonded, posted)
    with boa.reverts("timeline: notice"):
        schedule(bonded, NEW, posted + 2)
    with boa.reverts("timeline: notice"):
        bonded.oracle.schedule_parameters(b"{}", posted + 2, sender=bonded.governor)
    schedule(bonded, NEW, posted + 3)
    (event,) = logs_of(bonded.membership, "MembersScheduled")
    assert (event.from_epoch, event.members) == (posted + 3, addresses(NEW))
    for epoch in (posted + 2, posted + 3, posted + 4):
        expected = NEW if epoch >= posted + 3 else bonded.members
        assert bonded.membership.members_at(epoch) == addresses(expected)


def test_a_set_changes_by_its_epoch_and_only_its_members_sign(bonded: World) -> None:
    schedule(bonded, NEW, 3)
    pass_epochs(bonded, 2)
    report = bonded.report()
    with boa.reverts("oracle: wrong signature"):
        bonded.submit(report)
    bonded.members = NEW
    bonded.submit(report)
    assert bonded.ledger.posted_epoch() == 3


def test_a_set_of_another_size_has_another_quorum(bonded: World) -> None:
    schedule(bonded, NEW[:1], 3)
    assert [bonded.oracle.quorum(epoch) for epoch in (2, 3)] == [3, 1]


@pytest.mark.parametrize(("amount", "reverts"), [(BOND - 1, True), (BOND, False)])
def test_a_scheduled_member_has_its_bond(world: World, amount: int, reverts: bool) -> None:
    bond(world, NEW[0], amount)
    if reverts:
        with boa.reverts("members: bond too small"):
            schedule(world, NEW[:1], 3)
    else:
        schedule(world, NEW[:1], 3)


def test_a_set_is_replaced_until_its_notice_begins_and_order_is_kept(bonded: World) -> None:
    schedule(bonded, NEW[:1], 5)
    schedule(bonded, NEW[1:2], 5)
    assert bonded.membership.members_at(5) == addresses(NEW[1:2])
    with boa.reverts("timeline: order"):
        schedule(bonded, NEW, 4)
    schedule(bonded, NEW, 6)
    assert [bonded.membership.members_at(e) for e in (4, 5, 6)] == [
        addresses(keys) for keys in (bonded.members, NEW[1:2], NEW)
    ]
    pass_epochs(bonded, 3)
    with boa.reverts("timeline: notice"):
        schedule(bonded, NEW[2:], 5)


def test_parameters_change_by_their_epoch_and_reports_name_theirs(world: World) -> None:
    before = world.oracle.parameters_at(1)
    world.oracle.schedule_parameters(b'{"a":1}', 3, sender=world.governor)
    (event,) = logs_of(world.oracle, "ParametersScheduled")
    assert (event.from_epoch, event.parameters) == (3, b'{"a":1}')
    after = world.oracle.parameters_at(3)
    assert [world.oracle.parameters_at(epoch) for epoch in (2, 3, 9)] == [before, after, after] != [before] * 3
    pass_epochs(world, 2)
    with boa.reverts("oracle: parameters"):
        world.post(parameters=Hash(before))
    world.post()
    with boa.reverts("oracle: no parameters"):
        world.oracle.schedule_parameters(b"", 9, sender=world.governor)


def test_epochs_that_a_revocation_took_back_keep_their_members_and_parameters(bonded: World) -> None:
    """Their anchors are known: whoever reads them must not read another set."""
    for _ in range(4):
        bonded.post()
    bonded.revoke(1)
    assert (bonded.ledger.posted_epoch(), bonded.oracle.highest_epoch()) == (0, 4)
    for epoch in (3, 6):
        with boa.reverts("timeline: notice"):
            schedule(bonded, NEW, epoch)
        with boa.reverts("timeline: notice"):
            bonded.oracle.schedule_parameters(b"{}", epoch, sender=bonded.governor)
    schedule(bonded, NEW, 7)
    bonded.oracle.schedule_parameters(b"{}", 7, sender=bonded.governor)


def test_at_most_eight_sets_wait_and_a_thaw_looks_through_all(bonded: World) -> None:
    for index in range(8):
        schedule(bonded, NEW, 3 + index)
    with boa.reverts("members: too many sets"):
        schedule(bonded, bonded.members[:1], 11)
    schedule(bonded, [*bonded.members[:1], *NEW], 10)
    with boa.reverts("members: in office"):
        bonded.membership.thaw(1, sender=at(NEW[3]))


def test_the_sets_of_long_ago_are_not_looked_for(bonded: World) -> None:
    for index in range(66):
        schedule(bonded, [NEW[index % 2]], index + 3)
        bonded.members = bonded.members if index < 2 else [NEW[index % 2]]
        pass_epochs(bonded, 1)
    assert bonded.membership.members_at(5) == addresses([NEW[0]])
    with boa.reverts("timeline: long ago"):
        bonded.membership.members_at(2)


# Bonds


def position(world: World, key: Key) -> tuple[int, int, int]:
    found = world.membership.position(at(key))
    return found.bond // TOKEN, found.thawing // TOKEN, found.ends


def test_anyone_pays_into_a_members_bond(world: World) -> None:
    bond(world, NEW[0], 7 * TOKEN)
    bond(world, NEW[0], 3 * TOKEN)
    (event,) = logs_of(world.membership, "Bonded")
    assert (event.member, event.amount, event.bond) == (at(NEW[0]), 3 * TOKEN, 10 * TOKEN)
    assert world.token.balanceOf(world.membership) == 10 * TOKEN
    with boa.reverts("members: nothing"):
        world.membership.bond(at(NEW[0]), 0)


def test_who_is_in_a_set_keeps_its_bond_and_thaws_the_rest(bonded: World) -> None:
    member = bonded.members[0]
    bond(bonded, member, 5 * TOKEN)
    with boa.reverts("members: in office"):
        bonded.membership.thaw(5 * TOKEN + 1, sender=at(member))
    bonded.membership.thaw(5 * TOKEN, sender=at(member))
    assert position(bonded, member) == (100, 5, 3)


def test_who_is_scheduled_keeps_its_bond_too(bonded: World) -> None:
    schedule(bonded, NEW, 5)
    with boa.reverts("members: in office"):
        bonded.membership.thaw(1, sender=at(NEW[0]))
    schedule(bonded, bonded.members, 5)
    bonded.membership.thaw(BOND, sender=at(NEW[0]))


def test_who_left_keeps_its_bond_until_its_last_report_is_active(bonded: World) -> None:
    old = bonded.members
    schedule(bonded, NEW, 3)
    pass_epochs(bonded, 1)
    bonded.post()
    bonded.members = NEW
    bonded.post()
    with boa.reverts("members: in office"):
        bonded.membership.thaw(1, sender=at(old[0]))
    bonded.activate()
    bonded.membership.thaw(BOND, sender=at(old[0]))
    assert position(bonded, old[0]) == (0, 100, 6)


@pytest.mark.parametrize(("epochs", "reverts"), [(2, True), (3, False)])
def test_a_thaw_ends_after_k_activated_epochs(bonded: World, epochs: int, reverts: bool) -> None:
    bonded.membership.thaw(BOND, sender=at(NEW[0]))
    pass_epochs(bonded, epochs)
    if reverts:
        with boa.reverts("members: thawing"):
            bonded.membership.withdraw(sender=at(NEW[0]))
    else:
        assert bonded.membership.withdraw(sender=at(NEW[0])) == BOND == bonded.token.balanceOf(at(NEW[0]))
        with boa.reverts("members: nothing"):
            bonded.membership.withdraw(sender=at(NEW[0]))


def test_a_thaw_is_within_the_bond(bonded: World) -> None:
    for amount, reason in ((0, "members: nothing"), (BOND + 1, "members: over bond")):
        with boa.reverts(reason):
            bonded.membership.thaw(amount, sender=at(NEW[0]))


@pytest.mark.parametrize(("lengths", "reverts"), [(2, True), (3, False)])
def test_once_frozen_a_thaw_ends_after_k_nominal_lengths(bonded: World, lengths: int, reverts: bool) -> None:
    s = bonded.settings
    bonded.membership.thaw(BOND, sender=at(NEW[0]))
    boa.env.time_travel(seconds=s.freeze_lengths * s.epoch_length + 1)
    bonded.ledger.freeze()
    boa.env.time_travel(seconds=(lengths + 1) * s.epoch_length - 1)
    if reverts:
        with boa.reverts("members: thawing"):
            bonded.membership.withdraw(sender=at(NEW[0]))
    else:
        bonded.membership.withdraw(sender=at(NEW[0]))


# Slashing


def test_only_disputes_and_the_oracle_slash(bonded: World) -> None:
    nobody = "0x" + "00" * 20
    for sender in (bonded.governor, bonded.guardian, bonded.treasury, bonded.ledger.address, at(NEW[0])):
        with boa.reverts("members: only disputes"):
            bonded.membership.slash(at(NEW[0]), nobody, nobody, sender=sender)


@pytest.mark.parametrize(
    ("challenger", "harmed", "reward", "damages"), [(1, 1, 20, 20), (1, 0, 20, 0), (0, 1, 0, 20), (0, 0, 0, 0)]
)
def test_a_slash_takes_all_and_burns_at_least_three_fifths(
    bonded: World, challenger: int, harmed: int, reward: int, damages: int
) -> None:
    nobody, first, second = "0x" + "00" * 20, boa.env.generate_address(), boa.env.generate_address()
    bonded.membership.thaw(40 * TOKEN, sender=at(NEW[0]))
    supply = bonded.token.totalSupply()
    arguments = (at(NEW[0]), first if challenger else nobody, second if harmed else nobody)
    assert bonded.membership.slash(*arguments, sender=bonded.disputes.address) == BOND
    (event,) = logs_of(bonded.membership, "MemberSlashed")
    assert (event.member, event.amount, event.reward) == (at(NEW[0]), BOND, reward * TOKEN)
    assert bonded.token.balanceOf(first) == reward * TOKEN
    assert bonded.token.balanceOf(second) == damages * TOKEN
    assert supply - bonded.token.totalSupply() == BOND - (reward + damages) * TOKEN
    assert position(bonded, NEW[0]) == (0, 0, 0)
    assert bonded.membership.slash(*arguments, sender=bonded.disputes.address) == 0


def test_who_challenges_and_is_harmed_gets_one_fifth(bonded: World) -> None:
    both, supply = boa.env.generate_address(), bonded.token.totalSupply()
    bonded.membership.slash(at(NEW[0]), both, both, sender=bonded.disputes.address)
    assert bonded.token.balanceOf(both) == 20 * TOKEN == BOND - (supply - bonded.token.totalSupply())


@pytest.mark.parametrize(("amount", "part"), [(4, 0), (5, 1), (9, 1)])
def test_the_parts_of_a_small_bond_round_down(world: World, amount: int, part: int) -> None:
    bond(world, NEW[0], amount)
    first, second, supply = boa.env.generate_address(), boa.env.generate_address(), world.token.totalSupply()
    assert world.membership.slash(at(NEW[0]), first, second, sender=world.disputes.address) == amount
    assert world.token.balanceOf(first) == world.token.balanceOf(second) == part
    assert supply - world.token.totalSupply() == amount - 2 * part


def test_a_donation_is_nobodys(bonded: World) -> None:
    bonded.fund(bonded.membership.address, 7 * TOKEN)
    bonded.membership.slash(at(NEW[0]), boa.env.eoa, boa.env.eoa, sender=bonded.disputes.address)
    assert bonded.token.balanceOf(bonded.membership) == 7 * BOND + 7 * TOKEN


def test_bonding_takes_what_was_approved_and_no_more(world: World) -> None:
    world.token.approve(world.membership, NEVER, sender=world.treasury)
    with boa.reverts():
        world.membership.bond(at(NEW[0]), 1, sender=boa.env.generate_address())
