"""What a client has asked of nodes, in SQLite in the account's folder: every order before it is sent, every receipt.

    jobs     a job's spec, its end, what it may cost, how it ended
    pieces   the tasks that its steps came to, in the order of their numbers; written once, with their step
    orders   which node was asked for which piece, by what message; and what came of it
    blobs    small contents by SHA-256; `sources` says which file a large one is in
    records  what is known of nodes: the evidence of their results, their measured speeds
    events   what `freehold job why` tells: who was asked, matched or not, bid, and how each result was checked

An order is `open` until its receipt is here (`done`), or its node fell silent or refused it (`lost`). Who has a signed
order can show a receipt for it until its last epoch is over, so it counts in full until then (`expired`: what the
members were shown a receipt for). Invariants: no order leaves this machine before it stands here, so a client that was
killed asks the same node for the same order again; a receipt is counted once.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from freehold.protocol.errors import Conflict, NotFound
from freehold.protocol.units import Address, Hash
from freehold.services.compute.terms import Order, Receipt
from freehold.store.sql import Database

MIGRATIONS = (
    """
    CREATE TABLE jobs (id TEXT PRIMARY KEY, name TEXT NOT NULL, spec TEXT NOT NULL, base TEXT NOT NULL,
        gateway TEXT NOT NULL, created INTEGER NOT NULL, deadline INTEGER NOT NULL, most TEXT NOT NULL,
        phase TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', status INTEGER NOT NULL DEFAULT 0,
        ended INTEGER NOT NULL DEFAULT 0, secret BLOB NOT NULL) STRICT;
    CREATE TABLE steps (job TEXT NOT NULL, step TEXT NOT NULL, phase TEXT NOT NULL DEFAULT 'running',
        PRIMARY KEY (job, step)) STRICT, WITHOUT ROWID;
    CREATE TABLE pieces (job TEXT NOT NULL, step TEXT NOT NULL, number INTEGER NOT NULL, item TEXT NOT NULL,
        task BLOB NOT NULL, phase TEXT NOT NULL DEFAULT 'waiting', accepted BLOB, reason TEXT NOT NULL DEFAULT '',
        PRIMARY KEY (job, step, number)) STRICT, WITHOUT ROWID;
    CREATE TABLE orders (id BLOB PRIMARY KEY, job TEXT NOT NULL, step TEXT NOT NULL, number INTEGER NOT NULL,
        node BLOB NOT NULL, operator BLOB NOT NULL, price TEXT NOT NULL, cost TEXT NOT NULL, purpose TEXT NOT NULL,
        message BLOB NOT NULL, phase TEXT NOT NULL DEFAULT 'open', placed INTEGER NOT NULL,
        finished INTEGER NOT NULL DEFAULT 0, receipt BLOB, result TEXT, states TEXT NOT NULL DEFAULT '',
        reason TEXT NOT NULL DEFAULT '', quote BLOB NOT NULL DEFAULT x'') STRICT;
    CREATE INDEX orders_job ON orders (job, step, number);
    CREATE INDEX orders_lost ON orders (phase) WHERE phase != 'done';
    CREATE TABLE blobs (sha256 TEXT PRIMARY KEY, data BLOB NOT NULL) STRICT;
    CREATE TABLE sources (sha256 TEXT PRIMARY KEY, path TEXT NOT NULL) STRICT;
    CREATE TABLE events (job TEXT NOT NULL, at INTEGER NOT NULL, step TEXT NOT NULL, kind TEXT NOT NULL,
        data TEXT NOT NULL) STRICT;
    CREATE INDEX events_job ON events (job);
    CREATE TABLE measures (program TEXT PRIMARY KEY, largest INTEGER NOT NULL, count INTEGER NOT NULL) STRICT;
    CREATE TABLE records (name TEXT PRIMARY KEY, data BLOB NOT NULL) STRICT;
    """,
)

RUNNING, STOPPING, DONE, FAILED, STOPPED = "running", "stopping", "done", "failed", "stopped"
OPEN, LOST, EXPIRED = "open", "lost", "expired"
WAITING, ACCEPTED = "waiting", "accepted"


class JobRow(NamedTuple):
    """A job. Times are unix seconds, `most` credits (base units); `status` is what its last program exited with."""

    id: str
    name: str
    spec: str
    base: str
    gateway: str
    created: int
    deadline: int
    most: int
    phase: str
    reason: str
    status: int
    ended: int
    secret: bytes


class PieceRow(NamedTuple):
    """A task of a job's step; `accepted` is the order whose result counts."""

    step: str
    number: int
    item: str
    task: bytes
    phase: str
    accepted: Hash | None
    reason: str


