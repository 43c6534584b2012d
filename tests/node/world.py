"""A node in this process: its real book, provider and HTTP server, beside a quorum that settles with the real rules."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec

from freehold.market.leases import NodeLeases
from freehold.market.membership import Membership
from freehold.market.quorum import Held
from freehold.net.auth import Guard
from freehold.net.client import Dial, Peer
from freehold.net.server import make_app, serve
from freehold.node.api import Api
from freehold.node.book import MIGRATIONS, Book
from freehold.node.epochs import EpochLoop
from freehold.node.offers import Offers
from freehold.node.status import Status
from freehold.protocol.batches import Batch, encode_batch
from freehold.protocol.beacon import compute_beacon
from freehold.protocol.errors import FreeholdError
from freehold.protocol.merkle import row_proof
from freehold.protocol.messages import STREAM, VOUCHER, Holding, Lease, Voucher
from freehold.protocol.state import State
from freehold.protocol.units import Address, Hash
from freehold.services.seam import Prices, ProviderContext
from freehold.services.storage.client_node import StorageNode
from freehold.services.storage.provider import StorageProvider
from freehold.services.storage.terms import TIB
from freehold.store.blobs import Blobs
from freehold.store.sql import Database
from tests.protocol.world import ADDRESSES, DOMAIN, MEMBERS, PARAMETERS, World, certify, key
from tests.services.contexts import NOTHING_ELSE
from tests.services.sensing_world import no_fleets

CLIENT, NODE, STRANGER = key(1), key(11), key(77)
NOW = 2000  # the wall clock; the protocol world's chain time is near it
STREAM_PRICE, VOUCHER_PRICE = TIB * 10**12, TIB
LOCK = 10**22


class FakeQuorum:
    """Members that hold whatever they are sent, and settle it when told to."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.members, self.domain = ADDRESSES, DOMAIN
        self.membership = Membership(ADDRESSES)
        self.batches: list[Batch] = []
        self.failing: FreeholdError | None = None
        self.asked: list[str] = []

    @property
    def epoch(self) -> int:
        return self.world.state.epoch.epoch + 1

    async def certify(self, batch: Batch) -> Held:
        if self.failing is not None:
            raise self.failing
        self.batches.append(batch)
        return Held(certify(batch, self.epoch), self.epoch, {})

    def open(self) -> dict[str, Any]:
        report, anchor = self.world.report, self.world.anchor(self.epoch)
        signers = (MEMBERS[0], MEMBERS[2], MEMBERS[3])
        return {
            "epoch": self.epoch,
            "beacon": str(compute_beacon(anchor.beacon_hash, self.world.state.epoch.reveals)),
            "beacon_block": anchor.beacon_block,
            "report": report.to_json() if report else None,
            "signers": 0b1101 if report else 0,
            "signatures": "0x" + b"".join(m.sign(report, DOMAIN) for m in signers).hex() if report else "0x",
            "anchor_time": anchor.anchor_time,
            "parameters": anchor.parameters.to_json(),
            "membership": [one.to_json() for one in anchor.membership],
        }

    async def ask(self, path: str) -> list[tuple[Address, Any]]:
        assert path == "/v1/open"
        return [(member, self.open()) for member in self.members]

    async def agree(self, path: str) -> Any:
        self.asked.append(path)
        _, _, _, epoch, _, node = path.split("/")
        assert int(epoch) == self.world.state.epoch.epoch
        return rows_of(self.world.state, Address(node))

    def settle(self, *more: Batch) -> list[str]:
        """Settle what was certified; the verdicts' reasons."""
        self.world.settle([*self.batches, *more])
        self.batches = []
        return [verdict.reason for verdict in self.world.settlements[-1].verdicts]


def rows_of(state: State, node: Address) -> dict[str, Any]:
    """A member's answer about one node."""
    tables = state.tables()
    rows = {}
    for name, field in (
        ("leases", "node"),
        ("service.storage", "node"),
        ("operators", "node"),
        ("service.sensing", "device"),
    ):
        hashes = tables[name].row_hashes
        rows[name] = [
            {"row": row.to_json(), "index": i, "proof": [str(h) for h in row_proof(hashes, i)]}
            for i, row in enumerate(tables[name])
            if getattr(row, field) == node
        ]
    return {"tables": [root.to_json() for root in state.table_roots()], "rows": rows}


