"""The one HTTP server: typed errors as JSON, bounded bodies, health, metrics, a ready file in place of a fixed port."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from freehold.protocol.errors import BodyTooLarge, DeadlineExpired, FreeholdError, MalformedMessage, Overloaded
from freehold.protocol.typed import parse_json

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
JSON_LIMIT = 4 * 2**20
SHUTDOWN_SECONDS = 2.0
BODY_SECONDS = 30.0  # for a whole body to arrive
RETRY_AFTER = "1"
READ_BYTES = 2**20  # taken from a connection at once: shards arrive in few pieces

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def ok(data: Any, status: int = 200) -> web.Response:
    """A successful answer in the envelope."""
    return web.json_response({"schema_version": SCHEMA_VERSION, "success": True, "data": data}, status=status)


def failure(error: FreeholdError) -> web.Response:
    """A typed error in the envelope."""
    headers = {"Retry-After": RETRY_AFTER} if error.status in (429, 503) else {}
    body = {"schema_version": SCHEMA_VERSION, "success": False, "errors": [error.to_json()]}
    return web.json_response(body, status=error.status, headers=headers)


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except FreeholdError as error:
        return failure(error)
    except web.HTTPRequestEntityTooLarge as error:
        return failure(BodyTooLarge(f"the body has more than {error.text}"))
    except web.HTTPNotFound:
        return failure(MalformedMessage(f"there is nothing at {request.path}"))
    except web.HTTPException:
        raise
    except (ConnectionError, TimeoutError):
        raise
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return failure(FreeholdError("internal error; see the log of this process"))


class Room:
    """Memory for bodies: bytes that have arrived and are still in use, over all requests that share it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.used = 0

    @contextmanager
    def share(self) -> Iterator[Share]:
        """One request's part of it; given back at the end."""
        share = Share(self)
        try:
            yield share
        finally:
            self.used -= share.size

    def take(self, size: int) -> None:
        """Overloaded where so many bytes more do not fit."""
        if self.used + size > self._limit:
            raise Overloaded("too many bytes are arriving at once")
        self.used += size


class Share:
    """What one request has taken of a Room: only bytes that are here, never what a header announces."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self.size = 0

    def take(self, size: int) -> None:
        """Overloaded where so many bytes more do not fit."""
        self._room.take(size)
        self.size += size


async def read_body(request: web.Request, limit: int, share: Share | None = None) -> bytes:
    """The whole body, at most `limit` bytes: BodyTooLarge before more is read.

    DeadlineExpired where it takes too long, Overloaded where the room that `share` is of is used up.
    """
    if (request.content_length or 0) > limit:
        raise BodyTooLarge(f"the body has more than {limit} bytes", limit=limit)
    chunks, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.content.iter_any():
                size += len(chunk)
                if size > limit:
                    raise BodyTooLarge(f"the body has more than {limit} bytes", limit=limit)
                if share is not None:
                    share.take(len(chunk))
                chunks.append(chunk)
    except TimeoutError:
        raise DeadlineExpired(f"the body took more than {BODY_SECONDS:g} s", hint="Send it faster.") from None
    return b"".join(chunks)


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

    app = web.Application(middlewares=[_errors], client_max_size=limit)
    health = [web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", show_metrics)]
    app.add_routes([*health, *routes])
    return app


@dataclass
class Server:
    """A running server."""

    url: str
    _runner: web.AppRunner

    async def stop(self) -> None:
        """Take no new connections, finish what runs, close."""
        await self._runner.cleanup()


async def serve(app: web.Application, host: str, port: int, ready_file: Path | None = None) -> Server:
    """Listen (port 0: any free one) and write `{"url", "pid"}` to `ready_file` once connections are taken."""
    runner = web.AppRunner(
        app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS, handler_cancellation=True, read_bufsize=READ_BYTES
    )
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    await site.start()
    bound = runner.addresses[0][1]
    server = Server(f"http://{host}:{bound}", runner)
    if ready_file is not None:
        write_ready_file(ready_file, {"url": server.url, "pid": os.getpid()})
    return server


def write_ready_file(path: Path, value: dict[str, Any]) -> None:
    """Atomically, so that a reader sees all of it or nothing."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps(value))
    temporary.replace(path)
