"""SQLite with one writer thread: many callers, one fsync for all that wait.

`await db.write(fn)` runs `fn(connection)` in a transaction on the writer's thread. Writes that queue up while the disk
syncs share the next commit, each inside its own savepoint: a failing one takes nothing of the others with it. Reads go
to a connection of their own and see the last commit.

Invariant: once `write` returned, its rows survive a power cut (WAL, synchronous=FULL); if it raised, none of them do.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from freehold.protocol.errors import DiskFull, InvalidInput, Refused

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

MAX_GROUP = 512  # writes that share one commit

_Job = tuple[Work[Any], "Future[Any]"]


class Database:
    """`migrations[i]` is the SQL script that takes a file from version i to i+1; old entries never change."""

    def __init__(self, path: Path, migrations: Sequence[str]) -> None:
        self.path = path
        self._writer = _connect(path)
        try:
            migrate(self._writer, migrations)
            _sync_directory(path.parent)
        except BaseException:
            self._writer.close()
            raise
        self._reader = _connect(path)
        self._reader.execute("PRAGMA query_only=ON")
        self._reading = ThreadPoolExecutor(1, thread_name_prefix=f"{path.stem}-read")
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"{path.stem}-write")
        self._thread.start()

    async def write(self, work: Work[T]) -> T:
        """`work`'s result, once it is durable. What `work` raises comes back, and its changes are undone. DiskFull."""
        return await asyncio.wrap_future(self.submit(work))

    async def read(self, work: Work[T]) -> T:
        """`work`'s result, over the last committed state."""
        return await asyncio.wrap_future(self._reading.submit(work, self._reader))

    def submit(self, work: Work[T]) -> Future[T]:
        """`write` for callers without an event loop."""
        future: Future[T] = Future()
        with self._closing:
            if self._closed:
                raise Refused(f"the database {self.path.name} is closed")
            self._jobs.put((work, future))
        return future

    def close(self) -> None:
        """Finish what is queued, then close. Again does nothing."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._jobs.put(None)
        self._thread.join()
        self._reading.shutdown()
        self._reader.close()
        self._writer.close()

    def _run(self) -> None:
        while (first := self._jobs.get()) is not None:
            group = [first]
            while len(group) < MAX_GROUP and not self._jobs.empty():
                job = self._jobs.get()
                if job is None:
                    self._commit(group)
                    return
                group.append(job)
            self._commit(group)

    def _commit(self, group: list[_Job]) -> None:
        wanted = [job for job in group if job[1].set_running_or_notify_cancel()]
        done: list[tuple[Future[Any], Any]] = []
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            done = [(future, value) for work, future in wanted for ok, value in [self._attempt(work, future)] if ok]
            self._writer.execute("COMMIT")
        except BaseException as error:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            for _, future in wanted:
                if not future.done():
                    future.set_exception(_typed(error))
            return
        for future, value in done:
            future.set_result(value)

    def _attempt(self, work: Work[Any], future: Future[Any]) -> tuple[bool, Any]:
        self._writer.execute("SAVEPOINT one")
        try:
            value = work(self._writer)
        except Exception as error:
            if not self._writer.in_transaction:
                raise  # SQLite undid the whole group (a full disk): nobody's write stands
            self._writer.execute("ROLLBACK TO one")
            self._writer.execute("RELEASE one")
            future.set_exception(_typed(error))
            return False, None
        self._writer.execute("RELEASE one")
        return True, value


def migrate(connection: sqlite3.Connection, migrations: Sequence[str]) -> None:
    """Bring a database to version `len(migrations)`, one transaction a step. InvalidInput if it is newer than that."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(migrations):
        raise InvalidInput(
            f"the database is at version {version}, this release knows {len(migrations)}",
            hint="Use the release that wrote it, or a newer one.",
        )
    for step in range(version, len(migrations)):
        try:
            connection.executescript(f"BEGIN IMMEDIATE;\n{migrations[step]};\nPRAGMA user_version={step + 1};\nCOMMIT;")
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")
    return connection


def _typed(error: BaseException) -> BaseException:
    if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode == sqlite3.SQLITE_FULL:
        return DiskFull("the disk is full: the database cannot grow")
    return error


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
