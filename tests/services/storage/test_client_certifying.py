"""Certifying a client's deltas: at once while an epoch has had few, shared and later once it has had many."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, cast

import pytest

from freehold.market.quorum import Held, Quorum
from freehold.protocol.batches import Batch
from freehold.protocol.errors import FreeholdError, Overloaded, Unavailable
from freehold.protocol.keys import Key
from freehold.protocol.messages import Certificate
from freehold.protocol.typed import Domain
from freehold.protocol.units import Address, Hash, Signature
from freehold.services.storage.client_certifying import LATER, PROMPT, Certifier, Pace
from freehold.services.storage.terms import Delta

DOMAIN = Domain(1, Address(bytes(19) + b"\x01"))
SECONDS = 4000.0
QUOTA = Overloaded("this member takes 250 batches", limit=250, epoch=7, retry_after=1)


class Net:
    """A book in memory and members that hold whatever comes, unless they have something to raise."""

    domain = DOMAIN

    def __init__(self) -> None:
        self.deltas: dict[int, bool] = {}
        self.epoch = 7
        self.now = 1000.0
        self.batches: list[int] = []  # deltas in each
        self.failures: list[FreeholdError] = []
        self.marked = asyncio.Event()

    async def uncertified_deltas(self) -> Sequence[Delta]:
        return [_delta(number) for number, is_held in self.deltas.items() if not is_held]

    async def mark_deltas(self, deltas: Sequence[Delta]) -> None:
        self.deltas |= {delta.number: True for delta in deltas}
        self.marked.set()

    async def certify(self, batch: Batch, *, await_quota: bool) -> Held:
        assert not await_quota
        if self.failures:
            raise self.failures.pop()
        self.batches.append(len(batch.table))
        return Held(cast(Certificate, None), self.epoch, {})

    def sign(self) -> None:
        self.deltas[len(self.deltas) + 1] = False

    async def waiting(self) -> int:
        """Deltas that no batch has taken along, once what was held is written down."""
        await asyncio.sleep(0)
        return sum(not is_held for is_held in self.deltas.values())


def _delta(number: int) -> Delta:
    sign = Signature(bytes(65))
    return Delta(
        lease=Hash(bytes(32)), number=number, root=Hash(bytes(32)), count=1, size=1, client_signature=sign,
        node_signature=sign,
    )  # fmt: skip


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def certifier(net: Net, seconds: float = SECONDS) -> Certifier:
    return Certifier(Key(b"\x07" * 32), cast(Quorum, net), net, seconds, lambda: net.now)


async def spend(net: Net, subject: Certifier) -> None:
    for _ in range(PROMPT):
        net.sign()
        await subject.certify()
        assert await net.waiting() == 0


def test_an_epoch_has_its_first_batches_at_once_and_the_others_now_and_then() -> None:
    async def scenario() -> None:
        net = Net()
        subject = certifier(net)
        await spend(net, subject)
        for _ in range(3):
            net.sign()
            await subject.certify()  # nobody waits
        assert (await net.waiting(), len(net.batches)) == (3, PROMPT)
        net.now += SECONDS / LATER
        net.sign()
        await subject.certify()  # one is due, and takes along what was put off
        assert (await net.waiting(), net.batches[PROMPT:]) == (0, [4])
        net.sign()
        await subject.certify()
        assert await net.waiting() == 1
        await subject.close()
        assert (await net.waiting(), net.batches[PROMPT:]) == (0, [4, 1])

    run(scenario())


def test_the_next_epoch_begins_anew() -> None:
    async def scenario() -> None:
        net = Net()
        subject = certifier(net)
        await spend(net, subject)
        net.epoch += 1
        net.now += SECONDS / LATER
        net.sign()
        await subject.certify()
        net.sign()
        await subject.certify()
        assert (await net.waiting(), net.batches[PROMPT:]) == (0, [1, 1])
        await subject.close()

    run(scenario())


def test_what_was_put_off_follows_by_itself() -> None:
    async def scenario() -> None:
        net = Net()
        subject = Certifier(Key(b"\x07" * 32), cast(Quorum, net), net, 0.001 * LATER)
        net.failures = [Unavailable("members are away"), QUOTA]
        net.sign()
        await subject.certify()
        assert await net.waiting() == 1
        async with asyncio.timeout(10):
            await net.marked.wait()
        assert (await net.waiting(), net.batches) == (0, [1])
        await subject.close()

    run(scenario())


def test_nobody_waits_where_members_take_no_more() -> None:
    async def scenario() -> None:
        net = Net()
        subject = certifier(net)
        net.failures = [QUOTA]
        for _ in range(2):
            net.sign()
            await subject.certify()
        assert (await net.waiting(), net.batches) == (2, [])
        net.failures = [QUOTA]
        await subject.close()  # they still do not: it stays in the book
        assert await net.waiting() == 2

    run(scenario())


@pytest.mark.parametrize("error", [Unavailable("too few"), Overloaded("busy", retry_after=3)])
def test_other_failures_reach_whoever_waits(error: FreeholdError) -> None:
    async def scenario() -> None:
        net = Net()
        net.failures = [error]
        net.sign()
        subject = certifier(net)
        with pytest.raises(type(error)):
            await subject.certify()
        await subject.certify()
        assert await net.waiting() == 0
        await subject.close()

    run(scenario())


def test_an_epoch_has_no_more_than_its_share_however_much_comes() -> None:
    pace, now, sent = Pace(SECONDS), 0.0, 0
    while now < SECONDS:
        if not pace.wait(now):
            pace.begin(now)
            pace.held(7)
            sent += 1
        now += 1
    assert PROMPT < sent <= PROMPT + LATER
