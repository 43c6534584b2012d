"""The registers that this node holds a copy of: an acceptor of CASPaxos, in SQL.

A register belongs to an account, a group of nodes, and a name (`register_values.py`). The acceptor keeps the highest
ballot that it has promised, and what it has accepted last; with what it accepts it promises the ballot after it to the
same proposer, who may then go straight on. The group's own state is the register CONTROL; once that is sealed here,
nothing else of the group changes here any more.

Invariant: what was answered is durable. Below a promise nothing is accepted. Where a group's control is not known
(never was, or was dropped), nothing of the group is answered but `unknown`, so an acceptor that forgot never votes.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any, NamedTuple

from freehold.protocol.errors import InvalidInput, Refused
from freehold.protocol.units import Address, Hash
from freehold.services.seam import Sql
from freehold.services.storage.register_values import (
    CONTROL,
    FRAMES_LIMIT,
    NEVER,
    OPEN,
    SEALED,
    VALUE_LIMIT,
    VOID,
    Accepted,
    Answer,
    Ballot,
    Entry,
    Group,
    Known,
    Listing,
    Part,
    Place,
    Prepare,
    Shown,
    Status,
    check_part,
    link,
)

NAMES_LIMIT = 16_384  # registers of one group: every bucket there ever was has one
GROUPS_LIMIT = 8  # of one account
ACCOUNT_LIMIT = 256 << 20  # bytes of one account: some hundred buckets at once, as long as their tables flush
ROW_BYTES = 64  # that a frame counts beside its own

MIGRATION = """
CREATE TABLE registers (
    key BLOB PRIMARY KEY, account BLOB NOT NULL, grp BLOB NOT NULL, name BLOB NOT NULL,
    promised INTEGER NOT NULL, promised_to BLOB NOT NULL, counter INTEGER NOT NULL, proposer BLOB NOT NULL,
    version INTEGER NOT NULL, gone INTEGER NOT NULL, writers BLOB NOT NULL, chain BLOB NOT NULL,
    signature BLOB NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, size INTEGER NOT NULL,
    state INTEGER NOT NULL, generation INTEGER NOT NULL
);
CREATE INDEX registers_account ON registers (account, grp, size);
CREATE TABLE register_parts (
    key BLOB NOT NULL, position INTEGER NOT NULL, hash BLOB NOT NULL, chain BLOB NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (key, position)
);
CREATE TABLE register_leases (lease BLOB PRIMARY KEY, account BLOB NOT NULL);
CREATE INDEX register_leases_account ON register_leases (account);
"""

_COLUMNS = (
    "promised, promised_to, counter, proposer, version, gone, writers, chain, signature, first, last, size, state"
)


class _Row(NamedTuple):
    """A register's row: its parts stand at the positions `first` (the base) to `last`; 0 before there are any."""

    promised: int
    promised_to: bytes
    counter: int
    proposer: bytes
    version: int
    gone: int
    writers: bytes
    chain: bytes
    signature: bytes
    first: int
    last: int
    size: int
    state: int

    @property
    def promise(self) -> Ballot:
        return Ballot(self.promised, bytes(self.promised_to))

    @property
    def ballot(self) -> Ballot:
        return Ballot(self.counter, bytes(self.proposer))


