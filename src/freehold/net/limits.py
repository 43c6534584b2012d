"""What one address may take of a server: connections, bytes that are here at once, and requests that come to nothing.

An address is an IPv4 address or an IPv6 /64: whoever has one of these has all of it. Nothing here needs a signature,
so all of it is asked before one is checked. Invariant: memory is bounded by the limits, whoever connects.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import math
import resource
import ssl
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

from freehold.protocol.errors import FreeholdError, Overloaded

CONNECTIONS_PER_ADDRESS = 128
CONNECTIONS = 1024  # in all; fewer where the process may have fewer files open
ADDRESSES = 10_000  # whose waste is remembered
WASTE_BURST = 200  # requests in a row that may come to nothing
WASTE_RATE = 20.0  # of them a second, from then on
HANDSHAKE_SECONDS = 10.0  # for a connection to become one over TLS
CLOSING_SECONDS = 2.0  # for a peer to agree that a connection over TLS is over
REFUSED_SECONDS = 5  # until an address with too many connections may try again
SHARE_OF_ADDRESS = 2  # one address takes at most one part in so many of a Room


@lru_cache(maxsize=4096)
def address_of(host: str | None) -> str:
    """What `host` is counted as: an IPv4 address, the first 64 bits of an IPv6 address."""
    try:
        address = ipaddress.ip_address((host or "").partition("%")[0])
    except ValueError:
        return host or ""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
    return str(address)


class Waste:
    """Requests that came to nothing (malformed, wrongly signed, replayed), by address: a bucket that refills."""

    def __init__(
        self, burst: float = WASTE_BURST, rate: float = WASTE_RATE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst, self._rate, self._clock = burst, rate, clock
        self._spent: OrderedDict[str, tuple[float, float]] = OrderedDict()  # address: how much, as of when

    def check(self, address: str) -> None:
        """Overloaded where an address has wasted all that it may."""
        spent = self._now_spent(address)
        if spent > self._burst - 1:
            wait = math.ceil((spent - self._burst + 1) / self._rate)
            raise Overloaded(f"too many requests from {address} came to nothing", retry_after=max(1, wait))

    def count(self, address: str) -> None:
        """One more."""
        self._spent[address] = (min(self._burst, self._now_spent(address) + 1), self._clock())
        self._spent.move_to_end(address)
        if len(self._spent) > ADDRESSES:
            self._spent.popitem(last=False)

    def _now_spent(self, address: str) -> float:
        spent, at = self._spent.get(address, (0.0, 0.0))
        return max(0.0, spent - (self._clock() - at) * self._rate)


class Room:
    """Memory for bodies: bytes that have arrived and are still in use, over all requests that share it.

    A room may be part of another, which then has to have room too. One address takes at most a part of a room.
    """

    def __init__(self, limit: int, parent: Room | None = None, share_of_address: int = SHARE_OF_ADDRESS) -> None:
        self._limit, self._parent = limit, parent
        self._per_address = limit // share_of_address
        self._by_address: Counter[str] = Counter()
        self.used = 0

    @contextmanager
    def share(self, address: str = "") -> Iterator[Share]:
        """One request's part of it; given back at the end."""
        share = Share(self, address)
        try:
            yield share
        finally:
            if share.size:
                self.give(share.size, address)

    def take(self, size: int, address: str) -> None:
        """Overloaded where so many bytes more do not fit."""
        if self.used + size > self._limit:
            raise Overloaded("too many bytes are arriving at once")
        if self._by_address[address] + size > self._per_address:
            raise Overloaded(f"too many bytes are arriving from {address} at once")
        if self._parent is not None:
            self._parent.take(size, address)
        self.used += size
        self._by_address[address] += size

    def give(self, size: int, address: str) -> None:
        """Bytes are no longer in use."""
        if self._parent is not None:
            self._parent.give(size, address)
        self.used -= size
        self._by_address[address] -= size
        if not self._by_address[address]:
            del self._by_address[address]


class Share:
    """What one request has taken of a Room: only bytes that are here, never what a header announces."""

    def __init__(self, room: Room, address: str) -> None:
        self._room, self._address = room, address
        self.size = 0

    def take(self, size: int) -> None:
        """Overloaded where so many bytes more do not fit."""
        self._room.take(size, self._address)
        self.size += size


class Places:
    """Requests of one sort that are worked on at once: so many in all, and of one address."""

    def __init__(self, in_all: int, per_address: int) -> None:
        self._in_all, self._per_address = in_all, per_address
        self._taken: Counter[str] = Counter()

    @contextmanager
    def take(self, address: str) -> Iterator[None]:
        """One place, given back at the end. Overloaded where there is none."""
        if self._taken.total() >= self._in_all or self._taken[address] >= self._per_address:
            raise Overloaded("too many of these requests at once", retry_after=1)
        self._taken[address] += 1
        try:
            yield
        finally:
            self._taken[address] -= 1
            if not self._taken[address]:
                del self._taken[address]


