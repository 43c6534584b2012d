"""What clients ask of compute at a node: blobs in and out, orders, logs. All signed by the lease's client.

    PUT, HEAD, GET  /{lease}/blobs/{sha256}
    POST            /{lease}/orders                     taken, or known; waited for, if asked
    GET             /{lease}/orders?after=ID            this client's, a page of them
    GET, DELETE     /{lease}/orders/{id}                how it stands; end it
    GET             /{lease}/orders/{id}/log?after=N&wait=S

Invariant: a blob is answered to whoever pushed its bytes or had it come out of an order, and to nobody else; an order,
to its client.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence

from aiohttp import web

from freehold.net.auth import REQUEST_HEADER, SIGNATURE_HEADER
from freehold.net.server import JSON_LIMIT, Pace, ok, read_body
from freehold.protocol.errors import (
    BodyTooLarge,
    Corrupt,
    InsufficientCredits,
    InvalidInput,
    MalformedMessage,
    NotFound,
    Overloaded,
)
from freehold.protocol.messages import Lease
from freehold.protocol.typed import keccak, parse_json
from freehold.protocol.units import ZERO_HASH, Address, Hash
from freehold.services.compute.node.blobs import PIECE, SMALL, Blobs
from freehold.services.compute.node.orders import Entry, Orders
from freehold.services.compute.node.orders_checks import WAIT_LIMIT, parse_asked, parse_key
from freehold.services.compute.node.orders_credits import check_lease
from freehold.services.compute.node.orders_desk import Desk
from freehold.services.compute.node.orders_live import LOG_LIMIT, Job
from freehold.services.seam import ProviderContext, Standing

BLOB_LIMIT = 256 * 2**20
AT_ONCE, PER_CLIENT = 32, 16  # blobs that are arriving
LOG_END, LOG_START = "Freehold-Log-End", "Freehold-Log-Start"
_NAME = re.compile(r"[0-9a-f]{64}")


class ComputeApi:
    """The client's routes, for one node."""

    def __init__(
        self, context: ProviderContext, desk: Desk, orders: Orders, blobs: Blobs, worked: Callable[[Lease], None]
    ) -> None:
        self._context, self._desk, self._orders, self._blobs = context, desk, orders, blobs
        self._worked = worked  # told of each lease that was ordered under
        self._arriving: Counter[Address] = Counter()
        self.received_bytes, self.sent_bytes = 0, 0

    def routes(self, base: str) -> Sequence[web.RouteDef]:
        """Below `base`."""
        lease = f"{base}/{{lease:0x[0-9a-fA-F]*}}"
        return [
            web.put(f"{lease}/blobs/{{sha256}}", self._put_blob),
            web.head(f"{lease}/blobs/{{sha256}}", self._head_blob),
            web.get(f"{lease}/blobs/{{sha256}}", self._get_blob, allow_head=False),
            web.post(f"{lease}/orders", self._post_order),
            web.get(f"{lease}/orders", self._list_orders),
            web.get(f"{lease}/orders/{{order}}", self._show_order),
            web.delete(f"{lease}/orders/{{order}}", self._stop_order),
            web.get(f"{lease}/orders/{{order}}/log", self._show_log),
        ]

    async def _client_of(self, request: web.Request, body: Hash = ZERO_HASH) -> Standing:
        """The lease that a request is under; WrongSignature unless its client has sent it."""
        standing = await self._context.leases.find(parse_key(request.match_info["lease"], "a lease"))
        client = standing.lease.client
        self._context.authenticate(client, request.headers, request.method, request.raw_path, body)
        return standing

    # Blobs

    async def _put_blob(self, request: web.Request) -> web.StreamResponse:
        sha256, size = name_of(request), request.content_length
        standing = await self._client_of(request)
        check_lease(standing)
        if standing.lock <= standing.settled:
            raise InsufficientCredits(
                "no certified reservation covers this lease", missing="1", lock=str(standing.lock)
            )
        client = standing.lease.client
        if size is None:
            raise MalformedMessage("the body's length must be announced")
        if size > BLOB_LIMIT:
            raise BodyTooLarge(f"a blob has at most {BLOB_LIMIT} bytes", limit=BLOB_LIMIT)
        if await self._blobs.own(client, sha256):
            return ok({})
        if sum(self._arriving.values()) >= AT_ONCE or self._arriving[client] >= PER_CLIENT:
            raise Overloaded("too many blobs are arriving already")
        self._arriving[client] += 1
        try:
            if size <= SMALL:
                await self._take_small(request, client, sha256)
            else:
                await self._take_large(request, client, sha256, size)
        finally:
            self._arriving[client] -= 1
            if not self._arriving[client]:
                del self._arriving[client]
        self.received_bytes += size
        return ok({}, status=201)

    async def _take_small(self, request: web.Request, client: Address, sha256: str) -> None:
        body = await read_body(request, SMALL)
        if hashlib.sha256(body).hexdigest() != sha256:
            raise Corrupt(f"the {len(body)} bytes that arrived are not blob {sha256}")
        await self._blobs.keep(client, {sha256: body})

    async def _take_large(self, request: web.Request, client: Address, sha256: str, size: int) -> None:
        digest, arrived = hashlib.sha256(), 0
        with await self._blobs.begin(sha256, size) as arrival:
            async with Pace() as pace:
                async for chunk in request.content.iter_any():
                    arrived += len(chunk)
                    if arrived > size:
                        raise BodyTooLarge(f"more than the {size} bytes that were announced", limit=size)
                    pace.count(len(chunk))
                    arrival.write(chunk)
                    digest.update(chunk)
            if arrived != size or digest.hexdigest() != sha256:
                raise Corrupt(f"the {arrived} bytes that arrived are not blob {sha256}")
            # A client that hangs up now must not leave a file without its row.
            finishing = asyncio.ensure_future(self._blobs.finish(arrival, client, sha256, size))
            try:
                await asyncio.shield(finishing)
            except asyncio.CancelledError:
                await asyncio.wait([finishing])
                raise

    async def _head_blob(self, request: web.Request) -> web.StreamResponse:
        sha256 = name_of(request)
        standing = await self._client_of(request)
        if not await self._blobs.own(standing.lease.client, sha256):
            raise NotFound(f"there is no blob {sha256} here", sha256=sha256)
        return web.Response()

    async def _get_blob(self, request: web.Request) -> web.StreamResponse:
        standing = await self._client_of(request)
        return await self.send_blob(request, standing.lease.client, name_of(request))

    async def send_blob(self, request: web.Request, client: Address | None, sha256: str) -> web.StreamResponse:
        """A blob that `client` may read (None: who asks was checked otherwise)."""
        kept = await self._blobs.find(client, sha256)
        self.sent_bytes += kept.size
        if kept.body is not None:
            return web.Response(body=kept.body, content_type="application/octet-stream")
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        response.content_length = kept.size
        first = await self._blobs.read_piece(sha256, 0)
        await response.prepare(request)
        await response.write(first)
        for offset in range(PIECE, kept.size, PIECE):
            await response.write(await self._blobs.read_piece(sha256, offset))
        await response.write_eof()
        return response

    # Orders

    async def _post_order(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request, JSON_LIMIT)
        standing = await self._client_of(request, keccak(body))
        check_lease(standing)
        value = parse_json(body)
        if not isinstance(value, dict):
            raise MalformedMessage("the body must be a JSON object")
        asked = parse_asked(value, standing, self._context.domain)
        found = await self._desk.take(asked, standing)
        self._worked(standing.lease)
        return await self._answer(found, asked.wait)

    async def _answer(self, found: Job | Entry, wait: float) -> web.StreamResponse:
        if isinstance(found, Job) and wait:
            await _wait_for(found.ended, wait)
        return ok(await self._desk.standing(found))

    async def _list_orders(self, request: web.Request) -> web.StreamResponse:
        standing = await self._client_of(request)
        after = request.query.get("after")
        page = await self._orders.page(standing.lease.client, parse_key(after) if after else None)
        return ok({"jobs": [await self._desk.standing(entry, is_short=True) for entry in page]})

    async def _find(self, request: web.Request) -> Job | Entry:
        """The order that a request is about. NotFound unless it is its client's."""
        standing = await self._client_of(request)
        key = parse_key(request.match_info["order"])
        found = await self._desk.find(key)
        entry = found.entry if isinstance(found, Job) else found
        if found is None or entry is None or entry.client != standing.lease.client:
            raise NotFound(f"there is no order {key} here", order=str(key))
        return found

    async def _show_order(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(await self._find(request), _wait_of(request))

    async def _stop_order(self, request: web.Request) -> web.StreamResponse:
        found = await self._find(request)
        if request.query_string:
            raise MalformedMessage("a request to stop an order has no query")
        if isinstance(found, Job):
            found.stop_request = found.stop_request or (
                request.raw_path,
                request.headers[REQUEST_HEADER],
                request.headers[SIGNATURE_HEADER],
            )
            await self._desk.stop_job(found)
        return ok(await self._desk.standing(found))

    async def _show_log(self, request: web.Request) -> web.StreamResponse:
        found, wait = await self._find(request), _wait_of(request)
        after = _number(request, "after")
        if isinstance(found, Entry):
            start = found.log_end - len(found.log)
            data, end, is_end = found.log[max(0, after - start) :], found.log_end, True
        else:
            await _wait_for_log(found, after, wait)
            start, is_end = found.log.start, found.ended.is_set()
            data, end = found.log.read(after), found.log.end
        headers = {LOG_END: "true" if is_end else "false", LOG_START: str(min(max(start, after), end))}
        return web.Response(body=data[:LOG_LIMIT], headers=headers, content_type="application/octet-stream")


async def _wait_for(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass


async def _wait_for_log(job: Job, after: int, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            while job.log.end <= after and not job.ended.is_set():
                await job.watch().wait()
    except TimeoutError:
        pass


def name_of(request: web.Request) -> str:
    """The blob that a path names. InvalidInput."""
    name = request.match_info["sha256"]
    if not _NAME.fullmatch(name):
        raise InvalidInput("a blob is named by its SHA-256, in lower-case hexadecimal")
    return name


def _wait_of(request: web.Request) -> int:
    return min(_number(request, "wait"), WAIT_LIMIT)


def _number(request: web.Request, name: str) -> int:
    text = request.query.get(name, "0")
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise MalformedMessage(f"?{name}= must be a number")
    return int(text)
