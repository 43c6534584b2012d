"""Bad input at a provider: each gets its typed error, and nothing changes. And what a voucher buys."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from freehold.protocol.errors import (
    BodyTooLarge,
    Conflict,
    Corrupt,
    DeadlineExpired,
    DiskFull,
    FreeholdError,
    InsufficientCredits,
    InvalidInput,
    MalformedMessage,
    NonceReused,
    NotFound,
    Refused,
    WrongSignature,
)
from freehold.protocol.messages import STREAM
from freehold.protocol.typed import Domain
from freehold.protocol.units import Address, Hash
from freehold.services.storage import lists
from freehold.services.storage.receiving import AT_ONCE, OVERHEAD
from freehold.services.storage.terms import Served
from tests.protocol.world import DOMAIN, PARAMETERS, signed
from tests.services.storage.provider_world import CLIENT, NODE, NOW, STRANGER, Provided, Shard, make_lease

SHARD = Shard(5000, 1)
OTHER_CHAIN = Domain(1, DOMAIN.contract)
OTHER_CONTRACT = Domain(DOMAIN.chain_id, Address(bytes(20)))
UNKNOWN = Hash(b"\x01" * 32)


async def unchanged(world: Provided, before: tuple[Any, ...]) -> None:
    assert await snapshot(world) == before


async def snapshot(world: Provided) -> tuple[Any, ...]:
    return (
        world.stored(),
        world.files.used_bytes,
        await world.provider._lists.figures(),
        await world.provider.describe(world.id),
        await world.book.entry(world.voucher.struct_hash()),
        await world.book.entry(world.id),
    )


def changed_body(**changes: Any) -> bytes:
    record = msgspec.structs.replace(SHARD.record, **changes).to_bytes()
    return len(record).to_bytes(4) + record + SHARD.data


RECORD = SHARD.record.to_bytes()
PREFIX = len(RECORD).to_bytes(4) + RECORD


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"signer": STRANGER}, WrongSignature),
        ({"domain": OTHER_CHAIN}, WrongSignature),
        ({"domain": OTHER_CONTRACT}, WrongSignature),
        ({"at": NOW - 61}, DeadlineExpired),
        ({"at": NOW + 61}, DeadlineExpired),
        ({"lease": UNKNOWN}, NotFound),
        ({"lease": make_lease(2).struct_hash()}, Refused),
        ({"size": 0}, BodyTooLarge),
        ({"size": PARAMETERS.segment_size + OVERHEAD + 1}, BodyTooLarge),
        ({"size": 4999}, MalformedMessage),
        ({"size": 5001}, MalformedMessage),
        ({"body": b""}, MalformedMessage),
        ({"body": b"\xff" * 4 + SHARD.data}, MalformedMessage),
        ({"body": (5).to_bytes(4) + b"trash" + SHARD.data}, MalformedMessage),
        ({"body": PREFIX + SHARD.data[:-1]}, MalformedMessage),
        ({"body": PREFIX + SHARD.data + b"x"}, MalformedMessage),
        ({"body": PREFIX + SHARD.data + bytes(70_000)}, BodyTooLarge),
        ({"body": PREFIX + bytes(5000)}, Corrupt),
        ({"body": changed_body(shard_size=5001)}, InvalidInput),
        ({"body": changed_body(roots=SHARD.record.roots[::-1][1:] + SHARD.record.roots[:1])}, InvalidInput),
    ],
)
def test_a_bad_upload_changes_nothing(tmp_path: Path, changes: dict[str, Any], error: type[FreeholdError]) -> None:
    async def scenario() -> None:
        async with Provided(tmp_path) as world:
            before = await snapshot(world)
            with pytest.raises(error):
                await world.put(SHARD, **changes)
            await unchanged(world, before)
            assert (await world.put(SHARD)).status == 201

    asyncio.run(scenario())


def test_a_body_cut_off_leaves_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Provided(tmp_path) as world:
            before = await snapshot(world)
            request = world.upload(SHARD)
            request.content._data = request.content._data[:-1]
            with pytest.raises(Corrupt, match="4999 bytes that arrived"):
                await world.provider._receiver.put(request)
            request = world.upload(SHARD)
            request.content._data += b"x"
            with pytest.raises(BodyTooLarge):
                await world.provider._receiver.put(request)
            request = world.upload(SHARD)
            request.content._data = request.content._data[:10]
            with pytest.raises(MalformedMessage):
                await world.provider._receiver.put(request)
            request = world.upload(SHARD)
            request.content_length = None
            with pytest.raises(MalformedMessage):
                await world.provider._receiver.put(request)
            await unchanged(world, before)

    asyncio.run(scenario())


def test_a_nonce_counts_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Provided(tmp_path) as world:
            await world.put(SHARD, nonce=UNKNOWN)
            before = await snapshot(world)
            with pytest.raises(NonceReused):
                await world.put(Shard(100, 2), nonce=UNKNOWN)
            await unchanged(world, before)

    asyncio.run(scenario())


def test_a_full_disk_is_said_and_what_was_stored_stays(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Provided(tmp_path, allowance=5999) as world:
            await world.change([SHARD])
            assert world.provider.capacity() == 999
            before = await snapshot(world)
            with pytest.raises(DiskFull) as caught:
                await world.put(Shard(1000, 2))
            assert caught.value.details == {"need": 1000, "free": 999, "allowance": 5999}
            await unchanged(world, before)
            await world.put(Shard(999, 3))

    asyncio.run(scenario())


def test_too_many_uploads_at_once_are_asked_to_come_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Provided(tmp_path) as world:
            world.provider._receiver._active = AT_ONCE
            with pytest.raises(FreeholdError) as caught:
                await world.put(SHARD)
            assert caught.value.code == "overloaded"
            assert caught.value.retryable

    asyncio.run(scenario())


def test_nothing_is_kept_for_a_lease_that_nothing_covers(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Provided(tmp_path) as world:
            bare = make_lease(STREAM, number=2)
            await world.book.sign(bare, world.now)
            with pytest.raises(InsufficientCredits) as caught:
                await world.put(SHARD, lease=bare.struct_hash())
            assert caught.value.details == {"missing": "29", "lock": "0", "settled": "0"}

    asyncio.run(scenario())


def test_a_lapsed_stream_takes_no_more_and_still_lets_go(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Provided(tmp_path) as world:
            delta = await world.change([SHARD, Shard(100, 2)])
            await world.commit(3, delta, settled=10**9, lapsed=3)
            with pytest.raises(InsufficientCredits, match="lapsed"):
                await world.put(Shard(100, 3))
            after = await world.change([], [0])
            assert (after.number, after.size) == (2, 100)

    asyncio.run(scenario())


def wrong_root(delta: Any) -> Any:
    return signed(msgspec.structs.replace(delta, root=UNKNOWN), client_signature=CLIENT)


DELTAS: list[tuple[str, Callable[[dict[str, Any], Any], dict[str, Any]], type[FreeholdError]]] = [
    ("another's signature", lambda b, d: b | {"delta": signed(d, client_signature=STRANGER).to_json()}, WrongSignature),
    ("no signature", lambda b, d: b | {"delta": b["delta"] | {"client_signature": "0x"}}, WrongSignature),
    ("another root", lambda b, d: b | {"delta": wrong_root(d).to_json()}, InvalidInput),
    ("another lease", lambda b, d: b | {"delta": b["delta"] | {"lease": str(UNKNOWN)}}, InvalidInput),
    ("no delta", lambda b, d: {"add": [], "remove": []}, MalformedMessage),
    ("no lists", lambda b, d: {"delta": b["delta"]}, MalformedMessage),
    ("a negative position", lambda b, d: b | {"remove": [-1]}, MalformedMessage),
    ("no such position", lambda b, d: b | {"remove": [7]}, InvalidInput),
    ("a position twice", lambda b, d: b | {"remove": [0, 0]}, InvalidInput),
    ("nothing added", lambda b, d: b | {"add": []}, InvalidInput),
    ("added twice", lambda b, d: b | {"add": b["add"] * 2}, InvalidInput),
    ("another size", lambda b, d: b | {"add": [b["add"][0] | {"size": "4999"}]}, InvalidInput),
    ("a huge size", lambda b, d: b | {"add": [b["add"][0] | {"size": str(2**64 - 1)}]}, FreeholdError),
]


@pytest.mark.parametrize(("what", "spoil", "error"), DELTAS, ids=[row[0] for row in DELTAS])
def test_a_bad_delta_changes_nothing(
    tmp_path: Path, what: str, spoil: Callable[[dict[str, Any], Any], dict[str, Any]], error: type[FreeholdError]
) -> None:
    async def scenario() -> None:
        async with Provided(tmp_path) as world:
            await world.change([Shard(100, 2)])
            await world.put(SHARD)
            delta, body = await world.plan([SHARD])
            before = await snapshot(world)
            with pytest.raises(error):
                await world.post("deltas", spoil(body, delta))
            await unchanged(world, before)
            await world.post("deltas", body)

    asyncio.run(scenario())


def test_a_delta_names_only_shards_that_are_here_under_their_record(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Provided(tmp_path) as world:
            _, body = await world.plan([SHARD])
            with pytest.raises(NotFound):
                await world.post("deltas", body)
            await world.put(SHARD)
            liar = Shard(5000, 1)
            liar.entry = msgspec.structs.replace(liar.entry, index=2)
            _, body = await world.plan([liar])
            with pytest.raises(InvalidInput, match="does not name"):
                await world.post("deltas", body)
            assert await world.provider.describe(world.id) == {"delta": None}

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("voucher", "error"),
    [
        (lambda w: None, MalformedMessage),
        (lambda w: w.pay(0, signer=STRANGER), WrongSignature),
        (lambda w: w.pay(0, signer=NODE), WrongSignature),
        (lambda w: w.pay(0, lease=w.id), Refused),
        (lambda w: w.pay(0, lease=UNKNOWN), NotFound),
    ],
)
def test_a_wrong_voucher_buys_nothing(
    tmp_path: Path, voucher: Callable[[Provided], Any], error: type[FreeholdError]
) -> None:
    async def scenario() -> None:
        async with Provided(tmp_path) as world:
            await world.change([SHARD])
            before = await snapshot(world)
            with pytest.raises(error):
                await world.provider._sender.get(world.download(SHARD.root, voucher(world)))
            with pytest.raises(WrongSignature):
                await world.provider._sender.get(world.download(SHARD.root, world.pay(0), signer=STRANGER))
            await unchanged(world, before)

    asyncio.run(scenario())


async def take(world: Provided, amount: int, root: Hash = SHARD.root) -> Served:
    """Ask for a shard as far as the first byte: the signed header."""
    sent: list[tuple[Any, ...]] = []

    async def capture(*arguments: Any) -> Any:
        sent.append(arguments)

    world.provider._sender._send = capture  # type: ignore[method-assign]
    await world.provider._sender.get(world.download(root, world.pay(amount)))
    served = sent[0][2]
    assert isinstance(served, Served)
    assert served == signed(served, node_signature=NODE)
    return served


def test_one_answer_is_served_ahead_of_the_voucher(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Provided(tmp_path) as world:
            await world.change([SHARD])
            served = await take(world, 0)
            assert (served.lease, served.content, served.size) == (world.id, SHARD.root, 5000)
            with pytest.raises(Conflict) as caught:
                await take(world, 4999)
            assert caught.value.details == {"owed": "5000", "cost": "5000", "voucher": world.pay(0).to_json()}
            await take(world, 5000)
            await take(world, 10_000)
            await take(world, 15_000)
            entry = await world.book.entry(world.voucher.struct_hash())
            assert (entry.owed, entry.voucher) == (20_000, world.pay(15_000))
            assert await world.book.unsettled_vouchers() == [world.pay(15_000)]
            # Parallel answers: a voucher that comes late stands behind the larger one.
            await take(world, 20_000)
            with pytest.raises(Conflict):
                await take(world, 100)
            await world.book.refund(world.voucher.struct_hash(), 5000)
            await take(world, 100)

    asyncio.run(scenario())


def test_a_lock_that_does_not_cover_says_what_is_missing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Provided(tmp_path) as world:
            await world.change([SHARD])
            world.database.submit(lambda c: c.execute("UPDATE leases SET lock = '4999'")).result()
            before = await snapshot(world)
            with pytest.raises(InsufficientCredits) as caught:
                await take(world, 5000)
            assert caught.value.details["missing"] == "1"
            await unchanged(world, before)
            await world.cover(5000)
            await take(world, 5000)

    asyncio.run(scenario())


def test_a_plan_is_for_the_leases_client_alone_and_bounded(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Provided(tmp_path) as world:
            with pytest.raises(WrongSignature, match="may not send it"):
                await world.post("plan", {"add": [], "remove": []}, signer=STRANGER)
            assert (await world.post("plan", {"add": [], "remove": []}))["steps"] == []
            for change in ({"add": [], "remove": [0] * 2049}, {"add": [SHARD.entry.to_json()] * 2049, "remove": []}):
                with pytest.raises(BodyTooLarge):
                    await world.post("plan", change)

    asyncio.run(scenario())


def test_a_plan_does_not_hold_up_others_while_it_is_worked_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with Provided(tmp_path) as world:
            locked: list[bool] = []

            def change(*given: Any) -> Any:
                locked.append(world.provider._lists._locks.of(world.id).locked())
                return []

            monkeypatch.setattr(lists, "change", change)
            await world.post("plan", {"add": [], "remove": []})
            assert locked == [False]

    asyncio.run(scenario())


def test_a_lock_covers_all_that_a_lease_keeps_and_not_each_shard_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Provided(tmp_path) as world:
            small = make_lease(STREAM, number=2)
            world.stream, world.id = small, small.struct_hash()
            await world.book.sign(small, world.now)
            await world.cover(85)  # three of the four: 5000 bytes for an epoch are 28 base units
            shards = [Shard(5000, seed) for seed in range(10, 14)]
            for shard in shards[:2]:
                await world.change([shard])
            await world.put(shards[2])
            await world.put(shards[2])
            with pytest.raises(InsufficientCredits):
                await world.put(shards[3])
            world.provider._receiver._arriving[world.id] = 10_000
            with pytest.raises(InsufficientCredits):
                await world.put(shards[2])

    asyncio.run(scenario())
