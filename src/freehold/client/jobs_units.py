"""Sizes, lengths of time and credits as a job's spec has them: "512 MiB", "10 min", "0.05 credits"; exact integers.

Invariant: a text that could be read in two ways (a bare number where a unit decides) is not read at all, except bytes
and seconds, whose bare numbers are what they say.
"""

from __future__ import annotations

import re

from freehold.protocol.units import AMOUNT_LIMIT, ONE

_NUMBER = re.compile(r"(?P<whole>[0-9][0-9_]{0,18})(\.(?P<places>[0-9]{1,18}))?\s*(?P<unit>[A-Za-z]*)")
_SIZES = {"B": 1, "bytes": 1} | {
    name: base**power
    for base, names in ((1024, ("KiB", "MiB", "GiB", "TiB")), (1000, ("kB", "MB", "GB", "TB")))
    for power, name in enumerate(names, 1)
}
_SECONDS = {"s": 1, "sec": 1, "seconds": 1, "min": 60, "minutes": 60, "m": 60, "h": 3600, "hours": 3600, "d": 86_400,
            "days": 86_400}  # fmt: skip
LONGEST = 366 * 86_400  # seconds

SIZE = 'a size, like "512 MiB" or "2 GB"'
DURATION = 'a length of time, like "90 s", "10 min" or "2 h"'
CREDITS = 'an amount, like "0.05 credits"'


def parse_size(text: str) -> int:
    """Bytes. ValueError unless it is a whole number of them."""
    return _parse(text, _SIZES, "", 2**60)


def parse_duration(text: str) -> int:
    """Whole seconds, at least 1. ValueError."""
    seconds = _parse(text, _SECONDS, "", LONGEST)
    if seconds < 1:
        raise ValueError(text)
    return seconds


def parse_credits(text: str) -> int:
    """Base units of credits. ValueError."""
    return _parse(text, {"credits": ONE, "credit": ONE}, "credits", AMOUNT_LIMIT - 1)


def format_credits(value: int, *, up: bool = False) -> str:
    """Base units of credits to six places, as `parse_credits` reads them; rounded down, or up where that is asked."""
    millionths, rest = divmod(value, ONE // 10**6)
    millionths += bool(rest and up)
    places = f"{millionths % 10**6:06d}".rstrip("0")
    if value and not millionths:
        return "less than 0.000001 credits"
    return f"{millionths // 10**6}{'.' if places else ''}{places} credits"


def _parse(text: str, units: dict[str, int], bare: str, most: int) -> int:
    found = _NUMBER.fullmatch(text.strip())
    if found is None:
        raise ValueError(text)
    unit = found["unit"] or bare
    scale = units.get(unit) if unit else 1
    places = found["places"] or ""
    if scale is None:
        raise ValueError(text)
    digits: int = int(found["whole"] + places)
    tens: int = 10 ** len(places)
    value, rest = divmod(digits * scale, tens)
    if rest or value > most:
        raise ValueError(text)
    return value
