"""The way to a service's port: a process that stands in the service's network namespace and listens on a UNIX socket.

The service has a network of its own, in which there is nothing but itself. This process joins it, and nothing else of
the sandbox, and passes bytes between connections to the socket and connections to the port. It is run by its file,
with the standard library only:

    python service_relay.py PID SOCKET PORT

It prints a line once it listens, and ends with its standard input. Invariant: the service cannot reach anything by it,
since it only ever connects to the service.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import sys

_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000
_OWNER = 0xB701  # NS_GET_USERNS: the user namespace that a namespace belongs to
_CHUNK = 2**16
_HOSTS = ("127.0.0.1", "::1")


def join(process: int) -> None:
    """Join the network namespace of a process. OSError."""
    network = os.open(f"/proc/{process}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    if os.geteuid() != 0:  # its owner may join it, once it is in the user namespace that it belongs to
        _set(fcntl.ioctl(network, _OWNER), _NEW_USER)
    _set(network, _NEW_NETWORK)


def _set(descriptor: int, kind: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, kind):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        writer.transport.abort()


async def _connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    for host in _HOSTS:
        try:
            return await asyncio.open_connection(host, port)
        except OSError:
            continue
    raise ConnectionRefusedError(f"nothing listens on port {port}")


async def serve(path: str, port: int) -> None:
    """Listen until the standard input ends."""

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await _connect(port)
        except OSError:
            writer.close()
            return
        try:
            await asyncio.gather(_pass(reader, inner_writer), _pass(inner_reader, writer))
        finally:
            inner_writer.close()
            writer.close()

    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(0, ended.set)
    async with await asyncio.start_unix_server(relay, path):
        os.write(1, b"listening\n")
        await ended.wait()


if __name__ == "__main__":
    join(int(sys.argv[1]))
    asyncio.run(serve(sys.argv[2], int(sys.argv[3])))
