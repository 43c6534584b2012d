"""The blobs that a node keeps for its clients: small ones in SQL, with what names them; others as files.

    owners    who may read a blob: whoever pushed its bytes, or got it as an output. Equal bytes are kept once
    names     by what (an order's id) a blob is needed; what nothing names goes when room is needed, the one that was
              not used for longest first

A small blob becomes durable in the transaction that names it, so a short job costs no more syncs than its own rows.
Invariant: a row without a body has its file, whole; a file without a row is deleted at the next start.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from freehold.protocol.errors import Corrupt, DiskFull, NotFound
from freehold.protocol.units import Address
from freehold.services.seam import Arrival, Files, Sql

log = logging.getLogger(__name__)

SMALL = 64 * 2**10  # bytes of a blob that is kept in SQL
PIECE = 2**20  # bytes that are read or written in one turn of a thread
EVICTED_AT_ONCE = 64
LOCKS = 256
EMPTY = hashlib.sha256(b"").digest()  # is here for everybody, and not kept: most programs print nothing

MIGRATION = """
    CREATE TABLE blobs (sha256 BLOB PRIMARY KEY, size INTEGER NOT NULL, used INTEGER NOT NULL, body BLOB);
    CREATE INDEX blobs_used ON blobs (used);
    CREATE TABLE owners (
        sha256 BLOB NOT NULL, client BLOB NOT NULL, PRIMARY KEY (sha256, client)
    ) WITHOUT ROWID;
    CREATE TABLE names (sha256 BLOB NOT NULL, holder BLOB NOT NULL, PRIMARY KEY (sha256, holder)) WITHOUT ROWID;
    CREATE INDEX names_holder ON names (holder);
"""

_NAMED = "EXISTS (SELECT 1 FROM names n WHERE n.sha256 = blobs.sha256)"

T = TypeVar("T")


class Kept(NamedTuple):
    """A blob as it is here: `body` where it is small."""

    size: int
    body: bytes | None


async def in_thread(work: Callable[..., T], *arguments: object) -> T:
    """Run blocking work; when the caller is cancelled, the work has ended before the cancellation goes on."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


