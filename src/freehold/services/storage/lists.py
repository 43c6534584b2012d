"""The lists of shards that this node keeps, with their history, in SQL.

An entry knows the delta that brought it (`from_number`) and the one that took it away (`to_number`), so the list can be
rebuilt as of any delta from the committed one on: proofs are over the list that the state names, while clients go on
changing the newest. Trees of lists in use are kept in memory and rolled forward.

Invariant: an entry and its shard go only when a committed state names a delta that dropped them (`commit`), a lease has
ended (`drop`), or no delta has named the shard for `LINGER` seconds (`find_garbage`).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from freehold.protocol.errors import Conflict, Corrupt, InvalidInput, NotFound
from freehold.protocol.units import Hash
from freehold.services.seam import Sql
from freehold.services.storage.list_steps import ListView, Step, change, look_ahead
from freehold.services.storage.segment_record import SegmentRecord
from freehold.services.storage.terms import Delta, ShardEntry

LINGER = 3600  # seconds that an upload is kept though no delta names it
VIEWS_LIMIT = 512  # trees kept in memory
IN_PLACE = 16  # entries of a change that is worked out where it is asked for: a thread costs more
PIECE = 500  # values to one SQL statement

MIGRATIONS = [
    """
    CREATE TABLE deltas (
        lease BLOB NOT NULL, number INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (lease, number)
    ) WITHOUT ROWID;
    CREATE TABLE entries (
        lease BLOB NOT NULL, position INTEGER NOT NULL, from_number INTEGER NOT NULL, to_number INTEGER,
        record BLOB NOT NULL, place INTEGER NOT NULL, root BLOB NOT NULL, size INTEGER NOT NULL,
        PRIMARY KEY (lease, position, from_number)
    ) WITHOUT ROWID;
    CREATE INDEX entries_root ON entries (lease, root);
    CREATE INDEX entries_record ON entries (lease, record);
    CREATE INDEX entries_from ON entries (lease, from_number);
    CREATE INDEX entries_to ON entries (lease, to_number) WHERE to_number IS NOT NULL;
    CREATE TABLE shards (
        lease BLOB NOT NULL, root BLOB NOT NULL, size INTEGER NOT NULL, arrived INTEGER NOT NULL,
        named INTEGER NOT NULL DEFAULT 0, corrupt INTEGER NOT NULL DEFAULT 0, leaves BLOB NOT NULL,
        UNIQUE (lease, root)
    );
    CREATE INDEX shards_waiting ON shards (arrived) WHERE named = 0;
    CREATE INDEX shards_figures ON shards (corrupt, lease, root, size);
    CREATE TABLE records (
        lease BLOB NOT NULL, hash BLOB NOT NULL, arrived INTEGER NOT NULL, named INTEGER NOT NULL DEFAULT 0,
        body BLOB NOT NULL, UNIQUE (lease, hash)
    );
    CREATE INDEX records_waiting ON records (arrived) WHERE named = 0;
    CREATE TABLE committed (lease BLOB PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID;
    """,
    "CREATE INDEX shards_unnamed ON shards (lease, arrived, root, size) WHERE named = 0;",
]

_ENTRY = "position, record, place, root, size"
_AT = "lease = ? AND from_number <= ? AND (to_number IS NULL OR to_number > ?)"


class Shard(NamedTuple):
    """A stored shard: `leaves` are its tree's leaf hashes, 32 bytes each."""

    size: int
    leaves: bytes
    corrupt: bool


class Change(NamedTuple):
    """A delta with what it adds and the positions that it empties."""

    delta: Delta
    add: tuple[ShardEntry, ...]
    remove: tuple[int, ...]


class Stripes:
    """Locks by key: a fixed number of them, so that nobody's keys can grow the table."""

    def __init__(self, count: int = 256) -> None:
        self._locks = [asyncio.Lock() for _ in range(count)]

    def of(self, key: bytes) -> asyncio.Lock:
        """The lock of a key; two keys may share one."""
        return self._locks[int.from_bytes(key[-4:]) % len(self._locks)]


class Lists:
    """Every lease's list, over one SQL database."""

    def __init__(self, sql: Sql) -> None:
        self._sql = sql
        self._views: OrderedDict[tuple[Hash, bool], ListView] = OrderedDict()
        self._newest: dict[Hash, Delta] = {}  # of those whose newest list is among the views
        self._locks = Stripes()

    async def newest(self, lease: Hash) -> Delta | None:
        """The newest delta that both have signed; None before the first."""
        return await self._sql.read(lambda c: _delta(c, lease))

    async def plan(
        self, lease: Hash, add: Sequence[ShardEntry], remove: Sequence[int]
    ) -> tuple[Delta | None, list[Step]]:
        """The newest delta, and the steps from it that this change takes. Nothing changes."""
        async with self._locks.of(lease):
            delta, view = await self._newest_view(lease)
            held = await self._held(lease, view.number, remove)
            snapshot = view.copy()
        return delta, await _change(snapshot, held, add, remove)

    async def accept(self, wanted: Change, signed: Delta) -> tuple[Delta, Step | None]:
        """Make a change that the client signed and the node agrees to (`signed` has both signatures), durably; and the
        step of the next addition, where it is at hand.

        The same change again gives what was signed then. Conflict, with the newest delta, when the list has moved on;
        InvalidInput when the list after the change is not the one that the delta names; NotFound for a shard that is
        not here, Corrupt for one that is damaged.
        """
        lease = signed.lease
        async with self._locks.of(lease):
            newest, view = await self._newest_view(lease)
            if newest is not None and newest.struct_hash() == signed.struct_hash():
                return newest, None
            if signed.number != view.number + 1:
                raise Conflict(
                    f"the list is at delta {view.number}, so {signed.number} cannot be next",
                    delta=newest.to_json() if newest else None,
                )
            held = await self._held(lease, view.number, wanted.remove)
            after = view.copy()
            steps = await _change(after, held, wanted.add, wanted.remove)
            if not after.matches(signed):
                root = after.tree.root
                raise InvalidInput(
                    "the delta does not name the list after this change",
                    root=f"0x{root.hash.hex()}00", count=len(after.tree), size=root.sums[0],
                )  # fmt: skip
            placed = [step.position for step in steps[len(wanted.remove) :]]
            added = list(zip(placed, wanted.add, strict=True))
            self._newest.pop(lease, None)  # until it is known whether it is written
            await self._sql.write(lambda c: _apply(c, signed, added, wanted.remove))
            after.number = signed.number
            self._newest[lease] = signed
            self._keep((lease, False), after)
            return signed, look_ahead(after, steps[-1], wanted.add[-1]) if wanted.add else None

    async def view_at(self, lease: Hash, number: int) -> ListView | None:
        """The list as the committed state names it; None if this node does not know it. Treat it as immutable."""
        async with self._locks.of(lease):
            known = self._views.get((lease, True))
            if known is None or known.number != number:
                known = await self._roll(lease, known, number)
                if known is not None:
                    self._keep((lease, True), known)
            return known

    async def entry_at(self, lease: Hash, number: int, position: int) -> ShardEntry | None:
        """The entry at a position of the list as of delta `number`."""
        return (await self._sql.read(lambda c: _entries(c, lease, number, [position]))).get(position)

    async def shard(self, lease: Hash, root: bytes) -> Shard | None:
        """A stored shard."""
        row = await self._sql.read(
            lambda c: c.execute(
                "SELECT size, leaves, corrupt FROM shards WHERE lease = ? AND root = ?", (lease, root)
            ).fetchone()
        )
        return Shard(row[0], row[1], bool(row[2])) if row else None

    async def record(self, lease: Hash, digest: Hash) -> bytes | None:
        """A segment record's bytes."""
        query = "SELECT body FROM records WHERE lease = ? AND hash = ?"
        row = await self._sql.read(lambda c: c.execute(query, (lease, digest)).fetchone())
        return row[0] if row else None

    async def stored(self, lease: Hash, root: bytes, shard: Shard, record: tuple[Hash, bytes], now: int) -> None:
        """A shard's bytes are durable: from now on it may be named by a delta."""

        def work(c: Any) -> None:
            c.execute(
                "INSERT INTO shards (lease, root, size, leaves, arrived) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (lease, root) DO UPDATE "
                "SET leaves = excluded.leaves, arrived = excluded.arrived, corrupt = 0",
                (lease, root, shard.size, shard.leaves, now),
            )
            _keep_record(c, lease, record, now)

        await self._sql.write(work)

    async def kept(self, lease: Hash, root: bytes, now: int) -> tuple[int, bool]:
        """Bytes that a lease keeps: those of its newest list, and of other shards than `root` that wait to be named;
        and whether this shard was stored before."""
        query = "SELECT coalesce(sum(size), 0) FROM shards WHERE named = 0 AND lease = ? AND root != ? AND arrived >= ?"
        here = "SELECT 1 FROM shards WHERE lease = ? AND root = ?"
        newest = self._newest.get(lease)

        def work(c: Any) -> tuple[int, bool]:
            delta = newest or _delta(c, lease)
            waiting = int(c.execute(query, (lease, root, now - LINGER)).fetchone()[0])
            return (delta.size if delta else 0) + waiting, c.execute(here, (lease, root)).fetchone() is not None

        return await self._sql.read(work)

    async def touch(self, lease: Hash, root: bytes, record: tuple[Hash, bytes], now: int) -> bool:
        """A shard was offered again: keep it as if it had arrived now. False if it is not here, or damaged."""

        def work(c: Any) -> bool:
            query = "UPDATE shards SET arrived = ? WHERE lease = ? AND root = ? AND corrupt = 0"
            if not c.execute(query, (now, lease, root)).rowcount:
                return False
            _keep_record(c, lease, record, now)
            return True

        return await self._sql.write(work)

    async def mark_corrupt(self, lease: Hash, root: bytes) -> None:
        """The bytes on disk are not those of this shard any more."""
        query = "UPDATE shards SET corrupt = 1 WHERE lease = ? AND root = ?"
        await self._sql.write(lambda c: c.execute(query, (lease, root)).rowcount)

    async def commit(self, lease: Hash, number: int) -> None:
        """The committed state names delta `number`: what only older lists had may go."""
        known = await self._sql.read(
            lambda c: c.execute("SELECT number FROM committed WHERE lease = ?", (lease,)).fetchone()
        )
        if known is not None and known[0] >= number:
            return
        await self.view_at(lease, number)
        await self._sql.write(lambda c: _prune(c, lease, number))

    async def uncommitted(self) -> list[Delta]:
        """The newest delta of each list whose committed state is older."""
        query = (
            "SELECT d.body FROM deltas d JOIN (SELECT lease, max(number) AS last FROM deltas GROUP BY lease) n "
            "ON d.lease = n.lease AND d.number = n.last LEFT JOIN committed c ON c.lease = d.lease "
            "WHERE d.number > coalesce(c.number, -1) ORDER BY d.lease"
        )
        rows = await self._sql.read(lambda c: c.execute(query).fetchall())
        return [Delta.from_bytes(row[0]) for row in rows]

    async def leases(self) -> list[Hash]:
        """Every lease of which anything is stored."""

        def work(c: Any) -> list[bytes]:
            found, last = [], b""  # from one lease to the next by index: not through all shards
            while (row := c.execute(query, (last, last)).fetchone())[0] is not None:
                last = row[0]
                found.append(last)
            return found

        query = (
            "SELECT min(lease) FROM (SELECT min(lease) AS lease FROM shards WHERE lease > ? "
            "UNION ALL SELECT min(lease) FROM deltas WHERE lease > ?)"
        )
        return [Hash(lease) for lease in await self._sql.read(work)]

    async def drop(self, lease: Hash) -> None:
        """A lease has ended: forget its list. Its shards are garbage from now on."""

        def work(c: Any) -> None:
            for table in ("deltas", "entries", "records", "committed"):
                c.execute(f"DELETE FROM {table} WHERE lease = ?", (lease,))
            c.execute("UPDATE shards SET named = 0, arrived = 0 WHERE lease = ?", (lease,))

        async with self._locks.of(lease):
            await self._sql.write(work)
            self._newest.pop(lease, None)
            self._views.pop((lease, False), None)
            self._views.pop((lease, True), None)

    async def find_garbage(self, now: int, limit: int = 1000) -> list[tuple[Hash, bytes]]:
        """Shards that no list names and that have lingered."""
        query = "SELECT lease, root FROM shards WHERE named = 0 AND arrived < ? LIMIT ?"
        rows = await self._sql.read(lambda c: c.execute(query, (now - LINGER, limit)).fetchall())
        return [(Hash(lease), root) for lease, root in rows]

    async def forget(self, lease: Hash, root: bytes, now: int) -> bool:
        """Forget a shard if it is still garbage; its bytes may then be deleted."""
        query = "DELETE FROM shards WHERE lease = ? AND root = ? AND named = 0 AND arrived < ?"
        return await self._sql.write(lambda c: bool(c.execute(query, (lease, root, now - LINGER)).rowcount))

    async def forget_records(self, now: int) -> None:
        """Forget segment records that no list names and that have lingered."""
        query = "DELETE FROM records WHERE named = 0 AND arrived < ?"
        await self._sql.write(lambda c: c.execute(query, (now - LINGER,)).rowcount)

    async def inventory(self) -> list[tuple[Hash, bytes]]:
        """Every shard that should be on disk."""
        rows = await self._sql.read(lambda c: c.execute("SELECT lease, root FROM shards WHERE corrupt = 0").fetchall())
        return [(Hash(lease), root) for lease, root in rows]

    async def figures(self) -> dict[str, int]:
        """Shards, bytes and damaged shards, for the metrics."""
        query = "SELECT count(*), coalesce(sum(size), 0), coalesce(sum(corrupt), 0) FROM shards"
        row = await self._sql.read(lambda c: c.execute(query).fetchone())
        return dict(zip(("shards", "shard_bytes", "corrupt_shards"), row, strict=True))

    async def _newest_view(self, lease: Hash) -> tuple[Delta | None, ListView]:
        """Only while the lease is locked."""
        known, delta = self._views.get((lease, False)), self._newest.get(lease)
        if known is not None and delta is not None:
            return delta, known
        delta = await self.newest(lease)
        number = delta.number if delta else 0
        if known is None or known.number != number:
            known = await self._roll(lease, None, number) or ListView(0, {}, 0)
        if delta is not None:
            self._newest[lease] = delta
        self._keep((lease, False), known)
        return delta, known

    async def _held(self, lease: Hash, number: int, positions: Sequence[int]) -> dict[int, ShardEntry]:
        return await self._sql.read(lambda c: _entries(c, lease, number, positions)) if positions else {}

    async def _roll(self, lease: Hash, known: ListView | None, number: int) -> ListView | None:
        """The list as of `number`: rebuilt, or from an older view by what has changed since."""
        delta = await self._sql.read(lambda c: _delta(c, lease, number))
        if delta is None:
            return None
        if known is None or known.number > number:
            entries = await self._sql.read(lambda c: _entries(c, lease, number))
            return await asyncio.to_thread(ListView, number, entries, delta.count)
        before, view = known.number, known.copy()
        changed = await self._sql.read(lambda c: _changed(c, lease, before, number))
        held = await self._sql.read(lambda c: _entries(c, lease, number, changed))

        def put() -> None:
            for position in changed:
                view.put(position, held.get(position))

        await asyncio.to_thread(put)
        view.number = number
        return view

    def _keep(self, key: tuple[Hash, bool], view: ListView) -> None:
        self._views[key] = view
        self._views.move_to_end(key)
        while len(self._views) > VIEWS_LIMIT:
            (gone, is_committed), _ = self._views.popitem(last=False)
            if not is_committed:
                self._newest.pop(gone, None)


async def _change(
    view: ListView, held: Mapping[int, ShardEntry], add: Sequence[ShardEntry], remove: Sequence[int]
) -> list[Step]:
    if len(add) + len(remove) <= IN_PLACE:
        return change(view, held, add, remove)
    return await asyncio.to_thread(change, view, held, add, remove)


def _delta(c: Any, lease: Hash, number: int | None = None) -> Delta | None:
    query = "SELECT body FROM deltas WHERE lease = ? "
    if number is None:
        row = c.execute(query + "ORDER BY number DESC LIMIT 1", (lease,)).fetchone()
    else:
        row = c.execute(query + "AND number = ?", (lease, number)).fetchone()
    return Delta.from_bytes(row[0]) if row else None


def _entries(c: Any, lease: Hash, number: int, positions: Sequence[int] | None = None) -> dict[int, ShardEntry]:
    """Entries by position of the list as of `number`: all, or those at `positions`."""
    rows: list[Any] = []
    if positions is None:
        rows = c.execute(f"SELECT {_ENTRY} FROM entries WHERE {_AT}", (lease, number, number)).fetchall()
    else:
        for at in range(0, len(positions), PIECE):
            some = positions[at : at + PIECE]
            marks = ",".join("?" * len(some))
            query = f"SELECT {_ENTRY} FROM entries WHERE {_AT} AND position IN ({marks})"
            rows += c.execute(query, (lease, number, number, *some)).fetchall()
    return {r[0]: ShardEntry(record=Hash(r[1]), index=r[2], root=Hash(r[3]), size=r[4]) for r in rows}


def _changed(c: Any, lease: Hash, before: int, number: int) -> list[int]:
    query = (
        "SELECT position FROM entries WHERE lease = ? AND from_number > ? AND from_number <= ? UNION "
        "SELECT position FROM entries WHERE lease = ? AND to_number > ? AND to_number <= ? ORDER BY position"
    )
    return [row[0] for row in c.execute(query, (lease, before, number, lease, before, number))]


def _apply(c: Any, delta: Delta, added: Sequence[tuple[int, ShardEntry]], removed: Sequence[int]) -> None:
    lease, number = delta.lease, delta.number
    c.execute("INSERT INTO deltas (lease, number, body) VALUES (?, ?, ?)", (lease, number, delta.to_bytes()))
    ending = "UPDATE entries SET to_number = ? WHERE lease = ? AND position = ? AND to_number IS NULL"
    c.executemany(ending, [(number, lease, position) for position in removed])
    for position, entry in added:
        _check_held(c, lease, entry)
        c.execute(
            "INSERT INTO entries (lease, position, from_number, record, place, root, size) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (lease, position, number, entry.record, entry.index, entry.root, entry.size),
        )
        c.execute("UPDATE shards SET named = 1 WHERE lease = ? AND root = ?", (lease, entry.root))
        c.execute("UPDATE records SET named = 1 WHERE lease = ? AND hash = ?", (lease, entry.record))


def _check_held(c: Any, lease: Hash, entry: ShardEntry) -> None:
    """In the transaction that names the shard, so that it cannot go in between."""
    query = "SELECT size, corrupt FROM shards WHERE lease = ? AND root = ?"
    shard = c.execute(query, (lease, entry.root)).fetchone()
    kept = c.execute("SELECT body FROM records WHERE lease = ? AND hash = ?", (lease, entry.record)).fetchone()
    if shard is None or kept is None:
        raise NotFound(f"shard {entry.root} or its segment's record is not here", shard=str(entry.root))
    record = SegmentRecord.from_bytes(kept[0])
    if entry.index >= record.n or record.roots[entry.index] != entry.root:
        raise InvalidInput(f"the segment's record does not name {entry.root} as shard {entry.index}")
    if shard[0] != entry.size:
        raise InvalidInput(f"shard {entry.root} has {shard[0]} bytes, not {entry.size}")
    if shard[1]:
        raise Corrupt(f"shard {entry.root} is damaged here; upload it again", shard=str(entry.root))
    query = "SELECT 1 FROM entries WHERE lease = ? AND root = ? AND to_number IS NULL"
    if c.execute(query, (lease, entry.root)).fetchone():
        raise InvalidInput(f"shard {entry.root} is in the list already", shard=str(entry.root))


def _prune(c: Any, lease: Hash, number: int) -> None:
    over = "lease = ? AND to_number IS NOT NULL AND to_number <= ?"
    gone = c.execute(f"SELECT root, record FROM entries WHERE {over}", (lease, number)).fetchall()
    c.execute(f"DELETE FROM entries WHERE {over}", (lease, number))
    for table, column, field, at in (("shards", "root", "root", 0), ("records", "hash", "record", 1)):
        c.executemany(
            f"UPDATE {table} SET named = 0, arrived = 0 WHERE lease = ? AND {column} = ? AND NOT EXISTS "
            f"(SELECT 1 FROM entries e WHERE e.lease = {table}.lease AND e.{field} = {table}.{column})",
            [(lease, row[at]) for row in gone],
        )
    c.execute("DELETE FROM deltas WHERE lease = ? AND number < ?", (lease, number))
    c.execute("INSERT OR REPLACE INTO committed (lease, number) VALUES (?, ?)", (lease, number))


def _keep_record(c: Any, lease: Hash, record: tuple[Hash, bytes], now: int) -> None:
    c.execute(
        "INSERT INTO records (lease, hash, body, arrived) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (lease, hash) DO UPDATE SET arrived = excluded.arrived",
        (lease, *record, now),
    )
