"""What a provider's context holds beside what a test is about."""

from __future__ import annotations

from typing import Any

from freehold.protocol.errors import NotFound
from freehold.protocol.units import Address
from freehold.services.seam import Prices


async def no_peers(node: Address) -> Any:
    raise NotFound(f"node {node} is not registered")


NOTHING_ELSE: dict[str, Any] = {
    "settings": {},
    "prices": Prices(0, 0),
    "place": "",
    "folder": "",
    "find_peer": no_peers,
}
