"""Heads at several nodes: hundreds of seeded schedules in virtual time, judged by a linearizability checker."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from freehold.client import node_heads, node_register
from freehold.client.heads import Head
from freehold.client.node_heads import NodeHeads
from freehold.protocol.errors import Conflict, Unavailable
from freehold.protocol.units import Hash
from freehold.services.storage.register_values import Accepted, Answer, Known, Place, Prepare
from tests.client.heads_conformance import NAME, OTHER, HeadsConformance, Make, Run
from tests.client.history import CONFLICT, GONE, OK, READ, UNKNOWN, Call, is_linearizable
from tests.client.register_net import LEASE, Net, NetAcceptor, run

SEEDS = 40


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
    assert not all(_is_sound(seed) for seed in range(60))


def _is_sound(seed: int) -> bool:
    return is_linearizable(run(Schedule(seed, moves=False)()))


async def _until(condition: Callable[[], bool]) -> None:
    """In virtual time; the test's own limit ends it."""
    while True:
        if condition():
            return
        await asyncio.sleep(0.0005)


async def _settled(net: Net, heads: NodeHeads) -> None:
    """Every node has what it was sent."""
    opened: Any = heads._opened
    await _until(lambda: not any(register._busy for register in opened._registers.values()))


def test_nodes_that_are_gone_are_replaced_and_others_follow() -> None:
    async def scenario() -> None:
        net = Net(12, 3)
        mover, other = net.heads(replace_seconds=60.0), net.heads()
        head, second = Head(1, b"base", (b"f",)), Head(1, b"second")
        await mover.compare_and_set(NAME, None, head)
        await mover.compare_and_set(OTHER, None, second)
        assert await other.read(NAME) == head
        opened: Any = mover._opened
        first = [acceptor.node for acceptor in opened.acceptors]
        gone = [node for node in net.nodes if node.address in first[:3]]
        gone[0].is_registered = gone[0].is_up = False
        gone[1].is_up = False
        await mover.maintain()  # one has left; the other has not been silent for long
        opened = mover._opened
        holders = [acceptor.node for acceptor in opened.acceptors]
        assert len(holders) == 7
        assert gone[0].address not in holders
        assert gone[1].address in holders
        await mover.maintain()
        await asyncio.sleep(61)
        await mover.maintain()
        opened = mover._opened
        holders = [acceptor.node for acceptor in opened.acceptors]
        assert gone[1].address not in holders
        following = Head(2, b"base", (b"f", b"g"))
        await other.compare_and_set(NAME, head, following)  # it still knew the first group only
        assert await mover.read(NAME) == following
        for node in net.nodes:
            node.is_up = True
        fresh = net.heads()
        assert (await fresh.read(NAME), await fresh.read(OTHER)) == (following, second)
        with pytest.raises(Conflict):
            await fresh.compare_and_set(OTHER, None, second)

    run(scenario())


def test_a_move_that_was_cut_short_is_completed_by_whoever_finds_it() -> None:
    for messages in range(0, 120, 7):

        async def scenario(messages: int = messages) -> None:
            net = Net(9, messages)
            heads = net.heads()
            await heads.compare_and_set(NAME, None, Head(1, b"one"))
            opened: Any = heads._opened
            next(n for n in net.nodes if n.address == opened.acceptors[0].node).is_registered = False
            moving = asyncio.create_task(heads.maintain())
            start = net.messages
            await _until(lambda: net.messages >= start + messages or moving.done())
            moving.cancel()
            other = net.heads()
            assert await other.read(NAME) == Head(1, b"one")
            await other.compare_and_set(NAME, Head(1, b"one"), Head(2, b"two"))
            assert await net.heads().read(NAME) == Head(2, b"two")

        run(scenario())


def test_who_meets_a_move_that_another_completes_goes_on() -> None:
    met: list[bool] = []
    for seed in range(10):

        async def scenario(seed: int = seed) -> None:
            net = Net(9, seed)
            mover, other = net.heads(), net.heads()
            other_: Any = other
            head = Head(1, b"one")
            await mover.compare_and_set(NAME, None, head)
            assert await other.read(NAME) == head
            opened: Any = mover._opened
            next(n for n in net.nodes if n.address == opened.acceptors[0].node).is_registered = False
            copy, late = other_._copy, False

            async def copy_late(*what: Any) -> None:
                nonlocal late
                late = True
                await moving  # by now nodes have deleted what there was to copy
                await copy(*what)

            other_._copy = copy_late
            moving = asyncio.create_task(mover.maintain())
            while not moving.done():
                assert await other.read(NAME) == head
            assert await other.read(NAME) == head
            met.append(late)

        run(scenario())
    assert any(met)


