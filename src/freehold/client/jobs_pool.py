"""The nodes of one step: sessions opened as they are needed, and seats on them for as many orders as they take.

    seat = await pool.acquire(apart from these operators and nodes)  ...  pool.release(seat)

Each node has a seat for each of its slots, and one for each order that it makes ready beside them, as many as it has
slots at the most: so its next order is there when one ends. A slot that is free is preferred, then the better rank.
Whoever finds no seat waits for one to be released: nobody polls.

Invariant: `seat.running` orders of this pool are at its node at most `seat.depth`; a node that failed gets no more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Protocol

from freehold.protocol.errors import FreeholdError, InsufficientCredits, InsufficientOperators
from freehold.protocol.units import Address
from freehold.services.compute.ordering.node import ComputeNode
from freehold.services.compute.ordering.survey import Offered

SLOTS_LIMIT = 256


class Opens(Protocol):
    """Of a compute client, what opens sessions."""

    async def session(self, offered: Offered, amount: int) -> ComputeNode: ...

    async def sessions(
        self, wants: Sequence[tuple[Offered, int]]
    ) -> tuple[list[ComputeNode], dict[Address, FreeholdError]]: ...


class Seat:
    """A node and how many orders it has of this pool."""

    def __init__(self, offered: Offered, rank: int) -> None:
        self.offered = offered
        self.rank = rank
        self.slots = _bounded(offered.properties.get("slots"), SLOTS_LIMIT, 1)
        self.depth = self.slots + _bounded(offered.properties.get("slots.ahead"), self.slots, self.slots)
        self.running = 0
        self.session: ComputeNode | None = None
        self.failed = False

    @property
    def node(self) -> ComputeNode:
        """Its session; only of a seat that `acquire` gave."""
        assert self.session is not None
        return self.session

    def suits(self, without: Without) -> bool:
        """Whether it may be had by somebody who stays away from these."""
        return (
            not self.failed
            and self.offered.operator not in without.operators
            and self.offered.node not in without.nodes
        )


class Without(NamedTuple):
    """Who is not wanted."""

    operators: Collection[Address] = ()
    nodes: Collection[Address] = ()


class NobodyLeft(InsufficientOperators):
    """Of those that matched, everybody has failed or has had the task already."""

    code = "nobody_left"
    hint = "`freehold job why JOB` has what each node answered."


class Pool:
    """`reserve` says for how many credits a session with this node is opened; `on_failure` hears who did not open."""

    def __init__(
        self,
        client: Opens,
        offers: Sequence[Offered],
        reserve: Callable[[Seat], int],
        on_failure: Callable[[Offered], None],
    ) -> None:
        self._client = client
        self._reserve = reserve
        self._on_failure = on_failure
        self.seats = [Seat(offered, rank) for rank, offered in enumerate(offers)]
        self._waiting: deque[tuple[Without, asyncio.Future[None]]] = deque()
        self._opening = asyncio.Lock()
        self._last_error: FreeholdError | None = None

    async def open(self, count: int) -> None:
        """Sessions with the best `count` nodes, under one reservation; who does not open is left out."""
        async with self._opening:
            wanted = [seat for seat in self.seats if seat.session is None and not seat.failed]
            opened = sum(seat.session is not None and not seat.failed for seat in self.seats)
            chosen = wanted[: max(0, count - opened)]
            if not chosen:
                return
            ready, failures = await self._client.sessions([(seat.offered, self._reserve(seat)) for seat in chosen])
            sessions = {session.node: session for session in ready}
            for seat in chosen:
                seat.session = sessions.get(seat.offered.node)
                if seat.session is None:
                    self._fail(seat, failures.get(seat.offered.node))
        self._wake_all()

    def _fail(self, seat: Seat, error: FreeholdError | None) -> None:
        seat.failed = True
        self._last_error = error
        if isinstance(error, InsufficientCredits):
            return  # this client's lack, not the node's fault
        if error is not None:
            self._on_failure(seat.offered)

    async def acquire(self, without: Without) -> Seat:
        """A place for one order. NobodyLeft where no node suits any more; InsufficientCredits where money lacks."""
        while True:
            suited = [seat for seat in self.seats if seat.suits(without)]
            if not suited:
                if isinstance(self._last_error, InsufficientCredits):
                    raise self._last_error
                raise NobodyLeft("no node is left that could run this", have=len(self.seats))
            free = [seat for seat in suited if seat.session is not None and seat.running < seat.depth]
            if free:
                best = min(free, key=lambda seat: (seat.running >= seat.slots, seat.rank))
                best.running += 1
                return best
            if all(seat.session is None for seat in suited):
                await self.open(1 + sum(seat.session is not None and not seat.failed for seat in self.seats))
                if not any(seat.session is not None for seat in suited):
                    await self._open_one(suited)
                continue
            future = asyncio.get_running_loop().create_future()
            self._waiting.append((without, future))
            try:
                await future
            except asyncio.CancelledError:
                if future.done() and not future.cancelled():
                    self._wake_all()
                raise

    async def _open_one(self, suited: Sequence[Seat]) -> None:
        """A session with the best of these, wherever it ranks."""
        async with self._opening:
            for seat in suited:
                if seat.session is not None or seat.failed:
                    continue
                ready, failures = await self._client.sessions([(seat.offered, self._reserve(seat))])
                if ready:
                    seat.session = ready[0]
                    return
                self._fail(seat, failures.get(seat.offered.node))

    def release(self, seat: Seat, *, failed: bool = False) -> None:
        """The order has ended; `failed`: the node gets no more of this pool."""
        seat.running -= 1
        if failed:
            seat.failed = True
            self._wake_all()
            return
        while self._waiting:
            for at, (without, future) in enumerate(self._waiting):
                if future.done() or seat.suits(without):
                    del self._waiting[at]
                    break
            else:
                return
            if not future.done():
                future.set_result(None)
                return

    def _wake_all(self) -> None:
        while self._waiting:
            _, future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)


def _bounded(said: object, most: int, default: int) -> int:
    """A number that a node says of itself; the default where it says none."""
    return min(said, most) if isinstance(said, int) and said > 0 else default
