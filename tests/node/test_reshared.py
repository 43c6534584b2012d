"""A member that leaves deals its shares to those that come, through the nodes that keep the segments."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from freehold.net.auth import authorize
from freehold.protocol.errors import InvalidInput, NotFound, Refused, WrongSignature
from freehold.protocol.keys import Key
from freehold.protocol.units import ZERO_HASH, Hash
from freehold.services.storage import repair_key
from freehold.services.storage.client_node import StorageNode
from freehold.services.storage.resharing import (
    NewSet,
    Resharing,
    combine_parts,
    open_dealt_share,
    open_part,
    reshare,
)
from freehold.services.storage.segment_record import SegmentRecord
from tests.node.world import NODE, Hosted
from tests.protocol.world import ADDRESSES, DOMAIN, MEMBERS, key
from tests.services.storage.provider_world import Shard

REPAIR = bytes(range(16))
COMING = [*MEMBERS[1:], key(99)]  # the first member leaves
EPOCH = 7


def run(directory: Path, scenario: Callable[[Hosted], Awaitable[None]]) -> None:
    async def main() -> None:
        async with Hosted(directory) as node:
            node.next_members, node.next_epoch = [member.address for member in COMING], EPOCH
            await scenario(node)

    asyncio.run(main())


async def store(node: Hosted, storage: StorageNode, seed: int = 1) -> SegmentRecord:
    """A listed shard, whose segment's repair key the members share; the record."""
    shard = Shard(20_000, seed)
    sealed = repair_key.seal_repair_key(REPAIR, [m.public for m in MEMBERS], 2, shard.record.roots)
    record: SegmentRecord = msgspec.structs.replace(shard.record, sealed=sealed)
    entry = msgspec.structs.replace(shard.entry, record=record.hash())
    await storage.put_shard(shard.index, shard.root, record.to_bytes(), memoryview(shard.data))
    delta, _ = await storage.plan([entry], [], None)
    await storage.change(delta, [entry], [])
    return record


def deal(record: SegmentRecord, /, by: Key = MEMBERS[0], at: int = 0, **changes: Any) -> Resharing:
    to = NewSet(EPOCH, [m.address for m in COMING], [m.public for m in COMING])
    dealt = msgspec.structs.replace(reshare(record, record.sealed[at], by, to, DOMAIN), **changes)
    return msgspec.structs.replace(dealt, member_signature=by.sign(dealt, DOMAIN))


async def ask_records(node: Hosted, member: Key, epoch: int = EPOCH, after: str = "") -> Any:
    path = f"/v1/storage/records?member={member.address}&from_epoch={epoch}" + (f"&after={after}" if after else "")
    nonce = Hash(secrets.token_bytes(32))
    headers = authorize(member, "GET", path, ZERO_HASH, NODE.address, DOMAIN, node.now, nonce)
    async with node.peer.request("GET", path, headers=headers) as response:
        return (await response.json())["data"]


def test_a_leaver_finds_the_records_and_what_it_deals_opens_a_repair_key(tmp_path: Path) -> None:
    async def scenario(node: Hosted) -> None:
        storage = await node.open()
        record = await store(node, storage)
        (found,) = await ask_records(node, MEMBERS[0])
        assert found == {"lease": str(storage.leases.stream_id), "record": str(record.hash())}
        assert await ask_records(node, MEMBERS[0], after=f"{found['lease']}-{found['record']}") == []
        path = f"/v1/storage/{found['lease']}/records/{found['record']}"
        body = await node.peer.get_bytes(path)
        dealt = deal(SegmentRecord.from_bytes(body))
        for _ in range(2):  # the answer may be lost
            await node.peer.post_json(f"{path}/resharings", {"resharing": dealt.to_json()})
        (shown,) = [Resharing.from_json(value) for value in await node.peer.get_json(f"{path}/resharings")]
        shown.check(DOMAIN)
        parts = [open_part(shown, record, COMING[i].secret, i + 1) for i in (1, 3)]
        share = open_dealt_share(record, 1, combine_parts(shown, record, parts))
        stayed = repair_key.open_share(record.sealed[2], MEMBERS[2].secret, record.roots)
        assert repair_key.combine([share, stayed], 2) == REPAIR

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("by", "changes", "error"),
    [
        (MEMBERS[0], {"from_epoch": EPOCH + 1}, Refused),  # no set begins then
        (MEMBERS[0], {"members": tuple(ADDRESSES)}, Refused),  # another set than the one that begins
        (key(99), {}, WrongSignature),  # no member of the set that ends
        (MEMBERS[0], {"box": Hash(b"?" * 32)}, InvalidInput),
        (MEMBERS[0], {"record": Hash(b"?" * 32)}, InvalidInput),
        (MEMBERS[0], {"checks": ()}, InvalidInput),
    ],
)
def test_what_no_member_may_deal_is_not_kept(
    tmp_path: Path, by: Key, changes: dict[str, Any], error: type[Exception]
) -> None:
    async def scenario(node: Hosted) -> None:
        storage = await node.open()
        record = await store(node, storage)
        own = deal(record, **changes)
        if by is not MEMBERS[0]:
            own = msgspec.structs.replace(own, member=by.address)
            own = msgspec.structs.replace(own, member_signature=by.sign(own, DOMAIN))
        path = f"/v1/storage/{storage.leases.stream_id}/records/{record.hash()}/resharings"
        with pytest.raises(error):
            await node.peer.post_json(path, {"resharing": own.to_json()})
        assert await node.peer.get_json(path) == []

    run(tmp_path, scenario)


def test_only_a_member_of_a_set_that_ends_sees_which_records_are_here(tmp_path: Path) -> None:
    async def scenario(node: Hosted) -> None:
        await store(node, await node.open())
        with pytest.raises(WrongSignature):
            await ask_records(node, key(99))
        with pytest.raises(Refused):
            await ask_records(node, MEMBERS[0], epoch=EPOCH + 1)

    run(tmp_path, scenario)


def test_a_resharing_goes_with_its_record(tmp_path: Path) -> None:
    async def scenario(node: Hosted) -> None:
        storage = await node.open()
        record = await store(node, storage)
        lease = storage.leases.stream_id
        path = f"/v1/storage/{lease}/records/{record.hash()}"
        await node.peer.post_json(f"{path}/resharings", {"resharing": deal(record).to_json()})
        await node.provider._lists.drop(lease)
        assert await node.peer.get_json(f"{path}/resharings") == []
        with pytest.raises(NotFound):
            await node.peer.post_json(f"{path}/resharings", {"resharing": deal(record).to_json()})

    run(tmp_path, scenario)
