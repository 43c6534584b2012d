"""Members that join and leave, parameters that change, freezes, and revocations cut at every effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
import pytest

from freehold.oracle.records import SEAL
from freehold.protocol.messages import Report
from freehold.protocol.shares import MEMBERS_SERVICE
from freehold.protocol.units import ZERO_HASH
from tests.oracle.byzantine import Copying, With
from tests.oracle.fake_chain import KEYS, MEMBERS, PARAMETERS
from tests.oracle.invariants import check
from tests.oracle.memo import remember
from tests.oracle.simulation import CRASHING, HOSTILE, QUIET, Faults, Host, World, forget_settled, settle_once

NEWCOMER = KEYS[4].address
LATER = (*MEMBERS[1:], NEWCOMER)  # member 0 leaves


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        remember(patch)
        yield
    forget_settled()


def change_members(seed: int, faults: Faults, from_epoch: int = 4, retention: int = 1000, joins: int = 0) -> World:
    """Member 0 leaves and a newcomer joins at an epoch; the newcomer's process starts `joins` milliseconds late."""
    world = World(seed, faults, target=from_epoch + 4, hosts=5, retention=retention)
    world.chain.schedule_members(from_epoch, LATER)
    newcomer = world.hosts[4]
    newcomer.crash()
    world.after(joins or 1, newcomer.start)
    return world


@pytest.mark.timeout(120)
@pytest.mark.parametrize("faults", [QUIET, HOSTILE, CRASHING], ids=["quiet", "hostile", "crashing"])
def test_a_member_joins_and_another_leaves(faults: Faults) -> None:
    for seed in range(8):
        world = change_members(seed, faults).run()
        check(world)
        leaver, newcomer = world.hosts[0], world.hosts[4]
        assert all(message_epoch(m) < 4 for m in leaver.said), "the member that left signs on"
        assert newcomer.said, "the newcomer never signed"
        assert all(message_epoch(m) >= 4 for m in newcomer.said if not is_others(m, newcomer))
        assert any(vote.anchor.members == LATER for vote in world.chain.accepted)
        assert NEWCOMER in newcomer.member.committed.state.members or newcomer.member.committed.epoch > 4


def message_epoch(message: object) -> int:
    report = getattr(message, "report", message)
    epoch: int = report.epoch  # type: ignore[attr-defined]
    return epoch


def is_others(message: object, host: Host) -> bool:
    return getattr(message, "member", None) != host.key.address


def test_a_newcomer_begins_with_the_oldest_bundle_that_is_left() -> None:
    for seed in range(4):
        world = change_members(seed, QUIET, from_epoch=14, retention=3, joins=40_000).run()
        check(world)
        newcomer = world.hosts[4]
        assert min(newcomer.states) > 5, "it began before the oldest bundle"
        accepted = world.chain.accepted[newcomer.member.committed.epoch - 1].accepted.report
        assert newcomer.member.committed.report == accepted
        assert newcomer.said


def test_f_members_that_lie_about_their_oldest_bundle_do_not_hide_an_older_one() -> None:
    world = change_members(3, QUIET, from_epoch=14, retention=6, joins=40_000)
    liar = world.hosts[1]
    world.run_until(39_900)
    claimed = max(liar.bundles)
    liar.bundles = {claimed: liar.bundles[claimed]}
    world.run()
    check(world)
    assert 5 < min(world.hosts[4].states) < claimed


def test_parameters_change_by_epoch_and_old_bundles_replay() -> None:
    changed = msgspec.structs.replace(PARAMETERS, member_share=200_000, epoch_length=4)
    for seed in range(4):
        world = World(seed, HOSTILE, target=7)
        world.chain.schedule_parameters(4, changed)
        world.run()
        check(world)
        bundles = world.hosts[0].bundles
        for epoch, bundle in bundles.items():
            assert bundle.anchor.parameters == (PARAMETERS if epoch < 4 else changed)
            settlement = settle_once(bundle.state, bundle.manifest, dict(bundle.batches), bundle.anchor)
            assert settlement.report == bundle.report
            paid = {reward.subsidy for reward in settlement.rewards if reward.service == MEMBERS_SERVICE}
            share = 1000 * 10**18 * bundle.anchor.parameters.member_share // 10**6 // 4
            assert paid == {share}


def test_members_have_accounts_like_everybody_else() -> None:
    world = World(1, QUIET, target=3).run()
    check(world)
    earned = {row.account: row.tokens_earned for row in world.hosts[0].member.committed.state.accounts}
    assert sum(earned.get(member, 0) > 0 for member in MEMBERS) >= 3


