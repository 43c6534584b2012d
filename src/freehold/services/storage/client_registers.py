"""One node as a client of registers sees it (`register_routes.py`).

Invariant: nothing here is believed: whoever asks checks the account's signature under what is shown.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from io import BytesIO
from typing import Protocol, TypeVar

import msgspec

from freehold.net.client import BYTES_HEADERS, Peer
from freehold.protocol.errors import Corrupt
from freehold.protocol.units import Address, Hash
from freehold.services.storage.register_values import (
    BODY_LIMIT,
    Accepted,
    Answer,
    Known,
    Listing,
    Place,
    Prepare,
    Shown,
    decode,
)

T = TypeVar("T")


class Acceptor(Protocol):
    """One node's copies of an account's registers. Everything raises Unavailable, or what the node answered."""

    @property
    def node(self) -> Address: ...

    async def groups(self, account: Address) -> list[Shown]: ...

    async def entries(self, account: Address, group: Hash) -> Listing: ...

    async def show(self, place: Place, known: Known) -> Answer: ...

    async def prepare(self, place: Place, wanted: Prepare) -> Answer: ...

    async def accept(self, place: Place, proposal: Accepted) -> Answer: ...


class RegisterNode:
    """A node over HTTP. `lease` finds the lease under which changes are taken; reads take none."""

    def __init__(self, node: Address, peer: Peer, lease: Callable[[], Awaitable[Hash]]) -> None:
        self.node = node
        self._peer = peer
        self._lease = lease

    async def groups(self, account: Address) -> list[Shown]:
        """Every group of an account that this node has heard of."""
        return await self._exchange("GET", f"/v1/storage/registers/{account}", list[Shown])

    async def entries(self, account: Address, group: Hash) -> Listing:
        """A group's registers."""
        return await self._exchange("GET", f"/v1/storage/registers/{account}/{group}", Listing)

    async def show(self, place: Place, known: Known) -> Answer:
        """What it has accepted, beyond what is known."""
        query = f"?counter={known.counter}&proposer={known.proposer.hex()}&chain={known.chain.hex()}"
        return await self._exchange("GET", f"{_path(place)}{query}&parts={int(known.parts)}", Answer)

    async def prepare(self, place: Place, wanted: Prepare) -> Answer:
        """Ask for a promise."""
        return await self._exchange("POST", f"{_path(place)}/prepare{await self._query()}", Answer, wanted)

    async def accept(self, place: Place, proposal: Accepted) -> Answer:
        """Propose a value."""
        return await self._exchange("POST", f"{_path(place)}/accept{await self._query()}", Answer, proposal)

    async def _query(self) -> str:
        return f"?lease={await self._lease()}"

    async def _exchange(self, method: str, path: str, kind: type[T], value: object = None) -> T:
        # As a file, so that a large body goes out in pieces.
        data = None if value is None else BytesIO(msgspec.msgpack.encode(value))
        async with self._peer.request(method, path, headers=BYTES_HEADERS, data=data) as response:
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > BODY_LIMIT:
                    raise Corrupt(f"{self._peer.url} sent more than {BODY_LIMIT} bytes")
        return decode(bytes(body), kind)


def _path(place: Place) -> str:
    return f"/v1/storage/registers/{place.account}/{place.group}/{place.name.hex()}"
