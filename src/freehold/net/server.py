"""The one HTTP server: typed errors as JSON, bounded bodies, health, metrics, a ready file in place of a fixed port.

What nobody has signed for is cheap: connections, bytes that are here at once and requests that come to nothing are
limited by address (`limits.py`), a header has IDLE_SECONDS to arrive, and a body must come at LEAST_RATE.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from freehold.net.limits import Connections, Gate, Room, Share, Waste, address_of
from freehold.net.tls import Certificate, server_context
from freehold.protocol.errors import (
    BodyTooLarge,
    DeadlineExpired,
    FreeholdError,
    InvalidInput,
    MalformedMessage,
    Overloaded,
)
from freehold.protocol.typed import parse_json
from freehold.protocol.units import ZERO_HASH, Hash

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
JSON_LIMIT = 4 * 2**20
SHUTDOWN_SECONDS = 2.0
IDLE_SECONDS = 30.0  # from an answer, or the connection, to the whole header of the next request
BACKLOG = 128  # connections that the system has taken and this process has not
LINGER_SECONDS = 2.0  # for a body that is not wanted to end, before the connection is closed
GRACE_SECONDS = 10.0  # for a body to arrive; and what its bytes take at the slowest rate
LEAST_RATE = 32 * 2**10  # bytes a second
RETRY_AFTER = 1  # seconds, where an error does not say
READ_BYTES = 64 * 2**10  # of a body that wait to be read; about twice that for a moment
BODIES_LIMIT = 64 * 2**20  # bytes of bodies that are here at once, of handlers that have no room of their own

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_WASTE = web.AppKey("waste", Waste)
_ROOM = web.AppKey("room", Room)
_SHARE = web.RequestKey("share", Share)


def ok(data: Any, status: int = 200) -> web.Response:
    """A successful answer in the envelope."""
    body = msgspec.json.encode({"schema_version": SCHEMA_VERSION, "success": True, "data": data})
    return web.Response(body=body, status=status, content_type="application/json", charset="utf-8")


def failure(error: FreeholdError) -> web.Response:
    """A typed error in the envelope; `retry_after` in its details becomes the header."""
    headers = {}
    if error.status in (429, 503):
        headers["Retry-After"] = str(error.details.get("retry_after", RETRY_AFTER))
    body = {"schema_version": SCHEMA_VERSION, "success": False, "errors": [error.to_json()]}
    return web.json_response(body, status=error.status, headers=headers)


def sender_address(request: web.Request) -> str:
    """The address that a request counts for."""
    return address_of(request.remote)


def _gate_of(request: web.Request) -> Gate | None:
    gate = request.transport.get_protocol() if request.transport is not None else None
    return gate if isinstance(gate, Gate) else None


def unbuffered(request: web.Request) -> AbstractContextManager[None]:
    """A context in which whoever drains waits until the system has taken all bytes; over TLS, all but the last write's.

    ConnectionResetError where the connection is gone.
    """
    gate = _gate_of(request)
    if gate is None:
        raise ConnectionResetError("the connection is gone")
    return gate.unbuffered()


@web.middleware
async def _limits(request: web.Request, handler: Handler) -> web.StreamResponse:
    waste, address = request.app[_WASTE], sender_address(request)
    try:
        waste.check(address)
    except Overloaded as error:
        return failure(error)
    gate = _gate_of(request)
    if gate is not None:
        gate.requests += 1
    try:
        with request.app[_ROOM].share(address) as share:
            request[_SHARE] = share
            return await _answer(request, handler)
    except InvalidInput as error:
        waste.count(address)
        return failure(error)
    finally:
        if gate is not None:
            gate.requests -= 1


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except InvalidInput:
        raise
    except FreeholdError as error:
        return failure(error)
    except web.HTTPRequestEntityTooLarge as error:
        raise BodyTooLarge(f"the body has more than {error.text}") from None
    except web.HTTPNotFound:
        raise MalformedMessage(f"there is nothing at {request.path}") from None
    except web.HTTPException:
        raise
    except (ConnectionError, TimeoutError):
        raise
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return failure(FreeholdError("internal error; see the log of this process"))


class Pace:
    """A context in which bytes must arrive at LEAST_RATE, after GRACE_SECONDS; DeadlineExpired where they do not."""

    def __init__(self) -> None:
        self._timeout = asyncio.timeout(GRACE_SECONDS)
        self._due = 0.0

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        self._due = asyncio.get_running_loop().time() + GRACE_SECONDS
        return self

    def count(self, size: int) -> None:
        """So many bytes have arrived."""
        self._due += size / LEAST_RATE
        self._timeout.reschedule(self._due)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            raise DeadlineExpired("the body arrives too slowly", hint="Send it faster.") from None


async def read_head(request: web.Request, size: int, limit: int) -> bytes:
    """The first `size` bytes of a body of at most `limit` bytes. MalformedMessage where it ends before them."""
    _check_announced(request, limit)
    try:
        async with Pace():
            return await request.content.readexactly(size)
    except asyncio.IncompleteReadError:
        raise MalformedMessage(f"the body ends before its first {size} bytes") from None


async def read_body(request: web.Request, limit: int, share: Share | None = None, begun: bytes = b"") -> bytes:
    """The whole body, at most `limit` bytes: BodyTooLarge before more is read. `begun` is what was read before.

    DeadlineExpired where it comes too slowly, Overloaded where the room that `share` is of (without one: that of all
    handlers without one) is used up.
    """
    _check_announced(request, limit)
    taken = request[_SHARE] if share is None else share
    taken.take(len(begun))
    chunks, size = [begun], len(begun)
    async with Pace() as pace:
        async for chunk in request.content.iter_any():
            size += len(chunk)
            if size > limit:
                raise BodyTooLarge(f"the body has more than {limit} bytes", limit=limit)
            taken.take(len(chunk))
            pace.count(len(chunk))
            chunks.append(chunk)
    return b"".join(chunks)


def _check_announced(request: web.Request, limit: int) -> None:
    if (request.content_length or 0) > limit:
        raise BodyTooLarge(f"the body has more than {limit} bytes", limit=limit)


async def read_json(request: web.Request, limit: int = JSON_LIMIT, share: Share | None = None) -> dict[str, Any]:
    """The body as a JSON object; MalformedMessage for anything else."""
    value = parse_json(await read_body(request, limit, share))
    if not isinstance(value, dict):
        raise MalformedMessage("the body must be a JSON object")
    return value


def make_app(
    routes: Sequence[web.RouteDef],
    *,
    ready: Callable[[], tuple[bool, str]],
    metrics: Callable[[], str],
    limit: int = JSON_LIMIT,
) -> web.Application:
    """The application of a process. `ready` says whether, and if not why not; `metrics` gives Prometheus text."""

    async def healthz(_: web.Request) -> web.Response:
        return ok({"live": True})

    async def readyz(_: web.Request) -> web.Response:
        is_ready, why = ready()
        body = {"schema_version": SCHEMA_VERSION, "success": is_ready, "data": {"ready": is_ready, "why": why}}
        return web.json_response(body, status=200 if is_ready else 503)

    async def show_metrics(_: web.Request) -> web.Response:
        return web.Response(text=metrics(), content_type="text/plain", charset="utf-8")

    app = web.Application(middlewares=[_limits], client_max_size=limit)
    app[_WASTE], app[_ROOM] = Waste(), Room(BODIES_LIMIT)
    health = [web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", show_metrics)]
    app.add_routes([*health, *routes])
    return app


@dataclass
class Server:
    """A running server. `fingerprint` is that of its certificate; zero over http."""

    url: str
    fingerprint: Hash
    connections: Connections
    _runner: web.AppRunner
    _listening: asyncio.Server

    async def stop(self) -> None:
        """Take no new connections, finish what runs, close."""
        self._listening.close()
        await self._runner.cleanup()


async def serve(
    app: web.Application,
    host: str,
    port: int,
    ready_file: Path | None = None,
    read_bytes: int = READ_BYTES,
    tls: Certificate | None = None,
) -> Server:
    """Listen (port 0: any free one); once connections are taken, write `{"url", "fingerprint", "pid"}` to `ready_file`.

    `read_bytes` of each body may wait to be read: more where large bodies are to arrive in few pieces. With a
    certificate the server speaks https and nothing else.
    """
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=_http_log(),
        shutdown_timeout=SHUTDOWN_SECONDS,
        handler_cancellation=True,
        keepalive_timeout=IDLE_SECONDS,
        lingering_time=LINGER_SECONDS,
        read_bufsize=read_bytes,
    )
    await runner.setup()
    assert runner.server is not None
    context = None if tls is None else server_context(tls.certificate, tls.key)
    connections = Connections(runner.server, tls=context)
    listening = await asyncio.get_running_loop().create_server(connections, host, port, backlog=BACKLOG)
    scheme, fingerprint = ("http", ZERO_HASH) if tls is None else ("https", tls.fingerprint)
    url = f"{scheme}://{host}:{listening.sockets[0].getsockname()[1]}"
    server = Server(url, fingerprint, connections, runner, listening)
    if ready_file is not None:
        write_ready_file(ready_file, {"url": url, "fingerprint": str(fingerprint), "pid": os.getpid()})
    return server


def _http_log() -> logging.Logger:
    """Where aiohttp reports, but for bytes that are no HTTP: whoever sends these must not fill the disk."""
    logger = logging.getLogger(f"{__name__}.http")
    logger.addFilter(_is_worth_a_line)
    return logger


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


def write_ready_file(path: Path, value: dict[str, Any]) -> None:
    """Atomically, so that a reader sees all of it or nothing."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps(value))
    temporary.replace(path)
