"""One node as a client of compute sees it, under one lease: push blobs, order, wait, read the log, stop, fetch.

An order is signed once and kept by the caller; sent twice, it is one job. So an answer that was lost is asked for
again, and nothing is ever ordered anew here. Credits for one more order are locked before it is sent
(`ordering/funds.py`); once few are left, more are locked in the background.

Invariant: a standing that a method returns was checked (`ordering/checks.py`), and the receipt in it is kept
(`ordering/receipts.py`).
"""

from __future__ import annotations

import asyncio
import secrets
from base64 import b64encode
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from freehold.market.leases import NodeLeases
from freehold.net.client import Dial
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
from freehold.protocol.typed import Domain, canonical_json
from freehold.protocol.units import Address, Hash
from freehold.services.compute.ordering.blobs import Blobs, Source
from freehold.services.compute.ordering.checks import (
    KeptReceipt,
    Parties,
    Standing,
    WrongReceipt,
    check_standing,
    most_cost,
    parse_standing,
)
from freehold.services.compute.ordering.funds import Funds
from freehold.services.compute.ordering.link import LONGEST_WAIT, Link, whole_seconds
from freehold.services.compute.ordering.receipts import Receipts
from freehold.services.compute.tasks import Task
from freehold.services.compute.terms import Order

ANSWER_LIMIT = 16 * 2**20  # bytes of a standing with 4,096 files; its steps come on top
STEP_JSON = 72  # bytes of a state's hash in it
PAUSES = (0.1, 0.4, 1.0)  # seconds, before an answer that was lost is asked for again
ROUNDS = 4  # of sending an order, and then what its node misses for it: blobs, credits
POLLS = 24  # jobs of a lease that are waited for at once, each by a connection of its own (a `Dial` has so many)
LOG_END, LOG_START = "Freehold-Log-End", "Freehold-Log-Start"
LOG_LIMIT = 2 * 2**20


class Means(NamedTuple):
    """What all nodes of a client share. `cover` locks credits for so much more at a node, `spare` does in time."""

    key: Key
    domain: Domain
    dial: Dial
    clock: Callable[[], float]
    receipts: Receipts
    cover: Callable[[ComputeNode, int], Awaitable[None]]
    spare: Callable[[ComputeNode], None]


