"""The fold: what is read at the anchor, where the anchor is, and that a snapshot forgets nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.oracle.chain_records import (
    Accepted,
    Bonded,
    Bought,
    ChainRecord,
    FinalBlock,
    PayoutSet,
    Registered,
    Retired,
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
    for wrong in ({"epoch": 2}, {"anchor_hash": ZERO_HASH}):
        other = ChainView.from_bytes(view.to_bytes(), START)
        with pytest.raises(Corrupt):
            other.process_block(block(4, Accepted(Report(**(values | wrong)), 7, b"")))


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
