"""Two devices of one account, each with a book of its own: what one of them acknowledged is never lost by the other."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from freehold.client.sdk import Freehold
from freehold.market import reservations
from freehold.market.reservations import Want
from freehold.protocol.batches import RESERVATION, encode_batch, make_batch
from freehold.protocol.errors import Conflict, InsufficientCredits, NotFound, Unavailable
from freehold.protocol.messages import Lock, Reservation
from freehold.protocol.reservations import compute_commitment
from freehold.protocol.tables import Table
from freehold.protocol.units import ONE, Hash
from tests.client.world import DOMAIN, SEGMENT, Member, World, key, world

LEASE, OTHER, THIRD = Hash(b"l" * 32), Hash(b"m" * 32), Hash(b"n" * 32)
OWNER = key("client")


def device(net: World, home: str, credits: int = 1000 * ONE) -> Freehold:
    """A device with its own book; heads are in one folder for all."""
    return net.client(credits=credits, home=home)


def committed(net: World) -> dict[Hash, int]:
    return {lease: lock.amount for lease, lock in net.memory.locks.get(OWNER.address, {}).items()}


# Reservations


def test_a_device_that_comes_second_builds_on_what_the_first_reserved_in_the_same_epoch(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=1) as net, device(net, "one", 100) as one, device(net, "two") as two:
            await one._leases.reserve({LEASE: Want(10, 10)})
            await one._leases.reserve({OTHER: Want(20, 20)})
            kept = await two._leases.reserve({THIRD: Want(30, 30)})
            assert kept is not None
            assert kept.reservation.number == 3
            kept = await one._leases.reserve({LEASE: Want(15, 15)})
            assert kept is not None
            assert (kept.reservation.number, kept.caps()) == (4, {LEASE: 15, OTHER: 20, THIRD: 30})
            net.memory.advance()
            assert committed(net) == await one._leases.caps() == await two._leases.caps() == kept.caps()
            with pytest.raises(InsufficientCredits) as caught:
                await two._leases.reserve({Hash(b"x" * 32): Want(71, 71)})
            assert caught.value.details["missing"] == "36"

    asyncio.run(scenario())


@pytest.mark.parametrize("seed", range(4))
def test_devices_that_reserve_at_once_all_get_their_locks(tmp_path: Path, seed: int) -> None:
    async def scenario() -> None:
        draw = random.Random(seed)
        async with world(tmp_path / "net", nodes=1) as net, AsyncExitStack() as stack:
            devices = [await stack.enter_async_context(device(net, f"home{i}")) for i in range(3)]
            wanted: dict[Hash, int] = {}

            async def reserve(number: int, own: Freehold) -> None:
                for i in range(4):
                    lease = Hash(bytes([number, i]) * 16)
                    wanted[lease] = draw.randint(1, 100)
                    await own._leases.reserve({lease: Want(wanted[lease], wanted[lease])})
                    if not draw.randrange(3):
                        net.memory.advance()

            await asyncio.gather(*(reserve(i, own) for i, own in enumerate(devices)))
            net.memory.advance()
            assert committed(net) == wanted

    asyncio.run(scenario())


def test_a_reservation_that_its_device_left_halfway_is_brought_to_its_end_by_another(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=1) as net, device(net, "two") as two:
            await offer(net.members[:1], reservation(LEASE, 10), two)  # its device went away after one member
            kept = await two._leases.reserve({OTHER: Want(20, 20)})
            assert kept is not None
            assert (kept.reservation.number, kept.caps()) == (2, {LEASE: 10, OTHER: 20})

    asyncio.run(scenario())


def test_a_tie_is_void_with_its_epoch_and_locks_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=1) as net, device(net, "one") as one, device(net, "two") as two:
            await offer(net.members[:2], reservation(LEASE, 10), one)
            await offer(net.members[2:], reservation(OTHER, 10), two)
            monkeypatch.setattr(reservations, "PAUSES", ())
            with pytest.raises(Unavailable, match="another device") as caught:
                await one._leases.reserve({LEASE: Want(11, 11)})
            assert "open epoch" in caught.value.advice
            assert await one._leases._book.reservation() is None
            net.memory.advance()
            await asyncio.gather(one._leases.reserve({LEASE: Want(10, 10)}), two._leases.reserve({OTHER: Want(20, 20)}))
            net.memory.advance()
            assert committed(net) == {LEASE: 10, OTHER: 20}

    asyncio.run(scenario())


def test_a_member_that_lies_about_what_came_first_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=1) as net, device(net, "one") as one:

            def lie(_: object) -> None:
                raise Conflict("another one came first", subject=str(Hash(b"?" * 32)))

            monkeypatch.setattr(net.members[0], "_reserve", lie)
            monkeypatch.setattr(reservations, "PAUSES", (0.0,))
            kept = await one._leases.reserve({LEASE: Want(10, 10)})
            assert kept is not None
            assert kept.caps() == {LEASE: 10}

    asyncio.run(scenario())


def test_with_the_first_member_away_the_next_one_says_what_came_first(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=1) as net, device(net, "one") as one, device(net, "two") as two:
            net.members[0].is_away = True
            await asyncio.gather(one._leases.reserve({LEASE: Want(10, 10)}), two._leases.reserve({OTHER: Want(20, 20)}))
            net.memory.advance()
            assert committed(net) == {LEASE: 10, OTHER: 20}

    asyncio.run(scenario())


def reservation(lease: Hash, amount: int, number: int = 1) -> Reservation:
    row = Reservation(client=OWNER.address, number=number, locks=(Lock(lease=lease, amount=amount),), deadline=2**40)
    return Reservation(
        client=row.client, number=number, locks=row.locks, deadline=row.deadline,
        client_signature=OWNER.sign(row, DOMAIN),
    )  # fmt: skip


async def offer(members: list[Member], row: Reservation, by: Freehold) -> None:
    """Show a reservation to some members only."""
    batch = make_batch(RESERVATION, Table.of(Reservation, [row]), OWNER, DOMAIN)
    for member in members:
        await by._leases._dial.peer(member.server.url).post_bytes("/v1/batches", encode_batch(batch))


# Leases, lists and vouchers


def test_both_devices_use_the_leases_of_whoever_came_first(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=6) as net, device(net, "one") as one, device(net, "two") as two:
            files = [tmp_path / "a", tmp_path / "b"]
            for number, file in enumerate(files):
                file.write_bytes(random.Random(number).randbytes(3 * SEGMENT))
            await asyncio.gather(one.put(files[0], "fh://demo/a"), two.put(files[1], "fh://demo/b"))
            for reader in (one, two):
                for file in files:
                    assert await reader.get(f"fh://demo/{file.name}", tmp_path / "back") == 3 * SEGMENT
                    assert (tmp_path / "back").read_bytes() == file.read_bytes()
            net.memory.advance()
            assert len(net.memory.leases) == 12
            assert await one.leases() == await two.leases()
            assert await one.credits() == await two.credits()

    asyncio.run(scenario())


def test_a_device_whose_book_is_new_closes_and_opens_leases_that_the_other_sees(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=6) as net, device(net, "one") as one, device(net, "two") as two:
            (tmp_path / "a").write_bytes(bytes(20_000))
            await one.put(tmp_path / "a", "fh://demo/a")
            net.memory.advance()
            closed = await two.close_leases(net.node[0].key.address)
            assert len(closed) == 2
            net.memory.advance()
            for other in (two, one):
                await other.put(tmp_path / "a", f"fh://demo/{other.folder.parent.name}")
            net.memory.advance()
            assert await one.leases() == await two.leases()
            assert sum(not info.closed for info in await two.leases()) == 12

    asyncio.run(scenario())


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(6))
def test_whatever_two_devices_do_at_once_nothing_acknowledged_is_lost(tmp_path: Path, seed: int) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=7) as net, History(net, tmp_path, seed) as history:
            await asyncio.gather(*(history.use(number, rounds=10) for number in range(2)))
            await history.check()

    asyncio.run(scenario())


class History:
    """What two devices were told was done. Device i alone writes paths i/..., both write the paths both/..."""

    def __init__(self, net: World, folder: Path, seed: int) -> None:
        self.net, self.folder, self.seed = net, folder, seed
        self.own: dict[str, bytes] = {}
        self.both: dict[str, dict[int, bytes | None]] = {}  # the last that each device did to a path
        self.vouchers: dict[tuple[int, Hash], int] = {}
        self.devices: dict[int, Freehold] = {}

    async def __aenter__(self) -> History:
        for number in range(2):
            await self.open(number)
        return self

    async def __aexit__(self, *_: object) -> None:
        for one in self.devices.values():
            await one.__aexit__(None, None, None)

    async def open(self, number: int) -> None:
        if number in self.devices:
            await self.devices.pop(number).__aexit__(None, None, None)
        self.devices[number] = await device(self.net, f"home{number}").__aenter__()

    async def use(self, number: int, rounds: int) -> None:
        draw = random.Random(f"{self.seed} {number}")
        for _ in range(rounds):
            await self.step(draw, number)
            await self.watch()

    async def step(self, draw: random.Random, number: int) -> None:
        own, mine = self.devices[number], [path for path in self.own if path.startswith(f"{number}/")]
        match draw.choices(("put", "both", "get", "rm", "advance", "restart", "renew"), (6, 3, 5, 2, 2, 1, 1))[0]:
            case "put":
                path = f"{number}/{draw.randrange(5)}"
                self.own[path] = await self.put(own, draw, path)
            case "both":
                path = f"both/{draw.randrange(2)}"
                if draw.randrange(3):
                    self.both.setdefault(path, {})[number] = await self.put(own, draw, path)
                else:
                    try:
                        await own.rm(f"fh://demo/{path}")
                    except NotFound:
                        return
                    self.both.setdefault(path, {})[number] = None
            case "get" if mine:
                path = draw.choice(mine)
                assert await self.read(own, path) == self.own[path]
            case "rm" if mine:
                path = draw.choice(mine)
                await own.rm(f"fh://demo/{path}")
                del self.own[path]
            case "advance":
                self.net.memory.advance()
            case "restart":
                await self.open(number)
            case "renew":
                await own.renew()

    async def put(self, own: Freehold, draw: random.Random, path: str) -> bytes:
        data = draw.randbytes(draw.choice((0, 1, 1000, SEGMENT + 1, 3 * SEGMENT)))
        source = self.folder / path.replace("/", "-")
        source = source.with_name(f"{source.name}-{own.folder.parent.parent.name}-{draw.random()}")
        source.write_bytes(data)
        await own.put(source, f"fh://demo/{path}")
        return data

    async def read(self, own: Freehold, path: str) -> bytes:
        return b"".join([part async for part in own.read(f"fh://demo/{path}")])

    async def watch(self) -> None:
        """Vouchers never fall, and nothing is owed that none covers; locks never exceed credits."""
        for number, node in enumerate(self.net.node):
            for lease in list(self.net.memory.leases):
                try:
                    entry = await node.book.entry(lease)
                except NotFound:
                    continue
                amount = entry.voucher.amount if entry.voucher else 0
                assert amount >= self.vouchers.get((number, lease), 0)
                assert entry.owed <= amount <= max(entry.lock, 0)
                self.vouchers[number, lease] = amount
        state, locks = self.net.memory.state(), self.net.memory.locks.get(OWNER.address, {})
        everything = tuple(Lock(lease=key, amount=lock.amount) for key, lock in locks.items())
        row = Reservation(client=OWNER.address, number=1, locks=everything, deadline=0)
        assert compute_commitment(state, row) <= self.net.memory.credits[OWNER.address]

    async def check(self) -> None:
        """Either device reads all that was acknowledged, in this session and in a new one."""
        for number in range(2):
            await self.open(number)
            own = self.devices[number]
            for path, data in self.own.items():
                assert await self.read(own, path) == data
            for path, last in self.both.items():
                try:
                    found: bytes | None = await self.read(own, path)
                except NotFound:
                    found = None
                assert found in last.values()
        self.net.memory.advance()
        await self.watch()
        one, two = self.devices.values()
        assert await one.leases() == await two.leases()
        assert await one.credits() == await two.credits()
        opened = [(row.node, row.mode) for row in self.net.memory.leases.values() if not row.closed]
        assert len(opened) == len(set(opened))
