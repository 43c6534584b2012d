"""A shard goes out: read, hashed as read, signed for, paid by voucher.

The node signs the root of the bytes that it really read, so it hashes them each time: damage on its own disk is found
here and answered as Corrupt. One answer is served ahead of the client's voucher, no more. Invariant: what is sent was
counted, durably, before the first byte; what was not sent is taken back, unless the reader was too slow.

The signed header binds a node to the bytes that it says it sends; nothing binds the bytes to the header. A node that
signs the right root and sends garbage has proven nothing against itself: the client drops the shard, does not count it
as received, and asks elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakValueDictionary

import msgspec
from aiohttp import web

from freehold.net.server import unbuffered
from freehold.protocol.errors import Corrupt, MalformedMessage, NotFound, Refused
from freehold.protocol.messages import Voucher
from freehold.protocol.units import ZERO_HASH, Address, Hash
from freehold.services.seam import Charge, ProviderContext
from freehold.services.storage import shard_tree
from freehold.services.storage.lists import Lists
from freehold.services.storage.receiving import in_thread, key_of, parse_hash
from freehold.services.storage.terms import NAME, UNITS_PER_VOUCHER_PRICE, Served

log = logging.getLogger(__name__)

VOUCHER_HEADER, PREPAID_HEADER, SERVED_HEADER = "Freehold-Voucher", "Freehold-Prepaid", "Freehold-Served"
VALID_SECONDS = 300  # how long a signed header can be held against the node
AT_ONCE = 16  # shards in memory; further requests wait
SPARE = 4  # shards' buffers that are kept for the next answers
PIECE = 256 << 10
PER_CLIENT = 4  # of them
GRACE_SECONDS = 10  # for an answer to be taken; and what its bytes take at the slowest rate that keeps its place
LEAST_RATE = 256 << 10  # bytes a second


class Buffers:
    """Memory for shards that one answer after another uses: to find and clear fresh pages costs more than to read.

    A buffer comes back only from an answer that ended well, when nothing of it is on its way any more.
    """

    def __init__(self) -> None:
        self._spare: list[mmap.mmap] = []

    @contextmanager
    def lend(self, size: int) -> Iterator[memoryview]:
        """At least `size` bytes, with whatever was in them: whole pages from a page on."""
        whole = max(1, -(-size // mmap.PAGESIZE)) * mmap.PAGESIZE
        buffer = self._spare.pop() if self._spare else mmap.mmap(-1, whole)
        if len(buffer) < whole:
            buffer = mmap.mmap(-1, whole)
        yield memoryview(buffer)[:whole]
        if len(self._spare) < SPARE:
            self._spare.append(buffer)


class Sender:
    """Serves shards, for one provider."""

    def __init__(self, context: ProviderContext, lists: Lists) -> None:
        self._context = context
        self._lists = lists
        self._room = asyncio.Semaphore(AT_ONCE)
        self._places: WeakValueDictionary[Address, asyncio.Semaphore] = WeakValueDictionary()
        self._buffers = Buffers()
        self.sent_bytes = 0

    async def get(self, request: web.Request) -> web.StreamResponse:
        """GET .../shards/{root} with a voucher."""
        lease, root = parse_hash(request.match_info["lease"]), parse_hash(request.match_info["root"])
        standing = await self._context.leases.find(lease)
        client = standing.lease.client
        self._context.authenticate(client, request.headers, request.method, request.raw_path, ZERO_HASH)
        if standing.lease.service != NAME:
            raise Refused("this lease is not for storage")
        text = request.headers.get(VOUCHER_HEADER)
        if text is None:
            raise MalformedMessage(f"the header {VOUCHER_HEADER} is missing")
        voucher = Voucher.from_bytes(text.encode("utf-8", "replace"))
        shard = await self._lists.shard(lease, root)
        if shard is None:
            raise NotFound(f"shard {root} is not here", shard=str(root))
        if shard.corrupt:
            raise Corrupt(f"shard {root} is damaged here", shard=str(root))
        place = self._places.setdefault(client, asyncio.Semaphore(PER_CLIENT))
        async with place, self._room:
            with self._buffers.lend(shard.size) as pages:
                data = await self._read(lease, root, pages, shard.size)
                charge = Charge(
                    client, NAME, len(data), UNITS_PER_VOUCHER_PRICE, request.headers.get(PREPAID_HEADER) == "1"
                )
                await self._context.leases.charge(voucher, charge)
                return await self._send(request, voucher.lease, self._sign(lease, root, len(data)), data)

    async def _read(self, lease: Hash, root: Hash, pages: memoryview, size: int) -> memoryview:
        """A shard's bytes in `pages`, checked against its root; Corrupt marks it."""
        try:
            data, found = await in_thread(self._read_root, key_of(lease, root), pages)
        except (NotFound, OSError) as error:
            log.error("shard %s of lease %s cannot be read: %s", root, lease, error)
            data, found = pages[:0], None
        if found != root or len(data) != size:
            await self._lists.mark_corrupt(lease, root)
            raise Corrupt(f"shard {root} is damaged here", shard=str(root))
        return data

    def _read_root(self, key: str, pages: memoryview) -> tuple[memoryview, bytes]:
        data = pages[: self._context.files.read_into(key, pages)]
        return data, shard_tree.root(data)

    def _sign(self, lease: Hash, root: Hash, size: int) -> Served:
        deadline = self._context.clock() + VALID_SECONDS
        served = Served(lease=lease, shard=root, offset=0, size=size, content=root, deadline=deadline)
        signature = self._context.key.sign(served, self._context.domain)
        return msgspec.structs.replace(served, node_signature=signature)

    async def _send(self, request: web.Request, paid: Hash, served: Served, data: memoryview) -> web.StreamResponse:
        headers = {SERVED_HEADER: served.to_bytes().decode(), "Content-Type": "application/octet-stream"}
        response = web.StreamResponse(headers=headers)
        response.content_length = len(data)
        sent = 0
        try:
            await response.prepare(request)
            async with asyncio.timeout(GRACE_SECONDS + len(data) / LEAST_RATE):
                with unbuffered(request):
                    while sent < len(data):
                        await response.write(data[sent : sent + PIECE])
                        sent = min(len(data), sent + PIECE)
                    await response.write_eof()
                    await request.writer.drain()
        finally:
            self.sent_bytes += sent
            # A reader that is too slow pays for its place.
            if sent < len(data) and not isinstance(sys.exception(), TimeoutError):
                await asyncio.shield(self._context.leases.refund(paid, len(data) - sent))
        return response
