"""Nodes, a compute client and objects in memory, for tests of jobs: real signatures, real receipts, no network.

A script is looked up by its text in `World.programs`; what it returns is what came out. Nodes lie, fall silent, refuse
and overbill as they are told.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec

from freehold.client.bucket_types import ObjectInfo
from freehold.client.errors import KeyNotFound
from freehold.client.jobs import Jobs
from freehold.client.jobs_spec import Job, Step
from freehold.client.paths import ObjectPath, parse_path
from freehold.protocol.errors import Conflict, NotFound, Refused, Unavailable
from freehold.protocol.keys import Key
from freehold.protocol.state import NodeRecord
from freehold.protocol.typed import Domain, keccak
from freehold.protocol.units import ONE, ZERO_HASH, Address, Hash
from freehold.services.compute.benchmarks import Benchmark
from freehold.services.compute.bidding import encode_properties
from freehold.services.compute.executors.wasm_terms import ENGINE
from freehold.services.compute.ordering.checks import Standing, WrongReceipt, most_cost
from freehold.services.compute.ordering.survey import Found, Offered
from freehold.services.compute.tasks import OutputFile, Result, Task, input_root
from freehold.services.compute.terms import NO_STEPS, Bid, Order, Receipt

DOMAIN = Domain(31337, Address(b"\x11" * 20))
CLIENT = Key(b"\x21" * 32)
PRICE = 3600 * 10**9 * 10  # ten base units a nanosecond: costs are whole numbers that are easy to add up
PARAMETERS: Any = SimpleNamespace(epoch_length=1, initial_price=ONE, wrong_result_slash=100 * ONE)
RUNNER = b"the interpreter"
NODE_PROPERTIES: dict[str, Any] = {
    "executor.wasm": True, "executor.wasm.engine": ENGINE, "cpu.cores": 8, "memory.bytes": 2**34, "disk.bytes": 2**36,
    "slots": 2, "speed.fuel": 10**9,
}  # fmt: skip


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Ran:
    """What a program is given."""

    arguments: tuple[str, ...]
    stdin: bytes
    inputs: dict[str, bytes]


@dataclass
class Came:
    """What a program leaves."""

    stdout: bytes = b""
    files: dict[str, bytes] = field(default_factory=dict)
    status: int = 0
    ended: str = "exited"
    measure: int = 1_000_000


class Crash(BaseException):
    """The client's process ends here."""


