"""Amounts and sizes: what is printed never claims more than there is, what is parsed is exact."""

from __future__ import annotations

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.cli.amounts import (
    ADDRESS,
    AMOUNT,
    DURATION,
    format_amount,
    format_exact,
    format_seconds,
    format_size,
    short,
)
from freehold.protocol.units import AMOUNT_LIMIT, ONE


@given(st.integers(1, AMOUNT_LIMIT - 1))
def test_exact_amounts_come_back(value: int) -> None:
    assert AMOUNT.convert(format_exact(value), None, None) == value


@given(st.integers(0, AMOUNT_LIMIT - 1))
def test_printing_rounds_down(value: int) -> None:
    shown = format_amount(value)
    if shown.startswith("<"):
        assert 0 < value < 10**12
    else:
        back = 0 if shown == "0" else AMOUNT.convert(shown, None, None)
        assert 0 <= value - back < 10**12


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1, "<0.000001"), (ONE, "1"), (1234567 * ONE + ONE // 2, "1,234,567.5"), (-3 * ONE, "-3")],
)
def test_amounts(value: int, text: str) -> None:
    assert format_amount(value) == text


@pytest.mark.parametrize("text", ["0", "-1", "x", "", "1e-19", "nan", "inf", "1e30", "0.0000000000000000001"])
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(click.BadParameter):
        AMOUNT.convert(text, None, None)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (2**20 - 1, "1023.9 KiB"),
        (2**60, "1024.0 PiB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (61, "1 min 1 s"), (3600, "1 h"), (90_061, "1 d 1 h")])
def test_durations(seconds: int, text: str) -> None:
    assert format_seconds(seconds) == text


def test_lengths_of_time() -> None:
    lengths = {"90m": 5_400, "12h": 43_200, "2d": 172_800, "4w": 2_419_200, "1s": 1, "never": 0}
    assert {text: DURATION.convert(text, None, None) for text in lengths} == lengths
    for text in ("", "2", "d", "-2d", "0d", "1.5h", "2 d", "2d1h", "2D", "40000d", "forever"):
        with pytest.raises(click.BadParameter):
            DURATION.convert(text, None, None)


def test_addresses() -> None:
    assert ADDRESS.convert("0x" + "Ab" * 20, None, None) == "0x" + "ab" * 20
    assert short("0x" + "ab" * 20) == "0xabababab..abab"
    for text in ("ab" * 20, "0x12", "0x" + "g" * 40, "operator-1"):
        with pytest.raises(click.BadParameter):
            ADDRESS.convert(text, None, None)
