"""One writer thread for a SQL database: many callers, one commit for all that wait.

`await db.write(fn)` runs `fn(connection)` in a transaction on the writer's thread. Writes that queue up while the disk
syncs share the next commit, each inside its own savepoint: a failing one takes nothing of the others with it. Reads go
to a connection of their own and see the last commit.

Invariant: once `write` returned, its rows are durable; if it raised, none of them are seen. One exception: Unavailable
from a database over a network says that it is not known whether the commit took place. Whoever needs to know reads.

`sql.py` is SQLite, `postgres.py` PostgreSQL; tests/store/sql_conformance.py is what both must do. SQL is written once,
in what they share: `?` for a parameter, BLOB, INTEGER (64 bits, signed), TEXT, `ON CONFLICT ... DO`. A statement that
fails ends its write: PostgreSQL undoes what came before it, so a write does not catch such an error to go on.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from freehold.protocol.errors import InvalidInput, Refused

T = TypeVar("T")
Work = Callable[[Any], T]  # what it is given is a Connection

MAX_GROUP = 512  # writes that share one commit

_Job = tuple[Work[Any], "Future[Any]"]


class Cursor(Protocol):
    """The rows of one statement."""

    @property
    def rowcount(self) -> int:
        """How many rows an INSERT, UPDATE or DELETE has changed."""

    def fetchone(self) -> Any: ...

    def fetchall(self) -> list[Any]: ...

    def __iter__(self) -> Iterator[Any]: ...


class Connection(Protocol):
    """What a write or a read works with."""

    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> Cursor: ...

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> Any: ...


class GroupCommit(ABC):
    """A database under its one writer. Subclasses connect, and call `_start` when they are ready."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        self._reading = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-read")
        self._thread = threading.Thread(target=self._run, name=f"{name}-write")

    # -- what a kind of database does -----------------------------------------------------------------------------

    @abstractmethod
    def _begin(self) -> Connection:
        """Begin a transaction that no other writer's interleaves with; the writer's connection."""

    @abstractmethod
    def _may_go_on(self) -> bool:
        """Whether the transaction still stands after a failure inside a savepoint, so that it can be rolled back to."""

    @abstractmethod
    def _roll_back(self) -> None:
        """Undo the transaction if there is one. Does not raise."""

    @abstractmethod
    def _get_reader(self) -> Connection:
        """The connection for reads. It cannot write."""

    @abstractmethod
    def _typed(self, error: BaseException) -> BaseException:
        """The same failure as everybody knows it: DiskFull, Unavailable; others as they are."""

    @abstractmethod
    def _disconnect(self) -> None:
        """Close both connections."""

    # -- what all share -------------------------------------------------------------------------------------------

    async def write(self, work: Work[T]) -> T:
        """`work`'s result, once it is durable. What `work` raises comes back, and its changes are undone. DiskFull,
        Unavailable."""
        return await asyncio.wrap_future(self.submit(work))

    async def read(self, work: Work[T]) -> T:
        """`work`'s result, over the last committed state. Unavailable."""
        return await asyncio.wrap_future(self._reading.submit(self._read, work))

    def submit(self, work: Work[T]) -> Future[T]:
        """`write` for callers without an event loop."""
        future: Future[T] = Future()
        with self._closing:
            if self._closed:
                raise Refused(f"the database {self.name} is closed")
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
        self._disconnect()

    def _start(self) -> None:
        self._thread.start()

    def _read(self, work: Work[T]) -> T:
        try:
            return work(self._get_reader())
        except Exception as error:
            typed = self._typed(error)
            if typed is error:
                raise
            raise typed from error

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
            connection = self._begin()
            for work, future in wanted:
                ok, value = self._attempt(connection, work, future)
                if ok:
                    done.append((future, value))
            connection.execute("COMMIT")
        except BaseException as error:
            self._roll_back()
            for _, future in wanted:
                if not future.done():
                    future.set_exception(self._typed(error))
            return
        for future, value in done:
            future.set_result(value)

    def _attempt(self, connection: Connection, work: Work[Any], future: Future[Any]) -> tuple[bool, Any]:
        connection.execute("SAVEPOINT one")
        try:
            value = work(connection)
            connection.execute("RELEASE SAVEPOINT one")
        except Exception as error:
            if not self._may_go_on():
                raise  # the whole group is undone (a full disk, a lost connection): nobody's write stands
            connection.execute("ROLLBACK TO SAVEPOINT one")
            connection.execute("RELEASE SAVEPOINT one")
            future.set_exception(self._typed(error))
            return False, None
        return True, value


def check_version(version: int, migrations: Sequence[str]) -> None:
    """InvalidInput if a database is newer than the migrations that this release knows."""
    if version > len(migrations):
        raise InvalidInput(
            f"the database is at version {version}, this release knows {len(migrations)}",
            hint="Use the release that wrote it, or a newer one.",
        )
