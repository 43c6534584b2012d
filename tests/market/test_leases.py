"""Reservations: numbers follow each other, crashes repeat, what is void is signed again."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from freehold.market.reservations import KeptReservation, Want, format_credits
from freehold.protocol.errors import InsufficientCredits, Refused, Unavailable
from freehold.protocol.messages import STREAM, VOUCHER
from freehold.protocol.units import ONE, Hash
from freehold.services.seam import Prices
from tests.client.world import PRICE, World, world

LEASE, OTHER = Hash(b"l" * 32), Hash(b"m" * 32)


def last_number(net: World) -> int:
    return max(net.memory.pending.values(), default=0)


def test_locks_grow_in_reservations_that_follow_each_other(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=1) as net, net.client(credits=100) as client:
            leases = client._leases
            kept = await leases.reserve({LEASE: Want(10, 60)})
            assert kept is not None
            assert kept.caps() == {LEASE: 60}
            assert await leases.reserve({LEASE: Want(60, 90)}) == kept
            kept = await leases.reserve({OTHER: Want(40, 90)})
            assert kept is not None
            assert (kept.reservation.number, kept.caps()) == (2, {LEASE: 60, OTHER: 40})
            net.memory.advance()
            assert await leases.caps() == {LEASE: 60, OTHER: 40}
            with pytest.raises(InsufficientCredits) as caught:
                await leases.reserve({OTHER: Want(41, 41)})
            assert caught.value.details["missing"] == "1"
            assert await leases.caps() == {LEASE: 60, OTHER: 40}

    asyncio.run(scenario())


def test_a_reservation_that_missed_its_epoch_is_void_and_its_number_is_used_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=1) as net, net.client(credits=100) as client:
            await client._leases.reserve({LEASE: Want(10, 10)})
            net.memory.held.clear()  # the manifest of this epoch was made without it
            net.memory.advance()
            assert await client._leases.caps() == {}
            kept = await client._leases.reserve({LEASE: Want(10, 10)})
            assert kept is not None
            assert kept.reservation.number == 1

    asyncio.run(scenario())


def test_a_reservation_that_was_sent_before_a_crash_is_sent_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=1) as net, net.client(credits=100) as client:
            leases, book = client._leases, client._leases._book
            kept = await leases.reserve({LEASE: Want(10, 10)})
            assert kept is not None
            await book.keep_reservation(KeptReservation(kept.reservation, None))
            again = await leases.reserve({LEASE: Want(5, 5)})
            assert again is not None
            assert again.reservation == kept.reservation
            assert again.held is not None
            assert last_number(net) == 1

    asyncio.run(scenario())


def test_a_lost_book_goes_on_after_the_committed_number(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=1) as net:
            async with net.client(credits=100) as client:
                await client._leases.reserve({LEASE: Want(10, 10)})
                net.memory.advance()
            async with net.client(home="elsewhere") as client:
                kept = await client._leases.reserve({OTHER: Want(5, 5)})
                assert kept is not None
                assert (kept.reservation.number, kept.caps()) == (2, {LEASE: 10, OTHER: 5})

    asyncio.run(scenario())


def test_two_processes_at_once_both_get_their_locks(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=1) as net, net.client(credits=100) as one, net.client() as two:
            await asyncio.gather(one._leases.reserve({LEASE: Want(10, 10)}), two._leases.reserve({OTHER: Want(20, 20)}))
            assert await one._leases.caps() == await two._leases.caps() == {LEASE: 10, OTHER: 20}
            assert last_number(net) == 2

    asyncio.run(scenario())


def test_without_members_nothing_is_reserved(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=1) as net, net.client(credits=100) as client:
            for member in net.members[:3]:
                await member.server.stop()
            with pytest.raises(Unavailable):
                await client._leases.reserve({LEASE: Want(10, 10)})

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("amount", "text"), [(0, "0.000000"), (1, "0.000001"), (ONE, "1.000000"), (ONE + 1, "1.000001")]
)
def test_credits_are_shown_rounded_up(amount: int, text: str) -> None:
    assert format_credits(amount) == text


def test_a_lease_that_the_node_forgot_before_it_was_covered_is_signed_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=6) as net, net.client(credits=100 * ONE) as client:
            leases, view = client._leases, await client._leases.view()
            prices = {STREAM: PRICE, VOUCHER: PRICE}
            opened = [await leases.open(c.record, prices, view) for c in (await client.survey()).candidates]
            for node in net.node:
                connection = sqlite3.connect(node.folder / "node.sqlite")
                with connection:
                    connection.execute("DELETE FROM leases")
                connection.close()
            wants = {key: Want(10, 10) for pair in opened for key in (pair.stream_id, pair.voucher_id)}
            assert await leases.prepare(opened, wants) == {}
            assert {key: leases.locks[key] for key in wants} == dict.fromkeys(wants, 10)

    asyncio.run(scenario())


def test_a_service_may_be_paid_in_one_way_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=1) as net, net.client(credits=100 * ONE) as client:
            leases, view, [record] = client._leases, await client._leases.view(), await net.nodes()
            alone = await leases.open(record, {STREAM: PRICE}, view)
            assert set(alone.modes) == {STREAM}
            assert await leases.prepare([alone], {alone.stream_id: Want(10, 10)}) == {}
            assert await leases.recover(record, [STREAM, VOUCHER], view) is None
            assert await leases.recover(record, [STREAM], view) == alone
            shown = await leases.refresh([alone])
            assert set(shown[record.node]) == {STREAM}
            both = await leases.open(record, {STREAM: PRICE, VOUCHER: PRICE}, view)
            assert both.stream == alone.stream

    asyncio.run(scenario())


def test_a_lease_is_kept_at_its_price_or_another_opened_beside_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "net", nodes=1) as net:
            [record], node = await net.nodes(), net.node[0]
            async with net.client(credits=100 * ONE) as client:
                leases, view = client._leases, await client._leases.view()
                dear = await leases.open(record, {STREAM: PRICE}, view)
                assert await leases.prepare([dear], {dear.stream_id: Want(10, 10)}) == {}
                node.offers._prices = {"storage": Prices(PRICE // 2, PRICE)}
                assert await leases.open(record, {STREAM: PRICE // 2}, view) == dear
                cheap = await leases.open(record, {STREAM: PRICE // 2}, view, never_dearer=True)
                assert cheap.stream.price == PRICE // 2
                for limit in (PRICE // 2, PRICE, 2 * PRICE):
                    assert await leases.open(record, {STREAM: limit}, view, never_dearer=True) == cheap
                assert await leases.open_leases(view) == [dear.stream, cheap.stream]
            async with net.client(home="elsewhere") as client:  # the node shows it the dear one first
                found = await client._leases.open(record, {STREAM: PRICE // 2}, view, never_dearer=True)
                assert found == cheap
                assert await client._leases.open_leases(view) == [dear.stream, cheap.stream]
                node.offers._prices = {"storage": Prices(PRICE // 4, PRICE)}
                with pytest.raises(Refused):
                    await client._leases.open(record, {STREAM: PRICE // 8}, view, never_dearer=True)

    asyncio.run(scenario())
