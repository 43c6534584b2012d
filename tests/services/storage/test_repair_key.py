"""The repair key: any f+1 members open it, f do not, and a share opens for its member and its segment alone."""

from __future__ import annotations

import itertools

import pytest
from coincurve import PrivateKey

from freehold.protocol.errors import InvalidInput, WrongPassphrase
from freehold.services.storage import repair_key

MEMBERS = [PrivateKey(bytes([i]) * 32) for i in range(1, 5)]
PUBLIC = [member.public_key.format(compressed=False) for member in MEMBERS]
ROOTS = [bytes([i]) * 32 for i in range(6)]
KEY = bytes(range(16))


def opened(sealed: tuple[bytes, ...]) -> list[repair_key.Share]:
    return [repair_key.open_share(share, member.secret, ROOTS) for share, member in zip(sealed, MEMBERS, strict=True)]


@pytest.mark.parametrize("threshold", [1, 2, 3, 4])
def test_any_threshold_of_members_open_it(threshold: int) -> None:
    shares = opened(repair_key.seal_repair_key(KEY, PUBLIC, threshold, ROOTS))
    assert [share.position for share in shares] == [1, 2, 3, 4]
    for count in range(threshold, 5):
        for chosen in itertools.combinations(shares, count):
            assert repair_key.combine(chosen, threshold) == KEY


def test_fewer_do_not() -> None:
    shares = opened(repair_key.seal_repair_key(KEY, PUBLIC, 2, ROOTS))
    with pytest.raises(InvalidInput):
        repair_key.combine([shares[0], shares[0]], 2)
    assert all(share.value != KEY for share in shares)
    other = opened(repair_key.seal_repair_key(KEY, PUBLIC, 2, ROOTS))
    assert all(a.value != b.value for a, b in zip(shares, other, strict=True)), "shares are random each time"


def test_compressed_keys_are_taken() -> None:
    compressed = [member.public_key.format(compressed=True) for member in MEMBERS]
    assert repair_key.combine(opened(repair_key.seal_repair_key(KEY, compressed, 2, ROOTS)), 2) == KEY


def test_a_share_opens_for_its_member_alone() -> None:
    sealed = repair_key.seal_repair_key(KEY, PUBLIC, 2, ROOTS)
    with pytest.raises(WrongPassphrase):
        repair_key.open_share(sealed[0], MEMBERS[1].secret, ROOTS)


@pytest.mark.parametrize("cut", [0, 10, 33, 60, -1])
def test_a_damaged_share_does_not_open(cut: int) -> None:
    sealed = repair_key.seal_repair_key(KEY, PUBLIC, 2, ROOTS)
    with pytest.raises(WrongPassphrase):
        repair_key.open_share(sealed[0][:cut], MEMBERS[0].secret, ROOTS)
    changed = bytearray(sealed[0])
    changed[cut] ^= 1
    with pytest.raises(WrongPassphrase):
        repair_key.open_share(bytes(changed), MEMBERS[0].secret, ROOTS)


def test_a_share_pasted_into_another_segments_record_is_refused() -> None:
    sealed = repair_key.seal_repair_key(KEY, PUBLIC, 2, ROOTS)
    with pytest.raises(InvalidInput):
        repair_key.open_share(sealed[0], MEMBERS[0].secret, [*ROOTS[:5], bytes(32)])


@pytest.mark.parametrize(("members", "threshold", "size"), [(4, 0, 16), (4, 5, 16), (0, 1, 16), (4, 2, 15)])
def test_what_cannot_be_shared(members: int, threshold: int, size: int) -> None:
    with pytest.raises(InvalidInput):
        repair_key.seal_repair_key(bytes(size), PUBLIC[:members], threshold, ROOTS)


def test_random_keys_differ() -> None:
    assert len(repair_key.random_repair_key()) == 16
    assert repair_key.random_repair_key() != repair_key.random_repair_key()