class Connections:
    """A protocol factory in front of another: takes in no more connections than it may.

    Where there is no room, the address that has the most connections loses its oldest idle one, so that nobody is shut
    out by an address that only holds connections open. With `tls` a connection counts from before its handshake on.
    """

    def __init__(
        self,
        serve: Callable[[], asyncio.Protocol],
        per_address: int = CONNECTIONS_PER_ADDRESS,
        in_all: int = CONNECTIONS,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.serve = serve
        self.tls = tls
        self._per_address = per_address
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._in_all = in_all if files == resource.RLIM_INFINITY else min(in_all, max(1, files // 2))
        self._gates: dict[str, dict[Gate, None]] = {}
        self.count = 0

    def __call__(self) -> Gate:
        """The next connection's protocol."""
        return Gate(self)

    def take(self, gate: Gate) -> bool:
        """Whether this connection may come in."""
        own = self._gates.get(gate.address, {})
        if len(own) >= self._per_address:
            return False
        if self.count >= self._in_all and not self._make_room(len(own)):
            return False
        self._gates.setdefault(gate.address, {})[gate] = None
        self.count += 1
        return True

    def _make_room(self, own: int) -> bool:
        crowd = max(self._gates.values(), key=len)
        idle = next((gate for gate in crowd if not gate.requests), None)
        if len(crowd) <= own + 1 or idle is None:
            return False
        self.leave(idle)
        idle.abort()
        return True

    def leave(self, gate: Gate) -> None:
        """A connection is over; may be said twice."""
        gates = self._gates.get(gate.address, {})
        if gate in gates:
            del gates[gate]
            self.count -= 1
            if not gates:
                del self._gates[gate.address]


class Gate(asyncio.Protocol):
    """One connection. `requests` are being answered on it; where there are none it is idle, or sends a header."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._inner: asyncio.Protocol | None = None
        self._transport: asyncio.Transport | None = None
        self._secured: asyncio.Transport | None = None  # what is above it, over TLS
        self._securing: asyncio.Task[None] | None = None
        self._early: list[bytes] = []  # what came in one piece with the end of the handshake
        self._is_lost = False
        self.address = ""
        self.requests = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peer = transport.get_extra_info("peername")
        self.address = address_of(peer[0] if isinstance(peer, tuple) else None)
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._connections.take(self):
            if self._connections.tls is None:
                self._begin(transport)
            else:
                self._securing = asyncio.get_running_loop().create_task(self._secure(transport, self._connections.tls))
        elif self._connections.tls is None:
            transport.write(REFUSAL)
            transport.close()
        else:
            transport.abort()

    async def _secure(self, raw: asyncio.Transport, tls: ssl.SSLContext) -> None:
        try:
            secured = await asyncio.get_running_loop().start_tls(
                raw,
                self,
                tls,
                server_side=True,
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=CLOSING_SECONDS,
            )
        except OSError:
            self._connections.leave(self)
            raw.abort()
            return
        if secured is not None and not self._is_lost:
            self._secured = secured
            self._begin(secured)

    def _begin(self, transport: asyncio.Transport) -> None:
        self._inner = self._connections.serve()
        self._inner.connection_made(transport)
        early, self._early = self._early, []
        for data in early:
            self._inner.data_received(data)

    def data_received(self, data: bytes) -> None:
        if self._inner is not None:
            self._inner.data_received(data)
        elif self._securing is not None:
            self._early.append(data)

    def eof_received(self) -> bool | None:
        return None if self._inner is None else self._inner.eof_received()

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._inner is not None:
            self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        self._connections.leave(self)
        if self._inner is not None:
            self._inner.connection_lost(exc)

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    @contextmanager
    def unbuffered(self) -> Iterator[None]:
        """Until its end a drain waits until the system has taken all bytes; over TLS, all but the last write's."""
        if self._transport is None or self._is_lost:
            raise ConnectionResetError("the connection is gone")
        self._transport.set_write_buffer_limits(0)
        if self._secured is not None:  # whose limit of 0 would hold up an empty buffer too
            self._secured.set_write_buffer_limits(1, 0)
        try:
            yield
        finally:
            self._transport.set_write_buffer_limits()
            if self._secured is not None and not self._secured.is_closing():
                self._secured.set_write_buffer_limits()


def _refusal(error: FreeholdError) -> bytes:
    body = json.dumps({"schema_version": 1, "success": False, "errors": [error.to_json()]}).encode()
    head = (
        f"HTTP/1.1 {error.status} Too Many Requests\r\nContent-Type: application/json\r\nConnection: close\r\n"
        f"Retry-After: {REFUSED_SECONDS}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


REFUSAL = _refusal(Overloaded("too many connections from this address", retry_after=REFUSED_SECONDS))