class Registers:
    """Every account's registers, over one SQL database. What it is given was checked for its signature."""

    def __init__(self, sql: Sql) -> None:
        self._sql = sql

    async def groups(self, account: Address) -> list[Shown]:
        """The control of every group of an account."""
        return await self._sql.read(lambda c: _groups(c, account))

    async def entries(self, account: Address, group: Hash) -> Listing:
        """Every register of a group that has accepted something, but its control."""
        return await self._sql.read(lambda c: _entries(c, account, group))

    async def show(self, place: Place, known: Known) -> Answer:
        """What a register has accepted."""

        def work(c: Any) -> Answer:
            status = _status(c, place)
            if status == "unknown":
                return Answer(status)
            return _answer(c, place, status, _row(c, place), known)

        return await self._sql.read(work)

    async def prepare(self, place: Place, wanted: Prepare, lease: Hash) -> Answer:
        """Promise to take nothing below a ballot. A group begins with its control, and only by `founding`."""
        return await self._sql.write(lambda c: _prepare(c, place, wanted, lease))

    async def accept(self, place: Place, proposal: Accepted, lease: Hash) -> Answer:
        """Take a value, unless a higher ballot was promised. InvalidInput where its parts do not lead to its chain;
        Refused where a limit is reached."""
        if proposal.part is None:
            raise InvalidInput("a proposal has a part")
        check_part(proposal.part)
        group = None
        if place.name == CONTROL:
            if proposal.part.on or proposal.part.base is None or proposal.part.frames:
                raise InvalidInput("a group's control is a base, sent whole")
            group = Group.decode(proposal.part.base)
        part = proposal.part
        return await self._sql.write(lambda c: _accept(c, place, proposal, part, group, lease))

    async def bytes_of(self, account: Address) -> int:
        """What an account keeps in its registers here."""
        return await self._sql.read(lambda c: _account_bytes(c, account))

    async def leases(self) -> list[tuple[Hash, Address]]:
        """The leases under which registers have changed, and whose they are."""
        rows = await self._sql.read(lambda c: c.execute("SELECT lease, account FROM register_leases").fetchall())
        return [(Hash(lease), Address(account)) for lease, account in rows]

    async def forget(self, lease: Hash) -> None:
        """A lease has ended."""
        await self._sql.write(lambda c: c.execute("DELETE FROM register_leases WHERE lease = ?", (lease,)) and None)

    async def drop(self, account: Address) -> None:
        """Delete everything of an account."""
        await self._sql.write(lambda c: _drop(c, account))

    async def figures(self) -> dict[str, int]:
        """How many there are, and of how many bytes."""
        count, size = await self._sql.read(
            lambda c: c.execute("SELECT COUNT(*), COALESCE(SUM(size), 0) FROM registers").fetchone()
        )
        return {"registers": int(count), "register_bytes": int(size)}


def key_of(place: Place) -> bytes:
    """A register's key in SQL."""
    return sha256(place.account + place.group + place.name).digest()


def _row(c: Any, place: Place) -> _Row | None:
    found = c.execute(f"SELECT {_COLUMNS} FROM registers WHERE key = ?", (key_of(place),)).fetchone()
    return _Row(*found) if found is not None else None


def _status(c: Any, place: Place) -> Status:
    """`ok` where the group takes part in changes, and always where its control is asked for and known."""
    control = _row(c, place._replace(name=CONTROL))
    if control is None or (control.ballot == NEVER and place.name != CONTROL):
        return "unknown"
    return "sealed" if place.name != CONTROL and control.state > OPEN else "ok"


def _answer(c: Any, place: Place, status: Status, row: _Row | None, known: Known) -> Answer:
    if row is None or row.ballot == NEVER:
        return Answer(status, row.promise if row else NEVER)
    if row.ballot == (known.counter, known.proposer):
        return Answer(status, row.promise, row.ballot)
    return Answer(status, row.promise, row.ballot, _accepted(c, place, row, known))


def _accepted(c: Any, place: Place, row: _Row, known: Known) -> Accepted:
    part = _part(c, place, row, known.chain) if known.parts else None
    return Accepted(
        row.counter, bytes(row.proposer), row.version, bool(row.gone), bytes(row.writers), bytes(row.chain),
        bytes(row.signature), part,
    )  # fmt: skip


def _part(c: Any, place: Place, row: _Row, chain: bytes) -> Part:
    """All of a value, or the frames after `chain` where that is in it."""
    key = key_of(place)
    at = _position(c, key, row, chain)
    rows = c.execute(
        "SELECT body FROM register_parts WHERE key = ? AND position > ? ORDER BY position",
        (key, row.first - 1 if at is None else at),
    ).fetchall()
    bodies = [bytes(body) for (body,) in rows]
    return Part(b"", 0, bodies[0], bodies[1:]) if at is None else Part(chain, 0, None, bodies)


def _position(c: Any, key: bytes, row: _Row, chain: bytes) -> int | None:
    if not chain or row.ballot == NEVER:
        return None
    if row.chain == chain:
        return row.last
    found = c.execute("SELECT position FROM register_parts WHERE key = ? AND chain = ?", (key, chain)).fetchone()
    return int(found[0]) if found else None


def _prepare(c: Any, place: Place, wanted: Prepare, lease: Hash) -> Answer:
    ballot = wanted.ballot
    status = _status(c, place)
    if status == "sealed" or (status == "unknown" and not (place.name == CONTROL and wanted.founding)):
        return Answer(status)
    row = _row(c, place)
    if row is None:
        _check_room(c, place)
        c.execute(
            f"INSERT INTO registers (key, account, grp, name, {_COLUMNS}, generation)"
            " VALUES (?, ?, ?, ?, ?, ?, 0, ?, 0, 0, ?, ?, ?, 0, 0, 0, 0, 0)",
            (key_of(place), place.account, place.group, place.name, *ballot, NEVER.proposer, b"", b"", b""),
        )
        _keep_lease(c, lease, place.account)
        return Answer("ok", ballot)
    if row.promise > ballot:
        return Answer("stale", row.promise)
    if row.promise != ballot:
        c.execute("UPDATE registers SET promised = ?, promised_to = ? WHERE key = ?", (*ballot, key_of(place)))
    return _answer(c, place, "ok", row._replace(promised=ballot.counter, promised_to=ballot.proposer), wanted.known)


