"""Quorums intersect in an honest member; a certificate is exactly Q signatures."""

from __future__ import annotations

import msgspec
import pytest

from freehold.protocol.certificates import check_certificate, faults, leader, median, quorum
from freehold.protocol.errors import InvalidInput, WrongSignature
from freehold.protocol.typed import Domain
from tests.protocol.world import ADDRESSES, DOMAIN, MEMBERS, World, certify, key

BATCH = World((key(1),), (key(11),)).reserve(key(1), 1, {})


@pytest.mark.parametrize("n", range(1, 32))
def test_two_quorums_share_an_honest_member_and_the_honest_are_enough(n: int) -> None:
    f, q = faults(n), quorum(n)
    assert n >= 3 * f + 1
    assert 2 * q - n >= f + 1
    assert n - f >= q


def test_a_certificate_of_a_quorum_is_good() -> None:
    check_certificate(certify(BATCH, 3), ADDRESSES, DOMAIN)


def test_too_few_acknowledgements_make_none() -> None:
    with pytest.raises(InvalidInput, match="2 acknowledgements, of 3"):
        certify(BATCH, 3, MEMBERS[:2])


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": 4},
        {"signers": 0b1011},
        {"signers": 0b1111},
        {"signers": 0b0011},
        {"signers": 0b10011},
        {"signatures": b""},
        {"signatures": certify(BATCH, 3).signatures + b"\x00"},
        {"signatures": certify(BATCH, 3).signatures[65:] + certify(BATCH, 3).signatures[:65]},
        {"signatures": 3 * certify(BATCH, 3).signatures[:65]},
    ],
)
def test_a_changed_certificate_is_not(change: dict[str, object]) -> None:
    with pytest.raises(WrongSignature):
        check_certificate(msgspec.structs.replace(certify(BATCH, 3), **change), ADDRESSES, DOMAIN)


def test_a_certificate_counts_on_its_own_chain() -> None:
    with pytest.raises(WrongSignature):
        check_certificate(certify(BATCH, 3), ADDRESSES, Domain(1, DOMAIN.contract))


def test_leaders_take_turns() -> None:
    assert [leader(5, 0, view, ADDRESSES) for view in range(4)] == [ADDRESSES[i] for i in (1, 2, 3, 0)]
    assert leader(5, 1, 0, ADDRESSES) == ADDRESSES[2]


@pytest.mark.parametrize(("values", "middle"), [([7], 7), ([1, 9], 1), ([9, 1, 5], 5), ([0, 5, 6, 10**30], 5)])
def test_a_median_lies_between_honest_values(values: list[int], middle: int) -> None:
    assert median(values) == middle