class FakeNode:
    """A node. `faults` are called with the order before it is run, and may raise."""

    def __init__(
        self, world: World, number: int, price: int, operator: Address | None = None, **properties: Any
    ) -> None:
        self.world = world
        self.key = Key(bytes([number]) * 32)
        self.address = self.key.address
        self.operator = operator or Key(bytes([100 + number]) * 32).address
        self.price = price
        self.properties = NODE_PROPERTIES | properties
        self.lease = keccak(b"lease" + self.address)
        self.blobs: dict[str, bytes] = {}
        self.jobs: dict[Hash, Standing] = {}
        self.tasks: dict[Hash, Task] = {}
        self.orders: list[Order] = []  # as they arrived, again and again
        self.ran: list[Hash] = []  # orders that were run
        self.stopped: list[Hash] = []
        self.access: list[Mapping[str, Any] | None] = []
        self.silent = False
        self.refuses = ""
        self.lies: Callable[[Came], Came] = lambda came: came
        self.overbills = False
        self.takes = 10**9  # nanoseconds, for any module
        self.gate: asyncio.Event | None = None  # work waits for it
        self.quotes: Callable[[Receipt], bytes] = lambda receipt: b""  # of its hardware, for a receipt

    async def _alive(self) -> None:
        await asyncio.sleep(0)
        if self.silent:
            raise Unavailable(f"{self.address} did not answer")

    async def submit(
        self, order: Order, task: Task, blobs: Mapping[str, Any], access: Mapping[str, Any] | None, wait: float
    ) -> Standing:
        await self._alive()
        self.orders.append(order)
        self.access.append(access)
        if self.refuses:
            raise Refused(self.refuses)
        job = order.struct_hash()
        if job not in self.jobs:
            for name, data in blobs.items():
                self.blobs[name] = data if isinstance(data, bytes) else data.read_bytes()
            named = [task.program, task.stdin, *(one.blob for one in task.inputs)]
            missing = [blob.sha256 for blob in named if blob is not None and blob.sha256 not in self.blobs]
            if missing:
                raise Conflict("blobs are missing", missing=missing)
            self.jobs[job] = Standing(job=job, phase="running")
            self.tasks[job] = task
        if self.gate is not None:
            try:
                async with asyncio.timeout(0.01):
                    await self.gate.wait()
            except TimeoutError:
                await self._alive()
                return self.jobs[job]
        await self._alive()
        if not self.jobs[job].is_over:
            self.finish(job, order, task)
        return self._checked(job, order)

    def finish(self, job: Hash, order: Order, task: Task) -> None:
        self.ran.append(job)
        came = self.lies(self.world.run(self, task))
        files = sorted(came.files.items())
        for data in (came.stdout, *came.files.values()):
            self.blobs[sha256(data)] = data
        self.world.wrote(task, came.files)
        result = Result(
            ended=came.ended, status=came.status,
            stdout=OutputFile(path="stdout", sha256=sha256(came.stdout), size=len(came.stdout)),
            files=tuple(OutputFile(path=path, sha256=sha256(data), size=len(data)) for path, data in files),
        )  # fmt: skip
        inputs = [(one.path, sha256(self.world.input(self, one))) for one in task.inputs]
        measure = min(came.measure, order.most)
        receipt = Receipt(
            node=self.address, lease=order.lease, number=order.number, task=order.task,
            most=order.most + (1 if self.overbills else 0), until=order.until, input=input_root(inputs),
            output=result.hash(), steps=NO_STEPS, measure=order.most + 1 if self.overbills else measure,
            client_signature=order.client_signature,
        )  # fmt: skip
        receipt = msgspec.structs.replace(receipt, node_signature=self.key.sign(receipt, DOMAIN))
        small = {sha256(data): data for data in (came.stdout, *came.files.values()) if len(data) < 1000}
        self.jobs[job] = Standing(
            job=job,
            phase="finished",
            receipt=receipt,
            result=result.encode().decode(),
            inline=small,
            quote=self.quotes(receipt) if task.attested else b"",
        )

    def _checked(self, job: Hash, order: Order) -> Standing:
        standing = self.jobs[job]
        if standing.receipt is not None and standing.receipt.order().struct_hash() != job:
            raise WrongReceipt("it shows a receipt for another order")
        return standing


class FakeSession:
    """What a client has of a node."""

    def __init__(self, node: FakeNode) -> None:
        self._node = node
        self.node, self.operator, self.lease, self.price = node.address, node.operator, node.lease, node.price
        self.leases = SimpleNamespace(endpoint=f"http://{node.address}")
        self.amount = 0
        self._tasks: dict[Hash, tuple[Order, Task]] = {}

    def order(self, task: Task, most: int, until: int) -> Order:
        self._node.world.step("sign")
        order = Order(lease=self.lease, number=secrets.randbits(64), task=task.hash(), most=most, until=until)
        return msgspec.structs.replace(order, client_signature=CLIENT.sign(order, DOMAIN))

    async def submit(
        self, order: Order, task: Task, blobs: Mapping[str, Any] = {}, access: Any = None, wait: float = 0
    ) -> Standing:
        self._node.world.step("send")
        self._node.world.charge(order, self.price)
        self._tasks[order.struct_hash()] = (order, task)
        standing = await self._node.submit(order, task, blobs, access, wait)
        self._node.world.step("answer")
        return standing

    async def wait(self, job: Hash, seconds: float, task: Task | None = None) -> Standing:
        await self._node._alive()
        if job not in self._node.jobs:
            raise NotFound("there is no such job")
        order, known = self._tasks.get(job, (None, None))
        if order is not None and known is not None and not self._node.jobs[job].is_over:
            return await self._node.submit(order, known, {}, None, seconds)
        return self._node.jobs[job]

    async def stop(self, job: Hash) -> Standing:
        await self._node._alive()
        if job not in self._node.jobs:
            raise NotFound("there is no such job")
        self._node.stopped.append(job)
        return self._node.jobs[job]

    async def fetch(self, job: Hash, name: str) -> bytes:
        await self._node._alive()
        return self._node.blobs[name]

    async def fetch_to(self, job: Hash, name: str, path: Path, size: int | None = None) -> None:
        path.write_bytes(await self.fetch(job, name))  # noqa: ASYNC240

    async def follow(self, job: Hash, live: bool = True) -> AsyncIterator[bytes]:
        yield b"said on standard error\n"


