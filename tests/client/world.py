"""A network in one process: members that certify whatever is sound, real nodes over real HTTP, and no chain.

The members share one memory and settle nothing but what a client sees of settlement: `advance` commits the locks and
leases that were certified, and opens the next epoch.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from freehold.client.account import Account, get_account_dir
from freehold.client.book import Book as ClientBook
from freehold.client.evidence import EvidenceFolder
from freehold.client.vault import Vault
from freehold.market.leases import Leases
from freehold.market.membership import Membership
from freehold.market.network import CONTRACTS, MemberRecord, Network
from freehold.market.quorum import Quorum
from freehold.market.vouchers import Vouchers
from freehold.net.auth import Guard
from freehold.net.client import Dial
from freehold.net.server import Server, make_app, ok, read_body, read_json, serve
from freehold.net.tls import Certificate as Identity
from freehold.net.tls import ensure_certificate
from freehold.node.api import Api
from freehold.node.book import MIGRATIONS, Book
from freehold.node.offers import Offers
from freehold.protocol.batches import CLOSE, LEASE, RESERVATION, Batch, decode_batch, encode_batch, kinds_of
from freehold.protocol.certificates import check_certificate
from freehold.protocol.errors import Conflict, InsufficientCredits, NotFound, Refused, Unavailable
from freehold.protocol.keys import Key
from freehold.protocol.messages import Acknowledgement, Certificate, Holding
from freehold.protocol.parameters import Parameters
from freehold.protocol.reservations import compute_commitment, locks_of, new_client
from freehold.protocol.state import ClientState, EpochState, LeaseState, LockState, NodeRecord, State
from freehold.protocol.typed import Domain
from freehold.protocol.units import ONE, Address, Hash
from freehold.protocol.verdicts import RESERVATION_GAP
from freehold.services.judging import JUDGES
from freehold.services.seam import Prices, ProviderContext
from freehold.services.storage.client import DAYS, Context, StorageClient
from freehold.services.storage.provider import StorageProvider
from freehold.services.storage.terms import DELTA, Delta
from freehold.store.blobs import Blobs
from freehold.store.sql import Database
from tests.services.contexts import NOTHING_ELSE
from tests.services.sensing_world import no_fleets

if TYPE_CHECKING:
    from freehold.client.sdk import Freehold

CHAIN_ID = 31337
ORACLE = Address("0x" + "0c" * 20)
DOMAIN = Domain(CHAIN_ID, ORACLE)
SEGMENT = 64 << 10
PRICE = ONE  # one credit a tebibyte and hour, one a tebibyte sent


def key(name: str, number: int = 0) -> Key:
    """A key of its own for each name and number."""
    return Key(name.encode().rjust(28, b"\x01") + (number + 1).to_bytes(4))


def parameters(**changes: int) -> Parameters:
    values = {
        "epoch_length": 20, "answering_window": 5, "finality_depth": 1, "challenges": 4, "tau": 100_000,
        "beta": 500_000, "initial_subsidy": ONE, "halving_epochs": 1000, "minimum_bond": ONE, "lapse_grace": 2,
        "wrong_result_slash": ONE // 10,
        "lock_release": 2, "segment_size": SEGMENT, "dispute_window": 5, "thaw_epochs": 2, "max_price_age": 86400,
        "initial_price": ONE, "member_share": 50_000, "coverage_share": 0, "device_bond": ONE, "freeze_lengths": 5,
        "answer_reports": 2, "claim_epochs": 4, "bundle_epochs": 100,
    }  # fmt: skip
    return Parameters(**(values | changes))


@dataclass
class Memory:
    """What all members remember."""

    epoch: int = 1
    credits: dict[Address, int] = field(default_factory=dict)
    batches: dict[Hash, Batch] = field(default_factory=dict)
    held: list[Hash] = field(default_factory=list)
    clients: dict[Address, ClientState] = field(default_factory=dict)
    leases: dict[Hash, LeaseState] = field(default_factory=dict)
    locks: dict[Address, dict[Hash, LockState]] = field(default_factory=dict)
    pending: dict[Address, int] = field(default_factory=dict)

    def deltas(self) -> list[Delta]:
        return [row for id in self.held if self.batches[id].header.kind == DELTA for row in self.batches[id].table]

    def state(self) -> State:
        clients = {
            a: ClientState(
                client=a, reservation=self.clients.get(a, new_client(a)).reservation, paid_in=credits,
                burned=credits, spent=0, released=0,
            )
            for a, credits in self.credits.items()
        }  # fmt: skip
        start = Hash(bytes(32))
        epoch = EpochState(epoch=self.epoch - 1, anchor_block=0, anchor_hash=start, anchor_time=0, reveals=start)
        return State(epoch, clients=clients, leases=self.leases, locks=self.locks)

    def check(self, batch: Batch) -> None:
        row = batch.table.rows[0]
        known = self.clients.get(row.client, new_client(row.client)).reservation
        last = self.pending.get(row.client, known)
        if batch.subject not in self.held and row.number != last + 1:
            kind = Refused if row.number <= last else Conflict
            raise kind(f"reservation {row.number} does not follow {last}", number=last, reason=RESERVATION_GAP)
        missing = compute_commitment(self.state(), row) - self.credits.get(row.client, 0)
        if missing > 0:
            raise InsufficientCredits("too few credits", missing=str(missing))

    def hold(self, subject: Hash) -> None:
        if subject in self.held:
            return
        self.held.append(subject)
        batch = self.batches[subject]
        if batch.header.kind == RESERVATION:
            self.pending[batch.table.rows[0].client] = batch.table.rows[0].number

    def advance(self) -> None:
        for subject in self.held:
            batch = self.batches[subject]
            for row in batch.table:
                if batch.header.kind == RESERVATION:
                    known = self.clients.get(row.client, new_client(row.client)).reservation
                    if row.number == known + 1:
                        self.locks[row.client] = locks_of(row, self.locks.get(row.client, {}), self.epoch)
                        self.clients[row.client] = ClientState(
                            client=row.client, reservation=row.number, paid_in=0, burned=0, spent=0, released=0
                        )
                elif batch.header.kind == LEASE and row.struct_hash() not in self.leases:
                    self.leases[row.struct_hash()] = LeaseState(
                        lease=row.struct_hash(), client=row.client, node=row.node, service=row.service, mode=row.mode,
                        price=row.price, deadline=row.deadline, settled=0, opened=self.epoch, lapsed=0, closed=0,
                    )  # fmt: skip
                elif batch.header.kind == CLOSE and row.lease in self.leases and not self.leases[row.lease].closed:
                    self.leases[row.lease] = msgspec.structs.replace(self.leases[row.lease], closed=self.epoch)
        self.pending.clear()
        self.epoch += 1


class Member:
    """One member's HTTP end over the common memory."""

    def __init__(self, own: Key, memory: Memory, members: list[Address]) -> None:
        self.key = own
        self.memory = memory
        self.members = members
        self.server: Server
        self.reserved: dict[tuple[Address, int], tuple[int, Hash]] = {}  # acknowledged: epoch and subject
        self.is_away = False  # answers nobody about batches

    async def start(self, tls: Identity | None) -> None:
        routes = [
            web.post("/v1/batches", self._batch),
            web.get("/v1/batches/{subject}", self._shown),
            web.post("/v1/certificates", self._certificate),
            web.get("/v1/status", self._status),
            web.get("/v1/state/{epoch}/clients/{client}", self._client),
        ]
        app = make_app(routes, ready=lambda: (True, ""), metrics=lambda: "", limit=20 << 20)
        self.server = await serve(app, "127.0.0.1", 0, tls=tls)

    def record(self) -> MemberRecord:
        return MemberRecord(self.key.address, self.key.public, self.server.url, self.server.fingerprint)

    async def _batch(self, request: web.Request) -> web.Response:
        batch = decode_batch(await read_body(request, 16 << 20), kinds_of(JUDGES), DOMAIN)
        if self.is_away:
            raise Unavailable("this member is away")
        if batch.header.kind == RESERVATION:
            self._reserve(batch)
        self.memory.batches[batch.subject] = batch
        return self._signed(Acknowledgement(epoch=self.memory.epoch, subject=batch.subject))

    def _reserve(self, batch: Batch) -> None:
        """As a real member (`oracle/gathering.py`): one reservation a number and epoch."""
        row, epoch = batch.table.rows[0], self.memory.epoch
        known_epoch, subject = self.reserved.get((row.client, row.number), (0, batch.subject))
        if known_epoch == epoch and subject != batch.subject:
            raise Conflict(
                f"another reservation {row.number} was acknowledged", number=row.number, epoch=epoch,
                subject=str(subject),
            )  # fmt: skip
        self.memory.check(batch)
        self.reserved[row.client, row.number] = epoch, batch.subject

    async def _shown(self, request: web.Request) -> web.Response:
        batch = self.memory.batches.get(Hash(request.match_info["subject"]))
        if batch is None:
            raise NotFound("no such batch here")
        return web.Response(body=encode_batch(batch))

    async def _certificate(self, request: web.Request) -> web.Response:
        certificate = Certificate.from_json(await read_json(request))
        check_certificate(certificate, self.members, DOMAIN)
        self.memory.hold(certificate.subject)
        return self._signed(Holding(epoch=self.memory.epoch, subject=certificate.subject))

    def _signed(self, message: Acknowledgement | Holding) -> web.Response:
        signature = self.key.sign(message, DOMAIN)
        return ok({"epoch": message.epoch, "subject": str(message.subject), "member": str(self.key.address),
                   "signature": str(signature)})  # fmt: skip

    async def _status(self, _: web.Request) -> web.Response:
        return ok(
            {
                "member": str(self.key.address),
                "epoch": self.memory.epoch,
                "last_report": {"epoch": str(self.memory.epoch - 1)},
            }
        )

    async def _client(self, request: web.Request) -> web.Response:
        if int(request.match_info["epoch"]) != self.memory.epoch - 1:
            raise NotFound("no such epoch here")
        client, state = Address(request.match_info["client"]), self.memory.state()
        rows: dict[str, list[Any]] = {
            "clients": [row for row in state.clients.values() if row.client == client],
            "leases": [row for row in state.leases.values() if row.client == client],
            "locks": list(state.locks.get(client, {}).values()),
        }
        return ok({"tables": [], "rows": {n: [{"row": r.to_json()} for r in listed] for n, listed in rows.items()}})


