"""One node as a client of compute sees it, under one lease: push blobs, order, wait, read the log, stop, fetch.

An order is signed once and kept by the caller; sent twice, it is one job. So an answer that was lost is asked for
again, and nothing is ever ordered anew here. What the lease's lock still covers is counted as orders go out and
receipts come in:

    free = lock - used - most of what runs        used: settled, or owed for receipts

Credits for one more order are there before it is sent; once few are left, more are locked in the background.

Invariant: a standing that a method returns was checked (`client_checks.py`), and the receipt in it is kept durably.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import secrets
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import aiohttp
import msgspec

from freehold.market.leases import NodeLeases
from freehold.net.auth import authorize
from freehold.net.client import JSON_HEADERS, Dial
from freehold.protocol.errors import (
    Conflict,
    Corrupt,
    FreeholdError,
    InsufficientCredits,
    MalformedMessage,
    NotFound,
    Overloaded,
    Refused,
    Unavailable,
    WrongCertificate,
)
from freehold.protocol.keys import Key
from freehold.protocol.typed import Domain, canonical_json, keccak
from freehold.protocol.units import ZERO_HASH, Address, Hash
from freehold.services.compute.client_blobs import BLOB_LIMIT, Arrival, Source, pieces_of, size_of
from freehold.services.compute.client_checks import (
    KeptReceipt,
    Parties,
    Standing,
    WrongReceipt,
    check_standing,
    most_cost,
    parse_standing,
)
from freehold.services.compute.tasks import Task
from freehold.services.compute.terms import Order

INLINE_BLOB, INLINE_LIMIT = 64 * 2**10, 1 << 20  # bytes of a blob that goes along with its order, and of all of them
ANSWER_LIMIT = 16 * 2**20  # bytes of a standing with 4,096 files; its steps come on top
STEP_JSON = 72  # bytes of a state's hash in it
LONGEST_WAIT = 30  # seconds of one long poll: connections that are silent for longer are given up
GRACE_SECONDS = 10.0  # for an answer, beyond what was to be waited for
PAUSES = (0.1, 0.4, 1.0)  # seconds, before an answer that was lost is asked for again
ROUNDS = 4  # of sending an order, and then what its node misses for it: blobs, credits
PUSHES = 4  # blobs on their way to a node at once
POLLS = 24  # jobs of a lease that are waited for at once, each by a connection of its own (a `Dial` has so many)
KNOWN_LIMIT = 65536  # blobs that a node is known to have, and jobs that are known to be over
LOG_END, LOG_START = "Freehold-Log-End", "Freehold-Log-Start"
LOG_LIMIT = 2 * 2**20


class ReceiptBook(Protocol):
    """Where receipts are kept. Writes are durable when they return."""

    async def keep_receipt(self, kept: KeptReceipt) -> None:
        """Keep one; a job that has one already keeps that."""

    async def receipts(self, jobs: Collection[Hash] | None = None) -> list[KeptReceipt]:
        """Those of these jobs that are there, or all."""

    async def forget_receipts(self, epoch: int) -> None:
        """Drop those whose orders ran out before this epoch."""


@dataclass
class Funds:
    """What a lease's lock (credits, for its whole life) still covers."""

    lock: int = 0
    used: int = 0
    running: dict[Hash, int] = field(default_factory=dict)  # by job: the most that it may cost
    over: dict[Hash, None] = field(default_factory=dict)  # jobs whose cost is in `used`: the newest of them

    @property
    def taken(self) -> int:
        """What is settled, owed, or may come to be owed."""
        return self.used + sum(self.running.values())

    @property
    def free(self) -> int:
        """What one more order may cost."""
        return max(0, self.lock - self.taken)

    def settle(self, job: Hash, cost: int) -> None:
        """A job is over."""
        if self.running.pop(job, None) is not None:
            self.used += cost
            self.over[job] = None
            if len(self.over) > KNOWN_LIMIT:
                del self.over[next(iter(self.over))]

    def learn(self, used: int) -> None:
        """What the node counts, with the most of what runs. Where orders of this process run, some of them may be in it
        and some not yet: then it is only ever more than what is known here."""
        if not self.running:
            self.used = used
        else:
            self.used = max(self.used, used - sum(self.running.values()))