class Blobs:
    """Every client's blobs at one node."""

    def __init__(self, sql: Sql, files: Files, clock: Callable[[], int]) -> None:
        self._sql, self._files, self._clock = sql, files, clock
        self._locks = [asyncio.Lock() for _ in range(LOCKS)]
        self._small = 0  # bytes in SQL

    async def start(self) -> None:
        """Bring files and rows together."""
        rows = await self._sql.read(
            lambda c: {row[0].hex() for row in c.execute("SELECT sha256 FROM blobs WHERE body IS NULL")}
        )
        keys = set(await in_thread(lambda: list(self._files.list_keys())))
        for key in sorted(keys - rows):
            await in_thread(self._files.delete, key)
        for key in sorted(rows - keys):
            log.error("blob %s is missing on disk", key)
            await self._sql.write(partial(_forget, key=bytes.fromhex(key)))
        self._small = await self._sql.read(
            lambda c: c.execute("SELECT coalesce(sum(size), 0) FROM blobs WHERE body IS NOT NULL").fetchone()[0]
        )

    @property
    def free_bytes(self) -> int:
        """Bytes that are left of the node's allowance for compute."""
        return max(0, self._files.free_bytes - self._small)

    @property
    def used_bytes(self) -> int:
        """Bytes that are kept."""
        return self._files.used_bytes + self._small

    async def find(self, client: Address | None, sha256: str) -> Kept:
        """A blob that `client` may read (None: this node itself). NotFound."""
        key = bytes.fromhex(sha256)
        kept = await self._sql.read(lambda c: _find(c, client, key))
        if kept is None:
            raise NotFound(f"there is no blob {sha256} here", sha256=sha256)
        return kept

    async def own(self, client: Address, sha256: str) -> bool:
        """Whether the client may read the blob; it counts as used now."""
        key, now = bytes.fromhex(sha256), self._clock()

        def work(c: Any) -> bool:
            if _find(c, client, key) is None:
                return False
            c.execute("UPDATE blobs SET used = ? WHERE sha256 = ?", (now, key))
            return True

        return await self._sql.write(work)

    def lock_of(self, sha256: str) -> asyncio.Lock:
        """Held while the blob's file comes or goes; two blobs may share one."""
        return self._locks[int(sha256[-4:], 16) % LOCKS]

    async def make_room(self, size: int) -> None:
        """Let go of what nothing names until `size` bytes more fit. DiskFull, and nothing goes, where they cannot."""
        if self.free_bytes >= size:
            return
        unnamed = f"SELECT coalesce(sum(size), 0) FROM blobs WHERE NOT {_NAMED}"
        free = self.free_bytes + await self._sql.read(lambda c: c.execute(unnamed).fetchone()[0])
        if free < size:
            raise DiskFull(f"{size} bytes do not fit: {free} are left for blobs", need=size, free=free)
        query = f"SELECT sha256 FROM blobs WHERE NOT {_NAMED} ORDER BY used LIMIT {EVICTED_AT_ONCE}"
        while self.free_bytes < size:
            oldest = await self._sql.read(lambda c: [row[0] for row in c.execute(query)])
            if not oldest:
                raise DiskFull(f"{size} bytes do not fit: others have taken the room", need=size, free=self.free_bytes)
            for key in oldest:
                if self.free_bytes >= size:
                    break
                await self._evict(key)

    async def _evict(self, key: bytes) -> None:
        async with self.lock_of(key.hex()):
            gone = await self._sql.write(lambda c: _evict(c, key))
            if gone is not None and gone.body is None:
                await in_thread(self._files.delete, key.hex())
            elif gone is not None:
                self._small -= gone.size

    async def begin(self, sha256: str, size: int) -> Arriving:
        """A file that is arriving, its room taken, as a context: leaving it without `finish` leaves nothing behind.
        DiskFull."""
        await self.make_room(size)
        return Arriving(await in_thread(self._files.begin, sha256, size))

    async def finish(self, arrival: Arrival, client: Address, sha256: str, size: int, holder: bytes = b"") -> None:
        """Make an arrived file durable, and the client its owner; named by `holder` if one is given."""
        key, now = bytes.fromhex(sha256), self._clock()
        async with self.lock_of(sha256):
            await in_thread(arrival.commit)
            await self._sql.write(lambda c: _add(c, client, key, size, None, now, holder))

    async def keep_file(self, file: BinaryIO, client: Address, sha256: str, size: int, holder: bytes) -> None:
        """Take an open file's bytes in, named by `holder`: an output, or an input that was read from elsewhere.
        DiskFull; Corrupt where the bytes are not what their name says."""
        with await self.begin(sha256, size) as arrival:
            found = await in_thread(_copy, file, arrival)
            if found != sha256:
                raise Corrupt("a file has changed while it was read")
            await self.finish(arrival, client, sha256, size, holder)

    async def keep(self, client: Address, bodies: Mapping[str, bytes], holder: bytes = b"") -> None:
        """Keep blobs that are in memory, whatever their size."""
        small = {sha256: body for sha256, body in bodies.items() if len(body) <= SMALL}
        await self.make_room(sum(map(len, small.values())))
        if small:
            now = self._clock()
            self.grew(await self._sql.write(lambda c: add_small(c, client, small, now, holder)))
        for sha256, body in bodies.items():
            if sha256 not in small:
                with await self.begin(sha256, len(body)) as arrival:
                    await in_thread(arrival.write, body)
                    await self.finish(arrival, client, sha256, len(body), holder)

    def grew(self, size: int) -> None:
        """`add_small` has added so many bytes, durably."""
        self._small += size

    async def read(self, sha256: str, limit: int) -> bytes:
        """A blob's bytes. NotFound; DiskFull where it has more than `limit`."""
        kept = await self.find(None, sha256)
        if kept.body is not None:
            return kept.body
        if kept.size > limit:
            raise DiskFull(f"blob {sha256} has {kept.size} bytes, more than {limit}")
        return await in_thread(self._files.read, sha256)

    async def read_piece(self, sha256: str, offset: int) -> bytes:
        """At most PIECE bytes of a blob that is a file."""
        return await in_thread(self._files.read, sha256, offset, PIECE)

    async def write_out(self, wanted: Sequence[tuple[str, Path]], limit: int | None = None) -> int:
        """Write blobs to files that are not there yet; how many bytes. NotFound, Corrupt; DiskFull, and nothing is
        written, where the files come to more than `limit` bytes (one blob may be many files)."""
        if not wanted:
            return 0
        keys = sorted({bytes.fromhex(sha256) for sha256, _ in wanted})
        kept = await self._sql.read(lambda c: {key.hex(): _find(c, None, key) for key in keys})
        for sha256, _ in wanted:
            if kept[sha256] is None:
                raise NotFound(f"there is no blob {sha256} here", sha256=sha256)
        need = sum(one.size for sha256, _ in wanted if (one := kept[sha256]) is not None)
        if limit is not None and need > limit:
            raise DiskFull(f"the inputs have {need} bytes, more than the {limit} that a task may have here", need=need)
        return await in_thread(self._write_out, [(sha256, path, kept[sha256]) for sha256, path in wanted])

    def _write_out(self, wanted: Sequence[tuple[str, Path, Kept]]) -> int:
        written = 0
        for sha256, path, kept in wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256()
            with path.open("xb") as target:
                for piece in [kept.body] if kept.body is not None else self._pieces(sha256, kept.size):
                    digest.update(piece)
                    target.write(piece)
            if digest.hexdigest() != sha256:
                raise Corrupt(f"blob {sha256} is damaged here", sha256=sha256)
            written += kept.size
        return written

    def _pieces(self, sha256: str, size: int) -> Iterator[bytes]:
        for offset in range(0, size, PIECE):
            yield self._files.read(sha256, offset, PIECE)

    async def figures(self) -> dict[str, int]:
        """Blobs and their bytes, for the metrics."""
        query = "SELECT count(*), coalesce(sum(size), 0) FROM blobs"
        row = await self._sql.read(lambda c: c.execute(query).fetchone())
        return dict(zip(("blobs", "blob_bytes"), row, strict=True))