class Node:
    """A real node without epochs: book, provider, API. `server` can be stopped and started."""

    def __init__(self, number: int, folder: Path, members: list[Address], settings: dict[str, Any]) -> None:
        self.key = key("node", number)
        self.operator = key("operator", settings.get("operator", number)).address
        self.folder = folder
        self._members = members
        self._settings = settings
        self.server: Server | None = None
        self.url = ""
        self.claims: Hash | None = None  # the certificate that its offers name, where that is not its own
        self._port = 0

    async def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._database = Database(self.folder / "node.sqlite", MIGRATIONS)
        self.book = book = Book(self._database, DOMAIN)
        guard = Guard(self.key.address, DOMAIN, time.time)
        clock: Callable[[], int] = lambda: int(time.time())  # noqa: E731
        self.provider = StorageProvider(
            ProviderContext(
                key=self.key, domain=DOMAIN, parameters=self._settings["parameters"], leases=book,
                files=Blobs(self.folder / "blobs", self._settings.get("allowance", 1 << 30)),
                open_sql=lambda migrations: Database(self.folder / "storage.sqlite", migrations),
                authenticate=guard.check_from, find_fleet=no_fleets, clock=clock,
                members_of=lambda _: self._members, **NOTHING_ELSE,
)
        )  # fmt: skip
        await self.provider.start()
        providers = {"storage": self.provider}
        self.offers = offers = Offers(self.key, DOMAIN, "", {"storage": Prices(PRICE, PRICE)}, providers, clock)
        api = Api(self.key, DOMAIN, Membership(self._members).of, book, offers, providers, clock)
        routes = [*api.routes()]
        wrap = self._settings.get("wrap")
        app = make_app(routes, ready=lambda: (True, ""), metrics=lambda: "")
        if wrap is not None:
            app.middlewares.append(wrap(self))
        tls = ensure_certificate(self.folder / "tls") if self._settings.get("tls") else None
        self.server = await serve(app, "127.0.0.1", self._port, tls=tls)
        self.url = self.server.url
        self._port = int(self.url.rpartition(":")[2])
        offers.endpoint = self.url
        offers.fingerprint = self.server.fingerprint if self.claims is None else self.claims

    async def stop(self) -> None:
        if self.server is not None:
            await self.server.stop()
            await self.provider.stop()
            self._database.close()
            self.server = None

    def record(self) -> NodeRecord:
        return NodeRecord(
            node=self.key.address, operator=self.operator, payout=self.operator, endpoint=self.url, bond=ONE
        )

    def spoil(self) -> int:
        """Change a byte of every shard on the disk; how many there were."""
        files = [path for path in (self.folder / "blobs").rglob("*") if path.is_file() and path.stat().st_size > 100]
        for path in files:
            data = bytearray(path.read_bytes())
            data[50] ^= 1
            path.write_bytes(data)
        return len(files)