def _check_room(c: Any, place: Place) -> None:
    if place.name == CONTROL:
        (count,) = c.execute(
            "SELECT COUNT(*) FROM registers WHERE account = ? AND name = ?", (place.account, CONTROL)
        ).fetchone()
        if count >= GROUPS_LIMIT:
            raise Refused(f"an account has at most {GROUPS_LIMIT} groups here", limit=GROUPS_LIMIT)
        return
    (count,) = c.execute(
        "SELECT COUNT(*) FROM registers WHERE account = ? AND grp = ?", (place.account, place.group)
    ).fetchone()
    if count > NAMES_LIMIT:  # the control is one of them
        raise Refused(f"an account has at most {NAMES_LIMIT} registers here", limit=NAMES_LIMIT)


def _accept(c: Any, place: Place, proposal: Accepted, part: Part, group: Group | None, lease: Hash) -> Answer:
    status = _status(c, place)
    if status != "ok":
        return Answer(status)
    row = _row(c, place)
    if row is not None and row.ballot == proposal.ballot:
        if row.chain != proposal.chain or row.version != proposal.version:
            raise InvalidInput("two values under one ballot")
        return Answer("ok", row.promise, row.ballot)
    if row is not None and row.promise > proposal.ballot:
        return Answer("stale", row.promise)
    key = key_of(place)
    if row is None:
        _check_room(c, place)
        row = _Row(0, b"", 0, NEVER.proposer, 0, 0, b"", b"", b"", 0, 0, 0, 0)
    at = _position(c, key, row, part.on)
    if part.on and at is None:
        return Answer("behind", row.promise, row.ballot)
    removed = _measure(c, key, *_kept(row, at, part))
    first, last = _write_parts(c, key, row, at, part, proposal.chain)
    size = row.size + part.size + ROW_BYTES * (len(part.frames) + (part.base is not None)) - removed
    if size > VALUE_LIMIT + ROW_BYTES * (last - first + 1) or last - first > FRAMES_LIMIT:
        raise InvalidInput(f"a value has at most {VALUE_LIMIT} bytes in {FRAMES_LIMIT} frames", limit=VALUE_LIMIT)
    if _account_bytes(c, place.account) - row.size + size > ACCOUNT_LIMIT:
        raise Refused(f"an account has at most {ACCOUNT_LIMIT} bytes in registers here", limit=ACCOUNT_LIMIT)
    state, generation = (group.state, group.generation) if group else (0, 0)
    promise = max(row.promise, proposal.ballot.following())
    c.execute(
        f"INSERT INTO registers (key, account, grp, name, {_COLUMNS}, generation)"
        f" VALUES ({', '.join('?' * 18)})"
        " ON CONFLICT (key) DO UPDATE SET promised = excluded.promised, promised_to = excluded.promised_to,"
        " counter = excluded.counter, proposer = excluded.proposer, version = excluded.version, gone = excluded.gone,"
        " writers = excluded.writers, chain = excluded.chain, signature = excluded.signature, first = excluded.first,"
        " last = excluded.last, size = excluded.size, state = excluded.state, generation = excluded.generation",
        (
            key, place.account, place.group, place.name, *promise, *proposal.ballot, proposal.version,
            int(proposal.is_gone), proposal.writers, proposal.chain, proposal.signature, first, last, size, state,
            generation,
        ),
    )  # fmt: skip
    _keep_lease(c, lease, place.account)
    if group is not None and group.state == OPEN:
        _drop_older(c, place.account, group.generation)
    return Answer("ok", promise, proposal.ballot)


def _keep_lease(c: Any, lease: Hash, account: Address) -> None:
    c.execute(
        "INSERT INTO register_leases (lease, account) VALUES (?, ?) ON CONFLICT (lease) DO NOTHING", (lease, account)
    )


def _kept(row: _Row, at: int | None, part: Part) -> tuple[int, int]:
    """The positions that a change keeps: all others go. The base goes where there is another."""
    if at is None:
        return 0, -1
    return (row.first + part.drop + 1 if part.base is not None else row.first), at


