"""Distances: symmetric, never an exception, and what each metric says of results that are near or far."""

from __future__ import annotations

import random
from difflib import SequenceMatcher
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.services.compute.tasks import OutputFile, Result
from freehold.services.compute.verification.metrics import (
    INFINITE,
    METRICS,
    MILLION,
    distance,
    result_distance,
)

numbers = (
    st.floats(allow_nan=True, allow_infinity=True).map(repr) | st.integers().map(str) | st.sampled_from("eE.+-,\n ")
)
hostile = (
    st.binary(max_size=200)
    | st.lists(numbers, max_size=20).map(lambda parts: " ".join(parts).encode())
    | st.lists(st.sampled_from(["a\n", "b\n", "c"]), max_size=20).map(lambda lines: "".join(lines).encode())
    | st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 70_000), st.binary(max_size=90)).map(
        lambda parts: b"P5 %d %d %d\n" % parts[:3] + parts[3]
    )
)


def image(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    height, width, channels = pixels.shape
    return b"P%d\n# made up\n%d %d\n255\n" % (5 if channels == 1 else 6, width, height) + pixels.tobytes()


@pytest.mark.parametrize("metric", METRICS)
@given(first=hostile, second=hostile)
def test_any_bytes_have_one_distance_both_ways(metric: str, first: bytes, second: bytes) -> None:
    found = distance(metric, first, second)
    assert 0 <= found <= INFINITE
    assert found == distance(metric, second, first)
    assert distance(metric, first, first) == 0


def test_bytes_that_differ_count_in_millionths_of_the_longer() -> None:
    assert distance("bytes", b"abcd", b"abxd") == MILLION // 4
    assert distance("bytes", b"abcd", b"ab") == MILLION // 2
    assert distance("bytes", b"", b"x") == MILLION
    assert distance("bytes", bytes(10**7), bytes(10**7 - 1) + b"x") == 1  # never 0 for what differs


@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=12))
def test_text_is_as_far_as_its_shortest_edit_path(first: list[str], second: list[str]) -> None:
    lines = [[f"{each}\n" for each in side] for side in (first, second)]
    shared = longest_common(*lines)
    edits, total = len(first) + len(second) - 2 * shared, len(first) + len(second)
    expected = -(-edits * MILLION // max(total, 1))
    assert distance("text", *("".join(side).encode() for side in lines)) == expected
    ratio = SequenceMatcher(None, *lines, autojunk=False).ratio()  # a good guess at the same, never better
    assert Fraction(expected, MILLION) <= 1 - Fraction(ratio) + Fraction(1, 10**5)


def longest_common(one: list[str], other: list[str]) -> int:
    row = [0] * (len(other) + 1)
    for line in one:
        before = row[:]
        for i, each in enumerate(other):
            row[i + 1] = before[i] + 1 if line == each else max(before[i + 1], row[i])
    return row[-1]


def test_text_that_takes_too_long_to_compare_is_wholly_different() -> None:
    draw = random.Random(1)
    one, other = (b"".join(b"%d\n" % draw.randrange(3) for _ in range(20_000)) for _ in range(2))
    assert distance("text", one, other) == distance("text", other, one) == MILLION
    assert distance("text", b"\xff", b"a") == INFINITE


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("1.0", "1", 0),
        ("1e0 2", "1.00  2.0\n", 0),
        ("x=1.000000001", "x=1", 1),
        ("[1, 200]", "[1, 100]", 500_000_000),
        ("0", "1e-18", 1),
        ("-1", "1", 2_000_000_000),
        ("nan", "NaN", 0),
        ("inf", "Infinity", 0),
        ("inf", "-inf", INFINITE),
        ("nan", "1", INFINITE),
        ("1 2", "1 2 3", INFINITE),
        ('{"a": 1}', '{"b": 1}', INFINITE),
        ("1e9999999999", "1", INFINITE),
        ("9" * 65, "1", INFINITE),
        ("", "", 0),
        ("nanometre 1", "nanometre 1.0", 0),
    ],
)
def test_numbers(first: str, second: str, expected: int) -> None:
    assert distance("numbers", first.encode(), second.encode()) == expected


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), st.integers(0, 1000))
def test_noise_of_some_billionths_is_found_to_be_that(values: list[float], noise: int) -> None:
    exact = [Fraction(value) for value in values]
    one = ",".join(f"{float(value)!r}" for value in exact)
    other = ",".join(f"{float(value * (1 + Fraction(noise, 10**9)))!r}" for value in exact)
    assert distance("numbers", one.encode(), other.encode()) <= noise + 1


def test_pixels_may_be_off_by_one_and_a_forged_corner_is_not_lost() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (96, 128, 3), np.uint8)
    assert distance("pixels", image(picture), image(picture[:, :, :1])) == INFINITE
    moved = np.roll(picture, (1, -1), (0, 1))
    assert distance("pixels", image(picture[1:-1, 1:-1]), image(moved[1:-1, 1:-1])) == 0
    noisy = (picture // 2 + np.random.default_rng(2).integers(0, 3, picture.shape)).astype(np.uint8)
    assert 0 < distance("pixels", image(picture // 2), image(noisy)) < 8_000  # at most 2 of 255 each
    forged = picture.copy()
    forged[:20, :20] = 0
    assert distance("pixels", image(picture), image(forged)) > 300_000


def test_pixels_of_sixteen_bits_and_of_one_row() -> None:
    one, other = (b"P5 2 1 65535 " + rest for rest in (b"\x00\x00\x00\x00", b"\xff\xff\xff\xff"))
    assert distance("pixels", one, other) == MILLION
    assert distance("pixels", one, b"P5 2 1 65535 \x00\x00\x00") == INFINITE
    assert distance("pixels", one, b"P5 2 1 0 \x00\x00") == INFINITE


def file(path: str, content: bytes, kept: dict[str, bytes]) -> OutputFile:
    digest = content.hex().ljust(64, "0")
    kept[digest] = content
    return OutputFile(path=path, sha256=digest, size=len(content))


def test_the_worst_file_counts_and_only_what_differs_is_read() -> None:
    kept: dict[str, bytes] = {}

    def result(*contents: bytes, ended: str = "exited", names: str = "abc") -> Result:
        files = [file(name, content, kept) for name, content in zip(names, contents[1:], strict=False)]
        return Result(ended=ended, status=0, stdout=file("", contents[0], kept), files=tuple(files))

    base = result(b"same", b"1", b"100")
    other = result(b"same", b"1", b"101")
    kept.pop(b"same".hex().ljust(64, "0"))
    assert result_distance("numbers", base, other, kept.__getitem__) == -(-(10**9) // 101)
    assert result_distance("numbers", base, base, lambda _: pytest.fail("nothing differs")) == 0
    for far in (
        result(b"same", b"1"),
        result(b"same", b"1", b"100", ended="fuel"),
        result(b"same", b"1", b"1", names="ax"),
    ):
        assert result_distance("numbers", base, far, kept.__getitem__) == INFINITE
