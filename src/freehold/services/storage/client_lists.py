"""The client's side of lists: changing them, having the changes certified, and remembering what must come off again.

A shard that is listed is paid for. So before a client signs a list that has it, its place is written down under the
shipment it belongs to; once a head names it, it is forgotten here; if that never happens, or when an object is removed,
it is garbage, and one of the node's next deltas takes it off. All that is to be listed at a node while a delta is under
way goes into the next one, whoever wants it (`client_groups.py`); and so do all deltas that wait for a quorum
(`client_certifying.py`).

Invariant: whatever is listed at a node is named by a head, in a shipment or intent under way, or in the garbage.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

from freehold.market.quorum import Quorum
from freehold.protocol.errors import Conflict, FreeholdError, InvalidInput, Unavailable
from freehold.protocol.keys import Key
from freehold.protocol.units import Address, Hash
from freehold.services.storage.client_certifying import Certifier, DeltaBook
from freehold.services.storage.client_groups import Group
from freehold.services.storage.client_node import StorageNode
from freehold.services.storage.client_objects import ListedShard
from freehold.services.storage.terms import Delta, ShardEntry

ATTEMPTS = 30
PAUSE_SECONDS = 0.01  # doubles, up to LONGEST_PAUSE; drawn from nothing to that
LONGEST_PAUSE = 0.5
LIST_SECONDS = 60.0  # for one node to sign one delta
ENTRIES_AT_ONCE = 2048  # additions in one delta: a plan stays below the limit of a request's JSON
GARBAGE_AT_ONCE = 2048  # removals in one delta that adds nothing
GARBAGE_BESIDE = 128  # removals that go with additions, which somebody waits for


class ListBook(DeltaBook, Protocol):
    """Where a client keeps its deltas and what must come off lists. Writes are durable when they return."""

    async def newest_delta(self, lease: Hash) -> Delta | None:
        """The newest that both signed."""

    async def list_state(self, lease: Hash, node: Address, limit: int) -> tuple[Delta | None, Sequence[ListedShard]]:
        """The newest delta that both signed, and what must come off the node's list, so much at the most."""

    async def keep_delta(self, delta: Delta, collected: Sequence[ListedShard] = ()) -> None:
        """Both signed it, and with it these came off; no quorum holds it yet."""

    async def intend(self, shards: Iterable[tuple[str, ListedShard]]) -> None:
        """Shipments are about to list these, or to make a head that does not name them any more."""

    async def withdraw(self, shards: Iterable[tuple[str, ListedShard]]) -> None:
        """These were not listed after all: the shipments leave them alone."""

    async def discard(self, shards: Iterable[tuple[str, ListedShard]]) -> None:
        """The shipments leave these, and no head names them: they are garbage."""

    async def garbage(self, node: Address, limit: int) -> Sequence[ListedShard]:
        """What must come off a node's list, so many at the most."""

    async def garbage_nodes(self) -> Sequence[Address]:
        """The nodes that hold garbage."""

    async def collected(self, shards: Iterable[ListedShard]) -> None:
        """These are off."""

    def exclusive(self, name: str) -> AbstractAsyncContextManager[None]:
        """Only one task of one process of this account is inside at a time."""


class Addition(NamedTuple):
    """What one shipment wants listed at a node; nothing: only garbage is to come off."""

    shipment: str
    entries: tuple[ShardEntry, ...]


Positions = tuple[int, ...]