def test_after_a_freeze_the_epoch_has_a_fresh_anchor_and_another_attempt() -> None:
    for seed in range(8):
        world = World(seed, HOSTILE, target=5)
        world.run_until(9_000)
        world.chain.freeze()
        world.run_until(30_000)
        stood = len(world.chain.accepted)
        frozen = world.chain.view.block.number
        world.chain.resume()
        world.target = stood + 3
        world.run()
        check(world)
        first = world.chain.accepted[stood]
        assert first.accepted.report.attempt == 1
        assert first.anchor.anchor_block > frozen


class CutOnce(Host):
    """Dies after a given number of effects, once, and comes back a second later."""

    effects_left = 0

    def do(self, effect: object) -> None:
        super().do(effect)  # type: ignore[arg-type]
        self.effects_left -= 1
        if self.effects_left == 0:
            self.crash()
            self.world.after(1_000, self.start)


def with_a_cut(position: int, after: int) -> Callable[[World, int], Host]:
    def make(world: World, index: int) -> Host:
        host = (CutOnce if index == position else Host)(world, index)
        if isinstance(host, CutOnce):
            host.effects_left = after
        return host

    return make


@pytest.mark.timeout(180)
@pytest.mark.parametrize("lies", [False, True], ids=["rolled back", "contested"])
def test_a_cut_after_every_effect_of_a_revocation(lies: bool) -> None:
    after, cut, deepest = 1, True, 0
    while cut:
        world = World(11, QUIET, with_a_cut(2, after), target=5)
        world.honest = world.hosts
        if lies:
            world.chain.corrupt = lambda report, world=world: lie_once(world, report)
        world.run_until(13_000)
        if not lies:
            world.chain.revoke(max(1, world.chain.view.epoch - 2))
        world.target = 5
        world.run()
        cut = world.hosts[2].life > 0
        try:
            check(world)
            assert world.chain.revoked
        except AssertionError as error:
            error.add_note(f"cut after effect {after}")
            raise
        deepest = max(deepest, *(one.last - one.epoch for one in world.chain.revoked))
        after += 3
    assert after > 60
    assert lies or deepest >= 1


def lie_once(world: World, report: Report) -> Report | None:
    """The second epoch's first report is a lie."""
    return world.lie(report) if report.epoch == 2 and not report.attempt else None


def test_members_outlive_reports_about_another_anchor_and_before_any() -> None:
    """The second epoch's first report names another anchor, and the third's comes in the block after it."""

    def lie(report: Report) -> Report | None:
        if report.epoch != 2 or report.attempt:
            return None
        wrong = msgspec.structs.replace(world.lie(report), anchor_hash=ZERO_HASH)
        world.chain.post(msgspec.structs.replace(wrong, epoch=3, previous=wrong.struct_hash()))
        return wrong

    lasts = set()
    for seed in range(4):
        world = World(seed, QUIET, target=5)
        world.chain.corrupt = lie
        while not world.chain.revoked:
            world.run_until(world.now + 1_000)
            world.now += 1_000
        (revoked,) = world.chain.revoked
        world.run()
        check(world)
        assert revoked.epoch == 2
        lasts.add(revoked.last)
        assert [accepted.is_anchored for accepted in world.chain.accepted] == [True] * len(world.chain.accepted)
    assert 3 in lasts, "none was posted before its anchor"


def test_a_revoked_epoch_settles_to_the_same_roots() -> None:
    world = World(2, QUIET, target=4)
    world.run_until(13_000)
    before = [accepted.accepted.report for accepted in world.chain.accepted]
    world.chain.revoke(1)
    world.target = len(before) + 2
    world.run()
    check(world)
    after = [accepted.accepted.report for accepted in world.chain.accepted[: len(before)]]
    assert len(before) >= 2
    for old, new in zip(before, after, strict=True):
        assert (old.attempt, new.attempt) == (0, 1)
        assert (old.anchor_hash, old.beacon, old.state_root) == (new.anchor_hash, new.beacon, new.state_root)
        assert (old.accounts_root, old.verdicts_root) == (new.accounts_root, new.verdicts_root)


def test_who_copies_votes_shows_no_work() -> None:
    world = World(0, QUIET, With(Copying), target=4).run()
    check(world)
    liar = MEMBERS[0]
    for host in world.honest:
        member = host.member
        assert not member.work[liar, "proven"]
        assert sum(member.work[other, "proven"] for other in MEMBERS) > 0
        assert member.work[liar, "unproven"] > 0
        for other in {*MEMBERS} - {liar, host.key.address}:
            assert member.work[other, "proven"] > member.work[other, "unproven"]


def test_what_was_sealed_is_forgotten_once_the_epoch_is_committed() -> None:
    world = World(1, QUIET, target=6).run()
    for host in world.hosts:
        epochs = {record.epoch for record in host.disk.values() if record.kind == SEAL}
        assert all(epoch > host.member.committed.epoch for epoch in epochs)