def test_one_of_several_that_begin_an_account_makes_its_group() -> None:
    for seed in range(10):

        async def scenario(seed: int = seed) -> None:
            net = Net(16, seed)
            everyone = [net.heads() for _ in range(4)]
            results = await asyncio.gather(
                *(heads.compare_and_set(NAME, None, Head(1, bytes([i]))) for i, heads in enumerate(everyone)),
                return_exceptions=True,
            )
            assert all(result is None or isinstance(result, Conflict | Unavailable) for result in results), results
            shown = [await heads.read(NAME) for heads in [*everyone, net.heads()]]
            assert len(set(shown)) == 1, seed
            won = [i for i, result in enumerate(results) if result is None]
            assert not won or shown[0] == Head(1, bytes(won))

        run(scenario())


def test_none_is_said_only_where_no_majority_can_be_hidden() -> None:
    async def scenario() -> None:
        net = Net(20, 5)
        for node in net.nodes[:3]:
            node.is_up = False
        assert await net.heads().read(NAME) is None
        net.nodes[3].is_up = False
        with pytest.raises(Unavailable):
            await net.heads().read(NAME)

    run(scenario())


def test_a_group_of_when_the_network_was_small_is_not_overlooked() -> None:
    async def scenario() -> None:
        net = Net(7, 11)
        for node in net.nodes[3:]:
            node.is_registered = False
        await net.heads().compare_and_set(NAME, None, Head(1, b"one"))
        net.leased = {node.address for node in net.nodes[:3]}
        for node in net.nodes:
            node.is_registered = True
            node.is_up = node not in net.nodes[:3]
        fresh = net.heads()
        with pytest.raises(Unavailable):
            await fresh.read(NAME)
        with pytest.raises(Unavailable):
            await fresh.compare_and_set(NAME, None, Head(1, b"two"))
        for node in net.nodes:
            node.is_up = True
        assert await net.heads().read(NAME) == Head(1, b"one")

    run(scenario())


def test_a_slow_line_takes_longer_and_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        net = Net(7, 12)
        accept, show = NetAcceptor.accept, NetAcceptor.show

        async def slow_accept(self: NetAcceptor, place: Place, proposal: Accepted) -> Answer:
            assert proposal.part is not None
            await asyncio.sleep(7 * proposal.part.size / 1_000_000)  # 8 Mbit/s for all seven
            return await accept(self, place, proposal)

        async def slow_show(self: NetAcceptor, place: Place, known: Known) -> Answer:
            answer = await show(self, place, known)
            if answer.accepted is not None and answer.accepted.part is not None:
                await asyncio.sleep(answer.accepted.part.size / 200_000)
            return answer

        monkeypatch.setattr(NetAcceptor, "accept", slow_accept)
        monkeypatch.setattr(NetAcceptor, "show", slow_show)
        heads = net.heads()
        await heads.compare_and_set(NAME, None, Head(1, b"base"))
        head = Head(2, b"base", (bytes(1 << 20),))
        await heads.compare_and_set(NAME, Head(1, b"base"), head)
        assert await net.heads().read(NAME) == head

    run(scenario())


class Liar(NetAcceptor):
    """A node that answers whatever it likes, and at once."""

    tell: Callable[[str, Answer], Answer]

    async def show(self, place: Place, known: Known) -> Answer:
        return self.tell("show", await self._node.registers.show(place, known))

    async def prepare(self, place: Place, wanted: Prepare) -> Answer:
        return self.tell("prepare", await self._node.registers.prepare(place, wanted, LEASE))

    async def accept(self, place: Place, proposal: Accepted) -> Answer:
        return self.tell("accept", await self._node.registers.accept(place, proposal, LEASE))