class Lists:
    """The lists of one account at all nodes, and their certification."""

    def __init__(self, key: Key, quorum: Quorum, book: ListBook, epoch_seconds: float) -> None:
        self._book = book
        self._certifier = Certifier(key, quorum, book, epoch_seconds)
        self._groups: dict[StorageNode, Group[Addition, Positions | FreeholdError]] = {}

    async def add(self, node: StorageNode, shipment: str, entries: Sequence[ShardEntry]) -> Positions:
        """List shards that the node has stored: the position of each. What the node refuses with passes through."""
        result = await self._group(node).do(Addition(shipment, tuple(entries)))
        if isinstance(result, FreeholdError):
            raise result
        return result

    async def clean(self, node: StorageNode) -> None:
        """Take all garbage off a node's list."""
        while await self._book.garbage(node.address, 1):
            await self.add(node, "", ())

    async def certify(self) -> None:
        """Have a quorum hold all deltas that were signed before this was called, at once or, where this epoch has had
        many, later."""
        await self._certifier.certify()

    async def close(self) -> None:
        """End what is under way, wherever it stands: what it listed is in the book."""
        await asyncio.gather(*(group.close() for group in self._groups.values()))
        await self._certifier.close()

    def _group(self, node: StorageNode) -> Group[Addition, Positions | FreeholdError]:
        if node not in self._groups:  # a session that is new: those before it go once nobody waits for them
            old = {n: g for n, g in self._groups.items() if n.address == node.address and g.is_idle}
            for before in old:
                del self._groups[before]

            async def work(additions: Sequence[Addition]) -> list[Positions | FreeholdError]:
                return await self._change(node, additions)

            async def orphaned(addition: Addition, result: Positions | FreeholdError) -> None:
                if not isinstance(result, FreeholdError):
                    placed = _place(node, addition, result)
                    await self._book.discard((addition.shipment, shard) for shard in placed)

            self._groups[node] = Group(
                work, weigh=lambda addition: len(addition.entries), limit=ENTRIES_AT_ONCE, orphaned=orphaned
            )
        return self._groups[node]

    async def _change(self, node: StorageNode, additions: Sequence[Addition]) -> list[Positions | FreeholdError]:
        """One delta for all; where the node refuses it, one for each, so that none fails for another's sake."""
        try:
            async with asyncio.timeout(LIST_SECONDS):
                return list(await change_list(node, additions, self._book))
        except TimeoutError:
            error = Unavailable(f"{node.leases.endpoint} did not sign its list within {LIST_SECONDS:.0f} s")
            return [error] * len(additions)
        except FreeholdError as refusal:
            if len(additions) == 1 or refusal.retryable:
                return [refusal] * len(additions)
        return [result for addition in additions for result in await self._change(node, [addition])]


async def change_list(node: StorageNode, additions: Sequence[Addition], book: ListBook) -> list[Positions]:
    """Add entries to a node's list, and take garbage off with them; the positions that each addition takes.

    Where another device of the account was faster, the change is made again on the list as it is then. Conflict if
    others change the list all the time; what else a node refuses with passes through.
    """
    add = [entry for addition in additions for entry in addition.entries]
    attempt, most = 0, GARBAGE_BESIDE if add else GARBAGE_AT_ONCE
    async with book.exclusive(f"list-{node.address.hex()}"):
        while attempt < ATTEMPTS:
            newest, found = await book.list_state(node.leases.stream_id, node.address, most)
            garbage = _one_each(found)
            if not add and not garbage:
                return [() for _ in additions]
            try:
                delta, taken = await node.plan(add, garbage, newest)
            except InvalidInput as error:
                gone = [shard for shard in garbage if shard.position == error.details.get("position")]
                if not gone:
                    raise
                await book.collected(gone)  # it is off already, or was never listed: an answer was lost
                most = 0 if add else most  # nobody waits while one after the other is found out
                continue
            rest = iter(taken)
            positions = [tuple(next(rest) for _ in addition.entries) for addition in additions]
            placed = [
                (addition.shipment, shard)
                for addition, at in zip(additions, positions, strict=True)
                for shard in _place(node, addition, at)
            ]
            await book.intend(placed)
            try:
                signed = await node.change(delta, add, garbage)
            except Conflict:
                await book.withdraw(placed)
                await asyncio.sleep(random.random() * min(LONGEST_PAUSE, PAUSE_SECONDS * 2**attempt))
                attempt += 1
                continue
            await book.keep_delta(signed, garbage)
            node.room.listed = signed.size
            return positions
    raise Conflict(f"the list at {node.address} is being changed by another writer")


def _one_each(garbage: Sequence[ListedShard]) -> list[ListedShard]:
    """One a position: of several, all but one at the most were never listed, and that is found out one by one."""
    return list({shard.position: shard for shard in garbage}.values())


def _place(node: StorageNode, addition: Addition, positions: Positions) -> list[ListedShard]:
    return [ListedShard(node.address, at, entry.root) for at, entry in zip(positions, addition.entries, strict=True)]
