"""The fold: what is read at the anchor, where the anchor is, and that a snapshot forgets nothing."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.oracle.chain_records import (
    Accepted,
    Activated,
    Bonded,
    Bought,
    ChainRecord,
    Collected,
    DeviceMoved,
    DeviceRevoked,
    FinalBlock,
    FleetRegistered,
    FleetRetired,
    Frozen,
    MembersScheduled,
    ParametersScheduled,
    PayoutSet,
    Registered,
    Resumed,
    Retired,
    Revoked,
)
from freehold.oracle.chain_view import AcceptedEpoch, ChainView
from freehold.protocol.beacon import Block
from freehold.protocol.errors import Corrupt
from freehold.protocol.messages import Report
from freehold.protocol.typed import keccak
from freehold.protocol.units import ZERO_HASH, Address
from tests.oracle.fake_chain import PARAMETERS, START

A, B, C, D = (Address(bytes([i]) * 20) for i in range(1, 5))


def block(number: int, *records: ChainRecord, time: int | None = None) -> FinalBlock:
    when = START.block.time + number if time is None else time
    return FinalBlock(Block(number, keccak(f"block {number}".encode()), when), records)


def report(view: ChainView) -> Report:
    assert view.anchor is not None
    return Report(
        epoch=view.epoch,
        attempt=view.attempt,
        view=0,
        anchor_block=view.anchor.anchor_block,
        anchor_hash=view.anchor.anchor_hash,
        beacon=view.anchor.beacon_hash,
        previous=view.previous,
        manifest=ZERO_HASH,
        verdicts_root=ZERO_HASH,
        state_root=ZERO_HASH,
        accounts_root=ZERO_HASH,
        accounts=0,
        tokens_earned=0,
        credits_earned=0,
        credits_spent=0,
        slashes_root=ZERO_HASH,
        subsidy=0,
        revenue=0,
        price=1,
        collected=view.anchor.collected,
        parameters=PARAMETERS.hash(),
    )


def test_the_anchor_is_the_first_block_late_enough_and_freezes_what_stands_there() -> None:
    view = ChainView(START)
    assert (view.epoch, view.previous, view.anchor_time) == (1, PARAMETERS.hash(), START.block.time + 3)
    view.process_block(block(1, Registered(A, B, "http://b", A), Bonded(A, B, 5), Bought(C, 7, 9)))
    view.process_block(block(2, PayoutSet(A, D)))
    assert view.anchor is None
    view.process_block(block(3, Bonded(A, B, 6)))
    assert view.anchor is not None
    anchor = view.anchor
    assert (anchor.anchor_block, anchor.beacon_block, anchor.beacon_hash) == (3, 1, keccak(b"block 1"))
    assert [(n.node, n.operator, n.payout, n.bond) for n in anchor.nodes] == [(B, A, D, 6)]
    assert [(b.client, b.paid_in, b.burned) for b in anchor.buyers] == [(C, 7, 9)]
    view.process_block(block(4, Retired(A, B), Bought(C, 8, 10)))
    assert view.anchor is anchor
    assert not view.is_known(B)
    assert view.is_known(C)


def test_the_next_epoch_counts_from_the_acceptance() -> None:
    view = ChainView(START)
    for number in range(1, 6):
        view.process_block(block(number))
    first = report(view)
    (epoch,) = view.process_block(block(6, Accepted(first, 7, b"")))
    assert isinstance(epoch, AcceptedEpoch)
    assert (epoch.anchor.epoch, epoch.previous) == (1, None)
    assert (view.epoch, view.anchor, view.beacon, view.previous) == (2, None, None, first.struct_hash())
    # anchor(1) + length is block 6's time, acceptance + window one later
    assert view.anchor_time == START.block.time + 7
    view.process_block(block(7))
    assert view.anchor is not None
    assert view.anchor.beacon_hash == view.anchor.anchor_hash == keccak(b"block 7")
    assert view.anchor.previous == first.struct_hash()


def test_what_cannot_be_is_refused() -> None:
    view = ChainView(START)
    with pytest.raises(Corrupt, match="after 0"):
        view.process_block(block(2))
    for number in range(1, 4):
        view.process_block(block(number))
    good = report(view)
    values = {name: getattr(good, name) for name in good.__struct_fields__}
    for wrong in ({"epoch": 2}, {"attempt": 1}):
        other = ChainView.from_bytes(view.to_bytes(), START)
        with pytest.raises(Corrupt):
            other.process_block(block(4, Accepted(Report(**(values | wrong)), 7, b"")))


def test_a_report_about_another_anchor_is_folded_with_the_anchor_that_the_chain_has() -> None:
    view = ChainView(START)
    run_to_anchor(view)
    anchor, beacon = view.anchor, view.beacon
    lie = msgspec.structs.replace(report(view), anchor_hash=ZERO_HASH)
    (epoch,) = view.process_block(block(4, Accepted(lie, 7, b"")))
    assert isinstance(epoch, AcceptedEpoch)
    assert (epoch.anchor, epoch.is_anchored) == (anchor, False)
    view.process_block(block(5, Revoked(1, 1, 1)))
    assert (view.anchor, view.beacon) == (anchor, beacon)
    (again,) = view.process_block(block(6, Accepted(report(view), 7, b"")))
    assert isinstance(again, AcceptedEpoch)
    assert again.is_anchored


def test_a_report_that_comes_before_its_anchor_is_folded_and_its_anchor_forgotten_when_it_is_revoked() -> None:
    view = ChainView(START)
    run_to_anchor(view)
    first, anchor = report(view), view.anchor
    early = msgspec.structs.replace(first, epoch=2, previous=first.struct_hash())
    row = (ZERO_HASH, C, A, 5, 4, 3)
    accepted = (Accepted(first, 7, b""), Collected(*row, keccak(b"one")), Accepted(early, 7, b""))
    one, two = view.process_block(block(4, *accepted))
    assert isinstance(one, AcceptedEpoch)
    assert isinstance(two, AcceptedEpoch)
    assert (one.is_anchored, two.is_anchored) == (True, False)
    assert (two.anchor.epoch, two.anchor.anchor_block, two.anchor.beacon_block) == (2, 4, 4)
    run_to_anchor(view)
    late = accept(view)
    assert late.epoch == 3
    view = ChainView.from_bytes(view.to_bytes(), START)
    at = view.block.number
    view.process_block(block(at + 1, Revoked(1, 3, 1)))
    view = ChainView.from_bytes(view.to_bytes(), START)
    assert view.anchor == anchor
    accept(view)
    assert (view.epoch, view.attempt, view.anchor, view.beacon) == (2, 1, None, None)
    run_to_anchor(view)
    assert view.anchor is not None
    assert view.anchor.anchor_block > view.anchor.beacon_block - 1 > at + 1
    assert [c.tokens for c in view.anchor.collections] == [3]
    accept(view)
    assert (view.epoch, view.anchor) == (3, None)
    run_to_anchor(view)
    assert view.anchor is not None
    assert view.anchor.collections == ()


def test_a_beacon_that_was_found_in_time_outlives_an_early_report() -> None:
    view = ChainView(START)
    first = accept(view)
    view.process_block(block(5))
    beacon = view.beacon
    assert (view.anchor, beacon) == (None, Block(5, keccak(b"block 5"), START.block.time + 5))
    early = msgspec.structs.replace(first, epoch=2, previous=first.struct_hash())
    for attempt in (0, 1):  # the second time from what the first left
        at = view.block.number
        view.process_block(block(at + 1, Accepted(msgspec.structs.replace(early, attempt=attempt), 7, b"")))
        view.process_block(block(at + 2, Revoked(2, 2, attempt + 1)))
        assert (view.anchor, view.beacon) == (None, beacon)
    run_to_anchor(view)
    assert view.anchor is not None
    assert view.anchor.anchor_block > at + 2


def run_to_anchor(view: ChainView) -> None:
    while view.anchor is None:
        view.process_block(block(view.block.number + 1))


def accept(view: ChainView) -> Report:
    run_to_anchor(view)
    said = report(view)
    view.process_block(block(view.block.number + 1, Accepted(said, 7, b"")))
    return said


def test_revoked_epochs_are_settled_again_with_what_they_had() -> None:
    view = ChainView(START)
    said, anchors = [], []
    for _ in range(3):
        run_to_anchor(view)
        assert view.anchor is not None
        anchors.append(view.anchor)
        said.append(accept(view))
    view.process_block(block(view.block.number + 1, Bought(C, 9, 9)))
    (revoked,) = view.process_block(block(view.block.number + 1, Revoked(2, 3, 1)))
    assert revoked == Revoked(2, 3, 1)
    view = ChainView.from_bytes(view.to_bytes(), START)
    assert (view.epoch, view.attempt, view.attempt_of(3), view.attempt_of(4)) == (2, 1, 1, 0)
    assert (view.previous, view.revoked_manifest) == (said[0].struct_hash(), said[1].manifest)
    assert view.anchor == anchors[1]
    with pytest.raises(Corrupt, match="attempt 0"):
        ChainView.from_bytes(view.to_bytes(), START).process_block(
            block(view.block.number + 1, Accepted(said[1], 7, b""))
        )
    again = accept(view)
    assert (again.epoch, again.attempt) == (2, 1)
    assert view.anchor == msgspec.structs.replace(anchors[2], previous=again.struct_hash())
    accept(view)
    assert (view.epoch, view.anchor, view.revoked_manifest) == (4, None, None)
    run_to_anchor(view)
    assert view.anchor is not None
    assert [(b.client, b.paid_in) for b in view.anchor.buyers] == [(C, 9)]
    view.process_block(block(view.block.number + 1, Activated(3)))
    with pytest.raises(Corrupt, match="not pending"):
        view.process_block(block(view.block.number + 1, Revoked(3, 3, 2)))


def test_what_is_open_about_pending_reports_is_looked_for_from_the_oldest_ones_anchor_on() -> None:
    view = ChainView(START)
    assert view.pending_block == START.block.number
    anchors = []
    for _ in range(3):
        run_to_anchor(view)
        assert view.anchor is not None
        anchors.append(view.anchor.anchor_block)
        accept(view)
    assert ChainView.from_bytes(view.to_bytes(), START).pending_block == anchors[0]
    view.process_block(block(view.block.number + 1, Activated(2)))
    assert view.pending_block == anchors[2]
    view.process_block(block(view.block.number + 1, Activated(3)))
    assert view.pending_block == view.block.number


def test_what_was_collected_stands_once_in_the_epoch_that_ends_the_freeze() -> None:
    view = ChainView(START)
    accept(view)
    run_to_anchor(view)
    old, row = view.anchor, (ZERO_HASH, C, A, 5, 4, 3)
    view.process_block(block(view.block.number + 1, Frozen(1), Collected(*row, keccak(b"one"))))
    assert view.frozen_at == 1
    view.process_block(block(view.block.number + 1, Resumed(2, 1)))
    assert (view.anchor, view.frozen_at, view.attempt) == (None, None, 1)
    run_to_anchor(view)
    assert view.anchor is not None
    assert old is not None
    assert view.anchor.anchor_block > old.anchor_block
    assert (view.anchor.beacon_hash, view.anchor.collected) == (old.beacon_hash, keccak(b"one"))
    assert [(c.operator, c.tokens) for c in view.anchor.collections] == [(A, 3)]
    accept(view)
    run_to_anchor(view)
    assert view.anchor is not None
    assert (view.anchor.collections, view.anchor.collected) == ((), keccak(b"one"))


def test_members_and_parameters_are_those_of_the_epoch_and_the_last_word_counts() -> None:
    view = ChainView(START)
    longer = msgspec.structs.replace(PARAMETERS, epoch_length=7)
    view.process_block(block(1, MembersScheduled(3, (A, B)), ParametersScheduled(2, longer)))
    view.process_block(block(2, MembersScheduled(3, (A, C))))
    assert [view.members_of(epoch) for epoch in (1, 2, 3, 9)] == [START.members, START.members, (A, C), (A, C)]
    accept(view)
    assert view.parameters == longer
    assert view.anchor_time == START.block.time + 3 + 7
    run_to_anchor(view)
    assert view.anchor is not None
    assert (view.anchor.parameters, view.anchor.members) == (longer, START.members)


def test_fleets_and_their_devices_stand_as_they_are_at_the_anchor() -> None:
    view, zero = ChainView(START), Address(bytes(20))
    one, two = keccak(b"one"), keccak(b"two")
    view.process_block(
        block(
            1,
            *(Registered(A, node, "", A) for node in (B, C)),
            Bonded(A, B, 5),
            Bonded(A, C, 6),
            FleetRegistered(A, one, keccak(b"root"), 9),
            FleetRegistered(A, two, keccak(b"root"), 1),
            DeviceMoved(one, 4, D, C),
            DeviceRevoked(one, 2, D),
            DeviceMoved(two, 0, D, C),
            FleetRetired(two),
        )
    )
    run_to_anchor(view)
    assert view.anchor is not None
    assert [(f.fleet, f.operator, f.count, f.bond) for f in view.anchor.fleets] == [(one, A, 9, 11)]
    assert [(c.index, c.owner) for c in view.anchor.changes] == [(2, zero), (4, C)]


def test_fleets_stand_in_the_order_of_their_registration_after_a_restart_too() -> None:
    view, fleets = ChainView(START), [keccak(name) for name in (b"c", b"a", b"d", b"b")]
    view.process_block(block(1, *(FleetRegistered(A, fleet, keccak(b"root"), 9) for fleet in fleets)))
    view = ChainView.from_bytes(view.to_bytes(), START)
    run_to_anchor(view)
    assert view.anchor is not None
    assert [record.fleet for record in view.anchor.fleets] == fleets
    assert fleets != sorted(fleets)


PARTIES = st.sampled_from([A, B, C, D])
RECORDS = st.one_of(
    st.builds(Registered, PARTIES, PARTIES, st.text(max_size=5), PARTIES),
    st.builds(Retired, PARTIES, PARTIES),
    st.builds(PayoutSet, PARTIES, PARTIES),
    st.builds(Bonded, PARTIES, PARTIES, st.integers(0, 2**96 - 1)),
    st.builds(Bought, PARTIES, st.integers(0, 2**96 - 1), st.integers(0, 2**96 - 1)),
)


@given(st.lists(st.lists(RECORDS, max_size=3), min_size=1, max_size=10), st.data())
def test_a_snapshot_goes_on_like_the_view_it_was_taken_from(
    history: list[list[ChainRecord]], data: st.DataObject
) -> None:
    view = ChainView(START)
    at = data.draw(st.integers(0, len(history) - 1))
    copy = view
    for i, records in enumerate(history):
        if i == at:
            copy = ChainView.from_bytes(view.to_bytes(), START)
        taken = (Accepted(report(view), 7, b""),) if view.anchor is not None and i % 2 else ()
        view.process_block(block(i + 1, *records, *taken))
        if i >= at and copy is not view:
            copy.process_block(block(i + 1, *records, *taken))
    assert copy.to_bytes() == view.to_bytes()
    assert copy.anchor == view.anchor
