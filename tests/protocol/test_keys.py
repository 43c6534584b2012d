"""Many signatures at once against one at a time: the same addresses, and the same refusals."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.protocol.errors import WrongSignature
from freehold.protocol.hashing import Bytes, spread_over
from freehold.protocol.keys import HALF_ORDER, are_signed_by, recover, recover_all
from freehold.protocol.typed import keccak
from freehold.protocol.units import Hash, Signature
from tests.protocol.world import key

ORDER = 2 * HALF_ORDER + 1
DIGEST = keccak(b"digest")


def rows(values: list[bytes], width: int) -> Bytes:
    return np.frombuffer(b"".join(values), np.uint8).reshape(-1, width)


def spoiled(signature: bytes, how: str) -> bytes:
    r, s, v = signature[:32], int.from_bytes(signature[32:64]), signature[64]
    return {
        "good": signature,
        "high s": r + (ORDER - s).to_bytes(32) + bytes([55 - v]),
        "s at the limit": r + HALF_ORDER.to_bytes(32) + bytes([v]),
        "s over the limit": r + (HALF_ORDER + 1).to_bytes(32) + bytes([v]),
        "low words over": r + (HALF_ORDER - 2**64 + 1).to_bytes(32) + bytes([v]),
        "v of 0": signature[:64] + b"\x00",
        "v of 29": signature[:64] + b"\x1d",
        "zero": bytes(64) + b"\x1b",
        "r over the order": ORDER.to_bytes(32) + signature[32:],
        "r on no point": (5).to_bytes(32) + signature[32:],  # x = 5 lies on no point of the curve
        "other parity": signature[:64] + bytes([55 - v]),
        "empty": bytes(65),
    }[how]


WAYS = ["good", "high s", "s at the limit", "s over the limit", "low words over", "v of 0", "v of 29", "zero"]
WAYS += ["r over the order", "r on no point", "other parity", "empty"]


def recovered(digest: bytes, signature: bytes) -> bytes | None:
    try:
        return recover(Hash(digest), Signature(signature))
    except WrongSignature:
        return None


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3), st.sampled_from(WAYS)), max_size=12))
def test_each_row_is_as_if_it_were_alone(cases: list[tuple[int, int, str]]) -> None:
    digests = [keccak(bytes([d])) for _, d, _ in cases]
    signatures = [spoiled(key(k).sign_digest(h), how) for (k, _, how), h in zip(cases, digests, strict=True)]
    addresses, good = recover_all(rows(list(digests), 32), rows(signatures, 65))
    expected = [recovered(h, s) for h, s in zip(digests, signatures, strict=True)]
    assert good.tolist() == [address is not None for address in expected]
    assert [a.tobytes() for a in addresses] == [address or bytes(20) for address in expected]


def test_the_ways_to_spoil_a_signature_are_judged_apart() -> None:
    signature = key(1).sign_digest(DIGEST)
    taken = {how for how in WAYS if recovered(DIGEST, spoiled(signature, how)) == key(1).address}
    refused = {how for how in WAYS if recovered(DIGEST, spoiled(signature, how)) is None}
    assert taken == {"good"}
    assert set(WAYS) - taken - refused == {"s at the limit", "low words over", "other parity"}


def test_threads_find_the_same_and_signers_are_compared_whole() -> None:
    count = 2_000
    digests = [keccak(i.to_bytes(4)) for i in range(20)]
    signed = [key(1 + i % 7).sign_digest(digest) for i, digest in enumerate(digests)]
    many = np.tile(rows(list(digests), 32), (count // 20, 1)), np.tile(rows(list(signed), 65), (count // 20, 1))
    alone = recover_all(*many)
    with ThreadPoolExecutor(2) as pool, spread_over(pool.map, 2):
        spread = recover_all(*many)
    assert (alone[0] == spread[0]).all()
    assert alone[1].all()
    assert spread[1].all()
    assert are_signed_by(*many, alone[0]).all()
    others = alone[0].copy()
    others[::2, 19] ^= 1
    assert are_signed_by(*many, others).tolist() == [False, True] * (count // 2)


def test_an_unsigned_row_is_nobodys_even_if_it_names_nobody() -> None:
    assert not are_signed_by(rows([DIGEST], 32), rows([bytes(65)], 65), rows([bytes(20)], 20)).any()


def test_nothing_to_check_is_nothing_found() -> None:
    addresses, good = recover_all(rows([], 32), rows([], 65))
    assert (len(addresses), len(good)) == (0, 0)


def test_digests_and_signatures_must_pair_up() -> None:
    with pytest.raises(ValueError, match="shape"):
        recover_all(rows([DIGEST], 32), rows([], 65))
