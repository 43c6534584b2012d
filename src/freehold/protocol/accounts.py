"""The accounts while an epoch is settled: positions stay, totals only grow, a million of them are six arrays."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from freehold.protocol.amounts import AMOUNT_BYTES, Amounts
from freehold.protocol.column_values import cells_of
from freehold.protocol.hashing import Bytes
from freehold.protocol.lookup import Lookup, sort_order
from freehold.protocol.state import AccountState
from freehold.protocol.tables import Table
from freehold.protocol.units import Address


class Accounts:
    """Cumulative totals, to be added to; `table` gives the accounts after it."""

    def __init__(self, before: Table[AccountState]) -> None:
        self._before = before
        self._addresses: Bytes = before.column("account")
        self._tokens = Amounts(before.column("tokens_earned"))
        self._spent = Amounts(before.column("credits_spent"))
        self._touched = False
        self._index()

    def _index(self) -> None:
        order = sort_order(self._addresses)
        self._order = np.arange(len(self._addresses)) if order is None else order
        self._lookup = Lookup(self._addresses[self._order])

    def _find(self, addresses: Bytes) -> NDArray[np.int64]:
        at = self._lookup.find(addresses)
        return np.asarray(np.where(at < 0, -1, self._order[at] if len(self._order) else -1))

    def add_all(self, addresses: Bytes) -> None:
        """Give those of (m, 20) that have none the next positions, in the order of their addresses."""
        fresh = addresses[self._find(addresses) < 0]
        if not len(fresh):
            return
        order = sort_order(fresh)
        fresh = fresh if order is None else fresh[order]
        first = np.ones(len(fresh), bool)
        first[1:] = (fresh[1:] != fresh[:-1]).any(axis=1)
        self._addresses = np.concatenate([self._addresses, fresh[first]])
        self._tokens.grow(len(self._addresses))
        self._spent.grow(len(self._addresses))
        self._touched = True
        self._index()

    def earn(self, addresses: Bytes, tokens: Bytes) -> None:
        """Add (m, 12) tokens to the accounts of (m, 20) addresses, which have positions; each any number of times."""
        self._add(self._tokens, addresses, tokens)

    def spend(self, addresses: Bytes, credits: Bytes) -> None:
        """Add (m, 12) credits spent, likewise."""
        self._add(self._spent, addresses, credits)

    def _add(self, totals: Amounts, addresses: Bytes, amounts: Bytes) -> None:
        if len(addresses):
            totals.add(self._find(addresses), amounts)
            self._touched = True

    def table(self) -> Table[AccountState]:
        """All of them, in the order of their positions; the very table from before if nothing was added."""
        if not self._touched:
            return self._before
        count, known = len(self._addresses), len(self._before)
        earned = np.zeros((count, AMOUNT_BYTES), np.uint8)
        earned[:known] = self._before.column("credits_earned")
        columns = {
            "index": np.arange(count, dtype="<u8"),
            "account": self._addresses,
            "tokens_earned": self._tokens.cells(),
            "credits_earned": earned,
            "credits_spent": self._spent.cells(),
        }
        return Table.from_columns(AccountState, columns, count)


def address_cells(addresses: Iterable[Address]) -> Bytes:
    """(n, 20) uint8."""
    return np.frombuffer(b"".join(addresses), np.uint8).reshape(-1, 20)


def amount_cells(amounts: Iterable[int]) -> Bytes:
    """(n, 12) uint8, little-endian. Overflow if one is no amount."""
    return cells_of(list(amounts), AMOUNT_BYTES)
