"""A member's disk: records in SQL, batches, bundles and states as blobs.

    oracle.sqlite    records, and what each committed epoch came to; or a PostgreSQL database's schema `oracle`
    blobs/           batch.SUBJECT   bundle.EPOCH   state.EPOCH   evidence.EPOCH.ATTEMPT; or an S3 bucket

A blob is written before the row that speaks of it, and removed after it; what a kill leaves in between is removed at
the next start. Invariant: once `write` or `commit` returned, all of it survives a power cut; if it was cut short,
none of it is seen.

The allowance: batches are refused while what settling them writes might not fit, and old bundles go before anything
that an epoch needs is refused. So a member whose allowance is used up goes on, with fewer bundles.

Evidence is the bundle of a report that was revoked, or that does not follow: for those who dispute it. It goes first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from freehold.oracle.committed import Committed
from freehold.oracle.effects import Commit, Uncommit
from freehold.oracle.records import BATCH, Record
from freehold.protocol.batches import Batch, Kinds, decode_batch, kinds_of
from freehold.protocol.bundle import Bundle, decode_bundle, encode_bundle, replay
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
        self._evidence: list[tuple[int, int]] = []  # (epoch, attempt), ascending
        self._dropping = Lock()
        self._last_size = 0  # of the last committed epoch's bundle and state
        self._kinds = kinds_of(judges)
        self._transactions: dict[int, str] = {}
        self.last: Summary | None = None
        self.rollbacks = 0  # how often committed epochs became void: what was remembered of them is, too

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
            settlement.verdicts.count_by("reason"),
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

    async def uncommit(self, effect: Uncommit) -> None:
        """Make committed epochs void, and the records durable, all or none; their bundles become evidence."""
        void = [epoch for epoch in self._bundles if epoch > effect.epoch]
        for epoch in void:
            await asyncio.to_thread(self._keep_void, epoch, (await self.summary(epoch)).report.attempt)
        await self._put_batches(effect.records)

        def work(connection: Connection) -> None:
            _write(connection, effect.records)
            connection.execute("DELETE FROM epochs WHERE epoch > ?", (effect.epoch,))

        await self._database.write(work)
        self.rollbacks += 1
        self.last = await self.summary(effect.epoch) if await self._has_epoch(effect.epoch) else None
        await asyncio.to_thread(self._drop_void, effect.epoch)

    async def _has_epoch(self, epoch: int) -> bool:
        found = await self.summaries(epoch, 1)
        return bool(found) and found[0].report.epoch == epoch

    def _keep_void(self, epoch: int, attempt: int) -> None:
        """A copy of a bundle as evidence; where it does not fit, there is none."""
        try:
            self._put_evidence(epoch, attempt, self._blobs.read(f"bundle.{epoch}"))
        except (DiskFull, NotFound) as error:
            log.warning("no evidence of epoch %d, attempt %d is kept: %s", epoch, attempt, error.message)

    def _put_evidence(self, epoch: int, attempt: int, data: bytes) -> None:
        if len(data) > self._blobs.free_bytes - self._needed():
            raise DiskFull("what is left is for the epochs to come")
        self._blobs.put(f"evidence.{epoch}.{attempt}", [data])
        self._evidence = sorted({*self._evidence, (epoch, attempt)})

    async def keep_evidence(self, bundle: Bundle) -> None:
        """Keep the bundle of a report that does not follow, where there is room."""

        def keep() -> None:
            try:
                self._put_evidence(bundle.report.epoch, bundle.report.attempt, encode_bundle(bundle))
            except (DiskFull, KeyError) as error:
                log.warning("no evidence of epoch %d is kept: %s", bundle.report.epoch, error)

        await asyncio.to_thread(keep)

    def _drop_void(self, epoch: int) -> None:
        for key in list(self._blobs.list_keys()):
            kind, _, rest = key.partition(".")
            if kind in ("bundle", "state") and int(rest) > epoch:
                self._blobs.delete(key)
        self._bundles = [kept for kept in self._bundles if kept <= epoch]

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
                    if not self._evidence and len(self._bundles) <= self._fewest:
                        raise
                    self._drop_bundle()

    def _drop_bundle(self) -> None:
        """The oldest evidence, or where there is none the oldest bundle."""
        if self._evidence:
            epoch, attempt = self._evidence.pop(0)
            self._blobs.delete(f"evidence.{epoch}.{attempt}")
        else:
            self._blobs.delete(f"bundle.{self._bundles.pop(0)}")

    def _drop_epoch(self, last: int) -> None:
        """What is over when `last` is committed, and the bundles whose room the next epochs need."""
        self._blobs.delete(f"state.{last - STATES}")
        while self._evidence and self._evidence[0][0] <= last - self._epochs:
            self._drop_bundle()
        while self._bundles and self._bundles[0] <= last - self._epochs:
            self._blobs.delete(f"bundle.{self._bundles.pop(0)}")
        while self._blobs.free_bytes < self._needed() + 2 * NODES_RESERVE:
            if not self._evidence and len(self._bundles) <= self._fewest:
                return
            log.info("a bundle goes before its time: the allowance is used up")
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

    async def read_before(self, epoch: int) -> tuple[Committed | None, list[Bundle]]:
        """What was committed up to `epoch`, None where that is nothing or not here; and the bundles after it."""
        after = [kept for kept in self._bundles if kept > epoch]
        bundles = await asyncio.to_thread(
            lambda: [decode_bundle(self._blobs.read(f"bundle.{kept}"), self._judges) for kept in after]
        )
        if await self._has_epoch(epoch):
            report = (await self.summary(epoch)).report
            return Committed(await asyncio.to_thread(self._last_state, epoch), report), bundles
        first = bundles[0] if bundles and bundles[0].report.epoch == epoch + 1 else None
        if first is None or first.previous is None:
            return None, bundles
        return Committed(first.state, first.previous), bundles

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
        recent = range(last - self._epochs + 1, last + 1)
        keeps = {"bundle": recent, "state": range(last - STATES + 1, last + 1), "evidence": range(recent.start, 2**63)}
        for key in list(self._blobs.list_keys()):
            kind, _, rest = key.partition(".")
            if key not in batches if kind == "batch" else int(rest.partition(".")[0]) not in keeps[kind]:
                self._blobs.delete(key)
        self._count(self._blobs.list_keys(), last)

    def _count(self, keys: Iterable[str], last: int) -> None:
        parts = [key.partition(".") for key in keys]
        self._bundles = sorted(int(rest) for kind, _, rest in parts if kind == "bundle")
        evidence = [rest.split(".") for kind, _, rest in parts if kind == "evidence"]
        self._evidence = sorted((int(epoch), int(attempt)) for epoch, attempt in evidence)
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

    async def open_bundle(self, epoch: int, attempt: int | None = None) -> Stored:
        """The bundle of an epoch as it is committed, or else of its newest attempt; or of the attempt that is named.

        NotFound where it is not here, or no longer kept; `oldest` says from which epoch on there are any.
        """
        attempts = [f"evidence.{e}.{a}" for e, a in reversed(self._evidence) if e == epoch and attempt in (a, None)]
        is_committed = attempt is None or (await self._attempt_of(epoch)) == attempt
        for key in ([f"bundle.{epoch}"] if is_committed else []) + attempts:
            try:
                return await asyncio.to_thread(Stored, self._blobs, key)
            except NotFound:
                continue
        message = f"this member has no such bundle of epoch {epoch}"
        raise NotFound(message, epoch=epoch, oldest=self._bundles[0] if self._bundles else None)

    async def _attempt_of(self, epoch: int) -> int | None:
        return (await self.summary(epoch)).report.attempt if await self._has_epoch(epoch) else None

    async def open_state(self, epoch: int) -> Stored:
        """The state after an epoch, as `encode_state` spells it. NotFound as for `state`."""
        try:
            return await asyncio.to_thread(Stored, self._blobs, f"state.{epoch}")
        except NotFound:
            raise NotFound(f"this member has no state of epoch {epoch}", epoch=epoch) from None

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