class World:
    """Nodes, the client before them, objects, and a clock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes: list[FakeNode] = []
        self.programs: dict[str, Callable[[Ran], Came]] = {}
        self.objects: dict[str, bytes] = {}
        self.checksums = True  # whether delivered objects say what they hash to
        self.buckets: set[str] = set()
        self.module: Callable[[bytes], bytes] = lambda stdin: stdin  # what every WebAssembly module does
        self.now = 1_000_000.0
        self.nanoseconds = 0  # of modules' runs
        self.epoch = 10
        self.disputes: list[tuple[Receipt, Receipt]] = []
        self.verdicts: dict[Hash, Any] = {}
        self.surveys: list[Any] = []
        self.builds = False  # whether the interpreter is built anew
        self.steps: list[str] = []
        self.crash_at = -1  # of `steps`, where the client's process ends
        self.signed: dict[Hash, int] = {}  # orders that left, and the most that each may cost
        runner = folder / "runner.wasm"
        folder.mkdir(parents=True, exist_ok=True)
        runner.write_bytes(RUNNER)
        self._runner = runner
        self._jobs: list[Jobs] = []

    def add(self, count: int = 1, price: int = PRICE, **properties: Any) -> list[FakeNode]:
        made = [FakeNode(self, len(self.nodes) + 1 + at, price, **properties) for at in range(count)]
        self.nodes += made
        return made

    def open(self) -> Jobs:
        """A client's process."""
        objects: Any = FakeObjects(self)
        jobs = Jobs(
            CLIENT.address, b"\x05" * 32, PARAMETERS, FakeClient(self), objects, None, self.folder / "jobs",  # type: ignore[arg-type]
            FakeTools(self, self._runner), lambda: self.now, patience=0.05,
        )  # fmt: skip
        self._jobs.append(jobs)
        return jobs

    def close(self) -> None:
        for jobs in self._jobs:
            jobs.close()

    def step(self, name: str) -> None:
        """The client is about to do something that a kill may come before."""
        if self.crash_at == len(self.steps):
            self.crash_at = -1
            raise Crash
        self.steps.append(name)

    def charge(self, order: Order, price: int) -> None:
        self.signed[order.struct_hash()] = most_cost(order.most, price)

    def input(self, node: FakeNode, one: Any) -> bytes:
        return node.blobs[one.blob.sha256] if one.blob is not None else self.objects[f"{one.bucket}/{one.key}"]

    def run(self, node: FakeNode, task: Task) -> Came:
        if task.program is None:
            return Came()
        stdin = node.blobs[task.stdin.sha256] if task.stdin is not None else b""
        if task.kind == "module":
            self.nanoseconds += node.takes
            return Came(self.module(stdin))
        text = node.blobs[task.program.sha256].decode()
        inputs = {one.path: self.input(node, one) for one in task.inputs}
        if "/in/" in text and "/out/" in text and text not in self.programs:  # the copy task of a delivery
            return Came(files={path: inputs[path] for path in task.arguments})
        program = self.programs.get(text, lambda ran: Came(" ".join(ran.arguments).encode() + ran.stdin))
        return program(Ran(task.arguments, stdin, inputs))

    def wrote(self, task: Task, files: Mapping[str, bytes]) -> None:
        if task.delivery is not None:
            for path, data in files.items():
                self.objects[f"{task.delivery.bucket}/{task.delivery.prefix}{path}"] = data

    @property
    def billed(self) -> int:
        """What all receipts that nodes have signed come to."""
        return sum(
            most_cost(standing.receipt.measure, node.price)
            for node in self.nodes for standing in node.jobs.values() if standing.receipt is not None
        )  # fmt: skip

    @property
    def runs(self) -> int:
        return sum(len(node.ran) for node in self.nodes)


class FakeTools:
    engine = ENGINE

    def __init__(self, world: World, runner: Path) -> None:
        self._world = world
        self._runner = runner
        self.tell: Callable[[str], None] = lambda _: None

    async def python_runner(self) -> Path:
        if self._world.builds:
            self.tell("building the interpreter")
            self.tell("")
        return self._runner

    async def compile_c(self, source: Path) -> Path:
        return source

    @asynccontextmanager
    async def rerunning(self) -> AsyncIterator[Callable[[Benchmark], Awaitable[bytes]]]:
        async def rerun(benchmark: Benchmark) -> bytes:
            assert benchmark.task.stdin is not None
            return self._world.module(benchmark.blobs[benchmark.task.stdin.sha256])

        yield rerun


