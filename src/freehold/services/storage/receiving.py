"""A shard comes in: 4 bytes length of the record ‖ segment record ‖ the shard's bytes, hashed while they are written.

Everything cheap is checked before the first byte is stored: who sends it, whether its lease is paid for, whether
record, root and sizes fit each other, whether there is room. Invariant: 201 is answered only once the bytes are on disk
and their row is in SQL; a request that ends in any other way leaves nothing behind.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from aiohttp import web

from freehold.net.server import Pace, ok
from freehold.protocol.errors import (
    BodyTooLarge,
    Corrupt,
    DiskFull,
    InsufficientCredits,
    InvalidInput,
    MalformedMessage,
    Overloaded,
    Refused,
    Unavailable,
)
from freehold.protocol.messages import STREAM
from freehold.protocol.units import Address, Hash
from freehold.services.seam import Arrival, Buffer, Files, ProviderContext, Standing
from freehold.services.storage.lists import Lists, Shard, Stripes
from freehold.services.storage.segment_record import MAX_RECORD_BYTES, SegmentRecord
from freehold.services.storage.shard_tree import ShardHasher
from freehold.services.storage.terms import NAME, UNITS_PER_STREAM_PRICE

OVERHEAD = 1 << 20  # a shard may be this much longer than a segment's plaintext
AT_ONCE = 64  # uploads in flight; more are asked to come again
PER_CLIENT = 48  # of them
WHOLE = 512 << 10  # bytes of a shard that is in memory before it is written: as many as are buffered of a larger one
BODY_SECONDS = 300  # for one body to arrive: a slow sender does not keep its place for good

T = TypeVar("T")


def key_of(lease: Hash, root: bytes) -> str:
    """A shard's name on disk: shards of different leases never share bytes."""
    return f"{lease.hex()}-{root.hex()}"


def parse_hash(text: str) -> Hash:
    """A hash in an address; MalformedMessage."""
    if not text.startswith("0x"):
        raise MalformedMessage("a hash is 0x and 64 hexadecimal digits")
    return Hash(text)


def check_stream(standing: Standing) -> None:
    """Refused unless this is an open storage lease paid as a stream."""
    lease = standing.lease
    if lease.service != NAME or lease.mode != STREAM:
        raise Refused("this lease is not for keeping shards")
    if standing.state is not None and standing.state.closed:
        raise Refused(f"this lease was closed in epoch {standing.state.closed}")


