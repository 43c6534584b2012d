"""The final part of the chain as a stream: every block once, in order, with the events of the contracts followed.

Settlement folds events, so a caller keeps the number of the last block that it has folded and starts after it; a
caller that also kept that block's hash is told if the chain below it has changed. Logs are kept by every chain for
good, state at old blocks is not: nothing here reads state.

Invariant: consecutive batches have consecutive numbers, and each header's parent is the hash of the one before.
"""

from __future__ import annotations

import asyncio
import logging
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
            try:
                batches = await self._next_batches(from_block, last)
                self.failure, pause = None, self._interval
            except DeepReorg:
                raise
            except ChainError as error:
                if self.failure is None:
                    log.warning("the chain is away: %s", error.message)
                self.failure = error
                pause = min(max(2 * pause, 0.1), max(LONGEST_PAUSE, self._interval))
                batches = []
            for batch in batches:
                yield batch
                last = (batch.header.number, batch.header.hash)
                from_block = batch.header.number + 1
            if not batches:
                await asyncio.sleep(pause)

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
            before = (headers[-1].number, headers[-1].hash) if headers else last
            if before is not None and header.parent_hash != before[1]:
                raise _deep_reorg(*before, header.parent_hash)
            headers.append(header)
        logs = await self._rpc.get_logs(first, until, list(self._contracts)) if self._contracts else []
        return self._group(headers, logs)

    def _group(self, headers: Sequence[Header], logs: Sequence[Log]) -> list[Batch]:
        by_block = {number: list(group) for number, group in groupby(logs, key=lambda entry: entry.block_number)}
        batches = []
        for header in headers:
            entries = by_block.get(header.number, [])
            for entry in entries:
                if entry.block_hash != header.hash:
                    raise ChainError(f"the events of block {header.number} are not of the block that was read")
            events = [self._decode(entry) for entry in entries]
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
