"""A node among a client and a quorum: leases, cover, shards, epochs, money; and what it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from freehold.node import book
from freehold.protocol.errors import (
    Conflict,
    Corrupt,
    DeadlineExpired,
    FreeholdError,
    InsufficientCredits,
    InvalidInput,
    MalformedMessage,
    NotFound,
    Refused,
    Unavailable,
    WrongSignature,
)
from freehold.protocol.keys import is_signed_by
from freehold.protocol.messages import STREAM, VOUCHER, Close, Lease, Offer
from freehold.protocol.messages import Voucher as VoucherMessage
from freehold.protocol.typed import Domain
from freehold.protocol.units import Hash
from freehold.protocol.verdicts import GOOD, KNOWN
from freehold.services.storage.client_node import StorageNode
from freehold.services.storage.client_objects import ListedShard
from freehold.services.storage.proof import group_lists
from freehold.services.storage.segment_record import SegmentRecord
from tests.node.world import CLIENT, LOCK, NODE, NOW, STRANGER, STREAM_PRICE, VOUCHER_PRICE, Hosted
from tests.protocol.world import DOMAIN, MEMBERS, key
from tests.services.storage.provider_world import Shard

Scenario = Callable[[Hosted], Awaitable[None]]


def run(directory: Path, scenario: Scenario) -> None:
    async def hosted() -> None:
        async with Hosted(directory) as node:
            await scenario(node)

    asyncio.run(hosted())


async def put(storage: Any, shard: Shard) -> None:
    await storage.put_shard(shard.index, shard.root, shard.record.to_bytes(), memoryview(shard.data))


async def listed(storage: Any, shards: list[Shard]) -> Any:
    for shard in shards:
        await put(storage, shard)
    entries = [shard.entry for shard in shards]
    newest = await storage._peer.get_json(f"/v1/leases/{storage.leases.stream_id}")
    known = storage.check_delta(newest["delta"]) if newest["delta"] else None
    delta, positions = await storage.plan(entries, [], known)
    signed = await storage.change(delta, entries, [])
    return signed, positions


def test_a_node_is_asked_for_a_plan_only_where_its_last_answer_does_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(node: Hosted) -> None:
        storage, plans = await node.open(), []

        async def plan(*arguments: Any, **named: Any) -> Any:
            plans.append(arguments)
            return await ask(*arguments, **named)

        ask = storage._peer.post_bytes
        monkeypatch.setattr(storage._peer, "post_bytes", plan)
        _, first = await listed(storage, [Shard(100, 1)])
        _, second = await listed(storage, [Shard(100, 2), Shard(100, 3), Shard(100, 4)])
        delta, third = await listed(storage, [Shard(100, 5)])
        assert (first, second, third, len(plans)) == ([0], [1, 2, 3], [4], 1)
        gone = ListedShard(storage.address, 2, Shard(100, 3).root)
        shorter, _ = await storage.plan([], [gone], delta)
        delta = await storage.change(shorter, [], [gone])
        assert len(plans) == 2
        _, again = await listed(storage, [Shard(100, 6)])  # of a removal nothing follows
        _, after = await listed(storage, [Shard(100, 7)])
        assert (again, after) == ([2], [5])

        other = StorageNode(storage.leases, node.dial, CLIENT, DOMAIN, lambda: node.now)
        await listed(other, [Shard(100, 8)])
        _, last = await listed(storage, [Shard(100, 9)])  # another device has changed the list meanwhile
        assert last == [7]

    run(tmp_path, scenario)


def test_offers_are_signed_and_tell_price_and_space(tmp_path: Path) -> None:
    async def scenario(node: Hosted) -> None:
        (value,) = await node.peer.get_json("/v1/offers")
        offer = Offer.from_json(value)
        assert is_signed_by(offer, offer.node_signature, NODE.address, DOMAIN)
        assert (offer.stream_price, offer.voucher_price) == (STREAM_PRICE, VOUCHER_PRICE)
        assert (offer.endpoint, offer.place, offer.capacity) == (node.peer.url, "here", 10**7)
        assert offer.expiry > NOW

    run(tmp_path, scenario)


def test_from_lease_to_payment(tmp_path: Path) -> None:
    """A client stores and fetches; the node proves, sends its vouchers and lease by itself, and is paid for both."""

    async def scenario(node: Hosted) -> None:
        storage = await node.open()
        shards = [Shard(50_000, 1), Shard(4096, 2), Shard(1, 3)]
        delta, positions = await listed(storage, shards)
        assert positions == [0, 1, 2]
        buffer = bytearray(50_000)
        got: list[int] = []
        served = await storage.get_shard(shards[0].root, memoryview(buffer), node.pay(storage, 50_000), got.append)
        assert bytes(buffer) == shards[0].data
        assert sum(got) == 50_000
        assert served.content == shards[0].root
        digest = shards[0].record.hash()
        record = await node.peer.get_bytes(f"/v1/storage/{storage.leases.stream_id}/records/{digest}")
        assert SegmentRecord.from_bytes(record) == shards[0].record

        assert not node.status.ready()[0]
        node.status.registered()
        await node.loop.step()
        node.loop.failure = None
        assert node.status.ready() == (True, "")
        kinds = [batch.header.kind for batch in node.quorum.batches]
        assert kinds == ["reservation", "lease", "voucher", "storage.delta"]
        assert set(node.quorum.settle()) == {GOOD}
        assert node.world.state.leases[storage.leases.voucher_id].settled == 50_000

        await node.loop.step()
        assert [batch.header.kind for batch in node.quorum.batches] == ["storage.proof"]
        await node.loop.step()
        assert len(node.quorum.batches) == 1
        assert node.quorum.settle() == [GOOD] * 4
        paid = node.world.state.leases[storage.leases.stream_id].settled
        assert paid == delta.size * 20 * STREAM_PRICE // (2**40 * 3600)
        await node.loop.step()
        shown = await node.peer.get_json(f"/v1/leases/{storage.leases.stream_id}")
        assert shown["state"] == {"lock": str(LOCK), "settled": str(paid), "epoch": 3, "lapsed": 0, "closed": 0}
        assert shown["delta"] == delta.to_json()
        assert shown["covered"]
        assert "freehold_node_storage_shards{" in node.status.metrics()

    run(tmp_path, scenario)


def test_proofs_and_stragglers_are_sent_until_they_are_held(tmp_path: Path) -> None:
    async def scenario(node: Hosted) -> None:
        storage = await node.open()
        await listed(storage, [Shard(9000, 1)])
        node.quorum.failing = Unavailable("two members are away")
        with pytest.raises(Unavailable, match="two members"):
            await node.loop.step()
        node.quorum.failing = None
        await node.loop.step()
        assert set(node.quorum.settle()) == {GOOD}
        node.quorum.failing = Unavailable("two members are away")
        with pytest.raises(Unavailable):
            await node.loop.step()
        node.quorum.failing = None
        await node.loop.step()
        assert node.quorum.settle() == [GOOD] * 4

    run(tmp_path, scenario)


def test_rows_that_the_client_sent_too_count_once(tmp_path: Path) -> None:
    async def scenario(node: Hosted) -> None:
        storage = await node.open()
        delta, _ = await listed(storage, [Shard(9000, 1)])
        await node.loop.step()
        lease = node.world.batch("lease", [storage.leases.stream, storage.leases.voucher], CLIENT)
        assert set(node.quorum.settle(lease, node.world.batch("storage.delta", [delta], CLIENT))) == {GOOD}
        late = node.world.batch("storage.delta", [delta], CLIENT)
        assert sorted(set(node.quorum.settle(late))) == sorted({KNOWN, "slept"})

    run(tmp_path, scenario)


def test_it_answers_for_the_committed_list_while_the_newest_goes_on(tmp_path: Path) -> None:
    async def scenario(node: Hosted) -> None:
        storage = await node.open()
        await listed(storage, [Shard(9000, 1), Shard(3000, 2)])
        await node.loop.step()
        node.quorum.settle()
        await listed(storage, [Shard(20_000, 3)])
        await node.loop.step()
        assert node.quorum.settle() == [GOOD] * 5  # four openings of the older list, and the new delta
        (rows,) = group_lists(context_of(node)).values()
        assert rows[0].number == 2
        await node.loop.step()
        assert node.quorum.settle() == [GOOD] * 4

    run(tmp_path, scenario)


def context_of(node: Hosted) -> Any:
    from freehold.protocol.epoch import make_context
    from freehold.services.judging import JUDGES

    anchor = node.world.anchor(node.quorum.epoch)
    return make_context(node.world.state, anchor, JUDGES["storage"], DOMAIN, node.world.state.leases)


def test_a_restart_keeps_everything_and_proves_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Hosted(tmp_path) as node:
            storage = await node.open()
            await listed(storage, [Shard(9000, 1)])
            await node.loop.step()
            node.quorum.settle()
            await node.loop.step()
            world = node.world
        again = Hosted(tmp_path)
        again.world = again.quorum.world = world
        async with again as node:
            await node.loop.step()
            assert node.quorum.settle() == [GOOD] * 4
            shown = await node.peer.get_json(f"/v1/leases/{storage.leases.stream_id}")
            assert shown["covered"]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda v: v | {"signers": 0b0111}, WrongSignature),
        (lambda v: v | {"signatures": "0x"}, WrongSignature),
        (lambda v: v | {"signers": 0b1111}, WrongSignature),
        (lambda v: v | {"signers": "many"}, MalformedMessage),
        (lambda v: v | {"report": None}, MalformedMessage),
        (lambda v: v | {"epoch": v["epoch"] + 1}, MalformedMessage),
        (lambda v: v | {"report": v["report"] | {"state_root": "0x" + "11" * 32}}, WrongSignature),
        (lambda v: v | {"epoch": "soon"}, Unavailable),
    ],
)
def test_a_report_that_no_quorum_signed_is_not_believed(
    tmp_path: Path, spoil: Callable[[Any], Any], error: type[FreeholdError]
) -> None:
    async def scenario(node: Hosted) -> None:
        await node.loop.step()
        node.quorum.settle()
        honest = node.quorum.open()
        node.quorum.open = lambda: spoil(dict(honest))  # type: ignore[method-assign]
        with pytest.raises(error):
            await node.loop.step()
        assert await node.book.committed_epoch() == 1

    run(tmp_path, scenario)


def test_f_members_alone_are_not_believed(tmp_path: Path) -> None:
    async def scenario(node: Hosted) -> None:
        honest = node.quorum.open()
        lie = honest | {"beacon": "0x" + "22" * 32}

        async def ask(path: str) -> list[Any]:
            return [(MEMBERS[0].address, lie), *((m.address, honest) for m in MEMBERS[1:])]

        node.quorum.ask = ask  # type: ignore[method-assign]
        await node.loop.step()

        async def split(path: str) -> list[Any]:
            return [(m.address, honest | {"beacon": "0x" + f"{i}" * 64}) for i, m in enumerate(MEMBERS)]

        node.quorum.ask = split  # type: ignore[method-assign]
        with pytest.raises(Unavailable, match="fewer than 2"):
            await node.loop.step()

    run(tmp_path, scenario)


def test_rows_that_are_not_in_the_state_are_not_believed(tmp_path: Path) -> None:
    async def scenario(node: Hosted) -> None:
        storage = await node.open()
        await listed(storage, [Shard(9000, 1)])
        await node.loop.step()
        node.quorum.settle()
        honest = await node.quorum.agree(f"/v1/state/{node.quorum.epoch - 1}/nodes/{NODE.address}")
        row = honest["rows"]["leases"][0]
        answers: list[Any] = []

        async def agree(path: str) -> Any:
            return answers[0]

        node.quorum.agree = agree  # type: ignore[method-assign]
        for lie in (
            honest | {"rows": {"leases": [row | {"row": row["row"] | {"settled": "1"}}]}},
            honest | {"rows": {"leases": [row | {"index": 1 - row["index"]}]}},
            honest | {"rows": {"leases": [row | {"proof": []}]}},
            honest | {"tables": honest["tables"][1:]},
        ):
            answers[:] = [lie]
            with pytest.raises(Corrupt):
                await node.loop.step()
        for lie in ({}, honest | {"rows": {"leases": [{}]}}, []):
            answers[:] = [lie]
            with pytest.raises(MalformedMessage):
                await node.loop.step()
        assert await node.book.committed_epoch() == 1

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"signer": STRANGER}, WrongSignature),
        ({"domain": Domain(1, DOMAIN.contract)}, WrongSignature),
        ({"node": STRANGER.address}, Refused),
        ({"client": NODE.address, "signer": NODE}, Refused),
        ({"service": "compute"}, Refused),
        ({"mode": 3}, Refused),
        ({"price": STREAM_PRICE - 1}, Refused),
        ({"price": VOUCHER_PRICE}, Refused),
        ({"deadline": NOW}, DeadlineExpired),
        ({"deadline": NOW + 60 * 86400 + 1}, InvalidInput),
        ({"deadline": 2**64 - 1}, InvalidInput),
    ],
)
def test_a_lease_that_is_not_at_the_offer_is_refused(
    tmp_path: Path, changes: dict[str, Any], error: type[FreeholdError]
) -> None:
    async def scenario(node: Hosted) -> None:
        lease = node.lease(**({"mode": STREAM} | changes))
        with pytest.raises(error):
            await node.sign(lease)
        with pytest.raises(NotFound):
            await node.peer.get_json(f"/v1/leases/{lease.struct_hash()}")
        good = await node.sign(node.lease(STREAM))
        assert is_signed_by(good, good.node_signature, NODE.address, DOMAIN)
        assert await node.sign(node.lease(STREAM)) == good

    run(tmp_path, scenario)


def test_leases_that_nothing_covers_are_limited_and_forgotten(tmp_path: Path) -> None:
    async def scenario(node: Hosted) -> None:
        leases = []
        for number in range(65):
            leases.append(await node.sign(node.lease(STREAM, number=number)))
            node.now += number == 0
        assert (await node.book.figures())["leases"] == 64  # the oldest went
        with pytest.raises(NotFound):
            await node.peer.get_json(f"/v1/leases/{leases[0].struct_hash()}")
        covered = leases[1].struct_hash()
        await node.peer.post_json("/v1/reservations", node.reservation({covered: LOCK}))
        node.now += 600
        await node.sign(node.lease(STREAM, number=65))
        assert (await node.book.figures()) == {"leases": 2, "covered_leases": 1}

    run(tmp_path, scenario)


def test_many_strangers_shut_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book, "UNCOVERED_LIMIT", 3)

    async def scenario(node: Hosted) -> None:
        for number in range(5):
            stranger = key(900 + number)
            await node.sign(node.lease(STREAM, client=stranger.address, signer=stranger))
            node.now += 1
        lease = await node.sign(node.lease(STREAM))
        assert (await node.book.figures())["leases"] == 3
        assert await node.peer.get_json(f"/v1/leases/{lease.struct_hash()}")

    run(tmp_path, scenario)


def without_one_holding(value: dict[str, Any]) -> dict[str, Any]:
    return value | {"holdings": value["holdings"][1:]}


def one_holding_twice(value: dict[str, Any]) -> dict[str, Any]:
    return value | {"holdings": [value["holdings"][0]] * 3}


def holdings_swapped(value: dict[str, Any]) -> dict[str, Any]:
    first, second, third = value["holdings"]
    swapped = [first | {"signature": second["signature"]}, second | {"signature": first["signature"]}, third]
    return value | {"holdings": swapped}


def fewer_signers(value: dict[str, Any]) -> dict[str, Any]:
    return value | {"certificate": value["certificate"] | {"signers": 3}}


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (without_one_holding, WrongSignature),
        (one_holding_twice, WrongSignature),
        (holdings_swapped, WrongSignature),
        (fewer_signers, WrongSignature),
        (lambda v: v | {"epoch": v["epoch"] + 1}, Refused),
        (lambda v: v | {"certificate": v["certificate"] | {"subject": "0x" + "11" * 32}}, InvalidInput),
        (lambda v: v | {"certificate": v["certificate"] | {"epoch": "99"}, "epoch": 99}, WrongSignature),
        (lambda v: v | {"batch": v["batch"][:-2]}, MalformedMessage),
        (lambda v: v | {"batch": "0x"}, MalformedMessage),
        (lambda v: v | {"batch": None}, MalformedMessage),
        (lambda v: {}, MalformedMessage),
    ],
)
def test_a_reservation_that_is_not_certified_and_held_covers_nothing(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], dict[str, Any]], error: type[FreeholdError]
) -> None:
    async def scenario(node: Hosted) -> None:
        lease = (await node.sign(node.lease(STREAM))).struct_hash()
        value = node.reservation({lease: LOCK})
        with pytest.raises(error):
            await node.peer.post_json("/v1/reservations", spoil(value))
        assert not (await node.peer.get_json(f"/v1/leases/{lease}"))["covered"]
        assert await node.peer.post_json("/v1/reservations", value) == {"leases": 1}
        assert (await node.peer.get_json(f"/v1/leases/{lease}"))["covered"]

    run(tmp_path, scenario)


def test_another_client_cannot_cover_or_use_a_lease(tmp_path: Path) -> None:
    async def scenario(node: Hosted) -> None:
        theirs = node.lease(STREAM, client=STRANGER.address, signer=STRANGER)
        lease = await node.sign(theirs)
        assert await node.peer.post_json("/v1/reservations", node.reservation({lease.struct_hash(): LOCK})) == {
            "leases": 0
        }
        with pytest.raises(NotFound):
            await node.peer.get_json(f"/v1/leases/0x{'11' * 32}")
        with pytest.raises(MalformedMessage):
            await node.peer.get_json("/v1/leases/1")

    run(tmp_path, scenario)


def test_bytes_that_hang_up_leave_nothing_and_can_come_again(tmp_path: Path) -> None:
    async def scenario(node: Hosted) -> None:
        storage = await node.open()
        shard = Shard(900_000, 1)

        async def half() -> Any:
            packed = shard.record.to_bytes()
            yield len(packed).to_bytes(4) + packed + shard.data[:500_000]
            raise ConnectionResetError("the client is gone")

        path = f"/v1/storage/{storage.leases.stream_id}/shards/{shard.root}?index=1&size=900000"
        size = 4 + len(shard.record.to_bytes()) + 900_000
        headers = storage._sign("PUT", path, shard.root) | {"Content-Length": str(size)}
        with pytest.raises(Unavailable):
            async with node.peer.request("PUT", path, headers=headers, data=half()):
                pass
        async with asyncio.timeout(20):
            while node.files.used_bytes or node.provider._receiver._active:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await put(storage, shard)
        assert node.files.used_bytes == 900_000

    run(tmp_path, scenario)


def test_what_was_not_sent_is_not_owed(tmp_path: Path) -> None:
    async def scenario(node: Hosted) -> None:
        storage = await node.open()
        shard = Shard(1_900_000, 1)
        await listed(storage, [shard])
        path = f"/v1/storage/{storage.leases.stream_id}/shards/{shard.root}"
        headers = storage._sign("GET", path, Hash(bytes(32)))
        headers["Freehold-Voucher"] = node.pay(storage, 0).to_bytes().decode()
        async with node.peer.request("GET", path, headers=headers) as response:
            response.close()
        entry = await node.book.entry(storage.leases.voucher_id)
        assert entry.owed <= 1_900_000
        missing = Shard(100, 9)
        with pytest.raises(NotFound):
            await storage.get_shard(missing.root, memoryview(bytearray(100)), node.pay(storage, 0), lambda n: None)

    run(tmp_path, scenario)


def test_a_node_that_is_owed_asks_first(tmp_path: Path) -> None:
    async def scenario(node: Hosted) -> None:
        storage = await node.open(voucher_lock=100_000)
        shard = Shard(40_000, 1)
        await listed(storage, [shard])

        async def fetch(amount: int) -> None:
            buffer = memoryview(bytearray(40_000))
            await storage.get_shard(shard.root, buffer, node.pay(storage, amount), lambda n: None, is_prepaid=False)

        await fetch(0)
        with pytest.raises(Conflict) as caught:
            await fetch(0)
        assert caught.value.details["owed"] == "40000"
        await fetch(40_000)
        with pytest.raises(InsufficientCredits) as short:
            await fetch(80_000)
        assert short.value.details["missing"] == "20000"

    run(tmp_path, scenario)


def test_who_pays_beforehand_is_served_nothing_ahead_of_a_voucher(tmp_path: Path) -> None:
    async def scenario(node: Hosted) -> None:
        storage = await node.open()
        shard = Shard(40_000, 1)
        await listed(storage, [shard])
        with pytest.raises(Conflict) as caught:
            await fetched(node, storage, shard, 39_999)
        assert (caught.value.details["owed"], caught.value.details["cost"]) == ("0", "40000")
        await fetched(node, storage, shard, 80_000)
        await fetched(node, storage, shard, 40_000)  # an older voucher that arrives late: the newest covers it
        with pytest.raises(Conflict) as caught:
            await fetched(node, storage, shard, 80_000)
        assert VoucherMessage.from_json(caught.value.details["voucher"]).amount == 80_000

    run(tmp_path, scenario)


def test_a_node_signs_no_lease_beside_an_open_one_that_the_client_does_not_name(tmp_path: Path) -> None:
    async def scenario(node: Hosted) -> None:
        first = await node.sign(node.lease(STREAM))
        second = {"lease": node.lease(STREAM, number=2).to_json(), "ended": []}
        with pytest.raises(Conflict) as caught:
            await node.peer.post_json("/v1/leases", second)
        assert Lease.from_json(caught.value.details["lease"]) == first
        other = {"lease": node.lease(VOUCHER).to_json(), "ended": []}
        await node.peer.post_json("/v1/leases", other)
        with pytest.raises(MalformedMessage):
            await node.peer.post_json("/v1/leases", second | {"ended": "all"})
        await node.peer.post_json("/v1/leases", second | {"ended": [str(first.struct_hash())]})

    run(tmp_path, scenario)


def test_a_lease_in_another_mode_keeps_nothing(tmp_path: Path) -> None:
    async def scenario(node: Hosted) -> None:
        storage = await node.open()
        wrong = msgspec.structs.replace(storage.leases.stream, mode=VOUCHER)
        assert isinstance(wrong, Lease)
        wrong_node = StorageNode(
            storage.leases._replace(modes={STREAM: wrong}), node.dial, CLIENT, DOMAIN, lambda: node.now
        )
        with pytest.raises(NotFound):
            await wrong_node.plan([], [], None)
        by_voucher = storage.leases._replace(modes={STREAM: storage.leases.voucher})
        with pytest.raises(Refused, match="not for keeping"):
            await StorageNode(by_voucher, node.dial, CLIENT, DOMAIN, lambda: node.now).plan([], [], None)

    run(tmp_path, scenario)


async def fetched(node: Hosted, storage: Any, shard: Shard, amount: int) -> None:
    await storage.get_shard(shard.root, memoryview(bytearray(shard.data)), node.pay(storage, amount), lambda n: None)


def test_what_was_served_is_paid_though_the_client_closes_its_lease(tmp_path: Path) -> None:
    async def scenario(node: Hosted) -> None:
        storage = await node.open()
        shard = Shard(40_000, 1)
        await listed(storage, [shard])
        await node.loop.step()
        assert set(node.quorum.settle()) == {GOOD}
        await node.loop.step()
        await fetched(node, storage, shard, 40_000)
        close = Close(lease=storage.leases.voucher_id)
        close = msgspec.structs.replace(close, client_signature=CLIENT.sign(close, DOMAIN))
        assert GOOD in node.quorum.settle(node.world.batch("close", [close], CLIENT))
        assert node.world.state.leases[storage.leases.voucher_id].closed
        await node.loop.step()
        assert "voucher" in [batch.header.kind for batch in node.quorum.batches]
        assert node.quorum.settle()[0] == GOOD
        assert node.world.state.leases[storage.leases.voucher_id].settled == 40_000

    run(tmp_path, scenario)


def test_vouchers_that_came_since_are_sent_once_more_before_the_epoch_ends(tmp_path: Path) -> None:
    async def scenario(node: Hosted) -> None:
        storage = await node.open()
        shard = Shard(10_000, 1)
        await listed(storage, [shard])
        node.now = node.world.anchor(node.quorum.epoch).anchor_time - 6

        async def step() -> list[int]:
            node.quorum.batches = []
            await node.loop.step()
            batches = [batch for batch in node.quorum.batches if batch.header.kind == "voucher"]
            return [row.amount for batch in batches for row in batch.table]

        assert await step() == []
        await fetched(node, storage, shard, 10_000)
        assert await step() == []  # not yet
        node.now += 1
        assert await step() == [10_000]
        assert await step() == []

    run(tmp_path, scenario)