def check_covered(standing: Standing, size: int, seconds: int) -> None:
    """InsufficientCredits unless the lock is above what is paid plus `size` bytes for `seconds` more."""
    check_stream(standing)
    ahead = -(-size * seconds * standing.lease.price // UNITS_PER_STREAM_PRICE)
    missing = standing.settled + ahead + 1 - standing.lock
    lapsed = standing.state is not None and standing.state.lapsed
    if missing > 0 or lapsed:
        raise InsufficientCredits(
            "this lease has lapsed: its lock is used up"
            if lapsed
            else f"the lock of {standing.lock} does not cover this lease"
            if standing.lock
            else "no certified reservation covers this lease",
            hint="Reserve more credits for this lease, and show the node the certificate.",
            missing=str(max(missing, 1)), lock=str(standing.lock), settled=str(standing.settled),
        )  # fmt: skip


async def in_thread(work: Callable[..., T], *arguments: object) -> T:
    """Run blocking work; when the caller is cancelled, the work has ended before the cancellation goes on."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


class _Whole:
    """A small shard that is arriving: in memory until it is whole, and then written, in one turn of a thread."""

    def __init__(self, files: Files, key: str, size: int) -> None:
        if files.free_bytes < size:
            free, allowance = files.free_bytes, files.free_bytes + files.used_bytes
            raise DiskFull(
                f"{size} bytes do not fit: {free} of {allowance} are left", need=size, free=free, allowance=allowance
            )
        self._files = files
        self._key = key
        self._chunks: list[Buffer] = []

    def write(self, chunk: Buffer) -> None:
        self._chunks.append(chunk)

    def commit(self) -> None:
        self._files.put(self._key, self._chunks)

    def abort(self) -> None:
        self._chunks.clear()


class Receiver:
    """Takes shards in, for one provider. `locks` are held, by root, while a shard comes or goes."""

    def __init__(self, context: ProviderContext, lists: Lists, locks: Stripes) -> None:
        self._context = context
        self._lists = lists
        self._locks = locks
        self._limit = context.parameters.segment_size + OVERHEAD
        self._active = 0
        self._senders: Counter[Address] = Counter()  # uploads in flight, by client
        self._arriving: Counter[Hash] = Counter()  # bytes on their way, by lease
        self.received_bytes = 0
        self._finishing: set[asyncio.Task[None]] = set()

    async def put(self, request: web.Request) -> web.StreamResponse:
        """PUT .../shards/{root}?index=&size=."""
        lease, root = parse_hash(request.match_info["lease"]), parse_hash(request.match_info["root"])
        index, size = _number(request, "index"), _number(request, "size")
        standing = await self._context.leases.find(lease)
        check_stream(standing)
        client = standing.lease.client
        self._context.authenticate(client, request.headers, request.method, request.raw_path, root)
        kept_bytes, was_here = await self._lists.kept(lease, root, self._context.clock())
        whole = kept_bytes + self._arriving[lease] + size
        check_covered(standing, whole, self._context.parameters.epoch_length)
        if not 0 < size <= self._limit:
            raise BodyTooLarge(f"a shard has 1 to {self._limit} bytes, not {size}", limit=self._limit)
        if self._active >= AT_ONCE:
            raise Overloaded(f"{AT_ONCE} shards are arriving already")
        if self._senders[client] >= PER_CLIENT:
            raise Overloaded(f"{PER_CLIENT} shards of {client} are arriving already")
        self._active += 1
        self._senders[client] += 1
        self._arriving[lease] += size
        try:
            record = await _read_record(request, size)
            if not (index < record.n and record.roots[index] == root and record.shard_size == size):
                raise InvalidInput(f"the segment's record names another shard {index}")
            kept = (record.hash(), record.to_bytes())
            if not (was_here and await self._is_here(lease, root, kept)):
                await self._receive(request, lease, root, size, kept)
        finally:
            self._active -= 1
            self._senders[client] -= 1
            if not self._senders[client]:
                del self._senders[client]
            self._arriving[lease] -= size
            if not self._arriving[lease]:
                del self._arriving[lease]
        return ok({}, status=201)

    async def _is_here(self, lease: Hash, root: Hash, record: tuple[Hash, bytes]) -> bool:
        async with self._locks.of(root):
            if not await self._lists.touch(lease, root, record, self._context.clock()):
                return False
            if await in_thread(self._context.files.has, key_of(lease, root)):
                return True
            await self._lists.mark_corrupt(lease, root)
            return False

    async def _receive(
        self, request: web.Request, lease: Hash, root: Hash, size: int, record: tuple[Hash, bytes]
    ) -> None:
        hasher, key = ShardHasher(), key_of(lease, root)
        incoming = (
            _Whole(self._context.files, key, size)
            if size <= WHOLE
            else await in_thread(self._context.files.begin, key, size)
        )
        try:
            async with asyncio.timeout(BODY_SECONDS):
                await self._write(request, incoming, hasher, size)
            if hasher.size != size or hasher.root() != root:
                raise Corrupt(
                    f"the {hasher.size} bytes that arrived are not shard {root} of {size} bytes", shard=str(root)
                )
            shard = Shard(size, b"".join(hasher.hashes()), corrupt=False)
            # A client that hangs up now must not leave bytes without their row.
            task = asyncio.create_task(self._finish(incoming, lease, root, shard, record))
            self._finishing.add(task)
            task.add_done_callback(self._finishing.discard)
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                await asyncio.wait([task])
                raise
        except TimeoutError:
            raise Unavailable(f"the body did not arrive within {BODY_SECONDS} s") from None
        finally:
            incoming.abort()
        self.received_bytes += size

    async def _write(self, request: web.Request, incoming: Arrival, hasher: ShardHasher, size: int) -> None:
        # On the loop's own thread: hashing gives up the interpreter for every leaf, and a second thread that wants it
        # back as often costs more than it brings. What blocks (the sync) runs in a thread.
        arrived = 0
        async for chunk in request.content.iter_any():
            arrived += len(chunk)
            if arrived > size:
                raise BodyTooLarge(f"more than the {size} bytes that were announced", limit=size)
            incoming.write(chunk)
            hasher.update(chunk)

    async def _finish(
        self, incoming: Arrival, lease: Hash, root: Hash, shard: Shard, record: tuple[Hash, bytes]
    ) -> None:
        async with self._locks.of(root):
            await in_thread(incoming.commit)
            await self._lists.stored(lease, root, shard, record, self._context.clock())

    async def stop(self) -> None:
        """Finish what is becoming durable."""
        await asyncio.gather(*self._finishing, return_exceptions=True)


def _number(request: web.Request, name: str) -> int:
    text = request.query.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise MalformedMessage(f"?{name}= must be a number")
    return int(text)


async def _read_record(request: web.Request, size: int) -> SegmentRecord:
    announced = request.content_length
    if announced is None:
        raise MalformedMessage("the body's length must be announced")
    if announced > 4 + MAX_RECORD_BYTES + size:
        raise BodyTooLarge(f"a body of {announced} bytes for a shard of {size}", limit=4 + MAX_RECORD_BYTES + size)
    try:
        async with Pace():
            length = int.from_bytes(await request.content.readexactly(4))
            if length > MAX_RECORD_BYTES or announced != 4 + length + size:
                raise MalformedMessage("the body is not a record's length, a record and a shard of ?size= bytes")
            return SegmentRecord.from_bytes(await request.content.readexactly(length))
    except asyncio.IncompleteReadError:
        raise MalformedMessage("the body ends within the record") from None
