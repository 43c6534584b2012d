"""A shard goes out: read, hashed as read, signed for, paid by voucher.

The node signs the root of the bytes that it really read, so it hashes them each time: damage on its own disk is found
here and answered as Corrupt, and a node that serves garbage signs the proof of it. One answer is served ahead of the
client's voucher, no more. Invariant: what is sent was counted, durably, before the first byte; what was not sent is
taken back.
"""

from __future__ import annotations

import asyncio
import logging

import msgspec
from aiohttp import web

from freehold.protocol.errors import Corrupt, MalformedMessage, NotFound, Refused, WrongSignature
from freehold.protocol.messages import Voucher
from freehold.protocol.units import ZERO_HASH, Hash
from freehold.services.seam import Charge, ProviderContext
from freehold.services.storage import shard_tree
from freehold.services.storage.lists import Lists
from freehold.services.storage.receiving import in_thread, key_of, parse_hash
from freehold.services.storage.terms import NAME, UNITS_PER_VOUCHER_PRICE, Served

log = logging.getLogger(__name__)

VOUCHER_HEADER, SERVED_HEADER = "Freehold-Voucher", "Freehold-Served"
VALID_SECONDS = 300  # how long a signed header can be held against the node
AT_ONCE = 16  # shards in memory; further requests wait
PIECE = 1 << 20
BODY_SECONDS = 120  # for one shard to be taken: a slow reader does not keep its place for good


class Sender:
    """Serves shards, for one provider."""

    def __init__(self, context: ProviderContext, lists: Lists) -> None:
        self._context = context
        self._lists = lists
        self._room = asyncio.Semaphore(AT_ONCE)
        self.sent_bytes = 0

    async def get(self, request: web.Request) -> web.StreamResponse:
        """GET .../shards/{root} with a voucher."""
        lease, root = parse_hash(request.match_info["lease"]), parse_hash(request.match_info["root"])
        standing = await self._context.leases.find(lease)
        client = standing.lease.client
        sender = self._context.authenticate(request.headers, request.method, request.raw_path, ZERO_HASH)
        if sender != client:
            raise WrongSignature(f"the request is signed by {sender}, the lease is {client}'s")
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
        async with self._room:
            data = await self.read(lease, root)
            await self._context.leases.charge(voucher, Charge(client, NAME, len(data), UNITS_PER_VOUCHER_PRICE))
            return await self._send(request, voucher.lease, self._sign(lease, root, len(data)), data)

    async def read(self, lease: Hash, root: Hash) -> bytes:
        """A shard's bytes, checked against its root; Corrupt marks it."""
        try:
            data, found = await in_thread(self._read, key_of(lease, root))
        except (NotFound, OSError) as error:
            log.error("shard %s of lease %s cannot be read: %s", root, lease, error)
            data, found = b"", None
        if found != root:
            await self._lists.mark_corrupt(lease, root)
            raise Corrupt(f"shard {root} is damaged here", shard=str(root))
        return data

    def _read(self, key: str) -> tuple[bytes, bytes | None]:
        data = self._context.files.read(key)
        return data, shard_tree.root(data)

    def _sign(self, lease: Hash, root: Hash, size: int) -> Served:
        deadline = self._context.clock() + VALID_SECONDS
        served = Served(lease=lease, shard=root, offset=0, size=size, content=root, deadline=deadline)
        signature = self._context.key.sign(served, self._context.domain)
        return msgspec.structs.replace(served, node_signature=signature)

    async def _send(self, request: web.Request, paid: Hash, served: Served, data: bytes) -> web.StreamResponse:
        headers = {SERVED_HEADER: served.to_bytes().decode(), "Content-Type": "application/octet-stream"}
        response = web.StreamResponse(headers=headers)
        response.content_length = len(data)
        sent = 0
        try:
            await response.prepare(request)
            view = memoryview(data)
            async with asyncio.timeout(BODY_SECONDS):
                while sent < len(data):
                    await response.write(view[sent : sent + PIECE])
                    sent = min(len(data), sent + PIECE)
                await response.write_eof()
        finally:
            self.sent_bytes += sent
            if sent < len(data):
                await asyncio.shield(self._context.leases.refund(paid, len(data) - sent))
        return response