LIES: dict[str, Callable[[str, Answer], Answer]] = {
    "sealed": lambda _, answer: Answer("sealed"),
    "unknown": lambda _, answer: Answer("unknown"),
    "promised all": lambda what, answer: Answer("stale", (2**64 - 1, bytes(8))),
    "accepted later": lambda what, answer: replace(answer, ballot=(9999, b"x" * 8), accepted=None),
}


@pytest.mark.parametrize("lie", LIES)
def test_one_node_that_lies_stops_nobody(lie: str) -> None:
    async def scenario() -> None:
        net = Net(7, 8)
        heads, other = net.heads(), net.heads()
        head: Head | None = None
        for number in range(3):
            following = Head(number + 1, b"base", tuple(bytes([n]) for n in range(number)))
            await heads.compare_and_set(NAME, head, following)
            head = following
        assert await other.read(NAME) == head
        for process in (heads, other):
            opened: Any = process._opened
            liar = opened.acceptors[0] = Liar(net, opened.acceptors[0]._node)
            liar.tell = LIES[lie]
            opened._registers.clear()
        for _ in range(3):
            for process in (heads, other):
                assert head is not None
                following = Head(head.version + 1, head.base, (*head.frames, b"more"))
                await process.compare_and_set(NAME, head, following)
                head = following
                assert await heads.read(NAME) == await other.read(NAME) == head
        opened = heads._opened
        assert opened.register(heads._place(opened, NAME))._counter < 2**62

    run(scenario())


def test_of_many_heads_those_used_last_are_kept_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_heads, "REGISTERS", 4)

    async def scenario() -> None:
        net = Net(7, 9)
        heads = net.heads()
        names = [f"{number:032x}" for number in range(1, 20)]
        for name in names:
            await heads.compare_and_set(name, None, Head(1, name.encode()))
            await _settled(net, heads)
        opened: Any = heads._opened
        assert len(opened._registers) <= 5
        for name in names:
            await heads.compare_and_set(name, Head(1, name.encode()), Head(2, b"second"))
            assert await heads.read(name) == Head(2, b"second")

    run(scenario())


def test_whose_group_moved_on_long_ago_finds_it_again() -> None:
    async def scenario() -> None:
        net = Net(7, 10)
        sleeper, awake = net.heads(), net.heads()
        await awake.compare_and_set(NAME, None, Head(1, b"one"))
        assert await sleeper.read(NAME) == Head(1, b"one")
        opened: Any = sleeper._opened
        sleeper._opened = sleeper._over(Hash(b"o" * 32), opened.acceptors)  # as where all have dropped it
        with pytest.raises(Unavailable):
            await sleeper.read(NAME)
        assert await sleeper.read(NAME) == Head(1, b"one")

    run(scenario())


def test_a_steady_read_and_a_change_carry_little() -> None:
    async def scenario() -> None:
        net = Net(7, 6)
        heads = net.heads()
        head = Head(1, bytes(500_000), (bytes(100_000),))
        await heads.compare_and_set(NAME, None, head)
        await _settled(net, heads)
        messages, size = net.messages, net.bytes
        assert await heads.read(NAME) == head
        assert net.messages - messages == 5
        assert net.bytes - size < 5 * 150
        messages, size = net.messages, net.bytes
        await heads.compare_and_set(NAME, head, Head(2, head.base, (*head.frames, bytes(1000))))
        await _settled(net, heads)
        assert net.messages - messages == 7  # one round trip to each
        assert net.bytes - size < 7 * 1400
        other = net.heads()
        size = net.bytes
        await other.read(NAME)
        assert net.bytes - size < 2 * 601_000  # one copy, not five

    run(scenario())


def test_reads_share_a_round_that_began_after_each_of_them() -> None:
    async def scenario() -> None:
        net = Net(7, 7)
        heads = net.heads()
        await heads.compare_and_set(NAME, None, Head(1, b"one"))
        await _settled(net, heads)
        messages = net.messages
        first = asyncio.create_task(heads.read(NAME))
        await _until(lambda: net.messages > messages)
        writing = net.heads()
        await writing.compare_and_set(NAME, Head(1, b"one"), Head(2, b"two"))
        messages = net.messages
        assert await asyncio.gather(*(heads.read(NAME) for _ in range(50))) == [Head(2, b"two")] * 50
        assert net.messages - messages < 40
        await first

    run(scenario())