class FakeObjects:
    """The account's objects."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def walk(self, path: ObjectPath | str) -> AsyncIterator[ObjectInfo]:
        where = parse_path(path) if isinstance(path, str) else path
        for name in sorted(self._world.objects):
            if name.startswith(f"{where.bucket}/{where.key}"):
                yield self._info(name)

    async def stat(self, path: ObjectPath | str) -> ObjectInfo:
        where = parse_path(path) if isinstance(path, str) else path
        name = f"{where.bucket}/{where.key}"
        if name not in self._world.objects:
            raise KeyNotFound(f"there is no {where}")
        return self._info(name)

    def _info(self, name: str) -> ObjectInfo:
        import base64

        bucket, _, key = name.partition("/")
        data = self._world.objects[name]
        sums = {"SHA256": base64.b64encode(hashlib.sha256(data).digest()).decode()} if self._world.checksums else {}
        etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
        return ObjectInfo(bucket, key, "null", True, False, len(data), 0, etag, checksums=sums)

    async def get(self, path: ObjectPath | str, local: Path) -> int:
        where = parse_path(path) if isinstance(path, str) else path
        return local.write_bytes(self._world.objects[f"{where.bucket}/{where.key}"])  # noqa: ASYNC240

    async def put(self, local: Path, path: ObjectPath | str) -> ObjectInfo:
        where = parse_path(path) if isinstance(path, str) else path
        self._world.objects[f"{where.bucket}/{where.key}"] = local.read_bytes()  # noqa: ASYNC240
        return self._info(f"{where.bucket}/{where.key}")

    async def mb(self, bucket: str) -> None:
        self._world.buckets.add(bucket)

    async def survey(self) -> Any:
        return SimpleNamespace(candidates=[SimpleNamespace(offer=SimpleNamespace(voucher_price=2**30))])


class FakeClient:
    """A compute client."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def survey(self, request: Any) -> Found:
        from freehold.services.compute.bidding import Load, NodeTerms, Pricing, judge_request, parse

        world, bids, refusals = self._world, [], {}
        world.surveys.append(request)
        for node in world.nodes:
            if node.silent:
                refusals[node.address] = "it did not answer"
                continue
            terms = NodeTerms(str(node.address), node.properties, parse(""), node.price, Pricing(), Load(2, 0, 0))
            answer = judge_request(request, terms)
            if answer.price is None:
                refusals[node.address] = "; ".join(answer.reasons)
                continue
            record = NodeRecord(
                node=node.address, operator=node.operator, payout=node.operator, endpoint="", bond=1000 * ONE
            )  # fmt: skip
            bid = Bid(
                node=node.address, client=CLIENT.address, request=ZERO_HASH, price=node.price,
                properties=encode_properties(node.properties), expiry=0,
            )  # fmt: skip
            facts = {"node": str(node.address), "operator": str(node.operator), "bond": 1000 * ONE}
            bids.append(Offered(record, bid, node.properties | facts))
        return Found(bids, refusals)

    async def sessions(self, wants: Sequence[tuple[Offered, int]]) -> Any:
        by_address = {node.address: node for node in self._world.nodes}
        ready, failures = [], {}
        for offered, _ in wants:
            node = by_address[offered.node]
            if node.silent:
                failures[node.address] = Unavailable("it did not answer")
            else:
                ready.append(FakeSession(node))
        return ready, failures

    async def session(self, offered: Offered, amount: int) -> Any:
        ready, failures = await self.sessions([(offered, amount)])
        if not ready:
            raise failures[offered.node]
        return ready[0]

    async def release(self) -> list[Hash]:
        return [node.lease for node in self._world.nodes if node.jobs]

    async def reopen(self, node: Address, lease: Hash) -> Any:
        return FakeSession(next(one for one in self._world.nodes if one.address == node))

    async def until(self, seconds: float) -> int:
        return self._world.epoch + 4 + int(seconds)

    async def dispute(self, first: Receipt, second: Receipt, kind: int, steps: Any = ()) -> Hash:
        self._world.disputes.append((first, second))
        return keccak(b"case")

    async def standings(self, node: Address, jobs: Any) -> Mapping[Hash, Any]:
        return {job: self._world.verdicts[job] for job in jobs if job in self._world.verdicts}


def script_job(text: str = "echo", **fields: Any) -> Job:
    """A job of one script."""
    of_job = {
        name: fields.pop(name)
        for name in ("most", "assurance", "deadline", "retries", "where", "name")
        if name in fields
    }
    return Job(steps=[Step(script=text, **fields)], **of_job)  # type: ignore[arg-type]
