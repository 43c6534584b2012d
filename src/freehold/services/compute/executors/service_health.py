"""Asks a service for its health: one GET over its socket, answered with status 200 in time."""

from __future__ import annotations

import asyncio
from pathlib import Path

_LINE = 1024  # bytes of a status line


async def is_healthy(socket: Path, path: str, seconds: float) -> bool:
    """Whether the service behind this UNIX socket answers a GET of `path` with 200 within so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_unix_connection(str(socket), limit=_LINE)
            try:
                head = f"GET {path} HTTP/1.1\r\nHost: service\r\nUser-Agent: freehold\r\nConnection: close\r\n\r\n"
                writer.write(head.encode())
                await writer.drain()
                words = (await reader.readline()).split(b" ", 2)
                return len(words) > 1 and words[0].startswith(b"HTTP/1.") and words[1].strip() == b"200"
            finally:
                writer.close()
    except (OSError, ValueError):  # TimeoutError is an OSError; ValueError: a line without an end
        return False
