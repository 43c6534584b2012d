"""One compute provider under test: a real book, SQL, blobs and server, and executors that do as they are told."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from freehold.net.auth import Guard, authorize
from freehold.net.client import Dial, Peer
from freehold.net.server import Server, make_app, serve
from freehold.node.book import MIGRATIONS, Book
from freehold.protocol.errors import NotFound, Unavailable
from freehold.protocol.keys import Key
from freehold.protocol.messages import STREAM, Lease, Lock, Reservation
from freehold.protocol.service import Context
from freehold.protocol.state import LeaseState
from freehold.protocol.tables import Table
from freehold.protocol.typed import keccak
from freehold.protocol.units import ZERO_HASH, Address, Hash
from freehold.services.compute.executors.seam import Capability, Outcome, Work
from freehold.services.compute.provider import ComputeProvider
from freehold.services.compute.tasks import Blob, Resources, Task
from freehold.services.compute.terms import UNITS_PER_PRICE, Order, Receipt, WorkState
from freehold.services.seam import Prices, ProviderContext
from freehold.store.blobs import Blobs
from freehold.store.sql import Database
from tests.conftest import SLOW
from tests.protocol.world import DOMAIN, PARAMETERS, key, signed
from tests.services.sensing_world import no_fleets

NODE, OTHER, REFEREE, CLIENT, STRANGER = key(1), key(2), key(3), key(500), key(501)
NOW = 1_900_000_000
PRICE = UNITS_PER_PRICE  # one base unit for one unit of the measure
LOCK = 10**6
ENGINE = "fake-1"
PATIENCE = 20 * SLOW  # seconds until a test gives up

Behaviour = Callable[["FakeExecutor", Work], Any]


class FakeExecutor:
    """Runs what the program's first line names: see BEHAVIOURS. Counts its runs."""

    def __init__(self, name: str = "wasm") -> None:
        self.name = name
        self.runs: list[str] = []
        self.probes = 0
        self.works = True
        self.gates: dict[str, asyncio.Event] = {}
        self.stopped: dict[Path, asyncio.Event] = {}
        self.measures: dict[Path, int] = {}
        self.most_at_once = 0

    async def probe(self) -> Capability:
        self.probes += 1
        if not self.works:
            return Capability(False, "it was switched off", {})
        return Capability(True, "", {f"executor.{self.name}": True, f"executor.{self.name}.engine": ENGINE})

    def gate(self, name: str) -> asyncio.Event:
        return self.gates.setdefault(name, asyncio.Event())

    async def run(self, work: Work) -> Outcome:
        assert work.program is not None
        words = work.program.read_text().split()
        self.runs.append(" ".join(words))
        stop = self.stopped[work.folder] = asyncio.Event()
        self.measures[work.folder] = 0
        self.most_at_once = max(self.most_at_once, len(self.stopped))
        try:
            return await BEHAVIOURS[words[0]](self, work, words[1:], stop)
        finally:
            del self.stopped[work.folder]

    def measure(self, folder: Path) -> int:
        return self.measures.get(folder, 0)

    def end(self, folder: Path) -> None:
        if folder in self.stopped:
            self.stopped[folder].set()

    async def stop(self) -> None:
        for event in self.stopped.values():
            event.set()


async def _echo(_: FakeExecutor, work: Work, words: list[str], __: asyncio.Event) -> Outcome:
    stdin = work.stdin.read_bytes() if work.stdin else b""
    work.log(b"echoing\n")
    return Outcome("exited", 0, stdin + " ".join(words).encode(), 7)


async def _write(_: FakeExecutor, work: Work, words: list[str], __: asyncio.Event) -> Outcome:
    """write PATH SIZE ...: files of so many bytes."""
    for path, size in zip(words[::2], words[1::2], strict=True):
        target = work.folder / "out" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path[:1].encode() * int(size))
    return Outcome("exited", 0, b"written", 5)


async def _read(_: FakeExecutor, work: Work, words: list[str], __: asyncio.Event) -> Outcome:
    found = [(work.folder / "in" / path).read_bytes() for path in words]
    return Outcome("exited", 0, b"|".join(found), 3)


async def _steps(_: FakeExecutor, work: Work, words: list[str], __: asyncio.Event) -> Outcome:
    """Each step appends a letter to the state."""
    state = work.stdin.read_bytes() if work.stdin else b""
    states = []
    for _step in range(work.task.steps):
        state += words[0].encode()
        states.append(state)
    return Outcome("exited", 0, state, work.task.steps, states=tuple(states))


async def _wait(executor: FakeExecutor, work: Work, words: list[str], stop: asyncio.Event) -> Outcome:
    """wait GATE MEASURE: until the gate opens or it is stopped."""
    work.log(b"waiting\n")
    executor.measures[work.folder] = int(words[1])
    waiting = [asyncio.ensure_future(executor.gate(words[0]).wait()), asyncio.ensure_future(stop.wait())]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in waiting:
            one.cancel()
    ended = "stopped" if stop.is_set() else "exited"
    return Outcome(ended, 0, b"waited", int(words[1]), "it was stopped" if ended == "stopped" else "")