class World:
    """Everything; `client` opens the SDK as an account."""

    def __init__(
        self, folder: Path, network: Network, memory: Memory, members: list[Member], nodes: list[Node]
    ) -> None:
        self.folder = folder
        self.network = network
        self.memory = memory
        self.members = members
        self._nodes = nodes

    @property
    def node(self) -> list[Node]:
        return self._nodes

    async def nodes(self) -> list[NodeRecord]:
        return [node.record() for node in self._nodes]

    def account(self, number: int = 0, credits: int = 1000 * ONE) -> Account:
        account = Account.of_secret(key("client", number).secret)
        self.memory.credits.setdefault(account.address, credits)
        return account

    def client(self, number: int = 0, *, credits: int = 1000 * ONE, home: str = "home", **options: Any) -> Freehold:
        """An account's SDK. Heads are files that all devices share; `heads=None`: at the nodes, as everywhere else."""
        from freehold.client.heads import LocalHeads
        from freehold.client.sdk import Freehold  # whoever needs no SDK does not load it

        options.setdefault("heads", LocalHeads(self.folder / "heads"))
        return Freehold(self.network, self.account(number, credits), home=self.folder / home, directory=self, **options)

    @asynccontextmanager
    async def vault(
        self, number: int = 0, *, credits: int = 1000 * ONE, home: str = "home", days: int = DAYS
    ) -> AsyncIterator[Vault]:
        """An account's blobs, without what is built on them."""
        own, network = self.account(number, credits).key, self.network
        folder = get_account_dir(self.folder / home, network.domain, own.address)
        async with AsyncExitStack() as stack:
            book = ClientBook(folder)
            stack.callback(book.close)
            dial = await stack.enter_async_context(Dial(connections_per_peer=32))
            quorum = Quorum(dial, network.members, network.domain)
            vouchers = Vouchers(own, network.domain, book)
            leases = Leases(own, network.domain, network.parameters, quorum, dial, book, vouchers, time.time, "storage")
            storage = StorageClient(
                Context(
                    network=network, key=own, dial=dial, quorum=quorum, directory=self, leases=leases,
                    vouchers=vouchers, book=book, evidence=EvidenceFolder(folder / "evidence").keep, clock=time.time,
                    days=days,
                )
            )  # fmt: skip
            stack.push_async_callback(storage.close)
            yield Vault(storage, book)


