"""What callers of two devices saw of a bucket at once can have happened in one order: nothing acknowledged is missed.

The whole bucket is one state, so a list is checked as one look at it: read-after-write, list-after-write, and of
writers with `If-None-Match: *` one. The search is Wing and Gong's, as in `history.py`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from freehold.client.bucket_types import DeleteWhat, PutOptions
from freehold.client.buckets import Buckets
from freehold.client.errors import KeyNotFound, PreconditionFailed
from freehold.services.storage.client_sources import BytesSource
from tests.client.bucket_world import Net
from tests.client.test_buckets import get, run

KEYS = ("a", "b/1", "b/2")
ROUNDS = 9

State = tuple[str, ...]  # what each key holds; "" for nothing


@dataclass
class Call:
    """`kind`: put, create (if there is none; `value` is "" where it was refused), delete, read or list."""

    kind: str
    key: int
    value: Any
    start: float
    end: float


def step(call: Call, state: State) -> State | None:
    """The state after a call, or None where it cannot have answered that."""
    held = state[call.key]
    match call.kind:
        case "put" | "delete":
            return (*state[: call.key], call.value, *state[call.key + 1 :])
        case "create":
            if bool(held) == bool(call.value):
                return None
            return (*state[: call.key], call.value, *state[call.key + 1 :]) if call.value else state
        case "read":
            return state if held == call.value else None
        case _:
            return state if call.value == tuple(key for key, value in zip(KEYS, state, strict=True) if value) else None


def is_explained(calls: Sequence[Call]) -> bool:
    calls = sorted(calls, key=lambda call: call.start)
    first: tuple[int, State] = (0, ("",) * len(KEYS))
    stack, seen, every = [first], {first}, (1 << len(calls)) - 1
    while stack:
        done, state = stack.pop()
        if done == every:
            return True
        first_end = min(call.end for i, call in enumerate(calls) if not done >> i & 1)
        for i, call in enumerate(calls):
            if call.start > first_end:
                break
            after = step(call, state) if not done >> i & 1 else None
            if after is not None and (found := (done | 1 << i, after)) not in seen:
                seen.add(found)
                stack.append(found)
    return False


async def use(buckets: Buckets, draw: random.Random, name: str, calls: list[Call]) -> None:
    for number in range(ROUNDS):
        kind = draw.choice(("put", "create", "delete", "read", "read", "list"))
        key, text = draw.randrange(len(KEYS)), f"{name}-{number}"
        data = text.encode().ljust(draw.choice((10, 20_000)))
        start = time.monotonic()
        value: Any = ""
        match kind:
            case "put":
                await buckets.put("demo", KEYS[key], BytesSource(data))
                value = text
            case "create":
                try:
                    await buckets.put("demo", KEYS[key], BytesSource(data), PutOptions(if_none_match="*"))
                    value = text
                except PreconditionFailed:
                    value = ""
            case "delete":
                await buckets.delete("demo", [DeleteWhat(KEYS[key])])
            case "read":
                try:
                    value = (await get(buckets, KEYS[key])).decode().strip()
                except KeyNotFound:
                    value = ""
            case "list":
                value = tuple(entry.key for entry in (await buckets.list("demo")).entries)
        calls.append(Call(kind, key, value, start, time.monotonic()))


@pytest.mark.parametrize("seed", range(6))
def test_there_is_an_order_that_explains_everything(tmp_path: Path, seed: int) -> None:
    async def scenario() -> None:
        net, draw = Net(tmp_path), random.Random(seed)
        devices, calls = [net.device("one"), net.device("two")], list[Call]()
        await devices[0].create_bucket("demo")
        await asyncio.gather(*(use(devices[n % 2], random.Random(draw.random()), str(n), calls) for n in range(5)))
        assert len(calls) == 5 * ROUNDS
        assert is_explained(calls)
        await asyncio.gather(*(device.aclose() for device in devices))

    run(scenario)


def test_a_stale_read_or_list_or_two_creations_are_not_explained() -> None:
    put, gone = Call("put", 0, "x", 0, 1), Call("delete", 0, "", 2, 3)
    assert is_explained([put, gone, Call("read", 0, "x", 2.5, 4)])
    assert not is_explained([put, Call("read", 0, "", 2, 3)])
    assert not is_explained([put, Call("list", 0, (), 2, 3)])
    assert is_explained([put, Call("list", 0, (), 0.5, 3)])
    assert not is_explained([put, gone, Call("read", 0, "x", 3.5, 4)])
    assert not is_explained([Call("create", 0, "x", 0, 2), Call("create", 0, "y", 1, 2)])