def _measure(c: Any, key: bytes, start: int, end: int) -> int:
    """What the parts outside start .. end count."""
    (size,) = c.execute(
        "SELECT COALESCE(SUM(LENGTH(body) + ?), 0) FROM register_parts"
        " WHERE key = ? AND (position < ? OR position > ?)",
        (ROW_BYTES, key, start, end),
    ).fetchone()
    return int(size)


def _write_parts(c: Any, key: bytes, row: _Row, at: int | None, part: Part, wanted: bytes) -> tuple[int, int]:
    """Make the parts those of the value, and return where they begin and end. InvalidInput where the chain is not as
    `wanted`: the write is undone then."""
    if at is None:
        c.execute("DELETE FROM register_parts WHERE key = ?", (key,))
        first = last = 1
        chain = _put(c, key, first, part.base or b"", b"")
    else:
        c.execute("DELETE FROM register_parts WHERE key = ? AND position > ?", (key, at))
        first, last = row.first, at
        if part.base is not None:
            first += part.drop
            if first > at:
                raise InvalidInput("more frames are dropped than there are")
            c.execute("DELETE FROM register_parts WHERE key = ? AND position <= ?", (key, first))
            chain = _put(c, key, first, part.base, b"")
            kept = c.execute(
                "SELECT position, hash FROM register_parts WHERE key = ? AND position > ? ORDER BY position",
                (key, first),
            ).fetchall()
            for position, frame_hash in kept:
                chain = link(chain, bytes(frame_hash))
                c.execute("UPDATE register_parts SET chain = ? WHERE key = ? AND position = ?", (chain, key, position))
        else:
            chain = part.on
    for frame in part.frames:
        last += 1
        chain = _put(c, key, last, frame, chain)
    if chain != wanted:
        raise InvalidInput("the parts do not lead to the chain that was signed")
    return first, last


def _put(c: Any, key: bytes, position: int, body: bytes, chain: bytes) -> bytes:
    """Write a base (after no chain) or a frame; the chain after it."""
    body_hash = sha256(body).digest()
    after = link(chain, body_hash) if chain else body_hash
    c.execute(
        "INSERT INTO register_parts (key, position, hash, chain, body) VALUES (?, ?, ?, ?, ?)",
        (key, position, body_hash, after, body),
    )
    return after


def _drop_older(c: Any, account: Address, generation: int) -> None:
    """Delete what a group that has opened makes needless: older groups, and void ones. The controls of sealed ones stay
    as long as there is room, for those who still look there."""
    older = c.execute(
        "SELECT grp, state FROM registers WHERE account = ? AND name = ? AND counter > 0"
        " AND (generation < ? OR state = ?) ORDER BY generation DESC",
        (account, CONTROL, generation, VOID),
    ).fetchall()
    for number, (group, state) in enumerate(older):
        is_kept = state == SEALED and number < GROUPS_LIMIT // 2
        _delete(c, account, group, "AND name <> ?" if is_kept else "AND ? IS NOT NULL", CONTROL)


def _delete(c: Any, account: Address, group: bytes, condition: str, name: bytes) -> None:
    chosen = f"FROM registers WHERE account = ? AND grp = ? {condition}"
    c.execute(f"DELETE FROM register_parts WHERE key IN (SELECT key {chosen})", (account, group, name))
    c.execute(f"DELETE {chosen}", (account, group, name))


def _account_bytes(c: Any, account: Address) -> int:
    (size,) = c.execute("SELECT COALESCE(SUM(size), 0) FROM registers WHERE account = ?", (account,)).fetchone()
    return int(size)


def _groups(c: Any, account: Address) -> list[Shown]:
    rows = c.execute(
        f"SELECT grp, {_COLUMNS} FROM registers WHERE account = ? AND name = ? AND counter > 0", (account, CONTROL)
    ).fetchall()
    places = [(Place(account, Hash(group), CONTROL), _Row(*row)) for group, *row in rows]
    return [Shown(bytes(place.group), _accepted(c, place, row, Known())) for place, row in places]


def _entries(c: Any, account: Address, group: Hash) -> Listing:
    rows = c.execute(
        "SELECT name, counter, proposer FROM registers WHERE account = ? AND grp = ? AND name <> ? AND counter > 0",
        (account, group, CONTROL),
    ).fetchall()
    status = _status(c, Place(account, group, b""))
    return Listing(status, [Entry(bytes(name), counter, bytes(proposer)) for name, counter, proposer in rows])


def _drop(c: Any, account: Address) -> None:
    c.execute("DELETE FROM register_parts WHERE key IN (SELECT key FROM registers WHERE account = ?)", (account,))
    c.execute("DELETE FROM registers WHERE account = ?", (account,))
    c.execute("DELETE FROM register_leases WHERE account = ?", (account,))