@asynccontextmanager
async def world(folder: Path, nodes: int = 8, **settings: Any) -> AsyncIterator[World]:
    """A running world with 4 members.

    Settings: `parameters`, `allowance`, `operator`, `wrap` (a node's middleware), `tls` (whether all of them speak it).
    """
    settings.setdefault("parameters", parameters())
    async with AsyncExitStack() as stack:
        memory, keys = Memory(), [key("member", i) for i in range(4)]
        addresses = [k.address for k in keys]
        members = [Member(k, memory, addresses) for k in keys]
        certificate = ensure_certificate(folder / "tls") if settings.get("tls") else None
        for member in members:
            await member.start(certificate)
            stack.push_async_callback(member.server.stop)
        started = [Node(i, folder / f"node{i}", addresses, settings) for i in range(nodes)]
        for node in started:
            await node.start()
            stack.push_async_callback(node.stop)
        network = Network(
            name="test", chain_id=CHAIN_ID, rpc_url="http://127.0.0.1:1",
            contracts=dict.fromkeys(CONTRACTS, ORACLE), deployment_block=0, deployment_hash=Hash(bytes(32)),
            deployment_time=0,
            members=tuple(m.record() for m in members),
            parameters=settings["parameters"],
        )  # fmt: skip
        yield World(folder, network, memory, members, started)
