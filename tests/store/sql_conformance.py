"""What every SQL database under `GroupCommit` must do: group commit, isolation of failures, migrations, kill -9."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from freehold.protocol.errors import DiskFull, InvalidInput, Refused
from freehold.store.group_commit import Connection, Cursor, GroupCommit, Work

FIRST = "CREATE TABLE t (k INTEGER PRIMARY KEY, v TEXT NOT NULL, b BLOB)"
SECOND = "ALTER TABLE t ADD COLUMN w TEXT; UPDATE t SET w = v"

Open = Callable[[Sequence[str]], GroupCommit]

CHILD = """
database = open_database(["CREATE TABLE t (k INTEGER PRIMARY KEY, v TEXT NOT NULL, b BLOB)"])
k = database.submit(lambda c: c.execute("SELECT coalesce(max(k), -1) + 1 FROM t").fetchone()[0]).result()
while True:
    group = [
        database.submit(lambda c, k=k + i: c.execute("INSERT INTO t (k, v) VALUES (?, 'x')", (k,))) for i in range(7)
    ]
    for i, future in enumerate(group):
        future.result()
        print(k + i, flush=True)
    k += 7
"""


def insert(k: int, v: str = "x") -> Work[int]:
    return lambda connection: connection.execute("INSERT INTO t (k, v) VALUES (?, ?)", (k, v)).rowcount


def keys(connection: Connection) -> list[int]:
    return [k for (k,) in connection.execute("SELECT k FROM t ORDER BY k")]


def hold(database: GroupCommit) -> threading.Event:
    """Keep the writer inside a commit of its own until the event is set; what is queued meanwhile waits together."""
    inside, gate = threading.Event(), threading.Event()

    def wait(_: Connection) -> None:
        inside.set()
        gate.wait(10)

    database.submit(wait)
    assert inside.wait(10)
    return gate


def kinds(error: BaseException) -> set[str]:
    """The names of an error's classes: the drivers share those of the DB-API, and no base."""
    return {kind.__name__ for kind in type(error).__mro__}


class Watched:
    """A connection that tells before each COMMIT."""

    def __init__(self, connection: Connection, on_commit: Callable[[], None]) -> None:
        self._connection, self._on_commit = connection, on_commit

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Cursor:
        if sql == "COMMIT":
            self._on_commit()
        return self._connection.execute(sql, parameters)


def watch(database: GroupCommit, monkeypatch: pytest.MonkeyPatch, on_commit: Callable[[], None]) -> None:
    begin = database._begin
    monkeypatch.setattr(database, "_begin", lambda: Watched(begin(), on_commit))


