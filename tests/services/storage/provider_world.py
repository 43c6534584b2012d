"""One provider under test: a real book and real SQL, blobs on any disk, and requests without a network."""

from __future__ import annotations

import json
import os
import random
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from aiohttp import web

from freehold.net.auth import Guard, authorize
from freehold.net.limits import Room, Share
from freehold.node.book import MIGRATIONS, Book
from freehold.protocol.keys import Key
from freehold.protocol.merkle import LISTS
from freehold.protocol.messages import STREAM, VOUCHER, Lease, Lock, Reservation, Voucher
from freehold.protocol.service import Context
from freehold.protocol.state import LeaseState
from freehold.protocol.tables import Table
from freehold.protocol.typed import Domain, keccak
from freehold.protocol.units import ZERO_HASH, Hash
from freehold.services.seam import ProviderContext
from freehold.services.storage import shard_tree
from freehold.services.storage.list_steps import Step, apply_steps
from freehold.services.storage.provider import StorageProvider
from freehold.services.storage.segment_record import SegmentRecord
from freehold.services.storage.terms import TIB, Delta, ListState, ShardEntry
from freehold.store.blobs import Blobs
from freehold.store.disk import Disk
from freehold.store.sql import Database
from tests.protocol.world import DOMAIN, PARAMETERS, key, signed
from tests.services.contexts import NOTHING_ELSE
from tests.services.sensing_world import no_fleets

NODE, CLIENT, STRANGER = key(1), key(500), key(501)
NOW = 1_900_000_000
PRICE = TIB  # one base unit a byte sent
LOCK = 10**9
ALLOWANCE = 10**7


class Shard:
    """A shard of some segment: its record, its place in it, its bytes."""

    def __init__(self, size: int, seed: int, index: int = 1) -> None:
        self.data = random.Random(seed).randbytes(size)
        self.root = Hash(shard_tree.root(self.data))
        roots = tuple(bytes(self.root if i == index else keccak(b"%d %d" % (seed, i))) for i in range(3))
        self.record = SegmentRecord(version=1, k=2, n=3, shard_size=size, roots=roots)
        self.index = index
        self.entry = ShardEntry(record=self.record.hash(), index=index, root=self.root, size=size)

    def body(self) -> bytes:
        packed = self.record.to_bytes()
        return len(packed).to_bytes(4) + packed + self.data


class FakeContent:
    def __init__(self, data: bytes) -> None:
        self._data = data

    async def readexactly(self, size: int) -> bytes:
        import asyncio

        if len(self._data) < size:
            raise asyncio.IncompleteReadError(self._data, size)
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    async def iter_any(self) -> AsyncIterator[bytes]:
        while self._data:
            taken, self._data = self._data[:10_000], self._data[10_000:]
            yield taken


class FakeRequest:
    """As much of a request as the provider reads."""

    def __init__(self, method: str, path: str, match: dict[str, str], headers: dict[str, str], data: bytes) -> None:
        self.method, self.raw_path, self.match_info, self.headers = method, path, match, headers
        self.query = dict(parse_qsl(path.partition("?")[2]))
        self.content = FakeContent(data)
        self.content_length: int | None = len(data)

    def __getitem__(self, _: object) -> Share:
        """The room that a server keeps for every request."""
        return Share(Room(2**30), "")


