"""Bodies of requests: from the socket to whoever stores them, decoded, hashed and verified on the way, in flat memory.

    aiohttp's buffer -> aws-chunked decoder -> hashers -> `Body.read` into the buffer of who asks

Nothing is read, and no `100 Continue` is sent, before the first byte is asked for; no more is read than somebody takes.
Large pieces are hashed in threads: the loop stays free, and several bodies are hashed at once. Invariant: `finish`
returns only where the whole body has arrived and is what its headers, its signature and its trailers say.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress

import aiohttp
from aiohttp import web

from freehold.client.bucket_types import FULL_OBJECT, Digests
from freehold.gateway.call import Call
from freehold.gateway.wire.checksums import BodyDigests
from freehold.gateway.wire.errors import S3Error
from freehold.gateway.wire.sigv4 import UNSIGNED, parse_payload_hash
from freehold.gateway.wire.streaming import ChunkDecoder
from freehold.services.storage.client_sources import Source

OBJECT_LIMIT = 5 * 2**30  # bytes of one PUT
DOCUMENT_LIMIT = 4 * 2**20  # of what is parsed as a whole: ten thousand parts with checksums have less
SMALL = 64 * 2**10  # a body that is read as a whole
TURN = 2**20  # bytes that are hashed at once
INLINE = 32 * 2**10  # a piece that is hashed where it is: a thread costs more
LARGE = 256 * 2**10  # bytes from which a transfer waits for its turn
LARGE_AT_ONCE = 64  # of 8 MiB segments, about 26 MiB each
TURN_SECONDS = 20.0
GRACE_SECONDS = 20.0  # that a client may keep us waiting in all, besides what its bytes take at the slowest rate
LEAST_RATE = 32 * 2**10  # bytes a second
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def digests_of(digests: BodyDigests) -> Digests:
    """What was computed, as buckets take it."""
    checksums = digests.checksums
    return Digests(digests.etag, checksums, FULL_OBJECT if checksums else "")


class Turns:
    """Large transfers at once. Each holds buffers of a segment or more for as long as its client is slow."""

    def __init__(self, count: int = LARGE_AT_ONCE, patience: float = TURN_SECONDS) -> None:
        self._free = asyncio.Semaphore(count)
        self._patience = patience

    @asynccontextmanager
    async def take(self, size: int | None) -> AsyncIterator[None]:
        """One turn, for a transfer of so many bytes; what is small needs none. S3Error SlowDown where none comes."""
        if size is not None and size <= LARGE:
            yield
            return
        try:
            async with asyncio.timeout(self._patience):
                await self._free.acquire()
        except TimeoutError:
            raise S3Error("SlowDown", headers={"Retry-After": "1"}) from None
        try:
            yield
        finally:
            self._free.release()


class Hashing:
    """Hashes pieces in their order, many in one turn of a thread while the next are fetched."""

    def __init__(self, pool: ThreadPoolExecutor, digests: BodyDigests) -> None:
        self._pool = pool
        self._digests = digests
        self._waiting: list[bytes] = []
        self._size = 0  # of what waits
        self._running: asyncio.Future[None] | None = None

    async def add(self, data: bytes) -> None:
        """Hash a piece after those before it, sooner or later."""
        self._waiting.append(data)
        self._size += len(data)
        if self._size >= TURN:
            await self._turn()

    async def done(self) -> None:
        """Until every piece is hashed."""
        await self._turn()
        await self._turn()

    async def _turn(self) -> None:
        """Hash what waits, once it is its turn."""
        if self._running is not None:
            running, self._running = self._running, None
            await running
        pieces, size, self._waiting, self._size = self._waiting, self._size, [], 0
        if size > INLINE:
            self._running = asyncio.get_running_loop().run_in_executor(self._pool, self._hash, pieces)
        else:
            self._hash(pieces)

    def _hash(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self._digests.update(piece)


class Hashed:
    """A source whose bytes are hashed as they are read."""

    def __init__(self, source: Source, hashing: Hashing) -> None:
        self._source = source
        self._hashing = hashing

    @property
    def size(self) -> int | None:
        """Of the source."""
        return self._source.size

    async def read(self, buffer: memoryview) -> int:
        """See `Source`."""
        count = await self._source.read(buffer)
        await self._hashing.add(bytes(buffer[:count]))  # whoever owns the buffer may write to it soon
        return count

    async def finish(self) -> None:
        """See `Source`."""
        await self._source.finish()
        await self._hashing.done()


class Body:
    """One request's body, read once, in order: a `Source` for whoever stores it. `size`: bytes, decoded."""

    def __init__(self, call: Call, size: int, digests: BodyDigests, decoder: ChunkDecoder | None) -> None:
        self.size = size
        self._request = call.request
        self._pool: ThreadPoolExecutor = call.gateway.pool
        self._digests = digests
        self._decoder = decoder
        self._plain = memoryview(b"")  # decoded, and not yet taken
        self._taken = 0
        self._hashing = Hashing(self._pool, digests)
        self._waited = 0.0
        self._arrived = 0
        self._expected = "expect" in call.headers

    async def read(self, buffer: memoryview) -> int:
        """Fill `buffer`; fewer bytes only at the end. S3Error where the body ends before its size."""
        filled = 0
        while filled < len(buffer) and self._taken < self.size:
            if not self._plain:
                self._plain = memoryview(await self._next())
            count = min(len(buffer) - filled, len(self._plain))
            buffer[filled : filled + count] = self._plain[:count]
            self._plain = self._plain[count:]
            filled += count
            self._taken += count
        return filled

    async def read_all(self) -> bytes:
        """The whole body, verified; for what is small."""
        pieces = []
        while self._taken < self.size:
            piece = await self._next()
            pieces.append(piece)
            self._taken += len(piece)
        await self.finish()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def finish(self) -> None:
        """See the module. S3Error names what does not match."""
        while (raw := await self._receive()) != b"":
            if self._decoder is None or self._decoder.feed(raw):
                raise S3Error("IncompleteBody", "The body is longer than the request said.")
        await self._hashing.done()
        trailers: dict[str, str] = {}
        if self._decoder is not None:
            self._decoder.finish()
            trailers = self._decoder.trailers
        self._digests.finish(trailers)

    def digests(self) -> Digests:
        """What was computed, once it is finished."""
        return digests_of(self._digests)

    async def _next(self) -> bytes:
        """The next decoded bytes; at least one."""
        while True:
            raw = await self._receive()
            if not raw:
                raise S3Error("IncompleteBody")
            if self._decoder is None:
                await self._hashing.add(raw)
                return raw
            plain = self._decode(raw) if len(raw) <= INLINE else await self._in_thread(raw)
            if plain:
                return plain

    def _decode(self, raw: bytes) -> bytes:
        assert self._decoder is not None
        plain = self._decoder.feed(raw)
        self._digests.update(plain)
        return plain

    async def _in_thread(self, raw: bytes) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._decode, raw)

    async def _receive(self) -> bytes:
        """What has arrived; waits for it as long as the client may keep us waiting. b"" at the end."""
        content = self._request.content
        if self._expected:
            self._expected = False
            await send_continue(self._request)
        if content.at_eof():
            return b""
        loop = asyncio.get_running_loop()
        began = loop.time()
        patience = GRACE_SECONDS + self._arrived / LEAST_RATE - self._waited
        try:
            async with asyncio.timeout(max(0.0, patience)):
                data = await content.readany()
        except TimeoutError:
            raise S3Error("RequestTimeout") from None
        except (aiohttp.ClientPayloadError, web.RequestPayloadError):
            raise S3Error("IncompleteBody") from None
        self._waited += loop.time() - began
        self._arrived += len(data)
        return data


