"""The quorum as a sender sees it: enough is enough, a member that hangs holds up nobody, refusals come through."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from freehold.market import quorum as subject
from freehold.market.network import MemberRecord
from freehold.market.quorum import Quorum
from freehold.net.client import Dial
from freehold.protocol.batches import Batch, decode_batch, kinds_of
from freehold.protocol.certificates import check_certificate
from freehold.protocol.errors import Conflict, EpochClosed, FreeholdError, NotFound, Overloaded, Refused, Unavailable
from freehold.protocol.messages import Acknowledgement, Certificate, Holding
from freehold.protocol.units import Hash
from freehold.services.judging import JUDGES
from tests.protocol.world import ADDRESSES, DOMAIN, MEMBERS, busy_world, key

Behaviour = Callable[["FakeMember"], Awaitable[None]]


async def honest(_: FakeMember) -> None:
    return


async def hangs(_: FakeMember) -> None:
    await asyncio.Event().wait()


def raises(error: FreeholdError) -> Behaviour:
    async def behave(_: FakeMember) -> None:
        raise error

    return behave


class FakeMember:
    """Answers as a member would, after `behave` let it."""

    def __init__(self, index: int, behave: Behaviour = honest, epochs: tuple[int, ...] = (7,)) -> None:
        self.key, self.behave = MEMBERS[index], behave
        self.url = f"http://member-{index}"
        self.epochs = list(epochs)
        self.asked = 0

    async def post_bytes(self, _: str, data: bytes) -> Any:
        batch = decode_batch(data, kinds_of(JUDGES), DOMAIN)
        return await self._sign(Acknowledgement, batch.subject)

    async def post_json(self, _: str, value: Any) -> Any:
        certificate = Certificate.from_json(value)
        check_certificate(certificate, ADDRESSES, DOMAIN)
        return await self._sign(Holding, certificate.subject)

    async def get_json(self, path: str, limit: int = 0) -> Any:
        self.asked += 1
        await self.behave(self)
        return {"path": path}

    get_bytes = get_json

    async def _sign(self, kind: type[Acknowledgement] | type[Holding], subject: Any) -> Any:
        self.asked += 1
        await self.behave(self)
        epoch = self.epochs.pop(0) if len(self.epochs) > 1 else self.epochs[0]
        signature = self.key.sign(kind(epoch=epoch, subject=subject), DOMAIN)
        return {"epoch": epoch, "subject": str(subject), "member": str(self.key.address), "signature": str(signature)}


class FakeDial:
    def __init__(self, members: list[FakeMember]) -> None:
        self._members = {member.url: member for member in members}

    def peer(self, url: str, _: Hash) -> FakeMember:
        return self._members[url]


def make_quorum(members: list[FakeMember]) -> Quorum:
    records = [MemberRecord(member.key.address, member.key.public, member.url) for member in members]
    return Quorum(cast("Dial", FakeDial(members)), records, DOMAIN)


@pytest.fixture(scope="module")
def batch() -> Batch:
    world = busy_world()
    return world.reserve(key(1), 1, {})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of hundredths of a second; what hangs would need an hour."""
    for name, value in {"ANSWER_SECONDS": 3600.0, "GRACE_SECONDS": 0.01, "PAUSE_SECONDS": 0.001}.items():
        monkeypatch.setattr(subject, name, value)


@pytest.mark.parametrize("other", [honest, hangs, raises(Unavailable("away")), raises(Refused("no"))])
def test_three_of_four_are_enough_whatever_the_fourth_does(batch: Batch, other: Behaviour) -> None:
    members = [FakeMember(i) for i in range(3)] + [FakeMember(3, other)]
    held = asyncio.run(make_quorum(members).certify(batch))
    assert held.epoch == held.certificate.epoch == 7
    assert set(held.holdings) >= set(ADDRESSES[:3])
    check_certificate(held.certificate, ADDRESSES, DOMAIN)


def test_signatures_of_different_epochs_do_not_add_up_and_are_asked_for_again(batch: Batch) -> None:
    members = [FakeMember(i, epochs=(7, 8) if i < 2 else (8,)) for i in range(3)]
    members.append(FakeMember(3, raises(Unavailable("away"))))
    held = asyncio.run(make_quorum(members).certify(batch))
    assert held.epoch == held.certificate.epoch == 8


def test_a_signature_under_another_key_counts_for_nothing(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "PATIENCE_SECONDS", 0.05)
    members = [FakeMember(i) for i in range(4)]
    members[2].key = members[3].key = MEMBERS[0]
    with pytest.raises(Unavailable, match="fewer than 3 of 4"):
        asyncio.run(make_quorum(members).certify(batch))


def test_what_more_than_f_members_refuse_for_good_is_not_asked_again(batch: Batch) -> None:
    members = [FakeMember(i, raises(Refused("no")) if i < 2 else honest) for i in range(4)]
    with pytest.raises(Refused, match="no"):
        asyncio.run(make_quorum(members).certify(batch))
    assert [member.asked for member in members] == [1] * 4


