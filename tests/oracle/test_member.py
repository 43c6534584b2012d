"""Small stories about one member: alone in its network, behind its peers, and told things it must not believe."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from freehold.oracle.chain_records import Accepted, Activated, FinalBlock, Revoked
from freehold.oracle.effects import (
    Broadcast,
    Commit,
    Contest,
    Effect,
    FetchBundle,
    Persist,
    Reply,
    Send,
    Settle,
    Signed,
    Submit,
)
from freehold.oracle.events import (
    BatchReceived,
    BundleFetched,
    ChainAdvanced,
    Event,
    MessageReceived,
    PriceSeen,
    Settled,
    Tick,
)
from freehold.oracle.member import Member
from freehold.oracle.setup import Setup, Timing
from freehold.protocol.batches import CLOSE, encode_batch, make_batch
from freehold.protocol.beacon import Block
from freehold.protocol.certificates import quorum
from freehold.protocol.epoch import settle
from freehold.protocol.errors import Unavailable
from freehold.protocol.keys import Key
from freehold.protocol.messages import Close, ViewChange, Vote
from freehold.protocol.tables import Table
from freehold.protocol.typed import keccak
from freehold.protocol.units import ONE, ZERO_HASH, Address
from tests.oracle.fake_chain import START, FakeChain
from tests.oracle.simulation import DOMAIN, KEYS, MEMBERS, NODE, QUIET, TIMING, World


def make(key: Key, members: tuple[Address, ...] = MEMBERS, timing: Timing = TIMING) -> Member:
    member = Member(Setup(key, DOMAIN, START._replace(members=members), {}, timing))
    member.on(Tick(0))
    member.on(PriceSeen(ONE))
    return member


def settled(effect: Settle) -> Settled:
    manifest = effect.manifest
    done = settle(effect.previous, manifest, effect.batches, effect.anchor, {}, DOMAIN)
    return Settled(manifest.epoch, manifest.struct_hash(), done, {}, "")


def run_alone(member: Member, chain: FakeChain, events: list[Event]) -> list[Effect]:
    """All effects, settling and submitting done at once."""
    seen: list[Effect] = []
    while events:
        for effect in member.on(events.pop(0)):
            seen.append(effect)
            if isinstance(effect, Settle):
                events.append(settled(effect))
            elif isinstance(effect, Submit):
                chain.submit(*effect)
    return seen


def test_a_network_of_one_settles() -> None:
    key = KEYS[0]
    chain = FakeChain(DOMAIN, START._replace(members=(key.address,)))
    member = make(key, (key.address,))
    fed, commits = 0, []
    for second in range(20):
        chain.mine()
        final, fed = chain.final[fed:], len(chain.final)
        effects = run_alone(member, chain, [ChainAdvanced(tuple(final)), Tick(1000 * second)])
        commits += [effect.bundle.report.epoch for effect in effects if isinstance(effect, Commit)]
    assert commits == list(range(1, len(commits) + 1))
    assert len(commits) >= 3


def test_what_is_signed_is_written_before_it_is_sent() -> None:
    key = KEYS[1]  # the leader of epoch 1
    chain = FakeChain(DOMAIN)
    member = make(key)
    for _ in range(5):
        chain.mine()
    effects = member.on(ChainAdvanced(tuple(chain.final)))
    kinds = [type(effect) for effect in effects]
    assert kinds.index(Persist) < kinds.index(Broadcast)
    assert member.epoch == 2
    late = member.on(Tick(TIMING.view))
    assert [type(effect) for effect in late] == [Persist, Broadcast]


def test_one_members_view_moves_nobody_and_two_do() -> None:
    chain = FakeChain(DOMAIN)
    member = make(KEYS[0])
    for _ in range(5):
        chain.mine()
    member.on(ChainAdvanced(tuple(chain.final)))

    def say(i: int, view: int) -> list[Effect]:
        change = ViewChange(epoch=1, attempt=0, view=view, member=MEMBERS[i])
        signed = msgspec.structs.replace(change, member_signature=KEYS[i].sign(change, DOMAIN))
        return member.on(MessageReceived(signed))

    assert say(1, 2**32 - 1) == []
    assert say(1, 7) == []
    effects = say(2, 5)
    sent = [effect.message for effect in effects if isinstance(effect, Broadcast)]
    assert [(type(m), m.view) for m in sent if isinstance(m, ViewChange)] == [(ViewChange, 5)]
    forged = ViewChange(epoch=1, attempt=0, view=9, member=MEMBERS[3])
    forged = msgspec.structs.replace(forged, member_signature=KEYS[2].sign(forged, DOMAIN))
    assert member.on(MessageReceived(forged)) == []


@pytest.fixture(scope="module")
def world() -> World:
    return World(5, QUIET, target=3).run()


def test_a_member_that_is_behind_acknowledges_nothing_until_it_is_level(world: World) -> None:
    bundles = [world.hosts[0].bundles[epoch] for epoch in sorted(world.hosts[0].bundles)]
    behind = make(KEYS[3])
    batch = make_batch(CLOSE, Table.of(Close, [Close(lease=keccak(b"x"))]), NODE, DOMAIN)
    asked = BatchReceived(batch, encode_batch(batch), 1)
    effects = behind.on(ChainAdvanced(tuple(world.chain.final)))
    committed = []
    for i, bundle in enumerate(bundles):
        epoch = bundle.report.epoch
        (fetch,) = [effect for effect in effects if isinstance(effect, FetchBundle)]
        assert fetch.epoch == epoch
        (refusal,) = behind.on(asked)
        assert isinstance(refusal, Reply)
        assert isinstance(refusal.answer, Unavailable)
        wrong = bundles[i - 1]
        (again,) = behind.on(BundleFetched(epoch, fetch.peer, wrong))
        assert isinstance(again, FetchBundle)
        assert again.peer != fetch.peer
        (settling,) = behind.on(BundleFetched(epoch, again.peer, bundle))
        assert isinstance(settling, Settle)
        effects = behind.on(settled(settling))
        committed += [effect.bundle for effect in effects if isinstance(effect, Commit)]
    assert [b.report for b in committed] == [b.report for b in bundles]
    assert behind.is_level
    *_, answer = behind.on(asked)
    assert isinstance(answer, Reply)
    assert isinstance(answer.answer, Signed)
    assert answer.answer.epoch == behind.epoch


def test_a_report_that_does_not_follow_is_contested_and_stops_the_member_only_when_it_is_active(world: World) -> None:
    behind = make(KEYS[3])
    behind.on(ChainAdvanced(tuple(world.chain.final)))
    (settling,) = behind.on(BundleFetched(1, MEMBERS[0], world.hosts[0].bundles[1]))
    assert isinstance(settling, Settle)
    assert not settling.is_checked
    done = settled(settling)
    assert done.settlement is not None
    report = msgspec.structs.replace(done.settlement.report, subsidy=ONE)
    lie = dataclasses.replace(done.settlement, report=report)
    (contest,) = behind.on(done._replace(settlement=lie))
    assert isinstance(contest, Contest)
    assert contest.bundle.report == world.chain.accepted[0].accepted.report
    assert (behind.contested, behind.step) == (1, "contest")
    assert behind.on(Tick(10**6)) == []
    batch = make_batch(CLOSE, Table.of(Close, [Close(lease=keccak(b"x"))]), NODE, DOMAIN)
    (refusal,) = behind.on(BatchReceived(batch, encode_batch(batch), 1))
    assert isinstance(refusal, Reply)
    assert isinstance(refusal.answer, Unavailable)
    last = behind.chain.block
    for number, is_stopped in ((last.number + 1, False), (last.number + 2, True)):
        block = Block(number, keccak(f"block {number}".encode()), START.block.time + number)
        behind.on(ChainAdvanced((FinalBlock(block, (Activated(1),) if is_stopped else ()),)))
        assert ("became active" in behind.fault) == is_stopped


def test_a_report_about_another_anchor_is_contested_at_once(world: World) -> None:
    """No peer is asked for what it follows from: there may be nothing that fits."""
    behind = make(KEYS[3])
    final = world.chain.final
    at = next(i for i, block in enumerate(final) if any(isinstance(record, Accepted) for record in block.records))
    behind.on(ChainAdvanced(tuple(final[:at])))
    report = msgspec.structs.replace(world.chain.accepted[0].accepted.report, anchor_hash=ZERO_HASH)
    lie = FinalBlock(final[at].block, (Accepted(report, *world.chain.sign(report)),))
    effects = behind.on(ChainAdvanced((lie,)))
    assert not [effect for effect in effects if isinstance(effect, FetchBundle)]
    assert (behind.contested, behind.step, behind.fault) == (1, "contest", "")
    number = final[at].block.number + 1
    block = Block(number, keccak(f"block {number}".encode()), START.block.time + number)
    behind.on(ChainAdvanced((FinalBlock(block, (Revoked(1, 1, 1),)),)))
    assert (behind.contested, behind.chain.epoch, behind.chain.attempt) == (0, 1, 1)
    assert behind.round is not None


def test_the_last_epochs_votes_answer_a_laggard_once_in_a_while(world: World) -> None:
    member = world.hosts[0].member
    assert member is not None
    epoch = member.committed.epoch
    change = ViewChange(epoch=epoch, attempt=0, view=1, member=MEMBERS[2])
    signed = msgspec.structs.replace(change, member_signature=KEYS[2].sign(change, DOMAIN))
    effects = member.on(MessageReceived(signed))
    votes = [effect.message for effect in effects if isinstance(effect, Send) and effect.peer == MEMBERS[2]]
    assert {vote.report.epoch for vote in votes if isinstance(vote, Vote)} == {epoch}
    assert len(votes) == quorum(len(MEMBERS))
    assert member.on(MessageReceived(signed)) == []
