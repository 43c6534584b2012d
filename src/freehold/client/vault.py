"""Blobs on the network: stored in shipments, read by ranges, taken away again when nothing names them.

    stow      sources -> shards at n nodes -> listed -> certified -> the caller sets a head -> keep
    discard   no head names them any more -> garbage in the book -> off the lists with later deltas

Any number of stows and reads may run at once; they share sessions, list changes, certificates and memory. What is under
way belongs to a shipment or an intent, which has a lock file while its process lives; what those leave behind is
`abandoned`, and whoever knows the heads says which of it is named. For what a lost machine left, `audit` compares the
nodes' own lists with all that is named.

Invariant: whatever is listed at a node is named by a head, in a shipment or intent, or garbage in some device's book;
and nothing becomes garbage that a head names.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Container, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

from freehold.client.book import Book
from freehold.protocol.errors import FreeholdError, InvalidInput
from freehold.protocol.units import Address
from freehold.services.storage.client import StorageClient
from freehold.services.storage.client_objects import Code, ListedShard, StoredObject
from freehold.services.storage.client_sources import Source
from freehold.services.storage.upload import Progress

_MARK = "~"  # between a label and what tells its shipments apart


class Stowed:
    """Objects that are stored and listed, and that no head names yet."""

    def __init__(self, book: Book, id: str, objects: Sequence[StoredObject]) -> None:
        self.objects = tuple(objects)
        self._book = book
        self._id = id
        self.is_settled = False

    async def keep(self) -> None:
        """A head names them now."""
        self.is_settled = True
        await self._book.settle(self._id, _shards(self.objects))

    async def unsure(self) -> None:
        """Nobody knows whether a head names them: `abandoned` will tell of them."""
        self.is_settled = True


class Intent:
    """Objects that a head is about to name no more. `async with`: left unsure, unless it was settled."""

    def __init__(self, book: Book, id: str, shards: Sequence[ListedShard], stack: AsyncExitStack) -> None:
        self._book = book
        self._id = id
        self._shards = shards
        self._stack = stack

    async def __aenter__(self) -> Intent:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.unsure()

    async def done(self) -> None:
        """The head does not name them any more: they are garbage."""
        await self._book.settle(self._id, ())
        await self.unsure()

    async def withdraw(self) -> None:
        """The head still names them."""
        await self._book.settle(self._id, self._shards)
        await self.unsure()

    async def unsure(self) -> None:
        """Nobody knows: `abandoned` will tell of what was not settled."""
        await self._stack.aclose()


class Vault:
    """One account's blobs on one network."""

    def __init__(self, storage: StorageClient, book: Book) -> None:
        self._storage = storage
        self._book = book

    @asynccontextmanager
    async def stow(
        self, label: str, code: Code, sources: Sequence[Source], progress: Progress | None = None
    ) -> AsyncIterator[Stowed]:
        """Store sources for a head of this name; inside, both sides have signed for them, and the caller sets the head.

        They are read one after the other. `progress` hears of plaintext bytes as they are stored. On leaving without
        `keep` or `unsure` they are garbage. Raises what a source raises, InsufficientOperators, InsufficientCredits.
        """
        id = _id(label)
        async with self._book.shipping(id):
            stowed = None
            try:
                shipment = await self._storage.ship(id, code, sum(source.size or 0 for source in sources))
                objects = await shipment.send(sources, progress)
                if any(stored.size for stored in objects):
                    await shipment.certify()
                stowed = Stowed(self._book, id, objects)
                yield stowed
            finally:
                if stowed is None or not stowed.is_settled:
                    await asyncio.shield(self._book.settle(id, ()))

    async def intend(self, label: str, objects: Iterable[StoredObject]) -> Intent:
        """Write down, before the head of this name changes, what it will name no more."""
        id, shards = _id(label), list(_shards(objects))
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._book.shipping(id))
            await self._book.intend((id, shard) for shard in shards)
            return Intent(self._book, id, shards, stack.pop_all())

    async def discard(self, objects: Iterable[StoredObject]) -> None:
        """No head names these: they come off the lists with later deltas, or by `collect`."""
        await self._book.discard(("", shard) for shard in _shards(objects))

    async def read(
        self, stored: StoredObject, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[memoryview, None]:
        """An object's bytes from `offset`, in order; each view stands until the next is asked for.

        Unavailable or Corrupt where fewer than k shards of a segment are left.
        """
        async with aclosing(self._storage.read(stored, offset, length)) as views:
            async for view in views:
                yield view

    async def fetch(self, stored: StoredObject) -> bytes:
        """A whole object, in memory."""
        data = bytearray()
        async with aclosing(self.read(stored)) as views:
            async for view in views:
                data += view
        return bytes(data)

    async def collect(self) -> dict[Address, FreeholdError]:
        """Take garbage off the lists now; what the nodes answered that could not."""
        return await self._storage.collect()

    async def abandoned(self) -> dict[str, list[ListedShard]]:
        """What shipments and intents have left that ended unsettled, by label. Read the head after this."""
        found: defaultdict[str, list[ListedShard]] = defaultdict(list)
        for id, shards in (await self._book.abandoned()).items():
            found[id.rpartition(_MARK)[0]] += shards
        return dict(found)

    async def settle(self, label: str, shards: Iterable[ListedShard], named: Container[ListedShard]) -> None:
        """Of what was abandoned, leave alone what is `named` by a head that was read since; the rest is garbage."""
        wanted = set(shards)
        for id, left in (await self._book.abandoned()).items():
            if id.rpartition(_MARK)[0] == label:
                rows = [(id, shard) for shard in left if shard in wanted]
                await self._book.discard(row for row in rows if row[1] not in named)
                await self._book.withdraw(row for row in rows if row[1] in named)

    async def audit(self, named: Callable[[ListedShard], bool], older_than: float) -> int:
        """Discard what the nodes have listed for longer than `older_than` seconds and nobody names; how many shards.

        For what devices left that are lost with their books. `named` must know every head of the account, as of now;
        `older_than` must exceed what any other device's shipment takes.
        """
        count = 0
        async with aclosing(self._storage.listed(older_than)) as pages:
            async for page in pages:
                known = await self._book.known(page)
                lost = [shard for shard in page if shard not in known and not named(shard)]
                await self._book.discard(("", shard) for shard in lost)
                count += len(lost)
        return count


def _id(label: str) -> str:
    if not label or _MARK in label or "/" in label:
        raise InvalidInput(f"{label!r} cannot be the name of a shipment")
    return f"{label}{_MARK}{secrets.token_hex(8)}"


def _shards(objects: Iterable[StoredObject]) -> Iterable[ListedShard]:
    return (shard for stored in objects for shard in stored.shards())
