"""Rows of a committed state with their proofs: what nodes, clients and claimants ask a member for.

Every row comes with its index and its Merkle proof in its table, and every answer with the tables' roots, whose root
the report commits to: nobody has to believe the member that answers.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from freehold.oracle.store import Store
from freehold.protocol.errors import NotFound, Overloaded
from freehold.protocol.merkle import ACCOUNTS, RowTree, SumTree, depth_of
from freehold.protocol.state import State, TableRoot
from freehold.protocol.typed import Message
from freehold.protocol.units import Address

STATES = 4  # kept in memory: the newest, the one that claims are proven against, and some between
WAITING = 16  # requests that wait for a state to be read
AT_ONCE = 4  # answers that are put together


class _View:
    """A state, its tables' roots and row hashes, and its accounts tree, computed once."""

    def __init__(self, state: State) -> None:
        self.tables = state.tables()
        self._trees: dict[str, RowTree] = {}
        self.roots: tuple[TableRoot, ...] = state.table_roots()
        self.accounts = {account.account: account for account in state.accounts}
        self.tree: SumTree = state.accounts_tree()

    def proven(self, name: str, belongs: Callable[[Any], bool]) -> list[dict[str, Any]]:
        """The rows of a table that belong, each with its place and proof."""
        chosen = [(i, row) for i, row in enumerate(self.tables[name]) if belongs(row)]
        if chosen and name not in self._trees:
            self._trees[name] = RowTree(self.tables[name].row_hashes)
        return [
            {"row": _json(row), "index": i, "proof": [str(h) for h in self._trees[name].proof(i)]} for i, row in chosen
        ]

    def answer(self, rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
        return {"tables": [root.to_json() for root in self.roots], "rows": rows}


class Views:
    """Committed states, read from the store as they are asked for."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: OrderedDict[int, _View] = OrderedDict()
        self._lock, self._turn = asyncio.Lock(), asyncio.Semaphore(AT_ONCE)
        self._waiting = 0

    async def _view(self, epoch: int) -> _View:
        if epoch not in self._known:
            if self._waiting >= WAITING:
                raise Overloaded("too many states are asked for at once")
            self._waiting += 1
            try:
                async with self._lock:  # one state is read at a time; those that are known do not wait for it
                    if epoch not in self._known:
                        self._remember(epoch, await asyncio.to_thread(_View, await self._store.state(epoch)))
            finally:
                self._waiting -= 1
        self._known.move_to_end(epoch)
        return self._known[epoch]

    def _remember(self, epoch: int, view: _View) -> None:
        self._known[epoch] = view
        if len(self._known) > STATES:
            # The newest stays: it is what everybody needs, whatever else somebody asks for.
            del self._known[next(known for known in self._known if known != max(self._known))]

    async def node(self, epoch: int, node: Address) -> dict[str, Any]:
        """What a node answers for: its leases, their locks, its operator's row, each service's rows. NotFound."""
        view = await self._view(epoch)

        def collect() -> dict[str, Any]:
            leases = {row.lease for row in view.tables["leases"] if getattr(row, "node", None) == node}  # type: ignore[attr-defined]
            rows = {name: view.proven(name, lambda row: row.node == node) for name in view.tables if "." in name}
            rows["leases"] = view.proven("leases", lambda row: row.node == node)
            rows["locks"] = view.proven("locks", lambda row: row.lease in leases)
            rows["operators"] = view.proven("operators", lambda row: row.node == node)
            return view.answer(rows)

        async with self._turn:
            return await asyncio.to_thread(collect)

    async def client(self, epoch: int, client: Address) -> dict[str, Any]:
        """What a client has: its credits and reservation, its leases and locks. NotFound."""
        view = await self._view(epoch)

        def collect() -> dict[str, Any]:
            names = ("clients", "leases", "locks")
            return view.answer({name: view.proven(name, lambda row: row.client == client) for name in names})

        async with self._turn:
            return await asyncio.to_thread(collect)

    async def account(self, epoch: int, address: Address) -> dict[str, Any]:
        """An account and its proof, 67 bytes a level, bottom up. NotFound."""
        view = await self._view(epoch)
        account = view.accounts.get(address)
        if account is None:
            raise NotFound(f"epoch {epoch} has no account {address}", epoch=epoch)
        siblings = view.tree.proof(account.index)
        return {
            "epoch": epoch,
            "account": account.to_json(),
            "proof": "0x" + b"".join(ACCOUNTS.pack(node) for node in siblings).hex(),
            "depth": depth_of(len(view.accounts)),
        }


def _json(row: Message) -> dict[str, Any]:
    return row.to_json()