class Provided:
    """A provider with two leases of one client, both covered by LOCK."""

    def __init__(self, directory: Path, disk: Disk | None = None, allowance: int = ALLOWANCE) -> None:
        self.directory = directory
        self.now = NOW
        self.guard = Guard(NODE.address, DOMAIN, lambda: self.now)
        self.database = Database(directory / "node.sqlite", MIGRATIONS)
        try:
            self.book = Book(self.database, DOMAIN)
            self.files = Blobs(directory / "blobs", allowance, disk)
            self.provider = StorageProvider(
                ProviderContext(
                    key=NODE,
                    domain=DOMAIN,
                    parameters=PARAMETERS,
                    leases=self.book,
                    files=self.files,
                    open_sql=lambda migrations: Database(directory / "storage.sqlite", migrations),
                    authenticate=self.guard.check_from,
                    find_fleet=no_fleets,
                    members_of=lambda _: (),
                    clock=lambda: self.now,
                    **NOTHING_ELSE,
                )
            )
        except BaseException:
            self.database.close()
            raise
        self.stream, self.voucher = make_lease(STREAM), make_lease(VOUCHER)
        self.id = self.stream.struct_hash()

    async def __aenter__(self) -> Provided:
        await self.provider.start()
        for lease in (self.stream, self.voucher):
            await self.book.sign(lease, self.now)
        await self.cover(LOCK)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self.provider.stop()
        self.database.close()

    async def cover(self, amount: int) -> None:
        locks = tuple(Lock(lease=lease.struct_hash(), amount=amount) for lease in (self.stream, self.voucher))
        await self.book.cover(Reservation(client=CLIENT.address, number=1, locks=locks, deadline=NOW))

    async def put(self, shard: Shard, **changes: Any) -> web.StreamResponse:
        return await self.provider._receiver.put(self.upload(shard, **changes))

    def upload(
        self,
        shard: Shard,
        *,
        signer: Key = CLIENT,
        domain: Domain = DOMAIN,
        lease: Hash | None = None,
        body: bytes | None = None,
        size: int | None = None,
        at: int = NOW,
        nonce: Hash | None = None,
    ) -> Any:
        lease = lease or self.id
        size = len(shard.data) if size is None else size
        path = f"/v1/storage/{lease}/shards/{shard.root}?index={shard.index}&size={size}"
        nonce = nonce or Hash(os.urandom(32))
        headers = authorize(signer, "PUT", path, shard.root, NODE.address, domain, at, nonce)
        match = {"lease": str(lease), "root": str(shard.root)}
        return FakeRequest("PUT", path, match, headers, shard.body() if body is None else body)

    def download(self, root: Hash, voucher: Voucher | None, signer: Key = CLIENT) -> Any:
        path = f"/v1/storage/{self.id}/shards/{root}"
        headers = authorize(signer, "GET", path, ZERO_HASH, NODE.address, DOMAIN, NOW, Hash(os.urandom(32)))
        if voucher is not None:
            headers["Freehold-Voucher"] = voucher.to_bytes().decode()
        return FakeRequest("GET", path, {"lease": str(self.id), "root": str(root)}, headers, b"")

    def pay(self, amount: int, signer: Key = CLIENT, lease: Hash | None = None) -> Voucher:
        lease = lease or self.voucher.struct_hash()
        return signed(Voucher(lease=lease, amount=amount), client_signature=signer)

    async def post(self, what: str, value: Any, signer: Key = CLIENT) -> Any:
        path = f"/v1/storage/{self.id}/{what}"
        body = json.dumps(value).encode()
        nonce = Hash(os.urandom(32))
        headers = authorize(signer, "POST", path, keccak(body), NODE.address, DOMAIN, self.now, nonce)
        request: Any = FakeRequest("POST", path, {"lease": str(self.id)}, headers, body)
        handler = self.provider._plan if what == "plan" else self.provider._accept
        response = await handler(request)
        assert isinstance(response.body, bytes)
        return json.loads(response.body)["data"]

    async def plan(self, add: Iterable[Shard] = (), remove: Iterable[int] = ()) -> tuple[Delta, dict[str, Any]]:
        """The client-signed delta and the body that it travels in; the node's steps are checked on the way."""
        change = {"add": [s.entry.to_json() for s in add], "remove": list(remove)}
        answer = await self.post("plan", change)
        before = Delta.from_json(answer["delta"]) if answer["delta"] else None
        steps = [Step.from_json(step) for step in answer["steps"]]
        root, count = apply_steps(before, [s.entry for s in add], change["remove"], steps)
        delta = Delta(
            lease=self.id,
            number=before.number + 1 if before else 1,
            root=Hash(root.hash + b"\x00"),
            count=count,
            size=root.sums[0],
        )
        delta = signed(delta, client_signature=CLIENT)
        return delta, {"delta": delta.to_json(), **change}

    async def change(self, add: Iterable[Shard] = (), remove: Iterable[int] = ()) -> Delta:
        """Upload, plan, sign, have signed."""
        add = list(add)
        for shard in add:
            await self.put(shard)
        _, body = await self.plan(add, remove)
        return Delta.from_json((await self.post("deltas", body))["delta"])

    async def commit(self, epoch: int, delta: Delta | None, **changes: Any) -> None:
        """As the node's epoch loop does it."""
        state = lease_state(self.stream, **changes)
        rows = [list_state(delta)] if delta else []
        await self.provider.commit(epoch, Table.of(ListState, rows), {state.lease: state})
        await self.book.commit(epoch, {state.lease: state}, ())

    def stored(self) -> set[str]:
        return set(self.files.list_keys())


def make_lease(mode: int, **changes: Any) -> Lease:
    fields: dict[str, Any] = {
        "client": CLIENT.address,
        "node": NODE.address,
        "service": "storage",
        "mode": mode,
        "price": PRICE,
        "number": 1,
        "deadline": NOW + 1000,
    }
    return signed(Lease(**(fields | changes)), client_signature=CLIENT, node_signature=NODE)


def lease_state(lease: Lease, **changes: Any) -> LeaseState:
    state = LeaseState(
        lease=lease.struct_hash(),
        client=lease.client,
        node=lease.node,
        service=lease.service,
        mode=lease.mode,
        price=lease.price,
        deadline=lease.deadline,
        settled=0,
        opened=1,
        lapsed=0,
        closed=0,
    )
    return msgspec.structs.replace(state, **changes)


def list_state(delta: Delta) -> ListState:
    return ListState(
        lease=delta.lease,
        node=NODE.address,
        number=delta.number,
        root=delta.root,
        count=delta.count,
        size=delta.size,
    )


def epoch_context(epoch: int, lease: Lease, delta: Delta, challenges: int = 8) -> Context:
    """What the judge and the node know of an epoch after which this delta is committed."""
    state = lease_state(lease)
    return Context(
        epoch=epoch,
        seconds=20,
        beacon=keccak(b"beacon" + epoch.to_bytes(8)),
        parameters=msgspec.structs.replace(PARAMETERS, challenges=challenges),
        domain=DOMAIN,
        leases={state.lease: state},
        state=Table.of(ListState, [list_state(delta)]),
    )


def tree_root(entries: Iterable[ShardEntry | None]) -> bytes:
    """The root of a list, the plain way."""
    from freehold.protocol.merkle import SumTree

    leaves = [entry.leaf() if entry else LISTS.empty for entry in entries]
    return SumTree(LISTS, leaves).root.hash
