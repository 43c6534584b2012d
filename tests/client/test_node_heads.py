"""Heads at several nodes: hundreds of seeded schedules in virtual time, judged by a linearizability checker."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from freehold.client import node_register
from freehold.client.heads import Head
from freehold.client.node_heads import NodeHeads
from freehold.protocol.errors import Conflict, Unavailable
from tests.client.heads_conformance import NAME, HeadsConformance, Make, Run
from tests.client.history import CONFLICT, GONE, OK, READ, UNKNOWN, Call, is_linearizable
from tests.client.register_net import Net, run

SEEDS = 150


class TestNodeHeads(HeadsConformance):
    @pytest.fixture
    def make(self) -> Make:
        net = Net(9, 1)
        return lambda: net.heads()

    @pytest.fixture
    def run(self) -> Run:
        return run


class Schedule:
    """Several processes that read and change one head, while nodes fail and holders are replaced."""

    def __init__(self, seed: int, *, moves: bool) -> None:
        self.chance = random.Random(seed)
        self.net = Net(9, seed, lossy=self.chance.choice([0, 0.02, 0.1]))
        self.moves = moves
        self.calls: list[Call] = []
        self._random = random.getstate()
        random.seed(seed)

    async def __call__(self) -> list[Call]:
        try:
            async with asyncio.timeout(3000):
                # Creation is a race of its own, half the time.
                if self.chance.random() < 0.5:
                    await self._change(self.net.heads(), None, Head(1, b"start"))
                faults = asyncio.create_task(self._faults())
                await asyncio.gather(*(self._process(number) for number in range(3)))
                faults.cancel()
                for node in self.net.nodes:
                    node.is_up = True
                self.net.lossy = 0.0
                await self._read(self.net.heads())
        finally:
            random.setstate(self._random)
        return self.calls

    async def _faults(self) -> None:
        while True:
            await asyncio.sleep(self.chance.uniform(0, 2))
            node = self.chance.choice(self.net.nodes)
            if sum(n.is_up for n in self.net.nodes) > 6 or not node.is_up:
                node.is_up = not node.is_up

    async def _process(self, number: int) -> None:
        heads = self.net.heads(replace_seconds=1.0)
        head: Head | None = None
        for turn in range(6):
            await asyncio.sleep(self.chance.uniform(0, 0.5))
            if self.chance.random() < 0.15:
                heads = self.net.heads(replace_seconds=1.0)  # killed, and started again
            if self.moves and self.chance.random() < 0.3:
                try:
                    await heads.maintain()
                except Unavailable:
                    continue
            if self.chance.random() < 0.6:
                head = await self._read(heads) or head
            frame = bytes([number, turn])
            if head is None:
                new: Head | None = Head(1, b"base", (frame,))
            elif self.chance.random() < 0.2:
                new = Head(head.version + 1, b"base" + frame, (*head.frames[1:], frame))
            elif self.chance.random() < 0.02:
                new = None
            else:
                new = Head(head.version + 1, head.base, (*head.frames, frame))
            if await self._change(heads, head, new, self.chance.choice([None, None, 0.03])):
                head = new

    async def _read(self, heads: NodeHeads) -> Head | None:
        call = Call(READ, asyncio.get_running_loop().time())
        try:
            call.value = await heads.read(NAME)
        except Unavailable:
            return None
        call.end = asyncio.get_running_loop().time()
        self.calls.append(call)
        return call.value

    async def _change(
        self, heads: NodeHeads, expected: Head | None, new: Head | None, patience: float | None = None
    ) -> bool:
        """`patience`: the caller is killed after so long."""
        call = Call(UNKNOWN, asyncio.get_running_loop().time(), expected, GONE if new is None else new)
        self.calls.append(call)
        try:
            async with asyncio.timeout(patience):
                await heads.compare_and_set(NAME, expected, new)
        except Conflict:
            call.kind = CONFLICT
        except (Unavailable, TimeoutError):
            return False
        else:
            call.kind = OK
        call.end = asyncio.get_running_loop().time()
        return call.kind == OK


@pytest.mark.parametrize("moves", [False, True])
def test_every_schedule_is_linearizable(moves: bool) -> None:
    kinds: dict[str, int] = {}
    for seed in range(SEEDS):
        calls = run(Schedule(seed, moves=moves)())
        assert is_linearizable(calls), f"seed {seed}, moves {moves}: {calls}"
        for call in calls:
            kinds[call.kind] = kinds.get(call.kind, 0) + 1
    assert min(kinds[READ], kinds[OK], kinds[CONFLICT], kinds[UNKNOWN]) > SEEDS // 4


def test_the_checker_finds_a_majority_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: 3 of 7 are taken for a majority."""
    original: Callable[..., None] = node_register.Register.__init__

    def planted(self: Any, *arguments: Any) -> None:
        original(self, *arguments)
        self._majority -= 1

    monkeypatch.setattr(node_register.Register, "__init__", planted)
    found = [seed for seed in range(60) if not _is_sound(seed)]
    assert found


def _is_sound(seed: int) -> bool:
    return is_linearizable(run(Schedule(seed, moves=False)()))
