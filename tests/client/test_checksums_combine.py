"""Checksums of wholes from parts: against the checks of the whole, and against published check values."""

from __future__ import annotations

import base64
import hashlib
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.client.checksums_combine import combine_composite, combine_full, compute_crc
from freehold.protocol.errors import InvalidInput

CHECK = {"CRC32": 0xCBF43926, "CRC32C": 0xE3069283, "CRC64NVME": 0xAE8B14860A799888}  # of b"123456789"


def packed(algorithm: str, data: bytes) -> str:
    return base64.b64encode(compute_crc(algorithm, data).to_bytes(8 if "64" in algorithm else 4)).decode()


@pytest.mark.parametrize("algorithm", CHECK)
def test_each_polynomial_gives_its_published_check_value(algorithm: str) -> None:
    assert compute_crc(algorithm, b"123456789") == CHECK[algorithm]


@given(st.lists(st.binary(max_size=70), min_size=1, max_size=5), st.sampled_from(sorted(CHECK)))
def test_the_parts_give_the_whole(parts: list[bytes], algorithm: str) -> None:
    combined = combine_full(algorithm, [(packed(algorithm, part), len(part)) for part in parts])
    assert combined == packed(algorithm, b"".join(parts))


def test_a_part_of_five_gigabytes_costs_nothing() -> None:
    first, zeros = b"freehold", 5 << 30

    # Moving on by zeros twice is moving on by all of them.
    def move(value: str, count: int) -> str:
        return combine_full("CRC32C", [(value, 0), ("AAAAAA==", count)])

    assert move(packed("CRC32C", first), zeros) == move(move(packed("CRC32C", first), zeros // 2), zeros // 2)


def test_composite_is_the_check_of_the_checks_and_their_count() -> None:
    parts = [b"one", b"two", b"three"]
    raw = [zlib.crc32(part).to_bytes(4) for part in parts]
    expected = base64.b64encode(zlib.crc32(b"".join(raw)).to_bytes(4)).decode()
    assert combine_composite("CRC32", [base64.b64encode(r).decode() for r in raw]) == f"{expected}-3"
    digests = [hashlib.sha256(part).digest() for part in parts]
    expected = base64.b64encode(hashlib.sha256(b"".join(digests)).digest()).decode()
    assert combine_composite("SHA256", [base64.b64encode(d).decode() for d in digests]) == f"{expected}-3"


@pytest.mark.parametrize("value", ["", "AAAA", "not base64", "AAAAAAAAAAA="])
def test_what_is_no_checksum_is_refused(value: str) -> None:
    with pytest.raises(InvalidInput):
        combine_full("CRC32", [(value, 1)])
    with pytest.raises(InvalidInput):
        combine_full("SHA256", [(value, 1)])