def test_what_time_may_mend_is_asked_again_until_patience_ends(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "PATIENCE_SECONDS", 0.05)
    members = [FakeMember(i, raises(EpochClosed("closed"))) for i in range(4)]
    with pytest.raises(Unavailable):
        asyncio.run(make_quorum(members).certify(batch))
    assert members[0].asked > 1


def test_two_equal_answers_agree_and_the_others_are_not_waited_for() -> None:
    members = [FakeMember(0), FakeMember(1), FakeMember(2, hangs), FakeMember(3, hangs)]
    assert asyncio.run(make_quorum(members).agree("/v1/x")) == {"path": "/v1/x"}


def test_two_that_have_nothing_are_believed() -> None:
    members = [FakeMember(i, raises(NotFound("none"))) for i in range(2)] + [FakeMember(i, hangs) for i in (2, 3)]
    with pytest.raises(NotFound):
        asyncio.run(make_quorum(members).agree("/v1/x"))


def test_one_member_alone_is_not_believed() -> None:
    members = [FakeMember(0)] + [FakeMember(i, raises(Unavailable("away"))) for i in (1, 2, 3)]
    with pytest.raises(Unavailable, match="fewer than 2"):
        asyncio.run(make_quorum(members).agree("/v1/x"))


def test_bytes_come_from_the_first_that_has_them_and_a_members_word_outweighs_silence() -> None:
    away, none = raises(Unavailable("away")), raises(NotFound("none"))
    served = make_quorum([FakeMember(0, away), FakeMember(1, none), FakeMember(2), FakeMember(3, hangs)])
    assert asyncio.run(served.first_good("/v1/x", str))
    with pytest.raises(NotFound):
        asyncio.run(make_quorum([FakeMember(i, none if i == 1 else away) for i in range(4)]).first_good("/v1/x", str))


def test_asking_returns_once_a_quorum_has_answered() -> None:
    members = [FakeMember(i) for i in range(3)] + [FakeMember(3, hangs)]
    assert len(asyncio.run(make_quorum(members).ask("/v1/x"))) == 3
    with pytest.raises(Conflict):
        asyncio.run(make_quorum([FakeMember(i, raises(Conflict("c"))) for i in range(4)]).ask("/v1/x"))


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.slept: list[float] = []
        monkeypatch.setattr(subject, "time", self)
        monkeypatch.setattr(subject.asyncio, "sleep", self.sleep)

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def busy_until(clock: Clock, when: float) -> Behaviour:
    async def behave(_: FakeMember) -> None:
        if clock.now < when:
            raise Overloaded("busy", retry_after=round(when - clock.now))

    return behave


def test_members_that_are_busy_are_left_alone_until_a_quorum_may_be_asked(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    behave = [honest, busy_until(clock, 3), busy_until(clock, 5), busy_until(clock, 3600)]
    members = [FakeMember(i, behaviour) for i, behaviour in enumerate(behave)]
    assert asyncio.run(make_quorum(members).certify(batch)).epoch == 7
    (wait,) = clock.slept  # once, for the third of the four that a quorum needs
    assert 5 <= wait < 5 * (1 + subject.JITTER)
    assert members[0].asked == 3


def test_waits_differ_and_none_is_shorter_than_was_asked_for(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = set()
    for _ in range(10):
        clock = Clock(monkeypatch)
        members = [FakeMember(i, busy_until(clock, 4)) for i in range(4)]
        asyncio.run(make_quorum(members).certify(batch))
        waits.add(clock.slept[0])
    assert min(waits) >= 4
    assert len(waits) > 5


def test_who_would_have_to_wait_too_long_is_told_so_at_once(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    members = [FakeMember(i, busy_until(clock, 600)) for i in range(4)]
    with pytest.raises(Overloaded, match="busy") as refused:
        asyncio.run(make_quorum(members).certify(batch))
    assert refused.value.details["retry_after"] == 600
    assert clock.slept == []
    assert [member.asked for member in members] == [1] * 4


def test_a_quota_that_is_used_up_is_waited_for_only_by_who_wants_to(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)

    async def full(_: FakeMember) -> None:
        if clock.now < 5:
            raise Overloaded("250 batches of one epoch", retry_after=1, epoch=7, limit=250)

    two_full = [FakeMember(i, full if i < 2 else honest) for i in range(4)]
    with pytest.raises(Overloaded, match="250 batches") as refused:
        asyncio.run(make_quorum(two_full).certify(batch, await_quota=False))
    assert refused.value.details["epoch"] == 7
    assert clock.slept == []
    one_full = [FakeMember(i, full if i < 1 else honest) for i in range(4)]
    assert asyncio.run(make_quorum(one_full).certify(batch, await_quota=False)).epoch == 7
    assert asyncio.run(make_quorum(two_full).certify(batch)).epoch == 7
    assert clock.slept
