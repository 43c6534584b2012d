"""What a member takes on at once: evidence that it has let in and not answered yet, bounded by the work that it is.

Work is counted in units: a row is one, so are 512 bytes, and a batch costs 8 beside. A sender with less at stake gets a
smaller part, and one address at most half of a part; so bonded nodes' evidence comes through whatever strangers send.
Who is refused is told when to come back: when what stands before it is done, at the rate of the last seconds.

Invariant: the units let in are at most LIMITS', beside one batch that is larger than its whole part.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from freehold.oracle.quotas import Standing
from freehold.protocol.errors import Overloaded

BYTES_OF_UNIT = 512
UNITS_OF_BATCH = 8
LIMITS = {Standing.BONDED: 200_000, Standing.KNOWN: 100_000, Standing.STRANGE: 10_000}  # each within those before it
RANK = {Standing.BONDED: 0, Standing.KNOWN: 1, Standing.STRANGE: 2}  # who goes first
DECODING = 2  # batches at once: more threads would only hold more rows in memory
FORGET_SECONDS = 10.0  # of work, after which the rate before counts half
FIRST_RATE = 20_000.0  # units a second, until there is a figure
LONGEST_WAIT = 60  # seconds that anybody is told to stay away for a backlog


def units_of(rows: int, size: int) -> int:
    """The work that a batch is."""
    return UNITS_OF_BATCH + rows + size // BYTES_OF_UNIT


class Admission:
    """The evidence that one member has let in. `clock` gives seconds that only rise."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._taken: Counter[Standing] = Counter()
        self._by_address: Counter[tuple[str, Standing]] = Counter()
        self._done, self._busy, self._seen = FIRST_RATE, 1.0, clock()
        self._turns: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._decoding = 0
        self.refused = 0

    @property
    def taken(self) -> int:
        """Units let in and not done."""
        return sum(self._taken.values())

    def check(self, address: str, standing: Standing, units: int) -> None:
        """Overloaded, with the seconds after which to come back, where so much more is not let in."""
        limit = LIMITS[standing]
        before = sum(taken for other, taken in self._taken.items() if RANK[other] >= RANK[standing])
        own = self._by_address[address, standing]
        total = self.taken
        if total and total + units > LIMITS[Standing.BONDED]:
            self._refuse("this member has too much to do at once", total)
        if before and before + units > limit:
            self._refuse("this member has too much to do at once", before)
        if own and own + units > limit // 2:
            self._refuse(f"this member has too much from {address} to do at once", own)

    def _refuse(self, message: str, units: int) -> None:
        self.refused += 1
        raise Overloaded(message, retry_after=self.wait(units))

    def wait(self, units: int) -> int:
        """Seconds until so many units are done, at the rate of the last ones: 1 to LONGEST_WAIT."""
        self._pass()
        return max(1, min(LONGEST_WAIT, math.ceil(units * self._busy / self._done)))

    @contextmanager
    def admit(self, address: str, standing: Standing, units: int) -> Iterator[None]:
        """Let a batch in until it is answered. Overloaded as `check` is."""
        self.check(address, standing, units)
        self._pass()
        self._taken[standing] += units
        self._by_address[address, standing] += units
        try:
            yield
        finally:
            self._pass()
            self._done += units
            self._taken[standing] -= units
            self._by_address[address, standing] -= units
            if not self._by_address[address, standing]:
                del self._by_address[address, standing]

    def _pass(self) -> None:
        """Time went by: it counts while there was something to do."""
        now = self._clock()
        if self.taken:
            self._busy += now - self._seen
        self._seen = now
        if self._busy > FORGET_SECONDS:
            self._busy, self._done = self._busy / 2, max(1.0, self._done / 2)

    @asynccontextmanager
    async def turn(self, standing: Standing) -> AsyncIterator[None]:
        """Wait for one of DECODING places: whoever has more at stake goes first."""
        if self._decoding >= DECODING:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._turns, (RANK[standing], next(self._order), future))
            try:
                await future  # whoever ends hands its place over
            except asyncio.CancelledError:
                if future.done() and not future.cancelled():
                    self._hand_over()
                raise
        else:
            self._decoding += 1
        try:
            yield
        finally:
            self._hand_over()

    def _hand_over(self) -> None:
        while self._turns:
            future = heapq.heappop(self._turns)[2]
            if not future.done():
                future.set_result(None)
                return
        self._decoding -= 1
