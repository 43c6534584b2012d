"""A client's memory, in SQLite: leases, the last reservation, vouchers, deltas, what must come off lists, receipts.

One file an account and network; several processes of the account may share it. Everything here can be read back from
nodes and members except what is still under way, and that is why it is durable before it is sent. It implements the
books of `market/leases.py` and `market/vouchers.py`, of storage (`client_lists.py`), of compute (`client_receipts.py`).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from freehold.market.leases import KeptLease
from freehold.market.quorum import Held
from freehold.market.reservations import KeptReservation
from freehold.protocol.messages import Certificate, Lease, Reservation
from freehold.protocol.units import Address, Hash, Signature
from freehold.services.compute.ordering.checks import KeptReceipt
from freehold.services.compute.terms import Receipt
from freehold.services.storage.client_objects import ListedShard
from freehold.services.storage.terms import Delta
from freehold.store.sql import Database

MIGRATIONS = (
    """
    CREATE TABLE leases (lease BLOB PRIMARY KEY, message BLOB NOT NULL, certified INTEGER NOT NULL DEFAULT 0)
        STRICT;
    CREATE TABLE reservations (id INTEGER PRIMARY KEY CHECK (id = 1), message BLOB NOT NULL, held BLOB) STRICT;
    CREATE TABLE vouchers (lease BLOB PRIMARY KEY, amount TEXT NOT NULL) STRICT;
    CREATE TABLE deltas (lease BLOB PRIMARY KEY, number INTEGER NOT NULL, message BLOB NOT NULL,
        certified INTEGER NOT NULL DEFAULT 0) STRICT;
    CREATE TABLE shards (shipment TEXT NOT NULL, node BLOB NOT NULL, position INTEGER NOT NULL, root BLOB NOT NULL,
        PRIMARY KEY (shipment, node, position, root)) STRICT, WITHOUT ROWID;
    """,
    "ALTER TABLE leases ADD COLUMN closing INTEGER NOT NULL DEFAULT 0;",
    "CREATE INDEX shards_node ON shards (node, position, root);",
    """
    CREATE TABLE receipts (job BLOB PRIMARY KEY, until INTEGER NOT NULL, message BLOB NOT NULL, price TEXT NOT NULL,
        result BLOB NOT NULL, steps BLOB NOT NULL) STRICT;
    CREATE INDEX receipts_until ON receipts (until);
    """,
)

_GARBAGE = ""
_ADD = "INSERT OR IGNORE INTO shards (shipment, node, position, root) VALUES (?, ?, ?, ?)"
_DELETE = "DELETE FROM shards WHERE shipment = ? AND node = ? AND position = ? AND root = ?"


class _HeldRow(msgspec.Struct, array_like=True):
    certificate: bytes
    epoch: int
    holdings: list[tuple[bytes, bytes]]


class Book:
    """`shards.shipment` is empty for garbage, else the shipment that is to list the shard, or to take it off."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = folder
        self._database = Database(folder / "client.sqlite", MIGRATIONS)

    def close(self) -> None:
        """Finish what is queued, then close."""
        self._database.close()

    @asynccontextmanager
    async def exclusive(self, name: str) -> AsyncIterator[None]:
        """Only one task of one process of this account is inside at a time."""
        locks = self._folder / "locks"
        locks.mkdir(exist_ok=True)
        handle = os.open(locks / name, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            await _lock(handle)
            yield
        finally:
            os.close(handle)

    # Leases and reservations

    async def leases(self) -> Sequence[KeptLease]:
        """See `LeaseBook`."""
        query = "SELECT message, certified, closing FROM leases ORDER BY rowid"
        rows = await self._database.read(lambda c: c.execute(query).fetchall())
        return [KeptLease(Lease.from_bytes(row[0]), bool(row[1]), bool(row[2])) for row in rows]

    async def keep_lease(self, lease: Lease) -> None:
        """See `LeaseBook`."""
        row = (bytes(lease.struct_hash()), lease.to_bytes())
        await self._run("INSERT INTO leases (lease, message) VALUES (?, ?) ON CONFLICT DO NOTHING", [row])

    async def mark_certified(self, leases: Sequence[Hash]) -> None:
        """See `LeaseBook`."""
        await self._run("UPDATE leases SET certified = 1 WHERE lease = ?", [(bytes(lease),) for lease in leases])

    async def mark_closing(self, leases: Sequence[Hash]) -> None:
        """See `LeaseBook`."""
        await self._run("UPDATE leases SET closing = 1 WHERE lease = ?", [(bytes(lease),) for lease in leases])

    async def reservation(self) -> KeptReservation | None:
        """See `LeaseBook`."""
        row = await self._database.read(lambda c: c.execute("SELECT message, held FROM reservations").fetchone())
        return KeptReservation(Reservation.from_bytes(row[0]), _unpack_held(row[1])) if row else None

    async def keep_reservation(self, kept: KeptReservation | None) -> None:
        """See `LeaseBook`."""
        if kept is None:
            await self._run("DELETE FROM reservations", [()])
        else:
            row = (kept.reservation.to_bytes(), _pack_held(kept.held))
            await self._run("REPLACE INTO reservations (id, message, held) VALUES (1, ?, ?)", [row])

    # Vouchers

    async def voucher(self, lease: Hash) -> int:
        """See `VoucherBook`."""
        return await self._database.read(lambda c: _voucher(c, lease))

    async def raise_voucher(self, lease: Hash, amount: int) -> int:
        """See `VoucherBook`."""

        def change(connection: sqlite3.Connection) -> int:
            highest = max(amount, _voucher(connection, lease))
            connection.execute("REPLACE INTO vouchers (lease, amount) VALUES (?, ?)", (bytes(lease), str(highest)))
            return highest

        return await self._database.write(change)

    # Deltas and what must come off lists

    async def newest_delta(self, lease: Hash) -> Delta | None:
        """The newest that both signed."""
        return await self._database.read(lambda c: _newest_delta(c, lease))

    async def list_state(self, lease: Hash, node: Address, limit: int) -> tuple[Delta | None, Sequence[ListedShard]]:
        """See `ListBook`."""
        return await self._database.read(lambda c: (_newest_delta(c, lease), _garbage(c, node, limit)))

    async def keep_delta(self, delta: Delta, collected: Sequence[ListedShard] = ()) -> None:
        """See `ListBook`."""
        statement = """
            INSERT INTO deltas (lease, number, message) VALUES (?, ?, ?) ON CONFLICT (lease) DO UPDATE
            SET number = excluded.number, message = excluded.message, certified = 0
            WHERE excluded.number > deltas.number"""
        row = (bytes(delta.lease), delta.number, delta.to_bytes())
        gone = [(_GARBAGE, *_row(shard)) for shard in collected]

        def change(connection: sqlite3.Connection) -> None:
            connection.executemany(statement, [row])
            connection.executemany(_DELETE, gone)

        await self._database.write(change)

    async def uncertified_deltas(self) -> Sequence[Delta]:
        """See `ListBook`."""
        query = "SELECT message FROM deltas WHERE certified = 0 ORDER BY lease"
        rows = await self._database.read(lambda c: c.execute(query).fetchall())
        return [Delta.from_bytes(message) for (message,) in rows]

    async def mark_deltas(self, deltas: Sequence[Delta]) -> None:
        """See `ListBook`."""
        rows = [(bytes(delta.lease), delta.number) for delta in deltas]
        await self._run("UPDATE deltas SET certified = 1 WHERE lease = ? AND number = ?", rows)

    async def intend(self, shards: Iterable[tuple[str, ListedShard]]) -> None:
        """See `ListBook`."""
        await self._run(_ADD, [(shipment, *_row(shard)) for shipment, shard in shards])

    async def withdraw(self, shards: Iterable[tuple[str, ListedShard]]) -> None:
        """See `ListBook`."""
        await self._run(_DELETE, [(shipment, *_row(shard)) for shipment, shard in shards])

    async def discard(self, shards: Iterable[tuple[str, ListedShard]]) -> None:
        """See `ListBook`."""
        rows = [(shipment, *_row(shard)) for shipment, shard in shards]

        def change(connection: sqlite3.Connection) -> None:
            connection.executemany(_DELETE, rows)
            connection.executemany(_ADD, [(_GARBAGE, *row[1:]) for row in rows])

        await self._database.write(change)

    async def settle(self, shipment: str, named: Iterable[ListedShard]) -> None:
        """A shipment has ended: a head names these; whatever else it has listed, or meant to list, is garbage."""
        rows = [(shipment, *_row(shard)) for shard in named]

        def change(connection: sqlite3.Connection) -> None:
            connection.executemany(_DELETE, rows)
            connection.execute("UPDATE OR REPLACE shards SET shipment = '' WHERE shipment = ?", (shipment,))

        await self._database.write(change)

    async def known(self, shards: Sequence[ListedShard]) -> set[ListedShard]:
        """Those of the shards that are garbage already, or of a shipment that is not settled."""
        query = "SELECT 1 FROM shards WHERE node = ? AND position = ? AND root = ?"

        def work(connection: sqlite3.Connection) -> set[ListedShard]:
            return {shard for shard in shards if connection.execute(query, _row(shard)).fetchone()}

        return await self._database.read(work)

    async def garbage(self, node: Address, limit: int) -> Sequence[ListedShard]:
        """See `ListBook`."""
        return await self._database.read(lambda c: _garbage(c, node, limit))

    async def garbage_nodes(self) -> Sequence[Address]:
        """See `ListBook`."""
        query = "SELECT DISTINCT node FROM shards WHERE shipment = '' ORDER BY node"
        rows = await self._database.read(lambda c: c.execute(query).fetchall())
        return [Address(node) for (node,) in rows]

    async def collected(self, shards: Iterable[ListedShard]) -> None:
        """See `ListBook`."""
        await self.withdraw((_GARBAGE, shard) for shard in shards)

    # Receipts

    async def keep_receipt(self, kept: KeptReceipt) -> None:
        """See `ReceiptBook`."""
        receipt = kept.receipt
        row = (
            bytes(receipt.order().struct_hash()),
            min(receipt.until, 2**62),
            receipt.to_bytes(),
            str(kept.price),
            kept.result,
            b"".join(kept.steps),
        )
        statement = "INSERT INTO receipts (job, until, message, price, result, steps) VALUES (?, ?, ?, ?, ?, ?)"
        await self._run(f"{statement} ON CONFLICT DO NOTHING", [row])

    async def receipts(self, jobs: Collection[Hash] | None = None) -> list[KeptReceipt]:
        """See `ReceiptBook`."""
        query = "SELECT message, price, result, steps FROM receipts"

        def work(connection: sqlite3.Connection) -> list[Any]:
            if jobs is None:
                return connection.execute(f"{query} ORDER BY rowid").fetchall()
            found = (connection.execute(f"{query} WHERE job = ?", (bytes(job),)).fetchone() for job in jobs)
            return [row for row in found if row is not None]

        return [_receipt(row) for row in await self._database.read(work)]

    async def forget_receipts(self, epoch: int) -> None:
        """See `ReceiptBook`."""
        await self._run("DELETE FROM receipts WHERE until < ?", [(epoch,)])

    # Shipments: a lock file each, so that one whose process is gone is known

    @asynccontextmanager
    async def shipping(self, shipment: str) -> AsyncIterator[None]:
        """While inside, the shipment is under way; afterwards what it did not settle is among the abandoned."""
        folder = self._folder / "shipments"
        folder.mkdir(exist_ok=True)
        path = folder / shipment
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            await _lock(handle)
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(handle)

    async def abandoned(self) -> dict[str, list[ListedShard]]:
        """What shipments of processes that are gone have listed, by shipment."""
        query = "SELECT shipment, node, position, root FROM shards WHERE shipment != ''"
        rows = await self._database.read(lambda c: c.execute(query).fetchall())
        gone = {shipment for shipment in {row[0] for row in rows} if not self._is_under_way(shipment)}
        found: dict[str, list[ListedShard]] = {shipment: [] for shipment in gone}
        for shipment, node, position, root in rows:
            if shipment in gone:
                found[shipment].append(ListedShard(Address(node), position, Hash(root)))
        return found

    def _is_under_way(self, shipment: str) -> bool:
        path = self._folder / "shipments" / shipment
        try:
            handle = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    async def _run(self, statement: str, rows: Iterable[tuple[object, ...]]) -> None:
        listed = list(rows)

        def change(connection: sqlite3.Connection) -> None:
            connection.executemany(statement, listed)  # its cursor must not outlive the writer's turn

        await self._database.write(change)


async def _lock(handle: int) -> None:
    """An exclusive flock; others of this process and account wait without blocking the loop."""
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        await asyncio.sleep(0.02)


def _voucher(connection: sqlite3.Connection, lease: Hash) -> int:
    row = connection.execute("SELECT amount FROM vouchers WHERE lease = ?", (bytes(lease),)).fetchone()
    return int(row[0]) if row else 0


def _newest_delta(connection: sqlite3.Connection, lease: Hash) -> Delta | None:
    row = connection.execute("SELECT message FROM deltas WHERE lease = ?", (bytes(lease),)).fetchone()
    return Delta.from_bytes(row[0]) if row else None


def _garbage(connection: sqlite3.Connection, node: Address, limit: int) -> list[ListedShard]:
    query = "SELECT position, root FROM shards WHERE shipment = '' AND node = ? ORDER BY position LIMIT ?"
    rows = connection.execute(query, (bytes(node), limit)) if limit else ()
    return [ListedShard(node, position, Hash(root)) for position, root in rows]


def _receipt(row: Any) -> KeptReceipt:
    message, price, result, steps = row
    hashes = tuple(Hash(steps[at : at + 32]) for at in range(0, len(steps), 32))
    return KeptReceipt(Receipt.from_bytes(message), int(price), result, hashes)


def _row(shard: ListedShard) -> tuple[bytes, int, bytes]:
    return bytes(shard.node), shard.position, bytes(shard.root)


def _pack_held(held: Held | None) -> bytes | None:
    if held is None:
        return None
    holdings = [(bytes(member), bytes(signature)) for member, signature in held.holdings.items()]
    return msgspec.msgpack.encode(_HeldRow(held.certificate.to_bytes(), held.epoch, holdings))


def _unpack_held(data: bytes | None) -> Held | None:
    if data is None:
        return None
    row = msgspec.msgpack.decode(data, type=_HeldRow)
    holdings = {Address(member): Signature(signature) for member, signature in row.holdings}
    return Held(Certificate.from_bytes(row.certificate), row.epoch, holdings)