class OrderRow(NamedTuple):
    """An order. `cost`: credits that it counts: its most while none knows better, else what its receipt comes to."""

    id: Hash
    job: str
    step: str
    number: int
    node: Address
    operator: Address
    price: int
    cost: int
    purpose: str
    order: Order
    phase: str
    placed: int
    finished: int
    receipt: Receipt | None
    result: str | None
    states: tuple[str, ...]
    reason: str
    quote: bytes = b""  # of its node's hardware, where its task asks for one


class Event(NamedTuple):
    """Something that `freehold job why` tells; `data` is JSON."""

    at: int
    step: str
    kind: str
    data: dict[str, Any]


_ORDER = ("id, job, step, number, node, operator, price, cost, purpose, message, phase, placed, finished, receipt, "
          "result, states, reason, quote")  # fmt: skip
_JOB = "id, name, spec, base, gateway, created, deadline, most, phase, reason, status, ended, secret"


class JobJournal:
    """The jobs of one account on one network; several processes may share it, one at a time drives a job."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        self._database = Database(folder / "jobs.sqlite", MIGRATIONS)

    def close(self) -> None:
        """Finish what is queued, then close."""
        self._database.close()

    @contextmanager
    def driving(self, job: str) -> Iterator[None]:
        """While inside, no other process drives the job. Conflict if one does."""
        handle = os.open(self.folder / f"{job}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise Conflict(f"another process of this account drives job {job}") from None
        finally:
            os.close(handle)

    def is_driven(self, job: str) -> bool:
        """Whether a process drives it now."""
        try:
            with self.driving(job):
                return False
        except Conflict:
            return True

    # Jobs

    async def add_job(self, row: JobRow) -> None:
        """A new job."""
        values = (*row[:7], str(row.most), *row[8:])
        await self._run(f"INSERT INTO jobs ({_JOB}) VALUES ({_marks(13)})", [values])

    async def jobs(self) -> list[JobRow]:
        """All of them, the newest first."""
        rows = await self._read(f"SELECT {_JOB} FROM jobs ORDER BY created DESC, rowid DESC")
        return [_job(row) for row in rows]

    async def job(self, name: str) -> JobRow:
        """The job with this id, the only id that starts so, or the newest job with this name. NotFound."""
        which = "substr(id, 1, length(?1)) = ?1 OR name = ?1"
        rows = await self._read(f"SELECT {_JOB} FROM jobs WHERE {which} ORDER BY created DESC, rowid DESC", (name,))
        found = [_job(row) for row in rows]
        exact = [row for row in found if row.id == name] or [row for row in found if row.name == name][:1] or found
        if len(exact) != 1 or not name:
            several = ", ".join(row.id for row in exact[:8])
            what = f"several jobs have ids that start so: {several}" if exact and name else "there is no such job"
            raise NotFound(f"{name!r}: {what}", hint="`freehold job list` shows them.")
        return exact[0]

    async def end_job(self, job: str, phase: str, reason: str, status: int, now: int) -> None:
        """How it ended; one that has ended stays so."""
        statement = "UPDATE jobs SET phase = ?, reason = ?, status = ?, ended = ? WHERE id = ? AND ended = 0"
        await self._run(statement, [(phase, reason, status, now, job)])

    async def ask_to_stop(self, job: str) -> None:
        """Whoever drives it sees this, and ends it."""
        await self._run("UPDATE jobs SET phase = 'stopping' WHERE id = ? AND phase = 'running'", [(job,)])

    # Steps and pieces

    async def steps(self, job: str) -> dict[str, str]:
        """The steps that have begun, and their phases."""
        return dict(await self._read("SELECT step, phase FROM steps WHERE job = ?", (job,)))

    async def add_step(self, job: str, step: str, pieces: Sequence[tuple[str, bytes]]) -> None:
        """A step begins: its pieces are (item, task), all at once."""
        rows = [(job, step, number, item, task) for number, (item, task) in enumerate(pieces)]

        def change(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT INTO steps (job, step) VALUES (?, ?)", (job, step))
            connection.executemany("INSERT INTO pieces (job, step, number, item, task) VALUES (?, ?, ?, ?, ?)", rows)

        await self._database.write(change)

    async def end_step(self, job: str, step: str) -> None:
        """All its pieces are accepted and delivered."""
        await self._run("UPDATE steps SET phase = 'done' WHERE job = ? AND step = ?", [(job, step)])

    async def pieces(self, job: str, step: str | None = None) -> list[PieceRow]:
        """By step and number."""
        which, values = ("", (job,)) if step is None else (" AND step = ?", (job, step))
        query = f"SELECT step, number, item, task, phase, accepted, reason FROM pieces WHERE job = ?{which}"
        rows = await self._read(f"{query} ORDER BY step, number", values)
        return [PieceRow._make((*row[:5], Hash(row[5]) if row[5] else None, row[6])) for row in rows]

    async def end_piece(self, job: str, step: str, number: int, accepted: Hash | None, reason: str = "") -> None:
        """Its result was accepted, or why there is none."""
        row = (ACCEPTED if accepted else FAILED, accepted and bytes(accepted), reason, job, step, number)
        statement = "UPDATE pieces SET phase = ?, accepted = ?, reason = ? WHERE job = ? AND step = ? AND number = ?"
        await self._run(statement, [row])

    async def reopen_pieces(self, job: str, step: str, numbers: Iterable[int]) -> None:
        """What was accepted of these is not any more."""
        rows = [(job, step, number) for number in numbers]
        statement = "UPDATE pieces SET phase = 'waiting', accepted = NULL WHERE job = ? AND step = ? AND number = ?"
        await self._run(statement, rows)

    # Orders

    async def add_order(self, row: OrderRow) -> None:
        """About to be sent."""
        values = (bytes(row.id), row.job, row.step, row.number, bytes(row.node), bytes(row.operator), str(row.price),
                  str(row.cost), row.purpose, row.order.to_bytes(), row.phase, row.placed)  # fmt: skip
        names = "id, job, step, number, node, operator, price, cost, purpose, message, phase, placed"
        await self._run(f"INSERT INTO orders ({names}) VALUES ({_marks(12)})", [values])

    async def end_order(
        self, id: Hash, phase: str, now: int, *, cost: int = 0, receipt: Receipt | None = None,
        result: str | None = None, states: Sequence[str] = (), reason: str = "", blobs: Mapping[str, bytes] = {},
        program: str = "", quote: bytes = b"",
    ) -> None:  # fmt: skip
        """What came of it, with the small contents that came along. One that is `done` stays so."""
        body = receipt and receipt.to_bytes()
        row = (phase, now, str(cost), body, result, " ".join(states), reason, quote, bytes(id))

        def change(connection: sqlite3.Connection) -> None:
            statement = """UPDATE orders SET phase = ?, finished = ?, cost = ?, receipt = ?, result = ?, states = ?,
                           reason = ?, quote = ? WHERE id = ? AND phase != 'done'"""
            connection.execute(statement, row)
            connection.executemany("INSERT OR IGNORE INTO blobs (sha256, data) VALUES (?, ?)", list(blobs.items()))
            if receipt is not None and program:
                learned = """INSERT INTO measures (program, largest, count) VALUES (?, ?, 1) ON CONFLICT (program) DO
                             UPDATE SET largest = max(largest, excluded.largest), count = count + 1"""
                connection.execute(learned, (program, receipt.measure))

        await self._database.write(change)

    async def mark_lost(self, id: Hash, reason: str) -> None:
        """Its node does not answer; the order still counts in full."""
        await self._run(
            "UPDATE orders SET phase = 'lost', reason = ? WHERE id = ? AND phase = 'open'", [(reason, bytes(id))]
        )

    async def orders(self, job: str, step: str | None = None, number: int | None = None) -> list[OrderRow]:
        """In the order in which they were placed."""
        which = "" if step is None else " AND step = ?" if number is None else " AND step = ? AND number = ?"
        values = tuple(value for value in (job, step, number) if value is not None)
        return [
            _order(row)
            for row in await self._read(f"SELECT {_ORDER} FROM orders WHERE job = ?{which} ORDER BY rowid", values)
        ]

    async def lost(self) -> list[OrderRow]:
        """Of all jobs: the orders whose nodes fell silent."""
        return [
            _order(row) for row in await self._read(f"SELECT {_ORDER} FROM orders WHERE phase = 'lost' ORDER BY rowid")
        ]

    async def measure(self, program: str) -> tuple[int, int]:
        """The largest measure that a receipt for this program had, and how many receipts there were."""
        rows = await self._read("SELECT largest, count FROM measures WHERE program = ?", (program,))
        return (rows[0][0], rows[0][1]) if rows else (0, 0)

    # Contents

    async def keep_blob(self, sha256: str, data: bytes) -> None:
        """A small content."""
        await self._run("INSERT OR IGNORE INTO blobs (sha256, data) VALUES (?, ?)", [(sha256, data)])

    async def keep_source(self, sha256: str, path: Path) -> None:
        """Which file a large content is in."""
        await self._run("REPLACE INTO sources (sha256, path) VALUES (?, ?)", [(sha256, str(path))])

    async def content(self, sha256: str) -> bytes | Path | None:
        """A content, or the file that had it."""
        rows = await self._read("SELECT data FROM blobs WHERE sha256 = ?", (sha256,))
        if rows:
            return bytes(rows[0][0])
        rows = await self._read("SELECT path FROM sources WHERE sha256 = ?", (sha256,))
        return Path(rows[0][0]) if rows else None

    # Why

    async def note(self, job: str, step: str, kind: str, data: Mapping[str, Any], now: int) -> None:
        """Something for `freehold job why`."""
        row = (job, now, step, kind, msgspec.json.encode(dict(data)).decode())
        await self._run("INSERT INTO events (job, at, step, kind, data) VALUES (?, ?, ?, ?, ?)", [row])

    async def events(self, job: str) -> list[Event]:
        """In the order in which they were noted."""
        rows = await self._read("SELECT at, step, kind, data FROM events WHERE job = ? ORDER BY rowid", (job,))
        return [Event(at, step, kind, msgspec.json.decode(data)) for at, step, kind, data in rows]

    # What is known of nodes

    async def record(self, name: str) -> bytes | None:
        """What was kept last under this name."""
        rows = await self._read("SELECT data FROM records WHERE name = ?", (name,))
        return rows[0][0] if rows else None

    async def records(self, start: str) -> dict[str, bytes]:
        """Those whose names start so."""
        query = "SELECT name, data FROM records WHERE substr(name, 1, length(?1)) = ?1 ORDER BY name"
        return dict(await self._read(query, (start,)))

    async def keep_record(self, name: str, data: bytes) -> None:
        """Replace it."""
        await self._run("REPLACE INTO records (name, data) VALUES (?, ?)", [(name, data)])

    async def drop_record(self, name: str) -> None:
        """It is not needed any more."""
        await self._run("DELETE FROM records WHERE name = ?", [(name,)])

    async def _read(self, query: str, values: Sequence[object] = ()) -> list[Any]:
        return await self._database.read(lambda connection: connection.execute(query, values).fetchall())

    async def _run(self, statement: str, rows: Sequence[Sequence[object]]) -> None:
        def change(connection: sqlite3.Connection) -> None:
            connection.executemany(statement, rows)

        await self._database.write(change)


def _marks(count: int) -> str:
    return ", ".join("?" * count)


def _job(row: tuple[Any, ...]) -> JobRow:
    return JobRow._make((*row[:7], int(row[7]), *row[8:]))


def _order(row: tuple[Any, ...]) -> OrderRow:
    id, job, step, number, node, operator, price, cost, purpose, message, phase, placed, finished, receipt, *rest = row
    result, states, reason, quote = rest
    return OrderRow(
        Hash(id), job, step, number, Address(node), Address(operator), int(price), int(cost), purpose,
        Order.from_bytes(message), phase, placed, finished, Receipt.from_bytes(receipt) if receipt else None, result,
        tuple(states.split()), reason, quote,
    )  # fmt: skip
