"""Pages and packs in memory, for any number of tables of one process: those used last, up to so many bytes.

Objects go by identities that are random and never used again, so tables cannot meet. Invariant: what is kept is below
the limit, or a single object.
"""

from __future__ import annotations

from collections import OrderedDict

from freehold.client.table_layers import Layer


class Memory:
    """`limit` in bytes, as whoever keeps something estimates them."""

    def __init__(self, limit: int = 64 << 20) -> None:
        self._limit = limit
        self._used = 0
        self._kept: OrderedDict[bytes, tuple[int, Layer | bytes]] = OrderedDict()

    def __contains__(self, identity: bytes) -> bool:
        return identity in self._kept

    def get(self, identity: bytes) -> Layer | bytes | None:
        """What was kept; None if it is not there any more."""
        if identity not in self._kept:
            return None
        self._kept.move_to_end(identity)
        return self._kept[identity][1]

    def keep(self, identity: bytes, size: int, what: Layer | bytes) -> None:
        """Keep it; what was not used for longest goes."""
        self.drop(identity)
        self._kept[identity] = (size, what)
        self._used += size
        while self._used > self._limit and len(self._kept) > 1:
            self.drop(next(iter(self._kept)))

    def drop(self, identity: bytes) -> None:
        """Keep it no longer."""
        size, _ = self._kept.pop(identity, (0, b""))
        self._used -= size
