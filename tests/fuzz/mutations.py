"""Bytes that are nearly right: what somebody who knows the format, and means harm, would send.

Each takes a random source, so that a failing input can be kept and shrunk by what drew it: flipped, cut, repeated and
spliced bytes; lengths that lie; and for JSON, a value in the middle that is of another type or out of range.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

ODD_BYTES = (b"\x00", b"\xff", b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x00" * 64, b"\x91" * 2000, b"{" * 2000, b"[" * 2000)
ODD_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 2**63, 2**256, 10**400, 1.5, 1e308, "", "0x", "0x0", "²", "1" * 5000, "\u0000", "\u202e",
    "0x" + "00" * 20, "0x" + "00" * 32, "0x" + "00" * 65, [], {}, [[]], [300] * 32, [0] * 20, {"": None}, [None] * 100,
)  # fmt: skip


def mutate(seeds: Sequence[bytes], draw: random.Random) -> bytes:
    """One of the seeds, changed one to four times."""
    data = draw.choice(seeds)
    for _ in range(draw.randint(1, 4)):
        changed = _mutate_json(data, draw) if draw.random() < 0.5 else None
        data = _mutate_bytes(data, seeds, draw) if changed is None else changed
    return data


def _mutate_bytes(data: bytes, seeds: Sequence[bytes], draw: random.Random) -> bytes:
    at, to = sorted((draw.randint(0, len(data)), draw.randint(0, len(data))))
    kind = draw.randrange(6)
    if kind == 0 and data:
        at = min(at, len(data) - 1)
        return data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]
    if kind == 1:
        return data[:at]
    if kind == 2:
        return data[:at] + data[to:]
    if kind == 3:
        return data[:to] + data[at:to][:2000] + data[to:]
    if kind == 4:
        other = draw.choice(seeds)
        return data[:at] + other[draw.randint(0, len(other)) :]
    odd = draw.choice(ODD_BYTES)
    return data[:at] + odd + data[at + (len(odd) if draw.random() < 0.5 else 0) :]


def _mutate_json(data: bytes, draw: random.Random) -> bytes | None:
    try:
        value = json.loads(data)
        places = list(_places(value))
        if not places:
            return json.dumps(draw.choice(ODD_VALUES)).encode()
        holder, key = draw.choice(places)
        kind = draw.randrange(4)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[draw.choice(["", "extra", "0"])] = holder[key]
        else:
            holder[key] = draw.choice(ODD_VALUES)
        return json.dumps(value).encode()
    except (ValueError, RecursionError):
        return None


def _places(value: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        items = holder.items() if isinstance(holder, dict) else enumerate(holder) if isinstance(holder, list) else ()
        for key, item in items:
            found.append((holder, key))
            waiting.append(item)
    return found
