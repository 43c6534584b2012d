"""The database: group commit, isolation of failures, migrations, and rows that outlive a kill."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from freehold.protocol.errors import DiskFull, InvalidInput, Refused
from freehold.store.sql import Database, Work, migrate

FIRST = "CREATE TABLE t (k INTEGER PRIMARY KEY, v TEXT NOT NULL)"
SECOND = "ALTER TABLE t ADD COLUMN w TEXT; UPDATE t SET w = v"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "state.sqlite", [FIRST])
    yield database
    database.close()


def insert(k: int, v: str = "x") -> Work[int]:
    return lambda connection: connection.execute("INSERT INTO t VALUES (?, ?)", (k, v)).rowcount


def keys(connection: sqlite3.Connection) -> list[int]:
    return [k for (k,) in connection.execute("SELECT k FROM t ORDER BY k")]


def hold(database: Database) -> threading.Event:
    """Keep the writer inside a commit of its own until the event is set; what is queued meanwhile waits together."""
    inside, gate = threading.Event(), threading.Event()

    def wait(_: sqlite3.Connection) -> None:
        inside.set()
        gate.wait(10)

    database.submit(wait)
    assert inside.wait(10)
    return gate


def test_writes_are_seen_by_reads_and_by_the_next_start(database: Database) -> None:
    async def main() -> None:
        assert await database.write(insert(1)) == 1
        assert await database.read(keys) == [1]

    asyncio.run(main())
    database.close()
    database.close()
    reopened = Database(database.path, [FIRST])
    assert reopened.submit(keys).result() == [1]
    reopened.close()


def test_a_failing_write_takes_nothing_of_the_others_with_it(database: Database) -> None:
    def partly(connection: sqlite3.Connection) -> None:
        insert(50)(connection)
        raise KeyError("on purpose")

    async def main() -> None:
        works = [insert(1), insert(2), insert(1), partly, insert(3)]
        results = await asyncio.gather(*(database.write(work) for work in works), return_exceptions=True)
        assert [type(result) for result in results] == [int, int, sqlite3.IntegrityError, KeyError, int]
        assert await database.read(keys) == [1, 2, 3]

    asyncio.run(main())


def test_writes_that_wait_share_a_commit(database: Database) -> None:
    commits: list[str] = []
    gate = hold(database)
    database._writer.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)
    futures = [database.submit(insert(k)) for k in range(100)]
    gate.set()
    assert [future.result() for future in futures] == [1] * 100
    assert len(commits) == 2


def test_nothing_is_acknowledged_before_the_commit(database: Database) -> None:
    done_at_commit: list[bool] = []
    futures: list[Future[int]] = []
    gate = hold(database)
    database._writer.set_trace_callback(
        lambda sql: done_at_commit.extend(f.done() for f in futures) if sql == "COMMIT" else None
    )
    futures = [database.submit(insert(k)) for k in range(3)]
    gate.set()
    for future in futures:
        future.result()
    assert done_at_commit == [False] * 6


def test_a_read_sees_no_unfinished_write(database: Database) -> None:
    inside, gate = threading.Event(), threading.Event()

    def slow(connection: sqlite3.Connection) -> None:
        insert(1)(connection)
        inside.set()
        gate.wait(10)

    async def main() -> None:
        writing = asyncio.ensure_future(database.write(slow))
        await asyncio.to_thread(inside.wait, 10)
        assert await database.read(keys) == []
        gate.set()
        await writing
        assert await database.read(keys) == [1]

    asyncio.run(main())


def test_a_read_cannot_write(database: Database) -> None:
    async def main() -> None:
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            await database.read(insert(1))

    asyncio.run(main())


def test_a_cancelled_write_that_has_not_begun_does_not_happen(database: Database) -> None:
    gate = hold(database)
    cancelled, kept = database.submit(insert(1)), database.submit(insert(2))
    assert cancelled.cancel()
    gate.set()
    assert kept.result() == 1
    assert database.submit(keys).result() == [2]


def test_a_full_disk_is_said_so_and_undoes_the_write(database: Database) -> None:
    def limit(connection: sqlite3.Connection) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages + 2}")

    database.submit(limit).result()
    with pytest.raises(DiskFull):
        database.submit(insert(1, "x" * 100_000)).result()
    assert database.submit(keys).result() == []
    assert database.submit(insert(2)).result() == 1


def test_a_closed_database_takes_nothing_but_finishes_what_it_took(tmp_path: Path) -> None:
    database = Database(tmp_path / "state.sqlite", [FIRST])
    futures = [database.submit(insert(k)) for k in range(50)]
    database.close()
    assert all(future.done() for future in futures)
    with pytest.raises(Refused):
        database.submit(insert(99))


def test_migrations_run_once_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    old = Database(path, [FIRST])
    old.submit(insert(1, "value")).result()
    old.close()
    for _ in range(2):
        new = Database(path, [FIRST, SECOND])
        assert new.submit(lambda c: c.execute("SELECT v, w FROM t").fetchall()).result() == [("value", "value")]
        new.close()
    with pytest.raises(InvalidInput, match="version 2"):
        Database(path, [FIRST])


def test_a_broken_migration_changes_nothing(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "state.sqlite", isolation_level=None)
    with pytest.raises(sqlite3.OperationalError):
        migrate(connection, [FIRST, "CREATE TABLE u (k); CREATE TABLE t (again)"])
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("t",)]
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    connection.close()


CHILD = """
import sys
from pathlib import Path
from freehold.store.sql import Database
database = Database(Path(sys.argv[1]), ["CREATE TABLE t (k INTEGER PRIMARY KEY, v TEXT NOT NULL)"])
k = database.submit(lambda c: c.execute("SELECT coalesce(max(k), -1) + 1 FROM t").fetchone()[0]).result()
while True:
    group = [database.submit(lambda c, k=k + i: c.execute("INSERT INTO t VALUES (?, 'x')", (k,))) for i in range(7)]
    for i, future in enumerate(group):
        future.result()
        print(k + i, flush=True)
    k += 7
"""


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    path, acknowledged = tmp_path / "state.sqlite", []
    for rows in (1, 20, 333):
        command = [sys.executable, "-c", CHILD, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as child:
            assert child.stdout is not None
            acknowledged += [int(child.stdout.readline()) for _ in range(rows)]
            os.kill(child.pid, signal.SIGKILL)
            acknowledged += [int(line) for line in child.stdout.read().splitlines(keepends=True) if line[-1:] == "\n"]
        database = Database(path, [FIRST])
        kept = database.submit(keys).result()
        database.close()
        assert set(acknowledged) <= set(kept)
        assert kept == list(range(len(kept)))


def environment() -> dict[str, str]:
    source = Path(__file__).resolve().parents[2] / "src"
    return {**os.environ, "PYTHONPATH": str(source)}