class SqlConformance:
    """Inherit, and provide `reopen` (each call opens the same place anew), `child` (the source of a program's
    `open_database`) and `fill` (a write that finds the disk full)."""

    @pytest.fixture
    def database(self, reopen: Open) -> Iterator[GroupCommit]:
        database = reopen([FIRST])
        yield database
        database.close()

    def test_writes_are_seen_by_reads_and_by_the_next_start(self, database: GroupCommit, reopen: Open) -> None:
        async def main() -> None:
            assert await database.write(insert(1)) == 1
            assert await database.read(keys) == [1]

        asyncio.run(main())
        database.close()
        database.close()
        again = reopen([FIRST])
        assert again.submit(keys).result() == [1]
        again.close()

    def test_values_come_back_as_they_were(self, database: GroupCommit) -> None:
        rows = [
            (-(2**63), "", b""),
            (2**63 - 1, "é'?%s", bytes(range(256))),
            (0, "100 %", None),
            (2**31, "x" * 10_000, bytes(1_000_000)),
        ]

        def work(connection: Connection) -> int:
            connection.executemany("INSERT INTO t VALUES (?, ?, ?)", rows[1:])
            return connection.execute("INSERT INTO t VALUES (?, ?, ?)", rows[0]).rowcount

        assert database.submit(work).result() == 1
        found = database.submit(lambda c: c.execute("SELECT k, v, b FROM t").fetchall()).result()
        assert sorted(map(tuple, found)) == sorted(rows)
        assert {type(b) for _, _, b in found} == {bytes, type(None)}
        query = "SELECT '?%', v FROM t WHERE v LIKE '100 %' AND k = ?"
        assert tuple(database.submit(lambda c: c.execute(query, (0,)).fetchone()).result()) == ("?%", "100 %")

    def test_one_row_a_key(self, database: GroupCommit) -> None:
        replace = "INSERT INTO t (k, v) VALUES (?, ?) ON CONFLICT (k) DO UPDATE SET v = excluded.v"
        database.submit(insert(1)).result()
        database.submit(lambda c: c.execute(replace, (1, "new"))).result()
        assert database.submit(keys).result() == [1]
        assert tuple(database.submit(lambda c: c.execute("SELECT v FROM t").fetchone()).result()) == ("new",)

    def test_a_failing_write_takes_nothing_of_the_others_with_it(self, database: GroupCommit) -> None:
        def partly(connection: Connection) -> None:
            insert(50)(connection)
            raise KeyError("on purpose")

        async def main() -> None:
            works = [insert(1), insert(2), insert(1), partly, insert(3)]
            results = await asyncio.gather(*(database.write(work) for work in works), return_exceptions=True)
            assert [results[at] for at in (0, 1, 4)] == [1, 1, 1]
            assert isinstance(results[2], Exception)
            assert "IntegrityError" in kinds(results[2])
            assert isinstance(results[3], KeyError)
            assert await database.read(keys) == [1, 2, 3]

        asyncio.run(main())

    def test_writes_that_wait_share_a_commit(self, database: GroupCommit, monkeypatch: pytest.MonkeyPatch) -> None:
        commits: list[None] = []
        watch(database, monkeypatch, lambda: commits.append(None))
        gate = hold(database)
        futures = [database.submit(insert(k)) for k in range(100)]
        gate.set()
        assert [future.result() for future in futures] == [1] * 100
        assert len(commits) == 2

    def test_nothing_is_acknowledged_before_the_commit(
        self, database: GroupCommit, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done_at_commit: list[bool] = []
        futures: list[Future[int]] = []
        watch(database, monkeypatch, lambda: done_at_commit.extend(future.done() for future in futures))
        gate = hold(database)
        futures += [database.submit(insert(k)) for k in range(3)]
        gate.set()
        for future in futures:
            future.result()
        assert done_at_commit == [False] * 6

    def test_a_read_sees_no_unfinished_write(self, database: GroupCommit) -> None:
        inside, gate = threading.Event(), threading.Event()

        def slow(connection: Connection) -> None:
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

    def test_a_read_cannot_write(self, database: GroupCommit) -> None:
        async def main() -> None:
            with pytest.raises(Exception, match=r"read-?only") as caught:
                await database.read(insert(1))
            assert "DatabaseError" in kinds(caught.value)
            assert await database.read(keys) == []

        asyncio.run(main())

    def test_writers_of_several_processes_take_turns(self, database: GroupCommit, reopen: Open) -> None:
        def add(connection: Connection) -> None:
            count = connection.execute("SELECT COUNT(*) FROM t").fetchone()[0]
            insert(count)(connection)

        other = reopen([FIRST])
        futures = [which.submit(add) for _ in range(20) for which in (database, other)]
        for future in futures:
            future.result()
        other.close()
        assert database.submit(keys).result() == list(range(40))

    def test_a_cancelled_write_that_has_not_begun_does_not_happen(self, database: GroupCommit) -> None:
        gate = hold(database)
        cancelled, kept = database.submit(insert(1)), database.submit(insert(2))
        assert cancelled.cancel()
        gate.set()
        assert kept.result() == 1
        assert database.submit(keys).result() == [2]

    def test_a_full_disk_is_said_so_and_undoes_the_write(self, database: GroupCommit, fill: Work[None]) -> None:
        def work(connection: Connection) -> None:
            insert(1)(connection)
            fill(connection)

        with pytest.raises(DiskFull):
            database.submit(work).result()
        assert database.submit(keys).result() == []
        assert database.submit(insert(2)).result() == 1

    def test_a_closed_database_takes_nothing_but_finishes_what_it_took(
        self, database: GroupCommit, reopen: Open
    ) -> None:
        futures = [database.submit(insert(k)) for k in range(50)]
        database.close()
        assert [future.result(0) for future in futures] == [1] * 50
        with pytest.raises(Refused):
            database.submit(insert(99))
        again = reopen([FIRST])
        assert again.submit(keys).result() == list(range(50))
        again.close()

    def test_migrations_run_once_and_in_order(self, reopen: Open) -> None:
        old = reopen([FIRST])
        old.submit(insert(1, "value")).result()
        old.close()
        for _ in range(2):
            new = reopen([FIRST, SECOND])
            assert tuple(new.submit(lambda c: c.execute("SELECT v, w FROM t").fetchone()).result()) == ("value",) * 2
            new.close()
        with pytest.raises(InvalidInput, match="version 2"):
            reopen([FIRST])

    def test_a_broken_migration_changes_nothing(self, reopen: Open) -> None:
        with pytest.raises(Exception, match="already exists"):
            reopen([FIRST, "CREATE TABLE u (k INTEGER); CREATE TABLE t (again INTEGER)"])
        database = reopen([FIRST, "CREATE TABLE u (other INTEGER)"])
        assert database.submit(lambda c: c.execute("INSERT INTO u (other) VALUES (1)").rowcount).result() == 1
        assert database.submit(keys).result() == []
        database.close()

    def test_what_was_acknowledged_survives_kill_9(self, reopen: Open, child: str) -> None:
        acknowledged: list[int] = []
        for rows in (1, 20, 333):
            command = [sys.executable, "-c", child + CHILD]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as process:
                assert process.stdout is not None
                acknowledged += [int(process.stdout.readline()) for _ in range(rows)]
                os.kill(process.pid, signal.SIGKILL)
                rest = process.stdout.read().splitlines(keepends=True)
                acknowledged += [int(line) for line in rest if line[-1:] == "\n"]
            database = reopen([FIRST])
            kept = database.submit(keys).result()
            database.close()
            assert set(acknowledged) <= set(kept)
            assert kept == list(range(len(kept)))


def environment() -> dict[str, str]:
    source = Path(__file__).resolve().parents[2] / "src"
    return {**os.environ, "PYTHONPATH": str(source)}
