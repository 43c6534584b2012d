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
from freehold.protocol.lookup import Finder
from freehold.protocol.merkle import ACCOUNTS, SumTree, depth_of
from freehold.protocol.state import State, TableRoot
from freehold.protocol.units import Address

STATES = 4  # kept in memory: the newest, the one that claims are proven against, and some between
WAITING = 16  # requests that wait for a state to be read, and as many that wait for their answer
AT_ONCE = 4  # answers that are put together
CONCERNED = ("node", "device", "first", "second")  # the fields of a service's rows that say whom they are about


class _View:
    """A state, its tables' roots and row hashes, and its accounts tree, computed once."""

    def __init__(self, state: State) -> None:
        self.tables = state.tables()
        self._finders: dict[tuple[str, str], Finder] = {}
        self.roots: tuple[TableRoot, ...] = state.table_roots()
        self.tree: SumTree = state.accounts_tree()

    def proven(self, name: str, field: str, *wanted: bytes) -> list[dict[str, Any]]:
        """The rows of a table whose `field` is one of those wanted, each with its place and proof."""
        return self._prove(name, self.places(name, field, *wanted))

    def concerning(self, name: str, address: Address) -> list[dict[str, Any]]:
        """The rows of a service's table that name a node, or a device, with their places and proofs."""
        fields = [field for field in CONCERNED if field in self.tables[name].columns]
        return self._prove(name, sorted({place for field in fields for place in self.places(name, field, address)}))

    def _prove(self, name: str, places: list[int]) -> list[dict[str, Any]]:
        table = self.tables[name]
        return [
            {"row": table.row(i).to_json(), "index": i, "proof": [str(h) for h in table.tree.proof(i)]} for i in places
        ]

    def places(self, name: str, field: str, *wanted: bytes) -> list[int]:
        """Where such rows stand: who asks costs what it gets, not what the table holds."""
        if (name, field) not in self._finders:
            self._finders[name, field] = Finder(self.tables[name].column(field))
        finder = self._finders[name, field]
        return sorted(place for key in set(wanted) for place in finder.find(key))

    def answer(self, rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
        return {"tables": [root.to_json() for root in self.roots], "rows": rows}


class Views:
    """Committed states, read from the store as they are asked for."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: OrderedDict[int, _View] = OrderedDict()
        self._lock, self._turn = asyncio.Lock(), asyncio.Semaphore(AT_ONCE)
        self._waiting = self._collecting = 0
        self._rollbacks = 0

    async def _view(self, epoch: int) -> _View:
        if self._rollbacks != self._store.rollbacks:
            self._rollbacks = self._store.rollbacks
            self._known.clear()
        if epoch not in self._known:
            if self._waiting >= WAITING:
                raise Overloaded("too many states are asked for at once", retry_after=1)
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
        """What a node answers for: its leases, their locks, its operator's row, and the services' rows that name it, as
        who answers or as one of two that are judged; a device's row is found by its address too. NotFound."""
        view = await self._view(epoch)

        def collect() -> dict[str, Any]:
            rows = {name: view.concerning(name, node) for name in view.tables if "." in name}
            rows["leases"] = view.proven("leases", "node", node)
            leases = [bytes.fromhex(row["row"]["lease"][2:]) for row in rows["leases"]]
            rows["locks"] = view.proven("locks", "lease", *leases)
            rows["operators"] = view.proven("operators", "node", node)
            return view.answer(rows)

        return await self._put_together(collect)

    async def client(self, epoch: int, client: Address) -> dict[str, Any]:
        """What a client has: its credits and reservation, its leases and locks. NotFound."""
        view = await self._view(epoch)

        def collect() -> dict[str, Any]:
            names = ("clients", "leases", "locks")
            return view.answer({name: view.proven(name, "client", client) for name in names})

        return await self._put_together(collect)

    async def _put_together(self, collect: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """AT_ONCE in threads; Overloaded where more than WAITING wait for these."""
        if self._collecting >= AT_ONCE + WAITING:
            raise Overloaded("too many rows are asked for at once", retry_after=1)
        self._collecting += 1
        try:
            async with self._turn:
                return await asyncio.to_thread(collect)
        finally:
            self._collecting -= 1

    async def account(self, epoch: int, address: Address) -> dict[str, Any]:
        """An account and its proof, 67 bytes a level, bottom up. NotFound."""
        view = await self._view(epoch)
        places = view.places("accounts", "account", address)
        if not places:
            raise NotFound(f"epoch {epoch} has no account {address}", epoch=epoch)
        siblings = view.tree.proof(places[0])
        return {
            "epoch": epoch,
            "account": view.tables["accounts"].row(places[0]).to_json(),
            "proof": "0x" + b"".join(ACCOUNTS.pack(node) for node in siblings).hex(),
            "depth": depth_of(len(view.tables["accounts"])),
        }
