"""The final part of the chain as a stream: every block once, in order, with the events of the contracts followed.

Settlement folds events, so a caller keeps the number of the last block that it has folded and starts after it; a
caller that also kept that block's hash is told if the chain below it has changed. Logs are kept by every chain for
good, state at old blocks is not: nothing here reads state.

Headers and events are what the RPC ends agree on (`rpc.py` says what that proves); where they contradict each other
nothing is delivered, and `failure` says who said what. Reorganisations above finality are never seen here. One below
it ends the stream (DeepReorg), since what was delivered cannot be taken back: a consumer that kept an older state, from
below the fork, may start again from there. It must stand in several looks, so one wrong answer stops nobody.

Invariant: consecutive batches have consecutive numbers, and each header's parent is the hash of the one before.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from freehold.chain.abi import Contract
from freehold.chain.errors import ChainError, DeepReorg
from freehold.chain.rpc import Header, Log, Rpc
from freehold.protocol.units import Address, Hash

log = logging.getLogger(__name__)

SPAN = 200  # blocks fetched at once while catching up
LONGEST_PAUSE = 5.0  # seconds between tries while the RPC end is away
LOOKS = 3  # in a row that must show a final block undone
STUCK_SECONDS = 30.0  # without a new block, after which one end that is far ahead is a failure to be shown
FAR = 16  # blocks


class Event(NamedTuple):
    """A decoded event and where it stands; `value` is one of the NamedTuples in `contracts/`."""

    block_number: int
    log_index: int
    contract: Address
    transaction: Hash
    value: Any


class Batch(NamedTuple):
    """One final block and the followed contracts' events in it, in order."""

    header: Header
    events: tuple[Event, ...]


class Follower:
    """Follows `contracts` on `rpc`.

    A block is final when `finality_depth` blocks stand above it; with depth 0 the RPC end's own "finalized" tag
    decides. `interval` is the seconds between looks at the head. `failure` is the error that it is waiting out, if any.
    """

    def __init__(
        self, rpc: Rpc, contracts: Iterable[Contract], *, finality_depth: int = 0, interval: float = 1.0
    ) -> None:
        self._rpc = rpc
        self._contracts = {contract.address: contract for contract in contracts}
        self._depth = finality_depth
        self._interval = interval
        self._undone = 0
        self._moved = time.monotonic()
        self.failure: ChainError | None = None

    async def header(self, number: int) -> Header | None:
        """Any block's header; None where there is no such block yet."""
        return await self._rpc.header(number)

    async def final_header(self) -> Header | None:
        """The newest final block; None while there is none."""
        if self._depth == 0:
            return await self._rpc.header("finalized")
        head = await self._rpc.block_number()
        return await self._rpc.header(head - self._depth) if head >= self._depth else None

    async def run(self, from_block: int, *, parent: Hash | None = None) -> AsyncIterator[Batch]:
        """Final blocks from `from_block` on, without end. `parent`: the hash of the block before it, where known.

        DeepReorg when a block that was delivered, or `parent`, is no longer part of the chain. Errors of the RPC end
        are waited out, with growing pauses.
        """
        last = None if parent is None else (from_block - 1, parent)
        pause = self._interval
        while True:
            batches: list[Batch] = []
            try:
                batches = await self._next_batches(from_block, last)
                self._undone = 0
                self.failure, pause = None if batches else await self._find_stuck(), self._interval
            except DeepReorg as error:
                self._undone += 1
                if self._undone >= LOOKS:
                    raise
                self.failure = error
            except ChainError as error:
                if self.failure is None:
                    log.warning("the chain is away: %s", error.message)
                self.failure = error
                pause = min(max(2 * pause, 0.1), max(LONGEST_PAUSE, self._interval))
            for batch in batches:
                yield batch
                last = (batch.header.number, batch.header.hash)
                from_block = batch.header.number + 1
                self._moved = time.monotonic()
            if not batches:
                await asyncio.sleep(pause)

    async def _find_stuck(self) -> ChainError | None:
        """Why no new blocks come, where one RPC end is far ahead of what a quorum has: it lies, or the others lag."""
        if time.monotonic() - self._moved < STUCK_SECONDS:
            return None
        heads = await self._rpc.heads()
        if not heads or max(heads.values()) - min(heads.values()) < FAR:
            return None
        told = ", ".join(f"{url} at block {head}" for url, head in heads.items())
        return ChainError(f"no new final block for {STUCK_SECONDS:g} s: {told}", heads=heads)

    async def _next_batches(self, first: int, last: tuple[int, Hash] | None) -> list[Batch]:
        final = await self.final_header()
        if last is not None:
            await self._check_remembered(*last)
        if final is None or final.number < first:
            return []
        until = min(final.number, first + SPAN - 1)
        headers: list[Header] = []
        for header in await self._rpc.headers(first, until):
            if header is None:
                raise ChainError(f"{self._rpc.url} names block {final.number} final, and lacks one before it")
            if not headers and last is not None and header.parent_hash != last[1]:
                raise _deep_reorg(*last, header.parent_hash)
            headers.append(header)
        return self._group(headers, await self._fetch_logs(headers))

    async def _fetch_logs(self, headers: Sequence[Header]) -> list[Log]:
        addresses = list(self._contracts)
        if not addresses:
            return []
        logs = await self._rpc.get_logs(headers[0].number, headers[-1].number, addresses)
        return await self._rpc.complete_logs(headers, logs, addresses)

    def _group(self, headers: Sequence[Header], logs: Sequence[Log]) -> list[Batch]:
        by_block = {number: list(group) for number, group in groupby(logs, key=lambda entry: entry.block_number)}
        batches = []
        for header in headers:
            events = [self._decode(entry) for entry in by_block.get(header.number, [])]
            batches.append(Batch(header, tuple(event for event in events if event is not None)))
        return batches

    def _decode(self, entry: Log) -> Event | None:
        value = self._contracts[entry.address].decode(entry)
        if value is None:
            return None
        return Event(entry.block_number, entry.log_index, entry.address, entry.transaction_hash, value)

    async def _check_remembered(self, number: int, expected: Hash) -> None:
        # A block that is missing may be a lagging RPC end; another block in its place is a reorganisation.
        header = await self._rpc.header(number)
        if header is not None and header.hash != expected:
            raise _deep_reorg(number, expected, header.hash)


def _deep_reorg(number: int, expected: Hash, found: Hash) -> DeepReorg:
    return DeepReorg(
        f"block {number} was final as {expected}, and is now {found}",
        block=number,
        expected=str(expected),
        found=str(found),
    )