async def _end(_: FakeExecutor, __: Work, words: list[str], ___: asyncio.Event) -> Outcome:
    """end HOW STATUS MEASURE."""
    return Outcome(words[0], int(words[1]), b"", int(words[2]), "because")


async def _fail(executor: FakeExecutor, _: Work, words: list[str], __: asyncio.Event) -> Outcome:
    """fail TIMES: the executor itself, so many times."""
    if len(executor.runs) <= int(words[0]):
        raise Unavailable("its engine is gone")
    return Outcome("exited", 0, b"recovered", 1)


BEHAVIOURS: Mapping[str, Any] = {
    "echo": _echo, "write": _write, "read": _read, "steps": _steps, "wait": _wait, "end": _end, "fail": _fail,
}  # fmt: skip


@dataclass
class Contents:
    """The bytes that tasks name, by SHA-256."""

    bodies: dict[str, bytes] = field(default_factory=dict)

    def add(self, body: bytes) -> Blob:
        name = hashlib.sha256(body).hexdigest()
        self.bodies[name] = body
        return Blob(name, len(body))


class World:
    """A provider behind a server, with one covered lease of CLIENT."""

    def __init__(self, directory: Path, **changes: Any) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self.now = NOW
        self.node: Key = changes.pop("node", NODE)
        self.settings: dict[str, Any] = {"benchmark": False, "executors": ["wasm"], "slots": 2} | changes.pop(
            "settings", {}
        )
        self.allowance: int = changes.pop("allowance", 10**8)
        self.executors: list[Any] = changes.pop("executors", None) or [FakeExecutor()]
        self.peers: dict[Address, World] = changes.pop("peers", {})
        self.make: Any = changes.pop("make", lambda _settings, _folder: self.executors)
        assert not changes
        self.contents = Contents()
        self.lease = make_lease(self.node)
        self.id = self.lease.struct_hash()
        self.number = 0
        self.server: Server
        self.provider: ComputeProvider
        self.book: Book
        self._dial = Dial()
        self._database: Database

    @property
    def executor(self) -> FakeExecutor:
        executor: FakeExecutor = self.executors[0]
        return executor

    async def __aenter__(self) -> World:
        await self._dial.__aenter__()
        await self.start()
        await self.book.sign(self.lease, self.now)
        await self.cover(LOCK)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        await self._dial.__aexit__(None, None, None)

    async def start(self) -> None:
        self._database = Database(self.directory / "node.sqlite", MIGRATIONS)
        self.book = Book(self._database, DOMAIN)
        self.files = Blobs(self.directory / "blobs", self.allowance)
        folder = self.directory / "run"
        folder.mkdir(exist_ok=True)
        guard = Guard(self.node.address, DOMAIN, lambda: self.now)
        self.provider = ComputeProvider(
            ProviderContext(
                key=self.node,
                domain=DOMAIN,
                parameters=PARAMETERS,
                leases=self.book,
                files=self.files,
                open_sql=lambda migrations: Database(self.directory / "compute.sqlite", migrations),
                authenticate=guard.check_from,
                find_fleet=no_fleets,
                members_of=lambda _: (),
                clock=lambda: self.now,
                settings=self.settings,
                prices=Prices(PRICE, 0),
                place="here",
                folder=str(folder),
                find_peer=self.find_peer,
            ),
            self.make,
        )
        await self.provider.start()
        app = make_app(self.provider.routes(), ready=lambda: (True, ""), metrics=lambda: "")
        self.server = await serve(app, "127.0.0.1", 0)

    async def stop(self) -> None:
        await self.server.stop()
        await self.provider.stop()
        self._database.close()

    async def kill(self) -> None:
        """As `kill -9` leaves it: nothing is finished, nothing is told."""
        await self.server.stop()
        desk = self.provider._desk
        desk.queue.close()
        for task in [*desk._tasks.values(), *self.provider._referee._tasks.values()]:
            task.cancel()
        await asyncio.gather(*desk._tasks.values(), return_exceptions=True)
        await self.provider._executors.stop()
        self.provider._sql.close()
        self._database.close()

    async def restart(self) -> None:
        await self.kill()
        self.executors = [FakeExecutor(one.name) if isinstance(one, FakeExecutor) else one for one in self.executors]
        await self.start()

    async def find_peer(self, node: Address) -> Peer:
        if node not in self.peers:
            raise NotFound(f"{node} is not registered")
        return self._dial.peer(self.peers[node].server.url)

    async def cover(self, amount: int) -> None:
        lock = Lock(lease=self.id, amount=amount)
        await self.book.cover(Reservation(client=CLIENT.address, number=1, locks=(lock,), deadline=NOW))

    # What a client does

    def task(self, program: str, **changes: Any) -> Task:
        fields: dict[str, Any] = {
            "executor": "wasm", "kind": "module", "engine": ENGINE, "program": self.contents.add(program.encode()),
            "resources": Resources(memory=2**20, disk=2**22, seconds=60),
        }  # fmt: skip
        return Task(**(fields | changes))

    def order(self, task: Task, most: int = 100, until: int = 10, signer: Key = CLIENT, **changes: Any) -> Order:
        self.number += 1
        fields = {"lease": self.id, "number": self.number, "task": task.hash(), "most": most, "until": until}
        return signed(Order(**(fields | changes)), client_signature=signer)

    async def call(
        self, method: str, path: str, value: Any = None, signer: Key = CLIENT, base: str | None = None
    ) -> Any:
        path = (f"/v1/compute/{self.id}" if base is None else base) + path
        body = b"" if value is None else msgspec.json.encode(value)
        headers = authorize(
            signer, method, path, keccak(body) if value is not None else ZERO_HASH,
            self.node.address, DOMAIN, self.now, Hash(os.urandom(32)),
        )  # fmt: skip
        peer = self._dial.peer(self.server.url)
        async with asyncio.timeout(PATIENCE):
            return await peer.call(method, path, headers=headers, data=body or None, limit=2**26)

    async def bare(self, method: str, path: str, headers: Mapping[str, str] | None = None, data: Any = None) -> Any:
        """A request that nobody has signed: status, headers and body."""
        async with self._dial.peer(self.server.url).request(method, path, headers=headers, data=data) as response:
            return response.status, response.headers, await response.read()

    async def put(self, body: bytes, signer: Key = CLIENT, name: str = "") -> int:
        name = name or hashlib.sha256(body).hexdigest()
        async with self.raw("PUT", f"/blobs/{name}", body, signer) as response:
            return response.status

    @asynccontextmanager
    async def raw(self, method: str, path: str, data: Any = None, signer: Key = CLIENT) -> AsyncIterator[Any]:
        path = f"/v1/compute/{self.id}{path}"
        nonce = Hash(os.urandom(32))
        headers = authorize(signer, method, path, ZERO_HASH, self.node.address, DOMAIN, self.now, nonce)
        async with self._dial.peer(self.server.url).request(method, path, headers=headers, data=data) as response:
            yield response

    async def get(self, path: str, signer: Key = CLIENT) -> bytes:
        async with self.raw("GET", path, signer=signer) as response:
            data: bytes = await response.read()
            return data

    def body(self, order: Order, task: Task, **changes: Any) -> dict[str, Any]:
        """What POST orders has, with all blobs that the task names."""
        named = [task.program, task.stdin, *(one.blob for one in task.inputs)]
        blobs = {
            one.sha256: base64.b64encode(self.contents.bodies[one.sha256]).decode()
            for one in named
            if one is not None and one.sha256 in self.contents.bodies
        }
        fields = {"order": order.to_json(), "task": task.encode().decode(), "blobs": blobs, "wait": 20}
        return {name: value for name, value in (fields | changes).items() if value is not None}

    async def submit(self, task: Task, **changes: Any) -> dict[str, Any]:
        """Order it, and wait until it has ended."""
        order = changes.pop("order", None) or self.order(task, changes.pop("most", 100), changes.pop("until", 10))
        answer: dict[str, Any] = await self.call("POST", "/orders", self.body(order, task, **changes))
        return answer

    async def wait(self, job: str) -> dict[str, Any]:
        answer: dict[str, Any] = await self.call("GET", f"/orders/{job}?wait=20")
        return answer

    # What the epochs do

    def context(self, epoch: int, rows: list[WorkState]) -> Context:
        return Context(
            epoch=epoch, seconds=20, beacon=keccak(b"beacon" + epoch.to_bytes(8)), parameters=PARAMETERS, domain=DOMAIN,
            leases={}, state=Table.of(WorkState, rows),
        )  # fmt: skip

    async def commit(self, epoch: int, rows: list[WorkState], settled: int = 0) -> None:
        state = lease_state(self.lease, settled=settled)
        await self.provider.commit(epoch, Table.of(WorkState, rows), {state.lease: state})
        await self.book.commit(epoch, {state.lease: state}, ())


def make_lease(node: Key, **changes: Any) -> Lease:
    fields: dict[str, Any] = {
        "client": CLIENT.address, "node": node.address, "service": "compute", "mode": STREAM, "price": PRICE,
        "number": 1, "deadline": NOW + 1000,
    }  # fmt: skip
    return signed(Lease(**(fields | changes)), client_signature=CLIENT, node_signature=node)


def lease_state(lease: Lease, **changes: Any) -> LeaseState:
    names = ("client", "node", "service", "mode", "price", "deadline")
    fields = {name: getattr(lease, name) for name in names}
    state = LeaseState(lease=lease.struct_hash(), settled=0, opened=1, lapsed=0, closed=0, **fields)
    return msgspec.structs.replace(state, **changes)


def receipt_of(standing: Mapping[str, Any]) -> Receipt:
    return Receipt.from_json(standing["receipt"])


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop go on until the condition holds."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)
