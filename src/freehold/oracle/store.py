"""A member's disk: records in SQL, batches, bundles and states as blobs.

    oracle.sqlite    records, and what each committed epoch came to; or a PostgreSQL database's schema `oracle`
    blobs/           batch.SUBJECT   bundle.EPOCH   state.EPOCH; or an S3 bucket

A blob is written before the row that speaks of it, and removed after it; what a kill leaves in between is removed at
the next start. Invariant: once `write` or `commit` returned, all of it survives a power cut; if it was cut short,
none of it is seen.

The allowance: batches are refused while what settling them writes might not fit, and old bundles go before anything
that an epoch needs is refused. So a member whose allowance is used up goes on, with fewer bundles.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from freehold.oracle.effects import Commit
from freehold.oracle.member import Committed
from freehold.oracle.records import BATCH, Record
from freehold.protocol.batches import Batch, Kinds, decode_batch, kinds_of
from freehold.protocol.bundle import encode_bundle, replay
from freehold.protocol.errors import Corrupt, DiskFull, MalformedMessage, NotFound
from freehold.protocol.messages import Report
from freehold.protocol.service import Judge
from freehold.protocol.state import TABLES, State
from freehold.protocol.tables import Table
from freehold.protocol.typed import Domain, canonical_json, parse_json
from freehold.protocol.units import Hash
from freehold.store.blob_store import BlobStore
from freehold.store.group_commit import Connection
from freehold.store.opening import open_blobs, open_database

log = logging.getLogger(__name__)

MIGRATIONS = [
    """
    CREATE TABLE records (kind TEXT, key TEXT, epoch INTEGER NOT NULL, data BLOB, PRIMARY KEY (kind, key));
    CREATE TABLE epochs (epoch INTEGER PRIMARY KEY, report BLOB NOT NULL, signers INTEGER NOT NULL,
                         signatures BLOB NOT NULL, verdicts BLOB NOT NULL, made INTEGER NOT NULL,
                         transaction_hash TEXT NOT NULL);
    """
]
_REPLACE_RECORD = (
    "INSERT INTO records VALUES (?,?,?,?) "
    "ON CONFLICT (kind, key) DO UPDATE SET epoch = excluded.epoch, data = excluded.data"
)
STATES = 64  # how many epochs' states are kept: claims are proven against at most the 63rd before the last (Ledger)
RESERVE = 64 * 2**20  # bytes of the allowance that batches leave for what settling writes
NODES_RESERVE = 128 * 2**20  # bytes that all but bonded nodes leave for these
PIECE = 2**20  # bytes of a blob that are read at once
BUNDLES = 8  # the newest, which no shortage of room removes


class Summary(NamedTuple):
    """What a committed epoch came to. `transaction` is empty where it was not seen."""

    report: Report
    signers: int
    signatures: bytes
    verdicts: Mapping[str, int]
    payments: int
    transaction: str


class Stored:
    """A blob to be read piece by piece: bundles are large, and those who fetch them may be slow."""

    def __init__(self, blobs: BlobStore, key: str) -> None:
        self._blobs, self._key = blobs, key
        self.size = blobs.size(key)

    async def pieces(self) -> AsyncIterator[bytes]:
        """All of it, in order. NotFound where it has been removed meanwhile."""
        for at in range(0, self.size, PIECE):
            yield await asyncio.to_thread(self._blobs.read, self._key, at, PIECE)


class Store:
    """`allowance` bounds the blobs, in bytes; bundles are kept for `epochs` epochs, or fewer, but at least for
    `fewest`, where there is no room.

    `last` is the newest epoch that is durably committed: what others may be told of.
    """

    def __init__(
        self,
        directory: Path,
        allowance: int,
        epochs: int,
        domain: Domain,
        judges: Mapping[str, Judge],
        fewest: int = BUNDLES,
        database: str | None = None,
        blobs: str | None = None,
    ) -> None:
        self._database = open_database(database, directory / "oracle.sqlite", "oracle", MIGRATIONS)
        try:
            self._blobs = open_blobs(blobs, directory / "blobs", allowance)
        except BaseException:
            self._database.close()
            raise
        self._epochs, self._domain, self._judges = epochs, domain, judges
        self._fewest = max(1, min(fewest, epochs))
        self._batch_sizes: dict[str, int] = {}
        self._bundles: list[int] = []  # which are here, ascending
        self._dropping = Lock()
        self._last_size = 0  # of the last committed epoch's bundle and state
        self._kinds = kinds_of(judges)
        self._transactions: dict[int, str] = {}
        self.last: Summary | None = None

    def close(self) -> None:
        """Finish what is queued."""
        self._database.close()
        self._blobs.close()

    @property
    def kinds(self) -> Kinds:
        """The rows that this network takes."""
        return self._kinds

    @property
    def used_bytes(self) -> int:
        """Bytes in blobs."""
        return self._blobs.used_bytes

    def check_room(self, size: int, *, is_bonded: bool) -> None:
        """DiskFull where batches of `size` bytes more would leave too little: for settling, or for bonded nodes."""
        free = self._blobs.free_bytes - self._needed(size) - (0 if is_bonded else NODES_RESERVE)
        if size > free:
            raise DiskFull(f"this member has no room for {size} bytes", free=max(0, free), needed=size)

    def _needed(self, size: int = 0) -> int:
        """Bytes that must stay free for settling, with `size` bytes of batches beside those that are here."""
        return RESERVE + 2 * (sum(self._batch_sizes.values()) + size + self._last_size)

    def note_transaction(self, epoch: int, transaction: Hash) -> None:
        """Remember which transaction submitted an epoch's report, until the epoch is committed."""
        self._transactions[epoch] = str(transaction)

    # -- writing --------------------------------------------------------------------------------------------------

    async def write(self, records: Sequence[Record]) -> None:
        """Make the records durable, all or none."""
        await self._put_batches(records)
        await self._database.write(lambda connection: _write(connection, records))
        await self._drop_batches(records)

    async def commit(self, effect: Commit) -> None:
        """Make an epoch, its bundle, the state after it, and the records durable, all or none."""
        bundle, settlement, epoch = effect.bundle, effect.settlement, effect.bundle.report.epoch
        await asyncio.to_thread(self._put_epoch, effect)
        summary = Summary(
            bundle.report,
            bundle.signers,
            bundle.signatures,
            dict(Counter(verdict.reason for verdict in settlement.verdicts)),
            len(settlement.payments),
            self._transactions.pop(epoch, ""),
        )
        row = (epoch, summary.report.to_bytes(), *summary[1:3], canonical_json(summary.verdicts), *summary[4:])
        await self._put_batches(effect.records)

        def work(connection: Connection) -> None:
            _write(connection, effect.records)
            connection.execute("DELETE FROM epochs WHERE epoch = ?", (epoch,))
            connection.execute("INSERT INTO epochs VALUES (?,?,?,?,?,?,?)", row)

        await self._database.write(work)
        self.last = summary
        await self._drop_batches(effect.records)
        await asyncio.to_thread(self._drop_epoch, epoch)

    def _put_epoch(self, effect: Commit) -> None:
        epoch = effect.bundle.report.epoch
        bundle, state = encode_bundle(effect.bundle), encode_state(effect.settlement.state)
        self._put(f"bundle.{epoch}", bundle)
        self._put(f"state.{epoch}", state)
        self._last_size = len(bundle) + len(state)
        if epoch not in self._bundles:
            self._bundles.append(epoch)

    def _put(self, key: str, data: bytes) -> None:
        """Store a blob; where it does not fit, the oldest bundles go for it. DiskFull when no more of them may go."""
        while True:
            try:
                self._blobs.put(key, [data])
                return
            except DiskFull:
                with self._dropping:
                    if len(self._bundles) <= self._fewest:
                        raise
                    self._drop_bundle()

    def _drop_bundle(self) -> None:
        epoch = self._bundles.pop(0)
        self._blobs.delete(f"bundle.{epoch}")

    def _drop_epoch(self, last: int) -> None:
        """What is over when `last` is committed, and the bundles whose room the next epochs need."""
        self._blobs.delete(f"state.{last - STATES}")
        while self._bundles and self._bundles[0] <= last - self._epochs:
            self._drop_bundle()
        while len(self._bundles) > self._fewest and self._blobs.free_bytes < self._needed() + 2 * NODES_RESERVE:
            log.info("the bundle of epoch %d goes before its time: the allowance is used up", self._bundles[0])
            self._drop_bundle()

    async def _put_batches(self, records: Sequence[Record]) -> None:
        new = {r.key: r.data for r in records if r.kind == BATCH and r.data is not None}
        await asyncio.gather(*(asyncio.to_thread(self._put_batch, key, data) for key, data in new.items()))
        self._batch_sizes |= {key: len(data) for key, data in new.items()}

    def _put_batch(self, key: str, data: bytes) -> None:
        if not self._blobs.has(_batch_key(key)):
            self._put(_batch_key(key), data)

    async def _drop_batches(self, records: Sequence[Record]) -> None:
        for record in records:
            if record.kind == BATCH and record.data is None:
                await asyncio.to_thread(self._blobs.delete, _batch_key(record.key))
                self._batch_sizes.pop(record.key, None)

    # -- reading --------------------------------------------------------------------------------------------------

    async def load(self) -> tuple[Committed | None, list[tuple[Record, Batch | None]]]:
        """What a member starts from: the last committed epoch, and its records."""
        rows = await self._database.read(_all_records)
        last = await self._database.read(lambda c: c.execute("SELECT MAX(epoch) FROM epochs").fetchone()[0])
        committed = None
        if last is not None:
            self.last = await self.summary(last)
            committed = Committed(await asyncio.to_thread(self._last_state, last), self.last.report)
        records = await asyncio.to_thread(lambda: list(self._with_batches(rows)))
        await asyncio.to_thread(self._sweep, {_batch_key(r.key) for r in rows if r.kind == BATCH}, last or 0)
        return committed, records

    def _last_state(self, epoch: int) -> State:
        """The state after an epoch; should its blob be gone or damaged, what the bundle replays to."""
        try:
            return self._state(epoch)
        except (NotFound, Corrupt) as error:
            log.warning("%s; replaying its bundle", error.message)
            return replay(self._blobs.read(f"bundle.{epoch}"), self._judges).state

    def _with_batches(self, rows: Sequence[Record]) -> Iterator[tuple[Record, Batch | None]]:
        for row in rows:
            batch = None
            if row.kind == BATCH:
                batch = decode_batch(self._blobs.read(_batch_key(row.key)), self._kinds, self._domain)
            yield row, batch

    def _sweep(self, batches: set[str], last: int) -> None:
        """Remove what a kill has left: batches without a record, an epoch that was not committed, one that is over."""
        keeps = {"bundle": range(last - self._epochs + 1, last + 1), "state": range(last - STATES + 1, last + 1)}
        for key in list(self._blobs.list_keys()):
            kind, _, rest = key.partition(".")
            if key not in batches if kind == "batch" else int(rest) not in keeps[kind]:
                self._blobs.delete(key)
        self._count(self._blobs.list_keys(), last)

    def _count(self, keys: Iterable[str], last: int) -> None:
        parts = [key.partition(".") for key in keys]
        self._bundles = sorted(int(rest) for kind, _, rest in parts if kind == "bundle")
        self._batch_sizes = {rest: self._blobs.size(_batch_key(rest)) for kind, _, rest in parts if kind == "batch"}
        newest = (f"bundle.{last}", f"state.{last}")
        self._last_size = sum(self._blobs.size(key) for key in newest if self._blobs.has(key))

    async def open_batch(self, subject: Hash) -> Stored:
        """A batch as it came. NotFound."""
        return await asyncio.to_thread(Stored, self._blobs, _batch_key(str(subject)))

    def batch(self, subject: Hash) -> Batch | None:
        """A batch, decoded; None where there is none. Blocks."""
        try:
            return decode_batch(self._blobs.read(_batch_key(str(subject))), self._kinds, self._domain)
        except NotFound:
            return None

    async def open_bundle(self, epoch: int) -> Stored:
        """An epoch's bundle. NotFound where it is not committed here, or no longer kept."""
        try:
            return await asyncio.to_thread(Stored, self._blobs, f"bundle.{epoch}")
        except NotFound:
            raise NotFound(f"this member has no bundle of epoch {epoch}", epoch=epoch) from None

    async def state(self, epoch: int) -> State:
        """The state after an epoch. NotFound where it is not committed here, or no longer kept."""
        return await asyncio.to_thread(self._state, epoch)

    def _state(self, epoch: int) -> State:
        try:
            return decode_state(self._blobs.read(f"state.{epoch}"), self._judges)
        except NotFound:
            raise NotFound(f"this member has no state of epoch {epoch}", epoch=epoch) from None

    async def summary(self, epoch: int) -> Summary:
        """What a committed epoch came to. NotFound."""
        found = await self.summaries(epoch, 1)
        if not found or found[0].report.epoch != epoch:
            raise NotFound(f"epoch {epoch} is not committed here", epoch=epoch)
        return found[0]

    async def summaries(self, first: int, limit: int) -> list[Summary]:
        """Committed epochs from `first` on, ascending."""
        query = "SELECT report, signers, signatures, verdicts, made, transaction_hash FROM epochs WHERE epoch >= ?"
        rows = await self._database.read(
            lambda c: c.execute(query + " ORDER BY epoch LIMIT ?", (first, limit)).fetchall()
        )
        return [
            Summary(Report.from_bytes(report), signers, signatures, parse_json(verdicts), payments, transaction)
            for report, signers, signatures, verdicts, payments, transaction in rows
        ]


