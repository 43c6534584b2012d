"""An acceptor's rules over real SQL: promises, values by what follows a chain, groups, limits, restarts."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from freehold.protocol.errors import Corrupt, InvalidInput, MalformedMessage, Refused, WrongSignature
from freehold.protocol.units import Hash
from freehold.services.storage import registers as rules
from freehold.services.storage.register_values import (
    CLAIMED,
    CONTROL,
    OPEN,
    SEALED,
    VOID,
    Accepted,
    Answer,
    Ballot,
    Group,
    Known,
    Part,
    Place,
    Value,
    ask_promise,
    make_value,
    part_after,
    propose,
    whole,
)
from freehold.services.storage.registers import MIGRATION, Registers
from freehold.store.sql import Database
from tests.protocol.world import DOMAIN, PARAMETERS, key
from tests.services.storage.provider_world import CLIENT, Provided

OWNER, STRANGER = key(500), key(501)
GROUP, LEASE = Hash(b"g" * 32), Hash(b"l" * 32)
NAME = bytes(15) + b"\x01"
PLACE = Place(OWNER.address, GROUP, NAME)
HOLDER = bytes(20)


def ballot(counter: int, who: bytes = b"a") -> Ballot:
    return Ballot(counter, who.rjust(8, b"\0"))


def value(before: Value | None, base: bytes, *frames: bytes, writer: bytes = b"w" * 8) -> Value:
    return make_value(before, base, frames, writer, False)


class Acceptor:
    def __init__(self, path: Path) -> None:
        self.sql = Database(path, [MIGRATION])
        self.registers = Registers(self.sql)

    async def prepare(self, at: Ballot, place: Place = PLACE, known: Known | None = None, **options: bool) -> Answer:
        wanted = ask_promise(OWNER, DOMAIN, place, at, known or Known(), **options)
        return await self.registers.prepare(place, wanted, LEASE)

    async def accept(self, at: Ballot, new: Value, part: Part | None = None, place: Place = PLACE) -> Answer:
        proposal = propose(OWNER, DOMAIN, place, at, new)
        return await self.registers.accept(place, msgspec.structs.replace(proposal, part=part or whole(new)), LEASE)

    async def shown(self, place: Place = PLACE, known: Known | None = None) -> Answer:
        return await self.registers.show(place, known or Known())

    async def control(self, state: int, counter: int, group: Hash = GROUP, generation: int = 1) -> Answer:
        place = Place(OWNER.address, group, CONTROL)
        more = (b"n" * 32, [HOLDER]) if state == SEALED else ()
        text = Group(state, generation, [HOLDER], *more).encode()
        await self.prepare(ballot(counter), place, founding=True)
        return await self.accept(ballot(counter), value(None, text), place=place)


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(test(*arguments, **named))

    return run


@pytest.fixture
def acceptor(tmp_path: Path) -> Iterator[Acceptor]:
    made = Acceptor(tmp_path / "sql")
    try:
        asyncio.run(made.control(OPEN, 1))
        yield made
    finally:
        made.sql.close()


def opened(answer: Answer, known: Value | None = None) -> Value:
    assert answer.accepted is not None
    answer.accepted.check(PLACE, DOMAIN)
    return answer.accepted.open(known)


@in_loop
async def test_a_promise_holds_against_lower_ballots_and_after_a_restart(acceptor: Acceptor, tmp_path: Path) -> None:
    one = value(None, b"base")
    assert (await acceptor.prepare(ballot(5))).status == "ok"
    assert await acceptor.prepare(ballot(4, b"b")) == Answer("stale", ballot(5))
    assert await acceptor.accept(ballot(4), one) == Answer("stale", ballot(5))
    assert (await acceptor.prepare(ballot(5))).status == "ok"  # the same message again
    acceptor.sql.close()
    again = Acceptor(tmp_path / "sql")
    assert await again.accept(ballot(4), one) == Answer("stale", ballot(5))
    assert (await again.accept(ballot(5), one)).status == "ok"
    again.sql.close()
    last = Acceptor(tmp_path / "sql")
    assert opened(await last.shown()) == one
    last.sql.close()


@in_loop
async def test_the_ballot_after_is_promised_with_what_is_accepted(acceptor: Acceptor) -> None:
    one = value(None, b"base")
    answer = await acceptor.accept(ballot(3), one)
    assert answer.promised == ballot(4)
    assert (await acceptor.accept(ballot(3), one)).status == "ok"  # twice is once
    assert (await acceptor.prepare(ballot(3, b"z"))).status == "stale"
    two = value(one, b"base", b"frame")
    assert (await acceptor.accept(ballot(4), two, part_after(two, one.chain[-1]))).status == "ok"
    assert (await acceptor.accept(ballot(3), one)).status == "stale"  # late
    with pytest.raises(InvalidInput, match="two values"):
        await acceptor.accept(ballot(4), value(one, b"other"))


@in_loop
async def test_changes_are_sent_as_what_follows_a_chain(acceptor: Acceptor) -> None:
    one = value(None, b"base", b"f1", b"f2")
    two = value(one, b"base", b"f1", b"f2", b"f3")
    based = value(two, b"other base", b"f3", b"f4")
    await acceptor.accept(ballot(1), one)
    part = part_after(two, one.chain[-1])
    assert part == Part(one.chain[-1], 0, None, [b"f3"])
    assert (await acceptor.accept(ballot(2), two, part)).status == "ok"
    assert opened(await acceptor.shown()) == two
    part = part_after(based, two.chain[-1], two)
    assert part == Part(two.chain[-1], 2, b"other base", [b"f4"])
    assert (await acceptor.accept(ballot(3), based, part)).status == "ok"
    assert opened(await acceptor.shown()) == based
    assert await acceptor.registers.bytes_of(OWNER.address) == len(b"other basef3f4") + 3 * rules.ROW_BYTES + (
        len(Group(OPEN, 1, [HOLDER]).encode()) + rules.ROW_BYTES
    )
    behind = value(based, b"other base", b"f3", b"f4", b"f5")
    answer = await acceptor.accept(ballot(4), behind, Part(one.chain[-1], 0, None, [b"f5"]))
    assert answer.status == "behind"
    # a value that a minority took is cut off again
    fork = value(one, b"base", b"f1", b"f2", b"g3")
    await acceptor.accept(ballot(5), two)
    assert (await acceptor.accept(ballot(6), fork, part_after(fork, one.chain[-1]))).status == "ok"
    assert opened(await acceptor.shown()) == fork


@in_loop
async def test_parts_that_do_not_lead_to_the_signed_chain_change_nothing(acceptor: Acceptor) -> None:
    one = value(None, b"base", b"f1")
    await acceptor.accept(ballot(1), one)
    two = value(one, b"base", b"f1", b"f2")
    before = await acceptor.shown()
    for part in (
        Part(one.chain[-1], 0, None, [b"other"]),
        Part(one.chain[-1], 0, None, []),
        Part(b"", 0, b"base", [b"f2"]),
        Part(one.chain[-1], 9, b"base", [b"f2"]),
        Part(one.chain[-1], 1, None, [b"f2"]),
        Part(b"", 1, b"base", [b"f1", b"f2"]),
        Part(b"", 0, None, [b"f1", b"f2"]),
        Part(b"short", 0, None, []),
    ):
        with pytest.raises(InvalidInput):
            await acceptor.accept(ballot(2), two, part)
        assert await acceptor.shown() == before


@in_loop
async def test_a_reader_is_told_only_what_it_lacks(acceptor: Acceptor) -> None:
    one = value(None, b"base", b"f1")
    two = value(one, b"base", b"f1", b"f2")
    await acceptor.accept(ballot(1), one)
    await acceptor.accept(ballot(2), two)
    same = await acceptor.shown(known=Known(2, ballot(2).proposer, two.chain[-1]))
    assert (same.accepted, same.ballot) == (None, ballot(2))
    assert len(msgspec.msgpack.encode(same)) < 100
    some = await acceptor.shown(known=Known(1, ballot(1).proposer, one.chain[-1]))
    assert some.accepted is not None
    assert some.accepted.part == Part(one.chain[-1], 0, None, [b"f2"])
    assert opened(some, one) == two
    with pytest.raises(Corrupt):
        opened(some, None)
    bare = await acceptor.shown(known=Known(parts=False))
    assert bare.accepted is not None
    assert bare.accepted.part is None


@in_loop
async def test_nothing_of_a_group_that_is_not_known_or_sealed(acceptor: Acceptor) -> None:
    strange = PLACE._replace(group=Hash(b"x" * 32))
    one = value(None, b"base")
    assert await acceptor.prepare(ballot(1), strange) == Answer("unknown")
    assert await acceptor.accept(ballot(1), one, place=strange) == Answer("unknown")
    assert await acceptor.shown(strange) == Answer("unknown")
    assert await acceptor.prepare(ballot(1), strange._replace(name=CONTROL)) == Answer("unknown")
    assert (await acceptor.registers.entries(OWNER.address, strange.group)).status == "unknown"
    await acceptor.accept(ballot(1), one)
    await acceptor.control(SEALED, 5)
    assert await acceptor.prepare(ballot(9)) == Answer("sealed")
    assert await acceptor.accept(ballot(9), one) == Answer("sealed")
    shown = await acceptor.shown()  # for whoever moves it
    assert (shown.status, opened(shown)) == ("sealed", one)
    listed = await acceptor.registers.entries(OWNER.address, GROUP)
    assert (listed.status, [entry.name for entry in listed.entries]) == ("sealed", [NAME])


@in_loop
async def test_what_older_groups_held_goes_when_a_newer_one_opens(acceptor: Acceptor) -> None:
    await acceptor.accept(ballot(1), value(None, b"base"))
    await acceptor.control(SEALED, 5)
    await acceptor.control(VOID, 1, Hash(b"v" * 32))
    newer = Hash(b"n" * 32)
    await acceptor.control(CLAIMED, 1, newer, 2)
    assert (await acceptor.shown()).accepted is not None
    await acceptor.control(OPEN, 5, newer, 2)
    assert (await acceptor.shown()).accepted is None
    groups = await acceptor.registers.groups(OWNER.address)
    assert {shown.group for shown in groups} == {GROUP, newer}


@in_loop
async def test_limits(acceptor: Acceptor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "NAMES_LIMIT", 2)
    monkeypatch.setattr(rules, "GROUPS_LIMIT", 2)
    for number in (1, 2):
        assert (await acceptor.prepare(ballot(1), PLACE._replace(name=bytes([number] * 16)))).status == "ok"
    with pytest.raises(Refused):
        await acceptor.prepare(ballot(1), PLACE._replace(name=bytes([3] * 16)))
    with pytest.raises(Refused):
        await acceptor.accept(ballot(1), value(None, b""), place=PLACE._replace(name=bytes([3] * 16)))
    await acceptor.control(CLAIMED, 1, Hash(b"2" * 32))
    with pytest.raises(Refused):
        await acceptor.control(CLAIMED, 1, Hash(b"3" * 32))
    place = PLACE._replace(name=bytes([1] * 16))
    monkeypatch.setattr(rules, "VALUE_LIMIT", 1000)
    half = value(None, b"x" * 600)
    await acceptor.accept(ballot(2), half, place=place)
    over = value(half, b"x" * 600, b"y" * 401)
    with pytest.raises(InvalidInput):
        await acceptor.accept(ballot(3), over, part_after(over, half.chain[-1]), place)
    full = value(half, b"x" * 600, b"y" * 400)
    assert (await acceptor.accept(ballot(3), full, part_after(full, half.chain[-1]), place)).status == "ok"
    monkeypatch.setattr(rules, "ACCOUNT_LIMIT", 1800)
    with pytest.raises(Refused):
        await acceptor.accept(ballot(3), full, place=PLACE._replace(name=bytes([2] * 16)))


@in_loop
async def test_dropping_an_account_leaves_nothing(acceptor: Acceptor) -> None:
    await acceptor.accept(ballot(1), value(None, b"base"))
    assert await acceptor.registers.leases() == [(LEASE, OWNER.address)]
    await acceptor.registers.drop(OWNER.address)
    assert await acceptor.registers.leases() == []
    assert await acceptor.registers.figures() == {"registers": 0, "register_bytes": 0}
    assert await acceptor.sql.read(lambda c: c.execute("SELECT COUNT(*) FROM register_parts").fetchone()) == (0,)
    assert (await acceptor.shown()).status == "unknown"  # it has forgotten, so it has no vote


def test_only_the_account_signs_and_for_one_register_and_ballot() -> None:
    good = msgspec.structs.replace(propose(OWNER, DOMAIN, PLACE, ballot(1), value(None, b"base")), part=None)
    good.check(PLACE, DOMAIN)
    bad: list[tuple[Accepted, Place]] = [
        (good, PLACE._replace(account=STRANGER.address)),
        (good, PLACE._replace(group=Hash(bytes(32)))),
        (good, PLACE._replace(name=bytes(16))),
        (msgspec.structs.replace(good, counter=2), PLACE),
        (msgspec.structs.replace(good, proposer=bytes(8)), PLACE),
        (msgspec.structs.replace(good, version=2), PLACE),
        (msgspec.structs.replace(good, is_gone=True), PLACE),
        (msgspec.structs.replace(good, writers=b"x" * 8), PLACE),
        (msgspec.structs.replace(good, chain=bytes(32)), PLACE),
        (msgspec.structs.replace(good, signature=b""), PLACE),
    ]
    for accepted, place in bad:
        with pytest.raises(WrongSignature):
            accepted.check(place, DOMAIN)
    for changes in ({"counter": 0}, {"counter": 2**62}, {"proposer": b"x"}, {"version": 0}, {"writers": b"x"}):
        with pytest.raises(MalformedMessage):
            msgspec.structs.replace(good, **changes).check(PLACE, DOMAIN)


def test_a_value_tells_who_made_its_last_versions() -> None:
    made = None
    for number in range(12):
        made = value(made, b"base", *[b"f"] * number, writer=bytes([number] * 8))
    assert made is not None
    assert made.version == 12
    assert made.has_writer(bytes([11] * 8), 12) is True
    assert made.has_writer(bytes([4] * 8), 5) is True
    assert made.has_writer(bytes([9] * 8), 5) is False
    assert made.has_writer(bytes([3] * 8), 4) is None
    assert made.has_writer(bytes([12] * 8), 13) is False


def test_registers_go_with_the_last_lease_of_their_account(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Provided(tmp_path) as provided:
            registers = provided.provider._registers
            place = Place(CLIENT.address, GROUP, CONTROL)
            wanted = ask_promise(CLIENT, DOMAIN, place, ballot(1), Known(), founding=True)
            await registers.prepare(place, wanted, provided.id)
            await provided.commit(5, None)
            assert (await registers.figures())["registers"] == 1
            await provided.commit(6, None, closed=6)  # the lists' grace
            assert (await registers.figures())["registers"] == 1
            await provided.commit(6 + PARAMETERS.lapse_grace, None, closed=6)
            assert (await registers.figures())["registers"] == 0
            assert await registers.leases() == []

    asyncio.run(scenario())