class Arriving:
    """An arrival as a context: aborted unless it was committed."""

    def __init__(self, arrival: Arrival) -> None:
        self._arrival = arrival

    def __enter__(self) -> Arrival:
        return self._arrival

    def __exit__(self, *_: object) -> None:
        self._arrival.abort()


def missing_of(c: Any, client: Address, wanted: Sequence[str]) -> list[str]:
    """Which of these are not here for this client; within a transaction."""
    return [sha256 for sha256 in wanted if not _is_owned(c, client, bytes.fromhex(sha256))]


def add_small(c: Any, client: Address, bodies: Mapping[str, bytes], now: int, holder: bytes) -> int:
    """Within a transaction: keep small blobs, named by `holder`; how many bytes are new."""
    return sum(
        len(body)
        for sha256, body in bodies.items()
        if _add(c, client, bytes.fromhex(sha256), len(body), body, now, holder)
    )


def name_all(c: Any, wanted: Iterable[str], holder: bytes, now: int) -> None:
    """Within a transaction: `holder` needs these blobs, which are here."""
    keys = [bytes.fromhex(sha256) for sha256 in wanted]
    c.executemany(
        "INSERT INTO names (sha256, holder) VALUES (?, ?) ON CONFLICT DO NOTHING", [(k, holder) for k in keys]
    )
    c.executemany("UPDATE blobs SET used = ? WHERE sha256 = ?", [(now, key) for key in keys])


def unname(c: Any, holder: bytes) -> None:
    """Within a transaction: `holder` needs nothing any more."""
    c.execute("DELETE FROM names WHERE holder = ?", (holder,))


def _is_owned(c: Any, client: Address, key: bytes) -> bool:
    if key == EMPTY:
        return True
    query = "SELECT 1 FROM owners JOIN blobs USING (sha256) WHERE sha256 = ? AND client = ?"
    return c.execute(query, (key, client)).fetchone() is not None


def _find(c: Any, client: Address | None, key: bytes) -> Kept | None:
    if key == EMPTY:
        return Kept(0, b"")
    if client is not None and not _is_owned(c, client, key):
        return None
    row = c.execute("SELECT size, body FROM blobs WHERE sha256 = ?", (key,)).fetchone()
    return Kept(*row) if row else None


def _add(c: Any, client: Address, key: bytes, size: int, body: bytes | None, now: int, holder: bytes) -> bool:
    """Whether the blob is new."""
    if key == EMPTY:
        return False
    is_new = c.execute("SELECT 1 FROM blobs WHERE sha256 = ?", (key,)).fetchone() is None
    if is_new:
        c.execute("INSERT INTO blobs (sha256, size, used, body) VALUES (?, ?, ?, ?)", (key, size, now, body))
    else:
        c.execute("UPDATE blobs SET used = ? WHERE sha256 = ?", (now, key))
    c.execute("INSERT INTO owners (sha256, client) VALUES (?, ?) ON CONFLICT DO NOTHING", (key, client))
    if holder:
        c.execute("INSERT INTO names (sha256, holder) VALUES (?, ?) ON CONFLICT DO NOTHING", (key, holder))
    return is_new


def _evict(c: Any, key: bytes) -> Kept | None:
    """In the transaction that lets it go, so that nothing can name it in between."""
    kept = _find(c, None, key)
    if kept is None or c.execute("SELECT 1 FROM names WHERE sha256 = ?", (key,)).fetchone():
        return None
    _forget(c, key)
    return kept


def _forget(c: Any, key: bytes) -> None:
    for table in ("blobs", "owners", "names"):
        c.execute(f"DELETE FROM {table} WHERE sha256 = ?", (key,))


def _copy(source: BinaryIO, arrival: Arrival) -> str:
    digest = hashlib.sha256()
    source.seek(0)
    while piece := source.read(PIECE):
        digest.update(piece)
        arrival.write(piece)
    return digest.hexdigest()
