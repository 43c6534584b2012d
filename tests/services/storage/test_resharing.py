"""Re-sharing: the members that come open what a leaver could; fewer do not, nor with the leavers' shares mixed in."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from Crypto.Protocol.SecretSharing import Shamir

from freehold.protocol.errors import Corrupt, InvalidInput, MalformedMessage, WrongPassphrase, WrongSignature
from freehold.protocol.keys import Key
from freehold.protocol.typed import Domain
from freehold.protocol.units import Address
from freehold.services.storage import repair_key
from freehold.services.storage.resharing import (
    NewSet,
    Part,
    Resharing,
    combine_parts,
    is_part,
    open_box,
    open_dealt_share,
    open_part,
    reshare,
)
from freehold.services.storage.segment_record import VERSION, SegmentRecord

DOMAIN = Domain(31337, Address("0x" + "0c" * 20))
OLD, NEW, LATER = ([Key(bytes([label, i + 1]) * 16) for i in range(count)] for label, count in ((1, 4), (2, 7), (3, 4)))
REPAIR = bytes(range(16))
ROOTS = tuple(bytes([i]) * 32 for i in range(6))


def make_record(roots: tuple[bytes, ...] = ROOTS) -> SegmentRecord:
    sealed = repair_key.seal_repair_key(REPAIR, [key.public for key in OLD], 2, roots)
    return SegmentRecord(VERSION, 3, 6, 4096, roots, sealed)


RECORD = make_record()
DEALT = [reshare(RECORD, RECORD.sealed[i], OLD[i], NewSet(9, [k.address for k in NEW], [k.public for k in NEW]), DOMAIN)
         for i in range(2)]  # fmt: skip


def parts_of(dealt: Resharing, *members: int) -> list[Part]:
    return [open_part(dealt, RECORD, NEW[i].secret, i + 1) for i in members]


def test_any_threshold_of_the_new_members_opens_what_leavers_dealt() -> None:
    assert DEALT[0].threshold == 3
    for chosen in itertools.combinations(range(7), 3):
        shares = [
            open_dealt_share(RECORD, i + 1, combine_parts(dealt, RECORD, parts_of(dealt, *chosen)))
            for i, dealt in enumerate(DEALT)
        ]
        assert repair_key.combine(shares, 2) == REPAIR


def test_a_dealt_share_and_one_of_a_member_that_stayed_open_the_key() -> None:
    dealt = open_dealt_share(RECORD, 1, combine_parts(DEALT[0], RECORD, parts_of(DEALT[0], 1, 3, 5)))
    kept = repair_key.open_share(RECORD.sealed[3], OLD[3].secret, ROOTS)
    assert repair_key.combine([dealt, kept], 2) == REPAIR


def test_fewer_parts_do_not_whatever_shares_of_leavers_are_mixed_in() -> None:
    few = parts_of(DEALT[1], 0, 6)
    with pytest.raises(InvalidInput):
        combine_parts(DEALT[1], RECORD, few)
    with pytest.raises(InvalidInput):
        combine_parts(DEALT[1], RECORD, [few[0], few[0], few[0]])
    # f of the old set (one share) and f of the new one (two parts of each dealing): under what a third part might be,
    # the other share comes out as anything, so these say nothing about it.
    one = repair_key.open_share(RECORD.sealed[0], OLD[0].secret, ROOTS)
    keys = set()
    for guess in range(8):
        guessed = [*few, Part(4, bytes([guess]) * 32)]
        halves = [[(p, v[at : at + 16]) for p, v in guessed] for at in (0, 16)]
        keys.add(b"".join(Shamir.combine(half, ssss=False) for half in halves))
    assert len(keys) == 8
    for key in keys:
        with pytest.raises(Corrupt):
            open_dealt_share(RECORD, 2, key)
    with pytest.raises(InvalidInput):
        repair_key.combine([one], 2)
    values = {one.value, *(part.value[at : at + 16] for part in few for at in (0, 16))}
    assert REPAIR not in values
    for first, second in itertools.permutations(values, 2):
        assert repair_key.combine([repair_key.Share(1, first), repair_key.Share(2, second)], 2) != REPAIR


def test_a_wrong_part_names_its_member() -> None:
    parts = parts_of(DEALT[0], 0, 1, 2)
    lie = Part(2, bytes(32))
    assert is_part(DEALT[0], RECORD, parts[1])
    assert not is_part(DEALT[0], RECORD, lie)
    assert not is_part(DEALT[0], RECORD, Part(8, parts[1].value))
    with pytest.raises(Corrupt) as caught:
        combine_parts(DEALT[0], RECORD, [parts[0], lie, parts[2]])
    assert caught.value.details["position"] == 2


def test_a_leaver_that_deals_something_else_is_found_out() -> None:
    to = NewSet(9, [k.address for k in NEW], [k.public for k in NEW])
    other = make_record()  # the same roots, other shares: its parts pass their own checks
    dealt = reshare(other, other.sealed[0], OLD[0], to, DOMAIN)
    key = combine_parts(dealt, RECORD, [open_part(dealt, RECORD, NEW[i].secret, i + 1) for i in range(3)])
    with pytest.raises(Corrupt, match="dealt"):
        open_dealt_share(RECORD, 1, key)
    mixed = msgspec.structs.replace(DEALT[0], boxes=dealt.boxes)
    with pytest.raises(Corrupt, match="signed for"):
        open_part(mixed, RECORD, NEW[0].secret, 1)


def test_what_is_dealt_can_be_dealt_on() -> None:
    to = NewSet(20, [k.address for k in LATER], [k.public for k in LATER])
    onward = {i: reshare(RECORD, DEALT[0].boxes[i], NEW[i], to, DOMAIN) for i in (1, 2, 4)}
    parts = []
    for i, again in onward.items():
        key = combine_parts(again, RECORD, [open_part(again, RECORD, LATER[j].secret, j + 1) for j in (0, 3)])
        opened = open_box(DEALT[0].boxes[i], key)
        parts.append(Part(opened[0], opened[1:33]))
    share = open_dealt_share(RECORD, 1, combine_parts(DEALT[0], RECORD, parts))
    assert share == repair_key.open_share(RECORD.sealed[0], OLD[0].secret, ROOTS)


def test_only_the_holder_deals_and_only_a_member_opens() -> None:
    to = NewSet(9, [k.address for k in NEW], [k.public for k in NEW])
    with pytest.raises(WrongPassphrase):
        reshare(RECORD, RECORD.sealed[0], OLD[1], to, DOMAIN)
    with pytest.raises(WrongPassphrase):
        open_part(DEALT[0], RECORD, NEW[1].secret, 1)
    other = make_record(tuple(reversed(ROOTS)))
    with pytest.raises(Corrupt):
        open_part(DEALT[0], other, NEW[0].secret, 1)


def test_the_format_is_signed_whole_and_has_one_spelling() -> None:
    dealt = DEALT[0]
    dealt.check(DOMAIN)
    assert Resharing.from_bytes(dealt.to_bytes()) == dealt
    for change in (
        {"from_epoch": 10}, {"box": DEALT[1].box}, {"boxes": DEALT[1].boxes}, {"checks": DEALT[1].checks},
        {"members": tuple(reversed(dealt.members))}, {"member": OLD[1].address},
    ):  # fmt: skip
        with pytest.raises(WrongSignature):
            msgspec.structs.replace(dealt, **change).check(DOMAIN)
    for change in (
        {"boxes": dealt.boxes[:-1]}, {"checks": ()}, {"members": (), "boxes": (), "checks": ()},
        {"members": dealt.members[:1] * 7}, {"boxes": (bytes(1000), *dealt.boxes[1:])},
    ):  # fmt: skip
        with pytest.raises(MalformedMessage):
            msgspec.structs.replace(dealt, **change).check(DOMAIN)


def test_a_set_of_one_opens_alone() -> None:
    alone = reshare(RECORD, RECORD.sealed[2], OLD[2], NewSet(9, [NEW[0].address], [NEW[0].public]), DOMAIN)
    key = combine_parts(alone, RECORD, [open_part(alone, RECORD, NEW[0].secret, 1)])
    assert open_dealt_share(RECORD, 3, key) == repair_key.open_share(RECORD.sealed[2], OLD[2].secret, ROOTS)
