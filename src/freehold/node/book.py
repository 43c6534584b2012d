"""A node's book: the leases it signed, what covers them, their vouchers, what committed states say of them.

    lock      highest that a certified and held reservation, or a committed state, has shown for the lease. It falls
              only with this node's signature, which this release never gives: so the highest one stands
    settled   from the lease's row in the last committed state
    consumed  the measure sent under a lease paid by voucher; owed = ceil(consumed x price / units)

A voucher is taken by compare-and-set (the larger stands), and one answer is served ahead of it, unless its client wants
to pay beforehand: then nothing is ever owed that no voucher covers, whichever of a client's devices signed it.
What is known of a lease is kept in memory from one request to the next, until anything is written that may change it.
Invariant: what `sign`, `cover` and `charge` returned is durable; a lease's lock, voucher and consumption never shrink,
except that `refund` takes back what was counted for an answer and not sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

from freehold.protocol.errors import Conflict, InsufficientCredits, NotFound, Refused, WrongSignature
from freehold.protocol.keys import is_signed_by
from freehold.protocol.messages import VOUCHER as BY_VOUCHER
from freehold.protocol.messages import Lease, Reservation, Voucher
from freehold.protocol.state import LeaseState, LockState
from freehold.protocol.typed import Domain
from freehold.protocol.units import Hash, check_amount
from freehold.services.seam import Charge, Sql, Standing

UNCOVERED_LIMIT = 10_000  # leases that nothing covers yet, of all clients: a signature costs a stranger nothing
UNCOVERED_PER_CLIENT = 64
FOUND_LIMIT = 4096  # leases kept in memory
UNCOVERED_SECONDS = 600  # after which such a lease is forgotten; its client may have it signed again

MIGRATIONS = [
    """
    CREATE TABLE leases (
        lease BLOB PRIMARY KEY, client BLOB NOT NULL, body BLOB NOT NULL, lock TEXT NOT NULL DEFAULT '0',
        covered INTEGER NOT NULL DEFAULT 0, deadline INTEGER NOT NULL, state BLOB,
        voucher BLOB, consumed INTEGER NOT NULL DEFAULT 0, units INTEGER NOT NULL DEFAULT 1
    ) WITHOUT ROWID;
    CREATE INDEX leases_uncovered ON leases (client) WHERE covered = 0;
    CREATE TABLE progress (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    """,
    """
    ALTER TABLE leases ADD COLUMN signed INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX leases_waiting ON leases (signed) WHERE covered = 0;
    """,
    "CREATE INDEX leases_client ON leases (client);",
]

_COLUMNS = "body, lock, state, voucher, consumed, units"


T = TypeVar("T")


class Entry(NamedTuple):
    """One lease as the book has it."""

    lease: Lease
    lock: int
    state: LeaseState | None
    voucher: Voucher | None
    consumed: int
    units: int

    @property
    def owed(self) -> int:
        """Credits for what was sent so far, rounded up."""
        return -(-self.consumed * self.lease.price // self.units)

    @property
    def settled(self) -> int:
        """Credits that committed reports have paid."""
        return self.state.settled if self.state else 0

    @property
    def is_covered(self) -> bool:
        """Whether anything is locked beyond what is settled, and the lease goes on."""
        return self.lock > self.settled and not (self.state and (self.state.closed or self.state.lapsed))


class Book:
    """Leases, locks and vouchers of one node, over one SQL database."""

    def __init__(self, sql: Sql, domain: Domain) -> None:
        self._sql = sql
        self._domain = domain
        self._found: dict[Hash, Standing] = {}
        self._changes = 0  # writes that may have changed what `find` says

    async def find(self, lease: Hash) -> Standing:
        """What is known of a lease. NotFound."""
        if (known := self._found.get(lease)) is not None:
            return known
        before = self._changes
        entry, epoch = await self._sql.read(lambda c: (_entry(c, lease), _progress(c, "committed")))
        standing = Standing(entry.lease, entry.lock, epoch, entry.state)
        if before == self._changes:  # else what was read may be older than what is written meanwhile
            if len(self._found) >= FOUND_LIMIT:
                self._found.clear()
            self._found[lease] = standing
        return standing

    async def entry(self, lease: Hash) -> Entry:
        """A lease with its voucher. NotFound."""
        return await self._sql.read(lambda c: _entry(c, lease))

    async def sign(self, lease: Lease, now: int, ended: Collection[Hash] | None = None) -> Lease:
        """Keep a lease that both signed; the one kept, if it was here before.

        Those that no reservation covers go after a while, and the oldest of them where there are too many: whoever
        signs in bulk pushes out what waits, and shuts nobody out. With `ended`: Conflict, showing it, if the client has
        another open lease of this service and mode beside those: so its devices come to share one.
        """

        def work(c: Any) -> Lease:
            key = lease.struct_hash()
            row = c.execute("SELECT body FROM leases WHERE lease = ?", (key,)).fetchone()
            if row:
                return Lease.from_bytes(row[0])
            c.execute("DELETE FROM leases WHERE covered = 0 AND signed <= ?", (now - UNCOVERED_SECONDS,))
            if ended is not None:
                _check_alone(c, lease, ended, now)
            _evict(c, "client = ?", (lease.client,), UNCOVERED_PER_CLIENT)
            _evict(c, "1", (), UNCOVERED_LIMIT)
            c.execute(
                "INSERT INTO leases (lease, client, body, deadline, signed) VALUES (?, ?, ?, ?, ?)",
                (key, lease.client, lease.to_bytes(), min(lease.deadline, 2**62), now),
            )
            return lease

        return await self._change(work)

    async def cover(self, reservation: Reservation) -> int:
        """Take over the locks of a reservation that is certified and held; how many of them are for leases here."""

        def work(c: Any) -> int:
            return sum(_raise_lock(c, lock.lease, reservation.client, lock.amount) for lock in reservation.locks)

        return await self._change(work)

    async def charge(self, voucher: Voucher, charge: Charge) -> None:
        """Take a voucher, and count one more answer of `charge.measure`.

        Conflict, with what is owed and the last voucher, if earlier answers are not covered (nor this one, where the
        client wants to pay beforehand); InsufficientCredits if the lock does not cover this one.
        """
        lease = (await self.find(voucher.lease)).lease
        if lease.client != charge.client or lease.mode != BY_VOUCHER or lease.service != charge.service:
            raise Refused(f"{voucher.lease} is no lease for {charge.service} by voucher of this client")
        if not is_signed_by(voucher, voucher.client_signature, lease.client, self._domain):
            raise WrongSignature(f"the voucher is not signed by {lease.client}")
        await self._sql.write(lambda c: _charge(c, voucher, charge))

    async def refund(self, lease: Hash, measure: int) -> None:
        """Take back what was counted and not sent."""
        query = "UPDATE leases SET consumed = max(0, consumed - ?) WHERE lease = ?"
        await self._sql.write(lambda c: c.execute(query, (measure, lease)).rowcount)

    async def commit(self, epoch: int, states: Mapping[Hash, LeaseState], locks: Iterable[LockState]) -> None:
        """What the report of `epoch` commits to about this node's leases. Older epochs change nothing."""

        def work(c: Any) -> None:
            if epoch <= _progress(c, "committed"):
                return
            for key, state in states.items():
                c.execute("UPDATE leases SET state = ?, covered = 1 WHERE lease = ?", (state.to_bytes(), key))
            for lock in locks:
                _raise_lock(c, lock.lease, lock.client, lock.amount)
            c.execute("INSERT OR REPLACE INTO progress (name, value) VALUES ('committed', ?)", (epoch,))

        await self._change(work)

    async def forget(self, states: Mapping[Hash, LeaseState]) -> None:
        """Drop leases that were in the state and are not any more: nothing can be owed for them."""

        def work(c: Any) -> None:
            rows = c.execute("SELECT lease FROM leases WHERE state IS NOT NULL").fetchall()
            gone = [(row[0],) for row in rows if row[0] not in states]
            c.executemany("DELETE FROM leases WHERE lease = ?", gone)

        await self._change(work)

    async def _change(self, work: Callable[[Any], T]) -> T:
        """Write what `find` may say otherwise from now on, whether or not whoever asked for it still waits."""
        writing = asyncio.ensure_future(self._sql.write(work))
        writing.add_done_callback(self._changed)
        return await asyncio.shield(writing)

    def _changed(self, _: object) -> None:
        self._changes += 1
        self._found.clear()

    async def committed_epoch(self) -> int:
        """The last epoch whose state was taken over; 0 for none."""
        return await self._sql.read(lambda c: _progress(c, "committed"))

    async def unsettled_vouchers(self) -> list[Voucher]:
        """Vouchers that would pay more than is settled; also of closed leases, as long as the state has them: a client
        may close its lease right after it was served."""
        query = f"SELECT {_COLUMNS} FROM leases WHERE voucher IS NOT NULL ORDER BY lease"
        entries = await self._sql.read(lambda c: [_parse(row) for row in c.execute(query)])
        return [e.voucher for e in entries if e.voucher and min(e.voucher.amount, e.lock) > e.settled]

    async def unknown_leases(self, now: int) -> list[Lease]:
        """Covered leases that no committed state has yet, and that one may still take."""
        query = f"SELECT {_COLUMNS} FROM leases WHERE state IS NULL AND covered = 1 AND deadline >= ? ORDER BY lease"
        return await self._sql.read(lambda c: [_parse(row).lease for row in c.execute(query, (now,))])

    async def figures(self) -> dict[str, int]:
        """Leases and covered leases, for the metrics."""
        row = await self._sql.read(
            lambda c: c.execute("SELECT count(*), coalesce(sum(covered), 0) FROM leases").fetchone()
        )
        return dict(zip(("leases", "covered_leases"), row, strict=True))


def _evict(c: Any, whose: str, values: tuple[bytes, ...], limit: int) -> None:
    """Make room for one more lease that nothing covers."""
    count = c.execute(f"SELECT count(*) FROM leases WHERE covered = 0 AND {whose}", values).fetchone()[0]
    oldest = f"SELECT lease FROM leases WHERE covered = 0 AND {whose} ORDER BY signed LIMIT ?"
    if count >= limit:
        c.execute(f"DELETE FROM leases WHERE lease IN ({oldest})", (*values, count - limit + 1))


def _check_alone(c: Any, lease: Lease, ended: Collection[Hash], now: int) -> None:
    rows = c.execute(f"SELECT {_COLUMNS} FROM leases WHERE client = ? ORDER BY covered DESC, signed", (lease.client,))
    for entry in map(_parse, rows.fetchall()):
        other, live = entry.lease, entry.state is not None or entry.lease.deadline > now
        same = (other.service, other.mode) == (lease.service, lease.mode)
        if same and live and not _is_closed(entry) and other.struct_hash() not in ended:
            raise Conflict("this client has an open lease of this kind already", lease=other.to_json())


def _is_closed(entry: Entry) -> bool:
    return bool(entry.state and entry.state.closed)


def _progress(c: Any, name: str) -> int:
    row = c.execute("SELECT value FROM progress WHERE name = ?", (name,)).fetchone()
    return row[0] if row else 0


def _parse(row: Any) -> Entry:
    body, lock, state, voucher, consumed, units = row
    return Entry(
        Lease.from_bytes(body),
        int(lock),
        LeaseState.from_bytes(state) if state else None,
        Voucher.from_bytes(voucher) if voucher else None,
        consumed,
        units,
    )


def _entry(c: Any, lease: Hash) -> Entry:
    row = c.execute(f"SELECT {_COLUMNS} FROM leases WHERE lease = ?", (lease,)).fetchone()
    if row is None:
        raise NotFound(f"this node has signed no lease {lease}", lease=str(lease))
    return _parse(row)


def _raise_lock(c: Any, lease: Hash, client: bytes, amount: int) -> bool:
    row = c.execute("SELECT lock FROM leases WHERE lease = ? AND client = ?", (lease, client)).fetchone()
    if row is None:
        return False
    lock = max(int(row[0]), amount)
    c.execute("UPDATE leases SET lock = ?, covered = ? WHERE lease = ?", (str(lock), int(lock > 0), lease))
    return True


def _charge(c: Any, voucher: Voucher, charge: Charge) -> None:
    before = _entry(c, voucher.lease)._replace(units=charge.units)
    if _is_closed(before):
        raise Refused("this lease is closed")
    last = before.voucher
    kept = voucher if last is None or voucher.amount > last.amount else last
    after = before._replace(consumed=before.consumed + charge.measure)
    facts: dict[str, Any] = {
        "owed": str(before.owed),
        "cost": str(after.owed - before.owed),
        "voucher": last.to_json() if last else None,
    }
    if kept.amount < before.owed:
        raise Conflict(f"a voucher of {kept.amount} does not cover the {before.owed} owed already", **facts)
    missing = after.owed - before.lock
    if missing > 0 or before.lock == 0:
        raise InsufficientCredits(
            f"{missing} more credits must be locked for this lease",
            hint="Reserve more credits for this lease, and show the node the certificate.",
            missing=str(max(missing, 0)), lock=str(before.lock), **facts,
        )  # fmt: skip
    if charge.is_prepaid and kept.amount < after.owed:
        raise Conflict(f"a voucher of {kept.amount} does not cover the {after.owed} owed after this answer", **facts)
    check_amount(after.owed)
    c.execute(
        "UPDATE leases SET voucher = ?, consumed = ?, units = ? WHERE lease = ?",
        (kept.to_bytes(), after.consumed, charge.units, voucher.lease),
    )