def encode_state(state: State) -> bytes:
    """A state in one piece: 4 bytes length of the header ‖ [[table, size], ...] as canonical JSON ‖ the tables."""
    tables = {name: table.encode() for name, table in state.tables().items()}
    header = canonical_json([[name, len(data)] for name, data in tables.items()])
    return len(header).to_bytes(4) + header + b"".join(tables.values())


def decode_state(data: bytes, judges: Mapping[str, Judge]) -> State:
    """The state behind `encode_state`'s form. Corrupt where it is none that this release knows."""
    kinds = dict(TABLES) | {f"service.{judge.name}": judge.state_kind for judge in judges.values()}
    at = 4 + int.from_bytes(data[:4])
    tables: dict[str, Table[Any]] = {}
    try:
        for name, size in parse_json(data[4:at]):
            tables[name] = Table.decode(kinds[name], data[at : at + size])
            at += size
    except (MalformedMessage, KeyError, TypeError, ValueError) as error:
        raise Corrupt(f"the stored state does not decode: {error}") from None
    return State.from_tables(tables)


def _batch_key(subject: str) -> str:
    return f"batch.{subject}"


def _write(connection: Connection, records: Sequence[Record]) -> None:
    for record in records:
        if record.data is None:
            connection.execute("DELETE FROM records WHERE kind = ? AND key = ?", (record.kind, record.key))
        else:
            data = None if record.kind == BATCH else record.data
            connection.execute(_REPLACE_RECORD, (*record[:3], data))


def _all_records(connection: Connection) -> list[Record]:
    return [Record(*row) for row in connection.execute("SELECT kind, key, epoch, data FROM records")]