class Hosted:
    """A node that serves on a port of its own."""

    def __init__(self, directory: Path, allowance: int = 10**7) -> None:
        self.directory, self.allowance = directory, allowance
        self.now = NOW
        self.world = World((CLIENT,), (NODE,))
        self.world.buy(CLIENT, 10 * LOCK, LOCK)
        self.world.settle([])
        self.quorum = FakeQuorum(self.world)
        self.next_members: Sequence[Address] = ()
        self.next_epoch = 0
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Hosted:
        stack = self._stack
        self.dial = await stack.enter_async_context(Dial())
        database = Database(self.directory / "node.sqlite", MIGRATIONS)
        stack.callback(database.close)
        self.book = Book(database, DOMAIN)
        self.files = Blobs(self.directory / "storage", self.allowance)
        self.provider = StorageProvider(
            ProviderContext(
                key=NODE,
                domain=DOMAIN,
                parameters=PARAMETERS,
                leases=self.book,
                files=self.files,
                open_sql=lambda migrations: Database(self.directory / "storage.sqlite", migrations),
                authenticate=Guard(NODE.address, DOMAIN, lambda: self.now).check_from,
                members_of=self.members_of,
                find_fleet=no_fleets,
                clock=lambda: self.now,
                **NOTHING_ELSE,
            )
        )
        stack.push_async_callback(self.provider.stop)
        await self.provider.start()
        providers = {"storage": self.provider}
        offers = Offers(
            NODE, DOMAIN, "here", {"storage": Prices(STREAM_PRICE, VOUCHER_PRICE)}, providers, lambda: self.now
        )
        api = Api(NODE, DOMAIN, Membership(ADDRESSES).of, self.book, offers, providers, lambda: self.now)
        refresh: Any = lambda: self.quorum  # noqa: E731
        self.loop = EpochLoop(NODE, PARAMETERS, self.book, providers, refresh, lambda: self.now, 0.01)
        self.status = Status(NODE.address)
        self.status.watch(self.loop, providers)
        app = make_app(api.routes(), ready=self.status.ready, metrics=self.status.metrics)
        server = await serve(app, "127.0.0.1", 0)
        stack.push_async_callback(server.stop)
        offers.endpoint = server.url
        self.peer: Peer = self.dial.peer(server.url)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def members_of(self, epoch: int) -> Sequence[Address]:
        """The quorum's; what comes after them if a test says so."""
        return self.next_members if self.next_members and epoch >= self.next_epoch else ADDRESSES

    def lease(self, mode: int, **changes: Any) -> Lease:
        """A lease as the client signs it."""
        fields: dict[str, Any] = {
            "client": CLIENT.address,
            "node": NODE.address,
            "service": "storage",
            "mode": mode,
            "price": STREAM_PRICE if mode == STREAM else VOUCHER_PRICE,
            "number": 1,
            "deadline": NOW + 1000,
        }
        signer = changes.pop("signer", CLIENT)
        domain = changes.pop("domain", DOMAIN)
        lease = Lease(**(fields | changes))
        return msgspec.structs.replace(lease, client_signature=signer.sign(lease, domain))

    async def sign(self, lease: Lease) -> Lease:
        """The lease with the node's signature too."""
        return Lease.from_json((await self.peer.post_json("/v1/leases", {"lease": lease.to_json()}))["lease"])

    def reservation(self, locks: dict[Hash, int], number: int = 1, **changes: Any) -> dict[str, Any]:
        """What a client shows: a reservation, certified and held in the open epoch."""
        batch = self.world.reserve(CLIENT, number, locks)
        certificate = certify(batch, self.quorum.epoch)
        holding = Holding(epoch=certificate.epoch, subject=batch.subject)
        self.quorum.batches.append(batch)
        return {
            "batch": f"0x{encode_batch(batch).hex()}",
            "certificate": certificate.to_json(),
            "epoch": certificate.epoch,
            "holdings": [{"member": str(m.address), "signature": str(m.sign(holding, DOMAIN))} for m in MEMBERS[1:]],
        } | changes

    async def open(self, voucher_lock: int = LOCK) -> StorageNode:
        """Both leases, covered."""
        stream, voucher = [await self.sign(self.lease(mode)) for mode in (STREAM, VOUCHER)]
        locks = {stream.struct_hash(): LOCK, voucher.struct_hash(): voucher_lock}
        await self.peer.post_json("/v1/reservations", self.reservation(locks))
        leases = NodeLeases(NODE.address, self.peer.url, {STREAM: stream, VOUCHER: voucher})
        return StorageNode(leases, self.dial, CLIENT, DOMAIN, lambda: self.now)

    def pay(self, node: StorageNode, amount: int) -> Voucher:
        voucher = Voucher(lease=node.leases.voucher_id, amount=amount)
        return msgspec.structs.replace(voucher, client_signature=CLIENT.sign(voucher, DOMAIN))
