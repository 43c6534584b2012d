"""Amounts, sizes and times as people write them; parsing is exact, printing rounds down."""

from __future__ import annotations

import re

import click

from freehold.protocol.units import AMOUNT_LIMIT, ONE

BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_AMOUNT = re.compile(r"(?P<whole>[0-9]{1,12})(\.(?P<places>[0-9]{1,18}))?")
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")
_DURATION = re.compile(r"(?P<count>[0-9]{1,9})(?P<unit>[smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def format_amount(value: int, digits: int = 6) -> str:
    """Base units of a token or credit as a decimal with at most `digits` places; what is less shows as "<0.000001"."""
    whole, rest = divmod(abs(value), ONE)
    places = f"{rest:018d}"[:digits].rstrip("0")
    sign = "-" if value < 0 else ""
    if value and not whole and not places:
        return f"{sign}<0.{'0' * (digits - 1)}1"
    return f"{sign}{whole:,}{'.' if places else ''}{places}"


def format_exact(value: int) -> str:
    """Base units as a decimal, all of it."""
    whole, rest = divmod(value, ONE)
    places = f"{rest:018d}".rstrip("0")
    return f"{whole:,}{'.' if places else ''}{places}"


def format_size(size: int) -> str:
    """Bytes in the largest binary unit that leaves at least 1."""
    power = 0
    while power < len(BINARY) - 1 and size >= 1024 ** (power + 1):
        power += 1
    if power == 0:
        return f"{size} B"
    tenths = size * 10 // 1024**power
    return f"{tenths // 10}.{tenths % 10} {BINARY[power]}"


def format_seconds(seconds: float) -> str:
    """A duration in its two largest units."""
    left = int(seconds)
    parts: list[str] = []
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def short(value: object) -> str:
    """The two ends of a hash or address."""
    text = str(value)
    return f"{text[:10]}..{text[-4:]}" if len(text) > 20 else text


class AmountType(click.ParamType[int]):
    """A decimal number of tokens or credits, as base units."""

    name = "amount"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = _AMOUNT.fullmatch(str(value).replace(",", "").replace("_", ""))
        if match is None:
            self.fail(f"{value!r} is not an amount: a number with at most 18 decimal places", param, ctx)
        scaled = int(match["whole"]) * ONE + int(f"{match['places'] or '':0<18}")
        if not 0 < scaled < AMOUNT_LIMIT:
            self.fail(f"{value!r} is not an amount: above 0, below 2**96 base units", param, ctx)
        return scaled


class AddressType(click.ParamType[str]):
    """An address in hexadecimal."""

    name = "address"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not _ADDRESS.fullmatch(str(value)):
            self.fail(f"{value!r} is not an address (0x and 40 hexadecimal digits)", param, ctx)
        return str(value).lower()


class DurationType(click.ParamType[int]):
    """A length of time, like 90m, 12h or 2d, as seconds; 0 for "never", which is no length."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int) or value == "never":
            return value if isinstance(value, int) else 0
        match = _DURATION.fullmatch(str(value))
        seconds = int(match["count"]) * _SECONDS[match["unit"]] if match else 0
        if not 0 < seconds <= 100 * 366 * 86_400:
            self.fail(f"{value!r} is not a length of time: like 90m, 12h, 2d or 4w (or never)", param, ctx)
        return seconds


AMOUNT = AmountType()
ADDRESS = AddressType()
DURATION = DurationType()