class Means(NamedTuple):
    """What all nodes of a client share. `cover` locks credits for so much more at a node, `spare` does in time."""

    key: Key
    domain: Domain
    dial: Dial
    clock: Callable[[], float]
    book: ReceiptBook
    cover: Callable[[ComputeNode, int], Awaitable[None]]
    spare: Callable[[ComputeNode], None]


class ComputeNode:
    """A node under a lease of this client. Every method raises Unavailable, Refused or what the node answered; whoever
    waits may be cancelled at any time: the job goes on."""

    def __init__(self, leases: NodeLeases, operator: Address, means: Means) -> None:
        self.leases = leases
        self.node = leases.node
        self.operator = operator
        self.lease = leases.stream_id
        self.price = leases.stream.price
        self.funds = Funds()
        self.amount = 0  # credits that whoever asked for this session wants to have at hand
        self.is_stale = False  # it answered in a way that a new session may mend
        self._means = means
        self._peer = leases.peer(means.dial, means.domain, means.clock)
        self._parties = Parties(means.key.address, self.node, means.domain)
        self._base = f"/v1/compute/{self.lease}"
        self._known: dict[str, None] = {}
        self._tasks: dict[Hash, Task] = {}  # of the jobs under way that this process has ordered
        self._pushing = asyncio.Semaphore(PUSHES)
        self._polling = asyncio.Semaphore(POLLS)

    def __repr__(self) -> str:
        return f"ComputeNode({self.node} at {self.leases.endpoint})"

    @property
    def free(self) -> int:
        """Credits that its lock still covers."""
        return self.funds.free

    # Orders

    def order(self, task: Task, most: int, until: int) -> Order:
        """A signed order with a number of its own: keep it before it is sent. Nothing is sent here."""
        order = Order(lease=self.lease, number=secrets.randbits(64), task=task.hash(), most=most, until=until)
        return msgspec.structs.replace(order, client_signature=self._means.key.sign(order, self._means.domain))

    async def submit(
        self,
        order: Order,
        task: Task,
        blobs: Mapping[str, Source] = {},
        access: Mapping[str, Any] | None = None,
        wait: float = 0,
    ) -> Standing:
        """Send an order, and wait for so many seconds at most; sent again, it is the same job.

        `blobs` are contents that the task names, by SHA-256: small ones go along, others where the node misses them.
        Conflict with `missing` where it misses what is not among them. InsufficientCredits where no more can be locked.
        Unavailable where nobody knows whether it arrived: send it again, or ask with `wait`.
        """
        job = order.struct_hash()
        if job not in self.funds.running and job not in self.funds.over:
            await self._reserve(job, most_cost(order.most, self.price))
        self._tasks[job] = task
        try:
            if wait <= 0 or self._polling.locked():
                standing = await self._send(job, order, task, blobs, access, 0)
            else:
                async with self._polling:
                    standing = await self._send(job, order, task, blobs, access, wait)
        except Unavailable:
            raise  # it may run, and be paid
        except FreeholdError:
            self.funds.running.pop(job, None)
            self._tasks.pop(job, None)
            raise
        return await self._take(standing, job, task)

    async def _reserve(self, job: Hash, cost: int) -> None:
        """Count an order before it is sent, and see to it that the lock covers it, with all others."""
        self.funds.running[job] = cost
        if self.funds.taken > self.funds.lock:
            try:
                await self._means.cover(self, 0)
            except BaseException:
                del self.funds.running[job]
                raise
        if self.funds.free < self.amount // 2:
            self._means.spare(self)

    async def _send(
        self,
        job: Hash,
        order: Order,
        task: Task,
        blobs: Mapping[str, Source],
        access: Mapping[str, Any] | None,
        wait: float,
    ) -> Standing:
        for round in range(ROUNDS):
            inline = self._choose_inline(blobs)
            body: dict[str, Any] = {"order": order.to_json(), "task": task.encode().decode(), "wait": _seconds(wait)}
            if inline:
                body["blobs"] = {name: b64encode(data).decode() for name, data in inline.items()}
            if access is not None:
                body["access"] = dict(access)
            try:
                standing = await self._post_order(
                    job, canonical_json(body), wait, ANSWER_LIMIT + STEP_JSON * task.steps
                )
            except Conflict as error:
                if round == ROUNDS - 1:
                    raise
                await self._push_missing(error, blobs)
            except InsufficientCredits as error:  # another device has ordered under this lease
                if round == ROUNDS - 1:
                    self.is_stale = True
                    raise Refused(f"{self._peer.url} asks for ever more: {error.message}", job=str(job)) from None
                await self._lock_more(error)
            except Overloaded:
                raise
            except Refused:
                self.is_stale = True
                raise
            else:
                self._remember(inline)
                return standing
        raise AssertionError("the last round returns or raises")

    async def _push_missing(self, error: Conflict, blobs: Mapping[str, Source]) -> None:
        missing = error.details.get("missing")
        if not isinstance(missing, list) or not all(isinstance(name, str) for name in missing):
            raise error
        for name in missing:
            self._known.pop(name, None)
        if not missing or any(name not in blobs for name in missing):
            raise error
        await self._push_all({name: blobs[name] for name in missing})

    async def _lock_more(self, error: InsufficientCredits) -> None:
        missing = error.details.get("missing")
        if not isinstance(missing, str) or not missing.isdecimal() or len(missing) > 30:
            raise error
        self.funds.used += int(missing)
        await self._means.cover(self, 0)

    async def _post_order(self, job: Hash, body: bytes, wait: float, limit: int) -> Standing:
        """Until there is an answer; Unavailable where there is none."""
        path = f"{self._base}/orders"
        failure: Unavailable | None = None
        for pause in (0.0, *PAUSES):
            await asyncio.sleep(pause)
            try:
                if failure is not None:  # did it arrive?
                    with suppress(NotFound):
                        return await self._ask(job, wait, limit)
                async with self._patience(wait):
                    signed = self._sign("POST", path, keccak(body))
                    answer = await self._peer.call("POST", path, headers=JSON_HEADERS | signed, data=body, limit=limit)
                return parse_standing(answer)
            except WrongCertificate:
                raise
            except Unavailable as error:
                failure = error
        assert failure is not None
        failure.details["job"] = str(job)
        raise failure

    async def wait(self, job: Hash, seconds: float, task: Task | None = None) -> Standing:
        """How a job stands, once it is over or after so many seconds: one request of LONGEST_WAIT at most.

        `task`: of a job that this process has not ordered, so that its receipt's inputs and steps are checked too.
        """
        task = task or self._tasks.get(job)
        limit = ANSWER_LIMIT + STEP_JSON * (task.steps if task else 0)
        clock = asyncio.get_running_loop().time
        until = clock() + min(seconds, LONGEST_WAIT)
        is_turn = await self._await_turn(until - clock())
        try:
            standing = await self._ask(job, until - clock() if is_turn else 0, limit)
        finally:
            if is_turn:
                self._polling.release()
        return await self._take(standing, job, task)

    async def _await_turn(self, seconds: float) -> bool:
        """Whether this one may hold a connection for as long as it waits; the next it then lets in."""
        if seconds <= 0:
            return False
        try:
            async with asyncio.timeout(seconds):
                await self._polling.acquire()
        except TimeoutError:
            return False
        return True

    async def _ask(self, job: Hash, seconds: float, limit: int) -> Standing:
        path = f"{self._base}/orders/{job}?wait={_seconds(seconds)}"
        async with self._patience(seconds):
            return parse_standing(await self._call("GET", path, limit))

    async def stop(self, job: Hash) -> Standing:
        """End a job; what it took so far is billed."""
        task = self._tasks.get(job)
        limit = ANSWER_LIMIT + STEP_JSON * (task.steps if task else 0)
        async with self._patience(0):
            answer = await self._call("DELETE", f"{self._base}/orders/{job}", limit)
        return await self._take(parse_standing(answer), job, task)

    async def jobs(self) -> list[Standing]:
        """The jobs of this lease that the node knows, oldest first, without what came of them; unchecked."""
        found: list[Standing] = []
        while True:
            after = f"?after={found[-1].job}" if found else ""
            async with self._patience(0):
                answer = await self._call("GET", f"{self._base}/orders{after}", ANSWER_LIMIT)
            try:
                page = [parse_standing(value) for value in answer["jobs"]]
            except (KeyError, TypeError):
                raise MalformedMessage(f"{self._peer.url} answered with something else than jobs") from None
            known = {standing.job for standing in found}
            fresh = [standing for standing in page if standing.job not in known]
            if not fresh:
                return found
            found += fresh

    async def _take(self, standing: Standing, job: Hash, task: Task | None) -> Standing:
        """Check what a node says, keep its receipt, and count its cost."""
        try:
            check_standing(standing, job, self._parties, task)
        except WrongReceipt:
            self.funds.settle(job, self.funds.running.get(job, 0))  # it may come to be paid
            self.is_stale = True
            raise
        if standing.is_over:
            receipt = standing.receipt
            if receipt is None:
                self.funds.settle(job, 0)
                self._tasks.pop(job, None)
                why = standing.reason or "it does not say why"
                raise Refused(f"{self._peer.url} gave up: {why}", job=str(job), node=str(self.node))
            assert standing.result is not None  # check_standing has seen to it
            kept = KeptReceipt(receipt, self.price, standing.result.encode(), standing.steps)
            await self._means.book.keep_receipt(kept)
            self.funds.settle(job, most_cost(receipt.measure, self.price))
            self._tasks.pop(job, None)
        return standing

    # Logs

    async def log(self, job: Hash, after: int = 0, wait: float = 0) -> tuple[bytes, bool]:
        """A job's log from byte `after` on, once there is more of it or after `wait` seconds; whether it has ended."""
        page = await self._read_log(job, after, wait)
        return page.data, page.is_end

    async def follow(self, job: Hash, after: int = 0) -> AsyncGenerator[bytes, None]:
        """A job's log as it grows, until it ends; what the node keeps no longer is passed over."""
        while True:
            page = await self._read_log(job, after, LONGEST_WAIT)
            after = page.start + len(page.data)
            if page.data:
                yield page.data
            if page.is_end:
                return
            if not page.data:
                await asyncio.sleep(PAUSES[0])  # whatever the node thinks of waiting

    async def _read_log(self, job: Hash, after: int, wait: float) -> _LogPage:
        path = f"{self._base}/orders/{job}/log?after={after}&wait={_seconds(wait)}"
        async with self._patience(wait), self._stream("GET", path) as response:
            data = bytearray()
            async for piece in response.content.iter_any():
                data += piece
                if len(data) > LOG_LIMIT:
                    raise Corrupt(f"{self._peer.url} shows more than {LOG_LIMIT} bytes of a log at once")
            start = response.headers.get(LOG_START, "")
            at = int(start) if start.isdecimal() and len(start) < 19 else after
            return _LogPage(max(at, after), bytes(data), response.headers.get(LOG_END) == "true")

    # Blobs

    async def push(self, sha256: str, source: Source) -> None:
        """Have the node keep a blob; one that it has costs a question, one that it is known to have nothing."""
        if sha256 in self._known:
            return
        size = await size_of(source)
        path = f"{self._base}/blobs/{sha256}"
        async with self._pushing:
            if not await self._has(path):
                headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
                async with self._stream("PUT", path, headers, pieces_of(source)) as response:
                    await response.read()
        self._remember([sha256])

    async def _push_all(self, sources: Mapping[str, Source]) -> None:
        pushes = [self.push(name, source) for name, source in sources.items()]
        for result in await asyncio.gather(*pushes, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def _has(self, path: str) -> bool:
        try:
            async with self._patience(0), self._stream("HEAD", path):
                return True
        except FreeholdError as error:
            if error.details.get("status") == 404:  # an answer to HEAD has no body to say more
                return False
            raise

    async def fetch(self, job: Hash, sha256: str) -> bytes:
        """A blob that came out of a job, checked. Corrupt where the node sends another."""
        data = bytearray()
        async with self._stream("GET", f"{self._base}/blobs/{sha256}") as response:
            async for piece in response.content.iter_any():
                data += piece
                self._check_length(len(data), job)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise self._other_blob(job, sha256)
        return bytes(data)

    async def fetch_to(self, job: Hash, sha256: str, path: Path) -> None:
        """The same into a file, which is there whole or not at all."""
        arrival, size = await asyncio.to_thread(Arrival, path, sha256), 0
        try:
            async with self._stream("GET", f"{self._base}/blobs/{sha256}") as response:
                async for piece in response.content.iter_any():
                    size += len(piece)
                    self._check_length(size, job)
                    await asyncio.to_thread(arrival.write, piece)
            try:
                await asyncio.to_thread(arrival.finish)
            except Corrupt:
                raise self._other_blob(job, sha256) from None
        finally:
            arrival.close()

    def _check_length(self, size: int, job: Hash) -> None:
        if size > BLOB_LIMIT:
            raise Corrupt(f"{self._peer.url} sends more than a blob has", node=str(self.node), job=str(job))

    def _other_blob(self, job: Hash, sha256: str) -> Corrupt:
        what = f"{self._peer.url} sends another blob than {sha256}"
        return Corrupt(what, node=str(self.node), job=str(job), sha256=sha256)

    def _choose_inline(self, blobs: Mapping[str, Source]) -> dict[str, bytes]:
        """What goes along with the order: small, and not known to be there."""
        chosen: dict[str, bytes] = {}
        room = INLINE_LIMIT
        for name, source in blobs.items():
            if isinstance(source, bytes) and name not in self._known and len(source) <= min(INLINE_BLOB, room):
                chosen[name] = source
                room -= len(source)
        return chosen

    def _remember(self, names: Collection[str]) -> None:
        for name in names:
            self._known[name] = None
        while len(self._known) > KNOWN_LIMIT:
            del self._known[next(iter(self._known))]

    # Requests

    def _patience(self, wait: float) -> AbstractAsyncContextManager[None]:
        return _patience(min(wait, LONGEST_WAIT) + GRACE_SECONDS, self._peer.url)

    async def _call(self, method: str, path: str, limit: int) -> Any:
        return await self._peer.call(method, path, headers=self._sign(method, path, ZERO_HASH), limit=limit)

    def _stream(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, data: Any = None
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        signed = self._sign(method, path, ZERO_HASH)
        return self._peer.request(method, path, headers=signed | dict(headers or {}), data=data)

    def _sign(self, method: str, path: str, body: Hash) -> dict[str, str]:
        means = self._means
        nonce = Hash(secrets.token_bytes(32))
        return authorize(means.key, method, path, body, self.node, means.domain, int(means.clock()), nonce)


class _LogPage(NamedTuple):
    start: int
    data: bytes
    is_end: bool


@asynccontextmanager
async def _patience(seconds: float, url: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise Unavailable(f"{url} did not answer within {seconds:.0f} s", url=url) from None


def _seconds(wait: float) -> int:
    return math.ceil(max(0.0, min(wait, LONGEST_WAIT)))