async def send_continue(request: web.BaseRequest) -> None:
    """Tell a client that asked whether it may send its body that it may."""
    with suppress(ConnectionError):
        await request.writer.write(CONTINUE)
        request.writer.output_size = 0


def open_body(call: Call, limit: int = OBJECT_LIMIT, default: str = "") -> Body:
    """The request's body, of which nothing is read yet.

    `default`: the checksum that is computed where none is asked for. S3Error MissingContentLength, EntityTooLarge, or
    what is wrong with the headers that describe it.
    """
    authorization = call.authorization
    payload_hash = UNSIGNED if authorization is None else authorization.payload_hash
    if authorization is None:
        payload_hash = parse_payload_hash(call.headers.get("x-amz-content-sha256", UNSIGNED))
    decoder = None
    if payload_hash.startswith("STREAMING-"):
        decoder = ChunkDecoder(payload_hash, call.headers, call.seal)
        size = decoder.length
    elif (announced := call.request.content_length) is not None:
        size = announced
    else:
        raise S3Error("MissingContentLength")
    if size > limit:
        raise S3Error("EntityTooLarge", MaxSizeAllowed=limit, ProposedSize=size)
    return Body(call, size, BodyDigests(call.headers, payload_hash, default=default), decoder)


async def read_document(call: Call, limit: int = DOCUMENT_LIMIT) -> bytes:
    """A body that is parsed as a whole, verified; b"" where there is none. S3Error MaxMessageLengthExceeded."""
    if call.request.content_length is None and not call.request.can_read_body:
        return b""
    if (call.request.content_length or 0) > limit:
        raise S3Error("MaxMessageLengthExceeded", MaxMessageLengthBytes=limit)
    return await open_body(call, limit).read_all()
