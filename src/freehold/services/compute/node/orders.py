"""The orders that a node has taken, and what came of each, in SQL.

An order is written before it runs; what came of it is written once, with its outputs, before anybody is told. Between
the two there is nothing but what is on its way to storage (`node/delivery.py`): whether an order runs is known in
memory alone, so a node that was killed runs it again from the start. Invariant: an order has at most one receipt,
whatever happens, and what was told of it survives a kill.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from freehold.protocol.errors import Conflict
from freehold.protocol.units import Address, Hash
from freehold.services.compute.node.blobs import MIGRATION as BLOBS
from freehold.services.compute.node.blobs import add_small, missing_of, name_all, unname
from freehold.services.compute.terms import HELD, KEPT_EPOCHS, PAID, UPHELD, WRONG, Order, Receipt
from freehold.services.seam import Sql

QUEUED, RUNNING, FINISHED = "queued", "running", "finished"
PAGE = 500
LOG_KEPT = 64 * 2**10  # bytes of the log's end that are kept once a job has ended
_DECIDED = f"({PAID}, {WRONG}, {UPHELD})"
_UNDECIDED = f"receipt IS NOT NULL AND stand NOT IN {_DECIDED}"

MIGRATIONS = [
    BLOBS
    + f"""
    CREATE TABLE tasks (hash BLOB PRIMARY KEY, body BLOB NOT NULL);
    CREATE TABLE jobs (
        sequence INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, client BLOB NOT NULL, lease BLOB NOT NULL,
        task BLOB NOT NULL, until INTEGER NOT NULL, body BLOB NOT NULL, access BLOB, is_over INTEGER NOT NULL DEFAULT 0,
        ended INTEGER, ending BLOB, receipt BLOB, measure INTEGER NOT NULL DEFAULT 0, stand INTEGER NOT NULL DEFAULT 0,
        log BLOB, log_end INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX jobs_client ON jobs (client, sequence);
    CREATE INDEX jobs_task ON jobs (task);
    CREATE INDEX jobs_open ON jobs (sequence) WHERE is_over = 0;
    CREATE INDEX jobs_over ON jobs (until) WHERE is_over = 1;
    CREATE INDEX jobs_undecided ON jobs (stand, until) WHERE {_UNDECIDED};
    CREATE TABLE deliveries (
        id BLOB PRIMARY KEY, ending BLOB NOT NULL, done INTEGER NOT NULL DEFAULT 0, log BLOB NOT NULL,
        log_end INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE facts (name TEXT PRIMARY KEY, body BLOB NOT NULL, at INTEGER NOT NULL);
    """,
]


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """What came of an order beside its receipt. `result` is canonical JSON; empty where there is no receipt, and
    `reason` then says why. `inputs` are (path, SHA-256) as they were read, `steps` the states' SHA-256. `stop`: its
    client's request to end it: the path, and the headers that sign it (`net/auth.py`). `quote`: the hardware's, where
    the task asks for one (`quoter.py`)."""

    result: str = ""
    reason: str = ""
    measure: int = 0
    inputs: tuple[tuple[str, str], ...] = ()
    steps: tuple[str, ...] = ()
    delivered: bool | None = None
    read_bytes: int = 0
    written_bytes: int = 0
    ended_at: int = 0
    quote: bytes = b""
    stop: tuple[str, str, str] | None = None


class Entry(NamedTuple):
    """One order as it stands in SQL. `stand` is what the committed state says of its receipt (0: nothing)."""

    sequence: int
    id: Hash
    client: Address
    lease: Hash
    order: Order
    access: bytes | None
    ending: Ending | None
    receipt: Receipt | None
    stand: int
    log: bytes
    log_end: int


_COLUMNS = "sequence, id, client, lease, body, access, ending, receipt, stand, log, log_end"


class Orders:
    """Orders and their endings, over one SQL database."""

    def __init__(self, sql: Sql) -> None:
        self._sql = sql

    async def take(
        self,
        order: Order,
        client: Address,
        task: bytes,
        access: bytes | None,
        needed: Iterable[str],
        inline: Mapping[str, bytes],
        now: int,
    ) -> tuple[int, int] | None:
        """Write an order down with the small blobs that came with it, which it names from now on like all that it needs
        (`needed`, by SHA-256). Its place in the order of all, and the bytes that are new; None where it is here.

        Conflict with `missing` where blobs are not here for the client.
        """
        key, wanted = order.struct_hash(), sorted(set(needed))
        body = order.to_bytes()

        def work(c: Any) -> tuple[int, int] | None:
            if c.execute("SELECT 1 FROM jobs WHERE id = ?", (key,)).fetchone():
                return None
            grown = add_small(c, client, inline, now, key)
            missing = missing_of(c, client, wanted)
            if missing:
                raise Conflict("blobs that the order needs are not here", hint="Push them.", missing=missing)
            name_all(c, wanted, key, now)
            c.execute("INSERT INTO tasks (hash, body) VALUES (?, ?) ON CONFLICT DO NOTHING", (order.task, task))
            c.execute(
                "INSERT INTO jobs (id, client, lease, task, until, body, access) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (key, client, order.lease, order.task, order.until, body, access),
            )
            return c.execute("SELECT sequence FROM jobs WHERE id = ?", (key,)).fetchone()[0], grown

        return await self._sql.write(work)

    async def end(
        self,
        entry: Entry,
        ending: Ending,
        receipt: Receipt | None,
        small: Mapping[str, bytes],
        log: tuple[bytes, int],
        now: int,
    ) -> int:
        """Write what came of an order, once, with its small outputs; the secret that it came with goes. How many bytes
        of blobs are new. Conflict where it has ended before."""
        written = msgspec.json.encode(ending)

        def work(c: Any) -> int:
            done = c.execute(
                "UPDATE jobs SET is_over = 1, access = NULL, ended = ?, ending = ?, receipt = ?, measure = ?, log = ?, "
                "log_end = ? WHERE id = ? AND is_over = 0",
                (now, written, receipt.to_bytes() if receipt else None, ending.measure, *log, entry.id),
            )
            if not done.rowcount:
                raise Conflict(f"the order {entry.id} has ended before")
            c.execute("DELETE FROM deliveries WHERE id = ?", (entry.id,))
            if receipt is None:
                unname(c, entry.id)
                return 0
            return add_small(c, entry.client, small, now, entry.id)

        return await self._sql.write(work)

    async def find(self, key: Hash) -> Entry | None:
        """One order; None where it is not here."""
        query = f"SELECT {_COLUMNS} FROM jobs WHERE id = ?"
        row = await self._sql.read(lambda c: c.execute(query, (key,)).fetchone())
        return _parse(row) if row else None

    async def open_ones(self) -> list[Entry]:
        """Those that have not ended, in the order in which they came."""
        query = f"SELECT {_COLUMNS} FROM jobs WHERE is_over = 0 ORDER BY sequence"
        return [_parse(row) for row in await self._sql.read(lambda c: c.execute(query).fetchall())]

    async def page(self, client: Address, after: Hash | None) -> list[Entry]:
        """A client's orders behind `after` (from the first), PAGE at the most, in the order in which they came; without
        their logs."""
        columns = _COLUMNS.replace(" log,", " NULL,")
        query = (
            f"SELECT {columns} FROM jobs WHERE client = ? AND sequence > "
            f"coalesce((SELECT sequence FROM jobs WHERE id = ? AND client = ?), 0) ORDER BY sequence LIMIT {PAGE}"
        )
        at = (client, after or b"", client)
        return [_parse(row) for row in await self._sql.read(lambda c: c.execute(query, at).fetchall())]

    async def leases(self) -> list[Hash]:
        """The leases that orders here are under."""
        query = "SELECT DISTINCT lease FROM jobs"
        return [Hash(row[0]) for row in await self._sql.read(lambda c: c.execute(query).fetchall())]

    async def task(self, key: Hash) -> bytes:
        """A task's canonical bytes. KeyError where no order here names it."""
        row = await self._sql.read(lambda c: c.execute("SELECT body FROM tasks WHERE hash = ?", (key,)).fetchone())
        if row is None:
            raise KeyError(key)
        return bytes(row[0])

    async def unsent(self, committed: int) -> list[Receipt]:
        """Receipts that the state after `committed` lacks and that may still come into one, in the order in which they
        were given."""
        query = f"SELECT receipt FROM jobs WHERE {_UNDECIDED} AND stand = 0 AND until > ? ORDER BY sequence"
        return await self._sql.read(lambda c: [Receipt.from_bytes(row[0]) for row in c.execute(query, (committed,))])

    async def owed(self, committed: int) -> list[tuple[Hash, Hash, int]]:
        """Lease, order and measure of receipts that the state after `committed` has not decided on and may still come
        to pay."""
        query = (
            f"SELECT lease, id, measure FROM jobs WHERE {_UNDECIDED} AND stand = 0 AND until > ? "
            f"UNION ALL SELECT lease, id, measure FROM jobs WHERE {_UNDECIDED} AND stand > 0"
        )
        return await self._sql.read(lambda c: [(Hash(r[0]), Hash(r[1]), r[2]) for r in c.execute(query, (committed,))])

    async def settle(self, epoch: int, stands: Mapping[Hash, int]) -> None:
        """What the state after `epoch` says of receipts, by order.

        The state keeps each until its order has run out: one that waited there, and is gone after that, was paid. One
        that is gone before was in a state that has been revoked: it is sent again.
        """

        def work(c: Any) -> None:
            left, changes = dict(stands), []
            for key, stand in c.execute("SELECT id, stand FROM jobs WHERE is_over = 1 AND until > ?", (epoch,)):
                changes.append((left.pop(key, 0), key, stand))
            query = f"SELECT id, stand FROM jobs WHERE {_UNDECIDED} AND stand > 0 AND until <= ?"
            for key, stand in c.execute(query, (epoch,)):
                changes.append((left.pop(key, PAID), key, stand))
            c.executemany("UPDATE jobs SET stand = ? WHERE id = ?", [one[:2] for one in changes if one[0] != one[2]])
            c.executemany("UPDATE jobs SET stand = ? WHERE id = ?", [(stand, key) for key, stand in left.items()])

        await self._sql.write(work)

    async def forget(self, committed: int, before: int) -> None:
        """Let go of what orders need that have run out KEPT_EPOCHS ago and that nobody disputes; and of the orders, if
        they ended `before` (unix time)."""
        over, last = f"is_over = 1 AND until < ? AND stand != {HELD}", committed - KEPT_EPOCHS

        def work(c: Any) -> None:
            c.execute(f"DELETE FROM names WHERE holder IN (SELECT id FROM jobs WHERE {over})", (last,))
            c.execute(f"DELETE FROM jobs WHERE {over} AND ended < ?", (last, before))
            c.execute("DELETE FROM tasks WHERE NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.task = tasks.hash)")

        await self._sql.write(work)

    async def fact(self, name: str) -> tuple[bytes, int] | None:
        """Something that the node has found out about itself, and when."""
        query = "SELECT body, at FROM facts WHERE name = ?"
        row = await self._sql.read(lambda c: c.execute(query, (name,)).fetchone())
        return (bytes(row[0]), row[1]) if row else None

    async def keep_fact(self, name: str, body: bytes, now: int) -> None:
        """Keep what the node has found out."""
        query = "INSERT OR REPLACE INTO facts (name, body, at) VALUES (?, ?, ?)"
        await self._sql.write(lambda c: c.execute(query, (name, body, now)).rowcount)


def _parse(row: Sequence[Any]) -> Entry:
    sequence, key, client, lease, body, access, ending, receipt, stand, log, log_end = row
    return Entry(
        sequence,
        Hash(key),
        Address(client),
        Hash(lease),
        Order.from_bytes(body),
        access,
        msgspec.json.decode(ending, type=Ending) if ending else None,
        Receipt.from_bytes(receipt) if receipt else None,
        stand,
        log or b"",
        log_end,
    )
