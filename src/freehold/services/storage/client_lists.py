"""The client's side of lists: changing them, having the changes certified, and remembering what must come off again.

A shard that is listed is paid for. So before a client signs a list that has it, its place is written down under the
change (`shipment`) it belongs to; once the bucket's head names it, it is forgotten here; if that never happens, or
when an object is removed, it is garbage, and the node's next delta takes it off. Invariant: whatever is listed at a
node is in an index, in a shipment under way, or in the garbage.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from freehold.market.quorum import Quorum
from freehold.protocol.batches import make_batch
from freehold.protocol.errors import Conflict, InvalidInput
from freehold.protocol.keys import Key
from freehold.protocol.tables import Table
from freehold.protocol.units import Address, Hash
from freehold.services.storage.client_node import StorageNode
from freehold.services.storage.client_objects import ListedShard
from freehold.services.storage.terms import DELTA, Delta, ShardEntry

ATTEMPTS = 30
PAUSE_SECONDS = 0.01  # doubles, up to LONGEST_PAUSE; drawn from nothing to that
LONGEST_PAUSE = 0.5
GARBAGE_AT_ONCE = 2048  # removals in one delta


class ListBook(Protocol):
    """Where a client keeps its deltas and what must come off lists. Writes are durable when they return."""

    async def newest_delta(self, lease: Hash) -> Delta | None:
        """The newest that both signed."""

    async def keep_delta(self, delta: Delta) -> None:
        """Both signed it; no quorum holds it yet."""

    async def uncertified_deltas(self) -> Sequence[Delta]:
        """The newest delta of each lease of which no quorum holds the newest."""

    async def mark_deltas(self, deltas: Sequence[Delta]) -> None:
        """A quorum holds these."""

    async def intend(self, shipment: str, shards: Sequence[ListedShard]) -> None:
        """A shipment is about to list these, or to make a head that does not name them any more."""

    async def withdraw(self, shipment: str, shards: Sequence[ListedShard]) -> None:
        """These were not listed after all, or a head names them: this shipment leaves them alone."""

    async def discard(self, shipment: str, shards: Sequence[ListedShard]) -> None:
        """A shipment leaves these, and no head names them: they are garbage."""

    async def garbage(self, node: Address) -> Sequence[ListedShard]:
        """What must come off a node's list."""

    async def garbage_nodes(self) -> Sequence[Address]:
        """The nodes that hold garbage."""

    async def collected(self, shards: Sequence[ListedShard]) -> None:
        """These are off."""

    def exclusive(self, name: str) -> AbstractAsyncContextManager[None]:
        """Only one task of one process of this account is inside at a time."""


async def change_list(node: StorageNode, add: Sequence[ShardEntry], book: ListBook, shipment: str) -> tuple[int, ...]:
    """Add entries to a node's list, and take garbage off with them; the positions of the additions.

    Where another device of the account was faster, the change is made again on the list as it is then. Conflict if
    others change the list all the time; what else a node refuses with passes through.
    """
    async with book.exclusive(f"list-{node.address.hex()}"):
        for attempt in range(ATTEMPTS):
            garbage = list(await book.garbage(node.address))[:GARBAGE_AT_ONCE]
            try:
                delta, positions = await node.plan(add, garbage, await book.newest_delta(node.leases.stream_id))
            except InvalidInput as error:
                gone = [shard for shard in garbage if shard.position == error.details.get("position")]
                if not gone:
                    raise
                await book.collected(gone)  # it is off already: the answer that said so was lost
                continue
            placed = [ListedShard(node.address, at, entry.root) for at, entry in zip(positions, add, strict=True)]
            await book.intend(shipment, placed)
            try:
                signed = await node.change(delta, add, garbage)
            except Conflict:
                await book.withdraw(shipment, placed)
                await asyncio.sleep(random.random() * min(LONGEST_PAUSE, PAUSE_SECONDS * 2**attempt))
                continue
            await book.keep_delta(signed)
            await book.collected(garbage)
            return tuple(positions)
    raise Conflict(f"the list at {node.address} is being changed by another writer")


async def certify_deltas(key: Key, quorum: Quorum, book: ListBook) -> None:
    """Have a quorum hold the newest delta of every list: after this, nothing of it can be lost."""
    deltas = list(await book.uncertified_deltas())
    if deltas:
        await quorum.certify(make_batch(DELTA, Table.of(Delta, deltas), key, quorum.domain))
        await book.mark_deltas(deltas)