class ComputeNode:
    """A node under a lease of this client. Every method raises Unavailable, Refused or what the node answered; whoever
    waits may be cancelled at any time: the job goes on."""

    def __init__(self, leases: NodeLeases, operator: Address, means: Means, funds: Funds | None = None) -> None:
        self.leases = leases
        self.node = leases.node
        self.operator = operator
        self.lease = leases.stream_id
        self.price = leases.stream.price
        self.funds = funds or Funds()
        self.amount = 0  # credits that whoever asked for this session wants to have at hand
        self.is_stale = False  # it answered in a way that a new session may mend
        self._means = means
        self._link = Link(leases, means.key, means.domain, means.dial, means.clock)
        self._blobs = Blobs(self._link)
        self._parties = Parties(means.key.address, self.node, means.domain)
        self._ordered: dict[Hash, tuple[Order, Task]] = {}  # the jobs under way that this process has sent
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
        cost = most_cost(order.most, self.price)
        if self.funds.begin(job, cost):
            await self._reserve(job)
        self._ordered[job] = order, task
        try:
            if wait <= 0 or self._polling.locked():
                standing = await self._send(job, order, task, blobs, access, 0)
            else:
                async with self._polling:
                    standing = await self._send(job, order, task, blobs, access, wait)
        except Refused:
            self.funds.drop(job)
            self._ordered.pop(job, None)
            raise
        # Whatever else goes wrong, it may run, and be paid.
        return await self._take(standing, job)

    async def _reserve(self, job: Hash) -> None:
        """See to it that the lock covers an order, with all others, before it is sent."""
        if self.funds.taken > self.funds.lock:
            try:
                await self._means.cover(self, 0)
            except BaseException:
                self.funds.drop(job)
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
            inline = self._blobs.choose_inline(blobs)
            body: dict[str, Any] = {
                "order": order.to_json(),
                "task": task.encode().decode(),
                "wait": whole_seconds(wait),
            }
            if inline:
                body["blobs"] = {name: b64encode(data).decode() for name, data in inline.items()}
            if access is not None:
                body["access"] = dict(access)
            try:
                standing = await self._post_order(job, canonical_json(body), wait, self._limit_of(job))
            except Conflict as error:
                if round == ROUNDS - 1:
                    raise
                await self._push_missing(error, blobs)
            except InsufficientCredits as error:  # another device has ordered under this lease
                if round == ROUNDS - 1:
                    self.is_stale = True
                    raise Refused(f"{self._link.url} asks for ever more: {error.message}", job=str(job)) from None
                await self._lock_more(error, most_cost(order.most, self.price))
            except Overloaded:
                raise
            except Refused:
                self.is_stale = True
                raise
            else:
                self._blobs.remember(inline)
                return standing
        raise AssertionError("the last round returns or raises")

    async def _push_missing(self, error: Conflict, blobs: Mapping[str, Source]) -> None:
        missing = error.details.get("missing")
        if not isinstance(missing, list) or not all(isinstance(name, str) for name in missing):
            raise error
        self._blobs.forget(missing)
        if not missing or any(name not in blobs for name in missing):
            raise error
        await self._blobs.push_all({name: blobs[name] for name in missing})

    async def _lock_more(self, error: InsufficientCredits, cost: int) -> None:
        """A node takes no order beyond the lock, so what it misses is at most what this one costs."""
        text = error.details.get("missing")
        missing = int(text) if isinstance(text, str) and text.isdecimal() and len(text) < 30 else -1
        if not 0 < missing <= max(1, cost):
            self.is_stale = True
            raise Refused(f"{self._link.url} misses credits that it cannot miss: {error.message}") from None
        self.funds.lack(missing)
        await self._means.cover(self, 0)

    async def _post_order(self, job: Hash, body: bytes, wait: float, limit: int) -> Standing:
        """Until there is an answer; Unavailable where there is none."""
        failure: Unavailable | None = None
        for pause in (0.0, *PAUSES):
            await asyncio.sleep(pause)
            try:
                if failure is not None:  # did it arrive?
                    with suppress(NotFound):
                        return await self._ask(job, wait, limit)
                return parse_standing(await self._link.post("/orders", body, limit, wait))
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
        limit = self._limit_of(job, task)
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
        path = f"/orders/{job}?wait={whole_seconds(seconds)}"
        return parse_standing(await self._link.call("GET", path, limit, seconds))

    async def stop(self, job: Hash) -> Standing:
        """End a job; what it took so far is billed."""
        answer = await self._link.call("DELETE", f"/orders/{job}", self._limit_of(job))
        return await self._take(parse_standing(answer), job)

    async def jobs(self) -> list[Standing]:
        """The jobs of this account that the node knows, oldest first, without what came of them; unchecked."""
        found: dict[Hash, Standing] = {}
        after = ""
        while True:
            answer = await self._link.call("GET", f"/orders{after}", ANSWER_LIMIT)
            try:
                page = [parse_standing(value) for value in answer["jobs"]]
            except (KeyError, TypeError):
                raise MalformedMessage(f"{self._link.url} answered with something else than jobs") from None
            fresh = {standing.job: standing for standing in page if standing.job not in found}
            if not fresh:
                return list(found.values())
            found |= fresh
            after = f"?after={page[-1].job}"

    def _limit_of(self, job: Hash, task: Task | None = None) -> int:
        """Bytes of an answer about a job."""
        _, own = self._ordered.get(job, (None, None))
        known = task or own
        return ANSWER_LIMIT + STEP_JSON * (known.steps if known else 0)

    async def _take(self, standing: Standing, job: Hash, task: Task | None = None) -> Standing:
        """Check what a node says, keep its receipt, and count its cost."""
        order, own = self._ordered.get(job, (None, None))
        self.funds.show(job)
        try:
            check_standing(standing, job, self._parties, task or own, order)
        except WrongReceipt:
            self._end(job, self.funds.running.get(job, 0))  # it may come to be paid
            self.is_stale = True
            raise
        if not standing.is_over:
            return standing
        receipt = standing.receipt
        if receipt is None or standing.result is None:
            self._end(job, 0)
            why = standing.reason or "it does not say why"
            raise Refused(f"{self._link.url} gave up: {why}", job=str(job), node=str(self.node))
        self._means.receipts.keep(KeptReceipt(receipt, self.price, standing.result.encode(), standing.steps))
        self._end(job, most_cost(receipt.measure, self.price))
        return standing

    def _end(self, job: Hash, cost: int) -> None:
        self.funds.settle(job, cost)
        self._ordered.pop(job, None)

    # Logs

    async def log(self, job: Hash, after: int = 0, wait: float = 0) -> tuple[bytes, bool]:
        """A job's log from byte `after` on, once there is more of it or after `wait` seconds; whether it has ended."""
        page = await self._read_log(job, after, wait)
        return page.data, page.is_end

    async def follow(self, job: Hash, after: int = 0, *, live: bool = True) -> AsyncGenerator[bytes, None]:
        """A job's log as it grows, until it ends, or what there is of it now; what the node keeps no longer is passed
        over."""
        while True:
            page = await self._read_log(job, after, LONGEST_WAIT if live else 0)
            after = page.start + len(page.data)
            if page.data:
                yield page.data
            if page.is_end or not (live or page.data):
                return
            if not page.data:
                await asyncio.sleep(PAUSES[0])  # whatever the node thinks of waiting

    async def _read_log(self, job: Hash, after: int, wait: float) -> _LogPage:
        path = f"/orders/{job}/log?after={after}&wait={whole_seconds(wait)}"
        async with self._link.brief("GET", path, wait) as response:
            data = bytearray()
            async for piece in response.content.iter_any():
                data += piece
                if len(data) > LOG_LIMIT:
                    raise Corrupt(f"{self._link.url} shows more than {LOG_LIMIT} bytes of a log at once")
            start = response.headers.get(LOG_START, "")
            at = int(start) if start.isdecimal() and len(start) < 19 else after
            return _LogPage(max(at, after), bytes(data), response.headers.get(LOG_END) == "true")

    # Blobs

    async def push(self, sha256: str, source: Source) -> None:
        """Have the node keep a blob; one that it has costs a question, one that it is known to have nothing."""
        await self._blobs.push(sha256, source)

    async def fetch(self, job: Hash, sha256: str) -> bytes:
        """A blob of at most BLOB_LIMIT bytes that came out of a job. Corrupt where the node sends another."""
        with _named(job, self.node):
            return await self._blobs.fetch(sha256)

    async def fetch_to(self, job: Hash, sha256: str, path: Path, size: int | None = None) -> None:
        """The same into a file, which is there whole or not at all; of any size, or of exactly `size` bytes."""
        with _named(job, self.node):
            await self._blobs.fetch_to(sha256, path, size)


class _LogPage(NamedTuple):
    start: int
    data: bytes
    is_end: bool


@contextmanager
def _named(job: Hash, node: Address) -> Iterator[None]:
    """An error says which job and node it is about."""
    try:
        yield
    except FreeholdError as error:
        error.details |= {"job": str(job), "node": str(node)}
        raise
